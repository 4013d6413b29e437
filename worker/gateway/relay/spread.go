package relay

import (
	"math"
	"time"
)

// surplus answers how many workers each node should be rid of now. A node is left alone until it exceeds the even share by
// a fifth and by ten workers, or by two while there are fewer than twenty in all; then it gives up a twentieth of what it has at
// a time, one at least, so that a mistake is small. It is a pure function.
func surplus(streams map[string]int) map[string]int {
	total := 0
	for _, n := range streams {
		total += n
	}
	if len(streams) < 2 || total == 0 {
		return nil
	}
	even := float64(total) / float64(len(streams))
	least := 10.0
	if total < 20 {
		least = 2
	}
	out := map[string]int{}
	for node, n := range streams {
		over := float64(n) - even
		if over < least || float64(n) <= even*1.2 {
			continue
		}
		out[node] = max(1, min(n-int(math.Ceil(even)), n/20))
	}
	return out
}

// spread moves workers off nodes that have more than their share, as long as the reign lasts. Workers that cannot go, because
// they know no other node, come back: a node whose surplus does not shrink is asked less and less often.
func (h *Hub) spread(r *reign) {
	tick := time.NewTicker(h.config.SpreadEvery)
	defer tick.Stop()
	type memory struct{ streams, rest, pause int }
	known := map[string]*memory{}
	for round := 0; ; round++ {
		select {
		case <-r.over:
			return
		case <-tick.C:
		}
		streams := h.streams(r)
		over := surplus(streams)
		for node := range known {
			if over[node] == 0 {
				delete(known, node)
			}
		}
		if round == 0 {
			continue // after a change of leader workers are still arriving
		}
		for node, n := range over {
			m := known[node]
			if m == nil {
				m = &memory{streams: math.MaxInt}
				known[node] = m
			}
			if m.rest > 0 {
				m.rest--
				continue
			}
			if streams[node] < m.streams {
				m.pause = 0
			} else {
				m.pause = min(2*m.pause+1, maxPause)
			}
			m.streams, m.rest = streams[node], m.pause
			h.config.Logger.Info("a node has more than its share of the workers", "node", node, "streams", streams[node], "moving", n)
			h.metrics.moves.Add(float64(n))
			h.move(r, node, n)
		}
	}
}

// maxPause is how many rounds a node is left alone at most.
const maxPause = 60

func (h *Hub) move(r *reign, node string, n int) {
	r.mu.RLock()
	p := r.peers[node]
	r.mu.RUnlock()
	switch {
	case p != nil:
		p.out.move(n)
	case node == h.config.Node:
		h.config.Gateway.Shed(n, h.config.SpreadEvery)
	}
}
