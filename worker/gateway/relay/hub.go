package relay

import (
	"context"
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
	"github.com/musterhq/muster/worker/gateway"
	"github.com/musterhq/muster/worker/gateway/internal/call"
	"github.com/musterhq/muster/worker/workerpb"
)

// The limits of a link.
const (
	// silence ends a link; pulseEvery is how often both sides say at least something.
	silence    = 5 * time.Second
	pulseEvery = time.Second
	// attachTimeout is the gateway's: it bounds how long the leader may take over a Hello.
	attachTimeout = 5 * time.Second
	// awaitReign is how long a link waits for its node to lead: Raft names a leader before its term has begun.
	awaitReign = 4 * time.Second
	// One message carries about so much, and one batch so many assignments.
	maxMessage = 1 << 20
	maxBatch   = 1024
	// A follower that takes no orders is cut off when so many sessions' wait.
	maxOrders = 1 << 18
)

// HubConfig is what a Hub works with.
type HubConfig struct {
	// Node is this node's name. Required.
	Node string
	// Gateway is this node's own. Required.
	Gateway *gateway.Gateway
	// Logger; required.
	Logger *slog.Logger
	// Authorize decides whether the caller may speak as this node. Nil: everybody may, which is for ports that nodes
	// alone can reach.
	Authorize func(r *http.Request, node string) error
	// AssignPatience is how long Assign waits for other nodes. Default 200 ms.
	AssignPatience time.Duration
	// WindowResults and WindowBytes are how much each node may have under way. Default 16,384 and 32 MiB.
	WindowResults int
	WindowBytes   int
	// SpreadEvery is how often workers are moved off a node that has more than its share. Default 10 s; negative: never.
	SpreadEvery time.Duration
	// Registerer takes the metrics; nil: none are kept.
	Registerer prometheus.Registerer
}

func (c *HubConfig) validate() error {
	switch {
	case c.Node == "":
		return job.InvalidField("node", "the hub needs the name of its node")
	case c.Gateway == nil:
		return job.InvalidField("gateway", "the hub needs the gateway of its node")
	case c.Logger == nil:
		return job.InvalidField("logger", "the hub needs a logger")
	}
	if c.AssignPatience <= 0 {
		c.AssignPatience = 200 * time.Millisecond
	}
	if c.WindowResults <= 0 {
		c.WindowResults = 16384
	}
	if c.WindowBytes <= 0 {
		c.WindowBytes = 32 << 20
	}
	if c.SpreadEvery == 0 {
		c.SpreadEvery = 10 * time.Second
	}
	return nil
}

// Hub is how the term of this node reaches the workers of all nodes. It is safe for concurrent use.
type Hub struct {
	config  HubConfig
	specs   workerpb.SpecCache
	metrics *hubMetrics

	mu      sync.RWMutex
	reign   *reign
	changed chan struct{} // closed when a reign begins
}

// reign is one term as its links know it. A link that belongs to it never serves another.
type reign struct {
	leader gateway.Leader
	epoch  job.Epoch
	over   chan struct{}
	parts  sync.WaitGroup // links, and the spreader

	mu    sync.RWMutex
	ended bool
	peers map[string]*peer // by node
	seats map[job.SessionID]*seat
}

// NewHub makes a Hub that nobody leads through yet.
func NewHub(c HubConfig) (*Hub, error) {
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	return &Hub{config: c, metrics: newHubMetrics(c.Registerer), changed: make(chan struct{})}, nil
}

// Lead makes the term the leader of all gateways: of this node's own at once, of the others as their links come. It is an
// error if this node has heard of a higher epoch.
func (h *Hub) Lead(term gateway.Leader, epoch job.Epoch) error {
	h.Unlead()
	if !h.config.Gateway.Lead(term, epoch) {
		return job.Errorf(job.Fenced, "epoch", "epoch %d is over: this node has heard of %d", epoch, h.config.Gateway.Epoch())
	}
	r := &reign{leader: term, epoch: epoch, over: make(chan struct{}), peers: map[string]*peer{}, seats: map[job.SessionID]*seat{}}
	if h.config.SpreadEvery > 0 {
		r.parts.Go(func() { h.spread(r) })
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reign = r
	close(h.changed)
	h.changed = make(chan struct{})
	return nil
}

// Unlead ends what Lead began. When it returns, nothing calls the term any more: the term must let go of those who wait
// in it before. It may be called twice.
func (h *Hub) Unlead() {
	h.mu.Lock()
	r := h.reign
	h.reign = nil
	h.mu.Unlock()
	if r == nil {
		return
	}
	h.config.Gateway.Unlead(r.leader)
	r.mu.Lock()
	r.ended = true
	close(r.over)
	peers := make([]*peer, 0, len(r.peers))
	for _, p := range r.peers {
		peers = append(peers, p)
	}
	r.mu.Unlock()
	for _, p := range peers {
		p.end(errors.New("this node no longer leads"))
	}
	r.parts.Wait()
}

// current answers the reign, nil while nobody leads here, and what is closed when the next one begins.
func (h *Hub) current() (*reign, <-chan struct{}) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.reign, h.changed
}

