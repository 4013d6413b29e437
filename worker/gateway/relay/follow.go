package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker/gateway"
	"github.com/musterhq/muster/worker/workerpb"
)

// FollowConfig is what Follow works with.
type FollowConfig struct {
	// Node is this node's name, Self its id as Leader answers it. Required.
	Node, Self string
	// Gateway is this node's own. Required.
	Gateway *gateway.Gateway
	// Logger; required.
	Logger *slog.Logger
	// Leader answers whom Raft names now: its id, and where its port for nodes is. Required.
	Leader func() (id, address string, ok bool)
	// Changed hurries the next look at Leader, which happens every quarter of a second anyway. It is for Follow alone. May
	// be nil.
	Changed <-chan struct{}
	// Lost is told that the link to a leader ended, by the other side or on the way, while Raft still names it. It must not
	// block. May be nil.
	Lost func(id string)
	// Epoch answers the highest epoch in this node's own state. May be nil.
	Epoch func() job.Epoch
	// Client carries the link; it must speak HTTP/2, and give up a connection that takes nothing for some seconds (as
	// http.HTTP2Config.WriteByteTimeout does): until then Follow cannot end. Its connections should carry little else: a
	// link shares their flow control. URL is the base URL of an address. Both are required.
	Client connect.HTTPClient
	URL    func(address string) string
	// Registerer takes the metrics; nil: none are kept.
	Registerer prometheus.Registerer
}

func (c *FollowConfig) validate() error {
	switch {
	case c.Node == "" || c.Self == "":
		return job.InvalidField("node", "a follower needs the name and the id of its node")
	case c.Gateway == nil:
		return job.InvalidField("gateway", "a follower needs the gateway of its node")
	case c.Logger == nil:
		return job.InvalidField("logger", "a follower needs a logger")
	case c.Leader == nil || c.Client == nil || c.URL == nil:
		return job.InvalidField("leader", "a follower must know who leads, and how to get there")
	}
	return nil
}

// How long to wait before a link is tried again, and how often to look who leads.
const (
	minRetry  = 50 * time.Millisecond
	maxRetry  = time.Second
	lookEvery = 250 * time.Millisecond
)

type follower struct {
	FollowConfig
	metrics *followMetrics
	left    sync.WaitGroup // what ended links left behind
}

// Follow joins this node's gateway to whoever leads, as long as that is another node, until ctx ends; all that it started
// is gone then. While this node leads itself, the Hub does that, and Follow leaves the gateway alone.
func Follow(ctx context.Context, c FollowConfig) error {
	if err := c.validate(); err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	f := &follower{FollowConfig: c, metrics: newFollowMetrics(c.Registerer)}
	defer f.left.Wait()
	pause := minRetry
	for ctx.Err() == nil {
		id, address, ok := f.Leader()
		if !ok || id == f.Self {
			f.wait(ctx, lookEvery)
			continue
		}
		began := time.Now()
		err := f.follow(ctx, id, address)
		if ctx.Err() != nil {
			break
		}
		f.metrics.ended.Inc()
		if now, _, _ := f.Leader(); now != id {
			pause = minRetry
			f.Logger.Info("the link to the leader ended: another node leads", "leader", id, "err", err)
			continue
		}
		if time.Since(began) > 2*silence {
			pause = minRetry
		}
		if f.Lost != nil {
			f.Lost(id)
		}
		f.Logger.Warn("no link to the leader; trying again", "leader", id, "address", address, "err", err)
		f.wait(ctx, pause/2+rand.N(pause))
		pause = min(2*pause, maxRetry)
	}
	return nil
}

// wait waits for a while, or until it is time to look who leads.
func (f *follower) wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-f.Changed:
	}
}

// floor is the highest epoch that this node has heard of, from anybody.
func (f *follower) floor() job.Epoch {
	e := f.Gateway.Epoch()
	if f.Epoch != nil {
		e = max(e, f.Epoch())
	}
	return e
}

var errAnotherLeads = errors.New("another node leads by what Raft says")

// follow is the life of one link: it ends when the link does, or when Raft names another leader.
func (f *follower) follow(ctx context.Context, id, address string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l := newLink(f.Gateway, func(err error) { cancel(err) })
	rpc := workerpb.NewLeaderServiceClient(f.Client, f.URL(address), connect.WithReadMaxBytes(workerpb.MaxMessageBytes),
		connect.WithAcceptCompression("gzip", nil, nil)).Gateway(ctx)
	// While a request's body is open, net/http does not look at its context: closing it is what ends the stream.
	defer context.AfterFunc(ctx, func() { rpc.CloseRequest() })()
	watch := watchSilence(&l.seenAt, l.bornAt, func() { cancel(errSilent) })
	defer watch.Stop()

	hello := &workerpb.GatewayMessage{Hello: &workerpb.NodeHello{Node: f.Node, Epoch: uint64(f.floor())}}
	parts := new(sync.WaitGroup)
	parts.Go(func() {
		err := rpc.Send(hello)
		if err == nil {
			err = l.write(ctx, rpc)
		}
		if err != nil {
			// The reader learns better why; but it may be waiting for a node that is gone.
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
				cancel(err)
			}
		}
	})
	parts.Go(func() { cancel(f.read(l, rpc, id)) })
	parts.Go(func() { l.assign(ctx) })
	for ctx.Err() == nil {
		f.wait(ctx, lookEvery)
		if now, at, ok := f.Leader(); ok && (now != id || at != address) {
			cancel(errAnotherLeads)
		}
	}
	l.end()
	f.metrics.linked.Set(0)
	// A connection that takes nothing can hold its stream up until it is given up as well. What the link may still read is for
	// sessions that have ended.
	ended := make(chan struct{})
	f.left.Go(func() {
		defer close(ended)
		rpc.CloseRequest()
		parts.Wait()
		rpc.CloseResponse()
	})
	select {
	case <-ended:
	case <-time.After(time.Second):
	}
	return context.Cause(ctx)
}

// read handles what the leader says until the link ends; it answers why it did.
func (f *follower) read(l *link, rpc *connect.BidiStreamForClient[workerpb.GatewayMessage, workerpb.LeaderMessage], id string) error {
	for {
		m, err := rpc.Receive()
		if err != nil {
			return err
		}
		l.heard()
		if w := m.Welcome; w != nil {
			epoch := job.Epoch(w.GetEpoch())
			if epoch < f.floor() || !l.lead(w) {
				f.metrics.deposed.Inc()
				return fmt.Errorf("the leader's epoch %d is over: this node has heard of %d", epoch, f.floor())
			}
			f.metrics.linked.Set(1)
			f.Logger.Info("this node's workers reach the leader", "leader", id, "epoch", epoch, "streams", f.Gateway.Streams())
		}
		if err := l.handle(m); err != nil {
			return err
		}
	}
}
