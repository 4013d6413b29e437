package gateway_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker"
	"github.com/musterhq/muster/worker/workerpb"
)

// benchLeader keeps a number of attempts under way until enough have been done, and does nothing else.
type benchLeader struct {
	gateway  *node
	attached chan job.SessionID
	total    int64
	issued   atomic.Int64
	done     atomic.Int64
	end      chan struct{}

	mu    sync.Mutex
	began map[job.Fence]time.Time // with latencies, one attempt at a time
	took  []time.Duration
}

func (l *benchLeader) Attach(_ context.Context, s job.SessionID, _ string, h job.WorkerHello) ([]job.Fence, error) {
	if h.Slots > 0 {
		l.attached <- s
	}
	return nil, nil
}
func (l *benchLeader) Detach(job.SessionID)                             {}
func (l *benchLeader) Heartbeat(job.SessionID, []job.Fence) []job.Fence { return nil }
func (l *benchLeader) Started(job.SessionID, []job.Started)             {}
func (l *benchLeader) Finished(s job.SessionID, outcomes []job.Outcome) {
	if l.began != nil {
		now := time.Now()
		l.mu.Lock()
		for _, o := range outcomes {
			l.took = append(l.took, now.Sub(l.began[o.Fence]))
			delete(l.began, o.Fence)
		}
		l.mu.Unlock()
	}
	acks := make([]job.Ack, len(outcomes))
	for i, o := range outcomes {
		if o.Kind != job.AttemptSucceeded {
			panic("bench: " + o.Error)
		}
		acks[i] = job.Ack{Session: s, RunID: o.RunID, Fence: o.Fence}
	}
	l.gateway.Acknowledge(context.Background(), acks)
	l.issue(s, len(outcomes))
	if l.done.Add(int64(len(outcomes))) == l.total {
		close(l.end)
	}
}

func (l *benchLeader) issue(s job.SessionID, n int) {
	d := make([]job.Delivery, 0, n)
	for range n {
		i := l.issued.Add(1)
		if i > l.total {
			break
		}
		a := &job.Assignment{Fence: job.MakeFence(1, uint32(i)), Attempt: 1, Namespace: "default", Job: "bench", JobVersion: 1,
			Spec: quickSpec, Payload: json.RawMessage(`{"customer":12345}`)}
		a.RunID = job.MakeRunID(time.Unix(1_700_000_000, 0), [10]byte{0, 0, 0, 0, 0, 0, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)})
		a.RootID = a.RunID
		d = append(d, job.Delivery{Session: s, Assignment: a})
	}
	if l.began != nil {
		l.mu.Lock()
		for _, x := range d {
			l.began[x.Fence] = time.Now()
		}
		l.mu.Unlock()
	}
	for len(d) > 0 {
		ok := l.gateway.Assign(context.Background(), d)
		var again []job.Delivery
		for i, k := range ok {
			if !k {
				again = append(again, d[i])
			}
		}
		d = again
	}
}

func benchHandlers() *worker.Handlers {
	h := &worker.Handlers{}
	worker.Register(h, "quick", func(_ context.Context, in struct{ Customer int }) (struct{ OK bool }, error) {
		return struct{ OK bool }{true}, nil
	})
	return h
}

// roundTrips measures attempts from Assign to Finished and acknowledgement, inFlight at a time.
func roundTrips(b *testing.B, inFlight int, latencies bool, start func(f *fixture)) {
	f := &fixture{network: newNetwork(false)}
	l := &benchLeader{attached: make(chan job.SessionID, 16), total: int64(b.N), end: make(chan struct{})}
	if latencies {
		l.began = map[job.Fence]time.Time{}
	}
	f.gateway, f.address = f.addGateway(b, "n1", l)
	l.gateway = f.gateway
	start(f)
	s := <-l.attached
	b.ReportAllocs()
	before := cpuTime()
	b.ResetTimer()
	l.issue(s, inFlight)
	<-l.end
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "runs/s")
	b.ReportMetric(float64((cpuTime()-before).Nanoseconds())/1000/float64(b.N), "cpu-µs/run")
	if latencies {
		slices.Sort(l.took)
		b.ReportMetric(float64(l.took[len(l.took)/2].Microseconds()), "p50-µs")
		b.ReportMetric(float64(l.took[len(l.took)*99/100].Microseconds()), "p99-µs")
	}
}

func (f *fixture) benchAgent(b *testing.B) {
	c := f.agentConfig(b, "w1", benchHandlers())
	c.Slots = 4096
	f.start(b, c)
}

func BenchmarkRoundTrip(b *testing.B) {
	roundTrips(b, 1000, false, func(f *fixture) { f.benchAgent(b) })
}

// BenchmarkHeartbeats is what a heartbeat costs of 5,000 workers on one gateway, with two attempts each; set
// MUSTER_TEST_RELAYED to have the leader on another node.
func BenchmarkHeartbeats(b *testing.B) {
	f := &fixture{network: newNetwork(false)}
	l := &benchLeader{attached: make(chan job.SessionID, 8192)}
	f.gateway, f.address = f.addGateway(b, "n1", l)
	l.gateway = f.gateway
	const workers = 5000
	streams := make([]*rawWorker, workers)
	clients := make([]*http.Client, 50)
	for i := range clients {
		clients[i] = f.client(b)
	}
	for i := range streams {
		w := f.rawOver(b, fmt.Sprintf("w%d", i), clients[i%len(clients)])
		w.send(w.hello(0, 1, 2))
		streams[i] = w
	}
	for _, w := range streams {
		w.until("a welcome", func(m *workerpb.NodeMessage) bool { return m.Welcome.GetStatus() == workerpb.Welcome_STATUS_ACCEPTED })
	}
	before := cpuTime()
	b.ResetTimer()
	for i := range b.N { // a thousand a second, as 5,000 workers do; but no faster than they are answered
		w := streams[i%workers]
		w.send(&workerpb.WorkerMessage{Heartbeat: &workerpb.Heartbeat{Seq: uint64(i + 1), Running: []uint64{1, 2}}})
		if i%10 == 9 {
			time.Sleep(time.Until(time.Now().Add(10 * time.Millisecond)))
		}
	}
	b.StopTimer()
	b.ReportMetric(float64((cpuTime()-before).Nanoseconds())/1000/float64(b.N), "cpu-µs/beat")
}

func BenchmarkLatency(b *testing.B) {
	roundTrips(b, 1, true, func(f *fixture) { f.benchAgent(b) })
}

// BenchmarkRoundTripProcess has the worker in a process of its own; set MUSTER_BENCH_PROCESS to run it.
func BenchmarkRoundTripProcess(b *testing.B) {
	if os.Getenv("MUSTER_BENCH_PROCESS") == "" {
		b.Skip("MUSTER_BENCH_PROCESS is not set")
	}
	roundTrips(b, 1000, false, func(f *fixture) {
		exe, err := os.Executable()
		if err != nil {
			b.Fatal(err)
		}
		c := exec.Command(exe)
		c.Env = append(os.Environ(), "MUSTER_BENCH_WORKER="+f.address, "MUSTER_BENCH_DIR="+b.TempDir())
		c.Stderr = os.Stderr
		if err := c.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { c.Process.Signal(os.Interrupt); c.Wait() })
	})
}

func benchWorker() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := worker.Run(ctx, worker.Options{Name: "w1", DataDir: os.Getenv("MUSTER_BENCH_DIR"), Slots: 4096, Handlers: benchHandlers(),
		Addresses: []string{os.Getenv("MUSTER_BENCH_WORKER")}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		slog.Error("bench worker", "err", err)
		os.Exit(1)
	}
}
