package clustertest

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/internal/dagtest"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
	"github.com/musterhq/muster/storage"
)

// Graphs has random jobs with tasks run by a core while its store fails, its leaders are deposed between any two steps and
// its workers die, and judges what becomes of them by the rules T1 to T9. It uses no clock but time's: in a bubble its
// minutes cost nothing. A seed does not replay exactly, goroutines are scheduled as they like.
type Graphs struct {
	Core   *Core
	Store  storage.Store // of the runs; the core's terms use it too
	Home   job.Home
	Seed   uint64
	Roots  int
	Share  float64       // of the calls that fail
	Cut    int           // one call in so many is the last that its leader makes; 0: none
	Step   time.Duration // what the steps of the trial take at most, and the attempts
	Rounds int           // how often all that failed is retried, what is a retry too
	Limit  time.Duration // in which all must have ended once nothing fails

	// Counts of what happened.
	Starts, Lost, Failures, Leaders, Retries, Again int

	mu      sync.Mutex
	rand    *rand.Rand
	calm    bool // nothing fails
	cut     bool // the leader reaches nothing any more
	leads   bool // a term has begun
	cutting chan struct{}
	killing sync.Mutex
	trials  []*trial
	of      map[job.RunID]*trial // by the ids of their task runs
	done    map[job.RunID][]uint32
	unsure  *Unsure
}

// trial is one root.
type trial struct {
	*dagtest.Trial
	job   *job.Job // nil: it has an inline spec
	spec  *job.Document
	seed  uint64
	again bool // it was retried
}

const graphWorkers = 6

// Run does it all.
func (g *Graphs) Run() {
	g.Core.t.Helper()
	g.rand = rand.New(rand.NewPCG(g.Seed, 0x67))
	g.of, g.done, g.cutting = map[job.RunID]*trial{}, map[job.RunID][]uint32{}, make(chan struct{}, 1)
	inner := g.Core.Configure
	g.unsure = &Unsure{Fail: g.fails}
	g.Core.Configure = func(c *scheduler.Config) {
		if inner != nil {
			inner(c)
		}
		c.Store = g.Store
		g.unsure.Store = g.Store
		c.Store = g.unsure
	}
	g.Core.Log.Fail(nil)
	g.Core.Depose()
	g.Core.Lead()
	slots := 4
	if g.orderly() {
		slots = 1 // whoever kills his worker kills nobody else
	}
	for i := range graphWorkers {
		name := fmt.Sprintf("w%d", i)
		g.Core.Workers.Add(job.WorkerHello{Name: name, Slots: slots}, func(ctx context.Context, a *job.Assignment) job.Outcome { return g.work(ctx, name, a) })
	}
	g.put("child", `{"exec": {"command": ["work"]}}`)
	g.put("children", `{"tasks": [{"name": "a", "exec": {"command": ["work"]}}, {"name": "b", "depends_on": ["a"], "exec": {"command": ["work"]}}], "result": "run.payload"}`)
	g.trouble(func() {
		for i := range g.Roots {
			g.begin(i)
			g.disturb()
		}
	})
	g.judge()
	for range g.Rounds { // T8
		g.trouble(func() {
			for _, x := range g.trials {
				if g.retry(x) {
					g.disturb()
				}
			}
		})
		g.judge()
	}
	g.judgeStarts()
}

// orderly trials see nothing but what the work itself does.
func (g *Graphs) orderly() bool { return g.Share == 0 && g.Cut == 0 }

func (g *Graphs) draw(n int) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.rand.IntN(n)
}

func (g *Graphs) some(d time.Duration) time.Duration {
	return time.Duration(g.draw(1000)) * d / 1000
}

// fails is asked before each call of a term, of the store and of the log.
func (g *Graphs) fails(string) (Failure, time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	late := time.Duration(max(0, g.rand.IntN(2000)-1000)) * g.Step / 1000
	switch {
	case g.cut:
		return LostUnknown, 0
	case g.calm:
		return NoFailure, 0
	case g.Cut > 0 && g.leads && g.rand.IntN(g.Cut) == 0:
		g.cut, g.leads = true, false
		g.cutting <- struct{}{}
		return []Failure{DoneUnknown, LostUnknown}[g.rand.IntN(2)], late
	case g.rand.Float64() >= g.Share:
		return NoFailure, 0
	}
	g.Failures++
	return []Failure{NotDone, DoneUnknown, LostUnknown}[g.rand.IntN(3)], late
}

