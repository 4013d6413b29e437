package fire

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/job"
)

type away struct{ asked int }

func (s *away) Fire(context.Context, job.Epoch, []job.JobID, job.Instant, int) ([]*job.Run, error) {
	s.asked++
	return nil, job.Errorf(job.Unavailable, "store_unavailable", "away")
}

// What is due while the store is away must not make the firer ask without a pause.
func TestFiringPausesWhileTheStoreIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		s := &away{}
		f := &Firer{Store: s, Now: func() job.Instant { return job.At(time.Now()) }, Logger: slog.New(slog.DiscardHandler)}
		f.Init()
		f.Due([]job.JobID{{1}})
		part := f.Firing()
		turn := part.Turn
		part.Turn = func(ctx context.Context) (time.Duration, error) {
			if s.asked > 100 {
				t.Error("the firer asks a store that is away without a pause")
				cancel()
			}
			return turn(ctx)
		}
		if err := part.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if s.asked < 10 {
			t.Errorf("asked %d times in 10 s", s.asked)
		}
	})
}
