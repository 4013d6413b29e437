// Package mirror is the queue that a leader with Redis works with: one in its memory, which is exact, because the leader is
// the only writer (Q1), and one in Redis that follows it and does the popping.
//
// The one invariant: while the remote queue is used, what is in it and the changes pending for it make what is in memory.
// So each pop is foretold. It is sent with the pending changes in one round trip; what comes back must be what memory
// said, and is only looked at. When it is not, or nothing comes back (a hung Redis, one that was flushed or put back from
// an old copy, a call of unknown outcome), memory's answer stands, within the same call, and the queue goes on in memory.
// A run is therefore popped once for each time it was pushed, whatever becomes of Redis. Run goes back to Redis by itself:
// it raises the epoch there, empties it, and has all that memory holds pending.
package mirror

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage/memory"
	"github.com/musterhq/muster/storage/redis"
)

const (
	retryEvery   = time.Second           // while Redis is not used
	maxRetry     = 30 * time.Second      // while going back to it ends badly, again and again
	stable       = 15 * time.Second      // how long it must go well for that to be forgotten
	flushAfter   = 50 * time.Millisecond // how long changes wait for a pop that takes them along
	compareEvery = 10 * time.Second      // how often depths are compared
	compareLanes = 64                    // of how many lanes, others each time

	maxStep   = 2000    // changes in one round trip; while more are pending, pops are answered from memory
	maxBehind = 100_000 // changes beyond what memory holds: then filling again is less
)

// Remote is the queue that follows: redis.Queue. Its lanes hold at least as many entries as the mirror's.
type Remote interface {
	Raise(ctx context.Context, epoch job.Epoch) (job.Epoch, error)
	Reset(ctx context.Context, epoch job.Epoch) error
	Step(ctx context.Context, epoch job.Epoch, now job.Instant, s redis.Step) (popped, left []job.QueueEntry, err error)
	Depths(ctx context.Context, epoch job.Epoch, lanes []job.LaneKey) (redis.Depths, error)
}

// Config is what a mirror is made of.
type Config struct {
	Remote     Remote                // required; each of its calls must end within a bound of its own
	MaxLane    int                   // entries of one lane; 0 means redis.DefaultMaxLane
	MaxTotal   int                   // entries of all lanes; 0 means memory.DefaultMaxTotal
	Logger     *slog.Logger          // required
	Registerer prometheus.Registerer // nil: no metrics
}

// Queue implements storage.Queue. Run must run for it to use the remote queue well.
type Queue struct {
	remote Remote
	logger *slog.Logger
	local  *memory.Queue

	up      prometheus.Gauge
	resyncs *prometheus.CounterVec

	// turn is held by who calls the remote queue, so that its calls are in the order in which changes were taken; it is
	// taken before mu. A pop does not wait for it.
	turn sync.Mutex

	// mu makes one change of local and what is noted about it. It is never held during a call.
	mu      sync.Mutex
	epoch   job.Epoch
	now     job.Instant // of the last push
	state   state
	pending map[job.RunID]change // of used only
	since   time.Time            // when state changed
	retry   time.Duration        // the wait before going back
	why     string               // it is not used

	wake chan struct{} // the state has changed, or something is pending
}

// state is what becomes of the remote queue.
type state int

const (
	idle   state = iota // this node does not lead, or not any more
	unused              // the queue is in memory alone
	used
)

// change is what the remote queue does not know yet about one run.
type change struct {
	entry  job.QueueEntry
	queued bool // false: it is no longer queued
}

// New makes an empty queue.
func New(c Config) *Queue {
	if c.MaxLane <= 0 {
		c.MaxLane = redis.DefaultMaxLane
	}
	q := &Queue{remote: c.Remote, logger: c.Logger, local: memory.NewBounded(c.MaxLane, c.MaxTotal), retry: retryEvery, wake: make(chan struct{}, 1),
		up: prometheus.NewGauge(prometheus.GaugeOpts{Name: "muster_queue_remote_up",
			Help: "1 while this node leads and its queue is in Redis, 0 while it is in memory alone."}),
		resyncs: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "muster_queue_resyncs_total",
			Help: "How often the queue in Redis was given up and filled again, by cause."}, []string{"why"}),
	}
	for _, why := range []string{unavailable, unknown, lost, differs, behind} {
		q.resyncs.WithLabelValues(why)
	}
	if c.Registerer != nil {
		c.Registerer.MustRegister(q.up, q.resyncs)
	}
	return q
}

