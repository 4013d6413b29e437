package bubble

import (
	"context"
	"flag"
	"fmt"
	"slices"
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
func trial(t *testing.T, seed uint64, secure bool, do func(l *load)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := newLoad(t, seed, 3, 2, secure)
		do(l)
		l.healed()
		l.end()
	})
}

// newLoad starts everything, and waits until it works.
func newLoad(t *testing.T, seed uint64, nodes, workers int, secure bool) *load {
	t.Helper()
	l := &load{world: newWorld(t, seed, nodes, secure), docs: documents()}
	for _, n := range l.nodes {
		n.start()
	}
	for range workers {
		l.addWorker(32).start()
	}
	l.whole()
	for _, d := range l.docs {
		l.put(t.Context(), d)
	}
	ctx, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { l.run(ctx, seed) })
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
		if n.now == nil && !n.gone {
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
			if !n.gone {
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
			trial(t, *first, false, faults[name])
		})
	}
}

// TestFaults: one fault after the other, also before the one before has healed.
func TestFaults(t *testing.T) {
	for i := range *seeds {
		seed := *first + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			trial(t, seed, seed%4 == 0, func(l *load) {
				var names []string
				for name := range faults {
					names = append(names, name)
				}
				slices.Sort(names)
				for range 8 {
					name := names[l.rand.IntN(len(names))]
					l.note(name)
					faults[name](l)
					l.some(0, 15*time.Second)
				}
			})
		})
	}
}
