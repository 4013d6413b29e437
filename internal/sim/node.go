package sim

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/musterhq/muster/cluster"
	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
	"github.com/musterhq/muster/storage/memory"
	"github.com/musterhq/muster/storage/replicated"
)

// node is one scheduler process.
type node struct {
	host
	sim   *Sim
	index int

	raft   raftLog
	state  *fsm.State
	disk   time.Duration // how long a sync takes
	lag    time.Duration // of applying
	beatAt time.Duration
	owed   []owedAnswer

	// Proposals.
	seq       uint64
	waiting   []*proposal            // not in an entry yet
	pending   map[uint64][]*proposal // by index
	expecting int                    // how many of its coroutines wait for their own state

	// The clock.
	ahead    time.Duration // of this machine's clock to true time
	origin   time.Duration // of the cluster's time, as followed
	followed bool
	reached  bool
	readAt   []time.Duration // when each other clock was last read
	read     []time.Duration // what it was ahead
	off      int             // rounds in which it was too far off

	control *cluster.Control
	store   *replicated.Store
	queue   *memory.Queue
	gateway *gateway
	hub     *hub
	term    *scheduler.Term
	reign   *reign
	main    *proc
	watcher time.Duration // how slow it is to see that leadership changed
	floor   uint64        // what it had applied when it died: before that it does not answer again
}

// proposal is one call on its way into the log.
type proposal struct {
	commands []fsm.Command
	term     uint64
	done     func(index uint64, results []fsm.Result, err error)
}

// reign is one term's coroutines.
type reign struct {
	ctx        context.Context
	cancel     context.CancelFunc
	generation uint64
	procs      []*proc
	err        error
	open       int
}

func (n *node) start() {
	s := n.sim
	s.boot(&n.host)
	n.waiting, n.pending, n.expecting, n.owed = nil, map[uint64][]*proposal{}, 0, nil
	n.origin, n.followed, n.reached, n.off = 0, false, false, 0
	n.readAt, n.read = make([]time.Duration, len(s.nodes)), make([]time.Duration, len(s.nodes))
	n.term, n.reign = nil, nil
	n.bootRaft()
	n.gateway, n.hub = newGateway(n), newHub(n)
	n.control = cluster.NewControl(n, n.state)
	n.store = replicated.New(n, n.state)
	n.queue = memory.New(0)
	n.probeSoon()
	n.main = s.spawn(&n.host, n.name+" leads", n.lead)
}

// Propose is cluster.Node.Propose: at the leader into its log, elsewhere to the leader, answered by the own state.
func (n *node) Propose(ctx context.Context, commands ...fsm.Command) ([]fsm.Result, error) {
	s := n.sim
	if s.running == nil {
		panic("sim: a proposal outside of a coroutine")
	}
	if err := ctx.Err(); err != nil {
		return nil, timedOut("the caller is gone")
	}
	if n.raft.role == leader {
		return n.proposeHere(ctx, commands)
	}
	for _, c := range commands {
		if !fsm.Forwardable(c.Kind()) {
			s.counts["proposals of a leader that is none"]++
			return nil, notLeader()
		}
	}
	return n.forward(ctx, commands)
}

func (n *node) proposeHere(ctx context.Context, commands []fsm.Command) (results []fsm.Result, err error) {
	s, me, answered := n.sim, n.sim.running, false
	n.append(&proposal{commands: commands, done: func(_ uint64, r []fsm.Result, e error) {
		results, err, answered = r, e, true
		me.wake()
	}})
	for !answered && ctx.Err() == nil {
		me.park()
	}
	if !answered {
		return nil, mayHappen()
	}
	if f := s.faults.unsure; err == nil && f > 0 && s.rand.Float64() < f {
		s.counts["answers lost"]++
		return nil, mayHappen()
	}
	return results, err
}

func (n *node) append(p *proposal) {
	if n.raft.transfer {
		p.done(0, nil, notLeader())
		return
	}
	n.waiting = append(n.waiting, p)
	n.sim.at(&n.host, n.sim.upTo(50*time.Microsecond), n.flush)
}

