package sim

import (
	"slices"
	"time"
)

// began is true time zero.
var began = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

// nodeClock is scheduler.Clock.
type nodeClock struct{ n *node }

func (c nodeClock) Now() time.Time { return c.n.sim.options.skewed(c.n.now()) }

// Elapsed counts from boot: what is kept of it means nothing after a crash.
func (c nodeClock) Elapsed() time.Duration { return c.n.sim.now + time.Hour }

// now is the cluster's time as this node knows it (L8).
func (n *node) now() time.Time {
	ahead := n.ahead
	if n.followed {
		ahead = n.origin
	}
	n.sim.history.Apart = max(n.sim.history.Apart, ahead.Abs()+jitter)
	return began.Add(n.sim.now + ahead)
}

// median is what the clocks of all nodes that run show in the middle: what no tick may be ahead of.
func (s *Sim) median() time.Time {
	var shown []time.Duration
	for _, n := range s.nodes {
		shown = append(shown, n.ahead)
	}
	return began.Add(s.now + middle(shown))
}

func middle(shown []time.Duration) time.Duration {
	slices.Sort(shown)
	return shown[(len(shown)-1)/2]
}

// jitter is a difference that nobody follows.
const jitter = 20 * time.Millisecond

func (n *node) follow(origin time.Duration) {
	if !n.followed {
		n.origin, n.followed = n.ahead, true
	}
	if d := origin - n.origin; d.Abs() >= jitter {
		n.origin = origin
	}
}

// probeSoon has a leader read the others' clocks each second, and tell them the cluster's time.
func (n *node) probeSoon() {
	s := n.sim
	s.at(&n.host, 900*time.Millisecond+s.upTo(100*time.Millisecond), func() {
		n.probeSoon()
		if n.raft.role != leader {
			n.reached, n.off = false, 0
			return
		}
		n.probe()
	})
}

func (n *node) probe() {
	s := n.sim
	shown := []time.Duration{n.ahead}
	for i := range s.nodes {
		if i != n.index && n.readAt[i] > 0 && s.now-n.readAt[i] < 10*time.Second {
			shown = append(shown, n.read[i])
		}
	}
	if 2*len(shown) > len(s.nodes) {
		m := middle(shown)
		n.follow(m)
		n.reached = true
		n.flush()
		if (n.ahead - m).Abs() <= 2*time.Second {
			n.off = 0
		} else if n.off++; n.off >= 2 && n.transferLeadership() {
			s.counts["leaders with a wrong clock handed over"]++
			n.off = 0
		}
	}
	tell, told := n.origin, n.followed && n.reached
	for _, o := range s.nodes {
		if o == n {
			continue
		}
		s.datagram(&n.host, &o.host, func() {
			if told && o.raft.role != leader {
				o.follow(tell)
			}
			ahead := o.ahead
			s.datagram(&o.host, &n.host, func() { n.read[o.index], n.readAt[o.index] = ahead, s.now })
		})
	}
}
