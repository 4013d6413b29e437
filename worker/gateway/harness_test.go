package gateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker"
	"github.com/musterhq/muster/worker/gateway"
)

func TestMain(m *testing.M) {
	if os.Getenv("MUSTER_BENCH_WORKER") != "" { // the other process of BenchmarkRoundTripProcess
		benchWorker()
		return
	}
	goleak.VerifyTestMain(m)
}

// leader is a small leader: it knows who is attached and what is granted, and records what it is told.
type leader struct {
	gateway interface {
		Assign(context.Context, []job.Delivery) []bool
		Acknowledge(context.Context, []job.Ack)
	}
	autoAck bool
	// patience is how long await waits; 0 means 30 s.
	patience time.Duration

	mu       sync.Mutex
	changed  chan struct{}
	sessions map[job.SessionID]string // worker
	workers  map[string]job.SessionID
	hellos   []job.WorkerHello
	stops    [][]job.Fence
	granted  map[job.Fence]bool
	detached []job.SessionID
	started  []job.Started
	outcomes []job.Outcome
	beats    int
	refuse   error
	block    chan struct{} // Finished waits for it, if it is set
	freeze   chan struct{} // so does Heartbeat
	onAttach func(job.SessionID)
}

func newLeader() *leader {
	return &leader{autoAck: true, changed: make(chan struct{}), sessions: map[job.SessionID]string{}, workers: map[string]job.SessionID{},
		granted: map[job.Fence]bool{}}
}

// tell changes the leader and wakes those who wait for a change.
func (l *leader) tell(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.changed)
	l.changed = make(chan struct{})
}

// await waits until something is true of the leader.
func (l *leader) await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	patience := l.patience
	if patience == 0 {
		patience = 30 * time.Second
	}
	deadline := time.After(patience)
	for {
		l.mu.Lock()
		ok, changed := cond(), l.changed
		l.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("did not happen: %s", what)
		}
	}
}

func (l *leader) Attach(_ context.Context, session job.SessionID, _ string, h job.WorkerHello) (stop []job.Fence, err error) {
	l.tell(func() {
		l.hellos = append(l.hellos, h)
		if l.refuse != nil {
			err = l.refuse
			return
		}
		if old := l.workers[h.Name]; old != "" {
			delete(l.sessions, old)
		}
		l.sessions[session], l.workers[h.Name] = h.Name, session
		for _, f := range h.Running {
			if !l.granted[f] {
				stop = append(stop, f)
			}
		}
		l.stops = append(l.stops, stop)
	})
	if l.onAttach != nil && err == nil {
		l.onAttach(session)
	}
	return stop, err
}

func (l *leader) Detach(session job.SessionID) {
	l.tell(func() {
		l.detached = append(l.detached, session)
		if name := l.sessions[session]; name != "" {
			delete(l.sessions, session)
			delete(l.workers, name)
		}
	})
}

func (l *leader) Heartbeat(session job.SessionID, running []job.Fence) (unknown []job.Fence) {
	l.mu.Lock()
	freeze := l.freeze
	l.mu.Unlock()
	if freeze != nil {
		<-freeze
	}
	l.tell(func() {
		l.beats++
		for _, f := range running {
			if l.sessions[session] == "" || !l.granted[f] {
				unknown = append(unknown, f)
			}
		}
	})
	return unknown
}

func (l *leader) Started(_ job.SessionID, s []job.Started) {
	l.tell(func() { l.started = append(l.started, s...) })
}

func (l *leader) Finished(session job.SessionID, outcomes []job.Outcome) {
	l.mu.Lock()
	block := l.block
	l.mu.Unlock()
	if block != nil {
		<-block
	}
	acks := make([]job.Ack, len(outcomes))
	for i, o := range outcomes {
		acks[i] = job.Ack{Session: session, RunID: o.RunID, Fence: o.Fence}
	}
	autoAck := false
	l.tell(func() {
		l.outcomes = append(l.outcomes, outcomes...)
		if autoAck = l.autoAck; autoAck {
			for _, o := range outcomes {
				delete(l.granted, o.Fence)
			}
		}
	})
	if autoAck {
		l.gateway.Acknowledge(context.Background(), acks)
	}
}

// session waits until a worker is attached and answers its session.
func (l *leader) session(t testing.TB, name string) (id job.SessionID) {
	t.Helper()
	l.await(t, name+" is attached", func() bool { id = l.workers[name]; return id != "" })
	return id
}

