package dag

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/musterhq/muster/job"
)

// Step is what follows, to be done in this order. Each part may be repeated.
type Step struct {
	// Births are complete rows. They count as stored once they are noted as the store has them.
	Births []*job.Run
	// Moves end the runs of tasks with for_each.
	Moves []job.Move
	// End ends the root. Its fence is left for the caller to fill in; all else is there.
	End *job.Move
}

// Empty tells that nothing follows by now.
func (s *Step) Empty() bool { return len(s.Births) == 0 && len(s.Moves) == 0 && s.End == nil }

// Next answers what follows from what was noted, once: what it has answered it answers again only after Again. It costs
// as much as what was noted since has tasks right after it, not as much as there are tasks.
func (g *Progress) Next(now job.Instant) Step {
	if g.over {
		return Step{}
	}
	for len(g.ready)+len(g.lists) > 0 {
		if len(g.ready) > 0 {
			i := g.ready[0]
			g.ready = g.ready[1:]
			g.nodes[i].inReady = false
			if g.nodes[i].state == 0 && !g.cancelled {
				g.decide(g.plan.Tasks[i], now)
			}
			continue
		}
		i := g.lists[0]
		g.lists = g.lists[1:]
		g.nodes[i].inLists = false
		g.tend(g.plan.Tasks[i], now)
	}
	g.ready, g.lists = nil, nil
	if g.end == nil && (g.cancelled && g.rows == 0 || !g.cancelled && g.open == 0) {
		g.end = g.ending(now)
	}
	g.seen, g.run.parsed, g.run.done = nil, nil, false // decoded values are larger than what they are decoded from
	return g.answer()
}

// answer hands out what is decided, and keeps in mind what was not stored yet.
func (g *Progress) answer() Step {
	var s Step
	for _, r := range g.births {
		if !g.isNoted(r) { // else it was there already
			s.Births = append(s.Births, r)
		}
	}
	g.births = nil
	if len(g.sent) > 2*g.unnoted+64 {
		g.sent = g.outstanding()
	}
	g.sent = append(g.sent, s.Births...)
	g.unnoted += len(s.Births)
	for _, m := range g.moves {
		if !g.nodes[m.task].settled {
			s.Moves = append(s.Moves, m.move)
			g.sentMoves = append(g.sentMoves, m)
		}
	}
	g.moves = nil
	if g.end != nil && !g.endSent {
		end := *g.end
		s.End, g.endSent = &end, true
	}
	return s
}

// decide makes a task's row, now that all its upstreams have ended (T1).
func (g *Progress) decide(t *Task, now job.Instant) {
	n := &g.nodes[t.Index]
	r := g.birth(t, now)
	r.ID = job.TaskRunID(g.root.ID, t.Task.Name, 0)
	if t.forEach != nil { // the run that waits for its items goes to no worker
		r.Lane = string(job.LaneOf(r.Namespace, &job.Document{}))
	}
	old := g.old[int32(t.Index)]
	if old != nil && int(n.again) < len(t.Up) {
		delete(g.old, int32(t.Index))
		old = nil
	}
	why, list, err := g.judge(t, r, old)
	switch {
	case r.State.Terminal(): // reused, or an empty list
		r.FinishedAt, r.QueuedAt = now, 0
	case err != nil:
		g.bornFailed(r, job.ExpressionFailed, job.CleanText(err.Error(), maxErrorBytes), now)
	case why != job.NoReason:
		r.State, r.Reason, r.FinishedAt, r.QueuedAt = job.Skipped, why, now, 0
	case g.late(now) && r.ReusedFrom.IsZero():
		g.bornFailed(r, job.DeadlineExceeded, lateText, now)
		list = nil
	case t.forEach != nil:
		r.State, r.StartedAt, r.Items = job.Running, now, uint32(len(list))
	}
	g.births = append(g.births, r)
	g.spend(t)
	if r.State.Terminal() {
		g.finish(t, r)
		delete(g.old, int32(t.Index))
		return
	}
	n.state = r.State
	g.rows++
	if t.forEach == nil {
		delete(g.old, int32(t.Index))
		return
	}
	m := g.itemsOf(n)
	m.all, m.list = len(list), list
	m.grow(m.all)
	g.look(t.Index)
}

