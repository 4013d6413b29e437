package fsm

import (
	"slices"

	"github.com/musterhq/muster/job"
)

// PutSchedule makes a version of a job tick (L7). The version owns the ticks after From = max(Meta.At, what is decided
// already); the one before owns those up to it and stays in Mark.Earlier until they are decided. A version that ticks
// already is answered as it is; a lower one than that is Conflict. It answers the job.Mark.
type PutSchedule struct {
	JobID         job.JobID    `cbor:"1,keyasint"`
	Namespace     string       `cbor:"2,keyasint"`
	Job           string       `cbor:"3,keyasint"`
	Version       uint64       `cbor:"4,keyasint"`
	Schedule      []byte       `cbor:"5,keyasint"` // JSON of job.Schedule
	Overlap       job.Overlap  `cbor:"6,keyasint,omitempty"`
	StartDeadline job.Duration `cbor:"7,keyasint,omitempty"`
}

// Kind implements Command.
func (*PutSchedule) Kind() Kind { return KindPutSchedule }

// Size implements Command.
func (c *PutSchedule) Size() int {
	return 96 + len(c.Namespace) + len(c.Job) + len(c.Schedule) + len(c.Overlap)
}

func (c *PutSchedule) apply(t *tx, m Meta) Result {
	if c.JobID.IsZero() || c.Version == 0 || !isObject(c.Schedule) {
		return refuse(job.Errorf(job.Invalid, "schedule", "a schedule needs a job, its version and a schedule in JSON"))
	}
	old := t.marks.get(c.JobID)
	switch {
	case old == nil && t.marks.tree.Len() >= MaxMarks:
		return refuse(job.Errorf(job.Exhausted, "schedules_full", "there are %d schedules; no more fit", MaxMarks))
	case old != nil && c.Version < old.Version:
		return refuse(job.Errorf(job.Conflict, "version", "version %d ticks already", old.Version))
	case old != nil && c.Version == old.Version:
		return Result{Value: *old}
	}
	mark := job.Mark{JobID: c.JobID, Namespace: c.Namespace, Job: c.Job, Version: c.Version, Schedule: c.Schedule,
		Overlap: c.Overlap, StartDeadline: c.StartDeadline, From: m.At}
	mark.At = m.At
	if old != nil {
		mark.From, mark.At, mark.ResumedAt = max(m.At, old.At), old.At, old.ResumedAt
		mark.Earlier = old.Earlier
		if since := max(old.At, old.From); since < mark.From { // else the replaced version owns nothing undecided
			if len(old.Earlier) >= job.MaxEarlier {
				return refuse(job.Errorf(job.Unavailable, "schedule_busy", "the schedule was changed %d times before its ticks could be decided; try again soon", job.MaxEarlier))
			}
			mark.Earlier = append(slices.Clone(old.Earlier), job.EarlierVersion{Version: old.Version, Schedule: old.Schedule,
				Until: mark.From, Overlap: old.Overlap, StartDeadline: old.StartDeadline})
		}
	}
	t.marks.put(&mark)
	// The embedded store's version row says the same (L7), for verify.
	if v := t.versions.get(versionID{c.JobID, c.Version}); v != nil {
		t.versions.put(v.changed(func(n *versionRow) { n.From = mark.From }))
	}
	t.scheduleChanged(c.JobID)
	return Result{Value: mark}
}

// DropSchedule makes a job tick no longer: it was deleted, or its version from Version on has no schedule. A mark of a
// version above Version stays; 0 means that the job is deleted, and ends its pause too. It answers nothing.
type DropSchedule struct {
	JobID   job.JobID `cbor:"1,keyasint"`
	Version uint64    `cbor:"2,keyasint,omitempty"`
}

// Kind implements Command.
func (*DropSchedule) Kind() Kind { return KindDropSchedule }

// Size implements Command.
func (*DropSchedule) Size() int { return 40 }

func (c *DropSchedule) apply(t *tx, _ Meta) Result {
	old := t.marks.get(c.JobID)
	if c.Version == 0 { // the job is gone: nobody could resume it, and what it held must go on
		if changed, _ := t.setFlag(jobFlag(c.JobID), "", false); changed {
			t.scheduleChanged(c.JobID)
		}
	}
	if old == nil || c.Version != 0 && old.Version > c.Version {
		return Result{}
	}
	t.marks.del(old)
	t.scheduleChanged(c.JobID)
	return Result{}
}
