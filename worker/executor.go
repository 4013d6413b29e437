package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"github.com/musterhq/muster/job"
)

// Executor runs one attempt to its end. It returns only when nothing of the attempt runs any more, so that the slot and
// the lease may be given away.
//
// ctx is cancelled with a cause of type *Stop when the attempt must end early; the timeout and the deadline of the
// document arrive this way too, armed by the agent. out takes the output; it must not block for long, for the work
// behind it waits.
type Executor interface {
	Execute(ctx context.Context, a *job.Assignment, out io.Writer) job.Outcome
}

// Stop is the cause with which the agent cancels an attempt's context.
type Stop struct {
	// Reason is one of job.CancelRequested, TimedOut, LeaseLost, DeadlineExceeded, WorkerStopped.
	Reason job.Reason
	// Grace is how long the work may go on between the polite end and the hard one. 0 means hard at once.
	Grace time.Duration
}

func (s *Stop) Error() string { return "the attempt must stop: " + s.Reason.String() }

// stopOf reads why ctx ended. A context that was cancelled without a Stop is that of a worker on its way out; grace is
// what such a stop gets.
func stopOf(ctx context.Context, grace time.Duration) *Stop {
	var s *Stop
	if errors.As(context.Cause(ctx), &s) {
		return s
	}
	return &Stop{Reason: job.WorkerStopped, Grace: grace}
}

// Executors picks the executor that an assignment's document names. A nil field means that this worker has none of that
// kind.
type Executors struct {
	Exec     *Exec
	HTTP     *HTTP
	Handlers *Handlers
}

// Names lists what this worker can run, for its hello.
func (x *Executors) Names() []string {
	var names []string
	if x.Exec != nil {
		names = append(names, "exec")
	}
	if x.HTTP != nil {
		names = append(names, "http")
	}
	if x.Handlers != nil {
		names = append(names, "handler")
	}
	return names
}

// HandlerNames lists the registered handlers, for the worker's hello.
func (x *Executors) HandlerNames() []string {
	if x.Handlers == nil {
		return nil
	}
	return x.Handlers.Names()
}

// Execute runs the attempt with the executor its document names. A document that names none which this worker has is
// failed for good: the selector or the document is wrong, and no repetition here mends that.
func (x *Executors) Execute(ctx context.Context, a *job.Assignment, out io.Writer) (o job.Outcome) {
	// A defect in one executor must not take the agent down with all that it runs.
	defer func() {
		if p := recover(); p != nil {
			o = begin(a)
			fmt.Fprintf(out, "panic: %v\n\n%s", p, debug.Stack())
			fail(&o, job.CannotStart, "the worker's executor panicked: %v", p)
		}
	}()
	name := ""
	if a.Spec != nil {
		name = a.Spec.ExecutorName()
	}
	switch {
	case name == "exec" && x.Exec != nil:
		return x.Exec.Execute(ctx, a, out)
	case name == "http" && x.HTTP != nil:
		return x.HTTP.Execute(ctx, a, out)
	case name == "handler" && x.Handlers != nil:
		return x.Handlers.Execute(ctx, a, out)
	}
	o = begin(a)
	if name == "" {
		return failForGood(&o, job.CannotStart, "the document names no executor")
	}
	return failForGood(&o, job.CannotStart, "this worker has no %s executor", name)
}

// Close releases what the executors hold. It is called after the last attempt has ended.
func (x *Executors) Close() error {
	var errs []error
	if x.Exec != nil {
		errs = append(errs, x.Exec.Close())
	}
	if x.HTTP != nil {
		errs = append(errs, x.HTTP.Close())
	}
	return errors.Join(errs...)
}

// begin is the outcome of an attempt that starts now.
func begin(a *job.Assignment) job.Outcome {
	return job.Outcome{RunID: a.RunID, Fence: a.Fence, Attempt: a.Attempt, StartedAt: job.At(time.Now())}
}

func succeed(o *job.Outcome, result []byte) job.Outcome {
	o.Kind, o.Result, o.FinishedAt = job.AttemptSucceeded, result, job.At(time.Now())
	return *o
}

// fail ends the attempt as failed; whether another follows is the retry policy's business.
func fail(o *job.Outcome, why job.Reason, format string, args ...any) job.Outcome {
	o.Kind, o.Reason, o.FinishedAt = job.AttemptFailed, why, job.At(time.Now())
	o.Error = cleanText(fmt.Sprintf(format, args...))
	return *o
}

// failForGood ends the attempt with a failure that no retry can mend.
func failForGood(o *job.Outcome, why job.Reason, format string, args ...any) job.Outcome {
	o.Permanent = true
	return fail(o, why, format, args...)
}

// stopped ends the attempt as its Stop says.
func stopped(o *job.Outcome, a *job.Assignment, s *Stop) job.Outcome {
	o.Reason, o.FinishedAt = s.Reason, job.At(time.Now())
	switch s.Reason {
	case job.CancelRequested:
		o.Kind, o.Error = job.AttemptCancelled, "the attempt was stopped because the run was cancelled"
	case job.TimedOut:
		o.Kind, o.Error = job.AttemptFailed, "the attempt was stopped because it ran longer than its timeout"
		if a.Spec != nil && a.Spec.Timeout > 0 {
			o.Error += " of " + a.Spec.Timeout.String()
		}
	case job.DeadlineExceeded:
		o.Kind, o.Permanent, o.Error = job.AttemptFailed, true, "the attempt was stopped because the run's deadline passed"
	case job.LeaseLost:
		o.Kind, o.Error = job.AttemptLost, "the attempt was stopped because its lease ended"
	default:
		o.Kind, o.Reason, o.Error = job.AttemptReturned, job.WorkerStopped, "the attempt was stopped because its worker shuts down"
	}
	return *o
}
