package systemtest

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/internal/servers"
	"github.com/musterhq/muster/job"
)

// stores are the Postgres and the Redis of one trial, and what is done to them.
type stores struct {
	c        *cluster
	postgres *servers.Postgres
	redis    *servers.Redis
}

// startStores starts both. At full length Postgres waits for the disk, as in production.
func startStores(c *cluster) *stores {
	c.t.Helper()
	s := &stores{c: c, postgres: servers.NewPostgres(c.t, servers.PostgresOptions{Durable: *chaos}), redis: servers.NewRedis(c.t, servers.RedisOptions{})}
	c.rec.add(checker.Line{Store: job.HomePostgres})
	return s
}

// must fails the trial.
func (s *stores) must(err error) {
	s.c.t.Helper()
	if err != nil {
		s.c.t.Fatal(err)
	}
}

// gone makes a store refuse connections for a while, and tells from when until when it did.
func (s *stores) gone(name string, end func(), d time.Duration, start func(context.Context) error) checker.Fault {
	s.c.t.Helper()
	end()
	f := checker.Fault{Kind: checker.Away, Role: checker.Store, Name: name, From: now()}
	wait(d)
	f.To = now()
	s.must(start(s.c.t.Context()))
	s.c.rec.add(checker.Line{Fault: &f})
	return f
}

// mute makes Postgres answer nothing for a while.
func (s *stores) mute(d time.Duration) checker.Fault {
	s.c.t.Helper()
	s.postgres.Pause()
	f := checker.Fault{Kind: checker.Pause, Role: checker.Store, Name: checker.Postgres, From: now()}
	wait(d)
	f.To = now()
	s.postgres.Resume()
	s.c.rec.add(checker.Line{Fault: &f})
	return f
}

// flush has Redis forget everything.
func (s *stores) flush() {
	s.c.t.Helper()
	s.ask("FLUSHALL")
	s.forgot()
}

func (s *stores) forgot() {
	at := now()
	s.c.rec.add(checker.Line{Fault: &checker.Fault{Kind: checker.Forgot, Role: checker.Store, Name: checker.Redis, From: at, To: at}})
}

// ask gives Redis one command.
func (s *stores) ask(args ...string) string {
	s.c.t.Helper()
	ctx, cancel := context.WithTimeout(s.c.t.Context(), time.Minute)
	defer cancel()
	answer, err := s.redis.Do(ctx, args...)
	s.must(err)
	return answer
}

// info is one number that Redis tells of itself.
func (s *stores) info(section, name string) int {
	s.c.t.Helper()
	for line := range strings.Lines(s.ask("INFO", section)) {
		if v, found := strings.CutPrefix(strings.TrimSpace(line), name+":"); found {
			n, err := strconv.Atoi(v)
			s.must(err)
			return n
		}
	}
	s.c.t.Fatalf("Redis has no %s in %s", name, section)
	return 0
}

// count asks Postgres for one number.
func (s *stores) count(sql string) int {
	s.c.t.Helper()
	ctx, cancel := context.WithTimeout(s.c.t.Context(), 2*time.Minute)
	defer cancel()
	out, err := s.postgres.SQL(ctx, s.postgres.URL, sql)
	s.must(err)
	n, err := strconv.Atoi(out)
	s.must(err)
	return n
}

// awaitNodes waits until every node has found Postgres as the first leader made it.
func (s *stores) awaitNodes() {
	if s == nil {
		return
	}
	s.c.t.Helper()
	s.c.await(time.Minute, "way from every node to Postgres", func() bool {
		return !slices.ContainsFunc(s.c.nodes, func(n *process) bool { return s.c.metrics(n)["muster_postgres_up"] != 1 })
	})
}

// awaitQueue waits until the leader's queue is in Redis again, which it must be without anybody's help.
func (s *stores) awaitQueue() {
	s.c.t.Helper()
	s.c.await(time.Minute, "queue in Redis", func() bool {
		return s.c.metrics(s.c.leader())["muster_queue_remote_up"] == 1
	})
}

// resyncs is how often the nodes that live have filled Redis anew.
func (s *stores) resyncs() (n int) {
	for _, p := range s.c.nodes {
		n += sum(s.c.metrics(p), "muster_queue_resyncs_total")
	}
	return n
}

