// Package storage is the contract between the scheduler and what keeps its state: the store, which owns jobs, runs,
// attempts and the tick ledger, and the queue, which may be flushed at any moment and is rebuilt from the store.
//
// Each interface is small so that its implementations can be judged by a suite: storage/storagetest for stores,
// storage/queuetest for queues. Types that cross the contract live in package job. Rules named S1.. and Q1.. are in
// docs/design.md.
//
// Errors are *job.Error. Unavailable means nothing happened; Unknown means it may have, and repeating the call with the
// same arguments is the way out; every method here is safe to repeat. Exhausted means a bound is reached. Fenced means
// that a newer epoch was raised: the caller no longer leads.
package storage

import (
	"context"

	"github.com/musterhq/muster/job"
)

// Store is a whole store. Callers ask for the parts they use.
type Store interface {
	Definitions
	Births
	Moves
	Graphs
	Reads
	Prunes
}

// Definitions keeps jobs and their versions.
type Definitions interface {
	// PutJob creates a job, or a new version of it. A document equal to the current version changes nothing and answers
	// the job as it is. See PutJob for the guards. The schedule takes effect separately, through Raft (L7). An upstream
	// (Document.DependsOn) that is not there is Invalid, and edges that close a cycle are Conflict, reason cycle: see
	// job.FindCycle. Of any number of calls that would close one together, one at least is refused.
	PutJob(ctx context.Context, p PutJob) (*job.Job, error)
	// DeleteJob removes a job and its versions; its runs stay. ifVersion 0 means whichever version; another version than
	// the current one is Conflict, a job that is not there NotFound. One that others depend on is Conflict, reason
	// has_dependents (job.HasDependents).
	DeleteJob(ctx context.Context, namespace, name string, ifVersion uint64) (*job.Job, error)
	// Job answers one job with its current document, or NotFound.
	Job(ctx context.Context, namespace, name string) (*job.Job, error)
	// Jobs answers a page ordered by name, and where the next one begins.
	Jobs(ctx context.Context, q JobQuery) (JobPage, error)
	// Version answers one version by the job's id, for runs that are pinned to it; also of a deleted job as long as a
	// live run needs it. NotFound otherwise.
	Version(ctx context.Context, id job.JobID, version uint64) (*job.Version, error)
	// Versions answers a job's versions, newest first.
	Versions(ctx context.Context, namespace, name string, limit int) ([]*job.Version, error)
	// StartVersion notes from when a version ticks, as Raft decided it (L7): Version.From. Until then it is the version's
	// creation. A version that is gone is no error. The replicated store needs no telling.
	StartVersion(ctx context.Context, id job.JobID, version uint64, from job.Instant) error
}

// PutJob is one change of a definition. The callers above a store know it, and the queries below, from package job.
type PutJob = job.PutJob

// JobQuery selects jobs.
type JobQuery = job.JobQuery

// JobPage is a part of what it selects.
type JobPage = job.JobPage

// Births is what any node may write (S4). Births and intents commute.
type Births interface {
	// Submit stores root runs, one receipt for each, in order. A run whose id is there already, or whose key belongs to an
	// earlier run with the same body, is answered with that run and Existing (S10); the same key with another body is
	// Conflict, reason key_conflict. An error of the whole call applies to every run.
	Submit(ctx context.Context, runs []*job.Run) ([]job.Receipt, error)
	// Cancel records intents (L9) and answers each run as it then is; NotFound in the receipt if there is no such run.
	// An intent for a terminal run changes nothing.
	Cancel(ctx context.Context, intents []job.CancelIntent) ([]job.Receipt, error)
}

// Moves is what only the leader calls. Every call carries its epoch and is refused as Fenced under a newer one (L1).
type Moves interface {
	// Raise makes epoch the store's and answers the store's as it then is. A lower or equal one than the store's is Fenced,
	// and the store's is answered beside the error: a leader that holds the newest reign of Raft raises above it.
	Raise(ctx context.Context, epoch job.Epoch) (job.Epoch, error)
	// StoreTicks writes the ledger rows of decided ticks and gives birth to their runs (job.BirthOfTick). A tick of a job
	// version that is gone gets its ledger row, and no run. It answers the runs that are there after the call, by tick.
	StoreTicks(ctx context.Context, epoch job.Epoch, ticks []job.Tick) ([]*job.Run, error)
	// Move makes moves with job.Move.Apply and appends the attempts they end. One that does not apply is answered with
	// Applied false and the run as it is (nil if there is none). A move that ends the root run of a job satisfies, in the
	// same step, the dependencies on that job which the end satisfies (job.EdgeOn), and counts those that were satisfied
	// already; Moved.Due says for which jobs Fire may have something to do.
	Move(ctx context.Context, epoch job.Epoch, moves []job.Move) ([]Moved, error)
	// Load answers runs by id, nil where there is none (Q3).
	Load(ctx context.Context, ids []job.RunID) ([]*job.Run, error)
	// Live answers runs that are not terminal in the order of their ids, those after the given id, without what the work
	// itself needs: payload, spec, labels, result and error may be left out.
	Live(ctx context.Context, after job.RunID, limit int) ([]*job.Run, error)
	// Heads answers jobs of all namespaces in the order of namespace and name, those after the given one (L7).
	Heads(ctx context.Context, afterNamespace, afterName string, limit int) ([]job.JobHead, error)
	// LiveOfJob answers the runs of one job that are not terminal, in the order of their ids, as Live does.
	LiveOfJob(ctx context.Context, id job.JobID, limit int) ([]*job.Run, error)
	// Backlog answers, of each wanted lane, the first runs after a place in it that are queued, or scheduled and ready by
	// until, and have no cancel intent: in the order of the wants, and in each lane by Order and id (Q2).
	Backlog(ctx context.Context, wants []job.LaneAfter, until job.Instant) ([]job.QueueEntry, error)
}

