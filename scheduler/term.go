package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler/clock"
	"github.com/musterhq/muster/scheduler/dispatch"
	"github.com/musterhq/muster/scheduler/fleet"
	"github.com/musterhq/muster/scheduler/overlap"
	"github.com/musterhq/muster/scheduler/pace"
	"github.com/musterhq/muster/scheduler/reap"
	"github.com/musterhq/muster/scheduler/reconcile"
	"github.com/musterhq/muster/scheduler/settle"
	"github.com/musterhq/muster/scheduler/specs"
)

// Config is what a term works with. All fields but History, Metrics and Pace are required.
type Config struct {
	Control  Control
	Store    Store
	Queue    Queue
	Gateways Gateways
	Clock    Clock
	Jitter   func() float64 // in [0,1)
	Logger   *slog.Logger
	History  time.Duration // how long terminal runs are kept; 0: 30 days
	Metrics  *Metrics      // nil: none
	Pace     pace.Pace     // how parts wait; nil: in real time
}

// Term is one reign of this node. It is good for one Run.
type Term struct {
	Config
	epoch job.Epoch
	wake  chan struct{}
	// cancels are hints; when it is full they are lost.
	cancels   chan []job.RunID
	cancelled chan struct{} // signalled when there are some

	fleet      *fleet.Fleet
	specs      *specs.Specs
	overlap    *overlap.Tracker
	clock      *clock.Clock
	dispatcher *dispatch.Dispatcher
	settler    *settle.Settler
	reaper     *reap.Reaper
	reconciler *reconcile.Reconciler
	schedules  *reconcile.Schedules
}

// DefaultHistory is how long terminal runs are kept.
const DefaultHistory = 30 * 24 * time.Hour

// Begin raises the epoch everywhere (L1), takes the leases over from Raft (L2), and stores what an earlier leader decided
// and could not store. Raft's log must be applied up to the start of the reign. The term does nothing until Run.
func Begin(ctx context.Context, c Config) (*Term, error) {
	if c.History == 0 {
		c.History = DefaultHistory
	}
	if c.Metrics == nil {
		c.Metrics = &Metrics{}
	}
	if c.Pace == nil {
		c.Pace = pace.Real{}
	}
	epoch, err := c.Control.RaiseEpoch(ctx, 0)
	if err != nil {
		return nil, fmt.Errorf("raise the epoch in raft: %w", err)
	}
	if _, err := c.Store.Raise(ctx, epoch); err != nil {
		return nil, fmt.Errorf("raise the epoch in the store: %w", err)
	}
	if _, err := c.Queue.Raise(ctx, epoch); err != nil {
		return nil, fmt.Errorf("raise the epoch in the queue: %w", err)
	}
	if err := c.Queue.Reset(ctx, epoch); err != nil {
		return nil, fmt.Errorf("empty the queue: %w", err)
	}
	t := &Term{Config: c, epoch: epoch, wake: make(chan struct{}, 1), cancels: make(chan []job.RunID, 1024), cancelled: make(chan struct{}, 1)}
	now := func() job.Instant { return job.At(c.Clock.Now()) }
	t.fleet = fleet.New(now, c.Clock.Elapsed, c.Control.WorkerFlag)
	t.fleet.Pace = c.Pace
	t.fleet.Resume(c.Control.Grants())
	t.specs = specs.New(c.Store)
	t.overlap = overlap.New(c.Store)
	t.settler = &settle.Settler{Epoch: epoch, Store: c.Store, Queue: c.Queue, Gateways: c.Gateways, Fleet: t.fleet, Specs: t.specs,
		Overlap: t.overlap, Now: now, Pace: c.Pace, Jitter: c.Jitter, Logger: c.Logger, Wake: t.Wake,
		Metrics: settle.Metrics{Settled: c.Metrics.settled, Refused: c.Metrics.refused}}
	t.settler.Init()
	t.dispatcher = &dispatch.Dispatcher{Epoch: epoch, Store: c.Store, Queue: c.Queue, Control: c.Control, Gateways: c.Gateways,
		Mover: t.settler, Fleet: t.fleet, Specs: t.specs, Now: now, Pace: c.Pace, Logger: c.Logger}
	t.clock = &clock.Clock{Epoch: epoch, Control: c.Control, Store: c.Store, Overlap: t.overlap, Now: now, Pace: c.Pace, Logger: c.Logger,
		Born: t.Born, Replace: t.replace, Decided: c.Metrics.decided}
	t.reaper = &reap.Reaper{Epoch: epoch, Fleet: t.fleet, Control: c.Control, Gateways: c.Gateways, Report: t.settler.Report, Logger: c.Logger}
	t.reconciler = &reconcile.Reconciler{Epoch: epoch, Store: c.Store, Queue: c.Queue, Control: c.Control, Mover: t.settler,
		Fleet: t.fleet, Now: now, Logger: c.Logger, Wake: t.Wake, Stop: t.stop, Mended: c.Metrics.mended}
	t.reconciler.Init()
	t.schedules = &reconcile.Schedules{Definitions: c.Store, Marks: c.Control, Logger: c.Logger, Mended: c.Metrics.mended}
	t.clock.Load()
	if err := t.clock.Recover(ctx); err != nil {
		return nil, fmt.Errorf("store the ticks that an earlier leader decided: %w", err)
	}
	return t, nil
}

