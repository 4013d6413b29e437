// Package reconcile compares what the store says with what the leader does about it, and mends the difference: live runs
// that nobody queued, deadlines that passed while nothing else looked, cancel intents whose hint was lost, runs that
// wait for nothing any more, leases of runs that ended. Everything else in the scheduler may lose a step; this finds it.
//
// It first goes through all live runs, as fast as the store answers. From then on it looks every few seconds, at runs that
// were born lately and at a share of the older ones, so that a long backlog costs a bounded number of rows a second. One
// query does for both while live runs are few.
package reconcile

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler/dispatch"
	"github.com/musterhq/muster/scheduler/fleet"
	"github.com/musterhq/muster/scheduler/overlap"
	"github.com/musterhq/muster/scheduler/pace"
)

const (
	// Every is how often it looks (Q1).
	Every = 5 * time.Second
	// Ahead is how far ahead delayed runs are queued; those due later stay in the store (Q2).
	Ahead = 5 * time.Minute

	page   = 1000
	recent = time.Minute // births younger than this are looked at each time: their hints may be lost
	// round is how long it may take to go through all older runs. It is less than Ahead: a delayed run is met in time.
	round = 4 * time.Minute
	// minRows and maxRows bound the older rows of one look, recentRows the recent ones.
	minRows    = 10_000
	maxRows    = 100_000
	recentRows = 20_000
	// resumedRows is how many live runs a job may have for its held ones to be found by asking for that job.
	resumedRows = 5000
	// maxLater bounds what is remembered to be looked at.
	maxLater = 20_000
	// soon is how often it looks whether there is something to look at before Every is over.
	soon = time.Second
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
	// Heard is told of runs that turn out to have ended, for whatever waits for that.
	Heard(ctx context.Context, ended []*job.Run) error
}

// Resolver has the runs of leaders' lanes that are running.
type Resolver interface {
	Adopt(runs ...*job.Run)
}

// Reconciler is one term's.
type Reconciler struct {
	Epoch    job.Epoch
	Store    Store
	Queue    Queue
	Control  Control
	Mover    Mover
	Resolver Resolver
	Fleet    *fleet.Fleet
	Overlap  *overlap.Tracker
	Now      func() job.Instant
	Logger   *slog.Logger
	Wake     func() // the dispatcher has something new
	Stop     func(ctx context.Context, why job.Reason, ids ...job.RunID)
	Swept    func() // all live runs were looked at once
	// Mended counts what was mended; may be nil.
	Mended func(what string, n int)

	trouble pace.Trouble
	kick    chan struct{}

	// Of the goroutine that has its turns.
	swept    bool        // all live runs were looked at once
	leases   bool        // and the leases that this term took over
	at       job.RunID   // where the first sweep stands, and later the look at older runs
	recentAt job.RunID   // where the look at recent runs stands; zero: at its beginning
	passed   int         // older rows since the round began
	lastly   int         // rows of the round before
	nextLook job.Instant // when Every is over
	counts   counts      // what this turn mended

	mu    sync.Mutex
	later map[job.RunID]struct{}
	held  map[job.JobID]struct{} // jobs that have runs that a pause held
}

type counts struct{ queued, moved, leases int }

// Init must be called before any other method.
func (r *Reconciler) Init() {
	r.kick = make(chan struct{}, 1)
	r.later, r.held = map[job.RunID]struct{}{}, map[job.JobID]struct{}{}
	r.trouble = pace.Trouble{Logger: r.Logger, What: "reconciling"}
	r.lastly = minRows
}

// Kick makes the reconciler look at once at what pauses held, as after a job was resumed.
func (r *Reconciler) Kick() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// Later has runs looked at within a second or two: somebody was to queue or move them and could not. What is too much is
// found by and by.
func (r *Reconciler) Later(ids ...job.RunID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		if len(r.later) < maxLater {
			r.later[id] = struct{}{}
		}
	}
}

// Held notes that a job has runs that its pause held.
func (r *Reconciler) Held(id job.JobID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held[id] = struct{}{}
}

// Reconciling is the part that looks at all live runs, and then every few seconds. Init must have been called.
func (r *Reconciler) Reconciling() *pace.Part {
	return &pace.Part{Name: "reconciler", Turn: r.turn, Signals: [2]<-chan struct{}{r.kick}}
}

func (r *Reconciler) turn(ctx context.Context) (time.Duration, error) {
	wait, err := r.Step(ctx)
	r.tell()
	switch {
	case job.CodeOf(err) == job.Fenced || err != nil && ctx.Err() != nil:
		return 0, err
	case err != nil:
		return r.trouble.Failed(err), nil
	}
	r.trouble.Over()
	return wait, nil
}

