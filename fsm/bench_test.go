package fsm

import (
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/job"
)

var t0 = job.At(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))

// numbered makes ids as they are made: by time, with randomness after it.
func numbered(n int) job.RunID {
	var e [10]byte
	x := uint64(n)*0x9E3779B97F4A7C15 + 1
	x ^= x >> 29
	binary.BigEndian.PutUint64(e[:8], x*0xBF58476D1CE4E5B9)
	binary.BigEndian.PutUint16(e[8:], uint16(n))
	return job.MakeRunID(t0.Add(time.Duration(n)*100*time.Microsecond).Time(), e)
}

var benchJob = job.JobID(numbered(1 << 30))

func benchRun(n int, at job.Instant) *job.Run {
	return &job.Run{ID: numbered(n), Namespace: "default", JobID: benchJob, Job: "nightly-report", JobVersion: 1, Trigger: job.ByAPI, State: job.Queued,
		Priority: 5, CreatedAt: at, QueuedAt: at, Payload: []byte(`{"customer":12345,"kind":"invoice"}`), Lane: "default|@exec=|", Home: job.HomeQuorum}
}

// driver feeds entries to a state as Raft would.
type driver struct {
	s     *State
	index uint64
	bytes int
}

func (d *driver) log(at job.Instant, commands ...Command) *raft.Log {
	d.index++
	data, err := EncodeEntry(Origin{}, at, commands...)
	if err != nil {
		panic(err)
	}
	d.bytes += len(data)
	return &raft.Log{Index: d.index, Type: raft.LogCommand, Data: data}
}

// life makes the log of n runs from birth to pruning, in batches of one size.
func (d *driver) life(n, batch int) []*raft.Log {
	logs := []*raft.Log{d.log(t0, &PutJob{ID: benchJob, Namespace: "default", Name: "nightly-report", Document: []byte(`{"name":"nightly-report","namespace":"default","exec":{"command":["true"]}}`), At: t0})}
	for start := 0; start < n; start += batch {
		at := t0.Add(time.Duration(start) * 100 * time.Microsecond)
		submit, grant, end, move := &Submit{}, &Grant{}, &Grant{}, &Move{}
		for i := start; i < start+batch; i++ {
			r := benchRun(i, at)
			submit.Runs = append(submit.Runs, r)
			fence := job.MakeFence(0, uint32(i+1))
			grant.Grants = append(grant.Grants, job.Grant{RunID: r.ID, Fence: fence, Attempt: 1, Worker: fmt.Sprintf("worker-%d", i%100), Boot: "b", GrantedAt: at, Lane: "default|@exec=|", JobID: benchJob})
			end.Ended = append(end.Ended, job.EndedGrant{RunID: r.ID, Fence: fence})
			move.Moves = append(move.Moves, job.Move{ID: r.ID, State: job.Succeeded, Fence: fence, Attempt: 1, Worker: fmt.Sprintf("worker-%d", i%100), StartedAt: at, FinishedAt: at, Result: []byte(`{"ok":true}`)})
		}
		logs = append(logs, d.log(at, submit), d.log(at, grant), d.log(at, move), d.log(at, end))
	}
	return logs
}

func (d *driver) apply(logs []*raft.Log) {
	for _, l := range logs {
		for _, r := range d.s.Apply(l).([]Result) {
			if r.Err != nil {
				panic(r.Err)
			}
		}
	}
}

// cpuTime is what this process used, which a busy machine does not distort as it does the time on the wall.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLife measures everything that one run costs the state machine, from birth to pruning, without encoding.
func BenchmarkLife(b *testing.B) {
	for _, batch := range []int{100, 500} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			n := (b.N + batch - 1) / batch * batch
			d := &driver{s: New()}
			d.apply([]*raft.Log{d.log(t0, &SetLimits{Limits: Limits{MaxLiveBytes: 1 << 40, MaxHistoryBytes: 128 << 20}})})
			logs := d.life(n, batch)
			runtime.GC()
			b.ReportAllocs()
			cpu := cpuTime()
			b.ResetTimer()
			for i := range logs {
				d.apply(logs[i : i+1])
				if i%40 == 39 {
					d.apply([]*raft.Log{d.log(t0, &Prune{Before: 0, Limit: MaxPrune})})
				}
			}
			b.ReportMetric(float64(cpuTime()-cpu)/float64(n), "cpu-ns/run")
			b.ReportMetric(float64(d.bytes)/float64(n), "logB/run")
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "runs/s")
		})
	}
}

