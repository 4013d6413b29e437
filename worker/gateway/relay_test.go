package gateway_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
	"github.com/musterhq/muster/worker"
	"github.com/musterhq/muster/worker/gateway/relay"
)

var _ scheduler.Gateways = (*relay.Hub)(nil)

// inNodes runs a test in a bubble, once: the process of TestThroughARelay has nothing to add.
func inNodes(t *testing.T, f func(t *testing.T)) {
	if relayed {
		t.Skip("has links already")
	}
	t.Parallel()
	synctest.Test(t, f)
}

// on makes an agent that knows some nodes, the first of which it is on when this returns.
func (c *nodes) on(t testing.TB, name string, h *worker.Handlers, known ...string) *agent {
	t.Helper()
	config := c.agentConfig(t, name, h)
	config.HTTPClient = c.gated(newGate(), false)
	config.Addresses = nil
	for _, n := range known {
		config.Addresses = append(config.Addresses, c.byName[n].address)
		if n != known[0] {
			c.hangUp(c.byName[n].address)
		}
	}
	a := c.start(t, config)
	c.leader.session(t, name)
	for _, n := range known[1:] {
		c.restore(c.byName[n].address)
	}
	return a
}

// stop freezes a node as SIGSTOP does, as far as others can tell.
func (c *nodes) stop(t testing.TB, name string) {
	c.byName[name].gate.shut()
	t.Cleanup(c.byName[name].gate.lift)
}
func (c *nodes) cont(name string) { c.byName[name].gate.lift() }

func TestANodeThatHangsCostsTheLeaderOnePatience(t *testing.T) {
	inNodes(t, func(t *testing.T) {
		c := newNodes(t, true, -1, "n1", "n2", "n3")
		l := c.elect(t, "n1")
		b := newBlocker()
		c.on(t, "w2", b.Handlers, "n2")
		c.on(t, "w3", b.Handlers, "n3")
		s2, s3 := l.session(t, "w2"), l.session(t, "w3")
		c.stop(t, "n2")
		began := time.Now()
		if ok := l.assign(s2, c.grant("quick")); !ok[0] {
			t.Error("what was sent and not answered is unknown, not undeliverable")
		}
		if d := time.Since(began); d != 200*time.Millisecond {
			t.Errorf("the first batch took %v", d)
		}
		for range 100 {
			began = time.Now()
			x := c.grant("quick")
			l.mu.Lock()
			l.granted[x.Fence] = true
			l.mu.Unlock()
			ok := c.byName["n1"].hub.Assign(t.Context(), []job.Delivery{{Session: s2, Assignment: c.grant("quick")}, {Session: s3, Assignment: x}})
			if d := time.Since(began); ok[0] || !ok[1] || d != 0 {
				t.Fatalf("a batch for both was answered %v after %v", ok, d)
			}
			l.outcome(t, x.Fence)
		}
		c.cont("n2")
		synctest.Wait()
		x := c.grant("quick")
		if ok := l.assign(s2, x); !ok[0] {
			t.Error("the node answers again and takes nothing")
		}
		l.outcome(t, x.Fence)
	})
}

