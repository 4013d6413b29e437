package worker

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

func TestTheNextNodeIsAnotherOneThatHasNotFailed(t *testing.T) {
	t.Parallel()
	r := newRoster([]string{"a", "b", "c"})
	for range 100 {
		last := r.last
		if r.next(0) == last {
			t.Fatal("the same node twice in a row")
		}
	}
	r.fail("a", 0)
	seen := map[string]bool{}
	for range 100 {
		seen[r.next(time.Second)] = true
	}
	if seen["a"] || !seen["b"] || !seen["c"] {
		t.Errorf("chosen: %v", seen)
	}
	if r.exhausted() || !r.fail("b", time.Second) || r.fail("c", 2*time.Second) || !r.exhausted() {
		t.Error("the last good node was not the last")
	}
	if r.last = "c"; r.next(3*time.Second) != "a" {
		t.Errorf("of failed nodes %q was chosen, want the one that failed first", r.last)
	}
	r.serves("a")
	if r.exhausted() {
		t.Error("one serves")
	}
	if r.last = ""; r.next(time.Minute) == "" {
		t.Error("none was chosen")
	}
	if !r.replace([]string{"http://d", "nonsense"}) || r.next(0) != "http://d" || r.next(0) != "http://d" {
		t.Errorf("after a refresh: %q", r.last)
	}
	if r.replace(nil) || r.replace([]string{"nonsense"}) || r.next(0) != "http://d" {
		t.Error("an empty answer counts")
	}
}

// A node that takes connections and then says nothing, in clear text or in the middle of a handshake, is given up. The
// addresses are asked for again, and again.
func TestANodeThatNeverAnswersIsGivenUp(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	t.Parallel()
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			var silent [2]net.Listener
			var accepted [2]atomic.Int32
			for i := range silent {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				silent[i] = l
				done := make(chan struct{})
				go func() {
					defer close(done)
					var conns []net.Conn
					for {
						c, err := l.Accept()
						if err != nil {
							break
						}
						accepted[i].Add(1)
						conns = append(conns, c)
					}
					for _, c := range conns {
						c.Close()
					}
				}()
				defer func() { l.Close(); <-done }()
			}
			asked := make(chan struct{}, 16)
			h := &Handlers{}
			Register(h, "x", func(context.Context, struct{}) (struct{}, error) { return struct{}{}, nil })
			a, err := New(Config{Name: "w", DataDir: t.TempDir(), Addresses: []string{scheme + "://" + silent[0].Addr().String()}, Handlers: h,
				TLS: &tls.Config{InsecureSkipVerify: true}, DrainTimeout: -1,
				Refresh: func(context.Context) ([]string, error) {
					asked <- struct{}{}
					return []string{scheme + "://" + silent[1].Addr().String()}, errors.New("both count")
				}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			began := time.Now()
			go func() { ended <- a.Run(ctx) }()
			<-asked
			if d := time.Since(began); d > job.HeartbeatLost+3*time.Second {
				t.Errorf("given up after %v", d)
			}
			for accepted[1].Load() == 0 {
				time.Sleep(10 * time.Millisecond)
			}
			cancel()
			began = time.Now()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if d := time.Since(began); d > 5*time.Second {
				t.Errorf("it took %v to stop", d)
			}
		})
	}
}
