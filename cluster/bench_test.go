package cluster

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

// BenchmarkPropose measures commands through bolt with its syncs: n callers at a time, each with one small command, or
// one caller with batches of 100. commands/entry says how well they shared.
func BenchmarkPropose(b *testing.B) {
	for _, bench := range []struct{ callers, batch int }{{1, 1}, {64, 1}, {512, 1}, {1, 100}, {8, 100}} {
		b.Run(fmt.Sprintf("callers=%d/batch=%d", bench.callers, bench.batch), func(b *testing.B) {
			n := open(b, Config{Dir: b.TempDir()})
			awaitLeading(b, n)
			before := n.raft.LastIndex()
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			var all sync.WaitGroup
			for range bench.callers {
				all.Go(func() {
					for left.Add(-int64(bench.batch)) > -int64(bench.batch) {
						commands := make([]fsm.Command, bench.batch)
						for i := range commands {
							commands[i] = &fsm.FlagWorker{Name: "worker-0123456789", State: job.WorkerCordoned}
						}
						if _, err := n.Propose(b.Context(), commands...); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commands/s")
			b.ReportMetric(float64(b.N)/float64(n.raft.LastIndex()-before), "commands/entry")
		})
	}
}

// BenchmarkReopen measures a restart, from Open to leading with everything applied, on a log of some megabytes.
func BenchmarkReopen(b *testing.B) {
	for _, megabytes := range []int{0, 50} {
		b.Run(fmt.Sprintf("log=%dMB", megabytes), func(b *testing.B) {
			cfg := Config{Dir: b.TempDir(), SnapshotBytes: 1 << 30}
			n := open(b, cfg)
			awaitLeading(b, n)
			commands := make([]fsm.Command, 1000)
			for i := range commands {
				commands[i] = &fsm.FlagWorker{Name: "worker-0123456789-0123456789-0123456789-0123456789-0123456789-0123456789-01234", State: job.WorkerCordoned}
			}
			for n.guard.bytes.Load() < int64(megabytes)<<20 {
				if _, err := n.Propose(b.Context(), commands...); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				b.StopTimer()
				if err := n.Close(); err != nil {
					b.Fatal(err)
				}
				cfg.State = nil
				b.StartTimer()
				n = open(b, cfg)
				awaitLeading(b, n)
			}
		})
	}
}
