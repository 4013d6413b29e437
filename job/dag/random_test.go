package dag

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/musterhq/muster/job"
)

// randomJob is a document, and how its work ends.
func randomJob(rng *rand.Rand) (doc string, ends map[string]string) {
	ends = map[string]string{}
	var b strings.Builder
	n := 1 + rng.IntN(12)
	fmt.Fprintf(&b, "name: j\nresult: \"{'first': tasks.t0.state, 'last': tasks.t%d.result}\"\ntasks:\n", n-1)
	order := rng.Perm(n) // the order of the document is not that of the graph
	tasks := make([]string, n)
	for i := range n {
		name := fmt.Sprintf("t%d", i)
		t := "- {name: " + name + ", " + h
		var ups []string
		for j := range i {
			if rng.IntN(3) == 0 {
				ups = append(ups, fmt.Sprintf("t%d", j))
			}
		}
		if ups != nil {
			t += ", depends_on: [" + strings.Join(ups, ", ") + "]"
			t += ", run_if: " + []string{"all_succeeded", "all_done", "any_succeeded", "any_failed", "none_failed"}[rng.IntN(5)]
			up := ups[rng.IntN(len(ups))]
			switch rng.IntN(6) {
			case 0:
				t += ", when: \"tasks." + up + ".state == 'succeeded'\""
			case 1:
				t += ", when: \"tasks." + up + ".result.size() > 1\""
			}
			if rng.IntN(4) == 0 {
				t += fmt.Sprintf(", for_each: \"tasks.%s.result\", max_parallel: %d", up, rng.IntN(3))
			}
		} else if rng.IntN(3) == 0 {
			t += fmt.Sprintf(", for_each: \"[1, 2, 3, 4, 5]\", max_parallel: %d", rng.IntN(4))
		}
		if rng.IntN(3) == 0 {
			t += ", allow_failure: true"
		}
		for item := range 6 {
			ends[fmt.Sprintf("%s/%d", name, item)] = []string{"succeeded", "succeeded", "succeeded 5", "succeeded [1]", "failed", "cancelled"}[rng.IntN(6)]
		}
		ends[name] = []string{"succeeded", "succeeded [1,2,3]", "succeeded [[1,2],{}]", "succeeded []", "failed", "cancelled", "succeeded {\"a\":1}"}[rng.IntN(7)]
		tasks[order[i]] = t + "}\n"
	}
	return b.String() + strings.Join(tasks, ""), ends
}

func (y *play) verdict() string {
	return fmt.Sprintf("%s; the root %s %s %s %q", y.states(), y.end.State, y.end.Reason, y.end.Result, y.end.Error)
}

// T1: whatever the order in which rows come, however often, whatever was not stored at first, and whoever takes over
// between any two steps, the same follows.
func TestT1SameEnd(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 5))
		doc, ends := randomJob(rng)
		p := compiled(t, doc)
		calm := newPlay(t, p, ends).run()
		for name, change := range map[string]func(*play){
			"shuffled": func(y *play) {},
			"crashes":  func(y *play) { y.crash = true },
			"losses":   func(y *play) { y.lose = true },
		} {
			y := newPlay(t, p, ends)
			y.rng = rng
			change(y)
			y.run()
			if got, want := y.verdict(), calm.verdict(); got != want {
				t.Fatalf("seed %d, %s: ended as\n%s\nand not as\n%s\n%s", seed, name, got, want, doc)
			}
			if len(y.rows) != len(calm.rows) {
				t.Fatalf("seed %d, %s: %d rows, and not %d", seed, name, len(y.rows), len(calm.rows))
			}
			checkLimits(t, y)
		}
		retry(t, p, calm, rng, seed)
	}
}

// checkLimits checks that no more items were live at once than max_parallel lets.
func checkLimits(t *testing.T, y *play) {
	t.Helper()
	for _, task := range y.plan.Tasks {
		if limit := task.Task.MaxParallel; limit > 0 && y.limits[task.Task.Name] > limit {
			t.Fatalf("%d items of %s were live at once, max_parallel is %d", y.limits[task.Task.Name], task.Task.Name, limit)
		}
	}
}

