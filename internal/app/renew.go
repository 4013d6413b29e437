package app

import (
	"context"
	"sync"
	"time"
)

// renewPatience is how long whoever shows a credential that this node does not know waits until it is denied, or not.
const renewPatience = 2 * time.Second

// renewCredentials makes this node as new as the cluster was when it was called. Strangers can have it called, so there is
// one call under way at a time, and whoever comes meanwhile shares the next.
func (n *node) renewCredentials(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, renewPatience)
	defer cancel()
	return n.renewing.do(ctx, func(ctx context.Context) error {
		if !n.started.Load() {
			return errStarting
		}
		return n.raft.CatchUp(ctx)
	})
}

// renewals are one after the other. One that began after somebody asked, and went well, is good for him.
type renewals struct {
	once  sync.Once
	turn  chan struct{}
	mu    sync.Mutex
	begun uint64 // how many have begun
	good  uint64 // the last that went well
}

func (r *renewals) do(ctx context.Context, renew func(context.Context) error) error {
	r.once.Do(func() { r.turn = make(chan struct{}, 1) })
	r.mu.Lock()
	asked := r.begun
	r.mu.Unlock()
	select {
	case r.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-r.turn }()
	r.mu.Lock()
	if r.good > asked {
		r.mu.Unlock()
		return nil
	}
	r.begun++
	this := r.begun
	r.mu.Unlock()
	err := renew(ctx)
	if err == nil {
		r.mu.Lock()
		r.good = this
		r.mu.Unlock()
	}
	return err
}
