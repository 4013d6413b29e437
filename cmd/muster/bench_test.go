package main

import (
	"context"
	"flag"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/load"
)

// TestBenchProcess is no test: it is muster in a process of its own, for TestBenchRuns.
func TestBenchProcess(t *testing.T) {
	if os.Getenv("BENCH_PROCESS") == "" {
		t.Skip("started by TestBenchRuns only")
	}
	ctx, stop := untilSignal(context.Background())
	code := run(ctx, flag.Args(), os.Stdin, os.Stdout, os.Stderr, os.Environ())
	stop()
	os.Exit(code)
}

// Each benchmark runs with next to nothing to do. How fast it is does not matter; that every run and tick is counted does.
func TestBenchRuns(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	sizes := load.Sizes{
		Repeat: 1, Runs: 300, SingleRuns: 60, Connections: 2, Singles: 8, Batch: 20, Slots: 50,
		Rates: []int{50}, LatencyFor: 400 * time.Millisecond, CronJobs: []int{5}, CronFor: 2 * time.Second,
		IdleJobs: 30, IdleSettle: 10 * time.Millisecond, IdleFor: 200 * time.Millisecond, PayloadBytes: 100,
	}
	for _, b := range load.Benchmarks() {
		t.Run(b.Name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
			defer cancel()
			r, err := load.Run(ctx, load.Options{
				Sizes: sizes, Names: []string{b.Name}, Command: []string{self, "-test.run=^TestBenchProcess$", "--"},
				Env: append(os.Environ(), "BENCH_PROCESS=1"), ProfileDir: t.TempDir(), Progress: func(text string) { t.Log(text) },
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Figures) == 0 {
				t.Fatal("nothing was measured")
			}
			for _, w := range r.Warnings {
				t.Error(w)
			}
			for _, f := range r.Figures {
				if strings.Contains(f.Name, "p50") && f.Median <= 0 {
					t.Errorf("%s is %s %s: it began before it was due", f.Name, f.Text(), f.Unit)
				}
			}
			var out strings.Builder
			c := newCLI(strings.NewReader(""), &out, io.Discard, nil)
			c.format = formatTable
			if err := c.printBench(r); err != nil {
				t.Fatal(err)
			}
			t.Log("\n" + out.String())
		})
	}
}
