// Package dispatch gives work to workers: it pops what can be served, reads it from its home, places it, has Raft record
// the grants, and only then tells the workers.
//
// Crash points. After the pop: the entries are lost with the leader's memory, the runs are still queued in the store, and
// the next leader loads them. After the grant and before the worker is told: the lease stands in Raft; nobody confirms
// it, so the worker's next hello omits it or it runs out, and the run goes back to the queue. After the worker was told:
// the next leader finds the lease and waits for it (L2, L3). No step starts a run twice.
package dispatch

import (
	"bytes"
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync/atomic"

	"github.com/musterhq/muster/internal/failpoint"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler/fleet"
	"github.com/musterhq/muster/scheduler/pace"
	"github.com/musterhq/muster/scheduler/resolve"
	"github.com/musterhq/muster/scheduler/specs"
)

// Store is what the dispatcher reads.
type Store interface {
	Load(ctx context.Context, ids []job.RunID) ([]*job.Run, error)
}

// Queue is where work comes from.
type Queue interface {
	Push(ctx context.Context, epoch job.Epoch, now job.Instant, entries []job.QueueEntry) (left []job.QueueEntry, err error)
	Pop(ctx context.Context, epoch job.Epoch, now job.Instant, wants []job.LaneWant) ([]job.QueueEntry, error)
	Lanes(ctx context.Context, now job.Instant) ([]job.LaneDepth, error)
}

// Control records grants.
type Control interface {
	Grant(ctx context.Context, epoch job.Epoch, grants []job.Grant, ended []job.EndedGrant) (refused []int, err error)
	Grants() []job.Grant
	Paused(id job.JobID, namespace string) job.Reason
}

// Gateways reach workers.
type Gateways interface {
	Assign(ctx context.Context, deliveries []job.Delivery) []bool
	Stop(ctx context.Context, orders []job.StopOrder)
}

// Mover moves runs that turn out not to be startable.
type Mover interface {
	Move(ctx context.Context, moves []job.Move) error
}

// Resolver opens what has no worker, and knows what work is given.
type Resolver interface {
	// Room is how many roots may be opened.
	Room() int
	// Whole tells whether it is known which keys open roots hold, and which of them are cancelled.
	Whole() bool
	// Take opens runs of leaders' lanes.
	Take(runs []*job.Run)
	// Prepare fills in templates.
	Prepare(ctx context.Context, runs []*job.Run) ([]resolve.Prepared, error)
}

// MaxBatch bounds one step: how many runs are popped, placed and granted together.
const MaxBatch = 1000

// Dispatcher is one term's. Step is called by one goroutine.
type Dispatcher struct {
	Epoch    job.Epoch
	Store    Store
	Queue    Queue
	Control  Control
	Gateways Gateways
	Mover    Mover
	Resolver Resolver
	Fleet    *fleet.Fleet
	Specs    *specs.Specs
	Now      func() job.Instant
	Pace     pace.Pace
	Logger   *slog.Logger
	// Later is told of runs that somebody has to look at again, because the store or the queue took nothing; may be nil.
	Later func(ids ...job.RunID)

	sequence atomic.Uint32
	unknown  map[job.LaneKey]struct{} // lanes with runs below roots that this term does not know yet
	limits   map[job.LaneKey]int      // of concurrency keys, as the last run seen in the lane had it
	turn     int                      // which namespace is served first; moves on with each step
}

// Progress is what one step did.
type Progress struct {
	Granted       int
	Opened        int         // handed to the resolver
	Undeliverable int         // granted, but never written to the worker's stream: back in the queue
	Dropped       int         // popped, and not startable: the entry is gone
	NextAt        job.Instant // when the first delayed entry is ready; 0 if there is none
}

