package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/musterhq/muster/job"
)

// HandlerFunc is an untyped handler: the run's payload in, its result out. Both may be empty, and must otherwise be JSON.
//
// A handler runs at least once (D3), so it must be idempotent; InfoFrom gives it the run's id and the fence to be so
// with. It must return soon after ctx is done: Go cannot stop a function from outside, and until it has returned, its
// slot is taken and its attempt is not over. What it returns by then still counts where it can (see Execute).
type HandlerFunc func(ctx context.Context, payload json.RawMessage) (json.RawMessage, error)

// Handlers is the executor of functions that live in the worker's own process. The zero value is ready for use.
type Handlers struct {
	mu    sync.Mutex // held by writers
	funcs atomic.Pointer[map[string]HandlerFunc]
}

// Handle registers an untyped handler. Like http.Handle it panics on an empty name or one that is taken: that is a
// defect of the program, to be seen at its start.
func (h *Handlers) Handle(name string, fn HandlerFunc) {
	if name == "" || fn == nil {
		panic("worker: a handler needs a name and a function")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	// Copied on write, so that the path of each attempt takes no lock.
	next := map[string]HandlerFunc{}
	if old := h.funcs.Load(); old != nil {
		for k, v := range *old {
			next[k] = v
		}
	}
	if next[name] != nil {
		panic("worker: handler " + name + " is registered twice")
	}
	next[name] = fn
	h.funcs.Store(&next)
}

// Names lists the registered handlers, sorted.
func (h *Handlers) Names() []string {
	m := h.funcs.Load()
	if m == nil {
		return nil
	}
	names := make([]string, 0, len(*m))
	for n := range *m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Register registers a typed handler. The payload is decoded into In (an absent payload leaves it zero) and what fn
// returns is encoded as the result; with Out struct{} there is none. A payload that does not fit In fails the run for
// good. In and Out may be json.RawMessage to be left alone.
func Register[In, Out any](h *Handlers, name string, fn func(ctx context.Context, in In) (Out, error)) {
	h.Handle(name, func(ctx context.Context, payload json.RawMessage) (json.RawMessage, error) {
		var in In
		if raw, ok := any(&in).(*json.RawMessage); ok {
			*raw = payload
		} else if len(payload) > 0 {
			if err := json.Unmarshal(payload, &in); err != nil {
				return nil, &inputError{err}
			}
		}
		out, err := fn(ctx, in)
		if err != nil {
			return nil, err
		}
		switch v := any(&out).(type) {
		case *struct{}:
			return nil, nil
		case *json.RawMessage:
			return *v, nil
		}
		b, err := json.Marshal(out)
		if err != nil {
			return nil, &outputError{err}
		}
		return b, nil
	})
}

type (
	inputError     struct{ error } // the payload does not fit the handler
	outputError    struct{ error } // what the handler returned is not JSON
	permanentError struct{ error }
)

func (e *permanentError) Unwrap() error { return e.error }

// Permanent marks an error as one that no retry can mend: the run fails at once, whatever its retry policy. Permanent(nil)
// is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

// Info is what a handler may know of its attempt.
type Info struct {
	RunID       job.RunID
	RootID      job.RunID
	Attempt     uint32
	Fence       job.Fence // hand it to what the handler writes to, so that an older attempt can be refused (L3)
	Namespace   string
	Job         string
	Task        string
	ScheduledAt job.Instant
	Labels      map[string]string // shared: read only
	Output      io.Writer         // becomes the run's output; not to be used after the handler has returned
}

// InfoFrom gives the Info of the attempt that ctx belongs to. Outside of an attempt it is the zero Info, with an Output
// that goes nowhere.
func InfoFrom(ctx context.Context) Info {
	c, ok := ctx.Value(attemptKey{}).(*attemptContext)
	if !ok {
		return Info{Output: io.Discard}
	}
	a := c.assignment
	return Info{
		RunID: a.RunID, RootID: a.RootID, Attempt: a.Attempt, Fence: a.Fence, Namespace: a.Namespace, Job: a.Job,
		Task: a.Task, ScheduledAt: a.ScheduledAt, Labels: a.Labels, Output: c.out,
	}
}

type attemptKey struct{}

// attemptContext carries the assignment as it is: the Info is only put together for a handler that asks.
type attemptContext struct {
	context.Context
	assignment *job.Assignment
	out        io.Writer
}

func (c *attemptContext) Value(key any) any {
	if _, ok := key.(attemptKey); ok {
		return c
	}
	return c.Context.Value(key)
}

// Execute calls the handler that the document names. A handler that ends with an error after its context was cancelled
// has been stopped, for that reason. One that ends without an error has done its work; the success counts unless the run
// was cancelled or out of time, for a shutdown or a lost lease is no reason to do finished work again.
func (h *Handlers) Execute(ctx context.Context, a *job.Assignment, out io.Writer) job.Outcome {
	o := begin(a)
	var fn HandlerFunc
	if m := h.funcs.Load(); m != nil && a.Spec != nil && a.Spec.Handler != nil {
		fn = (*m)[a.Spec.Handler.Name]
	}
	if fn == nil {
		name := ""
		if a.Spec != nil && a.Spec.Handler != nil {
			name = a.Spec.Handler.Name
		}
		return failForGood(&o, job.CannotStart, "this worker has no handler named %.128q", name)
	}
	if ctx.Err() != nil {
		return stopped(&o, a, stopOf(ctx, 0))
	}
	b, err := call(&attemptContext{ctx, a, out}, fn, a.Payload)
	if ctx.Err() != nil {
		s := stopOf(ctx, 0)
		if err != nil || s.Reason != job.WorkerStopped && s.Reason != job.LeaseLost {
			return stopped(&o, a, s)
		}
	}
	if err != nil {
		return failedCall(&o, err)
	}
	result, err := checkResult(b)
	if err != nil {
		return failForGood(&o, job.InvalidResult, "%v", err)
	}
	return succeed(&o, result)
}

// call turns a panic of the handler into its error, with the stack in the output.
func call(ctx *attemptContext, fn HandlerFunc, payload json.RawMessage) (b json.RawMessage, err error) {
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(ctx.out, "panic: %v\n\n%s", p, debug.Stack())
			b, err = nil, fmt.Errorf("the handler panicked: %v", p)
		}
	}()
	return fn(ctx, payload)
}

func failedCall(o *job.Outcome, err error) job.Outcome {
	var (
		in        *inputError
		out       *outputError
		permanent *permanentError
	)
	switch {
	case errors.As(err, &in):
		return failForGood(o, job.CannotStart, "the payload does not fit the handler's input: %v", in.error)
	case errors.As(err, &out):
		return failForGood(o, job.InvalidResult, "the handler's result cannot be written as JSON: %v", out.error)
	}
	o.Permanent = errors.As(err, &permanent)
	return fail(o, job.ExitCode, "%v", err)
}
