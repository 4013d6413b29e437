package replicated

import (
	"context"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

// Release implements storage.Graphs.
func (s *Store) Release(ctx context.Context, epoch job.Epoch, runs []*job.Run) ([]job.Receipt, error) {
	return s.births(ctx, runs, func(runs []*job.Run) fsm.Command { return &fsm.Release{Epoch: epoch, Runs: runs} })
}

// fireJobs is how many jobs one command names at most.
const fireJobs = 5000

// Fire implements storage.Graphs. What was born before a failure is answered; the rest is due still.
func (s *Store) Fire(ctx context.Context, epoch job.Epoch, jobs []job.JobID, now job.Instant, limit int) ([]*job.Run, error) {
	var born []*job.Run
	part := func(of []job.JobID) (n int, err error) {
		runs, err := propose[[]*job.Run](ctx, s, &fsm.Fire{Epoch: epoch, Jobs: of, Now: now, Limit: limit - len(born)})
		born = append(born, runs...)
		return len(runs), err
	}
	if jobs == nil {
		// An idle cluster must not write an entry every time somebody looks. Under a newer epoch the caller has to be told.
		for len(born) < limit {
			if v := s.state.View(); v.Epoch() <= epoch && !v.Fires() {
				break
			}
			n, err := part(nil)
			if err != nil && (len(born) == 0 || job.CodeOf(err) == job.Fenced) {
				return nil, err
			}
			if n == 0 {
				break
			}
		}
		return born, nil
	}
	for len(jobs) > 0 && len(born) < limit {
		some := jobs[:min(len(jobs), fireJobs)]
		if v := s.state.View(); v.Epoch() > epoch || v.FiresAny(some) {
			n, err := part(some)
			if err != nil && (len(born) == 0 || job.CodeOf(err) == job.Fenced) {
				return nil, err
			}
			if err != nil || n == fsm.MaxFire {
				if err != nil {
					break
				}
				continue
			}
		}
		jobs = jobs[len(some):]
	}
	return born, nil
}

// Dependencies implements storage.Graphs.
func (s *Store) Dependencies(_ context.Context, namespace, name string) ([]job.Dependency, error) {
	return s.state.View().Dependencies(namespace, name), nil
}
