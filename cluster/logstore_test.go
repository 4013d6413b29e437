package cluster

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// sickDisk is a log and stable store that hangs or fails on cue.
type sickDisk struct {
	*raft.InmemStore
	mu    sync.Mutex
	gate  chan struct{} // writes wait until it is closed
	fails atomic.Bool
	full  atomic.Bool // entries of the log fail, and nothing else
}

func newSickDisk() *sickDisk { return &sickDisk{InmemStore: raft.NewInmemStore()} }

func (d *sickDisk) hang() { d.mu.Lock(); d.gate = make(chan struct{}); d.mu.Unlock() }
func (d *sickDisk) heal() { d.mu.Lock(); close(d.gate); d.gate = nil; d.mu.Unlock() }

var errDiskFull = errors.New("no space left on device")

func (d *sickDisk) write() error {
	d.mu.Lock()
	gate := d.gate
	d.mu.Unlock()
	if gate != nil {
		<-gate
	}
	if d.fails.Load() {
		return errDiskFull
	}
	return nil
}

func (d *sickDisk) StoreLogs(l []*raft.Log) error {
	if d.full.Load() {
		return errors.New("no space left on device")
	}
	if err := d.write(); err != nil {
		return err
	}
	return d.InmemStore.StoreLogs(l)
}

func (d *sickDisk) StoreLog(l *raft.Log) error { return d.StoreLogs([]*raft.Log{l}) }

func (d *sickDisk) SetUint64(k []byte, v uint64) error {
	if err := d.write(); err != nil {
		return err
	}
	return d.InmemStore.SetUint64(k, v)
}

func (d *sickDisk) memory(id string) *Memory {
	return &Memory{id: id, log: d, stable: d, snaps: raft.NewInmemSnapshotStore()}
}

// TestLateWriteIsTakenBack: a leader's write that misses its deadline fails, and does not turn up in the log later.
func TestLateWriteIsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newSickDisk()
		logger, _ := testLogger(t)
		g := newLogGuard(d, nil, 10*time.Second, logger)
		leads := true
		g.setLeading(func() bool { return leads })
		if err := g.StoreLog(&raft.Log{Index: 1, Term: 1}); err != nil {
			t.Fatal(err)
		}
		d.hang()
		start := time.Now()
		if err := g.StoreLogs([]*raft.Log{{Index: 2, Term: 1}, {Index: 3, Term: 1}}); !errors.Is(err, errWriteDeadline) {
			t.Fatal(err)
		}
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("it took %s", took)
		}
		if err := g.StoreLog(&raft.Log{Index: 2, Term: 1}); !errors.Is(err, errWriteDeadline) {
			t.Error("a write behind the late one:", err)
		}
		// As a follower it waits as long as it takes.
		leads = false
		done := make(chan error)
		go func() { done <- g.StoreLog(&raft.Log{Index: 2, Term: 5}) }()
		time.Sleep(time.Hour)
		select {
		case err := <-done:
			t.Fatal("it did not wait:", err)
		default:
		}
		d.heal()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		last, _ := d.LastIndex()
		var l raft.Log
		if err := d.GetLog(2, &l); err != nil || last != 2 || l.Term != 5 {
			t.Errorf("the log ends at %d with an entry of term %d at 2: %v", last, l.Term, err)
		}
	})
}

// TestFullDiskDoesNotPanic: a term that cannot be saved keeps this node out of elections, and no more.
func TestFullDiskDoesNotPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newSickDisk()
		n := open(t, Config{Memory: d.memory("a")})
		awaitLeading(t, n)
		d.fails.Store(true)
		err := func() error { _, err := n.Control().RaiseEpoch(t.Context(), 0); return err }()
		if got := codeOf(err); got != "unknown" {
			t.Error("propose with a full disk:", err)
		}
		time.Sleep(time.Minute)
		if n.Leading() {
			t.Error("it leads without being able to write")
		}
		d.fails.Store(false)
		awaitLeading(t, n)
		if _, err := n.Control().RaiseEpoch(t.Context(), 0); err != nil {
			t.Error(err)
		}
	})
}

func TestChecksum(t *testing.T) {
	logger, _ := testLogger(t)
	g := newLogGuard(raft.NewInmemStore(), nil, time.Second, logger)
	good := &raft.Log{Index: 1, Type: raft.LogCommand, Data: []byte("abc"), Extensions: checksum([]byte("abc"))}
	bad := &raft.Log{Index: 2, Type: raft.LogCommand, Data: []byte("abd"), Extensions: checksum([]byte("abc"))}
	if err := g.StoreLogs([]*raft.Log{good, bad}); err != nil {
		t.Fatal(err)
	}
	var l raft.Log
	if err := g.GetLog(1, &l); err != nil {
		t.Error(err)
	}
	if err := g.GetLog(2, &l); err == nil {
		t.Error("a changed entry was read without a word")
	}
}
