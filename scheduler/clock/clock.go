// Package clock decides ticks while this node leads: it keeps a heap of (next time, job), sleeps until the top, and
// commits one Raft entry per due batch with each tick's disposition, which moves the marks (L6). Ledger rows and runs
// follow in the store, by derived ids; a later entry tells Raft that the store has them.
//
// Crash points. Before the entry commits: nothing was decided, the next leader decides. After it and before the store:
// the decisions stand in Raft as unstored, and the next leader stores them. After the store and before the
// acknowledgement: they are stored again, which changes nothing. After the store and before the queue: the runs are
// queued in the store, and the reconciler finds them.
package clock

import (
	"bytes"
	"container/heap"
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"runtime"
	"sync"
	"time"

	"github.com/musterhq/muster/internal/failpoint"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/job/timetable"
	"github.com/musterhq/muster/scheduler/overlap"
	"github.com/musterhq/muster/scheduler/pace"
)

// Control is the part of the Raft state that ticks live in.
type Control interface {
	Decide(ctx context.Context, epoch job.Epoch, ticks []job.Tick, marks []job.MarkMove, stored []job.TickKey) (recorded []job.Tick, err error)
	Marks() []job.Mark
	Mark(id job.JobID) (job.Mark, bool)
	Unstored() []job.Tick
	TakeScheduleChanges() []job.JobID
	ScheduleChanges() <-chan struct{}
	Paused(id job.JobID, namespace string) job.Reason
}

// Store takes decided ticks.
type Store interface {
	StoreTicks(ctx context.Context, epoch job.Epoch, ticks []job.Tick) ([]*job.Run, error)
}

const (
	// maxJobs and maxTicks bound one entry.
	maxJobs  = 1000
	maxTicks = 5000
	// maxUnstored stops deciding while the store takes nothing: ticks stay due, and Raft does not grow (D6).
	maxUnstored = 20_000
	// pausedEvery is how often a paused job's ticks are decided, as one range.
	pausedEvery = 10 * time.Minute
	// longestSleep bounds a sleep, so that a wall clock that was set is noticed.
	longestSleep = time.Second
	// acknowledgeAfter is how long Raft may hold decisions that the store has: with the next ones it is told for nothing.
	acknowledgeAfter = 2 * time.Second
)

// Clock is one term's. Deciding is one goroutine's, Storing another's.
type Clock struct {
	Epoch   job.Epoch
	Control Control
	Store   Store
	Overlap *overlap.Tracker
	Now     func() job.Instant
	Pace    pace.Pace
	Logger  *slog.Logger
	// Born is told of runs that came into being.
	Born func([]*job.Run)
	// Replace cancels runs in favour of a later tick of their job (overlap: replace).
	Replace func(ctx context.Context, ids []job.RunID) error
	// Decided counts ticks; may be nil.
	Decided func(d job.Disposition, r job.Reason, n int)

	jobs map[job.JobID]*entry
	due  byNext
	read map[string]*timetable.Timetable // by the schedule's text: many jobs share one

	deciding, storing pace.Trouble

	room int // how many ticks are stored at once: less than maxTicks while the store has little room, or time

	mu       sync.Mutex
	unstored []job.Tick
	stored   []job.TickKey
	storedAt job.Instant // the first of them
	toStore  chan struct{}
	// Of decisions that an earlier leader made, the first inherited ones in unstored, it is not known whether their runs live,
	// have ended, or never came to be, until they are stored (again). So long nothing can be decided that depends on it.
	inherited int
	doubtful  map[job.JobID]int
}

type entry struct {
	mark  job.Mark
	table *timetable.Timetable
	next  job.Instant
	index int // in the heap; -1: not in it
	// not before this: it could not be known whether the job is busy
	notBefore job.Instant
}

