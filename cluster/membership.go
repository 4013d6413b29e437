package cluster

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

// Who is a member is the Raft configuration. The directory in the replicated state says what people and other nodes need
// to know of each: a row for each server, made by the node itself and swept by the leader.

const (
	// aliveWithin is how long ago a server that counts as alive answered the leader's probe.
	aliveWithin = healthyFor
	// A non-voter keeps up with the leader while it lacks no more than this.
	keepsUpEntries = 1000
	governEvery    = 500 * time.Millisecond
	changeTimeout  = 10 * time.Second
)

// reads is what this binary can read of the log.
func reads() map[uint16]uint8 {
	m := map[uint16]uint8{}
	for kind, version := range fsm.Supported() {
		m[uint16(kind)] = version
	}
	return m
}

// self is what this node tells of itself.
func (n *Node) self() job.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	v := n.told
	v.ID, v.Raft = n.id, string(n.address)
	return v
}

// Announce changes what this node tells of itself; the directory follows soon.
func (n *Node) Announce(change func(*job.Node)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change(&n.told)
}

func sameNode(a, b job.Node) bool {
	return a.ID == b.ID && a.Name == b.Name && a.API == b.API && a.Raft == b.Raft && a.Gossip == b.Gossip &&
		a.Version == b.Version && maps.Equal(a.Reads, b.Reads)
}

// announce keeps this node's row in the directory equal to what it is, and makes sure that it is in its own cluster.
func (n *Node) announce(ctx context.Context) {
	said := teller{log: n.log}
	for {
		if err := n.checkCluster(); err != nil {
			n.fail(err)
			return
		}
		if self, due, why := n.unannounced(); due {
			proposing, cancel := context.WithTimeout(ctx, changeTimeout)
			if err := proposeOnly(proposing, n, &fsm.PutNode{Node: self}); err != nil && ctx.Err() == nil {
				n.log.Debug("this node cannot be announced yet", "err", err)
			}
			cancel()
		} else if why != "" {
			said.tell(slog.LevelError, why)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return
		case <-n.failed:
			return
		}
	}
}

// unannounced answers what is to be announced, if anything is, or why it cannot be.
func (n *Node) unannounced() (self job.Node, due bool, why string) {
	self = n.self()
	if _, _, ok := n.Leader(); !ok {
		return self, false, ""
	}
	if row, ok := n.state.Node(n.id); ok && sameNode(row, self) {
		return self, false, ""
	}
	servers := n.servers()
	if find(servers, n.id) < 0 {
		return self, false, ""
	}
	if row, ok := n.state.NodeNamed(self.Name); ok && row.ID != n.id && find(servers, row.ID) >= 0 {
		return self, false, fmt.Sprintf("the name %s belongs to another node of the cluster, at %s; start this one under another name", self.Name, row.Raft)
	}
	return self, true, ""
}

// checkCluster tells whether this node is in a cluster that its certificates do not belong to.
func (n *Node) checkCluster() error {
	if id := n.state.ClusterID(); id != "" && n.cfg.ClusterID != "" && id != n.cfg.ClusterID {
		return job.Errorf(job.Conflict, "other_cluster", "the data directory belongs to cluster %s, and this node's certificates to cluster %s; give it the certificates or the directory that belong together", id, n.cfg.ClusterID)
	}
	return nil
}

// initCluster gives a new cluster its identity. The first leader does.
func (n *Node) initCluster(ctx context.Context) error {
	if n.cfg.Self.Name == "" || n.state.ClusterID() != "" {
		return nil
	}
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	id, err := propose[string](ctx, n, &fsm.InitCluster{
		ClusterID: cmp.Or(n.cfg.ClusterID, uuid.NewString()), GossipSecret: secret, Credentials: n.cfg.Credentials,
	})
	if err == nil {
		n.log.Info("the cluster has an identity", "cluster", id)
	}
	return err
}

// govern is the leader's care for the membership, for one term: nodes that joined and keep up become voters, and rows of
// nodes that are no servers go. A server without a row is left alone: only the node itself knows its name.
func (n *Node) govern(ctx context.Context) {
	steady := map[string]time.Time{} // since when a non-voter keeps up
	for {
		select {
		case <-time.After(governEvery):
		case <-ctx.Done():
			return
		}
		n.promote(ctx, steady)
		n.sweep(ctx)
	}
}

