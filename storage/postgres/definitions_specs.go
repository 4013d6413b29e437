package postgres

import (
	"sync"

	"github.com/musterhq/muster/job"
)

// specs are the documents of jobs that were read last. A version never changes, so who learns from the database that a job
// still has the version that is known here needs neither to fetch nor to decode it. Nobody may change a document.
type specs struct {
	mu     sync.Mutex
	byName map[jobName]knownSpec // guarded by mu
}

type knownSpec struct {
	job     job.JobID
	version uint64
	spec    *job.Document
}

// Bounds of what is known: how many documents, and how long each is as text.
const (
	maxSpecs     = 1000
	maxSpecBytes = 16 << 10
)

func (s *specs) get(n jobName) knownSpec {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byName[n]
}

func (s *specs) put(n jobName, j *job.Job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.byName) >= maxSpecs {
		s.byName = nil // those in use are back at once
	}
	if s.byName == nil {
		s.byName = map[jobName]knownSpec{}
	}
	s.byName[n] = knownSpec{j.ID, j.Version, j.Spec}
}
