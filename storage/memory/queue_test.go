package memory_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage"
	"github.com/musterhq/muster/storage/memory"
	"github.com/musterhq/muster/storage/queuetest"
)

func TestQueue(t *testing.T) {
	queuetest.Run(t, queuetest.Options{Open: func(_ *testing.T, maxLane int) storage.Queue { return memory.New(maxLane) }})
}

func depths(q *memory.Queue) map[job.LaneKey]int { _, d := q.Sample(100); return d }

// Q2, D6: all lanes together hold so many, and it is the longest lanes that leave their last to the store.
func TestTotal(t *testing.T) {
	ctx := t.Context()
	now := job.At(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	n := byte(0)
	entries := func(lane job.LaneKey, count int) (es []job.QueueEntry) {
		for range count {
			n++
			es = append(es, job.QueueEntry{RunID: job.MakeRunID(now.Time(), [10]byte{9: n}), Lane: lane, ReadyAt: now.Add(time.Duration(n) * time.Second)})
		}
		return es
	}
	for _, c := range []struct {
		name string
		push map[job.LaneKey]int
		want map[job.LaneKey]int
	}{
		{"the longest is cut", map[job.LaneKey]int{"a": 20, "b": 2, "c": 1}, map[job.LaneKey]int{"a": 7, "b": 2, "c": 1}},
		{"the longest are cut to one length", map[job.LaneKey]int{"a": 20, "b": 30, "c": 2}, map[job.LaneKey]int{"a": 4, "b": 4, "c": 2}},
		{"equal ones share", map[job.LaneKey]int{"a": 10, "b": 10}, map[job.LaneKey]int{"a": 5, "b": 5}},
		{"at the bound nothing is cut", map[job.LaneKey]int{"a": 9, "b": 1}, map[job.LaneKey]int{"a": 9, "b": 1}},
		{"there are more lanes than room", map[job.LaneKey]int{"a": 1, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1, "g": 1, "h": 1, "i": 1, "j": 1, "k": 2}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := memory.NewBounded(1000, 10)
			var all []job.QueueEntry
			for lane, count := range c.push {
				all = append(all, entries(lane, count)...)
			}
			left, err := q.Push(ctx, 0, now, all)
			if err != nil {
				t.Fatal(err)
			}
			if n := q.Len(); n != 10 || len(left) != len(all)-10 {
				t.Errorf("of %d entries %d stay and %d are left, want 10 to stay", len(all), n, len(left))
			}
			if d := cmp.Diff(c.want, depths(q)); c.want != nil && d != "" {
				t.Errorf("lanes (-want +got):\n%s", d)
			}
			latest := map[job.LaneKey]job.Instant{} // of what stayed
			for _, e := range q.Entries() {
				latest[e.Lane] = max(latest[e.Lane], e.ReadyAt)
			}
			for _, e := range left {
				if e.ReadyAt < latest[e.Lane] {
					t.Errorf("lane %s left an entry that is not its last", e.Lane)
				}
			}
		})
	}
}

// A full queue must not look through all lanes at each push: it makes some room.
func TestTotalMakesRoom(t *testing.T) {
	now := job.At(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	q := memory.NewBounded(1000, 320)
	for i := range 321 {
		e := job.QueueEntry{RunID: job.MakeRunID(now.Time(), [10]byte{8: byte(i >> 8), 9: byte(i)}), Lane: job.LaneKey(fmt.Sprint(i % 7)), ReadyAt: now}
		if _, err := q.Push(t.Context(), 0, now, []job.QueueEntry{e}); err != nil {
			t.Fatal(err)
		}
	}
	if n, lanes := q.Len(), len(depths(q)); n != 310 || lanes != 7 {
		t.Fatalf("%d entries stay in %d lanes, want 310 in 7", n, lanes)
	}
}
