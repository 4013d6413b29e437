package systemtest

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

// What the graphs of a trial are given, all of them the same, so that it can be said what each task must have been given.
type graphPayload struct {
	N    int   `json:"n"`
	List []int `json:"list"`
}

// graphLabel says of a root run which graph it is.
const graphLabel = "graph"

// graphKind is one shape of a graph.
type graphKind struct {
	name string
	make func(dir string, r *rand.Rand) *job.Document
	// ends says how its tasks end, those that do not succeed, if nobody interferes.
	ends func(p graphPayload) map[string]job.Reason
}

// work is a task's command that was given something and passes it on. At times it takes long enough to be killed.
func work(dir string, r *rand.Rand, what string, args ...string) *job.Exec {
	if r.IntN(12) == 0 {
		args = append(args, "-for", (time.Duration(200+r.IntN(1500)) * time.Millisecond).String())
	}
	x := command(dir, append([]string{"-echo"}, args...)...)
	x.Env[given] = what
	return x
}

func result(task string) string { return "${{ tasks." + task + ".result }}" }

func none(graphPayload) map[string]job.Reason { return nil }

// graphKinds is the mix.
var graphKinds = []graphKind{
	{"chain", func(dir string, r *rand.Rand) *job.Document {
		d := &job.Document{Result: "tasks.t19.result"}
		for i := range 20 {
			t := job.Task{Name: fmt.Sprintf("t%d", i), Exec: work(dir, r, "${{ run.payload.n }}")}
			if i > 0 {
				before := fmt.Sprintf("t%d", i-1)
				t.DependsOn, t.Exec = []string{before}, work(dir, r, result(before))
			}
			d.Tasks = append(d.Tasks, t)
		}
		return d
	}, none},
	{"fan", func(dir string, r *rand.Rand) *job.Document {
		d := &job.Document{Tasks: []job.Task{{Name: "first", Exec: work(dir, r, "${{ run.payload.n }}")}}}
		last := job.Task{Name: "last", Exec: work(dir, r, result("t7"))}
		for i := range 50 {
			name := fmt.Sprintf("t%d", i)
			d.Tasks = append(d.Tasks, job.Task{Name: name, DependsOn: []string{"first"}, Exec: work(dir, r, result("first"))})
			last.DependsOn = append(last.DependsOn, name)
		}
		d.Tasks = append(d.Tasks, last)
		return d
	}, none},
	{"layers", layers, none},
	{"branch", func(dir string, r *rand.Rand) *job.Document {
		after := func(name string, policy job.RunIf, when string, before ...string) job.Task {
			return job.Task{Name: name, DependsOn: before, RunIf: policy, When: when, Exec: work(dir, r, result("look"))}
		}
		d := &job.Document{Tasks: []job.Task{
			{Name: "look", Exec: work(dir, r, "${{ run.payload.n }}")},
			after("high", "", "tasks.look.result > 5", "look"),
			after("low", "", "tasks.look.result <= 5", "look"),
			{Name: "breaks", DependsOn: []string{"look"}, AllowFailure: true, Exec: work(dir, r, result("look"), "-fail", "1000000")},
			after("mend", job.AnyFailed, "", "breaks", "low"),
			after("never", "", "", "breaks"),
			after("nor-this", "", "", "never"),
			after("either", job.NoneFailed, "", "high", "low"),
			after("any", job.AnySucceeded, "", "high", "breaks"),
			after("last", job.AllDone, "", "mend", "nor-this", "either", "any"),
		}}
		return d
	}, func(p graphPayload) map[string]job.Reason {
		ends := map[string]job.Reason{"low": job.WhenFalse, "breaks": job.ExitCode, "never": job.UpstreamFailed, "nor-this": job.UpstreamSkipped}
		if p.N <= 5 {
			delete(ends, "low")
			ends["high"], ends["any"] = job.WhenFalse, job.RunIfFalse
		}
		return ends
	}},
	{"each", func(dir string, r *rand.Rand) *job.Document {
		return &job.Document{Tasks: []job.Task{
			{Name: "list", Exec: work(dir, r, "${{ run.payload.list }}")},
			{Name: "each", DependsOn: []string{"list"}, ForEach: "tasks.list.result", MaxParallel: 3, Exec: work(dir, r, "${{ item }}")},
			{Name: "all", DependsOn: []string{"each"}, Exec: work(dir, r, result("each"))},
			{Name: "nothing", ForEach: "tasks.list.result.filter(x, x < 0)", DependsOn: []string{"list"}, Exec: work(dir, r, "${{ item }}")},
			{Name: "last", DependsOn: []string{"all", "nothing"}, Exec: work(dir, r, "${{ run.payload.n }}")},
		}}
	}, none},
	{"nested", func(dir string, r *rand.Rand) *job.Document {
		return &job.Document{Tasks: []job.Task{
			{Name: "first", Exec: work(dir, r, "${{ run.payload.n }}")},
			{Name: "child", DependsOn: []string{"first"}, RunJob: &job.RunJob{Job: "part"}, Retry: &job.Retry{MaxAttempts: 2, Initial: job.Duration(time.Second)},
				Payload: json.RawMessage(`{"n": "${{ tasks.first.result }}", "list": "${{ run.payload.list }}"}`)},
			{Name: "last", DependsOn: []string{"child"}, Exec: work(dir, r, result("child"))},
		}}
	}, none},
	// It fails, and its retry does not.
	{"again", func(dir string, r *rand.Rand) *job.Document {
		return &job.Document{Tasks: []job.Task{
			{Name: "first", Exec: work(dir, r, "${{ run.payload.n }}")},
			{Name: "each", DependsOn: []string{"first"}, ForEach: "run.payload.list", Exec: work(dir, r, "${{ item }}")},
			{Name: "breaks", DependsOn: []string{"first"}, Exec: work(dir, r, "${{ run.trigger }}", "-fail-given", job.ByAPI.String())},
			{Name: "last", DependsOn: []string{"breaks", "each"}, Exec: work(dir, r, result("first"))},
		}}
	}, func(graphPayload) map[string]job.Reason {
		return map[string]job.Reason{"breaks": job.ExitCode, "last": job.UpstreamFailed}
	}},
}

