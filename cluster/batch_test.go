package cluster

import (
	"context"
	"testing"

	"github.com/musterhq/muster/fsm"
)

// TestWithdrawnLeaveTheQueue: while nothing leaves the queue, callers who give up leave nothing behind in it.
func TestWithdrawnLeaveTheQueue(t *testing.T) {
	cfg := Config{}
	cfg.setDefaults()
	b := newBatcher(&cfg, 1)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	stays := &proposal{commands: []fsm.Command{&fsm.Checkpoint{}}, done: make(chan struct{})}
	if err := b.enqueue(stays); err != nil {
		t.Fatal(err)
	}
	for range 10_000 {
		_, _ = b.propose(gone, []fsm.Command{&fsm.Checkpoint{}})
	}
	if n := len(b.queue); n > 200 {
		t.Errorf("%d places are held by callers who are gone", n)
	}
	if batch, _ := b.take(); len(batch) != 1 || batch[0] != stays || b.gone != 0 || b.commands != 0 {
		t.Errorf("%d proposals, %d gone, %d commands", len(batch), b.gone, b.commands)
	}
}
