package memory_test

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage/memory"
)

// BenchmarkPushPop takes 100,000 entries in and out, in batches as the scheduler does: all of one lane, or of many.
func BenchmarkPushPop(b *testing.B) {
	const n, batch = 100_000, 1000
	for _, c := range []struct {
		name  string
		lanes int
	}{{"one lane", 1}, {"a thousand lanes", 1000}} {
		b.Run(c.name, func(b *testing.B) {
			ctx := b.Context()
			now := job.At(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
			r := rand.New(rand.NewPCG(1, 2))
			entries := make([]job.QueueEntry, n)
			wants := make([]job.LaneWant, c.lanes)
			for i := range wants {
				wants[i] = job.LaneWant{Lane: job.LaneKey("default|@exec=|" + string(rune('a'+i%26)) + string(rune('a'+i/26))), Max: batch}
			}
			for i := range entries {
				var e [10]byte
				binary.BigEndian.PutUint64(e[2:], r.Uint64())
				at := now.Add(-time.Duration(r.IntN(60_000)) * time.Millisecond)
				entries[i] = job.QueueEntry{RunID: job.MakeRunID(at.Time(), e), Lane: wants[i%c.lanes].Lane, Priority: uint8(r.IntN(10)), ReadyAt: at}
			}
			b.ReportAllocs()
			for b.Loop() {
				q := memory.New(0)
				if _, err := q.Raise(ctx, 1); err != nil {
					b.Fatal(err)
				}
				for i := 0; i < n; i += batch {
					if left, err := q.Push(ctx, 1, now, entries[i:i+batch]); err != nil || len(left) > 0 {
						b.Fatal(len(left), err)
					}
				}
				for popped := 0; popped < n; {
					es, err := q.Pop(ctx, 1, now, wants)
					if err != nil || len(es) == 0 {
						b.Fatal(popped, err)
					}
					popped += len(es)
				}
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}
