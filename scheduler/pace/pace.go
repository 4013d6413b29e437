// Package pace is how the parts of a term wait: between their turns, and in the middle of one. Everything that blocks for
// a reason other than a mutex goes through here, so that the simulation, where all parts are one goroutine, can let others
// go on meanwhile.
package pace

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Pace waits within a turn.
type Pace interface {
	// Sleep returns after d, or when ctx ends.
	Sleep(ctx context.Context, d time.Duration)
	// Take puts a token into a channel with a buffer of one, as soon as there is room. Whoever holds it may propose to Raft
	// meanwhile, which takes long: it is no mutex.
	Take(token chan struct{})
	// Each calls do with 0 to n-1, some of them at once, and returns when all have. It is for reads that wait for a store.
	Each(n int, do func(i int))
}

// Real waits in real time.
type Real struct{}

// Sleep implements Pace.
func (Real) Sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// Take implements Pace.
func (Real) Take(token chan struct{}) { token <- struct{}{} }

// atOnce is how many calls of Each are under way: more would keep others from the store.
const atOnce = 8

// Each implements Pace.
func (Real) Each(n int, do func(i int)) {
	var next atomic.Int64
	var all sync.WaitGroup
	for range min(n, atOnce) {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				do(i)
			}
		})
	}
	all.Wait()
}

// Forever is the wait of a part that only a signal wakes.
const Forever = time.Duration(-1)

// Part is one of the loops that a term is made of. It has its turns one after the other until ctx ends or one fails.
type Part struct {
	Name string
	// Turn does what there is to do and answers how long to wait for the next turn unless a signal comes: 0 is at once,
	// Forever until a signal comes. Its error ends the term.
	Turn func(ctx context.Context) (wait time.Duration, err error)
	// Signals cut a wait short. Each has a buffer of one. Nil ones never come.
	Signals [2]<-chan struct{}
	// First is the wait before the first turn.
	First time.Duration
}

// Run gives a part its turns.
func (p *Part) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for wait := p.First; ; {
		if wait != 0 {
			timeout := timer.C
			if wait == Forever {
				timeout = nil
			} else {
				timer.Reset(wait)
			}
			select {
			case <-ctx.Done():
			case <-p.Signals[0]:
			case <-p.Signals[1]:
			case <-timeout:
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		var err error
		if wait, err = p.Turn(ctx); err != nil {
			return err
		}
	}
}
