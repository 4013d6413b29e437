package storagetest

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage"
)

// graphs is a fixture of a store that keeps graphs.
type graphs struct {
	*fixture
	storage.Graphs
}

// graph is a test of a store that does; others skip it.
func graph(test func(g *graphs)) func(*fixture) {
	return func(f *fixture) {
		g, ok := f.Store.(storage.Graphs)
		if !ok {
			f.Skip("this store does not keep graphs")
		}
		test(&graphs{f, g})
	}
}

// release stores runs, one receipt each without an error.
func (g *graphs) release(runs ...*job.Run) []job.Receipt {
	g.Helper()
	receipts, err := g.Release(g.ctx, 1, copies(runs))
	if err != nil || len(receipts) != len(runs) {
		g.Fatalf("release %d runs: %d receipts, %v", len(runs), len(receipts), err)
	}
	for i, r := range receipts {
		if r.Err != nil || r.Run == nil || r.Run.ID != runs[i].ID {
			g.Fatalf("release run %d: %+v", i, r)
		}
	}
	return receipts
}

// root stores a root run of a job.
func (g *graphs) root(j *job.Job, change ...func(*job.Run)) *job.Run {
	g.Helper()
	return g.submit(g.run(g.now, append([]func(*job.Run){ofJob(j)}, change...)...))[0]
}

// task makes the row of a task run, or of one of its items.
func (g *graphs) task(root *job.Run, name string, item uint32, change ...func(*job.Run)) *job.Run {
	r := &job.Run{ID: job.TaskRunID(root.ID, name, item), RootID: root.ID, Namespace: root.Namespace, JobID: root.JobID, Job: root.Job,
		JobVersion: root.JobVersion, Task: name, Item: item, Trigger: job.ByParent, State: job.Queued, Priority: 5, CreatedAt: g.now, QueuedAt: g.now,
		Lane: "default|@exec=|", Home: job.HomeQuorum}
	for _, c := range change {
		c(r)
	}
	return r
}

// sorted are ids in order.
func sorted(runs ...*job.Run) []job.RunID {
	list := idsOf(runs)
	slices.SortFunc(list, func(a, b job.RunID) int { return slices.Compare(a[:], b[:]) })
	return list
}

// newest are ids in the order in which runs are listed.
func newest(runs ...*job.Run) []job.RunID {
	list := sorted(runs...)
	slices.Reverse(list)
	return list
}

func born(s job.State, why job.Reason) func(*job.Run) {
	return func(r *job.Run) { r.State, r.Reason, r.QueuedAt, r.FinishedAt = s, why, 0, r.CreatedAt }
}

