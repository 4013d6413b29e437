package cluster

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/cluster/clusterpb"
	"github.com/musterhq/muster/job"
)

const (
	probeEvery   = time.Second
	probeTimeout = 2 * time.Second
	healthyFor   = 3 * time.Second // after its last answer
	meetEvery    = time.Minute     // nodes of a cell meet again, in case the cell forgot one
	transferWait = 10 * time.Second
)

// probes is how the leader knows the other nodes: each second it asks every one. It tells them the cluster's time, and
// where the others' gossip cells are.
type probes struct {
	peers *Peers
	clock *Clock
	meet  chan struct{}
	known chan struct{} // closed when a majority's clocks were compared, or the cluster's time was told, for the first time

	mu      sync.Mutex
	rows    map[string]*probeRow // of a leader: by server id, itself left out
	off     int                  // how many rounds in a row this leader's clock was too far off
	handed  time.Time            // when leadership was last offered to others because of that
	cells   map[string][]string  // known of others: addresses by cell
	met     map[string][]string
	metAt   time.Time
	reached bool // known is closed
}

type probeRow struct {
	seen    time.Time // zero: never
	applied uint64
	version string
	clock   remoteClock
	offset  time.Duration // of its clock to the cluster's time
	cells   []*clusterpb.Cell
	busy    bool
}

func newProbes(p *Peers) *probes {
	return &probes{
		peers: p, clock: p.node.cfg.Clock, meet: make(chan struct{}, 1), known: make(chan struct{}),
		rows: map[string]*probeRow{}, cells: map[string][]string{}, met: map[string][]string{},
	}
}

// run asks around for as long as this node leads, and meets gossip cells always.
func (p *probes) run(ctx context.Context) {
	p.peers.work(p.meetCells)
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		leading, _, changed := p.peers.node.leadership.get()
		if leading {
			p.round(ctx)
		} else {
			p.forget()
		}
		select {
		case <-tick.C:
		case <-changed: // a new leader asks at once
		case <-ctx.Done():
			return
		}
	}
}

func (p *probes) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.rows)
	p.off = 0
}

// round asks every other server that has answered the last time it was asked, or was given up.
func (p *probes) round(ctx context.Context) {
	n := p.peers.node
	servers := n.servers()
	p.judge(ctx, servers)
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.rows, func(id string, _ *probeRow) bool { return find(servers, id) < 0 })
	for _, s := range servers {
		id := string(s.ID)
		if id == n.id {
			continue
		}
		row := p.rows[id]
		if row == nil {
			row = &probeRow{}
			p.rows[id] = row
		}
		if row.busy {
			continue
		}
		ask := &clusterpb.ProbeRequest{Leader: n.id, Term: n.raft.CurrentTerm(), Cells: p.allCells()}
		if origin, ok := p.clock.at(); ok && row.clock.fresh(p.clock.elapsed()) {
			ask.Life, ask.Origin = row.clock.life, row.clock.thereNear(origin)
		}
		row.busy = p.peers.work(func(ctx context.Context) { p.ask(ctx, row, s, ask) })
	}
}

func (p *probes) ask(ctx context.Context, row *probeRow, s raft.Server, ask *clusterpb.ProbeRequest) {
	call, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	a := reading{sent: p.clock.elapsed()}
	answer, err := p.peers.at(string(s.Address)).Probe(call, request(ask))
	a.received = p.clock.elapsed()
	p.mu.Lock()
	row.busy = false
	if err == nil && answer.Msg.Node == string(s.ID) {
		m := answer.Msg
		a.life, a.wall, a.elapsed = m.Life, m.Wall, m.Elapsed
		row.clock = row.clock.with(a)
		row.seen, row.applied, row.version, row.cells = time.Now(), m.Applied, m.Version, m.Cells
	} else if err == nil {
		row.seen = time.Time{} // another node is at its address: it was wiped, or moved
	}
	p.compare(p.peers.node.servers())
	p.noteCells()
	p.mu.Unlock()
	if err != nil {
		p.peers.node.log.Debug("a node did not answer the probe", "peer", s.ID, "address", s.Address, "err", err)
	}
}

