package checker

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/musterhq/muster/job"
)

// graph is one root run of a job with tasks, and its task runs.
type graph struct {
	*judge
	root  *Run
	doc   *job.Document
	rows  map[string]*Run
	items map[string]map[uint32]*Run // by task and item
	old   *graph                     // whose successes it takes over (T8); nil: nobody's
}

// graphs judges T1 to T9.
func (j *judge) graphs() {
	all := map[job.RunID]*graph{}
	for id, r := range j.runs {
		if r.Run.Task != "" {
			continue
		}
		if d := j.specOf(&r.Run); d != nil && d.Tasks != nil {
			all[id] = j.graph(r, d)
		}
	}
	j.report.Graphs = len(all)
	for _, id := range slices.SortedFunc(maps.Keys(all), compareIDs) {
		g := all[id]
		g.old = all[g.root.Run.ReusedFrom]
		for i := range g.doc.Tasks {
			g.task(&g.doc.Tasks[i])
		}
		g.end()
		g.reuse()
	}
}

func compareIDs(a, b job.RunID) int { return slices.Compare(a[:], b[:]) }

// aboveOf is the run that a run grew from: of a task run its root, of a child the task run that made it.
func aboveOf(r *job.Run) job.RunID {
	if r.Task != "" {
		return r.RootID
	}
	return r.ParentID
}

// graph gathers the task runs of a root.
func (j *judge) graph(root *Run, d *job.Document) *graph {
	g := &graph{judge: j, root: root, doc: d, rows: map[string]*Run{}, items: map[string]map[uint32]*Run{}}
	for _, id := range j.below[root.Run.ID] {
		r := j.runs[id]
		if r.Run.Item == 0 {
			j.report.Tasks++
		} else {
			j.report.Items++
		}
		if r.Run.State == job.Skipped {
			j.report.Skipped++
		}
		if !r.Run.ReusedFrom.IsZero() {
			j.report.Reused++
		}
		t := j.taskOf(&r.Run)
		if t == nil {
			j.broken(WrongItems, id, "it is of the task %q, which the job of %s does not have", r.Run.Task, root.Run.ID)
			continue
		}
		var other *Run
		if r.Run.Item == 0 {
			other, g.rows[t.Name] = g.rows[t.Name], r
		} else {
			if g.items[t.Name] == nil {
				g.items[t.Name] = map[uint32]*Run{}
			}
			other, g.items[t.Name][r.Run.Item] = g.items[t.Name][r.Run.Item], r
		}
		if other != nil {
			j.broken(TaskTwice, g.name(t), "item %d has the runs %s and %s", r.Run.Item, other.Run.ID, id)
		}
	}
	return g
}

func (g *graph) name(t *job.Task) string { return fmt.Sprintf("%s of %s", t.Name, g.root.Run.ID) }

// opened tells whether anything was decided of its tasks: a root may end before that.
func (g *graph) opened() bool { return g.root.Run.Attempt > 0 || len(g.rows) > 0 }

// workers are the runs of a task that workers carry out, or run_job: its own one or those of its items.
func (g *graph) workers(t *job.Task) []*Run {
	row := g.rows[t.Name]
	switch {
	case row == nil:
		return nil
	case t.ForEach == "":
		return []*Run{row}
	}
	return slices.Collect(maps.Values(g.items[t.Name]))
}

// task judges one task of a graph.
func (g *graph) task(t *job.Task) {
	row := g.rows[t.Name]
	if row == nil {
		if g.opened() && g.root.Run.State.Terminal() && g.root.Run.State != job.Cancelled {
			g.broken(TaskMissing, g.name(t), "the root is %s and it has no run", g.root.Run.State)
		}
		if len(g.items[t.Name]) > 0 {
			g.broken(WrongItems, g.name(t), "it has no run, and %d items have", len(g.items[t.Name]))
		}
		return
	}
	if row.Run.State == job.Skipped || !row.Run.ReusedFrom.IsZero() || t.ForEach != "" || t.RunJob != nil {
		for _, w := range g.work[row.Run.ID] {
			g.broken(SkippedStarted, w.Run, "%s is %s and not a worker's to do, and attempt %d of it noted %q", g.name(t), row.Run.State, w.Attempt, w.Event)
			break
		}
	}
	g.early(t, row)
	g.decision(t, row)
	g.list(t, row)
	if t.RunJob != nil {
		for _, r := range g.workers(t) {
			g.child(t, r)
		}
	}
}