var tasks = []testCase{
	{"a released run reads back as it was given, live or terminal, root or task", graph(func(g *graphs) {
		root := g.root(g.put(g.document("a")), func(r *job.Run) { r.ReusedFrom = runID(g.now) })
		all := []*job.Run{
			g.task(root, "queued", 0, func(r *job.Run) {
				r.DeadlineAt, r.Labels, r.Depth = g.now.Add(time.Hour), map[string]string{"a": "b"}, 2
			}),
			g.task(root, "map", 0, func(r *job.Run) { r.State, r.Items, r.StartedAt = job.Running, 3, g.now }),
			g.task(root, "map", 1, func(r *job.Run) { r.Payload = json.RawMessage(`{"n":1}`) }),
			g.task(root, "skipped", 0, born(job.Skipped, job.UpstreamFailed)),
			g.task(root, "failed", 0, born(job.Failed, job.ExpressionFailed), func(r *job.Run) { r.Error = "no such key" }),
			g.task(root, "reused", 0, born(job.Succeeded, job.NoReason), func(r *job.Run) {
				r.Result, r.ReusedFrom = json.RawMessage(`{"rows":3}`), runID(g.now)
			}),
		}
		child := g.run(g.now, func(r *job.Run) {
			r.ID, r.ParentID, r.Depth, r.Trigger = job.ChildRunID(all[0].ID, 1), all[0].ID, 3, job.ByParent
		})
		all = append(all, child)
		for i, r := range g.release(all...) {
			if r.Existing {
				g.Fatalf("run %d was there", i)
			}
			g.equal("the receipt's run", all[i], r.Run)
			g.equal("the run", all[i], g.read(all[i].ID))
		}
		if root.ReusedFrom != g.read(root.ID).ReusedFrom {
			g.Fatal("a root forgot whose successes it reuses")
		}
	})},
	{"T1: a run released again is the one that is there, as it is", graph(func(g *graphs) {
		root := g.root(g.put(g.document("a")))
		live, gone, skipped := g.task(root, "a", 0), g.task(root, "b", 0), g.task(root, "c", 0, born(job.Skipped, job.WhenFalse))
		g.release(live, gone, skipped)
		g.move(success(gone.ID, 1<<32|1, g.now))
		other := g.task(root, "d", 0)
		again := g.release(live, gone, g.task(root, "c", 0), other, other)
		for i, want := range []job.State{job.Queued, job.Succeeded, job.Skipped, job.Queued, job.Queued} {
			if again[i].Existing != (i != 3) || again[i].Run.State != want {
				g.Fatalf("receipt %d: %+v %s", i, again[i], again[i].Run.State)
			}
		}
		if receipts, err := g.Release(g.ctx, 1, nil); err != nil || len(receipts) != 0 {
			g.Fatalf("nothing released: %v, %v", receipts, err)
		}
	})},
	{"L1: what an older epoch releases or fires is refused and changes nothing", graph(func(g *graphs) {
		a, b := g.put(g.document("a")), g.depend("b", "a")
		root := g.root(a)
		g.ends(root, job.Succeeded)
		g.raise(3, 3, "")
		r := g.task(root, "a", 0)
		_, err := g.Release(g.ctx, 2, []*job.Run{r})
		g.code("release", err, job.Fenced)
		for _, jobs := range [][]job.JobID{nil, {b.ID}} {
			_, err = g.Fire(g.ctx, 2, jobs, g.now, 10)
			g.code("fire", err, job.Fenced)
		}
		_, err = g.Run(g.ctx, r.ID)
		g.code("the run", err, job.NotFound)
		if runs, err := g.Fire(g.ctx, 3, nil, g.now, 10); err != nil || len(runs) != 1 {
			g.Fatalf("fire under the current epoch: %v, %v", runs, err)
		}
	})},
	{"task runs are listed by their root, by task, in pages; roots without them", graph(func(g *graphs) {
		j := g.put(g.document("a"))
		root, other := g.root(j), g.root(j)
		var all, mapped []*job.Run
		for i := range uint32(20) {
			r := g.task(root, "map", i+1)
			all, mapped = append(all, r), append(mapped, r)
			r = g.task(root, "t"+name(int(i)), 0)
			if i%2 == 0 {
				born(job.Skipped, job.WhenFalse)(r)
			}
			all = append(all, r)
		}
		g.release(append(slices.Clone(all), g.task(other, "map", 1))...)
		g.move(success(mapped[0].ID, 1<<32|1, g.now))
		list := func(q job.RunQuery) (got []job.RunID) {
			for q.Limit = 7; ; {
				page, err := g.Runs(g.ctx, q)
				g.code("runs", err, "")
				got = append(got, idsOf(page.Runs)...)
				if q.Before = page.Next; q.Before.IsZero() {
					return got
				}
			}
		}
		g.equal("of the root", newest(all...), list(job.RunQuery{RootID: root.ID}))
		g.equal("of the task", newest(mapped...), list(job.RunQuery{RootID: root.ID, Task: "map"}))
		g.equal("ended ones of the task", newest(mapped[0]), list(job.RunQuery{RootID: root.ID, Task: "map", States: []job.State{job.Succeeded}}))
		g.equal("of no task", []job.RunID(nil), list(job.RunQuery{RootID: root.ID, Task: "none"}))
		g.equal("roots", newest(root, other), list(job.RunQuery{Namespace: "default", Job: "a"}))
	})},
	{"live task runs are among the live runs and those of the job", graph(func(g *graphs) {
		j := g.put(g.document("a"))
		root := g.root(j)
		a, b := g.task(root, "a", 0), g.task(root, "b", 0)
		g.release(a, b, g.task(root, "c", 0, born(job.Skipped, job.WhenFalse)))
		g.move(success(b.ID, 1<<32|1, g.now))
		g.equal("of the job", sorted(root, a), g.liveOf(j.ID))
		live, err := g.Live(g.ctx, job.RunID{}, 10)
		g.code("live", err, "")
		g.equal("live", sorted(root, a), idsOf(live))
	})},
	{"what the leader carries out runs, in the store, from its opening to its end", graph(func(g *graphs) {
		root := g.root(g.put(g.document("a")), func(r *job.Run) { r.Lane = string(job.LaneOf("default", &job.Document{})) })
		open := job.Move{ID: root.ID, State: job.Running, Fence: 1<<32 | 1, Attempt: 1, StartedAt: g.now}
		if m := g.move(open)[0]; !m.Applied || m.Run.State != job.Running {
			g.Fatalf("opened: %+v", m)
		}
		items := g.task(root, "map", 0, func(r *job.Run) { r.State, r.Items, r.StartedAt = job.Running, 3, g.now })
		g.release(items)
		g.equal("running roots", newest(root), g.runs(job.RunQuery{States: []job.State{job.Running}}))
		g.equal("running tasks", newest(items), g.runs(job.RunQuery{RootID: root.ID, States: []job.State{job.Running}}))
		g.move(job.Move{ID: items.ID, State: job.Succeeded, FinishedAt: g.now},
			job.Move{ID: root.ID, State: job.Succeeded, Fence: 1<<32 | 1, Attempt: 1, StartedAt: g.now, FinishedAt: g.now})
		g.equal("running roots at the end", []job.RunID(nil), g.runs(job.RunQuery{States: []job.State{job.Running}}))
		if r := g.read(items.ID); r.State != job.Succeeded || r.Items != 3 {
			g.Fatalf("the task is %+v", r)
		}
	})},
	{"pruning keeps what a live run needs: its task runs, and the runs of their run_job", graph(func(g *graphs) {
		old := g.now.Add(-48 * time.Hour)
		root := g.submit(g.run(old, ofJob(g.put(g.document("a")))))[0]
		parent, done := g.task(root, "child", 0), g.task(root, "done", 0)
		child := g.run(old, func(r *job.Run) {
			r.ID, r.ParentID, r.Depth, r.Trigger = job.ChildRunID(parent.ID, 1), parent.ID, 1, job.ByParent
		})
		g.release(parent, done, child)
		g.move(success(done.ID, 1<<32|1, old), success(child.ID, 1<<32|2, old))
		before := g.now.Add(-24 * time.Hour)
		prune := func(want int) {
			g.Helper()
			before = before.Add(time.Minute) // who found nothing need not look again at once
			if n, err := g.Prune(g.ctx, 1, before, 100); err != nil || n != want {
				g.Fatalf("prune dropped %d, %v; want %d", n, err, want)
			}
		}
		prune(0)
		g.read(done.ID)
		g.read(child.ID)
		g.move(success(parent.ID, 1<<32|3, old), success(root.ID, 1<<32|4, old))
		prune(4)
	})},
	{"1,000 task runs in one call are stored", graph(func(g *graphs) {
		root := g.root(g.put(g.document("a")))
		var all []*job.Run
		payload, _ := json.Marshal(text(1024))
		for i := range uint32(1000) {
			all = append(all, g.task(root, "map", i+1, func(r *job.Run) { r.Payload = payload }))
		}
		g.release(all...)
		g.equal("task runs", newest(all...), g.runs(job.RunQuery{RootID: root.ID, Limit: 1000}))
	})},
}