// compare makes the cluster's time the median of the voters' clocks, if those of a majority are known. It needs p.mu.
func (p *probes) compare(servers []raft.Server) bool {
	n := p.peers.node
	wall, elapsed := p.clock.read()
	believed, followed := p.clock.at()
	nearest := believed
	if !followed {
		believed, nearest = wall-elapsed, noBelief
	}
	var shown []int64
	voters := 0
	for _, s := range servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if string(s.ID) == n.id {
			shown = append(shown, wall-elapsed)
		} else if row := p.rows[string(s.ID)]; row != nil && row.clock.fresh(elapsed) {
			shown = append(shown, row.clock.hereNear(believed))
		}
	}
	median, ok := medianClock(shown, nearest)
	if !ok || len(shown) <= voters/2 || !n.Leading() {
		return false
	}
	if voters == 1 {
		p.clock.alone()
	} else {
		p.clock.follow(median)
	}
	for _, row := range p.rows {
		if !row.seen.IsZero() {
			row.offset = time.Duration(row.clock.hereNear(median) - median)
		}
	}
	p.reach()
	return true
}

// judge hands leadership to a node whose clock is right when this one's is not (L8).
func (p *probes) judge(ctx context.Context, servers []raft.Server) {
	n := p.peers.node
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.compare(servers) || p.clock.Offset().Abs() <= clockTooFar {
		p.off = 0
		return
	}
	if p.off++; p.off < 2 || time.Since(p.handed) < transferWait {
		return
	}
	best, least := "", clockTooFar
	for _, s := range servers {
		row := p.rows[string(s.ID)]
		if s.Suffrage != raft.Voter || row == nil || time.Since(row.seen) > healthyFor {
			continue
		}
		if d := row.offset.Abs(); d <= least {
			best, least = string(s.ID), d
		}
	}
	p.handed = time.Now()
	offset := p.clock.Offset()
	if best == "" {
		n.log.Error("this leader's clock is wrong, and no other node could take over", "offset", offset)
		return
	}
	n.log.Warn("this leader's clock is wrong, so it hands over", "offset", offset, "to", best)
	p.peers.work(func(ctx context.Context) {
		if err := n.Transfer(ctx, best); err != nil {
			n.log.Warn("leadership cannot be handed to a node whose clock is right", "err", err)
		}
	})
}

// answer is what this node says when it is probed.
func (p *probes) answer(r *clusterpb.ProbeRequest) *clusterpb.ProbeResponse {
	n := p.peers.node
	if r.Term >= n.raft.CurrentTerm() && !n.Leading() {
		p.mu.Lock()
		if r.Life == p.clock.life && r.Origin != 0 {
			p.clock.follow(r.Origin)
			p.reach()
		}
		if len(r.Cells) > 0 {
			clear(p.cells)
			for _, c := range r.Cells {
				p.cells[c.Name] = c.Addresses
			}
			p.rouse()
		}
		p.mu.Unlock()
	}
	wall, elapsed := p.clock.read()
	return &clusterpb.ProbeResponse{
		Node: n.id, Life: p.clock.life, Wall: wall, Elapsed: elapsed, Applied: n.state.Index(), Version: n.cfg.Self.Version, Cells: p.ownCells(),
	}
}

// reach notes that the cluster's time is known. It needs p.mu.
func (p *probes) reach() {
	if !p.reached {
		p.reached = true
		close(p.known)
	}
}

// awaitClock returns once this node knows the cluster's time: a leader whose clock is an hour ahead must not begin with it,
// nor date an entry by it, since the state's time never goes back. The others answer in a moment, or this node would not
// lead; it does not wait for long in any case.
func (n *Node) awaitClock(ctx context.Context) {
	if n.cfg.Port == nil {
		return
	}
	known := n.peers.probes.known
	select {
	case <-known:
		return
	default:
	}
	if n.otherVoters() == 0 {
		return
	}
	give := time.NewTimer(2 * probeTimeout)
	defer give.Stop()
	select {
	case <-known:
	case <-ctx.Done():
	case <-give.C:
		n.log.Warn("the clocks of the other nodes are not known; this node goes by its own")
	}
}

// ClockKnown tells whether this node has ever known the cluster's time, or is alone with its own. Before that Clock shows this
// machine's, which may be an hour off: what came in by it would have to wait for an hour.
func (n *Node) ClockKnown() bool {
	if n.cfg.Port == nil || n.otherVoters() == 0 {
		return true
	}
	p := n.peers.probes
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reached
}

