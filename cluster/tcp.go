package cluster

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// tcpLayer carries Raft over plain TCP. Closing it closes its connections too: the library's transport leaves those it
// accepted to the other side, and each holds a goroutine until that one goes.
type tcpLayer struct {
	net.Listener
	advertise net.Addr

	mu     sync.Mutex
	closed bool
	open   map[*tcpConn]struct{}
}

// address is a net.Addr that is text, so that a name stays a name.
type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

func listen(bind, advertise string) (*tcpLayer, error) {
	l, err := net.Listen("tcp", bind)
	if err != nil {
		return nil, err
	}
	t := &tcpLayer{Listener: l, advertise: l.Addr(), open: map[*tcpConn]struct{}{}}
	if advertise != "" {
		t.advertise = address(advertise)
	}
	return t, nil
}

// Addr implements raft.StreamLayer.
func (t *tcpLayer) Addr() net.Addr { return t.advertise }

// Accept implements net.Listener.
func (t *tcpLayer) Accept() (net.Conn, error) { return t.keep(t.Listener.Accept()) }

// Dial implements raft.StreamLayer.
func (t *tcpLayer) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return t.keep(net.DialTimeout("tcp", string(to), timeout))
}

func (t *tcpLayer) keep(c net.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
	k := &tcpConn{Conn: c, layer: t}
	t.open[k] = struct{}{}
	return k, nil
}

// Close implements net.Listener.
func (t *tcpLayer) Close() error {
	err := t.Listener.Close()
	t.mu.Lock()
	t.closed = true
	open := t.open
	t.open = map[*tcpConn]struct{}{}
	t.mu.Unlock()
	for c := range open {
		c.Conn.Close()
	}
	return err
}

type tcpConn struct {
	net.Conn
	layer *tcpLayer
}

func (c *tcpConn) Close() error {
	c.layer.mu.Lock()
	delete(c.layer.open, c)
	c.layer.mu.Unlock()
	return c.Conn.Close()
}
