package api

import (
	"net/http"
	"slices"

	"github.com/musterhq/muster/job"
)

// InRun is the parameters of one run.
type InRun struct {
	InNamespace
	ID idParam `path:"id"`
}

type inRuns struct {
	InNamespace
	Job    nameParam   `query:"job"`
	State  statesParam `query:"state" doc:"one or more, separated by commas"`
	Worker nameParam   `query:"worker"`
	Label  []string    `query:"label,explode" doc:"key=value; repeated, all must match"`
	Since  timeParam   `query:"since" doc:"by the time in the id, inclusive"`
	Until  timeParam   `query:"until" doc:"exclusive"`
	RootID idParam     `query:"root_id" doc:"the task runs of this run, instead of root runs"`
	Task   nameParam   `query:"task" doc:"of this task only, with root_id; of a task with for_each also its items"`
	Limit  limitParam  `query:"limit"`
	Cursor string      `query:"cursor" doc:"next_cursor of the page before"`
}

// findRun reads the run that a request names. One of another namespace is not there for this request: who may ask was
// decided by the namespace in the request.
func (a *API) findRun(rq *request, id idParam) (*job.Run, error) {
	rid, err := id.read("id")
	if err != nil {
		return nil, err
	}
	r, err := a.Store.Run(rq.ctx, rid)
	// The answer is the same for one that does not exist: else it would tell whether there is such a run elsewhere.
	if job.CodeOf(err) == job.NotFound || err == nil && r.Namespace != rq.namespace {
		err = job.Errorf(job.NotFound, "no_run", "there is no run %s in the namespace %s", rid, rq.namespace)
	}
	if err != nil {
		return nil, err
	}
	return a.asItIs(r), nil
}

// readRun answers a run and its tasks; of one that proved a duplicate the run that it duplicates (S9).
func (a *API) readRun(rq *request, in *InRun) error {
	r, err := a.findRun(rq, in.ID)
	if err != nil {
		return err
	}
	if r.State == job.Skipped && r.Reason == job.Duplicate && !r.CanonicalID.IsZero() {
		if canonical, err := a.Store.Run(rq.ctx, r.CanonicalID); err == nil && canonical.Namespace == r.Namespace {
			r = a.asItIs(canonical)
		}
	}
	tasks, err := a.tasksOf(rq.ctx, r)
	if err != nil {
		return err
	}
	return rq.writeRunWithTasks(r, tasks)
}

func (a *API) listRuns(rq *request, in *inRuns) error {
	q, err := in.query(rq)
	if err != nil {
		return err
	}
	filters := filterText(q.Namespace, q.Job, q.RootID, q.Task, q.States, q.Worker, q.Labels, q.Since, q.Until)
	if q.Before, err = readRunCursor(filters, in.Cursor); err != nil {
		return err
	}
	runs, more, err := a.runsAsTheyAre(rq.ctx, q)
	if err != nil {
		return err
	}
	p := page[*job.Run]{Items: []*job.Run{}}
	bytes := 0
	for _, r := range runs {
		if bytes += len(r.Payload) + len(r.Result); bytes > MaxPageBytes && len(p.Items) > 0 {
			more = p.Items[len(p.Items)-1].ID
			break
		}
		p.Items = append(p.Items, r)
	}
	if !more.IsZero() {
		p.NextCursor = makeCursor(runCursor, filters, more[:])
	}
	return rq.writeRuns(&p)
}

// query reads the filters.
func (in *inRuns) query(rq *request) (q job.RunQuery, err error) {
	if q.Namespace = rq.namespace; q.Namespace == "*" {
		q.Namespace = ""
	}
	if in.Job != "" {
		if q.Job = string(in.Job); q.Namespace == "" {
			return q, job.InvalidField("job", "a job belongs to one namespace; name it instead of *")
		}
		if err = checkName("job", q.Job); err != nil {
			return q, err
		}
	}
	if in.Worker != "" {
		q.Worker = string(in.Worker)
		if err = checkName("worker", q.Worker); err != nil {
			return q, err
		}
	}
	if q.States, err = in.State.read("state"); err != nil {
		return q, err
	}
	if q.Labels, err = readLabels("label", in.Label); err != nil {
		return q, err
	}
	if q.Since, err = in.Since.read("since"); err != nil {
		return q, err
	}
	if q.Until, err = in.Until.read("until"); err != nil {
		return q, err
	}
	if q.Until != 0 && q.Until < q.Since {
		return q, job.InvalidField("until", "it lies before since")
	}
	if in.RootID != "" {
		if q.RootID, err = in.RootID.read("root_id"); err != nil {
			return q, err
		}
	}
	if in.Task != "" {
		if q.Task = string(in.Task); q.RootID.IsZero() {
			return q, job.InvalidField("task", "tasks are listed for one run at a time; name it as root_id")
		}
		if err = checkName("task", q.Task); err != nil {
			return q, err
		}
	}
	q.Limit, err = in.Limit.read("limit", MaxPage)
	return q, err
}

func (a *API) cancelRun(rq *request, in *InRun) error {
	r, err := a.findRun(rq, in.ID)
	if err != nil {
		return err
	}
	if r.State.Terminal() { // an intent would change nothing
		return rq.writeRun(http.StatusOK, r)
	}
	receipts, err := a.Store.Cancel(rq.ctx, []job.CancelIntent{{ID: r.ID, At: a.now()}})
	if err == nil {
		err = receipts[0].Err
	}
	if err != nil {
		return err
	}
	a.Hints.CancelRequested([]job.RunID{r.ID})
	return rq.writeRun(http.StatusAccepted, a.asItIs(receipts[0].Run))
}

