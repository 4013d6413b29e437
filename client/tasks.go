package client

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/url"

	"github.com/musterhq/muster/job"
)

// RunWithTasks is a run and, of a root run whose job has tasks, how each of them stands, in the order of the document.
type RunWithTasks struct {
	job.Run
	Tasks []TaskRun
}

// TaskRun is how one task of a run stands: what the document says of it, and its own run, once the task was decided.
// Before that it has no ID and reads waiting, or cancelled if its root run was.
type TaskRun struct {
	Name         string    `json:"name"`
	DependsOn    []string  `json:"depends_on,omitempty"`
	RunIf        job.RunIf `json:"run_if,omitempty"`
	When         string    `json:"when,omitempty"`
	ForEach      string    `json:"for_each,omitempty"`
	RunJob       string    `json:"run_job,omitempty"` // the job that it runs
	AllowFailure bool      `json:"allow_failure,omitempty"`

	// State is 0 where nobody knows any more: the task's run was dropped from the history before that of its root.
	State      job.State   `json:"state,omitempty"`
	Reason     job.Reason  `json:"reason,omitempty"`
	ID         job.RunID   `json:"id,omitzero"`
	Items      *ItemCounts `json:"items,omitempty"`   // of a task with ForEach, once its list is known
	ChildID    job.RunID   `json:"child_id,omitzero"` // the run of RunJob that the current or last attempt made
	Attempt    uint32      `json:"attempt,omitempty"`
	Worker     string      `json:"worker,omitempty"`
	QueuedAt   job.Instant `json:"queued_at,omitempty"`
	StartedAt  job.Instant `json:"started_at,omitempty"`
	FinishedAt job.Instant `json:"finished_at,omitempty"`
	Error      string      `json:"error,omitempty"`
	ExitCode   int32       `json:"exit_code,omitempty"`
	ReusedFrom job.RunID   `json:"reused_from,omitzero"` // the task run whose success this one takes over
}

// ItemCounts says how the items of a task with for_each stand. What is in none of the counts was not released yet.
type ItemCounts struct {
	Total     int `json:"total"`
	Queued    int `json:"queued"` // released and not running: an item that waits for its next attempt too
	Running   int `json:"running"`
	Succeeded int `json:"succeeded"`
	Failed    int `json:"failed"`
	Cancelled int `json:"cancelled"`
}

// MarshalJSON writes what the API answers.
func (r RunWithTasks) MarshalJSON() ([]byte, error) {
	b, err := json.Marshal(r.Run)
	if err != nil || len(r.Tasks) == 0 {
		return b, err
	}
	tasks, err := json.Marshal(r.Tasks)
	if err != nil {
		return nil, err
	}
	b = append(bytes.TrimSuffix(b, []byte("}")), `,"tasks":`...)
	return append(append(b, tasks...), '}'), nil
}

// UnmarshalJSON reads what the API answers.
func (r *RunWithTasks) UnmarshalJSON(b []byte) error {
	var tasks struct {
		Tasks []TaskRun `json:"tasks"`
	}
	if err := json.Unmarshal(b, &tasks); err != nil {
		return err
	}
	r.Tasks = tasks.Tasks
	return json.Unmarshal(b, &r.Run)
}

// RunWithTasks reads a run together with its tasks; the results of tasks are in their own runs.
func (c *Client) RunWithTasks(ctx context.Context, id job.RunID) (*RunWithTasks, error) {
	return ask[RunWithTasks](ctx, c, &call{method: http.MethodGet, path: runPath(id)})
}

// RetryScope says which tasks of a run are run again.
type RetryScope string

const (
	RetryFailed RetryScope = "failed" // those that did not succeed, and those that come after them; the default
	RetryAll    RetryScope = "all"
)

// RetryScoped is Retry for a run with tasks, and says which of them run again; "" leaves that to the node. For a run of one
// task the scope makes no difference. A run that was retried already with another scope is a Conflict, reason other_scope.
func (c *Client) RetryScoped(ctx context.Context, id job.RunID, scope RetryScope) (*job.Run, error) {
	q := &call{method: http.MethodPost, path: runPath(id) + "/retry"}
	if scope != "" { // an older node takes no body
		q.body = map[string]RetryScope{"scope": scope}
	}
	return ask[job.Run](ctx, c, q)
}

// ExplainTask explains one task of a run, also while it has no run of its own yet: what it waits for.
func (c *Client) ExplainTask(ctx context.Context, root job.RunID, task string) (*Explanation, error) {
	return ask[Explanation](ctx, c, &call{method: http.MethodGet, path: runPath(root) + "/explain", query: url.Values{"task": {task}}})
}

// Dependencies are the edges of a job, each by name.
type Dependencies struct {
	Upstreams  []job.Dependency `json:"upstreams"`  // on the jobs that it depends on
	Dependents []job.Dependency `json:"dependents"` // of the jobs that depend on it
}

// Dependencies answers on which jobs a job depends, and which depend on it, and what has satisfied each edge so far.
func (c *Client) Dependencies(ctx context.Context, name string) (*Dependencies, error) {
	return ask[Dependencies](ctx, c, &call{method: http.MethodGet, path: jobPath(name) + "/dependencies"})
}

// DeleteJobDetached is DeleteJob for a job that others depend on: each of them gets a new version without that dependency
// first. A job that is left with none runs when somebody submits it.
func (c *Client) DeleteJobDetached(ctx context.Context, name string, ifVersion uint64) error {
	return c.deleteJob(ctx, name, ifVersion, url.Values{"detach": {"true"}})
}