func (n *Node) promote(ctx context.Context, steady map[string]time.Time) {
	n.membership.Lock()
	defer n.membership.Unlock()
	now, here := time.Now(), n.state.Index()
	for _, s := range n.servers() {
		id := string(s.ID)
		applied, seen, ok := n.progressOf(id)
		if s.Suffrage == raft.Voter || !ok || now.Sub(seen) > aliveWithin || applied+keepsUpEntries < here {
			delete(steady, id)
			continue
		}
		since, known := steady[id]
		if !known {
			steady[id] = now
			continue
		}
		if now.Sub(since) < n.cfg.PromoteAfter {
			continue
		}
		delete(steady, id)
		if err := n.change(ctx, func() raft.IndexFuture { return n.raft.AddVoter(s.ID, s.Address, 0, changeTimeout) }); err != nil {
			n.log.Warn("a node that has caught up cannot become a voter yet", "server", id, "err", err)
			return
		}
		n.log.Info("a node that has caught up votes from now on", "server", id, "address", s.Address)
	}
}

// sweep drops the rows of nodes that are no servers.
func (n *Node) sweep(ctx context.Context) {
	n.membership.Lock()
	defer n.membership.Unlock()
	var drop []fsm.Command
	servers := n.servers()
	for _, row := range n.state.Nodes() {
		if find(servers, row.ID) < 0 {
			drop = append(drop, &fsm.DropNode{ID: row.ID})
		}
	}
	if len(drop) == 0 {
		return
	}
	if _, err := n.Propose(ctx, drop...); err != nil && ctx.Err() == nil {
		n.log.Debug("rows of former nodes cannot be dropped yet", "err", err)
	}
}

// join makes a node a member, at first one without a vote; on the leader only. It may be repeated. A server of the same
// name or at the same address with another id is one that lost its disk: its replacement takes its place, unless it is
// alive. A member that has moved is given its new address.
func (n *Node) join(ctx context.Context, node job.Node) error {
	switch {
	case !n.Leading():
		return notLeader(nil)
	case node.ID == "" || node.Raft == "" || !validMemberName(node.Name):
		return job.Errorf(job.Invalid, "node", "a node that joins needs an id, a name and an address for raft")
	}
	ctx, cancel := context.WithTimeout(ctx, 3*changeTimeout)
	defer cancel()
	n.membership.Lock()
	defer n.membership.Unlock()
	servers := n.servers()
	id, address := raft.ServerID(node.ID), raft.ServerAddress(node.Raft)
	at := find(servers, node.ID)
	if kind, lacks := n.inUse(node.Reads); lacks && at < 0 {
		return job.Errorf(job.Invalid, "too_old", "node %s runs a version of muster that is too old for this cluster: it does not know commands of kind %d; upgrade it first", node.Name, kind)
	}
	var commands []fsm.Command
	for _, s := range servers {
		if s.ID == id {
			continue
		}
		row, _ := n.state.Node(string(s.ID))
		if s.Address != address && row.Name != node.Name {
			continue
		}
		// A leader that has just begun has heard nobody yet, so who looks dead is asked now.
		if at >= 0 || n.alive(string(s.ID)) || n.reach(ctx, []raft.Server{s})[string(s.ID)] {
			return job.Errorf(job.Conflict, "name_taken", "the name %s or the address %s belongs to another node, which is alive or was a moment ago: %s at %s",
				node.Name, node.Raft, cmp.Or(row.Name, string(s.ID)), s.Address)
		}
		if err := n.change(ctx, func() raft.IndexFuture { return n.raft.RemoveServer(s.ID, 0, changeTimeout) }); err != nil {
			return err
		}
		n.log.Info("a node is replaced", "name", node.Name, "old_server", s.ID, "server", id, "address", address)
		commands = append(commands, &fsm.DropNode{ID: string(s.ID)})
	}
	switch {
	case at < 0:
		if err := n.change(ctx, func() raft.IndexFuture { return n.raft.AddNonvoter(id, address, 0, changeTimeout) }); err != nil {
			return err
		}
		n.log.Info("a node joins", "name", node.Name, "server", id, "address", address)
	case servers[at].Address != address:
		move := n.raft.AddNonvoter
		if servers[at].Suffrage == raft.Voter {
			move = n.raft.AddVoter
		}
		if err := n.change(ctx, func() raft.IndexFuture { return move(id, address, 0, changeTimeout) }); err != nil {
			return err
		}
		n.log.Info("a node has moved", "name", node.Name, "server", id, "from", servers[at].Address, "address", address)
	}
	if row, ok := n.state.Node(node.ID); !ok || !sameNode(row, node) {
		commands = append(commands, &fsm.PutNode{Node: node})
	}
	if len(commands) == 0 {
		return nil
	}
	_, err := n.Propose(ctx, commands...)
	return err
}