// Why the remote queue is not used; labels of the metric.
const (
	unavailable = "unavailable" // it was not reached, or refused
	unknown     = "unknown"     // it did not answer in time
	lost        = "lost"        // it says that it is not as it was left
	differs     = "differs"     // it says something else than memory
	behind      = "behind"      // it does not keep up
)

func causeOf(err error) string {
	switch e := job.AsError(err); {
	case e.Code == job.Unknown:
		return unknown
	case e.Reason == "queue_lost":
		return lost
	}
	return unavailable
}

// Follows tells whether the remote queue is used now.
func (q *Queue) Follows() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.state == used
}

// Raise implements storage.Queue. The remote queue is raised too, and filled with what memory holds; if it is away, memory
// is enough to lead.
func (q *Queue) Raise(ctx context.Context, epoch job.Epoch) (job.Epoch, error) {
	q.turn.Lock()
	defer q.turn.Unlock()
	q.mu.Lock()
	stands, err := q.local.Raise(ctx, epoch)
	if err == nil {
		q.epoch = epoch
	}
	q.mu.Unlock()
	if err != nil {
		return stands, err
	}
	return q.fill(ctx)
}

// fill raises and empties the remote queue, and has all that memory holds pending for it. Only a newer epoch is an error,
// and then stands. The turn is held.
func (q *Queue) fill(ctx context.Context) (stands job.Epoch, err error) {
	ctx = context.WithoutCancel(ctx) // a call that is given up is one of unknown outcome
	q.mu.Lock()
	epoch := q.epoch
	q.mu.Unlock()
	stands, err = q.remote.Raise(ctx, epoch)
	if err == nil {
		err = q.remote.Reset(ctx, epoch)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case job.CodeOf(err) == job.Fenced && stands > epoch:
		q.state, q.pending = idle, nil
		q.up.Set(0)
		q.logger.Info("a newer leader has the queue in redis", "epoch", epoch, "stands", stands)
		_, _ = q.local.Raise(ctx, stands) // memory fences this epoch from now on; it may have done so already
		return stands, err
	case err != nil:
		q.leave(causeOf(err), err)
		return epoch, nil
	}
	entries := q.local.Entries()
	q.pending = make(map[job.RunID]change, len(entries))
	for _, e := range entries {
		q.pending[e.RunID] = change{e, true}
	}
	if q.state == unused {
		q.logger.Info("the queue is in redis again", "entries", len(entries), "why", q.why, "after", time.Since(q.since).Round(time.Millisecond))
	}
	if q.state != used {
		q.state, q.since = used, time.Now()
	}
	q.up.Set(1)
	q.kick()
	return epoch, nil
}

// leave goes on in memory. mu is held.
func (q *Queue) leave(why string, err error) {
	switch q.state {
	case unused:
		return
	case used:
		q.resyncs.WithLabelValues(why).Inc()
		if time.Since(q.since) < stable {
			q.retry = min(2*q.retry, maxRetry)
		} else {
			q.retry = retryEvery
		}
	}
	q.state, q.pending, q.since, q.why = unused, nil, time.Now(), why
	q.up.Set(0)
	q.logger.Warn("the queue goes on in memory, without redis", "why", why, "err", err, "retry", q.retry)
	q.kick()
}

