package redis_test

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/servers"
	"github.com/musterhq/muster/job"
)

// batches are entries as submissions make them: ids of their time, few priorities.
func batches(n, size int) [][]job.QueueEntry {
	r := rand.New(rand.NewPCG(1, 2))
	out := make([][]job.QueueEntry, n)
	for i := range out {
		for j := range size {
			var e [10]byte
			for k := range e {
				e[k] = byte(r.Uint32())
			}
			at := t0.Add(time.Duration(i*size+j) * time.Microsecond)
			out[i] = append(out[i], job.QueueEntry{RunID: job.MakeRunID(at.Time(), e), Lane: "default|@exec=|", Priority: 5, ReadyAt: at})
		}
	}
	return out
}

// BenchmarkCycle pushes and pops batches, beside entries that stay: two round trips a batch.
func BenchmarkCycle(b *testing.B) {
	server := servers.SharedRedis(b)
	for _, size := range []int{1, 500, 1000} {
		for _, stay := range []int{0, 9000} {
			b.Run(fmt.Sprintf("batch %d beside %d", size, stay), func(b *testing.B) {
				ctx := b.Context()
				q := client(b, server, "", patient).Queue(0)
				raise(b, q, 1)
				if stay > 0 {
					if left, err := q.Push(ctx, 1, t0.Add(time.Hour), batches(1, stay)[0]); err != nil || len(left) > 0 {
						b.Fatal(len(left), err)
					}
				}
				all := batches(32, size)
				i := 0
				for b.Loop() {
					if left, err := q.Push(ctx, 1, t0.Add(time.Hour), all[i%32]); err != nil || len(left) > 0 {
						b.Fatal(len(left), err)
					}
					if es, err := q.Pop(ctx, 1, t0.Add(time.Hour), []job.LaneWant{{Lane: "default|@exec=|", Max: size}}); err != nil || len(es) != size {
						b.Fatal(len(es), err)
					}
					i++
				}
				b.ReportMetric(float64(size)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
				if err := q.Reset(ctx, 1); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}

// BenchmarkMemory tells what an entry costs Redis.
func BenchmarkMemory(b *testing.B) {
	server := servers.NewRedis(b, servers.RedisOptions{})
	used := func() int {
		info, err := server.Do(b.Context(), "INFO", "memory")
		if err != nil {
			b.Fatal(err)
		}
		_, rest, _ := strings.Cut(info, "used_memory:")
		line, _, _ := strings.Cut(rest, "\r\n")
		n, err := strconv.Atoi(line)
		if err != nil {
			b.Fatal(err)
		}
		return n
	}
	for b.Loop() {
		for _, c := range []struct {
			what       string
			lanes, per int
		}{{"one-lane", 1, 10_000}, {"lanes-of-100", 100, 100}} {
			q := client(b, server, "", patient).Queue(0)
			raise(b, q, 1)
			before := used()
			for i, es := range batches(c.lanes, c.per) {
				for j := range es {
					es[j].Lane += job.LaneKey(fmt.Sprint("key ", i))
				}
				if left, err := q.Push(b.Context(), 1, t0.Add(time.Hour), es); err != nil || len(left) > 0 {
					b.Fatal(len(left), err)
				}
			}
			b.ReportMetric(float64(used()-before)/float64(c.lanes*c.per), "B/entry-"+c.what)
			if err := q.Reset(b.Context(), 1); err != nil {
				b.Fatal(err)
			}
		}
	}
}
