package fsm

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/job"
)

// State is the replicated state of one node. Raft applies, snapshots and restores from one goroutine; readers may be
// many and see whole entries only.
type State struct {
	mu      sync.Mutex // held by whoever applies an entry, restores, or freezes the tables
	tables  *tables
	windows windows
	ended   atomic.Pointer[endedIndex]
	names   interner

	// view is what readers share until the next entry is applied. Freezing marks the trees' nodes as shared, so that the
	// next writes copy them: it happens only when somebody asks, and once for all who do.
	view atomic.Pointer[View]

	changes    scheduleChanges
	directory  atomic.Pointer[directory]
	checkpoint atomic.Pointer[checkpoint]
	expected   expected
}

var _ raft.BatchingFSM = (*State)(nil)

// New makes an empty state.
func New() *State {
	s := &State{tables: newTables()}
	s.ended.Store(newEndedIndex())
	s.directory.Store(newDirectory(s.tables))
	s.changes.signal = make(chan struct{}, 1)
	return s
}

// Apply applies one log entry and answers []Result, one for each of its commands. It panics on an entry that this binary
// cannot read, and the replica stops: see the package comment.
func (s *State) Apply(log *raft.Log) any {
	if log.Type != raft.LogCommand {
		return nil
	}
	e, err := DecodeEntry(log.Data)
	if err != nil {
		panic(fmt.Sprintf("fsm: the log entry at index %d cannot be applied, so this replica stops rather than diverge: %v", log.Index, err))
	}
	return s.apply(log.Index, e)
}

// ApplyBatch applies entries in order and answers each like Apply. What is not a command answers nil. Readers get their
// turn after each entry, however long the batch.
func (s *State) ApplyBatch(logs []*raft.Log) []any {
	answers := make([]any, len(logs))
	for i, log := range logs {
		answers[i] = s.Apply(log)
	}
	return answers
}

func (s *State) apply(index uint64, e *Entry) []Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &tx{tables: s.tables, index: s.ended.Load(), names: &s.names}
	t.g.Index = index
	t.g.At = max(t.g.At, e.At)
	meta := Meta{Index: index, At: t.g.At}
	results := make([]Result, len(e.Commands))
	replayed := s.windows.seen(e.Origin, index)
	for i, c := range e.Commands {
		if replayed {
			results[i] = Result{Err: ErrReplayed}
		} else {
			results[i] = c.apply(t, meta)
		}
	}
	s.view.Store(nil)
	if t.directoryChanged {
		s.directory.Store(newDirectory(s.tables))
	}
	s.keepCheckpoint(t.checkpoint)
	s.changes.add(t.changed)
	s.expected.deliver(index, e.Commands, results)
	return results
}

// Snapshot freezes the state as it is. It does no work worth mentioning; Persist does, while applies go on.
func (s *State) Snapshot() (raft.FSMSnapshot, error) { return s.freeze(), nil }

func (s *State) freeze() *snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &snapshot{tables: s.frozen().tables, windows: s.windows.copied()}
}

// frozen answers the shared view; the lock is held.
func (s *State) frozen() *View {
	v := s.view.Load()
	if v == nil {
		v = &View{s.tables.frozen()}
		s.view.Store(v)
	}
	return v
}

// View freezes what is there now, for reading. It costs microseconds, once an entry.
func (s *State) View() *View {
	if v := s.view.Load(); v != nil {
		return v
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.frozen()
}

// Restore replaces the state by a snapshot. On an error the state is as before.
func (s *State) Restore(source io.ReadCloser) error {
	defer source.Close()
	r, err := readSnapshot(source)
	if err != nil {
		return fmt.Errorf("restore the replicated state: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var changed []job.JobID
	for _, t := range []*tables{s.tables, r.tables} {
		for m := range t.marks.all() {
			changed = append(changed, m.JobID)
		}
	}
	s.tables, s.windows = r.tables, r.windows
	s.ended.Store(r.ended)
	s.view.Store(nil)
	s.directory.Store(newDirectory(s.tables))
	s.checkpoint.Store(nil)
	s.changes.add(changed)
	s.expected.restored(s.tables.g.Index)
	return nil
}

// Hash digests the whole state, so that replicas which applied the same entries can be compared.
func (s *State) Hash() ([32]byte, error) { return s.freeze().hash() }

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

// run lets a new row share its names with others.
func (n *interner) run(r *job.Run) {
	r.Namespace, r.Job, r.Task, r.Lane, r.Worker = n.of(r.Namespace), n.of(r.Job), n.of(r.Task), n.of(r.Lane), n.of(r.Worker)
}
