package app

import (
	"cmp"
	"context"
	"net"
	"net/http"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/musterhq/muster/api"
	"github.com/musterhq/muster/cluster"
	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/internal/access"
	"github.com/musterhq/muster/internal/pki"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
	"github.com/musterhq/muster/storage"
	"github.com/musterhq/muster/storage/mirror"
	"github.com/musterhq/muster/storage/postgres"
	"github.com/musterhq/muster/storage/redis"
	"github.com/musterhq/muster/worker/gateway"
	"github.com/musterhq/muster/worker/gateway/output"
	"github.com/musterhq/muster/worker/gateway/relay"
)

// node is an assembled node.
type node struct {
	Options
	atEnd    func(name string, f func(context.Context) error)
	registry *prometheus.Registry
	clock    *cluster.Clock

	identity *pki.Node     // nil without certificates
	guard    *access.Guard // nil: whoever reaches the API may do everything
	port     *cluster.Port // nil: alone
	listener net.Listener  // of the API
	server   *http.Server
	url      string // of the API, as others reach it

	state   *fsm.State
	raft    *cluster.Node
	control *cluster.Control
	store   storage.Store
	// claims is true while this node leads a cluster that has no store yet: then a database that is nobody's becomes its own.
	claims atomic.Bool
	// postgres is the store where it is one, and redis holds the queue where there is one; else nil.
	postgres *postgres.Store
	redis    *redis.Client
	mirror   *mirror.Queue
	running  *redis.Status // what runs now, for readers
	output   *output.Store
	gateway  *gateway.Gateway
	hub      *relay.Hub // nil: alone
	api      *api.API
	gossip   atomic.Pointer[cluster.Gossip] // nil until the cluster's secret is known

	term     atomic.Pointer[scheduler.Term] // nil while this node does not lead
	renewing renewals
	started  atomic.Bool // this node has known, at least once, all that the cluster had accepted

	gcPercent int // as it was at the start
	calmed    sync.Once

	metricsOnce sync.Once
	metrics     *scheduler.Metrics
}

func newNode(o Options) *node {
	o.Name = cmp.Or(o.Name, "node-1")
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Elapsed == nil {
		o.Elapsed = elapsed
	}
	if o.Network == nil {
		o.Network = machine()
	}
	n := &node{Options: o, registry: prometheus.NewRegistry(), state: fsm.New(), clock: cluster.NewClock(o.Now)}
	n.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return n
}

// open puts the node together. Nothing serves yet.
func (n *node) open(ctx context.Context) (err error) {
	if n.TLS != "" {
		if err := n.openIdentity(); err != nil {
			return err
		}
	}
	if n.listener, err = n.listen(ctx, "http", n.HTTP); err != nil {
		return err
	}
	n.atEnd("close the API's port", func(context.Context) error { n.listener.Close(); return nil })
	scheme := "http://"
	if n.identity != nil {
		scheme = "https://"
	}
	n.url = scheme + n.advertised(n.listener.Addr())
	if !n.LocalOnly {
		if err := n.openPort(ctx); err != nil {
			return err
		}
		if err := n.tryGossip(ctx); err != nil {
			return err
		}
	}
	if n.raft, err = cluster.Open(ctx, n.raftConfig()); err != nil {
		return err
	}
	n.atEnd("close raft", func(context.Context) error { return n.raft.Close() })
	if n.LocalOnly && len(n.raft.Status().Servers) > 1 {
		return job.InvalidField("data", "%s is the data directory of a node of a cluster; start it with `muster server`, or choose another --data DIR", n.DataDir)
	}
	n.control = n.raft.Control()
	if err := n.openStores(); err != nil {
		return err
	}
	if n.output, err = output.Open(filepath.Join(n.DataDir, "output"), output.Config{}); err != nil {
		return err
	}
	n.atEnd("close the output store", func(context.Context) error { return n.output.Shut() })
	if err := n.openGateway(); err != nil {
		return err
	}
	if n.LocalOnly {
		if err := n.openGossip(ctx, cluster.GossipConfig{}); err != nil {
			return err
		}
	}
	n.raft.Peers().Serve(local{n})
	return n.openAPI()
}

// openIdentity reads the certificates.
func (n *node) openIdentity() (err error) {
	if n.identity, err = pki.LoadNode(n.TLS); err != nil {
		return err
	}
	if name := n.identity.Name(); name != n.Name {
		return job.InvalidField("name", "the certificates in %s are for the node %s, and this one is named %s; name the directory of its own with --tls", n.TLS, name, n.Name)
	}
	n.identity.OnReload(func(err error) {
		n.Logger.Error("the changed certificates are not used", "dir", n.TLS, "err", err)
	})
	n.exportExpiry()
	n.guard = access.New(access.Config{Credentials: n.state, Identify: n.identity.Identify, Now: n.Now, Renew: n.renewCredentials})
	return nil
}

