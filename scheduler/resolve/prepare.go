package resolve

import (
	"context"
	"encoding/json"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/job/dag"
)

// Prepared is what the work of a run is given.
type Prepared struct {
	Spec    *job.Document
	Payload json.RawMessage
	Err     error // it cannot start: a template of it cannot be filled in
}

// Sentence is what a person reads of why a run cannot start: it says which template.
func Sentence(err error) string {
	e := job.AsError(err)
	if e.Field == "" {
		return e.Message
	}
	return e.Field + ": " + e.Message
}

// Prepare fills in templates for runs that were read from the store, and finds their payload. Its error is the store's.
func (r *Resolver) Prepare(ctx context.Context, runs []*job.Run) ([]Prepared, error) {
	return r.prepare(ctx, runs)
}

// wanted is what one run's templates ask for.
type wanted struct {
	plan    *dag.Plan
	root    *job.Run
	results []string
}

func (r *Resolver) prepare(ctx context.Context, runs []*job.Run) ([]Prepared, error) {
	out := make([]Prepared, len(runs))
	wants := make([]wanted, len(runs))
	need := map[job.RunID]*job.Run{}
	for i, x := range runs {
		p, err := r.Specs.Plan(ctx, x)
		switch job.CodeOf(err) {
		case "":
		case job.NotFound, job.Internal, job.Invalid: // for good, and this run's own (D5)
			out[i].Err = err
			continue
		default:
			return nil, err
		}
		w := wanted{plan: p, results: p.Results(x.Task)}
		switch {
		case x.IsRoot():
			w.root = x
		default:
			row, trimmed := r.Root(x.RootID)
			if w.root = row; row == nil || trimmed && p.NeedsRoot(x.Task) {
				w.root = nil
				need[x.RootID] = nil
			}
		}
		for _, name := range w.results {
			need[job.TaskRunID(x.RootID, name, 0)] = nil
		}
		wants[i] = w
	}
	if err := r.fetch(ctx, need); err != nil {
		return nil, err
	}
	items := map[job.RunID]*job.Run{} // of tasks with for_each
	for i, x := range runs {
		for _, name := range wants[i].results {
			if up := need[job.TaskRunID(x.RootID, name, 0)]; up != nil {
				for n := range up.Items {
					items[job.TaskRunID(x.RootID, name, n+1)] = nil
				}
			}
		}
	}
	if err := r.fetch(ctx, items); err != nil {
		return nil, err
	}
	for i, x := range runs {
		w := wants[i]
		if w.plan == nil {
			continue
		}
		if w.root == nil {
			w.root = need[x.RootID]
		}
		if w.root == nil {
			out[i].Err = job.Errorf(job.NotFound, "no_root", "the run %s, of which this is a part, is gone", x.RootID)
			continue
		}
		out[i].Spec, out[i].Payload, out[i].Err = w.plan.Render(x, w.root, func(name string) *dag.Outcome {
			up := need[job.TaskRunID(x.RootID, name, 0)]
			if up == nil {
				return nil
			}
			o := &dag.Outcome{State: up.State, Reason: up.Reason, Error: up.Error, Result: up.Result}
			for n := range up.Items {
				var result json.RawMessage
				if item := items[job.TaskRunID(x.RootID, name, n+1)]; item != nil {
					result = item.Result
				}
				o.Items = append(o.Items, result)
			}
			return o
		})
	}
	return out, nil
}

// fetch loads the rows whose ids are the keys.
func (r *Resolver) fetch(ctx context.Context, rows map[job.RunID]*job.Run) error {
	ids := make([]job.RunID, 0, len(rows))
	for id := range rows {
		ids = append(ids, id)
	}
	for len(ids) > 0 {
		n := min(len(ids), 1000)
		some, err := r.Store.Load(ctx, ids[:n])
		if err != nil {
			return err
		}
		for _, x := range some {
			if x != nil {
				rows[x.ID] = x
			}
		}
		ids = ids[n:]
	}
	return nil
}

// Root answers the row of an open root, and whether its payload was left out; nil if it is not open here.
func (r *Resolver) Root(id job.RunID) (row *job.Run, trimmed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o := r.roots[id]; o != nil {
		return o.row, o.trimmed
	}
	return nil, false
}
