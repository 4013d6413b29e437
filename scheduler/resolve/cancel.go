package resolve

import (
	"bytes"
	"context"
	"slices"

	"github.com/musterhq/muster/job"
)

// cancelTask cancels what is below a task run that is running without a lease: its child, or its items.
func (r *Resolver) cancelTask(x *job.Run) {
	o := r.roots[x.RootID]
	if o == nil {
		return
	}
	if c := r.parents[x.ID]; c != nil {
		if c.task.CancelAt == 0 {
			n := *c.task
			n.CancelAt, n.CancelReason = x.CancelAt, x.CancelReason
			c.task = &n
		}
		r.stopping = append(r.stopping, c.id)
		return
	}
	o.g.Note(x)
	r.touch(o)
	if len(o.births) > 0 { // perhaps of this task: what is not there cannot be cancelled yet
		r.Adopt(x)
	}
	r.stopping = append(r.stopping, o.g.LiveItems(x.Task)...)
}

// cancel gives what is below cancelled roots and tasks cancel intents (T6), and has it stopped.
func (r *Resolver) cancel(ctx context.Context) error {
	ids := r.stopping
	for _, o := range r.cancels {
		ids = append(ids, o.g.Live()...)
	}
	if len(ids) == 0 {
		r.cancels = nil
		return nil
	}
	slices.SortFunc(ids, func(a, b job.RunID) int { return bytes.Compare(a[:], b[:]) })
	ids = slices.Compact(ids)
	now := r.Now()
	intents := make([]job.CancelIntent, len(ids))
	for i, id := range ids {
		intents[i] = job.CancelIntent{ID: id, At: now}
	}
	for i := 0; i < len(intents); i += maxStep {
		some := intents[i:min(i+maxStep, len(intents))]
		if err := r.persist(ctx, func() error { _, err := r.Store.Cancel(ctx, some); return err }); err != nil {
			return err
		}
	}
	r.cancels, r.stopping = nil, nil
	r.Stop(ctx, job.CancelRequested, ids...)
	return nil
}

// look asks the store about task runs that nobody has heard of for long, and about children: their news may be lost.
func (r *Resolver) look(ctx context.Context) error {
	now := r.Now()
	if now.Sub(r.looked) < lookEvery || len(r.roots) == 0 {
		return nil
	}
	r.looked = now
	var old []*root
	for _, o := range r.roots {
		if now.Sub(o.news) >= quiet {
			old = append(old, o)
		}
	}
	if len(old) == 0 {
		return nil
	}
	slices.SortFunc(old, func(a, b *root) int { return bytes.Compare(a.row.ID[:], b.row.ID[:]) })
	var ids []job.RunID
	for n := 0; n < len(old) && len(ids) < lookRows; n++ {
		o := old[r.lookedAt%len(old)]
		r.lookedAt++
		live := o.g.Live()
		if len(live) > lookRows {
			o.lookedAt %= len(live)
			live = append(live[o.lookedAt:], live[:o.lookedAt]...)[:lookRows]
			o.lookedAt += lookRows
		}
		ids = append(append(ids, o.row.ID), live...)
		for _, id := range live {
			if c := r.parents[id]; c != nil {
				ids = append(ids, c.id)
			}
		}
	}
	rows, err := r.load(ctx, ids)
	if err != nil {
		return err
	}
	var over, stop []*job.Run
	for _, id := range ids {
		switch x := rows[id]; {
		case x == nil:
		case x.State.Terminal():
			over = append(over, x)
		case x.CancelAt != 0 && x.State == job.Running && x.LaneKey().OnLeader():
			stop = append(stop, x)
		}
	}
	if len(over) > 0 {
		r.Ended(over)
	}
	if len(stop) > 0 {
		r.Adopt(stop...)
	}
	return nil
}
