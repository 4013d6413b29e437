// Package specs answers the document that a run is pinned to, from memory where it can. Documents of a version never
// change, so nothing here goes stale; it is bounded, and what is dropped is read again.
package specs

import (
	"context"
	"encoding/json"
	"sync"
	"sync/atomic"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler/pace"
)

// Versions is where documents come from.
type Versions interface {
	Version(ctx context.Context, id job.JobID, version uint64) (*job.Version, error)
}

// max bounds each of the two tables; when one is full it is emptied, which costs one read per document in use.
const max = 20_000

// Specs is safe for concurrent use.
type Specs struct {
	from Versions

	mu     sync.RWMutex
	byJob  map[versionKey]*job.Document
	inline map[string]*job.Document
}

type versionKey struct {
	id      job.JobID
	version uint64
}

// New makes an empty table.
func New(from Versions) *Specs {
	return &Specs{from: from, byJob: map[versionKey]*job.Document{}, inline: map[string]*job.Document{}}
}

// Prefetch reads the documents of runs that are not in memory, several at once: after a change of leader none is. What it
// cannot read is left to Of.
func (s *Specs) Prefetch(ctx context.Context, p pace.Pace, runs []*job.Run) {
	var missing []*job.Run
	seen := map[versionKey]bool{}
	s.mu.RLock()
	for _, r := range runs {
		if r == nil || len(r.Spec) > 0 || r.State.Terminal() {
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

// Of answers the document of a run. It must not be changed.
func (s *Specs) Of(ctx context.Context, r *job.Run) (*job.Document, error) {
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
