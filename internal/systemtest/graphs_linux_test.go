package systemtest

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

// graphLoad is the clients of a trial of graphs.
type graphLoad struct {
	*load
	first  *job.Document // of the nightly chain
	named  []*job.Document
	others []*job.Document

	mu    sync.Mutex
	roots []job.RunID
	bad   []job.RunID // submitted to fail, and to be retried
}

// startGraphs starts the cluster and makes the jobs.
func startGraphs(c *cluster) *graphLoad {
	c.t.Helper()
	r := rand.New(rand.NewPCG(c.seed, 5))
	l := &graphLoad{load: c.load}
	c.start()
	var chain []*job.Document
	l.first, chain = nightly(c.dir)
	l.others = append(partsOf(c.dir, r), chain...)
	for _, k := range graphKinds {
		d := k.make(c.dir, r)
		d.Name = "graph-" + k.name
		l.named = append(l.named, d)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	put(ctx, c.t, l.sdk, c.rec, l.first) // without its schedule: nothing of it ends before the others depend on it
	for _, d := range slices.Concat(l.others, l.named) {
		put(ctx, c.t, l.sdk, c.rec, d)
	}
	l.first.Schedule = &job.Schedule{Cron: "@every 1s", CatchUp: job.CatchUp{Policy: job.CatchUpAll}}
	put(ctx, c.t, l.sdk, c.rec, l.first)
	if c.t.Failed() {
		c.t.FailNow()
	}
	c.docs, c.others = []*job.Document{l.first}, slices.Concat(l.others, l.named)
	return l
}

// submitGraph submits a graph of a kind through some node: by the name of a job, or as its own document. In the end it is
// there, or it was refused.
func (l *graphLoad) submitGraph(r *rand.Rand, k int) job.RunID {
	kind := graphKinds[k]
	p := graphPayload{N: r.IntN(11), List: r.Perm(20)[:2+r.IntN(7)]}
	s := submission{Payload: p, Labels: map[string]string{graphLabel: kind.name}, Job: l.named[k].Name}
	if kind.name == "layers" || r.IntN(2) == 0 {
		s.Job, s.Spec = "", kind.make(l.dir, r)
	}
	id := client.NewRunID()
	for range 3 {
		if outcome := l.submit(s, id, ""); outcome == checker.OK {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.roots = append(l.roots, id)
			if kind.name == "again" {
				l.bad = append(l.bad, id)
			}
			return id
		} else if outcome == checker.Refused {
			break
		}
	}
	return job.RunID{}
}

// recent is one of the roots that were submitted last.
func (l *graphLoad) recent(r *rand.Rand) (id job.RunID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.roots); n > 0 {
		id = l.roots[n-1-r.IntN(min(n, 15))]
	}
	return id
}

// read looks at a graph and at its tasks, at some node.
func (l *graphLoad) read(r *rand.Rand) {
	id := l.recent(r)
	if id.IsZero() {
		return
	}
	node := l.nodes[r.IntN(len(l.nodes))]
	op := checker.Op{Kind: checker.Read, Asked: now(), ID: id}
	var run client.RunWithTasks
	if outcome, err := l.askNode(l.http, node, &op, http.MethodGet, "/v1/runs/"+id.String(), nil, &run); outcome == checker.OK || op.Status == http.StatusNotFound {
		l.answered(&op, outcome, &run.Run, err)
		seeTasks(l.rec, &op, &run)
	}
	op = checker.Op{Kind: checker.Read, Asked: now(), ID: id}
	var all struct{ Items []*job.Run }
	if outcome, _ := l.askNode(l.http, node, &op, http.MethodGet, "/v1/runs?limit=500&root_id="+id.String(), nil, &all); outcome == checker.OK {
		for _, t := range all.Items {
			one := op
			one.ID = t.ID
			l.answered(&one, checker.OK, t, nil)
		}
	}
}

