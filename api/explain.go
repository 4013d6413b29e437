package api

import (
	"fmt"
	"net/http"

	"github.com/musterhq/muster/job"
)

// Explanation says in plain sentences why a run is where it is.
type Explanation struct {
	RunID       job.RunID  `json:"run_id"`
	State       job.State  `json:"state"`
	Reason      job.Reason `json:"reason,omitempty"`
	Explanation []string   `json:"explanation"`
}

// explainRun is what the row says, and what the leader knows beyond it. Without a leader the row still answers.
func (a *API) explainRun(rq *request, in *InRun) error {
	r, err := a.findRun(rq, in.ID)
	if err != nil {
		return err
	}
	e := Explanation{RunID: r.ID, State: r.State, Reason: r.Reason, Explanation: []string{sentence(r, a.now())}}
	if !r.State.Terminal() {
		more, err := a.Leader.Explain(rq.ctx, r)
		if err != nil {
			if !outOfReach(err) {
				return err
			}
			more = []string{"The leader, which would know more, cannot be asked now."}
		}
		e.Explanation = append(e.Explanation, more...)
	}
	return rq.json(http.StatusOK, e)
}

// sentence is what the row alone says.
func sentence(r *job.Run, now job.Instant) string {
	if r.CancelAt != 0 && !r.State.Terminal() {
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
		return fmt.Sprintf("Attempt %d has been running on the worker %s since %s.", r.Attempt, r.Worker, r.StartedAt)
	case job.Succeeded:
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
		return fmt.Sprintf("The worker %s could not start it.%s", r.Worker, because(r))
	}
	return fmt.Sprintf("It ended as %s at %s.%s", r.State, r.FinishedAt, because(r))
}

func because(r *job.Run) string {
	if r.Error == "" {
		return ""
	}
	return " " + clip(r.Error)
}
