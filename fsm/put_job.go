package fsm

import (
	"bytes"
	"strings"

	"github.com/musterhq/muster/job"
)

// PutJob creates a job of the embedded store, or a new version of it. It answers the *job.Job without its Spec. An
// upstream that is not there is Invalid; edges that close a cycle are Conflict, reason cycle.
//
// Version 2 is for documents with tasks or depends_on, which nodes that read no more than version 1 cannot carry out; others
// are written in version 1, so that a cluster whose nodes are upgraded one by one takes them all the time. The two are
// applied alike: no log has such a document in version 1, since nodes refused them before (job.Document.Unsupported). So
// where a node reads version 1 only there are no edges, and what Move and DeleteJob do to them needs no new version.
type PutJob struct {
	ID        job.JobID   `cbor:"1,keyasint"` // of the job, if it is created
	Namespace string      `cbor:"2,keyasint"`
	Name      string      `cbor:"3,keyasint"`
	Document  []byte      `cbor:"4,keyasint"`           // JSON of job.Document
	IfVersion uint64      `cbor:"5,keyasint,omitempty"` // 0: whichever
	NewOnly   bool        `cbor:"6,keyasint,omitempty"`
	At        job.Instant `cbor:"7,keyasint"`
}

// Kind implements Command.
func (*PutJob) Kind() Kind { return KindPutJob }

func (c *PutJob) version() uint8 {
	if bytes.Contains(c.Document, []byte(`"depends_on"`)) || bytes.Contains(c.Document, []byte(`"tasks"`)) {
		return 2
	}
	return 1
}

// Size implements Command.
func (c *PutJob) Size() int { return 64 + len(c.Namespace) + len(c.Name) + len(c.Document) }

func (c *PutJob) apply(t *tx, _ Meta) Result {
	if e := validNames(c.Namespace, c.Name); e != nil {
		return refuse(e)
	}
	// The document is decoded when somebody asks for it: decoding 100,000 of them was most of a restart, and so was looking
	// at every byte. Whoever proposed it has tried.
	if !isObject(c.Document) || c.ID.IsZero() {
		return refuse(job.Errorf(job.Invalid, "document", "a job needs an id and a document in JSON"))
	}
	name := jobName{c.Namespace, c.Name}
	old := t.jobs.get(name)
	var current *versionRow
	if old != nil {
		current = t.versions.get(versionID{old.ID, old.Version})
	}
	if current != nil && bytes.Equal(current.Document, c.Document) && c.repeats(old) {
		same := *old
		return Result{Value: &same}
	}
	switch {
	case old != nil && c.NewOnly:
		return refuse(job.Errorf(job.Conflict, "exists", "the job %q exists already", c.Name))
	case old == nil && c.IfVersion != 0:
		return refuse(job.Errorf(job.Conflict, "version", "the job %q does not exist", c.Name))
	case old != nil && c.IfVersion != 0 && c.IfVersion != old.Version:
		return refuse(job.Errorf(job.Conflict, "version", "the job %q is at version %d, not %d", c.Name, old.Version, c.IfVersion))
	case old == nil && t.versions.get(versionID{c.ID, 1}) != nil:
		return refuse(job.Errorf(job.Conflict, "id", "the id %s belongs to another job", c.ID))
	}
	next := job.Job{ID: c.ID, Namespace: c.Namespace, Name: c.Name, Version: 1, CreatedAt: c.At, UpdatedAt: c.At}
	if old != nil {
		next.ID, next.Version, next.CreatedAt = old.ID, old.Version+1, old.CreatedAt
	}
	depends, e := t.dependencies(c)
	if e != nil {
		return refuse(e)
	}
	row := &versionRow{JobID: next.ID, Version: next.Version, Namespace: c.Namespace, Name: c.Name, From: c.At,
		CreatedAt: c.At, Document: c.Document}
	if t.g.DefinitionBytes+versionSize(row) > t.g.Limits.filled().MaxDefinitionBytes {
		return refuse(job.Errorf(job.Exhausted, "definitions_full", "job definitions take %d bytes; no more fit", t.g.DefinitionBytes))
	}
	t.jobs.put(&next)
	t.putVersion(row)
	t.setEdges(&next, depends)
	if next.Version > KeptVersions {
		id := versionID{next.ID, next.Version - KeptVersions}
		if v := t.versions.get(id); v != nil && t.pins.get(id) == nil {
			t.dropVersion(v)
		}
	}
	return Result{Value: &next}
}

// repeats tells whether the guards allow to answer the job as it is, its document being the one given: they hold, or
// they held before this very change was made the first time.
func (c *PutJob) repeats(old *job.Job) bool {
	if c.NewOnly {
		return old.ID == c.ID
	}
	return c.IfVersion == 0 || c.IfVersion == old.Version || c.IfVersion+1 == old.Version
}

// isObject tells whether text can be a JSON object, at a glance.
func isObject(text []byte) bool {
	return len(text) >= 2 && text[0] == '{' && text[len(text)-1] == '}'
}

// validNames refuses what would break the keys of the tables. The full rules are checked where documents are parsed.
func validNames(namespace, name string) *job.Error {
	if namespace == "" || name == "" || strings.ContainsRune(namespace, 0) || strings.ContainsRune(name, 0) {
		return job.Errorf(job.Invalid, "name", "a namespace and a name are needed, without zero bytes")
	}
	return nil
}
