// Package scheduler is what happens next, while this node leads: one Term. It is built of parts that know each other only
// through small interfaces, so that the simulation runs the real code (L10):
//
//	clock      decides ticks, and has them stored
//	dispatch   gives queued runs to workers; placement is pure (fleet.Place)
//	settle     ends attempts and decides what follows
//	reap       ends leases that ran out
//	reconcile  finds what any of the others lost
//	fleet      whom they share: workers, leases, and in whose hand each run is
//	overlap    which runs of a job's ticks are active
//	specs      documents by version
//
// The ports (ports.go) are what a term asks of Raft, the store, the queue and the gateways. All that a term remembers is
// rebuilt from Raft and the store when it begins; nothing survives it.
package scheduler