// storesShape is the cluster of most trials: as the others', over stores.
func storesShape() shape {
	return shape{nodes: 3, workers: 3, jobs: full(*jobs, 30), slots: slots, stores: true}
}

// TestStoresRedisStopped stops Redis under load: the leader goes on with the queue in its memory, and fills Redis again
// when that is back.
func TestStoresRedisStopped(t *testing.T) {
	away := time.Duration(full(60, 5)) * time.Second
	c := newCluster(t, storesShape())
	c.start()
	c.settle(5*time.Second, 6*time.Second)
	steady := now()
	s := c.stored
	s.awaitQueue()
	f := s.gone(checker.Redis, func() { s.must(s.redis.Stop()) }, away, s.redis.Start)
	back := time.Now()
	s.awaitQueue()
	took := time.Since(back)
	c.settle(4*time.Second, 5*time.Second)
	again := s.resyncs()
	h, r := c.end()
	row(t, r, "Redis stopped for %s; in use again %s after it was started, filled %d times\nticks late before: %s\nwithout Redis: %s\nafter: %s", away,
		took.Round(time.Millisecond), again, spread(lateness(h, steady-checker.Moment(5*time.Second), f.From)), spread(lateness(h, f.From, f.To)), spread(lateness(h, f.To, now())))
	undisturbed(t, r)
}

// undisturbed judges that nothing was started twice: no worker had died.
func undisturbed(t *testing.T, r *checker.Report) {
	t.Helper()
	if r.AfterLoss > 0 {
		t.Errorf("%d runs were repeated although no worker had died", r.AfterLoss)
	}
}

// TestStoresFlush empties Redis again and again.
func TestStoresFlush(t *testing.T) {
	c := newCluster(t, storesShape())
	c.start()
	c.settle(3*time.Second, 4*time.Second)
	s, from := c.stored, now()
	n := full(12, 2)
	for range n {
		s.flush()
		c.settle(5*time.Second, 5*time.Second+time.Millisecond)
	}
	s.awaitQueue()
	again := s.resyncs()
	h, r := c.end()
	row(t, r, "Redis flushed %d times, every 5 s; filled %d times\nticks late: %s", n, again, spread(lateness(h, from, now())))
	undisturbed(t, r)
	if again == 0 { // not each time: who loses Redis often stays away from it for longer
		t.Error("nobody noticed that Redis was empty")
	}
}

// TestStoresOldDump puts Redis back to what it held some time ago, as a restored backup does, or a fail-over to a replica
// that lagged.
func TestStoresOldDump(t *testing.T) {
	age := time.Duration(full(30, 4)) * time.Second
	c := newCluster(t, storesShape())
	c.start()
	c.settle(3*time.Second, 4*time.Second)
	s := c.stored
	s.awaitQueue()
	s.must(s.redis.Save(t.Context()))
	wait(age)
	from := now()
	s.redis.Kill() // it has not saved since
	s.must(s.redis.Start(t.Context()))
	s.forgot()
	s.awaitQueue()
	c.settle(5*time.Second, 8*time.Second)
	again := s.resyncs()
	h, r := c.end()
	row(t, r, "Redis put back to what it was %s before; filled %d times\nticks late after: %s", age, again, spread(lateness(h, from, now())))
	undisturbed(t, r)
	if again == 0 {
		t.Error("nobody noticed that Redis holds what is over")
	}
}

// TestStoresFlushAndKill takes Redis' memory and the leader's at once: the next one has the store alone.
func TestStoresFlushAndKill(t *testing.T) {
	c := newCluster(t, storesShape())
	c.start()
	c.settle(3*time.Second, 4*time.Second)
	s, n := c.stored, rounds(full(5, 1))
	var at []checker.Moment
	for i := range n {
		l := c.leader()
		at = append(at, now())
		if i%2 == 0 {
			s.flush()
			l.kill()
		} else {
			l.kill()
			s.flush()
		}
		c.settle(time.Second, 3*time.Second)
		l.start()
		c.awaitWhole()
		c.settle(2*time.Second, 3*time.Second)
	}
	s.awaitQueue()
	h, r := c.end()
	row(t, r, "Redis flushed and the leader killed at once, %d times\nto the next leader: %s; to the first start of a new tick: %s", n, spread(elections(h, at)), spread(c.firstTicks(h, at)))
	undisturbed(t, r)
}

