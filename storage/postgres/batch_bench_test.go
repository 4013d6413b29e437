package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/musterhq/muster/internal/servers"
	"github.com/musterhq/muster/job"
)

// benchStore is a store on a durable server of its own, as one in production is set up, or on the database that
// MUSTER_BENCH_POSTGRES names, whose schema is then dropped before each benchmark.
func benchStore(b *testing.B) *Store {
	b.Helper()
	url := os.Getenv("MUSTER_BENCH_POSTGRES")
	if url == "" {
		pg := servers.NewPostgres(b, servers.PostgresOptions{Durable: true, Settings: map[string]string{"shared_buffers": "512MB", "max_wal_size": "4GB"}})
		url = pg.Database(b)
	} else if err := (&Scratch{url}).Empty(b.Context()); err != nil {
		b.Fatal(err)
	}
	s, err := New(Config{URL: url, ClusterID: func() string { return testCluster }, Migrate: true})
	if err != nil {
		b.Fatal(err)
	}
	go func() { _ = s.Serve(context.Background()) }()
	b.Cleanup(func() { _ = s.Close() })
	for ok := false; !ok; ok, _ = s.Ready() {
		time.Sleep(time.Millisecond)
	}
	if _, err := s.Raise(b.Context(), 1); err != nil {
		b.Fatal(err)
	}
	// Partitions are made by the leader's janitor.
	if _, err := s.Prune(b.Context(), 1, 1, 1); err != nil {
		b.Fatal(err)
	}
	return s
}

// stat is what /proc says of a process: its parent, and the processor time that it and the children it has buried took.
func stat(pid string) (parent string, own, buried time.Duration) {
	text, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return "", 0, 0
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	ticks := make([]time.Duration, 4)
	for i := range ticks {
		_, _ = fmt.Sscan(fields[12-1+i], &ticks[i])
	}
	return fields[1], (ticks[0] + ticks[1]) * 10 * time.Millisecond, (ticks[2] + ticks[3]) * 10 * time.Millisecond
}

// cpu is the processor time of this process, and of a Postgres server with all that it started.
func cpu(postmaster string) (self, postgres time.Duration) {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	self = time.Duration(u.Utime.Nano() + u.Stime.Nano())
	_, own, buried := stat(postmaster)
	postgres = own + buried
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if parent, own, _ := stat(e.Name()); parent == postmaster {
			postgres += own
		}
	}
	return self, postgres
}

// perRun reports what was spent since it was made, over as many runs as are counted.
func perRun(b *testing.B, s *Store) (count func(runs int), report func()) {
	var pid int
	err := s.use(b.Context(), reading, func(ctx context.Context, c *pgx.Conn) error {
		return c.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&pid)
	})
	if err != nil {
		b.Fatal(err)
	}
	postmaster, _, _ := stat(fmt.Sprint(pid))
	var n atomic.Int64
	self, postgres := cpu(postmaster)
	start := time.Now()
	return func(runs int) { n.Add(int64(runs)) }, func() {
		b.StopTimer()
		took := time.Since(start)
		self2, postgres2 := cpu(postmaster)
		runs := float64(n.Load())
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(runs/took.Seconds(), "runs/s")
		b.ReportMetric(float64((self2-self).Nanoseconds())/1e3/runs, "us-go/run")
		b.ReportMetric(float64((postgres2-postgres).Nanoseconds())/1e3/runs, "us-pg/run")
	}
}

var benchPayload = json.RawMessage(`{"text":"` + strings.Repeat("x", 190) + `"}`)

func benchRuns(n int, change func(*job.Run)) []*job.Run {
	at := nowMs()
	runs := make([]*job.Run, n)
	for i := range runs {
		runs[i] = aRun(at, func(r *job.Run) { r.Payload = benchPayload })
		if change != nil {
			change(runs[i])
		}
	}
	return runs
}

func ofAJob(r *job.Run) {
	r.JobID, r.Job, r.JobVersion, r.Spec = job.JobID{1}, "nightly", 1, nil
}

func withKey(r *job.Run) { keyed(r.ID.String(), "0123456789abcdef0123456789abcdef")(r) }

