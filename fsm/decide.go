package fsm

import (
	"slices"

	"github.com/musterhq/muster/job"
)

// Decide records the dispositions of ticks, advances marks, and forgets decisions that a store has meanwhile (L6). A tick
// whose mark did not move, because a newer version ticks or because it was decided already, is dropped. It answers
// []job.Tick: the decisions recorded, and those that were recorded before and wait for a store still, so that a leader
// which repeats the command learns of them.
type Decide struct {
	Epoch  job.Epoch      `cbor:"1,keyasint"`
	Ticks  []job.Tick     `cbor:"2,keyasint,omitempty"`
	Marks  []job.MarkMove `cbor:"3,keyasint,omitempty"`
	Stored []job.TickKey  `cbor:"4,keyasint,omitempty"`
}

// Kind implements Command.
func (*Decide) Kind() Kind { return KindDecide }

// Size implements Command.
func (c *Decide) Size() int { return 16 + 80*len(c.Ticks) + 48*len(c.Marks) + 40*len(c.Stored) }

func (c *Decide) apply(t *tx, _ Meta) Result {
	if e := t.fenced(c.Epoch); e != nil {
		return refuse(e)
	}
	moves := make(map[job.JobID]*job.MarkMove, len(c.Marks))
	for i := range c.Marks {
		moves[c.Marks[i].JobID] = &c.Marks[i]
	}
	if len(moves) != len(c.Marks) {
		return refuse(job.Errorf(job.Invalid, "marks", "a job's mark may move once in a decision"))
	}
	for i := range c.Ticks {
		k := &c.Ticks[i]
		if m := moves[k.JobID]; m == nil || k.Version > m.Version || max(k.ScheduledAt, k.Until) > m.At {
			return refuse(job.Errorf(job.Invalid, "ticks", "the tick of job %s at %s is not covered by a mark", k.JobID, k.ScheduledAt))
		}
	}
	if n := t.unstored.tree.Len(); len(c.Ticks) > 0 && n+len(c.Ticks) > MaxUnstoredTicks {
		return refuse(job.Errorf(job.Exhausted, "unstored_ticks", "%d decided ticks wait for the store; no more fit", n))
	}
	for _, k := range c.Stored {
		if old := t.unstored.get(k); old != nil {
			t.unstored.del(old)
		}
	}
	// Where each mark stood before: what lies up to there is decided.
	decided := make(map[job.JobID]job.Instant, len(c.Marks))
	for i := range c.Marks {
		m := &c.Marks[i]
		old := t.marks.get(m.JobID)
		if old == nil || old.Version != m.Version || m.At <= old.At || m.Was != 0 && m.Was != old.At {
			continue
		}
		decided[m.JobID] = old.At
		moved := *old
		moved.At = m.At
		// The versions before this one have had their ticks decided up to here (L7).
		moved.Earlier = slices.DeleteFunc(slices.Clone(old.Earlier), func(e job.EarlierVersion) bool { return e.Until <= m.At })
		if len(moved.Earlier) == 0 {
			moved.Earlier = nil
		}
		t.marks.put(&moved)
	}
	recorded := make([]job.Tick, 0, len(c.Ticks))
	for i := range c.Ticks {
		k := &c.Ticks[i]
		if before := t.unstored.get(k.Key()); before != nil {
			recorded = append(recorded, *before)
			continue
		}
		if upTo, moved := decided[k.JobID]; !moved || k.ScheduledAt <= upTo {
			continue
		}
		own := *k // a row is never a slice of its entry
		t.unstored.put(&own)
		recorded = append(recorded, *k)
	}
	return Result{Value: recorded}
}
