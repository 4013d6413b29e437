package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// errWriteDeadline ends a log write that hangs while this node leads.
var errWriteDeadline = errors.New("the disk did not finish a log write in time")

// logGuard is the log store as Raft sees it. It adds to the one below it:
//
//   - a deadline for writes of a leader. Heartbeats run beside the log, so a leader whose disk hangs keeps its followers
//     and is never replaced. After the deadline the write fails, and Raft steps down on that. A follower waits as long
//     as it takes: it harms nobody, and Raft forgets to take back a truncation when a follower's write fails.
//   - the high-water mark (see mark).
//   - a checksum over each command, made by the proposer and checked at every read, also on other nodes.
//   - a count of what was written since the last snapshot (see snapshotter).
type logGuard struct {
	inner    raft.LogStore
	mark     *markFile // nil in memory
	deadline time.Duration
	leads    atomic.Pointer[func() bool]
	log      *slog.Logger
	observe  func(took time.Duration, entries, bytes int, err error)

	mu   sync.Mutex    // one write at a time
	late chan struct{} // closed when the write that missed its deadline has been undone; nil if none did

	bytes   atomic.Int64 // logged since the last snapshot, see entryCost
	entries atomic.Int64
	opening atomic.Bool // NewRaft reads each entry after the snapshot once: count them
	// grown is signalled while bytes are at or over threshold.
	threshold atomic.Int64
	grown     chan struct{}
}

// entryCost is what an entry weighs in the log: its data, and what bolt and replay spend on each. Counting the latter
// bounds the number of small entries too.
func entryCost(l *raft.Log) int64 { return int64(len(l.Data)) + 128 }

func newLogGuard(inner raft.LogStore, m *markFile, deadline time.Duration, log *slog.Logger) *logGuard {
	return &logGuard{
		inner: inner, mark: m, deadline: deadline, log: log,
		observe: func(time.Duration, int, int, error) {},
		grown:   make(chan struct{}, 1),
	}
}

// setLeading says how to ask whether this node leads. Until then it does not.
func (g *logGuard) setLeading(f func() bool) { g.leads.Store(&f) }

func (g *logGuard) leading() bool {
	f := g.leads.Load()
	return f != nil && (*f)()
}

func (g *logGuard) FirstIndex() (uint64, error) { return g.inner.FirstIndex() }
func (g *logGuard) LastIndex() (uint64, error)  { return g.inner.LastIndex() }

func (g *logGuard) GetLog(index uint64, l *raft.Log) error {
	if err := g.inner.GetLog(index, l); err != nil {
		return err
	}
	if l.Type == raft.LogCommand && len(l.Extensions) == checksumBytes && binary.BigEndian.Uint32(l.Extensions) != crc32.Checksum(l.Data, castagnoli) {
		return fmt.Errorf("entry %d of the log is damaged: its checksum does not match", index)
	}
	if g.opening.Load() {
		g.bytes.Add(entryCost(l))
		g.entries.Add(1)
	}
	return nil
}

const checksumBytes = 4

// checksum is what a proposer puts into the extensions of a command.
func checksum(data []byte) []byte {
	return binary.BigEndian.AppendUint32(nil, crc32.Checksum(data, castagnoli))
}

func (g *logGuard) StoreLog(l *raft.Log) error { return g.StoreLogs([]*raft.Log{l}) }

func (g *logGuard) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	start := time.Now()
	size := 0
	var cost int64
	for _, l := range logs {
		size += len(l.Data)
		cost += entryCost(l)
	}
	err := g.store(logs)
	g.observe(time.Since(start), len(logs), size, err)
	if err != nil {
		return err
	}
	if g.mark != nil {
		last := logs[len(logs)-1]
		if err := g.mark.stored(last.Index, last.Term); err != nil {
			// The entries are safe; only the proof of it is behind.
			g.log.Error("the high-water mark cannot be written", "err", err)
		}
	}
	g.bytes.Add(cost)
	g.entries.Add(int64(len(logs)))
	if g.bytes.Load() >= g.threshold.Load() {
		g.signal()
	}
	return nil
}

func (g *logGuard) signal() {
	select {
	case g.grown <- struct{}{}:
	default:
	}
}

// store needs g.mu.
func (g *logGuard) store(logs []*raft.Log) error {
	timer := time.NewTimer(g.deadline)
	defer timer.Stop()
	if err := g.waitLate(timer); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- g.inner.StoreLogs(logs) }()
	for {
		select {
		case err := <-done:
			return err
		case <-timer.C:
			if !g.leading() {
				g.log.Warn("a log write hangs", "entries", len(logs))
				timer.Reset(g.deadline)
				continue
			}
			g.log.Error("a log write hangs; giving up leadership", "deadline", g.deadline, "entries", len(logs))
			g.late = make(chan struct{})
			go g.undo(done, logs[0].Index, logs[len(logs)-1].Index, g.late)
			return errWriteDeadline
		}
	}
}

