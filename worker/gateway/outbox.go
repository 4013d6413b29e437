package gateway

import (
	"sync"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker/workerpb"
)

// The limits of one outgoing message and of one stream's queue. A stream whose queue of stops and acknowledgements is
// full does not read: it is ended, and its worker comes back.
const (
	maxBatch       = 512
	maxBatchBytes  = 1 << 20
	maxQueued      = 8192
	maxQueuedBytes = 16 << 20
	maxHints       = 1 << 16 // stops and acknowledgements
)

// offer is what one call of Assign has for one session.
type offer struct {
	session job.SessionID
	items   []*job.Assignment
	next    int           // how many the writer has taken
	sure    int           // how many the writer will take before anything else: the caller was told true already
	done    chan struct{} // closed when nothing more will be taken
	ended   bool          // done is closed
}

func (o *offer) end() {
	if !o.ended {
		o.ended = true
		close(o.done)
	}
}

// outbox is what waits to be written to one stream. The writer takes all that has gathered while it wrote the last
// message; there is no timer. Everything below mu is guarded by it.
type outbox struct {
	wake     chan struct{} // with a buffer of one
	overflow func()        // ends the stream's reader and writer

	mu        sync.Mutex
	session   job.SessionID // whose assignments are taken; "" none
	welcomed  bool          // the session's Welcome is queued or written: assignments may follow it
	noWork    bool          // the worker of this session is leaving
	retired   bool          // the node is going away, or the worker was told to
	closed    bool
	finishing bool      // write what is queued, then end
	sending   time.Time // since when the writer is busy with a message; zero while it is not

	welcome *workerpb.Welcome
	beat    *workerpb.HeartbeatAck
	offers  []*offer
	queued  int
	bytes   int
	stops   []*workerpb.Stop
	acks    []*workerpb.Ack
	resync  uint64
	drain   bool
	move    bool
}

func newOutbox(overflow func()) *outbox {
	return &outbox{wake: make(chan struct{}, 1), overflow: overflow}
}

func (b *outbox) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// begin opens a session for offers. What waits for an earlier session is not written any more: whoever was told true for
// it hears from the Hello that opened this session that it never arrived.
func (b *outbox) begin(session job.SessionID, noWork bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop()
	b.session, b.welcomed, b.noWork = session, false, noWork
}

// drop forgets all offers. Callers hold mu.
func (b *outbox) drop() {
	for _, o := range b.offers {
		o.end()
	}
	b.offers, b.queued, b.bytes = nil, 0, 0
}

// greet queues the Welcome of the session, unless it is over.
func (b *outbox) greet(session job.SessionID, w *workerpb.Welcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.session != session || b.closed {
		return
	}
	b.welcome, b.welcomed = w, true
	b.signal()
}

// say queues a Welcome that opens no session.
func (b *outbox) say(w *workerpb.Welcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.welcome = w
	b.signal()
}

// refuse queues a Welcome that says no and ends the stream after it.
func (b *outbox) refuse(w *workerpb.Welcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop()
	b.session, b.welcome, b.finishing = "", w, true
	b.signal()
}

func (b *outbox) askResync(number uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.resync = number
	b.welcome = nil // of a session that is over
	b.signal()
}

func (b *outbox) askMove() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.move, b.retired = true, true
	b.signal()
}

func (b *outbox) askDrain() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drain, b.retired = true, true
	b.signal()
}

// acknowledge queues the answer to a heartbeat; renewed is true only within the session that renewed.
func (b *outbox) acknowledge(seq uint64, session job.SessionID, renewed bool, unknown []job.Fence) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if renewed && b.session != session {
		renewed, unknown = false, nil // the answer was about another session: it must kill nothing in this one
	}
	// An answer that was not written yet is merged: renewals count by their latest, unknown fences stay unknown.
	a := &workerpb.HeartbeatAck{Seq: seq, Renewed: renewed, Unknown: workerpb.FenceNumbers(unknown)}
	if b.beat != nil && b.beat.Renewed {
		if !renewed {
			return
		}
		a.Unknown = append(b.beat.Unknown, a.Unknown...)
	}
	b.beat = a
	b.signal()
}

func (b *outbox) addStop(s *workerpb.Stop) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	b.stops = append(b.stops, s)
	b.bound()
	b.signal()
}

func (b *outbox) addAcks(acks []*workerpb.Ack) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	b.acks = append(b.acks, acks...)
	b.bound()
	b.signal()
}

