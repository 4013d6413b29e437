package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler/backlog"
	"github.com/musterhq/muster/scheduler/clock"
	"github.com/musterhq/muster/scheduler/dispatch"
	"github.com/musterhq/muster/scheduler/fire"
	"github.com/musterhq/muster/scheduler/fleet"
	"github.com/musterhq/muster/scheduler/overlap"
	"github.com/musterhq/muster/scheduler/pace"
	"github.com/musterhq/muster/scheduler/reap"
	"github.com/musterhq/muster/scheduler/reconcile"
	"github.com/musterhq/muster/scheduler/resolve"
	"github.com/musterhq/muster/scheduler/settle"
	"github.com/musterhq/muster/scheduler/specs"
	"github.com/musterhq/muster/scheduler/status"
)

// Config is what a term works with. All fields but History, Metrics, Pace, Status and LoadLanes are required.
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
	Status   Status        // is told what runs; nil: nobody is
	// LoadLanes has each lane loaded from the store, in order, before a new leader pops anything of it. It is for stores whose
	// Backlog costs about what it answers, and queues that hold less than the store: without it a lane fills as all live runs
	// are gone through.
	LoadLanes bool
}

// Term is one reign of this node. It is good for one Run.
type Term struct {
	Config
	epoch job.Epoch
	wake  chan struct{}
	// cancels are hints; when it is full they are lost.
	cancels   chan []job.RunID
	cancelled chan struct{} // signalled when there are some

	queue      *backlog.Loader
	fleet      *fleet.Fleet
	specs      *specs.Specs
	overlap    *overlap.Tracker
	clock      *clock.Clock
	dispatcher *dispatch.Dispatcher
	settler    *settle.Settler
	resolver   *resolve.Resolver
	firer      *fire.Firer
	reaper     *reap.Reaper
	reconciler *reconcile.Reconciler
	schedules  *reconcile.Schedules
	status     *status.Keeper // nil: nobody is told

	dispatching, pruning pace.Trouble
}

// DefaultHistory is how long terminal runs are kept.
const DefaultHistory = 30 * 24 * time.Hour

