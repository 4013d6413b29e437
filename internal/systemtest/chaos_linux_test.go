package systemtest

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/checker"
)

// TestClusterKills kills leaders, one after the other, then followers, then workers, all with SIGKILL, while jobs tick
// every second and clients ask all nodes.
func TestClusterKills(t *testing.T) {
	leaders, followers, workers := full(*kills, 2), full(10, 1), full(10, 1)
	c := newCluster(t, shape{nodes: 3, workers: 3, jobs: full(*jobs, 30), slots: slots})
	c.start()
	c.settle(3*time.Second, 4*time.Second)
	steady := now()
	var at []checker.Moment
	for range leaders {
		l := c.leader()
		at = append(at, now())
		l.kill()
		c.settle(time.Second, 3*time.Second) // at first two must do without the third
		l.start()
		c.awaitWhole()
		c.settle(2*time.Second, 3*time.Second)
	}
	onlyLeaders := now()
	for range followers {
		f := c.followers()
		n := f[c.rand.IntN(len(f))]
		n.kill()
		c.settle(500*time.Millisecond, 2*time.Second)
		n.start()
		c.awaitWhole()
		c.settle(time.Second, 2*time.Second)
	}
	for i := range workers {
		w := c.workers[c.rand.IntN(len(c.workers))]
		w.kill()
		switch {
		case i%5 == 4: // its leases end without it
			c.settle(42*time.Second, 44*time.Second)
		default:
			c.settle(0, 2*time.Second)
		}
		w.start()
		c.awaitWorkers()
		c.settle(time.Second, 2*time.Second)
	}
	h, r := c.end()
	var elected, gaps, lates []time.Duration
	for _, k := range at {
		gap, _, ok := firstTick(h, k)
		if !ok {
			t.Error("no tick started after a kill")
			continue
		}
		gaps = append(gaps, gap)
		if d, ok := nextLeader(h, k); ok {
			elected = append(elected, d)
		}
		if all := lateness(h, k, k+checker.Moment(8*time.Second)); len(all) > 0 {
			lates = append(lates, slices.Max(all))
		}
	}
	again := 0
	for i := range h.Work {
		if w := &h.Work[i]; w.Event == checker.Start && w.Attempt > 1 && w.At < onlyLeaders && lost(h, w) {
			again++
		}
	}
	if again > 0 {
		t.Errorf("%d runs were started twice although only leaders had died", again)
	}
	row(t, r, "%d leaders, %d followers, %d workers killed\nkill of a leader to the next one: %s; to the first start of a new tick: %s\nlatest tick after each kill: %s; ticks late over all: %s", leaders, followers, workers,
		spread(elected), spread(gaps), spread(lates), spread(lateness(h, steady, now())))
}

// lost tells whether a second start follows a recorded loss, not a failure of the work itself.
func lost(h *checker.History, w *checker.Work) bool {
	for i := range h.Runs {
		if r := &h.Runs[i]; r.Run.ID == w.Run {
			return r.Run.Losses > 0
		}
	}
	return false
}

// TestPausedWorker takes the processor away from a worker beyond its leases. Its commands go on, for nobody told them to
// stop; what it says of them when it comes back is late.
func TestPausedWorker(t *testing.T) {
	long(t)
	c := newCluster(t, shape{nodes: 3, workers: 2, jobs: 30, slots: slots})
	c.start()
	c.settle(5*time.Second, 6*time.Second)
	w := c.workers[0]
	w.pause(false)
	wait(46 * time.Second)
	w.resume()
	c.settle(10*time.Second, 12*time.Second)
	_, r := c.end()
	row(t, r, "a worker paused for 46 s and resumed")
	if r.AfterLoss == 0 {
		t.Error("no run was repeated: nothing ran on the worker that was paused")
	}
}