// Step dispatches one batch. It is called again at once while it grants or drops something: more may be behind that.
func (d *Dispatcher) Step(ctx context.Context) (Progress, error) {
	var p Progress
	now := d.Now()
	lanes, err := d.Queue.Lanes(ctx, now)
	if err != nil {
		return p, err
	}
	for _, l := range lanes {
		if l.NextAt != 0 && (p.NextAt == 0 || l.NextAt < p.NextAt) {
			p.NextAt = l.NextAt
		}
	}
	wants := d.wants(lanes)
	if len(wants) == 0 {
		return p, nil
	}
	entries, err := d.Queue.Pop(ctx, d.Epoch, now, wants)
	if err != nil || len(entries) == 0 {
		return p, err
	}
	failpoint.Hit("dispatch/popped")
	candidates, opened, err := d.candidates(ctx, entries, now)
	if err != nil {
		d.pushBack(ctx, entries)
		return p, err
	}
	failpoint.Hit("dispatch/read")
	p.Opened = len(opened)
	p.Dropped = len(entries) - len(candidates) - len(opened)
	err = d.grant(ctx, candidates, now, &p)
	return p, err
}

// wants says how much to pop from which lane: only lanes that can be served (Q2), shares between namespaces first, and
// within one the lane whose first entry comes first (Q4).
func (d *Dispatcher) wants(lanes []job.LaneDepth) []job.LaneWant {
	keys := make([]job.LaneKey, 0, len(lanes))
	whole := d.Resolver.Whole()
	if whole {
		clear(d.unknown)
	}
	for _, l := range lanes {
		if _, wait := d.unknown[l.Lane]; wait {
			continue
		}
		if l.Ready > 0 && d.Control.Paused(job.JobID{}, l.Lane.Namespace()) == job.NoReason {
			keys = append(keys, l.Lane)
		}
	}
	if len(keys) == 0 {
		return nil
	}
	capacity, total := d.Fleet.Capacity(keys)
	opening := min(d.Resolver.Room(), MaxBatch)
	room := make(map[job.LaneKey]int, len(keys))
	for i, k := range keys {
		n := capacity[i]
		if k.OnLeader() {
			if n = opening; k.Below() {
				n = MaxBatch
			}
		}
		if k.ConcurrencyKey() != "" && !whole { // a root that is open may hold it, whatever waits for it here
			n = 0
		}
		if k.ConcurrencyKey() != "" {
			limit, known := d.limits[k]
			if !known {
				limit = d.Fleet.Held(k) + 1 // one entry tells the limit, which other lanes of the key may leave room in
			}
			n = min(n, limit-d.Fleet.Held(k))
		}
		room[k] = n
	}
	var onWorkers, onLeader []job.LaneDepth
	for _, l := range lanes {
		if n := min(room[l.Lane], l.Ready); n > 0 {
			l.Ready = n
			if l.Lane.OnLeader() {
				onLeader = append(onLeader, l)
			} else {
				onWorkers = append(onWorkers, l)
			}
		}
	}
	wants := append(d.share(onLeader, MaxBatch), d.share(onWorkers, min(total, MaxBatch))...)
	d.turn++
	return wants
}

// share says how much to pop from lanes that can be served, so many entries in all.
func (d *Dispatcher) share(lanes []job.LaneDepth, left int) []job.LaneWant {
	byNamespace := map[string][]job.LaneDepth{}
	for _, l := range lanes {
		ns := l.Lane.Namespace()
		byNamespace[ns] = append(byNamespace[ns], l)
	}
	names := make([]string, 0, len(byNamespace))
	for ns, ls := range byNamespace {
		names = append(names, ns)
		slices.SortFunc(ls, func(a, b job.LaneDepth) int {
			return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.Lane, b.Lane))
		})
	}
	slices.Sort(names)
	var wants []job.LaneWant
	for i := range names { // each namespace an equal share of what is left; what one does not use the next may
		ls := byNamespace[names[(i+d.turn)%len(names)]]
		share := max(1, left/(len(names)-i))
		for _, l := range ls {
			n := min(l.Ready, share, left)
			if n <= 0 {
				break
			}
			wants = append(wants, job.LaneWant{Lane: l.Lane, Max: n})
			share, left = share-n, left-n
		}
	}
	return wants
}

