package relay

import (
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker/workerpb"
)

// outbox is what waits to be written to one node. The writer takes what has gathered while it wrote the last message.
// Everything below mu is guarded by it.
type outbox struct {
	wake     chan struct{} // with a buffer of one
	patience time.Duration // of Assign
	overflow func()        // ends the link

	mu         sync.Mutex
	closed     bool
	sending    time.Time // since when the writer is busy with a message; zero while it is not
	number     uint64    // of the last batch
	unanswered []batch   // in the order of their numbers
	pulse      uint64

	greeting *workerpb.LeaderWelcome
	attaches []*workerpb.SessionAttached
	renewals []*workerpb.SessionRenewed
	errands  []*errand
	orders   []*workerpb.SessionOrders
	said     int             // stops and acknowledgements in orders
	taken    *workerpb.Taken // since the link began
	untold   bool            // taken has changed
	moving   int
}

func newOutbox(patience time.Duration, overflow func()) *outbox {
	return &outbox{wake: make(chan struct{}, 1), patience: patience, overflow: overflow, taken: &workerpb.Taken{}}
}

func (b *outbox) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// add changes the outbox, unless it is closed, and wakes the writer.
func (b *outbox) add(f func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	f()
	b.signal()
	return true
}

func (b *outbox) welcome(w *workerpb.LeaderWelcome) { b.add(func() { b.greeting = w }) }
func (b *outbox) attached(x *workerpb.SessionAttached) {
	b.add(func() { b.attaches = append(b.attaches, x) })
}
func (b *outbox) renewed(xs []*workerpb.SessionRenewed) {
	b.add(func() { b.renewals = append(b.renewals, xs...) })
}
func (b *outbox) move(n int) { b.add(func() { b.moving += n }) }

func (b *outbox) took(results, bytes int) {
	b.add(func() {
		b.taken.Results += uint64(results)
		b.taken.Bytes += uint64(bytes)
		b.untold = true
	})
}

// order queues a stop or an acknowledgement for a session.
func (b *outbox) order(session job.SessionID, stop *workerpb.Stop, ack *workerpb.Ack) {
	b.add(func() {
		o := b.ordersOf(session)
		if stop != nil {
			o.Stops = append(o.Stops, stop)
		}
		if ack != nil {
			o.Acks = append(o.Acks, ack)
		}
		if b.said++; b.said == maxOrders {
			go b.overflow() // takes locks of the connection
		}
	})
}

func (b *outbox) drain(session job.SessionID) bool {
	return b.add(func() { b.ordersOf(session).Drain = true })
}

// maxSessionOrders bounds what goes to one session in one piece, so that messages can be cut.
const maxSessionOrders = 1024

func (b *outbox) ordersOf(session job.SessionID) *workerpb.SessionOrders {
	if n := len(b.orders); n > 0 {
		if o := b.orders[n-1]; o.Session == string(session) && len(o.Stops)+len(o.Acks) < maxSessionOrders {
			return o
		}
	}
	o := &workerpb.SessionOrders{Session: string(session)}
	b.orders = append(b.orders, o)
	return o
}

// offer queues an errand, unless the node owes an answer for longer than the patience.
func (b *outbox) offer(e *errand) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	owes := len(b.unanswered) > 0 && time.Since(b.unanswered[0].sentAt) >= b.patience
	stuck := !b.sending.IsZero() && time.Since(b.sending) >= b.patience
	if b.closed || owes || stuck {
		e.end()
		return b.closed
	}
	b.errands = append(b.errands, e)
	b.signal()
	return true
}

// withdraw takes back what the writer has not taken. It answers how many it has, which of these were refused, and how
// many of them are not known yet.
func (b *outbox) withdraw(e *errand) (sent int, refused map[int]bool, unknown int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e.over = true
	e.end()
	for i, x := range b.errands {
		if x == e {
			b.errands = append(b.errands[:i], b.errands[i+1:]...)
			break
		}
	}
	for _, x := range b.unanswered {
		if x.errand == e {
			unknown += x.to - x.from
		}
	}
	return e.next, e.refused, unknown
}

// answered takes the answer to the oldest batch. It answers what it says too late was not written.
func (b *outbox) answered(x *workerpb.AssignReply) (late []job.Delivery, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.unanswered) == 0 || b.unanswered[0].number != x.GetNumber() {
		return nil, job.InvalidField("replies.number", "%d is not the oldest batch without an answer", x.GetNumber())
	}
	a := b.unanswered[0]
	b.unanswered = b.unanswered[1:]
	e := a.errand
	for _, i := range x.GetRefused() {
		n := a.from + int(i)
		if n >= a.to {
			return nil, job.InvalidField("replies.refused", "%d is beyond the batch", i)
		}
		if e.over {
			late = append(late, e.deliveries[n])
			continue
		}
		if e.refused == nil {
			e.refused = map[int]bool{}
		}
		e.refused[n] = true
	}
	if e.open--; e.open == 0 && e.next == len(e.deliveries) {
		e.end()
	}
	return late, nil
}

