// Package backlog keeps the queue small under any backlog, and the order of a lane as if it were not (Q2).
//
// A lane of the queue holds its first entries; the rest stays in the store. Such a lane is short. Of a short lane the
// loader knows its end: every run up to there was offered to the queue, and none behind it is in there. What is pushed
// behind the end is left to the store, so whatever is popped comes before all that was not. When a short lane runs below
// half, the next runs are read from the store, in order, and the end moves on; when the store has no more, the lane is
// whole and is forgotten. When the queue leaves a ready entry to the store because it has no room, the end moves back to
// just before it.
//
// What is not ready is the last in a lane of the queue and leaves it first, although it may come before what is ready once
// its time has come. The loader notes the second in which that will be, and reads the lane anew from its beginning then.
//
// When a term begins the queue is empty, and the store may hold a long backlog. A lane that anything is pushed to is first
// loaded from the store, until the reconciler has gone through all live runs, and so through all lanes.
package backlog

import (
	"bytes"
	"cmp"
	"context"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler/pace"
)

// Queue is what the loader is in front of.
type Queue interface {
	Push(ctx context.Context, epoch job.Epoch, now job.Instant, entries []job.QueueEntry) (left []job.QueueEntry, err error)
	Pop(ctx context.Context, epoch job.Epoch, now job.Instant, wants []job.LaneWant) ([]job.QueueEntry, error)
	Remove(ctx context.Context, epoch job.Epoch, ids []job.RunID) error
	Lanes(ctx context.Context, now job.Instant) ([]job.LaneDepth, error)
	Holds(ctx context.Context, ids []job.RunID) ([]bool, error)
}

// Store has what the queue has no room for.
type Store interface {
	Backlog(ctx context.Context, wants []job.LaneAfter, until job.Instant) ([]job.QueueEntry, error)
}

const (
	// maxLanes bounds the lanes of one read.
	maxLanes = 250
	// fullPause is how long a lane is left alone that the queue has no room for at all, being full of others.
	fullPause = 100 * time.Millisecond
)

// sizes are as production has them but in tests.
type sizes struct {
	load  int // entries of one read, at most
	least int // entries that a lane is asked for at least, however many others are read with it
	aside int // what is kept of that which is pushed behind the end of one lane while that lane is read
}

var usual = sizes{load: 5000, least: 20, aside: 1000}

// Config is what a loader works with.
type Config struct {
	Queue  Queue
	Epoch  job.Epoch
	Store  Store
	InHand func(job.RunID) bool // a run that somebody works on: the queue need not know it
	Now    func() job.Instant
	Ahead  time.Duration // how long before its time a delayed run is queued
	Wake   func()        // the dispatcher has something new
	Pace   pace.Pace
	Logger *slog.Logger
	// Ordered has each lane loaded before anything of it is popped, until Swept. Without it lanes fill as the reconciler goes
	// through the live runs: right where the queue holds all of them, and a read of the backlog goes through them all.
	Ordered bool
}

// Loader is a queue to the parts of one term. It is safe for concurrent use; Step is called by one goroutine.
type Loader struct {
	Config
	sizes
	trouble pace.Trouble
	signal  chan struct{}

	mu    sync.Mutex
	swept bool // lanes that are not in here are whole
	lanes map[job.LaneKey]*lane
	wants []job.LaneKey // lanes that are to be read, each once
}

type lane struct {
	key    job.LaneKey
	loaded bool  // end counts: it was read at least once
	whole  bool  // there is no end: all of it was offered
	end    place // all up to this was offered

	wanted  bool // in wants, or being read
	reading bool
	aside   []job.QueueEntry // pushed behind the end while it is being read
	missed  *place           // the first of those that aside had no room for

	room  int         // how many the last read had room for in the queue; 0: for all
	most  int         // how many were ready at most since
	vain  bool        // the queue had room for none: it holds earlier ones, or none of this lane at all
	tryAt job.Instant // not before

	due   []job.Instant // full seconds in which entries become ready that the queue left, ascending
	again *place        // the lane is being read anew, and this far
}

