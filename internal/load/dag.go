package load

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

// dag measures graphs of tasks whose handler does nothing: first what a task costs as its graph grows, with as many tasks in
// all, and then many large graphs of every shape at once.
func dag(ctx context.Context, b *bench) error {
	for _, size := range b.DAGSizes {
		if err := b.dagCost(ctx, size); err != nil {
			return err
		}
	}
	return b.dagsAtOnce(ctx)
}

// A shape is a way in which tasks depend on each other: the upstreams of the i-th of n tasks.
type shape struct {
	name string
	ups  func(i, n int) []int
}

var (
	chain = shape{"chain", func(i, _ int) []int {
		if i == 0 {
			return nil
		}
		return []int{i - 1}
	}}
	fan = shape{"fan", func(i, n int) []int {
		switch i {
		case 0:
			return nil
		case n - 1:
			all := make([]int, 0, n-2)
			for j := 1; j < n-1; j++ {
				all = append(all, j)
			}
			return all
		}
		return []int{0}
	}}
	// diamonds follow each other: one task, three that depend on it, and one that depends on those.
	diamonds = shape{"diamonds", func(i, _ int) []int {
		switch at := i % 4; {
		case i == 0:
			return nil
		case at == 0:
			return []int{i - 3, i - 2, i - 1}
		default:
			return []int{i - at}
		}
	}}
)

func (r *rig) graph(name string, s shape, tasks int) *job.Document {
	d := &job.Document{Name: name}
	handler := &job.Handler{Name: r.workerName()}
	for i := range tasks {
		t := job.Task{Name: fmt.Sprintf("t%d", i), Handler: handler}
		for _, up := range s.ups(i, tasks) {
			t.DependsOn = append(t.DependsOn, fmt.Sprintf("t%d", up))
		}
		d.Tasks = append(d.Tasks, t)
	}
	return d
}

// dagCost runs the same number of tasks in diamonds, in graphs of one size, and always as many graphs at once: how many tasks
// share a transaction is then the same.
func (b *bench) dagCost(ctx context.Context, size int) error {
	r, err := b.open(ctx)
	if err != nil {
		return err
	}
	defer r.close()
	name := r.jobName(0)
	if _, err := r.define(ctx, 1, func(int) *job.Document { return r.graph(name, diamonds, size) }); err != nil {
		return err
	}
	graphs := max(1, b.DAGs/2)
	rounds := max(1, b.DAGTasks/(graphs*size))
	what := fmt.Sprintf("graphs of %d: ", size)
	c, begin := r.costs(ctx), time.Now()
	return b.profiled(ctx, fmt.Sprintf("dag%d", size), func() error {
		for range rounds {
			if _, err := r.runGraphs(ctx, graphs*size, graphs, name); err != nil {
				return err
			}
		}
		b.set(what+"tasks", "tasks/s", float64(rounds*graphs*size)/time.Since(begin).Seconds())
		r.charge(ctx, what, c, rounds*graphs*size)
		return nil
	}, r.node)
}

// dagsAtOnce runs graphs of three shapes together.
func (b *bench) dagsAtOnce(ctx context.Context) error {
	r, err := b.open(ctx)
	if err != nil {
		return err
	}
	defer r.close()
	shapes := []shape{chain, fan, diamonds}
	names := make([]string, len(shapes))
	for i := range shapes {
		names[i] = r.jobName(i)
	}
	if _, err := r.define(ctx, len(shapes), func(i int) *job.Document { return r.graph(names[i], shapes[i], b.DAGSize) }); err != nil {
		return err
	}
	tasks := b.DAGs * b.DAGSize
	r.say("%d graphs of %d tasks at once", b.DAGs, b.DAGSize)
	c, begin := r.costs(ctx), time.Now()
	err = b.profiled(ctx, "dags", func() error {
		ended, err := r.runGraphs(ctx, tasks, b.DAGs, names...)
		b.set("at once: tasks", "tasks/s", float64(tasks)/ended.Sub(begin).Seconds())
		return err
	}, r.node)
	if err != nil {
		return err
	}
	r.charge(ctx, "at once: ", c, tasks)
	return r.hops(ctx, shapes, names)
}

