package overlap_test

import (
	"context"
	"sync"
	"testing"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler/overlap"
)

type empty struct{}

func (empty) LiveOfJob(context.Context, job.JobID, int) ([]*job.Run, error) { return nil, nil }

// A run may end while its job's schedule is dropped.
func TestDoneWhileForgotten(t *testing.T) {
	tracker := overlap.New(empty{})
	r := &job.Run{ID: job.RunID{1}, JobID: job.JobID{1}, Trigger: job.ByTick, State: job.Succeeded}
	var both sync.WaitGroup
	both.Go(func() {
		for range 20_000 {
			tracker.Forget(r.JobID)
		}
	})
	both.Go(func() {
		for range 20_000 {
			if _, err := tracker.Done(context.Background(), r); err != nil {
				t.Error(err)
			}
		}
	})
	both.Wait()
}