func TestAPausedNodeLosesItsWorkersAndNoLease(t *testing.T) {
	inNodes(t, func(t *testing.T) {
		c := newNodes(t, true, -1, "n1", "n2", "n3")
		l := c.elect(t, "n1")
		b := newBlocker()
		const workers = 5
		for i := range workers {
			c.on(t, fmt.Sprintf("w%d", i), b.Handlers, "n2", "n3")
		}
		var all []*job.Assignment
		for i := range workers {
			x := c.grant("block")
			l.begin(t, fmt.Sprintf("w%d", i), x, b.running)
			all = append(all, x)
		}
		l.tell(func() { l.hellos = nil })
		before := make(map[string]job.SessionID)
		for i := range workers {
			name := fmt.Sprintf("w%d", i)
			before[name] = l.session(t, name)
		}
		time.Sleep(time.Second)
		c.stop(t, "n2")
		pausedAt := time.Now()
		// Never written as far as the leader knows, and read by the node when it comes back.
		lost := c.grant("quick")
		if ok := l.assign(before["w0"], lost); !ok[0] {
			t.Error("unknown is not undeliverable")
		}
		l.await(t, "all have said hello on another node", func() bool { return len(l.hellos) == workers })
		if d := time.Since(pausedAt); d > 12*time.Second {
			t.Errorf("the workers were elsewhere after %v", d)
		}
		time.Sleep(time.Until(pausedAt.Add(20 * time.Second)))
		l.mu.Lock()
		for _, h := range l.hellos {
			if len(h.Running) != 1 {
				t.Errorf("%s lists %v", h.Name, h.Running)
			}
		}
		if len(l.detached) != workers {
			t.Errorf("%d sessions of the dead link were detached", len(l.detached))
		}
		l.mu.Unlock()
		if len(b.causes) != 0 {
			t.Error("work was stopped")
		}
		for name, s := range before {
			if ok := l.assign(s, c.grant("quick")); ok[0] {
				t.Errorf("a session of a dead link took work for %s", name)
			}
		}
		c.cont("n2")
		time.Sleep(20 * time.Second)
		if n := c.byName["n2"].gateway.Streams(); n != 0 {
			t.Errorf("%d stale streams on the node that came back", n)
		}
		if n := c.byName["n1"].hub.Streams()["n2"]; n != 0 || len(c.byName["n1"].hub.Streams()) != 3 {
			t.Errorf("the node that came back is not linked, or has sessions: %v", c.byName["n1"].hub.Streams())
		}
		close(b.release)
		for _, x := range all {
			l.outcome(t, x.Fence)
		}
		l.tell(func() {
			for _, o := range l.outcomes {
				if o.Fence == lost.Fence {
					t.Error("an assignment that lay in the paused node ran")
				}
			}
		})
	})
}

func TestADeposedLeaderReachesNobody(t *testing.T) {
	inNodes(t, func(t *testing.T) {
		c := newNodes(t, true, -1, "n1", "n2", "n3")
		l1 := c.elect(t, "n1")
		b := newBlocker()
		c.on(t, "w2", b.Handlers, "n2")
		c.on(t, "w1", b.Handlers, "n1", "n3")
		s2 := l1.session(t, "w2")
		c.stop(t, "n1")
		l2 := c.elect(t, "n3")
		l2.session(t, "w2")
		l2.session(t, "w1") // it left the paused node
		c.cont("n1")
		// The zombie, which thinks that it leads.
		zombie := c.grant("quick")
		zombie.Fence = job.MakeFence(1, 77)
		l1.assign(s2, zombie)
		c.byName["n1"].hub.Assign(t.Context(), []job.Delivery{{Session: l2.session(t, "w2"), Assignment: zombie}})
		time.Sleep(time.Second)
		for _, l := range []*leader{l1, l2} {
			l.tell(func() {
				for _, o := range l.outcomes {
					t.Errorf("the zombie's assignment ran: %+v", o)
				}
			})
		}
		// And were a node's Raft to name it, the node knows better.
		c.name("n1")
		time.Sleep(5 * time.Second)
		l1.mu.Lock()
		if len(l1.workers) != 0 && l1.workers["w2"] != s2 {
			t.Errorf("workers attached to a deposed leader: %v", l1.workers)
		}
		if n := len(l1.hellos); n != 2 {
			t.Errorf("the deposed leader heard %d hellos, want the first two", n)
		}
		l1.mu.Unlock()
		c.name("n3")
		x := c.grant("quick")
		time.Sleep(time.Second)
		if ok := l2.assign(l2.session(t, "w2"), x); !ok[0] {
			t.Error("the new leader does not reach the worker")
		}
		l2.outcome(t, x.Fence)
	})
}

// recorder has a handler that notes which fences ran.
func recorder(delay func() time.Duration) (*worker.Handlers, func() map[job.Fence]int) {
	var mu sync.Mutex
	ran := map[job.Fence]int{}
	h := &worker.Handlers{}
	h.Handle("note", func(ctx context.Context, _ json.RawMessage) (json.RawMessage, error) {
		mu.Lock()
		ran[worker.InfoFrom(ctx).Fence]++
		mu.Unlock()
		time.Sleep(delay())
		return nil, nil
	})
	return h, func() map[job.Fence]int {
		mu.Lock()
		defer mu.Unlock()
		return ran
	}
}

