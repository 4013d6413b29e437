package api

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/musterhq/muster/job"
)

// Explanation says in plain sentences why a run is where it is.
type Explanation struct {
	RunID       job.RunID  `json:"run_id"`
	State       job.State  `json:"state"`
	Reason      job.Reason `json:"reason,omitempty"`
	Task        string     `json:"task,omitempty" doc:"the task that was asked about, if it has no run of its own yet; run_id is its root's then"`
	Explanation []string   `json:"explanation"`
}

type inExplain struct {
	InRun
	Task nameParam `query:"task" doc:"explain this task of a root run, also while it has no run of its own"`
}

// explainRun is what the row says, and what the leader knows beyond it. Without a leader the row still answers.
func (a *API) explainRun(rq *request, in *inExplain) error {
	r, err := a.findRun(rq, in.ID)
	if err != nil {
		return err
	}
	if in.Task != "" {
		return a.explainTask(rq, r, string(in.Task))
	}
	e, err := a.explain(rq, r)
	if err != nil {
		return err
	}
	return rq.json(http.StatusOK, e)
}

func (a *API) explain(rq *request, r *job.Run) (*Explanation, error) {
	e := &Explanation{RunID: r.ID, State: r.State, Reason: r.Reason, Explanation: []string{sentence(r, a.now())}}
	grown, err := a.explainGrown(rq, r)
	if err != nil {
		return nil, err
	}
	e.Explanation = append(e.Explanation, grown...)
	if r.State.Terminal() {
		return e, nil
	}
	more, err := a.Leader.Explain(rq.ctx, r)
	if err != nil {
		if !outOfReach(err) {
			return nil, err
		}
		more = []string{"The leader, which would know more, cannot be asked now."}
	}
	e.Explanation = append(e.Explanation, more...)
	return e, nil
}

// sentence is what the row alone says.
func sentence(r *job.Run, now job.Instant) string {
	if r.CancelAt != 0 && !r.State.Terminal() {
		if grows(r) {
			return fmt.Sprintf("It is %s; at %s somebody asked to cancel it, which takes effect when what runs of it has ended.", r.State, r.CancelAt)
		}
		return fmt.Sprintf("It is %s; at %s somebody asked to cancel it, which takes effect when its worker confirms or its lease ends.", r.State, r.CancelAt)
	}
	switch r.State {
	case job.Waiting:
		if r.Reason == job.OverlapQueued {
			return "It waits until the run of an earlier tick of its job has ended (overlap: queue)."
		}
		return "It waits for the runs it depends on."
	case job.Held:
		return heldSentence(r)
	case job.Scheduled:
		switch {
		case r.ReadyAt <= now:
			return fmt.Sprintf("Its time came at %s; it will be queued in a moment.", r.ReadyAt)
		case r.Reason == job.RetryBackoff:
			return fmt.Sprintf("Attempt %d failed; the next one starts at %s.%s", r.Attempt, r.ReadyAt, because(r))
		}
		return fmt.Sprintf("It was submitted to start at %s.", r.ReadyAt)
	case job.Queued:
		switch r.Reason {
		case job.WorkerLost:
			return fmt.Sprintf("Its worker %s was lost during attempt %d; it is queued for another one.", r.Worker, r.Attempt)
		case job.WorkerStopped:
			return fmt.Sprintf("Its worker %s shut down and gave it back; it is queued for another one.", r.Worker)
		}
		return fmt.Sprintf("It has been queued since %s, with priority %d.", r.QueuedAt, r.Priority)
	case job.Running:
		if grows(r) {
			return fmt.Sprintf("It has been running since %s, without a worker of its own: it consists of other runs.", r.StartedAt)
		}
		return fmt.Sprintf("Attempt %d has been running on the worker %s since %s.", r.Attempt, r.Worker, r.StartedAt)
	case job.Succeeded:
		switch {
		case !r.IsRoot() && !r.ReusedFrom.IsZero():
			return fmt.Sprintf("It took over the success of the run %s, of the run that was retried, and was not run again.", r.ReusedFrom)
		case r.Worker == "":
			return fmt.Sprintf("It succeeded at %s.", r.FinishedAt)
		}
		return fmt.Sprintf("Attempt %d on the worker %s succeeded at %s.", r.Attempt, r.Worker, r.FinishedAt)
	}
	return endSentence(r)
}

