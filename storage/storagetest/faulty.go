package storagetest

import (
	"context"
	"sync"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage"
)

// Fault is how a call of a Faulty store goes wrong.
type Fault int

const (
	None              Fault = iota // the call goes through
	Timeout                        // nothing is done, but the caller cannot know: Unknown
	ExecuteAndTimeout              // it is done, and the caller is answered Unknown
	Unavailable                    // nothing is done, and the caller knows
	Exhausted                      // a bound is reached
	Fenced                         // a newer epoch was raised
)

// Method names one method of a store.
type Method string

// The methods of storage.Store.
const (
	PutJob     Method = "PutJob"
	DeleteJob  Method = "DeleteJob"
	Job        Method = "Job"
	Jobs       Method = "Jobs"
	Version    Method = "Version"
	Versions   Method = "Versions"
	Submit     Method = "Submit"
	Cancel     Method = "Cancel"
	Raise      Method = "Raise"
	StoreTicks Method = "StoreTicks"
	Move       Method = "Move"
	Load       Method = "Load"
	Live       Method = "Live"
	LiveOfJob  Method = "LiveOfJob"
	Heads      Method = "Heads"
	Backlog    Method = "Backlog"

	StartVersion Method = "StartVersion"
	GetRun       Method = "Run"
	Runs         Method = "Runs"
	Attempts     Method = "Attempts"
	Ticks        Method = "Ticks"
	Usage        Method = "Usage"
	Prune        Method = "Prune"

	Release      Method = "Release"
	Fire         Method = "Fire"
	Dependencies Method = "Dependencies"
)

// Faulty is a store that fails on cue. It is safe for concurrent use.
type Faulty struct {
	of storage.Store

	mu    sync.Mutex
	next  map[Method][]Fault
	until map[Method]Fault
	all   Fault
	calls map[Method]int
}

var _ storage.Store = (*Faulty)(nil)

// NewFaulty wraps a store. Until told otherwise it does what the store does.
func NewFaulty(of storage.Store) *Faulty {
	return &Faulty{of: of, next: map[Method][]Fault{}, until: map[Method]Fault{}, calls: map[Method]int{}}
}

// Next sets what happens to the next calls of a method, in order, after what is set already.
func (f *Faulty) Next(m Method, faults ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next[m] = append(f.next[m], faults...)
}

// Until makes every call of a method fail, after those that Next set, until it is set to None.
func (f *Faulty) Until(m Method, fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.until[m] = fault
}

// All makes every call of every method fail until it is set to None; Next and Until come first.
func (f *Faulty) All(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = fault
}

// Calls tells how many calls of a method there were, failed ones included.
func (f *Faulty) Calls(m Method) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[m]
}

func (f *Faulty) take(m Method) Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[m]++
	if q := f.next[m]; len(q) > 0 {
		f.next[m] = q[1:]
		return q[0]
	}
	if fault := f.until[m]; fault != None {
		return fault
	}
	return f.all
}

func try[V any](f *Faulty, m Method, do func() (V, error)) (V, error) {
	var none V
	switch fault := f.take(m); fault {
	case None:
		return do()
	case ExecuteAndTimeout:
		if _, err := do(); err != nil {
			return none, err
		}
		return none, job.Errorf(job.Unknown, "timeout", "%s timed out after it was done", m)
	case Timeout:
		return none, job.Errorf(job.Unknown, "timeout", "%s timed out before it was done", m)
	case Exhausted:
		return none, job.Errorf(job.Exhausted, "store_full", "the store is full")
	case Fenced:
		return none, job.Errorf(job.Fenced, "epoch", "a newer epoch was raised")
	default:
		return none, job.Errorf(job.Unavailable, "store_unavailable", "the store is away")
	}
}

// PutJob implements storage.Store.
func (f *Faulty) PutJob(ctx context.Context, p job.PutJob) (*job.Job, error) {
	return try(f, PutJob, func() (*job.Job, error) { return f.of.PutJob(ctx, p) })
}

// DeleteJob implements storage.Store.
func (f *Faulty) DeleteJob(ctx context.Context, namespace, name string, ifVersion uint64) (*job.Job, error) {
	return try(f, DeleteJob, func() (*job.Job, error) { return f.of.DeleteJob(ctx, namespace, name, ifVersion) })
}

// Job implements storage.Store.
func (f *Faulty) Job(ctx context.Context, namespace, name string) (*job.Job, error) {
	return try(f, Job, func() (*job.Job, error) { return f.of.Job(ctx, namespace, name) })
}

// Jobs implements storage.Store.
func (f *Faulty) Jobs(ctx context.Context, q job.JobQuery) (job.JobPage, error) {
	return try(f, Jobs, func() (job.JobPage, error) { return f.of.Jobs(ctx, q) })
}

// Version implements storage.Store.
func (f *Faulty) Version(ctx context.Context, id job.JobID, version uint64) (*job.Version, error) {
	return try(f, Version, func() (*job.Version, error) { return f.of.Version(ctx, id, version) })
}

// Versions implements storage.Store.
func (f *Faulty) Versions(ctx context.Context, namespace, name string, limit int) ([]*job.Version, error) {
	return try(f, Versions, func() ([]*job.Version, error) { return f.of.Versions(ctx, namespace, name, limit) })
}

