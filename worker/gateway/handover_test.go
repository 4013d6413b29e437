package gateway_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/worker/workerpb"
)

// A worker may say Hello while results of its earlier session are on their way to the leader: one that stops does. What
// comes late of that session concerns nobody, and least of all the other workers of the node.
func TestResultsThatAHelloOvertakesDoNotEndTheLink(t *testing.T) {
	inNodes(t, func(t *testing.T) {
		c := newNodes(t, true, -1, "n1", "n2")
		l := c.elect(t, "n1")
		c.address = c.byName["n2"].address
		time.Sleep(time.Second) // for the link
		results := func(n int) *workerpb.WorkerMessage {
			m := &workerpb.WorkerMessage{}
			for range n {
				a := c.grant("quick")
				m.Results = append(m.Results, &workerpb.Result{RunId: a.RunID[:], Fence: uint64(a.Fence), Attempt: 1, Kind: workerpb.Kind_KIND_SUCCEEDED, FinishedAt: 1})
			}
			return m
		}
		thaw := make(chan struct{})
		l.tell(func() { l.block = thaw })
		for i := range 2 { // the leader takes nothing: these use up the window of the link
			w := c.rawOver(t, fmt.Sprintf("full%d", i), c.gated(newGate(), false)).attach()
			for range 8 {
				w.send(results(1024))
			}
		}
		w := c.rawOver(t, "w", c.gated(newGate(), false)).attach()
		synctest.Wait()
		w.send(results(1))
		synctest.Wait()
		w.send(w.hello(1 << 63))
		w.until("a welcome", func(m *workerpb.NodeMessage) bool { return m.Welcome.GetResync() == 1<<63 })
		synctest.Wait()
		close(thaw)
		synctest.Wait()
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.detached) != 1 || len(l.workers) != 3 {
			t.Errorf("sessions %v were detached, workers %v are attached", l.detached, l.workers)
		}
		if len(l.outcomes) != 16384 {
			t.Errorf("the leader has %d results", len(l.outcomes))
		}
	})
}
