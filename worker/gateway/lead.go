package gateway

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/musterhq/muster/job"
)

// SetLeader says who leads from now on; nil: nobody that this node can reach. All sessions end. Under a new leader every
// worker is asked for a Hello, so that the leader hears what runs now, and unacknowledged results come again. It is also
// the right call when the way to the same leader was interrupted.
func (g *Gateway) SetLeader(leader Leader) {
	g.setting.Lock()
	defer g.setting.Unlock()
	g.setLeader(leader)
}

// Lead is SetLeader for a leader of a known epoch. It is false, and changes nothing, when this gateway has heard of a
// higher epoch: that leader was deposed and does not know it yet (L1).
func (g *Gateway) Lead(leader Leader, epoch job.Epoch) bool {
	g.setting.Lock()
	defer g.setting.Unlock()
	g.mu.Lock()
	ok := epoch >= g.epoch
	g.epoch = max(g.epoch, epoch)
	g.mu.Unlock()
	if ok {
		g.setLeader(leader)
	}
	return ok
}

// Unlead is SetLeader(nil), unless another leader than this one was set meanwhile.
func (g *Gateway) Unlead(leader Leader) {
	g.setting.Lock()
	defer g.setting.Unlock()
	if l, _ := g.current(); l == leader {
		g.setLeader(nil)
	}
}

// Epoch is the highest epoch that this gateway has heard of.
func (g *Gateway) Epoch() job.Epoch {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.epoch
}

// setLeader is called with setting held.
func (g *Gateway) setLeader(leader Leader) {
	g.mu.Lock()
	g.leader = leader
	g.reign++
	reign := g.reign
	clear(g.sessions)
	streams := make([]*stream, 0, len(g.streams))
	for s := range g.streams {
		streams = append(streams, s)
	}
	g.mu.Unlock()
	for _, s := range streams {
		s.unseat()
		if leader != nil {
			s.out.askResync(reign)
		}
	}
}

// Streams is how many worker streams end here.
func (g *Gateway) Streams() int {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return len(g.streams)
}

// Shed sends n workers to other nodes, those that run least first, each at a random moment of the time given. One that
// does not go is cut off. It does not wait.
func (g *Gateway) Shed(n int, over time.Duration) {
	type candidate struct {
		stream  *stream
		running int32
	}
	g.mu.RLock()
	candidates := make([]candidate, 0, len(g.streams))
	for s := range g.streams {
		if !s.shed.Load() {
			candidates = append(candidates, candidate{s, s.running.Load()})
		}
	}
	g.mu.RUnlock()
	slices.SortFunc(candidates, func(a, b candidate) int { return cmp.Compare(a.running, b.running) })
	for _, c := range candidates[:min(n, len(candidates))] {
		s := c.stream
		s.shed.Store(true)
		g.metrics.moved.Inc()
		time.AfterFunc(rand.N(max(over, 1)), func() {
			s.out.askMove()
			time.AfterFunc(moveTimeout, s.call.Abort)
		})
	}
}

// moveTimeout is how long a worker may take to go where it was sent. Until it has gone it gets no work.
const moveTimeout = 5 * time.Second

// scatter is over how long the workers of this node spread when it dies: those of a small cluster lose no time, those of
// a large one do not all arrive at once where they go.
func (g *Gateway) scatter() time.Duration {
	return min(time.Second, time.Duration(g.Streams())*time.Second/3000)
}