// Graphs is what grows from runs and jobs that depend on each other. But for Dependencies, only the leader calls it.
type Graphs interface {
	// Release stores runs that the leader gives birth to: task runs, and the root runs of a task's run_job. One whose id is
	// there already is answered as it is, with Existing. They may be born terminal. They are taken however full the store
	// is: what was opened has to come to an end (D6).
	Release(ctx context.Context, epoch job.Epoch, runs []*job.Run) ([]job.Receipt, error)
	// Fire gives birth to the runs of jobs that are due: all of their dependencies are satisfied, and none of their root
	// runs is live. Their dependencies are cleared in the same step. It looks at these jobs, or with nil at all of them,
	// and answers at most limit births; whoever gets as many calls again.
	//
	// It also judges dependencies that are new since the last call: one starts satisfied if the job has no runs and the
	// newest run of its upstream has ended so that it satisfies it.
	Fire(ctx context.Context, epoch job.Epoch, jobs []job.JobID, now job.Instant, limit int) ([]*job.Run, error)
	// Dependencies answers the edges of a job, to its upstreams and then from its dependents, each by name; none if there
	// is no such job.
	Dependencies(ctx context.Context, namespace, name string) ([]job.Dependency, error)
}

// Moved is defined with the words, so that the scheduler needs no storage package.
type Moved = job.Moved

// Reads answers people.
type Reads interface {
	// Run answers one run, or NotFound.
	Run(ctx context.Context, id job.RunID) (*job.Run, error)
	// Runs answers a page, and where the next one begins: a store looks at so many rows and no more at once.
	Runs(ctx context.Context, q RunQuery) (RunPage, error)
	// Attempts answers the attempts of a run that ended, oldest first; the last or current one is in the run itself.
	Attempts(ctx context.Context, id job.RunID) ([]job.Attempt, error)
	// Ticks answers the ledger of one job, newest first.
	Ticks(ctx context.Context, q TickQuery) ([]job.Tick, error)
	// Usage answers how full the store is.
	Usage(ctx context.Context) (Usage, error)
}

// RunQuery selects runs.
type RunQuery = job.RunQuery

// RunPage is a part of what it selects.
type RunPage = job.RunPage

// TickQuery selects ledger rows.
type TickQuery = job.TickQuery

// Usage is how full a store is.
type Usage = job.Usage

// Prunes drops history.
type Prunes interface {
	// Prune drops terminal runs with their attempts, and ledger rows, that are older than before, and, oldest first, what
	// is over the store's own bound of history. It drops at most limit rows and tells how many it dropped.
	Prune(ctx context.Context, epoch job.Epoch, before job.Instant, limit int) (int, error)
}

// Queue holds what is startable, in order. The leader is its only writer (Q1), and everything in it is derived from the
// store: an entry may be stale or doubled (Q3), and all of them may vanish.
type Queue interface {
	// Raise makes epoch the queue's, empties nothing, and answers the queue's as it then is. A lower one than the queue's is
	// Fenced, and the queue's is answered beside the error.
	Raise(ctx context.Context, epoch job.Epoch) (job.Epoch, error)
	// Push adds entries at now. One whose run is queued already replaces it. A lane holds so many and no more, the first
	// ones: what is ready comes before what is not, by Order and id, and what is not ready by its time and id. What the
	// lane has no room for, pushed now or queued before, is answered: those runs stay in the store (Q2).
	Push(ctx context.Context, epoch job.Epoch, now job.Instant, entries []QueueEntry) (left []QueueEntry, err error)
	// Pop takes up to the wanted number of entries that are ready at now from each lane, first the smallest Order.
	Pop(ctx context.Context, epoch job.Epoch, now job.Instant, wants []LaneWant) ([]QueueEntry, error)
	// Remove takes entries out, wherever they are.
	Remove(ctx context.Context, epoch job.Epoch, ids []job.RunID) error
	// Lanes describes the lanes that are not empty, as they are at now.
	Lanes(ctx context.Context, now job.Instant) ([]LaneDepth, error)
	// Holds answers, for each id, whether the run is queued.
	Holds(ctx context.Context, ids []job.RunID) ([]bool, error)
	// Reset empties the queue.
	Reset(ctx context.Context, epoch job.Epoch) error
}

// QueueEntry is defined with the words, so that the scheduler needs no storage package.
type QueueEntry = job.QueueEntry

// LaneWant is defined with the words, so that the scheduler needs no storage package.
type LaneWant = job.LaneWant

// LaneDepth is defined with the words, so that the scheduler needs no storage package.
type LaneDepth = job.LaneDepth
