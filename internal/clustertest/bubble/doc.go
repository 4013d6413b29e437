// Package bubble holds trials of whole clusters in one synctest bubble each: three or more nodes as internal/app makes them,
// with real Raft on real files, and workers with functions for work, over a network in memory. Elections, leases, partitions
// and hours pass in the bubble's time, so they cost next to nothing.
//
// What the trials do is drawn from a seed, but how goroutines interleave is not, so a seed does not replay a trial. What
// happened is written down instead: clients, work and faults make a history, which package checker judges, and which is saved
// when a trial fails, with the logs, to be judged again:
//
//	go test ./internal/clustertest/bubble -seeds 100
//	go test ./internal/checker -run Replay -history DIR
//
// All of it is in tests. Two things must be known to work on them. A goroutine that waits for a mutex stops the bubble's
// clock; so whoever holds one must not wait for time to pass, which is why the network buffers what cannot arrive. And what
// runs inside must make all its channels inside.
package bubble
