//go:build unix

package app

import "syscall"

// maxConnections is how many connections the API may have: 0, which is its own choice, or so many that a quarter of the files
// that this process may open is left for everything else.
func maxConnections() int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil || l.Cur >= 32_768 {
		return 0
	}
	return max(int(l.Cur)/4*3, 64)
}
