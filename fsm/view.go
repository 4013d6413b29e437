package fsm

import (
	"bytes"
	"iter"

	"github.com/hashicorp/go-memdb"
	"github.com/musterhq/muster/job"
)

// View is the state at one moment. The runs and documents that it answers are the rows themselves, shared by all readers:
// nobody may change them.
type View struct{ txn *memdb.Txn }

func (v *View) globals() *globals {
	if g := lookup[globals](v.txn, tableGlobals, globalsKey(struct{}{})); g != nil {
		return g
	}
	return new(globals)
}

// all copies a table out in the order of its keys.
func all[R any](txn *memdb.Txn, table string) []R {
	var rows []R
	for r := range ascend[R](txn, table, indexID, nil) {
		rows = append(rows, *r)
	}
	return rows
}

// ascend walks an index upward from a key.
func ascend[R any](txn *memdb.Txn, table, index string, from []byte) iter.Seq[*R] {
	return func(yield func(*R) bool) {
		it, err := txn.LowerBound(table, index, from)
		must(err)
		for raw := it.Next(); raw != nil; raw = it.Next() {
			if !yield(raw.(*R)) {
				return
			}
		}
	}
}

// descend walks an index downward from a key, the key's own row included.
func descend[R any](txn *memdb.Txn, table, index string, from []byte) iter.Seq[*R] {
	return func(yield func(*R) bool) {
		it, err := txn.ReverseLowerBound(table, index, from)
		must(err)
		for raw := it.Next(); raw != nil; raw = it.Next() {
			if !yield(raw.(*R)) {
				return
			}
		}
	}
}

// Run answers a run, or nil.
func (v *View) Run(id job.RunID) *job.Run {
	if r := lookup[job.Run](v.txn, tableLive, runKey(id)); r != nil {
		return r
	}
	return lookup[job.Run](v.txn, tableHistory, runKey(id))
}

// Live walks the runs that are not terminal, those after the given id, in the order of their ids.
func (v *View) Live(after job.RunID) iter.Seq[*job.Run] {
	return func(yield func(*job.Run) bool) {
		for r := range ascend[job.Run](v.txn, tableLive, indexID, runKey(after)) {
			if r.ID != after && !yield(r) {
				return
			}
		}
	}
}

// LiveOfJob walks the live runs of one job in the order of their ids.
func (v *View) LiveOfJob(id job.JobID) iter.Seq[*job.Run] {
	return func(yield func(*job.Run) bool) {
		var of *pin
		for p := range ascend[pin](v.txn, tablePins, indexID, markKey(id)) {
			if p.JobID == id {
				of = p
			}
			break
		}
		if of == nil {
			return
		}
		prefix := joined(of.Namespace, of.Name, nil)
		for r := range ascend[job.Run](v.txn, tableLive, indexJob, prefix) {
			if r.Namespace != of.Namespace || r.Job != of.Name {
				return
			}
			// A job deleted and created again under the same name has another id.
			if r.JobID == id && !yield(r) {
				return
			}
		}
	}
}

// Which says which runs a walk is to answer.
type Which struct {
	Live, History bool
	Namespace     string    // "" means all
	Job           string    // name; needs Namespace
	RootID        job.RunID // the task runs of this root, instead of roots
	Before        job.RunID // exclusive; zero: from the newest
}

// Runs walks runs downward by id, newest first.
func (v *View) Runs(w Which) iter.Seq[*job.Run] {
	switch {
	case w.Live && w.History:
		return merged(v.runsOf(tableLive, w), v.runsOf(tableHistory, w))
	case w.Live:
		return v.runsOf(tableLive, w)
	default:
		return v.runsOf(tableHistory, w)
	}
}

func (v *View) runsOf(table string, w Which) iter.Seq[*job.Run] {
	index, prefix := indexID, []byte(nil)
	switch {
	case !w.RootID.IsZero():
		index, prefix = indexRoot, runKey(w.RootID)
	case w.Job != "":
		index, prefix = indexJob, joined(w.Namespace, w.Job, nil)
	case w.Namespace != "":
		index, prefix = indexNamespace, append([]byte(w.Namespace), 0)
	}
	from := w.Before
	if from.IsZero() {
		from = job.RunID(bytes.Repeat([]byte{0xff}, len(from)))
	}
	of := func(r *job.Run) bool {
		switch index {
		case indexRoot:
			return r.RootID == w.RootID
		case indexJob:
			return r.Namespace == w.Namespace && r.Job == w.Job
		case indexNamespace:
			return r.Namespace == w.Namespace
		}
		return true
	}
	return func(yield func(*job.Run) bool) {
		for r := range descend[job.Run](v.txn, table, index, append(prefix, from[:]...)) {
			if !of(r) {
				return
			}
			if r.ID == w.Before || w.RootID.IsZero() && !r.IsRoot() {
				continue
			}
			if !yield(r) {
				return
			}
		}
	}
}

