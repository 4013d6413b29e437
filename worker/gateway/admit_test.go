package gateway_test

import (
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker/gateway"
	"github.com/musterhq/muster/worker/workerpb"
)

// Who may have no stream takes nobody's place, by whatever silence, and is told so before saying a word.
func TestStrangersTakeNoStreams(t *testing.T) {
	t.Parallel()
	var admitted, left atomic.Int32
	var open atomic.Bool
	f := newFixture(t, false, func(c *gateway.Config) {
		c.MaxStreams = 2
		c.Admit = func(*http.Request) (func(), error) {
			if !open.Load() {
				return nil, job.Errorf(job.Unauthenticated, "no_certificate", "show a certificate")
			}
			admitted.Add(1)
			return sync.OnceFunc(func() { left.Add(1) }), nil
		}
	})
	for range 8 {
		w := f.raw(t, "stranger")
		if err := w.rpc.Send(nil); err != nil { // the request's head, and no message
			t.Fatal(err)
		}
		m := w.until("a refusal", func(m *workerpb.NodeMessage) bool { return m.Welcome != nil })
		if m.Welcome.GetStatus() != workerpb.Welcome_STATUS_REFUSED || m.Welcome.GetCode() != string(job.Unauthenticated) {
			t.Fatalf("welcome %v", m.Welcome)
		}
	}
	if n := f.gateway.Streams(); n != 0 {
		t.Errorf("strangers have %d streams", n)
	}
	open.Store(true)
	w := f.raw(t, "w1").attach()
	if err := w.rpc.CloseRequest(); err != nil {
		t.Fatal(err)
	}
	f.leader.await(t, "it is detached", func() bool { return len(f.leader.detached) == 1 })
	for end := time.Now().Add(30 * time.Second); left.Load() != admitted.Load() || left.Load() != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d admitted, %d left", admitted.Load(), left.Load())
		}
	}
}
