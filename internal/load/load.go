// Package load measures a Muster on the machine it runs on: the load generators behind `muster bench`.
//
// # What is measured, and how it stays honest
//
// A node runs in one child process, a worker with a handler that does nothing in another, and the generator here, so
// every figure includes the API, the log on disk, and both streams. All share the machine, so each figure is repeated
// and given as median (min..max), beside the CPU that each process took and that which others took meanwhile.
//
//   - Counting does not trust the system under test: the handler reports each call over a pipe of its own (record.go).
//     What the API and the metrics say is compared with that.
//   - Latency is counted from the moment at which a request was due, not from when it was sent. A generator that waits
//     for a slow answer would otherwise leave out just the requests that had to wait (coordinated omission).
//   - Nothing is asserted about speed. Lost or doubled work is a figure too, and the only reason for a warning.
//   - Two ways to keep state are compared by measuring both in one run, in turns, and by the ratio of each pair: what else
//     the machine does meanwhile falls on both.
//
// A Benchmark runs on a node of its own with an empty data directory, and empty stores if it has any, unless Options names
// a cluster that runs already. There it works in a namespace of its own, with a handler that no other job names.
package load

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/musterhq/muster/job"
)

// Sizes say how much is done.
type Sizes struct {
	Repeat       int           // how often each figure is taken
	Runs         int           // in batches
	SingleRuns   int           // one at a time
	DrainRuns    int           // that wait when the worker comes
	Connections  int           // that submit batches
	Singles      int           // that submit one run at a time
	Batch        int           // runs in a batch
	Slots        int           // of the worker
	Rates        []int         // of the latency benchmark, runs a second
	LatencyFor   time.Duration // at each rate
	CronJobs     []int         // with a tick every second
	CronFor      time.Duration
	IdleJobs     int // with a schedule that does not tick
	IdleSettle   time.Duration
	IdleFor      time.Duration
	PayloadBytes int
	DAGSizes     []int // of the graphs whose tasks are compared
	DAGTasks     int   // in all, of each size; half as many graphs at once as DAGs
	DAGs         int   // at once
	DAGSize      int   // tasks of each of those
}

// Full is what figures for others should be taken with.
func Full() Sizes {
	return Sizes{
		Repeat: 3, Runs: 100_000, SingleRuns: 30_000, DrainRuns: 100_000, Connections: 4, Singles: 64, Batch: 100, Slots: 2000,
		Rates: []int{200, 1000}, LatencyFor: 20 * time.Second,
		CronJobs: []int{1000, 2000, 10_000}, CronFor: 15 * time.Second,
		IdleJobs: 100_000, IdleSettle: 10 * time.Second, IdleFor: 30 * time.Second, PayloadBytes: 200,
		DAGSizes: []int{10, 100, 1000}, DAGTasks: 50_000, DAGs: 100, DAGSize: 1000,
	}
}

// Quick takes less than two minutes in all.
func Quick() Sizes {
	s := Full()
	s.Repeat, s.Runs, s.SingleRuns, s.DrainRuns = 1, 10_000, 3000, 10_000
	s.LatencyFor, s.CronFor, s.CronJobs = 5*time.Second, 5*time.Second, []int{200, 1000}
	s.DAGSizes, s.DAGTasks, s.DAGs, s.DAGSize = []int{10, 100}, 3000, 30, 100
	s.IdleJobs, s.IdleSettle, s.IdleFor = 5000, 2*time.Second, 5*time.Second
	return s
}

// Options of Run.
type Options struct {
	Sizes
	// Names of the benchmarks; none means all.
	Names []string
	// Command is the argv that `bench node` and `bench worker` are appended to: this very binary. Required.
	Command []string
	// Env of the processes that are started.
	Env []string
	// Fresh makes empty stores for one node of our own, each time it is called: every figure is then taken on them and on
	// the embedded store, in turns. nil: on the embedded store alone.
	Fresh func(ctx context.Context) (*Stores, error)
	// StoresOnly leaves the embedded store out.
	StoresOnly bool
	// Cluster is one that runs already; nil means a node of our own for each repetition. Benchmarks that must start and
	// kill a node are left out then.
	Cluster *Cluster
	// ProfileDir takes CPU and heap profiles of our own processes; "" means none.
	ProfileDir string
	// Progress is told what is being done; may be nil.
	Progress func(text string)
}

// Benchmark is one of those that Run can run.
type Benchmark struct {
	Name, Short string
	ownNode     bool // it starts and kills nodes
	run         func(ctx context.Context, b *bench) error
}

// Benchmarks lists them in the order in which they run.
func Benchmarks() []Benchmark {
	return []Benchmark{
		{"idle", "what an idle node with a worker costs", true, idle},
		{"batch", "runs a second from submission to success, in batches", false, batches},
		{"single", "the same, one run a request from many connections", false, singles},
		{"drain", "runs a second from a backlog that waited for a worker", false, drain},
		{"latency", "from when a submission is due to when its handler begins, at fixed rates", false, latency},
		{"dag", "graphs of tasks: what a task costs as its graph grows, and many large graphs at once", true, dag},
		{"cron", "from a tick's time to when its handler begins, with jobs that tick every second", false, cron},
		{"schedules", "memory, and the time until a killed node leads and ticks again, with schedules at rest", true, schedules},
	}
}