// candidates reads what was popped (Q3) and keeps what may start. What must move instead is moved.
func (d *Dispatcher) candidates(ctx context.Context, entries []job.QueueEntry, now job.Instant) (work []fleet.Candidate, opened []*job.Run, err error) {
	ids := make([]job.RunID, len(entries))
	for i := range entries {
		ids[i] = entries[i].RunID
	}
	d.Fleet.BeginRead()
	runs, err := d.Store.Load(ctx, ids)
	if err != nil {
		return nil, nil, err
	}
	d.Specs.Prefetch(ctx, d.Pace, runs)
	out := make([]fleet.Candidate, 0, len(runs))
	var moves []job.Move
	var early []job.QueueEntry
	var opening []*job.Run
	type key struct{ namespace, name string }
	taken := map[key]int{} // that those will hold
	for _, r := range runs {
		if r == nil || r.State.Terminal() {
			continue
		}
		if m, ok := NotNow(r, d.Control.Paused(r.JobID, r.Namespace), now); ok {
			moves = append(moves, m)
			continue
		}
		if (!r.IsRoot() || !r.ParentID.IsZero()) && !d.Resolver.Whole() { // a root above it may be cancelled (T6)
			if d.unknown == nil {
				d.unknown = map[job.LaneKey]struct{}{}
			}
			d.unknown[r.LaneKey()] = struct{}{}
			early = append(early, Entry(r, now))
			continue
		}
		if !r.Startable(now) {
			if r.State == job.Scheduled && r.CancelAt == 0 {
				early = append(early, Entry(r, now)) // an old hint took the place of its entry
			}
			continue
		}
		spec, err := d.Specs.Of(ctx, r)
		switch job.CodeOf(err) {
		case "":
		case job.NotFound, job.Internal:
			moves = append(moves, job.Move{ID: r.ID, State: job.Failed, Reason: job.CannotStart, FinishedAt: now,
				Error: "the definition of this run is gone"})
			continue
		default:
			return nil, nil, err
		}
		c := fleet.Candidate{Run: r, Spec: spec, Lane: r.LaneKey(), Slots: max(1, spec.Slots)}
		if spec.Concurrency != nil && spec.Concurrency.Key != "" {
			c.Limit = max(1, spec.Concurrency.Limit)
			d.setLimit(c.Lane, c.Limit)
		}
		if c.Lane.OnLeader() {
			k := key{c.Lane.Namespace(), c.Lane.ConcurrencyKey()}
			if c.Limit > 0 && d.Fleet.Held(c.Lane)+taken[k] >= c.Limit {
				early = append(early, Entry(r, now))
				continue
			}
			taken[k]++
			opening = append(opening, r)
			continue
		}
		out = append(out, c)
	}
	out, failed, err := d.prepare(ctx, out, now)
	if err != nil {
		return nil, nil, err
	}
	moves = append(moves, failed...)
	if len(opening) > 0 {
		d.Resolver.Take(opening)
	}
	d.pushBack(ctx, early)
	if len(moves) > 0 {
		if err := d.Mover.Move(ctx, moves); err != nil {
			d.Logger.Debug("moving runs that cannot start is left to the reconciler", "count", len(moves), "err", err)
			for i := range moves {
				d.later(moves[i].ID)
			}
		}
	}
	return out, opening, nil
}

// prepare fills in the templates of work, and finds its payload. What cannot be filled in fails.
func (d *Dispatcher) prepare(ctx context.Context, cs []fleet.Candidate, now job.Instant) ([]fleet.Candidate, []job.Move, error) {
	var runs []*job.Run
	var index []int
	for i := range cs {
		cs[i].Payload = cs[i].Run.Payload
		if d.templated(ctx, cs[i].Run) {
			runs, index = append(runs, cs[i].Run), append(index, i)
		}
	}
	if len(runs) == 0 {
		return cs, nil, nil
	}
	prepared, err := d.Resolver.Prepare(ctx, runs)
	if err != nil {
		return nil, nil, err
	}
	var failed []job.Move
	for n, p := range prepared {
		c := &cs[index[n]]
		if p.Err == nil {
			c.Spec, c.Payload = p.Spec, p.Payload
			continue
		}
		failed = append(failed, job.Move{ID: c.Run.ID, State: job.Failed, Reason: job.ExpressionFailed, FinishedAt: now,
			Error: resolve.Sentence(p.Err), IfFence: &c.Run.Fence})
		c.Run = nil
	}
	return slices.DeleteFunc(cs, func(c fleet.Candidate) bool { return c.Run == nil }), failed, nil
}