// TestPausedLeader takes the processor away from the leader for so long that another one leads, and gives it back.
func TestPausedLeader(t *testing.T) {
	long(t)
	c := newCluster(t, shape{nodes: 3, workers: 3, jobs: 50, slots: slots})
	c.start()
	c.settle(5*time.Second, 6*time.Second)
	proposals, links := 0, 0
	for range rounds(5) {
		l := c.leader()
		p, k := c.lateLeader(l)
		l.pause(true)
		wait(20 * time.Second)
		if c.leader() == l {
			t.Fatal("nobody else leads")
		}
		l.resume()
		c.settle(5*time.Second, 6*time.Second)
		p2, k2 := c.lateLeader(l)
		proposals, links = proposals+p2-p, links+k2-k
	}
	c.rec.add(checker.Line{Refusal: &checker.Refusal{Kind: checker.LateLeader, N: proposals + links}})
	_, r := c.end()
	row(t, r, "%d leaders paused for 20 s and resumed: %d of their proposals and %d of their links to other nodes refused", rounds(5), proposals, links)
	if r.AfterLoss > 0 {
		t.Errorf("%d runs were repeated although no worker had died", r.AfterLoss)
	}
}

// TestPausedGateway takes the processor away from a follower to which workers are attached: they move, their runs stay.
func TestPausedGateway(t *testing.T) {
	long(t)
	c := newCluster(t, shape{nodes: 3, workers: 6, jobs: 50, slots: slots / 2})
	c.start()
	c.settle(5*time.Second, 6*time.Second)
	moved := 0
	for range rounds(3) {
		var gateway *process
		c.await(time.Minute, "follower with workers attached", func() bool {
			s, ok := c.status(c.leader())
			for _, x := range s.Nodes {
				for _, f := range c.followers() {
					if ok && f.name == x.Name && x.Streams > moved {
						gateway, moved = f, x.Streams
					}
				}
			}
			return gateway != nil
		})
		gateway.pause(false)
		wait(20 * time.Second)
		gateway.resume()
		c.settle(5*time.Second, 6*time.Second)
		moved = 0
	}
	_, r := c.end()
	row(t, r, "a gateway paused for 20 s, %d times", rounds(3))
	if r.AfterLoss > 0 {
		t.Errorf("%d runs were repeated although no worker had died", r.AfterLoss)
	}
}

// TestWipedNode takes a node's disk away under load and starts it anew, under its old name: it is another node then.
func TestWipedNode(t *testing.T) {
	long(t)
	c := newCluster(t, shape{nodes: 3, workers: 2, jobs: 30, slots: slots})
	c.start()
	c.settle(3*time.Second, 4*time.Second)
	var back []time.Duration
	for i := range rounds(4) {
		n := c.followers()[0]
		if i%2 == 1 {
			n = c.leader()
		}
		n.kill()
		if err := os.RemoveAll(c.dir + "/" + n.name); err != nil {
			t.Fatal(err)
		}
		from := time.Now()
		n.start()
		c.awaitWhole()
		back = append(back, time.Since(from))
		c.settle(2*time.Second, 3*time.Second)
	}
	_, r := c.end()
	row(t, r, "%d nodes wiped and replaced, every second one a leader; whole again after %s", rounds(4), spread(back))
}

// TestColdStarts starts three nodes at the same moment, again and again, each time with nothing on their disks.
func TestColdStarts(t *testing.T) {
	var led []time.Duration
	n := full(100, 5)
	c := newCluster(t, shape{nodes: 3, quiet: true})
	for range n {
		from := time.Now()
		for _, p := range c.nodes {
			p.start()
		}
		c.leader()
		led = append(led, time.Since(from))
		for _, p := range c.nodes {
			p.ready(time.Minute)
		}
		for _, p := range c.nodes {
			p.kill()
		}
		for _, p := range c.nodes {
			if err := os.RemoveAll(c.dir + "/" + p.name); err != nil {
				t.Fatal(err)
			}
		}
	}
	row(t, nil, "%d of %d cold starts of three nodes elected a leader: %s", len(led), n, spread(led))
}
