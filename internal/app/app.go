// Package app assembles a node out of the packages that do not know each other, and owns the order in which they start
// and stop. It is the only package that knows everyone, and holds no rules of its own: its adapters translate, the rules
// are where the words are.
//
// Start: data directory and Raft, the store over it, output, gossip, gateway, API, and last the listener. Leading begins
// whenever Raft says so. Stop, in reverse: refuse requests, let the term end, close the gateway's streams, close Raft.
package app

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/musterhq/muster/api"
	"github.com/musterhq/muster/cluster"
	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
	"github.com/musterhq/muster/storage/memory"
	"github.com/musterhq/muster/storage/replicated"
	"github.com/musterhq/muster/worker/gateway"
	"github.com/musterhq/muster/worker/gateway/output"
)

// node is an assembled node.
type node struct {
	Options
	registry *prometheus.Registry
	state    *fsm.State
	raft     *cluster.Node
	control  *cluster.Control
	store    *replicated.Store
	queue    *memory.Queue
	output   *output.Store
	gossip   *cluster.Gossip
	gateway  *gateway.Gateway
	api      *api.API
	url      string

	term atomic.Pointer[scheduler.Term] // nil while this node does not lead

	started atomic.Bool // this node has known, at least once, all that the cluster had accepted

	gcPercent int // as it was at the start
	calmed    sync.Once

	metricsOnce sync.Once
	metrics     *scheduler.Metrics
}

// Run is the whole server: it returns when ctx ends and everything it started is gone, or with the reason why it could
// not start or go on.
func Run(ctx context.Context, o Options) (err error) {
	if err := o.Validate(); err != nil {
		return err
	}
	if o.Name == "" {
		o.Name = "node-1"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	n := &node{Options: o, registry: prometheus.NewRegistry()}
	n.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	var cleanups []func(context.Context) error
	defer func() {
		// One limit for all of the stop; what hangs is left behind rather than waited for.
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		for i := len(cleanups) - 1; i >= 0; i-- {
			err = errors.Join(err, cleanups[i](ctx))
		}
	}()
	atEnd := func(name string, f func(context.Context) error) {
		cleanups = append(cleanups, func(ctx context.Context) error {
			if err := f(ctx); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}

	if err := os.MkdirAll(o.DataDir, 0o700); err != nil {
		return job.InvalidField("data", "the data directory cannot be made (%v); choose another --data DIR", err)
	}
	n.gcPercent = debug.SetGCPercent(startGCPercent)
	defer n.calm()
	n.state = fsm.New()
	if n.raft, err = cluster.Open(ctx, cluster.Config{Dir: filepath.Join(o.DataDir, "raft"), State: n.state, Logger: o.Logger,
		Registerer: n.registry, Now: o.Now}); err != nil {
		return err
	}
	atEnd("close raft", func(context.Context) error { return n.raft.Close() })
	n.control = n.raft.Control()
	n.store = replicated.New(n.raft, n.state)
	n.queue = memory.New(0)
	if n.output, err = output.Open(filepath.Join(o.DataDir, "output"), output.Config{}); err != nil {
		return err
	}
	atEnd("close the output store", func(context.Context) error { return n.output.Shut() })
	if n.gossip, err = cluster.OpenGossip(ctx, cluster.GossipConfig{NodeID: n.raft.ID(), Version: o.Version, Logger: o.Logger, Registerer: n.registry}); err != nil {
		return err
	}
	atEnd("leave gossip", n.gossip.Close)
	if n.gateway, err = gateway.New(gateway.Config{Node: o.Name, Logger: o.Logger, Output: n.output, Holds: n.holds, Registerer: n.registry}, nil); err != nil {
		return err
	}
	listener, err := listen(ctx, o.HTTP)
	if err != nil {
		return err
	}
	n.url = "http://" + listener.Addr().String()
	if err := n.buildAPI(); err != nil {
		listener.Close()
		return err
	}
	mux := http.NewServeMux()
	path, workers := n.gateway.Handler()
	mux.Handle(path, workers)
	mux.Handle("/", api.Once(n.started.Load, n.api))
	server := api.Server(api.ServerConfig{Handler: api.LocalOnly(mux), Logger: o.Logger})

	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, run := errgroup.WithContext(run)
	g.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the API: %w", err)
		}
		return nil
	})
	g.Go(func() error { return n.raft.Run(run, n.lead) })
	work, stopWork := context.WithCancel(run)
	worked := make(chan struct{})
	g.Go(func() error {
		defer close(worked)
		if o.Worker == nil {
			return nil
		}
		return n.runWorker(work)
	})
	g.Go(func() error {
		if err := n.awaitReady(run); err != nil {
			return err
		}
		if o.Ready != nil {
			o.Ready(n.url)
		}
		return nil
	})
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-run.Done():
		}
		o.Logger.Info("stopping")
		stopWork()
		select {
		case <-worked:
		case <-time.After(workerStopTimeout):
			o.Logger.Warn("the node's own worker takes too long to stop; its runs are lost when their leases end")
		}
		stop()
		end, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		return errors.Join(n.gateway.Close(end), closeServer(end, server))
	})
	if err := g.Wait(); err != nil && !(errors.Is(err, context.Canceled) && ctx.Err() != nil) {
		return err
	}
	return nil
}