// templated tells whether what the work of a run is given has to be found out. Documents of runs of no job are many, so
// those without a template are not compiled.
func (d *Dispatcher) templated(ctx context.Context, r *job.Run) bool {
	if r.Task != "" {
		return true
	}
	if len(r.Spec) > 0 {
		return bytes.Contains(r.Spec, []byte(job.TemplateMark))
	}
	p, err := d.Specs.Plan(ctx, r)
	return err != nil || !p.Plain("")
}

func (d *Dispatcher) later(id job.RunID) {
	if d.Later != nil {
		d.Later(id)
	}
}

func (d *Dispatcher) setLimit(lane job.LaneKey, limit int) {
	const maxLimits = 100_000
	if d.limits == nil || len(d.limits) >= maxLimits {
		d.limits = map[job.LaneKey]int{}
	}
	d.limits[lane] = limit
}

// NotNow says how a live run without a lease must move instead of starting, if it must.
func NotNow(r *job.Run, paused job.Reason, now job.Instant) (job.Move, bool) {
	m := job.Move{ID: r.ID, FinishedAt: now, IfFence: &r.Fence, IfState: r.IfOpened()}
	switch {
	case r.CancelAt != 0:
		m.State, m.Reason = job.Cancelled, job.CancelRequested
	case r.DeadlineAt != 0 && now >= r.DeadlineAt:
		m.State, m.Reason = job.Failed, job.DeadlineExceeded
		m.Error = "the run's deadline passed before it ended"
	case r.StartBy != 0 && r.Attempt == 0 && now > r.StartBy:
		m.State, m.Reason = job.Skipped, job.StartDeadline
	case paused == job.JobPaused && (r.State == job.Queued || r.State == job.Scheduled && r.ReadyAt <= now):
		m.State, m.Reason, m.FinishedAt = job.Held, job.JobPaused, 0
	default:
		return job.Move{}, false
	}
	return m, true
}

// grant places candidates, records the grants and tells the workers.
func (d *Dispatcher) grant(ctx context.Context, candidates []fleet.Candidate, now job.Instant, p *Progress) error {
	if len(candidates) == 0 {
		return nil
	}
	grants, sessions, seat := d.Fleet.Reserve(candidates, now, d.NextFence)
	var back []job.QueueEntry
	placed := make([]fleet.Candidate, 0, len(grants))
	for i := range candidates {
		switch {
		case seat[i] >= 0:
			placed = append(placed, candidates[i])
		case seat[i] == -1:
			back = append(back, Entry(candidates[i].Run, now))
		default:
			p.Dropped++
		}
	}
	d.pushBack(ctx, back)
	if len(grants) == 0 {
		return nil
	}
	var refused []int
	err := d.Fleet.Tell(func(ended []job.EndedGrant) (err error) {
		refused, err = d.record(ctx, grants, ended)
		return err
	})
	if err != nil {
		// The term ends, mostly, and the next leader reads the leases from Raft.
		d.Fleet.Unreserve(grants)
		d.pushBack(ctx, entriesOf(placed, now))
		return err
	}
	failpoint.Hit("dispatch/granted")
	if len(refused) > 0 {
		d.Logger.Error("raft holds leases that this term did not know; it takes them over", "count", len(refused))
		d.adopt(grants, refused)
		grants, sessions, placed = without(grants, refused), without(sessions, refused), without(placed, refused)
	}
	leases := make([]fleet.Lease, len(grants))
	deliveries := make([]job.Delivery, len(grants))
	for i := range grants {
		c := &placed[i]
		leases[i] = fleet.Lease{Grant: grants[i], Session: sessions[i], Run: c.Run, Spec: c.Spec}
	}
	stops := d.Fleet.Open(leases)
	for i := range leases {
		deliveries[i] = job.Delivery{Session: leases[i].Session, Assignment: assignment(&grants[i], &placed[i])}
	}
	written := d.Gateways.Assign(ctx, deliveries)
	failpoint.Hit("dispatch/told")
	if len(stops) > 0 {
		d.Gateways.Stop(ctx, stops)
	}
	back = back[:0]
	for i, ok := range written {
		if !ok && d.Fleet.End(grants[i].RunID, grants[i].Fence) { // never written, so never started (L3)
			back = append(back, Entry(placed[i].Run, now))
			d.Fleet.Undeliverable(sessions[i])
		}
	}
	d.pushBack(ctx, back)
	p.Granted, p.Undeliverable = len(grants)-len(back), len(back)
	return nil
}