// flush puts what waits into one entry, once the disk is free. A node that knows only its own clock must not date entries:
// the state's time would follow it, and never come back (L8).
func (n *node) flush() {
	r := &n.raft
	if len(n.waiting) == 0 || r.syncing || r.role != leader || !n.followed {
		return
	}
	batch := n.waiting
	n.waiting = nil
	var commands []fsm.Command
	for _, p := range batch {
		commands = append(commands, p.commands...)
		p.term = r.term
	}
	n.seq++
	data, err := fsm.EncodeEntry(fsm.Origin{Node: n.name, Boot: itoa(n.life), Seq: n.seq}, job.At(n.now()), commands...)
	if err != nil {
		panic(err)
	}
	r.log = append(r.log, entry{term: r.term, data: data, commands: commands, by: n})
	n.pending[r.last()] = batch
	n.sync()
}

// deliver answers whose entry was applied.
func (n *node) deliver(index, term uint64, results []fsm.Result) {
	batch := n.pending[index]
	delete(n.pending, index)
	for _, p := range batch {
		if p.term != term {
			p.done(0, nil, mayHappen())
			continue
		}
		k := len(p.commands)
		p.done(index, results[:k:k], nil)
		results = results[k:]
	}
	n.kick()
}

// abandon answers all that is under way: nobody knows what becomes of it.
func (n *node) abandon(err error) {
	indexes := make([]uint64, 0, len(n.pending))
	for i := range n.pending {
		indexes = append(indexes, i)
	}
	slices.Sort(indexes)
	for _, i := range indexes {
		for _, p := range n.pending[i] {
			p.done(0, nil, err)
		}
	}
	n.pending = map[uint64][]*proposal{}
	waiting := n.waiting
	n.waiting = nil
	for _, p := range waiting {
		p.done(0, nil, notLeader())
	}
}

// kick wakes coroutines of this node that wait for its state to get somewhere.
func (n *node) kick() {
	if n.expecting == 0 && n.main == nil {
		return
	}
	for _, p := range n.procs {
		if !p.idling {
			p.wake()
		}
	}
}

// forward proposes through the leader.
func (n *node) forward(ctx context.Context, commands []fsm.Command) ([]fsm.Result, error) {
	const patience = 5 * time.Second
	s := n.sim
	deadline := s.now + patience
	for n.raft.leader < 0 || n.raft.leader == n.index {
		if s.now > deadline || ctx.Err() != nil {
			return nil, timedOut("nobody leads")
		}
		s.sleep(ctx, 50*time.Millisecond)
	}
	s.counts["proposals forwarded"]++
	to := s.nodes[n.raft.leader]
	tagged := make([]fsm.Command, len(commands))
	tags := make([]fsm.Tag, len(commands))
	for i, c := range commands {
		for b := range 16 {
			tags[i][b] = byte(s.rand.Uint64() >> 7)
		}
		tagged[i] = fsm.Tagged{Tag: tags[i], Command: c}
	}
	me, over := s.running, false
	var failed error
	expect := n.state.Expect(tags...)
	defer expect.Cancel()
	n.expecting++
	defer func() { n.expecting--; over = true }()
	s.datagram(&n.host, &to.host, func() {
		answer := func(index uint64, err error) {
			s.datagram(&to.host, &n.host, func() {
				if over {
					return
				}
				if failed = err; err == nil {
					expect.Committed(index)
				}
				me.wake()
			})
		}
		if to.raft.role != leader {
			answer(0, notLeader())
			return
		}
		to.append(&proposal{commands: tagged, done: func(index uint64, _ []fsm.Result, err error) { answer(index, err) }})
	})
	for {
		select {
		case <-expect.Done():
			return expect.Results(), nil
		default:
		}
		switch {
		case failed != nil:
			return nil, failed
		case ctx.Err() != nil || s.now >= deadline:
			return nil, mayHappen()
		}
		s.sleep(ctx, min(deadline-s.now, time.Second))
	}
}

