package app

import (
	"time"

	"golang.org/x/sys/unix"
)

// elapsed is the time since boot, suspended time included (L4).
func elapsed() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("CLOCK_BOOTTIME cannot be read: " + err.Error()) // it exists since Linux 2.6.39
	}
	return time.Duration(t.Nano())
}
