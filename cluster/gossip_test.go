package cluster

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

func openGossip(t testing.TB, cfg GossipConfig) *Gossip {
	t.Helper()
	if cfg.NodeID == "" {
		cfg.NodeID = "node-1"
	}
	cfg.Logger, _ = testLogger(t)
	g, err := OpenGossip(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return g
}

func joinWorker(t testing.TB, g *Gossip, name string) (*CellMember, Placement) {
	t.Helper()
	p, err := g.Assign(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	logger, _ := testLogger(t)
	m, err := JoinCell(t.Context(), CellConfig{Cell: p.Cell, Seeds: p.Seeds, Key: p.Key, Name: name, Version: "1.2.3", Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Leave(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return m, p
}

func nextEvent(t testing.TB, g *Gossip) Event {
	t.Helper()
	select {
	case e := <-g.Events():
		return e
	case <-time.After(20 * time.Second):
		t.Fatal("no event")
		return Event{}
	}
}

func TestGossipOfOneWorker(t *testing.T) {
	g := openGossip(t, GossipConfig{})
	w, p := joinWorker(t, g, "worker-1")
	if e := nextEvent(t, g); e.Kind != Joined || e.Member.Name != "worker-1" || e.Member.Version != "1.2.3" || e.Member.Cell != "cell-1" || e.Member.Node {
		t.Errorf("%+v", e)
	}
	if host, _, err := net.SplitHostPort(p.Seeds[0]); err != nil || host != "127.0.0.1" {
		t.Errorf("it listens on %v", p.Seeds)
	}
	list := g.Members()
	if len(list) != 2 || !list[0].Node || list[1].State != MemberAlive || list[1].Address == "" {
		t.Errorf("%+v", list)
	}
	if nodes := w.Nodes(); len(nodes) != 1 || nodes[0].Name != "node-1" {
		t.Errorf("the worker sees nodes %+v", nodes)
	}
	if err := w.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e := nextEvent(t, g); e.Kind != Left || e.Member.State != MemberLeft || e.Member.Suspected {
		t.Errorf("%+v", e)
	}
	// The same worker comes back in another life: what was known of the one before is forgotten.
	joinWorker(t, g, "worker-1")
	if e := nextEvent(t, g); e.Kind != Joined {
		t.Errorf("%+v", e)
	}
	if list := g.Members(); len(list) != 2 || list[1].State != MemberAlive {
		t.Errorf("%+v", list)
	}
}

// TestCellsFill: a full cell makes the next one, and a worker that asks again is told the same.
func TestCellsFill(t *testing.T) {
	g := openGossip(t, GossipConfig{MaxCell: 2, AssignPerSecond: 1000})
	cells, keys := map[string]int{}, map[string]bool{}
	for i := range 5 {
		for range 2 {
			p, err := g.Assign(t.Context(), fmt.Sprintf("w%d", i))
			if err != nil {
				t.Fatal(err)
			}
			cells[p.Cell]++
			keys[string(p.Key)] = true
			if want := fmt.Sprintf("cell-%d", i/2+1); p.Cell != want {
				t.Errorf("worker %d is placed in %s, want %s", i, p.Cell, want)
			}
		}
	}
	if len(cells) != 3 || len(keys) != 3 || len(g.Cells()) != 3 {
		t.Errorf("%d cells with %d keys, %v", len(cells), len(keys), g.Cells())
	}
	// A worker with the key of one cell cannot speak in another.
	a, _ := g.Assign(t.Context(), "w0")
	b, _ := g.Assign(t.Context(), "w4")
	logger, _ := testLogger(t)
	_, err := JoinCell(t.Context(), CellConfig{Cell: b.Cell, Seeds: b.Seeds, Key: a.Key, Name: "w0", Logger: logger})
	if job.CodeOf(err) != job.Unavailable {
		t.Error("with the key of another cell:", err)
	}
}

func TestAssignIsLimited(t *testing.T) {
	now := time.Now()
	g := openGossip(t, GossipConfig{AssignPerSecond: 5, Now: func() time.Time { return now }})
	for i := range 10 {
		if _, err := g.Assign(t.Context(), fmt.Sprintf("w%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := g.Assign(t.Context(), "w"); job.CodeOf(err) != job.Exhausted {
		t.Error(err)
	}
	now = now.Add(time.Second)
	if _, err := g.Assign(t.Context(), "w"); err != nil {
		t.Error(err)
	}
	if _, err := g.Assign(t.Context(), "no name~"); job.CodeOf(err) != job.Invalid {
		t.Error(err)
	}
}

// TestSuspectedCell: rumours of many deaths within a minute are marked, a few are not, and the mark passes.
func TestSuspectedCell(t *testing.T) {
	now := time.Now()
	g := openGossip(t, GossipConfig{Now: func() time.Time { return now }})
	c := g.cells[0]
	member := func(i int) *memberlist.Node {
		return &memberlist.Node{Name: memberName(fmt.Sprintf("w%d", i), "boot"), Meta: memberMeta(false, "1"), Addr: net.IPv4(10, 0, 0, 1)}
	}
	for i := range 21 {
		c.NotifyJoin(member(i))
		<-g.events
	}
	for i := range 4 {
		c.NotifyLeave(member(i))
		if e := <-g.events; e.Kind != Died || e.Member.Suspected {
			t.Errorf("death %d: %+v", i, e)
		}
	}
	c.NotifyMsg([]byte(goodbye + memberName("w4", "boot")))
	c.NotifyLeave(member(4)) // a goodbye is no death
	if e := <-g.events; e.Kind != Left || e.Member.Suspected {
		t.Errorf("%+v", e)
	}
	c.NotifyLeave(member(5))
	if e := <-g.events; !e.Member.Suspected {
		t.Errorf("the fifth death of twenty-one: %+v", e)
	}
	if !g.Members()[0].Suspected {
		t.Error("the list does not say so")
	}
	now = now.Add(deathWindow + time.Second)
	if g.Members()[0].Suspected {
		t.Error("it never passes")
	}
	now = now.Add(rememberedFor)
	if got := len(g.Members()); got != 15+1 {
		t.Errorf("%d members are remembered", got)
	}
}

// TestEventsAreDropped rather than block memberlist.
func TestEventsAreDropped(t *testing.T) {
	g := openGossip(t, GossipConfig{})
	for i := range eventsBuffered + 10 {
		g.cells[0].NotifyJoin(&memberlist.Node{Name: memberName(fmt.Sprintf("w%d", i), "b"), Meta: memberMeta(false, "1")})
	}
	if len(g.events) != eventsBuffered {
		t.Error(len(g.events))
	}
}

// TestNodesMeet: two nodes in one cell, and a worker that knows only the first.
func TestNodesMeet(t *testing.T) {
	secret := bytes.Repeat([]byte{7}, 32)
	a := openGossip(t, GossipConfig{NodeID: "node-a", Secret: secret})
	b := openGossip(t, GossipConfig{NodeID: "node-b", Secret: secret})
	for cell, address := range a.Cells() {
		if err := b.Meet(t.Context(), cell, []string{address}); err != nil {
			t.Fatal(err)
		}
	}
	if e := nextEvent(t, b); !e.Member.Node || e.Member.Name != "node-a" {
		t.Errorf("%+v", e)
	}
	joinWorker(t, a, "worker-1")
	if e := nextEvent(t, b); e.Member.Name != "worker-1" || e.Kind != Joined {
		t.Errorf("%+v", e)
	}
	p, err := b.Assign(t.Context(), "worker-2")
	if err != nil || len(p.Seeds) != 2 {
		t.Errorf("%+v %v", p, err)
	}
}

// TestCellsOfACluster: a cell that one node opens is soon open on all, with the same key, and a worker that joins through
// one node is seen by all.
func TestCellsOfACluster(t *testing.T) {
	t.Parallel()
	s := newSite(t, "a", "b", "c")
	for _, h := range s.hosts {
		h.start()
	}
	s.gather("a", "b", "c")
	nodes := map[string]*Gossip{}
	for name, h := range s.hosts {
		s.await("the secret of gossip", func() bool { return len(h.node.State().GossipSecret()) == 32 })
		nodes[name] = openGossip(t, GossipConfig{NodeID: h.node.ID(), Secret: h.node.State().GossipSecret(), MaxCell: 1, AssignPerSecond: 1000})
		h.node.Peers().Gossip(nodes[name])
	}
	first, err := nodes["a"].Assign(t.Context(), "w1")
	if err != nil {
		t.Fatal(err)
	}
	second, err := nodes["a"].Assign(t.Context(), "w2")
	if err != nil || second.Cell == first.Cell {
		t.Fatal(second, err)
	}
	s.await("two cells on each node", func() bool {
		return len(nodes["a"].Cells()) == 2 && len(nodes["b"].Cells()) == 2 && len(nodes["c"].Cells()) == 2
	})
	s.await("all nodes in each cell", func() bool {
		for _, g := range nodes {
			in := map[string]int{}
			for _, m := range g.Members() {
				if m.Node && m.State == MemberAlive {
					in[m.Cell]++
				}
			}
			if in["cell-1"] != 3 || in["cell-2"] != 3 {
				return false
			}
		}
		return true
	})
	joinWorker(t, nodes["b"], "w3") // which takes the room that b has: what a was asked is a's alone
	s.await("the worker on each node", func() bool {
		for _, g := range nodes {
			if !slices.ContainsFunc(g.Members(), func(m Member) bool { return m.Name == "w3" && m.State == MemberAlive }) {
				return false
			}
		}
		return true
	})
}

// TestStrangersSeeNothing: without the key of a cell, or with another one, nobody gets in, and nobody is told of it.
func TestStrangersSeeNothing(t *testing.T) {
	g := openGossip(t, GossipConfig{})
	joinWorker(t, g, "worker-1")
	seeds := []string{g.Cells()["cell-1"]}
	for what, key := range map[string][]byte{"no key": nil, "another key": bytes.Repeat([]byte{9}, 32)} {
		list, err := join(t.Context(), memberOptions{
			cell: "cell-1", name: "stranger", boot: "boot", key: key, version: "1", host: "127.0.0.1", log: discard,
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := joinSeeds(t.Context(), list, seeds); err == nil {
			t.Errorf("with %s it got in", what)
		}
		if seen := list.Members(); len(seen) != 1 {
			t.Errorf("with %s it sees %v", what, seen)
		}
		// What it sends by itself is not taken either.
		to := &memberlist.Node{Name: memberName("node-1", g.boot), Addr: net.IPv4(127, 0, 0, 1), Port: g.cells[0].list.LocalNode().Port}
		_ = list.SendBestEffort(to, []byte(goodbye+"worker-1"))
		if err := list.Shutdown(); err != nil {
			t.Error(err)
		}
	}
	if slices.ContainsFunc(g.Members(), func(m Member) bool { return m.Name == "stranger" }) {
		t.Errorf("%+v", g.Members())
	}
}

// TestCellNames: what another node says of its cells is checked, and a gap in them does no harm.
func TestCellNames(t *testing.T) {
	g := openGossip(t, GossipConfig{MaxCell: 1, AssignPerSecond: 1000})
	for _, bad := range []string{"", "cell-", "cell-0", "cell-01", "cell--1", "cell-101", "cell-1x", "other"} {
		if err := g.Meet(t.Context(), bad, nil); job.CodeOf(err) != job.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := g.Meet(t.Context(), "cell-3", nil); err != nil {
		t.Fatal(err)
	}
	cells := map[string]bool{}
	for i := range 4 {
		p, err := g.Assign(t.Context(), fmt.Sprint("w", i))
		if err != nil {
			t.Fatal(err)
		}
		cells[p.Cell] = true
	}
	if len(cells) != 4 || !cells["cell-2"] || !cells["cell-4"] {
		t.Error(cells)
	}
}

func TestStrangersAreRefused(t *testing.T) {
	g := openGossip(t, GossipConfig{})
	for _, n := range []*memberlist.Node{
		{Name: "plain", Meta: memberMeta(false, "1")},
		{Name: "w~", Meta: memberMeta(false, "1")},
		{Name: "../w~boot", Meta: memberMeta(false, "1")},
		{Name: "w~boot"},
		{Name: "w~boot", Meta: bytes.Repeat([]byte{'w'}, 65)},
	} {
		if err := g.cells[0].NotifyAlive(n); err == nil {
			t.Errorf("%q with %d bytes of metadata was taken", n.Name, len(n.Meta))
		}
	}
}

// TestIdleCost measures what an idle node with one cell and one worker costs; it takes a minute, so it runs on demand.
func TestIdleCost(t *testing.T) {
	if os.Getenv("MUSTER_MEASURE") == "" {
		t.Skip("set MUSTER_MEASURE=1 to measure")
	}
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	measure := func(what string) {
		runtime.GC()
		before, start := used(), time.Now()
		<-time.After(20 * time.Second)
		t.Logf("%s: %.2f %% of a core, %d goroutines", what, 100*float64(used()-before)/float64(time.Since(start)), runtime.NumGoroutine())
	}
	measure("nothing")
	n, err := Open(t.Context(), Config{Dir: t.TempDir(), State: fsm.New(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	awaitLeading(t, n)
	measure("node")
	g := openGossip(t, GossipConfig{})
	joinWorker(t, g, "worker-1")
	measure("node, cell and worker")
}
