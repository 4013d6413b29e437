// Package overlap knows, for the leader's term, which runs of ticks are not terminal, per job: what the overlap policies
// ask (L6). Only the leader makes and moves these runs, so what it remembers is exact. Until it has seen all live runs, as
// it does once when the term begins, a job that somebody asks about is read from the store.
package overlap

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"github.com/musterhq/muster/job"
)

// Store reads the runs of one job that are not terminal.
type Store interface {
	LiveOfJob(ctx context.Context, id job.JobID, limit int) ([]*job.Run, error)
}

// maxRuns bounds what is known of one job. A job with more live runs allows overlap, or was edited from a policy that did;
// the runs beyond it do not count.
const maxRuns = 10_000

// Tracker is safe for concurrent use.
type Tracker struct {
	store Store

	mu    sync.Mutex
	jobs  map[job.JobID]*active
	whole bool // jobs has all live runs of ticks: nothing is read any more
	// What rows say that were read before a run ended or was released is older than what is known: since notes what happened
	// to runs while reads are under way.
	reads int
	since map[job.RunID]change
}

type change uint8

const (
	released change = iota + 1
	ended
)

type active struct {
	runs    []job.RunID // by id, which is the order of the ticks; waiting ones included
	waiting job.RunID   // the one run of overlap: queue or replace that has not been released
	read    bool        // all of the job's are here
}

// New makes a tracker that knows nothing yet.
func New(store Store) *Tracker {
	return &Tracker{store: store, jobs: map[job.JobID]*active{}, since: map[job.RunID]change{}}
}

// Active answers the non-terminal runs of the job's ticks, and the one among them that waits for the others, if any.
func (t *Tracker) Active(ctx context.Context, id job.JobID) (runs []job.RunID, waiting job.RunID, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.known(id) {
		t.beginRead()
		t.mu.Unlock()
		live, err := t.store.LiveOfJob(ctx, id, maxRuns)
		t.mu.Lock()
		t.reads--
		if err != nil {
			return nil, job.RunID{}, err
		}
		t.merge(live)
		t.of(id).read = true
	}
	a := t.jobs[id]
	if a == nil {
		return nil, job.RunID{}, nil
	}
	return slices.Clone(a.runs), a.waiting, nil
}

// Known tells whether Active answers without the store.
func (t *Tracker) Known(id job.JobID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.known(id)
}

func (t *Tracker) known(id job.JobID) bool {
	a := t.jobs[id]
	return t.whole || a != nil && a.read
}

func (t *Tracker) of(id job.JobID) *active {
	a := t.jobs[id]
	if a == nil {
		a = &active{}
		t.jobs[id] = a
	}
	return a
}

func (a *active) add(r *job.Run) {
	i, there := slices.BinarySearchFunc(a.runs, r.ID, compare)
	if !there && len(a.runs) < maxRuns {
		a.runs = slices.Insert(a.runs, i, r.ID)
	}
	switch {
	case r.State == job.Waiting && r.Reason == job.OverlapQueued:
		a.waiting = r.ID
	case a.waiting == r.ID:
		a.waiting = job.RunID{}
	}
}

// free tells whether the run that waits has nothing before it.
func (a *active) free() bool {
	return !a.waiting.IsZero() && (len(a.runs) == 0 || a.runs[0] == a.waiting)
}

func compare(a, b job.RunID) int { return bytes.Compare(a[:], b[:]) }

// Born notes the runs of ticks: those decided, which the store may not have yet, and those stored.
func (t *Tracker) Born(runs []*job.Run) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range runs {
		if !r.State.Terminal() {
			t.of(r.JobID).add(r)
		}
	}
}

// Done notes that a run is terminal, and answers the run that now need wait no longer, or the zero id. While not all is
// known, nothing is released: Seen does.
func (t *Tracker) Done(r *job.Run) (release job.RunID) {
	if r.Trigger != job.ByTick {
		return job.RunID{}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reads > 0 {
		t.since[r.ID] = ended
	}
	a := t.jobs[r.JobID]
	if a == nil {
		return job.RunID{}
	}
	if i, there := slices.BinarySearchFunc(a.runs, r.ID, compare); there {
		a.runs = slices.Delete(a.runs, i, i+1)
	}
	if a.waiting == r.ID {
		a.waiting = job.RunID{}
	}
	if t.known(r.JobID) && a.free() {
		release = t.release(a)
	}
	if len(a.runs) == 0 && !a.read {
		delete(t.jobs, r.JobID)
	}
	return release
}

func (t *Tracker) release(a *active) job.RunID {
	id := a.waiting
	a.waiting = job.RunID{}
	if t.reads > 0 {
		t.since[id] = released
	}
	return id
}

// Waits tells whether a run that the store says waits for others of its job has to, as far as is known.
func (t *Tracker) Waits(r *job.Run) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.known(r.JobID) {
		return true
	}
	a := t.jobs[r.JobID]
	return a != nil && len(a.runs) > 0 && compare(a.runs[0], r.ID) < 0
}

// BeginSeen is called before a page of all live runs is read, and Seen with the page; with nil if it could not be read.
func (t *Tracker) BeginSeen() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.beginRead()
}

// Seen notes a page of live runs. With the last page everything is known, and the runs are answered that need not wait.
func (t *Tracker) Seen(live []*job.Run, last bool) (release []job.RunID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reads--
	t.merge(live)
	if !last || t.whole {
		return nil
	}
	t.whole = true
	for id, a := range t.jobs {
		if a.read = false; len(a.runs) == 0 {
			delete(t.jobs, id)
		} else if a.free() {
			release = append(release, t.release(a))
		}
	}
	slices.SortFunc(release, compare)
	return release
}

func (t *Tracker) beginRead() {
	if t.reads == 0 {
		clear(t.since)
	}
	t.reads++
}

func (t *Tracker) merge(live []*job.Run) {
	for _, r := range live {
		if r.Trigger != job.ByTick || t.since[r.ID] == ended {
			continue
		}
		if t.since[r.ID] == released {
			c := *r
			c.State, c.Reason = job.Queued, job.NoReason
			r = &c
		}
		t.of(r.JobID).add(r)
	}
}