// inUse names a kind that this node writes, all nodes read, and one with these words about itself does not. The log may hold
// such commands, which would stop it, and its row would keep everybody from writing more of them.
func (n *Node) inUse(theirs map[uint16]uint8) (lacking fsm.Kind, lacks bool) {
	for kind, version := range written {
		if _, unread := n.state.Unreadable(kind, version); !unread && len(theirs) > 0 && theirs[uint16(kind)] < version {
			return kind, true
		}
	}
	return 0, false
}

// Remove makes a node, by name or id, no member any more; on the leader only. Without force it is refused (Conflict,
// reason quorum) while those of the remaining voters that answer are no majority of them: the cluster would stand still.
func (n *Node) Remove(ctx context.Context, node string, force bool) error {
	if !n.Leading() {
		return notLeader(nil)
	}
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	n.membership.Lock()
	defer n.membership.Unlock()
	servers := n.servers()
	at := n.findNode(servers, node)
	if at < 0 {
		return job.Errorf(job.NotFound, "", "the cluster has no node %q", node)
	}
	gone := servers[at]
	if gone.Suffrage == raft.Voter {
		left, reached := 0, 0
		answered := n.reach(ctx, servers) // now: a node that died a second ago still looks well
		for _, s := range servers {
			if s.Suffrage != raft.Voter || s.ID == gone.ID {
				continue
			}
			left++
			if string(s.ID) == n.id || answered[string(s.ID)] {
				reached++
			}
		}
		if left == 0 {
			return job.Errorf(job.Conflict, "quorum", "%s is the only node that votes; a cluster cannot be without one", node)
		}
		if 2*reached <= left && !force {
			return job.Errorf(job.Conflict, "quorum", "without %s only %d of %d nodes that vote can be reached, no majority: the cluster would stand still; bring others back first, or use --force",
				node, reached, left)
		}
	}
	if err := n.change(ctx, func() raft.IndexFuture { return n.raft.RemoveServer(gone.ID, 0, changeTimeout) }); err != nil {
		return err
	}
	n.log.Info("a node was removed", "node", node, "server", gone.ID)
	if string(gone.ID) == n.id {
		n.fail(errRemoved)
		return nil // the next leader sweeps the row
	}
	if err := proposeOnly(ctx, n, &fsm.DropNode{ID: string(gone.ID)}); err != nil {
		n.log.Debug("the row of a removed node is swept later", "err", err)
	}
	return nil
}

// change makes one change of the configuration and waits until it is committed.
func (n *Node) change(ctx context.Context, begin func() raft.IndexFuture) error {
	err := n.await(ctx, func() error { return begin().Error() })
	if err == nil {
		return nil
	}
	return classify(err)
}

// reach asks the other servers whether they are there, and answers which are. Without a way to ask it says what was heard of
// them lately.
func (n *Node) reach(ctx context.Context, servers []raft.Server) map[string]bool {
	others := slices.DeleteFunc(slices.Clone(servers), func(s raft.Server) bool { return string(s.ID) == n.id })
	if n.cfg.Port != nil {
		return n.peers.probes.sweep(ctx, others)
	}
	m := map[string]bool{}
	for _, s := range others {
		m[string(s.ID)] = n.alive(string(s.ID))
	}
	return m
}

// alive tells whether a server answered this leader lately.
func (n *Node) alive(id string) bool {
	if id == n.id {
		return true
	}
	_, seen, ok := n.progressOf(id)
	return ok && time.Since(seen) <= aliveWithin
}

// servers is the newest configuration, committed or not.
func (n *Node) servers() []raft.Server { return n.raft.GetConfiguration().Configuration().Servers }

func find(servers []raft.Server, id string) int {
	return slices.IndexFunc(servers, func(s raft.Server) bool { return string(s.ID) == id })
}

// findNode finds a server by its node's name, or by its id.
func (n *Node) findNode(servers []raft.Server, node string) int {
	if row, ok := n.state.NodeNamed(node); ok {
		if at := find(servers, row.ID); at >= 0 {
			return at
		}
	}
	return find(servers, node)
}

// progressOf is what this leader's probes say of a server: how far it has applied the log, and when it answered last.
// Without a port nobody is probed, and tests say it.
func (n *Node) progressOf(id string) (applied uint64, seen time.Time, ok bool) {
	if n.probed != nil {
		return n.probed(id)
	}
	return n.progress(id)
}

// askToJoin asks the leader at a Raft address to make this node a member.
func (n *Node) askToJoin(ctx context.Context, leader string, self job.Node) error {
	return n.peers.Join(ctx, leader, self)
}
