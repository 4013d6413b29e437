//go:build !linux

package worker

import "time"

type systemClock struct{}

var processStarted = time.Now()

func (systemClock) Now() time.Time { return time.Now() }

// Elapsed takes the later of the monotonic and the wall clock: the first may stand still while the machine sleeps, the
// second may be set back. Both errors make a lease end early, which is allowed; late it may never end.
func (systemClock) Elapsed() time.Duration {
	now := time.Now()
	return max(now.Sub(processStarted), now.Round(0).Sub(processStarted.Round(0)))
}
