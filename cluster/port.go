package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/job"
	"github.com/prometheus/client_golang/prometheus"
)

// What a connection to the port is for, agreed in the TLS handshake (ALPN).
const (
	protoRaft = "muster-raft"
	protoHTTP = "h2"
)

const (
	handshakeTimeout = 5 * time.Second // until a stranger has said what it wants
	peerDialTimeout  = 2 * time.Second // nodes are near each other; what takes longer is tried again
)

// PortConfig is how a node is reached by other nodes.
type PortConfig struct {
	// Listener is where they connect. Required; the port closes it.
	Listener net.Listener
	// Advertise is the host:port that others are told, if it is not the listener's.
	Advertise string
	// Server and Client decide who may connect and who is connected to. Both nil means plain TCP.
	Server, Client *tls.Config
	// Dial connects to another node. Default TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Logger. Required.
	Logger *slog.Logger
	// Registerer takes the metrics; nil means none.
	Registerer prometheus.Registerer
}

// Port is the one address on which nodes reach each other: Raft, and HTTP/2 for everything else. The two never share a
// connection, so that Raft's heartbeats do not wait behind calls. With TLS a connection says in its handshake what it is
// for; without, its first byte tells: Raft's are small numbers, HTTP/2's is a letter.
//
// Closing it closes all its connections. Raft's transport leaves those it accepted to the other side, and each holds a
// goroutine until that one goes.
type Port struct {
	cfg       PortConfig
	advertise net.Addr
	log       *slog.Logger
	raftTLS   *tls.Config // of a client; nil without TLS
	httpTLS   *tls.Config
	serverTLS *tls.Config
	client    *http.Client // of calls
	link      *http.Client // of what is always open
	server    *http.Server
	web       *connQueue
	refused   *prometheus.CounterVec
	unmetric  func()

	closing  context.Context
	close    context.CancelFunc
	closed   chan struct{} // when Close has ended
	workers  sync.WaitGroup
	handling sync.WaitGroup // requests; Add under mu while not shut

	mu       sync.Mutex
	shut     bool
	open     map[*portConn]struct{}
	shaking  []*portConn // those that have not said what they want, the oldest first
	handlers map[string]http.Handler
	layer    *raftLayer
}

// OpenPort makes a port. Nobody is answered before Serve; calling others works at once.
func OpenPort(cfg PortConfig) (*Port, error) {
	switch {
	case cfg.Listener == nil:
		return nil, job.InvalidField("Listener", "a listener is needed")
	case cfg.Logger == nil:
		return nil, job.InvalidField("Logger", "a logger is needed")
	case (cfg.Server == nil) != (cfg.Client == nil):
		return nil, job.InvalidField("Server", "TLS is for both ways or for neither")
	}
	if cfg.Dial == nil {
		var d net.Dialer
		cfg.Dial = func(ctx context.Context, address string) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) }
	}
	p := &Port{
		cfg: cfg, advertise: cfg.Listener.Addr(), log: cfg.Logger.With("component", "port"),
		web: newConnQueue(cfg.Listener.Addr()), closed: make(chan struct{}), open: map[*portConn]struct{}{}, handlers: map[string]http.Handler{},
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_port_refused_total", Help: "Connections of nodes that were refused, by reason."}, []string{"reason"}),
	}
	if cfg.Advertise != "" {
		p.advertise = address(cfg.Advertise)
	}
	if cfg.Server != nil {
		p.serverTLS = serverTLS(cfg.Server)
		p.raftTLS, p.httpTLS = cfg.Client.Clone(), cfg.Client.Clone()
		p.raftTLS.NextProtos, p.httpTLS.NextProtos = []string{protoRaft}, []string{protoHTTP}
	}
	p.closing, p.close = context.WithCancel(context.Background())
	p.server, p.client, p.link = p.newServer(), p.newClient(), p.newClient()
	p.unmetric = func() {}
	if cfg.Registerer != nil {
		var err error
		if p.unmetric, err = registerAll(cfg.Registerer, []prometheus.Collector{p.refused}); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return p, nil
}

