package cluster

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/cluster/clusterpb"
	"github.com/musterhq/muster/job"
)

// Local is what a node answers to the others, besides what this package knows itself.
type Local interface {
	// Born and the three after it are hints. They do not block, and may be lost or come twice.
	Born(entries []job.QueueEntry)
	CancelRequested(ids []job.RunID)
	SchedulesChanged()
	WorkersFlagged()
	// Explain says why a run waits. Only a leader can: Unavailable, not_leader.
	Explain(ctx context.Context, r *job.Run) ([]string, error)
	// Workers answers all workers. Only a leader can: Unavailable, not_leader.
	Workers(ctx context.Context) ([]job.Worker, error)
	// Output calls each with the chunks of one attempt in this node's own store.
	Output(ctx context.Context, q OutputQuery, each func(OutputChunk) error) error
	// Digest answers the digest of this node's state at a checkpoint, once it has applied it.
	Digest(ctx context.Context, index uint64) ([32]byte, error)
}

// OutputQuery selects the output of one attempt.
type OutputQuery struct {
	RunID   job.RunID
	Attempt uint32
	From    int64 // offset in bytes
	Follow  bool
}

// OutputChunk is a piece of an attempt's output.
type OutputChunk struct {
	Offset int64
	Stream string
	Data   []byte // valid during the call only
}

// NodeStatus is a node of the cluster as the leader sees it.
type NodeStatus struct {
	job.Node
	Voter       bool          `json:"voter"`
	Leader      bool          `json:"leader"`
	Healthy     bool          `json:"healthy"`
	LastSeen    time.Time     `json:"last_seen,omitzero"`
	Applied     uint64        `json:"applied"` // index
	ClockOffset time.Duration `json:"clock_offset"`
}

// Peers is the way to the other nodes. Calls for the leader are answered by this node when it leads. Errors are those of
// the node that answered; Unavailable, reason no_leader or unreachable, if none did.
type Peers struct {
	node    *Node
	port    *Port // nil: there is no way to others
	local   atomic.Pointer[Local]
	gossip  atomic.Pointer[Gossip]
	forward *forwarder
	notices *noticer
	hints   *hinter
	probes  *probes
	fresh   sharer
	settled atomic.Uint64 // the last term in which a barrier has passed

	mu      sync.Mutex
	clients map[string]clusterpb.NodeServiceClient // by address
	closed  bool
	workers sync.WaitGroup // Add under mu while not closed
}

func newPeers(n *Node) *Peers {
	p := &Peers{node: n, port: n.cfg.Port, clients: map[string]clusterpb.NodeServiceClient{}}
	p.hints, p.probes = newHinter(p), newProbes(p)
	if p.port == nil {
		return p
	}
	p.forward = &forwarder{
		batcher: newBatcher(&n.cfg, forwardSlots), state: n.state, self: n.id, closing: n.closing, leader: n.Leader,
		own: n.proposer.propose, call: p.propose,
		count: func(outcome string) { n.metrics.forwards.WithLabelValues(outcome).Inc() },
	}
	p.forward.life, p.forward.end = context.WithCancel(context.Background())
	p.notices = newNoticer(n.transport, raft.ServerAddress(n.id), n.address, p.raftAddress, func(ok bool) {
		if ok {
			n.metrics.notices.WithLabelValues("ok").Inc()
		} else {
			n.metrics.notices.WithLabelValues("missed").Inc()
		}
	})
	n.proposer.term = n.raft.CurrentTerm
	n.proposer.committed = func(index, term uint64, nodes []string) {
		for _, to := range nodes {
			p.notices.tell(to, index, term)
		}
	}
	return p
}

func (p *Peers) start() {
	if p.port == nil {
		return
	}
	p.port.Handle(servePath, p.handler())
	p.forward.start()
	p.work(p.hints.run)
	p.work(p.probes.run)
	p.work(p.node.watchCandidate)
}

// work runs something that ends soon after the node begins to close, which waits for it.
func (p *Peers) work(f func(ctx context.Context)) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.workers.Go(func() { f(p.node.closing) })
	return true
}

// close is called after the node began to close, and before its proposer closes.
func (p *Peers) close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	done := make(chan struct{})
	go func() { p.workers.Wait(); close(done) }()
	var err error
	if p.port != nil {
		p.port.Handle(servePath, nil)
		if !p.forward.close(ctx) {
			err = errCallsLeft
		}
		p.notices.close(ctx)
	}
	select {
	case <-done:
	case <-ctx.Done():
		err = errCallsLeft
	}
	return err
}

// Peers is the way to the other nodes.
func (n *Node) Peers() *Peers { return n.peers }

// Serve says who answers other nodes. Until then they are told that this node is not ready.
func (p *Peers) Serve(l Local) { p.local.Store(&l) }

