package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/musterhq/muster/job"
	"golang.org/x/time/rate"
)

// CellConfig is how a worker joins its cell: what the node's Placement said, and who it is.
type CellConfig struct {
	Cell  string
	Seeds []string // host:port
	Key   []byte
	// Name is the worker's, Boot the life of this process; default a random one.
	Name, Boot string
	// Version is the binary's. At most 48 bytes count.
	Version string
	// Address is the host:port to listen on, UDP and TCP; the other members must be able to reach it. Default 127.0.0.1:0.
	Address string
	// AdvertiseHost is what others are told instead of Address's host.
	AdvertiseHost string
	// Logger. Required.
	Logger *slog.Logger
}

// Validate names the first field that is wrong.
func (c *CellConfig) Validate() error {
	switch {
	case c.Cell == "":
		return job.InvalidField("Cell", "a cell is needed")
	case len(c.Seeds) == 0:
		return job.InvalidField("Seeds", "at least one node's address is needed")
	case len(c.Key) != 32:
		return job.InvalidField("Key", "%d bytes are not a key; it has 32", len(c.Key))
	case !validMemberName(c.Name):
		return job.InvalidField("Name", "%.64q is not a worker's name", c.Name)
	case len(c.Boot) > 16:
		return job.InvalidField("Boot", "%d bytes are too many; at most 16", len(c.Boot))
	case c.Logger == nil:
		return job.InvalidField("Logger", "a logger is needed")
	}
	_, _, err := splitAddress(cmp.Or(c.Address, defaultGossipAddress), "Address")
	return err
}

// CellMember is a worker in its cell.
type CellMember struct {
	list *memberlist.Memberlist
	once sync.Once
	err  error
}

// JoinCell joins a cell through any of its seeds. Unavailable means that none answered: ask a node again where to join.
func JoinCell(ctx context.Context, cfg CellConfig) (*CellMember, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	host, port, err := splitAddress(cmp.Or(cfg.Address, defaultGossipAddress), "Address")
	if err != nil {
		return nil, err
	}
	list, err := join(ctx, memberOptions{
		cell: cfg.Cell, key: cfg.Key, name: cfg.Name, boot: cmp.Or(cfg.Boot, newBoot()), version: cfg.Version,
		host: host, port: port, advertise: cfg.AdvertiseHost, log: cfg.Logger.With("component", "gossip", "cell", cfg.Cell),
	})
	if err != nil {
		return nil, fmt.Errorf("join gossip %s: %w", cfg.Cell, err)
	}
	if err := joinSeeds(ctx, list, cfg.Seeds); err != nil {
		_ = list.Shutdown()
		return nil, &job.Error{Code: job.Unavailable, Reason: "no_seed", Message: "no node of the gossip cell could be reached", Cause: err}
	}
	return &CellMember{list: list}, nil
}

// Nodes answers the nodes that the cell believes alive. When there is none for long, this worker has been forgotten or
// cut off: ask a node again where to join.
func (m *CellMember) Nodes() []Member {
	var list []Member
	for _, n := range m.list.Members() {
		if v, ok := memberOf(n); ok && v.Node {
			v.State = MemberAlive
			list = append(list, v)
		}
	}
	return list
}

// Leave says goodbye, or gives up on that when ctx ends, and leaves. It may be called twice.
func (m *CellMember) Leave(ctx context.Context) error {
	m.once.Do(func() { m.err = leave(ctx, m.list) })
	return m.err
}

// memberOptions is what a member of either side needs.
type memberOptions struct {
	cell, name, boot, version string
	key                       []byte
	node                      bool
	host, advertise           string
	port                      int
	log                       *slog.Logger
	events                    memberlist.EventDelegate
	alive                     memberlist.AliveDelegate
	hear                      func([]byte)
}

// join starts a member that knows only itself. The settings are those measured for cells of a thousand on busy hosts;
// they are cheap when idle, and compression would cost most of the processor time for no capacity.
func join(ctx context.Context, o memberOptions) (*memberlist.Memberlist, error) {
	c := memberlist.DefaultLANConfig()
	c.Name = memberName(o.name, o.boot)
	c.Label = "muster/" + o.cell
	c.SecretKey = o.key
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true
	c.EnableCompression = false
	c.ProbeInterval, c.ProbeTimeout = time.Second, 500*time.Millisecond
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = 5, 6 // hosts of workers are starved by their work
	c.GossipInterval, c.GossipNodes = 200*time.Millisecond, 3
	c.GossipToTheDeadTime = 30 * time.Second
	c.PushPullInterval = time.Minute
	c.DeadNodeReclaimTime = 30 * time.Second
	c.HandoffQueueDepth = 4096
	c.UDPBufferSize = 1400
	c.TCPTimeout = 5 * time.Second
	c.Delegate = &delegate{memberMeta(o.node, o.version), o.hear}
	c.Events, c.Alive = o.events, o.alive
	c.Logger = log.New(&lineLogger{log: o.log, limit: rate.NewLimiter(gossipLinesPerSecond, gossipLines)}, "", 0)
	var err error
	if c.BindAddr, err = resolve(ctx, o.host); err != nil {
		return nil, err
	}
	if o.advertise != "" {
		if c.AdvertiseAddr, err = resolve(ctx, o.advertise); err != nil {
			return nil, err
		}
	}
	t, port, err := newGossipTransport(c.BindAddr, o.port, c.Logger)
	if err != nil {
		return nil, err
	}
	c.Transport, c.BindPort, c.AdvertisePort = t, port, port
	list, err := memberlist.Create(c)
	if err != nil {
		return nil, errors.Join(err, t.Shutdown())
	}
	return list, nil
}

// joinSeeds joins through any of the seeds.
func joinSeeds(ctx context.Context, list *memberlist.Memberlist, seeds []string) error {
	var addresses []string
	var last error
	for _, s := range seeds {
		host, port, err := net.SplitHostPort(s)
		if err == nil {
			host, err = resolve(ctx, host)
		}
		if err != nil {
			last = err
			continue
		}
		addresses = append(addresses, net.JoinHostPort(host, port))
	}
	if len(addresses) == 0 {
		return noSeed(last)
	}
	done := make(chan error, 1)
	go func() {
		_, err := list.Join(addresses) // ends after TCPTimeout for each seed at the latest
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			return noSeed(err)
		}
		return nil
	case <-ctx.Done():
		return noSeed(context.Cause(ctx))
	}
}

// resolve turns a host into an address here, because memberlist would first ask a DNS server over TCP for everything.
func resolve(ctx context.Context, host string) (string, error) {
	if host == "" {
		return "0.0.0.0", nil
	}
	if net.ParseIP(host) != nil {
		return host, nil
	}
	found, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return "", err
	}
	return found[0], nil
}

// leave says goodbye and stops a member. It must be called once.
func leave(ctx context.Context, list *memberlist.Memberlist) error {
	timeout := 2 * time.Second
	if until, ok := ctx.Deadline(); ok {
		timeout = min(timeout, max(time.Until(until), time.Millisecond))
	}
	if ctx.Err() == nil {
		sayGoodbye(list)
		_ = list.Leave(timeout) // unheard, the others find out by themselves
	}
	return list.Shutdown()
}
