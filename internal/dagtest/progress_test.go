package dagtest_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/musterhq/muster/internal/dagtest"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/job/dag"
)

var seeds = flag.Int("dag.seeds", 4000, "how many graphs TestProgress tries")

// keptSeeds once found something: a leader that died after the births that follow a list, and before the move that ended the
// list's task, had the later task's items fail (458).
var keptSeeds = []uint64{458}

// world is the store, the queue and the workers of one root.
type world struct {
	t     fatal
	draw  dagtest.Draw
	trial *dagtest.Trial
	plan  *dag.Plan
	root  *job.Run
	rows  map[job.RunID]*job.Run
	order []job.RunID
	old   []*job.Run
	g     *dag.Progress
	now   job.Instant
}

type fatal interface {
	Helper()
	Fatalf(string, ...any)
}

func (w *world) all() (out []*job.Run) {
	for _, id := range w.order {
		out = append(out, w.rows[id])
	}
	return out
}

func (w *world) put(r *job.Run) *job.Run {
	if have := w.rows[r.ID]; have != nil {
		return have
	}
	w.rows[r.ID], w.order = r, append(w.order, r.ID)
	return r
}

// rebuild is what a new leader does.
func (w *world) rebuild() {
	w.g = dag.NewProgress(w.plan, w.root)
	if w.old != nil {
		w.g.Reuse(w.old)
	}
	if w.root.CancelAt != 0 {
		w.g.Cancel()
	}
	all := w.all()
	for i := len(all) - 1; i > 0; i-- {
		j := w.draw("note", i+1)
		all[i], all[j] = all[j], all[i]
	}
	for _, r := range all {
		w.g.Note(r)
	}
}

// settle does what follows until nothing does, with crashes between any two steps.
func (w *world) settle(crashes bool) {
	w.t.Helper()
	for range 10_000 {
		if crashes && w.draw("crash", 8) == 0 {
			w.rebuild()
		}
		step := w.g.Next(w.now)
		if step.Empty() {
			return
		}
		if crashes && w.draw("cut", 6) == 0 {
			stored := w.draw("stored", len(step.Births)+1)
			for _, r := range step.Births[:stored] {
				w.put(r)
			}
			w.check(false)
			if w.draw("again", 2) == 0 {
				for _, r := range w.all() {
					w.g.Note(r)
				}
				w.g.Again()
			} else {
				w.rebuild()
			}
			continue
		}
		for _, r := range step.Births {
			w.g.Note(w.put(r))
		}
		for _, m := range step.Moves {
			n, _ := m.Apply(w.rows[m.ID])
			w.rows[m.ID] = n
			w.g.Note(n)
		}
		if step.End != nil {
			m := *step.End
			m.Fence, m.Attempt = w.root.Fence+1, 1
			n, ok := m.Apply(w.root)
			if !ok {
				w.t.Fatalf("the end does not apply: %+v", m)
			}
			w.root = n
			w.g.Note(n)
		}
		w.check(false)
	}
	w.t.Fatalf("it never comes to rest")
}

func (w *world) check(settled bool) {
	w.t.Helper()
	for _, x := range w.trial.Judge(w.root, w.all(), settled) {
		rows := ""
		for i, list := range [][]*job.Run{w.all(), w.old} {
			for _, r := range list {
				rows += fmt.Sprintf("\n%s %s/%d %s (%s) of %d items", []string{"now", "old"}[i], r.Task, r.Item, r.State, r.Reason, r.Items)
			}
		}
		w.t.Fatalf("%s%s\n%s\nroot %+v", x, rows, w.trial.Graph.Document(), w.root)
	}
}

// live are the runs of work that have not ended.
func (w *world) live() (out []*job.Run) {
	for _, r := range w.all() {
		if !r.State.Terminal() && r.Items == 0 {
			out = append(out, r)
		}
	}
	return out
}

// end has the work of a run done.
func (w *world) end(r *job.Run) {
	k := dagtest.Key{Task: r.Task, Item: r.Item}
	n := *r
	n.FinishedAt = w.now
	task := w.trial.Graph.Task(r.Task)
	spec, payload, err := w.plan.Render(r, w.root, w.outcome)
	_, _, wrong := w.trial.Reference(w.all()).Env(w.trial.Graph, k)
	switch {
	case (err != nil) != (wrong != nil):
		w.t.Fatalf("%v: rendering says %v, and the reference %v\n%s", k, err, wrong, w.trial.Graph.Document())
	case w.draw("cancelled", 30) == 0 || w.root.CancelAt != 0 && w.draw("stopped", 2) == 0:
		n.State, n.Reason, n.CancelAt = job.Cancelled, job.CancelRequested, w.now
	case err != nil:
		n.State, n.Reason, n.Error = job.Failed, job.ExpressionFailed, err.Error()
	default:
		if task.RunJob == "" {
			a := &job.Assignment{RunID: r.ID, Attempt: 1, Spec: spec, Payload: payload}
			for _, x := range w.trial.Started(a, w.all()) {
				w.t.Fatalf("%s\n%s", x, w.trial.Graph.Document())
			}
		}
		e := w.trial.Outcomes.Final(k, task.MaxAttempts)
		n.State, n.Reason, n.Result, n.Attempt = e.State, e.Reason, e.Result, e.Attempt
	}
	w.rows[r.ID] = &n
	w.g.Note(&n)
}

