package systemtest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

// clients makes one of each node, which asks that node alone.
func (c *cluster) clients() (all []*client.Client) {
	c.t.Helper()
	for _, n := range c.nodes {
		one, err := client.New(client.Config{Addresses: []string{n.url}, TLS: c.ca, Token: c.token, AttemptTimeout: 30 * time.Second, RetryFor: time.Minute})
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(one.Close)
		all = append(all, one)
	}
	return all
}

// backlog submits runs of a job in batches, through all nodes, of all priorities.
func (c *cluster) backlog(name string, runs int) {
	c.t.Helper()
	const batch = 1000
	var left atomic.Int64
	left.Store(int64(runs))
	var wg sync.WaitGroup
	for i, by := range append(c.clients(), c.clients()...) {
		wg.Go(func() {
			for n := 0; ; n++ {
				size := min(batch, left.Add(-batch)+batch)
				if size <= 0 {
					return
				}
				all := make([]client.Submission, size)
				for k := range all {
					p := (i + n + k) * 7 % 10
					all[k] = client.Submission{Job: name, Priority: &p}
				}
				items, err := by.SubmitBatch(context.Background(), all)
				if err != nil {
					c.t.Errorf("submit a batch: %v", err)
					return
				}
				for _, item := range items {
					if item.Err != nil {
						c.t.Errorf("submit: %v", item.Err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if c.t.Failed() {
		c.t.FailNow()
	}
}

// quietly waits until Redis takes nothing new: the number of its keys' bytes stands still.
func (s *stores) quietly() (used int) {
	s.c.t.Helper()
	s.awaitQueue()
	for same := 0; same < 3; {
		wait(time.Second)
		n := s.info("memory", "used_memory_dataset")
		if d := n - used; d < 20_000 && d > -20_000 {
			same++
		} else {
			same = 0
		}
		used = n
	}
	return s.info("memory", "used_memory")
}

// TestStoresBacklog queues many runs that no worker can take: Redis holds the first of them, and no more for more. Then
// workers come, and start them in the order that the lane has: of ready time less a minute for each step of priority.
func TestStoresBacklog(t *testing.T) {
	const laneCap = 10_000
	many, drained := full(1_000_000, 20_000), full(20_000, 13_000)
	c := newCluster(t, shape{nodes: 3, workers: 2, slots: 32, stores: true, quiet: true})
	for _, n := range c.nodes {
		n.start()
	}
	c.leader()
	c.awaitWhole()
	s := c.stored
	s.awaitNodes()
	put(t.Context(), t, c.load.sdk, c.rec, &job.Document{Name: "backlog", Exec: &job.Exec{Command: []string{nothing}}})
	empty := s.quietly()
	c.backlog("backlog", laneCap)
	few := s.quietly()
	from := time.Now()
	c.backlog("backlog", many-laneCap)
	took := time.Since(from)
	much := s.quietly()
	if grown := much - few; grown > 512<<10 {
		t.Errorf("Redis has %d KiB for %d runs and %d KiB for %d: it grows with the backlog", few>>10, laneCap, much>>10, many)
	}
	if n := s.count("SELECT count(*) FROM muster.runs WHERE state = 4"); n != many {
		t.Errorf("%d runs were accepted, %d are queued", many, n)
	}
	from = time.Now()
	for _, w := range c.workers {
		w.start()
	}
	c.await(10*time.Minute, fmt.Sprintf("end of %d runs", drained), func() bool {
		wait(time.Second)
		return s.count("SELECT count(*) FROM muster.runs WHERE state >= 6") >= drained
	})
	drain := time.Since(from)
	for _, w := range c.workers { // one that stops gives back what it has not begun, which comes out of order then
		if _, err := c.load.sdk.Cordon(t.Context(), w.name); err != nil {
			t.Fatal(err)
		}
	}
	for before := -1; ; { // what is assigned is done
		wait(2 * time.Second)
		n := s.count("SELECT count(*) FROM muster.runs WHERE state >= 6")
		if n == before {
			break
		}
		before = n
	}
	started, late, left := s.order()
	if n := s.count("SELECT count(*) FROM muster.runs"); n != many {
		t.Errorf("%d runs were accepted, %d are there", many, n)
	}
	if n := s.count("SELECT count(*) FROM muster.runs WHERE state > 6"); n != 0 {
		t.Errorf("%d runs did not succeed", n)
	}
	if n := s.count("SELECT count(*) FROM muster.runs WHERE attempt > 1"); n != 0 {
		t.Errorf("%d runs were started more than once", n)
	}
	if late != 0 || left != 0 {
		t.Errorf("of %d runs %d were granted after one that comes after them; %d that were not started come before some that were", started, late, left)
	}
	row(t, nil, "%d runs queued in one lane (%.0f/s accepted), Redis has %d KiB empty, %d KiB with %d, %d KiB with all\n%d started in %s (%.0f/s), %d of them out of order, %d left that come before one of them",
		many, float64(many-laneCap)/took.Seconds(), empty>>10, few>>10, laneCap, much>>10, started, drain.Round(time.Second), float64(started)/drain.Seconds(), late, left)
}

// nothing is a command that costs next to nothing; workers of trials may run it.
const nothing = "/bin/true"

// order compares the order in which ended runs were granted, which their fences tell, with their lane's. late is how many
// were granted after one that comes after them, left is how many that were never granted come before one that was.
func (s *stores) order() (started, late, left int) {
	s.c.t.Helper()
	ctx, cancel := context.WithTimeout(s.c.t.Context(), 2*time.Minute)
	defer cancel()
	out, err := s.postgres.SQL(ctx, s.postgres.URL, "SELECT lane_order, id, fence, worker, started_at FROM muster.runs WHERE state >= 6 ORDER BY fence")
	s.must(err)
	type place struct {
		order int64
		id    string
		line  string
	}
	compare := func(a, b place) int { return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.id, b.id)) }
	var last place
	for line := range strings.Lines(out) {
		words := strings.SplitN(strings.TrimSpace(line), "|", 3)
		n, err := strconv.ParseInt(words[0], 10, 64)
		s.must(err)
		p := place{n, words[1], line}
		if started++; compare(p, last) >= 0 {
			last = p
			continue
		}
		if late++; late < 10 {
			s.c.t.Logf("granted as number %d: %safter %s", started, p.line, last.line)
		}
	}
	left = s.count(fmt.Sprintf("SELECT count(*) FROM muster.runs WHERE state = 4 AND (lane_order, id) < (%d, '%s')", last.order, last.id))
	return started, late, left
}

// TestStoresIdle counts what a cluster asks of its stores when nothing happens: it must not be a load by being there.
func TestStoresIdle(t *testing.T) {
	schedules, d := full(10_000, 500), time.Duration(full(60, 10))*time.Second
	c := newCluster(t, shape{nodes: 3, workers: 2, slots: slots, stores: true, quiet: true})
	c.start()
	c.awaitWhole()
	var all []*job.Document
	for i := range schedules {
		all = append(all, &job.Document{Name: fmt.Sprintf("leap-%05d", i), Schedule: &job.Schedule{Cron: "0 0 29 2 *"}, Exec: &job.Exec{Command: []string{nothing}}})
	}
	from := time.Now()
	each(all, func(doc *job.Document) { put(t.Context(), t, c.load.sdk, c.rec, doc) })
	made := time.Since(from)
	s := c.stored
	s.awaitQueue()
	calm := time.Duration(full(15, 5)) * time.Second // what follows from the changes is over
	c.settle(calm, calm+time.Second)
	ctx := t.Context()
	sql := func(text string) string {
		t.Helper()
		out, err := s.postgres.SQL(ctx, "postgres", text)
		s.must(err)
		return out
	}
	logged := func() []byte {
		b, err := os.ReadFile(filepath.Join(s.postgres.Dir(), "log"))
		s.must(err)
		return b
	}
	sql("ALTER SYSTEM SET log_statement = 'all'")
	sql("SELECT pg_reload_conf()")
	wait(time.Second)
	const commits = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'muster'"
	skip := len(logged())
	before := sql(commits)
	s.ask("CONFIG", "RESETSTAT")
	wait(d)
	commands := s.info("stats", "total_commands_processed") - 1 // the AUTH before
	after := sql(commits)
	text := logged()[skip:]
	sql("ALTER SYSTEM RESET log_statement")
	sql("SELECT pg_reload_conf()")
	b, _ := strconv.Atoi(before)
	a, _ := strconv.Atoi(after)
	statements := map[string]int{}
	n := 0
	for _, m := range regexp.MustCompile(`(?m)LOG:  (?:statement|execute [^:]*): ([^\n]*)`).FindAllSubmatch(text, -1) {
		if bytes.Contains(m[1], []byte("pg_stat_database")) {
			continue // that was us
		}
		n++
		statements[string(m[1][:min(len(m[1]), 100)])]++
	}
	for _, k := range slices.SortedFunc(maps.Keys(statements), func(a, b string) int { return statements[b] - statements[a] }) {
		t.Logf("%6.2f/s %s", float64(statements[k])/d.Seconds(), k)
	}
	t.Log(s.ask("INFO", "commandstats"))
	queries, transactions, asked := float64(n)/d.Seconds(), float64(a-b)/d.Seconds(), float64(commands)/d.Seconds()
	if queries >= 5 {
		t.Errorf("an idle cluster asks Postgres %.1f statements a second", queries)
	}
	if asked >= 5 {
		t.Errorf("an idle cluster asks Redis %.1f commands a second", asked)
	}
	row(t, nil, "%d schedules that do not fire (made in %s), idle for %s: Postgres %.1f statements/s in %.1f transactions/s, Redis %.1f commands/s", schedules, made.Round(time.Second), d, queries,
		transactions, asked)
}
