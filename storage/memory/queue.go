// Package memory is the queue in the leader's memory: what the embedded store uses, and what the leader goes on with when
// Redis is away. It holds nothing that the store does not know; losing it costs a reload.
package memory

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/google/btree"

	"github.com/musterhq/muster/job"
)

// The bounds of New(0): all live runs that the embedded store takes fit, at about 150 bytes each, so with it the order of
// a lane is exact. What is beyond a bound stays in the store (Q2).
const (
	DefaultMaxLane  = 500_000
	DefaultMaxTotal = 500_000
)

// treeDegree is the half width of the trees' nodes.
const treeDegree = 32

// Queue implements storage.Queue. The zero value is not usable; call New.
type Queue struct {
	maxLane, maxTotal int

	mu    sync.Mutex
	epoch job.Epoch
	lanes map[job.LaneKey]*lane
	items map[job.RunID]item
	nodes *btree.FreeListG[place] // of all trees: lanes come and go
}

// New makes an empty queue whose lanes hold at most maxLane entries each; 0 means DefaultMaxLane.
func New(maxLane int) *Queue { return NewBounded(maxLane, 0) }

// NewBounded makes an empty queue whose lanes hold at most maxLane entries each, and all of them together maxTotal; 0
// means the default. When all together are too many, the longest lanes leave their last to the store, so that no lane is
// kept out by another.
func NewBounded(maxLane, maxTotal int) *Queue {
	if maxLane <= 0 {
		maxLane = DefaultMaxLane
	}
	if maxTotal <= 0 {
		maxTotal = max(DefaultMaxTotal, maxLane)
	}
	q := &Queue{maxLane: maxLane, maxTotal: maxTotal, nodes: btree.NewFreeListG[place](4 * treeDegree)}
	q.empty()
	return q
}

func (q *Queue) empty() { q.lanes, q.items = map[job.LaneKey]*lane{}, map[job.RunID]item{} }

// lane keeps its entries in two trees: what was ready when somebody last looked by Order, the rest by ready time. Both go
// by id where these are equal.
type lane struct {
	key            job.LaneKey
	ready, delayed *btree.BTreeG[place]
	touched        bool // during Push
}

func (l *lane) size() int { return l.ready.Len() + l.delayed.Len() }

// place is where an entry stands in a tree.
type place struct {
	at int64 // Order, or the ready time
	id job.RunID
}

func before(a, b place) bool {
	return a.at < b.at || a.at == b.at && bytes.Compare(a.id[:], b.id[:]) < 0
}

// item is an entry but for its id.
type item struct {
	lane     *lane
	readyAt  job.Instant
	priority uint8
	delayed  bool // which tree has it
}

func (it item) entry(id job.RunID) job.QueueEntry {
	return job.QueueEntry{RunID: id, Lane: it.lane.key, Priority: it.priority, ReadyAt: it.readyAt}
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
	var touched []*lane
	for _, e := range entries {
		l := q.lane(e.Lane)
		if !l.touched {
			l.touched, touched = true, append(touched, l)
		}
		if old, ok := q.items[e.RunID]; ok {
			q.drop(e.RunID, old)
		}
		q.put(e.RunID, item{lane: l, readyAt: e.ReadyAt, priority: e.Priority, delayed: e.ReadyAt > now})
	}
	for _, l := range touched {
		l.touched = false
		if over := l.size() - q.maxLane; over > 0 {
			q.settle(l, now)
			left = q.evict(left, l, over)
		}
		q.tidy(l)
	}
	return q.trim(left), nil
}

// lane answers a lane, a new one if need be. Whoever leaves it empty calls tidy.
func (q *Queue) lane(k job.LaneKey) *lane {
	l := q.lanes[k]
	if l == nil {
		l = &lane{key: k, ready: btree.NewWithFreeListG(treeDegree, before, q.nodes), delayed: btree.NewWithFreeListG(treeDegree, before, q.nodes)}
		q.lanes[k] = l
	}
	return l
}

func (q *Queue) put(id job.RunID, it item) {
	if it.delayed {
		it.lane.delayed.ReplaceOrInsert(place{int64(it.readyAt), id})
	} else {
		it.lane.ready.ReplaceOrInsert(place{job.Order(it.readyAt, it.priority), id})
	}
	q.items[id] = it
}

// drop takes an entry out. A lane that it leaves empty is forgotten, but for one that Push is at.
func (q *Queue) drop(id job.RunID, it item) {
	if it.delayed {
		it.lane.delayed.Delete(place{int64(it.readyAt), id})
	} else {
		it.lane.ready.Delete(place{job.Order(it.readyAt, it.priority), id})
	}
	delete(q.items, id)
	if !it.lane.touched {
		q.tidy(it.lane)
	}
}

