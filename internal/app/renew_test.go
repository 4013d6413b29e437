package app

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A flood of strangers costs one call at a time, and nobody is answered by a call that began before he asked.
func TestRenewalsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r renewals
		began := []time.Time{}
		renew := func(context.Context) error {
			began = append(began, time.Now())
			time.Sleep(time.Second)
			return nil
		}
		var all sync.WaitGroup
		for i := range 1000 {
			all.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond)
				asked := time.Now()
				if err := r.do(t.Context(), renew); err != nil {
					t.Error(err)
				}
				if last := time.Since(asked); last > 2*time.Second {
					t.Errorf("number %d waited for %s", i, last)
				}
			})
		}
		all.Wait()
		if len(began) != 2 {
			t.Errorf("%d calls", len(began))
		}
		// One that fails is nobody else's answer, and patience ends.
		failed := errors.New("cut off")
		if err := r.do(t.Context(), func(context.Context) error { return failed }); !errors.Is(err, failed) {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		hold, held := make(chan struct{}), make(chan struct{})
		all.Go(func() { _ = r.do(t.Context(), func(context.Context) error { close(held); <-hold; return nil }) })
		<-held
		if err := r.do(ctx, renew); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		close(hold)
		all.Wait()
	})
}