// ledger holds what Assign answered, to be compared with what happened.
type ledger struct {
	t        *testing.T
	mu       sync.Mutex
	verdicts map[job.Fence]bool
	leaders  []*leader
}

func (g *ledger) assign(l *leader, s job.SessionID, as ...*job.Assignment) {
	ok := l.assign(s, as...)
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, a := range as {
		g.verdicts[a.Fence] = ok[i]
	}
}

// judge compares: nothing that was undeliverable ran, nothing ran twice, and of all that ran a leader has the result.
func (g *ledger) judge(ran map[job.Fence]int) (yes, no, never int) {
	g.t.Helper()
	outcomes := map[job.Fence]bool{}
	for _, l := range g.leaders {
		l.mu.Lock()
		for _, o := range l.outcomes {
			if o.Kind == job.AttemptSucceeded {
				outcomes[o.Fence] = true
			}
		}
		l.mu.Unlock()
	}
	for f, ok := range g.verdicts {
		switch {
		case !ok && ran[f] > 0:
			g.t.Errorf("%v was undeliverable, and ran", f)
		case ran[f] > 1:
			g.t.Errorf("%v ran %d times", f, ran[f])
		case ran[f] == 1 && !outcomes[f]:
			g.t.Errorf("the result of %v is lost", f)
		case !ok:
			no++
		case ran[f] == 0:
			never++
		default:
			yes++
		}
	}
	return yes, no, never
}

func TestLeadersChangeInTheMiddleOfEverything(t *testing.T) {
	inNodes(t, func(t *testing.T) {
		c := newNodes(t, true, -1, "n1", "n2", "n3")
		l := c.elect(t, "n1")
		g := &ledger{t: t, verdicts: map[job.Fence]bool{}, leaders: []*leader{l}}
		rnd := rand.New(rand.NewPCG(1, 2))
		h, ran := recorder(func() time.Duration { return time.Duration(rand.IntN(30)) * time.Millisecond })
		workers := []string{"a", "b", "c"}
		for i, name := range workers {
			c.on(t, name, h, c.names[i], c.names[(i+1)%3])
		}
		const changes = 200
		for round := range changes {
			var busy sync.WaitGroup
			for i := range 5 {
				as := []*job.Assignment{c.grant("note"), c.grant("note")}
				name, pause := workers[i%3], time.Duration(rnd.IntN(12_000))*time.Microsecond
				busy.Go(func() {
					time.Sleep(pause)
					l.mu.Lock()
					s := l.workers[name]
					l.mu.Unlock()
					g.assign(l, s, as...)
				})
			}
			time.Sleep(time.Duration(rnd.IntN(12_000)) * time.Microsecond)
			old := c.byName[c.names[round%3]].hub
			if round%2 == 0 { // it knows that it no longer leads; or the other comes first
				old.Unlead()
			}
			l2 := c.elect(t, c.names[(round+1)%3])
			g.leaders = append(g.leaders, l2)
			busy.Wait()
			old.Unlead()
			l = l2
			if round%10 == 9 {
				time.Sleep(50 * time.Millisecond)
			}
		}
		for _, name := range workers {
			x := c.grant("note")
			g.assign(l, l.session(t, name), x)
			l.outcome(t, x.Fence)
		}
		time.Sleep(20 * time.Second) // all that is held was sent again
		yes, no, never := g.judge(ran())
		t.Logf("%d ran, %d were undeliverable, %d were unknown and a hello told", yes, no, never)
		if yes < changes || no == 0 {
			t.Errorf("%d ran, %d were undeliverable: the test does not test", yes, no)
		}
	})
}

