package scheduler_test

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/clustertest"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
)

// overwhelmed is a store that is through with so many bytes of results, or so many ticks, in the time that a statement has, and
// has done nothing when it is not.
type overwhelmed struct {
	scheduler.Store
	away         atomic.Bool
	bytes, ticks int
	movesFailed  atomic.Int64
	ticksFailed  atomic.Int64
}

func (s *overwhelmed) timeout(ctx context.Context, many bool, failed *atomic.Int64) error {
	if many {
		failed.Add(1)
		time.Sleep(4 * time.Second)
	}
	if many || s.away.Load() {
		return job.Errorf(job.Unavailable, "store_unavailable", "canceling statement due to statement timeout")
	}
	return nil
}

func (s *overwhelmed) Move(ctx context.Context, epoch job.Epoch, moves []job.Move) ([]job.Moved, error) {
	n := 0
	for i := range moves {
		n += len(moves[i].Result)
	}
	if err := s.timeout(ctx, n > s.bytes, &s.movesFailed); err != nil {
		return nil, err
	}
	return s.Store.Move(ctx, epoch, moves)
}

func (s *overwhelmed) StoreTicks(ctx context.Context, epoch job.Epoch, ticks []job.Tick) ([]*job.Run, error) {
	if err := s.timeout(ctx, len(ticks) > s.ticks, &s.ticksFailed); err != nil {
		return nil, err
	}
	return s.Store.StoreTicks(ctx, epoch, ticks)
}

// A store that is too slow for all that waits at once stores it in parts: it must not be tried whole for ever.
func TestASlowStoreIsNotOverwhelmed(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		s := &overwhelmed{Store: c.Store, bytes: 5 << 20, ticks: 10}
		c.Configure = func(x *scheduler.Config) { x.Store = s }
		c.Depose()
		c.Lead()
		result := append(append([]byte{'"'}, bytes.Repeat([]byte{'x'}, 60<<10)...), '"')
		c.Workers.Add(worker("w", 300), func(_ context.Context, a *job.Assignment) job.Outcome {
			time.Sleep(10 * time.Second)
			return job.Outcome{Kind: job.AttemptSucceeded, Result: result}
		})
		var runs []*job.Run
		for range 200 {
			runs = append(runs, c.Submit(job.Submission{Spec: c.Spec(plain)}, nil))
		}
		time.Sleep(5 * time.Second)
		s.away.Store(true) // so that 12 MB of results wait, and a minute's ticks
		beat := c.Apply(`{name: beat, schedule: {cron: "@every 1s", catch_up: all}, overlap: allow, handler: {name: none}}`)
		time.Sleep(time.Minute)
		s.away.Store(false)
		time.Sleep(time.Minute)
		for _, r := range runs {
			expectState(t, c.Run(r.ID), job.Succeeded, job.NoReason)
		}
		if n := s.movesFailed.Load(); n > 0 {
			t.Errorf("results were too many for the store %d times", n)
		}
		if n := len(c.RunsOf(beat)); n < 100 {
			t.Errorf("%d of 120 ticks have a run; %d times they were too many for the store", n, s.ticksFailed.Load())
		}
	})
}
