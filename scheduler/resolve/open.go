package resolve

import (
	"cmp"
	"context"
	"slices"

	"github.com/musterhq/muster/internal/failpoint"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/job/dag"
)

// open opens runs that the dispatcher took: roots with tasks, and run_job tasks.
// It answers those that are still to be opened after an error: of the others the keys are held, or free again.
func (r *Resolver) open(ctx context.Context, runs []*job.Run) (left []*job.Run, err error) {
	if len(runs) == 0 {
		return nil, nil
	}
	now := r.Now()
	moves := make([]job.Move, 0, len(runs))
	opening := runs[:0:0]
	for _, x := range runs {
		if r.roots[x.ID] != nil || r.parents[x.ID] != nil { // an entry that was doubled
			r.Fleet.Unhold(x.LaneKey())
			continue
		}
		if !x.IsRoot() && r.roots[x.RootID] == nil { // a new leader has not come to it yet
			r.Fleet.Unhold(x.LaneKey())
			r.Later(x.RootID, x.ID)
			continue
		}
		opening = append(opening, x)
		moves = append(moves, job.Move{ID: x.ID, State: job.Running, Fence: r.Fence(), Attempt: x.Attempt + 1, Losses: x.Losses,
			Failures: x.Failures, StartedAt: now, IfState: x.IfOpened()})
	}
	moved, err := r.move(ctx, moves)
	if err != nil {
		return opening, err
	}
	failpoint.Hit("resolve/opened")
	for i, m := range moved {
		x := opening[i]
		// After an outcome that was unknown it is open by this very move: nobody else opens.
		if m.Run == nil || m.Run.State != job.Running {
			r.Fleet.Unhold(x.LaneKey())
			if m.Run == nil || !m.Run.State.Terminal() {
				r.Later(x.ID)
			}
			continue
		}
		row := *m.Run
		row.Payload, row.Spec, row.Labels = x.Payload, x.Spec, x.Labels // which the store may leave out
		if !x.IsRoot() {
			r.Fleet.Unhold(x.LaneKey()) // it has no key: its root has
			r.childless = append(r.childless, &row)
			continue
		}
		found, err := r.read(ctx, &row, false)
		if r.fatal(ctx, err) {
			return opening[i:], err
		}
		if err != nil {
			r.Fleet.Unhold(x.LaneKey())
			r.setAside(x.ID, err)
			continue
		}
		r.begin(&row, found)
	}
	return nil, nil
}

// fatal tells whether an error is of more than one run: then everything is tried again, or the term is over.
func (r *Resolver) fatal(ctx context.Context, err error) bool {
	switch job.CodeOf(err) {
	case job.Invalid, job.Internal, job.NotFound:
		return ctx.Err() != nil
	}
	return err != nil
}

// setAside leaves a running root that cannot be read for later, so that others go on.
func (r *Resolver) setAside(id job.RunID, err error) {
	r.Logger.Error("a run with tasks cannot be read; it is tried again", "run_id", id, "err", err)
	r.Later(id)
}

// found is what there was to read about a root.
type found struct {
	plan *dag.Plan
	rows []*job.Run             // of its tasks, and their items
	kids map[job.RunID]*job.Run // by id, those that are there
	old  []*job.Run             // of the run that it retries
	err  error
}

// read reads what is needed to go on with an open root. One that was opened just now has no task runs.
func (r *Resolver) read(ctx context.Context, row *job.Run, open bool) (found, error) {
	var f found
	err := r.persist(ctx, func() (err error) { f.plan, err = r.Specs.Plan(ctx, row); return err })
	if err != nil {
		switch job.CodeOf(err) {
		case job.NotFound, job.Internal, job.Invalid:
			f.err = err
			return f, nil
		}
		return f, err
	}
	if !row.ReusedFrom.IsZero() {
		if f.old, err = r.tasksOf(ctx, row.Namespace, row.ReusedFrom); err != nil {
			return f, err
		}
	}
	if !open {
		return f, nil
	}
	if f.rows, err = r.tasksOf(ctx, row.Namespace, row.ID); err != nil {
		return f, err
	}
	var ids []job.RunID
	for _, x := range f.rows {
		if r.runsJob(f.plan, x) {
			ids = append(ids, job.ChildRunID(x.ID, x.Attempt))
		}
	}
	f.kids, err = r.load(ctx, ids)
	return f, err
}

