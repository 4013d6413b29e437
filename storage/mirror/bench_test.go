package mirror_test

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/servers"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage/mirror"
)

// BenchmarkCycle pushes and pops batches: one round trip a batch.
func BenchmarkCycle(b *testing.B) {
	server := servers.SharedRedis(b)
	for _, size := range []int{1, 500, 1000} {
		b.Run(fmt.Sprint("batch ", size), func(b *testing.B) {
			ctx := b.Context()
			c, _ := client(b, server.URL, patient)
			q := mirror.New(mirror.Config{Remote: c.Queue(0), Logger: slog.New(slog.DiscardHandler)})
			if _, err := q.Raise(ctx, 1); err != nil {
				b.Fatal(err)
			}
			es := make([]job.QueueEntry, size)
			for i := range es {
				es[i] = entry(i, "default|@exec=|")
				es[i].ReadyAt = t0.Add(time.Duration(i) * time.Microsecond)
			}
			for b.Loop() {
				if left, err := q.Push(ctx, 1, t0.Add(time.Hour), es); err != nil || len(left) > 0 {
					b.Fatal(len(left), err)
				}
				if got, err := q.Pop(ctx, 1, t0.Add(time.Hour), []job.LaneWant{{Lane: "default|@exec=|", Max: size}}); err != nil || len(got) != size {
					b.Fatal(len(got), err)
				}
			}
			b.ReportMetric(float64(size)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
			if !q.Used() {
				b.Fatal("redis is not used")
			}
		})
	}
}
