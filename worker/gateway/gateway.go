package gateway

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker/gateway/internal/call"
	"github.com/musterhq/muster/worker/gateway/output"
	"github.com/musterhq/muster/worker/workerpb"
)

// Leader is what gateways tell the leader. It is implemented by the term that leads, or by a stub that carries the calls
// to another node. Calls of one session come in order, except that Heartbeat may overtake the others. After the end of
// the term every call must return soon.
type Leader interface {
	// Attach opens a session; node is where its stream ends. It answers which of the hello's fences have no lease any
	// more. An error with code Conflict, Invalid or Forbidden refuses the worker; any other ends the stream, and the
	// worker tries again. A leaving worker has no slots. The session may be used before Attach has returned.
	Attach(ctx context.Context, session job.SessionID, node string, h job.WorkerHello) (stop []job.Fence, err error)
	// Detach closes a session, whose stream has ended. It is not called when the leader was replaced.
	Detach(session job.SessionID)
	// Heartbeat renews the leases of the fences and answers those that have none. A stub that cannot ask must see to it
	// that SetLeader(nil), or Unlead, is called before it returns.
	Heartbeat(session job.SessionID, running []job.Fence) (unknown []job.Fence)
	Started(session job.SessionID, s []job.Started)
	// Finished hands results over. It blocks while the leader's inbox is full; the worker then stops sending results when
	// its window is used up, while its heartbeats go on.
	Finished(session job.SessionID, outcomes []job.Outcome)
}

// Output keeps run output; *output.Store does.
type Output interface {
	Append(frames ...output.Frame) error
	Close(run job.RunID)
}

// Config of a Gateway.
type Config struct {
	// Node is this node's name. Required.
	Node string
	// Logger; required.
	Logger *slog.Logger
	// Output keeps run output. Nil: it is dropped.
	Output Output
	// Holds tells whether a worker holds a run under a fence, or did a moment ago, as far as this node knows: output that
	// comes from anybody else is dropped. What was handed to the worker on its stream here counts in any case. Nil: all
	// output is kept, which is for tests.
	Holds func(worker string, run job.RunID, fence job.Fence) bool
	// Admit decides, before anything is read of a stream, whether its caller may have one at all; the error's message is
	// shown to it. What it returns is called when the stream has ended. Without it a stranger's silence takes the place of a
	// worker, and his longest message its memory. Nil: everybody may.
	Admit func(r *http.Request) (leave func(), err error)
	// Authorize decides whether the caller may speak as this worker; the error's message is shown to it. It is asked at
	// every Hello and every heartbeat, so that a credential that was revoked or ran out ends its stream; it must be
	// quick. Nil: everybody may, which is for loopback only.
	Authorize func(r *http.Request, h job.WorkerHello) error
	// AssignPatience is how long Assign waits for a busy stream. Default 50 ms.
	AssignPatience time.Duration
	// IdleTimeout ends a stream on which the worker was silent. Default 3 heartbeats, 15 s.
	IdleTimeout time.Duration
	// MaxStreams bounds the streams of this node; more are told to go elsewhere. Default 16,384.
	MaxStreams int
	// MaxUnackedResults and MaxUnackedBytes are the window of each worker. Default 8,192 and 8 MiB.
	MaxUnackedResults int
	MaxUnackedBytes   int
	// Registerer takes the metrics; nil: none are kept.
	Registerer prometheus.Registerer
}

// Validate fills the defaults in and names the field that is wrong.
func (c *Config) Validate() error {
	if c.Node == "" {
		return job.InvalidField("node", "the gateway needs the name of its node")
	}
	if c.Logger == nil {
		return job.InvalidField("logger", "the gateway needs a logger")
	}
	for _, d := range []struct {
		name string
		v    *int
		def  int
	}{
		{"max_streams", &c.MaxStreams, 16384},
		{"max_unacked_results", &c.MaxUnackedResults, 8192},
		{"max_unacked_bytes", &c.MaxUnackedBytes, 8 << 20},
	} {
		if *d.v < 0 {
			return job.InvalidField(d.name, "must not be negative")
		}
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	if c.AssignPatience <= 0 {
		c.AssignPatience = 50 * time.Millisecond
	}
	if c.IdleTimeout <= 0 {
		c.IdleTimeout = 3 * job.HeartbeatEvery
	}
	return nil
}

// Gateway is the end of worker streams on one node. It is safe for concurrent use.
type Gateway struct {
	config  Config
	boot    string // makes session ids unlike those of an earlier life of this node
	specs   workerpb.SpecCache
	metrics *metrics

	setting sync.Mutex // held by SetLeader, so that two of them do not mix

	mu       sync.RWMutex
	leader   Leader
	reign    uint64 // counts SetLeader
	epoch    job.Epoch
	sessions map[job.SessionID]*stream
	streams  map[*stream]struct{}
	sequence uint64
	closing  bool
	idle     chan struct{} // closed when closing and the last stream has gone
}

// New makes a Gateway; leader may be nil.
func New(c Config, leader Leader) (*Gateway, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	var b [6]byte
	rand.Read(b[:])
	return &Gateway{
		config: c, boot: hex.EncodeToString(b[:]), metrics: newMetrics(c.Registerer), leader: leader,
		sessions: map[job.SessionID]*stream{}, streams: map[*stream]struct{}{}, idle: make(chan struct{}),
	}, nil
}

// Handler serves the worker protocol; path is where it must be mounted. It needs HTTP/2, and a ResponseWriter that
// http.ResponseController can set deadlines on.
func (g *Gateway) Handler() (path string, h http.Handler) {
	path, inner := workerpb.NewWorkerServiceHandler(service{g},
		connect.WithReadMaxBytes(workerpb.MaxMessageBytes),
		connect.WithCodec(codec{}),
		connect.WithCompression("gzip", nil, nil)) // batches are small, and bombs are not welcome
	return path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Header.Get("Content-Type"), "json") { // Connect would speak it, without the bounds of codec
			http.Error(w, "worker streams are protobuf", http.StatusUnsupportedMediaType)
			return
		}
		if err := call.Serve(w, r, inner); err != nil {
			g.config.Logger.Error("worker stream cannot have deadlines", "err", err)
			http.Error(w, "worker streams need HTTP/2", http.StatusHTTPVersionNotSupported)
		}
	})
}

