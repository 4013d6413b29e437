package cluster

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/job"
)

// trioOf gathers three nodes, and answers the leader first.
func (p *party) trioOf() (leader *guest, others []*guest) {
	p.t.Helper()
	for _, name := range []string{"a", "b", "c"} {
		p.up(p.invite(name, "a", "b", "c"))
	}
	p.gather("a", "b", "c")
	time.Sleep(2 * time.Second) // the leader announces itself; the others have no way to, without a port
	return p.leaderOf("a", "b", "c")
}

func (p *party) leaderOf(names ...string) (leader *guest, others []*guest) {
	p.t.Helper()
	for _, name := range names {
		if g := p.homes[apiOf(name)]; g.node.Leading() {
			leader = g
		} else {
			others = append(others, g)
		}
	}
	if leader == nil {
		p.t.Fatal("nobody leads")
	}
	return leader, others
}

func (g *guest) id() string { return g.mem.id }

func reasonOf(err error) string {
	var e *job.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return fmt.Sprint(err)
}

// TestRemove: who is removed ends with a sentence, also one that was away meanwhile, and nobody is removed whom the
// majority needs.
func TestRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newParty(t, 1)
		leader, others := p.trioOf()
		away, stays := others[0], others[1]
		p.down(away)
		if err := stays.node.Remove(t.Context(), away.id(), false); reasonOf(err) != "not_leader" {
			t.Error("a follower:", err)
		}
		if err := leader.node.Remove(t.Context(), "nobody", false); job.CodeOf(err) != job.NotFound {
			t.Error("nobody:", err)
		}
		if err := leader.node.Remove(t.Context(), stays.id(), false); reasonOf(err) != "quorum" {
			t.Error("without the one that is needed:", err)
		}
		if err := leader.node.Remove(t.Context(), away.id(), false); err != nil {
			t.Fatal(err)
		}
		p.gather(leader.name, stays.name)
		p.up(away)
		time.Sleep(time.Minute)
		if err := p.down(away); err == nil || !strings.Contains(err.Error(), "this node was removed from the cluster; to let it join again as a new one, move the folder raft") {
			t.Error("one that comes back after it was removed ends with", err)
		}
		// Cleared, as the sentence says, it joins again.
		p.up(p.invite(away.name, "a", "b", "c"))
		p.gather("a", "b", "c")
		// One that is there when it is removed.
		if err := leader.node.Remove(t.Context(), away.name, false); err != nil {
			t.Fatal("by name:", err)
		}
		if _, ok := leader.node.State().NodeNamed(away.name); ok {
			t.Error("the row of a removed node stays")
		}
		time.Sleep(time.Minute)
		if err := p.down(p.homes[apiOf(away.name)]); err == nil || !strings.Contains(err.Error(), "was removed from the cluster") {
			t.Error("one that is removed while it runs ends with", err)
		}
		// The leader itself.
		if err := leader.node.Remove(t.Context(), leader.id(), true); err != nil {
			t.Fatal("itself:", err)
		}
		time.Sleep(10 * time.Second)
		if err := p.down(leader); err == nil || !strings.Contains(err.Error(), "was removed from the cluster") {
			t.Error("a leader that removed itself ends with", err)
		}
		p.gather(stays.name)
		if err := stays.node.Remove(t.Context(), stays.id(), true); reasonOf(err) != "quorum" {
			t.Error("the last one:", err)
		}
	})
}

