package worker

import (
	"time"

	"golang.org/x/sys/unix"
)

type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

// Elapsed reads CLOCK_BOOTTIME. Go's own monotonic clock stands still while the machine sleeps, and a laptop or a paused
// virtual machine that wakes up would believe in leases that ended long ago.
func (systemClock) Elapsed() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("worker: no CLOCK_BOOTTIME: " + err.Error()) // in every Linux since 2.6.39
	}
	return time.Duration(t.Nano())
}