// early judges T1: what comes after a task neither is born nor starts before that has ended, by its row and by its work.
func (g *graph) early(t *job.Task, row *Run) {
	var first *Work
	for _, r := range g.workers(t) {
		for i := range g.work[r.Run.ID] {
			if w := &g.work[r.Run.ID][i]; w.Event == Start && (first == nil || w.At < first.At) {
				first = w
			}
		}
	}
	for _, name := range t.DependsOn {
		up := g.rows[name]
		switch {
		case up == nil:
			g.broken(TaskEarly, g.name(t), "it is %s, and %s before it has no run", row.Run.State, name)
			continue
		case !up.Run.State.Terminal():
			g.broken(TaskEarly, g.name(t), "it is %s, and %s before it is %s", row.Run.State, name, up.Run.State)
		case row.Run.CreatedAt < up.Run.FinishedAt.Add(-g.skew()):
			g.broken(TaskEarly, g.name(t), "it was born at %s, %s before it ended at %s", row.Run.CreatedAt, name, up.Run.FinishedAt)
		case first != nil && first.Wall != 0 && job.At(time.Unix(0, first.Wall)) < up.Run.FinishedAt.Add(-g.skew()):
			g.broken(TaskEarly, g.name(t), "it started at %s, %s before it ended at %s", job.At(time.Unix(0, first.Wall)), name, up.Run.FinishedAt)
		}
		i := slices.IndexFunc(g.doc.Tasks, func(u job.Task) bool { return u.Name == name })
		for _, r := range g.workers(&g.doc.Tasks[i]) {
			g.earlyWork(t, first, r)
		}
	}
}

// earlyWork judges a first start by what the work of a run before it wrote down.
func (g *graph) earlyWork(t *job.Task, first *Work, up *Run) {
	ws := g.work[up.Run.ID]
	for i := range ws {
		w := &ws[i]
		if first == nil || w.Event != Start {
			continue
		}
		if end, known := g.endOf(w, ws); w.At > first.At || known && end > first.At && !g.paused(w, first.At) {
			g.broken(TaskEarly, g.name(t), "it started %s before the work of %s had, by attempt %d of it", span(first.At, max(w.At, end)), up.Run.Task, w.Attempt)
			return
		}
	}
}

// decision judges T2, as far as a task was decided by it.
func (g *graph) decision(t *job.Task, row *Run) {
	var ups []job.State
	for _, name := range t.DependsOn {
		if up := g.rows[name]; up != nil && up.Run.State.Terminal() {
			ups = append(ups, up.Run.State)
		}
	}
	if len(ups) != len(t.DependsOn) {
		return // early has said so
	}
	runs, why := runIf(cmp.Or(t.RunIf, job.AllSucceeded), ups)
	switch r := &row.Run; {
	case !runs && (r.State != job.Skipped || r.Reason != why):
		g.broken(WrongDecision, g.name(t), "it is %s (%s) after %v; its run_if wants it skipped (%s)", r.State, r.Reason, ups, why)
	case runs && r.State == job.Skipped && (r.Reason != job.WhenFalse || t.When == ""):
		g.broken(WrongDecision, g.name(t), "it is %s (%s) after %v; its run_if wants it to run", r.State, r.Reason, ups)
	}
}

// runIf is T2: whether a task runs after others that ended so, and if not, why.
func runIf(policy job.RunIf, ups []job.State) (bool, job.Reason) {
	failed := slices.Contains(ups, job.Failed) || slices.Contains(ups, job.Cancelled)
	switch {
	case policy == job.AllSucceeded && !failed && slices.Contains(ups, job.Skipped):
		return false, job.UpstreamSkipped
	case (policy == job.AllSucceeded || policy == job.NoneFailed) && failed:
		return false, job.UpstreamFailed
	case policy == job.AnySucceeded && !slices.Contains(ups, job.Succeeded), policy == job.AnyFailed && !failed:
		return false, job.RunIfFalse
	}
	return true, job.NoReason
}