// tryGossip finds out that gossip's first port is taken before the node is part of a cluster.
func (n *node) tryGossip(ctx context.Context) error {
	if n.Gossip == "" {
		return nil
	}
	l, err := n.listen(ctx, "gossip", n.Gossip)
	if err != nil {
		return err
	}
	return l.Close()
}

// openPort opens the port for other nodes.
func (n *node) openPort(ctx context.Context) error {
	l, err := n.listen(ctx, "raft", n.Raft)
	if err != nil {
		return err
	}
	c := cluster.PortConfig{Listener: l, Advertise: n.advertised(l.Addr()), Dial: n.Network.Dial, Logger: n.Logger, Registerer: n.registry}
	if n.identity != nil {
		c.Server, c.Client = n.identity.PeerServer(), n.identity.PeerClient()
	}
	if n.port, err = cluster.OpenPort(c); err != nil {
		l.Close()
		return err
	}
	n.atEnd("close the port for nodes", func(context.Context) error { return n.port.Close() })
	return nil
}

// advertised is how others reach an address of ours.
func (n *node) advertised(a net.Addr) string {
	_, port, err := net.SplitHostPort(a.String())
	if err != nil || n.Advertise == "" {
		return a.String()
	}
	return net.JoinHostPort(n.Advertise, port)
}

func (n *node) raftConfig() cluster.Config {
	c := cluster.Config{
		Dir: filepath.Join(n.DataDir, "raft"), State: n.state, Logger: n.Logger, Registerer: n.registry, Clock: n.clock,
		Port: n.port, Join: n.port != nil, Store: n.storeKind(),
		HeartbeatTimeout: n.ElectionTimeout, ElectionTimeout: n.ElectionTimeout,
	}
	if n.port != nil {
		c.Self = job.Node{Name: n.Name, API: n.url, Raft: n.port.Address(), Version: n.Version}
	}
	if n.identity != nil {
		c.ClusterID, c.Credentials = n.identity.ClusterID(), n.identity.Credentials()
	}
	return c
}

func (n *node) openGateway() (err error) {
	c := gateway.Config{Node: n.Name, Logger: n.Logger, Output: n.output, Holds: n.holds, Registerer: n.registry}
	if n.guard != nil {
		c.Admit, c.Authorize = n.guard.Admit, n.guard.Worker
	}
	if n.gateway, err = gateway.New(c, nil); err != nil || n.port == nil {
		return err
	}
	if n.hub, err = relay.NewHub(relay.HubConfig{Node: n.Name, Gateway: n.gateway, Logger: n.Logger, Registerer: n.registry}); err != nil {
		return err
	}
	n.port.Handle(n.hub.Handler())
	return nil
}

func (n *node) openGossip(ctx context.Context, c cluster.GossipConfig) error {
	c.NodeID, c.Version, c.Logger, c.Registerer = n.raft.ID(), n.Version, n.Logger, n.registry
	g, err := cluster.OpenGossip(ctx, c)
	if err != nil {
		return err
	}
	n.gossip.Store(g)
	n.raft.Peers().Gossip(g)
	n.atEnd("leave gossip", g.Close)
	return nil
}

// openAPI makes the server of the API and the worker streams.
func (n *node) openAPI() error {
	if err := n.buildAPI(); err != nil {
		return err
	}
	mux := http.NewServeMux()
	path, workers := n.gateway.Handler()
	mux.Handle(path, workers)
	mux.Handle("/", api.Once(n.started.Load, n.api))
	c := api.ServerConfig{Logger: n.Logger, MaxConnections: maxConnections()}
	switch {
	case n.LocalOnly:
		c.Handler = api.LocalOnly(mux)
	case n.guard != nil:
		c.Handler, c.TLS = n.guard.Handler(mux), n.identity.APIServer()
	default:
		c.Handler = api.KnownHosts(n.names(), api.NoForeignPages(mux)) // a web page must not be able to run jobs even here
	}
	n.server = api.Server(c)
	return nil
}

func (n *node) serveAPI() error {
	if n.identity != nil {
		return n.server.ServeTLS(n.listener, "", "") // the certificates are in TLSConfig
	}
	return n.server.Serve(n.listener)
}

// startGCPercent lets the heap grow further between collections until the node is started. While the log is replayed
// nearly all that is allocated stays; with 100,000 schedules, collecting it at the usual pace was an eighth of the way to
// leading.
const startGCPercent = 400

// calm goes back to the usual pace. It may be called more than once.
func (n *node) calm() { n.calmed.Do(func() { debug.SetGCPercent(n.gcPercent) }) }

// systemClock is the leader's: the cluster's time, and time that passes.
type systemClock struct {
	now     func() time.Time
	elapsed func() time.Duration
}

func (c systemClock) Now() time.Time         { return c.now() }
func (c systemClock) Elapsed() time.Duration { return c.elapsed() }

// metricsHandler makes the metrics endpoint.
func (n *node) metricsHandler() http.Handler {
	return promhttp.HandlerFor(n.registry, promhttp.HandlerOpts{})
}
