//go:build unix

package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// columns is how wide the terminal is that the answer goes to; where there is none, or it does not say, 80.
func (c *cli) columns() int {
	f, ok := c.stdout.(*os.File)
	if !ok {
		return ganttColumns
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return ganttColumns
	}
	return int(size.Col)
}
