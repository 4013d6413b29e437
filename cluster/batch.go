package cluster

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

// batcher is a bounded queue of proposals that leave it in batches: the proposer's to the log, the forwarder's to the
// leader. Whoever drains it takes a slot for each batch under way.
type batcher struct {
	cfg *Config

	mu       sync.Mutex
	queue    []*proposal
	commands int // queued
	bytes    int // queued
	gone     int // withdrawn, and still in the queue
	closed   bool

	wake      chan struct{}
	slots     chan struct{} // one is taken for each batch under way
	abandoned chan struct{} // closed when nobody waits for batches any longer
	abandon   sync.Once
}

func newBatcher(cfg *Config, slots int) batcher {
	return batcher{cfg: cfg, wake: make(chan struct{}, 1), slots: make(chan struct{}, slots), abandoned: make(chan struct{})}
}

func (b *batcher) propose(ctx context.Context, commands []fsm.Command) ([]fsm.Result, error) {
	c, err := b.proposeFor(ctx, commands, "")
	if err != nil {
		return nil, err
	}
	return c.results, nil
}

// proposeFor is propose for another node. The proposal it answers is finished.
func (b *batcher) proposeFor(ctx context.Context, commands []fsm.Command, from string) (*proposal, error) {
	size := fsm.Size(commands...)
	if size > MaxProposalBytes {
		return nil, job.Errorf(job.Invalid, reasonTooLarge, "the request needs a log entry of %d bytes; at most %d fit", size, MaxProposalBytes)
	}
	c := &proposal{commands: commands, size: size, from: from, done: make(chan struct{})}
	if err := b.enqueue(c); err != nil {
		return nil, err
	}
	select {
	case <-c.done:
		return c, c.err
	case <-ctx.Done():
		if b.withdraw(c) {
			return nil, notProposed(context.Cause(ctx))
		}
		select {
		case <-c.done: // both were ready
			return c, c.err
		default:
			return nil, mayHappen(context.Cause(ctx))
		}
	case <-b.abandoned:
		if b.withdraw(c) {
			return nil, notLeader(errClosed)
		}
		return nil, mayHappen(errClosed)
	}
}

const reasonTooLarge = "too_large" // of fsm.EncodeEntry, too

func (b *batcher) enqueue(c *proposal) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return notLeader(errClosed)
	case b.commands > 0 && b.commands+len(c.commands) > b.cfg.MaxQueuedCommands, b.bytes+c.size > b.cfg.MaxQueuedBytes && b.commands > 0:
		return job.Errorf(job.Exhausted, "proposals_full", "%d changes wait to be recorded already; try again later", b.commands)
	}
	c.since = time.Now()
	b.queue = append(b.queue, c)
	b.commands += len(c.commands)
	b.bytes += c.size
	b.rouse()
	return nil
}

func (b *batcher) rouse() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// withdraw takes a proposal back, unless it is in a batch already. Its place in the queue is skipped later.
func (b *batcher) withdraw(c *proposal) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c.state != queued {
		return c.state == withdrawn
	}
	b.drop(c)
	b.tidy()
	return true
}

// tidy takes what was withdrawn out of the queue, when that is most of it: nothing may leave it for hours, as when nobody
// leads, while callers come and go. It needs b.mu.
func (b *batcher) tidy() {
	if b.gone > 64 && 2*b.gone > len(b.queue) {
		b.queue = slices.DeleteFunc(b.queue, func(c *proposal) bool { return c.state == withdrawn })
		b.gone = 0
	}
}

// drop needs b.mu.
func (b *batcher) drop(c *proposal) {
	c.state = withdrawn
	b.gone++
	b.commands -= len(c.commands)
	b.bytes -= c.size
	c.commands = nil // its place may wait for long
}

// take answers the proposals of the next batch: at least one if any waits. last means that no more will come.
func (b *batcher) take() (batch []*proposal, last bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, commands, bytes := 0, 0, 0
	for _, c := range b.queue {
		if c.state == withdrawn {
			n++
			b.gone--
			continue
		}
		if len(batch) > 0 && (commands+len(c.commands) > b.cfg.MaxEntryCommands || bytes+c.size > b.cfg.MaxEntryBytes) {
			break
		}
		n++
		c.state = proposed
		batch = append(batch, c)
		commands += len(c.commands)
		bytes += c.size
	}
	clear(b.queue[:n])
	b.queue = b.queue[n:]
	if len(b.queue) == 0 {
		b.queue = nil // or the array would only grow
	}
	b.commands -= commands
	b.bytes -= bytes
	return batch, b.closed
}

// putBack queues a batch again, before all others: nothing has come of it. Its callers may withdraw again.
func (b *batcher) putBack(batch []*proposal) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range batch {
		c.state = queued
		b.commands += len(c.commands)
		b.bytes += c.size
	}
	b.queue = append(batch[:len(batch):len(batch)], b.queue...)
	b.rouse()
}

// expire finishes what has waited since before a moment, and tells whether anything still waits.
func (b *batcher) expire(before time.Time, err error) (waiting bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.queue {
		switch {
		case c.state == withdrawn:
		case c.since.Before(before):
			b.drop(c)
			c.finish(nil, err)
		default:
			waiting = true
		}
	}
	b.tidy()
	return waiting
}

// shut refuses what comes from now on.
func (b *batcher) shut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.rouse()
}

// giveUp lets go of everybody who still waits.
func (b *batcher) giveUp() { b.abandon.Do(func() { close(b.abandoned) }) }