// bound ends a stream that takes nothing. Callers hold mu.
func (b *outbox) bound() {
	if len(b.stops)+len(b.acks) > maxHints {
		b.shut()
		go b.overflow() // setting deadlines takes locks of the connection
	}
}

// put queues an offer as far as there is room. It marks as sure what the writer, being idle, will take next.
func (b *outbox) put(o *offer, patience time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	stuck := !b.sending.IsZero() && time.Since(b.sending) > patience
	if b.closed || b.finishing || b.noWork || b.retired || b.session != o.session || stuck {
		o.items = nil
		o.end()
		return
	}
	bytes, room := 0, 0
	for room < len(o.items) && b.queued+room < maxQueued && b.bytes+bytes < maxQueuedBytes {
		bytes += weight(o.items[room])
		room++
		if room <= maxBatch && bytes <= maxBatchBytes {
			o.sure = room
		}
	}
	o.items = o.items[:room]
	if room == 0 {
		o.end()
		return
	}
	if len(b.offers) > 0 || !b.sending.IsZero() || !b.welcomed {
		o.sure = 0
	}
	b.offers = append(b.offers, o)
	b.queued += room
	b.bytes += bytes
	b.signal()
}

// weight is about how many bytes an assignment takes; exactness does not matter, but the same answer every time does.
func weight(a *job.Assignment) int {
	n := 160 + len(a.Payload)
	for k, v := range a.Labels {
		n += len(k) + len(v) + 8
	}
	return n
}

// taken answers how many of the offer went out, and whether that is final.
func (b *outbox) taken(o *offer) (int, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := max(o.next, o.sure)
	return n, o.ended || n == len(o.items)
}

// withdraw takes back what the writer has not taken, and answers how many it has.
func (b *outbox) withdraw(o *offer) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := max(o.next, o.sure)
	if o.ended {
		return n
	}
	for _, a := range o.items[n:] {
		b.queued--
		b.bytes -= weight(a)
	}
	o.items = o.items[:n]
	if o.next == n {
		for i, p := range b.offers {
			if p == o {
				b.offers = append(b.offers[:i], b.offers[i+1:]...)
				break
			}
		}
		o.end()
	}
	return n
}

// shut ends the stream: nothing more is taken. Callers hold mu.
func (b *outbox) shut() {
	b.closed, b.session = true, ""
	b.drop()
	b.signal()
}

func (b *outbox) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shut()
}

// sent says that the writer has done with a message.
func (b *outbox) sent() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sending = time.Time{}
}

// take waits for something to write and answers it, with the assignments apart: their specs are the writer's business. It
// is false when the stream ends.
func (b *outbox) take(batch []*job.Assignment) (*workerpb.NodeMessage, []*job.Assignment, bool) {
	for {
		b.mu.Lock()
		if b.closed {
			b.mu.Unlock()
			return nil, nil, false
		}
		m, batch, some := b.gather(batch[:0])
		if some {
			b.sending = time.Now()
		}
		finished := !some && b.finishing
		b.mu.Unlock()
		if some {
			return m, batch, true
		}
		if finished {
			return nil, nil, false
		}
		<-b.wake
	}
}

// gather moves a message's worth out of the queues. Callers hold mu.
func (b *outbox) gather(batch []*job.Assignment) (m *workerpb.NodeMessage, _ []*job.Assignment, some bool) {
	m = &workerpb.NodeMessage{
		Welcome: b.welcome, HeartbeatAck: b.beat, Stops: b.stops, Acks: b.acks, Resync: b.resync, Drain: b.drain, Move: b.move,
	}
	some = b.welcome != nil || b.beat != nil || len(b.stops) > 0 || len(b.acks) > 0 || b.resync != 0 || b.drain || b.move
	b.welcome, b.beat, b.stops, b.acks, b.resync, b.drain, b.move = nil, nil, nil, nil, 0, false, false
	if !b.welcomed {
		return m, batch, some
	}
	size := 0
	for len(b.offers) > 0 {
		o := b.offers[0]
		for o.next < len(o.items) {
			w := weight(o.items[o.next])
			if len(batch) == maxBatch || size > 0 && size+w > maxBatchBytes {
				return m, batch, true
			}
			batch = append(batch, o.items[o.next])
			size += w
			o.next++
			b.queued--
			b.bytes -= w
		}
		o.end()
		b.offers = b.offers[1:]
	}
	return m, batch, some || len(batch) > 0
}
