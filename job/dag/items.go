package dag

import (
	"encoding/json"
	"fmt"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/traits"

	"github.com/musterhq/muster/job"
)

// items is the list of a task with for_each (T4).
type items struct {
	all       int    // how many there are
	next      int    // those below it have a row, or one is decided
	live      int    // rows that have not ended
	ended     int    //
	bad       int    // of those, failed or cancelled
	first     int    // the first of those
	why       string // and how it ended
	cancelled bool   // the task's own run has a cancel intent
	ending    bool   // the move that ends the task is made; the task has ended once its row says so
	has       []item
	list      []json.RawMessage // what is not born yet, once it is evaluated
	results   []json.RawMessage // while somebody wants them
	broken    error             // why what is not born yet cannot be listed
}

type item struct {
	state job.State
	noted bool
}

func (m *items) grow(n int) {
	for len(m.has) < n {
		m.has = append(m.has, item{})
	}
}

// noteList is Note for the row of a task with for_each.
func (g *Progress) noteList(t *Task, r *job.Run) {
	n := &g.nodes[t.Index]
	if r.State.Terminal() {
		g.spend(t)
	}
	if r.Items == 0 || r.Items > job.MaxItems {
		return
	}
	m := g.itemsOf(n)
	m.all = int(r.Items)
	m.grow(m.all)
	m.cancelled = m.cancelled || r.CancelAt != 0
	g.look(t.Index)
}

func (g *Progress) itemsOf(n *node) *items {
	if n.rest().items == nil {
		n.more.items = new(items)
	}
	return n.more.items
}

// noteItem is Note for the row of an item.
func (g *Progress) noteItem(t *Task, r *job.Run) {
	n := &g.nodes[t.Index]
	m := g.itemsOf(n)
	m.grow(int(r.Item))
	x := &m.has[r.Item-1]
	if !x.noted {
		x.noted = true
		g.stored(x.state != 0)
	}
	g.takeItem(n, r)
	g.look(t.Index)
}

// takeItem takes in how an item stands: noted, or decided.
func (g *Progress) takeItem(n *node, r *job.Run) {
	m := n.more.items
	x := &m.has[r.Item-1]
	switch {
	case x.state.Terminal():
		return
	case !r.State.Terminal():
		if x.state == 0 {
			m.live++
		}
		x.state = r.State
		return
	case x.state != 0:
		m.live--
	}
	x.state = r.State
	m.ended++
	if r.State == job.Failed || r.State == job.Cancelled {
		if m.bad++; m.bad == 1 || int(r.Item) < m.first {
			m.first, m.why = int(r.Item), word(r.State, r.Reason)
		}
		n.late = n.late || r.Reason == job.DeadlineExceeded
	}
	if n.wants > 0 && len(r.Result) > 0 {
		for len(m.results) < int(r.Item) {
			m.results = append(m.results, nil)
		}
		m.results[r.Item-1] = r.Result
	}
}

// withdraw takes an item back that was decided, and is not stored.
func (m *items) withdraw(x *item) {
	switch {
	case !x.state.Terminal():
		m.live--
	case x.state == job.Succeeded:
		m.ended--
	default:
		m.ended--
		m.bad--
	}
	x.state = 0
}

// look has a task's items looked at in the next Next.
func (g *Progress) look(i int) {
	if n := &g.nodes[i]; !n.inLists {
		n.inLists = true
		g.lists = append(g.lists, int32(i))
	}
}