// await answers the reign, when there is one.
func (h *Hub) await(ctx context.Context) (*reign, error) {
	timer := time.NewTimer(awaitReign)
	defer timer.Stop()
	for {
		r, changed := h.current()
		if r != nil {
			return r, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-timer.C:
			return nil, connect.NewError(connect.CodeUnavailable, errors.New("this node does not lead"))
		}
	}
}

// Handler serves the links of other nodes; path is where it must be mounted, on the port that is for nodes only. It needs
// HTTP/2, and a ResponseWriter that http.ResponseController can set deadlines on.
func (h *Hub) Handler() (path string, handler http.Handler) {
	path, inner := workerpb.NewLeaderServiceHandler(service{h}, connect.WithReadMaxBytes(workerpb.MaxMessageBytes),
		connect.WithCompression("gzip", nil, nil))
	return path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Header.Get("Content-Type"), "json") {
			http.Error(w, "links are protobuf", http.StatusUnsupportedMediaType)
			return
		}
		if err := call.Serve(w, r, inner); err != nil {
			h.config.Logger.Error("link cannot have deadlines", "err", err)
			http.Error(w, "links need HTTP/2", http.StatusHTTPVersionNotSupported)
		}
	})
}

// service hides the rpc from the method set of Hub.
type service struct{ hub *Hub }

func (s service) Gateway(ctx context.Context, rpc *connect.BidiStream[workerpb.GatewayMessage, workerpb.LeaderMessage]) error {
	c, ok := call.From(ctx)
	if !ok {
		return connect.NewError(connect.CodeInternal, errors.New("served without Hub.Handler"))
	}
	return s.hub.serve(ctx, rpc, c)
}

// seat answers where a session's stream ends, if that is another node.
func (r *reign) seat(id job.SessionID) *seat {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.seats[id]
}

// Stop tells workers to stop attempts. It is a hint: an order to a session that is gone is dropped.
func (h *Hub) Stop(ctx context.Context, orders []job.StopOrder) {
	local := orders[:0:0]
	r, _ := h.current()
	for i := range orders {
		o := &orders[i]
		if s := r.of(o.Session); s != nil {
			s.peer.out.order(o.Session, &workerpb.Stop{RunId: append([]byte(nil), o.RunID[:]...), Fence: uint64(o.Fence), Reason: o.Reason.String()}, nil)
		} else {
			local = append(local, *o)
		}
	}
	if len(local) > 0 {
		h.config.Gateway.Stop(ctx, local)
	}
}

// of is seat, for a reign that may be nil.
func (r *reign) of(id job.SessionID) *seat {
	if r == nil {
		return nil
	}
	return r.seat(id)
}

// Acknowledge tells workers that results are recorded, or refused for good. An acknowledgement to a session that is gone
// is dropped: the worker sends the result again in its next session.
func (h *Hub) Acknowledge(ctx context.Context, acks []job.Ack) {
	local := acks[:0:0]
	r, _ := h.current()
	for i := range acks {
		a := &acks[i]
		if s := r.of(a.Session); s != nil {
			s.peer.out.order(a.Session, nil, &workerpb.Ack{RunId: append([]byte(nil), a.RunID[:]...), Fence: uint64(a.Fence), Refused: a.Refused})
		} else {
			local = append(local, *a)
		}
	}
	if len(local) > 0 {
		h.config.Gateway.Acknowledge(ctx, local)
	}
}

// Drain tells a worker to finish what it runs and then to stop. It is false when the session is gone.
func (h *Hub) Drain(session job.SessionID) bool {
	r, _ := h.current()
	if s := r.of(session); s != nil {
		return s.peer.out.drain(session)
	}
	return h.config.Gateway.Drain(session)
}

// Streams answers how many workers each node has that the leader can reach, this one included. It is nil while this node
// does not lead.
func (h *Hub) Streams() map[string]int {
	r, _ := h.current()
	if r == nil {
		return nil
	}
	return h.streams(r)
}

func (h *Hub) streams(r *reign) map[string]int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := make(map[string]int, len(r.peers)+1)
	for _, p := range r.peers {
		out[p.node] = 0
	}
	for _, s := range r.seats {
		out[s.peer.node]++
	}
	out[h.config.Node] = h.config.Gateway.Streams()
	return out
}
