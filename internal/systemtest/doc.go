// Package systemtest tests Muster as its users run it: it builds the binary, starts real processes with real files and
// sockets, kills them with SIGKILL at bad moments, and lets package checker judge what clients were told, what the work
// noted about itself, and what the system says in the end. There is no code of ours in it but the tests.
//
// What a user would do by hand is `go test ./internal/systemtest -v`; `make chaos` does it twenty times as long. -keep DIR
// keeps the histories, the processes' logs and their data, for finding out what happened.
package systemtest