// The link dies after each of so many bytes, in whatever step that is.
func TestALinkMayDieAtEveryStep(t *testing.T) {
	if relayed {
		t.Skip("has links already")
	}
	t.Parallel()
	unknown := 0
	for bytes := 20; bytes < 3500; bytes += 23 {
		synctest.Test(t, func(t *testing.T) {
			c := newNodes(t, true, -1, "n1", "n2")
			c.linkCut = bytes
			l := c.elect(t, "n1")
			g := &ledger{t: t, verdicts: map[job.Fence]bool{}, leaders: []*leader{l}}
			h, ran := recorder(func() time.Duration { return 0 })
			c.on(t, "w", h, "n2")
			for range 6 {
				g.assign(l, l.session(t, "w"), c.grant("note"), c.grant("note"))
				time.Sleep(time.Millisecond)
			}
			time.Sleep(10 * time.Second)
			x := c.grant("note")
			g.assign(l, l.session(t, "w"), x)
			l.outcome(t, x.Fence)
			time.Sleep(10 * time.Second)
			yes, _, never := g.judge(ran())
			if yes == 0 {
				t.Errorf("after %d bytes: nothing ran", bytes)
			}
			unknown += never
			l.mu.Lock()
			defer l.mu.Unlock()
			live := map[job.SessionID]bool{}
			for _, s := range l.workers {
				live[s] = true
			}
			for s, name := range l.sessions {
				if !live[s] {
					t.Errorf("after %d bytes: session %s of %s was not detached", bytes, s, name)
				}
			}
		})
	}
	if unknown == 0 {
		t.Error("no assignment was lost on its way: the test does not test")
	}
}

func TestSlowResultsDoNotStopHeartbeatsOfOthers(t *testing.T) {
	inNodes(t, func(t *testing.T) {
		c := newNodes(t, true, -1, "n1", "n2")
		l := c.elect(t, "n1")
		h, _ := recorder(func() time.Duration { return 0 })
		c.on(t, "w1", h, "n2")
		c.on(t, "w2", h, "n2")
		s1, s2 := l.session(t, "w1"), l.session(t, "w2")
		block := make(chan struct{})
		l.tell(func() { l.block = block })
		var all []*job.Assignment
		for range 50 {
			all = append(all, c.grant("note"))
		}
		l.assign(s1, all...)
		time.Sleep(time.Minute)
		l.mu.Lock()
		if l.beats < 22 || l.workers["w1"] != s1 || l.workers["w2"] != s2 {
			t.Errorf("%d heartbeats in a minute, workers %v", l.beats, l.workers)
		}
		l.block = nil
		l.mu.Unlock()
		c.on(t, "w3", h, "n2") // nor do they stop a hello
		close(block)
		for _, x := range all {
			l.outcome(t, x.Fence)
		}
	})
}

func TestASilentLeaderIsLeft(t *testing.T) {
	inNodes(t, func(t *testing.T) {
		c := newNodes(t, true, -1, "n1", "n2")
		l := c.elect(t, "n1")
		b := newBlocker()
		c.on(t, "w", b.Handlers, "n2")
		x := c.grant("block")
		l.begin(t, "w", x, b.running)
		c.stop(t, "n1")
		began := time.Now()
		if r := stopReason(<-b.causes); r != job.LeaseLost { // nobody renews, and nobody says so either
			t.Errorf("stopped because of %v", r)
		}
		if d := time.Since(began); d < 20*time.Second || d > 31*time.Second {
			t.Errorf("the lease ended after %v", d)
		}
		c.cont("n1")
		if o := l.outcome(t, x.Fence); o.Kind != job.AttemptLost {
			t.Errorf("outcome %+v", o)
		}
	})
}

func TestWorkersSpreadOverTheNodes(t *testing.T) {
	inNodes(t, func(t *testing.T) {
		c := newNodes(t, true, 10*time.Second, "n1", "n2", "n3")
		l := c.elect(t, "n1")
		b := newBlocker()
		for i := range 6 {
			c.on(t, fmt.Sprintf("w%d", i), b.Handlers, "n2", "n1", "n3")
		}
		x := c.grant("block")
		l.begin(t, "w0", x, b.running)
		time.Sleep(3 * time.Minute)
		streams := c.byName["n1"].hub.Streams()
		for name, n := range streams {
			if n > 3 {
				t.Errorf("%s has %d of 6 workers: %v", name, n, streams)
			}
		}
		hellos := 0
		l.tell(func() { hellos = len(l.hellos) })
		time.Sleep(5 * time.Minute)
		l.tell(func() {
			if n := len(l.hellos); n != hellos {
				t.Errorf("%d workers moved after they were spread", n-hellos)
			}
		})
		if len(b.causes) != 0 {
			t.Error("moving stopped work")
		}
		close(b.release)
		l.outcome(t, x.Fence)
	})
}
