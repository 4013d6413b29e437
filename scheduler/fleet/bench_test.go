package fleet

import (
	"fmt"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

// BenchmarkManyLanes is one step of the dispatcher with 10,000 workers and as many lanes, which differ in what they need
// or in their concurrency keys.
func BenchmarkManyLanes(b *testing.B) {
	const n = 10_000
	start := time.Now()
	now := job.At(start)
	f := New(func() job.Instant { return now }, func() time.Duration { return 0 }, func(string) job.WorkerState { return job.WorkerReady })
	for i := range n {
		h := job.WorkerHello{Name: fmt.Sprintf("worker-%05d", i), Boot: "b", Slots: 8, Executors: []string{"exec", "http"},
			Labels: map[string]string{"region": fmt.Sprint("r", i%10), "host": fmt.Sprint("h", i)}}
		if _, err := f.Attach(job.SessionID(h.Name), "node", h); err != nil {
			b.Fatal(err)
		}
	}
	for name, spec := range map[string]func(i int) *job.Document{
		"keys": func(i int) *job.Document {
			return &job.Document{Exec: plain.Exec, Concurrency: &job.Concurrency{Key: fmt.Sprint("k", i), Limit: 1}}
		},
		"regions": func(i int) *job.Document {
			return &job.Document{Exec: plain.Exec, Selector: map[string]string{"region": fmt.Sprint("r", i%10)},
				Concurrency: &job.Concurrency{Key: fmt.Sprint("k", i), Limit: 1}}
		},
		"hosts": func(i int) *job.Document {
			return &job.Document{Exec: plain.Exec, Selector: map[string]string{"host": fmt.Sprint("h", i)}}
		},
	} {
		lanes := make([]job.LaneKey, n)
		candidates := make([]Candidate, 1000)
		for i := range lanes {
			c := candidate(i, spec(i))
			if lanes[i] = c.Lane; i < len(candidates) {
				candidates[i] = c
			}
		}
		b.Run(name, func(b *testing.B) {
			sequence := uint32(0)
			for b.Loop() {
				f.Capacity(lanes)
				f.BeginRead()
				grants, _, _ := f.Reserve(candidates, now, func() job.Fence { sequence++; return job.MakeFence(1, sequence) })
				if len(grants) != len(candidates) {
					b.Fatal(len(grants))
				}
				f.Unreserve(grants)
			}
		})
	}
}
