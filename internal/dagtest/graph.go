package dagtest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/musterhq/muster/job"
)

// Draw answers a number below n. What it is for names it where a test shrinks what it drew.
type Draw func(what string, n int) int

// Seeded draws from a seed.
func Seeded(seed uint64) Draw {
	r := rand.New(rand.NewPCG(seed, 0xda6))
	return func(_ string, n int) int { return r.IntN(n) }
}

// Graph is a job with tasks whose expressions we can work out ourselves.
type Graph struct {
	Tasks   []*Task // in the document's order
	Payload any     // of its runs
	Result  *Expr
}

// Task is one task of a graph.
type Task struct {
	Name         string
	Up           []string
	RunIf        job.RunIf // "" is said to be all_succeeded
	When         *Expr
	ForEach      *Expr
	MaxParallel  int
	AllowFailure bool
	MaxAttempts  int
	Priority     int    // below 0: not said
	RunJob       string // instead of work for a worker
	Env          *Expr  // what the environment's V is, after "v="
}

// Task finds a task.
func (g *Graph) Task(name string) *Task {
	for _, t := range g.Tasks {
		if t.Name == name {
			return t
		}
	}
	return nil
}

// Options of a random graph.
type Options struct {
	MaxTasks int      // default 10
	RunJobs  []string // names of jobs that a task may run; none: no task does
}

// Random makes a graph.
func Random(draw Draw, o Options) *Graph {
	if o.MaxTasks == 0 {
		o.MaxTasks = 10
	}
	one := func(what string, in int) bool { return draw(what, in) == 0 }
	n := 1 + draw("tasks", o.MaxTasks)
	shape := draw("shape", 5)
	g := &Graph{Payload: map[string]any{"flag": one("flag", 2), "n": float64(draw("n", 10)), "list": numbers(draw("list", 4))}}
	before := map[string][]string{}
	forEach := map[string]bool{}
	for i := range n {
		t := &Task{Name: fmt.Sprintf("t%d", i), Priority: -1}
		if one("dash", 5) {
			t.Name = fmt.Sprintf("t-%d.x", i)
		}
		for j, u := range g.Tasks {
			edge := false
			switch shape {
			case 0: // chain
				edge = j == i-1
			case 1: // fan out, fan in
				edge = j == 0 || i == n-1
			case 2: // diamonds
				edge = j/2 == i/2-1
			case 3:
				edge = one("edge", 3)
			case 4:
				edge = one("edge", 2) && j >= i-3
			}
			if edge {
				t.Up = append(t.Up, u.Name)
				before[t.Name] = append(before[t.Name], u.Name)
				for _, a := range before[u.Name] {
					if !slices.Contains(before[t.Name], a) {
						before[t.Name] = append(before[t.Name], a)
					}
				}
			}
		}
		words := []job.RunIf{"", job.AllSucceeded, job.AllDone, job.NoneFailed, job.AllDone, job.AnySucceeded, job.AnyFailed}
		if len(t.Up) == 0 {
			words = words[:4]
		}
		t.RunIf = words[draw("run_if", len(words))]
		e := expressions{draw: draw, names: before[t.Name], forEach: forEach}
		if one("when", 4) {
			x := e.condition(2)
			t.When = &x
		}
		if one("for_each", 4) {
			x := e.list()
			t.ForEach, forEach[t.Name] = &x, true
			t.MaxParallel = draw("max_parallel", 4)
		}
		t.AllowFailure = one("allow_failure", 4)
		t.MaxAttempts = 1 + draw("max_attempts", 3)
		if one("priority", 4) {
			t.Priority = draw("priority is", 10)
		}
		if len(o.RunJobs) > 0 && one("run_job", 6) {
			t.RunJob = o.RunJobs[draw("job", len(o.RunJobs))]
		} else if one("env", 3) {
			x := e.value(t.ForEach != nil)
			t.Env = &x
		}
		g.Tasks = append(g.Tasks, t)
	}
	var all []string
	for _, t := range g.Tasks {
		all = append(all, t.Name)
	}
	if one("result", 2) {
		x := expressions{draw: draw, names: all, forEach: forEach}.value(false)
		g.Result = &x
	}
	for i := len(g.Tasks) - 1; i > 0; i-- { // a document says them in any order
		j := draw("order", i+1)
		g.Tasks[i], g.Tasks[j] = g.Tasks[j], g.Tasks[i]
	}
	return g
}

