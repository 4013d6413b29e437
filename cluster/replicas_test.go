package cluster

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/job"
)

// compare fails when two nodes have applied equally much and are not equal. It answers how many pairs could be compared.
func (p *party) compare() (pairs int) {
	p.t.Helper()
	type stand struct {
		name  string
		index uint64
		sum   [32]byte
	}
	var seen []stand
	for _, name := range []string{"a", "b", "c"} {
		n := p.at(apiOf(name))
		if n == nil {
			continue
		}
		s := stand{name: name, index: n.State().Index()}
		var err error
		if s.sum, err = n.State().Hash(); err != nil {
			p.t.Fatal(err)
		}
		if n.State().Index() != s.index {
			continue // it moved on meanwhile
		}
		for _, other := range seen {
			if other.index == s.index {
				pairs++
				if other.sum != s.sum {
					p.t.Fatalf("%s and %s have both applied %d and differ", other.name, s.name, s.index)
				}
			}
		}
		seen = append(seen, s)
	}
	return pairs
}

// TestReplicasAreEqual: whatever is proposed, while nodes restart, are wiped, and get snapshots instead of logs, nodes
// that have applied the same have the same state.
func TestReplicasAreEqual(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newParty(t, seed)
				p.small = true
				p.trioOf()
				pairs, installs := 0, 0
				acked := map[string]job.WorkerState{}
				for step := range 150 {
					g := p.homes[apiOf([]string{"a", "b", "c"}[p.rnd.IntN(3)])]
					switch p.rnd.IntN(12) {
					case 0:
						p.down(g)
						p.write(acked, step, 200) // enough for a snapshot, and a log behind which it is cut
						p.up(g)
						installs++
					case 1:
						p.down(g)
						p.up(g)
					case 2:
						if step%3 == 0 {
							p.down(g)
							p.up(p.invite(g.name, "a", "b", "c"))
							p.gather("a", "b", "c")
						}
					default:
						p.write(acked, step, 10)
					}
					time.Sleep(time.Duration(p.rnd.IntN(3000)) * time.Millisecond)
					pairs += p.compare()
					p.gather("a", "b", "c")
				}
				for name, g := range p.homes {
					for worker, state := range acked {
						if got := g.node.State().WorkerFlag(worker); got != state {
							t.Fatalf("%s: %s is %q, and %q was acknowledged", name, worker, got, state)
						}
					}
					if list, err := g.node.stores.snaps.List(); err != nil || len(list) == 0 {
						t.Error(name, "took no snapshot")
					}
				}
				if pairs < 100 || installs == 0 {
					t.Errorf("%d comparisons, %d nodes that were away for long", pairs, installs)
				}
			})
		})
	}
}

// write flags workers through whoever leads, and remembers what was acknowledged.
func (p *party) write(acked map[string]job.WorkerState, step, writes int) {
	for i := range writes {
		for _, name := range []string{"a", "b", "c"} {
			n := p.at(apiOf(name))
			if n == nil || !n.Leading() {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			worker, state := fmt.Sprintf("w%d", p.rnd.IntN(40)), job.WorkerCordoned
			if (step+i)%2 == 0 {
				state = job.WorkerDraining
			}
			switch err := n.Control().FlagWorker(ctx, worker, state); {
			case err == nil:
				acked[worker] = state
			case job.CodeOf(err) == job.Unknown:
				delete(acked, worker)
			}
			cancel()
			break
		}
	}
}
