package scheduler

import (
	"context"
	"time"

	"github.com/musterhq/muster/job"
)

// Control is the Raft state as the leader uses it: control facts that Raft owns whatever the store is (design section 1).
// Reads are local and as new as this node's log; at the start of a term a barrier has made that complete. Writes return
// *job.Error: Fenced under a newer epoch, Unavailable when nothing happened, Unknown when it may have; every write is
// safe to repeat.
type Control interface {
	// RaiseEpoch sets the epoch to max(the current one, atLeast) + 1 and answers it (L1).
	RaiseEpoch(ctx context.Context, atLeast job.Epoch) (job.Epoch, error)
	// Grant opens leases and ends others in one entry (L2). Grants whose run has a live lease already are answered by
	// index and not opened. Ending a lease that is not there changes nothing.
	Grant(ctx context.Context, epoch job.Epoch, grants []job.Grant, ended []job.EndedGrant) (refused []int, err error)
	// Decide records ticks' dispositions, advances marks, and forgets decisions that the store has meanwhile (L6). A tick
	// whose mark move does not apply, because a newer version ticks or it was decided already, is dropped; the decisions
	// that were recorded are answered.
	Decide(ctx context.Context, epoch job.Epoch, ticks []job.Tick, marks []job.MarkMove, stored []job.TickKey) (recorded []job.Tick, err error)

	// PutSchedule makes a job's version tick; Conflict if a newer one does. DropSchedule ends it, unless a newer one ticks.
	PutSchedule(ctx context.Context, m job.Mark) (job.Mark, error)
	DropSchedule(ctx context.Context, id job.JobID, version uint64) error

	Grants() []job.Grant                              // live leases
	Marks() []job.Mark                                // of every schedule
	Mark(id job.JobID) (job.Mark, bool)               // of one
	Unstored() []job.Tick                             // decisions that no store has acknowledged
	TakeScheduleChanges() []job.JobID                 // schedules put, dropped, paused or resumed since the last call
	ScheduleChanges() <-chan struct{}                 // signalled, with a buffer of one, when TakeScheduleChanges has something
	Paused(id job.JobID, namespace string) job.Reason // NoReason, JobPaused, NamespacePaused or Maintenance
	WorkerFlag(name string) job.WorkerState           // WorkerReady, WorkerCordoned or WorkerDraining
}

// Gateways is how the leader reaches workers, on whichever node their stream ends. Calls do not block on slow workers.
type Gateways interface {
	// Assign hands attempts over and answers, for each, whether it was written to its stream. False means undeliverable:
	// never written, so never started (L3).
	Assign(ctx context.Context, deliveries []job.Delivery) []bool
	// Stop tells workers to stop attempts. It is a hint; the lease's end is what counts.
	Stop(ctx context.Context, orders []job.StopOrder)
	// Acknowledge tells workers that results are recorded, or refused for good.
	Acknowledge(ctx context.Context, acks []job.Ack)
}

// Clock is the time, replaceable in tests and the simulation.
type Clock interface {
	Now() time.Time
	// Since a moment, on a clock that runs through suspend and never jumps (L4).
	Elapsed() time.Duration
}

// Store is what the leader asks of the store; the contract is in package storage.
type Store interface {
	Raise(ctx context.Context, epoch job.Epoch) (job.Epoch, error)
	StoreTicks(ctx context.Context, epoch job.Epoch, ticks []job.Tick) ([]*job.Run, error)
	Move(ctx context.Context, epoch job.Epoch, moves []job.Move) ([]job.Moved, error)
	Load(ctx context.Context, ids []job.RunID) ([]*job.Run, error)
	Live(ctx context.Context, after job.RunID, limit int) ([]*job.Run, error)
	LiveOfJob(ctx context.Context, id job.JobID, limit int) ([]*job.Run, error)
	Backlog(ctx context.Context, wants []job.LaneAfter, until job.Instant) ([]job.QueueEntry, error)
	Heads(ctx context.Context, afterNamespace, afterName string, limit int) ([]job.JobHead, error)
	StartVersion(ctx context.Context, id job.JobID, version uint64, from job.Instant) error
	Version(ctx context.Context, id job.JobID, version uint64) (*job.Version, error)
	Cancel(ctx context.Context, intents []job.CancelIntent) ([]job.Receipt, error)
	Prune(ctx context.Context, epoch job.Epoch, before job.Instant, limit int) (int, error)
	Runs(ctx context.Context, q job.RunQuery) (job.RunPage, error)
	Job(ctx context.Context, namespace, name string) (*job.Job, error)
	Release(ctx context.Context, epoch job.Epoch, runs []*job.Run) ([]job.Receipt, error)
	Fire(ctx context.Context, epoch job.Epoch, jobs []job.JobID, now job.Instant, limit int) ([]*job.Run, error)
}

// Queue is what the leader asks of the queue; the contract is in package storage.
type Queue interface {
	Raise(ctx context.Context, epoch job.Epoch) (job.Epoch, error)
	Push(ctx context.Context, epoch job.Epoch, now job.Instant, entries []job.QueueEntry) (left []job.QueueEntry, err error)
	Pop(ctx context.Context, epoch job.Epoch, now job.Instant, wants []job.LaneWant) ([]job.QueueEntry, error)
	Remove(ctx context.Context, epoch job.Epoch, ids []job.RunID) error
	Lanes(ctx context.Context, now job.Instant) ([]job.LaneDepth, error)
	Holds(ctx context.Context, ids []job.RunID) ([]bool, error)
	Reset(ctx context.Context, epoch job.Epoch) error
}

// Status shows what runs to readers who do not ask the leader. It may lose anything at any moment: a row counts for a
// reader only while the lease that it shows, by Run.Fence, lives in Raft.
type Status interface {
	// Put shows rows for some time; they are put again before that is over.
	Put(ctx context.Context, runs []*job.Run) error
	// Drop takes the rows of runs away that run no longer.
	Drop(ctx context.Context, ids []job.RunID) error
}