// trouble does something with everything failing that may, and then waits until all is well and has ended.
func (g *Graphs) trouble(do func()) {
	g.Core.t.Helper()
	over, ended := make(chan struct{}), make(chan struct{})
	go func() { // whoever is cut off is deposed, and somebody else leads
		defer close(ended)
		for {
			select {
			case <-g.cutting:
			case <-over:
				select {
				case <-g.cutting:
				default:
					return
				}
			}
			g.Core.Depose()
			if g.draw(3) == 0 {
				time.Sleep(g.some(g.Step))
			}
			g.mu.Lock()
			g.cut = false
			g.Leaders++
			g.mu.Unlock()
			g.Core.Lead()
			g.mu.Lock()
			g.leads = true
			g.mu.Unlock()
		}
	}()
	g.mu.Lock()
	g.calm, g.leads = false, true
	g.mu.Unlock()
	if !g.orderly() {
		log := Chaos(g.Seed, g.Share)
		g.Core.Log.Fail(func(commands []fsm.Command) Failure {
			g.mu.Lock()
			cut := g.cut
			g.mu.Unlock()
			if cut {
				return LostUnknown
			}
			return log(commands)
		})
	}
	do()
	for range 10 {
		g.disturb()
	}
	g.mu.Lock()
	g.calm = true
	g.mu.Unlock()
	close(over)
	<-ended
	g.Core.Log.Fail(nil)
	g.unsure.Settle()
	for end := time.Now().Add(g.Limit); !g.over() && time.Now().Before(end); {
		time.Sleep(g.Step / 4)
	}
}

// disturb lets some time go by, in which something may happen to workers and roots, and looks whether all is as it must be.
func (g *Graphs) disturb() {
	time.Sleep(g.some(g.Step))
	if !g.orderly() {
		switch g.draw(12) {
		case 0:
			g.kill(fmt.Sprintf("w%d", g.draw(graphWorkers)))
		case 1:
			if len(g.trials) > 0 {
				x := g.trials[g.draw(len(g.trials))]
				id := x.Root
				if g.draw(3) > 0 {
					if t := x.Graph.Tasks[g.draw(len(x.Graph.Tasks))]; t.ForEach == nil {
						id = dagtest.Key{Task: t.Name}.ID(x.Root)
					}
				}
				g.cancel(id)
			}
		}
	}
	for range min(8, len(g.trials)) {
		x := g.trials[g.draw(len(g.trials))]
		root := g.run(x.Root)
		rows := g.rows(x.Root)
		if g.run(x.Root).CancelAt == root.CancelAt {
			g.say(x, root, rows, x.Judge(root, rows, false))
		}
	}
}

func (g *Graphs) kill(name string) {
	g.killing.Lock()
	defer g.killing.Unlock()
	g.Core.Workers.Kill(name, true)
}

func (g *Graphs) cancel(id job.RunID) {
	_, err := retry(func() ([]job.Receipt, error) {
		return g.Store.Cancel(context.Background(), []job.CancelIntent{{ID: id, At: job.At(time.Now())}})
	})
	if err != nil {
		g.Core.t.Errorf("cancel: %v", err)
	}
	if t := g.Core.Term(); t != nil {
		t.CancelRequested([]job.RunID{id})
	}
}

// work is what an attempt does.
func (g *Graphs) work(ctx context.Context, worker string, a *job.Assignment) job.Outcome {
	g.mu.Lock()
	x := g.of[a.RunID]
	g.Starts++
	g.mu.Unlock()
	o, kind := job.Outcome{Kind: job.AttemptSucceeded, Result: a.Payload}, dagtest.Succeeds
	if x != nil {
		for _, wrong := range x.Started(a, g.rows(x.Root)) {
			g.Core.t.Errorf("seed %d: %s\n%s", g.Seed, wrong, x.Graph.Document())
		}
		o, kind = x.Outcomes.Outcome(x.Keys()[a.RunID], a.Attempt)
	} else if h := fnv.New64a(); true { // below a task
		h.Write(a.RunID[:])
		h.Write([]byte{byte(a.Attempt)})
		if h.Sum64()%5 == 0 {
			o = job.Outcome{Kind: job.AttemptFailed, Reason: job.ExitCode, ExitCode: 1, Error: "exit status 1"}
		}
	}
	select {
	case <-time.After(g.some(g.Step)):
	case <-ctx.Done():
		return job.Outcome{Kind: job.AttemptCancelled, Reason: job.CancelRequested}
	}
	if kind == dagtest.LosesWorker {
		g.mu.Lock()
		g.Lost++
		g.mu.Unlock()
		g.killing.Lock()
		defer g.killing.Unlock()
		if ctx.Err() == nil {
			g.Core.Workers.Kill(worker, true)
		}
		return job.Outcome{}
	}
	if o.Kind == job.AttemptSucceeded {
		g.mu.Lock()
		g.done[a.RunID] = append(g.done[a.RunID], a.Attempt)
		g.mu.Unlock()
	}
	return o
}

