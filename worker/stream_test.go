package worker_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker"
	"github.com/musterhq/muster/worker/workerpb"
)

// node is the other end of the protocol, played by a test: script is called for each stream.
type node struct {
	script func(s *nodeStream)
}

type nodeStream struct {
	rpc *connect.BidiStream[workerpb.WorkerMessage, workerpb.NodeMessage]
}

func (n *node) Attach(_ context.Context, rpc *connect.BidiStream[workerpb.WorkerMessage, workerpb.NodeMessage]) error {
	n.script(&nodeStream{rpc: rpc})
	return nil
}

func (s *nodeStream) send(m *workerpb.NodeMessage) { s.rpc.Send(m) }

// until receives until a message has what is wanted; false when the stream ended.
func (s *nodeStream) until(want func(*workerpb.WorkerMessage) bool) (*workerpb.WorkerMessage, bool) {
	for {
		m, err := s.rpc.Receive()
		if err != nil {
			return nil, false
		}
		if want(m) {
			return m, true
		}
	}
}

func hasHello(m *workerpb.WorkerMessage) bool { return m.Hello != nil }

// serveNode starts a node and answers its address and a client for it.
func serveNode(t testing.TB, script func(*nodeStream)) (string, *http.Client) {
	t.Helper()
	path, h := workerpb.NewWorkerServiceHandler(&node{script: script})
	mux := http.NewServeMux()
	mux.Handle(path, h)
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	server := httptest.NewUnstartedServer(mux)
	server.Config.Protocols = p
	server.Start()
	t.Cleanup(server.Close)
	tr := &http.Transport{Protocols: p}
	t.Cleanup(tr.CloseIdleConnections)
	return server.URL, &http.Client{Transport: tr}
}

// startWorker runs a worker until the test ends; the answer ends it early.
func startWorker(t testing.TB, c worker.Config) (end func() error) {
	t.Helper()
	if c.DataDir == "" {
		c.DataDir = t.TempDir()
	}
	c.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	a, err := worker.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	end = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { end() })
	return end
}

func accepted(number uint64) *workerpb.NodeMessage {
	return &workerpb.NodeMessage{Welcome: &workerpb.Welcome{Status: workerpb.Welcome_STATUS_ACCEPTED, Resync: number,
		MaxUnackedResults: 100, MaxUnackedBytes: 1 << 20}}
}

func assigned(fence uint64) *workerpb.NodeMessage {
	id := make([]byte, 16)
	id[15] = byte(fence)
	return &workerpb.NodeMessage{
		Specs:       []*workerpb.Spec{{Id: 1, Document: []byte(`{"handler":{"name":"h"}}`)}},
		Assignments: []*workerpb.Assignment{{RunId: id, Fence: fence, Attempt: 1, Spec: 1}},
	}
}

// L3: what a Hello omits may be started elsewhere at once. So from the Resync to the Welcome that answers its Hello, the
// worker starts nothing that arrives.
func TestNothingStartsBetweenAHelloAndItsWelcome(t *testing.T) {
	t.Parallel()
	ran := make(chan job.Fence, 10)
	h := &worker.Handlers{}
	release := make(chan struct{})
	h.Handle("h", func(ctx context.Context, _ json.RawMessage) (json.RawMessage, error) {
		ran <- worker.InfoFrom(ctx).Fence
		<-release
		return nil, nil
	})
	hello := make(chan *workerpb.Hello, 1)
	address, client := serveNode(t, func(s *nodeStream) {
		s.until(hasHello)
		s.send(accepted(0))
		s.send(assigned(1))
		<-release
		s.until(func(m *workerpb.WorkerMessage) bool { return len(m.Results) > 0 })
		s.send(&workerpb.NodeMessage{Resync: 5})
		s.send(assigned(2)) // of the earlier session
		m, _ := s.until(hasHello)
		if m != nil {
			hello <- m.Hello
		}
		s.send(assigned(3))
		s.send(accepted(0)) // answers an earlier Hello than the last
		s.send(assigned(4))
		s.send(accepted(5))
		s.send(assigned(5))
		s.until(func(m *workerpb.WorkerMessage) bool { return false })
	})
	end := startWorker(t, worker.Config{Name: "w", Addresses: []string{address}, Slots: 10, Handlers: h, HTTPClient: client, FlushTimeout: time.Millisecond})
	if f := <-ran; f != 1 {
		t.Fatalf("fence %d ran", f)
	}
	close(release)
	if x := <-hello; x.GetResync() != 5 || len(x.GetRunning()) != 1 || x.GetRunning()[0] != 1 {
		t.Errorf("the answer to the Resync: %v", x)
	}
	if f := <-ran; f != 5 {
		t.Errorf("fence %d ran, which its Hello omitted", f)
	}
	end() // what it started has ended now
	select {
	case f := <-ran:
		t.Errorf("fence %d ran, which its Hello omitted", f)
	default:
	}
}

