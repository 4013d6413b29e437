package job

import (
	"encoding/json"
	"fmt"
	"maps"
)

// Mark is how far one job's schedule has ticked, and which version ticks (L6, L7). It lives in Raft.
type Mark struct {
	JobID     JobID   `cbor:"1,keyasint"`
	Namespace string  `cbor:"2,keyasint"`
	Job       string  `cbor:"3,keyasint"`
	Version   uint64  `cbor:"4,keyasint"`
	Schedule  []byte  `cbor:"5,keyasint"` // JSON of Schedule
	From      Instant `cbor:"6,keyasint"` // the version owns the ticks after From
	At        Instant `cbor:"7,keyasint"` // every tick up to and including At has its disposition
	// What the clock needs of the document to decide without reading the store.
	Overlap       Overlap  `cbor:"8,keyasint,omitempty"`
	StartDeadline Duration `cbor:"9,keyasint,omitempty"`
	// Earlier are the versions before this one whose ticks up to their Until had not all been decided when they were
	// replaced, oldest first. PutSchedule appends the replaced version when At < From; a MarkMove clears them all.
	Earlier []EarlierVersion `cbor:"10,keyasint,omitempty"`
	// ResumedAt is when the job, its namespace or the cluster last stopped being paused. Ticks after At up to it are
	// paused, whoever decides them. Resuming sets it on every mark that it concerns.
	ResumedAt Instant `cbor:"11,keyasint,omitempty"`
}

// MaxEarlier bounds Mark.Earlier: a job edited more often before the leader looks is refused as Unavailable.
const MaxEarlier = 16

// MarkOf is what Raft is told to make a job's version tick: false if its document has no schedule.
func MarkOf(id JobID, version uint64, spec *Document) (Mark, bool, error) {
	if spec.Schedule == nil {
		return Mark{}, false, nil
	}
	text, err := json.Marshal(spec.Schedule)
	if err != nil {
		return Mark{}, false, fmt.Errorf("encode the schedule of job %s: %w", id, err)
	}
	return Mark{JobID: id, Namespace: spec.Namespace, Job: spec.Name, Version: version, Schedule: text,
		Overlap: spec.Overlap, StartDeadline: spec.StartDeadline}, true, nil
}

// EarlierVersion is a replaced version that still owns ticks: those after Mark.At, or after the Until before it, up to Until.
type EarlierVersion struct {
	Version       uint64   `cbor:"1,keyasint"`
	Schedule      []byte   `cbor:"2,keyasint"`
	Until         Instant  `cbor:"3,keyasint"` // the From of the version after it
	Overlap       Overlap  `cbor:"4,keyasint,omitempty"`
	StartDeadline Duration `cbor:"5,keyasint,omitempty"`
}

// MarkMove advances one mark. It applies only while the mark is of that version, stands where the decision found it, and
// is not at or past At already: a stale decision can then never hide a tick.
type MarkMove struct {
	JobID   JobID   `cbor:"1,keyasint"`
	Version uint64  `cbor:"2,keyasint"`
	At      Instant `cbor:"3,keyasint"`
	Was     Instant `cbor:"4,keyasint,omitempty"` // Mark.At as it was decided from; 0: wherever it stands
}

// TickKey names a tick.
type TickKey struct {
	JobID       JobID   `cbor:"1,keyasint"`
	ScheduledAt Instant `cbor:"2,keyasint"`
}

// Key names the tick, or the first of its range.
func (t *Tick) Key() TickKey { return TickKey{t.JobID, t.ScheduledAt} }

// Tick is what was decided of one scheduled time, or of a range of them that share their fate.
type Tick struct {
	JobID       JobID       `json:"-" cbor:"1,keyasint"`
	Version     uint64      `json:"job_version" cbor:"2,keyasint"`
	ScheduledAt Instant     `json:"scheduled_at" cbor:"3,keyasint"`
	Until       Instant     `json:"until,omitempty" cbor:"4,keyasint,omitempty"` // of a range its last tick
	Count       uint32      `json:"count,omitempty" cbor:"5,keyasint,omitempty"` // of a range how many; 0 means 1
	Disposition Disposition `json:"disposition" cbor:"6,keyasint"`
	Reason      Reason      `json:"reason,omitempty" cbor:"7,keyasint,omitempty"`
	DecidedAt   Instant     `json:"decided_at" cbor:"8,keyasint"`
	// Waiting makes the run of overlap: queue, born waiting for the run before it.
	Waiting bool `json:"waiting,omitempty" cbor:"9,keyasint,omitempty"`
}

// RunID is the id of the tick's run, if it has one.
func (t *Tick) RunID() RunID { return TickRunID(t.JobID, t.ScheduledAt) }

// Ticks is how many scheduled times the decision covers.
func (t *Tick) Ticks() int { return max(1, int(t.Count)) }

// BirthOfTick is the run that a tick with the disposition run gives birth to. Every store derives it with this function,
// so repeating the step changes nothing.
func BirthOfTick(t *Tick, namespace, name string, spec *Document, home Home) *Run {
	r := &Run{
		ID: t.RunID(), Namespace: namespace, JobID: t.JobID, Job: name, JobVersion: t.Version,
		Trigger: ByTick, ScheduledAt: t.ScheduledAt, CreatedAt: t.DecidedAt, Home: home,
		State: Queued, QueuedAt: t.DecidedAt,
	}
	r.FromSpec(spec)
	if spec.StartDeadline > 0 {
		r.StartBy = t.ScheduledAt.Add(spec.StartDeadline.Std())
	}
	if t.Waiting {
		r.State, r.Reason, r.QueuedAt = Waiting, OverlapQueued, 0
	}
	return r
}

// FromSpec takes over from the document what a run carries of it: priority, lane and deadline always, payload and labels
// under what the run has already. A submission that sets its own priority puts it in afterwards.
func (r *Run) FromSpec(spec *Document) {
	if r.Payload == nil {
		r.Payload = spec.Payload
	}
	r.Priority = DefaultPriority
	if spec.Priority != nil {
		r.Priority = uint8(*spec.Priority)
	}
	r.Lane = string(LaneOf(r.Namespace, spec))
	if spec.Deadline > 0 {
		r.DeadlineAt = max(r.CreatedAt, r.ReadyAt).Add(spec.Deadline.Std())
	}
	switch {
	case len(spec.Labels) == 0:
	case len(r.Labels) == 0:
		r.Labels = spec.Labels // shared: both are immutable
	default:
		labels := maps.Clone(spec.Labels)
		maps.Copy(labels, r.Labels)
		r.Labels = labels
	}
}
