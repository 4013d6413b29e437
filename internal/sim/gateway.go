package sim

import (
	"context"
	"slices"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
)

// gateway is where worker streams end on a node.
type gateway struct {
	node     *node
	epoch    job.Epoch // the highest seen
	term     *scheduler.Term
	link     *link // to the leader, if that is another node
	asking   bool
	sessions map[job.SessionID]*stream
	streams  []*stream
	sequence int
}

// stream is one worker's, as its node sees it.
type stream struct {
	gateway  *gateway
	worker   *worker
	up, down *pipe
	session  job.SessionID
	hello    job.WorkerHello
	ready    bool     // the worker has been welcomed in this session
	held     []func() // what came for it before
	seenAt   time.Duration
	closed   bool
}

func newGateway(n *node) *gateway {
	g := &gateway{node: n, sessions: map[job.SessionID]*stream{}}
	g.tick()
	return g
}

// tick follows whoever leads, and ends streams of silent workers.
func (g *gateway) tick() {
	n, s := g.node, g.node.sim
	s.at(&n.host, 200*time.Millisecond+s.upTo(50*time.Millisecond), func() {
		g.tick()
		for _, x := range slices.Clone(g.streams) {
			if s.now-x.seenAt > 15*time.Second {
				x.close(true)
			}
		}
		if l := g.link; l != nil && !l.over {
			l.beat(true)
		}
		to := n.raft.leader
		if to < 0 || to == n.index || g.asking || g.term != nil || g.link != nil && !g.link.over && g.link.leader.index == to {
			return
		}
		g.asking = true
		s.after(time.Second, func() { g.asking = false })
		g.ask(s.nodes[to])
	})
}

// ask asks for a link.
func (g *gateway) ask(to *node) {
	n, s := g.node, g.node.sim
	seen := g.epoch
	s.datagram(&n.host, &to.host, func() {
		h := to.hub
		if h.term == nil || h.term.Epoch() < seen {
			return
		}
		l := &link{sim: s, follower: n, leader: to, gateway: g, hub: h, epoch: h.term.Epoch(), up: s.pipe(&n.host, &to.host), down: s.pipe(&to.host, &n.host),
			heard: [2]time.Duration{s.now, s.now}}
		h.links = append(h.links, l)
		s.datagram(&to.host, &n.host, func() {
			if g.asking = false; l.over || l.epoch < g.epoch || g.term != nil || n.gateway != g {
				return
			}
			if old := g.link; old != nil && !old.over {
				old.close()
			}
			g.epoch = l.epoch
			g.link = l
			g.resync()
		})
	})
}

// lead makes this node's own term what its gateway speaks to; nil: nobody.
func (g *gateway) lead(t *scheduler.Term) {
	if g.link != nil && !g.link.over {
		g.link.close()
	}
	g.link, g.term = nil, t
	if t != nil {
		g.epoch = max(g.epoch, t.Epoch())
	}
	g.resync()
}

// resync ends all sessions; under a leader every worker says Hello again.
func (g *gateway) resync() {
	clear(g.sessions)
	for _, x := range g.streams {
		x.session, x.ready, x.held = "", false, nil
		if g.leads() {
			w := x.worker
			x.down.send(func() { w.askedAgain(x) })
		}
	}
}

func (g *gateway) leads() bool { return g.term != nil || g.link != nil && !g.link.over }

func (g *gateway) attach(x *stream, h job.WorkerHello, number int) {
	x.hello = h
	if x.session != "" {
		g.detach(x.session)
		delete(g.sessions, x.session)
	}
	x.session, x.ready, x.held = "", false, nil
	w := x.worker
	if !g.leads() {
		x.down.send(func() { w.welcomed(x, number, false, nil) })
		return
	}
	g.node.sim.note("hello", g.node.name, h.Name, len(h.Running))
	g.sequence++
	session := job.SessionID(g.node.name + "." + itoa(g.node.life) + "." + itoa(g.sequence))
	g.sessions[session], x.session = x, session
	answer := func(stop []job.Fence, err error) {
		if x.closed || x.session != session {
			return
		}
		if err != nil {
			delete(g.sessions, session)
			x.session = ""
			if job.CodeOf(err) == job.Conflict {
				g.node.sim.counts["namesakes refused"]++
			}
			x.close(true)
			return
		}
		x.down.send(func() { w.welcomed(x, number, true, stop) })
		x.ready = true
		for _, f := range x.held {
			x.down.send(f)
		}
		x.held = nil
	}
	if g.term != nil {
		answer(g.term.Attach(context.Background(), session, g.node.name, h))
		return
	}
	l := g.link
	l.up.send(func() {
		stop, err := l.hub.attach(l, session, h)
		l.down.send(func() { answer(stop, err) })
	})
}