// tell says what was mended.
func (r *Reconciler) tell() {
	c := r.counts
	r.counts = counts{}
	if c == (counts{}) {
		return
	}
	r.Logger.Info("the reconciler mended what others lost", "queued", c.queued, "moved", c.moved, "leases", c.leases)
	for what, n := range map[string]int{"queued": c.queued, "moved": c.moved, "leases": c.leases} {
		if n > 0 && r.Mended != nil {
			r.Mended(what, n)
		}
	}
}

// Step does a part of what there is to do, and answers when to go on; 0 is at once.
func (r *Reconciler) Step(ctx context.Context) (time.Duration, error) {
	if !r.leases {
		if err := r.endedLeases(ctx); err != nil {
			return 0, err
		}
		r.leases = true
	}
	if err := r.lookLater(ctx); err != nil {
		return 0, err
	}
	if err := r.resumed(ctx); err != nil {
		return 0, err
	}
	if !r.swept {
		return 0, r.first(ctx)
	}
	now := r.Now()
	if wait := r.nextLook.Sub(now); wait > 0 && wait <= Every { // more: the clock was set back
		return min(soon, wait), nil
	}
	if err := r.look(ctx, now); err != nil {
		return 0, err
	}
	r.nextLook = now.Add(Every)
	return soon, nil
}

// first looks at one more page of all live runs. What an earlier leader had queued is not mended but loaded.
func (r *Reconciler) first(ctx context.Context) error {
	r.Overlap.BeginSeen()
	runs, err := r.Store.Live(ctx, r.at, page)
	if err != nil {
		r.Overlap.Seen(nil, false)
		return err
	}
	last := len(runs) < page
	free := r.Overlap.Seen(runs, last)
	before := r.counts
	if err := r.examine(ctx, runs); err != nil {
		r.Later(free...)
		return err
	}
	r.counts.queued = before.queued
	r.passed += len(runs)
	if !last {
		r.at = runs[len(runs)-1].ID
		return nil
	}
	r.Logger.Info("all live runs were looked at", "count", r.passed)
	r.swept, r.at, r.lastly, r.passed = true, job.RunID{}, r.passed, 0
	r.nextLook = r.Now().Add(Every)
	r.Swept()
	moves := make([]job.Move, len(free))
	for i, id := range free {
		moves[i] = job.Move{ID: id, State: job.Queued, QueuedAt: r.Now()}
	}
	return r.move(ctx, moves)
}

// look is what happens every few seconds.
func (r *Reconciler) look(ctx context.Context, now job.Instant) error {
	young := job.MakeRunID(now.Time().Add(-recent), [10]byte{})
	rows := min(max(minRows, r.lastly/int(round/Every)), maxRows)
	if r.at.IsZero() { // a new round: with few runs it is over at once, and has met the recent ones as well
		next, n, err := r.sweep(ctx, job.RunID{}, job.RunID{}, rows)
		r.at, r.passed = next, n
		if err != nil || next.IsZero() {
			r.over(err)
			return err
		}
		if string(next[:]) >= string(young[:]) {
			r.at, r.recentAt = job.RunID{}, next
			r.over(nil)
		}
	} else {
		next, n, err := r.sweep(ctx, r.at, young, rows)
		r.at, r.passed = next, r.passed+n
		if err != nil {
			return err
		}
		if next.IsZero() {
			r.over(nil)
		}
	}
	if string(r.recentAt[:]) < string(young[:]) {
		r.recentAt = young
	}
	next, _, err := r.sweep(ctx, r.recentAt, job.RunID{}, recentRows)
	r.recentAt = next
	return err
}

// over ends a round.
func (r *Reconciler) over(err error) {
	if err == nil {
		r.lastly, r.passed = r.passed, 0
	}
}

// sweep looks at live runs after the given id and before end (zero: no end), up to a number of rows, and answers where to
// go on, zero after the last, and how many rows it read.
func (r *Reconciler) sweep(ctx context.Context, after, end job.RunID, rows int) (job.RunID, int, error) {
	n := 0
	for n < rows {
		runs, err := r.Store.Live(ctx, after, page)
		if err != nil {
			return after, n, err
		}
		n += len(runs)
		last := len(runs) < page
		if i := slices.IndexFunc(runs, func(x *job.Run) bool { return !end.IsZero() && string(x.ID[:]) >= string(end[:]) }); i >= 0 {
			runs, last = runs[:i], true
		}
		if err := r.examine(ctx, runs); err != nil {
			return after, n, err
		}
		if last {
			return job.RunID{}, n, nil
		}
		after = runs[len(runs)-1].ID
	}
	return after, n, nil
}