// runGraphs submits graphs of these jobs in turns, all in one request, and waits until they have ended.
func (r *rig) runGraphs(ctx context.Context, tasks, graphs int, names ...string) (time.Time, error) {
	from := r.seen.count()
	before, err := r.succeededBefore(ctx)
	if err != nil {
		return time.Now(), err
	}
	batch := make([]client.Submission, graphs)
	for i := range batch {
		batch[i].Job = names[i%len(names)]
	}
	for rest := batch; len(rest) > 0; {
		n := min(len(rest), 1000)
		items, err := r.api.SubmitBatch(ctx, rest[:n])
		if err != nil {
			return time.Now(), err
		}
		for _, i := range items {
			if i.Err != nil {
				return time.Now(), i.Err
			}
		}
		rest = rest[n:]
	}
	if _, err := r.settled(ctx, r.submitter(names[0]), tasks, from, before); err != nil {
		return time.Now(), err
	}
	for _, name := range names { // their roots end after their last task
		err := r.until(ctx, patience, "the graphs to end", func() bool {
			live, err := r.live(ctx, name)
			return err == nil && !live
		})
		if err != nil {
			return time.Now(), err
		}
	}
	return time.Now(), nil
}

// hops compares when tasks were released, and when the last of their upstreams had ended, with when their handler began.
func (r *rig) hops(ctx context.Context, shapes []shape, names []string) error {
	started := map[job.RunID]int64{}
	twice := 0
	for _, s := range r.seen.since(0) {
		if _, ok := started[s.run]; ok {
			twice++
		}
		started[s.run] = s.at
	}
	missing, failed := 0, 0
	var all []time.Duration
	for i, shape := range shapes {
		var released, ended []time.Duration
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(2)
		found := make(chan [2][]time.Duration, r.DAGs)
		for root, err := range r.api.Runs(ctx, client.RunFilter{Job: names[i]}) {
			if err != nil {
				return err
			}
			if root.State != job.Succeeded {
				failed++
			}
			g.Go(func() error {
				h, err := r.hopsOf(ctx, root.ID, shape, started)
				found <- h
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		close(found)
		for h := range found {
			released, ended = append(released, h[0]...), append(ended, h[1]...)
		}
		missing += (r.DAGs+len(shapes)-1-i)/len(shapes)*r.DAGSize - len(released)
		all = append(all, released...)
		r.spread("at once, "+shape.name+": released to started", released)
		r.spread("at once, "+shape.name+": last upstream ended to started", ended)
	}
	r.spreadBy(r.headline, "at once: released to started", all)
	if missing != 0 || twice != 0 || failed != 0 {
		r.warn("%d tasks never started, %d started twice, %d graphs did not succeed", missing, twice, failed)
	}
	return nil
}

func (r *rig) hopsOf(ctx context.Context, root job.RunID, s shape, started map[job.RunID]int64) (h [2][]time.Duration, err error) {
	rows := make([]*job.Run, r.DAGSize)
	for x, err := range r.api.Runs(ctx, client.RunFilter{RootID: root}) {
		if err != nil {
			return h, err
		}
		var n int
		if _, err := fmt.Sscanf(x.Task, "t%d", &n); err != nil {
			return h, fmt.Errorf("the run %s is of an unknown task %q", x.ID, x.Task)
		}
		rows[n] = x
	}
	for i, x := range rows {
		if x == nil || started[x.ID] == 0 {
			continue
		}
		at := time.Unix(0, started[x.ID])
		h[0] = append(h[0], at.Sub(x.CreatedAt.Time()))
		last := job.Instant(0)
		for _, up := range s.ups(i, len(rows)) {
			if rows[up] != nil {
				last = max(last, rows[up].FinishedAt)
			}
		}
		if last != 0 {
			h[1] = append(h[1], at.Sub(last.Time()))
		}
	}
	return h, nil
}