func (r *Resolver) runsJob(p *dag.Plan, x *job.Run) bool {
	t := p.Task(x.Task)
	return t != nil && t.Task.RunJob != nil && x.State == job.Running && x.Items == 0
}

func (r *Resolver) tasksOf(ctx context.Context, namespace string, root job.RunID) (rows []*job.Run, err error) {
	q := job.RunQuery{Namespace: namespace, RootID: root, Limit: 1000}
	for {
		var page job.RunPage
		if err := r.persist(ctx, func() (err error) { page, err = r.Store.Runs(ctx, q); return err }); err != nil {
			return nil, err
		}
		rows = append(rows, page.Runs...)
		if page.Next.IsZero() {
			return rows, nil
		}
		q.Before = page.Next
	}
}

func (r *Resolver) load(ctx context.Context, ids []job.RunID) (map[job.RunID]*job.Run, error) {
	byID := make(map[job.RunID]*job.Run, len(ids))
	for len(ids) > 0 {
		n := min(len(ids), 1000)
		var rows []*job.Run
		if err := r.persist(ctx, func() (err error) { rows, err = r.Store.Load(ctx, ids[:n]); return err }); err != nil {
			return nil, err
		}
		for _, x := range rows {
			if x != nil {
				byID[x.ID] = x
			}
		}
		ids = ids[n:]
	}
	return byID, nil
}

// begin goes on with an open root from what was read.
func (r *Resolver) begin(row *job.Run, f found) {
	if f.err != nil {
		r.Logger.Error("a run with tasks cannot go on: its document cannot be carried out", "run_id", row.ID, "err", f.err)
		f.plan = &dag.Plan{Doc: &job.Document{}}
		o := &root{row: row, plan: f.plan, g: dag.NewProgress(f.plan, row), broken: true}
		r.enter(o)
		o.ends = []job.Move{{ID: row.ID, State: job.Failed, Reason: job.CannotStart, Fence: r.Fence(), Attempt: row.Attempt, StartedAt: row.StartedAt,
			FinishedAt: r.Now(), Error: job.AsError(f.err).Message}}
		r.touch(o)
		return
	}
	o := &root{row: row, plan: f.plan, g: dag.NewProgress(f.plan, row)}
	r.enter(o)
	if len(f.old) > 0 {
		o.g.Reuse(f.old)
	}
	for _, x := range f.rows {
		o.g.Note(x)
		if !r.runsJob(f.plan, x) {
			continue
		}
		id := job.ChildRunID(x.ID, x.Attempt)
		if f.kids[id] == nil {
			r.childless = append(r.childless, x)
			continue
		}
		c := r.know(id, x, o)
		if f.kids[id].State.Terminal() {
			r.childEnded(c, f.kids[id])
		}
	}
	r.touch(o)
	if row.CancelAt != 0 {
		r.cancels = append(r.cancels, o)
	}
}

// adopt takes over rows that are running: roots of an earlier term, and what has a cancel intent.
func (r *Resolver) adopt(ctx context.Context, rows []*job.Run) error {
	var roots, lost []job.RunID
	for _, x := range rows {
		switch o := r.roots[x.ID]; {
		case o != nil:
			if x.CancelAt != 0 && !o.g.Cancelled() {
				o.g.Cancel()
				r.again(o)
				r.touch(o)
				r.cancels = append(r.cancels, o)
			}
		case x.IsRoot():
			roots = append(roots, x.ID)
		case r.roots[x.RootID] == nil:
			r.Later(x.RootID)
		case r.parents[x.ID] == nil && r.runsJob(r.roots[x.RootID].plan, x): // its root was open here before the task was known
			lost = append(lost, x.ID)
		case x.CancelAt != 0:
			r.cancelTask(x)
		}
	}
	if err := r.find(ctx, lost); err != nil {
		return err
	}
	slices.SortFunc(roots, func(a, b job.RunID) int { return cmp.Compare(string(a[:]), string(b[:])) })
	roots = slices.Compact(roots)
	whole, err := r.load(ctx, roots) // what the reconciler reads lacks payload and spec
	if err != nil {
		return err
	}
	roots = slices.DeleteFunc(roots, func(id job.RunID) bool { return whole[id] == nil || whole[id].State != job.Running })
	for some := range slices.Chunk(roots, maxRead) {
		read := make([]found, len(some))
		errs := make([]error, len(some))
		r.Pace.Each(len(some), func(i int) { read[i], errs[i] = r.read(ctx, whole[some[i]], true) })
		for i, id := range some {
			if r.fatal(ctx, errs[i]) {
				return errs[i]
			}
			if errs[i] != nil {
				r.setAside(id, errs[i])
				continue
			}
			r.Fleet.Hold(whole[id].LaneKey())
			r.begin(whole[id], read[i])
		}
		if err := r.beginChildren(ctx); err != nil {
			return err
		}
	}
	return nil
}