// workerStopTimeout bounds the end of the node's own worker: its drain, the grace of what it stops, and its last results.
const workerStopTimeout = ownDrainTimeout + job.LeaseKillGrace + 5*time.Second

// listen opens the API's port. For a moment after a node was killed, a command that it was just starting can still hold
// the port, between fork and exec; so a port in use is tried again for a second.
func listen(ctx context.Context, address string) (net.Listener, error) {
	for tries := 0; ; tries++ {
		l, err := net.Listen("tcp", address)
		if err == nil {
			return l, nil
		}
		if tries == 10 || !errors.Is(err, syscall.EADDRINUSE) || ctx.Err() != nil {
			return nil, job.Errorf(job.Unavailable, "address", "the API cannot listen on %s (%v); choose another --http address", address, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// closeServer lets requests end for a moment and then ends them.
func closeServer(ctx context.Context, s *http.Server) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		return s.Close()
	}
	return nil
}

// startGCPercent lets the heap grow further between collections until the node first leads. While the log is replayed nearly
// all that is allocated stays; with 100,000 schedules, collecting it at the usual pace was an eighth of the way to leading.
const startGCPercent = 400

// calm goes back to the usual pace. It may be called more than once.
func (n *node) calm() { n.calmed.Do(func() { debug.SetGCPercent(n.gcPercent) }) }

// lead is one reign: it returns when the term's work has wholly ended (L1).
func (n *node) lead(ctx context.Context) error {
	term, err := scheduler.Begin(ctx, scheduler.Config{
		Control: n.control, Store: n.store, Queue: n.queue, Gateways: n.gateway, Clock: systemClock{n.Now}, Jitter: rand.Float64,
		Logger: n.Logger, History: n.History, Metrics: n.schedulerMetrics(),
	})
	if err != nil {
		return err
	}
	n.calm()
	n.term.Store(term)
	n.started.Store(true) // behind the barrier of L1 all that was ever accepted is applied
	n.gateway.SetLeader(term)
	defer func() {
		n.gateway.SetLeader(nil)
		n.term.Store(nil)
	}()
	return term.Run(ctx)
}

// awaitReady returns when the node leads or follows somebody who does, and its term takes work.
func (n *node) awaitReady(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for n.term.Load() == nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// systemClock is the machine's.
type systemClock struct{ now func() time.Time }

func (c systemClock) Now() time.Time { return c.now() }

// metricsHandler makes the metrics endpoint.
func (n *node) metricsHandler() http.Handler {
	return promhttp.HandlerFor(n.registry, promhttp.HandlerOpts{})
}