// record commits the grants, together with the leases that ended. What failed is repeated until it has not: its outcome
// may be unknown, or it was made in part, being too large for one entry. A grant that is there already is the same one.
func (d *Dispatcher) record(ctx context.Context, grants []job.Grant, ended []job.EndedGrant) ([]int, error) {
	trouble := pace.Trouble{Logger: d.Logger, What: "granting"}
	for {
		refused, err := d.Control.Grant(ctx, d.Epoch, grants, ended)
		switch job.CodeOf(err) {
		case job.Unavailable, job.Exhausted, job.Unknown:
		default:
			trouble.Over()
			return refused, err
		}
		if d.Pace.Sleep(ctx, trouble.Failed(err)); ctx.Err() != nil {
			return nil, err
		}
	}
}

// adopt takes leases over that Raft holds and this term did not know: whatever they come from, they must run out.
func (d *Dispatcher) adopt(grants []job.Grant, refused []int) {
	runs := make(map[job.RunID]bool, len(refused))
	for _, i := range refused {
		d.Fleet.Unreserve(grants[i : i+1])
		runs[grants[i].RunID] = true
	}
	var unknown []job.Grant
	for _, g := range d.Control.Grants() {
		if _, known := d.Fleet.Lease(g.RunID); runs[g.RunID] && !known {
			unknown = append(unknown, g)
		}
	}
	d.Fleet.Resume(unknown)
}

// NextFence is one that nobody else has: of a grant, or of the resolver's.
func (d *Dispatcher) NextFence() job.Fence { return job.MakeFence(d.Epoch, d.sequence.Add(1)) }

func (d *Dispatcher) pushBack(ctx context.Context, entries []job.QueueEntry) {
	if len(entries) == 0 {
		return
	}
	if _, err := d.Queue.Push(ctx, d.Epoch, d.Now(), entries); err != nil && ctx.Err() == nil {
		d.Logger.Debug("putting runs back into the queue is left to the reconciler", "count", len(entries), "err", err)
		for i := range entries {
			d.later(entries[i].RunID)
		}
	}
}

// Entry is a run's place in the queue. What is queued may start at once, whatever the clock of the node showed that took
// it in: the one of a node that has just started may be wrong by hours, and the queue would keep the run back for as long.
func Entry(r *job.Run, now job.Instant) job.QueueEntry {
	e := r.Entry()
	if r.State == job.Queued {
		e.ReadyAt = min(e.ReadyAt, now)
	}
	return e
}

func entriesOf(cs []fleet.Candidate, now job.Instant) []job.QueueEntry {
	out := make([]job.QueueEntry, len(cs))
	for i := range cs {
		out[i] = Entry(cs[i].Run, now)
	}
	return out
}

func without[T any](s []T, indices []int) []T {
	out := make([]T, 0, len(s))
	for i := range s {
		if !slices.Contains(indices, i) {
			out = append(out, s[i])
		}
	}
	return out
}

func assignment(g *job.Grant, c *fleet.Candidate) *job.Assignment {
	r := c.Run
	root := r.RootID
	if root.IsZero() {
		root = r.ID
	}
	return &job.Assignment{
		RunID: r.ID, RootID: root, Fence: g.Fence, Attempt: g.Attempt, Namespace: r.Namespace, Job: r.Job,
		JobVersion: r.JobVersion, Task: r.Task, ScheduledAt: r.ScheduledAt, DeadlineAt: r.DeadlineAt, Payload: c.Payload,
		Labels: r.Labels, Spec: c.Spec,
	}
}
