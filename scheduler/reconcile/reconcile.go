// Package reconcile compares what the store says with what the leader does about it, and mends the difference: live runs
// that nobody queued, deadlines that passed while nothing else looked, cancel intents whose hint was lost, runs that
// wait for nothing any more, leases of runs that ended. Everything else in the scheduler may lose a step; this finds it.
package reconcile

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler/dispatch"
	"github.com/musterhq/muster/scheduler/fleet"
	"github.com/musterhq/muster/scheduler/pace"
)

const (
	// Every is how often it looks (Q1).
	Every = 5 * time.Second
	// Ahead is how far ahead delayed runs are queued; those due later stay in the store (Q2).
	Ahead = 5 * time.Minute

	page    = 1000
	recent  = time.Minute // births younger than this are looked at each time: their hints may be lost
	maxRows = 100_000     // of older runs, looked at each time; the cursor goes round
)

// Store is what is read.
type Store interface {
	Live(ctx context.Context, after job.RunID, limit int) ([]*job.Run, error)
	LiveOfJob(ctx context.Context, id job.JobID, limit int) ([]*job.Run, error)
	Load(ctx context.Context, ids []job.RunID) ([]*job.Run, error)
}

// Queue is what is mended.
type Queue interface {
	Holds(ctx context.Context, ids []job.RunID) ([]bool, error)
	Push(ctx context.Context, epoch job.Epoch, now job.Instant, entries []job.QueueEntry) (left []job.QueueEntry, err error)
}

// Control tells what is paused.
type Control interface {
	Paused(id job.JobID, namespace string) job.Reason
}

// Mover moves runs.
type Mover interface {
	Move(ctx context.Context, moves []job.Move) error
}

// Reconciler is one term's.
type Reconciler struct {
	Epoch   job.Epoch
	Store   Store
	Queue   Queue
	Control Control
	Mover   Mover
	Fleet   *fleet.Fleet
	Now     func() job.Instant
	Logger  *slog.Logger
	Wake    func() // the dispatcher has something new
	Stop    func(ctx context.Context, why job.Reason, ids ...job.RunID)
	// Mended counts what was mended; may be nil.
	Mended func(what string, n int)

	cursor job.RunID
	kick   chan struct{}
	all    atomic.Bool // the next turn looks at all live runs
}

// Init must be called before any other method.
func (r *Reconciler) Init() {
	r.kick = make(chan struct{}, 1)
	r.all.Store(true)
}