// RetryRequest is the body of POST /v1/runs/{id}/retry, which needs none.
type RetryRequest struct {
	Scope string `json:"scope,omitempty" enum:"failed,all" doc:"which tasks run again: failed, those that did not succeed and those that come after them, which is the default; or all. For a run of one task it makes no difference"`
}

const (
	retryFailed = "failed"
	retryAll    = "all"
)

// retryRun makes a new run of a terminal one: the same job in the version it ran, the same payload. Its id derives from
// the run it retries, so that asking twice retries once. The scope is not in the id: one run has one retry, and whoever asks
// for another scope than that had is refused, rather than answered a run that does something else.
func (a *API) retryRun(rq *request, in *InRun) error {
	var req RetryRequest
	if rq.r.ContentLength != 0 {
		if err := rq.decode(a, &req); err != nil {
			return err
		}
	}
	if req.Scope != "" && req.Scope != retryFailed && req.Scope != retryAll {
		return job.InvalidField("scope", "%s is no scope; use failed, for the tasks that did not succeed, or all", quote(req.Scope))
	}
	r, err := a.findRun(rq, in.ID)
	if err != nil {
		return err
	}
	switch {
	case !r.IsRoot():
		return job.Errorf(job.Conflict, "not_root", "this is the task %s of the run %s, and is not retried by itself; retry that run: with the scope failed, which is the default, only those of its tasks run again that did not succeed, and those that come after them", quote(r.Task), r.RootID)
	case !r.State.Terminal():
		return job.Errorf(job.Conflict, "not_terminal", "the run is %s; only one that has ended can be retried", r.State)
	}
	n, err := a.retryOf(rq, r)
	if err != nil {
		return err
	}
	if hasTasks(n) && req.Scope != retryAll {
		n.ReusedFrom = r.ID
	}
	receipts, err := a.Store.Submit(rq.ctx, []*job.Run{n})
	if err == nil {
		err = refusal(n, &receipts[0])
	}
	if err != nil {
		return a.unborn(rq, n, err)
	}
	if !receipts[0].Existing {
		a.Hints.Born([]*job.Run{receipts[0].Run})
	} else if was := receipts[0].Run; req.Scope != "" && was.ReusedFrom != n.ReusedFrom {
		return job.Errorf(job.Conflict, "other_scope", "the run was retried already, with another scope, as the run %s; retry that one once it has ended", was.ID)
	}
	return a.answerBirth(rq, receipts[0])
}

// retryOf makes the row of a retry.
func (a *API) retryOf(rq *request, r *job.Run) (*job.Run, error) {
	sub := job.Submission{
		ID: job.RetryRunID(r.ID, r.FinishedAt), Namespace: r.Namespace, Payload: r.Payload, Labels: r.Labels,
	}
	priority := int(r.Priority)
	sub.Priority = &priority
	var of *job.Job
	if r.JobID.IsZero() {
		doc, err := job.ParseSpec(r.Spec)
		if err != nil {
			return nil, &job.Error{Code: job.Internal, Message: "the run's stored spec cannot be read", Cause: err}
		}
		doc.Namespace = r.Namespace
		sub.Spec = doc
	} else {
		v, err := a.Store.Version(rq.ctx, r.JobID, r.JobVersion)
		if job.CodeOf(err) == job.NotFound {
			return nil, &job.Error{Code: job.Conflict, Reason: "version_gone", Cause: err,
				Message: "the version of the job that this run ran is gone; submit a new run instead"}
		}
		if err != nil {
			return nil, err
		}
		sub.Job = r.Job
		of = &job.Job{ID: r.JobID, Namespace: r.Namespace, Name: r.Job, Version: r.JobVersion, Spec: v.Spec}
	}
	n, err := job.Birth(&sub, of, a.now())
	if err != nil {
		return nil, err
	}
	n.Trigger, n.RetryOf = job.ByRetry, r.ID
	return n, nil
}

func (a *API) listAttempts(rq *request, in *InRun) error {
	r, err := a.findRun(rq, in.ID)
	if err != nil {
		return err
	}
	attempts, err := a.Store.Attempts(rq.ctx, r.ID)
	if err != nil {
		return err
	}
	return rq.json(http.StatusOK, page[job.Attempt]{Items: allAttempts(r, attempts)})
}

// allAttempts adds the one that is in the run itself: the current, or the last.
func allAttempts(r *job.Run, ended []job.Attempt) []job.Attempt {
	ended = slices.Clip(ended)
	if r.Attempt == 0 || r.State != job.Running && !r.State.Terminal() {
		return emptyIfNil(ended)
	}
	if n := len(ended); n > 0 && ended[n-1].Attempt >= r.Attempt {
		return ended
	}
	return append(ended, job.Attempt{
		RunID: r.ID, Attempt: r.Attempt, Fence: r.Fence, Worker: r.Worker, StartedAt: r.StartedAt, FinishedAt: r.FinishedAt,
		State: r.State, Reason: r.Reason, Error: r.Error, ExitCode: r.ExitCode,
	})
}