// serverTLS makes a configuration offer both protocols, also when it makes another one for each connection. Connections
// live long, so resuming a session would save nothing, and a certificate is checked each time.
func serverTLS(c *tls.Config) *tls.Config {
	offer := func(c *tls.Config) *tls.Config {
		c = c.Clone()
		c.NextProtos = []string{protoRaft, protoHTTP}
		c.SessionTicketsDisabled = true
		return c
	}
	made := offer(c)
	if each := c.GetConfigForClient; each != nil {
		made.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := each(hello)
			if err != nil || c == nil {
				return nil, err
			}
			return offer(c), nil
		}
	}
	return made
}

func (p *Port) protocols() *http.Protocols {
	h2 := new(http.Protocols)
	h2.SetHTTP2(p.serverTLS != nil)
	h2.SetUnencryptedHTTP2(p.serverTLS == nil)
	return h2
}

func (p *Port) newServer() *http.Server {
	return &http.Server{
		Handler:           http.HandlerFunc(p.handle),
		Protocols:         p.protocols(),
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 1000, SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
		ReadHeaderTimeout: handshakeTimeout,
		ErrorLog:          log.New(&lineLogger{log: p.log}, "", 0),
		BaseContext:       func(net.Listener) context.Context { return p.closing },
	}
}

func (p *Port) newClient() *http.Client {
	t := &http.Transport{
		Protocols: p.protocols(),
		// A node that is gone without a word is noticed by its silence, so that the next call dials anew.
		HTTP2:              &http.HTTP2Config{SendPingTimeout: 2 * time.Second, PingTimeout: 2 * time.Second},
		DisableCompression: true,
		IdleConnTimeout:    5 * time.Minute,
		DialContext: func(ctx context.Context, _, to string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, peerDialTimeout)
			defer cancel()
			return p.dial(ctx, to)
		},
		DialTLSContext: func(ctx context.Context, _, to string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, peerDialTimeout)
			defer cancel()
			return p.dialTLS(ctx, to, p.httpTLS)
		},
	}
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// Handle answers the requests below a path that ends in a slash, or of exactly that path. A later handler of the same
// path takes over; nil takes it away.
func (p *Port) Handle(path string, h http.Handler) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handlers[path] = h
	if h == nil {
		delete(p.handlers, path)
	}
}

func (p *Port) handle(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	h, ok := p.handlers[r.URL.Path]
	if !ok {
		if i := strings.LastIndexByte(r.URL.Path, '/'); i >= 0 {
			h, ok = p.handlers[r.URL.Path[:i+1]]
		}
	}
	if p.shut {
		ok = false
	}
	if ok {
		p.handling.Add(1)
	}
	p.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	defer p.handling.Done()
	h.ServeHTTP(w, r)
}

// HTTPClient calls other nodes, at URL. It keeps one connection to each.
func (p *Port) HTTPClient() *http.Client { return p.client }

// LinkClient is another one, with connections of its own, for a stream that is always open: calls that nobody reads must not
// use up its flow control.
func (p *Port) LinkClient() *http.Client { return p.link }

// URL is the base URL of the node at a Raft address.
func (p *Port) URL(address string) string {
	if p.serverTLS == nil {
		return "http://" + address
	}
	return "https://" + address
}

// Address is what others are told.
func (p *Port) Address() string { return p.advertise.String() }

// Serve answers other nodes until ctx ends or the port is closed, and leaves it closed.
func (p *Port) Serve(ctx context.Context) error {
	p.mu.Lock()
	if p.shut {
		p.mu.Unlock()
		return job.Errorf(job.Unavailable, "", "the port is closed")
	}
	p.workers.Go(func() { _ = p.server.Serve(p.web) })
	p.workers.Go(p.accept)
	p.mu.Unlock()
	select {
	case <-ctx.Done():
	case <-p.closing.Done():
	}
	return p.Close()
}