// Begin raises the epoch everywhere (L1) and takes the leases over from Raft (L2). Raft's log must be applied up to the
// start of the reign. The term does nothing until Run. With the store away Begin answers the store's Unavailable, and is
// called again while the reign lasts. It asks the store for nothing but the epoch: what an earlier leader left to do is the
// parts' first work.
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
	epoch, err := raise(ctx, &c)
	if err != nil {
		return nil, err
	}
	if err := c.Queue.Reset(ctx, epoch); err != nil {
		return nil, fmt.Errorf("empty the queue: %w", err)
	}
	t := &Term{Config: c, epoch: epoch, wake: make(chan struct{}, 1), cancels: make(chan []job.RunID, 1024), cancelled: make(chan struct{}, 1)}
	now := func() job.Instant { return job.At(c.Clock.Now()) }
	t.fleet = fleet.New(now, c.Clock.Elapsed, c.Control.WorkerFlag)
	t.fleet.Pace = c.Pace
	t.fleet.Resume(c.Control.Grants())
	t.queue = backlog.New(backlog.Config{Queue: c.Queue, Epoch: epoch, Store: c.Store, InHand: t.fleet.InHand, Now: now,
		Ahead: reconcile.Ahead, Wake: t.Wake, Pace: c.Pace, Logger: c.Logger, Ordered: c.LoadLanes})
	t.specs = specs.New(c.Store)
	t.overlap = overlap.New(c.Store)
	t.settler = &settle.Settler{Epoch: epoch, Store: c.Store, Queue: t.queue, Gateways: c.Gateways, Fleet: t.fleet, Specs: t.specs,
		Overlap: t.overlap, Now: now, Pace: c.Pace, Jitter: c.Jitter, Logger: c.Logger, Wake: t.Wake,
		Metrics: settle.Metrics{Settled: c.Metrics.settled, Refused: c.Metrics.refused}}
	t.settler.Init()
	t.dispatcher = &dispatch.Dispatcher{Epoch: epoch, Store: c.Store, Queue: t.queue, Control: c.Control, Gateways: c.Gateways,
		Mover: t.settler, Fleet: t.fleet, Specs: t.specs, Now: now, Pace: c.Pace, Logger: c.Logger}
	t.resolver = &resolve.Resolver{Epoch: epoch, Store: c.Store, Mover: t.settler, Fleet: t.fleet, Specs: t.specs, Fence: t.dispatcher.NextFence,
		Now: now, Jitter: c.Jitter, Pace: c.Pace, Logger: c.Logger, Born: t.Born, Stop: t.stop, Wake: t.Wake}
	t.resolver.Init()
	t.firer = &fire.Firer{Epoch: epoch, Store: c.Store, Now: now, Born: t.Born, Logger: c.Logger}
	t.firer.Init()
	t.dispatcher.Resolver = t.resolver
	t.settler.Ended, t.settler.Due = t.resolver.Ended, t.firer.Due
	t.clock = &clock.Clock{Epoch: epoch, Control: c.Control, Store: c.Store, Overlap: t.overlap, Now: now, Pace: c.Pace, Logger: c.Logger,
		Born: t.Born, Replace: t.replace, Decided: c.Metrics.decided}
	t.reaper = &reap.Reaper{Epoch: epoch, Fleet: t.fleet, Control: c.Control, Gateways: c.Gateways, Report: t.settler.Report, Logger: c.Logger}
	t.reconciler = &reconcile.Reconciler{Epoch: epoch, Store: c.Store, Queue: t.queue, Control: c.Control, Mover: t.settler,
		Resolver: t.resolver, Fleet: t.fleet, Overlap: t.overlap, Now: now, Logger: c.Logger, Wake: t.Wake, Stop: t.stop, Swept: func() { t.queue.Swept(); t.resolver.Swept() },
		Mended: c.Metrics.mended}
	t.reconciler.Init()
	t.settler.Held, t.settler.Later, t.dispatcher.Later = t.reconciler.Held, t.reconciler.Later, t.reconciler.Later
	t.resolver.Later = t.reconciler.Later
	t.schedules = &reconcile.Schedules{Definitions: c.Store, Marks: c.Control, Logger: c.Logger, Mended: c.Metrics.mended}
	if c.Status != nil {
		t.status = &status.Keeper{Cache: c.Status, Store: c.Store, Fleet: t.fleet, Now: now, Lost: c.Metrics.statusLost}
		t.status.Init()
		t.settler.Settled = t.status.Ended
	}
	t.dispatching = pace.Trouble{Logger: c.Logger, What: "dispatching"}
	t.pruning = pace.Trouble{Logger: c.Logger, What: "dropping history"}
	t.clock.Load()
	return t, nil
}

// maxRaises bounds how often an epoch is raised that turns out to be too low: once for the store and once for the queue is
// what it takes, unless they change meanwhile.
const maxRaises = 5

// raise makes a new epoch stand in Raft, the store and the queue: one above all that stood before. The store's may be ahead
// of Raft's, as after a restored snapshot, and the queue's of both.
func raise(ctx context.Context, c *Config) (job.Epoch, error) {
	standing := job.Epoch(0)
	var err error
	for range maxRaises {
		var epoch job.Epoch
		if epoch, err = c.Control.RaiseEpoch(ctx, standing); err != nil {
			return 0, fmt.Errorf("raise the epoch in raft: %w", err)
		}
		if standing, err = c.Store.Raise(ctx, epoch); err != nil {
			err = fmt.Errorf("raise the epoch in the store: %w", err)
		} else if standing, err = c.Queue.Raise(ctx, epoch); err != nil {
			err = fmt.Errorf("raise the epoch in the queue: %w", err)
		} else {
			return epoch, nil
		}
		switch job.CodeOf(err) {
		case job.Fenced:
		case job.Unknown: // perhaps it stands
			standing = epoch
		default:
			return 0, err
		}
	}
	return 0, err
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
	parts := []*pace.Part{
		t.clock.Deciding(), t.clock.Storing(), t.settler.Settling(), t.reaper.Reaping(), t.reconciler.Reconciling(), t.schedules.Comparing(),
		t.queue.Loading(), t.resolver.Resolving(), t.firer.Firing(),
		{Name: "dispatcher", Turn: t.dispatch, Signals: [2]<-chan struct{}{t.wake, t.fleet.Freed()}},
		{Name: "janitor", Turn: t.prune},
		{Name: "canceller", Turn: t.cancel, Signals: [2]<-chan struct{}{t.cancelled}},
	}
	if t.status != nil {
		parts = append(parts, t.status.Keeping())
	}
	return parts
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
		t.Pace.Sleep(ctx, t.dispatching.Failed(err))
		return 0, nil
	}
	t.dispatching.Over()
	switch {
	case p.Undeliverable > 0:
		t.Pace.Sleep(ctx, 20*time.Millisecond) // the gateway is about to say that the session is gone
		return 0, nil
	case p.Granted > 0 || p.Opened > 0 || p.Dropped > 0:
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
		t.pruning.Failed(err)
		return pruneEvery, nil
	case n >= limit:
		return 0, nil
	}
	t.pruning.Over()
	return pruneEvery, nil
}

