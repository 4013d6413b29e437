package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

// A saved snapshot is the magic, a format byte, the length of a header (four bytes, big-endian), the header in JSON, the
// state as package fsm writes it, and the SHA-256 of all before it.
const (
	savedMagic     = "MUSTER\x00B"
	savedFormat    = 1
	maxSavedHeader = 64 << 10
)

// SavedSnapshot is the header of a saved snapshot.
type SavedSnapshot struct {
	ClusterID string      `json:"cluster_id"`
	Index     uint64      `json:"index"` // of the last command in it
	Epoch     job.Epoch   `json:"epoch"`
	SavedAt   job.Instant `json:"saved_at"`
	Bytes     int64       `json:"bytes"` // of the state
}

// epochJump is how far the epoch is raised when a history is taken up again that may lack its end: higher than anything
// that was given out in what is missing, so that no fence is issued twice (L3).
const epochJump = 1000

// SaveSnapshot writes a copy of the state as it is at one moment, with all that was committed before the call.
func (n *Node) SaveSnapshot(ctx context.Context, w io.Writer) (SavedSnapshot, error) {
	var h SavedSnapshot
	if err := n.CatchUp(ctx); err != nil {
		return h, err
	}
	f, err := n.spool()
	if err != nil {
		return h, err
	}
	defer f.Close()
	frozen, err := n.state.Snapshot()
	if err != nil {
		return h, fmt.Errorf("save snapshot: %w", err)
	}
	defer frozen.Release()
	if err := frozen.Persist(keepOpen{f}); err != nil {
		return h, fmt.Errorf("save snapshot: %w", err)
	}
	if h.Bytes, err = f.rewind(); err != nil {
		return h, fmt.Errorf("save snapshot: %w", err)
	}
	if h.ClusterID, h.Index, h.Epoch, err = fsm.SnapshotInfo(f); err != nil {
		return h, fmt.Errorf("save snapshot: %w", err)
	}
	if _, err := f.rewind(); err != nil {
		return h, fmt.Errorf("save snapshot: %w", err)
	}
	h.SavedAt = job.At(n.cfg.Now())
	head, err := json.Marshal(h)
	if err != nil {
		return h, fmt.Errorf("save snapshot: %w", err)
	}
	sum := sha256.New()
	out := io.MultiWriter(w, sum)
	var b bytes.Buffer
	b.WriteString(savedMagic)
	b.WriteByte(savedFormat)
	b.Write(binary.BigEndian.AppendUint32(nil, uint32(len(head))))
	b.Write(head)
	if _, err = out.Write(b.Bytes()); err == nil {
		_, err = io.Copy(out, whileAlive{ctx, f})
	}
	if err == nil {
		_, err = w.Write(sum.Sum(nil))
	}
	if err != nil {
		return h, fmt.Errorf("save snapshot: %w", err)
	}
	return h, nil
}

// ReadSavedSnapshot reads a saved snapshot to its end, writes the state in it to w, and fails on any damage.
func ReadSavedSnapshot(r io.Reader, w io.Writer) (SavedSnapshot, error) {
	var h SavedSnapshot
	bad := func(format string, a ...any) error {
		return job.Errorf(job.Invalid, "snapshot", "this is not a good snapshot: "+format, a...)
	}
	sum := sha256.New()
	in := io.TeeReader(r, sum)
	head := make([]byte, len(savedMagic)+1+4)
	if _, err := io.ReadFull(in, head); err != nil || string(head[:len(savedMagic)]) != savedMagic {
		return h, bad("it does not begin like one that muster saved")
	}
	if f := head[len(savedMagic)]; f != savedFormat {
		return h, bad("its format is %d, and this version of muster knows %d", f, savedFormat)
	}
	size := binary.BigEndian.Uint32(head[len(savedMagic)+1:])
	if size > maxSavedHeader {
		return h, bad("its header is damaged")
	}
	text := make([]byte, size)
	if _, err := io.ReadFull(in, text); err != nil {
		return h, bad("it ends in its header")
	}
	if err := json.Unmarshal(text, &h); err != nil || h.Bytes < 0 {
		return h, bad("its header is damaged")
	}
	switch _, err := io.CopyN(w, in, h.Bytes); {
	case errors.Is(err, io.EOF):
		return h, bad("it is not complete")
	case err != nil:
		return h, fmt.Errorf("read snapshot: %w", err)
	}
	want := sum.Sum(nil)
	got := make([]byte, len(want)+1)
	switch k, err := io.ReadFull(r, got); {
	case k < len(want):
		return h, bad("it is not complete")
	case err == nil:
		return h, bad("something follows its end")
	case !bytes.Equal(got[:k], want):
		return h, bad("its checksum does not match")
	}
	return h, nil
}

