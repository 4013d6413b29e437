package dagtest

import (
	"encoding/json"

	"github.com/musterhq/muster/job"
)

// Fate is what the rules say of a run: State is Queued for one that was released and whose end is not known.
type Fate struct {
	State   job.State
	Reason  job.Reason
	Result  any // as expressions see it
	Items   int // of a task with a list that is not empty
	Payload any // of an item, what the list has
	Reused  bool
}

// Reference is what the rules say of a root run, given how its work ended.
type Reference struct {
	Fates map[Key]*Fate // of every run that must be there
	Root  *Fate         // nil: it does not end yet
	Bad   string        // the first task in the document's order that makes the root fail
}

// Ends tells how a run of work ended; nil: it has not.
type Ends func(Key) *End

// Interpret says what follows from the ends: a loop over all tasks until nothing changes. reuse are the runs whose success
// a retry takes over (T8).
func Interpret(g *Graph, ends Ends, reuse map[Key]*Fate) *Reference {
	r := &Reference{Fates: map[Key]*Fate{}}
	for changed := true; changed; {
		changed = false
		for _, t := range g.Tasks {
			key := Key{Task: t.Name}
			f := r.Fates[key]
			if f == nil {
				if !r.decidable(t) {
					continue
				}
				f, changed = r.decide(g, t, reuse), true
				r.Fates[key] = f
			}
			switch {
			case f.State.Terminal():
			case f.Items > 0:
				changed = r.list(g, t, f, ends, reuse) || changed
			default:
				if e := ends(key); e != nil {
					r.Fates[key], changed = ended(e, f), true
				}
			}
		}
	}
	r.end(g)
	return r
}

// decidable: T1.
func (r *Reference) decidable(t *Task) bool {
	for _, u := range t.Up {
		if f := r.Fates[Key{Task: u}]; f == nil || !f.State.Terminal() {
			return false
		}
	}
	return true
}

func (r *Reference) view(g *Graph) *view {
	return &view{task: func(name string) *Fate { return r.Fates[Key{Task: name}] }, payload: g.Payload}
}

func (r *Reference) decide(g *Graph, t *Task, reuse map[Key]*Fate) *Fate {
	key := Key{Task: t.Name}
	if f := reuse[key]; f != nil {
		n := *f
		n.Reused = true
		if n.Items > 0 { // its items are taken over one by one, and end it
			n.State, n.Reason, n.Result = job.Running, job.NoReason, nil
		}
		return &n
	}
	var succeeded, failed, skipped int // T2
	for _, u := range t.Up {
		switch r.Fates[Key{Task: u}].State {
		case job.Succeeded:
			succeeded++
		case job.Skipped:
			skipped++
		default:
			failed++
		}
	}
	skip := func(why job.Reason) *Fate { return &Fate{State: job.Skipped, Reason: why} }
	switch t.RunIf {
	case "", job.AllSucceeded:
		if failed > 0 {
			return skip(job.UpstreamFailed)
		}
		if skipped > 0 {
			return skip(job.UpstreamSkipped)
		}
	case job.AnySucceeded:
		if succeeded == 0 {
			return skip(job.RunIfFalse)
		}
	case job.AnyFailed:
		if failed == 0 {
			return skip(job.RunIfFalse)
		}
	case job.NoneFailed:
		if failed > 0 {
			return skip(job.UpstreamFailed)
		}
	}
	v := r.view(g)
	wrong := &Fate{State: job.Failed, Reason: job.ExpressionFailed}
	if t.When != nil { // T3
		x, err := t.When.Eval(v)
		yes, ok := x.(bool)
		if err != nil || !ok {
			return wrong
		}
		if !yes {
			return skip(job.WhenFalse)
		}
	}
	if t.ForEach != nil { // T4
		x, err := t.ForEach.Eval(v)
		list, ok := x.([]any)
		if err != nil || !ok {
			return wrong
		}
		if len(list) == 0 {
			return &Fate{State: job.Succeeded, Result: []any{}}
		}
		return &Fate{State: job.Running, Items: len(list)}
	}
	return &Fate{State: job.Queued}
}

