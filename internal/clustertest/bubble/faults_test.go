package bubble

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/internal/checker"
)

var (
	seeds = flag.Int("seeds", 2, "how many trials with random faults")
	first = flag.Uint64("seed", 1, "the seed of the first of them")
)

// trial runs a cluster with its load in a bubble, does to it what it is told, and judges what came of it.
func trial(t *testing.T, seed uint64, s shape, do func(l *load)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := newLoad(t, seed, s)
		do(l)
		l.healed()
		r := l.end()
		if r.Due == 0 || r.Starts == 0 || r.Leads == 0 || r.Replicas < s.nodes || r.Accepted == 0 && !s.quiet {
			t.Errorf("too little happened for anything to go wrong: %+v", *r)
		}
	})
}

// shape is what a trial's cluster is made of.
type shape struct {
	nodes, workers int
	spare          int  // nodes that are not started
	secure         bool // with certificates
	quiet          bool // without clients
	slow           bool // jobs tick once in a while
}

var usual = shape{nodes: 3, workers: 2}

// newLoad starts everything, and waits until it works.
func newLoad(t *testing.T, seed uint64, s shape) *load {
	t.Helper()
	l := &load{world: newWorld(t, seed, s.nodes+s.spare, s.secure), docs: documents(s.slow)}
	for _, n := range l.nodes[s.nodes:] {
		n.gone.Store(true)
	}
	for _, n := range l.nodes[:s.nodes] {
		n.start()
	}
	for range s.workers {
		l.addWorker(32).start()
	}
	l.whole()
	for _, d := range l.docs {
		l.put(t.Context(), d)
	}
	ctx, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	if !s.quiet {
		all.Go(func() { l.run(ctx, seed) })
	}
	l.quiet = sync.OnceFunc(func() { stop(); all.Wait() })
	l.some(5*time.Second, 6*time.Second)
	return l
}

// healed undoes all that was done, waits until everything works, and lets the clients stop.
func (l *load) healed() {
	l.t.Helper()
	l.net.HealAll()
	for _, n := range l.nodes {
		n.ahead.Store(0)
		if n.now == nil && !n.gone.Load() {
			n.start()
		}
	}
	for _, a := range l.workers {
		if a.now == nil {
			a.start()
		}
	}
	l.whole()
	l.some(5*time.Second, 6*time.Second)
	l.quiet()
}

// some lets some time pass.
func (w *world) some(least, most time.Duration) time.Duration {
	d := least + time.Duration(w.rand.Int64N(int64(most-least)+1))
	time.Sleep(d)
	return d
}

func (w *world) anyNode() *server {
	live := w.live()
	return live[w.rand.IntN(len(live))]
}

func (w *world) anyWorker() *agent { return w.workers[w.rand.IntN(len(w.workers))] }

func (w *world) live() []*server {
	return slices.DeleteFunc(slices.Clone(w.nodes), func(n *server) bool { return n.now == nil })
}

// both cuts two hosts off from each other.
func (w *world) both(a, b string) {
	w.net.Cut(a, b)
	w.net.Cut(b, a)
}