// ahead makes work for callers before it is needed, so that making it is not measured with the rest.
func ahead[T any](b *testing.B, n int, make func() T) []T {
	b.Helper()
	all := []T{}
	for range n {
		all = append(all, make())
	}
	return all
}

func BenchmarkSubmit(b *testing.B) {
	for _, c := range []struct {
		size, callers int
		kind          string
		change        func(*job.Run)
	}{
		{1000, 1, "inline", nil}, {1000, 2, "inline", nil}, {1000, 4, "inline", nil},
		{100, 1, "inline", nil}, {100, 4, "inline", nil},
		{1, 1, "inline", nil}, {1, 64, "inline", nil}, {1, 512, "inline", nil},
		{1000, 2, "job", ofAJob}, {1000, 2, "keyed", withKey}, {1, 64, "keyed", withKey},
	} {
		b.Run(fmt.Sprintf("%s/%dx%d", c.kind, c.callers, c.size), func(b *testing.B) {
			s := benchStore(b)
			calls := ahead(b, b.N, func() []*job.Run { return benchRuns(c.size, c.change) })
			var next atomic.Int64
			b.ResetTimer()
			count, report := perRun(b, s)
			var wg sync.WaitGroup
			for range c.callers {
				wg.Go(func() {
					for i := next.Add(1) - 1; int(i) < len(calls); i = next.Add(1) - 1 {
						receipts, err := s.Submit(context.Background(), calls[i])
						if err != nil || receipts[0].Err != nil {
							b.Errorf("submit: %v, %v", err, receipts)
							return
						}
						count(c.size)
					}
				})
			}
			wg.Wait()
			report()
		})
	}
}

// BenchmarkRelease is births of task runs by the leader, beside BenchmarkSubmit: of a job's.
func BenchmarkRelease(b *testing.B) {
	for _, size := range []int{1000, 10, 1} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s := benchStore(b)
			calls := ahead(b, b.N, func() []*job.Run {
				root := randomID(nowMs())
				return benchRuns(size, func(r *job.Run) {
					ofAJob(r)
					r.Trigger, r.RootID, r.Task, r.Item = job.ByParent, root, "task-1", 1
				})
			})
			b.ResetTimer()
			count, report := perRun(b, s)
			for _, runs := range calls {
				receipts, err := s.Release(context.Background(), 1, runs)
				if err != nil || receipts[0].Err != nil {
					b.Fatal(err, receipts)
				}
				count(size)
			}
			report()
		})
	}
}

// BenchmarkFire is a job that runs after each run of another: the end of one, the birth of the other, and its end.
func BenchmarkFire(b *testing.B) {
	s := benchStore(b)
	put := func(name string, upstreams ...string) *job.Job {
		j, err := s.PutJob(b.Context(), job.PutJob{ID: job.JobID(randomID(nowMs())), Spec: document(name, upstreams...), At: nowMs()})
		if err != nil {
			b.Fatal(err)
		}
		return j
	}
	const size = 500
	var runs []*job.Run
	for i := range size {
		up := put(fmt.Sprint("up-", i))
		put(fmt.Sprint("down-", i), up.Name)
		runs = append(runs, aRun(nowMs(), ofThe(up)))
	}
	end := func(runs []*job.Run) (due []job.JobID) {
		moves := make([]job.Move, len(runs))
		for i, r := range runs {
			moves[i] = endOf(r, job.Succeeded, true)
		}
		moved, err := s.Move(context.Background(), 1, moves)
		if err != nil {
			b.Fatal(err)
		}
		for _, m := range moved {
			due = append(due, m.Due...)
		}
		return due
	}
	b.ResetTimer()
	count, report := perRun(b, s)
	for range b.N {
		b.StopTimer()
		for _, r := range runs {
			r.ID = randomID(nowMs())
		}
		if _, err := s.Submit(context.Background(), runs); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		born, err := s.Fire(context.Background(), 1, end(runs), nowMs(), 10*size)
		if err != nil || len(born) != size {
			b.Fatal(len(born), err)
		}
		end(born)
		count(size)
	}
	report()
}

