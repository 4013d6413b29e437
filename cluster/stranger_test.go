package cluster_test

import (
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/fxamacker/cbor/v2"
	"github.com/musterhq/muster/cluster/clusterpb"
	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

// TestStrangersProposeNothing: who is no server of the configuration proposes nothing, and nobody proposes its row. One that
// was replaced, and comes back under its old name with its old disk, would drop its successor's.
func TestStrangersProposeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 3)
		leader, f := m.leader(nil), m.follower()
		row := func(id string) []byte {
			data, err := fsm.EncodeCommands([]fsm.Command{fsm.Tagged{Tag: fsm.Tag{1}, Command: &fsm.PutNode{Node: job.Node{ID: id, Name: "a"}}}})
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
		c := clusterpb.NewNodeServiceClient(f.port.HTTPClient(), f.port.URL(leader.host+":7000"))
		for _, x := range []struct {
			from, row string
			want      connect.Code
		}{{f.host, f.host, 0}, {"old", "old", connect.CodeUnavailable}, {"old", f.host, connect.CodeUnavailable}, {f.host, "old", connect.CodeUnavailable}} {
			_, err := c.Propose(t.Context(), connect.NewRequest(&clusterpb.ProposeRequest{Node: x.from, Commands: row(x.row)}))
			if (x.want == 0) != (err == nil) || err != nil && connect.CodeOf(err) != x.want {
				t.Errorf("%s proposes the row of %s: %v", x.from, x.row, err)
			}
		}
		if got, ok := leader.State().NodeNamed("a"); !ok || got.ID != f.host {
			t.Errorf("the row is %+v", got)
		}
	})
}

// TestNewLeaderReplacesNobodyAlive: a leader that has not heard of anybody yet does not take them for dead.
func TestNewLeaderReplacesNobodyAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 3)
		old, f := m.leader(nil), m.follower()
		if err := old.Transfer(t.Context(), f.host); err != nil {
			t.Fatal(err)
		}
		for !f.Leading() {
			time.Sleep(100 * time.Microsecond)
		}
		body, err := cbor.Marshal(job.Node{ID: "x", Name: "x", Raft: old.host + ":7000"})
		if err != nil {
			t.Fatal(err)
		}
		c := clusterpb.NewNodeServiceClient(old.port.HTTPClient(), old.port.URL(f.host+":7000"))
		if _, err := c.Join(t.Context(), connect.NewRequest(&clusterpb.JoinRequest{Node: body})); connect.CodeOf(err) != connect.CodeFailedPrecondition {
			t.Error("somebody took the place of a node that is alive:", err)
		}
		if n := len(f.Status().Servers); n != 3 || old.Status().Role == "stopped" {
			t.Error(n, "servers")
		}
	})
}

// TestMedianOfTwo: when one of three nodes dies and the clock of one of the others is an hour late, or early, the cluster's
// time goes on as it was.
func TestMedianOfTwo(t *testing.T) {
	for _, skew := range []time.Duration{-time.Hour, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			m := newMesh(t, 3)
			leader, f := m.leader(nil), m.follower()
			f.skew.Store(int64(skew))
			time.Sleep(5 * time.Second)
			for _, n := range m.nodes {
				if n != leader && n != f {
					m.cut(n)
				}
			}
			time.Sleep(time.Minute)
			for _, n := range []*meshNode{leader, f} {
				if off := n.clock.Now().Sub(time.Now().Round(0)); off.Abs() > 30*time.Millisecond {
					t.Errorf("one clock is off by %s: that of the cluster, on %s, by %s", skew, n.host, off)
				}
			}
		})
	}
}
