// Package job is the vocabulary: job, task, run, attempt, lease, tick and disposition; the states a run may pass through
// and the functions that move it; errors and their HTTP statuses. It does no I/O and never asks the time: whatever
// varies (time, ids, jitter) comes in with the call. Every store makes every move through the functions here, so that
// they cannot disagree.
//
// The life of a run:
//
//	          ┌──────── waiting ────────┐   dependencies, overlap: queue
//	birth ────┼──────── held ───────────┤   pause, key, spool
//	          ├──────── scheduled ◄──┐  ▼
//	          └───────────────────►  │ queued ◄──────────────┐
//	                                 │  │ grant              │ worker lost
//	                 retry (backoff) │  ▼                    │
//	                                 └─ running ─────────────┘
//	                                    │
//	     succeeded · failed · cancelled · skipped     (terminal: final, D4; reachable from every state above)
//
// A run is written running late or never: what runs now is known from the leases (Grant), and the store learns the end.
package job