// find reads run_job tasks that are running and whose child nobody knows. Births of children are repeated at will.
func (r *Resolver) find(ctx context.Context, ids []job.RunID) error {
	rows, err := r.load(ctx, ids)
	if err != nil {
		return err
	}
	for _, id := range ids {
		x := rows[id]
		if x == nil || r.roots[x.RootID] == nil || !r.runsJob(r.roots[x.RootID].plan, x) || slices.ContainsFunc(r.childless, func(o *job.Run) bool { return o.ID == id }) {
			continue
		}
		r.childless = append(r.childless, x)
	}
	return nil
}

// know notes the child of a run_job task that is running.
func (r *Resolver) know(id job.RunID, task *job.Run, o *root) *child {
	c := &child{id, task, o}
	if old := r.parents[task.ID]; old != nil {
		r.forget(old)
	}
	r.children[id], r.parents[task.ID] = c, c
	return c
}

// beginChildren gives birth to the runs of run_job tasks that are running and have none. Doing it again changes nothing.
func (r *Resolver) beginChildren(ctx context.Context) error {
	tasks := r.childless
	if len(tasks) == 0 {
		return nil
	}
	var prepared []Prepared
	err := r.persist(ctx, func() (err error) { prepared, err = r.prepare(ctx, tasks); return err })
	if err != nil {
		return err
	}
	var births []*job.Run
	var of []*child
	for i, x := range tasks {
		o := r.roots[x.RootID]
		if o == nil {
			continue
		}
		o.g.Note(x)
		c := r.know(job.ChildRunID(x.ID, x.Attempt), x, o)
		birth, err := r.birthOfChild(ctx, o, x, prepared[i])
		switch job.CodeOf(err) {
		case "":
			births, of = append(births, birth), append(of, c)
		case job.Fenced, job.Unavailable, job.Unknown:
			return err
		default:
			reason := job.CannotStart
			if job.AsError(err).Reason == "expression_failed" {
				reason = job.ExpressionFailed
			}
			r.endTask(c, &job.Outcome{Kind: job.AttemptFailed, Reason: reason, Error: Sentence(err), Permanent: true})
		}
	}
	var stored []*job.Run
	if len(births) > 0 {
		if stored, err = r.store(ctx, births); err != nil {
			return err
		}
	}
	r.childless = nil
	for i, x := range stored {
		switch {
		case x == nil || x.ParentID != births[i].ParentID:
			r.endTask(of[i], &job.Outcome{Kind: job.AttemptFailed, Reason: job.CannotStart, Permanent: true,
				Error: "the id of the run of this task belongs to another run"})
		case x.State.Terminal():
			r.childEnded(of[i], x)
		default:
			r.Born([]*job.Run{x})
			if of[i].task.CancelAt != 0 {
				r.cancelTask(of[i].task)
			}
		}
	}
	return nil
}

