// Package specs answers the document that a run is pinned to, and the plan of its tasks, from memory where it can. Documents
// of a version never change, so nothing here goes stale; it is bounded, and what is dropped is read again.
package specs

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/job/dag"
	"github.com/musterhq/muster/scheduler/pace"
)

// Versions is where documents come from.
type Versions interface {
	Version(ctx context.Context, id job.JobID, version uint64) (*job.Version, error)
	// Load answers root runs, which have the documents of runs of no job.
	Load(ctx context.Context, ids []job.RunID) ([]*job.Run, error)
}

// max bounds each table, and maxTasks the tasks in all plans; when one is full it is emptied, which costs one read per
// document in use.
const (
	max      = 20_000
	maxTasks = 200_000
)

// Specs is safe for concurrent use.
type Specs struct {
	from Versions

	mu     sync.RWMutex
	byJob  map[versionKey]*job.Document
	inline map[string]*job.Document
	plans  map[planKey]*dag.Plan
	tasks  int // of all plans
}

type versionKey struct {
	id      job.JobID
	version uint64
}

// planKey names a document: the version of a job, or the root run that has one of its own.
type planKey struct {
	versionKey
	root job.RunID
}

func planKeyOf(r *job.Run) planKey {
	switch {
	case !r.JobID.IsZero():
		return planKey{versionKey: versionKey{r.JobID, r.JobVersion}}
	case r.IsRoot():
		return planKey{root: r.ID}
	}
	return planKey{root: r.RootID}
}

// New makes an empty table.
func New(from Versions) *Specs {
	return &Specs{from: from, byJob: map[versionKey]*job.Document{}, inline: map[string]*job.Document{}, plans: map[planKey]*dag.Plan{}}
}

// Prefetch reads the documents of runs that are not in memory, several at once: after a change of leader none is. What it
// cannot read is left to Of.
func (s *Specs) Prefetch(ctx context.Context, p pace.Pace, runs []*job.Run) {
	var missing []*job.Run
	seen := map[versionKey]bool{}
	s.mu.RLock()
	for _, r := range runs {
		if r == nil || r.JobID.IsZero() || r.State.Terminal() {
			continue
		}
		k := versionKey{r.JobID, r.JobVersion}
		if s.byJob[k] == nil && !seen[k] {
			seen[k] = true
			missing = append(missing, r)
		}
	}
	s.mu.RUnlock()
	if len(missing) < 2 {
		return
	}
	var failed atomic.Bool
	p.Each(len(missing), func(i int) {
		if failed.Load() {
			return
		}
		if _, err := s.Of(ctx, missing[i]); job.CodeOf(err) == job.Unavailable {
			failed.Store(true) // the others would fail as well
		}
	})
}

// Of answers the document of a run: of a task run that of its task. It must not be changed.
func (s *Specs) Of(ctx context.Context, r *job.Run) (*job.Document, error) {
	if r.Task == "" {
		return s.whole(ctx, r)
	}
	p, err := s.Plan(ctx, r)
	if err != nil {
		return nil, err
	}
	t := p.Task(r.Task)
	if t == nil {
		return nil, job.Errorf(job.Internal, "bad_spec", "the run %s is of the task %s, which its document does not have", r.ID, r.Task)
	}
	return t.Spec, nil
}

// Plan answers the plan of a run's document, of a task run that of its root's.
func (s *Specs) Plan(ctx context.Context, r *job.Run) (*dag.Plan, error) {
	k := planKeyOf(r)
	s.mu.RLock()
	p := s.plans[k]
	s.mu.RUnlock()
	if p != nil {
		return p, nil
	}
	if r.JobID.IsZero() && len(r.Spec) == 0 {
		roots, err := s.from.Load(ctx, []job.RunID{k.root})
		if err != nil {
			return nil, err
		}
		if roots[0] == nil || len(roots[0].Spec) == 0 {
			return nil, job.Errorf(job.NotFound, "no_root", "the run %s, of which %s is a part, is gone", k.root, r.ID)
		}
		r = roots[0]
	}
	d, err := s.whole(ctx, r)
	if err != nil {
		return nil, err
	}
	if p, err = dag.Compile(d); err != nil { // it was compiled before it was stored
		e := job.AsError(err)
		return nil, &job.Error{Code: job.Internal, Reason: "bad_spec", Cause: err,
			Message: "the stored document of this run cannot be carried out: " + strings.TrimPrefix(e.Field+": ", ": ") + e.Message}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.plans) >= max || s.tasks+len(p.Tasks) > maxTasks {
		clear(s.plans)
		s.tasks = 0
	}
	s.plans[k] = p
	s.tasks += len(p.Tasks)
	return p, nil
}

// whole answers the document of a root run.
func (s *Specs) whole(ctx context.Context, r *job.Run) (*job.Document, error) {
	if len(r.Spec) > 0 {
		s.mu.RLock()
		d := s.inline[string(r.Spec)]
		s.mu.RUnlock()
		if d != nil {
			return d, nil
		}
		d = new(job.Document)
		if err := json.Unmarshal(r.Spec, d); err != nil {
			return nil, job.Errorf(job.Internal, "bad_spec", "the stored document of run %s cannot be read", r.ID)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.inline) >= max {
			clear(s.inline)
		}
		s.inline[string(r.Spec)] = d
		return d, nil
	}
	k := versionKey{r.JobID, r.JobVersion}
	s.mu.RLock()
	d := s.byJob[k]
	s.mu.RUnlock()
	if d != nil {
		return d, nil
	}
	v, err := s.from.Version(ctx, k.id, k.version)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.byJob) >= max {
		clear(s.byJob)
	}
	s.byJob[k] = v.Spec
	return v.Spec, nil
}