func (p *Port) accept() {
	for pause := time.Duration(0); ; {
		c, err := p.cfg.Listener.Accept()
		if err != nil {
			if p.closing.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			p.log.Warn("a connection cannot be accepted", "err", err, "retry_in", pause)
			select {
			case <-time.After(pause):
			case <-p.closing.Done():
			}
			continue
		}
		pause = 0
		k, err := p.keep(c)
		if err != nil {
			return // the port closes
		}
		p.begin(k.(*portConn))
		p.workers.Go(func() {
			if err := p.welcome(k.(*portConn)); err != nil {
				p.log.Debug("connection ended early", "remote", c.RemoteAddr(), "err", err)
			}
		})
	}
}

func (p *Port) refuse(c net.Conn, reason string, err error) {
	p.refused.WithLabelValues(reason).Inc()
	p.log.Debug("connection refused", "remote", c.RemoteAddr(), "reason", reason, "err", err)
	_ = c.Close()
}

// welcome finds out what a connection is for.
func (p *Port) welcome(raw *portConn) error {
	raft, c, err := p.shakeHands(raw)
	switch {
	case !p.begun(raw):
		return errors.New("others came, and it had said nothing") // it was refused
	case err != nil:
		p.refuse(raw, "handshake", err)
		return nil
	case !raft:
		return p.web.put(c)
	}
	p.mu.Lock()
	layer := p.layer
	p.mu.Unlock()
	if layer == nil {
		return c.Close()
	}
	return layer.put(c)
}

func (p *Port) shakeHands(raw net.Conn) (raft bool, c net.Conn, err error) {
	if err := raw.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return false, nil, err
	}
	if p.serverTLS != nil {
		t := tls.Server(raw, p.serverTLS)
		if err := t.HandshakeContext(p.closing); err != nil {
			return false, nil, err
		}
		proto := t.ConnectionState().NegotiatedProtocol
		if proto != protoRaft && proto != protoHTTP {
			return false, nil, fmt.Errorf("protocol %q is not spoken here", proto)
		}
		raft, c = proto == protoRaft, t
	} else {
		var first [1]byte
		if _, err := io.ReadFull(raw, first[:]); err != nil {
			return false, nil, err
		}
		if first[0] >= ' ' && first[0] != 'P' {
			return false, nil, errors.New("this port is for nodes only")
		}
		raft, c = first[0] < ' ', &begunConn{Conn: raw, first: first[:]}
	}
	return raft, c, raw.SetDeadline(time.Time{})
}

// begunConn gives back the byte that was read to know what the connection is for.
type begunConn struct {
	net.Conn
	first []byte
}

