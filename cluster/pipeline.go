package cluster

import (
	"sync"

	"github.com/hashicorp/raft"
)

// networkTransport is the library's transport with pipelines that cannot hang.
//
// The library stops reading a pipeline's answers when a follower refuses an entry, and then may still send once more. That
// send waits for the answer before it to be taken, by a goroutine that waits for a reader that is gone: replication to
// that follower has ended for the rest of the term while heartbeats go on, so nobody is elected and nothing heals, and the
// leader cannot be shut down (hashicorp/raft issue 612). Here answers are always taken.
type networkTransport struct{ *raft.NetworkTransport }

// AppendEntriesPipeline implements raft.Transport.
func (t networkTransport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	inner, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	p := &pipeline{AppendPipeline: inner, answers: make(chan raft.AppendFuture), closed: make(chan struct{})}
	go p.pass()
	return p, nil
}

type pipeline struct {
	raft.AppendPipeline
	answers chan raft.AppendFuture
	closed  chan struct{}
	once    sync.Once
}

// pass hands answers on, and takes them also when nobody wants them: as many as are under way at most.
func (p *pipeline) pass() {
	var queue []raft.AppendFuture
	for {
		var out chan<- raft.AppendFuture
		var first raft.AppendFuture
		if len(queue) > 0 {
			out, first = p.answers, queue[0]
		}
		select {
		case a := <-p.AppendPipeline.Consumer():
			queue = append(queue, a)
		case out <- first:
			queue[0] = nil
			queue = queue[1:]
		case <-p.closed:
			return
		}
	}
}

// Consumer implements raft.AppendPipeline.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.answers }

// Close implements raft.AppendPipeline.
func (p *pipeline) Close() error {
	err := p.AppendPipeline.Close()
	p.once.Do(func() { close(p.closed) })
	return err
}
