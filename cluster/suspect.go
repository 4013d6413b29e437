package cluster

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// A killed leader is missed when its followers' timers have run out, half a second to a second later. But when a process
// ends and its machine lives on, the machine says so at once: connections break, and new ones are refused. Suspect makes
// use of that. All it can do is to begin an election early, which is safe at any time: who wins it has what was committed,
// and a leader that was there after all steps down.

// suspectEvery is what the next in line gives the one before it, so that survivors do not split their votes.
const suspectEvery = 150 * time.Millisecond

// Suspect says that a connection to the leader broke. If that leader's machine refuses another one, and nobody else leads by
// then, this node stands for election at once. It does not block.
func (n *Node) Suspect(leader string) {
	if n.cfg.Port == nil {
		return
	}
	n.peers.work(func(ctx context.Context) {
		if !n.suspecting.CompareAndSwap(false, true) {
			return
		}
		defer n.suspecting.Store(false)
		ctx, cancel := context.WithTimeout(ctx, n.cfg.HeartbeatTimeout)
		defer cancel()
		rank, address, ok := n.standIn(leader)
		if !ok || !n.refuses(ctx, address) {
			return
		}
		select {
		case <-time.After(time.Duration(rank) * suspectEvery):
		case <-ctx.Done():
			return
		}
		if rank > 0 && !n.refuses(ctx, address) {
			return
		}
		if id, _, ok := n.Leader(); !ok || id != leader {
			return // somebody was quicker
		}
		n.log.Info("the leader's process is gone; standing for election", "leader", leader)
		n.stand()
	})
}

// stand does what a leader asks for that hands over: stand at once, without asking around first, and be voted for by those
// who still know of a leader. It is said over the wire to this node itself, since Raft takes it from there only.
func (n *Node) stand() {
	err := n.transport.TimeoutNow(raft.ServerID(n.id), n.address, &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{
		ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(n.id), Addr: n.transport.EncodePeer(raft.ServerID(n.id), n.address)}}, &raft.TimeoutNowResponse{})
	if err != nil {
		n.log.Debug("standing for election at once failed", "err", err)
	}
}

// watchCandidate looks every so often for a candidate that believes it has a leader, and has it stand anew, which clears
// that. hashicorp/raft 1.8.0 makes one of a follower that is told to stand and then takes one more entry of the leader's
// before it does: as long as it remains a candidate it refuses everybody its vote for the sake of that leader. If the leader
// is gone and this node's log is not the longest, nobody would ever be elected.
func (n *Node) watchCandidate(ctx context.Context) {
	tick := time.NewTicker(2 * n.cfg.ElectionTimeout)
	defer tick.Stop()
	for torn := false; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		_, _, led := n.Leader()
		was := torn
		if torn = led && n.raft.State() == raft.Candidate; torn && was {
			n.log.Warn("this candidate believes that it has a leader; standing for election anew")
			n.stand()
		}
	}
}

// standIn answers this node's place among the voters that could follow the leader, and the leader's address. ok is false
// when the leader is another by now, or this node does not vote.
func (n *Node) standIn(leader string) (rank int, address string, ok bool) {
	id, address, ok := n.Leader()
	if !ok || id != leader || leader == n.id {
		return 0, "", false
	}
	var voters []string
	for _, s := range n.servers() {
		if s.Suffrage == raft.Voter && string(s.ID) != leader {
			voters = append(voters, string(s.ID))
		}
	}
	slices.Sort(voters)
	rank = slices.Index(voters, n.id)
	return rank, address, rank >= 0
}

// refuses tells whether the machine at an address answers that nobody listens there. Silence is no answer. The connections of
// a process that ends break a moment before its port is free, so one that is taken is tried again.
func (n *Node) refuses(ctx context.Context, address string) bool {
	for range 5 {
		c, err := n.cfg.Port.dial(ctx, address)
		if err != nil {
			return errors.Is(err, syscall.ECONNREFUSED)
		}
		_ = c.Close()
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return false
		}
	}
	return false
}
