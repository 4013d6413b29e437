package dagtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/musterhq/muster/job"
)

// Trial is one root run under observation. Its methods say what is wrong, in words.
type Trial struct {
	Graph    *Graph
	Root     job.RunID
	Outcomes Outcomes
	Reuse    map[Key]*Fate
	// Disturbed: attempts are lost, or return, for other reasons than Outcomes, too.
	Disturbed bool
}

// Keys are all runs that there may be below the root, by id.
func (x *Trial) Keys() map[job.RunID]Key {
	out := map[job.RunID]Key{}
	for _, t := range x.Graph.Tasks {
		for item := range uint32(8) {
			if item == 0 || t.ForEach != nil {
				k := Key{t.Name, item}
				out[k.ID(x.Root)] = k
			}
		}
	}
	return out
}

func keyOf(r *job.Run) Key { return Key{r.Task, r.Item} }

// endsOf answers how work ended from the rows.
func endsOf(rows map[Key]*job.Run) Ends {
	return func(k Key) *End {
		if r := rows[k]; r != nil && r.State.Terminal() {
			return &End{r.State, r.Reason, r.Result, r.Attempt}
		}
		return nil
	}
}

// Reference is what must be there, given how the work that is there ended.
func (x *Trial) Reference(runs []*job.Run) *Reference {
	return Interpret(x.Graph, endsOf(byKey(runs)), x.Reuse)
}

// Reusable is what a retry of the root takes over, given all its rows.
func (x *Trial) Reusable(runs []*job.Run) map[Key]*Fate {
	r, rows := x.Reference(runs), byKey(runs)
	for k, f := range r.Fates { // a root that was cancelled has less
		if rows[k] == nil {
			delete(r.Fates, k)
		} else {
			f.State = rows[k].State
		}
	}
	return r.Reusable(x.Graph)
}

func byKey(runs []*job.Run) map[Key]*job.Run {
	out := map[Key]*job.Run{}
	for _, r := range runs {
		out[keyOf(r)] = r
	}
	return out
}

// Judge compares rows with the rules: all task runs and items of the root, and the root. settled: nothing is on its way, so
// all that the rules ask for must be there; without, it may be missing as yet. But for a root with a cancel intent (T6),
// for which less may be there.
func (x *Trial) Judge(root *job.Run, runs []*job.Run, settled bool) (wrong []string) {
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	rows := byKey(runs)
	ref := x.Reference(runs)
	cancelled := root.CancelAt != 0
	if len(rows) != len(runs) {
		say("%d rows are of %d tasks and items", len(runs), len(rows))
	}
	for k, r := range rows {
		f := ref.Fates[k]
		if r.ID != k.ID(x.Root) || r.RootID != x.Root || r.Trigger != job.ByParent || r.JobVersion != root.JobVersion {
			say("%v: the row is %s of root %s by %s, version %d", k, r.ID, r.RootID, r.Trigger, r.JobVersion)
		}
		if f == nil {
			say("T1 %v: it is %s (%s), and the rules do not release it yet", k, r.State, r.Reason)
			continue
		}
		t := x.Graph.Task(k.Task)
		if want := uint8(t.Priority); t.Priority >= 0 && r.Priority != want || t.Priority < 0 && r.Priority != root.Priority {
			say("%v: priority %d", k, r.Priority)
		}
		if k.Item > 0 && !sameJSON(r.Payload, f.Payload) {
			say("T4 %v: its payload is %s and the item %v (%s, %s: %s, reused %t)", k, r.Payload, f.Payload, r.State, r.Reason, r.Error, f.Reused)
		}
		if f.Items != int(r.Items) && !(cancelled && r.Items == 0) {
			say("T4 %v: %d items, of %d", k, r.Items, f.Items)
		}
		switch {
		case r.State == f.State && r.Reason == f.Reason:
			if !f.Reused && (f.State == job.Skipped || f.Reason == job.ExpressionFailed) && r.Attempt != 0 {
				say("T2 %v: it is %s (%s) and had attempt %d", k, r.State, r.Reason, r.Attempt)
			}
			if f.Reused && r.ReusedFrom.IsZero() {
				say("T8 %v: it does not say whose result it takes over", k)
			}
			if r.Items == 0 && !f.Reused && f.State == job.Succeeded && t.ForEach == nil {
				x.work(k, r, say)
			}
		case !f.State.Terminal() && !r.State.Terminal():
		case !settled && f.State.Terminal() && !r.State.Terminal() && f.Items > 0: // its end is on its way
		case cancelled && r.State == job.Cancelled:
		default:
			say("%v: it is %s (%s), and by the rules %s (%s)", k, r.State, r.Reason, f.State, f.Reason)
		}
		if cancelled && (k.Item > 0 || len(t.Up) > 0) {
			for _, u := range t.Up {
				if up := rows[Key{Task: u}]; up != nil && up.State == job.Cancelled && up.FinishedAt > root.CancelAt && r.State != job.Cancelled {
					say("T6 %v: it was born after %s was cancelled with the root", k, u)
				}
			}
		}
	}
	if settled && !cancelled {
		for k, f := range ref.Fates {
			if rows[k] == nil {
				say("T1 %v: it has no row, and by the rules it is %s (%s)", k, f.State, f.Reason)
			}
		}
	}
	x.judgeRoot(root, rows, ref, settled, say)
	slices.Sort(wrong)
	return wrong
}