// Run runs benchmarks one after the other. The report holds what was measured until an error ended it.
func Run(ctx context.Context, o Options) (*Report, error) {
	chosen, err := choose(&o)
	if err != nil {
		return nil, err
	}
	r := &Report{Machine: thisMachine(), StartedAt: job.At(time.Now())}
	kinds := o.kinds()
	for _, bm := range chosen {
		for i := range o.Repeat {
			for _, kind := range kinds {
				b := &bench{Options: &o, name: bm.Name, kind: kind, report: r, profile: i == o.Repeat-1}
				b.say("repetition %d of %d", i+1, o.Repeat)
				if err := b.once(ctx, bm); err != nil {
					return r, fmt.Errorf("benchmark %s (%s): %w", bm.Name, kind, err)
				}
			}
			slices.Reverse(kinds) // neither is always the first
		}
		r.compare(bm.Name)
	}
	return r, nil
}

// The ways in which what is measured keeps its state.
const (
	kindEmbedded = "embedded"
	kindStores   = "postgres"
	kindCluster  = "cluster" // that runs already; it knows
)

func (o *Options) kinds() []string {
	switch {
	case o.Cluster != nil:
		return []string{kindCluster}
	case o.Fresh == nil:
		return []string{kindEmbedded}
	case o.StoresOnly:
		return []string{kindStores}
	}
	return []string{kindEmbedded, kindStores}
}

func choose(o *Options) ([]Benchmark, error) {
	if len(o.Command) == 0 {
		return nil, job.InvalidField("load.Options.Command", "the command that starts this binary is needed")
	}
	if o.Repeat < 1 {
		return nil, job.InvalidField("repeat", "%d repetitions measure nothing; use 1 or more", o.Repeat)
	}
	all := Benchmarks()
	for _, n := range o.Names {
		if !slices.ContainsFunc(all, func(b Benchmark) bool { return b.Name == n }) {
			return nil, job.InvalidField("name", "there is no benchmark %.64q", n)
		}
	}
	var chosen []Benchmark
	for _, b := range all {
		switch named := slices.Contains(o.Names, b.Name); {
		case len(o.Names) > 0 && !named:
		case b.ownNode && o.Cluster != nil && named:
			return nil, job.InvalidField("name", "the benchmark %s kills nodes; it needs one of its own, not one that runs", b.Name)
		case b.ownNode && o.Cluster != nil:
		default:
			chosen = append(chosen, b)
		}
	}
	return chosen, nil
}

// bench is one repetition of one benchmark.
type bench struct {
	*Options
	name    string
	kind    string
	report  *Report
	profile bool
	base    string  // for the directories of rigs
	dir     string  // of the node, the worker and their sockets; each rig has a new one
	stores  *Stores // of the node; each rig has new ones; nil: the embedded one
}

func (b *bench) once(ctx context.Context, bm Benchmark) (err error) {
	if b.base, err = os.MkdirTemp("", "muster-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stores.drop(), os.RemoveAll(b.base)) }()
	return bm.run(ctx, b)
}

// fresh makes an empty directory and empty stores for the next processes: what one left behind is none of the next one's
// business.
func (b *bench) fresh(ctx context.Context) (err error) {
	if b.dir, err = os.MkdirTemp(b.base, "bench-"); err != nil {
		return err
	}
	if b.kind != kindStores {
		return nil
	}
	if err = b.stores.drop(); err != nil {
		return err
	}
	if b.stores, err = b.Fresh(ctx); err != nil {
		return fmt.Errorf("make empty stores: %w", err)
	}
	b.report.Stores = b.stores.About
	b.stores.find()
	return nil
}

func (b *bench) say(format string, args ...any) {
	if b.Progress != nil {
		b.Progress(b.name + ", " + b.kind + ": " + fmt.Sprintf(format, args...))
	}
}

// set adds one value of a figure.
func (b *bench) set(figure, unit string, value float64) {
	b.report.add(Figure{Benchmark: b.name, Store: b.kind, Name: figure, Unit: unit}, value)
}

// headline is set for a figure by which two ways to keep state are compared.
func (b *bench) headline(figure, unit string, value float64) {
	b.report.add(Figure{Benchmark: b.name, Store: b.kind, Name: figure, Unit: unit, headline: true}, value)
}

// warn puts something into the report that a reader of the figures must know.
func (b *bench) warn(format string, args ...any) {
	text := b.name + ", " + b.kind + ": " + fmt.Sprintf(format, args...)
	b.report.Warnings = append(b.report.Warnings, text)
	if b.Progress != nil {
		b.Progress("warning: " + text)
	}
}

func thisMachine() Machine {
	return Machine{OS: runtime.GOOS, Arch: runtime.GOARCH, CPUs: runtime.NumCPU(), Go: runtime.Version()}
}
