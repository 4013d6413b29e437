package dag

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"

	"cel.dev/cel-go/common/types/traits"

	"github.com/musterhq/muster/job"
)

// slowly says how a job ends, one task after the other and with nothing kept between them: T2 to T5 as they are written.
type slowly struct {
	t        *testing.T
	p        *Plan
	ends     map[string]string
	outcomes map[string]*Outcome
	words    map[string]string
}

func (f *slowly) end(name string) (job.State, json.RawMessage, string) {
	how, ok := f.ends[name]
	if !ok {
		how = f.ends[strings.Split(name, "/")[0]]
	}
	state, rest, _ := strings.Cut(how, " ")
	switch state {
	case "failed":
		return job.Failed, nil, "failed exit_code"
	case "cancelled":
		return job.Cancelled, nil, "cancelled cancel_requested"
	}
	return job.Succeeded, json.RawMessage(rest), "succeeded"
}

func (f *slowly) judge(t *Task) (o *Outcome, words string) {
	count := map[job.State]int{}
	for _, up := range t.Task.DependsOn {
		count[f.of(up).State]++
	}
	bad := count[job.Failed] + count[job.Cancelled]
	skip := func(why job.Reason) (*Outcome, string) {
		return &Outcome{State: job.Skipped, Reason: why}, "skipped " + why.String()
	}
	fail := func(why job.Reason) (*Outcome, string) {
		return &Outcome{State: job.Failed, Reason: why}, "failed " + why.String()
	}
	switch t.Task.RunIf {
	case job.AllSucceeded:
		if bad > 0 {
			return skip(job.UpstreamFailed)
		}
		if count[job.Skipped] > 0 {
			return skip(job.UpstreamSkipped)
		}
	case job.NoneFailed:
		if bad > 0 {
			return skip(job.UpstreamFailed)
		}
	case job.AnySucceeded:
		if count[job.Succeeded] == 0 {
			return skip(job.RunIfFalse)
		}
	case job.AnyFailed:
		if bad == 0 {
			return skip(job.RunIfFalse)
		}
	}
	s := &scene{run: &runVal{root: rootOf(f.p)}, tasks: func(name string) *outcomeVal { return &outcomeVal{of: f.of(name)} }}
	if t.when != nil {
		yes, err := t.when.truth(s)
		if err != nil {
			return fail(job.ExpressionFailed)
		}
		if !yes {
			return skip(job.WhenFalse)
		}
	}
	name := t.Task.Name
	if t.forEach == nil {
		state, result, words := f.end(name)
		return &Outcome{State: state, Result: result}, words
	}
	v, err := t.forEach.eval(s)
	list, ok := v.(traits.Lister)
	if err != nil || !ok {
		return fail(job.ExpressionFailed)
	}
	o, words = &Outcome{State: job.Succeeded, Items: []json.RawMessage{}}, ""
	for i := range len(mustList(f.t, list)) {
		state, result, how := f.end(name + "/" + string(rune('1'+i)))
		o.Items = append(o.Items, result)
		words += ", " + name + "/" + string(rune('1'+i)) + " " + how
		if state != job.Succeeded {
			o.State, o.Reason = job.Failed, job.TaskFailed
		}
	}
	if o.State == job.Failed {
		return o, "failed task_failed" + words
	}
	return o, "succeeded" + words
}

func mustList(t *testing.T, l traits.Lister) []any {
	raw, err := encode(l, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	var list []any
	if err := json.Unmarshal(raw, &list); err != nil {
		t.Fatal(err)
	}
	return list
}

func (f *slowly) of(name string) *Outcome {
	if f.outcomes[name] == nil {
		f.outcomes[name], f.words[name] = f.judge(f.p.Task(name))
	}
	return f.outcomes[name]
}

// What Progress makes of a job is what the rules say, read one by one.
func TestAgainstTheRules(t *testing.T) {
	for seed := range uint64(1000) {
		rng := rand.New(rand.NewPCG(seed, 7))
		doc, ends := randomJob(rng)
		p := compiled(t, doc)
		y := newPlay(t, p, ends).run()
		f := &slowly{t, p, ends, map[string]*Outcome{}, map[string]string{}}
		var words []string
		want := job.Succeeded
		for _, task := range p.Tasks {
			o := f.of(task.Task.Name)
			words = append(words, task.Task.Name+" "+f.words[task.Task.Name])
			if (o.State == job.Failed || o.State == job.Cancelled) && !task.Task.AllowFailure {
				want = job.Failed
			}
		}
		if got := y.states(); got != strings.Join(words, ", ") || y.end.State != want {
			t.Fatalf("seed %d: ended %s as\n%s\nand by the rules it is %s,\n%s\n%s", seed, y.end.State, got, want, strings.Join(words, ", "), doc)
		}
		if want == job.Succeeded { // its result is made of the same
			v, err := p.result.eval(&scene{run: &runVal{root: rootOf(p)}, tasks: func(name string) *outcomeVal { return &outcomeVal{of: f.of(name)} }})
			if err != nil {
				t.Fatal(err)
			}
			if raw, _ := encode(v, 1<<16); string(raw) != string(y.end.Result) {
				t.Fatalf("seed %d: the result is %s, and by the rules %s", seed, y.end.Result, raw)
			}
		}
	}
}
