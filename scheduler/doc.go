// Package scheduler is what happens next, while this node leads: one Term. It is built of parts that know each other only
// through small interfaces, so that the simulation runs the real code (L10):
//
//	clock      decides ticks, and has them stored
//	dispatch   gives queued runs to workers; placement is pure (fleet.Place)
//	settle     ends attempts and decides what follows
//	resolve    opens runs with tasks, releases what follows from what has ended, and ends them
//	fire       runs jobs whose dependencies on other jobs are satisfied
//	reap       ends leases that ran out
//	reconcile  finds what any of the others lost
//	backlog    keeps the queue small, and its order as if it held everything
//	status     tells a cache what runs
//	fleet      whom they share: workers, leases, and in whose hand each run is
//	overlap    which runs of a job's ticks are active
//	specs      documents by version
//
// The store may be away at any moment, for minutes. Each part then tries again at a bounded rate and says so once
// (pace.Trouble); leases, heartbeats and decisions of ticks go on, for they are Raft's; results wait; and when the store is
// back nobody has to be told.
//
// The ports (ports.go) are what a term asks of Raft, the store, the queue and the gateways. All that a term remembers is
// rebuilt from Raft and the store when it begins; nothing survives it.
package scheduler