func (q *Queue) tidy(l *lane) {
	if l.size() == 0 {
		delete(q.lanes, l.key)
	}
}

// settle brings each entry that is about to be looked at into the right tree: what has become ready, and of the ready ones
// the first, which a caller with an earlier now must not get. Callers take the time before they come here, and overtake
// each other; and clocks are set back.
func (q *Queue) settle(l *lane, now job.Instant) {
	for {
		p, ok := l.delayed.Min()
		if !ok || p.at > int64(now) {
			break
		}
		l.delayed.DeleteMin()
		it := q.items[p.id]
		it.delayed = false
		q.put(p.id, it)
	}
	for {
		p, ok := l.ready.Min()
		if !ok {
			return
		}
		it := q.items[p.id]
		if it.readyAt <= now {
			return
		}
		l.ready.DeleteMin()
		it.delayed = true
		q.put(p.id, it)
	}
}

// evict takes the last n entries out of a lane.
func (q *Queue) evict(left []job.QueueEntry, l *lane, n int) []job.QueueEntry {
	for range n {
		p, ok := l.delayed.DeleteMax()
		if !ok {
			p, _ = l.ready.DeleteMax()
		}
		left = append(left, q.items[p.id].entry(p.id))
		delete(q.items, p.id)
	}
	return left
}

// trim keeps the bound of all lanes together. It goes some way below it, so that a full queue does not look through its
// lanes at each push.
func (q *Queue) trim(left []job.QueueEntry) []job.QueueEntry {
	if len(q.items) <= q.maxTotal {
		return left
	}
	over := len(q.items) - q.maxTotal + q.maxTotal/32
	lanes := make([]*lane, 0, len(q.lanes))
	for _, l := range q.lanes {
		lanes = append(lanes, l)
	}
	slices.SortFunc(lanes, func(a, b *lane) int { return cmp.Or(b.size()-a.size(), cmp.Compare(a.key, b.key)) })
	// The longest n lanes are cut to one level: the one at which what is cut off is enough.
	n, sum := 0, 0
	for n < len(lanes) {
		sum += lanes[n].size()
		n++
		if n == len(lanes) || sum-n*lanes[n].size() >= over {
			break
		}
	}
	level := max(0, (sum-over)/n)
	for _, l := range lanes[:n] {
		cut := min(over, l.size()-level)
		left = q.evict(left, l, cut)
		over -= cut
		q.tidy(l)
	}
	return left
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
		for range w.Max {
			q.settle(l, now)
			p, ok := l.ready.DeleteMin()
			if !ok {
				break
			}
			out = append(out, q.items[p.id].entry(p.id))
			delete(q.items, p.id)
		}
		q.tidy(l)
	}
	return out, nil
}

// Remove implements storage.Queue.
func (q *Queue) Remove(_ context.Context, epoch job.Epoch, ids []job.RunID) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.fenced(epoch); err != nil {
		return err
	}
	for _, id := range ids {
		if it, ok := q.items[id]; ok {
			q.drop(id, it)
		}
	}
	return nil
}

// Lanes implements storage.Queue.
func (q *Queue) Lanes(_ context.Context, now job.Instant) ([]job.LaneDepth, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := make([]job.LaneDepth, 0, len(q.lanes))
	for k, l := range q.lanes {
		q.settle(l, now)
		d := job.LaneDepth{Lane: k, Ready: l.ready.Len(), Delayed: l.delayed.Len()}
		if p, ok := l.ready.Min(); ok {
			d.First = p.at
		}
		if p, ok := l.delayed.Min(); ok {
			d.NextAt = job.Instant(p.at)
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
		_, out[i] = q.items[id]
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
	q.empty()
	return nil
}

// Len answers how many entries there are.
func (q *Queue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items)
}

// Entries answers all entries, in no order: what a copy of the queue is made of.
func (q *Queue) Entries() []job.QueueEntry {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := make([]job.QueueEntry, 0, len(q.items))
	for id, it := range q.items {
		out = append(out, it.entry(id))
	}
	return out
}

// Sample answers how many lanes there are, and how long some of them, others each time: what a copy is compared by.
func (q *Queue) Sample(n int) (lanes int, lengths map[job.LaneKey]int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	lengths = make(map[job.LaneKey]int, min(n, len(q.lanes)))
	for k, l := range q.lanes {
		if len(lengths) == n {
			break
		}
		lengths[k] = l.size()
	}
	return len(q.lanes), lengths
}