// merged walks two downward walks as one.
func merged(a, b iter.Seq[*job.Run]) iter.Seq[*job.Run] {
	return func(yield func(*job.Run) bool) {
		next, stop := iter.Pull(b)
		defer stop()
		other, ok := next()
		for r := range a {
			for ok && bytes.Compare(other.ID[:], r.ID[:]) > 0 {
				if !yield(other) {
					return
				}
				other, ok = next()
			}
			if !yield(r) {
				return
			}
		}
		for ; ok; other, ok = next() {
			if !yield(other) {
				return
			}
		}
	}
}

// Attempts answers the superseded attempts of a run, oldest first.
func (v *View) Attempts(id job.RunID) []job.Attempt {
	var list []job.Attempt
	for a := range ascend[job.Attempt](v.txn, tableAttempts, indexID, runKey(id)) {
		if a.RunID != id {
			break
		}
		list = append(list, *a)
	}
	return list
}

// Ticks walks the ledger of one job downward from a scheduled time, inclusive; zero means from the newest.
func (v *View) Ticks(id job.JobID, from job.Instant) iter.Seq[*job.Tick] {
	if from == 0 {
		from = 1<<63 - 1
	}
	return func(yield func(*job.Tick) bool) {
		for t := range descend[job.Tick](v.txn, tableLedger, indexID, tickKey(job.TickKey{JobID: id, ScheduledAt: from})) {
			if t.JobID != id || !yield(t) {
				return
			}
		}
	}
}

// Job answers a job with its current document, or nil.
func (v *View) Job(namespace, name string) *job.Job {
	return v.complete(lookup[job.Job](v.txn, tableJobs, nameKey(jobName{namespace, name})))
}

// Jobs walks the jobs of a namespace by name, those after the given one.
func (v *View) Jobs(namespace, after string) iter.Seq[*job.Job] {
	return func(yield func(*job.Job) bool) {
		for j := range ascend[job.Job](v.txn, tableJobs, indexID, joined(namespace, after, nil)[:len(namespace)+1+len(after)]) {
			if j.Namespace != namespace {
				return
			}
			if j.Name != after && !yield(v.complete(j)) {
				return
			}
		}
	}
}

func (v *View) complete(j *job.Job) *job.Job {
	if j == nil {
		return nil
	}
	c := *j
	if row := lookup[versionRow](v.txn, tableVersions, versionKey(versionID{j.ID, j.Version})); row != nil {
		c.Spec = row.spec()
	}
	return &c
}

// Version answers one version of a job, or nil.
func (v *View) Version(id job.JobID, version uint64) *job.Version {
	row := lookup[versionRow](v.txn, tableVersions, versionKey(versionID{id, version}))
	if row == nil {
		return nil
	}
	return row.version()
}

// Versions walks the versions of a job, newest first.
func (v *View) Versions(id job.JobID) iter.Seq[*job.Version] {
	return func(yield func(*job.Version) bool) {
		for row := range descend[versionRow](v.txn, tableVersions, indexID, versionKey(versionID{id, 1<<64 - 1})) {
			if row.JobID != id || !yield(row.version()) {
				return
			}
		}
	}
}

func (row *versionRow) version() *job.Version {
	return &job.Version{JobID: row.JobID, Version: row.Version, From: row.From, CreatedAt: row.CreatedAt, Spec: row.spec()}
}

// Fill is how full the embedded store is.
type Fill struct {
	LiveRuns, HistoryRuns, LedgerRows                  int
	LiveBytes, HistoryBytes, KeyBytes, DefinitionBytes int64
	Limits                                             Limits
}

// Fill answers how full the embedded store is.
func (v *View) Fill() Fill {
	g := v.globals()
	return Fill{LiveRuns: g.LiveRuns, HistoryRuns: g.HistoryRuns, LedgerRows: g.LedgerRows, LiveBytes: g.LiveBytes,
		HistoryBytes: g.HistoryBytes, KeyBytes: g.KeyBytes, DefinitionBytes: g.DefinitionBytes, Limits: g.Limits.filled()}
}
