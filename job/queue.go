package job

// Moved answers one Move.
type Moved struct {
	Applied bool
	Run     *Run // as it is after the call; nil if there is none
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

// LaneWant asks for entries of one lane.
type LaneWant struct {
	Lane LaneKey
	Max  int
}

// LaneDepth describes one lane.
type LaneDepth struct {
	Lane    LaneKey
	Ready   int     // entries whose time has come
	Delayed int     // entries whose time has not come
	NextAt  Instant // when the first delayed entry is ready; 0 if there is none
	First   int64   // Order of the first ready entry
}
