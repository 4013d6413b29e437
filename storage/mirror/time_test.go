package mirror_test

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage/memory"
	"github.com/musterhq/muster/storage/mirror"
	"github.com/musterhq/muster/storage/redis"
)

// timeout is how long the fake hangs.
const timeout = 300 * time.Millisecond

// fake is a remote queue in fake time. It fails as it is told.
type fake struct {
	*memory.Queue

	mu    sync.Mutex
	fail  error         // of each call
	done  bool          // but the call is carried out
	slow  time.Duration // of each call
	calls map[string]int
	steps []redis.Step
}

func newFake() *fake { return &fake{Queue: memory.New(0), calls: map[string]int{}} }

func (f *fake) set(fail error, done bool, slow time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail, f.done, f.slow = fail, done, slow
}

// count answers how often a method was called, and forgets it.
func (f *fake) count(method string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.calls[method]
	delete(f.calls, method)
	return n
}

// forget answers all calls since it was last called.
func (f *fake) forget() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := f.calls
	f.calls = map[string]int{}
	return calls
}

// sent answers all steps.
func (f *fake) sent() []redis.Step {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.steps)
}

func (f *fake) call(method string) (fail error, stop bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[method]++
	slow, fail, stop := f.slow, f.fail, f.fail != nil && !f.done
	f.mu.Unlock()
	time.Sleep(slow)
	f.mu.Lock()
	return fail, stop
}

func (f *fake) Raise(ctx context.Context, e job.Epoch) (job.Epoch, error) {
	fail, stop := f.call("raise")
	if stop {
		return 0, fail
	}
	stands, err := f.Queue.Raise(ctx, e)
	if fail != nil {
		return 0, fail
	}
	return stands, err
}

func (f *fake) Reset(ctx context.Context, e job.Epoch) error {
	fail, stop := f.call("reset")
	if stop {
		return fail
	}
	if err := f.Queue.Reset(ctx, e); err != nil {
		return err
	}
	return fail
}

func (f *fake) Step(ctx context.Context, e job.Epoch, now job.Instant, s redis.Step) (popped, left []job.QueueEntry, err error) {
	fail, stop := f.call("step")
	if stop {
		return nil, nil, fail
	}
	f.mu.Lock()
	f.steps = append(f.steps, s)
	f.mu.Unlock()
	if err := f.Queue.Remove(ctx, e, s.Remove); err != nil {
		return nil, nil, err
	}
	if left, err = f.Queue.Push(ctx, e, now, s.Push); err != nil {
		return nil, nil, err
	}
	if popped, err = f.Queue.Pop(ctx, e, now, s.Pop); err != nil {
		return nil, nil, err
	}
	if fail != nil {
		return nil, nil, fail
	}
	return popped, left, nil
}

func (f *fake) Depths(_ context.Context, _ job.Epoch, lanes []job.LaneKey) (d redis.Depths, err error) {
	if fail, stop := f.call("depths"); stop {
		return d, fail
	}
	count, sample := f.Queue.Sample(1 << 20)
	for _, k := range lanes {
		d.Of = append(d.Of, sample[k])
	}
	d.Entries, d.Lanes = f.Queue.Len(), count
	return d, nil
}

var (
	errAway = job.Errorf(job.Unavailable, "queue_unavailable", "away")
	errHung = job.Errorf(job.Unknown, "queue_unavailable", "no answer")
)

var t0 = job.At(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))

func entry(n int, lane job.LaneKey) job.QueueEntry {
	return job.QueueEntry{RunID: job.MakeRunID(t0.Time(), [10]byte{7: byte(n >> 16), 8: byte(n >> 8), 9: byte(n)}), Lane: lane, Priority: 5, ReadyAt: t0}
}

// rig is a mirror over a fake, with Run running.
type rig struct {
	*mirror.Queue
	t        *testing.T
	remote   *fake
	registry *prometheus.Registry
}