// cancel cancels a graph, or one task of it.
func (l *graphLoad) cancel(r *rand.Rand) {
	id := l.recent(r)
	if id.IsZero() {
		return
	}
	if r.IntN(2) == 0 {
		var run client.RunWithTasks
		op := checker.Op{}
		if outcome, _ := l.ask(&op, http.MethodGet, "/v1/runs/"+id.String(), nil, &run); outcome != checker.OK {
			return
		}
		live := slices.DeleteFunc(run.Tasks, func(t client.TaskRun) bool { return t.ID.IsZero() || t.State.Terminal() || t.Items != nil })
		if len(live) == 0 {
			return
		}
		id = live[r.IntN(len(live))].ID
	}
	op := checker.Op{Kind: checker.Cancel, Asked: now(), ID: id}
	var run job.Run
	outcome, err := l.post(&op, "/v1/runs/"+id.String()+"/cancel", nil, &run)
	l.answered(&op, outcome, &run, err)
}

// retry retries a graph that was made to fail, when it has.
func (l *graphLoad) retry(*rand.Rand) {
	l.mu.Lock()
	if len(l.bad) == 0 {
		l.mu.Unlock()
		return
	}
	id := l.bad[0]
	l.bad = l.bad[1:]
	l.mu.Unlock()
	op := checker.Op{Kind: checker.Retry, Asked: now(), ID: id}
	var run job.Run
	outcome, err := l.post(&op, "/v1/runs/"+id.String()+"/retry", nil, &run)
	l.answered(&op, outcome, &run, err)
	if outcome != checker.OK { // it has not ended, or nobody knows: the same again is the same retry
		l.mu.Lock()
		l.bad = append(l.bad, id)
		l.mu.Unlock()
	}
}

// edit makes new versions of the jobs of the nightly chain: their edges stand as they stood.
func (l *graphLoad) edit(r *rand.Rand) {
	d := l.others[r.IntN(len(l.others))]
	p := r.IntN(10)
	d.Priority = &p
	put(context.Background(), l.t, l.sdk, l.rec, d)
}

// run is all clients until ctx ends.
func (l *graphLoad) run(ctx context.Context, seed uint64, every time.Duration) {
	var wg sync.WaitGroup
	for i, turn := range []struct {
		do    func(*rand.Rand)
		pause time.Duration
	}{
		{func(r *rand.Rand) { l.submitGraph(r, r.IntN(len(graphKinds))) }, every},
		{l.read, every / 2}, {l.read, every / 2}, {l.cancel, 6 * every}, {l.retry, every}, {l.edit, 10 * every},
	} {
		r := rand.New(rand.NewPCG(seed, uint64(100+i)))
		wg.Go(func() {
			for ctx.Err() == nil {
				turn.do(r)
				select {
				case <-ctx.Done():
				case <-time.After(turn.pause/2 + time.Duration(r.Int64N(int64(turn.pause)))):
				}
			}
		})
	}
	wg.Wait()
}

// TestGraphs has tasks follow tasks, and jobs follow jobs, while leaders and workers are killed, the leaders also between
// two steps of what follows what, and the stores are stopped.
func TestGraphs(t *testing.T) {
	if !*chaos {
		t.Parallel() // as its parts do
	}
	t.Run("embedded", func(t *testing.T) {
		if *chaos {
			graphTrial(t, false)
			return
		}
		c := newCluster(t, shape{nodes: 3, workers: 2, slots: slots, quiet: true})
		l := startGraphs(c)
		steady := now()
		l.dozen(c)
		graphRow(t, c, steady, []checker.Moment{steady}, "the leader killed once")
	})
	t.Run("stores", func(t *testing.T) {
		long(t)
		graphTrial(t, true)
	})
}

// dozen is the short trial: some of every kind at once, and a leader that dies meanwhile.
func (l *graphLoad) dozen(c *cluster) {
	r := rand.New(rand.NewPCG(c.seed, 6))
	submit := func(from int) {
		for i := range 6 {
			c.await(20*time.Second, "node that takes a graph", func() bool {
				return !l.submitGraph(r, (from+i)%len(graphKinds)).IsZero()
			})
		}
	}
	submit(0)
	wait(300 * time.Millisecond)
	n := c.leader()
	n.kill()
	submit(6)
	l.read(r)
	n.start()
	c.awaitWhole()
	c.await(20*time.Second, "retry of the graph that failed", func() bool {
		l.retry(r)
		return len(l.bad) == 0
	})
}

