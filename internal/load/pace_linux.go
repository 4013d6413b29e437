package load

import (
	"time"

	"golang.org/x/sys/unix"
)

// sleepUntil sleeps in the kernel: the runtime's timers round up to a millisecond when nothing else is going on, which
// is as long as what is measured. It holds a thread meanwhile, but only one.
func sleepUntil(t time.Time) {
	for {
		d := time.Until(t)
		if d <= 0 {
			return
		}
		ts := unix.NsecToTimespec(d.Nanoseconds())
		_ = unix.Nanosleep(&ts, nil) // interrupted: the loop goes on
	}
}
