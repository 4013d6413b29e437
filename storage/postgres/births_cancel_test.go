package postgres

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/job"
)

func raise(t *testing.T, s *Store, epoch job.Epoch) {
	t.Helper()
	if _, err := s.Raise(t.Context(), epoch); err != nil {
		t.Fatalf("raise to %d: %v", epoch, err)
	}
}

// withIntent is a run after an intent, as every store records it.
func withIntent(r *job.Run, c job.CancelIntent) *job.Run {
	n := *r
	if !n.State.Terminal() && n.CancelAt == 0 {
		n.CancelAt, n.CancelReason = c.At, c.Reason
		if c.Reason == job.CancelRequested {
			n.CancelReason = job.NoReason
		}
	}
	return &n
}

// S4: intents and moves commute: whatever comes first, a run is what one order of the two makes it, and none is lost.
func TestIntentsCommuteWithMoves(t *testing.T) {
	t.Parallel()
	url := database(t)
	leader, node := openAt(t, url), openAt(t, url)
	raise(t, leader, 1)
	at := nowMs()
	var runs []*job.Run
	for i := range 400 {
		runs = append(runs, aRun(at.Add(time.Duration(i)*time.Minute)))
	}
	submit(t, leader, runs...)
	moves, intents := make([]job.Move, len(runs)), make([]job.CancelIntent, len(runs))
	for i, r := range runs {
		f := job.MakeFence(1, uint32(i+1))
		m := job.Move{ID: r.ID, State: job.Succeeded, Fence: f, Attempt: 1, Worker: "w", StartedAt: at, FinishedAt: at.Add(time.Second)}
		switch i % 3 {
		case 1:
			m.State, m.ReadyAt, m.FinishedAt = job.Scheduled, at.Add(time.Minute), 0
		case 2:
			m.State = job.Cancelled
		}
		moves[i], intents[i] = m, job.CancelIntent{ID: r.ID, At: at.Add(time.Hour), Reason: job.OverlapReplaced}
	}
	var wg sync.WaitGroup
	inParts := func(seed uint64, do func(ctx context.Context, which []int) error) {
		rng := rand.New(rand.NewPCG(seed, rand.Uint64()))
		order := rng.Perm(len(runs))
		wg.Go(func() {
			for part := range slices.Chunk(order, 20) {
				if err := do(t.Context(), part); err != nil {
					t.Errorf("part %d: %v", seed, err)
				}
			}
		})
	}
	inParts(1, func(ctx context.Context, which []int) error {
		var part []job.Move
		for _, i := range which {
			part = append(part, moves[i])
		}
		_, err := leader.Move(ctx, 1, part)
		return err
	})
	for n := range 2 {
		inParts(uint64(2+n), func(ctx context.Context, which []int) error {
			var part []job.CancelIntent
			for _, i := range which {
				part = append(part, intents[i])
			}
			receipts, err := node.Cancel(ctx, part)
			for _, r := range receipts {
				if r.Err != nil {
					t.Errorf("intent: %v", r.Err)
				}
			}
			return err
		})
	}
	wg.Wait()
	for i, r := range runs {
		moved, _ := moves[i].Apply(r)
		intentLast := withIntent(moved, intents[i])
		moveLast, _ := moves[i].Apply(withIntent(r, intents[i]))
		got := load(t, leader, r.ID)[0]
		if a, b := cmp.Diff(intentLast, got), cmp.Diff(moveLast, got); a != "" && b != "" {
			t.Errorf("run %d is of neither order:\nmove, intent (-want +got): %s\nintent, move: %s", i, a, b)
		}
	}
	if n := ask[int](t, connect(t, url), "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"); n != 0 {
		t.Errorf("%d deadlocks", n)
	}
}

// Many callers' intents, in part for the same runs, share batches; each is answered with its run.
func TestManyIntents(t *testing.T) {
	t.Parallel()
	s := open(t)
	runs := []*job.Run{aRun(nowMs()), aRun(nowMs()), aRun(nowMs(), ended(nowMs()))}
	submit(t, s, runs...)
	none := randomID(nowMs())
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			id := none
			if i%4 < 3 {
				id = runs[i%4].ID
			}
			receipts, err := s.Cancel(t.Context(), []job.CancelIntent{{ID: id, At: nowMs()}, {ID: id, At: -1 << 62}})
			if err != nil || len(receipts) != 2 {
				t.Errorf("cancel: %d receipts, %v", len(receipts), err)
				return
			}
			switch r := receipts[0]; {
			case id == none:
				if job.CodeOf(r.Err) != job.NotFound {
					t.Errorf("no run is answered %+v", r)
				}
			case r.Err != nil || r.Run.ID != id || (r.Run.CancelAt != 0) == r.Run.State.Terminal():
				t.Errorf("answered %+v", r)
			}
		})
	}
	wg.Wait()
	// A time that Postgres cannot hold fails alone.
	other := aRun(nowMs())
	submit(t, s, other)
	fresh := aRun(nowMs())
	submit(t, s, fresh)
	receipts, err := s.Cancel(t.Context(), []job.CancelIntent{{ID: other.ID, At: -1 << 62}, {ID: fresh.ID}})
	code(t, "cancel", err, "")
	code(t, "a time that cannot be", receipts[0].Err, job.Invalid)
	if receipts[1].Err != nil || receipts[1].Run.CancelAt == 0 {
		t.Errorf("an intent without a time: %+v", receipts[1])
	}
}
