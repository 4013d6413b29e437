//go:build !unix

package main

// columns is how wide the terminal is that the answer goes to, which is not known here.
func (c *cli) columns() int { return ganttColumns }