func heldSentence(r *job.Run) string {
	switch r.Reason {
	case job.Spooled:
		return "It lies on one node's local disk until the cluster can be reached from there."
	case job.Deduplicating:
		return "Its idempotency key cannot be checked until the store is back."
	case job.JobPaused:
		return fmt.Sprintf("The job %s is paused.", r.Job)
	case job.NamespacePaused:
		return fmt.Sprintf("The namespace %s is paused.", r.Namespace)
	case job.Maintenance:
		return "The cluster is in maintenance."
	}
	return "It is held."
}

// endSentence is about runs that ended otherwise than well.
func endSentence(r *job.Run) string {
	switch r.Reason {
	case job.TaskFailed:
		return fmt.Sprintf("Something that it consists of did not succeed; it failed at %s.%s", r.FinishedAt, because(r))
	case job.UpstreamFailed:
		return "It was skipped, since a task before it failed or was cancelled (run_if)."
	case job.UpstreamSkipped:
		return "It was skipped, since a task before it was skipped (run_if)."
	case job.RunIfFalse:
		return "It was skipped, since no task before it ended as its run_if asks."
	case job.WhenFalse:
		return "It was skipped, since its condition (when) was false."
	case job.ExpressionFailed:
		return "An expression or template of it could not be evaluated." + because(r)
	case job.ChildFailed:
		return fmt.Sprintf("The run that it made (run_job) did not succeed; that was attempt %d.%s", r.Attempt, because(r))
	case job.ExitCode:
		return fmt.Sprintf("Attempt %d on the worker %s failed with exit code %d at %s.%s", r.Attempt, r.Worker, r.ExitCode, r.FinishedAt, because(r))
	case job.TimedOut:
		return fmt.Sprintf("Attempt %d on the worker %s ran longer than the timeout.", r.Attempt, r.Worker)
	case job.DeadlineExceeded:
		return fmt.Sprintf("It was not done by its deadline, %s.", r.DeadlineAt)
	case job.StartDeadline:
		return "It was not started within start_deadline."
	case job.WorkerLost:
		return fmt.Sprintf("The worker %s was lost during attempt %d; it was lost %d times, and is not tried again.", r.Worker, r.Attempt, r.Losses)
	case job.InvalidResult:
		return "Its result could not be stored." + because(r)
	case job.CancelRequested:
		return fmt.Sprintf("It was cancelled on request at %s.", r.FinishedAt)
	case job.OverlapReplaced:
		return "A later tick of its job replaced it (overlap: replace)."
	case job.OverlapSkip:
		return "An earlier run of its job was still active (overlap: skip)."
	case job.Duplicate:
		return fmt.Sprintf("Its idempotency key belongs to the run %s.", r.CanonicalID)
	case job.KeyConflict:
		return "Its idempotency key was used before with another body."
	case job.NotPermitted:
		return fmt.Sprintf("The configuration of the worker %s forbids this work.%s", r.Worker, because(r))
	case job.CannotStart:
		if r.Worker == "" {
			return "It could not be started." + because(r)
		}
		return fmt.Sprintf("The worker %s could not start it.%s", r.Worker, because(r))
	}
	return fmt.Sprintf("It ended as %s at %s.%s", r.State, r.FinishedAt, because(r))
}

func because(r *job.Run) string {
	if r.Error == "" {
		return ""
	}
	const most = 300
	if len(r.Error) <= most {
		return " " + r.Error
	}
	return " " + strings.ToValidUTF8(r.Error[:most], "") + " ..."
}
