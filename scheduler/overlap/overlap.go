// Package overlap knows, for the leader's term, which runs of ticks are not terminal, per job: what the overlap policies
// ask (L6). Only the leader makes and moves these runs, so what it remembers is exact; a job it has not looked at yet is
// read from the store once.
package overlap

import (
	"context"
	"slices"
	"sync"

	"github.com/musterhq/muster/job"
)

// Store reads the runs of one job that are not terminal.
type Store interface {
	LiveOfJob(ctx context.Context, id job.JobID, limit int) ([]*job.Run, error)
}

// readLimit bounds the one read per job. A job with more live runs than this allows overlap, or was edited from a policy
// that did; the runs beyond it do not count.
const readLimit = 1000

// Tracker is safe for concurrent use.
type Tracker struct {
	store Store

	mu   sync.Mutex
	jobs map[job.JobID]*active
}

type active struct {
	runs    []job.RunID // in tick order, waiting ones included
	waiting job.RunID   // the one run of overlap: queue or replace that has not been released
}

// New makes a tracker that knows nothing yet.
func New(store Store) *Tracker { return &Tracker{store: store, jobs: map[job.JobID]*active{}} }

// Active answers the non-terminal runs of the job's ticks, and the one among them that waits for the others, if any.
func (t *Tracker) Active(ctx context.Context, id job.JobID) (runs []job.RunID, waiting job.RunID, err error) {
	t.mu.Lock()
	a := t.jobs[id]
	t.mu.Unlock()
	if a == nil {
		live, err := t.store.LiveOfJob(ctx, id, readLimit)
		if err != nil {
			return nil, job.RunID{}, err
		}
		t.mu.Lock()
		if a = t.jobs[id]; a == nil { // nobody else read it meanwhile
			a = &active{}
			for _, r := range live {
				if r.Trigger == job.ByTick {
					a.add(r)
				}
			}
			t.jobs[id] = a
		}
		t.mu.Unlock()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(a.runs), a.waiting, nil
}

func (a *active) add(r *job.Run) {
	if !slices.Contains(a.runs, r.ID) {
		a.runs = append(a.runs, r.ID)
	}
	if r.State == job.Waiting && r.Reason == job.OverlapQueued {
		a.waiting = r.ID
	}
}

// Born notes the runs of ticks. A job that nobody asked about yet stays unread.
func (t *Tracker) Born(runs []*job.Run) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range runs {
		if a := t.jobs[r.JobID]; a != nil && !r.State.Terminal() {
			a.add(r)
		}
	}
}

// Done notes that a run is terminal, and answers the run that now need wait no longer, or the zero id.
func (t *Tracker) Done(ctx context.Context, r *job.Run) (release job.RunID, err error) {
	if r.Trigger != job.ByTick {
		return job.RunID{}, nil
	}
	t.mu.Lock()
	a := t.jobs[r.JobID]
	t.mu.Unlock()
	if a == nil {
		// Not asked about in this term, but a run may wait since an earlier one.
		if _, _, err := t.Active(ctx, r.JobID); err != nil {
			return job.RunID{}, err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if a = t.jobs[r.JobID]; a == nil {
		return job.RunID{}, nil // forgotten meanwhile: who asks next reads it
	}
	a.runs = slices.DeleteFunc(a.runs, func(id job.RunID) bool { return id == r.ID })
	if a.waiting == r.ID {
		a.waiting = job.RunID{}
	}
	if !a.waiting.IsZero() && a.runs[0] == a.waiting { // nothing before it is left
		release, a.waiting = a.waiting, job.RunID{}
	}
	return release, nil
}

// Forget drops what is known of a job that no longer ticks.
func (t *Tracker) Forget(id job.JobID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.jobs, id)
}
