package cluster_test

import (
	"testing"
	"testing/synctest"
	"time"
)

// A leader whose process is gone is followed long before anybody's timer has run out; one that is only cut off is not.
func TestSuspect(t *testing.T) {
	for name, gone := range map[string]bool{"gone": true, "cut off": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				took := time.Duration(0)
				const trials = 4
				for range trials {
					m := newMesh(t, 3)
					leader := m.leader(nil)
					time.Sleep(time.Second)
					start := time.Now()
					if gone {
						m.net.Kill(leader.host)
					} else {
						m.cut(leader)
					}
					for _, n := range m.nodes {
						if n != leader {
							n.Suspect(leader.ID())
							n.Suspect(leader.ID()) // may be told often
							n.Suspect("nobody")
						}
					}
					next := ""
					for next == "" || next == leader.ID() {
						time.Sleep(time.Millisecond)
						for _, n := range m.nodes {
							if n != leader && n.Leading() {
								next = n.ID()
							}
						}
					}
					took += time.Since(start)
					m.net.HealAll()
				}
				if mean := took / trials; gone && mean > 100*time.Millisecond || !gone && mean < 400*time.Millisecond {
					t.Errorf("another leads after %s on average", mean)
				}
			})
		})
	}
}

// A leader that is there stays, whatever it is suspected of.
func TestSuspectOfALeaderThatIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 3)
		leader := m.leader(nil)
		time.Sleep(time.Second)
		term := leader.Status().Term
		for range 20 {
			for _, n := range m.nodes {
				n.Suspect(leader.ID())
			}
			time.Sleep(time.Second)
		}
		if s := leader.Status(); s.Term != term || !leader.Leading() {
			t.Errorf("after term %d it is term %d", term, s.Term)
		}
	})
}
