package worker

import (
	"context"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker/workerpb"
)

// desk is what the agent has in hand: attempts that run, and results that wait for their acknowledgement. Agent.mu guards
// it. An attempt goes from one to the other in one step, so that a Hello or a heartbeat lists it in either case.
type desk struct {
	slots   int
	used    int
	running map[job.Fence]*attempt
	held    map[job.Fence]*report
	seen    recentFences
	leaving bool
	full    bool // the spool is full: no new work until something is acknowledged

	announceDue bool

	finished []*report // to be spooled, then queued
	queue    []*report // spooled, in the order of their ends, with holes where acknowledged
	next     int       // index in queue of the first that was not sent in this session

	// The window of results under way in this session.
	session            uint64 // counts accepted Hellos
	flying, flyingSize int
	maxFlying          int
	maxFlyingSize      int
}

// attempt is one that runs.
type attempt struct {
	*job.Assignment
	slots     int
	cancel    context.CancelCauseFunc
	startedAt job.Instant
	out       *attemptOutput
	announced bool
}

// report is a result on its way.
type report struct {
	outcome job.Outcome
	wire    *workerpb.Result
	after   uint64         // the piece of output that goes before it
	out     *attemptOutput // nil after a restart
	sentIn  uint64         // the session in which it was sent
	acked   bool
}

func newDesk(slots int) desk {
	return desk{slots: slots, running: map[job.Fence]*attempt{}, held: map[job.Fence]*report{}, maxFlying: 1, maxFlyingSize: 1}
}

// resume takes a result over from an earlier life.
func (d *desk) resume(o job.Outcome) {
	r := &report{outcome: o, wire: workerpb.NewResult(&o)}
	d.held[o.Fence] = r
	d.queue = append(d.queue, r)
	d.seen.note(o.RunID, o.Fence)
}

// fences lists all that is in hand.
func (d *desk) fences() []uint64 {
	out := make([]uint64, 0, len(d.running)+len(d.held))
	for f := range d.running {
		out = append(out, uint64(f))
	}
	for f := range d.held {
		out = append(out, uint64(f))
	}
	return out
}

// reseat begins a session: everything unacknowledged is to be sent again.
func (d *desk) reseat(w *workerpb.Welcome) {
	d.session++
	d.flying, d.flyingSize = 0, 0
	d.maxFlying, d.maxFlyingSize = max(1, int(w.GetMaxUnackedResults())), max(1, int(w.GetMaxUnackedBytes()))
	d.compact()
	d.next = 0
	for _, t := range d.running {
		t.announced = false
	}
}

// compact closes the holes of the queue.
func (d *desk) compact() {
	kept, next := d.queue[:0], 0
	for i, r := range d.queue {
		if !r.acked {
			kept = append(kept, r)
			if i < d.next {
				next++
			}
		}
	}
	clear(d.queue[len(kept):])
	d.queue, d.next = kept, next
}

// announce answers the starts of attempts that began before the moment and were not announced in this session, if the
// ticker asked for it: going through all that runs for each message would be too much.
func (d *desk) announce(before job.Instant) []*workerpb.Started {
	if !d.announceDue {
		return nil
	}
	d.announceDue = false
	var out []*workerpb.Started
	for _, t := range d.running {
		if !t.announced && t.startedAt <= before {
			t.announced = true
			out = append(out, workerpb.NewStarted(&job.Started{RunID: t.RunID, Fence: t.Fence, At: t.startedAt}))
		}
	}
	return out
}

// The most results that go into one message.
const (
	maxResultBatch      = 512
	maxResultBatchBytes = 1 << 20
)

// take answers the next results to send, as far as the window and the output before them allow.
func (d *desk) take(through uint64) []*workerpb.Result {
	var out []*workerpb.Result
	size := 0
	for ; d.next < len(d.queue) && len(out) < maxResultBatch && size < maxResultBatchBytes; d.next++ {
		r := d.queue[d.next]
		if r.acked {
			continue
		}
		w := workerpb.ResultWeight(r.wire)
		if r.after > through || d.flying > 0 && (d.flying >= d.maxFlying || d.flyingSize+w > d.maxFlyingSize) {
			break
		}
		d.flying++
		d.flyingSize += w
		size += w
		r.sentIn = d.session
		out = append(out, r.wire)
	}
	return out
}

// acknowledge forgets a result and answers whether it was held.
func (d *desk) acknowledge(f job.Fence) bool {
	r := d.held[f]
	if r == nil {
		return false
	}
	delete(d.held, f)
	r.acked = true
	if r.sentIn == d.session {
		d.flying--
		d.flyingSize -= workerpb.ResultWeight(r.wire)
	}
	if r.out != nil {
		r.out.settle()
	}
	d.full = false
	if len(d.queue) > 2*len(d.held)+256 {
		d.compact()
	}
	return true
}

// admit decides about an assignment: it becomes an attempt; or it is given back with a report, because there is no room;
// or neither, because it must not run: its fence is not above one that was seen for the same run (L3).
func (d *desk) admit(a *job.Assignment, now job.Instant) (*attempt, *report) {
	if !d.seen.note(a.RunID, a.Fence) {
		return nil, nil
	}
	slots := 1
	if a.Spec != nil {
		slots = max(1, a.Spec.Slots)
	}
	why := ""
	switch {
	case d.leaving:
		why = "the worker is stopping"
	case d.full:
		why = "the worker holds too many unacknowledged results"
	case d.used+slots > d.slots:
		why = "the worker has no free slot"
	default:
		t := &attempt{Assignment: a, slots: slots, startedAt: now}
		d.running[a.Fence] = t
		d.used += slots
		return t, nil
	}
	return nil, d.hold(job.Outcome{RunID: a.RunID, Fence: a.Fence, Attempt: a.Attempt, Kind: job.AttemptReturned,
		Reason: job.WorkerStopped, Error: why, FinishedAt: now}, nil, 0)
}

// hold keeps a result until its acknowledgement.
func (d *desk) hold(o job.Outcome, out *attemptOutput, after uint64) *report {
	r := &report{outcome: o, wire: workerpb.NewResult(&o), out: out, after: after}
	d.held[o.Fence] = r
	d.finished = append(d.finished, r)
	return r
}

// finish moves an attempt from running to held.
func (d *desk) finish(t *attempt, o job.Outcome, after uint64) {
	delete(d.running, t.Fence)
	d.used -= t.slots
	d.hold(o, t.out, after)
}

// recentFences remembers the highest fence seen for each of the last runs: twice maxRecent at most.
type recentFences struct{ young, old map[job.RunID]job.Fence }

const maxRecent = 1 << 15

// note answers whether the fence is above all seen for the run, and remembers it then.
func (r *recentFences) note(run job.RunID, f job.Fence) bool {
	if f <= r.young[run] || f <= r.old[run] {
		return false
	}
	if len(r.young) >= maxRecent || r.young == nil {
		r.old, r.young = r.young, make(map[job.RunID]job.Fence)
	}
	r.young[run] = f
	return true
}