// TestJoin: joining may be repeated, moves a member, and takes nobody's place who is alive.
func TestJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newParty(t, 1)
		leader, others := p.trioOf()
		n := leader.node
		for i, bad := range []job.Node{{}, {ID: "x", Name: "x"}, {ID: "x", Raft: "raft-x"}, {ID: "x", Raft: "raft-x", Name: "a b"}} {
			if err := n.join(t.Context(), bad); job.CodeOf(err) != job.Invalid {
				t.Errorf("%d: %v", i, err)
			}
		}
		if err := others[0].node.join(t.Context(), job.Node{ID: "x", Name: "x", Raft: "raft-x"}); reasonOf(err) != "not_leader" {
			t.Error("a follower:", err)
		}
		for _, taken := range []job.Node{
			{ID: "x", Name: "x", Raft: string(others[0].node.address)},
			{ID: "x", Name: leader.name, Raft: "raft-x"},
			{ID: others[1].id(), Name: others[1].name, Raft: string(others[0].node.address)},
		} {
			if err := n.join(t.Context(), taken); reasonOf(err) != "name_taken" {
				t.Errorf("%+v: %v", taken, err)
			}
		}
		if got := len(n.Status().Servers); got != 3 {
			t.Fatal(got, "servers")
		}
		// A fourth one, twice.
		x := job.Node{ID: "x", Name: "x", Raft: "raft-x"}
		for range 2 {
			if err := n.join(t.Context(), x); err != nil {
				t.Fatal(err)
			}
		}
		index := n.raft.LastIndex()
		if err := n.join(t.Context(), x); err != nil || n.raft.LastIndex() != index {
			t.Error("joining again is not nothing:", err)
		}
		x.Raft = "raft-y"
		if err := n.join(t.Context(), x); err != nil {
			t.Fatal(err)
		}
		if row, ok := n.State().Node("x"); !ok || row.Raft != "raft-y" {
			t.Errorf("%+v", row)
		}
		// It never answers, so it never votes.
		time.Sleep(time.Minute)
		servers := n.Status().Servers
		if at := servers[len(servers)-1]; len(servers) != 4 || at != (Server{ID: "x", Address: "raft-y"}) {
			t.Errorf("%+v", servers)
		}
		// Another of its name takes its place; the row of the one before goes.
		if err := n.join(t.Context(), job.Node{ID: "x2", Name: "x", Raft: "raft-z"}); err != nil {
			t.Fatal(err)
		}
		if _, ok := n.State().Node("x"); ok || find(n.servers(), "x") >= 0 || find(n.servers(), "x2") < 0 {
			t.Errorf("%+v", n.State().Nodes())
		}
	})
}

// TestRowsFollowTheConfiguration: a row without a server is swept, and the leader's own is there.
func TestRowsFollowTheConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newParty(t, 1)
		leader, _ := p.trioOf()
		n := leader.node
		if err := proposeOnly(t.Context(), n, putNode("ghost")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if _, ok := n.State().Node("ghost"); ok {
			t.Error("a row without a server stays")
		}
		if row, ok := n.State().Node(n.ID()); !ok || !sameNode(row, n.self()) {
			t.Errorf("%+v", row)
		}
		n.Announce(func(v *job.Node) { v.Gossip = "g:1" })
		time.Sleep(3 * time.Second)
		if row, _ := n.State().Node(n.ID()); row.Gossip != "g:1" {
			t.Errorf("%+v", row)
		}
		if n.State().ClusterID() == "" || len(n.State().GossipSecret()) != 32 {
			t.Error("the cluster has no identity")
		}
	})
}

// TestTransferTo: leadership goes to who is named.
func TestTransferTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newParty(t, 1)
		leader, others := p.trioOf()
		if err := leader.node.Transfer(t.Context(), "nobody"); job.CodeOf(err) != job.NotFound {
			t.Error(err)
		}
		if err := leader.node.Transfer(t.Context(), leader.name); err != nil || !leader.node.Leading() {
			t.Error("to itself:", err)
		}
		for range 4 {
			if err := leader.node.Transfer(t.Context(), others[1].id()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			now, _ := p.leaderOf("a", "b", "c")
			if now != others[1] {
				t.Fatalf("%s leads instead of %s", now.name, others[1].name)
			}
			leader, others[1] = now, leader
		}
	})
}

// TestOtherClusterStops: a node whose certificates are another cluster's ends with a sentence.
func TestOtherClusterStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory("a")
		n := open(t, Config{Memory: m, Self: job.Node{Name: "a"}, ClusterID: "one"})
		awaitLeading(t, n)
		ended := make(chan error, 1)
		go func() { ended <- n.Run(t.Context(), leadUntilEnd) }()
		time.Sleep(5 * time.Second)
		if got := n.State().ClusterID(); got != "one" {
			t.Fatal(got)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		n = open(t, Config{Memory: m, Self: job.Node{Name: "a"}, ClusterID: "two"})
		go func() { ended <- n.Run(t.Context(), leadUntilEnd) }()
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "the data directory belongs to cluster one, and this node's certificates to cluster two") {
			t.Error(err)
		}
	})
}
