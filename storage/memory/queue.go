// Package memory is the queue in the leader's memory: what the embedded store uses, and what the leader falls back to
// when Redis is away. It holds nothing that the store does not know; losing it costs a reload.
package memory

import (
	"bytes"
	"container/heap"
	"context"
	"sync"

	"github.com/musterhq/muster/job"
)

// DefaultMaxLane bounds the entries of one lane; the rest of a longer backlog stays in the store (Q2). All live runs that
// the embedded store takes fit, at about 150 bytes each, so with it the order of a lane is exact.
const DefaultMaxLane = 500_000

// Queue implements storage.Queue. The zero value is not usable; call New.
type Queue struct {
	maxLane int

	mu    sync.Mutex
	epoch job.Epoch
	lanes map[job.LaneKey]*lane
	items map[job.RunID]*item
}

// New makes an empty queue whose lanes hold at most maxLane entries each; 0 means DefaultMaxLane.
func New(maxLane int) *Queue {
	if maxLane <= 0 {
		maxLane = DefaultMaxLane
	}
	return &Queue{maxLane: maxLane, lanes: map[job.LaneKey]*lane{}, items: map[job.RunID]*item{}}
}

type lane struct {
	ready   byOrder // startable at the last Pop, or pushed as such
	delayed byTime
}

func (l *lane) size() int { return len(l.ready) + len(l.delayed) }

type item struct {
	job.QueueEntry
	order   int64
	index   int // in the heap that holds it
	delayed bool
}

// Raise implements storage.Queue.
func (q *Queue) Raise(_ context.Context, epoch job.Epoch) (job.Epoch, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.fenced(epoch); err != nil {
		return q.epoch, err
	}
	q.epoch = epoch
	return epoch, nil
}

func (q *Queue) fenced(epoch job.Epoch) error {
	if epoch < q.epoch {
		return job.Errorf(job.Fenced, "old_epoch", "epoch %d was raised, epoch %d no longer leads", q.epoch, epoch)
	}
	return nil
}

// Push implements storage.Queue.
func (q *Queue) Push(_ context.Context, epoch job.Epoch, now job.Instant, entries []job.QueueEntry) (left []job.QueueEntry, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.fenced(epoch); err != nil {
		return nil, err
	}
	for _, e := range entries {
		if old := q.items[e.RunID]; old != nil {
			q.drop(old)
		}
		l := q.lanes[e.Lane]
		if l == nil {
			l = &lane{}
			q.lanes[e.Lane] = l
		}
		if l.size() >= q.maxLane {
			left = append(left, e)
			continue
		}
		it := &item{QueueEntry: e, order: job.Order(e.ReadyAt, e.Priority), delayed: true}
		q.items[e.RunID] = it
		// Everything enters through the delayed heap: only Pop and Lanes know what time it is.
		heap.Push(&l.delayed, it)
	}
	return left, nil
}

// Pop implements storage.Queue.
func (q *Queue) Pop(_ context.Context, epoch job.Epoch, now job.Instant, wants []job.LaneWant) ([]job.QueueEntry, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.fenced(epoch); err != nil {
		return nil, err
	}
	var out []job.QueueEntry
	for _, w := range wants {
		l := q.lanes[w.Lane]
		if l == nil {
			continue
		}
		l.promote(now)
		for n := 0; n < w.Max && len(l.ready) > 0; n++ {
			it := heap.Pop(&l.ready).(*item)
			delete(q.items, it.RunID)
			out = append(out, it.QueueEntry)
		}
		q.tidy(w.Lane, l)
	}
	return out, nil
}

// promote moves what is ready at now to the ready heap.
func (l *lane) promote(now job.Instant) {
	for len(l.delayed) > 0 && l.delayed[0].ReadyAt <= now {
		it := heap.Pop(&l.delayed).(*item)
		it.delayed = false
		heap.Push(&l.ready, it)
	}
}

// Remove implements storage.Queue.
func (q *Queue) Remove(_ context.Context, epoch job.Epoch, ids []job.RunID) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.fenced(epoch); err != nil {
		return err
	}
	for _, id := range ids {
		if it := q.items[id]; it != nil {
			q.drop(it)
		}
	}
	return nil
}

func (q *Queue) drop(it *item) {
	l := q.lanes[it.Lane]
	if it.delayed {
		heap.Remove(&l.delayed, it.index)
	} else {
		heap.Remove(&l.ready, it.index)
	}
	delete(q.items, it.RunID)
	q.tidy(it.Lane, l)
}

func (q *Queue) tidy(k job.LaneKey, l *lane) {
	if l.size() == 0 {
		delete(q.lanes, k)
	}
}

// Lanes implements storage.Queue.
func (q *Queue) Lanes(_ context.Context, now job.Instant) ([]job.LaneDepth, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := make([]job.LaneDepth, 0, len(q.lanes))
	for k, l := range q.lanes {
		l.promote(now)
		d := job.LaneDepth{Lane: k, Ready: len(l.ready), Delayed: len(l.delayed)}
		if len(l.ready) > 0 {
			d.First = l.ready[0].order
		}
		if len(l.delayed) > 0 {
			d.NextAt = l.delayed[0].ReadyAt
		}
		out = append(out, d)
	}
	return out, nil
}

// Holds answers, for each id, whether the run is queued. The reconciler asks before it pushes.
func (q *Queue) Holds(_ context.Context, ids []job.RunID) ([]bool, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := make([]bool, len(ids))
	for i, id := range ids {
		out[i] = q.items[id] != nil
	}
	return out, nil
}

// Reset implements storage.Queue.
func (q *Queue) Reset(_ context.Context, epoch job.Epoch) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.fenced(epoch); err != nil {
		return err
	}
	q.lanes, q.items = map[job.LaneKey]*lane{}, map[job.RunID]*item{}
	return nil
}

type byOrder []*item

func (h byOrder) Len() int { return len(h) }
func (h byOrder) Less(i, j int) bool {
	if h[i].order != h[j].order {
		return h[i].order < h[j].order
	}
	return bytes.Compare(h[i].RunID[:], h[j].RunID[:]) < 0
}
func (h byOrder) Swap(i, j int) { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i, j }
func (h *byOrder) Push(x any)   { it := x.(*item); it.index = len(*h); *h = append(*h, it) }
func (h *byOrder) Pop() any     { return popItem((*[]*item)(h)) }

type byTime []*item

func (h byTime) Len() int           { return len(h) }
func (h byTime) Less(i, j int) bool { return h[i].ReadyAt < h[j].ReadyAt }
func (h byTime) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i, j }
func (h *byTime) Push(x any)        { it := x.(*item); it.index = len(*h); *h = append(*h, it) }
func (h *byTime) Pop() any          { return popItem((*[]*item)(h)) }

func popItem(h *[]*item) *item {
	old := *h
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return it
}
