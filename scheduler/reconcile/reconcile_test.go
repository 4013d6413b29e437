package reconcile_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler/fleet"
	"github.com/musterhq/muster/scheduler/overlap"
	"github.com/musterhq/muster/scheduler/reconcile"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// long is a store with a backlog too long to be written down, and a queue that holds what it was told.
type long struct {
	n        int // rows of the backlog: one each 10 ms, the last a while ago
	more     []*job.Run
	now      job.Instant
	rows     int // that were read
	calls    int
	unqueued map[job.RunID]bool
	pushed   map[job.RunID]job.Instant
}

const gap = 10 * time.Millisecond

func (s *long) id(i int) job.RunID {
	var e [10]byte
	binary.BigEndian.PutUint32(e[6:], uint32(i))
	return job.MakeRunID(start.Add(-time.Hour-time.Duration(s.n-i)*gap), e)
}

func (s *long) Live(_ context.Context, after job.RunID, limit int) ([]*job.Run, error) {
	s.calls++
	var out []*job.Run
	first := sort.Search(s.n, func(i int) bool { id := s.id(i); return bytes.Compare(id[:], after[:]) > 0 })
	for i := first; i < s.n && len(out) < limit; i++ {
		out = append(out, &job.Run{ID: s.id(i), Namespace: "default", Lane: "default", State: job.Queued})
	}
	for _, r := range s.more {
		if len(out) < limit && bytes.Compare(r.ID[:], after[:]) > 0 {
			out = append(out, r)
		}
	}
	s.rows += len(out)
	return out, nil
}

func (*long) LiveOfJob(context.Context, job.JobID, int) ([]*job.Run, error) { return nil, nil }
func (*long) Load(context.Context, []job.RunID) ([]*job.Run, error)         { return nil, nil }
func (*long) Paused(job.JobID, string) job.Reason                           { return job.NoReason }
func (*long) Move(context.Context, []job.Move) error                        { return nil }
func (*long) Heard(context.Context, []*job.Run) error                       { return nil }

func (s *long) Holds(_ context.Context, ids []job.RunID) ([]bool, error) {
	out := make([]bool, len(ids))
	for i, id := range ids {
		out[i] = !s.unqueued[id]
	}
	return out, nil
}

func (s *long) Push(_ context.Context, _ job.Epoch, _ job.Instant, entries []job.QueueEntry) ([]job.QueueEntry, error) {
	for _, e := range entries {
		s.pushed[e.RunID] = s.now
		delete(s.unqueued, e.RunID)
	}
	return nil, nil
}

func reconciler(s *long) *reconcile.Reconciler {
	now := func() job.Instant { return s.now }
	r := &reconcile.Reconciler{Epoch: 1, Store: s, Queue: s, Control: s, Mover: s, Overlap: overlap.New(s), Now: now,
		Fleet: fleet.New(now, func() time.Duration { return 0 }, nil), Logger: slog.New(slog.DiscardHandler), Wake: func() {}, Swept: func() {},
		Stop: func(context.Context, job.Reason, ...job.RunID) {}}
	r.Init()
	return r
}