func TestADocumentThatCannotBeReadFailsItsAttempts(t *testing.T) {
	t.Parallel()
	result := make(chan *workerpb.Result, 1)
	address, client := serveNode(t, func(s *nodeStream) {
		s.until(hasHello)
		s.send(accepted(0))
		m := assigned(1)
		m.Specs[0].Document = []byte(`{"timeout": 5}`)
		s.send(m)
		if m, ok := s.until(func(m *workerpb.WorkerMessage) bool { return len(m.Results) > 0 }); ok {
			result <- m.Results[0]
		}
		s.until(func(m *workerpb.WorkerMessage) bool { return false })
	})
	startWorker(t, worker.Config{Name: "w", Addresses: []string{address}, Handlers: &worker.Handlers{}, HTTPClient: client, FlushTimeout: time.Millisecond})
	if r := <-result; r.GetKind() != workerpb.Kind_KIND_FAILED || r.GetReason() != "cannot_start" || !r.GetPermanent() {
		t.Errorf("result %v", r)
	}
}

func TestBrokenMessagesFromANodeEndTheStreamOnly(t *testing.T) {
	t.Parallel()
	broken := make(chan *workerpb.NodeMessage, 4)
	for _, m := range []*workerpb.NodeMessage{
		{Specs: []*workerpb.Spec{{Id: workerpb.MaxSpecs + 1}}},
		{Assignments: []*workerpb.Assignment{{RunId: []byte("short"), Fence: 1, Attempt: 1}}},
		{Assignments: []*workerpb.Assignment{{RunId: make([]byte, 16), Fence: 1, Attempt: 1, Spec: 9999}}},
	} {
		broken <- m
	}
	close(broken)
	again := make(chan struct{})
	address, client := serveNode(t, func(s *nodeStream) {
		s.until(hasHello)
		s.send(accepted(0))
		m, ok := <-broken
		if !ok {
			close(again)
			s.until(func(m *workerpb.WorkerMessage) bool { return false })
			return
		}
		s.send(m)
		if _, ok := s.until(func(m *workerpb.WorkerMessage) bool { return false }); ok {
			panic("unreachable")
		}
	})
	startWorker(t, worker.Config{Name: "w", Addresses: []string{address}, Handlers: &worker.Handlers{}, HTTPClient: client, FlushTimeout: time.Millisecond})
	select {
	case <-again:
	case <-time.After(30 * time.Second):
		t.Fatal("the worker did not come back after three broken streams")
	}
}

// By the number a leader tells which of two Hellos that come over two nodes is the later one.
func TestHellosAreNumberedOverAllStreams(t *testing.T) {
	t.Parallel()
	numbers := make(chan uint64, 64)
	address, client := serveNode(t, func(s *nodeStream) {
		m, ok := s.until(hasHello)
		if !ok {
			return
		}
		numbers <- m.Hello.GetNumber()
		s.send(accepted(0))
		s.send(&workerpb.NodeMessage{Resync: 5})
		if m, ok = s.until(hasHello); ok {
			numbers <- m.Hello.GetNumber()
		}
	})
	h := &worker.Handlers{}
	h.Handle("h", func(context.Context, json.RawMessage) (json.RawMessage, error) { return nil, nil })
	startWorker(t, worker.Config{Name: "w", Addresses: []string{address}, HTTPClient: client, Handlers: h})
	for want := range uint64(3) {
		if n := <-numbers; n != want+1 {
			t.Fatalf("hello %d has the number %d", want+1, n)
		}
	}
}