// sweep asks these servers now, and answers which of them said something since it began.
func (p *probes) sweep(ctx context.Context, servers []raft.Server) map[string]bool {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var all sync.WaitGroup
	var mu sync.Mutex
	answered := map[string]bool{}
	for _, s := range servers {
		all.Go(func() {
			m, err := p.peers.at(string(s.Address)).Probe(ctx, request(&clusterpb.ProbeRequest{Leader: p.peers.node.id, Term: p.peers.node.raft.CurrentTerm()}))
			if err == nil && m.Msg.Node == string(s.ID) {
				mu.Lock()
				answered[string(s.ID)] = true
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return answered
}

// progress is what the leader's probes say of a server: how far it has applied the log, and when it answered last.
func (n *Node) progress(id string) (applied uint64, seen time.Time, ok bool) {
	p := n.peers.probes
	p.mu.Lock()
	defer p.mu.Unlock()
	row := p.rows[id]
	if row == nil || row.seen.IsZero() {
		return 0, time.Time{}, false
	}
	return row.applied, row.seen, true
}

// Members answers the nodes by name, as this node sees them. Only a leader knows how the others do.
func (n *Node) Members() []NodeStatus {
	leader, _, _ := n.Leader()
	leading := n.Leading()
	contact := n.lastContact()
	var list []NodeStatus
	n.peers.probes.mu.Lock()
	defer n.peers.probes.mu.Unlock()
	for _, s := range n.servers() {
		m := NodeStatus{Node: job.Node{ID: string(s.ID), Raft: string(s.Address)}, Voter: s.Suffrage == raft.Voter}
		if row, ok := n.state.Node(m.ID); ok {
			row.Raft = m.Raft
			m.Node = row
		}
		m.Leader = m.ID == leader
		row := n.peers.probes.rows[m.ID]
		switch {
		case m.ID == n.id:
			m.Healthy, m.LastSeen, m.Applied, m.ClockOffset = true, time.Now(), n.state.Index(), n.cfg.Clock.Offset()
		case leading && row != nil:
			m.Healthy = !row.seen.IsZero() && time.Since(row.seen) < healthyFor
			m.LastSeen, m.Applied, m.ClockOffset = row.seen, row.applied, row.offset
			m.Version = cmp.Or(row.version, m.Version)
		case m.Leader && contact >= 0:
			m.Healthy, m.LastSeen = contact < healthyFor, time.Now().Add(-contact)
		}
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b NodeStatus) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return list
}

// ownCells are the gossip cells that this node is in.
func (p *probes) ownCells() []*clusterpb.Cell {
	g := p.peers.gossip.Load()
	if g == nil {
		return nil
	}
	var list []*clusterpb.Cell
	for name, address := range g.Cells() {
		list = append(list, &clusterpb.Cell{Name: name, Addresses: []string{address}})
	}
	return list
}

// allCells are those of all nodes that this leader knows. It needs p.mu.
func (p *probes) allCells() []*clusterpb.Cell {
	all := maps.Clone(p.cells)
	for _, c := range p.ownCells() {
		all[c.Name] = append(slices.Clone(all[c.Name]), c.Addresses...)
	}
	var list []*clusterpb.Cell
	for _, name := range slices.Sorted(maps.Keys(all)) {
		list = append(list, &clusterpb.Cell{Name: name, Addresses: all[name]})
	}
	return list
}

// noteCells gathers what the others said of their cells. It needs p.mu.
func (p *probes) noteCells() {
	cells := map[string][]string{}
	for _, row := range p.rows {
		for _, c := range row.cells {
			cells[c.Name] = append(cells[c.Name], c.Addresses...)
		}
	}
	if len(cells) > 0 {
		p.cells = cells
		p.rouse()
	}
}

func (p *probes) rouse() {
	select {
	case p.meet <- struct{}{}:
	default:
	}
}

// meetCells makes this node meet the others in every cell that one of them is in: when one is new, and now and then.
func (p *probes) meetCells(ctx context.Context) {
	for {
		select {
		case <-p.meet:
		case <-ctx.Done():
			return
		}
		g := p.peers.gossip.Load()
		if g == nil {
			continue
		}
		p.mu.Lock()
		again := time.Since(p.metAt) > meetEvery
		if again {
			p.metAt = time.Now()
		}
		due := map[string][]string{}
		for name, addresses := range p.cells {
			addresses = slices.Sorted(slices.Values(addresses))
			if again || !slices.Equal(addresses, p.met[name]) {
				due[name] = addresses
			}
		}
		p.mu.Unlock()
		for _, name := range slices.Sorted(maps.Keys(due)) {
			call, cancel := context.WithTimeout(ctx, 10*time.Second)
			err := g.Meet(call, name, due[name])
			cancel()
			p.mu.Lock()
			if err == nil {
				p.met[name] = due[name]
			} else {
				p.peers.node.log.Debug("the nodes of a gossip cell cannot be met", "cell", name, "err", err)
			}
			p.mu.Unlock()
		}
	}
}
