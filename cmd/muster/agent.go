package main

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/internal/app"
	"github.com/musterhq/muster/job"
)

const workerHelp = `Run a worker on this machine: it joins the nodes that --join names and runs what they
assign to it. If none of them answers yet, it waits.

To a cluster with certificates it needs --ca, the file ca.crt, to know the nodes by,
and once --join-token, the file join.token: it exchanges the token for a certificate
of its own, which it keeps in --data and renews. ` + "`muster cluster init`" + ` makes both files.

What it may run is said here and nowhere else: commands only if --allow-exec matches
the absolute path of the program (a shell or an interpreter that is allowed allows
everything), requests only to public addresses unless allowed. A run is placed by its
selector and the free slots, not by what workers allow: what this one does not allow
fails here (not_permitted). So give workers that allow different things labels, and
their jobs a selector.

    muster worker --join 10.0.0.1:8080,10.0.0.2:8080,10.0.0.3:8080 \
        --ca ca.crt --join-token join.token --name w1 --slots 8 --label region=eu \
        --allow-exec '/usr/local/bin/*' --allow-exec '/opt/jobs/**'

Ctrl-C stops it softly: it takes nothing new, what runs may finish for 30 seconds
and is then given back. A second Ctrl-C stops it at once.

The commands below look at the workers of a cluster, and change what they do.`

type workerFlags struct {
	name, data  string
	join        []string
	joinToken   string
	insecure    bool
	slots       int
	labels      []string
	exec        []string
	users       []string
	envVars     []string
	envFiles    []string
	noHTTP      bool
	httpPrivate bool
	httpHosts   []string
	log         logFlags
}

func (c *cli) processCommands() []*cobra.Command {
	return []*cobra.Command{c.devCommand(), c.serverCommand(), c.workerCommand()}
}

func (c *cli) workCommands() []*cobra.Command {
	return []*cobra.Command{
		c.applyCommand(), c.validateCommand(), c.jobCommand(), c.runCommand(), c.clusterCommand(), c.credentialCommand(), c.importCommand(),
	}
}

func (c *cli) workerCommand() *cobra.Command {
	var f workerFlags
	cmd := &cobra.Command{
		Use: "worker [flags]", Short: "Run a worker; list, cordon and drain workers", Long: workerHelp, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			if err := checkSlots(cmd, "slots"); err != nil {
				return err
			}
			return c.worker(cmd.Context(), f)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.name, "name", "", "`NAME` of the worker, unique in the cluster (default: the machine's)")
	fs.StringVar(&f.data, "data", "", "`DIR` for results not yet delivered (default: in $XDG_DATA_HOME/muster)")
	fs.StringSliceVar(&f.join, "join", nil, "`A,B,C`: the addresses of all nodes' APIs")
	fs.StringVar(&f.joinToken, "join-token", "", "`FILE` that holds the join token, for the first time that this worker joins")
	fs.BoolVar(&f.insecure, "insecure", false, "join nodes without certificates over a network: whoever is in between commands this worker")
	fs.IntVar(&f.slots, "slots", 0, "`N` slots: how much runs at once (default: the number of CPUs)")
	fs.StringArrayVar(&f.labels, "label", nil, "label `KEY=VALUE`, which selectors match; can be repeated")
	fs.StringArrayVar(&f.exec, "allow-exec", nil, "`GLOB` of programs that may be run, DIR/** for all below; can be repeated")
	fs.StringArrayVar(&f.users, "allow-user", nil, "`USER` that a job may run as; can be repeated")
	fs.StringArrayVar(&f.envVars, "allow-env", nil, "`GLOB` of variables like PATH or LD_PRELOAD that a job may set; can be repeated")
	fs.StringArrayVar(&f.envFiles, "allow-env-file", nil, "`GLOB` of files that a job's env_from may name; can be repeated")
	fs.BoolVar(&f.noHTTP, "no-http", false, "no requests at all")
	fs.BoolVar(&f.httpPrivate, "allow-http-private", false, "requests to loopback and private addresses too")
	fs.StringArrayVar(&f.httpHosts, "allow-http-host", nil, "requests to this `HOST`, *.SUFFIX or PREFIX/BITS wherever it is; can be repeated")
	f.log.add(fs, "info")
	cmd.AddCommand(c.workerListCommand(), c.workerShowCommand(),
		c.workerFlag("cordon", "Give workers no new work", "cordoned", (*client.Client).Cordon),
		c.workerFlag("uncordon", "Give workers work again", "uncordoned", (*client.Client).Uncordon),
		c.workerFlag("drain", "Let workers finish what they have, and stop", "draining", (*client.Client).Drain))
	return cmd
}