func numbers(n int) []any {
	out := []any{}
	for i := range n {
		out = append(out, float64(i+1))
	}
	return out
}

// expressions draws some over the tasks before one.
type expressions struct {
	draw    Draw
	names   []string
	forEach map[string]bool
}

func (e expressions) name() string { return e.names[e.draw("of", len(e.names))] }

func (e expressions) condition(depth int) Expr {
	if len(e.names) == 0 {
		return []Expr{fromPayload("flag"), more(fromPayload("n"), 4), fromPayload("missing")}[e.draw("payload", 10)%3]
	}
	kinds := 6
	if depth > 0 {
		kinds = 10
	}
	switch k := e.draw("condition", kinds); k {
	case 0, 1:
		return stateIs(e.name(), []job.State{job.Succeeded, job.Failed, job.Skipped, job.Cancelled}[e.draw("state", 4)], k == 1)
	case 2:
		return reasonIs(e.name(), []job.Reason{job.UpstreamFailed, job.WhenFalse, job.NoReason}[e.draw("reason", 3)])
	case 3:
		return more(resultOf(e.name(), "n"), 2)
	case 4:
		if n := e.name(); e.forEach[n] {
			return sizeOf(resultOf(n, ""), 1+e.draw("size", 3))
		}
		return fromPayload("flag")
	case 5:
		return resultOf(e.name(), "n") // a number is no condition
	case 6, 7:
		return both(e.condition(depth-1), e.condition(depth-1))
	default:
		return either(e.condition(depth-1), e.condition(depth-1))
	}
}

func (e expressions) list() Expr {
	if len(e.names) > 0 {
		switch n := e.name(); e.draw("list of", 4) {
		case 0, 1:
			if e.forEach[n] {
				return resultOf(n, "")
			}
			return resultOf(n, "list")
		case 2:
			return resultOf(n, "n") // a number is no list
		}
	}
	return []Expr{fromPayload("list"), literal(`[]`), literal(`[{"k": 1}, "b", 3]`), literal(`[1, 2]`), literal(`[true, 1, 2, 3, 4]`)}[e.draw("literal", 5)]
}

func (e expressions) value(item bool) Expr {
	if item && e.draw("item", 2) == 0 {
		return []Expr{itemExpr, indexExpr}[e.draw("or index", 2)]
	}
	if len(e.names) == 0 {
		return fromPayload([]string{"n", "list", "flag", "missing"}[e.draw("payload", 4)])
	}
	n := e.name()
	switch e.draw("value", 4) {
	case 0:
		return Expr{ref(n) + ".state", func(v *view) (any, error) { return v.task(n).State.String(), nil }}
	case 1:
		return resultOf(n, "n")
	}
	return resultOf(n, "")
}

// Document is the graph as its author would write it, without a name.
func (g *Graph) Document() []byte {
	type m = map[string]any
	var tasks []m
	for _, t := range g.Tasks {
		x := m{"name": t.Name, "retry": m{"max_attempts": t.MaxAttempts, "initial": "1s"}}
		set := func(key string, v any, is bool) {
			if is {
				x[key] = v
			}
		}
		set("depends_on", t.Up, len(t.Up) > 0)
		set("run_if", t.RunIf, t.RunIf != "")
		set("max_parallel", t.MaxParallel, t.ForEach != nil && t.MaxParallel > 0)
		set("allow_failure", true, t.AllowFailure)
		set("priority", t.Priority, t.Priority >= 0)
		if t.When != nil {
			x["when"] = t.When.Text
		}
		if t.ForEach != nil {
			x["for_each"] = t.ForEach.Text
		}
		switch work := (m{"command": []string{"work"}}); {
		case t.RunJob != "":
			x["run_job"] = m{"job": t.RunJob}
		case t.Env != nil:
			work["env"] = m{"V": "v=${{ " + t.Env.Text + " }}"}
			fallthrough
		default:
			x["exec"] = work
		}
		tasks = append(tasks, x)
	}
	d := m{"tasks": tasks, "payload": g.Payload}
	if g.Result != nil {
		d["result"] = g.Result.Text
	}
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		panic(err)
	}
	return b
}

// Spec is the document, parsed as an inline one.
func (g *Graph) Spec() (*job.Document, error) { return job.ParseSpec(g.Document()) }