// RestoreSnapshot makes a saved snapshot the state of the whole cluster; on the leader only. All of it is checked before
// anything changes, and that of another cluster is refused. What was done since it was saved is undone, except that the
// epoch goes up, above both histories. The leader's term ends before and begins anew after: nothing of the work that
// belonged to the old state goes on (L1).
//
// An Unknown error means that it may have happened; look, or restore again.
func (n *Node) RestoreSnapshot(ctx context.Context, r io.Reader) error {
	if !n.Leading() {
		return notLeader(nil)
	}
	given, err := n.spool()
	if err != nil {
		return err
	}
	defer given.Close()
	head, err := ReadSavedSnapshot(whileAlive{ctx, r}, given)
	if err != nil {
		return err
	}
	if _, err := given.rewind(); err != nil {
		return err
	}
	cluster, index, epoch, err := fsm.SnapshotInfo(given)
	switch own := n.state.ClusterID(); {
	case err != nil:
		return &job.Error{Code: job.Invalid, Reason: "snapshot", Message: "this is not a good snapshot: the state in it cannot be read by this version of muster", Cause: err}
	case cluster != head.ClusterID || index != head.Index:
		return job.Errorf(job.Invalid, "snapshot", "this is not a good snapshot: its header is of another one")
	case cluster != own:
		return job.Errorf(job.Conflict, "other_cluster", "the snapshot is of cluster %q, and this is cluster %q", cluster, own)
	}
	endTerm, err := n.holdTerm(ctx)
	if err != nil {
		return err
	}
	defer endTerm()
	n.membership.Lock() // a change of the configuration that is on its way would be in the way
	defer n.membership.Unlock()
	n.snapshotting.Lock()
	defer n.snapshotting.Unlock()
	raised, err := n.spool()
	if err != nil {
		return err
	}
	defer raised.Close()
	if _, err := given.rewind(); err != nil {
		return err
	}
	if err := fsm.RaiseSnapshotEpoch(given, raised, max(epoch, n.state.Epoch())+epochJump-1); err != nil {
		return err
	}
	size, err := raised.rewind()
	if err != nil {
		return err
	}
	if _, _, _, err := fsm.SnapshotInfo(raised); err != nil { // Raft panics on one that cannot be restored
		return err
	}
	if _, err := raised.rewind(); err != nil {
		return err
	}
	if err := n.Barrier(ctx); err != nil { // and a majority is there to take it
		return notProposed(err)
	}
	before, newest := n.state.Epoch(), n.newestSnapshot()
	if err := n.beginRestore(); err != nil {
		return err
	}
	// From here on it takes as long as it takes: nobody can call it back.
	err = n.await(context.WithoutCancel(ctx), func() error {
		return n.raft.Restore(&raft.SnapshotMeta{Version: raft.SnapshotVersionMax, Index: index, Size: size}, raised, n.cfg.BarrierTimeout)
	})
	switch {
	case err == nil:
		n.endRestore()
	case n.state.Epoch() == before && n.newestSnapshot() == newest:
		n.endRestore()
		return &job.Error{Code: job.Unavailable, Reason: "not_restored", Message: "the snapshot could not be restored, and nothing was changed; try again", Cause: err}
	default:
		n.log.Error("leadership was lost while a snapshot was restored; if the others do not have it, this node stops following them and must join anew", "err", err)
		n.peers.work(n.awaitRestore)
		return mayHappen(err)
	}
	n.planSnapshot()
	n.log.Warn("the state was restored from a snapshot", "index", index, "saved_at", head.SavedAt, "epoch", n.state.Epoch())
	return nil
}

// Raft makes a snapshot the leader's state, on disk as well, before anybody else has it, at an index which it leaves out of
// the log. Until a majority has it, it is not committed. If this process ends then and another node leads on without it, this
// one would take the other's entries after that index as they come, one in the index itself would be lost on it, and its
// state would differ for ever. So a file says that a restore is going on, and a node that finds it at its start does not go on.
const restoringName = "restoring"

