package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/internal/app"
	"github.com/musterhq/muster/internal/load"
)

const benchHelp = `Measure Muster on this machine, with a node and a worker of its own in a temporary
directory. Benchmarks are chosen by name; without one all are run:

%s
Figures are medians of several repetitions, with the least and the greatest in
parentheses. The node, the worker and the generator share the machine with each
other and with whatever else runs on it; "others on the machine" says how much
that was.

With --postgres and --redis all is measured twice, in turns: on the embedded store,
and with these. They must be empty, and are emptied again after each repetition.
Rows with the store postgres/embedded are ratios.

With --address on the command line (or --running, with the address in a file or the
environment) it loads the cluster that runs there instead, all its nodes in turns:
with jobs in a namespace of their own, and a worker of its own that takes nothing
else. To a cluster with certificates it needs --token, --ca and --join-token:

    muster bench batch single latency --address https://n1:8080,https://n2:8080 \
        --token-file admin.token --ca ca.crt --join-token join.token

With --exec the cluster's own workers run that program instead. The jobs are removed
at the end, the runs stay in the history, and the load is real: think before you do
this to a cluster that others depend on.`

type benchFlags struct {
	quick, running  bool
	repeat          int
	runs, idleJobs  int
	connections     int
	slots           int
	cronJobs, rates []int
	seconds         time.Duration
	profile         string
	postgres, redis string
	postgresPID     int
	redisPID        int
	storesOnly      bool
	joinToken       string
	exec            string
	selector        []string
}

func (c *cli) benchCommand() *cobra.Command {
	var f benchFlags
	var names []string
	var list strings.Builder
	for _, b := range load.Benchmarks() {
		names = append(names, b.Name)
		fmt.Fprintf(&list, "    %-10s %s\n", b.Name, b.Short)
	}
	cmd := &cobra.Command{
		Use: "bench [NAME...] [flags]", Short: "Measure Muster on this machine", Long: fmt.Sprintf(benchHelp, list.String()),
		Args: cobra.ArbitraryArgs, ValidArgs: names,
		RunE: func(cmd *cobra.Command, args []string) error { return c.bench(cmd, args, f) },
	}
	fs := cmd.Flags()
	fs.BoolVar(&f.quick, "quick", false, "small counts, one repetition: less than two minutes for all")
	fs.StringVar(&f.postgres, "postgres", "", "`URL` of an empty database: measure with that too")
	fs.StringVar(&f.redis, "redis", "", "`URL` of an empty database of Redis, for the queue")
	fs.IntVar(&f.postgresPID, "postgres-pid", 0, "`PID` of the postmaster, for its CPU (default: who listens on the URL's port here)")
	fs.IntVar(&f.redisPID, "redis-pid", 0, "`PID` of Redis, likewise")
	fs.BoolVar(&f.storesOnly, "stores-only", false, "with --postgres: leave the embedded store out")
	fs.BoolVar(&f.running, "running", false, "load the nodes at --address, which run already, wherever that is set")
	fs.StringVar(&f.joinToken, "join-token", "", "`FILE` that holds the join token, for the worker on a cluster with certificates")
	fs.StringVar(&f.exec, "exec", "", "have the cluster's own workers run `PROGRAM`, such as /bin/true")
	fs.StringArrayVar(&f.selector, "selector", nil, "with --exec: on workers with the label `KEY=VALUE`; can be repeated")
	fs.IntVar(&f.repeat, "repeat", 0, "take each figure `N` times")
	fs.IntVar(&f.runs, "runs", 0, "submit `N` runs in batch, single and drain")
	fs.IntVar(&f.connections, "connections", 0, "submit from `N` connections in batch and single")
	fs.IntVar(&f.slots, "slots", 0, "give the worker `N` slots")
	fs.IntSliceVar(&f.rates, "rates", nil, "submit `N,...` runs a second in latency")
	fs.IntSliceVar(&f.cronJobs, "cron-jobs", nil, "define `N,...` jobs that tick every second in cron")
	fs.DurationVar(&f.seconds, "for", 0, "measure each of latency, cron and idle for `TIME`")
	fs.IntVar(&f.idleJobs, "idle-jobs", 0, "define `N` jobs in schedules")
	fs.StringVar(&f.profile, "profile", "", "write CPU and heap profiles of node and worker to `DIR`, in the last repetition")
	ofOneCall(fs, "quick", "postgres", "redis", "postgres-pid", "redis-pid", "stores-only", "running", "join-token", "exec", "selector", "repeat", "runs", "connections", "slots", "rates", "cron-jobs", "for", "idle-jobs", "profile")
	cmd.AddCommand(c.benchNodeCommand(), c.benchWorkerCommand())
	return cmd
}

