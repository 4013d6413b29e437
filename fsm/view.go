package fsm

import (
	"bytes"
	"iter"

	"github.com/musterhq/muster/job"
)

// View is the state at one moment. The runs and documents that it answers are the rows themselves, shared by all readers:
// nobody may change them.
type View struct{ *tables }

// Run answers a run, or nil.
func (v *View) Run(id job.RunID) *job.Run { return v.run(id) }

// Live walks the runs that are not terminal, those after the given id, in the order of their ids.
func (v *View) Live(after job.RunID) iter.Seq[*job.Run] {
	return func(yield func(*job.Run) bool) {
		for r := range v.live.rows.ascend(after) {
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
		for p := range v.pins.ascend(versionID{job: id}) {
			if p.JobID == id {
				of = p
			}
			break
		}
		if of == nil {
			return
		}
		group := jobGroup(of.Namespace, of.Name)
		for k := range v.live.byJob.ascend(groupKey{group: group}) {
			if k.group != group {
				return
			}
			// A job deleted and created again under the same name has another id.
			if r := v.live.rows.get(k.id); r.JobID == id && !yield(r) {
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
	Task          string    // name; "" means all
	Before        job.RunID // exclusive; zero: from the newest
}

// Runs walks runs downward by id, newest first.
func (v *View) Runs(w Which) iter.Seq[*job.Run] {
	switch {
	case w.Live && w.History:
		return merged(v.live.runs(w), v.history.runs(w))
	case w.Live:
		return v.live.runs(w)
	default:
		return v.history.runs(w)
	}
}

func (t *runTable) runs(w Which) iter.Seq[*job.Run] {
	from := w.Before
	if from.IsZero() {
		from = lastRun
	}
	wanted := func(r *job.Run) bool {
		return r.ID != w.Before && (w.RootID.IsZero() && r.IsRoot() || !w.RootID.IsZero() && r.RootID == w.RootID) &&
			(w.Namespace == "" || r.Namespace == w.Namespace) && (w.Job == "" || r.Job == w.Job) && (w.Task == "" || r.Task == w.Task)
	}
	var index *set[groupKey]
	var group uint64
	switch {
	case !w.RootID.IsZero():
		index, group = &t.byRoot, rootGroup(w.RootID)
	case w.Job != "":
		index, group = &t.byJob, jobGroup(w.Namespace, w.Job)
	case w.Namespace != "":
		index, group = &t.byNamespace, namespaceGroup(w.Namespace)
	}
	return func(yield func(*job.Run) bool) {
		if index == nil {
			for r := range t.rows.descend(from) {
				if wanted(r) && !yield(r) {
					return
				}
			}
			return
		}
		for k := range index.descend(groupKey{group, from}) {
			if k.group != group {
				return
			}
			if r := t.rows.get(k.id); wanted(r) && !yield(r) {
				return
			}
		}
	}
}

// Running walks, downward by id, the runs whose rows say that they run: those that the leader carries out have no lease.
func (v *View) Running() iter.Seq[*job.Run] {
	return func(yield func(*job.Run) bool) {
		for id := range v.live.running.descend(lastRun) {
			if !yield(v.live.rows.get(id)) {
				return
			}
		}
	}
}

// lastRun is an id that no other comes after.
var lastRun = job.RunID(bytes.Repeat([]byte{0xff}, len(job.RunID{})))

// merged walks two downward walks as one.
func merged(a, b iter.Seq[*job.Run]) iter.Seq[*job.Run] {
	return func(yield func(*job.Run) bool) {
		next, stop := iter.Pull(b)
		defer stop()
		other, ok := next()
		for r := range a {
			for ok && compareID(other.ID, r.ID) > 0 {
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
	for a := range v.attempts.ascend(attemptID{run: id}) {
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
		for t := range v.ledger.descend(job.TickKey{JobID: id, ScheduledAt: from}) {
			if t.JobID != id || !yield(t) {
				return
			}
		}
	}
}

// Job answers a job with its current document, or nil.
func (v *View) Job(namespace, name string) *job.Job {
	return v.complete(v.jobs.get(jobName{namespace, name}))
}

// Jobs walks the jobs of a namespace by name, those after the given one; of all namespaces, one after the other, if the
// namespace is "".
func (v *View) Jobs(namespace, after string) iter.Seq[*job.Job] {
	return func(yield func(*job.Job) bool) {
		for j := range v.jobs.ascend(jobName{namespace, after}) {
			if namespace != "" && j.Namespace != namespace {
				return
			}
			if (namespace == "" || j.Name != after) && !yield(v.complete(j)) {
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
	if row := v.versions.get(versionID{j.ID, j.Version}); row != nil {
		c.Spec = row.spec()
	}
	return &c
}

// Version answers one version of a job, or nil.
func (v *View) Version(id job.JobID, version uint64) *job.Version {
	row := v.versions.get(versionID{id, version})
	if row == nil {
		return nil
	}
	return row.version()
}

// Heads walks the jobs of all namespaces in the order of namespace and name, those after the given one.
func (v *View) Heads(afterNamespace, afterName string) iter.Seq[job.JobHead] {
	return func(yield func(job.JobHead) bool) {
		after := jobName{afterNamespace, afterName}
		for j := range v.jobs.ascend(after) {
			if (jobName{j.Namespace, j.Name}) == after {
				continue
			}
			h := job.JobHead{ID: j.ID, Namespace: j.Namespace, Name: j.Name, Version: j.Version}
			if row := v.versions.get(versionID{j.ID, j.Version}); row != nil {
				h.From = row.From
			}
			if !yield(h) {
				return
			}
		}
	}
}

// Versions walks the versions of a job, newest first.
func (v *View) Versions(id job.JobID) iter.Seq[*job.Version] {
	return func(yield func(*job.Version) bool) {
		for row := range v.versions.descend(versionID{id, 1<<64 - 1}) {
			if row.JobID != id || !yield(row.version()) {
				return
			}
		}
	}
}

func (v *versionRow) version() *job.Version {
	return &job.Version{JobID: v.JobID, Version: v.Version, From: v.From, CreatedAt: v.CreatedAt, Spec: v.spec()}
}

// Fill is how full the embedded store is.
type Fill struct {
	LiveRuns, HistoryRuns, LedgerRows                  int
	LiveBytes, HistoryBytes, KeyBytes, DefinitionBytes int64
	Limits                                             Limits
}

// Fill answers how full the embedded store is.
func (v *View) Fill() Fill {
	g := &v.g
	return Fill{LiveRuns: v.live.rows.tree.Len(), HistoryRuns: v.history.rows.tree.Len(), LedgerRows: v.ledger.tree.Len(),
		LiveBytes: g.LiveBytes, HistoryBytes: g.HistoryBytes, KeyBytes: g.KeyBytes, DefinitionBytes: g.DefinitionBytes,
		Limits: g.Limits.filled()}
}
