package app

import (
	"context"
	"log/slog"

	"github.com/musterhq/muster/job"
)

// RecoverOptions say which node goes on alone, after a quorum was lost for good.
type RecoverOptions struct {
	DataDir string // of the node, which must not run
	Name    string // the node's
	Raft    string // host:port where others will reach it
	Logger  *slog.Logger
}

// RecoverReport is what is left.
type RecoverReport struct {
	NodeID    string    `json:"node_id"`
	ClusterID string    `json:"cluster_id"`
	Index     uint64    `json:"index"` // of the last entry that this node had
	Epoch     job.Epoch `json:"epoch"` // above all that the lost nodes can have used
}

// Recover makes the cluster one of this node alone, from what its disk holds. It is for the day when a majority is lost
// for good, and loses what that majority had committed and this node had not.
func Recover(ctx context.Context, o RecoverOptions) (*RecoverReport, error) {
	return nil, job.Errorf(job.Unavailable, "not_built", "recovering is not built yet")
}

// SnapshotReport describes a saved snapshot.
type SnapshotReport struct {
	ClusterID string    `json:"cluster_id"`
	Index     uint64    `json:"index"`
	Epoch     job.Epoch `json:"epoch"`
	Bytes     int64     `json:"bytes"`
}

// InspectSnapshot reads a saved snapshot to its end, and so proves that it is whole.
func InspectSnapshot(path string) (*SnapshotReport, error) {
	return nil, job.Errorf(job.Unavailable, "not_built", "inspecting snapshots is not built yet")
}
