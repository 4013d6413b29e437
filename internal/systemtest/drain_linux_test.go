package systemtest

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

// drain ends a trial: it lets the schedules end, waits until all has ended, and reads everything.
type drain struct {
	t    *testing.T
	dir  string
	rec  *recorder
	api  *client.Client
	docs []*job.Document
	// graphs: runs may have tasks, which are read too, and these jobs have no schedule: they depend on others, or are run
	// by others.
	graphs bool
	others []*job.Document

	until job.Instant // the last tick
}

// patience is how long a drain may take: a lease and its grace, and the backlog of a busy machine.
const patience = 3 * time.Minute

// end gives every schedule an end some seconds ahead, and waits until every tick before it is decided and every run has
// ended. A pause would hold what is queued, and a deleted job has no ledger to read.
func (d *drain) end() {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for ahead := 6 * time.Second; ; ahead *= 2 {
		at := time.Now().Add(ahead).Truncate(time.Second)
		d.until = job.At(at.Add(-time.Second))
		each(d.docs, func(doc *job.Document) {
			doc.Schedule.EndAt = at
			put(ctx, d.t, d.api, d.rec, doc)
		})
		late := time.Since(at)
		if late < 0 {
			break
		}
		if ahead > 20*time.Second {
			d.t.Errorf("it took until %s after their end to change %d schedules", late, len(d.docs))
			break
		}
	}
	for _, doc := range d.docs {
		d.await(ctx, "the ticks of "+doc.Name, func() (bool, error) {
			v, err := d.api.Verify(ctx, doc.Name, time.Time{}, time.Time{})
			if err != nil {
				return false, err
			}
			if v.Until <= d.until {
				return false, nil
			}
			if !v.OK {
				d.t.Errorf("the system's own verification of %s finds gaps %v, doubles %v, strays %v", doc.Name, v.Gaps, v.Doubles, v.Strays)
			}
			return true, nil
		})
	}
	d.await(ctx, "the end of all runs", func() (bool, error) {
		// Edges first: what they make run is live before they are clear, or at once with it.
		if due, err := d.due(ctx); due || err != nil {
			return false, err
		}
		live := client.RunFilter{States: []job.State{job.Waiting, job.Held, job.Scheduled, job.Queued, job.Running}}
		for _, err := range d.api.Runs(ctx, live) {
			return false, err
		}
		due, err := d.due(ctx) // the last ends may have satisfied some
		return !due, err
	})
}

// due tells whether a job has all its edges satisfied.
func (d *drain) due(ctx context.Context) (bool, error) {
	for _, doc := range d.others {
		if len(doc.DependsOn) == 0 {
			continue
		}
		e, err := d.api.Dependencies(ctx, doc.Name)
		if err != nil {
			return false, err
		}
		if !slices.ContainsFunc(e.Upstreams, func(e job.Dependency) bool { return e.SatisfiedBy.IsZero() }) {
			return true, nil
		}
	}
	return false, nil
}

func (d *drain) await(ctx context.Context, what string, done func() (bool, error)) {
	d.t.Helper()
	for {
		ok, err := done()
		switch {
		case err != nil:
			d.t.Fatalf("wait for %s: %v", what, err)
		case ok:
			return
		}
		select {
		case <-ctx.Done():
			d.t.Errorf("%s did not come within %s", what, patience) // the checker says which runs are late
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// observe records how every run is seen now.
func (d *drain) observe() {
	d.t.Helper()
	for r := range d.runs() {
		at := now()
		d.rec.op(checker.Op{Kind: checker.Read, Asked: at, Done: at, Outcome: checker.OK, ID: r.ID, Answer: r})
		if !d.graphs || r.Task != "" {
			continue
		}
		run, err := d.api.RunWithTasks(context.Background(), r.ID)
		if err != nil {
			d.t.Errorf("read %s with its tasks: %v", r.ID, err)
			continue
		}
		seeTasks(d.rec, &checker.Op{Kind: checker.Read, Asked: at, Done: now(), Outcome: checker.OK}, run)
		for _, t := range run.Tasks {
			if r.State.Terminal() && !t.State.Terminal() {
				d.t.Errorf("%s is %s, and its task %s reads %s", r.ID, r.State, t.Name, t.State)
			}
		}
	}
}

// seeTasks records that a run was read with these of its tasks ended: they must stay so. Of others it says less than the
// runs of the tasks do.
func seeTasks(rec *recorder, op *checker.Op, run *client.RunWithTasks) {
	for _, t := range run.Tasks {
		if t.State.Terminal() && !t.ID.IsZero() {
			rec.op(checker.Op{Kind: checker.Read, Asked: op.Asked, Done: op.Done, Outcome: checker.OK, ID: t.ID,
				Answer: &job.Run{ID: t.ID, Task: t.Name, State: t.State, Reason: t.Reason, Attempt: t.Attempt, FinishedAt: t.FinishedAt}})
		}
	}
}

// runs lists every run.
func (d *drain) runs() func(func(*job.Run) bool) {
	return func(yield func(*job.Run) bool) {
		for r := range d.list(client.RunFilter{AllNamespaces: true}) {
			if !yield(r) {
				return
			}
			if !d.graphs {
				continue
			}
			for t := range d.list(client.RunFilter{RootID: r.ID}) {
				if !yield(t) {
					return
				}
			}
		}
	}
}

func (d *drain) list(f client.RunFilter) func(func(*job.Run) bool) {
	return func(yield func(*job.Run) bool) {
		for r, err := range d.api.Runs(context.Background(), f) {
			if err != nil {
				d.t.Fatalf("list the runs: %v", err)
			}
			if !yield(r) {
				return
			}
		}
	}
}

// read records all that the system says in the end.
func (d *drain) read() {
	d.t.Helper()
	ctx := context.Background()
	for _, doc := range slices.Concat(d.docs, d.others) {
		j, err := d.api.Job(ctx, doc.Name)
		if err != nil {
			d.t.Fatalf("read %s: %v", doc.Name, err)
		}
		all := checker.Job{ID: j.ID, Name: j.Name, Until: d.until}
		if all.Versions, err = d.api.Versions(ctx, j.Name); err != nil {
			d.t.Fatalf("read the versions of %s: %v", doc.Name, err)
		}
		for t, err := range d.api.Ticks(ctx, j.Name, time.Time{}, time.Time{}) {
			if err != nil {
				d.t.Fatalf("read the ledger of %s: %v", doc.Name, err)
			}
			all.Ticks = append(all.Ticks, checker.Tick{Tick: t.Tick, RunID: t.RunID})
		}
		if len(doc.DependsOn) > 0 {
			e, err := d.api.Dependencies(ctx, j.Name)
			if err != nil {
				d.t.Fatalf("read the edges of %s: %v", doc.Name, err)
			}
			all.Edges = e.Upstreams
		}
		d.rec.add(checker.Line{Job: &all})
	}
	each(slices.Collect(d.runs()), func(r *job.Run) {
		attempts, err := d.api.Attempts(ctx, r.ID)
		if err != nil {
			d.t.Errorf("read the attempts of %s: %v", r.ID, err)
		}
		d.rec.add(checker.Line{Run: &checker.Run{Run: *r, Attempts: attempts}})
	})
}

// each does something for all, some at a time.
func each[T any](all []T, do func(T)) {
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for k := i; k < len(all); k += 4 {
				do(all[k])
			}
		})
	}
	wg.Wait()
}
