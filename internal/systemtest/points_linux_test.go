package systemtest

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/internal/failpoint"
	"github.com/musterhq/muster/job"
)

// arm restarts a node so that it ends, or stops, by itself at a point; it is whole before it leads.
func (c *cluster) arm(n *process, order string) {
	c.t.Helper()
	n.kill()
	n.env, n.fragile = []string{"MUSTER_FAILPOINT=" + order}, true
	n.start()
	c.await(90*time.Second, "node that joins again", func() bool {
		if ended(n) {
			return true
		}
		var said string
		l := c.leader()
		return c.votes(l, n) && c.votes(n, n) && c.call(n, http.MethodGet, "/readyz", &said) == nil
	})
}

func ended(n *process) bool {
	select {
	case <-n.ended: // it is closed then, so whoever waits for it gets to know, too
		return true
	default:
		return false
	}
}

// disarm starts a node again that has ended, and that ends by itself no longer.
func (c *cluster) disarm(n *process) {
	c.t.Helper()
	n.env, n.fragile = nil, false
	n.start()
	c.awaitWhole()
}

// lead hands leadership to a node. It may end before it says so.
func (c *cluster) lead(n *process) {
	c.t.Helper()
	c.await(time.Minute, "leader "+n.name, func() bool {
		if ended(n) || c.leader() == n {
			return true
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = c.load.sdk.Transfer(ctx, n.name) // it may die of it; what came of it is looked at
		return false
	})
}

// TestStoresLeaderKilledBetween ends the leader at each of the places between two steps of a tick, a grant, a settlement
// and a reaping: what is left there is finished by the next leader, once.
func TestStoresLeaderKilledBetween(t *testing.T) {
	s := storesShape()
	s.breakable = true
	c := newCluster(t, s)
	c.start()
	c.settle(2*time.Second, 3*time.Second)
	var names []string
	for _, p := range failpoint.Points() {
		if family, _, _ := strings.Cut(p.Name, "/"); family == "clock" || family == "dispatch" || family == "settle" {
			names = append(names, p.Name)
		}
	}
	if !*chaos { // three of them, each time others
		c.rand.Shuffle(len(names), func(i, k int) { names[i], names[k] = names[k], names[i] })
		names = names[:3]
	}
	var at []checker.Moment
	var lost []string
	once := func(name string, hit int, limit time.Duration) bool {
		f := c.followers()
		n := f[c.rand.IntN(len(f))]
		c.arm(n, fmt.Sprintf("%s=kill@%d", name, hit))
		c.lead(n)
		there := n.died(limit)
		if there {
			at = append(at, n.life.Dead)
			t.Logf("%s=kill@%d: %s has ended", name, hit, n.name)
		} else {
			n.kill()
		}
		c.settle(time.Second, 3*time.Second)
		c.disarm(n)
		return there
	}
	for _, name := range names {
		times := 0
		for range rounds(full(3, 1)) {
			if once(name, 1+c.rand.IntN(20), 30*time.Second) {
				times++
			}
		}
		if times == 0 {
			t.Errorf("no leader came to %s", name)
		}
		lost = append(lost, fmt.Sprintf("%s %d", name, times))
	}
	if *chaos { // something must be reaped: work of a worker that is gone
		for range rounds(2) {
			c.settle(5*time.Second, 6*time.Second) // so that each of them has some
			w := c.workers[c.rand.IntN(len(c.workers))]
			w.kill()
			if !once("reap/requeued", 1, 2*time.Minute) { // many leases of one node are extended once
				t.Error("no leader came to reap/requeued")
			}
			w.start()
			c.awaitWorkers()
		}
		lost = append(lost, "reap/requeued 2")
	}
	c.stored.awaitQueue()
	h, r := c.end()
	row(t, r, "leaders killed at: %s\nto the next leader: %s; to the first start of a new tick: %s", strings.Join(lost, ", "), spread(elections(h, at)), spread(c.firstTicks(h, at)))
	if !*chaos {
		undisturbed(t, r)
	}
}

// TestStoresPausedBeforeHint stops a node between its store's commit of a run and its word to the leader. Others find the
// run, run it and settle it; the node comes back and says what it had to say, and the run does not run again.
func TestStoresPausedBeforeHint(t *testing.T) {
	c := newCluster(t, shape{nodes: 3, workers: 2, slots: slots, stores: true, breakable: true, quiet: true})
	c.start()
	c.settle(2*time.Second, 3*time.Second)
	asker := &http.Client{Transport: c.load.http.Transport, Timeout: time.Minute}
	proposals, links := 0, 0
	var found, told []time.Duration
	n := rounds(full(6, 2))
	for i := range n {
		p := c.followers()[0]
		c.arm(p, "births/stored=stop@1")
		led := i%2 == 1
		var before [2]int
		if led {
			c.lead(p)
			before[0], before[1] = c.lateLeader(p)
		}
		id := client.NewRunID()
		answered := make(chan checker.Op, 1)
		go func() {
			answered <- c.load.submitTo(asker, endpoint{p.name, p.url}, submission{Spec: &job.Document{Exec: command(c.dir)}}, id, "")
		}()
		c.await(20*time.Second, "node that has stopped", func() bool { return stopped(p) })
		from := now()
		p.paused = &checker.Fault{Kind: checker.Pause, Role: p.role, Name: p.name, From: from, Led: led}
		var seen job.Run
		c.await(40*time.Second, "end of the run", func() bool {
			for _, q := range c.nodes {
				if q != p && c.call(q, http.MethodGet, "/v1/runs/"+id.String(), &seen) == nil {
					return seen.State.Terminal()
				}
			}
			return false
		})
		found = append(found, time.Duration(now()-from))
		at := now()
		c.rec.op(checker.Op{Kind: checker.Read, Asked: at, Done: at, Outcome: checker.OK, ID: id, Answer: &seen})
		if seen.State != job.Succeeded {
			t.Errorf("the run is %s (%s)", seen.State, seen.Reason)
		}
		p.resume()
		resumed := time.Now()
		if op := <-answered; op.Outcome != checker.OK {
			t.Logf("the client that was kept waiting got: %d %s", op.Status, op.Problem)
		}
		told = append(told, time.Since(resumed))
		c.settle(4*time.Second, 6*time.Second)
		if led {
			k, l := c.lateLeader(p)
			proposals, links = proposals+k-before[0], links+l-before[1]
		}
		p.fragile = false
		c.awaitWhole()
	}
	c.rec.add(checker.Line{Refusal: &checker.Refusal{Kind: checker.LateLeader, N: proposals + links}})
	_, r := c.end()
	row(t, r, "%d nodes stopped between store and hint, every second one the leader\nthe run found and ended by others: %s; resumed to the client's answer: %s", n, spread(found), spread(told))
	if r.Starts != n {
		t.Errorf("%d runs were submitted, and %d commands started", n, r.Starts)
	}
}

// stopped tells whether the system has taken the processor away from a process.
func stopped(p *process) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.life.Pid))
	if err != nil {
		return false
	}
	_, rest, _ := bytes.Cut(b[bytes.LastIndexByte(b, ')'):], []byte(" "))
	return bytes.HasPrefix(rest, []byte("T"))
}