// assign grants and hands over.
func (l *leader) assign(session job.SessionID, as ...*job.Assignment) []bool {
	d := make([]job.Delivery, len(as))
	l.mu.Lock()
	for i, a := range as {
		d[i] = job.Delivery{Session: session, Assignment: a}
		l.granted[a.Fence] = true
	}
	l.mu.Unlock()
	return l.gateway.Assign(context.Background(), d)
}

// begin assigns until the work runs. A worker that was just about to say Hello anew drops what comes before its Welcome; a real
// leader learns that from the Hello and gives the work again.
func (l *leader) begin(t testing.TB, worker string, a *job.Assignment, running <-chan job.Fence) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		l.assign(l.session(t, worker), a)
		select {
		case <-running:
			return
		case <-time.After(time.Second):
		}
	}
	t.Fatalf("%s does not begin", worker)
}

func (l *leader) outcome(t testing.TB, f job.Fence) (o job.Outcome) {
	t.Helper()
	l.await(t, "an outcome", func() bool {
		for _, x := range l.outcomes {
			if x.Fence == f {
				o = x
				return true
			}
		}
		return false
	})
	return o
}

// network is where gateways listen and agents dial: real TCP, or pipes that work in a synctest bubble.
type network struct {
	bubble    bool
	mu        sync.Mutex
	listeners map[string]*pipeListener
	conns     map[net.Conn]string // of clients, by address
	cut       map[string]bool     // addresses that cannot be dialled
	logger    *slog.Logger
}

func newNetwork(bubble bool) *network {
	n := &network{bubble: bubble, listeners: map[string]*pipeListener{}, conns: map[net.Conn]string{}, cut: map[string]bool{}}
	w := io.Discard
	if os.Getenv("MUSTER_TEST_LOG") != "" {
		w = os.Stderr
	}
	n.logger = slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return n
}

// serve starts a server for a gateway or a hub and answers its address.
func (n *network) serve(t testing.TB, name string, path string, h http.Handler, before func()) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(path, h)
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: mux, Protocols: p, ErrorLog: slog.NewLogLogger(n.logger.Handler(), slog.LevelDebug)}
	var l net.Listener
	address := "http://" + name
	if n.bubble {
		pl := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
		n.mu.Lock()
		n.listeners[name+":80"] = pl
		n.mu.Unlock()
		l = pl
	} else {
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		address = "http://" + l.Addr().String()
	}
	done := make(chan struct{})
	go func() { defer close(done); server.Serve(l) }()
	t.Cleanup(func() {
		before()
		server.Close()
		<-done
	})
	return address
}

func (n *network) client(t testing.TB) *http.Client {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: p, DialContext: n.dial}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func (n *network) dial(ctx context.Context, _, address string) (c net.Conn, err error) {
	n.mu.Lock()
	pl, cut := n.listeners[address], n.cut[address]
	n.mu.Unlock()
	switch {
	case cut:
		return nil, errors.New("cut off")
	case !n.bubble:
		if c, err = new(net.Dialer).DialContext(ctx, "tcp", address); err != nil {
			return nil, err
		}
	case pl == nil:
		return nil, errors.New("nobody listens")
	default:
		var server net.Conn
		c, server = net.Pipe()
		select {
		case pl.conns <- server:
		case <-pl.closed:
			return nil, errors.New("nobody listens")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns[c] = address
	return c, nil
}

// hangUp breaks all connections to an address, and refuses new ones until restore.
func (n *network) hangUp(address string) {
	host := address[len("http://"):]
	n.mu.Lock()
	defer n.mu.Unlock()
	for c, a := range n.conns {
		if a == host || a == host+":80" {
			c.Close()
			delete(n.conns, c)
		}
	}
	n.cut[host], n.cut[host+":80"] = true, true
}

func (n *network) restore(address string) {
	host := address[len("http://"):]
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, host)
	delete(n.cut, host+":80")
}

type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80} }

// bubbleClock counts in the time of the bubble, where CLOCK_BOOTTIME is a stranger.
type bubbleClock struct{ start time.Time }

func (c bubbleClock) Now() time.Time         { return time.Now() }
func (c bubbleClock) Elapsed() time.Duration { return time.Since(c.start) }

