package mirror_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/musterhq/muster/internal/servers"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage"
	"github.com/musterhq/muster/storage/memory"
	"github.com/musterhq/muster/storage/mirror"
	"github.com/musterhq/muster/storage/queuetest"
	"github.com/musterhq/muster/storage/redis"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patient is for tests that judge no time on a busy machine.
const patient = 10 * time.Second

var clusters atomic.Int64

func client(t testing.TB, url string, timeout time.Duration) (c *redis.Client, cluster string) {
	t.Helper()
	cluster = fmt.Sprintf("test-%d", clusters.Add(1))
	c, err := redis.New(redis.Config{URL: url, ClusterID: func() string { return cluster }, Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, cluster
}

func TestQueue(t *testing.T) {
	server := servers.SharedRedis(t)
	open := func(url string, used bool) func(t *testing.T, maxLane int) storage.Queue {
		return func(t *testing.T, maxLane int) storage.Queue {
			c, _ := client(t, url, patient)
			q := mirror.New(mirror.Config{Remote: c.Queue(maxLane), MaxLane: maxLane, Logger: slog.New(slog.DiscardHandler)})
			t.Cleanup(func() {
				if q.Used() != used {
					t.Errorf("redis is used: %v, want %v", !used, used)
				}
			})
			return q
		}
	}
	t.Run("with Redis", func(t *testing.T) { queuetest.Run(t, queuetest.Options{Open: open(server.URL, true)}) })
	t.Run("without", func(t *testing.T) { queuetest.Run(t, queuetest.Options{Open: open("redis://127.0.0.1:1", false)}) })
}

// pair is a mirror and the plain queue that it must be like.
type pair struct {
	mirror *mirror.Queue
	plain  *memory.Queue
	epoch  job.Epoch
}

// fataler is a *testing.T or a *rapid.T.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

func same(t fataler, what string, got, want any, gotErr, wantErr error) {
	t.Helper()
	if d := cmp.Diff(want, got); gotErr != nil || wantErr != nil || d != "" {
		t.Fatalf("%s: %v, %v (-want +got):\n%s", what, gotErr, wantErr, d)
	}
}

func sorted(es []job.QueueEntry) []job.QueueEntry {
	return slices.SortedFunc(slices.Values(es), job.QueueEntry.Compare)
}

func (p *pair) push(t fataler, now job.Instant, es []job.QueueEntry) {
	t.Helper()
	a, err1 := p.mirror.Push(context.Background(), p.epoch, now, es)
	b, err2 := p.plain.Push(context.Background(), p.epoch, now, es)
	same(t, "left", sorted(a), sorted(b), err1, err2)
}

func (p *pair) pop(t fataler, now job.Instant, wants []job.LaneWant) []job.QueueEntry {
	t.Helper()
	a, err1 := p.mirror.Pop(context.Background(), p.epoch, now, wants)
	b, err2 := p.plain.Pop(context.Background(), p.epoch, now, wants)
	same(t, "popped", a, b, err1, err2)
	return a
}

func (p *pair) remove(t fataler, ids []job.RunID) {
	t.Helper()
	same(t, "removed", 0, 0, p.mirror.Remove(context.Background(), p.epoch, ids), p.plain.Remove(context.Background(), p.epoch, ids))
}

func (p *pair) raise(t fataler, by job.Epoch, reset bool) {
	t.Helper()
	p.epoch += by
	a, err1 := p.mirror.Raise(context.Background(), p.epoch)
	b, err2 := p.plain.Raise(context.Background(), p.epoch)
	same(t, "raised", a, b, err1, err2)
	if reset {
		same(t, "reset", 0, 0, p.mirror.Reset(context.Background(), p.epoch), p.plain.Reset(context.Background(), p.epoch))
	}
}

// inRedis compares what Redis holds with what it should.
func (p *pair) inRedis(t fataler, there *redis.Queue, now job.Instant) {
	t.Helper()
	byLane := func(ls []job.LaneDepth) map[job.LaneKey]job.LaneDepth {
		m := map[job.LaneKey]job.LaneDepth{}
		for _, l := range ls {
			m[l.Lane] = l
		}
		return m
	}
	a, err1 := there.Lanes(context.Background(), now)
	b, err2 := p.plain.Lanes(context.Background(), now)
	same(t, "lanes in redis", byLane(a), byLane(b), err1, err2)
}

// Whatever becomes of Redis, each pop is what it would have been without, no entry comes twice, and the mirror goes back.
func TestWhateverBecomesOfRedis(t *testing.T) {
	do := func(t *testing.T, s *servers.Redis, command ...string) {
		t.Helper()
		if _, err := s.Do(context.Background(), command...); err != nil {
			t.Fatal(err)
		}
	}
	start := func(t *testing.T, s *servers.Redis) {
		t.Helper()
		if err := s.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	type fault func(t *testing.T, s *servers.Redis, p *pair, work func())
	dump := func(between func(t *testing.T, p *pair)) fault {
		return func(t *testing.T, s *servers.Redis, p *pair, work func()) {
			p.mirror.Flush(t.Context())
			do(t, s, "SAVE")
			between(t, p)
			work()
			s.Kill() // saves nothing newer
			work()
			start(t, s)
		}
	}
	for name, f := range map[string]fault{
		"flushed": func(t *testing.T, s *servers.Redis, _ *pair, _ func()) { do(t, s, "FLUSHALL") },
		"restarted empty": func(t *testing.T, s *servers.Redis, _ *pair, _ func()) {
			s.Kill()
			start(t, s)
		},
		"away for some time": func(t *testing.T, s *servers.Redis, _ *pair, work func()) {
			s.Kill()
			for range 20 {
				work()
				time.Sleep(10 * time.Millisecond)
			}
			start(t, s)
		},
		"hung for some time": func(t *testing.T, s *servers.Redis, _ *pair, work func()) {
			s.Pause()
			for range 20 {
				work()
				time.Sleep(100 * time.Millisecond)
			}
			s.Resume()
		},
		"an old dump":                   dump(func(*testing.T, *pair) {}),
		"an old dump of an older epoch": dump(func(t *testing.T, p *pair) { p.raise(t, 3, false) }),
		"full": func(t *testing.T, s *servers.Redis, _ *pair, work func()) {
			do(t, s, "CONFIG", "SET", "maxmemory", "1")
			work()
			do(t, s, "CONFIG", "SET", "maxmemory", "0")
		},
		"a lane is gone":    func(t *testing.T, s *servers.Redis, _ *pair, _ func()) { do(t, s, "EVAL", lose, "0", "*}:r:*") },
		"all runs are gone": func(t *testing.T, s *servers.Redis, _ *pair, _ func()) { do(t, s, "EVAL", lose, "0", "*}:runs") },
		"the lanes' names are gone": func(t *testing.T, s *servers.Redis, _ *pair, _ func()) {
			do(t, s, "EVAL", lose, "0", "*}:lanes", "*}:runs")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, stop := context.WithCancel(t.Context())
			server := servers.NewRedis(t, servers.RedisOptions{})
			c, _ := client(t, server.URL, 0)
			var log syncBuffer
			p := &pair{plain: memory.New(redis.DefaultMaxLane), mirror: mirror.New(mirror.Config{Remote: c.Queue(0), Logger: slog.New(slog.NewTextHandler(&log, nil))})}
			done := make(chan error)
			go func() { done <- p.mirror.Run(ctx) }()
			defer func() { stop(); <-done }()
			p.raise(t, 1, true)

			now, n, pushed, popped := t0, 0, map[job.RunID]int{}, map[job.RunID]int{}
			work := func() {
				var es []job.QueueEntry
				for range 200 {
					n++
					e := entry(n*7919%10_000, job.LaneKey(fmt.Sprint("lane ", n%5)))
					e.Priority, e.ReadyAt = uint8(n%10), now.Add(time.Duration(n%40-35)*time.Second)
					es = append(es, e)
				}
				held, err := p.mirror.Holds(ctx, ids(es))
				if err != nil {
					t.Fatal(err)
				}
				for i, e := range es {
					if !held[i] {
						pushed[e.RunID]++
					}
				}
				p.push(t, now, es)
				for range 3 {
					var wants []job.LaneWant
					for i := range 5 {
						wants = append(wants, job.LaneWant{Lane: job.LaneKey(fmt.Sprint("lane ", i)), Max: 10})
					}
					for _, e := range p.pop(t, now, wants) {
						popped[e.RunID]++
					}
				}
				p.remove(t, []job.RunID{entry(n, "").RunID})
				now = now.Add(time.Second)
			}
			until := func(what string, ok func() bool) {
				t.Helper()
				for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("no %s after 30 s; the log:\n%s", what, log.String())
					}
					work()
				}
			}
			for range 5 {
				work()
			}
			until("use of redis", p.mirror.Used)
			before := len(log.String())
			f(t, server, p, work)
			until("trouble noticed", func() bool { return len(log.String()) > before })
			until("way back", p.mirror.Used)
			for range 20 {
				work()
			}
			for id, n := range popped {
				if n > pushed[id] {
					t.Errorf("run %s was popped %d times and pushed %d times", id, n, pushed[id])
				}
			}
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) {
				p.mirror.Flush(ctx)
				if p.mirror.Used() {
					p.inRedis(t, c.Queue(0), now)
					break
				}
				if time.Now().After(end) {
					t.Fatalf("it does not stay; the log:\n%s", log.String())
				}
			}
		})
	}
}