// elections is how long after each moment a node said that it leads.
func elections(h *checker.History, at []checker.Moment) (all []time.Duration) {
	for _, k := range at {
		if d, ok := nextLeader(h, k); ok {
			all = append(all, d)
		}
	}
	return all
}

// firstTicks is how long after each moment the first tick started that fell due after it.
func (c *cluster) firstTicks(h *checker.History, at []checker.Moment) (all []time.Duration) {
	c.t.Helper()
	for _, k := range at {
		gap, _, ok := firstTick(h, k)
		if !ok {
			c.t.Error("no tick started after a fault")
			continue
		}
		all = append(all, gap)
	}
	return all
}

// TestStoresPostgresKilled kills Postgres, and takes the processor away from it. Submissions are refused meanwhile, soon and
// in so many words; ticks fall due in Raft, and the leader stores them and goes on by itself when Postgres is back.
func TestStoresPostgresKilled(t *testing.T) {
	c := newCluster(t, storesShape())
	c.start()
	c.settle(5*time.Second, 6*time.Second)
	s := c.stored
	var back []checker.Moment
	var lates []string
	for i := range rounds(full(4, 1)) {
		what, away := "killed", time.Duration(full(10, 4))*time.Second
		var f checker.Fault
		if i%2 == 0 {
			f = s.gone(checker.Postgres, s.postgres.Kill, away, s.postgres.Start)
		} else {
			what = "paused"
			f = s.mute(away)
		}
		up := now() // recovery has ended
		back = append(back, up)
		c.settle(6*time.Second, 8*time.Second)
		lates = append(lates, what+" for "+span(f.From, f.To).String()+", answering again after "+span(f.To, up).String())
	}
	for _, n := range c.nodes {
		if !n.ready(30 * time.Second) {
			t.Errorf("%s is not ready, though its store is back", n.name)
		}
	}
	h, r := c.end()
	row(t, r, "Postgres %s\nanswering to the first start of a new tick: %s\n%d submissions while it was away; slowest answer after it was noticed %s", strings.Join(lates, "; "),
		spread(c.firstTicks(h, back)), r.Away, time.Duration(r.AwaySlowest).Round(time.Millisecond))
	undisturbed(t, r)
	if r.Away == 0 {
		t.Error("nobody submitted anything while Postgres was away")
	}
}

func span(from, to checker.Moment) time.Duration {
	return time.Duration(to - from).Round(100 * time.Millisecond)
}

// TestStoresOneKey has many callers submit with one key at once, through all nodes: one run is made, and all are told of it.
func TestStoresOneKey(t *testing.T) {
	const callers = 200
	c := newCluster(t, shape{nodes: 3, workers: 1, slots: slots, stores: true, quiet: true})
	c.start()
	c.awaitWhole()
	c.load.http.Timeout = 30 * time.Second
	c.load.http.Transport.(*http.Transport).MaxIdleConnsPerHost = callers
	n := full(10, 2)
	for i := range n {
		key := "one-" + strconv.Itoa(i)
		body := submission{Spec: &job.Document{Exec: command(c.dir)}, Payload: map[string]int{"n": i}}
		ids := c.load.submitTogether(body, key, callers)
		if len(ids) != 1 {
			t.Errorf("%d callers with one key were told of %d runs", callers, len(ids))
		}
		for id, told := range ids {
			if told != callers {
				t.Errorf("%d of %d callers were told of %s", told, callers, id)
			}
		}
		body.Payload = map[string]int{"n": -1}
		if op := c.load.submitOp(body, client.NewRunID(), key); op.Outcome != checker.Refused || op.Status != http.StatusConflict {
			t.Errorf("the key with another body was answered %s, %d %s", op.Outcome, op.Status, op.Problem)
		}
	}
	_, r := c.end()
	row(t, r, "%d keys, each by %d callers at once through three nodes", n, callers)
	if r.Starts != n {
		t.Errorf("%d keys made %d commands start", n, r.Starts)
	}
}
