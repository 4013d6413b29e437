package dag

import (
	"encoding/json"
	"slices"

	"github.com/musterhq/muster/job"
)

// Progress is one root run's state of play: which of its tasks have a row, which have ended, and what follows. It can be
// made anew from the rows at any time. It is not safe for concurrent use.
//
// A decision rests on final rows only (T1), so it is made once and kept: that it could not be stored is a reason to answer
// it again, never to make another.
type Progress struct {
	plan *Plan
	root *job.Run // without payload, unless that is asked for
	base job.Run  // what all births have in common
	run  *runVal

	nodes []node
	open  int // tasks that have not ended
	rows  int // rows of tasks that are there and have not ended
	ready []int32
	lists []int32 // tasks with for_each whose items are to be looked at
	old   map[int32]*oldTask

	births    []*job.Run // decided, to be answered
	sent      []*job.Run // answered; most of them not noted yet
	unnoted   int        // how many of them are not
	moves     []listEnd  // likewise
	sentMoves []listEnd
	end       *job.Move
	endSent   bool
	cancelled bool
	over      bool // the root has ended

	seen map[int32]*outcomeVal // within one Next
}

// node is one task. There are as many as tasks of open roots, so it is small.
type node struct {
	state   job.State // 0: there is no row, and none is decided
	reason  job.Reason
	noted   bool // the store has the row
	settled bool // and it has ended there
	reused  bool // its success is another run's (T8)
	late    bool // an item of it came after the deadline
	inReady bool
	inLists bool
	spent   bool   // nothing is to be evaluated for it any more
	pending uint16 // upstreams that have not ended
	good    uint16 // upstreams that succeeded
	again   uint16 // of those, whose success is another run's
	failed  uint16 // upstreams that failed or were cancelled
	skipped uint16
	wants   uint16 // what is to be evaluated and asks for its result or error
	more    *more
}

// more is what few tasks have.
type more struct {
	result json.RawMessage // while somebody wants it, and so the error
	err    string
	items  *items
}

// oldTask is a task in the retried root (T8).
type oldTask struct {
	row   *job.Run
	items []*job.Run // by item - 1
}

// listEnd is the end of a task with for_each.
type listEnd struct {
	task int
	move job.Move
}

// NewProgress begins with a root as it was opened, none of its task runs known. Whoever makes it for a root that was open
// before notes all rows that there are before the first Next.
func NewProgress(p *Plan, root *job.Run) *Progress {
	g := &Progress{plan: p, nodes: make([]node, len(p.Tasks)), open: len(p.Tasks)}
	r := *root
	g.run = &runVal{root: &r}
	if p.payOf {
		g.run = p.runOf(&r)
	}
	r.Payload, r.Spec, r.Result = nil, nil, nil
	g.root, g.cancelled, g.over = &r, r.CancelAt != 0, r.State.Terminal()
	g.base = job.Run{
		RootID: r.ID, Namespace: r.Namespace, JobID: r.JobID, Job: r.Job, JobVersion: r.JobVersion, Trigger: job.ByParent,
		ScheduledAt: r.ScheduledAt, DeadlineAt: r.DeadlineAt, Labels: r.Labels, Home: r.Home, Depth: r.Depth,
	}
	for i, t := range p.Tasks {
		g.nodes[i].pending, g.nodes[i].wants = uint16(len(t.Up)), p.wants[i]
		g.enqueue(i)
	}
	return g
}

// Reuse takes over what succeeded in the retried root (T8): it is given that root's task runs and items, before the first
// Next.
func (g *Progress) Reuse(old []*job.Run) {
	g.old = make(map[int32]*oldTask, len(g.nodes))
	for _, r := range old {
		t := g.plan.byName[r.Task]
		if t == nil || r.Item > job.MaxItems || t.forEach == nil && g.nodes[t.Index].state != 0 {
			continue
		}
		o := g.old[int32(t.Index)]
		if o == nil {
			o = new(oldTask)
			g.old[int32(t.Index)] = o
		}
		if r.Item == 0 {
			o.row = r
			continue
		}
		for len(o.items) < int(r.Item) {
			o.items = append(o.items, nil)
		}
		o.items[r.Item-1] = r
	}
}

// Note takes in a task run, an item's run or the root as the store has it, in any order and any number of times.
func (g *Progress) Note(r *job.Run) {
	if r.ID == g.root.ID {
		g.over = g.over || r.State.Terminal()
		if r.CancelAt != 0 {
			g.Cancel()
		}
		return
	}
	t := g.plan.byName[r.Task]
	switch {
	case t == nil || r.Item > job.MaxItems:
		return
	case r.Item > 0:
		g.noteItem(t, r)
		return
	}
	n := &g.nodes[t.Index]
	if !n.noted {
		n.noted = true
		g.stored(n.state != 0)
	}
	n.settled = n.settled || r.State.Terminal()
	switch {
	case n.state.Terminal():
	case r.State.Terminal():
		g.finish(t, r)
	case n.state == 0:
		n.state = r.State
		g.rows++
	}
	if t.forEach != nil {
		g.noteList(t, r)
	} else {
		g.spend(t)
		delete(g.old, int32(t.Index))
	}
}

