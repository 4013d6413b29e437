package scheduler_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/clustertest"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
)

// slow is a store that is a network away.
type slow struct {
	scheduler.Store
	latency time.Duration
}

func (s slow) Load(ctx context.Context, ids []job.RunID) ([]*job.Run, error) {
	time.Sleep(s.latency)
	return s.Store.Load(ctx, ids)
}

func (s slow) Move(ctx context.Context, epoch job.Epoch, moves []job.Move) ([]job.Moved, error) {
	time.Sleep(s.latency)
	return s.Store.Move(ctx, epoch, moves)
}

// BenchmarkSlowStore runs a backlog, from the hints to the last end, over a store whose answers take a while: batches
// must make up for it, in the dispatcher and in the settler.
func BenchmarkSlowStore(b *testing.B) {
	for _, latency := range []time.Duration{0, 5 * time.Millisecond} {
		b.Run(fmt.Sprint(latency), func(b *testing.B) {
			c := clustertest.New(b)
			c.Configure = func(x *scheduler.Config) { x.Store = slow{x.Store, latency} }
			c.Lead()
			for i := range 8 {
				c.Workers.Add(worker(fmt.Sprint("w", i), 1000), func(context.Context, *job.Assignment) job.Outcome {
					return job.Outcome{Kind: job.AttemptSucceeded}
				})
			}
			defer c.Workers.KillAll()
			defer c.Depose()
			spec := c.Spec(plain)
			const runs = 20_000
			for b.Loop() {
				b.StopTimer()
				batch := make([]*job.Run, runs)
				for i := range batch {
					r, err := job.Birth(&job.Submission{ID: c.NewID(), Namespace: "default", Spec: spec}, nil, job.At(time.Now()))
					if err != nil {
						b.Fatal(err)
					}
					r.Home, batch[i] = job.HomeQuorum, r
				}
				for i := 0; i < runs; i += 1000 {
					if _, err := c.Store.Submit(context.Background(), batch[i:i+1000]); err != nil {
						b.Fatal(err)
					}
				}
				before := c.Workers.Acknowledged()
				b.StartTimer()
				c.Term().Born(batch)
				for c.Workers.Acknowledged() < before+runs {
					time.Sleep(time.Millisecond)
				}
			}
			b.ReportMetric(float64(runs*b.N)/b.Elapsed().Seconds(), "runs/s")
		})
	}
}
