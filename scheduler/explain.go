package scheduler

import (
	"context"
	"fmt"
	"sort"
	"strings"

	"github.com/musterhq/muster/job"
)

// Explain says in plain sentences what the leader knows of a live run beyond its row: who has it, what its lane waits for,
// and what would let it start.
func (t *Term) Explain(ctx context.Context, r *job.Run) ([]string, error) {
	if l, ok := t.fleet.Lease(r.ID); ok {
		s := fmt.Sprintf("Attempt %d is granted to the worker %s, under fence %d.", l.Attempt, l.Worker, l.Fence)
		if l.Stopping != 0 {
			s += fmt.Sprintf(" The worker was told to stop it (%s) and has not answered yet.", l.Stopping)
		}
		return []string{s}, nil
	}
	var out []string
	switch why := t.Control.Paused(r.JobID, r.Namespace); why {
	case job.Maintenance:
		out = append(out, "The cluster is in maintenance: nothing starts until an operator ends it.")
	case job.NamespacePaused:
		out = append(out, fmt.Sprintf("The namespace %s is paused: nothing of it starts until it is resumed.", r.Namespace))
	case job.JobPaused:
		out = append(out, fmt.Sprintf("The job %s is paused: its runs start when it is resumed.", r.Job))
	}
	if r.State == job.Running && r.LaneKey().OnLeader() {
		return t.explainOpen(ctx, r, out)
	}
	if r.State != job.Queued {
		return out, nil
	}
	return append(out, t.explainQueued(ctx, r)...), nil
}

func (t *Term) explainQueued(ctx context.Context, r *job.Run) []string {
	lane := r.LaneKey()
	var out []string
	if lane.OnLeader() {
		out = t.explainUnopened(lane)
	} else {
		out = t.explainSeats(lane)
	}
	if key := lane.ConcurrencyKey(); key != "" {
		if held := t.fleet.Held(lane); held > 0 {
			out = append(out, fmt.Sprintf("Other runs hold its concurrency key %q: %d now.", key, held))
		}
	}
	lanes, err := t.queue.Lanes(ctx, job.At(t.Clock.Now()))
	if err != nil {
		return out
	}
	for _, l := range lanes {
		if l.Lane == lane && l.Ready > 1 {
			what := "for the same workers"
			if lane.OnLeader() {
				what = "to be opened"
			}
			out = append(out, fmt.Sprintf("Runs that are queued %s, this one included: %d.", what, l.Ready))
		}
	}
	return out
}

// explainUnopened says why the leader does not open a run whose tasks it releases itself.
func (t *Term) explainUnopened(lane job.LaneKey) (out []string) {
	if !lane.Below() && t.resolver.Room() == 0 {
		roots, tasks := t.OpenRoots()
		out = append(out, fmt.Sprintf("As many runs with tasks are open as may be at once: %d, with %d tasks. It is opened when others have ended.", roots, tasks))
	}
	if lane.ConcurrencyKey() != "" && !t.resolver.Whole() {
		out = append(out, "A leader has taken over and does not know yet which runs hold its concurrency key.")
	}
	return out
}

// maxNamed bounds the tasks that an explanation names.
const maxNamed = 5

// explainOpen says what an open run waits for: those below it.
func (t *Term) explainOpen(ctx context.Context, r *job.Run, out []string) ([]string, error) {
	q := job.RunQuery{Namespace: r.Namespace, RootID: r.ID, Limit: 1000, States: []job.State{job.Waiting, job.Held, job.Scheduled, job.Queued, job.Running}}
	what := "tasks"
	switch {
	case r.Items > 0:
		q.RootID, q.Task, what = r.RootID, r.Task, "items"
	case !r.IsRoot():
		child := job.ChildRunID(r.ID, r.Attempt)
		runs, err := t.Store.Load(ctx, []job.RunID{child})
		if err != nil {
			return out, err
		}
		if runs[0] == nil {
			return append(out, "The run of its job is about to be made."), nil
		}
		return append(out, fmt.Sprintf("It waits for the run %s of the job %s to end, which is %s.", child, runs[0].Job, runs[0].State)), nil
	}
	var names []string
	n, more := 0, false
	for pages := 0; pages < 10; pages++ {
		page, err := t.Store.Runs(ctx, q)
		if err != nil {
			return out, err
		}
		for _, x := range page.Runs {
			name := x.Task
			switch {
			case what == "items" && x.Item == 0, what == "tasks" && x.Item > 0:
				continue
			case what == "items":
				name = fmt.Sprint(x.Item)
			}
			if n++; len(names) < maxNamed {
				names = append(names, name)
			}
		}
		q.Before, more = page.Next, !page.Next.IsZero()
		if !more {
			break
		}
	}
	sort.Strings(names)
	switch {
	case n == 0 && !more:
		return append(out, "What follows from what has ended is about to be released."), nil
	case n > len(names) || more:
		names = append(names, "...")
	}
	return append(out, fmt.Sprintf("It waits for %d of its %s to end: %s.", n, what, strings.Join(names, ", "))), nil
}

// explainSeats says which workers could take what queues in a lane.
func (t *Term) explainSeats(lane job.LaneKey) (out []string) {
	needs, slots := lane.Needs()
	all, ready, fit, free := 0, 0, 0, 0
	for _, w := range t.fleet.Workers() {
		if w.State == job.WorkerGone {
			continue
		}
		all++
		h := job.WorkerHello{Labels: w.Labels, Executors: w.Executors, Handlers: w.Handlers}
		offers, match := h.Offers(), true
		for k, v := range needs {
			if got, ok := offers[k]; !ok || got != v {
				match = false
			}
		}
		if !match {
			continue
		}
		ready++
		if w.State != job.WorkerReady || w.Slots < slots {
			continue
		}
		fit++
		free += max(0, w.Slots-w.SlotsUsed)
	}
	switch {
	case all == 0:
		out = append(out, "No worker is attached.")
	case ready == 0:
		out = append(out, fmt.Sprintf("No attached worker, of %d, offers what it needs: %s.", all, needText(needs)))
	case fit == 0:
		out = append(out, fmt.Sprintf("No matching worker, of %d, takes new work and has %d slots in all.", ready, slots))
	case free < slots:
		out = append(out, fmt.Sprintf("No worker that could take it, of %d, has free slots now.", fit))
	}
	return out
}

func needText(needs map[string]string) string {
	var parts []string
	for k, v := range needs {
		switch {
		case strings.HasPrefix(k, "@handler/"):
			parts = append(parts, "the handler "+strings.TrimPrefix(k, "@handler/"))
		case strings.HasPrefix(k, "@"):
			parts = append(parts, "the executor "+strings.TrimPrefix(k, "@"))
		default:
			parts = append(parts, "the label "+k+"="+v)
		}
	}
	sort.Strings(parts)
	return strings.Join(parts, ", ")
}