// stored counts a row that is noted for the first time, if it was answered: it need not be answered again.
func (g *Progress) stored(decided bool) {
	if decided && g.unnoted > 0 {
		if g.unnoted--; g.unnoted == 0 {
			g.sent = nil
		}
	}
}

// finish takes in that a task has ended, and what that is to those after it. r is its row.
func (g *Progress) finish(t *Task, r *job.Run) {
	n := &g.nodes[t.Index]
	if n.state != 0 {
		g.rows--
	}
	n.state, n.reason = r.State, r.Reason
	n.reused = r.State == job.Succeeded && !r.ReusedFrom.IsZero()
	g.open--
	if n.wants > 0 && (len(r.Result) > 0 || r.Error != "") {
		m := n.rest()
		m.result, m.err = r.Result, r.Error
	}
	for _, i := range t.Down {
		d := &g.nodes[i]
		d.pending--
		switch r.State {
		case job.Succeeded:
			d.good++
			if n.reused {
				d.again++
			}
		case job.Skipped:
			d.skipped++
		default:
			d.failed++
		}
		g.enqueue(i)
	}
}

func (n *node) rest() *more {
	if n.more == nil {
		n.more = new(more)
	}
	return n.more
}

// spend takes in that nothing is to be evaluated for a task any more: a result that nobody else wants is let go.
func (g *Progress) spend(t *Task) {
	n := &g.nodes[t.Index]
	if n.spent {
		return
	}
	n.spent = true
	for _, i := range t.asks {
		u := &g.nodes[i]
		if u.wants--; u.wants > 0 || u.more == nil {
			continue
		}
		if u.more.result, u.more.err = nil, ""; u.more.items != nil {
			u.more.items.results = nil
		}
	}
}

func (g *Progress) enqueue(i int) {
	if n := &g.nodes[i]; n.state == 0 && n.pending == 0 && !n.inReady {
		n.inReady = true
		g.ready = append(g.ready, int32(i))
	}
}

// Again has Next answer once more what it answered and what was not noted since, because it was not stored. Where that is
// unknown, the caller reads the rows and notes those that are there first.
func (g *Progress) Again() {
	g.births = append(g.outstanding(), g.births...)
	g.sent, g.unnoted = nil, 0
	var moves []listEnd
	for _, m := range g.sentMoves {
		if !g.nodes[m.task].settled {
			moves = append(moves, m)
		}
	}
	g.moves, g.sentMoves = append(moves, g.moves...), nil
	g.endSent = false
	if g.cancelled {
		g.withdraw()
	}
}

// outstanding are the births that were answered and not noted.
func (g *Progress) outstanding() []*job.Run {
	var rows []*job.Run
	for _, r := range g.sent {
		if !g.isNoted(r) {
			rows = append(rows, r)
		}
	}
	return rows
}

func (g *Progress) isNoted(r *job.Run) bool {
	n := &g.nodes[g.plan.byName[r.Task].Index]
	if r.Item > 0 {
		return n.more.items.has[r.Item-1].noted
	}
	return n.noted
}

// Cancel says that the root has a cancel intent (T6): nothing more is born, and when what is live has ended, so does the
// root.
func (g *Progress) Cancel() {
	if g.cancelled {
		return
	}
	g.cancelled, g.end, g.endSent = true, nil, false
	g.withdraw()
	for i := range g.nodes {
		if m := g.nodes[i].more; m != nil && m.items != nil {
			g.look(i)
		}
	}
}

// withdraw takes back births that were decided, and are not stored and not about to be.
func (g *Progress) withdraw() {
	for _, r := range g.births {
		n := &g.nodes[g.plan.byName[r.Task].Index]
		switch {
		case g.isNoted(r):
		case r.Item > 0:
			m := n.more.items
			m.withdraw(&m.has[r.Item-1])
			if i := g.plan.byName[r.Task].Index; m.ending { // it ends without that item now
				m.ending = false
				g.moves = slices.DeleteFunc(g.moves, func(x listEnd) bool { return x.task == i })
				g.look(i)
			}
		case !n.state.Terminal():
			n.state = 0
			g.rows--
		}
	}
	g.births = nil
}

// Cancelled tells whether the root has a cancel intent, as far as was said.
func (g *Progress) Cancelled() bool { return g.cancelled }

// Live lists the task runs and items that were noted or answered and have not ended.
func (g *Progress) Live() []job.RunID {
	var live []job.RunID
	for i := range g.nodes {
		if n := &g.nodes[i]; n.state != 0 && !n.state.Terminal() {
			name := g.plan.Tasks[i].Task.Name
			live = append(live, job.TaskRunID(g.root.ID, name, 0))
			live = append(live, g.LiveItems(name)...)
		}
	}
	return live
}

// LiveItems is Live for the items of one task: what there is to cancel when that task's run has a cancel intent.
func (g *Progress) LiveItems(task string) []job.RunID {
	t := g.plan.byName[task]
	if t == nil || g.nodes[t.Index].more == nil || g.nodes[t.Index].more.items == nil {
		return nil
	}
	var live []job.RunID
	for i, x := range g.nodes[t.Index].more.items.has {
		if x.state != 0 && !x.state.Terminal() {
			live = append(live, job.TaskRunID(g.root.ID, task, uint32(i)+1))
		}
	}
	return live
}
