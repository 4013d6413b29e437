package load

import (
	"context"
	"time"
)

// drain measures how fast a backlog is worked off: all runs are there before the worker is, so nothing that is measured
// waits for a submission. The clock runs from the first call of the handler.
func drain(ctx context.Context, b *bench) error {
	r, err := b.openNode(ctx)
	if err != nil {
		return err
	}
	defer r.close()
	name, err := r.plainJob(ctx)
	if err != nil {
		return err
	}
	s, runs := r.submitter(name), b.DrainRuns
	r.say("%d runs wait", runs)
	begin := time.Now()
	if err := s.flood(ctx, runs, b.Connections, b.Batch); err != nil {
		return err
	}
	b.set("accepted", "runs/s", float64(runs)/time.Since(begin).Seconds())
	c := r.costs(ctx)
	return b.profiled(ctx, b.name, func() error {
		if err := r.hire(ctx); err != nil {
			return err
		}
		done, err := r.settled(ctx, s, runs, 0, 0)
		if err != nil {
			return err
		}
		if starts := r.seen.since(0); len(starts) > 0 {
			first := starts[0].at
			for _, x := range starts {
				first = min(first, x.at)
			}
			b.headline("succeeded", "runs/s", float64(runs)/done.Sub(time.Unix(0, first)).Seconds())
		}
		r.charge(ctx, "", c, runs)
		return r.audit(ctx, s, name, runs, 0)
	}, r.node)
}
