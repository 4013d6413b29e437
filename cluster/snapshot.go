package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// Raft's own trigger counts entries, and one of ours may be a command of 100 bytes or a full batch of half a megabyte. So
// its trigger is off, and snapshotter counts bytes.
const (
	neverInterval  = 24 * time.Hour
	neverThreshold = 1 << 62
	minTrailing    = 64 // entries; a log is never emptied, so that its end always proves the high-water mark
	maxTrailing    = 1 << 18
	snapshotRetry  = 30 * time.Second
)

// snapshotter takes a snapshot whenever the log has grown enough.
func (n *Node) snapshotter(ctx context.Context) {
	for {
		select {
		case <-n.guard.grown:
		case <-ctx.Done():
			return
		}
		if n.guard.bytes.Load() < n.guard.threshold.Load() {
			continue
		}
		if err := n.Snapshot(ctx); err != nil && ctx.Err() == nil {
			n.log.Warn("snapshot failed", "err", err, "retry_in", snapshotRetry)
			select {
			case <-time.After(snapshotRetry):
			case <-ctx.Done():
				return
			}
			n.guard.signal()
		}
	}
}

// Snapshot takes one now and cuts the log behind it.
func (n *Node) Snapshot(ctx context.Context) error {
	n.snapshotting.Lock()
	defer n.snapshotting.Unlock()
	bytes, entries := n.guard.bytes.Load(), n.guard.entries.Load()
	if err := n.setTrailing(bytes, entries); err != nil {
		return err
	}
	start := time.Now()
	err := n.await(ctx, func() error { return n.raft.Snapshot().Error() })
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("take snapshot: %w", err)
	}
	took := time.Since(start)
	n.guard.snapshotted(bytes, entries)
	size := n.planSnapshot()
	n.metrics.snapshots.Observe(took.Seconds())
	n.metrics.snapshotBytes.Set(float64(size))
	n.log.Info("snapshot taken", "last_index", n.raft.LastIndex(), "bytes", size, "log_bytes", bytes, "took", took)
	return nil
}

// planSnapshot sets how much log makes the next snapshot, and answers the size of the last one.
func (n *Node) planSnapshot() int64 {
	size := int64(0)
	if list, err := n.stores.snaps.List(); err == nil && len(list) > 0 {
		size = list[0].Size
	}
	n.guard.threshold.Store(max(n.cfg.SnapshotBytes, size/2))
	return size
}

// setTrailing turns TrailingBytes into the number of entries that Raft counts in.
func (n *Node) setTrailing(bytes, entries int64) error {
	if entries == 0 {
		return nil
	}
	keep := n.cfg.TrailingBytes
	if len(n.servers()) > 1 {
		// While a follower is sent a snapshot the next one may be taken. It goes on with the log from the first, and would
		// need another snapshot if that is cut by then, and so on for ever: so more stays than lies between two.
		keep = max(keep, n.guard.threshold.Load()*5/4)
	}
	trailing := uint64(min(max(keep/max(1, bytes/entries), minTrailing), maxTrailing))
	rc := n.raft.ReloadableConfig()
	if rc.TrailingLogs == trailing {
		return nil
	}
	rc.TrailingLogs = trailing
	if err := n.raft.ReloadConfig(rc); err != nil {
		return fmt.Errorf("set trailing logs: %w", err)
	}
	return nil
}