// Load reads all marks, and the decisions of which Raft has not heard that the store has them: they are Storing's first. It
// is called once, before all else, and asks Raft alone: what an earlier leader could not store may be much, and the store
// away or full, and a term must begin all the same.
func (c *Clock) Load() {
	c.toStore, c.room = make(chan struct{}, 1), maxTicks
	c.deciding = pace.Trouble{Logger: c.Logger, What: "deciding ticks"}
	c.storing = pace.Trouble{Logger: c.Logger, What: "storing ticks"}
	c.read = map[string]*timetable.Timetable{}
	c.Control.TakeScheduleChanges() // all of it is read now
	marks := c.Control.Marks()
	c.readAhead(marks)
	c.jobs = make(map[job.JobID]*entry, len(marks))
	c.due = make(byNext, 0, len(marks))
	for i := range marks {
		c.put(marks[i])
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unstored, c.doubtful = c.Control.Unstored(), map[job.JobID]int{}
	for i := range c.unstored {
		if t := &c.unstored[i]; t.Disposition == job.TickRun {
			c.doubtful[t.JobID]++
			c.inherited = i + 1
		}
	}
}

// put brings an entry up to a mark.
func (c *Clock) put(m job.Mark) {
	e := c.jobs[m.JobID]
	if e == nil {
		e = &entry{index: -1}
		c.jobs[m.JobID] = e
	}
	table, err := c.parse(m.Schedule)
	if err != nil {
		// What was validated when it came in cannot fail; if it does, one job stops, never the leader (D5).
		c.Logger.Error("a stored schedule cannot be read; its job does not tick", "namespace", m.Namespace, "job", m.Job, "version", m.Version, "err", err)
		c.drop(m.JobID)
		return
	}
	e.mark, e.table = m, table
	c.arm(e)
}

func (c *Clock) parse(text []byte) (*timetable.Timetable, error) {
	if t := c.read[string(text)]; t != nil {
		return t, nil
	}
	t, err := read(text)
	if err != nil {
		return nil, err
	}
	if len(c.read) > 2*len(c.jobs)+1000 {
		clear(c.read) // mostly schedules that no job has any longer
	}
	c.read[string(text)] = t
	return t, nil
}

func read(text []byte) (*timetable.Timetable, error) {
	var s job.Schedule
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, err
	}
	return timetable.Parse(s)
}

// readAhead parses the schedules of all marks on all CPUs: with 100,000 of them a new leader waits for little else.
func (c *Clock) readAhead(marks []job.Mark) {
	parts := make([]map[string]*timetable.Timetable, min(runtime.GOMAXPROCS(0), 1+len(marks)/1000))
	var all sync.WaitGroup
	for n := range parts {
		all.Go(func() {
			part := make(map[string]*timetable.Timetable, len(marks)/len(parts))
			for i := n; i < len(marks); i += len(parts) {
				text := string(marks[i].Schedule)
				if part[text] != nil {
					continue
				}
				if t, err := read(marks[i].Schedule); err == nil { // put tells of an error
					part[text] = t
				}
			}
			parts[n] = part
		})
	}
	all.Wait()
	for _, part := range parts {
		maps.Copy(c.read, part)
	}
}

// arm puts the entry where its next decision belongs.
func (c *Clock) arm(e *entry) {
	e.next = 0
	switch next, ok := e.table.Next(e.mark.At.Time()); {
	case len(e.mark.Earlier) > 0:
		e.next = max(e.mark.From, e.notBefore)
	case ok:
		e.next = job.At(next)
		if c.Control.Paused(e.mark.JobID, e.mark.Namespace) != job.NoReason {
			e.next = max(e.next, e.mark.At.Add(pausedEvery))
		}
		e.next = max(e.next, e.notBefore)
	}
	switch {
	case e.next == 0 && e.index >= 0:
		heap.Remove(&c.due, e.index)
	case e.next == 0:
	case e.index >= 0:
		heap.Fix(&c.due, e.index)
	default:
		heap.Push(&c.due, e)
	}
}

func (c *Clock) drop(id job.JobID) {
	if e := c.jobs[id]; e != nil {
		if e.index >= 0 {
			heap.Remove(&c.due, e.index)
		}
		delete(c.jobs, id)
	}
}

func (c *Clock) refresh() {
	for _, id := range c.Control.TakeScheduleChanges() {
		if m, ok := c.Control.Mark(id); ok {
			c.put(m)
		} else {
			c.drop(id)
		}
	}
}

// Next is when the first job is due; 0 if none is.
func (c *Clock) Next() job.Instant {
	if len(c.due) == 0 {
		return 0
	}
	return c.due[0].next
}

// Jobs is how many schedules the clock holds.
func (c *Clock) Jobs() int { return len(c.jobs) }

// Deciding is the part that decides ticks. Storing is beside it.
func (c *Clock) Deciding() *pace.Part {
	return &pace.Part{Name: "clock", Turn: c.turn, Signals: [2]<-chan struct{}{c.Control.ScheduleChanges()}}
}

func (c *Clock) turn(ctx context.Context) (time.Duration, error) {
	n, err := c.Step(ctx)
	if err != nil {
		if job.CodeOf(err) == job.Fenced || ctx.Err() != nil {
			return 0, err
		}
		return c.deciding.Failed(err), nil
	}
	wait := longestSleep
	switch next := c.Next(); {
	case n > 0:
		wait = 0
	case next != 0:
		wait = min(wait, max(0, next.Sub(c.Now())))
	}
	if c.backlogged() {
		wait = max(wait, 50*time.Millisecond)
	}
	return wait, nil
}

func (c *Clock) backlogged() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.unstored) >= maxUnstored
}

