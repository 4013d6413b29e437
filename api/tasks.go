package api

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"

	"github.com/musterhq/muster/job"
)

// A task has no row before it is decided (T1), so how the tasks of a run stand is composed: of the document, in the version
// that the run is pinned to, and of the rows that are there. Their ids are derived, so those of the tasks themselves are
// read by key; only the items of lists are searched for, to be counted.

// maxItemRows is how many rows of items one read counts, over all tasks of the run; beyond it the counts say that they are
// partial.
const maxItemRows = 20 * job.MaxItems

// RunWithTasks is GET /v1/runs/{id}.
type RunWithTasks struct {
	job.Run
	Tasks []TaskRun `json:"tasks,omitempty" doc:"of a root run whose job has tasks: how each of them stands, in the order of the document"`
}

// TaskRun is how one task of a run stands: what the document says of it, and its own run, once the task was decided.
// Payloads and results are in that run.
type TaskRun struct {
	Name         string    `json:"name"`
	DependsOn    []string  `json:"depends_on,omitempty"`
	RunIf        job.RunIf `json:"run_if,omitempty"`
	When         string    `json:"when,omitempty"`
	ForEach      string    `json:"for_each,omitempty"`
	RunJob       string    `json:"run_job,omitempty" doc:"the job that it runs"`
	AllowFailure bool      `json:"allow_failure,omitempty"`

	State      job.State   `json:"state,omitempty" doc:"waiting before the task is decided; absent if its run was dropped from the history before the root's"`
	Reason     job.Reason  `json:"reason,omitempty"`
	ID         job.RunID   `json:"id,omitzero" doc:"of its run; absent before the task is decided"`
	Items      *ItemCounts `json:"items,omitempty" doc:"of a task with for_each, once its list is known"`
	ChildID    job.RunID   `json:"child_id,omitzero" doc:"the run of run_job that the current or last attempt made"`
	Attempt    uint32      `json:"attempt,omitempty"`
	Worker     string      `json:"worker,omitempty"`
	QueuedAt   job.Instant `json:"queued_at,omitempty"`
	StartedAt  job.Instant `json:"started_at,omitempty"`
	FinishedAt job.Instant `json:"finished_at,omitempty"`
	Error      string      `json:"error,omitempty"`
	ExitCode   int32       `json:"exit_code,omitempty"`
	ReusedFrom job.RunID   `json:"reused_from,omitzero" doc:"the task run whose success this one takes over"`
}

// ItemCounts says how the items of a task with for_each stand.
type ItemCounts struct {
	Total     int `json:"total" doc:"what is in none of the counts below was not released yet"`
	Queued    int `json:"queued" doc:"released and not running: an item that waits for its next attempt too"`
	Running   int `json:"running"`
	Succeeded int `json:"succeeded"`
	Failed    int `json:"failed"`
	Cancelled int `json:"cancelled"`
	// Partial: the run has more items than one read counts.
	Partial bool `json:"partial,omitempty" doc:"not all items were counted: the run has more of them than one read looks at, 20,000"`
}

// hasTasks tells whether r is a root run of a job with tasks.
func hasTasks(r *job.Run) bool { return r.IsRoot() && r.LaneKey().OnLeader() }

