package gateway_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker"
	"github.com/musterhq/muster/worker/gateway"
	"github.com/musterhq/muster/worker/gateway/relay"
)

// gate stops what passes it while it is shut: a process that is stopped neither reads nor writes.
type gate struct {
	mu   sync.Mutex
	open chan struct{} // closed while open
}

func newGate() *gate {
	g := &gate{open: make(chan struct{})}
	close(g.open)
	return g
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = make(chan struct{})
}

func (g *gate) lift() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
	default:
		close(g.open)
	}
}

func (g *gate) pass() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open
}

// half is one direction of a connection: a stream with the buffer of a socket, so that a process that is stopped is not
// noticed by those who write to it.
type half struct {
	mu      sync.Mutex
	data    []byte
	closed  bool
	changed chan struct{} // closed at each change
}

const socketBuffer = 64 << 10

func newHalf() *half { return &half{changed: make(chan struct{})} }

func (h *half) tell(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	close(h.changed)
	h.changed = make(chan struct{})
}

// wait calls try, at each change, until it answers true.
func (h *half) wait(d *deadline, try func() bool) error {
	for {
		h.mu.Lock()
		done, changed := try(), h.changed
		h.mu.Unlock()
		if done {
			return nil
		}
		passed, moved := d.passed()
		select {
		case <-changed:
		case <-moved:
		case <-passed:
			return os.ErrDeadlineExceeded
		}
	}
}

// deadline is a moment that may be set at any time.
type deadline struct {
	mu    sync.Mutex
	at    time.Time
	moved chan struct{}
}

func (d *deadline) set(at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = at
	if d.moved != nil {
		close(d.moved)
	}
	d.moved = make(chan struct{})
}

func (d *deadline) passed() (passed <-chan time.Time, moved <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.moved == nil {
		d.moved = make(chan struct{})
	}
	if !d.at.IsZero() {
		passed = time.After(time.Until(d.at))
	}
	return passed, d.moved
}

// gatedConn is a process's end of a connection. It dies after so many bytes, if it is told to.
type gatedConn struct {
	net.Conn         // only for the addresses
	gates    []*gate // of both processes: what a stopped one seems to write arrives when it goes on
	in, out  *half
	closed   chan struct{}
	once     sync.Once

	readBy, writeBy deadline

	mu   sync.Mutex
	left int // bytes until it dies; negative: it does not
}

func gatedPipe(a, b *gate) (*gatedConn, *gatedConn) {
	x, y := newHalf(), newHalf()
	pa, pb := net.Pipe()
	return &gatedConn{Conn: pa, gates: []*gate{a, b}, in: x, out: y, closed: make(chan struct{}), left: -1},
		&gatedConn{Conn: pb, gates: []*gate{a, b}, in: y, out: x, closed: make(chan struct{}), left: -1}
}

func (c *gatedConn) wait() error {
	for _, g := range c.gates {
		select {
		case <-g.pass():
		case <-c.closed:
			return net.ErrClosed
		}
	}
	return nil
}

func (c *gatedConn) spend(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left < 0 {
		return
	}
	if c.left -= n; c.left <= 0 {
		c.left = 0
		c.Close()
	}
}

func (c *gatedConn) Read(b []byte) (n int, err error) {
	err = c.in.wait(&c.readBy, func() bool {
		if err := c.isClosed(); err != nil {
			return true
		}
		n = copy(b, c.in.data)
		c.in.data = c.in.data[n:]
		return n > 0 || c.in.closed
	})
	if err == nil {
		err = c.wait()
	}
	switch {
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	}
	c.in.tell(func() {})
	c.spend(n)
	return n, nil
}

func (c *gatedConn) isClosed() error {
	select {
	case <-c.closed:
		return net.ErrClosed
	default:
		return nil
	}
}

func (c *gatedConn) Write(b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		part := 0
		err = c.out.wait(&c.writeBy, func() bool {
			if c.isClosed() != nil || c.out.closed {
				return true
			}
			part = min(len(b)-n, socketBuffer-len(c.out.data))
			c.out.data = append(c.out.data, b[n:n+part]...)
			return part > 0
		})
		if err == nil && part == 0 {
			err = io.ErrClosedPipe
		}
		n += part
		c.out.tell(func() {})
		c.spend(part)
	}
	return n, err
}

func (c *gatedConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.Conn.Close()
		c.in.tell(func() { c.in.closed = true })
		c.out.tell(func() { c.out.closed = true })
	})
	return nil
}

func (c *gatedConn) SetDeadline(t time.Time) error {
	c.readBy.set(t)
	c.writeBy.set(t)
	return nil
}
func (c *gatedConn) SetReadDeadline(t time.Time) error  { c.readBy.set(t); return nil }
func (c *gatedConn) SetWriteDeadline(t time.Time) error { c.writeBy.set(t); return nil }

