package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

// transcript is an output that a test can wait on.
type transcript struct {
	mu      sync.Mutex
	b       bytes.Buffer
	changed chan struct{}
}

func newTranscript() *transcript { return &transcript{changed: make(chan struct{})} }

func (t *transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.changed)
	t.changed = make(chan struct{})
	return t.b.Write(p)
}

func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.String()
}

// waitFor returns once the output holds text.
func (t *transcript) waitFor(tb testing.TB, text string) {
	tb.Helper()
	late := time.After(20 * time.Second)
	for {
		t.mu.Lock()
		ok, changed := strings.Contains(t.b.String(), text), t.changed
		t.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-late:
			tb.Fatalf("the output never held %q; it is %q", text, t.String())
		}
	}
}

// eventually waits for what the system does on its own time.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	late := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(late) {
			tb.Fatalf("never happened: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func assignmentOf(spec *job.Document) *job.Assignment {
	id, err := job.ParseRunID("0192f3a4-7c1e-7abc-8def-0123456789ab")
	if err != nil {
		panic(err)
	}
	return &job.Assignment{
		RunID: id, Fence: job.MakeFence(7, 9), Attempt: 2, Namespace: "default", Job: "report", Task: "load",
		ScheduledAt: job.At(time.Date(2026, 1, 31, 9, 0, 0, 0, time.UTC)), Spec: spec,
	}
}

func wantOutcome(t *testing.T, o job.Outcome, kind job.OutcomeKind, reason job.Reason, permanent bool) {
	t.Helper()
	if o.Kind != kind || o.Reason != reason || o.Permanent != permanent {
		t.Fatalf("kind %d, reason %v, permanent %v; want %d, %v, %v (error: %s)", o.Kind, o.Reason, o.Permanent, kind, reason, permanent, o.Error)
	}
	if o.RunID.IsZero() || o.Fence != job.MakeFence(7, 9) || o.Attempt != 2 || o.StartedAt == 0 || o.FinishedAt < o.StartedAt {
		t.Fatalf("the outcome does not say whose it is or when it was: %+v", o)
	}
}

// stops are the causes and what they must make of an attempt.
var stops = []struct {
	reason    job.Reason
	kind      job.OutcomeKind
	permanent bool
}{
	{job.CancelRequested, job.AttemptCancelled, false},
	{job.TimedOut, job.AttemptFailed, false},
	{job.DeadlineExceeded, job.AttemptFailed, true},
	{job.LeaseLost, job.AttemptLost, false},
	{job.WorkerStopped, job.AttemptReturned, false},
}

func TestExecutorsPickByDocument(t *testing.T) {
	t.Parallel()
	h := &Handlers{}
	h.Handle("hello", func(context.Context, json.RawMessage) (json.RawMessage, error) { return []byte(`"hi"`), nil })
	x := &Executors{Handlers: h}
	o := x.Execute(t.Context(), assignmentOf(&job.Document{Handler: &job.Handler{Name: "hello"}}), io.Discard)
	wantOutcome(t, o, job.AttemptSucceeded, job.NoReason, false)
	for name, spec := range map[string]*job.Document{
		"no document":            nil,
		"no executor":            {},
		"an executor not here":   {Exec: &job.Exec{Command: []string{"true"}}},
		"another one not here":   {HTTP: &job.HTTP{URL: "https://example.com"}},
		"a handler not here":     {Handler: &job.Handler{Name: "other"}},
		"a handler with no name": {Handler: &job.Handler{}},
	} {
		t.Run(name, func(t *testing.T) {
			o := x.Execute(t.Context(), assignmentOf(spec), io.Discard)
			wantOutcome(t, o, job.AttemptFailed, job.CannotStart, true)
		})
	}
	if got := strings.Join(x.Names(), " "); got != "handler" {
		t.Errorf("names: %q", got)
	}
	if got := strings.Join(x.HandlerNames(), " "); got != "hello" {
		t.Errorf("handler names: %q", got)
	}
}

func TestStopWithoutACauseIsAShutdown(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if s := stopOf(ctx, 3*time.Second); s.Reason != job.WorkerStopped || s.Grace != 3*time.Second {
		t.Errorf("got %+v", s)
	}
	ctx2, cancel2 := context.WithCancelCause(t.Context())
	cancel2(errors.Join(errors.New("wrapped"), &Stop{Reason: job.TimedOut, Grace: time.Second}))
	if s := stopOf(ctx2, 0); s.Reason != job.TimedOut || s.Grace != time.Second {
		t.Errorf("got %+v", s)
	}
}

func TestLimitWriter(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		writes []string
		want   string
	}{
		"under":                  {[]string{"ab", "cd"}, "abcd"},
		"exactly":                {[]string{"abcd", "efgh"}, "abcdefgh"},
		"over in one":            {[]string{"abcdefghij"}, "abcdefgh\n[output truncated at 8 bytes]\n"},
		"over, later":            {[]string{"abcdefgh", "", "i", "j"}, "abcdefgh\n[output truncated at 8 bytes]\n"},
		"over after a full line": {[]string{"abcdefg\n", "i"}, "abcdefg\n[output truncated at 8 bytes]\n"},
	} {
		var b bytes.Buffer
		w := NewLimitWriter(&b, 8)
		for _, s := range tc.writes {
			if n, err := w.Write([]byte(s)); n != len(s) || err != nil {
				t.Errorf("%s: write answered %d, %v", name, n, err)
			}
		}
		if b.String() != tc.want {
			t.Errorf("%s: %q, want %q", name, b.String(), tc.want)
		}
	}
	var b bytes.Buffer
	outer := NewLimitWriter(&b, 0)
	inner := NewLimitWriter(outer, 0) // the agent's and an executor's: still one notice
	inner.Write(bytes.Repeat([]byte("x"), MaxOutput+1))
	if got := b.String()[MaxOutput:]; got != "\n[output truncated at 1 MiB]\n" {
		t.Errorf("notice: %q", got)
	}
}

func TestCleanText(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"plain": "plain", "a\x00b": "a\uFFFDb", "a\xffb": "a\uFFFDb"} {
		if got := cleanText(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
	if got := cleanText(strings.Repeat("ü", 5000)); len(got) > maxErrorText+8 {
		t.Errorf("a long text stays %d bytes long", len(got))
	}
}