// undo waits for a write that missed its deadline and takes it back. Raft was told that it failed and believes the log
// to end before it: if it stayed, entries of an old term could lie behind newer ones after the next append. Nothing is
// written in between, see waitLate. A crash in between leaves them at the end of the log, as of a leader that crashed
// right after its write; their proposers were told Unknown.
func (g *logGuard) undo(done <-chan error, first, last uint64, undone chan<- struct{}) {
	defer close(undone)
	if err := <-done; err != nil {
		return
	}
	for {
		err := g.inner.DeleteRange(first, last)
		if err == nil {
			g.log.Warn("a late log write ended and was taken back", "index", first, "last_index", last)
			return
		}
		g.log.Error("a late log write cannot be taken back", "err", err)
		time.Sleep(time.Second)
	}
}

// waitLate waits until a late write was undone. A leader waits until the timer fires. It needs g.mu.
func (g *logGuard) waitLate(timer *time.Timer) error {
	for g.late != nil {
		var fires <-chan time.Time
		if timer != nil {
			fires = timer.C
		}
		select {
		case <-g.late:
			g.late = nil
		case <-fires:
			if g.leading() {
				return errWriteDeadline
			}
		}
		if timer != nil {
			timer.Reset(g.deadline)
		}
	}
	return nil
}

// DeleteRange drops entries: at the head those that a snapshot covers, at the tail those that contradict a new leader.
func (g *logGuard) DeleteRange(first, last uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.waitLate(nil); err != nil {
		return err
	}
	if g.mark != nil {
		end, err := g.inner.LastIndex()
		if err != nil {
			return err
		}
		if first <= end && last >= end { // the tail
			var before raft.Log
			if first > 1 {
				switch err := g.inner.GetLog(first-1, &before); {
				case errors.Is(err, raft.ErrLogNotFound):
					before = raft.Log{} // nothing is left; a snapshot may cover what was before
				case err != nil:
					return err
				}
			}
			if err := g.mark.lower(before.Index, before.Term); err != nil {
				return err
			}
		}
	}
	return g.inner.DeleteRange(first, last)
}

// snapshotted restarts the count, except for what was logged while the snapshot was written.
func (g *logGuard) snapshotted(bytes, entries int64) {
	g.bytes.Add(-bytes)
	g.entries.Add(-entries)
}

// stableGuard is the stable store (term and vote) as Raft sees it. Raft panics when it cannot save a term, which would
// end the process for a full disk; here the write is repeated until it succeeds. Until then this node neither votes nor
// stands, and the others go on without it.
type stableGuard struct {
	raft.StableStore
	mark   *markFile // nil in memory
	log    *slog.Logger
	hidden atomic.Bool // the term is told as 0 until one is saved, see forgetBootstrap
}

// forgetBootstrap lets a node without a log bootstrap although it has a term, if that is 1. Bootstrapping writes the term
// 1 and then the first entry; a process killed in between has state, to Raft, and would wait for a leader for ever. Nobody
// stands or votes in term 1, so it can be forgotten. A node with a higher term and no log has voted: it stays as it is,
// and gets the log from whom it voted for, or from who follows that one.
func (g *stableGuard) forgetBootstrap() error {
	term, err := g.StableStore.GetUint64([]byte(keyTerm))
	if err != nil && err.Error() != "not found" { // as Raft asks
		return err
	}
	g.hidden.Store(term == 1)
	return nil
}

func (g *stableGuard) GetUint64(key []byte) (uint64, error) {
	if string(key) == keyTerm && g.hidden.Load() {
		return 0, nil
	}
	return g.StableStore.GetUint64(key)
}

// The names under which Raft keeps its term and votes.
const (
	keyTerm = "CurrentTerm"
	keyVote = "LastVoteTerm"
)

func (g *stableGuard) Set(key, value []byte) error {
	g.insist(func() error { return g.StableStore.Set(key, value) })
	return nil
}

func (g *stableGuard) SetUint64(key []byte, value uint64) error {
	g.insist(func() error { return g.StableStore.SetUint64(key, value) })
	if string(key) == keyTerm {
		g.hidden.Store(false)
	}
	if g.mark == nil {
		return nil
	}
	var err error
	switch string(key) {
	case keyTerm:
		err = g.mark.termed(value, 0)
	case keyVote:
		err = g.mark.termed(0, value)
	}
	if err != nil {
		g.log.Error("the high-water mark cannot be written", "err", err)
	}
	return nil
}

func (g *stableGuard) insist(write func() error) {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 10*time.Second) {
		err := write()
		if err == nil {
			return
		}
		g.log.Error("term or vote cannot be saved; this node takes no part in elections", "err", err, "retry_in", pause)
		time.Sleep(pause)
	}
}