func (f *benchFlags) sizes() load.Sizes {
	s := load.Full()
	if f.quick {
		s = load.Quick()
	}
	for _, n := range []struct {
		given int
		sizes []*int
	}{{f.repeat, []*int{&s.Repeat}}, {f.runs, []*int{&s.Runs, &s.SingleRuns, &s.DrainRuns}}, {f.connections, []*int{&s.Connections, &s.Singles}},
		{f.slots, []*int{&s.Slots}}, {f.idleJobs, []*int{&s.IdleJobs}}} {
		for _, p := range n.sizes {
			if n.given > 0 {
				*p = n.given
			}
		}
	}
	if f.seconds > 0 {
		s.LatencyFor, s.CronFor, s.IdleFor = f.seconds, f.seconds, f.seconds
	}
	if len(f.cronJobs) > 0 {
		s.CronJobs = f.cronJobs
	}
	if len(f.rates) > 0 {
		s.Rates = f.rates
	}
	return s
}

func (c *cli) bench(cmd *cobra.Command, names []string, f benchFlags) error {
	command, env, err := c.ourselves()
	if err != nil {
		return err
	}
	o := load.Options{Sizes: f.sizes(), Names: names, Command: command, Env: env, ProfileDir: f.profile, Progress: func(text string) { c.say("%s", text) }}
	if o.Cluster, err = c.benchCluster(f); err != nil {
		return err
	}
	if o.Fresh, err = benchStores(f, o.Cluster != nil); err != nil {
		return err
	}
	o.StoresOnly = f.storesOnly
	report, err := load.Run(cmd.Context(), o)
	if report != nil && len(report.Figures) > 0 {
		if err := c.printBench(report); err != nil {
			return err
		}
	}
	return processError(err)
}

// benchStores makes what makes the stores of each repetition; nil: none are wanted.
func benchStores(f benchFlags, cluster bool) (func(context.Context) (*load.Stores, error), error) {
	switch {
	case f.postgres == "" && f.redis != "":
		return nil, usageErrorf("--redis needs --postgres: the queue is in Redis only where the store is Postgres")
	case f.postgres == "" && (f.storesOnly || f.postgresPID != 0 || f.redisPID != 0):
		return nil, usageErrorf("--postgres: --stores-only, --postgres-pid and --redis-pid are for a store in Postgres; name an empty database")
	case f.postgres != "" && cluster:
		return nil, usageErrorf("--postgres is for a node of the benchmark's own; the cluster at --address has its stores")
	case f.postgres == "":
		return nil, nil
	}
	var scratch *app.Scratch // nil until the first time
	return func(ctx context.Context) (_ *load.Stores, err error) {
		if scratch == nil {
			if scratch, err = app.OpenScratch(ctx, f.postgres, f.redis); err != nil {
				scratch = nil
				return nil, err
			}
		}
		empty := func() error {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			return scratch.Empty(ctx)
		}
		return &load.Stores{Postgres: f.postgres, Redis: f.redis, About: scratch.About, PostgresPID: f.postgresPID, RedisPID: f.redisPID,
			Counters: scratch.Counters, Drop: empty}, nil
	}, nil
}

// benchCluster is the cluster to load; nil: a node of our own.
func (c *cli) benchCluster(f benchFlags) (*load.Cluster, error) {
	if !f.running && !c.addressTyped {
		if f.joinToken != "" || f.exec != "" || len(f.selector) > 0 {
			return nil, usageErrorf("--join-token, --exec and --selector are for a cluster that runs; name its nodes with --address")
		}
		return nil, nil
	}
	if err := c.checkAddresses(); err != nil {
		return nil, err
	}
	token, err := c.bearer()
	if err != nil {
		return nil, err
	}
	k := &load.Cluster{Addresses: c.addresses, Token: token, CA: c.ca, JoinTokenFile: f.joinToken}
	if c.ca != "" {
		if _, err := client.TrustCA(c.ca); err != nil {
			return nil, caError(c.ca, err)
		}
	}
	switch {
	case f.exec != "":
		k.Exec = []string{f.exec}
		k.Selector, err = parseLabels("selector", f.selector)
	case len(f.selector) > 0:
		err = usageErrorf("--selector is for --exec; without that, a worker of the benchmark's own runs all")
	case f.joinToken != "":
		_, err = readToken("--join-token", f.joinToken)
	case c.ca != "":
		err = usageErrorf("--join-token: the worker that is measured needs the cluster's join token; name its file, or use the workers that are there with --exec")
	}
	return k, err
}

