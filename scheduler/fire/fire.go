// Package fire gives birth to the runs of jobs whose dependencies are all satisfied. That they are is a fact in the store, which
// the move that ended the last upstream's run left there; clearing them is one step with the birth. So a lost word costs
// time only: a look at all jobs, every few seconds, finds what is due, and judges dependencies that are new.
package fire

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/musterhq/muster/internal/failpoint"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler/pace"
)

const (
	// Every is how often all jobs are looked at.
	Every = 5 * time.Second

	limit  = 500
	maxDue = 20_000 // more are left to the look at all
)

// Store is what fires.
type Store interface {
	Fire(ctx context.Context, epoch job.Epoch, jobs []job.JobID, now job.Instant, limit int) ([]*job.Run, error)
}

// Firer is one term's. Due may be called by any goroutine.
type Firer struct {
	Epoch  job.Epoch
	Store  Store
	Now    func() job.Instant
	Born   func([]*job.Run)
	Logger *slog.Logger

	trouble pace.Trouble
	looked  job.Instant // when all were looked at
	all     bool        // there may be more of them

	mu    sync.Mutex
	due   map[job.JobID]struct{}
	ready chan struct{}
}

// Init must be called before any other method.
func (f *Firer) Init() {
	f.trouble = pace.Trouble{Logger: f.Logger, What: "running jobs after others"}
	f.due, f.ready, f.all = map[job.JobID]struct{}{}, make(chan struct{}, 1), true
}

// Due tells of jobs that may be due (job.Moved).
func (f *Firer) Due(jobs []job.JobID) {
	f.keep(jobs)
	select {
	case f.ready <- struct{}{}:
	default:
	}
}

// keep is Due without a word to Firing: what could not be fired is tried again after a pause.
func (f *Firer) keep(jobs []job.JobID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range jobs {
		if len(f.due) < maxDue {
			f.due[id] = struct{}{}
		}
	}
}

// Firing is the part that fires. Init must have been called.
func (f *Firer) Firing() *pace.Part {
	return &pace.Part{Name: "firer", Signals: [2]<-chan struct{}{f.ready}, Turn: func(ctx context.Context) (time.Duration, error) {
		more, err := f.Step(ctx)
		switch {
		case job.CodeOf(err) == job.Fenced || err != nil && ctx.Err() != nil:
			return 0, err
		case err != nil:
			return f.trouble.Failed(err), nil
		case more:
			return 0, nil
		}
		f.trouble.Over()
		return Every, nil
	}}
}

// Step fires what is due, and tells whether there may be more.
func (f *Firer) Step(ctx context.Context) (more bool, err error) {
	now := f.Now()
	if since := now.Sub(f.looked); since >= Every || since < 0 {
		f.all = true
	}
	jobs := f.take()
	switch {
	case len(jobs) > 0:
	case f.all:
		jobs = nil // all of them
	default:
		return false, nil
	}
	runs, err := f.Store.Fire(ctx, f.Epoch, jobs, now, limit)
	if err != nil {
		f.keep(jobs)
		return false, err
	}
	if len(runs) > 0 {
		failpoint.Hit("fire/fired")
		f.Born(runs)
	}
	if jobs == nil {
		f.looked, f.all = now, len(runs) >= limit
	} else if len(runs) >= limit {
		f.keep(jobs)
	}
	return jobs != nil || f.all, nil
}

func (f *Firer) take() []job.JobID {
	f.mu.Lock()
	defer f.mu.Unlock()
	var jobs []job.JobID
	for id := range f.due {
		if len(jobs) == limit {
			break
		}
		jobs = append(jobs, id)
		delete(f.due, id)
	}
	slices.SortFunc(jobs, func(a, b job.JobID) int { return bytes.Compare(a[:], b[:]) })
	return jobs
}
