package job

import (
	"bytes"
	"cmp"
)

// Moved answers one Move.
type Moved struct {
	Applied bool
	Run     *Run // as it is after the call, perhaps without payload, spec and labels; nil if there is none
	// Due are the jobs that may be due because of this move: it ended a run of theirs, or satisfied a dependency of theirs.
	Due []JobID
}

// QueueEntry is one startable run.
type QueueEntry struct {
	RunID    RunID
	Lane     LaneKey
	Priority uint8
	ReadyAt  Instant
}

// Entry is the run's place in the queue.
func (r *Run) Entry() QueueEntry {
	return QueueEntry{RunID: r.ID, Lane: r.LaneKey(), Priority: r.Priority, ReadyAt: cmpOr(r.ReadyAt, r.CreatedAt)}
}

// Order is where the entry stands in its lane.
func (e QueueEntry) Order() int64 { return Order(e.ReadyAt, e.Priority) }

// Compare orders the entries of one lane: by Order, and of equal order by id.
func (e QueueEntry) Compare(o QueueEntry) int {
	return cmp.Or(cmp.Compare(e.Order(), o.Order()), bytes.Compare(e.RunID[:], o.RunID[:]))
}

// LaneWant asks for entries of one lane.
type LaneWant struct {
	Lane LaneKey
	Max  int
}

// LaneAfter asks for entries of one lane from a place in it on: those after Order and, of equal order, after the run After.
type LaneAfter struct {
	Lane  LaneKey
	Order int64
	After RunID
	Max   int
}

// LaneDepth describes one lane.
type LaneDepth struct {
	Lane    LaneKey
	Ready   int     // entries whose time has come
	Delayed int     // entries whose time has not come
	NextAt  Instant // when the first delayed entry is ready; 0 if there is none
	First   int64   // Order of the first ready entry
}