// Many push and remove while one pops, and Run flushes and compares: nothing comes twice, nothing is missing, and Redis
// never has to be filled again, because the mirror never sends it anything in another order than it did itself.
func TestManyAtOnce(t *testing.T) {
	const pushers, each = 4, 3000
	ctx, stop := context.WithCancel(t.Context())
	c, _ := client(t, servers.SharedRedis(t).URL, patient)
	var log syncBuffer
	p := &pair{epoch: 1, plain: memory.New(0), mirror: mirror.New(mirror.Config{Remote: c.Queue(0), Logger: slog.New(slog.NewTextHandler(&log, nil))})}
	if _, err := p.mirror.Raise(ctx, 1); err != nil {
		t.Fatal(err)
	}
	var run, work sync.WaitGroup
	run.Go(func() { p.mirror.Run(ctx) })
	run.Go(func() {
		for ctx.Err() == nil {
			p.mirror.Compare(ctx)
			p.mirror.Flush(ctx)
		}
	})
	var removed sync.Map
	for i := range pushers {
		work.Go(func() {
			for j := 0; j < each; j += 10 {
				var es []job.QueueEntry
				for k := range 10 {
					es = append(es, entry(i*each+j+k, job.LaneKey(fmt.Sprint("lane ", k%3))))
				}
				if left, err := p.mirror.Push(ctx, 1, t0, es); err != nil || len(left) > 0 {
					t.Error(len(left), err)
				}
				removed.Store(es[0].RunID, true)
				if err := p.mirror.Remove(ctx, 1, []job.RunID{es[0].RunID}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	popped := map[job.RunID]bool{}
	pop := func() (n int) {
		es, err := p.mirror.Pop(ctx, 1, t0, []job.LaneWant{{Lane: "lane 0", Max: 40}, {Lane: "lane 1", Max: 40}, {Lane: "lane 2", Max: 40}})
		if err != nil {
			t.Error(err)
		}
		for _, e := range es {
			if popped[e.RunID] {
				t.Errorf("run %s was popped twice", e.RunID)
			}
			popped[e.RunID] = true
		}
		return len(es)
	}
	pushed := make(chan struct{})
	go func() { work.Wait(); close(pushed) }()
	for done := false; !done || pop() > 0; {
		select {
		case <-pushed:
			done = true
		default:
			pop()
		}
	}
	stop()
	run.Wait()
	for n := range pushers * each {
		id := entry(n, "").RunID
		if _, gone := removed.Load(id); !gone && !popped[id] {
			t.Fatalf("run %s was not popped", id)
		}
	}
	if s := log.String(); s != "" || !p.mirror.Used() {
		t.Errorf("redis is used: %v; the log:\n%s", p.mirror.Used(), s)
	}
	p.mirror.Flush(t.Context())
	p.inRedis(t, c.Queue(0), t0)
}

// lose removes keys as an eviction would.
const lose = `for _, pattern in ipairs(ARGV) do for _, key in ipairs(redis.call('KEYS', pattern)) do redis.call('DEL', key) end end return 1`

func ids(es []job.QueueEntry) (out []job.RunID) {
	for _, e := range es {
		out = append(out, e.RunID)
	}
	return out
}

type syncBuffer struct {
	mu sync.Mutex
	b  []byte
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b = append(b.b, p...)
	return len(p), nil
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.b)
}

// lossy is a remote queue whose next answers get lost, after or before the call is carried out.
type lossy struct {
	*redis.Queue
	before, after int
}

func (l *lossy) Step(ctx context.Context, e job.Epoch, now job.Instant, s redis.Step) (popped, left []job.QueueEntry, err error) {
	if l.before > 0 {
		l.before--
		return nil, nil, errAway
	}
	popped, left, err = l.Queue.Step(ctx, e, now, s)
	if l.after > 0 {
		l.after--
		return nil, nil, errHung
	}
	return popped, left, err
}

// The same as above, at random and step by step: what Run does in its time is one more thing that may happen.
func TestLikeAPlainQueue(t *testing.T) {
	ctx := t.Context()
	server := servers.NewRedis(t, servers.RedisOptions{})
	do := func(rt *rapid.T, command ...string) {
		rt.Helper()
		if _, err := server.Do(ctx, command...); err != nil {
			rt.Fatal(err)
		}
	}
	c, cluster := client(t, server.URL, patient)
	key := func(s string) string { return "{muster:" + cluster + "}:" + s }
	base, used, all := job.Epoch(1), 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		maxLane := rapid.SampledFrom([]int{2, 10, 1000}).Draw(rt, "maxLane")
		remote := &lossy{Queue: c.Queue(maxLane)}
		p := &pair{epoch: base, plain: memory.New(maxLane), mirror: mirror.New(mirror.Config{Remote: remote, MaxLane: maxLane, Logger: slog.New(slog.DiscardHandler)})}
		now := t0
		p.raise(rt, 1, rapid.Bool().Draw(rt, "reset"))
		defer func() { base = p.epoch }()
		dumped := false
		faults := map[string]func(){
			"flush": func() { do(rt, "FLUSHALL") },
			"lose a key": func() {
				do(rt, "UNLINK", key(rapid.SampledFrom([]string{"queue", "runs", "lanes", "r:default", "d:default", "r:"}).Draw(rt, "key")))
			},
			"another type": func() {
				do(rt, "SET", key(rapid.SampledFrom([]string{"queue", "runs", "lanes", "r:default", "d:default"}).Draw(rt, "key")), "x")
			},
			"no answer": func() { remote.after = 1 },
			"not begun": func() { remote.before = 1 },
			"raised again": func() {
				if _, err := c.Queue(0).Raise(ctx, p.epoch); err != nil && job.CodeOf(err) != job.Fenced {
					rt.Fatal(err)
				}
			},
			"foreign entry": func() { _, _ = server.Do(ctx, "ZADD", key("r:default"), "0", "xxxxxxxxxxxxxxxx") },
			"save":          func() { do(rt, "SAVE"); dumped = true },
			"old dump": func() {
				if dumped {
					server.Kill()
					if err := server.Start(ctx); err != nil {
						rt.Fatal(err)
					}
				}
			},
		}
		names := slices.Sorted(maps.Keys(faults))
		pop := func(rt *rapid.T) { all++; p.pop(rt, now, queuetest.Wants(rt)) }
		rt.Repeat(map[string]func(*rapid.T){
			"push":    func(rt *rapid.T) { p.push(rt, now, queuetest.Entries(rt, now)) },
			"pop":     pop,
			"pop too": pop,
			"pop late": func(rt *rapid.T) {
				p.pop(rt, now.Add(-time.Duration(rapid.IntRange(1, 4).Draw(rt, "before"))*30*time.Second), queuetest.Wants(rt))
			},
			"remove": func(rt *rapid.T) { p.remove(rt, queuetest.IDs(rt)) },
			"time": func(rt *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 4).Draw(rt, "steps")) * 30 * time.Second)
			},
			"raise": func(rt *rapid.T) {
				p.raise(rt, job.Epoch(rapid.IntRange(0, 2).Draw(rt, "by")), rapid.Bool().Draw(rt, "reset"))
			},
			"flush":   func(*rapid.T) { p.mirror.Flush(ctx) },
			"back":    func(*rapid.T) { p.mirror.Back(ctx) },
			"compare": func(*rapid.T) { p.mirror.Compare(ctx) },
			"fault":   func(rt *rapid.T) { faults[rapid.SampledFrom(names).Draw(rt, "fault")]() },
			"": func(rt *rapid.T) {
				if p.mirror.Used() {
					used++
				}
				a, err1 := p.mirror.Lanes(ctx, now)
				b, err2 := p.plain.Lanes(ctx, now)
				byLane := func(x, y job.LaneDepth) int { return strings.Compare(string(x.Lane), string(y.Lane)) }
				slices.SortFunc(a, byLane)
				slices.SortFunc(b, byLane)
				same(rt, "lanes", a, b, err1, err2)
			},
		})
		// When nothing more happens, it is in Redis again, and all of it.
		remote.before, remote.after = 0, 0
		for range 5 {
			p.push(rt, now, []job.QueueEntry{entry(99, "default")}) // what is wrong where nobody looks is found by who does
			p.mirror.Flush(ctx)
			p.mirror.Compare(ctx)
			p.mirror.Back(ctx)
		}
		p.mirror.Flush(ctx)
		if !p.mirror.Used() {
			rt.Fatal("it does not go back")
		}
		p.inRedis(rt, c.Queue(0), now)
	})
	if used < all/2 {
		t.Errorf("redis was used after %d steps, of which %d were pops: this test proves little", used, all)
	}
}
