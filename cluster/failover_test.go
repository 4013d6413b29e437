package cluster

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

func codeOf(err error) string { return string(job.CodeOf(err)) }

// trio is a cluster of three in one process. Its nodes can be cut off from each other, stopped and started.
type trio struct {
	t     *testing.T
	nodes [3]*Node
	disks [3]*sickDisk
	mem   [3]*Memory
	trans [3]*raft.InmemTransport
	led   atomic.Int32 // terms begun
}

func newTrio(t *testing.T) *trio {
	c := &trio{t: t}
	// Raft leaves the remote call of a transfer behind when it is shut down.
	t.Cleanup(func() { time.Sleep(time.Minute) })
	var peers []Peer
	for i := range c.nodes {
		id := fmt.Sprintf("node-%d", i)
		c.disks[i] = newSickDisk()
		c.mem[i] = c.disks[i].memory(id)
		peers = append(peers, Peer{id, "addr-" + id})
		c.start(i)
	}
	for i := range c.nodes {
		c.connect(i)
	}
	for _, n := range c.nodes {
		if err := n.Bootstrap(t.Context(), peers); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func (c *trio) start(i int) {
	c.t.Helper()
	_, c.trans[i] = raft.NewInmemTransport(raft.ServerAddress("addr-" + c.mem[i].id))
	c.nodes[i] = open(c.t, Config{Memory: c.mem[i], Transport: c.trans[i], Join: true})
}

func (c *trio) connect(i int) {
	for j := range c.nodes {
		if i != j {
			c.trans[i].Connect(c.trans[j].LocalAddr(), c.trans[j])
			c.trans[j].Connect(c.trans[i].LocalAddr(), c.trans[i])
		}
	}
}

func (c *trio) cut(i int) {
	c.trans[i].DisconnectAll()
	for j := range c.nodes {
		c.trans[j].Disconnect(c.trans[i].LocalAddr())
	}
}

// leader waits until one of the nodes other than not leads and has applied everything.
func (c *trio) leader(not int) int {
	c.t.Helper()
	for range 10_000 {
		for i, n := range c.nodes {
			if i != not && n.Leading() && n.Barrier(c.t.Context()) == nil {
				return i
			}
		}
		time.Sleep(10 * time.Millisecond) // fake time
	}
	c.t.Fatal("nobody leads")
	return -1
}

// TestFailOver: a leader that is cut off with a proposal on its way answers Unknown, the others go on, and in the end all
// agree.
func TestFailOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTrio(t)
		old := c.leader(-1)
		if _, err := c.nodes[old].Control().RaiseEpoch(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		for i, n := range c.nodes {
			if _, err := n.Control().RaiseEpoch(t.Context(), 0); i != old && codeOf(err) != "unavailable" {
				t.Error("a follower answered", err)
			}
		}
		c.cut(old)
		_, err := c.nodes[old].Control().RaiseEpoch(t.Context(), 0)
		if codeOf(err) != "unknown" {
			t.Errorf("the proposal of a leader that was cut off: %v", err)
		}
		if _, err := c.nodes[old].Control().RaiseEpoch(t.Context(), 0); codeOf(err) != "unavailable" {
			t.Errorf("after it stepped down: %v", err)
		}
		now := c.leader(old)
		// What was unknown has happened or has not: a follower may have got the entry before the cut.
		got, err := c.nodes[now].Control().RaiseEpoch(t.Context(), 0)
		if err != nil || got != 2 && got != 3 {
			t.Errorf("the next leader raised the epoch to %d: %v", got, err)
		}
		c.connect(old)
		settle(t, c, got)
	})
}

// settle waits until all nodes have the epoch and equal states.
func settle(t *testing.T, c *trio, epoch job.Epoch) {
	t.Helper()
	for range 1000 {
		time.Sleep(100 * time.Millisecond)
		hashes := map[[32]byte]bool{}
		for _, n := range c.nodes {
			h, err := n.State().Hash()
			if err != nil {
				t.Fatal(err)
			}
			hashes[h] = true
		}
		if len(hashes) == 1 && c.nodes[0].State().Epoch() == epoch {
			return
		}
	}
	for _, n := range c.nodes {
		t.Logf("%+v epoch %d", n.Status(), n.State().Epoch())
	}
	t.Fatal("the nodes do not agree")
}