func (g *gateway) detach(session job.SessionID) {
	switch l := g.link; {
	case g.term != nil:
		g.term.Detach(session)
	case l != nil && !l.over:
		l.up.send(func() { l.hub.detach(session) })
	}
}

func (g *gateway) heartbeat(x *stream, seq int, running []job.Fence) {
	w, session := x.worker, x.session
	ack := func(renewed bool, unknown []job.Fence) {
		x.down.send(func() { w.beatAnswered(x, seq, renewed && x.session == session, unknown) })
	}
	switch l := g.link; {
	case session == "" || !g.leads():
		ack(false, nil)
	case g.term != nil:
		ack(true, g.term.Heartbeat(session, running))
	default:
		l.up.send(func() {
			if l.hub.term == nil || l.hub.seats[session] != l {
				return
			}
			unknown := l.hub.term.Heartbeat(session, running)
			l.down.send(func() {
				if x.session == session {
					ack(true, unknown)
				}
			})
		})
	}
}

func (g *gateway) finished(x *stream, outcomes []job.Outcome) {
	session := x.session
	switch l := g.link; {
	case session == "" || !g.leads():
	case g.term != nil:
		g.term.Finished(session, outcomes)
	default:
		l.up.send(func() {
			if l.hub.term != nil && l.hub.seats[session] == l {
				l.hub.term.Finished(session, outcomes)
			}
		})
	}
}

func (g *gateway) started(x *stream, started []job.Started) {
	session := x.session
	switch l := g.link; {
	case session == "" || !g.leads():
	case g.term != nil:
		g.term.Started(session, started)
	default:
		l.up.send(func() {
			if l.hub.term != nil && l.hub.seats[session] == l {
				l.hub.term.Started(session, started)
			}
		})
	}
}

// write hands an attempt to its stream; false: it was not written.
func (g *gateway) write(d job.Delivery) bool {
	s := g.node.sim
	if e := d.Fence.Epoch(); e < g.epoch && !s.options.plant.AnyEpoch {
		s.counts["assignments of an old epoch refused"]++
		return false
	} else if e > g.epoch {
		g.epoch = e
	}
	x := g.sessions[d.Session]
	if x == nil || x.closed || s.rand.Float64() < s.faults.busy {
		s.counts["undeliverable"]++
		return false
	}
	w, a := x.worker, d.Assignment
	s.note("assign", g.node.name, string(d.Session), uint64(a.Fence), x.ready)
	x.tell(d.Session, func() { w.assigned(x, a) })
	return true
}

// tell sends something in a session, after the welcome.
func (x *stream) tell(session job.SessionID, f func()) {
	switch {
	case x.closed || x.session != session:
	case !x.ready:
		x.held = append(x.held, f)
	default:
		x.down.send(f)
	}
}

func (g *gateway) stopAttempt(o job.StopOrder) {
	if x := g.sessions[o.Session]; x != nil {
		w := x.worker
		x.tell(o.Session, func() { w.told(x, o.Fence, o.Reason) })
	}
}

func (g *gateway) acknowledge(a job.Ack) {
	if x := g.sessions[a.Session]; x != nil {
		w := x.worker
		x.tell(a.Session, func() { w.acknowledged(x, a.Fence) })
	}
}

// close ends a stream at the node's side; the worker hears of it if it can be reached.
func (x *stream) close(tell bool) {
	if x.closed {
		return
	}
	x.closed = true
	g, s := x.gateway, x.gateway.node.sim
	x.up.close()
	x.down.close()
	if i := slices.Index(g.streams, x); i >= 0 {
		g.streams = slices.Delete(g.streams, i, i+1)
	}
	if x.session != "" && g.sessions[x.session] == x {
		delete(g.sessions, x.session)
		g.detach(x.session)
	}
	if w := x.worker; tell && !s.cut(&g.node.host, &w.host) {
		s.at(&w.host, s.delay(), func() { w.streamEnded(x) })
	}
}

func (g *gateway) closeAll() {
	for _, x := range slices.Clone(g.streams) {
		x.session = ""
		x.close(true)
	}
	if g.link != nil && !g.link.over {
		g.link.close()
	}
}