func (g *Graphs) put(name, document string) *job.Job {
	g.Core.t.Helper()
	var d map[string]json.RawMessage
	if err := json.Unmarshal([]byte(document), &d); err != nil {
		g.Core.t.Fatal(err)
	}
	d["name"], _ = json.Marshal(name)
	b, err := json.Marshal(d)
	if err != nil {
		g.Core.t.Fatal(err)
	}
	spec, err := job.ParseDocument(b)
	if err != nil {
		g.Core.t.Fatalf("%v\n%s", err, b)
	}
	var e [10]byte
	id := g.Core.NewID()
	copy(e[:], id[6:])
	j, err := retry(func() (*job.Job, error) {
		return g.Store.PutJob(context.Background(), job.PutJob{ID: job.MakeJobID(time.Now(), e), Spec: spec, At: job.At(time.Now())})
	})
	if err != nil {
		g.Core.t.Fatalf("%v\n%s", err, b)
	}
	return j
}

// begin submits a root: each other one of a job, which another job follows.
func (g *Graphs) begin(i int) {
	g.Core.t.Helper()
	seed := g.Seed*1000 + uint64(i)
	graph := dagtest.Random(dagtest.Seeded(seed), dagtest.Options{RunJobs: []string{"child", "children"}})
	x := &trial{Trial: &dagtest.Trial{Graph: graph}, seed: seed}
	var err error
	if x.spec, err = graph.Spec(); err != nil {
		g.Core.t.Fatalf("seed %d: %v\n%s", seed, err, graph.Document())
	}
	if i%2 == 0 {
		x.job = g.put(fmt.Sprintf("graph-%d", i), string(graph.Document()))
		g.put(fmt.Sprintf("after-%d", i), fmt.Sprintf(`{"depends_on": [{"job": "graph-%d", "on": "done"}], "exec": {"command": ["work"]}}`, i))
	}
	g.submit(x, g.Core.NewID(), nil)
}

// retry submits a root again that failed, to reuse what succeeded (T8).
func (g *Graphs) retry(x *trial) bool {
	g.Core.t.Helper()
	root := g.run(x.Root)
	if root.State != job.Failed || x.again {
		return false
	}
	x.again = true
	g.Retries++
	n := *x
	n.seed, n.again = x.seed+1<<32, false
	n.Trial = &dagtest.Trial{Graph: x.Graph, Reuse: x.Reusable(g.rows(x.Root))}
	g.submit(&n, job.RetryRunID(root.ID, root.FinishedAt), root)
	return true
}

func (g *Graphs) submit(x *trial, id job.RunID, of *job.Run) {
	g.Core.t.Helper()
	x.Root, x.Disturbed = id, !g.orderly()
	x.Outcomes = dagtest.Outcomes{Seed: x.seed, NoLosses: false}
	payload, err := json.Marshal(x.Graph.Payload)
	if err != nil {
		g.Core.t.Fatal(err)
	}
	s := job.Submission{ID: id, Namespace: "default", Payload: payload, Spec: x.spec}
	if x.job != nil {
		s.Job, s.Spec = x.job.Name, nil
	}
	r, err := job.Birth(&s, x.job, job.At(time.Now()))
	if err != nil {
		g.Core.t.Fatal(err)
	}
	r.Home = g.Home
	if of != nil {
		r.Trigger, r.RetryOf, r.ReusedFrom = job.ByRetry, of.ID, of.ID
	}
	g.mu.Lock()
	g.trials = append(g.trials, x)
	for id := range x.Keys() {
		g.of[id] = x
	}
	g.mu.Unlock()
	got, err := retry(func() (*job.Run, error) {
		receipts, err := g.Store.Submit(context.Background(), []*job.Run{r})
		if err != nil {
			return nil, err
		}
		return receipts[0].Run, receipts[0].Err
	})
	if err != nil {
		g.Core.t.Fatal(err)
	}
	if t := g.Core.Term(); t != nil {
		t.Born([]*job.Run{got})
	}
}

// run and rows are as the store has them, whatever fails for others.
func (g *Graphs) run(id job.RunID) *job.Run {
	r, err := g.Store.Run(context.Background(), id)
	if err != nil {
		g.Core.t.Errorf("read the run %s: %v", id, err)
		return &job.Run{ID: id}
	}
	return r
}

func (g *Graphs) rows(root job.RunID) []*job.Run {
	return g.list(job.RunQuery{Namespace: "default", RootID: root})
}

