package fsm

import (
	"slices"

	"github.com/musterhq/muster/job"
)

// Fire gives birth, in the embedded store, to the runs of jobs that are due, and judges edges that are new: see
// storage.Graphs. It answers []*job.Run, in the order of the jobs' ids. Without room for a birth that job and those after it
// stay due.
type Fire struct {
	Epoch job.Epoch   `cbor:"1,keyasint"`
	Jobs  []job.JobID `cbor:"2,keyasint,omitempty"` // none: all
	Now   job.Instant `cbor:"3,keyasint"`
	Limit int         `cbor:"4,keyasint"`
}

// MaxFire bounds the births of one Fire, and MaxJudged how many jobs it looks at when it is given none: everything else in
// the log waits for it.
const (
	MaxFire   = 1000
	MaxJudged = 10_000
)

// Kind implements Command.
func (*Fire) Kind() Kind { return KindFire }

// Size implements Command.
func (c *Fire) Size() int { return 48 + 20*len(c.Jobs) }

func (c *Fire) apply(t *tx, _ Meta) Result {
	if e := t.fenced(c.Epoch); e != nil {
		return refuse(e)
	}
	jobs := slices.Clone(c.Jobs)
	if len(c.Jobs) == 0 {
		jobs = take(t.edgeRows.fresh.ascend(job.JobID{}), MaxJudged)
	}
	slices.SortFunc(jobs, compareID)
	jobs = slices.Compact(jobs)
	for _, id := range jobs {
		t.judge(id)
	}
	if len(c.Jobs) == 0 {
		jobs = slices.Collect(t.edgeRows.ready.ascend(job.JobID{}))
	}
	births, limit := []*job.Run{}, min(c.Limit, MaxFire)
	for _, id := range jobs {
		if len(births) >= limit {
			break
		}
		r := t.birthOfEdges(id, c.Now)
		if r == nil {
			continue
		}
		if t.full(runSize(r)) != nil {
			break
		}
		t.clearEdges(id)
		if t.run(r.ID) == nil {
			t.names.run(r)
			t.addLive(r)
			births = append(births, r)
		}
	}
	return Result{Value: births}
}

// judge decides how new edges of a job start: satisfied, if the job has no runs and the newest run of the upstream ended so
// that it satisfies the edge.
func (t *tx) judge(id job.JobID) {
	var put []*edgeRow
	for _, old := range t.edgeRows.of(id) {
		if !old.Fresh {
			continue
		}
		n := *old
		n.Fresh = false
		if t.newestRoot(id) == nil {
			if r := t.newestRoot(n.UpstreamID); r != nil && n.On.SatisfiedBy(r.State) {
				n.SatisfiedBy, n.SatisfiedAt = r.ID, r.FinishedAt
			}
		}
		put = append(put, &n)
	}
	if len(put) > 0 {
		t.edgeRows.put(id, put, nil)
	}
}

// birthOfEdges makes the run of a job that is due, or answers nil.
func (t *tables) birthOfEdges(id job.JobID, now job.Instant) *job.Run {
	if !t.due(id) {
		return nil
	}
	j := t.jobByID(id)
	spec := t.versions.get(versionID{id, j.Version}).spec()
	of := *j
	of.Spec = spec
	return job.BirthOfDependencies(&of, t.upstreamsOf(j), now, job.HomeQuorum)
}

// due tells whether all edges of a job are satisfied and no root run of it is live.
func (t *tables) due(id job.JobID) bool {
	if !t.edgeRows.ready.tree.Has(id) {
		return false
	}
	j := t.jobByID(id)
	return j != nil && t.liveRoot(j) == nil
}

