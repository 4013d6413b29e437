package overlap_test

import (
	"context"
	"slices"
	"testing"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler/overlap"
)

// rows answers live runs, and lets something happen while it is asked.
type rows struct {
	live  []*job.Run
	asked int
	then  func()
}

func (s *rows) LiveOfJob(_ context.Context, id job.JobID, _ int) ([]*job.Run, error) {
	s.asked++
	var out []*job.Run
	for _, r := range s.live {
		if r.JobID == id {
			out = append(out, r)
		}
	}
	if s.then != nil {
		s.then()
	}
	return out, nil
}

var one = job.JobID{1}

func run(n byte, s job.State) *job.Run {
	r := &job.Run{ID: job.RunID{n}, JobID: one, Trigger: job.ByTick, State: s}
	if s == job.Waiting {
		r.Reason = job.OverlapQueued
	}
	return r
}

func expect(t *testing.T, tr *overlap.Tracker, waiting byte, want ...byte) {
	t.Helper()
	runs, w, err := tr.Active(context.Background(), one)
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	for _, id := range runs {
		got = append(got, id[0])
	}
	if !slices.Equal(got, want) || w[0] != waiting {
		t.Fatalf("active are %v, %d waits; want %v, %d", got, w[0], want, waiting)
	}
}

func TestAJobIsReadOnceUntilAllIsSeen(t *testing.T) {
	s := &rows{live: []*job.Run{run(1, job.Queued), run(2, job.Waiting)}}
	tr := overlap.New(s)
	for range 3 {
		expect(t, tr, 2, 1, 2)
	}
	if s.asked != 1 {
		t.Fatalf("the store was asked %d times", s.asked)
	}
	if free := tr.Done(run(1, job.Succeeded)); free[0] != 2 {
		t.Fatalf("%v is released, want 2", free)
	}
	expect(t, tr, 0, 2)
}

func TestNothingIsReadOnceAllIsSeen(t *testing.T) {
	s := &rows{}
	tr := overlap.New(s)
	tr.Born([]*job.Run{run(3, job.Queued)}) // decided, and not stored
	tr.BeginSeen()
	tr.Seen([]*job.Run{run(1, job.Queued)}, false)
	if !tr.Waits(run(2, job.Waiting)) {
		t.Fatal("while not all is known, what waits has to")
	}
	tr.BeginSeen()
	if free := tr.Seen([]*job.Run{run(2, job.Waiting)}, true); len(free) > 0 {
		t.Fatalf("%v is released", free)
	}
	expect(t, tr, 2, 1, 2, 3)
	if !tr.Waits(run(2, job.Waiting)) {
		t.Fatal("run 1 is not over")
	}
	if free := tr.Done(run(1, job.Failed)); free[0] != 2 {
		t.Fatalf("%v is released, want 2", free)
	}
	if tr.Waits(run(2, job.Waiting)) {
		t.Fatal("nothing is before it")
	}
	tr.Done(run(2, job.Failed))
	tr.Done(run(3, job.Failed))
	expect(t, tr, 0)
	if s.asked != 0 || !tr.Known(job.JobID{9}) {
		t.Fatalf("the store was asked %d times", s.asked)
	}
}

// What nobody released is, once all is seen: an earlier leader died between the end of a run and what waited for it.
func TestSeeingAllReleasesWhatWaitsForNothing(t *testing.T) {
	tr := overlap.New(&rows{})
	tr.BeginSeen()
	if free := tr.Seen([]*job.Run{run(2, job.Waiting)}, true); len(free) != 1 || free[0][0] != 2 {
		t.Fatalf("%v is released, want 2", free)
	}
	expect(t, tr, 0, 2)
}

// Rows are older than what is known: a run that ended while they were read stays ended, and one released stays so.
func TestRowsThatWereReadBeforeAnEnd(t *testing.T) {
	s := &rows{live: []*job.Run{run(1, job.Queued), run(2, job.Queued)}}
	tr := overlap.New(s)
	s.then = func() { tr.Done(run(1, job.Succeeded)) }
	expect(t, tr, 0, 2)

	tr = overlap.New(&rows{})
	tr.BeginSeen()
	tr.Seen([]*job.Run{run(1, job.Queued), run(2, job.Waiting)}, true)
	tr.BeginSeen()
	tr.Done(run(1, job.Succeeded))
	tr.Seen([]*job.Run{run(1, job.Queued), run(2, job.Waiting)}, true)
	expect(t, tr, 0, 2)
}

// A tick that an earlier leader decided may have been stored and released by it: the row is right.
func TestAStoredRowCorrectsADecision(t *testing.T) {
	tr := overlap.New(&rows{})
	tr.Born([]*job.Run{run(2, job.Waiting)})
	tr.Born([]*job.Run{run(2, job.Queued)})
	expect(t, tr, 0, 2)
}
