package mirror

import (
	"context"
	"slices"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage/redis"
)

// Run brings what no pop took along, compares now and then, and goes back to a remote queue that could not be used. It
// returns when ctx ends. A queue that nobody changes costs one comparison in ten seconds, and none on a node that does not lead.
func (q *Queue) Run(ctx context.Context) error {
	compare := time.NewTicker(compareEvery)
	defer compare.Stop()
	for {
		wake, tick := q.wake, compare.C
		var wait <-chan time.Time
		var then func(context.Context)
		q.mu.Lock()
		switch {
		case q.state == unused: // nothing is pending: only a change of state wakes
			wait, then, tick = time.After(q.retry), q.back, nil
		case q.state == used && len(q.pending) > 0: // more of that must not put it off
			wait, then, wake = time.After(flushAfter), q.flush, nil
		}
		q.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-wait:
			then(ctx)
		case <-tick:
			q.compare(ctx)
		}
	}
}

// back goes back to the remote queue.
func (q *Queue) back(ctx context.Context) {
	q.turn.Lock()
	defer q.turn.Unlock()
	q.mu.Lock()
	unused := q.state == unused
	q.mu.Unlock()
	if unused {
		_, _ = q.fill(ctx) // a newer epoch: memory now fences who leads no more
	}
}

// flush brings all that is pending.
func (q *Queue) flush(ctx context.Context) {
	for ctx.Err() == nil && q.flushSome(ctx) {
	}
}

// flushSome brings what goes in one round trip, and tells whether more is pending.
func (q *Queue) flushSome(ctx context.Context) (more bool) {
	q.turn.Lock()
	defer q.turn.Unlock()
	q.mu.Lock()
	if q.state != used || len(q.pending) == 0 {
		q.mu.Unlock()
		return false
	}
	s, epoch, now := q.take(), q.epoch, q.now
	if more = len(q.pending) > 0; !more {
		q.pending = map[job.RunID]change{} // the old one may have been large
	}
	q.mu.Unlock()
	_ = q.step(ctx, epoch, now, s, nil) // as in back
	return more
}

// compare finds out what no pop has: that the remote queue was changed while nobody popped.
func (q *Queue) compare(ctx context.Context) {
	q.turn.Lock()
	defer q.turn.Unlock()
	q.mu.Lock()
	if q.state != used || len(q.pending) > maxStep {
		q.mu.Unlock()
		return
	}
	s, epoch, now := q.take(), q.epoch, q.now
	count, sample := q.local.Sample(compareLanes)
	here := redis.Depths{Entries: q.local.Len(), Lanes: count}
	q.mu.Unlock()
	if len(s.Push)+len(s.Remove) > 0 {
		_ = q.step(ctx, epoch, now, s, nil)
	}
	lanes := make([]job.LaneKey, 0, len(sample))
	for k, n := range sample {
		lanes = append(lanes, k)
		here.Of = append(here.Of, n)
	}
	q.mu.Lock()
	using := q.state == used && q.epoch == epoch
	q.mu.Unlock()
	if !using {
		return
	}
	there, err := q.remote.Depths(context.WithoutCancel(ctx), epoch, lanes)
	switch {
	case err != nil:
		_ = q.failed(ctx, causeOf(err), err)
	case there.Entries != here.Entries || there.Lanes != here.Lanes || !slices.Equal(there.Of, here.Of):
		_ = q.failed(ctx, differs, job.Errorf(job.Unavailable, "queue_lost", "redis holds %d entries in %d lanes, memory %d in %d, or they are not in the same lanes", there.Entries, there.Lanes, here.Entries, here.Lanes))
	}
}