// inBubble runs a test in fake time.
func inBubble(t *testing.T, test func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, remote: newFake(), registry: prometheus.NewRegistry()}
		r.Queue = mirror.New(mirror.Config{Remote: r.remote, Logger: slog.New(slog.DiscardHandler), Registerer: r.registry})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		test(r)
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (r *rig) raise(e job.Epoch) {
	r.t.Helper()
	if stands, err := r.Raise(r.t.Context(), e); err != nil || stands != e {
		r.t.Fatalf("raise to %d: %d stands, %v", e, stands, err)
	}
}

func (r *rig) push(ns ...int) {
	r.t.Helper()
	var es []job.QueueEntry
	for _, n := range ns {
		es = append(es, entry(n, "a"))
	}
	if left, err := r.Push(r.t.Context(), 1, t0, es); err != nil || len(left) > 0 {
		r.t.Fatalf("push: left %d, %v", len(left), err)
	}
}

// pop pops one entry, which must be the n-th, and answers how long it took.
func (r *rig) pop(n int) time.Duration {
	r.t.Helper()
	began := time.Now()
	es, err := r.Pop(r.t.Context(), 1, t0, []job.LaneWant{{Lane: "a", Max: 1}})
	if err != nil || len(es) != 1 || es[0] != entry(n, "a") {
		r.t.Fatalf("popped %v, %v, want entry %d", es, err, n)
	}
	return time.Since(began)
}

func (r *rig) calls(method string, want int) {
	r.t.Helper()
	if n := r.remote.count(method); n != want {
		r.t.Errorf("%d calls of %s, want %d", n, method, want)
	}
}

// metrics compares what is exported.
func (r *rig) metrics(up float64, why string, resyncs float64) {
	r.t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			switch {
			case f.GetName() == "muster_queue_remote_up" && m.GetGauge().GetValue() != up:
				r.t.Errorf("up is %v, want %v", m.GetGauge().GetValue(), up)
			case f.GetName() == "muster_queue_resyncs_total" && m.Label[0].GetValue() == why && m.GetCounter().GetValue() != resyncs:
				r.t.Errorf("resyncs for %s: %v, want %v", why, m.GetCounter().GetValue(), resyncs)
			}
		}
	}
}

func TestOneRoundTripAPop(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.raise(1)
		r.push(1, 2, 3)
		r.push(4)
		if err := r.Remove(t.Context(), 1, []job.RunID{entry(2, "a").RunID}); err != nil {
			t.Fatal(err)
		}
		r.pop(1)
		r.pop(3)
		r.calls("step", 2)
		if s := r.remote.sent()[0]; len(s.Push) != 3 || len(s.Remove) != 1 || len(s.Pop) != 1 {
			t.Errorf("the first pop took %+v along", s)
		}
		if s := r.remote.sent()[1]; len(s.Push) != 0 || len(s.Remove) != 0 {
			t.Errorf("the second pop took %+v along", s)
		}
		r.metrics(1, "differs", 0)
	})
}

func TestChangesWaitForAPopAndNotLong(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.raise(1)
		for n := range 60 { // one each millisecond: more changes must not put the first off
			r.push(n)
			time.Sleep(time.Millisecond)
		}
		if n := r.remote.Len(); n < 40 {
			t.Errorf("%d entries are there after 60 ms", n)
		}
		time.Sleep(60 * time.Millisecond)
		synctest.Wait()
		if n := r.remote.Len(); n != 60 {
			t.Errorf("%d entries are there, want 60", n)
		}
		r.calls("step", 2)
	})
}

