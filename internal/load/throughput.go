package load

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

func batches(ctx context.Context, b *bench) error {
	return throughput(ctx, b, b.Runs, b.Connections, b.Batch)
}

func singles(ctx context.Context, b *bench) error {
	return throughput(ctx, b, b.SingleRuns, b.Singles, 1)
}

// throughput submits runs as fast as they are accepted and waits until all have succeeded.
func throughput(ctx context.Context, b *bench, runs, connections, size int) error {
	r, err := b.open(ctx)
	if err != nil {
		return err
	}
	defer r.close()
	name, err := r.plainJob(ctx)
	if err != nil {
		return err
	}
	// The first runs open connections, and fill caches that stay filled.
	warm := r.submitter(name)
	if err := warm.flood(ctx, max(size, runs/50), connections, size); err != nil {
		return err
	}
	if _, err := r.settled(ctx, warm, max(size, runs/50), 0, 0); err != nil {
		return err
	}
	r.say("%d runs from %d connections, %d a request", runs, connections, size)
	s := r.submitter(name)
	from := r.seen.count()
	before, err := r.succeededBefore(ctx)
	if err != nil {
		return err
	}
	c := r.costs(ctx)
	return b.profiled(ctx, b.name, func() error {
		begin := time.Now()
		if err := s.flood(ctx, runs, connections, size); err != nil {
			return err
		}
		b.set("accepted", "runs/s", float64(runs)/time.Since(begin).Seconds())
		done, err := r.settled(ctx, s, runs, from, before)
		if err != nil {
			return err
		}
		b.headline("succeeded", "runs/s", float64(runs)/done.Sub(begin).Seconds())
		r.charge(ctx, "", c, runs)
		return r.audit(ctx, s, name, runs, from)
	}, r.node, r.worker)
}

// flood submits runs from several connections, each with one request at a time.
func (s *submitter) flood(ctx context.Context, runs, connections, size int) error {
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range connections {
		g.Go(func() error {
			for {
				n := int(next.Add(int64(size))) - size
				var err error
				switch {
				case n >= runs:
					return nil
				case size == 1:
					err = s.one(ctx, n)
				default:
					err = s.batch(ctx, n, min(n+size, runs))
				}
				if err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

const succeededMetric = `muster_runs_settled_total{reason="",state="succeeded"}`

// succeeded is how many runs the node counts as such.
func (r *rig) succeeded(ctx context.Context) (int, error) {
	m, err := r.metrics(ctx)
	return int(m[succeededMetric]), err
}

// succeededBefore is that of a node of our own, and of no meaning where others' runs count too.
func (r *rig) succeededBefore(ctx context.Context) (int, error) {
	if r.node == nil {
		return 0, nil
	}
	return r.succeeded(ctx)
}

// patience is how long nothing may move before what is missing counts as lost.
const patience = 20 * time.Second

// settled waits until the handler was called for all runs, and then until the node counts them as succeeded. It answers
// when that was. If nothing moves any more it answers too: audit says what is missing.
func (r *rig) settled(ctx context.Context, s *submitter, runs, from, before int) (time.Time, error) {
	if r.node == nil {
		return r.settledThere(ctx, s.job, runs, from)
	}
	moved, last := time.Now(), -1
	for {
		if err := r.node.alive(); err != nil {
			return moved, err
		}
		n := r.seen.count() - from
		if n >= runs { // asking the node costs it something: only at the end
			done, err := r.succeeded(ctx)
			if err != nil {
				return moved, err
			}
			if done-before >= runs {
				return time.Now(), nil
			}
			n += done
		}
		if n != last {
			moved, last = time.Now(), n
		}
		if time.Since(moved) > patience {
			return moved, nil
		}
		select {
		case <-ctx.Done():
			return moved, ctx.Err()
		case <-time.After(3 * time.Millisecond):
		}
	}
}

// audit counts exactly: each run has one start in the handler's own record, and the API knows none that is not a success.
func (r *rig) audit(ctx context.Context, s *submitter, name string, runs, from int) error {
	starts := make([]uint8, runs)
	strangers := 0
	for _, x := range r.seen.since(from) {
		if n, ok := s.ids.number(x.run); ok && n < runs {
			starts[n]++
		} else {
			strangers++
		}
	}
	lost, doubled := 0, 0
	for _, n := range starts {
		switch {
		case n == 0:
			lost++
		case n > 1:
			doubled++
		}
	}
	unwell, example := 0, ""
	filter := client.RunFilter{Job: name, States: []job.State{job.Waiting, job.Held, job.Scheduled, job.Queued, job.Running, job.Failed, job.Cancelled, job.Skipped}}
	for run, err := range r.api.Runs(ctx, filter) {
		if err != nil {
			return err
		}
		if unwell++; unwell == 1 {
			example = fmt.Sprintf(" (one is %s: %s %s, attempt %d)", run.ID, run.State, run.Reason, run.Attempt)
		}
	}
	r.set("runs never started", "runs", float64(lost))
	r.set("runs started twice", "runs", float64(doubled))
	r.set("runs not succeeded", "runs", float64(unwell))
	if lost+doubled+unwell+strangers > 0 {
		r.warn("%d runs never started, %d started twice, %d did not succeed%s, %d starts of other runs", lost, doubled, unwell, example, strangers)
	}
	return nil
}