// Step decides what is due, one entry's worth, and tells how many jobs it looked at.
func (c *Clock) Step(ctx context.Context) (int, error) {
	c.refresh()
	now := c.Now()
	if c.backlogged() {
		return 0, nil
	}
	var ticks []job.Tick
	var marks []job.MarkMove
	var batch, unknown []*entry
	var blind error // why the store does not tell which jobs are busy; it is asked once
	for len(c.due) > 0 && c.due[0].next <= now && len(batch) < maxJobs && len(ticks) < maxTicks {
		e := heap.Pop(&c.due).(*entry)
		decided, err := c.decide(ctx, e, now, blind)
		if err != nil { // its ticks stay due (L6); those of others are decided
			if unknown = append(unknown, e); err != errDoubt {
				blind = err
			}
			continue
		}
		batch = append(batch, e)
		if len(batch) > 1 && len(ticks)+len(decided) > maxTicks {
			batch = batch[:len(batch)-1]
			c.arm(e) // one entry holds no more than that, or what one job owes
			break
		}
		ticks = append(ticks, decided...)
		marks = append(marks, job.MarkMove{JobID: e.mark.JobID, Version: e.mark.Version, At: now, Was: e.mark.At})
	}
	if c.putOff(unknown, now, blind); job.CodeOf(blind) == job.Fenced || blind != nil && ctx.Err() != nil {
		c.reload(batch)
		return 0, blind
	}
	stored := c.takeStored()
	if len(batch) == 0 && len(stored) < maxTicks && !c.overdue(stored, now) {
		c.putBackStored(stored) // they ride along with the next decisions
		return 0, nil
	}
	recorded, err := c.Control.Decide(ctx, c.Epoch, ticks, marks, stored)
	if err != nil {
		c.putBackStored(stored)
		c.reload(batch)
		return 0, err
	}
	if len(ticks) > 0 {
		failpoint.Hit("clock/decided")
	}
	if len(stored) > 0 {
		failpoint.Hit("clock/acknowledged")
	}
	for _, e := range batch {
		// What Raft has is the truth: the mark may be another version's by now.
		if m, ok := c.Control.Mark(e.mark.JobID); ok {
			c.put(m)
		} else {
			c.drop(e.mark.JobID)
		}
	}
	c.note(recorded)
	if blind == nil {
		c.deciding.Over()
	}
	return len(batch), nil
}

// errDoubt is why a tick is put off for a moment, until the decisions before it are stored.
var errDoubt = job.Errorf(job.Unavailable, "doubt", "what an earlier leader decided is not stored yet")

func (c *Clock) inDoubt(id job.JobID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.doubtful[id] > 0
}

// putOff has entries tried again a little later.
func (c *Clock) putOff(entries []*entry, now job.Instant, why error) {
	if len(entries) == 0 {
		return
	}
	again := now.Add(20 * time.Millisecond)
	if why != nil {
		again = now.Add(c.deciding.Failed(why))
	}
	for _, e := range entries {
		e.notBefore = again
		c.arm(e)
	}
}

// note remembers what was recorded: it counts for overlap from this moment, and is to be stored.
func (c *Clock) note(recorded []job.Tick) {
	var born []*job.Run
	for i := range recorded {
		t := &recorded[i]
		if c.Decided != nil {
			c.Decided(t.Disposition, t.Reason, t.Ticks())
		}
		if t.Disposition != job.TickRun {
			continue
		}
		born = append(born, unborn(t))
	}
	c.Overlap.Born(born)
	c.mu.Lock()
	c.unstored = append(c.unstored, recorded...)
	c.mu.Unlock()
	select {
	case c.toStore <- struct{}{}:
	default:
	}
}

// reload finds out what a decision did that failed: nothing, all of it, or, when it was cut into several entries, a part.
// Marks and decisions are taken from Raft: ticks that were decided must not be decided again from an old mark, because a
// range that grew meanwhile has the key of the one that is there.
func (c *Clock) reload(batch []*entry) {
	for _, e := range batch {
		if m, ok := c.Control.Mark(e.mark.JobID); ok {
			c.put(m)
		} else {
			c.drop(e.mark.JobID)
		}
	}
	known := map[job.TickKey]bool{}
	c.mu.Lock()
	for i := range c.unstored {
		known[c.unstored[i].Key()] = true
	}
	for _, k := range c.stored {
		known[k] = true
	}
	c.mu.Unlock()
	var more []job.Tick
	for _, t := range c.Control.Unstored() {
		if !known[t.Key()] {
			more = append(more, t)
		}
	}
	c.note(more)
}

// Storing is the part that stores decided ticks. Load must have been called.
func (c *Clock) Storing() *pace.Part {
	return &pace.Part{Name: "ticks", Turn: c.turnStore, Signals: [2]<-chan struct{}{c.toStore}}
}