// place is where an entry stands in its lane.
type place struct {
	order int64
	id    job.RunID
}

var (
	first = place{order: math.MinInt64}
	last  = place{order: math.MaxInt64, id: job.RunID(bytes.Repeat([]byte{0xff}, 16))}
)

func placeOf(e *job.QueueEntry) place { return place{e.Order(), e.RunID} }

func (p place) compare(o place) int {
	return cmp.Or(cmp.Compare(p.order, o.order), bytes.Compare(p.id[:], o.id[:]))
}

// before is the place right before p.
func (p place) before() place {
	for i := len(p.id) - 1; i >= 0; i-- {
		if p.id[i]--; p.id[i] != 0xff {
			return p
		}
	}
	p.order--
	return p
}

// New makes a loader for a queue that is empty.
func New(c Config) *Loader {
	return &Loader{Config: c, sizes: usual, swept: !c.Ordered, lanes: map[job.LaneKey]*lane{}, signal: make(chan struct{}, 1),
		trouble: pace.Trouble{Logger: c.Logger, What: "reading the backlog"}}
}

// Swept tells that something was pushed to each lane that has live runs.
func (l *Loader) Swept() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.swept = true
	for _, ln := range l.lanes {
		l.forget(ln)
	}
}

// forget drops a lane of which there is nothing to remember.
func (l *Loader) forget(ln *lane) {
	if l.swept && ln.whole && !ln.wanted && len(ln.due) == 0 {
		delete(l.lanes, ln.key)
	}
}

// Short is how many lanes have more in the store than in the queue, as far as is known.
func (l *Loader) Short() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, ln := range l.lanes {
		if !ln.whole {
			n++
		}
	}
	return n
}

// Push is the queue's. What is behind the end of a short lane, and what is due later than is queued, is left to the store.
func (l *Loader) Push(ctx context.Context, epoch job.Epoch, now job.Instant, entries []job.QueueEntry) (left []job.QueueEntry, err error) {
	until := now.Add(l.Ahead)
	l.mu.Lock()
	defer l.mu.Unlock()
	keep := entries
	for i := range entries {
		if e := &entries[i]; e.ReadyAt <= until && l.admits(e) {
			if left != nil {
				keep = append(keep, *e)
			}
			continue
		}
		if left == nil { // the callers' slice stays as it is
			keep = append(make([]job.QueueEntry, 0, len(entries)), entries[:i]...)
		}
		left = append(left, entries[i])
	}
	if len(keep) == 0 {
		return left, nil
	}
	over, err := l.push(ctx, now, keep)
	return append(left, over...), err
}

// admits tells whether an entry goes to the queue.
func (l *Loader) admits(e *job.QueueEntry) bool {
	ln := l.lanes[e.Lane]
	if ln == nil {
		if l.swept {
			return true
		}
		ln = &lane{key: e.Lane, end: first}
		l.lanes[e.Lane] = ln
	}
	p := placeOf(e)
	if ln.whole || ln.loaded && p.compare(ln.end) <= 0 {
		return true
	}
	switch {
	case !ln.loaded && !ln.reading:
		l.want(ln)
	case !ln.reading:
	case len(ln.aside) < l.sizes.aside:
		ln.aside = append(ln.aside, *e)
	case ln.missed == nil || p.compare(*ln.missed) < 0:
		ln.missed = &p
	}
	return false
}

// push hands entries to the queue and takes note of what it leaves.
func (l *Loader) push(ctx context.Context, now job.Instant, entries []job.QueueEntry) (over []job.QueueEntry, err error) {
	over, err = l.Queue.Push(ctx, l.Epoch, now, entries)
	for i := range over {
		e := &over[i]
		ln := l.lanes[e.Lane]
		if ln == nil {
			ln = &lane{key: e.Lane, loaded: true, whole: true, end: last}
			l.lanes[e.Lane] = ln
		}
		p := placeOf(e)
		switch {
		case !ln.whole && p.compare(ln.end) > 0: // the end has moved back before it
		case e.ReadyAt > now:
			ln.dueAt(e.ReadyAt)
		default:
			ln.loaded, ln.whole, ln.end = true, false, p.before()
		}
	}
	return over, err
}