// An idle leader sends next to nothing, and who does not lead nothing at all.
func TestIdle(t *testing.T) {
	inBubble(t, func(r *rig) {
		time.Sleep(time.Hour)
		if calls := r.remote.forget(); len(calls) > 0 {
			t.Errorf("before it leads it calls %v", calls)
		}
		r.raise(1)
		r.push(1)
		time.Sleep(time.Second)
		r.remote.forget()
		for range 3600 {
			time.Sleep(time.Second)
			if _, err := r.Lanes(t.Context(), t0); err != nil {
				t.Fatal(err)
			}
			if es, err := r.Pop(t.Context(), 1, t0, []job.LaneWant{{Lane: "nothing here", Max: 1}}); err != nil || len(es) > 0 {
				t.Fatal(es, err)
			}
		}
		synctest.Wait()
		r.calls("depths", 360)
		if calls := r.remote.forget(); len(calls) > 0 {
			t.Errorf("when idle it calls %v", calls)
		}
	})
}

// A hung Redis costs one call, whoever makes it; then memory answers at once, until Redis answers again.
func TestHung(t *testing.T) {
	for _, done := range []bool{false, true} { // whether the pop of unknown outcome was carried out
		inBubble(t, func(r *rig) {
			r.raise(1)
			r.push(1, 2, 3, 4, 5, 6)
			r.pop(1)
			r.remote.set(errHung, done, timeout)
			if d := r.pop(2); d != timeout {
				t.Errorf("the first pop took %s", d)
			}
			for n := 3; n <= 4; n++ {
				if d := r.pop(n); d != 0 {
					t.Errorf("pop %d took %s", n, d)
				}
			}
			r.metrics(0, "unknown", 1)
			time.Sleep(time.Second + 100*time.Millisecond) // it tries again just now
			if d := r.pop(5); d != 0 {
				t.Errorf("a pop waits %s for an attempt to go back", d)
			}
			r.push(7)
			r.remote.set(nil, false, 0)
			time.Sleep(4 * time.Second)
			synctest.Wait()
			r.metrics(1, "unknown", 1)
			if n := r.remote.Len(); n != 2 {
				t.Errorf("%d entries are there, want 2", n)
			}
			r.remote.count("step")
			r.pop(6)
			r.pop(7)
			r.calls("step", 2)
		})
	}
}

// A flush that hangs does not hold up a pop.
func TestAPopDoesNotWaitForAFlush(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.raise(1)
		r.remote.set(nil, false, timeout-time.Millisecond)
		r.push(1, 2)
		time.Sleep(60 * time.Millisecond)
		if d := r.pop(1); d != 0 {
			t.Errorf("it took %s", d)
		}
		time.Sleep(time.Second)
		r.metrics(1, "unknown", 0)
		if n := r.remote.Len(); n != 1 {
			t.Errorf("%d entries are there, want 1", n)
		}
	})
}

// While Redis is away it is asked once a second, and not more.
func TestAway(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.remote.set(errAway, false, 0)
		r.raise(1) // and leads all the same
		r.calls("raise", 1)
		r.push(1, 2)
		if err := r.Reset(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		r.push(3)
		time.Sleep(time.Minute + time.Millisecond)
		r.calls("raise", 60)
		r.calls("step", 0)
		r.pop(3)
		r.metrics(0, "unavailable", 0) // it was never given up: it was never there
	})
}

// What goes back and fails at once, again and again, is tried more and more seldom.
func TestFlapping(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.raise(1)
		r.push(1)
		flushAll := func() {
			time.Sleep(70 * time.Millisecond)
			if err := r.remote.Queue.Reset(t.Context(), 1); err != nil { // foreign hands
				t.Error(err)
			}
		}
		for range 600 {
			flushAll()
			time.Sleep(930 * time.Millisecond)
		}
		if n := r.remote.count("raise"); n < 10 || n > 60 {
			t.Errorf("filled %d times in 10 minutes", n)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if !r.Used() || r.remote.Len() != 1 {
			t.Error("it has not gone back")
		}
	})
}

