package fsm

import (
	"cmp"

	"github.com/musterhq/muster/job"
)

// edgeRow is how an edge stands. Each edge of the current versions has a row, and no other has.
type edgeRow struct {
	JobID       job.JobID   `cbor:"1,keyasint"`
	UpstreamID  job.JobID   `cbor:"2,keyasint"`
	On          job.EdgeOn  `cbor:"3,keyasint"`
	SatisfiedBy job.RunID   `cbor:"4,keyasint,omitzero"` // zero: nothing did since the job's last birth of its edges
	SatisfiedAt job.Instant `cbor:"5,keyasint,omitempty"`
	Coalesced   uint32      `cbor:"6,keyasint,omitempty"`
	Fresh       bool        `cbor:"7,keyasint,omitempty"` // not judged yet
}

type edgeID struct{ job, upstream job.JobID }

func (r *edgeRow) id() edgeID { return edgeID{r.JobID, r.UpstreamID} }

// edgeTable keeps the rows, and which jobs Fire has to look at.
type edgeTable struct {
	rows  table[edgeID, edgeRow]
	fresh set[job.JobID] // jobs with an edge that was not judged
	ready set[job.JobID] // jobs all of whose edges are satisfied
}

func newEdgeTable() edgeTable {
	return edgeTable{
		rows: newTable(func(a, b edgeID) bool {
			return cmp.Or(compareID(a.job, b.job), compareID(a.upstream, b.upstream)) < 0
		}, (*edgeRow).id),
		fresh: newSet(lessID[job.JobID]), ready: newSet(lessID[job.JobID]),
	}
}

func (t *edgeTable) frozen() edgeTable {
	return edgeTable{t.rows.frozen(), t.fresh.frozen(), t.ready.frozen()}
}

// of answers the rows of a job.
func (t *edgeTable) of(id job.JobID) (rows []*edgeRow) {
	for r := range t.rows.ascend(edgeID{job: id}) {
		if r.JobID != id {
			break
		}
		rows = append(rows, r)
	}
	return rows
}

// put writes rows of one job and drops others of it.
func (t *edgeTable) put(id job.JobID, rows, gone []*edgeRow) {
	for _, r := range gone {
		t.rows.del(r)
	}
	for _, r := range rows {
		t.rows.put(r)
	}
	t.index(id)
}

// index looks at the rows of one job anew.
func (t *edgeTable) index(id job.JobID) {
	rows := t.of(id)
	fresh, ready := false, len(rows) > 0
	for _, r := range rows {
		fresh = fresh || r.Fresh
		ready = ready && !r.SatisfiedBy.IsZero()
	}
	keep(&t.fresh, id, fresh)
	keep(&t.ready, id, ready)
}

func keep[K any](s *set[K], k K, in bool) {
	if in {
		s.add(k)
	} else {
		s.remove(k)
	}
}

// setEdges makes a job depend on these upstreams and no others. What is known of an edge stays with it for as long as the
// job has it; one to a job that was deleted and made again, or with another On, is a new one.
func (t *tx) setEdges(of *job.Job, upstreams []job.Edge) {
	t.edges.set(of.Namespace, of.Name, upstreams)
	var put, gone []*edgeRow
	wanted := make(map[job.JobID]bool, len(upstreams))
	for _, up := range upstreams {
		j := t.jobs.get(jobName{of.Namespace, up.Job})
		wanted[j.ID] = true
		if old := t.edgeRows.rows.get(edgeID{of.ID, j.ID}); old == nil || old.On != up.On {
			put = append(put, &edgeRow{JobID: of.ID, UpstreamID: j.ID, On: up.On, Fresh: true})
		}
	}
	for _, r := range t.edgeRows.of(of.ID) {
		if !wanted[r.UpstreamID] {
			gone = append(gone, r)
		}
	}
	t.edgeRows.put(of.ID, put, gone)
}

// restoreEdges gives edges that an older snapshot knows from documents only their rows. They count as judged: their jobs
// have been what they are for long. It also makes the indexes of all.
func (t *tables) restoreEdges() {
	for j := range t.jobs.all() {
		v := t.versions.get(versionID{j.ID, j.Version})
		if v == nil {
			continue
		}
		upstreams := upstreamsOf(v.Document)
		t.edges.set(j.Namespace, j.Name, upstreams)
		var put []*edgeRow
		for _, up := range upstreams {
			u := t.jobs.get(jobName{j.Namespace, up.Job})
			if u != nil && t.edgeRows.rows.get(edgeID{j.ID, u.ID}) == nil {
				put = append(put, &edgeRow{JobID: j.ID, UpstreamID: u.ID, On: up.On})
			}
		}
		if len(upstreams) > 0 {
			t.edgeRows.put(j.ID, put, nil)
		}
	}
}

// satisfy notes at the dependents of a job that a run of it ended so, and answers which jobs may be due because of it.
func (t *tx) satisfy(r *job.Run) (due []job.JobID) {
	if !r.IsRoot() || r.JobID.IsZero() {
		return nil
	}
	j := t.jobs.get(jobName{r.Namespace, r.Job})
	if j == nil || j.ID != r.JobID {
		return nil // deleted: nothing depends on it
	}
	for _, name := range t.edges.dependentsOf(r.Namespace, r.Job) {
		d := t.jobs.get(jobName{r.Namespace, name})
		old := t.edgeRows.rows.get(edgeID{d.ID, j.ID})
		if old == nil || !old.On.SatisfiedBy(r.State) {
			continue
		}
		n := *old
		if !n.SatisfiedBy.IsZero() {
			n.Coalesced++
		}
		n.SatisfiedBy, n.SatisfiedAt, n.Fresh = r.ID, r.FinishedAt, false
		t.edgeRows.put(d.ID, []*edgeRow{&n}, nil)
		due = append(due, d.ID)
	}
	if len(t.edgeRows.of(j.ID)) > 0 {
		due = append(due, j.ID)
	}
	return due
}