// lookLater looks at what others could not do.
func (r *Reconciler) lookLater(ctx context.Context) error {
	for {
		ids := r.takeLater()
		if len(ids) == 0 {
			return nil
		}
		runs, err := r.Store.Load(ctx, ids)
		if err == nil {
			var ended []*job.Run // by a move whose outcome nobody was told
			runs = slices.DeleteFunc(runs, func(x *job.Run) bool {
				if x != nil && x.State.Terminal() {
					ended = append(ended, x)
				}
				return x == nil || x.State.Terminal()
			})
			if len(ended) > 0 {
				err = r.Mover.Heard(ctx, ended)
			}
			if err == nil {
				err = r.examine(ctx, runs)
			}
		}
		if err != nil {
			r.Later(ids...)
			return err
		}
	}
}

func (r *Reconciler) takeLater() []job.RunID {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := make([]job.RunID, 0, min(len(r.later), page))
	for id := range r.later {
		if len(ids) == page {
			break
		}
		ids = append(ids, id)
		delete(r.later, id)
	}
	slices.SortFunc(ids, func(a, b job.RunID) int { return bytes.Compare(a[:], b[:]) })
	return ids
}

// resumed looks at the jobs whose runs a pause held that is over.
func (r *Reconciler) resumed(ctx context.Context) error {
	r.mu.Lock()
	var jobs []job.JobID
	for id := range r.held {
		if r.Control.Paused(id, "") != job.JobPaused {
			jobs = append(jobs, id)
			delete(r.held, id)
		}
	}
	r.mu.Unlock()
	slices.SortFunc(jobs, func(a, b job.JobID) int { return bytes.Compare(a[:], b[:]) })
	for i, id := range jobs {
		runs, err := r.Store.LiveOfJob(ctx, id, resumedRows)
		if err == nil {
			err = r.examine(ctx, runs)
		}
		if err != nil {
			for _, id := range jobs[i:] {
				r.Held(id)
			}
			return err
		}
		if len(runs) == resumedRows && r.swept { // the rest is met on the way through all
			r.swept, r.at, r.passed = false, job.RunID{}, 0
		}
	}
	return nil
}

// examine mends some live runs.
func (r *Reconciler) examine(ctx context.Context, runs []*job.Run) error {
	now := r.Now()
	var moves []job.Move
	var queue []*job.Run
	for _, x := range runs {
		if x.State == job.Running && x.LaneKey().OnLeader() { // it ends with what is below it
			r.Resolver.Adopt(x)
			continue
		}
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
		fence := x.Fence
		switch {
		case x.State == job.Held && x.Reason == job.JobPaused:
			if paused != job.JobPaused {
				moves = append(moves, job.Move{ID: x.ID, State: job.Queued, QueuedAt: now, IfFence: &fence, IfState: x.IfOpened()})
			} else {
				r.Held(x.JobID)
			}
		case x.State == job.Running, // written late, and its lease is gone
			x.State == job.Waiting && x.Reason == job.OverlapQueued && !r.Overlap.Waits(x):
			moves = append(moves, job.Move{ID: x.ID, State: job.Queued, QueuedAt: now, IfFence: &fence, IfState: x.IfOpened()})
		case x.State == job.Queued, x.State == job.Scheduled && x.ReadyAt <= now.Add(Ahead):
			queue = append(queue, x)
		}
	}
	if err := r.move(ctx, moves); err != nil {
		return err
	}
	return r.queue(ctx, queue)
}

func (r *Reconciler) move(ctx context.Context, moves []job.Move) error {
	if len(moves) == 0 {
		return nil
	}
	if err := r.Mover.Move(ctx, moves); err != nil {
		return err
	}
	r.counts.moved += len(moves)
	return nil
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
	if n := len(entries) - len(left); n > 0 {
		r.counts.queued += n
		r.Wake()
	}
	return nil
}

// endedLeases ends leases whose run is terminal or gone: their result was recorded, and the leader died before it told
// Raft. Of the leases that this term gave it records the ends itself.
func (r *Reconciler) endedLeases(ctx context.Context) error {
	leases := slices.DeleteFunc(r.Fleet.Leases(), func(l fleet.Lease) bool { return l.Run != nil })
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
				r.counts.leases++
			}
		}
		leases = leases[n:]
	}
	return nil
}