// tend releases items as far as max_parallel lets it, and has the task end when they have all ended. What comes after the
// task is decided when its row has ended, and not before (T1): a leader that dies between births and moves would leave runs
// whose upstream, to the next leader, has not ended.
func (g *Progress) tend(t *Task, now job.Instant) {
	n := &g.nodes[t.Index]
	if n.state == 0 || n.state.Terminal() || n.more == nil || n.more.items == nil {
		return
	}
	m := n.more.items
	if m.all == 0 || m.ending {
		return
	}
	stop := g.cancelled || m.cancelled
	for !stop && m.next < m.all && (t.Task.MaxParallel == 0 || m.live < t.Task.MaxParallel) {
		if m.has[m.next].state == 0 {
			g.bearItem(t, m.next, now)
		}
		m.next++
	}
	if m.next == m.all {
		m.list = nil
		delete(g.old, int32(t.Index))
		g.spend(t)
	}
	end := job.Move{ID: job.TaskRunID(g.root.ID, t.Task.Name, 0), State: job.Succeeded, FinishedAt: now}
	switch {
	case m.ended < m.all && (!stop || m.live > 0):
		return
	case stop && (m.bad > 0 || m.ended < m.all):
		end.State, end.Reason = job.Cancelled, job.CancelRequested
	case m.bad > 0:
		end.State, end.Reason = job.Failed, job.TaskFailed
		end.Error = fmt.Sprintf("%d of %d items did not succeed; the first is item %d (%s)", m.bad, m.all, m.first, m.why)
	}
	m.ending = true
	g.moves = append(g.moves, listEnd{t.Index, end})
}

// bearItem makes the row of an item.
func (g *Progress) bearItem(t *Task, i int, now job.Instant) {
	n := &g.nodes[t.Index]
	m := n.more.items
	r := g.birth(t, now)
	r.Item = uint32(i) + 1
	r.ID = job.TaskRunID(g.root.ID, t.Task.Name, r.Item)
	if m.list == nil && m.broken == nil { // the task's row was there, and was not made here
		if m.list, m.broken = g.list(t); m.broken == nil && len(m.list) != m.all {
			m.broken = fmt.Errorf("for_each: the list has %d items now, and had %d", len(m.list), m.all)
		}
		if m.broken != nil {
			m.list = nil
		}
	}
	old := g.oldItem(t, m.all, i)
	switch {
	case m.broken != nil:
		g.bornFailed(r, job.ExpressionFailed, job.CleanText(m.broken.Error(), maxErrorBytes), now)
	case old != nil:
		g.bornReused(r, old, now)
	case g.late(now):
		g.bornFailed(r, job.DeadlineExceeded, lateText, now)
	}
	if m.list != nil {
		r.Payload, m.list[i] = m.list[i], nil
	}
	g.births = append(g.births, r)
	g.takeItem(n, r)
}

// oldItem is the item of the retried root whose success this one takes over, or nil.
func (g *Progress) oldItem(t *Task, all, i int) *job.Run {
	o := g.old[int32(t.Index)]
	if o == nil || o.row == nil || int(g.nodes[t.Index].again) < len(t.Up) || int(o.row.Items) != all || i >= len(o.items) {
		return nil
	}
	if r := o.items[i]; r != nil && r.State == job.Succeeded {
		return r
	}
	return nil
}

// list evaluates for_each. The error says so.
func (g *Progress) list(t *Task) ([]json.RawMessage, error) {
	v, err := t.forEach.eval(g.scene())
	if err != nil {
		return nil, fmt.Errorf("for_each: %w", err)
	}
	l, ok := v.(traits.Lister)
	if !ok {
		return nil, fmt.Errorf("for_each: the expression is a %s; make it a list", v.Type().TypeName())
	}
	if n, _ := l.Size().(types.Int); n > job.MaxItems {
		return nil, fmt.Errorf("for_each: the list has %d items; the limit is %d", n, job.MaxItems)
	}
	list, size := []json.RawMessage{}, 0
	for it := l.Iterator(); it.HasNext() == types.True; {
		raw, err := encode(it.Next(), job.MaxPayloadBytes)
		if err == nil {
			raw, err = job.ValidatePayload("", raw, 0)
		}
		if err != nil {
			return nil, fmt.Errorf("for_each: item %d: %w", len(list)+1, err)
		}
		if size += len(raw); size > MaxListBytes {
			return nil, fmt.Errorf("for_each: the items together have more than %d bytes; keep large data elsewhere and pass references", MaxListBytes)
		}
		list = append(list, raw)
	}
	return list, nil
}