// graphTrial is the long one.
func graphTrial(t *testing.T, stored bool) {
	c := newCluster(t, shape{nodes: 3, workers: 3, slots: slots, quiet: true, stores: stored, breakable: true})
	l := startGraphs(c)
	clients, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { l.run(clients, c.seed, 900*time.Millisecond) })
	c.stop = sync.OnceFunc(func() { stop(); wg.Wait() })
	t.Cleanup(c.stop)
	steady := now()
	c.settle(15*time.Second, 16*time.Second)

	var at []checker.Moment
	var did []string
	n := rounds(6)
	for range n {
		victim := c.leader()
		at = append(at, now())
		victim.kill()
		c.settle(time.Second, 3*time.Second)
		victim.start()
		c.awaitWhole()
		c.settle(2*time.Second, 4*time.Second)
	}
	did = append(did, fmt.Sprintf("%d leaders killed", n))
	for _, name := range []string{"resolve/opened", "resolve/released", "resolve/ended", "fire/fired"} {
		times := 0
		for range rounds(3) {
			f := c.followers()
			victim := f[c.rand.IntN(len(f))]
			hit := 1 + c.rand.IntN(15)
			if name == "fire/fired" { // there are few
				hit = 1 + c.rand.IntN(2)
			}
			c.arm(victim, fmt.Sprintf("%s=kill@%d", name, hit))
			c.lead(victim)
			if victim.died(45 * time.Second) {
				times++
				at = append(at, victim.life.Dead)
				t.Logf("%s=kill@%d: %s has ended", name, hit, victim.name)
			} else {
				victim.kill()
			}
			c.settle(time.Second, 3*time.Second)
			c.disarm(victim)
		}
		if times == 0 {
			t.Errorf("no leader came to %s", name)
		}
		did = append(did, fmt.Sprintf("%s %d", name, times))
	}
	n = rounds(6)
	for i := range n {
		w := c.workers[c.rand.IntN(len(c.workers))]
		w.kill()
		if i%3 == 2 { // its leases end without it
			c.settle(42*time.Second, 44*time.Second)
		} else {
			c.settle(0, 2*time.Second)
		}
		w.start()
		c.awaitWorkers()
		c.settle(time.Second, 2*time.Second)
	}
	did = append(did, fmt.Sprintf("%d workers killed", n))
	if stored {
		s := c.stored
		for range rounds(2) {
			s.gone(checker.Redis, func() { s.must(s.redis.Stop()) }, 10*time.Second, s.redis.Start)
			s.awaitQueue()
			s.flush()
			c.settle(3*time.Second, 4*time.Second)
			victim := c.leader()
			at = append(at, now())
			s.flush()
			victim.kill()
			c.settle(time.Second, 3*time.Second)
			victim.start()
			c.awaitWhole()
		}
		for range rounds(2) {
			s.gone(checker.Postgres, s.postgres.Kill, 5*time.Second, s.postgres.Start)
			c.settle(6*time.Second, 8*time.Second)
		}
		did = append(did, fmt.Sprintf("Redis stopped %d times, flushed %d times; Postgres killed %d times", rounds(2), 2*rounds(2), rounds(2)))
	}
	c.settle(5*time.Second, 6*time.Second)
	graphRow(t, c, steady, at, strings.Join(did, ", "))
}

