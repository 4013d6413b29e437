package worker

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker/workerpb"
)

type stoppedClock struct{ elapsed time.Duration }

func (c *stoppedClock) Now() time.Time         { return time.Now() }
func (c *stoppedClock) Elapsed() time.Duration { return c.elapsed }

// L4: a worker that stood still between taking an assignment and beginning the work does not begin it when its lease is over
// by then: the run may have ended elsewhere.
func TestWorkDoesNotBeginAfterItsLease(t *testing.T) {
	t.Parallel()
	c := &stoppedClock{}
	a, err := New(Config{Name: "w", DataDir: t.TempDir(), Addresses: []string{"http://127.0.0.1:1"}, Handlers: &Handlers{}, Clock: c,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	a.lease.timeout = 30 * time.Second
	x := &attempt{Assignment: &job.Assignment{Fence: 7}, slots: 1} // without a document: what begins fails at once
	c.elapsed = 29 * time.Second
	if o := a.perform(t.Context(), x); o.Reason != job.CannotStart {
		t.Fatalf("within the lease: %+v", o)
	}
	c.elapsed = 30 * time.Second
	if o := a.perform(t.Context(), x); o.Kind != job.AttemptReturned || o.Reason != job.LeaseLost {
		t.Errorf("after the lease: %+v", o)
	}
}

// The leader no longer knows the session of a stream that the worker has left, and answers a heartbeat that reaches it late
// with all that it lists. That runs in good order under the session of the next stream.
func TestAStreamThatWasLeftStopsNothing(t *testing.T) {
	t.Parallel()
	a, err := New(Config{Name: "w", DataDir: t.TempDir(), Addresses: []string{"http://127.0.0.1:1"}, Handlers: &Handlers{},
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	const fence = job.Fence(7)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	a.desk.running[fence] = &attempt{Assignment: &job.Assignment{Fence: fence}, slots: 1, cancel: cancel}
	left, now := newSession(a, "http://127.0.0.1:1"), newSession(a, "http://127.0.0.1:2")
	a.line, a.seat = now, now
	for _, m := range []*workerpb.NodeMessage{
		{HeartbeatAck: &workerpb.HeartbeatAck{Seq: 1, Renewed: true, Unknown: []uint64{uint64(fence)}}},
		{Stops: []*workerpb.Stop{{RunId: make([]byte, 16), Fence: uint64(fence), Reason: "lease_lost"}}},
	} {
		if err := left.handle(m); err == nil {
			t.Error("the stream that was left is read on")
		}
		if ctx.Err() != nil {
			t.Fatalf("the attempt was stopped by %v: %v", m, context.Cause(ctx))
		}
	}
	if err := now.handle(&workerpb.NodeMessage{HeartbeatAck: &workerpb.HeartbeatAck{Seq: 1, Unknown: []uint64{uint64(fence)}}}); err != nil || ctx.Err() == nil {
		t.Errorf("the stream of now stopped nothing: %v", err)
	}
}
