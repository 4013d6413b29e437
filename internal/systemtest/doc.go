// Package systemtest tests Muster as its users run it: it builds the binary, starts real processes with real files and
// sockets, alone and as clusters, kills, pauses, cuts off and damages them at bad moments, and lets package checker judge
// what clients were told, what the work noted about itself, and what the system says in the end. There is no code of ours
// in it but the tests.
//
// `go test ./internal/systemtest` has small counts, and leaves out what takes longer than a lease; `make chaos` runs all and
// prints a table. Trials that begin with TestStores, and the second half of TestGraphs, have a PostgreSQL and a Redis of
// their own (internal/servers) and do harm to them, or end nodes between two steps (internal/failpoint). -keep DIR keeps the
// histories, the processes' logs and their data, for finding out what happened. Network partitions need root and the ip
// command (iproute2).
package systemtest
