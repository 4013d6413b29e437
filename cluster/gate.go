package cluster

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// gate keeps a node without state out of Raft until it is known to belong. Raft addresses servers by host and port: to a
// leader, an empty node at the address of a server that was wiped is that server, and it would acknowledge and vote in the
// name of one that has forgotten what it acknowledged and how it voted. That can lose what was committed. So until this
// node has bootstrapped, or knows that a configuration has its id in it, whatever Raft is sent here is refused.
type gate struct {
	raft.Transport
	preVote  raft.WithPreVote // nil when the transport has none
	rpcs     chan raft.RPC
	admitted atomic.Bool
	closed   chan struct{}
	once     sync.Once
	passing  sync.WaitGroup
}

var errNotAdmitted = errors.New("this node is new and not yet a member of the cluster")

// preVoteGate is a gate over a transport with pre-votes, which all of ours are: Raft asks for the interface.
type preVoteGate struct{ *gate }

func (g preVoteGate) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return g.preVote.RequestPreVote(id, target, args, resp)
}

// newGate puts a gate before a transport. What Raft takes is outer.
func newGate(inner raft.Transport, admitted bool) (g *gate, outer raft.Transport) {
	g = &gate{Transport: inner, rpcs: make(chan raft.RPC), closed: make(chan struct{})}
	g.admitted.Store(admitted)
	if !admitted {
		g.passing.Go(g.pass)
	}
	if p, ok := inner.(raft.WithPreVote); ok {
		g.preVote = p
		return g, preVoteGate{g}
	}
	return g, g
}

// admit opens the gate for ever.
func (g *gate) admit() { g.admitted.Store(true) }

// pass hands on what comes, or refuses it.
func (g *gate) pass() {
	for {
		select {
		case rpc := <-g.Transport.Consumer():
			if !g.admitted.Load() {
				refuse(rpc, errNotAdmitted)
				continue
			}
			select {
			case g.rpcs <- rpc:
			case <-g.closed:
				refuse(rpc, raft.ErrRaftShutdown)
				return
			}
		case <-g.closed:
			return
		}
	}
}

// refuse answers with an error. Transports want an answer of the right type beside it.
func refuse(rpc raft.RPC, err error) {
	if rpc.Reader != nil { // a snapshot: what is left of it would be taken for the next call
		_, _ = io.Copy(io.Discard, rpc.Reader)
	}
	var answer any
	switch rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		answer = &raft.AppendEntriesResponse{}
	case *raft.RequestVoteRequest:
		answer = &raft.RequestVoteResponse{}
	case *raft.RequestPreVoteRequest:
		answer = &raft.RequestPreVoteResponse{}
	case *raft.InstallSnapshotRequest:
		answer = &raft.InstallSnapshotResponse{}
	case *raft.TimeoutNowRequest:
		answer = &raft.TimeoutNowResponse{}
	}
	rpc.Respond(answer, err)
}

// Consumer implements raft.Transport. A node that is admitted from the start has no gate in its way.
func (g *gate) Consumer() <-chan raft.RPC {
	if g.admitted.Load() {
		return g.Transport.Consumer()
	}
	return g.rpcs
}

// SetHeartbeatHandler implements raft.Transport.
func (g *gate) SetHeartbeatHandler(handle func(raft.RPC)) {
	g.Transport.SetHeartbeatHandler(func(rpc raft.RPC) {
		if !g.admitted.Load() {
			refuse(rpc, errNotAdmitted)
			return
		}
		handle(rpc)
	})
}

// Close implements raft.WithClose.
func (g *gate) Close() error {
	g.once.Do(func() { close(g.closed) })
	g.passing.Wait()
	if c, ok := g.Transport.(raft.WithClose); ok {
		return c.Close()
	}
	return nil
}