// layers is a graph of some layers, in which each task follows some of those in the layers before it.
func layers(dir string, r *rand.Rand) *job.Document {
	d := &job.Document{}
	for l, all := 0, 2+r.IntN(5); l < all; l++ {
		before := len(d.Tasks)
		for i := range 1 + r.IntN(5) {
			t := job.Task{Name: fmt.Sprintf("l%d-%d", l, i), Exec: work(dir, r, "${{ run.payload.n }}")}
			if before > 0 {
				for _, k := range r.Perm(before)[:1+r.IntN(min(before, 4))] {
					t.DependsOn = append(t.DependsOn, d.Tasks[k].Name)
				}
				t.Exec = work(dir, r, `${{ tasks["`+t.DependsOn[0]+`"].result }}`)
			}
			if r.IntN(10) == 0 {
				t.Exec.Command = append(t.Exec.Command, "-fail", "1")
				t.Retry = &job.Retry{MaxAttempts: 2, Initial: job.Duration(200 * time.Millisecond)}
			}
			d.Tasks = append(d.Tasks, t)
		}
	}
	return d
}

// partsOf are the jobs that tasks of graphs run: "part" runs "leaf", for all of a list.
func partsOf(dir string, r *rand.Rand) []*job.Document {
	return []*job.Document{
		{Name: "leaf", Exec: work(dir, r, "${{ run.payload.n }}")},
		{Name: "part", Result: "tasks.one.result", Tasks: []job.Task{
			{Name: "one", Exec: work(dir, r, "${{ run.payload.n }}")},
			{Name: "leaves", DependsOn: []string{"one"}, ForEach: "run.payload.list", MaxParallel: 2, RunJob: &job.RunJob{Job: "leaf"},
				Payload: json.RawMessage(`{"n": "${{ item }}"}`)},
		}},
	}
}

// nightly is a chain of jobs: the first one ticks, the others depend on it and on each other. The second one takes longer
// than it takes until the first one has ended again.
func nightly(dir string) (first *job.Document, others []*job.Document) {
	quick := func() *job.Exec { return command(dir) }
	return &job.Document{Name: "night-a", Overlap: job.OverlapAllow, Exec: quick()}, []*job.Document{
		{Name: "night-b", DependsOn: []job.Edge{{Job: "night-a"}}, Tasks: []job.Task{
			{Name: "left", Exec: command(dir, "-for", "1500ms")},
			{Name: "right", Exec: quick()},
			{Name: "last", DependsOn: []string{"left", "right"}, Exec: command(dir, "-for", "1500ms")},
		}},
		{Name: "night-c", DependsOn: []job.Edge{{Job: "night-a", On: job.OnDone}, {Job: "night-b"}}, Exec: command(dir, "-for", "200ms")},
	}
}

