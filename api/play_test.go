package api

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/job/dag"
)

// player does for one root run what the leader does, with what decides there.
type player struct {
	*bench
	t    *testing.T
	root job.RunID
	g    *dag.Progress
}

// play opens a root run. reused are the task runs that it may take over.
func (b *bench) play(t *testing.T, root job.RunID, reused []*job.Run) *player {
	t.Helper()
	r := b.change(root, func(r *job.Run) { r.State, r.Attempt, r.StartedAt = job.Running, 1, job.At(testNow) })
	v, err := b.Version(t.Context(), r.JobID, r.JobVersion)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := dag.Compile(v.Spec)
	if err != nil {
		t.Fatal(err)
	}
	p := &player{b, t, root, dag.NewProgress(plan, r)}
	p.g.Reuse(reused)
	p.step()
	return p
}

// step does all that follows.
func (p *player) step() {
	p.t.Helper()
	for {
		s := p.g.Next(job.At(testNow))
		for _, r := range s.Births {
			p.runs[r.ID] = r
			p.g.Note(r)
		}
		for _, m := range s.Moves {
			p.move(m)
		}
		if s.End != nil {
			s.End.Fence = 1 << 32
			p.move(*s.End)
		}
		if s.Empty() {
			return
		}
	}
}

func (p *player) move(m job.Move) {
	p.t.Helper()
	r, ok := m.Apply(p.runs[m.ID])
	if !ok {
		p.t.Fatalf("%+v does not apply", m)
	}
	p.runs[m.ID] = r
	p.g.Note(r)
}

// end ends the run of a task, or of an item of its list, as a worker would, and does what follows.
func (p *player) end(task string, item uint32, s job.State, result string) {
	p.t.Helper()
	p.move(job.Move{ID: job.TaskRunID(p.root, task, item), State: s, Fence: 1 << 32, Attempt: 1, FinishedAt: job.At(testNow), Result: json.RawMessage(result)})
	p.step()
}

// reads compares the states of the tasks, in order, and of the run itself.
func (p *player) reads(states string) []TaskRun {
	p.t.Helper()
	r := want[RunWithTasks](p.t, p.bench, 200, "GET", "/v1/runs/"+p.root.String(), "")
	got := r.State.String() + ":"
	for _, task := range r.Tasks {
		got += " " + task.State.String()
		if row := p.runs[task.ID]; (row == nil) != task.ID.IsZero() || row != nil && (row.State != task.State || row.Reason != task.Reason) {
			p.t.Errorf("%s reads %s %s, and its run is %+v", task.Name, task.State, task.Reason, row)
		}
	}
	if got != states {
		p.t.Errorf("it reads %s, want %s", got, states)
	}
	return r.Tasks
}

// What the leader decides is what people read, from the first task to the retry of those that failed.
func TestWhatIsDecidedIsRead(t *testing.T) {
	b := newBench(t)
	want[job.Job](t, b, 201, "POST", "/v1/jobs", etl)
	r := want[job.Run](t, b, 201, "POST", "/v1/runs", `{"job":"etl"}`)
	p := b.play(t, r.ID, nil)
	p.reads("running: queued waiting waiting waiting waiting")
	p.end("extract", 0, job.Succeeded, `["a","b","c","d","e"]`)
	if items := p.reads("running: succeeded running queued skipped waiting")[1].Items; *items != (ItemCounts{Total: 5, Queued: 4}) {
		t.Errorf("%+v", items) // max_parallel is 4
	}
	p.end("each", 2, job.Failed, "")
	p.end("each", 1, job.Succeeded, "1")
	if items := p.reads("running: succeeded running queued skipped waiting")[1].Items; *items != (ItemCounts{Total: 5, Queued: 3, Succeeded: 1, Failed: 1}) {
		t.Errorf("%+v", items)
	}
	for _, item := range []uint32{3, 4, 5} {
		p.end("each", item, job.Succeeded, "1")
	}
	p.end("child", 0, job.Succeeded, `"made"`)
	tasks := p.reads("failed: succeeded failed succeeded skipped skipped")
	if n := tasks[1].Items; tasks[4].Reason != job.UpstreamFailed || *n != (ItemCounts{Total: 5, Succeeded: 4, Failed: 1}) || tasks[2].ChildID != job.ChildRunID(tasks[2].ID, 1) {
		t.Errorf("%+v", tasks)
	}
	if e := want[Explanation](t, b, 200, "GET", "/v1/runs/"+r.ID.String()+"/explain", "").Explanation; !strings.Contains(strings.Join(e, " "), "The task each is failed (task_failed).") {
		t.Errorf("%q", e)
	}

	n := want[job.Run](t, b, 201, "POST", "/v1/runs/"+r.ID.String()+"/retry", `{"scope":"failed"}`)
	var old []*job.Run
	for _, row := range b.runs {
		if row.RootID == n.ReusedFrom {
			old = append(old, row)
		}
	}
	p = b.play(t, n.ID, old)
	tasks = p.reads("running: succeeded running succeeded skipped waiting")
	if tasks[0].ReusedFrom != job.TaskRunID(r.ID, "extract", 0) || tasks[0].ChildID != (job.RunID{}) || tasks[2].ReusedFrom != job.TaskRunID(r.ID, "child", 0) || !tasks[2].ChildID.IsZero() {
		t.Errorf("%+v", tasks)
	}
	if *tasks[1].Items != (ItemCounts{Total: 5, Queued: 1, Succeeded: 4}) {
		t.Errorf("%+v", tasks[1].Items)
	}
	e := want[Explanation](t, b, 200, "GET", "/v1/runs/"+n.ID.String()+"/explain?task=extract", "").Explanation
	if !strings.Contains(e[0], "took over the success of the run "+tasks[0].ReusedFrom.String()) {
		t.Errorf("%q", e)
	}
	p.end("each", 2, job.Succeeded, "1")
	p.reads("running: succeeded succeeded succeeded skipped queued")
	// Cancelled now, it ends when what is live has.
	want[job.Run](t, b, 202, "POST", "/v1/runs/"+n.ID.String()+"/cancel", "")
	p.g.Cancel()
	p.step()
	p.reads("running: succeeded succeeded succeeded skipped queued")
	p.end("publish", 0, job.Cancelled, "")
	p.reads("cancelled: succeeded succeeded succeeded skipped cancelled")
}
