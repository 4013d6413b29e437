package postgres

import (
	"context"
	"sync"

	"github.com/musterhq/muster/job"
)

// Bounds of what callers share. A call that is larger than a batch is a batch of its own.
const (
	batchItems   = 1000
	batchBytes   = 4 << 20
	batchWriters = 2        // batches that are written at once
	waitingBytes = 64 << 20 // of calls that wait for the batches before them
)

// batcher shares transactions between callers: what is asked for while the last batches are being written goes into the
// next one together. There is no timer, so who comes alone waits for nobody. Its goroutines end when nobody waits.
type batcher[T any] struct {
	write  func(items []T) []job.Receipt // one answer for each item
	weight func(item *T) int             // about how many bytes it takes

	mu      sync.Mutex
	queue   []*call[T]
	waiting int // bytes of queue
	writers int
}

// call is what one caller asked for.
type call[T any] struct {
	items    []T
	weight   int
	receipts []job.Receipt
	done     chan struct{}
}

// do answers each item, or an error that holds for all of them.
func (b *batcher[T]) do(ctx context.Context, items []T) ([]job.Receipt, error) {
	if len(items) == 0 {
		return nil, nil
	}
	c := &call[T]{items: items, done: make(chan struct{})}
	for i := range items {
		c.weight += b.weight(&items[i])
	}
	if err := b.enter(c); err != nil {
		return nil, err
	}
	select {
	case <-c.done:
		return c.answer()
	case <-ctx.Done():
		return b.leave(c, ctx.Err())
	}
}

func (b *batcher[T]) enter(c *call[T]) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting > 0 && b.waiting+c.weight > waitingBytes {
		return job.Errorf(job.Exhausted, "store_busy", "%d bytes wait to be written to the store, which is as many as may; try again later", b.waiting)
	}
	b.queue, b.waiting = append(b.queue, c), b.waiting+c.weight
	if b.writers < batchWriters {
		b.writers++
		go b.work()
	}
	return nil
}

// leave is for a caller that does not wait any longer.
func (b *batcher[T]) leave(c *call[T], why error) ([]job.Receipt, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-c.done:
		return c.answer()
	default:
	}
	for i, queued := range b.queue {
		if queued == c {
			b.queue, b.waiting = append(b.queue[:i:i], b.queue[i+1:]...), b.waiting-c.weight
			return nil, away(why, "the call was given up before it was sent")
		}
	}
	return nil, unknown(why)
}

// work writes batches until nobody waits.
func (b *batcher[T]) work() {
	for {
		calls := b.take()
		if calls == nil {
			return
		}
		items := calls[0].items
		if len(calls) > 1 {
			items = make([]T, 0, batchItems)
			for _, c := range calls {
				items = append(items, c.items...)
			}
		}
		receipts := b.write(items)
		for _, c := range calls {
			c.receipts, receipts = receipts[:len(c.items):len(c.items)], receipts[len(c.items):]
			close(c.done)
		}
	}
}

// take answers the calls of the next batch; nil, and the worker is gone, when there is none.
func (b *batcher[T]) take() []*call[T] {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, items, weight := 0, 0, 0
	for _, c := range b.queue {
		if n > 0 && (items+len(c.items) > batchItems || weight+c.weight > batchBytes) {
			break
		}
		n, items, weight = n+1, items+len(c.items), weight+c.weight
	}
	if n == 0 {
		b.writers--
		b.queue = nil
		return nil
	}
	calls := b.queue[:n:n]
	b.queue, b.waiting = b.queue[n:], b.waiting-weight
	return calls
}

// answer makes what failed alike for all items, and is nobody's own fault, the error of the call.
func (c *call[T]) answer() ([]job.Receipt, error) {
	first := c.receipts[0].Err
	switch job.CodeOf(first) {
	case "", job.Invalid, job.Conflict, job.NotFound:
		return c.receipts, nil
	}
	for _, r := range c.receipts {
		if r.Err != first {
			return c.receipts, nil
		}
	}
	return nil, first
}