// judge says why a task is skipped, or why that cannot be said; or which items it has. It makes the row one that has
// succeeded if there is nothing to run.
func (g *Progress) judge(t *Task, r *job.Run, old *oldTask) (job.Reason, []json.RawMessage, error) {
	if old != nil && t.forEach == nil && old.row != nil && old.row.State == job.Succeeded {
		g.bornReused(r, old.row, r.CreatedAt)
		return 0, nil, nil
	}
	if why := t.runIf(&g.nodes[t.Index]); why != job.NoReason {
		return why, nil, nil
	}
	if t.when != nil {
		switch yes, err := t.when.truth(g.scene()); {
		case err != nil:
			return 0, nil, fmt.Errorf("when: %w", err)
		case !yes:
			return job.WhenFalse, nil, nil
		}
	}
	if t.forEach == nil {
		return 0, nil, nil
	}
	list, err := g.list(t)
	if err != nil {
		return 0, nil, err
	}
	if old != nil && old.row != nil && old.row.State == job.Succeeded && int(old.row.Items) == len(list) && old.whole(len(list)) {
		r.ReusedFrom = ranAs(old.row)
	}
	if len(list) == 0 {
		r.State, r.Result = job.Succeeded, []byte("[]")
	}
	return 0, list, nil
}

// whole tells whether so many items succeeded.
func (o *oldTask) whole(n int) bool {
	if len(o.items) < n {
		return false
	}
	for _, r := range o.items[:n] {
		if r == nil || r.State != job.Succeeded {
			return false
		}
	}
	return true
}

// runIf says why a task is skipped for what became of its upstreams (T2).
func (t *Task) runIf(n *node) job.Reason {
	switch t.Task.RunIf {
	case job.AllDone:
	case job.AnySucceeded:
		if n.good == 0 {
			return job.RunIfFalse
		}
	case job.AnyFailed:
		if n.failed == 0 {
			return job.RunIfFalse
		}
	case job.NoneFailed:
		if n.failed > 0 {
			return job.UpstreamFailed
		}
	default:
		switch {
		case n.failed > 0:
			return job.UpstreamFailed
		case n.skipped > 0:
			return job.UpstreamSkipped
		}
	}
	return job.NoReason
}

const (
	lateText      = "the run's deadline had passed when this could start; raise the deadline, or look for what took so long before it"
	maxErrorBytes = 4 << 10
	mostNamed     = 5 // tasks in the error of a root
)

// late tells whether what would start now comes after the root's deadline (T7).
func (g *Progress) late(now job.Instant) bool {
	return g.root.DeadlineAt != 0 && now >= g.root.DeadlineAt
}

// birth is a row of a task that waits for a worker, without its id.
func (g *Progress) birth(t *Task, now job.Instant) *job.Run {
	r := g.base
	r.Task, r.State, r.CreatedAt, r.QueuedAt, r.Priority, r.Lane = t.Task.Name, job.Queued, now, now, g.root.Priority, t.lane
	if t.Task.Priority != nil {
		r.Priority = uint8(*t.Task.Priority)
	}
	if r.Namespace != g.plan.Doc.Namespace { // an inline document has none
		r.Lane = string(job.LaneOf(r.Namespace, t.Spec))
	}
	return &r
}

func (g *Progress) bornFailed(r *job.Run, why job.Reason, text string, now job.Instant) {
	r.State, r.Reason, r.Error, r.FinishedAt, r.QueuedAt = job.Failed, why, text, now, 0
}

// bornReused has a row take over another's success (T8).
func (g *Progress) bornReused(r, old *job.Run, now job.Instant) {
	r.State, r.Result, r.ReusedFrom, r.FinishedAt, r.QueuedAt = job.Succeeded, old.Result, ranAs(old), now, 0
}