// pruneEvery is how often the store is asked to drop history. It looks, or not, as it sees fit.
const pruneEvery = 2 * time.Second

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
	if len(entries) == 0 {
		return
	}
	left, err := t.queue.Push(context.Background(), t.epoch, job.At(t.Clock.Now()), entries)
	if err != nil {
		t.Logger.Debug("a hint was lost", "count", len(entries), "err", err)
		return
	}
	if len(left) < len(entries) {
		t.Wake()
	}
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

// stop stops runs by what each is in: a lease is told to its worker, an open root to the resolver, anything else is moved.
func (t *Term) stop(ctx context.Context, why job.Reason, ids ...job.RunID) {
	var orders []job.StopOrder
	var free []job.RunID
	for _, id := range ids {
		order, pending := t.fleet.Stop(id, why)
		switch {
		case order != nil:
			orders = append(orders, *order)
		case !pending:
			free = append(free, id)
		}
	}
	if len(orders) > 0 {
		t.Gateways.Stop(ctx, orders)
	}
	for len(free) > 0 {
		n := min(len(free), 1000)
		t.stopFree(ctx, why, free[:n])
		free = free[n:]
	}
}

// stopFree stops runs that have no lease.
func (t *Term) stopFree(ctx context.Context, why job.Reason, ids []job.RunID) {
	runs, err := t.Store.Load(ctx, ids)
	if err != nil {
		t.Logger.Debug("cancelling is left to the reconciler", "count", len(ids), "err", err)
		t.reconciler.Later(ids...)
		return
	}
	var moves []job.Move
	var out []job.RunID
	now := job.At(t.Clock.Now())
	for _, r := range runs {
		switch {
		case r == nil:
		case r.State == job.Running && r.LaneKey().OnLeader():
			t.resolver.Adopt(r)
		default: // one that has ended, too: perhaps nobody has heard of that
			out = append(out, r.ID)
			moves = append(moves, job.Move{ID: r.ID, State: job.Cancelled, Reason: why, FinishedAt: now, IfState: r.IfOpened()})
		}
	}
	if len(moves) == 0 {
		return
	}
	if err := t.queue.Remove(ctx, t.epoch, out); err != nil {
		t.Logger.Debug("taking cancelled runs out of the queue", "count", len(out), "err", err) // dropped when popped (Q3)
	}
	moved, err := t.settler.MoveAll(ctx, moves)
	if err != nil {
		t.Logger.Debug("cancelling is left to the reconciler", "count", len(moves), "err", err)
		t.reconciler.Later(out...)
		return
	}
	for i, m := range moved {
		if !m.Applied && m.Run != nil && !m.Run.State.Terminal() { // opened meanwhile
			t.reconciler.Later(out[i])
		}
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
	var queue []*job.Run
	for _, l := range a.NeverBegan {
		switch {
		case !t.fleet.End(l.RunID, l.Fence):
		case l.Run != nil:
			queue = append(queue, l.Run) // as it is still: nobody moved it under a lease
		default:
			t.reconciler.Later(l.RunID)
		}
	}
	t.Born(queue)
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

// OpenRoots is how many runs with tasks are open, and how many tasks they have: what is bounded (D6).
func (t *Term) OpenRoots() (roots, tasks int) { return t.resolver.Open(), t.resolver.Tasks() }
