package cluster

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

func TestMedianClock(t *testing.T) {
	for _, c := range []struct {
		name     string
		shown    []int64
		believed int64
		want     int64
	}{
		{"one", []int64{7}, 9, 7},
		{"of two the earlier", []int64{9, 3}, noBelief, 3},
		{"of two what is believed", []int64{9, 3}, 8, 8},
		{"of two the nearer to it, ahead", []int64{9, 3}, 100, 9},
		{"of two the nearer to it, behind", []int64{9, 3}, 1, 3},
		{"of three the middle", []int64{1 << 60, 5, -4}, 100, 5},
		{"of four the earlier of the middle ones", []int64{40, 10, 30, 20}, noBelief, 20},
		{"of five", []int64{5, 1, 4, 2, 3}, 5, 3},
		{"equal ones", []int64{2, 2, 9}, 9, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, ok := medianClock(c.shown, c.believed); !ok || got != c.want {
				t.Errorf("%d %v, want %d", got, ok, c.want)
			}
		})
	}
	if _, ok := medianClock(nil, noBelief); ok {
		t.Error("the median of nothing")
	}
}

// TestRemoteClock: what a node's clock shows is known as exactly as the quickest call tells, and a clock that is set is
// seen whole at the next reading.
func TestRemoteClock(t *testing.T) {
	const ms = int64(time.Millisecond)
	rnd := rand.New(rand.NewPCG(1, 2))
	truth := struct{ axis, origin int64 }{axis: 123_456 * ms, origin: 9_000_000 * ms} // of the other
	var r remoteClock
	best := int64(1 << 62)
	for i := range int64(20) {
		sent := 1_000*ms + i*1_000*ms
		out, back := (1+rnd.Int64N(40))*ms, (1+rnd.Int64N(40))*ms
		best = min(best, out+back)
		elapsed := sent + out - truth.axis
		r = r.with(reading{life: "a", wall: truth.origin + elapsed, elapsed: elapsed, sent: sent, received: sent + out + back})
		if off := r.axis - truth.axis; off > best/2 || off < -best/2 {
			t.Fatalf("after %d readings off by %d ms, the quickest took %d ms", i+1, off/ms, best/ms)
		}
		if r.origin != truth.origin || r.here() != r.origin-r.axis || r.there(5) != 5+r.axis {
			t.Fatalf("%+v", r)
		}
	}
	at := r.readAt + 1000*ms
	set := r.with(reading{life: "a", wall: truth.origin + 3_600_000*ms + at - truth.axis, elapsed: at - truth.axis, sent: at - 50*ms, received: at + 50*ms})
	if set.here()-r.here() != 3_600_000*ms {
		t.Errorf("a clock that was set by an hour moved by %d ms", (set.here()-r.here())/ms)
	}
	slept := r.with(reading{life: "a", wall: at, elapsed: at - truth.axis - 60_000*ms, sent: at - 50*ms, received: at + 50*ms})
	if d := slept.axis - r.axis; d < 59_000*ms || d > 61_000*ms {
		t.Errorf("a machine that slept for a minute: %d ms", d/ms)
	}
	again := r.with(reading{life: "b", elapsed: 5 * ms, sent: at - 50*ms, received: at + 50*ms})
	if again.axis != at-5*ms || again.life != "b" {
		t.Errorf("another life: %+v", again)
	}
	if !again.fresh(at+1000*ms) || again.fresh(at+int64(clockStale)+50*ms) || (remoteClock{}).fresh(0) {
		t.Error("fresh")
	}
}

func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		skew := time.Duration(0)
		c := NewClock(func() time.Time { return time.Now().Round(0).Add(skew) })
		start := time.Now()
		is := func(want time.Duration) {
			t.Helper()
			if got := c.Now().Sub(time.Now().Round(0)); got != want {
				t.Errorf("ahead by %s, want %s", got, want)
			}
		}
		skew = time.Hour
		is(time.Hour) // alone it is the machine's clock
		skew = 0
		c.follow(start.UnixNano() + int64(clockJitter) - 1)
		is(0) // that is jitter
		skew = time.Hour
		is(0) // what is followed does not jump with the machine
		if c.Offset() != time.Hour {
			t.Error(c.Offset())
		}
		time.Sleep(time.Minute)
		c.follow(start.UnixNano() - int64(time.Second))
		is(-time.Second)
		c.follow(start.UnixNano() - int64(time.Second) + int64(clockJitter) - 1)
		is(-time.Second)
		c.follow(start.UnixNano() + int64(time.Second))
		is(time.Second)
		c.alone()
		is(time.Hour)
	})
}

// TestSlowReading: a first call that was held up for a second one way shows no difference of half a second.
func TestSlowReading(t *testing.T) {
	const ms = int64(time.Millisecond)
	r := remoteClock{}.with(reading{life: "a", wall: 5_000 * ms, elapsed: 4_000 * ms, sent: 4_000 * ms, received: 5_000 * ms}) // read at 4,000 of both
	if r.here() == 1_000*ms || r.hereNear(1_000*ms) != 1_000*ms {
		t.Errorf("the two clocks agree: %d %d", r.here()/ms, r.hereNear(1_000*ms)/ms)
	}
	if r.thereNear(1_000*ms) != 1_000*ms {
		t.Errorf("and the other is told %d", r.thereNear(1_000*ms)/ms)
	}
	if far := int64(time.Hour); r.hereNear(far) != r.here()+500*ms || r.thereNear(far) != r.there(far)-500*ms {
		t.Error("a difference beyond the doubt is not followed")
	}
}