// faults are what can be done to a cluster of three and its workers. Each leaves it so that it can heal by itself.
var faults = map[string]func(l *load){
	"leader killed": func(l *load) {
		n := l.leader()
		n.kill()
		l.some(0, 20*time.Second)
		n.start()
	},
	"node killed": func(l *load) {
		n := l.anyNode()
		n.kill()
		l.some(0, 20*time.Second)
		n.start()
	},
	"all killed": func(l *load) {
		var all sync.WaitGroup
		for _, n := range l.live() {
			all.Go(n.kill)
		}
		all.Wait()
		l.some(0, 5*time.Second)
		for _, n := range l.nodes {
			if !n.gone.Load() {
				n.start()
				l.some(0, 2*time.Second)
			}
		}
	},
	"leader cut off from nodes": func(l *load) {
		n := l.leader()
		for _, v := range l.nodes {
			l.both(n.name, v.name)
		}
		l.some(2*time.Second, 30*time.Second)
		l.net.HealAll()
	},
	"node cut off from everybody": func(l *load) {
		n := l.anyNode()
		for _, v := range l.nodes {
			l.both(n.name, v.name)
		}
		for _, a := range l.workers {
			l.both(n.name, a.name)
		}
		l.both(n.name, "client")
		l.some(2*time.Second, 30*time.Second)
		l.net.HealAll()
	},
	"one way": func(l *load) {
		n := l.anyNode()
		if l.rand.IntN(2) == 0 {
			n = l.leader()
		}
		speaks := l.rand.IntN(2) == 0
		for _, v := range l.nodes {
			if speaks {
				l.net.Cut(v.name, n.name)
			} else {
				l.net.Cut(n.name, v.name)
			}
		}
		l.some(2*time.Second, 30*time.Second)
		l.net.HealAll()
	},
	"ring": func(l *load) { // everybody reaches some other, nobody all
		live := l.live()
		for i, n := range live {
			l.net.Cut(n.name, live[(i+1)%len(live)].name)
		}
		l.some(2*time.Second, 20*time.Second)
		l.net.HealAll()
	},
	"chain": func(l *load) { // two that do not reach each other, and one that reaches both
		live := l.live()
		i := l.rand.IntN(len(live))
		l.both(live[i].name, live[(i+1)%len(live)].name)
		l.some(2*time.Second, 30*time.Second)
		l.net.HealAll()
	},
	"all cut off from each other": func(l *load) {
		for _, a := range l.nodes {
			for _, b := range l.nodes {
				l.net.Cut(a.name, b.name)
			}
		}
		l.some(2*time.Second, 20*time.Second)
		l.net.HealAll()
	},
	"flaps": func(l *load) {
		for range 10 {
			n := l.anyNode()
			for _, v := range l.nodes {
				l.both(n.name, v.name)
			}
			l.some(50*time.Millisecond, 1500*time.Millisecond)
			l.net.HealAll()
			l.some(50*time.Millisecond, 1500*time.Millisecond)
		}
	},
	"worker cut off": func(l *load) {
		a := l.anyWorker()
		f := checker.Fault{Kind: checker.Cut, Role: checker.Worker, Name: a.name, From: l.now()}
		for _, n := range l.nodes {
			l.both(n.name, a.name)
		}
		if l.rand.IntN(2) == 0 {
			l.some(time.Second, 20*time.Second)
		} else {
			l.some(41*time.Second, 60*time.Second) // beyond its leases
		}
		l.net.HealAll()
		time.Sleep(15 * time.Second) // until then it may still be without a stream
		f.To = l.now()
		l.rec.add(checker.Line{Fault: &f})
	},
	"worker killed": func(l *load) {
		a := l.anyWorker()
		a.kill()
		l.some(0, 20*time.Second)
		a.start()
	},
	"clock wrong": func(l *load) {
		l.whole()
		time.Sleep(2 * time.Second) // all clocks are compared
		n := l.anyNode()
		if l.rand.IntN(2) == 0 {
			n = l.leader()
		}
		ahead := []time.Duration{time.Hour, -time.Hour, 5 * time.Second, -5 * time.Second}[l.rand.IntN(4)]
		n.ahead.Store(int64(ahead))
		l.some(2*time.Second, 30*time.Second)
		if l.rand.IntN(2) == 0 {
			n.kill()
			l.some(0, 5*time.Second)
			n.start()
			l.some(2*time.Second, 10*time.Second)
		}
		n.ahead.Store(0)
	},
	"transfer": func(l *load) {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := l.sdk.Transfer(ctx, ""); err != nil {
			l.t.Log("transfer:", err)
		}
	},
	"node replaced": func(l *load) {
		n := l.anyNode()
		n.kill()
		n.wipe()
		l.some(0, 10*time.Second)
		n.start()
		l.voter(n)
	},
}

// voter waits until a node votes.
func (l *load) voter(n *server) {
	l.t.Helper()
	l.await(2*time.Minute, "vote of "+n.name, func() bool {
		s, err := l.sdk.Cluster(context.Background())
		return err == nil && slices.ContainsFunc(s.Nodes, func(v client.NodeStatus) bool { return v.Name == n.name && v.Role != "nonvoter" && v.Healthy })
	})
}

// TestFault: each fault once, by itself.
func TestFault(t *testing.T) {
	names := slices.Sorted(func(yield func(string) bool) {
		for name := range faults {
			if !yield(name) {
				return
			}
		}
	})
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			trial(t, *first, usual, faults[name])
		})
	}
}

// underCuts are the faults that need nobody to lead, so that they can be done while nodes are cut off from each other. A wrong
// clock is none of them: of two nodes that are left to each other nobody can say which clock is right.
var underCuts = []string{"all killed", "node killed", "worker killed"}