// list judges T4: that the items are all there and agree with the end of the task, and how many were at work at once.
func (g *graph) list(t *job.Task, row *Run) {
	items, n := g.items[t.Name], row.Run.Items
	if t.ForEach == "" && (n > 0 || len(items) > 0) {
		g.broken(WrongItems, g.name(t), "it has %d items and %d runs of items, and no for_each", n, len(items))
		return
	}
	if t.ForEach == "" {
		return
	}
	failed := false
	for i, r := range items {
		failed = failed || r.Run.State == job.Failed || r.Run.State == job.Cancelled
		switch {
		case i > n:
			g.broken(WrongItems, g.name(t), "there is an item %d of %d", i, n)
		case r.Run.State == job.Skipped:
			g.broken(WrongItems, g.name(t), "item %d is skipped", i)
		case row.Run.State.Terminal() && row.Run.ReusedFrom.IsZero() && r.Run.FinishedAt > row.Run.FinishedAt.Add(g.skew()):
			g.broken(WrongItems, g.name(t), "it ended at %s, and its item %d at %s", row.Run.FinishedAt, i, r.Run.FinishedAt)
		}
	}
	cut := g.root.Run.State == job.Cancelled || row.Run.State == job.Cancelled
	switch missing := int(n) - len(items); {
	case !cut && missing > 0 && row.Run.ReusedFrom.IsZero():
		g.broken(WrongItems, g.name(t), "it is %s, and %d of its %d items have no run", row.Run.State, missing, n)
	case !cut && n > 0 && (row.Run.State == job.Failed) != failed:
		g.broken(WrongItems, g.name(t), "it is %s; an item of it failed: %t", row.Run.State, failed)
	}
	g.parallel(t)
}

// parallel judges max_parallel, by what the work wrote down.
func (g *graph) parallel(t *job.Task) {
	type change struct {
		at Moment
		by int
	}
	var all []change
	for _, r := range g.workers(t) {
		ws := g.work[r.Run.ID]
		for i := range ws {
			w := &ws[i]
			if w.Event != Start {
				continue
			}
			// Of work that nobody can stop because its worker does not get to run only the start counts.
			if end, known := g.endOf(w, ws); known && !g.paused(w, end) {
				all = append(all, change{w.At, 1}, change{end, -1})
			}
		}
	}
	slices.SortFunc(all, func(a, b change) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.by, b.by)) })
	at, most := 0, 0
	for _, c := range all {
		at += c.by
		most = max(most, at)
	}
	if t.MaxParallel > 0 && most > t.MaxParallel {
		g.broken(TooParallel, g.name(t), "%d of its items were at work at once; max_parallel is %d", most, t.MaxParallel)
	}
}

// child judges T9 for one run of a task with run_job: each attempt of it made a run, and the last one's end is its own.
func (g *graph) child(t *job.Task, r *Run) {
	if !r.Run.ReusedFrom.IsZero() {
		return
	}
	for n := uint32(1); n <= r.Run.Attempt; n++ {
		id := job.ChildRunID(r.Run.ID, n)
		c, last := g.runs[id], n == r.Run.Attempt
		switch {
		case c == nil:
			if last && (r.Run.State == job.Succeeded || r.Run.Reason == job.ChildFailed) {
				g.broken(WrongChild, g.name(t), "it is %s (%s) by attempt %d, and there is no run %s", r.Run.State, r.Run.Reason, n, id)
			}
		case c.Run.Job != t.RunJob.Job:
			g.broken(WrongChild, g.name(t), "it runs %s, and %s is of %s", t.RunJob.Job, id, c.Run.Job)
		case c.Run.State == job.Succeeded && (!last || r.Run.State == job.Failed),
			c.Run.State != job.Succeeded && last && r.Run.State == job.Succeeded:
			g.broken(WrongChild, g.name(t), "it is %s (%s) after %d attempts, and the run %s of attempt %d is %s", r.Run.State, r.Run.Reason, r.Run.Attempt, id, n, c.Run.State)
		case r.Run.State.Terminal() && c.Run.FinishedAt > r.Run.FinishedAt.Add(g.skew()):
			g.broken(WrongChild, g.name(t), "it ended at %s, and the run %s of attempt %d at %s", r.Run.FinishedAt, id, n, c.Run.FinishedAt)
		}
	}
}

