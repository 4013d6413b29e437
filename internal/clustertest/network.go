package clustertest

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Network is an in-memory network of hosts, for whole nodes inside a synctest bubble, where real sockets would stop the
// clock. Connections are streams with a small buffer and a latency. Between two hosts each direction can be cut on its
// own: what is written then waits, as on a real network whose packets are dropped, until it is healed or given up.
type Network struct {
	mu        sync.Mutex
	latency   time.Duration
	listeners map[string]*memListener
	cut       map[[2]string]bool // from, to
	conns     map[*half]struct{}
	port      int
}

// NewNetwork makes an empty network on which everything takes the latency to arrive.
func NewNetwork(latency time.Duration) *Network {
	return &Network{latency: latency, listeners: map[string]*memListener{}, cut: map[[2]string]bool{}, conns: map[*half]struct{}{}, port: 30000}
}

// Listen listens on HOST:PORT; port 0 takes a free one.
func (n *Network) Listen(address string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if port == "0" {
		n.port++
		address = net.JoinHostPort(host, strconv.Itoa(n.port))
	}
	if n.listeners[address] != nil {
		return nil, fmt.Errorf("listen on %s: the address is in use", address)
	}
	l := &memListener{network: n, address: memAddr(address), accept: make(chan net.Conn, 128), closed: make(chan struct{})}
	n.listeners[address] = l
	return l, nil
}

// Dial connects a host to an address.
func (n *Network) Dial(ctx context.Context, from, address string) (net.Conn, error) {
	to, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	for {
		n.mu.Lock()
		reachable := !n.cut[[2]string{from, to}] && !n.cut[[2]string{to, from}]
		l := n.listeners[address]
		n.mu.Unlock()
		if reachable && l == nil {
			return nil, fmt.Errorf("dial %s: %w", address, syscall.ECONNREFUSED)
		}
		if reachable {
			out, back := n.half(from, to), n.half(to, from)
			here := &memConn{read: back, write: out, local: memAddr(from + ":0"), remote: memAddr(address)}
			there := &memConn{read: out, write: back, local: memAddr(address), remote: memAddr(from + ":0")}
			select {
			case l.accept <- there:
				return here, nil
			case <-l.closed:
				return nil, fmt.Errorf("dial %s: %w", address, syscall.ECONNREFUSED)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("dial %s: %w", address, ctx.Err())
		}
	}
}

// Cut drops what goes from one host to another; Heal lets it pass again, and what waited arrives.
func (n *Network) Cut(from, to string) { n.set(from, to, true) }

// Heal undoes Cut.
func (n *Network) Heal(from, to string) { n.set(from, to, false) }

// HealAll undoes every Cut.
func (n *Network) HealAll() {
	n.mu.Lock()
	clear(n.cut)
	halves := n.halves("", "")
	n.mu.Unlock()
	for _, h := range halves {
		h.setCut(false)
	}
}

func (n *Network) set(from, to string, cut bool) {
	n.mu.Lock()
	n.cut[[2]string{from, to}] = cut
	halves := n.halves(from, to)
	n.mu.Unlock()
	for _, h := range halves {
		h.setCut(cut)
	}
}

// halves needs n.mu.
func (n *Network) halves(from, to string) []*half {
	var list []*half
	for h := range n.conns {
		if from == "" || h.from == from && h.to == to {
			list = append(list, h)
		}
	}
	return list
}

// Kill closes everything of a host at once, as the end of its process does.
func (n *Network) Kill(host string) {
	n.mu.Lock()
	var gone []*memListener
	for a, l := range n.listeners {
		if h, _, _ := net.SplitHostPort(a); h == host {
			gone = append(gone, l)
		}
	}
	var halves []*half
	for h := range n.conns {
		if h.from == host || h.to == host {
			halves = append(halves, h)
		}
	}
	n.mu.Unlock()
	for _, l := range gone {
		l.Close()
	}
	for _, h := range halves {
		h.close(io.ErrUnexpectedEOF)
	}
}

func (n *Network) half(from, to string) *half {
	h := &half{network: n, from: from, to: to}
	h.changed = sync.NewCond(&h.mu)
	n.mu.Lock()
	n.conns[h] = struct{}{}
	h.cut = n.cut[[2]string{from, to}]
	n.mu.Unlock()
	return h
}

// half is one direction of a connection.
type half struct {
	network  *Network
	from, to string

	mu      sync.Mutex
	changed *sync.Cond
	chunks  []chunk
	bytes   int
	cut     bool
	err     error // the reader sees it after what was written before; the writer at once
	readBy  deadline
	writeBy deadline
}

type chunk struct {
	data []byte
	at   time.Time // when it arrives
}

// A writer waits while this much is on its way. Of what cannot arrive more is kept: who waits may hold a mutex, and whoever
// waits for that one stops the clock of a bubble, in which the cut would then last for ever.
const (
	halfBuffer = 256 << 10
	cutBuffer  = 64 << 20
)

// deadline is a moment at which waiting ends.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (d *deadline) set(at time.Time, wake func()) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = at
	if !at.IsZero() {
		d.timer = time.AfterFunc(max(0, time.Until(at)), wake)
	}
}

