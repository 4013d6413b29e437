package fsm

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-memdb"
	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/job"
)

// State is the replicated state of one node. Raft applies, snapshots and restores from one goroutine; readers may be
// many and see whole batches only.
type State struct {
	mu      sync.Mutex // held by whoever applies, restores or takes a snapshot
	db      atomic.Pointer[memdb.MemDB]
	windows windows
	ended   atomic.Pointer[endedIndex]
	names   interner

	changes scheduleChanges
}

var _ raft.BatchingFSM = (*State)(nil)

// New makes an empty state.
func New() *State {
	s := &State{}
	s.db.Store(newTables())
	s.ended.Store(newEndedIndex())
	s.changes.signal = make(chan struct{}, 1)
	return s
}

// Apply applies one log entry and answers []Result, one for each of its commands. It panics on an entry that this binary
// cannot read, and the replica stops: see the package comment.
func (s *State) Apply(log *raft.Log) any { return s.ApplyBatch([]*raft.Log{log})[0] }

// ApplyBatch applies entries in order as one change of the tables, and answers each like Apply. What is not a command
// answers nil.
func (s *State) ApplyBatch(logs []*raft.Log) []any {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.begin()
	answers := make([]any, len(logs))
	for i, log := range logs {
		if log.Type == raft.LogCommand {
			answers[i] = t.entry(log)
		}
	}
	t.commit()
	s.changes.add(t.changed)
	return answers
}

func (t *tx) entry(log *raft.Log) []Result {
	e, err := DecodeEntry(log.Data)
	if err != nil {
		panic(fmt.Sprintf("fsm: the log entry at index %d cannot be applied, so this replica stops rather than diverge: %v", log.Index, err))
	}
	t.g.Index = log.Index
	t.g.At = max(t.g.At, e.At)
	results := make([]Result, len(e.Commands))
	replayed := t.s.windows.seen(e.Origin, log.Index)
	meta := Meta{Index: log.Index, At: t.g.At}
	for i, c := range e.Commands {
		if replayed {
			results[i] = Result{Err: ErrReplayed}
		} else {
			results[i] = c.apply(t, meta)
		}
	}
	return results
}

// Snapshot freezes the state as it is. It does no work worth mentioning; Persist does, while applies go on.
func (s *State) Snapshot() (raft.FSMSnapshot, error) { return s.freeze(), nil }

func (s *State) freeze() *snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &snapshot{txn: s.db.Load().Txn(false), windows: s.windows.copied()}
}

// Restore replaces the state by a snapshot. On an error the state is as before.
func (s *State) Restore(source io.ReadCloser) error {
	defer source.Close()
	db, ws, ended, err := readSnapshot(source)
	if err != nil {
		return fmt.Errorf("restore the replicated state: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var changed []job.JobID
	for _, v := range []*View{s.View(), {txn: db.Txn(false)}} {
		for _, m := range v.Marks() {
			changed = append(changed, m.JobID)
		}
	}
	s.db.Store(db)
	s.windows = ws
	s.ended.Store(ended)
	s.changes.add(changed)
	return nil
}

// Hash digests the whole state, so that replicas which applied the same entries can be compared.
func (s *State) Hash() ([32]byte, error) { return s.freeze().hash() }

// View freezes what is there now, for reading. It is cheap and holds no lock.
func (s *State) View() *View { return &View{txn: s.db.Load().Txn(false)} }

// Ended tells whether a lease of the run ended within the last job.EndedGrantsKept, and with which fence (L2).
func (s *State) Ended(id job.RunID) (job.Fence, bool) { return s.ended.Load().find(id) }

// scheduleChanges collects what the clock of this node must look at again. It is not replicated.
type scheduleChanges struct {
	mu     sync.Mutex
	ids    []job.JobID
	known  map[job.JobID]struct{}
	signal chan struct{}
}

func (c *scheduleChanges) add(ids []job.JobID) {
	if len(ids) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		if _, ok := c.known[id]; ok {
			continue
		}
		if c.known == nil {
			c.known = map[job.JobID]struct{}{}
		}
		c.known[id] = struct{}{}
		c.ids = append(c.ids, id)
	}
	select {
	case c.signal <- struct{}{}:
	default: // a signal is waiting already
	}
}

// TakeScheduleChanges answers the jobs whose schedule was put, dropped, paused or resumed since the last call, each once.
func (s *State) TakeScheduleChanges() []job.JobID {
	s.changes.mu.Lock()
	defer s.changes.mu.Unlock()
	ids := s.changes.ids
	s.changes.ids, s.changes.known = nil, nil
	return ids
}

// ScheduleChanges is signalled, with a buffer of one, when TakeScheduleChanges has something.
func (s *State) ScheduleChanges() <-chan struct{} { return s.changes.signal }

// interner lets rows share the few names that most of them repeat. It is derived, and only the applying goroutine uses it.
type interner struct{ names map[string]string }

const maxInterned = 8192

func (n *interner) of(s string) string {
	if s == "" {
		return ""
	}
	if v, ok := n.names[s]; ok {
		return v
	}
	if n.names == nil || len(n.names) >= maxInterned {
		n.names = make(map[string]string)
	}
	n.names[s] = s
	return s
}