// Gossip lets the nodes tell each other where their gossip cells are.
func (p *Peers) Gossip(g *Gossip) {
	p.gossip.Store(g)
	p.probes.mu.Lock()
	defer p.probes.mu.Unlock()
	clear(p.probes.met) // which an earlier one has met
}

func (p *Peers) self() (Local, error) {
	if l := p.local.Load(); l != nil {
		return *l, nil
	}
	return nil, job.Errorf(job.Unavailable, "starting", "this node is not ready yet")
}

// Leader is who leads, as far as this node knows.
func (p *Peers) Leader() (Peer, bool) {
	id, address, ok := p.node.Leader()
	return Peer{id, address}, ok
}

// raftAddress finds a server by its id.
func (p *Peers) raftAddress(id string) (raft.ServerAddress, bool) {
	servers := p.node.servers()
	if i := find(servers, id); i >= 0 {
		return servers[i].Address, true
	}
	return "", false
}

// Born tells whoever leads that runs were stored. It may be lost.
func (p *Peers) Born(entries []job.QueueEntry) {
	p.hint(func(l Local) { l.Born(entries) }, func(h *hints) { h.born = append(h.born, entries...) })
}

// CancelRequested tells whoever leads that cancels were stored. It may be lost.
func (p *Peers) CancelRequested(ids []job.RunID) {
	p.hint(func(l Local) { l.CancelRequested(ids) }, func(h *hints) { h.cancels = append(h.cancels, ids...) })
}

// SchedulesChanged tells whoever leads that a schedule was changed. It may be lost.
func (p *Peers) SchedulesChanged() {
	p.hint(func(l Local) { l.SchedulesChanged() }, func(h *hints) { h.schedules = true })
}

// WorkersFlagged tells whoever leads that a worker was cordoned, drained or made ready. It may be lost.
func (p *Peers) WorkersFlagged() {
	p.hint(func(l Local) { l.WorkersFlagged() }, func(h *hints) { h.workers = true })
}

func (p *Peers) hint(here func(Local), there func(*hints)) {
	if p.port == nil || p.node.Leading() {
		if l, err := p.self(); err == nil {
			here(l)
		}
		return
	}
	p.hints.add(there)
}

// Explain asks whoever leads why a run waits.
func (p *Peers) Explain(ctx context.Context, r *job.Run) ([]string, error) {
	if p.node.Leading() {
		l, err := p.self()
		if err != nil {
			return nil, err
		}
		return l.Explain(ctx, r)
	}
	return askLeader[[]string](ctx, p, askExplain, r)
}

// Workers asks whoever leads for all workers.
func (p *Peers) Workers(ctx context.Context) ([]job.Worker, error) {
	if p.node.Leading() {
		l, err := p.self()
		if err != nil {
			return nil, err
		}
		return l.Workers(ctx)
	}
	return askLeader[[]job.Worker](ctx, p, askWorkers, nil)
}

// Members asks whoever leads for the nodes, with how they do.
func (p *Peers) Members(ctx context.Context) ([]NodeStatus, error) {
	if p.node.Leading() {
		return p.node.Members(), nil
	}
	return askLeader[[]NodeStatus](ctx, p, askMembers, nil)
}

// Digest asks a node for the digest of its state at a checkpoint.
func (p *Peers) Digest(ctx context.Context, nodeID string, index uint64) ([32]byte, error) {
	if nodeID == p.node.id {
		l, err := p.self()
		if err != nil {
			return [32]byte{}, err
		}
		return l.Digest(ctx, index)
	}
	to, err := p.find(nodeID)
	if err != nil {
		return [32]byte{}, err
	}
	return ask[[32]byte](ctx, p, to, digestTimeout, askDigest, index)
}

// Output reads what an attempt wrote from one node's own store.
func (p *Peers) Output(ctx context.Context, nodeID string, q OutputQuery, each func(OutputChunk) error) error {
	if nodeID == p.node.id {
		l, err := p.self()
		if err != nil {
			return err
		}
		return l.Output(ctx, q, each)
	}
	to, err := p.find(nodeID)
	if err != nil {
		return err
	}
	return p.output(ctx, to, q, each)
}

// Transfer asks whoever leads to hand leadership to a node, by name or id; "" is the one that is furthest.
func (p *Peers) Transfer(ctx context.Context, to string) error {
	if p.node.Leading() {
		return p.node.Transfer(ctx, to)
	}
	return p.change(ctx, func(ctx context.Context, c clusterpb.NodeServiceClient) error {
		_, err := c.Transfer(ctx, request(&clusterpb.TransferRequest{To: to}))
		return err
	})
}

// Remove asks whoever leads to make a node, by name or id, no member any more.
func (p *Peers) Remove(ctx context.Context, node string, force bool) error {
	if p.node.Leading() {
		return p.node.Remove(ctx, node, force)
	}
	return p.change(ctx, func(ctx context.Context, c clusterpb.NodeServiceClient) error {
		_, err := c.Remove(ctx, request(&clusterpb.RemoveRequest{Node: node, Force: force}))
		return err
	})
}

