package cluster

import (
	"io"
	"log"
	"net"
	"slices"
	"sync"

	"github.com/hashicorp/memberlist"
)

// What strangers can take of a node, at its port and in gossip: connections that say nothing, memory for what they say before
// it turns out that they have no key, and lines of the log.

// maxHandshakes is how many connections may be about to say what they want: more than all nodes ever need.
const maxHandshakes = 256

// begin gives a connection time to say what it wants. There is always room for one more, and the one that has taken the
// longest goes for it: a node needs milliseconds, so strangers who say nothing cannot keep it out.
func (p *Port) begin(c *portConn) {
	p.mu.Lock()
	var oldest *portConn
	if len(p.shaking) == maxHandshakes {
		oldest = p.shaking[0]
		p.shaking = slices.Delete(p.shaking, 0, 1)
	}
	p.shaking = append(p.shaking, c)
	p.mu.Unlock()
	if oldest != nil {
		p.refuse(oldest, "too_many", nil)
	}
}

// begun gives a connection's place back, and tells whether it had it still.
func (p *Port) begun(c *portConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.shaking, c)
	if i >= 0 {
		p.shaking = slices.Delete(p.shaking, i, i+1)
	}
	return i >= 0
}

const (
	// maxGossipStreams and maxGossipStream bound what comes in over TCP, of which memberlist reads as much as is announced
	// before it tries the key: the state of a full cell is less than half of that.
	maxGossipStreams = 128
	maxGossipStream  = 2 << 20
	// gossipLinesPerSecond and gossipLines bound the log: anybody's datagram is worth a line to memberlist.
	gossipLinesPerSecond = 1
	gossipLines          = 20
)

// gossipTransport is memberlist's own with bounds. When there are too many connections the oldest goes.
type gossipTransport struct {
	*memberlist.NetTransport
	streams chan net.Conn
	closing chan struct{}
	closed  chan struct{} // nothing comes in any more
	ending  [2]sync.Once
	pump    sync.WaitGroup

	mu   sync.Mutex
	open []*gossipStream // the oldest first
}

// newGossipTransport listens, with port 0 on any that is free for both protocols, and answers on which.
func newGossipTransport(host string, port int, l *log.Logger) (*gossipTransport, int, error) {
	var inner *memberlist.NetTransport
	var err error
	for tries := 0; inner == nil; tries++ {
		inner, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{host}, BindPort: port, Logger: l})
		if err != nil && (port != 0 || tries == 10) {
			return nil, 0, err
		}
	}
	t := &gossipTransport{NetTransport: inner, streams: make(chan net.Conn), closing: make(chan struct{}), closed: make(chan struct{})}
	t.pump.Go(t.take)
	return t, inner.GetAutoBindPort(), nil
}

// StreamCh implements memberlist.Transport.
func (t *gossipTransport) StreamCh() <-chan net.Conn { return t.streams }

func (t *gossipTransport) take() {
	for closing := false; !closing; {
		select {
		case c := <-t.NetTransport.StreamCh():
			s := t.begin(c)
			select {
			case t.streams <- s:
			case <-t.closing:
				_ = s.Close()
			}
		case <-t.closing:
			closing = true
		}
	}
	// The listeners end only when somebody has taken what they hold.
	for {
		select {
		case c := <-t.NetTransport.StreamCh():
			_ = c.Close()
		case <-t.PacketCh():
		case <-t.closed:
			return
		}
	}
}

func (t *gossipTransport) begin(c net.Conn) *gossipStream {
	s := &gossipStream{Conn: c, transport: t, left: maxGossipStream}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.open) == maxGossipStreams {
		_ = t.open[0].Conn.Close() // its reader finds out, and closes it
		t.open = slices.Delete(t.open, 0, 1)
	}
	t.open = append(t.open, s)
	return s
}

// Shutdown implements memberlist.Transport.
func (t *gossipTransport) Shutdown() error {
	t.ending[0].Do(func() { close(t.closing) })
	err := t.NetTransport.Shutdown()
	t.ending[1].Do(func() { close(t.closed) })
	t.pump.Wait()
	return err
}

// gossipStream is one connection that came in; it has one reader.
type gossipStream struct {
	net.Conn
	transport *gossipTransport
	left      int
}

func (s *gossipStream) Read(b []byte) (int, error) {
	if s.left <= 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := s.Conn.Read(b[:min(len(b), s.left)])
	s.left -= n
	return n, err
}

func (s *gossipStream) Close() error {
	t := s.transport
	t.mu.Lock()
	if i := slices.Index(t.open, s); i >= 0 {
		t.open = slices.Delete(t.open, i, i+1)
	}
	t.mu.Unlock()
	return s.Conn.Close()
}