// liveRoot answers the newest live root run of a job, or nil. Where there are task runs it looks at no more than one of
// them: a run lives as long as its tasks.
func (t *tables) liveRoot(j *job.Job) *job.Run {
	for p := range t.pins.ascend(versionID{job: j.ID}) {
		if p.JobID != j.ID {
			break
		}
		group := jobGroup(j.Namespace, j.Name)
		for k := range t.live.byJob.descend(groupKey{group, lastRun}) {
			if k.group != group {
				return nil
			}
			r := t.live.rows.get(k.id)
			if r.JobID == j.ID && !r.IsRoot() {
				r = t.live.rows.get(r.RootID)
			}
			if r != nil && r.JobID == j.ID && r.IsRoot() {
				return r
			}
		}
		break
	}
	return nil
}

func (t *tx) clearEdges(id job.JobID) {
	var put []*edgeRow
	for _, r := range t.edgeRows.of(id) {
		put = append(put, &edgeRow{JobID: r.JobID, UpstreamID: r.UpstreamID, On: r.On})
	}
	t.edgeRows.put(id, put, nil)
}

// jobByID answers a job that is there, or nil.
func (t *tables) jobByID(id job.JobID) *job.Job {
	for v := range t.versions.descend(versionID{id, 1<<64 - 1}) {
		if v.JobID != id {
			break
		}
		if j := t.jobs.get(jobName{v.Namespace, v.Name}); j != nil && j.ID == id {
			return j
		}
		break
	}
	return nil
}

// newestRoot answers the newest root run of a job that is there, live or not, or nil. Of what ended under the name of the
// job it looks at the newest thousand, so that the many runs of a deleted job of that name hold up nobody.
func (t *tables) newestRoot(id job.JobID) *job.Run {
	j := t.jobByID(id)
	if j == nil {
		return nil
	}
	newest, looks := t.liveRoot(j), 1000
	for r := range t.history.runs(Which{Namespace: j.Namespace, Job: j.Name}) {
		if r.JobID == id {
			if newest == nil || compareID(newest.ID, r.ID) < 0 {
				newest = r
			}
			break
		}
		if looks--; looks == 0 {
			break
		}
	}
	return newest
}

// upstreamsOf answers the edges of a job by the name of the upstream.
func (t *tables) upstreamsOf(j *job.Job) (list []job.Dependency) {
	for _, name := range t.edges.upstreams(j.Namespace, j.Name) {
		if u := t.jobs.get(jobName{j.Namespace, name}); u != nil {
			list = append(list, t.dependency(j, u))
		}
	}
	return list
}

func (t *tables) dependency(j, upstream *job.Job) job.Dependency {
	d := job.Dependency{Job: j.Name, Upstream: upstream.Name}
	if r := t.edgeRows.rows.get(edgeID{j.ID, upstream.ID}); r != nil {
		d.On, d.SatisfiedBy, d.SatisfiedAt, d.Coalesced = r.On, r.SatisfiedBy, r.SatisfiedAt, r.Coalesced
	}
	return d
}

// Dependencies answers the edges of a job, to its upstreams and then from its dependents, each by name.
func (v *View) Dependencies(namespace, name string) []job.Dependency {
	j := v.jobs.get(jobName{namespace, name})
	if j == nil {
		return nil
	}
	list := v.upstreamsOf(j)
	for _, d := range v.edges.dependentsOf(namespace, name) {
		list = append(list, v.dependency(v.jobs.get(jobName{namespace, d}), j))
	}
	return list
}

// Fires tells, cheaply, whether a Fire of all jobs could change anything, so that an idle cluster need not write an entry to
// learn that nothing is due. It is true where only a longer look could tell.
func (v *View) Fires() bool {
	if v.edgeRows.fresh.tree.Len() > 0 {
		return true
	}
	looks := 1000
	for id := range v.edgeRows.ready.ascend(job.JobID{}) {
		if looks--; looks == 0 || v.due(id) {
			return (&tx{tables: v.tables}).full(0) == nil
		}
	}
	return false
}

// FiresAny tells the same of some jobs.
func (v *View) FiresAny(jobs []job.JobID) bool {
	return slices.ContainsFunc(jobs, func(id job.JobID) bool {
		return v.edgeRows.fresh.tree.Has(id) || v.due(id)
	})
}
