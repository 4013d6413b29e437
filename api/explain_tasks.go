package api

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/musterhq/muster/job"
)

// grows tells whether a run is carried out by giving birth to others: a root with tasks, a run_job task, a task with items.
func grows(r *job.Run) bool { return r.LaneKey().OnLeader() || r.Items > 0 }

// explainGrown says what the runs are doing that a run consists of.
func (a *API) explainGrown(rq *request, r *job.Run) ([]string, error) {
	switch {
	case hasTasks(r) && r.State != job.Running && !r.State.Terminal(): // nothing of it was decided
	case hasTasks(r):
		tasks, err := a.tasksOf(rq.ctx, r)
		if err != nil || len(tasks) == 0 {
			return nil, err
		}
		return taskSentences(r, tasks), nil
	case r.Items > 0:
		t, left := TaskRun{}, maxItemRows
		if err := a.countItems(rq.ctx, &t, r, &left); err != nil {
			return nil, err
		}
		return []string{itemSentence(t.Items)}, nil
	case !r.IsRoot() && r.LaneKey().OnLeader() && r.Attempt > 0 && r.Reason != job.CannotStart:
		id := job.ChildRunID(r.ID, r.Attempt)
		rows, err := a.Store.Load(rq.ctx, []job.RunID{id})
		if err != nil {
			return nil, err
		}
		if rows[0] == nil || rows[0].ParentID != r.ID {
			return []string{fmt.Sprintf("Attempt %d makes the run %s, which is not there yet, or not any more.", r.Attempt, id)}, nil
		}
		child := a.asItIs(rows[0])
		return []string{fmt.Sprintf("Attempt %d made the run %s of the job %s, which is %s.", r.Attempt, id, child.Job, child.State)}, nil
	}
	return nil, nil
}

// What an explanation lists by name.
const (
	maxTaskSentences = 10
	maxNamedTasks    = 5
)

// taskSentences counts the tasks by state, and says of those that have not ended, or not well, what each is about.
func taskSentences(root *job.Run, tasks []TaskRun) []string {
	var count [job.Skipped + 1]int
	for i := range tasks {
		count[min(tasks[i].State, job.Skipped)]++
	}
	var counts []string
	for s := job.Succeeded; s <= job.Skipped; s++ {
		counts = countOf(counts, count[s], s)
	}
	for s := job.Running; s >= job.Waiting; s-- {
		counts = countOf(counts, count[s], s)
	}
	if len(counts) == 0 {
		return []string{"The runs of its tasks were dropped from the history."}
	}
	out := []string{fmt.Sprintf("Of its tasks, %d in all: %s.", len(tasks), strings.Join(counts, ", "))}
	byName := tasksByName(tasks)
	var decided, waiting []string
	rest := 0
	for i := range tasks {
		t := &tasks[i]
		switch {
		case t.State == job.Failed, t.State == job.Cancelled && !root.State.Terminal():
			decided = append(decided, fmt.Sprintf("The task %s is %s (%s).", t.Name, t.State, t.Reason))
		case t.State.Terminal() || root.State.Terminal():
		case t.ID.IsZero():
			if len(waiting) < maxTaskSentences {
				waiting = append(waiting, fmt.Sprintf("The task %s: %s", t.Name, waitSentence(t, byName)))
			} else {
				rest++
			}
		default:
			decided = append(decided, fmt.Sprintf("The task %s is %s, as the run %s.", t.Name, t.State, t.ID))
		}
	}
	more := append(decided, waiting...) // what was decided says more than what waits for it
	if n := len(more) - maxTaskSentences; n > 0 {
		more, rest = more[:maxTaskSentences], rest+n
	}
	if rest > 0 {
		more = append(more, fmt.Sprintf("Other tasks that have not ended, or have failed: %d.", rest))
	}
	return append(out, more...)
}

func countOf(counts []string, n int, s job.State) []string {
	if n == 0 {
		return counts
	}
	return append(counts, fmt.Sprintf("%d %s", n, s))
}

func itemSentence(n *ItemCounts) string {
	return fmt.Sprintf("Of its items, %d in all: %d succeeded, %d failed, %d cancelled, %d running, %d queued; the others were not released yet.",
		n.Total, n.Succeeded, n.Failed, n.Cancelled, n.Running, n.Queued)
}

// waitSentence says what an undecided task of an open run waits for.
func waitSentence(t *TaskRun, tasks map[string]*TaskRun) string {
	var open []string
	for _, name := range t.DependsOn {
		if up := tasks[name]; up != nil && !up.State.Terminal() {
			open = append(open, fmt.Sprintf("%s (%s)", name, up.State))
		}
	}
	if len(open) == 0 {
		return "all before it has ended; it is decided in a moment."
	}
	if n := len(open) - maxNamedTasks; n > 0 {
		open = append(open[:maxNamedTasks], fmt.Sprintf("%d more", n))
	}
	return "it waits for " + strings.Join(open, ", ") + "."
}

func tasksByName(tasks []TaskRun) map[string]*TaskRun {
	m := make(map[string]*TaskRun, len(tasks))
	for i := range tasks {
		m[tasks[i].Name] = &tasks[i]
	}
	return m
}

// explainTask explains one task of a root run. What it says of one without a row comes from the tasks before it, or from
// the root, which may not have been opened.
func (a *API) explainTask(rq *request, root *job.Run, name string) error {
	if err := checkName("task", name); err != nil {
		return err
	}
	if !hasTasks(root) {
		return job.InvalidField("task", "the run %s has no tasks", root.ID)
	}
	tasks, err := a.tasksOf(rq.ctx, root)
	if err != nil {
		return err
	}
	byName := tasksByName(tasks)
	t := byName[name]
	if t == nil {
		return &job.Error{Code: job.NotFound, Reason: "no_task", Field: "task", Message: fmt.Sprintf("the run %s has no task %s", root.ID, quote(name))}
	}
	if !t.ID.IsZero() {
		r, err := a.Store.Run(rq.ctx, t.ID)
		if err != nil {
			return err
		}
		e, err := a.explain(rq, a.asItIs(r))
		if err != nil {
			return err
		}
		return rq.json(http.StatusOK, e)
	}
	e := &Explanation{RunID: root.ID, Task: name, State: t.State, Reason: t.Reason}
	switch {
	case t.State == 0:
		e.Explanation = []string{"Its run was dropped from the history."}
	case root.State.Terminal():
		e.Explanation = []string{fmt.Sprintf("It was never started: the run %s ended before that. Of that run:", root.ID), sentence(root, a.now())}
	case root.CancelAt != 0:
		e.Explanation = []string{fmt.Sprintf("It will not be started: the run %s is being cancelled. Of that run:", root.ID), sentence(root, a.now())}
	case root.State != job.Running:
		whole, err := a.explain(rq, root)
		if err != nil {
			return err
		}
		e.Explanation = append([]string{fmt.Sprintf("It waits until the run %s has begun. Of that run:", root.ID)}, whole.Explanation...)
	default:
		s := waitSentence(t, byName) // begins in the middle of one of taskSentences
		e.Explanation = []string{strings.ToUpper(s[:1]) + s[1:]}
	}
	return rq.json(http.StatusOK, e)
}
