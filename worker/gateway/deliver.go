package gateway

import (
	"context"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker/workerpb"
)

// Assign hands attempts over and answers, for each, whether it went to the writer of its stream; see the package comment
// for what true and false promise. An assignment of an epoch below one that this gateway has seen is a deposed leader's
// and is refused (L1).
func (g *Gateway) Assign(ctx context.Context, deliveries []job.Delivery) []bool {
	ok := make([]bool, len(deliveries))
	floor := g.raiseEpoch(deliveries)
	// Group by session, in order. Dispatchers mostly bring neighbours together, so looking back at the last group is
	// usually enough; the map is for when they do not.
	type group struct {
		stream *stream
		offer  *offer
		at     []int
	}
	var (
		groups []*group
		byID   = map[job.SessionID]*group{}
		last   job.SessionID
		gr     *group
	)
	for i := range deliveries {
		d := &deliveries[i]
		if gr == nil || d.Session != last {
			last = d.Session
			if gr = byID[last]; gr == nil {
				gr = &group{stream: g.session(last), offer: &offer{session: last, done: make(chan struct{})}}
				byID[last] = gr
				groups = append(groups, gr)
			}
		}
		if gr.stream == nil || d.Assignment == nil || d.Fence.Epoch() < floor {
			continue
		}
		gr.at = append(gr.at, i)
		gr.offer.items = append(gr.offer.items, d.Assignment)
	}
	for _, gr := range groups {
		if len(gr.at) > 0 {
			gr.stream.out.put(gr.offer, g.config.AssignPatience)
		}
	}
	var patience <-chan time.Time
	for _, gr := range groups {
		if len(gr.at) == 0 {
			continue
		}
		n, sure := gr.stream.out.taken(gr.offer)
		if !sure {
			if patience == nil {
				t := time.NewTimer(g.config.AssignPatience)
				defer t.Stop()
				patience = t.C
			}
			select {
			case <-gr.offer.done:
			case <-ctx.Done():
			case <-patience:
				closed := make(chan time.Time)
				close(closed)
				patience = closed // for the groups after this one
			}
			n = gr.stream.out.withdraw(gr.offer)
		}
		for _, i := range gr.at[:n] {
			ok[i] = true
		}
		g.metrics.assigned.Add(float64(n))
	}
	for _, o := range ok {
		if !o {
			g.metrics.undeliverable.Inc()
		}
	}
	return ok
}

// raiseEpoch notes the highest epoch seen and answers it.
func (g *Gateway) raiseEpoch(deliveries []job.Delivery) job.Epoch {
	var highest job.Epoch
	for i := range deliveries {
		if a := deliveries[i].Assignment; a != nil {
			highest = max(highest, a.Fence.Epoch())
		}
	}
	g.mu.RLock()
	seen := g.epoch
	g.mu.RUnlock()
	if highest <= seen {
		return seen
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.epoch = max(g.epoch, highest)
	return g.epoch
}

// Stop tells workers to stop attempts. It is a hint: an order to a session that is gone is dropped.
func (g *Gateway) Stop(_ context.Context, orders []job.StopOrder) {
	for i := range orders {
		o := &orders[i]
		if s := g.session(o.Session); s != nil {
			s.out.addStop(&workerpb.Stop{RunId: append([]byte(nil), o.RunID[:]...), Fence: uint64(o.Fence), Reason: o.Reason.String()})
		}
	}
}

// Acknowledge tells workers that results are recorded, or refused for good. An acknowledgement to a session that is gone
// is dropped: the worker sends the result again in its next session.
func (g *Gateway) Acknowledge(_ context.Context, acks []job.Ack) {
	var (
		s    *stream
		last job.SessionID
		run  []*workerpb.Ack
	)
	flush := func() {
		if s != nil && len(run) > 0 {
			s.settled(run)
			s.out.addAcks(run)
		}
		run = nil
	}
	for i := range acks {
		a := &acks[i]
		if g.config.Output != nil && !a.Refused { // refused: a later attempt may be running
			g.config.Output.Close(a.RunID)
		}
		if s == nil || a.Session != last {
			flush()
			last, s = a.Session, g.session(a.Session)
		}
		run = append(run, &workerpb.Ack{RunId: append([]byte(nil), a.RunID[:]...), Fence: uint64(a.Fence), Refused: a.Refused})
	}
	flush()
}

// Drain tells a worker to finish what it runs and then to stop. It is false when the session is gone.
func (g *Gateway) Drain(session job.SessionID) bool {
	s := g.session(session)
	if s == nil {
		return false
	}
	s.out.askDrain()
	return true
}
