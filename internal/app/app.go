// Package app assembles a node out of the packages that do not know each other, and owns the order in which they start
// and stop. It is the only package that knows everyone, and holds no rules of its own: its adapters translate, the rules
// are where the words are.
//
// Start: certificates and ports, data directory and Raft, the store over it, output, gateway, API, and last the listeners.
// A server then finds its cluster or makes it (cluster.Bootstrapper), and takes requests for data once it knows all that
// the cluster had accepted. Leading begins whenever Raft says so; while another node leads, this node's gateway is linked
// to that one (relay.Follow). Stop, in reverse: refuse requests, let the term end, close the gateway's streams, close Raft.
package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/musterhq/muster/job"
)

// Run is the whole server: it returns when ctx ends and everything it started is gone, or with the reason why it could
// not start or go on.
func Run(ctx context.Context, o Options) (err error) {
	if err := o.Validate(); err != nil {
		return err
	}
	n := newNode(o)
	var cleanups []func(context.Context) error
	defer func() {
		// One limit for all of the stop; what hangs is left behind rather than waited for.
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		for i := len(cleanups) - 1; i >= 0; i-- {
			err = errors.Join(err, cleanups[i](ctx))
		}
	}()
	n.atEnd = func(name string, f func(context.Context) error) {
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
	if err := n.open(ctx); err != nil {
		return err
	}
	return n.serve(ctx)
}

// serve runs what was opened until ctx ends.
func (n *node) serve(ctx context.Context) error {
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, run := errgroup.WithContext(run)
	g.Go(func() error {
		if err := n.serveAPI(); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the API: %w", err)
		}
		return nil
	})
	g.Go(func() error { return n.raft.Run(run, n.lead) })
	g.Go(func() error { return n.watchStore(run) })
	if n.postgres != nil {
		g.Go(func() error { return n.postgres.Serve(run) })
	}
	if n.mirror != nil {
		g.Go(func() error { return n.mirror.Run(run) })
	}
	if n.port != nil {
		g.Go(func() error { return n.port.Serve(run) })
		g.Go(func() error { return n.bootstrap(run) })
		g.Go(func() error { return n.follow(run) })
		g.Go(func() error { return n.gossipAlong(run) })
		g.Go(func() error { return n.watchExpiry(run) })
	}
	work, stopWork := context.WithCancel(run)
	worked := make(chan struct{})
	g.Go(func() error {
		defer close(worked)
		if n.Worker == nil {
			return nil
		}
		return n.runWorker(work)
	})
	g.Go(func() error {
		if err := n.awaitReady(run); err != nil {
			return err
		}
		if n.Ready != nil {
			n.Ready(n.url)
		}
		return nil
	})
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-run.Done():
		}
		n.Logger.Info("stopping")
		stopWork()
		select {
		case <-worked:
		case <-time.After(workerStopTimeout):
			n.Logger.Warn("the node's own worker takes too long to stop; its runs are lost when their leases end")
		}
		n.handOver()
		stop()
		end, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		return errors.Join(n.gateway.Close(end), closeServer(end, n.server))
	})
	if err := g.Wait(); err != nil && !(errors.Is(err, context.Canceled) && ctx.Err() != nil) {
		return err
	}
	return nil
}

// workerStopTimeout bounds the end of the node's own worker: its drain, the grace of what it stops, and its last results.
const workerStopTimeout = ownDrainTimeout + job.LeaseKillGrace + 5*time.Second

// listen opens a port. For a moment after a node was killed, a command that it was just starting can still hold the port,
// between fork and exec; so a port in use is tried again for a second.
func (n *node) listen(ctx context.Context, flag, address string) (net.Listener, error) {
	for tries := 0; ; tries++ {
		l, err := n.Network.Listen(ctx, address)
		if err == nil {
			return l, nil
		}
		if tries == 10 || !errors.Is(err, syscall.EADDRINUSE) || ctx.Err() != nil {
			return nil, job.Errorf(job.Unavailable, "address", "nothing can listen on %s (%v); choose another --%s address", address, err, flag)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// machine is the network of this machine.
func machine() *Network {
	var l net.ListenConfig
	d := net.Dialer{Timeout: 3 * time.Second}
	return &Network{
		Listen: func(ctx context.Context, address string) (net.Listener, error) { return l.Listen(ctx, "tcp", address) },
		Dial:   func(ctx context.Context, address string) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) },
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
