package sim

import (
	"context"
	"slices"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
)

// hub is scheduler.Gateways on the node that leads: its own gateway, and those of the nodes that are linked.
type hub struct {
	node  *node
	term  *scheduler.Term
	links []*link
	seats map[job.SessionID]*link
}

// link joins the gateway of one node to the leader, for one epoch at most.
type link struct {
	sim              *Sim
	follower, leader *node
	gateway          *gateway
	hub              *hub
	epoch            job.Epoch
	up, down         *pipe
	over             bool
	unanswered       bool
	heard            [2]time.Duration // by the follower, by the leader
	said             [2]time.Duration
}

func newHub(n *node) *hub {
	h := &hub{node: n, seats: map[job.SessionID]*link{}}
	h.tick()
	return h
}

func (h *hub) tick() {
	s := h.node.sim
	s.at(&h.node.host, time.Second, func() {
		h.tick()
		for _, l := range slices.Clone(h.links) {
			l.beat(false)
		}
	})
}

// beat says a word on the link, and ends it when nothing was heard for long.
func (l *link) beat(follower bool) {
	s := l.sim
	if l.over {
		return
	}
	me, other, p := 1, 0, l.down
	if follower {
		me, other, p = 0, 1, l.up
	}
	if s.now-l.heard[me] > 5*time.Second {
		s.counts["links that fell silent"]++
		l.close()
		return
	}
	if s.now-l.said[me] >= time.Second {
		l.said[me] = s.now
		p.send(func() { l.heard[other] = s.now })
	}
}

// close ends a link on the side that calls, and soon on the other, if that can be reached; else that side will notice the
// silence. (Both sides share one value here, so it is over for both: what the other side sends meanwhile is lost.)
func (l *link) close() {
	if l.over {
		return
	}
	l.over = true
	l.up.close()
	l.down.close()
	s, h, g := l.sim, l.hub, l.gateway
	s.at(&l.leader.host, s.delay(), func() {
		if i := slices.Index(h.links, l); i >= 0 {
			h.links = slices.Delete(h.links, i, i+1)
		}
		for _, session := range h.sessionsOf(l) {
			h.detach(session)
		}
	})
	s.at(&l.follower.host, s.delay(), func() {
		if g.link == l {
			g.link = nil
			g.resync()
		}
	})
}

func (h *hub) sessionsOf(l *link) (out []job.SessionID) {
	for session, of := range h.seats {
		if of == l {
			out = append(out, session)
		}
	}
	slices.Sort(out)
	return out
}

func (h *hub) lead(t *scheduler.Term) {
	h.term = t
	clear(h.seats)
	h.node.gateway.lead(t)
}

func (h *hub) unlead() {
	h.term = nil
	h.closeAll()
	clear(h.seats)
	h.node.gateway.lead(nil)
}

func (h *hub) closeAll() {
	for _, l := range slices.Clone(h.links) {
		l.close()
	}
	h.links = nil
}

func (h *hub) attach(l *link, session job.SessionID, hello job.WorkerHello) ([]job.Fence, error) {
	if h.term == nil || l.over {
		return nil, notLeader()
	}
	h.seats[session] = l
	return h.term.Attach(context.Background(), session, l.follower.name, hello)
}

func (h *hub) detach(session job.SessionID) {
	if _, there := h.seats[session]; !there {
		return
	}
	delete(h.seats, session)
	if h.term != nil {
		h.term.Detach(session)
	}
}

// patience is how long the dispatcher waits for another node.
const patience = 200 * time.Millisecond

// Assign implements scheduler.Gateways.
func (h *hub) Assign(ctx context.Context, deliveries []job.Delivery) []bool {
	s := h.node.sim
	ok := make([]bool, len(deliveries))
	of := map[*link][]int{}
	var links []*link
	for i, d := range deliveries {
		l, linked := h.seats[d.Session]
		if !linked {
			ok[i] = h.node.gateway.write(d)
			continue
		}
		if of[l] == nil {
			links = append(links, l)
		}
		of[l] = append(of[l], i)
	}
	me, left := s.running, 0
	over := false
	for _, l := range links {
		if l.over || l.unanswered {
			continue // false: never sent
		}
		at := of[l]
		batch := make([]job.Delivery, len(at))
		for k, i := range at {
			batch[k], ok[i] = deliveries[i], true // unknown, until it is answered
		}
		l.unanswered = true
		left++
		l.up.sim.counts["assigned over links"] += len(at)
		l.down.send(func() {
			if l.gateway.link != l {
				return
			}
			written := make([]bool, len(batch))
			for k := range batch {
				written[k] = l.gateway.write(batch[k])
			}
			l.up.send(func() {
				l.unanswered = false
				if !over {
					for k, i := range at {
						ok[i] = written[k]
					}
					left--
					me.wake()
					return
				}
				h.given(l, batch, written)
			})
		})
	}
	for deadline := s.now + patience; left > 0 && s.now < deadline && ctx.Err() == nil; {
		s.sleep(ctx, deadline-s.now)
	}
	if over = true; left > 0 {
		s.counts["assignments of unknown fate"]++
	}
	return ok
}

// given tells the term that what it was told may have been written was not.
func (h *hub) given(l *link, batch []job.Delivery, written []bool) {
	for k, d := range batch {
		if !written[k] && h.term != nil && h.seats[d.Session] == l {
			l.sim.counts["given back late"]++
			h.term.Finished(d.Session, []job.Outcome{{RunID: d.RunID, Fence: d.Fence, Attempt: d.Attempt, Kind: job.AttemptReturned,
				Reason: job.WorkerStopped, Error: "the attempt did not reach its worker"}})
		}
	}
}

// Stop implements scheduler.Gateways.
func (h *hub) Stop(_ context.Context, orders []job.StopOrder) {
	for _, o := range orders {
		if l, linked := h.seats[o.Session]; linked {
			l.down.send(func() { l.gateway.stopAttempt(o) })
		} else {
			h.node.gateway.stopAttempt(o)
		}
	}
}

// Acknowledge implements scheduler.Gateways.
func (h *hub) Acknowledge(_ context.Context, acks []job.Ack) {
	for _, a := range acks {
		if l, linked := h.seats[a.Session]; linked {
			l.down.send(func() { l.gateway.acknowledge(a) })
		} else {
			h.node.gateway.acknowledge(a)
		}
	}
}

var _ scheduler.Gateways = (*hub)(nil)