func TestRaise(t *testing.T) {
	inBubble(t, func(r *rig) {
		ctx := t.Context()
		r.raise(1)
		r.push(1)
		if _, err := r.remote.Queue.Raise(ctx, 5); err != nil { // a newer leader
			t.Fatal(err)
		}
		es, err := r.Pop(ctx, 1, t0, []job.LaneWant{{Lane: "a", Max: 1}})
		if job.CodeOf(err) != job.Fenced || len(es) > 0 {
			t.Fatalf("popped %v, %v under a newer leader", es, err)
		}
		if _, err := r.Push(ctx, 1, t0, []job.QueueEntry{entry(2, "a")}); job.CodeOf(err) != job.Fenced {
			t.Errorf("pushed under a newer leader: %v", err)
		}
		stands, err := r.Raise(ctx, 4)
		if job.CodeOf(err) != job.Fenced || stands != 5 {
			t.Errorf("raise to 4: %d stands, %v", stands, err)
		}
		r.remote.count("raise")
		time.Sleep(time.Minute)
		r.calls("raise", 0) // it does not lead
		r.raise(6)
		if !r.Used() {
			t.Error("the newest leader does not use redis")
		}
	})
	inBubble(t, func(r *rig) { // found at the raise itself
		if _, err := r.remote.Queue.Raise(t.Context(), 5); err != nil {
			t.Fatal(err)
		}
		if stands, err := r.Raise(t.Context(), 3); job.CodeOf(err) != job.Fenced || stands != 5 {
			t.Errorf("raise to 3: %d stands, %v", stands, err)
		}
	})
	inBubble(t, func(r *rig) { // found when nobody pops
		r.raise(1)
		if _, err := r.remote.Queue.Raise(t.Context(), 5); err != nil {
			t.Fatal(err)
		}
		r.push(1)
		time.Sleep(time.Second)
		if _, err := r.Push(t.Context(), 1, t0, nil); job.CodeOf(err) != job.Fenced {
			t.Errorf("pushed under a newer leader: %v", err)
		}
	})
}

// A new term of the same node keeps nothing of the last one's, on either side.
func TestANewTerm(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.raise(1)
		r.push(1, 2)
		r.pop(1)
		r.raise(2)
		if err := r.Reset(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := r.remote.Len(); n != 0 {
			t.Errorf("%d entries are still there", n)
		}
		r.metrics(1, "differs", 0)
	})
}

// More than goes in one round trip: pops are answered from memory meanwhile, and all of it arrives.
func TestALongBacklog(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.remote.set(nil, false, time.Millisecond)
		r.raise(1)
		var es []job.QueueEntry
		for n := range 9000 {
			es = append(es, entry(n, "a"))
		}
		if left, err := r.Push(t.Context(), 1, t0, es); err != nil || len(left) > 0 {
			t.Fatal(len(left), err)
		}
		for n := range 100 {
			if d := r.pop(n); d != 0 {
				t.Fatalf("pop %d took %s", n, d)
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := r.remote.Len(); n != 8900 {
			t.Errorf("%d entries are there, want 8900", n)
		}
		for _, s := range r.remote.sent() {
			if n := len(s.Push) + len(s.Remove); n > 2000 {
				t.Errorf("%d changes in one round trip", n)
			}
		}
		r.pop(100)
		r.metrics(1, "differs", 0)
	})
}

// What a full lane leaves to the store is taken out of Redis too.
func TestLeft(t *testing.T) {
	remote := newFake()
	q := mirror.New(mirror.Config{Remote: remote, Logger: slog.New(slog.DiscardHandler), MaxLane: 2})
	ctx := t.Context()
	if _, err := q.Raise(ctx, 1); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{3, 4, 1, 2} {
		if _, err := q.Push(ctx, 1, t0, []job.QueueEntry{entry(n, "a")}); err != nil {
			t.Fatal(err)
		}
		q.Flush(ctx)
	}
	held, err := remote.Holds(ctx, []job.RunID{entry(1, "a").RunID, entry(2, "a").RunID, entry(3, "a").RunID, entry(4, "a").RunID})
	if err != nil || !held[0] || !held[1] || held[2] || held[3] {
		t.Errorf("there are %v, %v", held, err)
	}
}