// fixture is one gateway with its leader, and the means to start agents.
type fixture struct {
	*network
	gateway *node
	leader  *leader
	address string
	fences  uint32
}

func newFixture(t testing.TB, bubble bool, change ...func(*gateway.Config)) *fixture {
	t.Helper()
	f := &fixture{network: newNetwork(bubble), leader: newLeader()}
	f.gateway, f.address = f.addGateway(t, "n1", f.leader, change...)
	f.leader.gateway = f.gateway
	if bubble {
		f.leader.patience = time.Hour // costs nothing there
	}
	return f
}

func (f *fixture) addGateway(t testing.TB, name string, l gateway.Leader, change ...func(*gateway.Config)) (*node, string) {
	t.Helper()
	c := gateway.Config{Node: name, Logger: f.logger}
	for _, ch := range change {
		ch(&c)
	}
	g, err := gateway.New(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{Gateway: g}
	if relayed {
		n.link(t, f.network, name)
	}
	n.SetLeader(l)
	path, h := g.Handler()
	address := f.serve(t, name, path, h, func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		g.Close(ctx)
	})
	if relayed && l != nil {
		n.linked(t)
	}
	return n, address
}

// agent is a worker that runs until the test ends.
type agent struct {
	*worker.Agent
	stop context.CancelFunc
	done chan error
}

func (f *fixture) agentConfig(t testing.TB, name string, h *worker.Handlers) worker.Config {
	c := worker.Config{Name: name, DataDir: t.TempDir(), Addresses: []string{f.address}, Slots: 64, Handlers: h,
		HTTPClient: f.client(t), Logger: f.logger, DrainTimeout: -1, FlushTimeout: time.Second}
	if f.bubble {
		c.Clock = bubbleClock{time.Now()}
	}
	return c
}

func (f *fixture) start(t testing.TB, c worker.Config) *agent {
	t.Helper()
	w, err := worker.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	a := &agent{Agent: w, stop: cancel, done: make(chan error, 1)}
	go func() { a.done <- w.Run(ctx) }()
	t.Cleanup(func() { a.end(t) })
	return a
}

// end stops the agent and waits for it.
func (a *agent) end(t testing.TB) {
	a.stop()
	select {
	case err := <-a.done:
		a.done <- err
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Logf("agent ended: %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("the agent did not stop")
	}
}

var quickSpec = &job.Document{Handler: &job.Handler{Name: "quick"}}

// assignment makes one with the next fence.
func (f *fixture) assignment(handler string) *job.Assignment {
	f.fences++
	spec := quickSpec
	if handler != "quick" {
		spec = &job.Document{Handler: &job.Handler{Name: handler}}
	}
	var entropy [10]byte
	entropy[9], entropy[8], entropy[7] = byte(f.fences), byte(f.fences>>8), byte(f.fences>>16)
	id := job.MakeRunID(time.Unix(1_700_000_000, 0), entropy)
	return &job.Assignment{RunID: id, RootID: id, Fence: job.MakeFence(1, f.fences), Attempt: 1, Namespace: "default", Job: "j", Spec: spec,
		Payload: json.RawMessage(`{"n":1}`)}
}

// handlers has "quick", which returns at once, and "block", which waits for its context or for release.
type blocker struct {
	*worker.Handlers
	running chan job.Fence
	causes  chan error
	release chan struct{}
}

func newBlocker() *blocker {
	b := &blocker{Handlers: &worker.Handlers{}, running: make(chan job.Fence, 1024), causes: make(chan error, 1024), release: make(chan struct{})}
	b.Handle("quick", func(context.Context, json.RawMessage) (json.RawMessage, error) {
		return json.RawMessage(`{"ok":true}`), nil
	})
	b.Handle("block", func(ctx context.Context, _ json.RawMessage) (json.RawMessage, error) {
		b.running <- worker.InfoFrom(ctx).Fence
		select {
		case <-ctx.Done():
			b.causes <- context.Cause(ctx)
			return nil, context.Cause(ctx)
		case <-b.release:
			return json.RawMessage(`1`), nil
		}
	})
	b.Handle("write", func(ctx context.Context, _ json.RawMessage) (json.RawMessage, error) {
		out := worker.InfoFrom(ctx).Output
		for range 100 {
			io.WriteString(out, "a line of output that is long enough to matter\n")
		}
		return nil, nil
	})
	return b
}
