package main

import (
	"bufio"
	"context"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/load"
	"github.com/musterhq/muster/internal/servers"
	"github.com/musterhq/muster/job"
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

// tiny is next to nothing to do.
func tiny() load.Sizes {
	return load.Sizes{
		Repeat: 1, Runs: 300, SingleRuns: 60, DrainRuns: 200, Connections: 2, Singles: 8, Batch: 20, Slots: 50,
		Rates: []int{50}, LatencyFor: 400 * time.Millisecond, CronJobs: []int{5}, CronFor: 2 * time.Second,
		IdleJobs: 30, IdleSettle: 10 * time.Millisecond, IdleFor: 200 * time.Millisecond, PayloadBytes: 100,
		DAGSizes: []int{8}, DAGTasks: 16, DAGs: 3, DAGSize: 9,
	}
}

// plausible fails for figures that cannot be, and for every run or tick that was not counted as it should.
func plausible(t *testing.T, r *load.Report) {
	t.Helper()
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
}

// Each benchmark runs with next to nothing to do. How fast it is does not matter; that every run and tick is counted does.
func TestBenchRuns(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range load.Benchmarks() {
		t.Run(b.Name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
			defer cancel()
			r, err := load.Run(ctx, load.Options{
				Sizes: tiny(), Names: []string{b.Name}, Command: []string{self, "-test.run=^TestBenchProcess$", "--"},
				Env: append(os.Environ(), "BENCH_PROCESS=1"), ProfileDir: t.TempDir(), Progress: func(text string) { t.Log(text) },
			})
			if err != nil {
				t.Fatal(err)
			}
			plausible(t, r)
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

// A cluster that runs already is loaded beside what others have there, which stays as it was: their jobs, and their runs
// that wait for a worker. Nothing of the benchmark's is left but the runs.
func TestBenchOnACluster(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command, env := []string{self, "-test.run=^TestBenchProcess$", "--"}, append(os.Environ(), "BENCH_PROCESS=1")
	node := exec.Command(command[0], append(command[1:], "bench", "node", "--data", t.TempDir(), "--http", "127.0.0.1:0", "--worker-slots", "2")...)
	node.Env = env
	in, err := node.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := node.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close() // ends it
		if err := node.Wait(); err != nil {
			t.Errorf("the node: %v", err)
		}
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	url := strings.TrimSpace(line[strings.LastIndexByte(line, ' ')+1:])
	if err != nil || !strings.HasPrefix(url, "http://") {
		t.Fatalf("the node said %q, %v", line, err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()

	w := at(url)
	document := filepath.Join(t.TempDir(), "theirs.yaml")
	if err := os.WriteFile(document, []byte("name: theirs\nhandler: {name: elsewhere}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.must(t, "apply", "-f", document)
	id := strings.Fields(w.must(t, "job", "run", "theirs"))[1]

	for name, cluster := range map[string]load.Cluster{
		"a worker of its own":  {},
		"those that are there": {Exec: []string{"/bin/true"}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
			defer cancel()
			cluster.Addresses = []string{url}
			sizes := tiny()
			sizes.Runs, sizes.SingleRuns, sizes.DrainRuns = 60, 20, 60
			r, err := load.Run(ctx, load.Options{
				Sizes: sizes, Names: []string{"batch", "single", "drain", "latency"}, Command: command, Env: env, Cluster: &cluster,
				Progress: func(text string) { t.Log(text) },
			})
			if err != nil {
				t.Fatal(err)
			}
			plausible(t, r)
		})
	}
	namespaces := map[string]bool{}
	for _, m := range regexp.MustCompile(`"namespace": "([^"]+)"`).FindAllStringSubmatch(w.must(t, "run", "list", "--all-namespaces", "--limit", "0", "-o", "json"), -1) {
		namespaces[m[1]] = true
	}
	if len(namespaces) < 3 {
		t.Errorf("runs are in the namespaces %v; each repetition has one of its own", namespaces)
	}
	for ns := range namespaces {
		want := map[bool]string{true: "theirs"}[ns == "default"]
		if jobs := strings.TrimSpace(w.must(t, "job", "list", "--namespace", ns, "-o", "name")); jobs != want {
			t.Errorf("the namespace %s has these jobs now: %q", ns, jobs)
		}
	}
	if state := w.must(t, "run", "show", id, "-o", "json"); !strings.Contains(state, `"state": "queued"`) {
		t.Errorf("their run is now\n%s", state)
	}
}

// With stores each repetition begins with empty ones and leaves them empty, and what holds somebody's state is refused.
func TestBenchWithStores(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	pg, rd := servers.SharedPostgres(t), servers.NewRedis(t, servers.RedisOptions{})
	database := pg.Database(t)
	stores := func() func(context.Context) (*load.Stores, error) {
		fresh, err := benchStores(benchFlags{postgres: database, redis: rd.URL}, false)
		if err != nil {
			t.Fatal(err)
		}
		return fresh
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	r, err := load.Run(ctx, load.Options{
		Sizes: tiny(), Command: []string{self, "-test.run=^TestBenchProcess$", "--"}, Env: append(os.Environ(), "BENCH_PROCESS=1"),
		Fresh: stores(), StoresOnly: true, Progress: func(text string) { t.Log(text) },
	})
	if err != nil {
		t.Fatal(err)
	}
	plausible(t, r)
	for _, b := range load.Benchmarks() {
		if !slices.ContainsFunc(r.Figures, func(f *load.Figure) bool { return f.Benchmark == b.Name && f.Store == "postgres" }) {
			t.Errorf("%s has no figures", b.Name)
		}
	}
	for _, counted := range []string{"Postgres transactions per run", "Redis commands per run"} {
		if !slices.ContainsFunc(r.Figures, func(f *load.Figure) bool { return f.Name == counted && f.Median > 0 }) {
			t.Errorf("nothing is counted as %s", counted)
		}
	}
	if left, err := pg.SQL(ctx, database, "SELECT count(*) FROM pg_namespace WHERE nspname = 'muster'"); err != nil || left != "0" {
		t.Errorf("%s schemas are left, %v", left, err)
	}
	if keys, err := rd.Do(ctx, "DBSIZE"); err != nil || keys != "0" {
		t.Errorf("%s keys are left, %v", keys, err)
	}

	if _, err := rd.Do(ctx, "SET", "theirs", "1"); err != nil {
		t.Fatal(err)
	}
	if _, err := stores()(ctx); job.CodeOf(err) != job.Conflict {
		t.Errorf("a Redis that holds something: %v", err)
	}
	if _, err := pg.SQL(ctx, database, "CREATE SCHEMA muster"); err != nil {
		t.Fatal(err)
	}
	if _, err := stores()(ctx); job.CodeOf(err) != job.Conflict {
		t.Errorf("a Postgres that holds something: %v", err)
	}
	if keys, err := rd.Do(ctx, "GET", "theirs"); err != nil || keys != "1" {
		t.Errorf("what was there is now %q, %v", keys, err)
	}
}
