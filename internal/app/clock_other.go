//go:build !linux

package app

import "time"

var processStart = time.Now()

// elapsed is the time since the process began. Whether suspended time counts is up to the system.
func elapsed() time.Duration { return time.Since(processStart) }
