package relay

import (
	"context"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker/workerpb"
)

// errand is what one call of Assign has for one node. The mu of the peer's outbox guards it.
type errand struct {
	deliveries []job.Delivery
	next       int // how many the writer has taken
	open       int // batches that were taken and not answered
	refused    map[int]bool
	over       bool // the caller has gone; what is refused from now on is told to the term
	done       chan struct{}
	ended      bool // done is closed
}

func (e *errand) end() {
	if !e.ended {
		e.ended = true
		close(e.done)
	}
}

// batch is a part of an errand that was sent and not answered.
type batch struct {
	number   uint64
	errand   *errand
	from, to int
	sentAt   time.Time
}

// Assign hands attempts over to the workers of all nodes and answers, for each, whether it was written to its stream, or
// may have been: false means never written, so never started (L3). It waits for other nodes for one AssignPatience at
// most, however many hang.
func (h *Hub) Assign(ctx context.Context, deliveries []job.Delivery) []bool {
	r, _ := h.current()
	var (
		errands map[*peer]*errand
		at      map[*peer][]int
		local   []job.Delivery
		here    []int
		last    job.SessionID
		seat    *seat
	)
	for i := range deliveries {
		d := &deliveries[i]
		if i == 0 || d.Session != last {
			last, seat = d.Session, r.of(d.Session)
		}
		if seat == nil || d.Assignment == nil {
			local, here = append(local, *d), append(here, i)
			continue
		}
		p := seat.peer
		if errands == nil {
			errands, at = map[*peer]*errand{}, map[*peer][]int{}
		}
		e := errands[p]
		if e == nil {
			e = &errand{done: make(chan struct{})}
			errands[p] = e
		}
		e.deliveries = append(e.deliveries, *d)
		at[p] = append(at[p], i)
	}
	if len(errands) == 0 {
		return h.config.Gateway.Assign(ctx, deliveries)
	}
	for p, e := range errands {
		if !p.out.offer(e) {
			h.metrics.stuck.Add(float64(len(e.deliveries)))
		}
	}
	ok := make([]bool, len(deliveries))
	timer := time.NewTimer(h.config.AssignPatience)
	defer timer.Stop()
	if len(local) > 0 {
		for i, taken := range h.config.Gateway.Assign(ctx, local) {
			ok[here[i]] = taken
		}
	}
	expired := false
	for p, e := range errands {
		if !expired {
			select {
			case <-e.done:
			case <-ctx.Done():
				expired = true
			case <-timer.C:
				expired = true
			}
		}
		sent, refused, unanswered := p.out.withdraw(e)
		for n, i := range at[p] {
			ok[i] = n < sent && !refused[n]
		}
		h.metrics.unknown.Add(float64(unanswered))
	}
	return ok
}

// replied takes a node's answer to a batch.
func (p *peer) replied(x *workerpb.AssignReply) error {
	late, err := p.out.answered(x)
	if err != nil {
		return err
	}
	// The term was told that these may have been written. Now it is known that they were not: they are given back.
	for i := range late {
		d := &late[i]
		p.hub.metrics.late.Inc()
		if s := p.reign.seat(d.Session); s != nil && s.peer == p {
			s.push(word{outcomes: []job.Outcome{{RunID: d.RunID, Fence: d.Fence, Attempt: d.Attempt, Worker: s.worker, Kind: job.AttemptReturned,
				Reason: job.WorkerStopped, Error: "the assignment did not reach the worker", FinishedAt: job.At(time.Now())}}})
		}
	}
	return nil
}
