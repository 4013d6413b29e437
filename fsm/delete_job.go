package fsm

import "github.com/musterhq/muster/job"

// DeleteJob removes a job of the embedded store with its versions. Runs stay, and so do the versions that live ones need
// until the last of them ended. A job that others depend on is Conflict, reason has_dependents. It answers the *job.Job
// that was deleted.
type DeleteJob struct {
	Namespace string `cbor:"1,keyasint"`
	Name      string `cbor:"2,keyasint"`
	IfVersion uint64 `cbor:"3,keyasint,omitempty"` // 0: whichever
}

// Kind implements Command.
func (*DeleteJob) Kind() Kind { return KindDeleteJob }

// Size implements Command.
func (c *DeleteJob) Size() int { return 32 + len(c.Namespace) + len(c.Name) }

func (c *DeleteJob) apply(t *tx, _ Meta) Result {
	old := t.jobs.get(jobName{c.Namespace, c.Name})
	switch {
	case old == nil:
		return refuse(job.Errorf(job.NotFound, "job", "there is no job %q in namespace %q", c.Name, c.Namespace))
	case c.IfVersion != 0 && c.IfVersion != old.Version:
		return refuse(job.Errorf(job.Conflict, "version", "the job %q is at version %d, not %d", c.Name, old.Version, c.IfVersion))
	}
	if first, all := t.edges.dependents(c.Namespace, c.Name, job.MaxNamedDependents); all > 0 {
		return refuse(job.HasDependents(c.Name, first, all))
	}
	gone := *old
	if v := t.versions.get(versionID{old.ID, old.Version}); v != nil {
		gone.Spec = v.spec()
	}
	var rows []*versionRow
	for v := range t.versions.ascend(versionID{job: old.ID}) {
		if v.JobID != old.ID {
			break
		}
		rows = append(rows, v)
	}
	for _, v := range rows {
		if t.pins.get(versionID{v.JobID, v.Version}) == nil {
			t.dropVersion(v)
		} else {
			t.versions.put(v.changed(func(n *versionRow) { n.Orphan = true }))
		}
	}
	t.setEdges(old, nil)
	t.jobs.del(old)
	return Result{Value: &gone}
}
