package app

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/cluster"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker"
)

// WorkerOptions are an agent's settings.
type WorkerOptions struct {
	// Name is the worker's, unique in the cluster. In a node's own worker the default is the node's name.
	Name string
	// DataDir holds the worker's result spool and process table. In a node's own worker the default is DataDir/worker.
	DataDir string
	// Join lists the API addresses of all nodes. A node's own worker joins the node.
	Join []string
	// JoinToken is what proves that this worker may join; CA the file of the certificate that the nodes' certificates come
	// from; Insecure does without either. A node's own worker needs none of them.
	JoinToken string
	CA        string
	Insecure  bool
	// Labels are what selectors match; Slots how much runs at once, 0: the number of CPUs.
	Labels map[string]string
	Slots  int
	// Exec and HTTP say what may be executed; nil: nothing of that kind. A node's own worker, whose node serves nobody
	// but this machine's users, may execute everything.
	Exec *worker.ExecConfig
	HTTP *worker.HTTPConfig
	// Handlers are functions of this process that runs may name; nil: none.
	Handlers *worker.Handlers
	// DrainTimeout is how long what runs may go on when the worker is told to stop; 0: 30 s, 5 s in a node's own worker.
	DrainTimeout time.Duration
	// Version is the binary's; Logger is required.
	Version string
	Logger  *slog.Logger
	// Attached is told when the worker joined; may be nil.
	Attached func(address string)
	// Network replaces the machine's, and Elapsed its clock that counts through suspend, for tests in one process; nil: the
	// machine's.
	Network *Network
	Elapsed func() time.Duration
}

// ownDrainTimeout is short: whoever stops a node with a worker inside waits for it at a terminal.
const ownDrainTimeout = 5 * time.Second

// runWorker runs the node's own worker.
func (n *node) runWorker(ctx context.Context) error {
	if err := n.awaitReady(ctx); err != nil {
		return nil // the node stops
	}
	o := *n.Worker
	o.Name = cmpOr(o.Name, n.Name)
	o.DataDir = cmpOr(o.DataDir, filepath.Join(n.DataDir, "worker"))
	o.Join = []string{n.url}
	o.Version, o.Logger = n.Version, n.Logger
	if o.Exec == nil {
		o.Exec = &worker.ExecConfig{Allow: []string{"*"}, AllowUsers: []string{"*"}, BaseEnv: n.WorkEnv, AllowEnvFiles: []string{"*"}}
	}
	if o.HTTP == nil {
		o.HTTP = &worker.HTTPConfig{AllowPrivate: true}
	}
	if o.DrainTimeout == 0 {
		o.DrainTimeout = ownDrainTimeout
	}
	return RunWorker(ctx, o)
}

// RunWorker is the whole agent process: it joins, attaches, and returns when ctx has ended and its work is done or given
// back, or with the reason why it could not start or go on.
func RunWorker(ctx context.Context, o WorkerOptions) error {
	if o.Logger == nil {
		return job.InvalidField("logger", "a logger is needed")
	}
	config := worker.Config{
		Name: o.Name, DataDir: o.DataDir, Addresses: o.Join, Labels: o.Labels, Slots: o.Slots, Version: o.Version,
		Exec: o.Exec, HTTP: o.HTTP, Handlers: o.Handlers, DrainTimeout: o.DrainTimeout, Logger: o.Logger,
	}
	if o.Elapsed != nil {
		config.Clock = systemClock{time.Now, o.Elapsed}
	}
	if err := config.Validate(); err != nil { // before anybody waits for a node
		return err
	}
	door, err := openDoor(o)
	if err != nil {
		return err
	}
	defer door.close()
	answer, err := door.join(ctx)
	if err != nil || answer == nil {
		return err
	}
	config.Addresses = streams(o.Join, answer.Streams)
	config.HTTPClient = door.streams
	config.Refresh = func(ctx context.Context) ([]string, error) {
		answer, err := door.ask(ctx)
		if err != nil {
			return nil, err
		}
		return streams(o.Join, answer.Streams), nil
	}
	agent, err := worker.New(config)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return agent.Run(ctx) })
	g.Go(func() error { return gossip(ctx, door, answer) })
	g.Go(func() error { return door.renew(ctx) })
	if o.Attached != nil {
		o.Attached(answer.Streams[0])
	}
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// streams are where the agent may attach: what the answer names first, then what the user named.
func streams(join, answered []string) []string {
	out := append([]string(nil), answered...)
	for _, a := range join {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// gossip keeps the worker in a cell. It is a rumour: without it the worker works all the same, so what fails is tried
// again and never an end.
func gossip(ctx context.Context, d *door, answer *client.JoinAnswer) error {
	o := d.WorkerOptions
	pause := time.Second
	for answer == nil || answer.Cell != "" {
		if answer != nil {
			member, err := cluster.JoinCell(ctx, cluster.CellConfig{Cell: answer.Cell, Seeds: answer.Seeds, Key: answer.GossipKey,
				Name: o.Name, Version: o.Version, Address: gossipAddress(answer.Seeds), Logger: o.Logger})
			if err == nil {
				pause = time.Second
				stay(ctx, member)
				leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
				err = member.Leave(leave)
				cancel()
				if ctx.Err() != nil {
					return err
				}
			}
			if err != nil {
				o.Logger.Warn("joining the gossip cell is tried again", "cell", answer.Cell, "err", err)
			} else {
				o.Logger.Info("no node is left in the gossip cell; another is asked for", "cell", answer.Cell)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
			pause = min(2*pause, time.Minute)
		}
		var err error
		if answer, err = d.ask(ctx); err != nil {
			o.Logger.Warn("asking for a gossip cell is tried again", "err", err)
		}
	}
	<-ctx.Done()
	return nil
}

// stay returns when ctx ends, or when no node is left in the cell: a node that was restarted is in another one.
func stay(ctx context.Context, member *cluster.CellMember) {
	tick := time.NewTicker(30 * time.Second)
	defer tick.Stop()
	for len(member.Nodes()) > 0 {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func cmpOr(v, otherwise string) string {
	if v == "" {
		return otherwise
	}
	return v
}

// gossipAddress is where this worker listens for gossip: on the address from which it reaches the nodes, on any port.
func gossipAddress(seeds []string) string {
	for _, seed := range seeds {
		c, err := net.Dial("udp", seed) // sends nothing: it asks the machine for its route
		if err != nil {
			continue
		}
		host, _, err := net.SplitHostPort(c.LocalAddr().String())
		c.Close()
		if err == nil {
			return net.JoinHostPort(host, "0")
		}
	}
	return ""
}