// Submit implements storage.Store.
func (f *Faulty) Submit(ctx context.Context, runs []*job.Run) ([]job.Receipt, error) {
	return try(f, Submit, func() ([]job.Receipt, error) { return f.of.Submit(ctx, runs) })
}

// Cancel implements storage.Store.
func (f *Faulty) Cancel(ctx context.Context, intents []job.CancelIntent) ([]job.Receipt, error) {
	return try(f, Cancel, func() ([]job.Receipt, error) { return f.of.Cancel(ctx, intents) })
}

// Raise implements storage.Store.
func (f *Faulty) Raise(ctx context.Context, epoch job.Epoch) (job.Epoch, error) {
	return try(f, Raise, func() (job.Epoch, error) { return f.of.Raise(ctx, epoch) })
}

// StoreTicks implements storage.Store.
func (f *Faulty) StoreTicks(ctx context.Context, epoch job.Epoch, ticks []job.Tick) ([]*job.Run, error) {
	return try(f, StoreTicks, func() ([]*job.Run, error) { return f.of.StoreTicks(ctx, epoch, ticks) })
}

// Move implements storage.Store.
func (f *Faulty) Move(ctx context.Context, epoch job.Epoch, moves []job.Move) ([]job.Moved, error) {
	return try(f, Move, func() ([]job.Moved, error) { return f.of.Move(ctx, epoch, moves) })
}

// Load implements storage.Store.
func (f *Faulty) Load(ctx context.Context, ids []job.RunID) ([]*job.Run, error) {
	return try(f, Load, func() ([]*job.Run, error) { return f.of.Load(ctx, ids) })
}

// Live implements storage.Store.
func (f *Faulty) Live(ctx context.Context, after job.RunID, limit int) ([]*job.Run, error) {
	return try(f, Live, func() ([]*job.Run, error) { return f.of.Live(ctx, after, limit) })
}

// Heads implements storage.Store.
func (f *Faulty) Heads(ctx context.Context, afterNamespace, afterName string, limit int) ([]job.JobHead, error) {
	return try(f, Heads, func() ([]job.JobHead, error) { return f.of.Heads(ctx, afterNamespace, afterName, limit) })
}

// Backlog implements storage.Store.
func (f *Faulty) Backlog(ctx context.Context, wants []job.LaneAfter, until job.Instant) ([]job.QueueEntry, error) {
	return try(f, Backlog, func() ([]job.QueueEntry, error) { return f.of.Backlog(ctx, wants, until) })
}

// StartVersion implements storage.Store.
func (f *Faulty) StartVersion(ctx context.Context, id job.JobID, version uint64, from job.Instant) error {
	_, err := try(f, StartVersion, func() (struct{}, error) { return struct{}{}, f.of.StartVersion(ctx, id, version, from) })
	return err
}

// LiveOfJob implements storage.Store.
func (f *Faulty) LiveOfJob(ctx context.Context, id job.JobID, limit int) ([]*job.Run, error) {
	return try(f, LiveOfJob, func() ([]*job.Run, error) { return f.of.LiveOfJob(ctx, id, limit) })
}

// Run implements storage.Store.
func (f *Faulty) Run(ctx context.Context, id job.RunID) (*job.Run, error) {
	return try(f, GetRun, func() (*job.Run, error) { return f.of.Run(ctx, id) })
}

// Runs implements storage.Store.
func (f *Faulty) Runs(ctx context.Context, q job.RunQuery) (job.RunPage, error) {
	return try(f, Runs, func() (job.RunPage, error) { return f.of.Runs(ctx, q) })
}

// Attempts implements storage.Store.
func (f *Faulty) Attempts(ctx context.Context, id job.RunID) ([]job.Attempt, error) {
	return try(f, Attempts, func() ([]job.Attempt, error) { return f.of.Attempts(ctx, id) })
}

// Ticks implements storage.Store.
func (f *Faulty) Ticks(ctx context.Context, q job.TickQuery) ([]job.Tick, error) {
	return try(f, Ticks, func() ([]job.Tick, error) { return f.of.Ticks(ctx, q) })
}

// Usage implements storage.Store.
func (f *Faulty) Usage(ctx context.Context) (job.Usage, error) {
	return try(f, Usage, func() (job.Usage, error) { return f.of.Usage(ctx) })
}

// Prune implements storage.Store.
func (f *Faulty) Prune(ctx context.Context, epoch job.Epoch, before job.Instant, limit int) (int, error) {
	return try(f, Prune, func() (int, error) { return f.of.Prune(ctx, epoch, before, limit) })
}

// Release implements storage.Graphs.
func (f *Faulty) Release(ctx context.Context, epoch job.Epoch, runs []*job.Run) ([]job.Receipt, error) {
	return try(f, Release, func() ([]job.Receipt, error) { return f.of.(storage.Graphs).Release(ctx, epoch, runs) })
}

// Fire implements storage.Graphs.
func (f *Faulty) Fire(ctx context.Context, epoch job.Epoch, jobs []job.JobID, now job.Instant, limit int) ([]*job.Run, error) {
	return try(f, Fire, func() ([]*job.Run, error) { return f.of.(storage.Graphs).Fire(ctx, epoch, jobs, now, limit) })
}

// Dependencies implements storage.Graphs.
func (f *Faulty) Dependencies(ctx context.Context, namespace, name string) ([]job.Dependency, error) {
	return try(f, Dependencies, func() ([]job.Dependency, error) { return f.of.(storage.Graphs).Dependencies(ctx, namespace, name) })
}
