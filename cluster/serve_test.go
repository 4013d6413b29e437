package cluster_test

import (
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/musterhq/muster/cluster/clusterpb"
	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

// TestProposeRefuses: a node may send only what any node may propose, and only to the leader.
func TestProposeRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 3)
		leader, f := m.leader(nil), m.follower()
		good, err := fsm.EncodeCommands([]fsm.Command{fsm.Tagged{Tag: fsm.Tag{1}, Command: &fsm.PauseNamespace{Namespace: "ns", Paused: true}}})
		if err != nil {
			t.Fatal(err)
		}
		// A good one does not cover for a bad one beside it.
		bad, err := fsm.EncodeCommands([]fsm.Command{&fsm.PauseNamespace{Namespace: "ns2", Paused: true}, &fsm.RaiseEpoch{AtLeast: 1 << 30}})
		if err != nil {
			t.Fatal(err)
		}
		call := func(to *meshNode, commands []byte) (code, reason string) {
			c := clusterpb.NewNodeServiceClient(f.port.HTTPClient(), f.port.URL(to.host+":7000"))
			_, err := c.Propose(t.Context(), connect.NewRequest(&clusterpb.ProposeRequest{Node: f.host, Commands: commands}))
			if err == nil {
				return "", ""
			}
			for _, d := range err.(*connect.Error).Details() {
				if v, err := d.Value(); err == nil {
					return v.(*clusterpb.Refusal).Code, v.(*clusterpb.Refusal).Reason
				}
			}
			return "none", ""
		}
		for _, c := range []struct {
			name     string
			to       *meshNode
			commands []byte
			want     job.Code
		}{
			{"the leader's own kind", leader, bad, job.Forbidden},
			{"to a follower", f, good, job.Unavailable},
			{"rubbish", leader, []byte("rubbish"), job.Invalid},
			{"nothing", leader, nil, job.Invalid},
			{"a good one", leader, good, ""},
		} {
			if code, reason := call(c.to, c.commands); code != string(c.want) {
				t.Errorf("%s: %s %s, want %s", c.name, code, reason, c.want)
			}
		}
		if leader.State().Epoch() != 0 || leader.State().Paused(id(1), "ns") != job.NamespacePaused || leader.State().Paused(id(1), "ns2") != job.NoReason {
			t.Error("what was refused happened, or what was not did not")
		}
	})
}

// TestHintsAreBounded: hints that nobody takes are dropped, and the rest goes on.
func TestHintsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 3)
		leader, f := m.leader(nil), m.follower()
		entries := make([]job.QueueEntry, 3000)
		for i := range entries {
			entries[i].RunID = id(i)
		}
		m.cut(f)
		start := time.Now()
		for range 20 {
			f.Peers().Born(entries)
		}
		if time.Since(start) > 0 {
			t.Error("a hint waited")
		}
		m.net.HealAll()
		time.Sleep(20 * time.Second)
		f.Peers().Born(entries[:1])
		time.Sleep(time.Second)
		leader.local.mu.Lock()
		defer leader.local.mu.Unlock()
		if n := len(leader.local.born); n < 1 || n > 20_001 {
			t.Errorf("%d births arrived", n)
		}
	})
}