// ourselves is the command that starts this binary, and its environment: without our settings, which are for this
// process alone.
func (c *cli) ourselves() (command, env []string, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, fmt.Errorf("find this binary: %w", err)
	}
	for _, kv := range c.env {
		if !strings.HasPrefix(kv, "MUSTER_") {
			env = append(env, kv)
		}
	}
	return []string{self}, env, nil
}

func (c *cli) printBench(r *load.Report) error {
	return c.print(answer{
		value: r,
		names: func() []string {
			var names []string
			for _, f := range r.Figures {
				names = append(names, f.Benchmark+" "+f.Store+" "+f.Name)
			}
			return names
		},
		table: func(b *strings.Builder, colors bool) {
			t := newTable("BENCHMARK", "STORE", "FIGURE", "MEDIAN (MIN..MAX)", "UNIT", "REPETITIONS")
			for _, f := range r.Figures {
				t.add(f.Benchmark, f.Store, f.Name, f.Text(), f.Unit, fmt.Sprint(len(f.Values)))
			}
			t.write(b, colors)
			if r.Stores != "" {
				fmt.Fprintf(b, "\npostgres: %s\n", r.Stores)
			}
		},
	})
}

// benchNodeCommand is `muster dev` that can be looked into, and that ends with the process that started it.
func (c *cli) benchNodeCommand() *cobra.Command {
	cmd := c.devCommand()
	cmd.Use, cmd.Hidden = "node [flags]", true
	socket := cmd.Flags().String("debug", "", "serve profiles on this Unix `SOCKET`")
	ofOneCall(cmd.Flags(), "debug")
	dev := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.benchChild(cmd.Context(), *socket, func(ctx context.Context) error {
			cmd.SetContext(ctx)
			return dev(cmd, args)
		})
	}
	return cmd
}

func (c *cli) benchWorkerCommand() *cobra.Command {
	var f workerFlags
	var socket string
	cmd := &cobra.Command{
		Use: "worker [flags]", Short: "A worker whose handler does nothing, and tells stdout when", Hidden: true, Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			h := load.NewHandler(f.name)
			o := app.WorkerOptions{Name: f.name, DataDir: f.data, Slots: f.slots, Handlers: h.Handlers, Version: thisBuild().Version}
			if err := c.workerTrust(&o, f); err != nil {
				return err
			}
			if o.Logger, err = f.log.logger(c); err != nil {
				return err
			}
			return c.benchChild(cmd.Context(), socket, func(ctx context.Context) error {
				return h.Run(ctx, c.stdout, func(ctx context.Context) error { return app.RunWorker(ctx, o) })
			})
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.name, "name", "bench", "the `NAME` of the worker and of its handler")
	fs.StringVar(&f.data, "data", "", "`DIR` for results that are not acknowledged")
	fs.StringSliceVar(&f.join, "join", nil, "`A,B,C`: the addresses of all nodes' APIs")
	fs.StringVar(&f.joinToken, "join-token", "", "`FILE` that holds the join token")
	fs.BoolVar(&f.insecure, "insecure", false, "join nodes without certificates over a network")
	fs.IntVar(&f.slots, "slots", 0, "`N` slots")
	fs.StringVar(&socket, "debug", "", "serve profiles on this Unix `SOCKET`")
	f.log.add(fs, "warn")
	ofOneCall(fs, "debug")
	return cmd
}

// benchChild runs a process of a benchmark until its standard input ends. So none is left behind when the benchmark is
// killed, on any system.
func (c *cli) benchChild(ctx context.Context, socket string, run func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with the process: a read of standard input cannot be broken off
		_, _ = io.Copy(io.Discard, c.stdin)
		cancel()
	}()
	g, ctx := errgroup.WithContext(ctx)
	if socket != "" {
		g.Go(func() error { return load.ServeDebug(ctx, socket) })
	}
	g.Go(func() error {
		defer cancel()
		return run(ctx)
	})
	return g.Wait()
}