// tasksOf says how the tasks of a root run stand; nil for a run without tasks.
func (a *API) tasksOf(ctx context.Context, root *job.Run) ([]TaskRun, error) {
	if !hasTasks(root) {
		return nil, nil
	}
	doc, err := a.documentOf(ctx, root)
	if job.CodeOf(err) == job.NotFound { // the job was deleted, and its versions with it
		return a.tasksWithoutDocument(ctx, root)
	}
	if err != nil {
		return nil, err
	}
	tasks, ids := make([]TaskRun, len(doc.Tasks)), make([]job.RunID, len(doc.Tasks))
	for i := range doc.Tasks {
		t := &doc.Tasks[i]
		tasks[i] = TaskRun{Name: t.Name, DependsOn: t.DependsOn, RunIf: t.RunIf, When: t.When, ForEach: t.ForEach, AllowFailure: t.AllowFailure}
		if t.RunJob != nil {
			tasks[i].RunJob = t.RunJob.Job
		}
		ids[i] = job.TaskRunID(root.ID, t.Name, 0)
	}
	rows, err := a.Store.Load(ctx, ids)
	if err != nil {
		return nil, err
	}
	left := maxItemRows
	for i := range tasks {
		t := &tasks[i]
		if rows[i] == nil || rows[i].RootID != root.ID { // whoever submits a run may bring any id
			t.undecided(root)
			continue
		}
		t.decided(a.asItIs(rows[i]))
		if err := a.countItems(ctx, t, rows[i], &left); err != nil {
			return nil, err
		}
	}
	return tasks, nil
}

// documentOf reads the document that a run is pinned to.
func (a *API) documentOf(ctx context.Context, r *job.Run) (*job.Document, error) {
	if r.JobID.IsZero() {
		doc := new(job.Document)
		if err := json.Unmarshal(r.Spec, doc); err != nil { // it was normalised when it was stored
			return nil, &job.Error{Code: job.Internal, Message: "the run's stored spec cannot be read", Cause: err}
		}
		return doc, nil
	}
	v, err := a.Store.Version(ctx, r.JobID, r.JobVersion)
	if err != nil {
		return nil, err
	}
	return v.Spec, nil
}