// Leave asks whoever leads to make this node no member any more.
func (p *Peers) Leave(ctx context.Context) error { return p.Remove(ctx, p.node.id, false) }

// Join asks the node at a Raft address, which must lead, to make a node a member.
func (p *Peers) Join(ctx context.Context, leader string, node job.Node) error {
	body, err := encoding.Marshal(&node)
	if err != nil {
		return job.AsError(err)
	}
	return p.changeAt(ctx, leader, func(ctx context.Context, c clusterpb.NodeServiceClient) error {
		_, err := c.Join(ctx, request(&clusterpb.JoinRequest{Node: body}))
		return err
	})
}

// CatchUp returns when this node has applied all that the cluster had committed when it was called, so that what is not
// found afterwards was not there. Unavailable means that nobody could tell, or that this node did not get there in time.
func (n *Node) CatchUp(ctx context.Context) error {
	index, err := n.peers.fresh.do(ctx, n.peers.freshness)
	if err == nil {
		err = n.awaitApplied(ctx, index)
	}
	return err
}

// freshness answers up to where the log was committed, at some moment after it was called.
func (p *Peers) freshness() (index uint64, err error) {
	n := p.node
	ctx, cancel := context.WithTimeout(n.closing, n.cfg.patience()+time.Second)
	defer cancel()
	for start := time.Now(); ; {
		if n.Leading() {
			index, _, err = n.readIndex(ctx)
		} else {
			index, err = p.askFreshness(ctx)
		}
		if err == nil || job.CodeOf(err) != job.Unavailable || time.Since(start) > n.cfg.patience() || p.port == nil {
			return index, err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return 0, err
		}
	}
}

// readIndex answers up to where this leader's log was committed when it was called, and the term of the entry there. The
// index is noted first, and then a majority confirms that nobody else led at that moment. Before its first entry is
// committed a leader does not know what its predecessors committed, hence the barrier.
func (n *Node) readIndex(ctx context.Context) (index, term uint64, err error) {
	term = n.raft.CurrentTerm()
	if n.peers.settled.Load() != term {
		if err := n.Barrier(ctx); err != nil {
			return 0, 0, notLeader(err)
		}
		if n.raft.CurrentTerm() != term || !n.Leading() {
			return 0, 0, notLeader(nil)
		}
		n.peers.settled.Store(term)
	}
	index = n.raft.CommitIndex()
	if err := n.await(ctx, func() error { return n.raft.VerifyLeader().Error() }); err != nil {
		return 0, 0, notLeader(err)
	}
	if n.raft.CurrentTerm() != term {
		return 0, 0, notLeader(nil)
	}
	return index, term, nil
}

// awaitApplied waits until the state has every command up to index. Raft counts an entry as applied when it has handed it
// to the state, so the last command up to there is looked for in the state itself.
func (n *Node) awaitApplied(ctx context.Context, index uint64) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for target := index; n.state.Index() < target; {
		if target == index && n.raft.AppliedIndex() >= index {
			if target = n.lastCommand(index); target != index {
				continue
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return &job.Error{Code: job.Unavailable, Reason: "behind", Message: "this node has not caught up with the cluster yet; try again", Cause: context.Cause(ctx)}
		case <-n.closing.Done():
			return notLeader(errClosed)
		}
	}
	return nil
}

// lastCommand is the index of the last command up to index. What is not in the log any more is in a snapshot, and applied.
// A log that cannot be read, as when this node closes, says nothing.
func (n *Node) lastCommand(index uint64) uint64 {
	for at := index; at > 0; at-- {
		var l raft.Log
		switch err := n.stores.log.GetLog(at, &l); {
		case errors.Is(err, raft.ErrLogNotFound):
			return 0
		case err != nil:
			return index
		case l.Type == raft.LogCommand:
			return at
		}
	}
	return 0
}

// sharer lets callers share one answer, if it was sought after they came.
type sharer struct {
	mu      sync.Mutex
	next    *shared
	running bool
}

type shared struct {
	done  chan struct{}
	index uint64
	err   error
}

func (s *sharer) do(ctx context.Context, seek func() (uint64, error)) (uint64, error) {
	s.mu.Lock()
	if s.next == nil {
		s.next = &shared{done: make(chan struct{})}
	}
	mine := s.next
	if !s.running {
		s.running = true
		go s.run(seek)
	}
	s.mu.Unlock()
	select {
	case <-mine.done:
		return mine.index, mine.err
	case <-ctx.Done():
		return 0, &job.Error{Code: job.Unavailable, Reason: "behind", Message: "the cluster did not say in time what is newest; try again", Cause: context.Cause(ctx)}
	}
}

func (s *sharer) run(seek func() (uint64, error)) {
	for {
		s.mu.Lock()
		c := s.next
		s.next = nil
		if c == nil {
			s.running = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		c.index, c.err = seek()
		close(c.done)
	}
}