var errRestoreCut = job.Errorf(job.Conflict, "restore_cut", "this node ended while a snapshot was being restored through it, and may be the only one that has it; "+
	"let it join again as a new one: move the folder raft of its data directory away and start it (or, if no other node is left, recover the cluster from it)")

func (n *Node) beginRestore() error {
	if n.cfg.Dir == "" || n.otherVoters() == 0 { // nobody could lead on without it
		return nil
	}
	if err := writeFile(filepath.Join(n.cfg.Dir, raftDir, restoringName), []byte("see muster cluster snapshot restore\n")); err != nil {
		return fmt.Errorf("note that a snapshot is restored: %w", err)
	}
	return nil
}

func (n *Node) endRestore() {
	if n.cfg.Dir == "" {
		return
	}
	if err := forgetRestore(n.cfg.Dir); err != nil {
		n.log.Error("this node will not start again, because the note cannot be removed that a snapshot is restored", "err", err)
	}
}

// awaitRestore is for a restore of unknown outcome. The hole that it left in the log lets nobody's entries pass who does not
// have the snapshot: so when more is committed here, all is well.
func (n *Node) awaitRestore(ctx context.Context) {
	hole := n.newestSnapshot()
	for n.raft.CommitIndex() <= hole {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
	n.endRestore()
}

// newestSnapshot is the index of the newest one on disk, or 0.
func (n *Node) newestSnapshot() uint64 {
	if list, err := n.stores.snaps.List(); err == nil && len(list) > 0 {
		return list[0].Index
	}
	return 0
}

func restoreWasCut(dir string) error {
	_, err := os.Stat(filepath.Join(dir, raftDir, restoringName))
	switch {
	case err == nil:
		return errRestoreCut
	case errors.Is(err, os.ErrNotExist):
		return nil
	}
	return fmt.Errorf("look for a restore that was cut off: %w", err)
}

func forgetRestore(dir string) error {
	err := os.Remove(filepath.Join(dir, raftDir, restoringName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = syncDir(filepath.Join(dir, raftDir))
	}
	return err
}

// holdTerm ends the leader's work, waits until it has ended, and keeps the next from beginning until release.
func (n *Node) holdTerm(ctx context.Context) (release func(), err error) {
	n.leadership.renew()
	timer := time.NewTimer(n.cfg.BarrierTimeout)
	defer timer.Stop()
	select {
	case n.term <- struct{}{}:
		return func() { <-n.term }, nil
	case <-ctx.Done():
		return nil, notProposed(context.Cause(ctx))
	case <-n.closing.Done():
		return nil, notLeader(errClosed)
	case <-timer.C:
		return nil, job.Errorf(job.Unavailable, "timeout", "the leader's work does not end; try again")
	}
}

// spoolFile holds something large for a while. It is a raft.SnapshotSink, so that the state can be written into it.
type spoolFile struct{ *os.File }

// spool opens an empty one. Its name goes at once, so that a process that is killed leaves nothing behind.
func (n *Node) spool() (*spoolFile, error) { return newSpool(n.cfg.Dir) }

func newSpool(dir string) (*spoolFile, error) {
	if dir != "" {
		dir = filepath.Join(dir, raftDir)
	}
	f, err := os.CreateTemp(dir, "spool-*.tmp")
	if err != nil {
		return nil, fmt.Errorf("make a temporary file: %w", err)
	}
	_ = os.Remove(f.Name())
	return &spoolFile{f}, nil
}

// rewind goes back to the begin and answers how much there is.
func (f *spoolFile) rewind() (size int64, err error) {
	if size, err = f.Seek(0, io.SeekEnd); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	return size, err
}

// ID implements raft.SnapshotSink.
func (*spoolFile) ID() string { return "spool" }

// Cancel implements raft.SnapshotSink.
func (*spoolFile) Cancel() error { return nil }

// keepOpen is a spool whose Close its writer calls when it is full, which is not its end.
type keepOpen struct{ *spoolFile }

func (keepOpen) Close() error { return nil }

// whileAlive reads until its context ends.
type whileAlive struct {
	ctx context.Context
	r   io.Reader
}

func (w whileAlive) Read(b []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.r.Read(b)
}
