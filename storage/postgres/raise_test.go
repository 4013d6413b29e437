package postgres

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

// L1: a leader that hangs within a transaction holds a raise up no longer than the raise has patience, and what it was
// about to do is undone.
func TestRaiseEndsZombies(t *testing.T) {
	t.Parallel()
	url := database(t)
	s := openAt(t, url)
	raise(t, s, 1)
	r := aRun(nowMs())
	submit(t, s, r)

	zombie := connect(t, url)
	tx, err := zombie.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), fenceSQL, testCluster, int64(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "UPDATE muster.runs SET state = 6"); err != nil {
		t.Fatal(err)
	}
	bystander := connect(t, url)
	other, err := bystander.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Exec(t.Context(), "SELECT pg_advisory_xact_lock_shared(1)"); err != nil {
		t.Fatal(err)
	}

	start := time.Now()
	raise(t, s, 2)
	if took := time.Since(start); took < raisePatience || took > 3*raisePatience {
		t.Errorf("the raise took %s", took)
	}
	if err := tx.Commit(context.Background()); err == nil {
		t.Error("the zombie's transaction was committed")
	}
	if err := other.Commit(t.Context()); err != nil {
		t.Errorf("a session that holds another lock was ended: %v", err)
	}
	if got := load(t, s, r.ID)[0]; got.State != job.Queued {
		t.Errorf("the run is %s", got.State)
	}
}

// L1: leaders that go on writing all the time hold a raise up for a moment only, and after it nothing of theirs commits.
func TestRaiseUnderTraffic(t *testing.T) {
	t.Parallel()
	url := database(t)
	s, movers := openAt(t, url), openAt(t, url)
	raise(t, s, 1)
	var wg sync.WaitGroup
	var raised, fenced atomic.Bool
	var moved atomic.Int64
	for range 4 {
		r := aRun(nowMs())
		submit(t, s, r)
		wg.Go(func() {
			for n := uint32(1); ; n++ {
				before := raised.Load()
				_, err := movers.Move(t.Context(), 1, []job.Move{{ID: r.ID, State: job.Scheduled, Fence: job.MakeFence(1, n), ReadyAt: nowMs()}})
				switch {
				case job.CodeOf(err) == job.Fenced:
					fenced.Store(true)
					return
				case err != nil || before:
					t.Errorf("raised before: %v, move: %v", before, err)
					return
				}
				moved.Add(1)
			}
		})
	}
	wait(t, "the leaders are busy", func() bool { return moved.Load() >= 100 || t.Failed() })
	start := time.Now()
	raise(t, s, 2)
	raised.Store(true)
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("the raise took %s", took)
	}
	wg.Wait()
	if !fenced.Load() {
		t.Error("nobody was fenced")
	}
}

// L1: once a raise is answered, no transaction of an older epoch commits, whatever goes on at the same time; and each
// epoch is raised by one at most.
func TestNoOlderEpochCommits(t *testing.T) {
	t.Parallel()
	url := database(t)
	nodes := []*Store{openAt(t, url), openAt(t, url), openAt(t, url)}
	raise(t, nodes[0], 1)
	look := connect(t, url)
	var standing atomic.Uint32
	standing.Store(1)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	var applied, refused atomic.Int64
	for i := range 6 { // leaders that believe in the epoch they last heard of, or in an older one
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), rand.Uint64()))
			for n := uint32(1); ctx.Err() == nil; n++ {
				s, e := nodes[i%3], job.Epoch(standing.Load())-job.Epoch(rng.IntN(2))
				r := aRun(nowMs())
				if _, err := s.Submit(t.Context(), []*job.Run{r}); err != nil {
					t.Errorf("submit: %v", err)
					return
				}
				m := job.Move{ID: r.ID, State: job.Succeeded, Fence: job.MakeFence(max(e, 1), n), FinishedAt: nowMs()}
				if rng.IntN(2) == 0 {
					m.State, m.ReadyAt = job.Queued, nowMs() // the other path
				}
				moved, err := s.Move(t.Context(), max(e, 1), []job.Move{m})
				switch {
				case err == nil && moved[0].Applied:
					applied.Add(1)
				case job.CodeOf(err) == job.Fenced:
					refused.Add(1)
				default:
					t.Errorf("move: %+v, %v", moved, err)
				}
			}
		})
	}
	counts := map[job.Epoch]int{}
	count := func(below job.Epoch) int {
		return ask[int](t, look, "SELECT count(*) FROM muster.runs WHERE fence < $1", int64(job.MakeFence(below, 0)))
	}
	for e := job.Epoch(2); e <= 60; e++ {
		enough := applied.Load() + 3
		wait(t, "some moves are made", func() bool { return applied.Load() >= enough || t.Failed() })
		var mu sync.Mutex
		won := 0
		var raisers sync.WaitGroup
		for _, s := range nodes[:2] {
			raisers.Go(func() {
				stands, err := s.Raise(t.Context(), e)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won++
				} else if job.CodeOf(err) != job.Fenced || stands != e {
					t.Errorf("raise %d: stands %d, %v", e, stands, err)
				}
			})
		}
		raisers.Wait()
		if won != 1 {
			t.Errorf("epoch %d was raised by %d", e, won)
		}
		counts[e] = count(e)
		standing.Store(uint32(e))
	}
	stop()
	wg.Wait()
	for e, then := range counts {
		if now := count(e); now != then {
			t.Errorf("%d moves of epochs below %d committed after it was raised", now-then, e)
		}
	}
	if applied.Load() < 50 || refused.Load() < 50 {
		t.Errorf("%d moves were made and %d refused: too few to say anything", applied.Load(), refused.Load())
	}
}
