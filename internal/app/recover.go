package app

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/musterhq/muster/cluster"
	"github.com/musterhq/muster/job"
)

// RecoverOptions say which node goes on alone, after a quorum was lost for good.
type RecoverOptions struct {
	DataDir string // of the node, which must not run
	Name    string // the node's
	Raft    string // host:port where others will reach it; "": the one that it had
	DryRun  bool   // only tell what is there
	Logger  *slog.Logger
}

// RecoverReport is what the node has.
type RecoverReport struct {
	NodeID    string    `json:"node_id"`
	ClusterID string    `json:"cluster_id"`
	Index     uint64    `json:"index"`     // of the last entry
	LastTerm  uint64    `json:"last_term"` // of that entry
	Epoch     job.Epoch `json:"epoch"`     // after recovering: above all that the lost nodes can have used
	Servers   []string  `json:"servers"`   // of the cluster as it was: id and Raft address
}

// Recover makes the cluster one of this node alone, from what its disk holds. It is for the day when a majority is lost
// for good, and loses what that majority had committed and this node had not.
func Recover(_ context.Context, o RecoverOptions) (*RecoverReport, error) {
	dir := filepath.Join(o.DataDir, "raft")
	if _, err := os.Stat(dir); err != nil {
		return nil, job.InvalidField("data", "%s is no data directory of a node", o.DataDir)
	}
	look := cluster.Inspect
	if !o.DryRun {
		look = func(dir string) (cluster.Recovery, error) {
			return cluster.Recover(dir, cluster.RecoverOptions{Address: o.Raft, Logger: o.Logger})
		}
	}
	r, err := look(dir)
	if err != nil {
		return nil, err
	}
	report := &RecoverReport{NodeID: r.NodeID, ClusterID: r.ClusterID, Index: r.LastIndex, LastTerm: r.LastTerm, Epoch: r.Epoch}
	for _, s := range r.Servers {
		report.Servers = append(report.Servers, s.ID+" "+s.Address)
	}
	return report, nil
}

// SnapshotReport describes a saved snapshot.
type SnapshotReport struct {
	ClusterID string      `json:"cluster_id"`
	Index     uint64      `json:"index"`
	Epoch     job.Epoch   `json:"epoch"`
	SavedAt   job.Instant `json:"saved_at"`
	Bytes     int64       `json:"bytes"`
}

// InspectSnapshot reads a saved snapshot to its end, and so proves that it is whole.
func InspectSnapshot(path string) (*SnapshotReport, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, job.InvalidField("file", "the snapshot cannot be read: %v", err)
	}
	defer f.Close()
	s, err := cluster.ReadSavedSnapshot(f, io.Discard)
	if err != nil {
		return nil, err
	}
	r := SnapshotReport(s)
	return &r, nil
}