// TestFaults: one fault after the other, some of them while the network is cut in any way.
func TestFaults(t *testing.T) {
	var names []string
	for name := range faults {
		names = append(names, name)
	}
	slices.Sort(names)
	for i := range *seeds {
		seed := *first + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			s := usual
			s.secure = seed%4 == 0
			if seed%3 == 0 {
				s.nodes = 5
			}
			trial(t, seed, s, func(l *load) {
				for range 8 {
					if l.rand.IntN(3) > 0 {
						l.do(names[l.rand.IntN(len(names))])
					} else {
						l.note("cuts")
						for _, a := range l.nodes {
							for _, b := range l.nodes {
								if a != b && l.rand.IntN(3) == 0 {
									l.net.Cut(a.name, b.name)
								}
							}
						}
						l.do(underCuts[l.rand.IntN(len(underCuts))])
						l.net.HealAll()
					}
					l.some(0, 15*time.Second)
				}
			})
		})
	}
}

func (l *load) do(name string) {
	l.note(name)
	faults[name](l)
}

// TestCertificates: a cluster with certificates outlives its leader and a cut.
func TestCertificates(t *testing.T) {
	t.Parallel()
	s := usual
	s.secure = true
	trial(t, *first, s, func(l *load) {
		for _, name := range []string{"leader killed", "node cut off from everybody", "worker killed", "node replaced"} {
			l.do(name)
			l.some(time.Second, 5*time.Second)
		}
	})
}

// TestHalves: of five nodes, the two that lead are cut off from the three others.
func TestHalves(t *testing.T) {
	t.Parallel()
	trial(t, *first, shape{nodes: 5, workers: 2}, func(l *load) {
		old := l.leader()
		few := []*server{old, l.nodes[(slices.Index(l.nodes, old)+1)%5]}
		for _, a := range few {
			for _, b := range l.nodes {
				if !slices.Contains(few, b) {
					l.both(a.name, b.name)
				}
			}
		}
		if now := l.leader(few...); slices.Contains(few, now) {
			l.t.Errorf("%s leads without a majority", now.name)
		}
		l.some(20*time.Second, 60*time.Second)
		l.net.HealAll()
	})
}

// TestMembers: a fourth node joins and one of the first three leaves, the leader perhaps, while everything works.
func TestMembers(t *testing.T) {
	t.Parallel()
	for i := range uint64(2) {
		t.Run([]string{"a follower leaves", "the leader leaves"}[i], func(t *testing.T) {
			trial(t, *first, shape{nodes: 3, workers: 2, spare: 1, secure: true}, func(l *load) {
				n := l.nodes[3]
				n.gone.Store(false)
				n.start()
				l.voter(n)
				l.some(5*time.Second, 10*time.Second)
				leaver := l.leader()
				if i == 0 {
					leaver = l.nodes[(slices.Index(l.nodes, leaver)+1)%3]
				}
				leaver.gone.Store(true)
				if err := l.sdk.RemoveNode(context.Background(), leaver.name, false); err != nil {
					l.t.Errorf("remove %s: %v", leaver.name, err)
				}
				select {
				case <-leaver.now.done:
					if err := leaver.now.err; err == nil || !strings.Contains(err.Error(), "removed from the cluster") {
						l.t.Errorf("the node that was removed ended: %v", err)
					}
				case <-time.After(time.Minute):
					l.t.Errorf("%s was removed and goes on", leaver.name)
					leaver.kill()
				}
				leaver.now = nil
				l.some(5*time.Second, 10*time.Second)
				l.do("leader killed")
			})
		})
	}
}

// TestAnHour: a leader that was alone for an hour, and a worker that was, come back to a cluster that went on.
func TestAnHour(t *testing.T) {
	t.Parallel()
	trial(t, *first, shape{nodes: 3, workers: 2, quiet: true, slow: true}, func(l *load) {
		n, a := l.leader(), l.workers[0]
		f := checker.Fault{Kind: checker.Cut, Role: checker.Worker, Name: a.name, From: l.now()}
		for _, v := range l.nodes {
			l.both(n.name, v.name)
			l.both(a.name, v.name)
		}
		l.leader(n)
		time.Sleep(time.Hour)
		l.net.HealAll()
		l.some(20*time.Second, 30*time.Second)
		f.To = l.now()
		l.rec.add(checker.Line{Fault: &f})
	})
}
