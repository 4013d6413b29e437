package fsm

import "github.com/musterhq/muster/job"

// PauseJob pauses or resumes one job: its ticks get the disposition paused, and its queued runs are held (Q4).
type PauseJob struct {
	JobID  job.JobID `cbor:"1,keyasint"`
	Paused bool      `cbor:"2,keyasint,omitempty"`
}

// Kind implements Command.
func (*PauseJob) Kind() Kind { return KindPauseJob }

// Size implements Command.
func (*PauseJob) Size() int { return 32 }

func (c *PauseJob) apply(t *tx, m Meta) Result {
	if c.JobID.IsZero() {
		return refuse(job.Errorf(job.Invalid, "job", "no job is named"))
	}
	changed, e := t.setFlag(jobFlag(c.JobID), "", c.Paused)
	if changed {
		if !c.Paused {
			t.resumed(t.marks.get(c.JobID), m)
		}
		t.scheduleChanged(c.JobID)
	}
	return answer(e)
}

// PauseNamespace pauses or resumes all jobs of a namespace and closes or opens its lanes (Q4).
type PauseNamespace struct {
	Namespace string `cbor:"1,keyasint"`
	Paused    bool   `cbor:"2,keyasint,omitempty"`
}

// Kind implements Command.
func (*PauseNamespace) Kind() Kind { return KindPauseNamespace }

// Size implements Command.
func (c *PauseNamespace) Size() int { return 16 + len(c.Namespace) }

func (c *PauseNamespace) apply(t *tx, m Meta) Result {
	if c.Namespace == "" {
		return refuse(job.Errorf(job.Invalid, "namespace", "no namespace is named"))
	}
	changed, e := t.setFlag(namespaceFlag(c.Namespace), "", c.Paused)
	if changed {
		t.allSchedulesChanged(c.Namespace, !c.Paused, m)
	}
	return answer(e)
}

// Maintain starts or ends maintenance: nothing new starts anywhere.
type Maintain struct {
	On bool `cbor:"1,keyasint,omitempty"`
}

// Kind implements Command.
func (*Maintain) Kind() Kind { return KindMaintain }

// Size implements Command.
func (*Maintain) Size() int { return 8 }

func (c *Maintain) apply(t *tx, m Meta) Result {
	if t.g.Maintenance != c.On {
		t.g.Maintenance = c.On
		t.allSchedulesChanged("", !c.On, m)
	}
	return Result{}
}

// allSchedulesChanged names every schedule of a namespace; "" means of all.
func (t *tx) allSchedulesChanged(namespace string, resumed bool, m Meta) {
	var marks []*job.Mark
	for mark := range t.marks.all() {
		if namespace == "" || mark.Namespace == namespace {
			marks = append(marks, mark)
		}
	}
	for _, mark := range marks {
		if resumed {
			t.resumed(mark, m)
		}
		t.scheduleChanged(mark.JobID)
	}
}

// resumed notes on a mark when a pause ended: ticks up to then are paused, whenever they are decided.
func (t *tx) resumed(mark *job.Mark, m Meta) {
	if mark == nil {
		return
	}
	n := *mark
	n.ResumedAt = m.At
	t.marks.put(&n)
}

// setFlag sets or clears a flag and tells whether that changed anything.
func (t *tx) setFlag(key, value string, on bool) (bool, *job.Error) {
	old := t.flags.get(key)
	switch {
	case !on && old == nil, on && old != nil && old.Value == value:
		return false, nil
	case !on:
		t.flags.del(old)
		return true, nil
	case old == nil && t.flags.tree.Len() >= MaxFlags:
		return false, job.Errorf(job.Exhausted, "flags_full", "%d pauses and cordons are set; no more fit", MaxFlags)
	}
	t.flags.put(&flagRow{Key: key, Value: value})
	return true, nil
}

// answer avoids an error interface that holds a nil pointer.
func answer(e *job.Error) Result {
	if e != nil {
		return Result{Err: e}
	}
	return Result{}
}