func (c *Clock) turnStore(ctx context.Context) (time.Duration, error) {
	n, err := c.StepStore(ctx)
	switch {
	case job.CodeOf(err) == job.Fenced || err != nil && ctx.Err() != nil:
		return 0, err
	case err != nil:
		c.Pace.Sleep(ctx, c.storing.Failed(err))
		return 0, nil
	case n == 0:
		return pace.Forever, nil
	}
	c.storing.Over()
	return 0, nil
}

// unborn is of a decided tick's run what overlap asks about.
func unborn(t *job.Tick) *job.Run {
	r := &job.Run{ID: t.RunID(), JobID: t.JobID, Trigger: job.ByTick, State: job.Queued}
	if t.Waiting {
		r.State, r.Reason = job.Waiting, job.OverlapQueued
	}
	return r
}

// StepStore stores one batch of decided ticks and tells how many. All of it may be repeated, and is until all of it is
// done: Raft is not told that the store has a tick before the runs that it replaces are cancelled.
func (c *Clock) StepStore(ctx context.Context) (int, error) {
	c.mu.Lock()
	batch := c.unstored[:min(len(c.unstored), c.room)]
	c.mu.Unlock()
	if len(batch) == 0 {
		return 0, nil
	}
	runs, err := c.Store.StoreTicks(ctx, c.Epoch, batch)
	switch job.CodeOf(err) {
	case job.Exhausted, // where few fit, few are stored: single births must not take all room for ever
		job.Unavailable: // perhaps it cannot store so many in the time that a statement has
		c.room = max(1, len(batch)/2)
	}
	if err != nil {
		return 0, err
	}
	failpoint.Hit("clock/stored")
	c.room = min(2*c.room, maxTicks)
	born := runs[:0:0]
	for i, r := range runs {
		switch {
		case r != nil && !r.State.Terminal():
			born = append(born, r)
		case batch[i].Disposition == job.TickRun:
			// It ended already, or never came to be because its version is gone: no end of it will be seen. If a run
			// waited for it, the reconciler releases that.
			c.Overlap.Done(unborn(&batch[i]))
		}
	}
	c.Overlap.Born(born) // one may have been released since it was decided, by an earlier leader
	c.Born(born)
	if err := c.replace(ctx, batch); err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.stored) == 0 {
		c.storedAt = c.Now()
	}
	for i := range batch {
		c.stored = append(c.stored, batch[i].Key())
		if i < c.inherited && batch[i].Disposition == job.TickRun {
			if id := batch[i].JobID; c.doubtful[id] > 1 {
				c.doubtful[id]--
			} else {
				delete(c.doubtful, id)
			}
		}
	}
	c.inherited = max(0, c.inherited-len(batch))
	if c.unstored = c.unstored[len(batch):]; len(c.unstored) == 0 {
		c.unstored = nil
	}
	return len(batch), nil
}

// replace cancels the runs before those that overlap: replace made wait. It comes after the store has the waiting runs:
// what ends releases its successor, which must be there.
func (c *Clock) replace(ctx context.Context, stored []job.Tick) error {
	var earlier []job.RunID
	for i := range stored {
		t := &stored[i]
		if !t.Waiting {
			continue
		}
		if m, ok := c.Control.Mark(t.JobID); !ok || m.Overlap != job.OverlapReplaceRun {
			continue
		}
		runs, _, err := c.Overlap.Active(ctx, t.JobID)
		if err != nil {
			return err
		}
		own := t.RunID()
		for _, id := range runs {
			// By the ids, which are in the order of the ticks: of a tick that is stored again the run may have ended, and
			// those that are left are its successors.
			if bytes.Compare(id[:], own[:]) < 0 {
				earlier = append(earlier, id)
			}
		}
	}
	if len(earlier) == 0 {
		return nil
	}
	return c.Replace(ctx, earlier)
}

func (c *Clock) takeStored() []job.TickKey {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(len(c.stored), 2*maxTicks)
	out := c.stored[:n:n]
	c.stored = c.stored[n:]
	return out
}

// overdue tells whether no decision came along for a while to tell Raft of these with.
func (c *Clock) overdue(stored []job.TickKey, now job.Instant) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(stored) > 0 && now.Sub(c.storedAt) >= acknowledgeAfter
}

func (c *Clock) putBackStored(keys []job.TickKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stored = append(keys, c.stored...)
}

type byNext []*entry

func (h byNext) Len() int           { return len(h) }
func (h byNext) Less(i, j int) bool { return h[i].next < h[j].next }
func (h byNext) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i, j }
func (h *byNext) Push(x any)        { e := x.(*entry); e.index = len(*h); *h = append(*h, e) }
func (h *byNext) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.index = -1
	return e
}
