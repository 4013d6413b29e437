package cluster

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// noticer tells followers of a commit at once. Raft tells them with the next entries, or after CommitTimeout: a caller
// whose command was forwarded would wait that long for its answer, which its own node gives when it applies it.
//
// What is sent is an AppendEntries without entries, as Raft's own between entries, and safe for the same reason: the
// follower compares the term of its entry at PrevLogEntry, and two logs with the same entry there are the same up to
// there (log matching). LeaderCommitIndex is that very index, so nothing that was not compared is committed by it, and the
// index was committed before by the node that led in that term; a commit is for ever, so a notice that comes late, or
// after its sender's term, is still true. A follower of a later term refuses it.
type noticer struct {
	transport raft.Transport
	header    raft.RPCHeader
	address   func(id string) (raft.ServerAddress, bool)
	sent      func(ok bool)

	mu      sync.Mutex
	pending map[string]notice // to whom; a later one replaces an earlier one
	busy    map[string]bool
	closed  bool
	workers sync.WaitGroup
}

type notice struct{ index, term uint64 }

// A follower may not have the entry yet: others made the majority, or it comes on another connection. Then it is told
// again, for less than CommitTimeout.
const (
	noticeTries = 5
	noticePause = 2 * time.Millisecond
)

func newNoticer(t raft.Transport, id, address raft.ServerAddress, find func(id string) (raft.ServerAddress, bool), sent func(bool)) *noticer {
	return &noticer{
		transport: t, address: find, sent: sent, pending: map[string]notice{}, busy: map[string]bool{},
		header: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(id), Addr: t.EncodePeer(raft.ServerID(id), address)},
	}
}

// tell notes that the entry at index, of this term in which this node leads, is committed. It does not wait.
func (n *noticer) tell(to string, index, term uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || to == "" {
		return
	}
	if old := n.pending[to]; old.index >= index && old.term >= term {
		return
	}
	n.pending[to] = notice{index, term}
	if !n.busy[to] {
		n.busy[to] = true
		n.workers.Go(func() { n.work(to) })
	}
}

// work sends what there is for one follower.
func (n *noticer) work(to string) {
	for {
		n.mu.Lock()
		next, ok := n.pending[to]
		delete(n.pending, to)
		if !ok || n.closed {
			delete(n.busy, to)
			n.mu.Unlock()
			return
		}
		n.mu.Unlock()
		n.sent(n.send(to, next))
	}
}

func (n *noticer) send(to string, what notice) bool {
	for try := range noticeTries {
		address, ok := n.address(to)
		if !ok {
			return false
		}
		var answer raft.AppendEntriesResponse
		err := n.transport.AppendEntries(raft.ServerID(to), address, &raft.AppendEntriesRequest{
			RPCHeader: n.header, Term: what.term,
			PrevLogEntry: what.index, PrevLogTerm: what.term, LeaderCommitIndex: what.index,
		}, &answer)
		switch {
		case err != nil || answer.Term > what.term:
			return false
		case answer.Success:
			return true
		case n.superseded(to):
			return false
		}
		time.Sleep(noticePause << try)
	}
	return false
}

// superseded tells whether a later notice waits, which says more.
func (n *noticer) superseded(to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, later := n.pending[to]
	return later || n.closed
}

// close waits for what is on its way until ctx ends.
func (n *noticer) close(ctx context.Context) {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	done := make(chan struct{})
	go func() { n.workers.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
}
