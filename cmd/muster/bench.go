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

	"github.com/musterhq/muster/internal/load"
)

const benchHelp = `Measure Muster on this machine, with a node and a worker of its own in a temporary
directory. Benchmarks are chosen by name; without one all are run:

%s
Figures are medians of several repetitions, with the least and the greatest in
parentheses. The node, the worker and the generator share the machine with each
other and with whatever else runs on it; "others on the machine" says how much
that was.

With --running it loads the nodes at --address instead, with jobs and a worker of
its own that it removes at the end. The runs stay in their history: do not do this
to nodes that others depend on.`

type benchFlags struct {
	quick, running  bool
	repeat          int
	runs, idleJobs  int
	connections     int
	slots           int
	cronJobs, rates []int
	seconds         time.Duration
	profile         string
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
	fs.BoolVar(&f.running, "running", false, "load the nodes at --address, which run already")
	fs.IntVar(&f.repeat, "repeat", 0, "take each figure `N` times")
	fs.IntVar(&f.runs, "runs", 0, "submit `N` runs in batch and single")
	fs.IntVar(&f.connections, "connections", 0, "submit from `N` connections in batch and single")
	fs.IntVar(&f.slots, "slots", 0, "give the worker `N` slots")
	fs.IntSliceVar(&f.rates, "rates", nil, "submit `N,...` runs a second in latency")
	fs.IntSliceVar(&f.cronJobs, "cron-jobs", nil, "define `N,...` jobs that tick every second in cron")
	fs.DurationVar(&f.seconds, "for", 0, "measure each of latency, cron and idle for `TIME`")
	fs.IntVar(&f.idleJobs, "idle-jobs", 0, "define `N` jobs in schedules")
	fs.StringVar(&f.profile, "profile", "", "write CPU and heap profiles of node and worker to `DIR`, in the last repetition")
	ofOneCall(fs, "quick", "running", "repeat", "runs", "connections", "slots", "rates", "cron-jobs", "for", "idle-jobs", "profile")
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
	}{{f.repeat, []*int{&s.Repeat}}, {f.runs, []*int{&s.Runs, &s.SingleRuns}}, {f.connections, []*int{&s.Connections, &s.Singles}},
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
	if f.running {
		if err := c.checkAddresses(); err != nil {
			return err
		}
		o.Addresses, o.Token = c.addresses, c.token
	}
	report, err := load.Run(cmd.Context(), o)
	if report != nil && len(report.Figures) > 0 {
		if err := c.printBench(report); err != nil {
			return err
		}
	}
	return processError(err)
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
				names = append(names, f.Benchmark+" "+f.Name)
			}
			return names
		},
		table: func(b *strings.Builder, colors bool) {
			t := newTable("BENCHMARK", "FIGURE", "MEDIAN (MIN..MAX)", "UNIT", "REPETITIONS")
			for _, f := range r.Figures {
				t.add(f.Benchmark, f.Name, f.Text(), f.Unit, fmt.Sprint(len(f.Values)))
			}
			t.write(b, colors)
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
	var o load.WorkerOptions
	var log logFlags
	var socket string
	cmd := &cobra.Command{
		Use: "worker [flags]", Short: "A worker whose handler does nothing, and tells stdout when", Hidden: true, Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if err := c.checkAddresses(); err != nil {
				return err
			}
			if o.Logger, err = log.logger(c); err != nil {
				return err
			}
			o.Addresses, o.Records = c.addresses, c.stdout
			return c.benchChild(cmd.Context(), socket, func(ctx context.Context) error { return load.Work(ctx, o) })
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&o.Name, "name", "bench", "the worker's `NAME`")
	fs.StringVar(&o.DataDir, "data", "", "`DIR` for results that are not acknowledged")
	fs.IntVar(&o.Slots, "slots", 0, "`N` slots")
	fs.StringVar(&socket, "debug", "", "serve profiles on this Unix `SOCKET`")
	log.add(fs, "warn")
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