// tasksWithoutDocument lists the tasks that have a run, in the order in which they were decided.
func (a *API) tasksWithoutDocument(ctx context.Context, root *job.Run) ([]TaskRun, error) {
	var tasks []TaskRun
	var rows []*job.Run
	left := job.MaxTasks + maxItemRows
	_, err := a.eachTaskRun(ctx, job.RunQuery{Namespace: root.Namespace, RootID: root.ID}, &left, func(r *job.Run) {
		if r.Item == 0 {
			rows = append(rows, r)
		}
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(rows, func(x, y *job.Run) int {
		return cmp.Or(cmp.Compare(x.CreatedAt, y.CreatedAt), cmp.Compare(x.Task, y.Task))
	})
	left = maxItemRows
	for _, r := range rows {
		t := TaskRun{Name: r.Task}
		t.decided(a.asItIs(r))
		if err := a.countItems(ctx, &t, r, &left); err != nil {
			return nil, err
		}
		tasks = append(tasks, t)
	}
	return tasks, nil
}

// undecided fills in how a task without a row stands.
func (t *TaskRun) undecided(root *job.Run) {
	switch {
	case !root.State.Terminal():
		t.State, t.Reason = job.Waiting, job.Dependencies
	case root.State == job.Succeeded || root.Reason == job.TaskFailed:
		// Every task was decided before such an end (T5), so the row was dropped since.
	default:
		t.State, t.Reason = job.Cancelled, root.Reason
	}
}

// decided fills in how a task with a row stands.
func (t *TaskRun) decided(r *job.Run) {
	t.State, t.Reason, t.ID, t.Attempt, t.Worker = r.State, r.Reason, r.ID, r.Attempt, r.Worker
	t.QueuedAt, t.StartedAt, t.FinishedAt = r.QueuedAt, r.StartedAt, r.FinishedAt
	t.Error, t.ExitCode, t.ReusedFrom = r.Error, r.ExitCode, r.ReusedFrom
	// An attempt that found no job to run made no child. Of a list, the items have children.
	if t.RunJob != "" && r.Items == 0 && r.Attempt > 0 && r.Reason != job.CannotStart {
		t.ChildID = job.ChildRunID(r.ID, r.Attempt)
	}
}

// countItems counts the items of a task's list. left is how many rows may still be read for all tasks together.
func (a *API) countItems(ctx context.Context, t *TaskRun, r *job.Run, left *int) error {
	if r.Items == 0 {
		return nil
	}
	n := &ItemCounts{Total: int(r.Items)}
	t.Items = n
	if r.State == job.Succeeded { // then all of them have (T4)
		n.Succeeded = n.Total
		return nil
	}
	all, err := a.eachTaskRun(ctx, job.RunQuery{Namespace: r.Namespace, RootID: r.RootID, Task: r.Task}, left, func(it *job.Run) {
		if it.Item == 0 {
			return
		}
		switch a.asItIs(it).State {
		case job.Running:
			n.Running++
		case job.Succeeded:
			n.Succeeded++
		case job.Failed:
			n.Failed++
		case job.Cancelled:
			n.Cancelled++
		default:
			n.Queued++
		}
	})
	n.Partial = !all
	return err
}

// eachTaskRun reads page after page until there is no more, or until as many rows were read as are left.
func (a *API) eachTaskRun(ctx context.Context, q job.RunQuery, left *int, each func(*job.Run)) (all bool, err error) {
	for *left > 0 {
		q.Limit = min(*left, MaxPage)
		p, err := a.Store.Runs(ctx, q)
		if err != nil {
			return false, err
		}
		for _, r := range p.Runs {
			each(r)
		}
		*left -= max(1, len(p.Runs)) // a page may be empty and not the last
		if q.Before = p.Next; p.Next.IsZero() {
			return true, nil
		}
	}
	return false, nil
}

// writeRunWithTasks answers a run and its tasks.
func (rq *request) writeRunWithTasks(r *job.Run, tasks []TaskRun) error {
	buf := takeBuffer()
	defer giveBuffer(buf)
	b := appendRun(buf.AvailableBuffer(), r)
	if len(tasks) > 0 {
		b = append(b[:len(b)-1], `,"tasks":[`...)
		for i := range tasks {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendTask(b, &tasks[i])
		}
		b = append(b, "]}"...)
	}
	buf.Write(append(b, '\n'))
	rq.writeBytes(http.StatusOK, jsonType, buf.Bytes())
	return nil
}

// appendTask writes t as json.Marshal would.
func appendTask(b []byte, t *TaskRun) []byte {
	b = appendText(append(b, `{"name":`...), t.Name)
	if len(t.DependsOn) > 0 {
		b = append(b, `,"depends_on":[`...)
		for i, up := range t.DependsOn {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendText(b, up)
		}
		b = append(b, ']')
	}
	b = textField(b, `,"run_if":`, string(t.RunIf))
	b = textField(b, `,"when":`, t.When)
	b = textField(b, `,"for_each":`, t.ForEach)
	b = textField(b, `,"run_job":`, t.RunJob)
	if t.AllowFailure {
		b = append(b, `,"allow_failure":true`...)
	}
	b = textField(b, `,"state":`, t.State.String())
	b = textField(b, `,"reason":`, t.Reason.String())
	b = idField(b, `,"id":`, t.ID)
	if t.Items != nil {
		counts, err := json.Marshal(t.Items)
		if err != nil { // it has only numbers
			panic(err)
		}
		b = append(append(b, `,"items":`...), counts...)
	}
	b = idField(b, `,"child_id":`, t.ChildID)
	b = numberField(b, `,"attempt":`, uint64(t.Attempt))
	b = textField(b, `,"worker":`, t.Worker)
	b = timeField(b, `,"queued_at":`, t.QueuedAt)
	b = timeField(b, `,"started_at":`, t.StartedAt)
	b = timeField(b, `,"finished_at":`, t.FinishedAt)
	b = textField(b, `,"error":`, t.Error)
	if t.ExitCode != 0 {
		b = strconv.AppendInt(append(b, `,"exit_code":`...), int64(t.ExitCode), 10)
	}
	b = idField(b, `,"reused_from":`, t.ReusedFrom)
	return append(b, '}')
}
