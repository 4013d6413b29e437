package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/musterhq/muster/job"
)

type order struct {
	ID    int    `json:"id"`
	Notes string `json:"notes,omitempty"`
}

type receipt struct {
	Total float64 `json:"total"`
}

func handlerSpec(name string) *job.Document { return &job.Document{Handler: &job.Handler{Name: name}} }

func TestHandlers(t *testing.T) {
	t.Parallel()
	h := &Handlers{}
	Register(h, "typed", func(_ context.Context, in order) (receipt, error) { return receipt{float64(in.ID) * 2}, nil })
	Register(h, "nothing", func(context.Context, struct{}) (struct{}, error) { return struct{}{}, nil })
	Register(h, "raw", func(_ context.Context, in json.RawMessage) (json.RawMessage, error) { return in, nil })
	Register(h, "pointer", func(_ context.Context, in *order) (*receipt, error) {
		if in != nil {
			return &receipt{1}, nil
		}
		return nil, nil
	})
	Register(h, "fails", func(context.Context, order) (receipt, error) { return receipt{1}, errors.New("no stock") })
	Register(h, "fails for good", func(context.Context, order) (receipt, error) {
		return receipt{}, fmt.Errorf("order: %w", Permanent(errors.New("no such customer")))
	})
	Register(h, "panics", func(context.Context, order) (receipt, error) { panic("oh\x00 no") })
	Register(h, "nan", func(context.Context, order) (receipt, error) { return receipt{math.NaN()}, nil })
	Register(h, "big", func(context.Context, order) (string, error) { return strings.Repeat("x", MaxResult), nil })
	Register(h, "nul", func(context.Context, order) (string, error) { return "a\x00b", nil })
	h.Handle("untyped", func(_ context.Context, p json.RawMessage) (json.RawMessage, error) { return p, nil })
	h.Handle("not json", func(context.Context, json.RawMessage) (json.RawMessage, error) { return []byte("done"), nil })
	h.Handle("not utf-8", func(context.Context, json.RawMessage) (json.RawMessage, error) { return []byte("\"\xff\""), nil })

	const ok, failed = job.AttemptSucceeded, job.AttemptFailed
	for _, tc := range []struct {
		name, payload string
		kind          job.OutcomeKind
		reason        job.Reason
		permanent     bool
		result        string
		text          string
	}{
		{"typed", `{"id":21}`, ok, 0, false, `{"total":42}`, ""},
		{"typed", ``, ok, 0, false, `{"total":0}`, ""},
		{"typed", `{"id":"x"}`, failed, job.CannotStart, true, "", "does not fit"},
		{"typed", `{"id":`, failed, job.CannotStart, true, "", "does not fit"},
		{"nothing", `{}`, ok, 0, false, "", ""},
		{"raw", `{"any":[1]}`, ok, 0, false, `{"any":[1]}`, ""},
		{"raw", ``, ok, 0, false, "", ""},
		{"pointer", `null`, ok, 0, false, "null", ""},
		{"pointer", `{}`, ok, 0, false, `{"total":1}`, ""},
		{"fails", `{}`, failed, job.ExitCode, false, "", "no stock"},
		{"fails for good", `{}`, failed, job.ExitCode, true, "", "order: no such customer"},
		{"panics", `{}`, failed, job.ExitCode, false, "", "the handler panicked: oh\uFFFD no"},
		{"nan", `{}`, failed, job.InvalidResult, true, "", "JSON"},
		{"big", `{}`, failed, job.InvalidResult, true, "", "result"},
		{"nul", `{}`, failed, job.InvalidResult, true, "", "result"},
		{"untyped", `[1, 2]`, ok, 0, false, `[1,2]`, ""},
		{"not json", ``, failed, job.InvalidResult, true, "", "result"},
		{"not utf-8", ``, failed, job.InvalidResult, true, "", "UTF-8"},
		{"missing", ``, failed, job.CannotStart, true, "", `no handler named "missing"`},
	} {
		t.Run(tc.name+tc.payload, func(t *testing.T) {
			a := assignmentOf(handlerSpec(tc.name))
			a.Payload = []byte(tc.payload)
			var out bytes.Buffer
			o := h.Execute(t.Context(), a, &out)
			wantOutcome(t, o, tc.kind, tc.reason, tc.permanent)
			if string(o.Result) != tc.result || !strings.Contains(o.Error, tc.text) || (tc.text == "") != (o.Error == "") {
				t.Errorf("result %s, error %q", o.Result, o.Error)
			}
			if tc.name == "panics" && !strings.Contains(out.String(), "handler_test.go") {
				t.Errorf("no stack in the output: %s", out.String())
			}
		})
	}
	if Permanent(nil) != nil {
		t.Error("Permanent(nil) is an error")
	}
}