// Epoch is the term's.
func (t *Term) Epoch() job.Epoch { return t.epoch }

// Run works until ctx ends, or until a newer epoch fences this one, which is an error. When it returns, all of the term's
// work has wholly ended.
func (t *Term) Run(reign context.Context) error {
	t.Logger.Info("this node leads", "epoch", t.epoch, "schedules", t.clock.Jobs(), "leases", len(t.fleet.Leases()))
	g, ctx := errgroup.WithContext(reign)
	for _, p := range t.Parts() {
		g.Go(func() error { return p.Run(ctx) })
	}
	g.Go(func() error { <-ctx.Done(); t.Stop(); return nil })
	err := g.Wait()
	if reign.Err() != nil {
		err = nil // the parts were told to stop: whatever they say of it
	}
	t.Logger.Info("this node no longer leads", "epoch", t.epoch, "err", err)
	return err
}

// Parts are the loops that Run runs beside each other. Whoever gives them their turns himself, as the simulation does, calls
// Stop when the term's context ends.
func (t *Term) Parts() []*pace.Part {
	return []*pace.Part{
		t.clock.Deciding(), t.clock.Storing(), t.settler.Settling(), t.reaper.Reaping(), t.reconciler.Reconciling(), t.schedules.Comparing(),
		{Name: "dispatcher", Turn: t.dispatch, Signals: [2]<-chan struct{}{t.wake, t.fleet.Freed()}},
		{Name: "janitor", Turn: t.prune},
		{Name: "canceller", Turn: t.cancel, Signals: [2]<-chan struct{}{t.cancelled}},
	}
}

// Stop lets everybody go who waits to bring results.
func (t *Term) Stop() { t.settler.Stop() }

// Wake tells the dispatcher that something may be startable.
func (t *Term) Wake() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// idleWake bounds the dispatcher's sleep: the reconciler finds what no signal told.
const idleWake = 5 * time.Second

func (t *Term) dispatch(ctx context.Context) (time.Duration, error) {
	p, err := t.dispatcher.Step(ctx)
	if p.Granted > 0 {
		t.Metrics.granted(p.Granted)
	}
	switch {
	case job.CodeOf(err) == job.Fenced || err != nil && ctx.Err() != nil:
		return 0, err
	case err != nil:
		t.Logger.Warn("dispatching is retried", "err", err)
		t.Pace.Sleep(ctx, 100*time.Millisecond)
		return 0, nil
	case p.Undeliverable > 0:
		t.Pace.Sleep(ctx, 20*time.Millisecond) // the gateway is about to say that the session is gone
		return 0, nil
	case p.Granted > 0 || p.Dropped > 0:
		return 0, nil
	case p.NextAt != 0:
		return min(idleWake, max(time.Millisecond, p.NextAt.Sub(job.At(t.Clock.Now())))), nil
	}
	return idleWake, nil
}

// prune drops history. It is the janitor of L10.
func (t *Term) prune(ctx context.Context) (time.Duration, error) {
	const limit = 5000
	n, err := t.Store.Prune(ctx, t.epoch, job.At(t.Clock.Now().Add(-t.History)), limit)
	switch {
	case job.CodeOf(err) == job.Fenced || err != nil && ctx.Err() != nil:
		return 0, err
	case err != nil:
		t.Logger.Warn("dropping history is retried", "err", err)
	case n >= limit:
		return 0, nil
	}
	return 2 * time.Second, nil
}

// Born is the hint that runs were stored (Q1). It may be lost: the reconciler finds them.
func (t *Term) Born(runs []*job.Run) {
	entries := make([]job.QueueEntry, 0, len(runs))
	now := job.At(t.Clock.Now())
	for _, r := range runs {
		if r.State == job.Queued || r.State == job.Scheduled {
			entries = append(entries, dispatch.Entry(r, now))
		}
	}
	t.Queued(entries)
}

// Queued is Born for runs that were stored through another node and are queued or scheduled.
func (t *Term) Queued(entries []job.QueueEntry) {
	now := job.At(t.Clock.Now())
	horizon := now.Add(reconcile.Ahead)
	soon := slices.DeleteFunc(entries, func(e job.QueueEntry) bool { return e.ReadyAt > horizon })
	if len(soon) == 0 {
		return
	}
	if _, err := t.Queue.Push(context.Background(), t.epoch, now, soon); err != nil {
		t.Logger.Debug("a hint was lost", "count", len(soon), "err", err)
		return
	}
	t.Wake()
}

// CancelRequested is the hint that cancel intents were stored (L9). It never blocks, and may be lost: the reconciler
// finds the intents.
func (t *Term) CancelRequested(ids []job.RunID) {
	select {
	case t.cancels <- ids:
	default:
		return
	}
	select {
	case t.cancelled <- struct{}{}:
	default:
	}
}