func BenchmarkLoad(b *testing.B) {
	s := benchStore(b)
	ids := benchStored(b, s, 20, 1000, nil)
	b.ResetTimer()
	count, report := perRun(b, s)
	for i := range b.N {
		runs, err := s.Load(context.Background(), ids[i%len(ids)])
		if err != nil || runs[0] == nil {
			b.Fatal(err)
		}
		count(len(runs))
	}
	report()
}

// benchStored stores n batches of runs and answers their ids.
func benchStored(b *testing.B, s *Store, n, size int, change func(*job.Run)) [][]job.RunID {
	b.Helper()
	ids := make([][]job.RunID, n)
	for i := range ids {
		runs := benchRuns(size, change)
		if _, err := s.Submit(b.Context(), runs); err != nil {
			b.Fatal(err)
		}
		for _, r := range runs {
			ids[i] = append(ids[i], r.ID)
		}
	}
	return ids
}

func BenchmarkMove(b *testing.B) {
	for _, c := range []struct {
		kind   string
		size   int
		change func(*job.Run)
		end    bool
	}{{"ends/1000", 1000, nil, true}, {"ends/100", 100, nil, true}, {"ends/1", 1, nil, true}, {"ends of a job/1000", 1000, ofAJob, true}, {"retries/1000", 1000, nil, false}} {
		b.Run(c.kind, func(b *testing.B) {
			s := benchStore(b)
			batches := make([][]job.Move, b.N)
			for i, ids := range benchStored(b, s, b.N, c.size, c.change) {
				for n, id := range ids {
					m := job.Move{ID: id, State: job.Succeeded, Fence: job.MakeFence(1, uint32(n+1)), Attempt: 1, Worker: "worker-1",
						StartedAt: nowMs(), FinishedAt: nowMs(), Result: json.RawMessage(`{"ok":true}`)}
					if !c.end {
						m.State, m.Reason, m.Result, m.FinishedAt, m.ReadyAt = job.Scheduled, job.RetryBackoff, nil, 0, nowMs()
						m.Ended = &job.Attempt{RunID: id, Attempt: 1, Fence: m.Fence, Worker: m.Worker, State: job.Failed, Reason: job.ExitCode, ExitCode: 1}
					}
					batches[i] = append(batches[i], m)
				}
			}
			b.ResetTimer()
			count, report := perRun(b, s)
			for _, moves := range batches {
				moved, err := s.Move(context.Background(), 1, moves)
				if err != nil || !moved[0].Applied {
					b.Fatal(err)
				}
				count(len(moved))
			}
			report()
		})
	}
}

// BenchmarkLife is the normal path of a run in the store: born, loaded, ended; by two callers each.
func BenchmarkLife(b *testing.B) {
	for _, c := range []struct {
		kind   string
		change func(*job.Run)
	}{{"inline", nil}, {"job", ofAJob}} {
		b.Run(c.kind, func(b *testing.B) {
			s := benchStore(b)
			const size = 1000
			calls := ahead(b, b.N, func() []*job.Run { return benchRuns(size, c.change) })
			var next atomic.Int64
			b.ResetTimer()
			count, report := perRun(b, s)
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() {
					for i := next.Add(1) - 1; int(i) < len(calls); i = next.Add(1) - 1 {
						if _, err := s.Submit(context.Background(), calls[i]); err != nil {
							b.Error(err)
							return
						}
						ids, moves := make([]job.RunID, size), make([]job.Move, size)
						for n, r := range calls[i] {
							ids[n] = r.ID
							moves[n] = job.Move{ID: r.ID, State: job.Succeeded, Fence: job.MakeFence(1, uint32(n+1)), Attempt: 1, Worker: "worker-1",
								StartedAt: r.CreatedAt, FinishedAt: r.CreatedAt, Result: json.RawMessage(`{"ok":true}`)}
						}
						if _, err := s.Load(context.Background(), ids); err != nil {
							b.Error(err)
							return
						}
						if _, err := s.Move(context.Background(), 1, moves); err != nil {
							b.Error(err)
							return
						}
						count(size)
					}
				})
			}
			wg.Wait()
			report()
		})
	}
}