// nodes is a cluster as far as gateways see it: nodes that follow whom the test names.
type nodes struct {
	*fixture
	byName map[string]*member
	names  []string

	mu      sync.Mutex
	leading string
	epoch   job.Epoch
	linkCut int // the next link dies after so many bytes; 0: it does not
}

type member struct {
	name    string
	gateway *gateway.Gateway
	hub     *relay.Hub
	address string
	gate    *gate
	changed chan struct{}
}

func newNodes(t testing.TB, bubble bool, spread time.Duration, names ...string) *nodes {
	t.Helper()
	c := &nodes{fixture: &fixture{network: newNetwork(bubble)}, byName: map[string]*member{}, names: names}
	for _, name := range names {
		c.byName[name] = &member{name: name, gate: newGate(), changed: make(chan struct{}, 1)}
	}
	for _, name := range names {
		m := c.byName[name]
		var err error
		if m.gateway, err = gateway.New(gateway.Config{Node: name, Logger: c.logger}, nil); err != nil {
			t.Fatal(err)
		}
		if m.hub, err = relay.NewHub(relay.HubConfig{Node: name, Gateway: m.gateway, Logger: c.logger, SpreadEvery: spread}); err != nil {
			t.Fatal(err)
		}
		path, h := m.hub.Handler()
		c.serve(t, name+"-raft", path, h, m.hub.Unlead)
		path, h = m.gateway.Handler()
		m.address = c.serve(t, name, path, h, func() {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			m.gateway.Close(ctx)
		})
		c.follow(t, m)
	}
	c.address = c.byName[names[0]].address
	return c
}

// gated dials as a process.
func (c *nodes) gated(from *gate, link bool) *http.Client {
	return worker.NewHTTPClient(nil, func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := c.dial(ctx, from, address)
		if g, ok := conn.(*gatedConn); ok && link {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.linkCut > 0 {
				g.left, c.linkCut = c.linkCut, 0
			}
		}
		return conn, err
	})
}

// dial is the network's, between gates.
func (c *nodes) dial(ctx context.Context, from *gate, address string) (net.Conn, error) {
	c.network.mu.Lock()
	l, cut := c.listeners[address], c.cut[address]
	c.network.mu.Unlock()
	if cut || l == nil {
		return nil, errors.New("cut off")
	}
	to := c.byName[strings.TrimSuffix(strings.TrimSuffix(address, ":80"), "-raft")].gate
	mine, theirs := gatedPipe(from, to)
	select {
	case l.conns <- theirs:
	case <-l.closed:
		return nil, errors.New("nobody listens")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	c.network.mu.Lock()
	defer c.network.mu.Unlock()
	c.conns[mine] = address
	return mine, nil
}

func (c *nodes) follow(t testing.TB, m *member) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	client := c.gated(m.gate, true)
	go func() {
		done <- relay.Follow(ctx, relay.FollowConfig{Node: m.name, Self: m.name, Gateway: m.gateway, Logger: c.logger, Client: client,
			Changed: m.changed, URL: func(a string) string { return "http://" + a + "-raft" },
			Leader: func() (string, string, bool) {
				c.mu.Lock()
				defer c.mu.Unlock()
				return c.leading, c.leading, c.leading != ""
			}})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		client.CloseIdleConnections()
	})
}

// elect makes a node lead, through a leader that takes over what is granted.
func (c *nodes) elect(t testing.TB, name string) *leader {
	t.Helper()
	next := newLeader()
	next.patience = 2 * time.Minute
	next.gateway = c.byName[name].hub
	if old := c.leader; old != nil {
		old.mu.Lock()
		for f := range old.granted {
			next.granted[f] = true
		}
		old.mu.Unlock()
	}
	c.leader = next
	c.mu.Lock()
	c.epoch++
	epoch := c.epoch
	c.mu.Unlock()
	if err := c.byName[name].hub.Lead(next, epoch); err != nil {
		t.Fatal(err)
	}
	c.name(name)
	return next
}

// name has Raft name a leader on all nodes.
func (c *nodes) name(name string) {
	c.mu.Lock()
	c.leading = name
	c.mu.Unlock()
	for _, m := range c.byName {
		select {
		case m.changed <- struct{}{}:
		default:
		}
	}
}

// grant makes an assignment under the epoch of now.
func (c *nodes) grant(handler string) *job.Assignment {
	a := c.assignment(handler)
	c.mu.Lock()
	defer c.mu.Unlock()
	a.Fence = job.MakeFence(c.epoch, c.fences)
	return a
}
