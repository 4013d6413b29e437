package fsm

import (
	"sync"
	"time"

	"github.com/musterhq/muster/job"
)

// Checkpoint freezes every replica's state after this very entry, so that they can be compared though each applies at its
// own pace. It changes nothing. It answers the index, a uint64.
type Checkpoint struct{}

// Kind implements Command.
func (*Checkpoint) Kind() Kind { return KindCheckpoint }

// Size implements Command.
func (*Checkpoint) Size() int { return 8 }

func (*Checkpoint) apply(t *tx, m Meta) Result {
	t.checkpoint = true
	return Result{Value: m.Index}
}

// CheckpointKept is for how long, in the state's time, the newest checkpoint is kept for somebody to digest it: what is
// overwritten meanwhile stays in memory.
const CheckpointKept = 5 * time.Minute

// checkpoint is a frozen state until it is digested, and only the digest from then on.
type checkpoint struct {
	index uint64
	at    job.Instant

	mu     sync.Mutex
	frozen *snapshot
	sum    [32]byte
	err    error
}

// digest takes a second for some hundred megabytes of state; the lock is for callers that come together.
func (c *checkpoint) digest() ([32]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.frozen != nil {
		c.sum, c.err = c.frozen.hash()
		c.frozen = nil
	}
	return c.sum, c.err
}

// Checkpointed answers the index of the newest checkpoint that this node applied, and how to digest the state as it was
// then. Replicas that applied the same log answer the same digest. The work is done at the first call of digest, in the
// caller's goroutine while applies go on. ok is false before the first checkpoint, CheckpointKept after the last, and
// after a restore.
func (s *State) Checkpointed() (index uint64, digest func() ([32]byte, error), ok bool) {
	c := s.checkpoint.Load()
	if c == nil {
		return 0, nil, false
	}
	return c.index, c.digest, true
}

// keepCheckpoint makes or drops a checkpoint after an entry. The lock is held.
func (s *State) keepCheckpoint(made bool) {
	g := &s.tables.g
	if made {
		s.checkpoint.Store(&checkpoint{index: g.Index, at: g.At, frozen: &snapshot{tables: s.frozen().tables, windows: s.windows.copied()}})
		return
	}
	if c := s.checkpoint.Load(); c != nil && g.At.Sub(c.at) > CheckpointKept {
		s.checkpoint.Store(nil)
	}
}