func (c *begunConn) Read(b []byte) (int, error) {
	if len(c.first) > 0 && len(b) > 0 {
		n := copy(b, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

func (p *Port) dial(ctx context.Context, to string) (net.Conn, error) {
	c, err := p.cfg.Dial(ctx, to)
	if err != nil {
		return nil, err
	}
	return p.keep(c)
}

func (p *Port) dialTLS(ctx context.Context, to string, config *tls.Config) (net.Conn, error) {
	if config == nil {
		return nil, errors.New("this port is without TLS")
	}
	raw, err := p.dial(ctx, to)
	if err != nil {
		return nil, err
	}
	if config.ServerName == "" {
		host, _, err := net.SplitHostPort(to)
		if err != nil {
			return nil, errors.Join(err, raw.Close())
		}
		config = config.Clone()
		config.ServerName = host
	}
	c := tls.Client(raw, config)
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	if proto := c.ConnectionState().NegotiatedProtocol; proto != config.NextProtos[0] {
		return nil, errors.Join(fmt.Errorf("%s does not speak %s", to, config.NextProtos[0]), c.Close())
	}
	return c, nil
}

// keep notes a connection, so that Close can close it.
func (p *Port) keep(c net.Conn) (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shut {
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
	k := &portConn{Conn: c, port: p}
	p.open[k] = struct{}{}
	return k, nil
}

type portConn struct {
	net.Conn
	port *Port
}

func (c *portConn) Close() error {
	c.port.mu.Lock()
	delete(c.port.open, c)
	c.port.mu.Unlock()
	return c.Conn.Close()
}

// Close closes the listener and all connections, and waits for what was being answered. It may be called twice.
func (p *Port) Close() error {
	p.mu.Lock()
	if p.shut {
		p.mu.Unlock()
		<-p.closed
		return nil
	}
	p.shut = true
	layer, open := p.layer, p.open
	p.open = map[*portConn]struct{}{}
	p.mu.Unlock()
	defer close(p.closed)
	// Connections go first, then what is being answered: an answer cut short must not look like a whole one.
	err := p.cfg.Listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	if layer != nil {
		_ = layer.Close()
	}
	_ = p.web.Close()
	_ = p.server.Close()
	for c := range open {
		_ = c.Conn.Close()
	}
	p.close()
	p.client.CloseIdleConnections()
	p.link.CloseIdleConnections()
	p.workers.Wait()
	p.handling.Wait()
	p.unmetric()
	return err
}

// StreamLayer carries Raft over this port. A later one takes over; closing it closes its connections and leaves the port
// open.
func (p *Port) StreamLayer() raft.StreamLayer {
	l := &raftLayer{connQueue: newConnQueue(p.advertise), port: p, open: map[net.Conn]struct{}{}}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.layer = l
	return l
}

// raftLayer is a raft.StreamLayer.
type raftLayer struct {
	*connQueue
	port *Port

	mu     sync.Mutex
	closed bool
	open   map[net.Conn]struct{}
}

// Accept implements net.Listener.
func (l *raftLayer) Accept() (net.Conn, error) {
	c, err := l.connQueue.Accept()
	if err != nil {
		return nil, err
	}
	return l.keep(c)
}

// Dial implements raft.StreamLayer.
func (l *raftLayer) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(l.port.closing, min(timeout, peerDialTimeout))
	defer cancel()
	var c net.Conn
	var err error
	if l.port.raftTLS != nil {
		c, err = l.port.dialTLS(ctx, string(to), l.port.raftTLS)
	} else {
		c, err = l.port.dial(ctx, string(to))
	}
	if err != nil {
		return nil, err
	}
	return l.keep(c)
}

func (l *raftLayer) keep(c net.Conn) (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
	k := &layerConn{Conn: c, layer: l}
	l.open[k] = struct{}{}
	return k, nil
}

// Close implements net.Listener.
func (l *raftLayer) Close() error {
	l.mu.Lock()
	l.closed = true
	open := l.open
	l.open = map[net.Conn]struct{}{}
	l.mu.Unlock()
	_ = l.connQueue.Close()
	for c := range open {
		_ = c.(*layerConn).hangUp()
	}
	return nil
}

type layerConn struct {
	net.Conn
	layer *raftLayer
}

func (c *layerConn) Close() error {
	c.layer.mu.Lock()
	delete(c.layer.open, c)
	c.layer.mu.Unlock()
	return c.Conn.Close()
}

// hangUp closes the connection without the goodbye of TLS, which waits for the other side.
func (c *layerConn) hangUp() error {
	if t, ok := c.Conn.(*tls.Conn); ok {
		return t.NetConn().Close()
	}
	return c.Conn.Close()
}

// connQueue is a net.Listener of connections that somebody else accepted.
type connQueue struct {
	address net.Addr
	conns   chan net.Conn
	done    chan struct{}
	once    sync.Once
}

func newConnQueue(a net.Addr) *connQueue {
	return &connQueue{address: a, conns: make(chan net.Conn), done: make(chan struct{})}
}

// put hands a connection over, or closes it when nobody takes it.
func (q *connQueue) put(c net.Conn) error {
	timer := time.NewTimer(handshakeTimeout)
	defer timer.Stop()
	select {
	case q.conns <- c:
		return nil
	case <-q.done:
		return c.Close()
	case <-timer.C:
		return errors.Join(errors.New("nobody took the connection"), c.Close())
	}
}

func (q *connQueue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *connQueue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

func (q *connQueue) Addr() net.Addr { return q.address }
