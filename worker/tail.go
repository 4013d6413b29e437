package worker

import (
	"sync"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker/workerpb"
)

// The sizes in which output travels: small writes join into pieces, and no message carries more than a part of what a slow
// connection takes in a heartbeat.
const (
	maxOutputPiece   = 32 << 10
	maxOutputMessage = 256 << 10
	outputPieceCost  = 128 // beside its bytes, in memory and in a message: attempts that write in turns make small pieces
)

// outputTail is the output of all attempts on its way to the node: a queue, of which the last part stays after it was
// sent, because another node may need it. It never blocks the work: when it is full, the oldest piece is dropped, sent or
// not, and shows as a gap.
type outputTail struct {
	limit  int
	signal func()

	mu      sync.Mutex
	pieces  []*outputPiece
	next    int    // index of the first piece that was not sent on this stream
	bytes   int    // of all pieces, with their cost
	last    uint64 // number of the newest piece
	through uint64 // number of the newest piece that was sent on this stream, or dropped
}

type outputPiece struct {
	number uint64
	from   *attemptOutput
	offset int64
	data   []byte
}

func (p *outputPiece) size() int { return len(p.data) + outputPieceCost }

// attemptOutput is the writer that an attempt's executor gets.
type attemptOutput struct {
	tail    *outputTail
	run     job.RunID
	fence   job.Fence
	attempt uint32
	offset  int64 // guarded by tail.mu, as all below
	last    uint64
	settled bool // acknowledged: nobody needs it again
}

func newOutputTail(limit int, signal func()) *outputTail {
	return &outputTail{limit: limit, signal: signal}
}

// Write copies p into the queue.
func (o *attemptOutput) Write(p []byte) (int, error) {
	n := len(p)
	if n == 0 {
		return 0, nil
	}
	t := o.tail
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(p) > 0 {
		part := p[:min(len(p), maxOutputPiece)]
		p = p[len(part):]
		if k := len(t.pieces); k > t.next && t.pieces[k-1].from == o && len(t.pieces[k-1].data)+len(part) <= maxOutputPiece {
			t.pieces[k-1].data = append(t.pieces[k-1].data, part...)
		} else {
			t.last++
			t.pieces = append(t.pieces, &outputPiece{number: t.last, from: o, offset: o.offset, data: append([]byte(nil), part...)})
			t.bytes += outputPieceCost
		}
		o.offset += int64(len(part))
		o.last = t.last
		t.bytes += len(part)
	}
	drop := 0
	for t.bytes > t.limit && drop < len(t.pieces)-1 {
		t.bytes -= t.pieces[drop].size()
		t.through = max(t.through, t.pieces[drop].number)
		drop++
	}
	if drop > 0 {
		t.pieces = append(t.pieces[:0], t.pieces[drop:]...)
		t.next = max(0, t.next-drop)
	}
	t.signal()
	return n, nil
}

// end answers the number of the attempt's last piece, 0 if it has none. Its result must not overtake it.
func (o *attemptOutput) end() uint64 {
	o.tail.mu.Lock()
	defer o.tail.mu.Unlock()
	return o.last
}

func (o *attemptOutput) settle() {
	o.tail.mu.Lock()
	defer o.tail.mu.Unlock()
	o.settled = true
}

// restart begins again with the oldest piece that somebody may need: the stream is a new one, perhaps to another node.
func (t *outputTail) restart() {
	t.mu.Lock()
	defer t.mu.Unlock()
	kept := t.pieces[:0]
	t.bytes = 0
	for _, p := range t.pieces {
		if !p.from.settled {
			kept = append(kept, p)
			t.bytes += p.size()
		}
	}
	clear(t.pieces[len(kept):])
	t.pieces, t.next = kept, 0
	t.through = t.last
	if len(kept) > 0 {
		t.through = kept[0].number - 1
	}
}

// take answers the next pieces to send, and the number up to which all have been sent with them.
func (t *outputTail) take() ([]*workerpb.Output, uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*workerpb.Output
	for size := 0; t.next < len(t.pieces) && size < maxOutputMessage; t.next++ {
		p := t.pieces[t.next]
		size += p.size()
		out = append(out, &workerpb.Output{
			RunId: append([]byte(nil), p.from.run[:]...), Attempt: p.from.attempt, Fence: uint64(p.from.fence),
			Offset: uint64(p.offset), Data: p.data,
		})
		t.through = p.number
	}
	if t.next == len(t.pieces) {
		t.through = t.last
	}
	return out, t.through
}
