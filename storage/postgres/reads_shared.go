package postgres

import (
	"context"
	"sync"
)

// sharedReads lets callers who ask for the same thing at the same time share one read: a busy job's definition is looked up
// for each submission. Nobody is answered by a read that began before he asked, so whatever was written before is seen.
type sharedReads[K comparable, V any] struct {
	mu      sync.Mutex
	running map[K]*sharedRead[V] // guarded by mu
}

type sharedRead[V any] struct {
	next  *sharedRead[V] // for who asks while this one runs; guarded by sharedReads.mu
	done  chan struct{}
	value V
	err   error
}

// do answers what read does. The context of the caller ends his own wait alone.
func (s *sharedReads[K, V]) do(ctx context.Context, key K, read func(ctx context.Context) (V, error)) (V, error) {
	s.mu.Lock()
	mine := &sharedRead[V]{done: make(chan struct{})}
	switch running := s.running[key]; {
	case running == nil:
		if s.running == nil {
			s.running = map[K]*sharedRead[V]{}
		}
		s.running[key] = mine
		go s.run(context.WithoutCancel(ctx), key, mine, read)
	case running.next == nil:
		running.next = mine
	default:
		mine = running.next
	}
	s.mu.Unlock()
	select {
	case <-mine.done:
		return mine.value, mine.err
	case <-ctx.Done():
		var none V
		return none, mapError(ctx.Err())
	}
}

// run reads until nobody has asked meanwhile.
func (s *sharedReads[K, V]) run(ctx context.Context, key K, r *sharedRead[V], read func(ctx context.Context) (V, error)) {
	for r != nil {
		r.value, r.err = read(ctx)
		s.mu.Lock()
		next := r.next
		if next == nil {
			delete(s.running, key)
		} else {
			s.running[key] = next
		}
		s.mu.Unlock()
		close(r.done)
		r = next
	}
}
