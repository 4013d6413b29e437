package cluster

import (
	"context"
	"sync"
	"time"

	"github.com/musterhq/muster/cluster/clusterpb"
	"github.com/musterhq/muster/job"
)

// hinter takes hints to whoever leads. They hurry what the leader finds by itself (Q1), so they are dropped rather than
// waited for.
type hinter struct {
	peers *Peers
	wake  chan struct{}

	mu    sync.Mutex
	queue hints
}

// hints are what gathered since the last call.
type hints struct {
	born               []job.QueueEntry
	cancels            []job.RunID
	schedules, workers bool
}

// What a call may carry; what is more is dropped.
const (
	maxHintedBirths  = 10_000
	maxHintedCancels = 10_000
	hintTimeout      = 2 * time.Second
	hintTries        = 2
)

func newHinter(p *Peers) *hinter { return &hinter{peers: p, wake: make(chan struct{}, 1)} }

func (h *hinter) add(change func(*hints)) {
	h.mu.Lock()
	change(&h.queue)
	dropped := max(0, len(h.queue.born)-maxHintedBirths) + max(0, len(h.queue.cancels)-maxHintedCancels)
	h.queue.born = h.queue.born[:min(len(h.queue.born), maxHintedBirths)]
	h.queue.cancels = h.queue.cancels[:min(len(h.queue.cancels), maxHintedCancels)]
	h.mu.Unlock()
	h.peers.node.metrics.hintsLost.Add(float64(dropped))
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *hinter) run(ctx context.Context) {
	for {
		select {
		case <-h.wake:
		case <-ctx.Done():
			return
		}
		h.mu.Lock()
		batch := h.queue
		h.queue = hints{}
		h.mu.Unlock()
		h.send(ctx, batch)
	}
}

func (h *hinter) send(ctx context.Context, batch hints) {
	m := &clusterpb.HintRequest{Schedules: batch.schedules, Workers: batch.workers}
	for _, e := range batch.born {
		m.Births = append(m.Births, &clusterpb.Birth{Run: e.RunID[:], Lane: string(e.Lane), Priority: uint32(e.Priority), ReadyAt: int64(e.ReadyAt)})
	}
	for _, id := range batch.cancels {
		m.Cancels = append(m.Cancels, id[:])
	}
	for range hintTries {
		if h.peers.node.Leading() {
			if l, err := h.peers.self(); err == nil && takeHints(l, m) == nil {
				return
			}
		} else if address, err := h.peers.leader(); err == nil {
			call, cancel := context.WithTimeout(ctx, hintTimeout)
			_, err := h.peers.at(address).Hint(call, request(m))
			cancel()
			if err == nil {
				return
			}
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
	h.peers.node.metrics.hintsLost.Add(float64(len(batch.born) + len(batch.cancels)))
}

// takeHints hands over what another node hinted.
func takeHints(l Local, m *clusterpb.HintRequest) error {
	born := make([]job.QueueEntry, len(m.Births))
	for i, b := range m.Births {
		born[i] = job.QueueEntry{Lane: job.LaneKey(b.Lane), Priority: uint8(min(b.Priority, 9)), ReadyAt: job.Instant(b.ReadyAt)}
		if copy(born[i].RunID[:], b.Run) != len(born[i].RunID) {
			return job.InvalidField("births", "it is no id of a run")
		}
	}
	cancels := make([]job.RunID, len(m.Cancels))
	for i, id := range m.Cancels {
		if copy(cancels[i][:], id) != len(cancels[i]) {
			return job.InvalidField("cancels", "it is no id of a run")
		}
	}
	if len(born) > 0 {
		l.Born(born)
	}
	if len(cancels) > 0 {
		l.CancelRequested(cancels)
	}
	if m.Schedules {
		l.SchedulesChanged()
	}
	if m.Workers {
		l.WorkersFlagged()
	}
	return nil
}
