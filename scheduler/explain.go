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
	if r.State != job.Queued {
		return out, nil
	}
	return append(out, t.explainQueued(ctx, r)...), nil
}

func (t *Term) explainQueued(ctx context.Context, r *job.Run) []string {
	var out []string
	lane := r.LaneKey()
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
			out = append(out, fmt.Sprintf("Runs that are queued for the same workers, this one included: %d.", l.Ready))
		}
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