func (r *Resolver) birthOfChild(ctx context.Context, o *root, task *job.Run, p Prepared) (*job.Run, error) {
	if p.Err != nil {
		return nil, p.Err
	}
	name := o.plan.Task(task.Task).Task.RunJob.Job
	if task.Depth >= job.MaxRunDepth {
		return nil, job.Errorf(job.Invalid, "too_deep", "the job %s would run %d runs deep; jobs may run each other %d deep", name, task.Depth+1, job.MaxRunDepth)
	}
	var of *job.Job
	err := r.persist(ctx, func() (err error) { of, err = r.Store.Job(ctx, task.Namespace, name); return err })
	if job.CodeOf(err) == job.NotFound {
		return nil, job.Errorf(job.Invalid, "no_job", "there is no job %s in the namespace %s", name, task.Namespace)
	}
	if err != nil {
		return nil, err
	}
	now := r.Now()
	x, err := job.Birth(&job.Submission{ID: job.ChildRunID(task.ID, task.Attempt), Namespace: task.Namespace, Job: name, Payload: p.Payload}, of, now)
	if err != nil {
		return nil, err
	}
	if c := of.Spec.Concurrency; c != nil && r.heldAbove(o, x.LaneKey()) >= max(1, c.Limit) {
		return nil, job.Errorf(job.Invalid, "key_held_above", "a run of the job %s would wait for ever: the concurrency key %q is held by the runs that wait for it; give it another key", name, c.Key)
	}
	x.Trigger, x.ParentID, x.Depth, x.Home, x.Priority = job.ByParent, task.ID, task.Depth+1, task.Home, task.Priority
	x.Lane = string(x.LaneKey().LaneBelow())
	if task.DeadlineAt != 0 && (x.DeadlineAt == 0 || x.DeadlineAt > task.DeadlineAt) { // T7
		x.DeadlineAt = task.DeadlineAt
	}
	return x, nil
}

// heldAbove is how many of a root and those above it hold the concurrency key of a lane.
func (r *Resolver) heldAbove(o *root, lane job.LaneKey) (n int) {
	for range job.MaxRunDepth + 1 {
		above := o.row.LaneKey()
		if k := lane.ConcurrencyKey(); k != "" && above.ConcurrencyKey() == k && above.Namespace() == lane.Namespace() {
			n++
		}
		c := r.parents[o.row.ParentID]
		if c == nil {
			break
		}
		o = c.of
	}
	return n
}

// childEnded ends the attempt of a run_job task as its child ended (T9).
func (r *Resolver) childEnded(c *child, x *job.Run) {
	o := &job.Outcome{Kind: job.AttemptSucceeded, Result: x.Result, FinishedAt: x.FinishedAt}
	switch {
	case x.State == job.Succeeded:
	case x.State == job.Cancelled && c.task.CancelAt != 0:
		o.Kind = job.AttemptCancelled
	default:
		o.Kind, o.Reason = job.AttemptFailed, job.ChildFailed
		o.Error = "the run " + x.ID.String() + " of the job " + x.Job + " " + became(x)
		if x.Reason == job.DeadlineExceeded && c.task.DeadlineAt != 0 && r.Now() >= c.task.DeadlineAt { // the task's own (T7)
			o.Reason, o.Permanent = job.DeadlineExceeded, true
		}
	}
	r.endTask(c, o)
}

func became(x *job.Run) string {
	text := map[job.State]string{job.Failed: "failed", job.Cancelled: "was cancelled", job.Skipped: "was skipped"}[x.State]
	if x.Reason != job.NoReason {
		text += ": " + x.Reason.String()
	}
	if x.Error != "" {
		text += ": " + x.Error
	}
	return text
}

// endTask notes how the attempt of a run_job task ended; endTasks has it stored.
func (r *Resolver) endTask(c *child, o *job.Outcome) {
	if r.children[c.id] == c {
		delete(r.children, c.id) // it is known what became of it
		o.RunID, o.Attempt, o.StartedAt = c.task.ID, c.task.Attempt, c.task.StartedAt
		r.outcomes = append(r.outcomes, outcome{c, o})
	}
}

// outcome is how the attempt of a run_job task ended.
type outcome struct {
	of *child
	o  *job.Outcome
}

// endTasks moves run_job tasks whose attempts ended: retries are theirs.
func (r *Resolver) endTasks(ctx context.Context) error {
	if len(r.outcomes) == 0 {
		return nil
	}
	var moves []job.Move
	for _, x := range r.outcomes {
		x.o.Fence = r.Fence()
		spec := &job.Document{}
		if t := x.of.of.plan.Task(x.of.task.Task); t != nil {
			spec = t.Spec
		}
		moves = append(moves, job.AfterAttempt(x.of.task, job.AttemptPolicy{Retry: spec.Retry, OnWorkerLost: spec.OnWorkerLost}, x.o, r.Now(), r.Jitter()))
	}
	moved, err := r.move(ctx, moves)
	if err != nil {
		return err
	}
	left := r.outcomes[:0:0]
	for i, x := range r.outcomes {
		if moved[i].Run == nil { // in somebody's hand
			left = append(left, x)
			continue
		}
		r.forget(x.of)
	}
	r.outcomes = left
	return nil
}