// failed is what follows on a call of the remote queue that went wrong. It is an error only if a newer epoch stands there:
// the caller no longer leads. The turn is held.
func (q *Queue) failed(ctx context.Context, why string, err error) error {
	if job.CodeOf(err) == job.Fenced {
		_, err := q.fill(ctx) // asks which one
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.state == used {
		q.leave(why, err)
	}
	return nil
}

func (q *Queue) kick() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Push implements storage.Queue.
func (q *Queue) Push(ctx context.Context, epoch job.Epoch, now job.Instant, entries []job.QueueEntry) (left []job.QueueEntry, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	left, err = q.local.Push(ctx, epoch, now, entries)
	q.now = now
	if err != nil || q.state != used {
		return left, err
	}
	for _, e := range entries {
		q.pending[e.RunID] = change{e, true}
	}
	for _, e := range left {
		q.pending[e.RunID] = change{}
	}
	q.noted()
	return left, nil
}

// Remove implements storage.Queue.
func (q *Queue) Remove(ctx context.Context, epoch job.Epoch, ids []job.RunID) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.local.Remove(ctx, epoch, ids); err != nil || q.state != used {
		return err
	}
	for _, id := range ids {
		q.pending[id] = change{}
	}
	q.noted()
	return nil
}

// noted follows on a change of pending. mu is held.
func (q *Queue) noted() {
	if len(q.pending) > q.local.Len()+maxBehind {
		q.leave(behind, nil)
	}
	q.kick()
}

// Pop implements storage.Queue.
func (q *Queue) Pop(ctx context.Context, epoch job.Epoch, now job.Instant, wants []job.LaneWant) ([]job.QueueEntry, error) {
	turn := q.turn.TryLock()
	if turn {
		defer q.turn.Unlock()
	}
	q.mu.Lock()
	entries, err := q.local.Pop(ctx, epoch, now, wants)
	if err != nil || len(entries) == 0 || q.state != used {
		q.mu.Unlock()
		return entries, err
	}
	if !turn || len(q.pending) > maxStep {
		for _, e := range entries {
			q.pending[e.RunID] = change{}
		}
		q.noted()
		q.mu.Unlock()
		return entries, nil
	}
	s := q.take()
	q.mu.Unlock()
	s.Pop = wants
	if err := q.step(ctx, epoch, now, s, entries); err != nil {
		return nil, err
	}
	return entries, nil
}

// take takes what is pending, up to what goes in one round trip. mu is held.
func (q *Queue) take() (s redis.Step) {
	for id, c := range q.pending {
		if len(s.Push)+len(s.Remove) == maxStep {
			break
		}
		if c.queued {
			s.Push = append(s.Push, c.entry)
		} else {
			s.Remove = append(s.Remove, id)
		}
		delete(q.pending, id)
	}
	return s
}

// step sends what was taken. It is an error only if a newer epoch stands in the remote queue. The turn is held.
func (q *Queue) step(ctx context.Context, epoch job.Epoch, now job.Instant, s redis.Step, foretold []job.QueueEntry) error {
	popped, left, err := q.remote.Step(context.WithoutCancel(ctx), epoch, now, s)
	switch {
	case err != nil:
		return q.failed(ctx, causeOf(err), err)
	case len(left) > 0 || !slices.Equal(popped, foretold):
		return q.failed(ctx, differs, job.Errorf(job.Unavailable, "queue_lost", "redis popped %d entries and left %d, memory popped %d and left none, or they are not the same", len(popped), len(left), len(foretold)))
	}
	return nil
}

// Lanes implements storage.Queue.
func (q *Queue) Lanes(ctx context.Context, now job.Instant) ([]job.LaneDepth, error) {
	return q.local.Lanes(ctx, now)
}

// Holds implements storage.Queue.
func (q *Queue) Holds(ctx context.Context, ids []job.RunID) ([]bool, error) {
	return q.local.Holds(ctx, ids)
}

// Reset implements storage.Queue.
func (q *Queue) Reset(ctx context.Context, epoch job.Epoch) error {
	q.turn.Lock()
	defer q.turn.Unlock()
	q.mu.Lock()
	err := q.local.Reset(ctx, epoch)
	using := q.state == used
	if err == nil && using {
		clear(q.pending)
	}
	q.mu.Unlock()
	if err != nil || !using {
		return err
	}
	if err := q.remote.Reset(context.WithoutCancel(ctx), epoch); err != nil {
		return q.failed(ctx, causeOf(err), err)
	}
	return nil
}