// graphRow ends a trial of graphs and says what came of it. The first fault came at at[0].
func graphRow(t *testing.T, c *cluster, steady checker.Moment, at []checker.Moment, did string) {
	t.Helper()
	h, r := c.end()
	f := newGraphFacts(h)
	given, wrong := f.judge(h)
	for i, text := range wrong {
		if i == 20 {
			t.Error("and more")
			break
		}
		t.Error(text)
	}
	all := taskStarts(h, steady, now())
	row(t, r, "%s\ngraphs %d, of kinds: %s; tasks %d and items %d, of them skipped %d, reused %d; commands that were given what they should be %d\njobs after jobs: %d runs, of %d ends and %d coalesced, %d pending"+
		"\nreleased to started: before the first fault %s; over all %s\nend of a task to the start of the next: before the first fault %s; over all %s\nto the next leader: %s; to the first start of a task born since: %s", did,
		r.Graphs, kindsOf(h), r.Tasks, r.Items, r.Skipped, r.Reused, given, r.Fired, r.Consumed, r.Coalesced, r.Pending,
		spread(taskStarts(h, steady, at[0])), spread(all), spread(f.steps(h, steady, at[0])), spread(f.steps(h, steady, now())), spread(elections(h, at)), spread(firstTasks(h, at)))
}

// kindsOf counts the graphs that were accepted.
func kindsOf(h *checker.History) string {
	n := map[string]int{}
	for _, op := range h.Ops {
		var s submission
		if op.Kind == checker.Submit && op.Outcome == checker.OK && json.Unmarshal(op.Body, &s) == nil {
			n[s.Labels[graphLabel]]++
		}
	}
	var all []string
	for _, k := range graphKinds {
		all = append(all, fmt.Sprintf("%s %d", k.name, n[k.name]))
	}
	return strings.Join(all, ", ")
}

// released are the task runs by id, and when each was born, on the clock of the history.
func released(h *checker.History) (runs map[job.RunID]*job.Run, born func(*job.Run) checker.Moment) {
	runs = map[job.RunID]*job.Run{}
	for i := range h.Runs {
		if r := &h.Runs[i].Run; r.Task != "" {
			runs[r.ID] = r
		}
	}
	var boot int64
	if len(h.Work) > 0 {
		boot = h.Work[0].Wall - int64(h.Work[0].At)
	}
	return runs, func(r *job.Run) checker.Moment { return checker.Moment(r.CreatedAt.Time().UnixNano() - boot) }
}

// taskStarts is, of each task born between two moments, how long it took to its first start.
func taskStarts(h *checker.History, from, to checker.Moment) (all []time.Duration) {
	runs, born := released(h)
	for _, w := range h.Work {
		if r := runs[w.Run]; r != nil && w.Event == checker.Start && w.Attempt == 1 {
			if at := born(r); at >= from && at < to {
				all = append(all, max(0, time.Duration(w.At-at)))
			}
		}
	}
	return all
}

// steps is, of each task of a chain that started between two moments, how long after the work of the task before it.
func (f *graphFacts) steps(h *checker.History, from, to checker.Moment) (all []time.Duration) {
	ends := map[job.RunID]checker.Moment{}
	for _, w := range h.Work {
		if w.Event == checker.End {
			ends[w.Run] = max(ends[w.Run], w.At)
		}
	}
	for _, w := range h.Work {
		r := f.runs[w.Run]
		if r == nil || r.Task == "" || w.Event != checker.Start || w.Attempt != 1 || w.At < from || w.At >= to {
			continue
		}
		if s, known := f.of(f.runs[r.RootID]); !known || s.Labels[graphLabel] != "chain" {
			continue
		}
		n, err := strconv.Atoi(strings.TrimPrefix(r.Task, "t"))
		if end, known := ends[job.TaskRunID(r.RootID, fmt.Sprintf("t%d", n-1), 0)]; err == nil && known {
			all = append(all, time.Duration(w.At-end))
		}
	}
	return all
}

// firstTasks is how long after each moment the first task started that was born after it.
func firstTasks(h *checker.History, at []checker.Moment) (all []time.Duration) {
	runs, born := released(h)
	starts := slices.DeleteFunc(slices.Clone(h.Work), func(w checker.Work) bool { return w.Event != checker.Start || runs[w.Run] == nil })
	slices.SortFunc(starts, func(a, b checker.Work) int { return cmp.Compare(a.At, b.At) })
	for _, k := range at {
		if i := slices.IndexFunc(starts, func(w checker.Work) bool { return born(runs[w.Run]) > k }); i >= 0 {
			all = append(all, time.Duration(starts[i].At-k))
		}
	}
	return all
}