// Kick makes the reconciler look at all live runs at once, as after a job was resumed.
func (r *Reconciler) Kick() {
	r.all.Store(true)
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// Reconciling is the part that loads all live runs, and then looks every few seconds. Init must have been called.
func (r *Reconciler) Reconciling() *pace.Part {
	return &pace.Part{Name: "reconciler", Turn: r.turn, Signals: [2]<-chan struct{}{r.kick}}
}

func (r *Reconciler) turn(ctx context.Context) (time.Duration, error) {
	all := r.all.Swap(false)
	err := r.Step(ctx, all)
	switch {
	case job.CodeOf(err) == job.Fenced || err != nil && ctx.Err() != nil:
		return 0, err
	case err != nil:
		r.Logger.Warn("reconciling is retried", "err", err)
		if all {
			r.all.Store(true)
		}
	}
	return Every, nil
}

// Step looks once: at the recent births and a share of the older runs, or at all live runs.
func (r *Reconciler) Step(ctx context.Context, all bool) error {
	if err := r.endedLeases(ctx); err != nil {
		return err
	}
	if all {
		_, err := r.sweep(ctx, job.RunID{}, job.RunID{}, -1)
		return err
	}
	young := job.MakeRunID(r.Now().Time().Add(-recent), [10]byte{})
	if _, err := r.sweep(ctx, young, job.RunID{}, -1); err != nil {
		return err
	}
	next, err := r.sweep(ctx, r.cursor, young, maxRows)
	r.cursor = next
	return err
}

// sweep looks at live runs after the given id and before end (zero: no end), up to a number of rows, and answers where to
// go on; zero after the last.
func (r *Reconciler) sweep(ctx context.Context, after, end job.RunID, rows int) (job.RunID, error) {
	for n := 0; rows < 0 || n < rows; n += page {
		runs, err := r.Store.Live(ctx, after, page)
		if err != nil {
			return after, err
		}
		past := false
		for i, x := range runs {
			if !end.IsZero() && string(x.ID[:]) >= string(end[:]) {
				runs, past = runs[:i], true
				break
			}
		}
		if err := r.look(ctx, runs); err != nil {
			return after, err
		}
		if past || len(runs) < page {
			return job.RunID{}, nil
		}
		after = runs[len(runs)-1].ID
	}
	return after, nil
}

// look mends one page of live runs.
func (r *Reconciler) look(ctx context.Context, runs []*job.Run) error {
	now := r.Now()
	var moves []job.Move
	var queue []*job.Run
	for _, x := range runs {
		if r.Fleet.InHand(x.ID) {
			if x.CancelAt != 0 {
				r.Stop(ctx, job.CancelRequested, x.ID)
			}
			continue
		}
		paused := r.Control.Paused(x.JobID, x.Namespace)
		if m, ok := dispatch.NotNow(x, paused, now); ok {
			moves = append(moves, m)
			continue
		}
		switch {
		case x.State == job.Held && x.Reason == job.JobPaused && paused != job.JobPaused,
			x.State == job.Running: // written late, and its lease is gone
			moves = append(moves, job.Move{ID: x.ID, State: job.Queued, QueuedAt: now})
		case x.State == job.Waiting && x.Reason == job.OverlapQueued:
			free, err := r.first(ctx, x)
			if err != nil {
				return err
			}
			if free {
				moves = append(moves, job.Move{ID: x.ID, State: job.Queued, QueuedAt: now})
			}
		case x.State == job.Queued, x.State == job.Scheduled && x.ReadyAt <= now.Add(Ahead):
			queue = append(queue, x)
		}
	}
	if len(moves) > 0 {
		r.mended("moved", len(moves))
		if err := r.Mover.Move(ctx, moves); err != nil {
			return err
		}
	}
	return r.queue(ctx, queue)
}

// first tells whether no run of an earlier tick of the job is left.
func (r *Reconciler) first(ctx context.Context, x *job.Run) (bool, error) {
	live, err := r.Store.LiveOfJob(ctx, x.JobID, page)
	if err != nil {
		return false, err
	}
	for _, y := range live {
		if y.Trigger == job.ByTick && y.ScheduledAt < x.ScheduledAt {
			return false, nil
		}
	}
	return true, nil
}

func (r *Reconciler) queue(ctx context.Context, runs []*job.Run) error {
	if len(runs) == 0 {
		return nil
	}
	ids := make([]job.RunID, len(runs))
	for i, x := range runs {
		ids[i] = x.ID
	}
	held, err := r.Queue.Holds(ctx, ids)
	if err != nil {
		return err
	}
	var entries []job.QueueEntry
	now := r.Now()
	for i, x := range runs {
		// A hint from a node whose clock is ahead has the queue keep a run back that could start.
		if e := dispatch.Entry(x, now); !held[i] || e != x.Entry() {
			entries = append(entries, e)
		}
	}
	if len(entries) == 0 {
		return nil
	}
	left, err := r.Queue.Push(ctx, r.Epoch, now, entries)
	if err != nil {
		return err
	}
	r.mended("queued", len(entries)-len(left))
	r.Wake()
	return nil
}

// endedLeases ends leases whose run is terminal or gone: their result was recorded, and the leader died before it told
// Raft.
func (r *Reconciler) endedLeases(ctx context.Context) error {
	leases := r.Fleet.Leases()
	for len(leases) > 0 {
		n := min(len(leases), page)
		ids := make([]job.RunID, n)
		for i := range ids {
			ids[i] = leases[i].RunID
		}
		runs, err := r.Store.Load(ctx, ids)
		if err != nil {
			return err
		}
		for i, x := range runs {
			if (x == nil || x.State.Terminal()) && r.Fleet.End(leases[i].RunID, leases[i].Fence) {
				r.mended("leases", 1)
			}
		}
		leases = leases[n:]
	}
	return nil
}

func (r *Reconciler) mended(what string, n int) {
	if r.Mended != nil && n > 0 {
		r.Mended(what, n)
	}
}