// TestHungDiskLosesLeadership: a leader whose disk hangs is replaced although it still answers heartbeats.
func TestHungDiskLosesLeadership(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTrio(t)
		old := c.leader(-1)
		c.disks[old].hang()
		start := time.Now()
		_, err := c.nodes[old].Control().RaiseEpoch(t.Context(), 0)
		if codeOf(err) != "unknown" || time.Since(start) > 15*time.Second {
			t.Errorf("a proposal on the hung disk ended after %s: %v", time.Since(start), err)
		}
		now := c.leader(old)
		if _, err := c.nodes[now].Control().RaiseEpoch(t.Context(), 0); err != nil {
			t.Error(err)
		}
		// The entry reached nobody: a leader replicates what it has stored.
		c.disks[old].heal()
		settle(t, c, 1)
	})
}

// TestTermsDoNotOverlap: while leaders come and go, each node's work of one term has ended before its next begins (L1),
// and a leader whose work fails hands over.
func TestTermsDoNotOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTrio(t)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 3)
		for _, n := range c.nodes {
			var running atomic.Bool
			go func() {
				ended <- n.Run(ctx, func(ctx context.Context) error {
					if !running.CompareAndSwap(false, true) {
						t.Error("two terms at once")
					}
					defer running.Store(false)
					c.led.Add(1)
					if _, err := n.Control().RaiseEpoch(ctx, 0); err != nil && ctx.Err() == nil {
						t.Log("raise:", err)
					}
					select {
					case <-ctx.Done():
						time.Sleep(3 * time.Second) // tidying up takes longer than an election
						return ctx.Err()
					case <-time.After(30 * time.Second):
						return fmt.Errorf("had enough")
					}
				})
			}()
		}
		for range 10 {
			i := c.leader(-1)
			c.cut(i)
			time.Sleep(5 * time.Second)
			c.connect(i)
			time.Sleep(40 * time.Second)
		}
		if c.led.Load() < 15 {
			t.Errorf("only %d terms began", c.led.Load())
		}
		stop()
		for range c.nodes {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
}

// TestRestartOfOne: a node that was stopped catches up, and Close of a leader hands over.
func TestRestartOfOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTrio(t)
		old := c.leader(-1)
		if err := c.nodes[old].Close(); err != nil {
			t.Fatal(err)
		}
		c.cut(old)
		start := time.Now()
		now := c.leader(old)
		if took := time.Since(start); took > 100*time.Millisecond {
			t.Errorf("after an orderly handover the next leader took %s", took)
		}
		for range 20 {
			if _, err := c.nodes[now].Control().RaiseEpoch(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
		}
		c.start(old)
		c.connect(old)
		settle(t, c, 20)
	})
}

// TestTransfer moves leadership on demand.
func TestTransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTrio(t)
		old := c.leader(-1)
		if err := c.nodes[old].Transfer(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		if now := c.leader(-1); now == old {
			t.Error("the leader is the same")
		}
		follower := (c.leader(-1) + 1) % 3
		if err := c.nodes[follower].Transfer(t.Context(), ""); err == nil {
			t.Error("a follower transferred leadership")
		}
	})
}

// TestProposeUnderContextEnd: what a caller is told depends on how far its commands were.
func TestProposeUnderContextEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newSickDisk()
		n := open(t, Config{Memory: d.memory("a"), MaxInFlight: 1, MaxQueuedCommands: 2})
		awaitLeading(t, n)
		d.hang()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		answers := make([]chan error, 4)
		for i := range answers {
			answers[i] = make(chan error, 1)
			go func() {
				_, err := n.Propose(ctx, &fsm.RaiseEpoch{})
				answers[i] <- err
			}()
			synctest.Wait() // the first is in an entry, the others queue up behind it until it is full
		}
		for i, want := range []string{"unknown", "unavailable", "unavailable", "exhausted"} {
			if err := <-answers[i]; codeOf(err) != want {
				t.Errorf("proposal %d: %v, want %s", i, err, want)
			}
		}
		if _, err := n.Propose(ctx, &fsm.RaiseEpoch{}); codeOf(err) != "unavailable" {
			t.Error("with a context that has ended:", err)
		}
		d.heal()
		awaitLeading(t, n)
		if got := n.State().Epoch(); got != 1 {
			t.Errorf("%d of the proposals happened, want the one that was unknown", got)
		}
	})
}
