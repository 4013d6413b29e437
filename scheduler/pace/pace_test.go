package pace_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/scheduler/pace"
)

func TestAPartWaitsForItsTimeOrASignal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, signal := time.Now(), make(chan struct{}, 1)
		var turns []time.Duration
		enough := errors.New("enough")
		waits := []time.Duration{0, 3 * time.Second, pace.Forever, time.Hour}
		part := pace.Part{First: time.Second, Signals: [2]<-chan struct{}{nil, signal}, Turn: func(context.Context) (time.Duration, error) {
			turns = append(turns, time.Since(began))
			if len(turns) > len(waits) {
				return 0, enough
			}
			return waits[len(turns)-1], nil
		}}
		go func() {
			for range 2 {
				time.Sleep(10 * time.Second)
				signal <- struct{}{}
			}
		}()
		if err := part.Run(context.Background()); !errors.Is(err, enough) {
			t.Fatal(err)
		}
		want := []time.Duration{1, 1, 4, 10, 20}
		for i := range want {
			if i >= len(turns) || turns[i] != want[i]*time.Second {
				t.Fatalf("turns at %v, want %v seconds", turns, want)
			}
		}
	})
}

func TestAPartEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		part := pace.Part{Turn: func(context.Context) (time.Duration, error) { return pace.Forever, nil }}
		if err := part.Run(ctx); err != nil || ctx.Err() == nil {
			t.Fatal(err)
		}
		busy := pace.Part{Turn: func(context.Context) (time.Duration, error) { return 0, nil }}
		if err := busy.Run(ctx); err != nil { // which would never end by itself
			t.Fatal(err)
		}
	})
}