func (ln *lane) dueAt(at job.Instant) {
	const second = job.Instant(time.Second / time.Microsecond)
	at = (at + second - 1) / second * second
	if i, there := slices.BinarySearch(ln.due, at); !there {
		ln.due = slices.Insert(ln.due, i, at)
	}
}

func (l *Loader) want(ln *lane) {
	if ln.wanted {
		return
	}
	ln.wanted = true
	l.wants = append(l.wants, ln.key)
	select {
	case l.signal <- struct{}{}:
	default:
	}
}

// Pop is the queue's.
func (l *Loader) Pop(ctx context.Context, epoch job.Epoch, now job.Instant, wants []job.LaneWant) ([]job.QueueEntry, error) {
	return l.Queue.Pop(ctx, epoch, now, wants)
}

// Remove is the queue's.
func (l *Loader) Remove(ctx context.Context, epoch job.Epoch, ids []job.RunID) error {
	return l.Queue.Remove(ctx, epoch, ids)
}

// Holds is the queue's.
func (l *Loader) Holds(ctx context.Context, ids []job.RunID) ([]bool, error) {
	return l.Queue.Holds(ctx, ids)
}

// Lanes is the queue's. Whoever pops asks for it, so here it shows which short lanes run low.
func (l *Loader) Lanes(ctx context.Context, now job.Instant) ([]job.LaneDepth, error) {
	depths, err := l.Queue.Lanes(ctx, now)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil || len(l.lanes) == 0 {
		return depths, err
	}
	low := len(l.wants)
	seen := make(map[job.LaneKey]bool, len(l.lanes))
	for i := range depths {
		if ln := l.lanes[depths[i].Lane]; ln != nil {
			seen[ln.key] = true
			l.check(ln, depths[i].Ready, now)
			depths[i].NextAt = ln.next(depths[i].NextAt)
		}
	}
	for key, ln := range l.lanes {
		if seen[key] {
			continue
		}
		l.check(ln, 0, now)
		if at := ln.next(0); at != 0 {
			depths = append(depths, job.LaneDepth{Lane: key, Delayed: 1, NextAt: at})
		}
	}
	slices.Sort(l.wants[low:])
	return depths, nil
}

// next is when the first entry of the lane is ready that is not.
func (ln *lane) next(at job.Instant) job.Instant {
	if len(ln.due) > 0 && (at == 0 || ln.due[0] < at) {
		return ln.due[0]
	}
	return at
}

// check wants a lane to be read if it runs low, or is due. How much the queue holds of a lane is its own affair: half is
// of what was there after the last read.
func (l *Loader) check(ln *lane, ready int, now job.Instant) {
	ln.most = max(ln.most, ready)
	if ln.vain && ready == 0 {
		ln.tryAt = now.Add(fullPause)
	}
	ln.vain = false
	switch {
	case !ln.loaded, ln.again != nil, len(ln.due) > 0 && ln.due[0] <= now:
		l.want(ln)
	case !ln.whole && ready < max(1, ln.most/2) && (now >= ln.tryAt || ln.tryAt > now.Add(fullPause)):
		l.want(ln)
	}
}

// Loading is the part that reads what runs low.
func (l *Loader) Loading() *pace.Part {
	return &pace.Part{Name: "backlog", Signals: [2]<-chan struct{}{l.signal}, Turn: func(ctx context.Context) (time.Duration, error) {
		n, err := l.Step(ctx)
		switch {
		case job.CodeOf(err) == job.Fenced || err != nil && ctx.Err() != nil:
			return 0, err
		case err != nil:
			l.Pace.Sleep(ctx, l.trouble.Failed(err))
			return 0, nil
		case n == 0:
			return pace.Forever, nil
		}
		l.trouble.Over()
		return 0, nil
	}}
}