func (b *outbox) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	b.closed = true
	for _, e := range b.errands {
		e.end()
	}
	for _, x := range b.unanswered {
		x.errand.end()
	}
	b.errands = nil
	b.signal()
}

// sent says that the writer has done with a message.
func (b *outbox) sent() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sending = time.Time{}
}

// take waits for something to write, or until a pulse is due, and answers it. It is false when the link ends.
func (b *outbox) take(table *workerpb.SpecTable) (*workerpb.LeaderMessage, bool) {
	timer := time.NewTimer(pulseEvery)
	defer timer.Stop()
	for {
		b.mu.Lock()
		if b.closed {
			b.mu.Unlock()
			return nil, false
		}
		m, some := b.gather(table)
		if some {
			b.sending = time.Now()
		}
		b.mu.Unlock()
		if some {
			return m, true
		}
		select {
		case <-b.wake:
		case <-timer.C:
			b.mu.Lock()
			b.pulse++
			m = &workerpb.LeaderMessage{Pulse: b.pulse}
			b.sending = time.Now()
			b.mu.Unlock()
			return m, true
		}
	}
}

// gather moves a message's worth out of the queues. Callers hold mu.
func (b *outbox) gather(table *workerpb.SpecTable) (m *workerpb.LeaderMessage, some bool) {
	m = &workerpb.LeaderMessage{Welcome: b.greeting, Move: uint32(b.moving)}
	some = b.greeting != nil || b.moving > 0
	b.greeting, b.moving = nil, 0
	if b.untold {
		m.Taken, b.untold, some = &workerpb.Taken{Results: b.taken.Results, Bytes: b.taken.Bytes}, false, true
	}
	budget := maxMessage
	m.Attached = portion(&b.attaches, &budget)
	m.Renewed = portion(&b.renewals, &budget)
	m.Orders = portion(&b.orders, &budget)
	for _, o := range m.Orders {
		b.said -= len(o.Stops) + len(o.Acks)
	}
	if len(b.errands) > 0 && budget > 0 {
		m.Specs, m.Batches, budget = b.cut(budget, table)
	}
	return m, some || budget < maxMessage
}

// portion cuts off as much of the front of a queue as goes into the budget. What is begun with goes, however large it is.
func portion[T proto.Message](queue *[]T, budget *int) []T {
	n := 0
	for n < len(*queue) && *budget > 0 {
		*budget -= proto.Size((*queue)[n]) + 8
		n++
	}
	out := (*queue)[:n:n]
	if *queue = (*queue)[n:]; len(*queue) == 0 {
		*queue = nil
	}
	return out
}

// cut takes batches off the errands as far as the budget goes. Callers hold mu.
func (b *outbox) cut(budget int, table *workerpb.SpecTable) (specs []*workerpb.Spec, batches []*workerpb.AssignBatch, left int) {
	var items []*job.Assignment
	taken := 0
	first := len(b.unanswered)
	for len(b.errands) > 0 && budget > 0 && taken < maxBatch {
		e := b.errands[0]
		from := e.next
		for e.next < len(e.deliveries) && budget > 0 && taken < maxBatch {
			a := e.deliveries[e.next].Assignment
			budget -= weight(a) + table.Weight(a.Spec)
			items = append(items, a)
			e.next++
			taken++
		}
		b.number++
		e.open++
		b.unanswered = append(b.unanswered, batch{number: b.number, errand: e, from: from, to: e.next, sentAt: time.Now()})
		if e.next == len(e.deliveries) {
			b.errands = b.errands[1:]
		}
	}
	specs, wire := table.Fill(items)
	for _, x := range b.unanswered[first:] {
		out := &workerpb.AssignBatch{Number: x.number}
		var group *workerpb.SessionAssignments
		for i := x.from; i < x.to; i++ {
			if session := string(x.errand.deliveries[i].Session); group == nil || group.Session != session {
				group = &workerpb.SessionAssignments{Session: session}
				out.Sessions = append(out.Sessions, group)
			}
			group.Assignments = append(group.Assignments, wire[0])
			wire = wire[1:]
		}
		batches = append(batches, out)
	}
	return specs, batches, budget
}

// weight is about how many bytes an assignment takes.
func weight(a *job.Assignment) int {
	n := 160 + len(a.Payload)
	for k, v := range a.Labels {
		n += len(k) + len(v) + 8
	}
	return n
}
