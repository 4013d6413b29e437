package app

import (
	"context"
	"time"

	"github.com/musterhq/muster/api"
	"github.com/musterhq/muster/cluster"
	"github.com/musterhq/muster/job"
)

// local is what this node answers to the others.
type local struct{ *node }

var _ cluster.Local = local{}

// Born implements cluster.Local.
func (l local) Born(entries []job.QueueEntry) {
	if t := l.term.Load(); t != nil {
		t.Queued(entries)
	}
}

// CancelRequested implements cluster.Local.
func (l local) CancelRequested(ids []job.RunID) {
	if t := l.term.Load(); t != nil {
		t.CancelRequested(ids)
	}
}

// SchedulesChanged implements cluster.Local.
func (l local) SchedulesChanged() {
	if t := l.term.Load(); t != nil {
		t.ScheduleChanged()
	}
}

// WorkersFlagged implements cluster.Local.
func (l local) WorkersFlagged() {
	if t := l.term.Load(); t != nil {
		t.WorkerFlagged()
	}
}

// Explain implements cluster.Local.
func (l local) Explain(ctx context.Context, r *job.Run) ([]string, error) {
	t := l.term.Load()
	if t == nil {
		return nil, errNoLeader
	}
	return t.Explain(ctx, r)
}

// Workers implements cluster.Local.
func (l local) Workers(context.Context) ([]job.Worker, error) {
	t := l.term.Load()
	if t == nil {
		return nil, errNoLeader
	}
	workers := t.Workers()
	addresses := map[string]string{} // gossip is a rumour, and good enough for this
	if g := l.gossip.Load(); g != nil {
		for _, m := range g.Members() {
			addresses[m.Name] = m.Address
		}
	}
	for i := range workers {
		workers[i].Address = addresses[workers[i].Name]
	}
	return workers, nil
}

// Output implements cluster.Local.
func (l local) Output(ctx context.Context, q cluster.OutputQuery, each func(cluster.OutputChunk) error) error {
	return ownOutput(ctx, l.output, api.OutputQuery(q), func(c api.OutputChunk) error { return each(cluster.OutputChunk(c)) })
}

// digestPatience is how long a replica may take to get to a checkpoint.
const digestPatience = 10 * time.Second

// Digest implements cluster.Local.
func (l local) Digest(ctx context.Context, index uint64) (none [32]byte, _ error) {
	ctx, cancel := context.WithTimeout(ctx, digestPatience)
	defer cancel()
	for {
		at, digest, ok := l.state.Checkpointed()
		switch {
		case ok && at == index:
			return digest()
		case ok && at > index:
			return none, job.Errorf(job.Conflict, "checkpoint_over", "the states are being compared by somebody else as well; try again")
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return none, job.Errorf(job.Unavailable, "behind", "the node has not applied the log up to %d in time", index)
		}
	}
}