// work compares the row of work that a worker did with what the worker was to do.
func (x *Trial) work(k Key, r *job.Run, say func(string, ...any)) {
	if x.Graph.Task(k.Task).RunJob != "" {
		return
	}
	if kind, result := x.Outcomes.Of(k, r.Attempt); kind != Succeeds || !bytes.Equal(result, r.Result) {
		say("%v: attempt %d succeeded with %s, and the work says %v, %s", k, r.Attempt, r.Result, kind, result)
	}
	if e := x.Outcomes.Final(k, x.Graph.Task(k.Task).MaxAttempts); !x.Disturbed && (e.State != r.State || e.Attempt != r.Attempt) {
		say("%v: it is %s in attempt %d, and its work says %s in attempt %d", k, r.State, r.Attempt, e.State, e.Attempt)
	}
}

func (x *Trial) judgeRoot(root *job.Run, rows map[Key]*job.Run, ref *Reference, settled bool, say func(string, ...any)) {
	live := false
	for k, r := range rows {
		if !r.State.Terminal() {
			if live = live || r.Items == 0; root.State.Terminal() {
				say("T5 the root is %s, and %v is %s", root.State, k, r.State)
			}
		}
	}
	switch {
	case root.CancelAt != 0 && (root.State == job.Cancelled || !settled):
	case root.CancelAt != 0 && !root.State.Terminal() && live:
	case root.CancelAt != 0 && ref.Root == nil:
		say("T6 the root is %s (%s), and has a cancel intent", root.State, root.Reason)
	case ref.Root == nil:
		if root.State.Terminal() {
			say("T5 the root is %s (%s), and by the rules it does not end yet", root.State, root.Reason)
		}
	case !root.State.Terminal():
		if settled {
			say("T5 the root is %s (%s), and by the rules it ends: %s (%s)", root.State, root.Reason, ref.Root.State, ref.Root.Reason)
		}
	case root.State != ref.Root.State || root.Reason != ref.Root.Reason:
		say("T5 the root is %s (%s: %s), and by the rules %s (%s)", root.State, root.Reason, root.Error, ref.Root.State, ref.Root.Reason)
	case ref.Bad != "" && !strings.Contains(root.Error, ref.Bad):
		say("T5 the root's error does not name %s: %s", ref.Bad, root.Error)
	case root.State == job.Succeeded && x.Graph.Result != nil && !sameJSON(root.Result, ref.Root.Result):
		say("T5 the root's result is %s, and by the rules %v", root.Result, ref.Root.Result)
	}
}

func sameJSON(raw json.RawMessage, want any) bool {
	var got any
	if len(raw) > 0 && json.Unmarshal(raw, &got) != nil {
		return false
	}
	return reflect.DeepEqual(got, want)
}

// Started judges that an attempt starts, given the rows as the store has them at that moment.
func (x *Trial) Started(a *job.Assignment, runs []*job.Run) (wrong []string) {
	k := x.Keys()[a.RunID]
	rows, ref := byKey(runs), x.Reference(runs)
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	t := x.Graph.Task(k.Task)
	if t == nil || t.RunJob != "" {
		say("attempt %d of run %s starts, which is no work of the root", a.Attempt, a.RunID)
		return
	}
	for _, u := range t.Up {
		if up := rows[Key{Task: u}]; up == nil || !up.State.Terminal() {
			say("T1 %v: an attempt starts before %s has ended in the store", k, u)
		}
	}
	switch f := ref.Fates[k]; {
	case f == nil || f.State == job.Skipped || f.Reused || f.Items > 0:
		say("T2 %v: an attempt starts, and by the rules none may", k)
		return
	case f.State == job.Succeeded && rows[k].Attempt < a.Attempt:
		say("%v: attempt %d starts, and it has succeeded", k, a.Attempt)
	}
	v, given, err := ref.Env(x.Graph, k)
	switch {
	case err != nil:
		say("%v: an attempt starts, and its environment cannot be evaluated", k)
	case given && a.Spec.Exec.Env["V"] != v:
		say("%v: its environment says %q, and by the rules %q", k, a.Spec.Exec.Env["V"], v)
	}
	want := x.Graph.Payload
	if k.Item > 0 {
		want = ref.Fates[k].Payload
	}
	if !sameJSON(a.Payload, want) {
		say("%v: it is given %s, and by the rules %v", k, a.Payload, want)
	}
	return wrong
}