// end judges T5 to T7: the root's end against its tasks'.
func (g *graph) end() {
	root := &g.root.Run
	if !root.State.Terminal() || !g.opened() && root.State != job.Succeeded {
		return // submissions has said that it has not ended; or nothing of it ever began
	}
	bad := ""
	for i := range g.doc.Tasks {
		t := &g.doc.Tasks[i]
		row := g.rows[t.Name]
		if row == nil {
			continue
		}
		if s := row.Run.State; bad == "" && !t.AllowFailure && (s == job.Failed || s == job.Cancelled) {
			bad = fmt.Sprintf("%s %s (%s)", t.Name, s, row.Run.Reason)
		}
		if row.Run.FinishedAt > root.FinishedAt.Add(g.skew()) {
			g.broken(RootEarly, root.ID, "it ended at %s, and its task %s at %s", root.FinishedAt, t.Name, row.Run.FinishedAt)
		}
	}
	fits := false
	switch root.State {
	case job.Succeeded:
		fits = bad == ""
	case job.Cancelled:
		fits = root.CancelAt != 0
	case job.Failed:
		switch root.Reason {
		case job.TaskFailed:
			fits = bad != ""
		case job.DeadlineExceeded:
			fits = bad != "" && root.DeadlineAt != 0
		case job.ExpressionFailed, job.InvalidResult:
			fits = bad == "" && g.doc.Result != ""
		}
	}
	if !fits {
		g.broken(RootDisagrees, root.ID, "it is %s (%s); the first of its tasks that makes it fail: %q", root.State, root.Reason, bad)
	}
}

// reuse judges T8: what succeeded in the retried run, and comes after nothing that runs again, is taken over; nothing else is.
func (g *graph) reuse() {
	same := map[string]bool{} // tasks that end as they did
	done := map[string]bool{}
	var see func(t *job.Task)
	see = func(t *job.Task) {
		if done[t.Name] {
			return
		}
		done[t.Name] = true
		after := g.old != nil
		for _, name := range t.DependsOn {
			i := slices.IndexFunc(g.doc.Tasks, func(u job.Task) bool { return u.Name == name })
			see(&g.doc.Tasks[i])
			after = after && same[name]
		}
		var was *Run
		if after {
			was = g.old.rows[t.Name]
		}
		same[t.Name] = g.taken(t, g.rows[t.Name], was)
		list := g.rows[t.Name]
		for i, r := range g.items[t.Name] {
			was = nil
			if after && list != nil && g.old.rows[t.Name] != nil && list.Run.Items == g.old.rows[t.Name].Run.Items {
				was = g.old.items[t.Name][i]
			}
			g.taken(t, r, was)
		}
	}
	for i := range g.doc.Tasks {
		see(&g.doc.Tasks[i])
	}
}

// taken judges one run against the one of the retried root that it had to take over if that succeeded, and tells whether
// it did.
func (g *graph) taken(t *job.Task, r, was *Run) bool {
	var want job.RunID // of the run that did the work
	if was != nil && was.Run.State == job.Succeeded {
		if want = was.Run.ReusedFrom; want.IsZero() {
			want = was.Run.ID
		}
	}
	switch {
	case r == nil:
		return false
	case r.Run.ReusedFrom != want:
		g.broken(WrongReuse, g.name(t), "item %d takes over %s; it should %s (zero: nothing)", r.Run.Item, r.Run.ReusedFrom, want)
	case !want.IsZero() && r.Run.State != job.Succeeded:
		g.broken(WrongReuse, g.name(t), "item %d takes over %s and is %s", r.Run.Item, want, r.Run.State)
	}
	return !want.IsZero()
}
