package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/internal/app"
	"github.com/musterhq/muster/job"
)

const serverHelp = `Run a node of a cluster. Three nodes tolerate the loss of one, five that of two. Each
is started with the same --join, the API addresses of all; they find each other, form
the cluster when all have answered, and elect a leader. A node that is started later
joins the cluster that is there, and one that takes the name of a lost node its place.

Certificates come from ` + "`muster cluster init`" + `, which makes a directory for each node:
copy it there and name it with --tls. On the first of three machines:

    muster server --name n1 --data /var/lib/muster --tls /etc/muster/n1 \
        --http 10.0.0.1:8080 --raft 10.0.0.1:8081 --gossip 10.0.0.1:7946 \
        --join 10.0.0.1:8080,10.0.0.2:8080,10.0.0.3:8080

The API and the workers' streams are at --http, the nodes among themselves at --raft,
and gossip (TCP and UDP, from this port on) at --gossip. Where a node listens on
0.0.0.0 or behind a translated address, --advertise says under which host the others
reach it.

Jobs and runs are kept in the nodes' own replicated state, or, with --postgres, in a
PostgreSQL that all nodes share; with --redis the queue is in a Redis. A cluster keeps
to the store it began with.

Ctrl-C or SIGTERM stops it softly: it hands leadership over and ends its requests. What
runs on workers goes on. A second Ctrl-C stops it at once.`

type serverFlags struct {
	name, data, http, raft, gossip, advertise string
	join                                      []string
	tls                                       string
	insecure                                  bool
	electionTimeout                           time.Duration
	stores                                    storeFlags
	log                                       logFlags
}

func (c *cli) serverCommand() *cobra.Command {
	var f serverFlags
	cmd := &cobra.Command{
		Use: "server [flags]", Short: "Run a node of a cluster", Long: serverHelp, Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error { return c.server(cmd.Context(), f) },
	}
	fs := cmd.Flags()
	fs.StringVar(&f.name, "name", "", "`NAME` of the node, unique in the cluster")
	fs.StringVar(&f.data, "data", "", "`DIR` that holds all that the node keeps (default: in $XDG_DATA_HOME/muster)")
	fs.StringVar(&f.http, "http", "", "`HOST:PORT` of the API and of the workers' streams")
	fs.StringVar(&f.raft, "raft", "", "`HOST:PORT` for the other nodes")
	fs.StringVar(&f.gossip, "gossip", "", "`HOST:PORT` for gossip, TCP and UDP; it may take the ports after it too")
	fs.StringSliceVar(&f.join, "join", nil, "`A,B,C`: the API addresses of all nodes, this one's among them")
	fs.StringVar(&f.advertise, "advertise", "", "`HOST` under which others reach this node (default: that of each address)")
	fs.StringVar(&f.tls, "tls", "", "`DIR` with this node's certificates (see muster cluster init)")
	fs.BoolVar(&f.insecure, "insecure", false, "no certificates and no credentials: whoever reaches its ports owns the cluster")
	fs.DurationVar(&f.electionTimeout, "election-timeout", 0, "`DURATION` without a word of the leader before another is elected (default: 500ms)")
	f.stores.add(fs)
	f.log.add(fs, "info")
	return cmd
}

func (c *cli) server(ctx context.Context, f serverFlags) error {
	logger, err := f.log.logger(c)
	if err != nil {
		return err
	}
	switch {
	case f.electionTimeout != 0 && (f.electionTimeout < minElectionTimeout || f.electionTimeout > maxElectionTimeout):
		return usageErrorf("--election-timeout: %s is out of range; use %s to %s", f.electionTimeout, minElectionTimeout, maxElectionTimeout)
	case f.name == "":
		return usageErrorf("--name: a server needs a name of its own in the cluster; write --name NAME")
	}
	if err := job.CheckName("--name", f.name); err != nil {
		return err
	}
	o := app.Options{
		Name: f.name, HTTP: f.http, Raft: f.raft, Gossip: f.gossip, Advertise: f.advertise, TLS: f.tls, Insecure: f.insecure,
		ElectionTimeout: f.electionTimeout, Version: thisBuild().Version, Logger: logger,
		Ready: func(url string) {
			fmt.Fprintf(c.stdout, "Muster %s: node %s is ready at %s, keeping its data in %s\n", thisBuild().Version, f.name, url, clean(f.data))
		},
	}
	f.stores.apply(&o)
	if o.Join, err = joinAddresses(f.join, f.tls != ""); err != nil {
		return err
	}
	if f.data, err = c.dataDir(f.data, "node-"+f.name); err != nil {
		return err
	}
	o.DataDir = f.data
	if err := o.Validate(); err != nil {
		return asFlag(err)
	}
	defer c.sayServerStops(ctx)()
	return processError(asFlag(app.Run(ctx, o)))
}

// An election timeout below the first elects without need; one above the second leaves the cluster without a leader for longer
// than workers wait.
const (
	minElectionTimeout = 100 * time.Millisecond
	maxElectionTimeout = 10 * time.Second
)

// joinAddresses are those of other nodes, which may be written as URLs too.
func joinAddresses(given []string, secure bool) ([]string, error) {
	urls, err := nodeAddresses("join", given, secure)
	if err != nil {
		return nil, err
	}
	want, other := "http://", "with --tls it has to be https"
	if secure {
		want = "https://"
	} else {
		other = "without --tls it has to be http"
	}
	for i, u := range urls {
		host, ok := strings.CutPrefix(u, want)
		if !ok {
			return nil, usageErrorf("--join: %s; %s", u, other)
		}
		urls[i] = host
	}
	return urls, nil
}

// sayServerStops is sayStopping for a process that runs no work.
func (c *cli) sayServerStops(ctx context.Context) (stop func()) {
	return c.sayWhenStopped(ctx, "stopping: leadership is handed over and requests end; again stops at once")
}
