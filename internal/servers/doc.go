// Package servers runs real PostgreSQL and Redis for tests, trials and `make up`: private ones, on ports of the loopback
// that nobody else takes, with passwords, as a user without rights where we are root, and never a service of the system.
//
// A server belongs to the process that starts it. It ends with that process, however that ends, kill -9 included: a
// guard, which is a small shell that waits for the end of a pipe, stops the server and removes its directory. So tests
// need no TestMain for it. No goroutine is left running.
//
// A server that is not installed fails the test; it never skips it.
package servers