func (t *Term) cancel(ctx context.Context) (time.Duration, error) {
	for {
		select {
		case ids := <-t.cancels:
			t.stop(ctx, job.CancelRequested, ids...)
		default:
			return pace.Forever, nil
		}
	}
}

// stop stops runs by what each is in: a lease is told to its worker, anything else is moved.
func (t *Term) stop(ctx context.Context, why job.Reason, ids ...job.RunID) {
	var orders []job.StopOrder
	var moves []job.Move
	var free []job.RunID
	now := job.At(t.Clock.Now())
	for _, id := range ids {
		order, pending := t.fleet.Stop(id, why)
		switch {
		case order != nil:
			orders = append(orders, *order)
		case !pending:
			free = append(free, id)
			moves = append(moves, job.Move{ID: id, State: job.Cancelled, Reason: why, FinishedAt: now})
		}
	}
	if len(orders) > 0 {
		t.Gateways.Stop(ctx, orders)
	}
	if len(moves) == 0 {
		return
	}
	if err := t.Queue.Remove(ctx, t.epoch, free); err != nil {
		t.Logger.Debug("taking cancelled runs out of the queue", "count", len(free), "err", err) // dropped when popped (Q3)
	}
	if err := t.settler.Move(ctx, moves); err != nil {
		t.Logger.Warn("cancelling is left to the reconciler", "count", len(moves), "err", err)
	}
}

// replace cancels runs in favour of a later tick of their job.
func (t *Term) replace(ctx context.Context, ids []job.RunID) error {
	now := job.At(t.Clock.Now())
	intents := make([]job.CancelIntent, len(ids))
	for i, id := range ids {
		intents[i] = job.CancelIntent{ID: id, At: now, Reason: job.OverlapReplaced}
	}
	if _, err := t.Store.Cancel(ctx, intents); err != nil {
		return err
	}
	t.stop(ctx, job.OverlapReplaced, ids...)
	return nil
}

// ScheduleChanged makes the term look again at what pauses held.
func (t *Term) ScheduleChanged() {
	t.reconciler.Kick()
	t.Wake()
}

// WorkerFlagged makes the term look again at who takes work.
func (t *Term) WorkerFlagged() { t.fleet.FlagChanged() }

// What gateways tell the leader.

// Attach takes a worker's hello. It answers the attempts that the worker must stop.
func (t *Term) Attach(ctx context.Context, session job.SessionID, node string, h job.WorkerHello) ([]job.Fence, error) {
	// A worker that has work of a newer leader proves that this one was deposed and does not know it yet: it must neither
	// have that work stopped nor take its results. The worker finds the new leader.
	for _, f := range h.Running {
		if f.Epoch() > t.epoch {
			return nil, job.Errorf(job.Unavailable, "deposed", "a newer leader gave work to this worker; attach again")
		}
	}
	a, err := t.fleet.Attach(session, node, h)
	if err != nil {
		return nil, err
	}
	t.Logger.Info("worker attached", "worker", h.Name, "node", node, "running", len(h.Running), "lost", len(a.Lost), "never_began", len(a.NeverBegan))
	if len(a.Stopping) > 0 {
		t.Gateways.Stop(ctx, a.Stopping)
	}
	if len(a.Lost) > 0 {
		t.settler.Report("", a.Lost)
	}
	ids := make([]job.RunID, 0, len(a.NeverBegan))
	for _, l := range a.NeverBegan {
		if t.fleet.End(l.RunID, l.Fence) {
			ids = append(ids, l.RunID)
		}
	}
	if len(ids) > 0 {
		runs, err := t.Store.Load(ctx, ids)
		if err != nil {
			t.Logger.Warn("runs that never reached their worker are left to the reconciler", "count", len(ids), "err", err)
			return a.Stop, nil
		}
		live := runs[:0:0]
		for _, r := range runs {
			if r != nil {
				live = append(live, r)
			}
		}
		t.Born(live)
	}
	return a.Stop, nil
}

// Detach tells that a session is gone. It moves nothing: leases do.
func (t *Term) Detach(session job.SessionID) { t.fleet.Detach(session) }

// Heartbeat renews leases, and answers those that the worker has no right to.
func (t *Term) Heartbeat(session job.SessionID, running []job.Fence) []job.Fence {
	unknown := t.fleet.Heartbeat(session, running)
	newer := func(f job.Fence) bool { return f.Epoch() > t.epoch } // not for this one to judge
	if slices.ContainsFunc(unknown, newer) {
		unknown = slices.DeleteFunc(slices.Clone(unknown), newer)
	}
	return unknown
}

// Started tells when attempts began.
func (t *Term) Started(session job.SessionID, s []job.Started) { t.fleet.Started(session, s) }

// Finished brings results. It blocks while the settler has too many to do.
func (t *Term) Finished(session job.SessionID, outcomes []job.Outcome) {
	t.settler.Report(session, outcomes)
}

// Workers answers the workers that the term knows.
func (t *Term) Workers() []job.Worker { return t.fleet.Workers() }

// Lease answers a run's lease.
func (t *Term) Lease(id job.RunID) (fleet.Lease, bool) { return t.fleet.Lease(id) }
