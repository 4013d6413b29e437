//go:build !unix

package app

func maxConnections() int { return 0 }