// T8: a retry ends as the run would have if what failed had succeeded, and runs nothing whose success is taken over.
func retry(t *testing.T, p *Plan, first *play, rng *rand.Rand, seed uint64) {
	t.Helper()
	ends := maps.Clone(first.ends)
	for k, how := range ends {
		if !strings.HasPrefix(how, "succeeded") {
			ends[k] = "succeeded [7]"
		}
	}
	ran := func(y *play) {
		y.root.ID[15]++
		y.root.ReusedFrom = first.root.ID
		y.old = first.sorted()
		y.rebuild()
	}
	calm := newPlay(t, p, ends)
	ran(calm)
	calm.run()
	wild := newPlay(t, p, ends)
	wild.rng, wild.crash = rng, true
	ran(wild)
	wild.run()
	if calm.verdict() != wild.verdict() {
		t.Fatalf("seed %d: the retry ended as\n%s\nand not as\n%s", seed, wild.verdict(), calm.verdict())
	}
	for _, task := range p.Tasks {
		reusable := true
		for _, up := range task.Up {
			reusable = reusable && !calm.row(p.Tasks[up].Task.Name, 0).ReusedFrom.IsZero()
		}
		now, old := calm.row(task.Task.Name, 0), first.row(task.Task.Name, 0)
		if want := reusable && old.State == job.Succeeded; want != !now.ReusedFrom.IsZero() {
			t.Fatalf("seed %d: %s was %s and is %s, reused %v", seed, task.Task.Name, old.State, now.State, !want)
		}
	}
	// Nothing can be told from a fresh run in which the same had succeeded at once.
	fresh := newPlay(t, p, ends).run()
	if strings.ReplaceAll(calm.verdict(), " reused", "") != fresh.verdict() {
		t.Fatalf("seed %d: the retry ended as\n%s\nand a fresh run as\n%s", seed, calm.verdict(), fresh.verdict())
	}
}

// T6: a cancel between any two steps ends the root, and nothing is born after it.
func TestT6CancelAnywhere(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 6))
		doc, ends := randomJob(rng)
		y := newPlay(t, compiled(t, doc), ends)
		y.rng, y.crash = rng, rng.IntN(2) == 0
		for steps := rng.IntN(12); steps > 0 && y.end == nil; steps-- {
			if y.step() {
				continue
			}
			if q := y.queued(); len(q) > 0 {
				y.finish(q[rng.IntN(len(q))])
			}
		}
		if y.end != nil {
			continue
		}
		n := *y.root
		n.CancelAt = y.now
		y.root = &n
		y.g.Note(&n)
		born := len(y.rows)
		if y.run(); y.end.State != job.Cancelled || len(y.rows) != born {
			t.Fatalf("seed %d: the root %s, %d rows born after the cancel", seed, y.end.State, len(y.rows)-born)
		}
	}
}

// A result is kept only while something that is not decided asks for it.
func TestResultsAreLetGo(t *testing.T) {
	y := newPlay(t, compiled(t, `- {name: a, `+h+`}
- {name: b, `+h+`, depends_on: [a], when: tasks.a.result == 'x'}
- {name: c, `+h+`, depends_on: [b], when: tasks.a.result == 'x' && tasks.b.state == 'succeeded'}
- {name: d, exec: {command: [x], env: {A: '${{ tasks.a.result }}'}}, depends_on: [c]}
`), nil)
	y.ends = map[string]string{"a": `succeeded "x"`, "b": `succeeded "y"`}
	kept := func() (names string) {
		for i := range y.g.nodes {
			if m := y.g.nodes[i].more; m != nil && m.result != nil {
				names += y.plan.Tasks[i].Task.Name
			}
		}
		return names
	}
	for _, want := range []string{"a", "a", ""} {
		y.step()
		y.finish(y.queued()[0])
		if got := kept(); got != want {
			t.Errorf("kept %q, want %q: %s", got, want, y.states())
		}
	}
	y.rebuild()
	if got := kept(); got != "" {
		t.Errorf("made anew it keeps %q", got)
	}
}
