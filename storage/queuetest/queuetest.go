// Package queuetest is the contract of storage.Queue as a suite. Every queue runs it; a behaviour that the scheduler
// relies on and that is not here is a hole.
package queuetest

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage"
)

// Options describe the queue under test.
type Options struct {
	// Open makes an empty queue whose lanes hold at most maxLane entries.
	Open func(t *testing.T, maxLane int) storage.Queue
}

var t0 = job.At(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))

func id(n int) job.RunID {
	var e [10]byte
	e[9], e[8] = byte(n), byte(n>>8)
	return job.MakeRunID(t0.Time(), e)
}

func entry(n int, lane job.LaneKey, priority uint8, readyAt job.Instant) job.QueueEntry {
	return job.QueueEntry{RunID: id(n), Lane: lane, Priority: priority, ReadyAt: readyAt}
}

func numbers(es []job.QueueEntry) (ns []int) {
	for _, e := range es {
		ns = append(ns, int(e.RunID[15])|int(e.RunID[14])<<8)
	}
	return ns
}

// Run judges a queue.
func Run(t *testing.T, o Options) {
	ctx := context.Background()
	openFor := func(t *testing.T, maxLane int) storage.Queue {
		t.Helper()
		t.Parallel()
		q := o.Open(t, maxLane)
		if stands, err := q.Raise(ctx, 1); err != nil || stands != 1 {
			t.Fatalf("raise: %d stands, %v", stands, err)
		}
		return q
	}
	open := func(t *testing.T) storage.Queue { t.Helper(); return openFor(t, 1000) }
	push := func(t *testing.T, q storage.Queue, es ...job.QueueEntry) {
		t.Helper()
		left, err := q.Push(ctx, 1, t0, es)
		if err != nil || len(left) > 0 {
			t.Fatalf("push: left %v, %v", left, err)
		}
	}
	pop := func(t *testing.T, q storage.Queue, now job.Instant, wants ...job.LaneWant) []int {
		t.Helper()
		es, err := q.Pop(ctx, 1, now, wants)
		if err != nil {
			t.Fatal(err)
		}
		return numbers(es)
	}
	expect := func(t *testing.T, got, want []int) {
		t.Helper()
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("entries (-want +got):\n%s", d)
		}
	}
	expectLeft := func(t *testing.T, q storage.Queue, now job.Instant, es []job.QueueEntry, want ...int) {
		t.Helper()
		left, err := q.Push(ctx, 1, now, es)
		if err != nil {
			t.Fatal(err)
		}
		got := numbers(left)
		slices.Sort(got)
		slices.Sort(want)
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("left (-want +got):\n%s", d)
		}
	}
	expectHeld := func(t *testing.T, q storage.Queue, ns []int, want []bool) {
		t.Helper()
		ids := make([]job.RunID, len(ns))
		for i, n := range ns {
			ids[i] = id(n)
		}
		got, err := q.Holds(ctx, ids)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("held (-want +got):\n%s", d)
		}
	}

	t.Run("order is ready time less a minute a priority step", func(t *testing.T) {
		q := open(t)
		push(t, q,
			entry(1, "a", 5, t0),
			entry(2, "a", 9, t0.Add(-time.Second)),
			entry(3, "a", 5, t0.Add(-time.Minute)),
			entry(4, "a", 0, t0.Add(-10*time.Minute)), // has aged past all others
			entry(5, "a", 6, t0.Add(-30*time.Second)),
		)
		expect(t, pop(t, q, t0, job.LaneWant{Lane: "a", Max: 10}), []int{4, 2, 5, 3, 1})
	})
	t.Run("equal order goes by id", func(t *testing.T) {
		q := open(t)
		push(t, q, entry(3, "a", 5, t0), entry(1, "a", 5, t0), entry(2, "a", 5, t0))
		expect(t, pop(t, q, t0, job.LaneWant{Lane: "a", Max: 10}), []int{1, 2, 3})
	})
	t.Run("only the wanted lanes and numbers are popped", func(t *testing.T) {
		q := open(t)
		push(t, q, entry(1, "a", 5, t0), entry(2, "a", 5, t0), entry(3, "b", 5, t0), entry(4, "c", 5, t0))
		expect(t, pop(t, q, t0, job.LaneWant{Lane: "a", Max: 1}, job.LaneWant{Lane: "c", Max: 5}, job.LaneWant{Lane: "none", Max: 1}), []int{1, 4})
		expect(t, pop(t, q, t0, job.LaneWant{Lane: "a", Max: 9}, job.LaneWant{Lane: "b", Max: 9}), []int{2, 3})
	})
	t.Run("nothing is popped before its time, whatever its priority", func(t *testing.T) {
		q := open(t)
		push(t, q, entry(1, "a", 9, t0.Add(time.Second)), entry(2, "a", 0, t0))
		expect(t, pop(t, q, t0, job.LaneWant{Lane: "a", Max: 9}), []int{2})
		expect(t, pop(t, q, t0.Add(time.Second-time.Microsecond), job.LaneWant{Lane: "a", Max: 9}), nil)
		expect(t, pop(t, q, t0.Add(time.Second), job.LaneWant{Lane: "a", Max: 9}), []int{1})
	})
	t.Run("a run is queued once, as pushed last", func(t *testing.T) {
		q := open(t)
		push(t, q, entry(1, "a", 5, t0), entry(1, "a", 5, t0.Add(time.Hour)))
		expect(t, pop(t, q, t0, job.LaneWant{Lane: "a", Max: 9}), nil)
		push(t, q, entry(1, "b", 5, t0))
		expect(t, pop(t, q, t0.Add(2*time.Hour), job.LaneWant{Lane: "a", Max: 9}), nil)
		expect(t, pop(t, q, t0, job.LaneWant{Lane: "b", Max: 9}), []int{1})
	})
	t.Run("removed entries are gone, ready or delayed, and removing again is harmless", func(t *testing.T) {
		q := open(t)
		push(t, q, entry(1, "a", 5, t0), entry(2, "a", 5, t0.Add(time.Hour)), entry(3, "a", 5, t0))
		for range 2 {
			if err := q.Remove(ctx, 1, []job.RunID{id(1), id(2), id(77)}); err != nil {
				t.Fatal(err)
			}
		}
		expect(t, pop(t, q, t0.Add(2*time.Hour), job.LaneWant{Lane: "a", Max: 9}), []int{3})
	})
	t.Run("what a full lane has no room for is answered, other lanes take theirs, and room comes back", func(t *testing.T) {
		q := openFor(t, 2)
		expectLeft(t, q, t0, []job.QueueEntry{entry(1, "a", 5, t0), entry(2, "a", 5, t0), entry(3, "a", 5, t0), entry(4, "b", 5, t0)}, 3)
		expect(t, pop(t, q, t0, job.LaneWant{Lane: "a", Max: 1}), []int{1})
		push(t, q, entry(3, "a", 5, t0))
		expect(t, pop(t, q, t0, job.LaneWant{Lane: "a", Max: 9}, job.LaneWant{Lane: "b", Max: 9}), []int{2, 3, 4})
	})
	t.Run("Q2: a full lane leaves its last for one that comes before it", func(t *testing.T) {
		q := openFor(t, 3)
		push(t, q, entry(1, "a", 5, t0), entry(2, "a", 5, t0.Add(-time.Second)), entry(3, "a", 5, t0.Add(-2*time.Second)))
		expectLeft(t, q, t0, []job.QueueEntry{entry(4, "a", 9, t0)}, 1)
		expectLeft(t, q, t0, []job.QueueEntry{entry(5, "a", 0, t0), entry(6, "a", 8, t0)}, 5, 2)
		expectHeld(t, q, []int{1, 2, 3, 4, 5, 6}, []bool{false, false, true, true, false, true})
		expect(t, pop(t, q, t0, job.LaneWant{Lane: "a", Max: 9}), []int{4, 6, 3})
	})
	t.Run("Q2: what is not ready goes before what is, the latest first", func(t *testing.T) {
		q := openFor(t, 3)
		push(t, q, entry(1, "a", 9, t0.Add(time.Minute)), entry(2, "a", 9, t0.Add(time.Second)), entry(3, "a", 0, t0))
		expectLeft(t, q, t0, []job.QueueEntry{entry(4, "a", 0, t0)}, 1)
		expectLeft(t, q, t0, []job.QueueEntry{entry(5, "a", 0, t0.Add(time.Second))}, 5)
		expectLeft(t, q, t0, []job.QueueEntry{entry(6, "a", 0, t0), entry(7, "a", 0, t0)}, 2, 7)
		expect(t, pop(t, q, t0.Add(time.Hour), job.LaneWant{Lane: "a", Max: 9}), []int{3, 4, 6})
	})
	t.Run("what has become ready by the time of a push counts as ready", func(t *testing.T) {
		q := openFor(t, 2)
		push(t, q, entry(1, "a", 9, t0.Add(time.Second)), entry(2, "a", 0, t0.Add(2*time.Second)))
		expectLeft(t, q, t0.Add(time.Second), []job.QueueEntry{entry(3, "a", 0, t0.Add(time.Second))}, 2)
		expectLeft(t, q, t0.Add(time.Minute), []job.QueueEntry{entry(4, "a", 5, t0.Add(time.Minute))}, 3)
		expect(t, pop(t, q, t0.Add(time.Minute), job.LaneWant{Lane: "a", Max: 9}), []int{1, 4})
	})
	t.Run("a run that is pushed again takes no second place", func(t *testing.T) {
		q := openFor(t, 2)
		push(t, q, entry(1, "a", 5, t0), entry(2, "a", 5, t0))
		push(t, q, entry(1, "a", 4, t0))
		expectLeft(t, q, t0, []job.QueueEntry{entry(3, "a", 5, t0)}, 1)
		push(t, q, entry(3, "b", 5, t0))
		push(t, q, entry(4, "a", 5, t0), entry(4, "a", 5, t0), entry(4, "a", 5, t0))
		expect(t, pop(t, q, t0, job.LaneWant{Lane: "a", Max: 9}, job.LaneWant{Lane: "b", Max: 9}), []int{2, 4, 3})
	})
	t.Run("a caller whose time is earlier than the one before gets nothing too early", func(t *testing.T) {
		q := open(t)
		push(t, q, entry(1, "a", 5, t0), entry(2, "a", 5, t0.Add(time.Second)), entry(3, "a", 9, t0.Add(time.Minute)))
		expect(t, pop(t, q, t0.Add(time.Hour), job.LaneWant{Lane: "b", Max: 1}, job.LaneWant{Lane: "a", Max: 0}), nil)
		if _, err := q.Lanes(ctx, t0.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if _, err := q.Push(ctx, 1, t0.Add(time.Hour), []job.QueueEntry{entry(4, "a", 9, t0.Add(time.Minute))}); err != nil {
			t.Fatal(err)
		}
		expect(t, pop(t, q, t0.Add(time.Second), job.LaneWant{Lane: "a", Max: 9}), []int{1, 2})
		expect(t, pop(t, q, t0.Add(time.Minute), job.LaneWant{Lane: "a", Max: 9}), []int{3, 4})
	})
	t.Run("lanes tells depths", func(t *testing.T) {
		q := open(t)
		push(t, q, entry(1, "a", 5, t0), entry(2, "a", 6, t0), entry(3, "a", 5, t0.Add(time.Hour)), entry(4, "b", 5, t0.Add(time.Minute)))
		got, err := q.Lanes(ctx, t0)
		if err != nil {
			t.Fatal(err)
		}
		byLane := map[job.LaneKey]job.LaneDepth{}
		for _, d := range got {
			byLane[d.Lane] = d
		}
		want := map[job.LaneKey]job.LaneDepth{
			"a": {Lane: "a", Ready: 2, Delayed: 1, NextAt: t0.Add(time.Hour), First: job.Order(t0, 6)},
			"b": {Lane: "b", Delayed: 1, NextAt: t0.Add(time.Minute)},
		}
		if d := cmp.Diff(want, byLane); d != "" {
			t.Fatalf("lanes (-want +got):\n%s", d)
		}
	})
	t.Run("holds tells what is queued", func(t *testing.T) {
		q := open(t)
		push(t, q, entry(1, "a", 5, t0), entry(2, "a", 5, t0.Add(time.Hour)))
		pop(t, q, t0, job.LaneWant{Lane: "a", Max: 1})
		expectHeld(t, q, []int{1, 2, 3}, []bool{false, true, false})
	})
	t.Run("L1: an older epoch is refused everywhere and changes nothing", func(t *testing.T) {
		q := open(t)
		push(t, q, entry(1, "a", 5, t0))
		if _, err := q.Raise(ctx, 3); err != nil {
			t.Fatal(err)
		}
		_, pushErr := q.Push(ctx, 2, t0, []job.QueueEntry{entry(2, "a", 5, t0)})
		_, popErr := q.Pop(ctx, 2, t0, []job.LaneWant{{Lane: "a", Max: 9}})
		stands, raiseErr := q.Raise(ctx, 2)
		if stands != 3 {
			t.Errorf("raising to 2 answers that %d stands, want 3", stands)
		}
		for what, err := range map[string]error{"raise": raiseErr, "push": pushErr, "pop": popErr,
			"remove": q.Remove(ctx, 2, []job.RunID{id(1)}), "reset": q.Reset(ctx, 2)} {
			if job.CodeOf(err) != job.Fenced {
				t.Errorf("%s under an old epoch: %v, want fenced", what, err)
			}
		}
		es, err := q.Pop(ctx, 3, t0, []job.LaneWant{{Lane: "a", Max: 9}})
		if err != nil || len(es) != 1 || es[0].RunID != id(1) {
			t.Fatalf("the queue changed under an old epoch: %v, %v", es, err)
		}
	})
	t.Run("L1: a raise keeps what is queued, and may be repeated", func(t *testing.T) {
		q := open(t)
		push(t, q, entry(1, "a", 5, t0), entry(2, "a", 5, t0.Add(time.Hour)))
		for range 2 {
			if stands, err := q.Raise(ctx, 7); err != nil || stands != 7 {
				t.Fatalf("raise: %d stands, %v", stands, err)
			}
		}
		expectHeld(t, q, []int{1, 2}, []bool{true, true})
		es, err := q.Pop(ctx, 7, t0, []job.LaneWant{{Lane: "a", Max: 9}})
		if err != nil {
			t.Fatal(err)
		}
		expect(t, numbers(es), []int{1})
	})
	t.Run("reset empties, and the queue goes on", func(t *testing.T) {
		q := open(t)
		push(t, q, entry(1, "a", 5, t0), entry(2, "b", 5, t0.Add(time.Hour)))
		if err := q.Reset(ctx, 1); err != nil {
			t.Fatal(err)
		}
		lanes, err := q.Lanes(ctx, t0)
		if err != nil || len(lanes) != 0 {
			t.Fatalf("lanes after reset: %v, %v", lanes, err)
		}
		expectHeld(t, q, []int{1, 2}, []bool{false, false})
		push(t, q, entry(3, "a", 5, t0))
		expect(t, pop(t, q, t0.Add(2*time.Hour), job.LaneWant{Lane: "a", Max: 9}, job.LaneWant{Lane: "b", Max: 9}), []int{3})
	})
	t.Run("order holds over many entries and partial pops", func(t *testing.T) {
		q := open(t)
		var es []job.QueueEntry
		for i := range 500 {
			es = append(es, entry(i, "a", uint8(i%10), t0.Add(-time.Duration(i*7919%500)*time.Second)))
		}
		push(t, q, es...)
		last, n := int64(-1<<62), 0
		for {
			got, err := q.Pop(ctx, 1, t0, []job.LaneWant{{Lane: "a", Max: 17}})
			if err != nil {
				t.Fatal(err)
			}
			if len(got) == 0 {
				break
			}
			for _, e := range got {
				if o := job.Order(e.ReadyAt, e.Priority); o < last {
					t.Fatalf("entry %d popped after a later one", n)
				} else {
					last = o
				}
				n++
			}
		}
		if n != 500 {
			t.Fatalf("%d entries popped, want 500", n)
		}
	})
	t.Run("whatever is done to it, it is what a plain list would be", func(t *testing.T) { t.Parallel(); asList(t, o) })
}
