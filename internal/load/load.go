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
//
// A Benchmark runs on a node of its own with an empty data directory, unless Options names one that runs already.
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
}

// Full is what figures for others should be taken with.
func Full() Sizes {
	return Sizes{
		Repeat: 3, Runs: 100_000, SingleRuns: 30_000, Connections: 4, Singles: 64, Batch: 100, Slots: 2000,
		Rates: []int{200, 1000}, LatencyFor: 20 * time.Second,
		CronJobs: []int{1000, 2000, 10_000}, CronFor: 15 * time.Second,
		IdleJobs: 100_000, IdleSettle: 10 * time.Second, IdleFor: 30 * time.Second, PayloadBytes: 200,
	}
}

// Quick takes less than two minutes in all.
func Quick() Sizes {
	s := Full()
	s.Repeat, s.Runs, s.SingleRuns = 1, 10_000, 3000
	s.LatencyFor, s.CronFor, s.CronJobs = 5*time.Second, 5*time.Second, []int{200, 1000}
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
	// Addresses of a cluster that runs already; none means a node of our own for each repetition. Benchmarks that must
	// start and kill a node are left out then.
	Addresses []string
	// Token for Addresses.
	Token string
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
		{"latency", "from when a submission is due to when its handler begins, at fixed rates", false, latency},
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
	for _, bm := range chosen {
		for i := range o.Repeat {
			b := &bench{Options: &o, name: bm.Name, report: r, profile: i == o.Repeat-1}
			b.say("repetition %d of %d", i+1, o.Repeat)
			if err := b.once(ctx, bm); err != nil {
				return r, fmt.Errorf("benchmark %s: %w", bm.Name, err)
			}
		}
	}
	return r, nil
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
		case b.ownNode && len(o.Addresses) > 0 && named:
			return nil, job.InvalidField("name", "the benchmark %s kills nodes; it needs one of its own, not one that runs", b.Name)
		case b.ownNode && len(o.Addresses) > 0:
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
	report  *Report
	profile bool
	base    string // for the directories of rigs
	dir     string // of the node, the worker and their sockets; each rig has a new one
}

func (b *bench) once(ctx context.Context, bm Benchmark) (err error) {
	if b.base, err = os.MkdirTemp("", "muster-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.base)) }()
	return bm.run(ctx, b)
}

// fresh makes an empty directory for the next processes: what one left behind is none of the next one's business.
func (b *bench) fresh() (err error) {
	b.dir, err = os.MkdirTemp(b.base, "bench-")
	return err
}

func (b *bench) say(format string, args ...any) {
	if b.Progress != nil {
		b.Progress(b.name + ": " + fmt.Sprintf(format, args...))
	}
}

// set adds one value of a figure.
func (b *bench) set(figure, unit string, value float64) { b.report.add(b.name, figure, unit, value) }

// warn puts something into the report that a reader of the figures must know.
func (b *bench) warn(format string, args ...any) {
	text := b.name + ": " + fmt.Sprintf(format, args...)
	b.report.Warnings = append(b.report.Warnings, text)
	if b.Progress != nil {
		b.Progress("warning: " + text)
	}
}

func thisMachine() Machine {
	return Machine{OS: runtime.GOOS, Arch: runtime.GOARCH, CPUs: runtime.NumCPU(), Go: runtime.Version()}
}