func (w *world) outcome(name string) *dag.Outcome {
	r := w.rows[job.TaskRunID(w.root.ID, name, 0)]
	o := &dag.Outcome{State: r.State, Reason: r.Reason, Error: r.Error, Result: r.Result}
	if r.Items > 0 {
		o.Items = make([]json.RawMessage, r.Items)
		for i := range r.Items {
			if x := w.rows[job.TaskRunID(w.root.ID, name, i+1)]; x != nil {
				o.Items[i] = x.Result
			}
		}
	}
	return o
}

func play(t fatal, draw dagtest.Draw, seed uint64) {
	t.Helper()
	g := dagtest.Random(draw, dagtest.Options{RunJobs: []string{"other"}})
	spec, err := g.Spec()
	if err != nil {
		t.Fatalf("%v\n%s", err, g.Document())
	}
	plan, err := dag.Compile(spec)
	if err != nil {
		t.Fatalf("%v\n%s", err, g.Document())
	}
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	id := job.MakeRunID(begin, [10]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), 1})
	w := &world{t: t, draw: draw, plan: plan, now: job.At(begin)}
	w.trial = &dagtest.Trial{Graph: g, Root: id, Outcomes: dagtest.Outcomes{Seed: seed}}
	payload, err := json.Marshal(g.Payload)
	if err != nil {
		t.Fatalf("%v", err)
	}
	spend := func() {
		w.rows, w.order = map[job.RunID]*job.Run{}, nil
		w.rebuild()
		for round := 0; !w.root.State.Terminal(); round++ {
			if round > 2000 {
				t.Fatalf("it never ends\n%s", g.Document())
			}
			w.now = w.now.Add(time.Second)
			w.settle(true)
			w.check(true)
			if w.root.State.Terminal() {
				break
			}
			live := w.live()
			if len(live) == 0 {
				t.Fatalf("nothing is live, and the root is %s\n%s", w.root.State, g.Document())
			}
			if draw("cancel", 40) == 0 {
				n := *w.root
				n.CancelAt = w.now
				w.root = &n
				w.g.Note(&n)
				w.g.Cancel()
			}
			for range 1 + draw("ends", 3) {
				if live = w.live(); len(live) > 0 {
					w.end(live[draw("end", len(live))])
				}
			}
		}
		w.check(true)
	}
	w.root = &job.Run{ID: id, Namespace: "default", Trigger: job.ByAPI, State: job.Running, Priority: 4, Attempt: 1,
		CreatedAt: w.now, StartedAt: w.now, Payload: payload, Home: job.HomeQuorum}
	spend()
	for range 2 { // retries, the second of a retry (T8)
		old := w.all()
		again := job.RetryRunID(w.root.ID, w.root.FinishedAt)
		w.trial = &dagtest.Trial{Graph: g, Root: again, Outcomes: dagtest.Outcomes{Seed: seed + 1<<32}, Reuse: w.trial.Reusable(old)}
		w.old = old
		w.root = &job.Run{ID: again, Namespace: "default", Trigger: job.ByRetry, RetryOf: w.root.ID, ReusedFrom: w.root.ID, State: job.Running,
			Priority: 4, Attempt: 1, CreatedAt: w.now, StartedAt: w.now, Payload: payload, Home: job.HomeQuorum}
		spend()
	}
}

// TestProgress: whatever the order of ends and wherever leaders die, a root and its task runs are what the rules say (T1 to
// T6, T8), at each moment.
func TestProgress(t *testing.T) {
	for _, s := range keptSeeds {
		play(t, dagtest.Seeded(s), s)
	}
	for s := range uint64(*seeds) {
		if play(named{t, s}, dagtest.Seeded(s), s); t.Failed() {
			return
		}
	}
}

type named struct {
	*testing.T
	seed uint64
}

func (n named) Fatalf(format string, args ...any) {
	n.T.Helper()
	n.T.Fatalf("seed %d: %s", n.seed, fmt.Sprintf(format, args...))
}

// TestProgressShrinks is the same with a generator that makes what it finds small.
func TestProgressShrinks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(what string, n int) int { return rapid.IntRange(0, n-1).Draw(t, what) }
		play(t, draw, rapid.Uint64().Draw(t, "seed"))
	})
}