// service hides the rpc from the method set of Gateway.
type service struct{ gateway *Gateway }

func (s service) Attach(ctx context.Context, rpc *connect.BidiStream[workerpb.WorkerMessage, workerpb.NodeMessage]) error {
	c, ok := call.From(ctx)
	if !ok {
		return connect.NewError(connect.CodeInternal, errors.New("served without Gateway.Handler"))
	}
	if admit := s.gateway.config.Admit; admit != nil {
		leave, err := admit(c.Request)
		if err != nil {
			return s.gateway.turnAway(rpc, c, err)
		}
		defer leave()
	}
	return s.gateway.serve(ctx, rpc, c)
}

// turnAway tells a caller that gets no stream why, in the words of the protocol, and does not wait for it to read them.
func (g *Gateway) turnAway(rpc *connect.BidiStream[workerpb.WorkerMessage, workerpb.NodeMessage], c *call.Call, err error) error {
	g.metrics.turnedAway.Inc()
	e := job.AsError(err)
	g.config.Logger.Debug("worker stream refused", "remote", c.Request.RemoteAddr, "code", e.Code, "err", e)
	cut := time.AfterFunc(time.Second, c.Abort)
	defer cut.Stop()
	_ = rpc.Send(&workerpb.NodeMessage{Welcome: &workerpb.Welcome{Status: workerpb.Welcome_STATUS_REFUSED, Code: string(e.Code), Message: e.Message}})
	return connect.NewError(connect.CodePermissionDenied, errors.New(e.Message))
}

// current answers who leads, and under which count of SetLeader.
func (g *Gateway) current() (Leader, uint64) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.leader, g.reign
}

// seat gives a stream a new session under the reign, unless the reign is over.
func (g *Gateway) seat(s *stream, reign uint64) (job.SessionID, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.reign != reign {
		return "", false
	}
	g.sequence++
	id := job.SessionID(fmt.Sprintf("%s.%s.%d", g.config.Node, g.boot, g.sequence))
	g.sessions[id] = s
	return id, true
}

func (g *Gateway) unseat(id job.SessionID) {
	if id == "" {
		return
	}
	g.mu.Lock()
	delete(g.sessions, id)
	g.mu.Unlock()
}

func (g *Gateway) session(id job.SessionID) *stream {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.sessions[id]
}

func (g *Gateway) enter(s *stream) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closing:
		return connect.NewError(connect.CodeUnavailable, errors.New("this node is stopping; attach to another one"))
	case len(g.streams) >= g.config.MaxStreams:
		g.metrics.refused.Inc()
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("this node has %d worker streams already; attach to another one", len(g.streams)))
	}
	g.streams[s] = struct{}{}
	g.metrics.streams.Inc()
	return nil
}

func (g *Gateway) leave(s *stream) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.streams, s)
	g.metrics.streams.Dec()
	if g.closing && len(g.streams) == 0 {
		close(g.idle)
	}
}

// Close sends the workers to other nodes and waits until they have gone; when ctx ends, it cuts off those that have not.
// It may be called twice.
func (g *Gateway) Close(ctx context.Context) error {
	g.mu.Lock()
	first := !g.closing
	g.closing = true
	if first && len(g.streams) == 0 {
		close(g.idle)
	}
	streams := make([]*stream, 0, len(g.streams))
	for s := range g.streams {
		streams = append(streams, s)
	}
	g.mu.Unlock()
	for _, s := range streams {
		s.out.askMove()
	}
	select {
	case <-g.idle:
		return nil
	case <-ctx.Done():
	}
	for _, s := range streams {
		s.call.Abort()
	}
	<-g.idle
	return nil
}