// graphFacts judges what only the trial knows: how the tasks of its graphs end if nobody interferes, and what each command
// is given, whichever leader filled in its templates.
type graphFacts struct {
	runs  map[job.RunID]*job.Run
	below map[job.RunID][]*job.Run
	sent  map[job.RunID]submission
}

func newGraphFacts(h *checker.History) *graphFacts {
	f := &graphFacts{runs: map[job.RunID]*job.Run{}, below: map[job.RunID][]*job.Run{}, sent: map[job.RunID]submission{}}
	for i := range h.Runs {
		r := &h.Runs[i].Run
		f.runs[r.ID] = r
		if r.Task != "" {
			f.below[r.RootID] = append(f.below[r.RootID], r)
		}
	}
	for _, op := range h.Ops {
		var s struct {
			submission
			Payload graphPayload `json:"payload"`
		}
		if op.Kind == checker.Submit && json.Unmarshal(op.Body, &s) == nil && s.Labels[graphLabel] != "" {
			s.submission.Payload = s.Payload
			f.sent[op.ID] = s.submission
		}
	}
	return f
}

// of is what a root run was submitted as, or what it retries.
func (f *graphFacts) of(root *job.Run) (submission, bool) {
	for ; root != nil; root = f.runs[root.RetryOf] {
		if s, known := f.sent[root.ID]; known {
			return s, true
		}
	}
	return submission{}, false
}

// wants is what the command of a run must have been given.
func (f *graphFacts) wants(r *job.Run) (string, bool) {
	if r.Item > 0 {
		s, known := f.of(f.runs[r.RootID])
		if !known {
			parent := f.runs[f.runs[r.RootID].ParentID]
			if parent == nil {
				return "", false
			}
			s, known = f.of(f.runs[parent.RootID])
		}
		if list := s.Payload; known && int(r.Item) <= len(list.(graphPayload).List) {
			return fmt.Sprint(list.(graphPayload).List[r.Item-1]), true
		}
		return "", false
	}
	root := f.runs[r.RootID]
	s, known := f.of(root)
	switch {
	case root == nil:
		return "", false
	case !known && !root.ParentID.IsZero() && f.runs[root.ParentID] != nil:
		return f.wants(f.runs[root.ParentID])
	case !known:
		return "", false
	case r.Task == "breaks" && s.Labels[graphLabel] == "again":
		return root.Trigger.String(), true
	case r.Task == "list", r.Task == "all":
		b, _ := json.Marshal(s.Payload.(graphPayload).List) // numbers can be JSON
		return string(b), true
	}
	return fmt.Sprint(s.Payload.(graphPayload).N), true
}

// judge counts the commands that were given what they should be, and says what the trial expected otherwise.
func (f *graphFacts) judge(h *checker.History) (given int, wrong []string) {
	for i := range h.Work {
		w := &h.Work[i]
		r := f.runs[w.Run]
		if w.Event != checker.Start || w.Given == "" || r == nil {
			continue
		}
		want, known := f.wants(r)
		switch {
		case !known:
		case strings.ReplaceAll(w.Given, " ", "") == want:
			given++
		default:
			wrong = append(wrong, fmt.Sprintf("attempt %d of %s (task %q of %s) was given %q, not %q", w.Attempt, r.ID, r.Task, r.RootID, w.Given, want))
		}
	}
	for id, r := range f.runs {
		s, known := f.of(r)
		if !known || r.Task != "" || r.State == job.Cancelled || slices.ContainsFunc(f.below[id], interfered) {
			continue
		}
		k := slices.IndexFunc(graphKinds, func(k graphKind) bool { return k.name == s.Labels[graphLabel] })
		ends := graphKinds[k].ends(s.Payload.(graphPayload))
		if r.Trigger == job.ByRetry {
			ends = nil // whatever failed did so because it was not a retry
		}
		got := map[string]job.Reason{}
		for _, t := range f.below[id] {
			if t.State != job.Succeeded {
				got[t.Task] = t.Reason
			}
		}
		if !maps.Equal(ends, got) {
			wrong = append(wrong, fmt.Sprintf("%s, a %s of %d, is %s (%s); its tasks that did not succeed: %v, expected %v", id, graphKinds[k].name,
				s.Payload.(graphPayload).N, r.State, r.Reason, got, ends))
		}
	}
	slices.Sort(wrong)
	return given, wrong
}

// interfered tells whether a task run ended otherwise than its graph says: it was cancelled, or lost too often, or what it
// ran was.
func interfered(r *job.Run) bool {
	return r.State == job.Cancelled || r.Reason == job.WorkerLost || r.Reason == job.ChildFailed
}