func (g *Graphs) list(q job.RunQuery) (out []*job.Run) {
	q.Limit = 1000
	for {
		page, err := g.Store.Runs(context.Background(), q)
		if err != nil {
			g.Core.t.Errorf("read runs: %v", err)
			return out
		}
		out = append(out, page.Runs...)
		if q.Before = page.Next; q.Before.IsZero() {
			return out
		}
	}
}

// over: all roots have ended, and what follows them.
func (g *Graphs) over() bool {
	live := []job.State{job.Scheduled, job.Queued, job.Waiting, job.Held, job.Running}
	page, err := g.Store.Runs(context.Background(), job.RunQuery{Namespace: "default", States: live, Limit: 1})
	if err != nil || len(page.Runs) > 0 || !page.Next.IsZero() {
		return false
	}
	for _, x := range g.trials {
		if x.job != nil && len(g.after(x)) == 0 {
			return false
		}
	}
	return len(g.Core.Control.Grants()) == 0
}

// after are the runs of the job that follows that of a root.
func (g *Graphs) after(x *trial) []*job.Run {
	return g.list(job.RunQuery{Namespace: "default", Job: "after" + strings.TrimPrefix(x.job.Name, "graph")})
}

func (g *Graphs) say(x *trial, root *job.Run, rows []*job.Run, wrong []string) {
	if len(wrong) == 0 {
		return
	}
	var all strings.Builder
	for _, r := range rows {
		fmt.Fprintf(&all, "\n%s/%d %s (%s) of %d items, attempt %d; %s", r.Task, r.Item, r.State, r.Reason, r.Items, r.Attempt, g.Core.Workers.Describe(r.ID))
	}
	g.Core.t.Errorf("seed %d, graph %d, the root %s is %s (%s: %s), cancelled at %d:\n%s%s\n%s", g.Seed, x.seed, root.ID, root.State, root.Reason, root.Error,
		root.CancelAt, strings.Join(wrong, "\n"), all.String(), x.Graph.Document())
}

// judge holds all roots so far against the rules, with nothing on its way.
func (g *Graphs) judge() {
	g.Core.t.Helper()
	ends := map[string]int{}
	for _, x := range g.trials {
		root, rows := g.run(x.Root), g.rows(x.Root)
		wrong := x.Judge(root, rows, true)
		for _, r := range rows {
			if t := x.Graph.Task(r.Task); r.State != job.Succeeded || r.Items > 0 || r.Attempt == 0 || !r.ReusedFrom.IsZero() || t.RunJob != "" {
				continue
			}
			n, all := 0, g.successes(r.ID)
			for _, attempt := range all {
				if attempt == r.Attempt {
					n++
				}
			}
			if n != 1 || !x.Disturbed && len(all) != 1 {
				wrong = append(wrong, fmt.Sprintf("%s/%d: it succeeded in attempt %d, and the attempts that did are %v", r.Task, r.Item, r.Attempt, all))
			}
		}
		g.say(x, root, rows, wrong)
		if x.job != nil {
			ends[x.job.Name]++
			if n := len(g.after(x)); n == 0 {
				g.Core.t.Errorf("seed %d: %s has ended, and nothing runs after it", g.Seed, x.job.Name)
			}
		}
	}
	for _, x := range g.trials {
		if x.job != nil && len(g.after(x)) > ends[x.job.Name] {
			g.Core.t.Errorf("seed %d: %s ended %d times, and %d runs came after it", g.Seed, x.job.Name, ends[x.job.Name], len(g.after(x)))
		}
	}
	if n := len(g.Core.Control.Grants()); n > 0 {
		g.Core.t.Errorf("seed %d: %d leases are left", g.Seed, n)
	}
}

func (g *Graphs) successes(id job.RunID) []uint32 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.done[id]
}

// judgeStarts: an attempt starts once, and none does when its root has ended (D3, T5).
func (g *Graphs) judgeStarts() {
	g.Core.t.Helper()
	type attempt struct {
		run job.RunID
		n   uint32
	}
	seen, ended := map[attempt]bool{}, map[*trial]time.Time{}
	for _, x := range g.trials {
		ended[x] = g.run(x.Root).FinishedAt.Time()
	}
	for _, s := range g.Core.Workers.Starts() {
		k := attempt{s.Run, s.Attempt}
		if seen[k] {
			g.Core.t.Errorf("seed %d: attempt %d of %s started twice", g.Seed, s.Attempt, s.Run)
		}
		seen[k] = true
		x := g.of[s.Run]
		if x != nil && s.At.After(ended[x]) {
			g.Core.t.Errorf("seed %d: attempt %d of %v started after its root had ended", g.Seed, s.Attempt, x.Keys()[s.Run])
		}
		if x != nil && s.Attempt > 1 {
			g.Again++
		}
	}
}
