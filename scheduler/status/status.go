// Package status tells a cache what runs, for readers on other nodes: the store learns of a run's end, and late or never of
// its beginning. Short attempts are over before anybody could look, so only those older than a second are told of.
//
// Nothing rests on the cache. What it does not take is counted and told again.
package status

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler/fleet"
	"github.com/musterhq/muster/scheduler/pace"
)

const (
	// Every is how often leases are looked at.
	Every = time.Second
	// After is how old a lease is before it is shown.
	After = time.Second
	// Again is when a row is put again. The cache keeps it for three times as long.
	Again = 10 * time.Second
	// batch bounds the rows of one call.
	batch = 500
)

// Cache is told.
type Cache interface {
	Put(ctx context.Context, runs []*job.Run) error
	Drop(ctx context.Context, ids []job.RunID) error
}

// Store has the rows of leases that an earlier leader gave.
type Store interface {
	Load(ctx context.Context, ids []job.RunID) ([]*job.Run, error)
}

// Keeper is one term's.
type Keeper struct {
	Cache Cache
	Store Store
	Fleet *fleet.Fleet
	Now   func() job.Instant
	Lost  func(n int) // counts runs that the cache was not told of; may be nil

	shown map[job.RunID]*shown
	step  job.Instant // of the last one

	mu    sync.Mutex
	known map[job.RunID]bool // runs that the cache was told of; guarded by mu
	ended []job.RunID        // of those, the ones that have ended; guarded by mu
	wake  chan struct{}
}

// Init must be called before any other method.
func (k *Keeper) Init() {
	k.shown, k.known, k.wake = map[job.RunID]*shown{}, map[job.RunID]bool{}, make(chan struct{}, 1)
}

type shown struct {
	row   *job.Run // as stored, where the lease has none
	fence job.Fence
	start job.Instant
	put   job.Instant // 0: not yet, or in vain
}

// Keeping is the part that tells.
func (k *Keeper) Keeping() *pace.Part {
	return &pace.Part{Name: "status", First: Every, Signals: [2]<-chan struct{}{k.wake}, Turn: func(ctx context.Context) (time.Duration, error) {
		k.DropEnded(ctx)
		passed := k.Now().Sub(k.step)
		if passed >= 0 && passed < Every {
			return Every - passed, nil
		}
		k.Step(ctx)
		return Every, nil
	}}
}

// Ended takes runs out of the cache at once that have ended: whoever waits for one should not be told for another second
// that it runs. Any goroutine may call it.
func (k *Keeper) Ended(runs []*job.Run) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.known) == 0 {
		return
	}
	for _, r := range runs {
		if k.known[r.ID] {
			k.ended = append(k.ended, r.ID)
		}
	}
	if len(k.ended) > 0 {
		select {
		case k.wake <- struct{}{}:
		default:
		}
	}
}

// DropEnded drops what Ended was told of.
func (k *Keeper) DropEnded(ctx context.Context) {
	k.mu.Lock()
	ended := k.ended
	k.ended = nil
	k.mu.Unlock()
	k.drop(ctx, ended)
}

func (k *Keeper) drop(ctx context.Context, ids []job.RunID) {
	for part := range slices.Chunk(ids, batch) {
		if err := k.Cache.Drop(ctx, part); err != nil {
			k.lost(len(part)) // the row outlives its lease, and counts for nobody
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, id := range ids {
		delete(k.known, id)
		delete(k.shown, id)
	}
}

// Step tells of what has begun, changed or ended.
func (k *Keeper) Step(ctx context.Context) {
	now := k.Now()
	k.step = now
	leases := k.Fleet.Leases()
	live := make(map[job.RunID]bool, len(leases))
	var put []*job.Run
	var unread []job.RunID
	for i := range leases {
		l := &leases[i]
		// The row of a run that is being stopped shows a cancel intent, which the lease's copy of it does not.
		if now.Sub(l.GrantedAt) < After || l.Stopping != job.NoReason {
			continue
		}
		live[l.RunID] = true
		s := k.shown[l.RunID]
		if s == nil || s.fence != l.Fence {
			s = &shown{fence: l.Fence}
			k.shown[l.RunID] = s
		}
		row := l.Run
		if row == nil {
			row = s.row
		}
		switch {
		case row == nil && len(unread) < batch:
			unread = append(unread, l.RunID)
		case row == nil:
		case s.put == 0, s.start != l.StartedAt, now.Sub(s.put) >= Again, now < s.put:
			s.put, s.start = now, l.StartedAt
			put = append(put, running(row, l))
		}
	}
	k.read(ctx, unread)
	k.mu.Lock()
	for _, r := range put { // before they are: one that ends meanwhile is dropped after that
		k.known[r.ID] = true
	}
	k.mu.Unlock()
	for part := range slices.Chunk(put, batch) {
		if err := k.Cache.Put(ctx, part); err != nil {
			k.lost(len(part))
			for _, r := range part {
				k.shown[r.ID].put = 0
			}
		}
	}
	var over []job.RunID
	for id := range k.shown {
		if !live[id] {
			over = append(over, id)
		}
	}
	slices.SortFunc(over, func(a, b job.RunID) int { return bytes.Compare(a[:], b[:]) })
	k.drop(ctx, over)
}

// read fetches rows that the leases do not have; they are put the next time.
func (k *Keeper) read(ctx context.Context, ids []job.RunID) {
	if len(ids) == 0 {
		return
	}
	runs, err := k.Store.Load(ctx, ids)
	if err != nil {
		return
	}
	for i, r := range runs {
		if r != nil && !r.State.Terminal() {
			k.shown[ids[i]].row = r
		}
	}
}

func (k *Keeper) lost(n int) {
	if k.Lost != nil {
		k.Lost(n)
	}
}

// running is a row as people see it while a lease of the run lives.
func running(r *job.Run, l *fleet.Lease) *job.Run {
	c := *r
	c.State, c.Reason, c.Attempt, c.Worker, c.Fence = job.Running, job.NoReason, l.Attempt, l.Worker, l.Fence
	c.FinishedAt, c.Error, c.ExitCode, c.Result = 0, "", 0, nil // an earlier attempt's
	if c.StartedAt = l.StartedAt; c.StartedAt == 0 {
		c.StartedAt = l.GrantedAt
	}
	return &c
}