// ranAs is the id of the row that ran.
func ranAs(r *job.Run) job.RunID {
	if !r.ReusedFrom.IsZero() {
		return r.ReusedFrom
	}
	return r.ID
}

// ending is the end of the root (T5, T6).
func (g *Progress) ending(now job.Instant) *job.Move {
	m := &job.Move{
		ID: g.root.ID, State: job.Succeeded, Attempt: g.root.Attempt, Losses: g.root.Losses, Failures: g.root.Failures,
		Worker: g.root.Worker, StartedAt: g.root.StartedAt, FinishedAt: now,
	}
	if g.cancelled {
		m.State, m.Reason = job.Cancelled, g.root.CancelReason
		if m.Reason == job.NoReason {
			m.Reason = job.CancelRequested
		}
		return m
	}
	if late, bad, text := g.verdict(); bad > 0 {
		m.State, m.Reason, m.Error = job.Failed, job.TaskFailed, text
		if late {
			m.Reason = job.DeadlineExceeded
		}
		return m
	}
	if g.plan.result == nil {
		return m
	}
	fail := func(why job.Reason, err error) *job.Move {
		m.State, m.Reason, m.Error = job.Failed, why, job.CleanText("result: "+err.Error(), maxErrorBytes)
		return m
	}
	v, err := g.plan.result.eval(g.scene())
	if err != nil {
		return fail(job.ExpressionFailed, err)
	}
	raw, err := encode(v, job.MaxPayloadBytes)
	if large := tooLarge(0); errors.As(err, &large) {
		return fail(job.InvalidResult, err)
	} else if err != nil {
		return fail(job.ExpressionFailed, err)
	}
	if m.Result, err = job.ValidatePayload("", raw, 0); err != nil {
		return fail(job.InvalidResult, err)
	}
	return m
}

// verdict counts the tasks because of which the root fails, and names the first of them.
func (g *Progress) verdict() (late bool, bad int, text string) {
	var names []string
	for i := range g.nodes {
		n, t := &g.nodes[i], g.plan.Tasks[i].Task
		if n.state != job.Failed && n.state != job.Cancelled || t.AllowFailure {
			continue
		}
		late = late || n.late || n.reason == job.DeadlineExceeded
		if bad++; bad <= mostNamed {
			names = append(names, t.Name+" ("+word(n.state, n.reason)+")")
		}
	}
	text = strings.Join(names, ", ")
	switch {
	case bad == 1:
		text = "the task " + text + " did not succeed"
	case bad > mostNamed:
		text = fmt.Sprintf("%d tasks did not succeed: %s and %d more", bad, text, bad-mostNamed)
	default:
		text = fmt.Sprintf("%d tasks did not succeed: %s", bad, text)
	}
	return late, bad, text
}

// word is why something ended so.
func word(s job.State, why job.Reason) string {
	if s == job.Cancelled || why == job.NoReason {
		return s.String()
	}
	return why.String()
}

// scene is what the root's expressions look at.
func (g *Progress) scene() *scene { return &scene{run: g.run, tasks: g.outcome} }

// outcome is how a task ended, for expressions. What several ask for is decoded once in a Next.
func (g *Progress) outcome(name string) *outcomeVal {
	t := g.plan.byName[name]
	if v := g.seen[int32(t.Index)]; v != nil {
		return v
	}
	n := &g.nodes[t.Index]
	if !n.state.Terminal() {
		return nil
	}
	o := &Outcome{State: n.state, Reason: n.reason}
	if m := n.more; m != nil {
		o.Result, o.Error = m.result, m.err
		if m.items != nil && m.items.all > 0 && n.wants > 0 {
			o.Items = append(make([]json.RawMessage, 0, m.items.all), m.items.results...)[:m.items.all]
		}
	}
	v := &outcomeVal{of: o}
	if n.wants > 1 {
		if g.seen == nil {
			g.seen = map[int32]*outcomeVal{}
		}
		g.seen[int32(t.Index)] = v
	}
	return v
}
