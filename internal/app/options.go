package app

import (
	"context"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/musterhq/muster/job"
)

// Options are a node's settings. There are two kinds of node: LocalOnly, which is alone and serves this machine's users,
// and a server, one of a cluster.
type Options struct {
	// DataDir holds all that the node keeps. Required.
	DataDir string
	// HTTP is the host:port of the API. Required; port 0 takes a free one.
	HTTP string
	// Name is the node's, unique in the cluster; default "node-1" in a node that is LocalOnly, required in a server.
	Name string
	// LocalOnly serves loopback without credentials and keeps web pages out (design section 8).
	LocalOnly bool
	// Version is the binary's.
	Version string
	// Logger. Required.
	Logger *slog.Logger
	// History is how long terminal runs are kept; 0: 30 days.
	History time.Duration
	// Worker runs an agent inside the process; nil: none. Only in a node that is LocalOnly.
	Worker *WorkerOptions
	// WorkEnv is the environment that commands of the node's own worker start from, as KEY=VALUE; MUSTER_* are left out.
	WorkEnv []string
	// Postgres is the URL of the store; "": the cluster keeps its jobs and runs in its own replicated state. All nodes of a
	// cluster have the same one (S11).
	Postgres string
	// Redis is the URL of the queue; "": the queue is in the leader's memory. It needs Postgres.
	Redis string
	// KeepSchema leaves Postgres's schema as it is, for `muster migrate up` to change; else a node brings it up to date.
	KeepSchema bool
	// AdoptStore takes a Postgres over that belongs to another cluster.
	AdoptStore bool
	// Ready is told the API's URL once the node takes requests; may be nil.
	Ready func(url string)
	// Now is the wall clock; default time.Now.
	Now func() time.Time

	// What follows is a server's.

	// Raft is the host:port where other nodes reach this one. Required.
	Raft string
	// Gossip is the host:port, UDP and TCP, of the first gossip cell; further cells take the next ports. Required.
	Gossip string
	// Advertise is the host under which others reach this node, where it differs from the addresses' own.
	Advertise string
	// Join lists the API addresses of all nodes, this one's among them. Required.
	Join []string
	// TLS is this node's directory of certificates, as `muster cluster init` makes it. Insecure does without, on purpose:
	// whoever reaches the ports owns the cluster. One of them is required.
	TLS      string
	Insecure bool
	// ElectionTimeout is how long a follower waits for its leader before it stands for election; 0: the default of package
	// cluster.
	ElectionTimeout time.Duration
	// Network replaces the machine's, and Elapsed its clock that counts through suspend and never jumps, for tests in one
	// process; nil: the machine's. With a Network there is no gossip, unless Gossip is set.
	Network *Network
	Elapsed func() time.Duration
}

// Network is how a node listens and dials.
type Network struct {
	Listen func(ctx context.Context, address string) (net.Listener, error)
	Dial   func(ctx context.Context, address string) (net.Conn, error)
}

// Validate names the first option that is wrong.
func (o *Options) Validate() error {
	switch {
	case o.DataDir == "":
		return job.InvalidField("data", "a data directory is needed; set --data DIR")
	case o.HTTP == "":
		return job.InvalidField("http", "an address for the API is needed; set --http HOST:PORT")
	case o.Logger == nil:
		return job.InvalidField("logger", "a logger is needed")
	}
	if err := o.validateStores(); err != nil {
		return err
	}
	host, err := hostOf("http", o.HTTP)
	if err != nil {
		return err
	}
	if o.LocalOnly {
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return job.InvalidField("http", "%q is not a loopback address; without credentials a node serves loopback only, such as 127.0.0.1:8080", host)
		}
		return nil
	}
	return o.validateServer(host)
}

func (o *Options) validateStores() error {
	switch {
	case o.Redis != "" && o.Postgres == "":
		return job.InvalidField("redis", "the queue is in Redis only where the store is Postgres; add --postgres URL, or leave --redis out")
	case o.AdoptStore && o.Postgres == "":
		return job.InvalidField("adopt-store", "there is no store to adopt; name it with --postgres URL")
	}
	return nil
}

func (o *Options) validateServer(host string) error {
	switch {
	case o.Name == "":
		return job.InvalidField("name", "a server needs a name of its own in the cluster; set --name NAME")
	case o.TLS == "" && !o.Insecure:
		return job.InvalidField("tls", "a server needs certificates: make them with `muster cluster init` and name this node's directory with --tls DIR, or say --insecure")
	case o.TLS != "" && o.Insecure:
		return job.InvalidField("insecure", "a node has certificates or is insecure, not both; leave --tls or --insecure out")
	case o.Worker != nil:
		return job.InvalidField("worker", "a server runs no work itself; start a `muster worker` beside it")
	case len(o.Join) == 0:
		return job.InvalidField("join", "name the API addresses of all nodes, this one's among them, with --join HOST:PORT,HOST:PORT,...")
	}
	if err := job.CheckName("name", o.Name); err != nil {
		return err
	}
	for _, a := range []struct{ field, value string }{{"raft", o.Raft}, {"gossip", o.Gossip}} {
		if a.value == "" && a.field == "gossip" && o.Network != nil {
			continue
		}
		if a.value == "" {
			return job.InvalidField(a.field, "an address is needed; set --%s HOST:PORT", a.field)
		}
		h, err := hostOf(a.field, a.value)
		if err != nil {
			return err
		}
		if o.Advertise == "" && unspecified(h) {
			return job.InvalidField("advertise", "others cannot reach %q; name the host under which they reach this node with --advertise HOST", a.value)
		}
	}
	if o.Advertise == "" && unspecified(host) {
		return job.InvalidField("advertise", "others cannot reach %q; name the host under which they reach this node with --advertise HOST", o.HTTP)
	}
	for _, a := range o.Join {
		if h, err := hostOf("join", a); err != nil || h == "" {
			return job.InvalidField("join", "%.128q is not an address; write HOST:PORT, the address of a node's API", a)
		}
	}
	return nil
}

// names are the hosts under which this node may be called.
func (o *Options) names() []string {
	all := []string{o.Advertise}
	for _, a := range append([]string{o.HTTP}, o.Join...) {
		if host, _, err := net.SplitHostPort(a); err == nil {
			all = append(all, host)
		}
	}
	return all
}

// hostOf answers an address's host.
func hostOf(field, address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if n, e := strconv.Atoi(port); err != nil || e != nil || n < 0 || n > 65535 {
		return "", job.InvalidField(field, "%.128q is not an address; write HOST:PORT, such as 127.0.0.1:8080", address)
	}
	return host, nil
}

func unspecified(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}