// turn has a reconciler work for a while, as time goes on.
func (s *long) turn(t *testing.T, r *reconcile.Reconciler, for_ time.Duration) {
	t.Helper()
	for end := s.now.Add(for_); s.now < end; {
		wait, err := r.Step(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		s.now = s.now.Add(wait)
	}
}

// first goes once through all live runs.
func (s *long) first(t *testing.T, r *reconcile.Reconciler) {
	t.Helper()
	swept := false
	r.Swept = func() { swept = true }
	for !swept {
		if _, err := r.Step(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestALongBacklogCostsABoundedNumberOfRows(t *testing.T) {
	for _, x := range []struct {
		backlog, rows, calls int // a second
	}{
		{0, 0, 1}, {500, 100, 1}, {9_000, 2_000, 3}, {100_000, 2_500, 4}, {1_000_000, 5_000, 6},
	} {
		t.Run(fmt.Sprint(x.backlog), func(t *testing.T) {
			s := &long{n: x.backlog, now: job.At(start), unqueued: map[job.RunID]bool{}, pushed: map[job.RunID]job.Instant{}}
			r := reconciler(s)
			s.first(t, r)
			s.rows, s.calls = 0, 0
			s.turn(t, r, 6*time.Minute)
			if rows, calls := s.rows/360, (s.calls+359)/360; rows > x.rows || calls > x.calls {
				t.Errorf("%d rows a second in %d calls, want at most %d in %d", rows, calls, x.rows, x.calls)
			}
			// A birth whose hint was lost, and an old run that fell out of the queue.
			young := &job.Run{ID: job.MakeRunID(s.now.Time(), [10]byte{}), Namespace: "default", Lane: "default", State: job.Queued}
			s.more = append(s.more, young)
			s.unqueued[young.ID] = true
			born := s.now
			if x.backlog > 0 {
				s.unqueued[s.id(x.backlog/2)] = true
			}
			s.turn(t, r, 5*time.Second)
			if at, ok := s.pushed[young.ID]; !ok {
				t.Errorf("a hint that was lost is not found in five seconds")
			} else if at.Sub(born) > 5*time.Second {
				t.Errorf("it is found after %s", at.Sub(born))
			}
			s.turn(t, r, reconcile.Ahead-5*time.Second)
			if len(s.unqueued) > 0 {
				t.Error("an old run is not found while a delayed one would become due")
			}
		})
	}
}

// definitions is a store that is told from when versions tick.
type definitions struct {
	heads []job.JobHead
	asked int
	told  int
	marks map[job.JobID]job.Mark
}

func (d *definitions) Heads(_ context.Context, _, afterName string, limit int) ([]job.JobHead, error) {
	d.asked++
	i := sort.Search(len(d.heads), func(i int) bool { return d.heads[i].Name > afterName })
	return d.heads[i:min(len(d.heads), i+limit)], nil
}

func (d *definitions) Version(context.Context, job.JobID, uint64) (*job.Version, error) {
	return nil, job.Errorf(job.NotFound, "version", "none")
}

func (d *definitions) StartVersion(_ context.Context, id job.JobID, version uint64, from job.Instant) error {
	d.told++
	for i := range d.heads {
		if h := &d.heads[i]; h.ID == id && h.Version == version {
			h.From = from
		}
	}
	return nil
}

func (d *definitions) Marks() (all []job.Mark) {
	for _, m := range d.marks {
		all = append(all, m)
	}
	return all
}

func (d *definitions) Mark(id job.JobID) (job.Mark, bool) { m, ok := d.marks[id]; return m, ok }
func (d *definitions) PutSchedule(_ context.Context, m job.Mark) (job.Mark, error) {
	d.marks[m.JobID] = m
	return m, nil
}
func (d *definitions) DropSchedule(_ context.Context, id job.JobID, _ uint64) error {
	delete(d.marks, id)
	return nil
}

// S11: a store that was put back to an earlier moment is said to be one, once for each job; a change under way is not.
func TestAStoreThatIsBehindRaft(t *testing.T) {
	d := &definitions{marks: map[job.JobID]job.Mark{}}
	for i, n := range []string{"a", "b"} {
		id := job.JobID{byte(i + 1)}
		d.heads = append(d.heads, job.JobHead{ID: id, Namespace: "default", Name: n, Version: 1})
		d.marks[id] = job.Mark{JobID: id, Version: 2}
	}
	var said strings.Builder
	s := &reconcile.Schedules{Definitions: d, Marks: d, Logger: slog.New(slog.NewTextHandler(&said, nil))}
	step := func() {
		if err := s.Step(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	step()
	if said.Len() > 0 {
		t.Fatal(said.String())
	}
	d.heads[0].Version = 2 // it was only read early
	step()
	step()
	if n := strings.Count(said.String(), "\n"); n != 1 || !strings.Contains(said.String(), "job=b version=1 ticks=2") {
		t.Fatal(said.String())
	}
}

// L7: the store is told from when a version ticks, once; the schedule of a job that is gone ends, whatever page it was on.
func TestVersionsAreToldFromWhenTheyTick(t *testing.T) {
	d := &definitions{marks: map[job.JobID]job.Mark{}}
	for i := range 25_000 {
		id := job.JobID{byte(i >> 16), byte(i >> 8), byte(i), 1}
		h := job.JobHead{ID: id, Namespace: "default", Name: fmt.Sprintf("job-%06d", i), Version: 2, From: 100}
		m := job.Mark{JobID: id, Namespace: "default", Job: h.Name, Version: 2, From: 100}
		switch {
		case i%1000 == 7:
			m.From = 103
		case i%1000 == 8: // an earlier version ticks, and the newer one is gone by now: not for the store
			m.Version, m.From = 1, 90
		}
		d.marks[id] = m
		if i%1000 != 9 {
			d.heads = append(d.heads, h)
		}
	}
	s := &reconcile.Schedules{Definitions: d, Marks: d, Logger: slog.New(slog.DiscardHandler)}
	for range 3 {
		if err := s.Step(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if d.told != 25 || len(d.marks) != 25_000-25 || d.asked != 3 {
		t.Fatalf("%d versions were told, %d schedules are left, in %d questions", d.told, len(d.marks), d.asked)
	}
	for range 3 {
		if err := s.Step(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if d.told != 25 || d.asked != 6 {
		t.Fatalf("%d versions were told, in %d questions", d.told, d.asked)
	}
}