func (c *cli) worker(ctx context.Context, f workerFlags) error {
	logger, err := f.log.logger(c)
	if err != nil {
		return err
	}
	if f.name == "" {
		if f.name, err = os.Hostname(); err != nil {
			return usageErrorf("--name: this machine does not tell its name; give the worker one")
		}
	}
	if err := job.CheckName("--name", f.name); err != nil {
		return err
	}
	if len(f.join) == 0 {
		return usageErrorf("--join: a worker needs the addresses of the nodes; write --join A,B,C (or try `muster dev`, which brings a worker along)")
	}
	o := app.WorkerOptions{Name: f.name, Slots: f.slots, Version: thisBuild().Version, Logger: logger}
	if err = c.workerTrust(&o, f); err != nil {
		return err
	}
	o.Attached = func(address string) {
		logger.Info("worker joined", "worker", f.name, "node", address)
	}
	if o.Labels, err = parseLabels("label", f.labels); err != nil {
		return err
	}
	if o.DataDir, err = c.dataDir(f.data, "worker-"+f.name); err != nil {
		return err
	}
	// What is wrong is said before the worker begins to look for a node, which may take for ever.
	if len(f.exec) > 0 {
		x := made(&o.Exec)
		x.Allow, x.AllowUsers, x.AllowEnv, x.AllowEnvFiles, x.DataDir = f.exec, f.users, f.envVars, f.envFiles, o.DataDir
		if err := x.Validate(); err != nil {
			return flagOf(err)
		}
	} else if len(f.users)+len(f.envVars)+len(f.envFiles) > 0 {
		return usageErrorf("--allow-exec is missing; without it no command is run, as whatever user")
	} else {
		logger.Warn("this worker runs no commands: none are allowed with --allow-exec", "worker", f.name)
	}
	if !f.noHTTP {
		h := made(&o.HTTP)
		h.AllowPrivate, h.AllowHosts = f.httpPrivate, f.httpHosts
		if err := h.Validate(); err != nil {
			return flagOf(err)
		}
	}
	defer c.sayStopping(ctx)()
	err = app.RunWorker(ctx, o)
	if e := new(job.Error); errors.As(err, &e) && e.Code == job.Unauthenticated && e.Reason == "no_credential" {
		return &exitError{exitFailed, "the cluster does not let this worker in without a join token; name its file with --join-token"}
	}
	return processError(err)
}

// checkSlots checks what is given: only where the flag is left out a worker has as many slots as the machine has CPUs.
func checkSlots(cmd *cobra.Command, flag string) error {
	n, err := cmd.Flags().GetInt(flag)
	if err == nil && cmd.Flags().Changed(flag) && (n < 1 || n > job.MaxSlots) {
		return usageErrorf("--%s: %d is out of range; use 1 to %d", flag, n, job.MaxSlots)
	}
	return err
}

// workerTrust settles whom the worker trusts, and by what it is let in.
func (c *cli) workerTrust(o *app.WorkerOptions, f workerFlags) (err error) {
	if o.Join, err = nodeAddresses("join", f.join, c.ca != ""); err != nil {
		return err
	}
	if f.insecure && c.ca != "" {
		return usageErrorf("--ca and --insecure contradict each other; leave one of them out")
	}
	for _, a := range o.Join {
		u, _ := url.Parse(a) // it was one already
		switch {
		case u.Scheme == "https" && c.ca == "":
			return usageErrorf("--ca is missing: without the cluster's certificate authority (ca.crt) this worker cannot know whether %s is a node of it", a)
		case u.Scheme == "http" && c.ca != "":
			return usageErrorf("--join: %s has no certificate to hold against --ca; write https://%s", a, u.Host)
		case u.Scheme == "http" && !f.insecure && !loopback(u.Hostname()):
			return usageErrorf("--join: %s is not this machine, and without TLS whoever is in between commands this worker; name the cluster's ca.crt with --ca, or say --insecure", a)
		}
	}
	o.Insecure = f.insecure
	if o.CA = c.ca; o.CA != "" {
		if _, err := client.TrustCA(o.CA); err != nil {
			return caError(o.CA, err)
		}
	}
	if f.joinToken != "" {
		o.JoinToken, err = readToken("--join-token", f.joinToken)
	}
	return err
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// flagOf names the flag that a setting came from.
func flagOf(err error) error {
	e := *job.AsError(err)
	if flag, ok := map[string]string{"Allow": "allow-exec", "AllowEnv": "allow-env", "AllowEnvFiles": "allow-env-file", "AllowHosts": "allow-http-host"}[e.Field]; ok {
		e.Field = "--" + flag
	}
	return &e
}

// made makes what a setting points to. Its type is package worker's, which this package may not know by name.
func made[T any](setting **T) *T {
	*setting = new(T)
	return *setting
}