func TestHandlersRefuseDoubles(t *testing.T) {
	t.Parallel()
	h := &Handlers{}
	fn := func(context.Context, json.RawMessage) (json.RawMessage, error) { return nil, nil }
	h.Handle("b", fn)
	h.Handle("a", fn)
	if got := fmt.Sprint(h.Names()); got != "[a b]" {
		t.Errorf("names: %s", got)
	}
	for _, name := range []string{"", "a"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q was accepted", name)
				}
			}()
			h.Handle(name, fn)
		}()
	}
}

func TestInfoFrom(t *testing.T) {
	t.Parallel()
	type key struct{}
	h := &Handlers{}
	Register(h, "info", func(ctx context.Context, _ struct{}) (struct{}, error) {
		i := InfoFrom(context.WithValue(ctx, key{}, 1)) // found through contexts that the handler derives
		fmt.Fprintf(i.Output, "%s %d %d %s/%s/%s %s %s", i.RunID, i.Attempt, i.Fence, i.Namespace, i.Job, i.Task, i.ScheduledAt, ctx.Value(key{}))
		return struct{}{}, nil
	})
	var out bytes.Buffer
	h.Execute(context.WithValue(t.Context(), key{}, "outer"), assignmentOf(handlerSpec("info")), &out)
	if want := "0192f3a4-7c1e-7abc-8def-0123456789ab 2 30064771081 default/report/load 2026-01-31T09:00:00Z outer"; out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}
	if i := InfoFrom(t.Context()); i.Output != io.Discard || i.Attempt != 0 {
		t.Errorf("outside of an attempt: %+v", i)
	}
}

func TestHandlerStops(t *testing.T) {
	t.Parallel()
	for _, tc := range stops {
		run := func(result error) job.Outcome {
			h := &Handlers{}
			ctx, cancel := context.WithCancelCause(t.Context())
			Register(h, "h", func(ctx context.Context, _ struct{}) (int, error) {
				cancel(&Stop{Reason: tc.reason})
				<-ctx.Done()
				return 1, result
			})
			return h.Execute(ctx, assignmentOf(handlerSpec("h")), io.Discard)
		}
		wantOutcome(t, run(context.Canceled), tc.kind, tc.reason, tc.permanent)
		o := run(nil) // it finished all the same
		if tc.reason == job.WorkerStopped || tc.reason == job.LeaseLost {
			wantOutcome(t, o, job.AttemptSucceeded, 0, false)
			continue
		}
		wantOutcome(t, o, tc.kind, tc.reason, tc.permanent)
	}
}

func BenchmarkHandler(b *testing.B) {
	h := &Handlers{}
	Register(h, "typed", func(_ context.Context, in order) (receipt, error) { return receipt{float64(in.ID)}, nil })
	Register(h, "nothing", func(context.Context, struct{}) (struct{}, error) { return struct{}{}, nil })
	x := &Executors{Handlers: h}
	for _, name := range []string{"nothing", "typed"} {
		b.Run(name, func(b *testing.B) {
			a := assignmentOf(handlerSpec(name))
			if name == "typed" {
				a.Payload = []byte(`{"id":7,"notes":"gift"}`)
			}
			ctx, cancel := context.WithCancelCause(b.Context())
			defer cancel(nil)
			b.ReportAllocs()
			for b.Loop() {
				if o := x.Execute(ctx, a, io.Discard); o.Kind != job.AttemptSucceeded {
					b.Fatal(o.Error)
				}
			}
		})
	}
}
