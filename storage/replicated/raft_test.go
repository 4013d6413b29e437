package replicated_test

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage"
	"github.com/musterhq/muster/storage/replicated"
	"github.com/musterhq/muster/storage/storagetest"
)

// overRaft proposes through a real Raft node with a log in memory.
type overRaft struct{ raft *raft.Raft }

func (o overRaft) Propose(_ context.Context, commands ...fsm.Command) ([]fsm.Result, error) {
	data, err := fsm.EncodeEntry(fsm.Origin{}, now(), commands...)
	if err != nil {
		return nil, err
	}
	f := o.raft.Apply(data, 10*time.Second)
	if err := f.Error(); err != nil {
		return nil, &job.Error{Code: job.Unknown, Message: "not known to be committed", Cause: err}
	}
	return f.Response().([]fsm.Result), nil
}

// TestContractOverRaft runs the whole contract over one real Raft node each, so that its batches, its barrier and its
// response types are met as they are.
func TestContractOverRaft(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a Raft node for each behaviour")
	}
	t.Parallel()
	storagetest.Run(t, func(t *testing.T) storage.Store {
		c := raft.DefaultConfig()
		c.LocalID, c.LogOutput = "n1", io.Discard
		c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout, c.CommitTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond, time.Millisecond
		store := raft.NewInmemStore()
		snapshots := raft.NewInmemSnapshotStore()
		address, transport := raft.NewInmemTransport("")
		if err := raft.BootstrapCluster(c, store, store, snapshots, transport, raft.Configuration{Servers: []raft.Server{{ID: c.LocalID, Address: address}}}); err != nil {
			t.Fatal(err)
		}
		state := fsm.New()
		leads := make(chan bool, 1)
		c.NotifyCh = leads
		r, err := raft.NewRaft(c, state, store, store, snapshots, transport)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := r.Shutdown().Error(); err != nil {
				t.Error(err)
			}
		})
		select {
		case <-leads:
		case <-time.After(30 * time.Second):
			t.Fatal("no leader")
		}
		return struct {
			*replicated.Store
			ticking
		}{replicated.New(overRaft{r}, state), ticking{overRaft{r}}}
	})
}