func (h *half) wake() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.changed.Broadcast()
}

func (h *half) setCut(cut bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cut = cut
	h.changed.Broadcast()
}

func (h *half) close(err error) {
	h.mu.Lock()
	if h.err == nil || h.err == io.EOF { // who closes his own end reads no further, whatever is still to come
		h.err = err
	}
	h.readBy.set(time.Time{}, nil)
	h.writeBy.set(time.Time{}, nil)
	h.changed.Broadcast()
	h.mu.Unlock()
	h.network.mu.Lock()
	delete(h.network.conns, h)
	h.network.mu.Unlock()
}

func (h *half) write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.err != nil:
			return 0, io.ErrClosedPipe
		case h.writeBy.passed():
			return 0, os.ErrDeadlineExceeded
		case h.bytes < halfBuffer || h.cut && h.bytes < cutBuffer:
			h.chunks = append(h.chunks, chunk{append([]byte(nil), b...), time.Now().Add(h.network.latency)})
			h.bytes += len(b)
			time.AfterFunc(h.network.latency, h.wake)
			return len(b), nil
		}
		h.changed.Wait()
	}
}

func (h *half) read(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.readBy.passed():
			return 0, os.ErrDeadlineExceeded
		case len(h.chunks) > 0 && !h.cut && !time.Now().Before(h.chunks[0].at):
			n := copy(b, h.chunks[0].data)
			if h.chunks[0].data = h.chunks[0].data[n:]; len(h.chunks[0].data) == 0 {
				h.chunks = h.chunks[1:]
			}
			h.bytes -= n
			h.changed.Broadcast()
			return n, nil
		case h.err != nil && (len(h.chunks) == 0 || h.err != io.EOF):
			return 0, h.err
		}
		h.changed.Wait()
	}
}

// memConn is one end of a connection.
type memConn struct {
	read, write   *half
	local, remote net.Addr
}

func (c *memConn) Read(b []byte) (int, error)  { return c.read.read(b) }
func (c *memConn) Write(b []byte) (int, error) { return c.write.write(b) }

func (c *memConn) Close() error {
	c.write.close(io.EOF)
	c.read.close(net.ErrClosed)
	return nil
}

func (c *memConn) LocalAddr() net.Addr  { return c.local }
func (c *memConn) RemoteAddr() net.Addr { return c.remote }

func (c *memConn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *memConn) SetReadDeadline(t time.Time) error {
	c.read.mu.Lock()
	defer c.read.mu.Unlock()
	c.read.readBy.set(t, c.read.wake)
	c.read.changed.Broadcast()
	return nil
}

func (c *memConn) SetWriteDeadline(t time.Time) error {
	c.write.mu.Lock()
	defer c.write.mu.Unlock()
	c.write.writeBy.set(t, c.write.wake)
	c.write.changed.Broadcast()
	return nil
}

type memAddr string

func (memAddr) Network() string  { return "mem" }
func (a memAddr) String() string { return string(a) }

type memListener struct {
	network *Network
	address memAddr
	accept  chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accept:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() {
		l.network.mu.Lock()
		if l.network.listeners[string(l.address)] == l {
			delete(l.network.listeners, string(l.address))
		}
		l.network.mu.Unlock()
		close(l.closed)
	})
	return nil
}

func (l *memListener) Addr() net.Addr { return l.address }