// leadershipChanged is seen by the node's main loop a little later.
func (n *node) leadershipChanged() {
	s := n.sim
	s.at(&n.host, s.upTo(2*time.Millisecond+n.watcher), func() {
		if g := n.reign; g != nil && g.generation != n.raft.generation {
			g.end()
		}
		n.main.wake()
	})
}

func (g *reign) end() {
	g.cancel()
	for _, p := range g.procs {
		p.wake()
	}
}

// lead is cluster.Node.Run with the lead function of internal/app: one term after the other.
func (n *node) lead() {
	s := n.sim
	for {
		if n.raft.role != leader {
			s.idle(-1, [2]<-chan struct{}{})
			continue
		}
		g := &reign{generation: n.raft.generation, procs: []*proc{n.main}}
		g.ctx, g.cancel = context.WithCancel(context.Background())
		n.reign = g
		err := n.leadOnce(g)
		g.cancel()
		n.reign = nil
		if n.raft.role == leader && n.raft.generation == g.generation {
			s.note("term failed", n.name)
			if !n.transferLeadership() {
				s.sleep(context.Background(), 100*time.Millisecond)
			} else {
				s.sleep(context.Background(), 500*time.Millisecond)
			}
		}
		if c := job.CodeOf(err); c == job.Internal || c == job.Invalid {
			s.broken("a term of %s ended with an error that no fault explains: %v", n.name, err)
		}
	}
}

func (n *node) leadOnce(g *reign) error {
	s := n.sim
	for n.raft.applied < n.raft.first || !n.reached { // the barrier, and a majority's clocks (L8)
		if g.ctx.Err() != nil {
			return nil
		}
		s.sleep(g.ctx, 5*time.Millisecond)
	}
	term, err := scheduler.Begin(g.ctx, scheduler.Config{
		Control: s.options.control(n.control), Store: s.options.store(n.store), Queue: n.queue, Gateways: s.options.gateways(n.hub), Clock: nodeClock{n},
		Jitter: s.rand.Float64, Logger: slog.New(slog.DiscardHandler), Pace: modelledPace{s},
		Metrics: &scheduler.Metrics{
			Refused: func() { s.counts["results refused"]++ },
			Mended:  func(what string, k int) { s.counts["mended: "+what] += k },
		},
	})
	if err != nil {
		return err
	}
	s.note("leads", n.name, uint64(term.Epoch()))
	s.led(n, term.Epoch())
	n.term = term
	n.hub.lead(term)
	parts := term.Parts()
	g.open = len(parts)
	for _, part := range parts {
		g.procs = append(g.procs, s.spawn(&n.host, n.name+" "+part.Name, func() {
			defer func() {
				if g.open--; g.open == 0 {
					n.main.wake()
				}
			}()
			for wait := part.First; ; {
				if wait != 0 && g.ctx.Err() == nil {
					s.idle(wait, part.Signals)
				}
				if g.ctx.Err() != nil {
					return
				}
				var err error
				if wait, err = part.Turn(g.ctx); err != nil {
					if g.err == nil {
						g.err = err
					}
					g.end()
					return
				}
			}
		}))
	}
	for g.open > 0 {
		n.main.park()
		if g.ctx.Err() != nil {
			term.Stop()
		}
	}
	n.hub.unlead()
	n.term = nil
	if !g.isOver(n) {
		return g.err
	}
	return nil
}

func (g *reign) isOver(n *node) bool { return n.raft.generation != g.generation }

// crash ends the process as kill -9 or the loss of power does.
func (n *node) crash() {
	n.sim.note("crash", n.name)
	n.floor = max(n.floor, n.raft.applied)
	n.gateway.closeAll()
	n.hub.closeAll()
	if g := n.reign; g != nil {
		g.cancel()
	}
	n.sim.kill(&n.host)
	n.term, n.reign, n.main = nil, nil, nil
}
