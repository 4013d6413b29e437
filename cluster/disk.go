package cluster

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// stores is where Raft keeps its state.
type stores struct {
	log    raft.LogStore
	stable raft.StableStore
	snaps  raft.SnapshotStore
	mark   *markFile // nil in memory
	close  func() error
}

// Memory keeps a node's Raft state in memory, for tests and the simulation. Opening a node again on the same Memory is
// its restart.
type Memory struct {
	id     string
	log    raft.LogStore
	stable raft.StableStore
	snaps  *raft.InmemSnapshotStore
}

// NewMemory makes an empty Memory for the node with the given id, any text that is unique in its cluster.
func NewMemory(id string) *Memory {
	store := raft.NewInmemStore()
	return &Memory{id: id, log: store, stable: store, snaps: raft.NewInmemSnapshotStore()}
}

func (m *Memory) stores() *stores {
	return &stores{log: m.log, stable: m.stable, snaps: m.snaps, close: func() error { return nil }}
}

// openStores opens the files in dir and refuses a log that is behind its high-water mark.
func openStores(dir string, snapshots int, log *slog.Logger) (_ *stores, err error) {
	dbPath, markPath := filepath.Join(dir, dbName), filepath.Join(dir, markName)
	if err := checkBolt(dbPath); err != nil {
		return nil, err
	}
	m, marked, err := openMark(markPath)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = m.Close()
		}
	}()
	var db *raftboltdb.BoltStore
	err = guardPanics(dbPath, func() (err error) {
		// The freelist is synced: without it a damaged page panics in a goroutine of bolt's, where nobody can recover.
		db, err = raftboltdb.New(raftboltdb.Options{Path: dbPath, BoltOptions: &bbolt.Options{
			Timeout: time.Second, FreelistType: bbolt.FreelistMapType,
		}})
		if err != nil {
			return fmt.Errorf("open raft log %s: %w", dbPath, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = db.Close()
		}
	}()
	if err := dropUnfinishedSnapshots(dir); err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshots, newRaftLogger(log))
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	err = guardPanics(dbPath, func() error { return checkMark(dbPath, markPath, m, marked, db, snaps, log) })
	if err != nil {
		return nil, err
	}
	return &stores{log: db, stable: db, snaps: snaps, mark: m, close: func() error {
		return errors.Join(db.Close(), m.Close())
	}}, nil
}

// dropUnfinishedSnapshots removes what a process that was killed had written of a snapshot. Raft's store does not read
// these, and never removes them.
func dropUnfinishedSnapshots(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, "snapshots", "*.tmp"))
	for _, path := range left {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

// checkMark compares what is on disk with what was there once.
func checkMark(dbPath, markPath string, m *markFile, marked bool, db *raftboltdb.BoltStore, snaps raft.SnapshotStore, log *slog.Logger) error {
	var have mark
	first, err := db.FirstIndex()
	if err != nil {
		return fmt.Errorf("read raft log %s: %w", dbPath, err)
	}
	last, err := db.LastIndex()
	if err != nil {
		return fmt.Errorf("read raft log %s: %w", dbPath, err)
	}
	var entry raft.Log
	if last > 0 {
		if err := db.GetLog(last, &entry); err != nil {
			return fmt.Errorf("read entry %d of raft log %s: %w", last, dbPath, err)
		}
		have.Index, have.Term = last, entry.Term
	}
	for key, v := range map[string]*uint64{keyTerm: &have.Seen, keyVote: &have.Voted} {
		if *v, err = db.GetUint64([]byte(key)); err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
			return fmt.Errorf("read raft log %s: %w", dbPath, err)
		}
	}
	covered := last
	list, err := snaps.List()
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	if len(list) > 0 {
		covered = max(covered, list[0].Index)
	}
	want := m.value()
	advice := fmt.Sprintf("%s, or delete %s to go on without what is missing", whatToDo(filepath.Dir(dbPath)), markPath)
	switch {
	case !marked:
		if have != (mark{}) {
			log.Warn("there is no high-water mark beside the raft log; it is trusted as it is", "path", markPath, "index", last)
		}
	case covered < want.Index:
		return fmt.Errorf("the raft log %s lacks the newest %d of %d entries that this node had stored, so it is damaged or an old copy; %s",
			dbPath, want.Index-covered, want.Index, advice)
	case have.Seen < want.Seen || have.Voted < want.Voted:
		return fmt.Errorf("the raft log %s lacks 0 entries but has forgotten a vote (it knows term %d, this node had seen %d), so it is damaged or an old copy; %s",
			dbPath, max(have.Seen, have.Voted), max(want.Seen, want.Voted), advice)
	case want.Index >= first && want.Index <= last && want.Index > 0:
		if err := db.GetLog(want.Index, &entry); err != nil {
			return fmt.Errorf("read entry %d of raft log %s: %w", want.Index, dbPath, err)
		}
		if entry.Term != want.Term {
			return fmt.Errorf("entry %d of the raft log %s is of term %d, but this node had stored one of term %d, so at least 1 entry is missing and the file belongs to another history; %s",
				want.Index, dbPath, entry.Term, want.Term, advice)
		}
	}
	// The mark may be behind: raising it is not synced.
	if err := m.termed(have.Seen, have.Voted); err != nil {
		return err
	}
	if last > 0 && last >= want.Index {
		return m.stored(have.Index, have.Term)
	}
	return nil
}

// whatToDo is what a person does about a log that cannot be trusted. No node does it by itself: a disk that fails often
// would make it forget again and again, and several at once would lose what only they had.
func whatToDo(dir string) string {
	return fmt.Sprintf("in a cluster move %s away and start this node again: it joins as a new server under its old name and gets everything from the others; "+
		"alone restore the newest copy", dir)
}

// guardPanics turns a panic or a memory fault inside bolt, which assumes sound pages, into an error. It covers what
// happens on this goroutine only.
func guardPanics(path string, f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the raft log %s is damaged (%v); %s", path, p, whatToDo(filepath.Dir(path)))
		}
	}()
	return f()
}
