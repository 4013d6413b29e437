package postgres

import (
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/job"
)

// A tick that is stored while its job is being deleted has a run of a version that is there, or no run at all; and a node
// that has the document in memory does not give birth from a version that is gone.
func TestTicksOfAJobThatGoes(t *testing.T) {
	t.Parallel()
	url := database(t)
	s := openAt(t, url)
	raise(t, s, 1)
	c := connect(t, url)
	born, none := 0, 0
	for n := range 60 {
		j := s.mustPut(t, document("a"))
		tick := func(i int) job.Tick {
			return job.Tick{JobID: j.ID, Version: 1, ScheduledAt: nowMs().Add(time.Duration(i) * time.Hour), Disposition: job.TickRun, DecidedAt: nowMs()}
		}
		if n%2 == 0 { // the document is known
			if runs, err := s.StoreTicks(t.Context(), 1, []job.Tick{tick(0)}); err != nil || runs[0] == nil {
				t.Fatalf("first tick: %v, %v", runs, err)
			}
		}
		var wg sync.WaitGroup
		k := tick(1)
		wg.Go(func() {
			time.Sleep(time.Duration(n%10) * 300 * time.Microsecond)
			if _, err := s.DeleteJob(t.Context(), "default", "a", 0); err != nil {
				t.Errorf("delete: %v", err)
			}
		})
		runs, err := s.StoreTicks(t.Context(), 1, []job.Tick{k})
		if err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		stored := load(t, s, k.RunID())[0]
		if (runs[0] == nil) != (stored == nil) {
			t.Fatalf("answered %v, stored %v", runs[0], stored)
		}
		if stored == nil {
			none++
		} else {
			born++
			if _, err := s.Version(t.Context(), j.ID, 1); err != nil {
				t.Fatalf("a run without its version: %v", err)
			}
		}
		late, err := s.StoreTicks(t.Context(), 1, []job.Tick{tick(2), k})
		if err != nil || late[0] != nil || (late[1] == nil) != (stored == nil) {
			t.Fatalf("after the job is gone: %v, %v", late, err)
		}
		if n := ask[int](t, c, "SELECT count(*) FROM muster.ticks WHERE job_id = $1", j.ID[:]); n < 2 {
			t.Fatalf("%d ledger rows", n)
		}
	}
	t.Logf("%d born, %d not", born, none)
}

// D2: ticks stored by two nodes at once, as an old and a new leader of one epoch never do, are one run each all the same.
func TestTicksTwiceAtOnce(t *testing.T) {
	t.Parallel()
	url := database(t)
	nodes := []*Store{openAt(t, url), openAt(t, url)}
	raise(t, nodes[0], 1)
	a, b := nodes[0].mustPut(t, document("a")), nodes[0].mustPut(t, document("b"))
	var ticks []job.Tick
	at := nowMs()
	for i := range 300 {
		for _, j := range []*job.Job{a, b} {
			k := job.Tick{JobID: j.ID, Version: 1, ScheduledAt: at.Add(time.Duration(i) * time.Minute), Disposition: job.TickRun, DecidedAt: at}
			switch i % 4 {
			case 1:
				k.Disposition, k.Reason, k.Until, k.Count = job.TickMissed, job.CatchUpMaxReason, k.ScheduledAt+1, 2
			case 2:
				k.Waiting = true
			}
			ticks = append(ticks, k)
		}
	}
	ticks = append(ticks, ticks[0], ticks[0]) // and in one call
	var wg sync.WaitGroup
	for _, s := range append(nodes, nodes...) {
		wg.Go(func() {
			runs, err := s.StoreTicks(t.Context(), 1, ticks)
			if err != nil {
				t.Errorf("store: %v", err)
				return
			}
			for i := range ticks {
				var want *job.Run
				if ticks[i].Disposition == job.TickRun {
					j := map[job.JobID]*job.Job{a.ID: a, b.ID: b}[ticks[i].JobID]
					want = job.BirthOfTick(&ticks[i], "default", j.Name, j.Spec, job.HomePostgres)
				}
				if d := cmp.Diff(want, runs[i]); d != "" {
					t.Errorf("tick %d (-want +got):\n%s", i, d)
					return
				}
			}
		})
	}
	wg.Wait()
	c := connect(t, url)
	if n := ask[int](t, c, "SELECT count(*) FROM muster.ticks"); n != 600 {
		t.Errorf("%d ledger rows", n)
	}
	if n := ask[int](t, c, "SELECT count(*) FROM muster.runs"); n != 450 {
		t.Errorf("%d runs", n)
	}
}