// BenchmarkStep measures the steps of a run's life apart.
func BenchmarkStep(b *testing.B) {
	const batch = 500
	for step, name := range []string{"birth", "grant", "settle", "end"} {
		b.Run(name, func(b *testing.B) {
			n := (b.N + batch - 1) / batch * batch
			d := &driver{s: New()}
			d.apply([]*raft.Log{d.log(t0, &SetLimits{Limits: Limits{MaxLiveBytes: 1 << 40, MaxHistoryBytes: 1 << 40}})})
			logs := d.life(n, batch)
			d.apply(logs[:1])
			b.ReportAllocs()
			b.ResetTimer()
			b.StopTimer()
			for i := range n / batch {
				for s := range 4 {
					if s == step {
						b.StartTimer()
					}
					d.apply(logs[1+4*i+s : 2+4*i+s])
					b.StopTimer()
				}
			}
		})
	}
}

type discardSink struct{ n int }

func (s *discardSink) Write(b []byte) (int, error) { s.n += len(b); return len(b), nil }
func (*discardSink) Close() error                  { return nil }
func (*discardSink) Cancel() error                 { return nil }
func (*discardSink) ID() string                    { return "" }

// BenchmarkPersist writes a snapshot of 100,000 runs; BenchmarkRestore reads it.
func BenchmarkPersist(b *testing.B) {
	s := filled(100_000)
	b.ResetTimer()
	sink := &discardSink{}
	for range b.N {
		sink.n = 0
		snap, _ := s.Snapshot()
		if err := snap.Persist(sink); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(sink.n)/1e6, "MB")
}

func BenchmarkRestore(b *testing.B) {
	s := filled(100_000)
	pr := persisted(b, s)
	b.ResetTimer()
	for range b.N {
		if err := New().Restore(io.NopCloser(pr())); err != nil {
			b.Fatal(err)
		}
	}
}

func filled(n int) *State {
	d := &driver{s: New()}
	d.apply([]*raft.Log{d.log(t0, &SetLimits{Limits: Limits{MaxLiveBytes: 1 << 40, MaxHistoryBytes: 1 << 40}})})
	for start := 0; start < n; start += 500 {
		c := &Submit{}
		for i := start; i < start+500; i++ {
			c.Runs = append(c.Runs, benchRun(i, t0))
		}
		d.apply([]*raft.Log{d.log(t0, c)})
	}
	return d.s
}

// BenchmarkMemory tells what rows really cost, to judge the constants of size.go.
func BenchmarkMemory(b *testing.B) {
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const n = 50_000
	for range b.N {
		before := heap()
		s := filled(n)
		after := heap()
		b.ReportMetric(float64(after-before)/n, "B/live")
		b.ReportMetric(float64(s.View().g.LiveBytes)/n, "countedB/live")
		runtime.KeepAlive(s)

		before = heap()
		d := &driver{s: New()}
		d.apply([]*raft.Log{d.log(t0, &SetLimits{Limits: Limits{MaxLiveBytes: 1 << 40, MaxHistoryBytes: 1 << 40}})})
		for start := 0; start < n; start += 500 {
			one := &driver{s: d.s, index: d.index}
			logs := one.life(500, 500)
			_ = logs
			submit, move := &Submit{}, &Move{}
			for i := start; i < start+500; i++ {
				submit.Runs = append(submit.Runs, benchRun(i, t0))
				move.Moves = append(move.Moves, job.Move{ID: numbered(i), State: job.Succeeded, Fence: 1, Attempt: 1, Worker: "worker-1", StartedAt: t0, FinishedAt: t0, Result: []byte(`{"ok":true}`)})
			}
			d.apply([]*raft.Log{d.log(t0, submit), d.log(t0, move)})
		}
		after = heap()
		b.ReportMetric(float64(after-before)/n, "B/history")
		b.ReportMetric(float64(d.s.View().g.HistoryBytes)/n, "countedB/history")
		runtime.KeepAlive(d)
	}
}