// list releases items and ends the task (T4). It tells whether anything changed.
func (r *Reference) list(g *Graph, t *Task, f *Fate, ends Ends, reuse map[Key]*Fate) (changed bool) {
	x, _ := t.ForEach.Eval(r.view(g))
	list := x.([]any)
	live, done, bad := 0, 0, 0
	results := make([]any, len(list))
	for i, payload := range list {
		key := Key{t.Name, uint32(i + 1)}
		n := r.Fates[key]
		if n == nil {
			if t.MaxParallel > 0 && live >= t.MaxParallel {
				break
			}
			n, changed = &Fate{State: job.Queued, Payload: payload}, true
			if old := reuse[key]; old != nil && reuse[Key{t.Name, uint32(len(list))}.size()] != nil {
				n.State, n.Result, n.Reused = job.Succeeded, old.Result, true
			}
			r.Fates[key] = n
		}
		if e := ends(key); e != nil && !n.State.Terminal() {
			n, changed = ended(e, n), true
			r.Fates[key] = n
		}
		switch {
		case !n.State.Terminal():
			live++
			continue
		case n.State != job.Succeeded:
			bad++
		}
		done++
		results[i] = n.Result
	}
	if done == len(list) {
		*f = Fate{State: job.Succeeded, Items: f.Items, Result: results, Reused: f.Reused}
		if bad > 0 {
			f.State, f.Reason = job.Failed, job.TaskFailed
		}
		changed = true
	}
	return changed
}

// size is the key under which the length of a list that may be reused is noted: one past all items.
func (k Key) size() Key { return Key{k.Task + "/items", k.Item} }

func ended(e *End, f *Fate) *Fate {
	n := *f
	n.State, n.Reason, n.Result = e.State, e.Reason, nil
	if e.Result != nil {
		if err := json.Unmarshal(e.Result, &n.Result); err != nil {
			panic(err)
		}
	}
	return &n
}

// end: T5.
func (r *Reference) end(g *Graph) {
	for _, t := range g.Tasks {
		f := r.Fates[Key{Task: t.Name}]
		if f == nil || !f.State.Terminal() {
			return
		}
		if (f.State == job.Failed || f.State == job.Cancelled) && !t.AllowFailure && r.Bad == "" {
			r.Bad = t.Name
		}
	}
	switch {
	case r.Bad != "":
		r.Root = &Fate{State: job.Failed, Reason: job.TaskFailed}
	case g.Result == nil:
		r.Root = &Fate{State: job.Succeeded}
	default:
		x, err := g.Result.Eval(r.view(g))
		if r.Root = (&Fate{State: job.Succeeded, Result: x}); err != nil {
			r.Root = &Fate{State: job.Failed, Reason: job.ExpressionFailed}
		}
	}
}

// Reusable says what a retry of a root that ended so takes over (T8).
func (r *Reference) Reusable(g *Graph) map[Key]*Fate {
	out := map[Key]*Fate{}
	for changed := true; changed; {
		changed = false
	tasks:
		for _, t := range g.Tasks {
			key := Key{Task: t.Name}
			f := r.Fates[key]
			if f == nil || out[key] != nil {
				continue
			}
			for _, u := range t.Up {
				if out[Key{Task: u}] == nil {
					continue tasks
				}
			}
			if f.State == job.Succeeded {
				out[key], changed = f, true
			}
			if f.Items > 0 {
				out[Key{t.Name, uint32(f.Items)}.size()] = f
				for i := range f.Items {
					if n := r.Fates[Key{t.Name, uint32(i + 1)}]; n != nil && n.State == job.Succeeded {
						out[Key{t.Name, uint32(i + 1)}] = n
					}
				}
			}
		}
	}
	return out
}

// Env is the environment's V that a run of work is given; an error: the run cannot start and fails, expression_failed.
func (r *Reference) Env(g *Graph, k Key) (value string, given bool, err error) {
	t := g.Task(k.Task)
	if t.Env == nil {
		return "", false, nil
	}
	v := r.view(g)
	if k.Item > 0 {
		v.item, v.index = r.Fates[k].Payload, int(k.Item-1)
	}
	x, err := t.Env.Eval(v)
	if err != nil {
		return "", true, err
	}
	return "v=" + text(x), true, nil
}
