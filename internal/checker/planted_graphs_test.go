package checker_test

import (
	"testing"
	"time"

	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

// The root runs of goodGraphs.
var (
	graphRun  = runID(60) // every kind of task, once
	failedRun = runID(61) // one task succeeds, one fails
	againRun  = job.RetryRunID(failedRun, second(18))
	stoppedID = runID(62) // cancelled while its first task ran
)

// The job "part" is what the graph's run_job runs; "down" depends on "up".
var (
	partDoc = docOf(`{"name": "part", "exec": {"command": ["x"]}}`)
	upDoc   = docOf(`{"name": "up", "exec": {"command": ["x"]}}`)
	downDoc = docOf(`{"name": "down", "depends_on": [{"job": "up", "on": "success"}], "exec": {"command": ["x"]}}`)
)

const graphDoc = `{"spec": {"tasks": [
	{"name": "a", "exec": {"command": ["x"]}},
	{"name": "never", "depends_on": ["a"], "run_if": "any_failed", "exec": {"command": ["x"]}},
	{"name": "each", "depends_on": ["a"], "for_each": "[1, 2, 3]", "max_parallel": 2, "exec": {"command": ["x"]}},
	{"name": "child", "depends_on": ["each"], "run_job": {"job": "part"}},
	{"name": "bad", "depends_on": ["never", "child", "each"], "run_if": "none_failed", "allow_failure": true, "exec": {"command": ["x"]}},
	{"name": "last", "depends_on": ["bad"], "run_if": "all_done", "when": "true", "exec": {"command": ["x"]}}]}}`

const failingDoc = `{"spec": {"tasks": [
	{"name": "first", "exec": {"command": ["x"]}},
	{"name": "then", "depends_on": ["first"], "exec": {"command": ["x"]}},
	{"name": "after", "depends_on": ["then"], "exec": {"command": ["x"]}}]}}`

const stoppedDoc = `{"spec": {"tasks": [
	{"name": "one", "exec": {"command": ["x"]}},
	{"name": "two", "depends_on": ["one"], "exec": {"command": ["x"]}}]}}`

// graphMaker makes histories of graphs: all of it after second 10, in the second life.
type graphMaker struct {
	h *checker.History
	n int // fences
}

// row is a run that is the leader's, or has not run.
func (m *graphMaker) row(r job.Run) job.RunID {
	if r.Task != "" {
		r.ID, r.Trigger = job.TaskRunID(r.RootID, r.Task, r.Item), job.ByParent
	}
	if r.State == 0 {
		r.State = job.Succeeded
	}
	m.h.Runs = append(m.h.Runs, checker.Run{Run: r})
	return r.ID
}

// did is a run that a worker did, from one second to another; code is how its command ended.
func (m *graphMaker) did(r job.Run, from, to, code int) job.RunID {
	r.CreatedAt, r.FinishedAt, r.Attempt = second(from), second(to), 1
	if code != 0 {
		r.State, r.Reason = job.Failed, job.ExitCode
	}
	id := m.row(r)
	m.n++
	f := fence(2, 100+m.n)
	work(m.h, id, 1, f, 200, from*1000+1, to*1000-1, code)
	for i := range m.h.Work {
		if w := &m.h.Work[i]; w.Run == id {
			w.Wall = epoch.Add(time.Duration(w.At)).Time().UnixNano()
		}
	}
	if code != 0 {
		attempt(m.h, id, job.Attempt{Attempt: 1, Fence: f, State: job.Failed, Reason: job.ExitCode})
	}
	return id
}

func (m *graphMaker) submitted(id job.RunID, text string) {
	m.h.Ops = append(m.h.Ops, checker.Op{Kind: checker.Submit, ID: id, Outcome: checker.OK, Asked: moment(9900), Done: moment(9901), Body: body(text),
		Answer: &job.Run{ID: id, State: job.Queued}})
}

// goodGraphs keeps every promise about tasks and edges.
func goodGraphs() *checker.History {
	m := &graphMaker{h: goodHistory()}
	for _, d := range []*job.Document{partDoc, upDoc, downDoc} {
		jb := checker.Job{ID: job.MakeJobID(epoch.Time(), [10]byte{1: d.Name[0]}), Name: d.Name, Until: second(7)}
		jb.Versions = []job.Version{{Version: 1, Spec: d, CreatedAt: second(9)}}
		if d == downDoc {
			jb.Edges = []job.Dependency{{Job: "down", Upstream: "up", SatisfiedBy: upRun(5), SatisfiedAt: second(41), Coalesced: 0}}
		}
		m.h.Jobs = append(m.h.Jobs, jb)
	}

	m.submitted(graphRun, graphDoc)
	m.row(job.Run{ID: graphRun, Trigger: job.ByAPI, CreatedAt: second(10), FinishedAt: second(21), Attempt: 1})
	m.did(job.Run{RootID: graphRun, Task: "a"}, 10, 11, 0)
	m.row(job.Run{RootID: graphRun, Task: "never", State: job.Skipped, Reason: job.RunIfFalse, CreatedAt: second(11), FinishedAt: second(11)})
	m.row(job.Run{RootID: graphRun, Task: "each", Items: 3, CreatedAt: second(11), FinishedAt: second(15)})
	m.did(job.Run{RootID: graphRun, Task: "each", Item: 1}, 11, 13, 0)
	m.did(job.Run{RootID: graphRun, Task: "each", Item: 2}, 11, 13, 0)
	m.did(job.Run{RootID: graphRun, Task: "each", Item: 3}, 13, 15, 0)
	child := m.row(job.Run{RootID: graphRun, Task: "child", Attempt: 1, CreatedAt: second(15), FinishedAt: second(17)})
	m.did(job.Run{ID: job.ChildRunID(child, 1), ParentID: child, Trigger: job.ByParent, Job: "part", JobVersion: 1}, 15, 17, 0)
	m.did(job.Run{RootID: graphRun, Task: "bad"}, 17, 19, 7)
	m.did(job.Run{RootID: graphRun, Task: "last"}, 19, 21, 0)

	m.submitted(failedRun, failingDoc)
	m.row(job.Run{ID: failedRun, Trigger: job.ByAPI, CreatedAt: second(10), FinishedAt: second(18), Attempt: 1, State: job.Failed, Reason: job.TaskFailed})
	first := m.did(job.Run{RootID: failedRun, Task: "first"}, 10, 12, 0)
	m.did(job.Run{RootID: failedRun, Task: "then"}, 12, 18, 7)
	m.row(job.Run{RootID: failedRun, Task: "after", State: job.Skipped, Reason: job.UpstreamFailed, CreatedAt: second(18), FinishedAt: second(18)})
	m.h.Ops = append(m.h.Ops, checker.Op{Kind: checker.Retry, ID: failedRun, Outcome: checker.OK, Asked: moment(20_000), Done: moment(20_001), Answer: &job.Run{ID: againRun, State: job.Queued}})
	m.row(job.Run{ID: againRun, Trigger: job.ByRetry, RetryOf: failedRun, ReusedFrom: failedRun, CreatedAt: second(20), FinishedAt: second(24), Attempt: 1})
	m.row(job.Run{RootID: againRun, Task: "first", ReusedFrom: first, CreatedAt: second(20), FinishedAt: second(20)})
	m.did(job.Run{RootID: againRun, Task: "then"}, 20, 22, 0)
	m.did(job.Run{RootID: againRun, Task: "after"}, 22, 24, 0)

	m.submitted(stoppedID, stoppedDoc)
	m.row(job.Run{ID: stoppedID, Trigger: job.ByAPI, CreatedAt: second(10), FinishedAt: second(12), CancelAt: second(11), Attempt: 1, State: job.Cancelled, Reason: job.CancelRequested})
	one := m.did(job.Run{RootID: stoppedID, Task: "one"}, 10, 12, 0)
	find(m.h, one).Run.State, find(m.h, one).Run.Reason = job.Cancelled, job.CancelRequested
	find(m.h, one).Attempts[0].State = job.Cancelled
	workAt(m.h, one, checker.End, 1).Signal = 15
	m.h.Ops = append(m.h.Ops, checker.Op{Kind: checker.Cancel, ID: stoppedID, Outcome: checker.OK, Asked: moment(11_000), Done: moment(11_001), Answer: &job.Run{ID: stoppedID, State: job.Running}})

	// Five runs of "up": the first makes "down" run, while which two more end; the next run consumes these as one; the
	// fourth fails, the fifth is pending.
	for n, at := range map[int]int{1: 30, 2: 32, 3: 34, 4: 40, 5: 41} {
		code := 0
		if n == 4 {
			code = 7
		}
		m.submitted(upRun(n), `{"job": "up"}`)
		m.did(job.Run{ID: upRun(n), Trigger: job.ByAPI, Job: "up", JobVersion: 1}, at-1, at, code)
	}
	m.did(job.Run{ID: downRun(1), Trigger: job.ByDependency, Job: "down", JobVersion: 1, Upstreams: []job.UpstreamRun{{Job: "up", RunID: upRun(1)}}}, 30, 36, 0)
	m.did(job.Run{ID: downRun(2), Trigger: job.ByDependency, Job: "down", JobVersion: 1, Upstreams: []job.UpstreamRun{{Job: "up", RunID: upRun(3), Coalesced: 1}}}, 36, 38, 0)
	m.submitted(downRun(3), `{"job": "down"}`) // while this one is live nothing is born
	m.row(job.Run{ID: downRun(3), Trigger: job.ByAPI, Job: "down", JobVersion: 1, CreatedAt: second(39), State: job.Running})
	edge(m.h, "down")
	return m.h
}

func upRun(n int) job.RunID   { return runID(byte(70 + n)) }
func downRun(n int) job.RunID { return runID(byte(80 + n)) }

// task is the run of a task of the graph.
func task(h *checker.History, root job.RunID, name string, item uint32) *checker.Run {
	return find(h, job.TaskRunID(root, name, item))
}

// edge is the edge of a job to its upstream.
func edge(h *checker.History, name string) *job.Dependency {
	for i := range h.Jobs {
		if h.Jobs[i].Name == name {
			return &h.Jobs[i].Edges[0]
		}
	}
	panic("no job " + name)
}

// begin moves the start of a run's work.
func begin(h *checker.History, id job.RunID, ms int) {
	w := workAt(h, id, checker.Start, 1)
	w.At, w.Wall = moment(ms), epoch.Add(time.Duration(moment(ms))).Time().UnixNano()
}

func TestGoodGraphsBreakOnlyWhatTheyShould(t *testing.T) {
	h := goodGraphs()
	r := checker.Judge(h)
	for _, v := range r.Violations {
		if v.Rule != checker.Unfinished || v.About != downRun(3).String() {
			t.Error(v)
		}
	}
	if r.Graphs != 4 || r.Tasks != 13 || r.Items != 3 || r.Skipped != 2 || r.Reused != 1 || r.Fired != 2 || r.Consumed != 2 || r.Coalesced != 1 || r.Pending != 1 {
		t.Errorf("counted %+v", *r)
	}
}

// TestPlantedBugsOfGraphs breaks each promise about tasks and edges. One run is never finished, by the way, so that an
// edge may be pending.
func TestPlantedBugsOfGraphs(t *testing.T) {
	for _, c := range []struct {
		name  string
		plant func(*checker.History)
		want  []checker.Rule
	}{
		{"a task is born before the one before it has ended", func(h *checker.History) { task(h, graphRun, "last", 0).Run.CreatedAt = second(18) },
			[]checker.Rule{checker.TaskEarly}},
		{"a task starts before the one before it has ended", func(h *checker.History) {
			task(h, graphRun, "last", 0).Run.CreatedAt = second(19)
			begin(h, job.TaskRunID(graphRun, "last", 0), 18_999)
			workAt(h, job.TaskRunID(graphRun, "bad", 0), checker.End, 1).At = moment(18_000)
			task(h, graphRun, "bad", 0).Run.FinishedAt = second(19) + 20_000
		}, []checker.Rule{checker.TaskEarly}},
		{"a task starts while work of the one before it goes on", func(h *checker.History) {
			workAt(h, job.TaskRunID(graphRun, "bad", 0), checker.End, 1).At = moment(19_500)
		}, []checker.Rule{checker.TaskEarly}},
		{"a task starts while an item of the one before it goes on", func(h *checker.History) {
			workAt(h, job.TaskRunID(graphRun, "each", 3), checker.End, 1).At = moment(17_500)
		}, []checker.Rule{checker.TaskEarly}},
		{"the one before it has no run", func(h *checker.History) { drop(h, job.TaskRunID(graphRun, "never", 0)) },
			[]checker.Rule{checker.TaskEarly, checker.TaskMissing}},
		{"the one before it has not ended", func(h *checker.History) { task(h, graphRun, "never", 0).Run.State = job.Queued },
			[]checker.Rule{checker.TaskEarly, checker.WrongDecision}},
		{"a root ends without its last task", func(h *checker.History) {
			drop(h, job.TaskRunID(graphRun, "last", 0))
			forget(h, job.TaskRunID(graphRun, "last", 0))
		}, []checker.Rule{checker.TaskMissing}},
		{"a root that succeeded was never opened", func(h *checker.History) {
			for _, name := range []string{"one", "two"} {
				if name == "one" {
					drop(h, job.TaskRunID(stoppedID, name, 0))
					forget(h, job.TaskRunID(stoppedID, name, 0))
				}
			}
			r := &find(h, stoppedID).Run
			r.State, r.Reason, r.Attempt = job.Succeeded, job.NoReason, 1
		}, []checker.Rule{checker.TaskMissing}},
		{"a task has two runs", func(h *checker.History) {
			r := *task(h, graphRun, "never", 0)
			r.Run.ID = runID(99)
			h.Runs = append(h.Runs, r)
		}, []checker.Rule{checker.TaskTwice, checker.InventedRun}},
		{"an item has two runs", func(h *checker.History) {
			r := *task(h, graphRun, "each", 2)
			r.Run.ID, r.Attempts, r.Run.State = runID(99), nil, job.Succeeded
			h.Runs = append(h.Runs, r)
		}, []checker.Rule{checker.TaskTwice, checker.InventedRun, checker.NoWork}},
		{"a task that succeeded ran again", func(h *checker.History) {
			id := job.TaskRunID(graphRun, "last", 0)
			work(h, id, 2, fence(2, 190), 200, 22_000, 23_000, 0)
		}, []checker.Rule{checker.Unexplained, checker.WrongAttempts}},

		{"a task runs although its run_if says no", func(h *checker.History) {
			r := &task(h, failedRun, "after", 0).Run
			r.State, r.Reason = job.Failed, job.ExitCode
		}, []checker.Rule{checker.WrongDecision}},
		{"a task is skipped for the wrong reason", func(h *checker.History) { task(h, failedRun, "after", 0).Run.Reason = job.UpstreamSkipped },
			[]checker.Rule{checker.WrongDecision}},
		{"a task is skipped although its run_if says yes", func(h *checker.History) {
			id := job.TaskRunID(graphRun, "last", 0)
			forget(h, id)
			r := find(h, id)
			r.Attempts, r.Run.State, r.Run.Reason = nil, job.Skipped, job.UpstreamFailed
		}, []checker.Rule{checker.WrongDecision}},
		{"a task is skipped for a condition that it does not have", func(h *checker.History) {
			id := job.TaskRunID(againRun, "after", 0)
			forget(h, id)
			r := find(h, id)
			r.Attempts, r.Run.State, r.Run.Reason = nil, job.Skipped, job.WhenFalse
		}, []checker.Rule{checker.WrongDecision}},
		{"a task that is skipped starts", func(h *checker.History) {
			id := job.TaskRunID(graphRun, "never", 0)
			h.Work = append(h.Work, line(checker.Start, id, 1, fence(2, 191), 200, 12_000))
			attempt(h, id, job.Attempt{Attempt: 1, Fence: fence(2, 191), State: job.Failed, Reason: job.WorkerLost})
		}, []checker.Rule{checker.SkippedStarted}},
		{"a task that is taken over starts", func(h *checker.History) {
			id := job.TaskRunID(againRun, "first", 0)
			h.Work = append(h.Work, line(checker.Start, id, 1, fence(2, 191), 200, 20_000))
			attempt(h, id, job.Attempt{Attempt: 1, Fence: fence(2, 191), State: job.Failed, Reason: job.WorkerLost})
		}, []checker.Rule{checker.SkippedStarted}},

		{"an item is missing", func(h *checker.History) {
			drop(h, job.TaskRunID(graphRun, "each", 3))
			forget(h, job.TaskRunID(graphRun, "each", 3))
		}, []checker.Rule{checker.WrongItems}},
		{"an item beyond the list", func(h *checker.History) { task(h, graphRun, "each", 0).Run.Items = 2 }, []checker.Rule{checker.WrongItems}},
		{"an item failed and its task did not", func(h *checker.History) {
			r := task(h, graphRun, "each", 2)
			r.Run.State, r.Run.Reason, r.Attempts[0].State, r.Attempts[0].Reason = job.Failed, job.ExitCode, job.Failed, job.ExitCode
		}, []checker.Rule{checker.WrongItems}},
		{"a task ended before its last item", func(h *checker.History) { task(h, graphRun, "each", 0).Run.FinishedAt = second(14) }, []checker.Rule{checker.WrongItems}},
		{"a task that the job does not have", func(h *checker.History) {
			r := job.Run{ID: job.TaskRunID(graphRun, "extra", 0), RootID: graphRun, Task: "extra", Trigger: job.ByParent, State: job.Failed, CreatedAt: second(12)}
			h.Runs = append(h.Runs, checker.Run{Run: r})
		}, []checker.Rule{checker.WrongItems}},
		{"more items than allowed are at work", func(h *checker.History) { begin(h, job.TaskRunID(graphRun, "each", 3), 12_500) },
			[]checker.Rule{checker.TooParallel}},

		{"a root succeeded although a task failed", func(h *checker.History) {
			find(h, failedRun).Run.State, find(h, failedRun).Run.Reason = job.Succeeded, job.NoReason
		}, []checker.Rule{checker.RootDisagrees}},
		{"a root failed although none of its tasks makes it", func(h *checker.History) {
			find(h, graphRun).Run.State, find(h, graphRun).Run.Reason = job.Failed, job.TaskFailed
		}, []checker.Rule{checker.RootDisagrees}},
		{"a root failed for a result that it does not have", func(h *checker.History) {
			find(h, graphRun).Run.State, find(h, graphRun).Run.Reason = job.Failed, job.ExpressionFailed
		}, []checker.Rule{checker.RootDisagrees}},
		{"a root is cancelled and nobody asked", func(h *checker.History) { find(h, stoppedID).Run.CancelAt = 0 }, []checker.Rule{checker.RootDisagrees}},
		{"a root ends before a task of it", func(h *checker.History) { find(h, graphRun).Run.FinishedAt = second(20) }, []checker.Rule{checker.RootEarly}},
		{"a task starts long after the cancel of its root", func(h *checker.History) { begin(h, job.TaskRunID(stoppedID, "one", 0), 17_000) },
			[]checker.Rule{checker.CancelIgnored}},
		{"a task starts after its root was seen ended", func(h *checker.History) {
			h.Ops = append(h.Ops, checker.Op{Kind: checker.Read, ID: graphRun, Outcome: checker.OK, Asked: moment(18_000), Done: moment(18_001), Answer: &find(h, graphRun).Run})
		}, []checker.Rule{checker.StartAfterEnd}},

		{"a success is not taken over", func(h *checker.History) {
			id := job.TaskRunID(againRun, "first", 0)
			find(h, id).Run.ReusedFrom, find(h, id).Run.State = job.RunID{}, job.Failed
		}, []checker.Rule{checker.WrongReuse, checker.WrongDecision, checker.RootDisagrees}},
		{"a failure is taken over", func(h *checker.History) {
			id := job.TaskRunID(againRun, "then", 0)
			find(h, id).Run.ReusedFrom = job.TaskRunID(failedRun, "then", 0)
			forget(h, id)
			find(h, id).Attempts = nil
		}, []checker.Rule{checker.WrongReuse}},
		{"a retry that was accepted is gone", func(h *checker.History) {
			h.Ops = append(h.Ops, checker.Op{Kind: checker.Retry, ID: graphRun, Outcome: checker.OK, Asked: 1, Done: 2, Answer: &job.Run{ID: runID(98)}})
		}, []checker.Rule{checker.Lost}},
		{"a retry that nobody asked for", func(h *checker.History) {
			for i := range h.Ops {
				if h.Ops[i].Kind == checker.Retry {
					h.Ops[i].ID = graphRun
				}
			}
		}, []checker.Rule{checker.InventedRun}},

		{"a child failed and its task did not", func(h *checker.History) {
			r := find(h, job.ChildRunID(job.TaskRunID(graphRun, "child", 0), 1))
			r.Run.State, r.Run.Reason, r.Attempts[0].State, r.Attempts[0].Reason = job.Failed, job.ExitCode, job.Failed, job.ExitCode
		}, []checker.Rule{checker.WrongChild}},
		{"a child ends after its task", func(h *checker.History) { task(h, graphRun, "child", 0).Run.FinishedAt = second(16) }, []checker.Rule{checker.WrongChild}},
		{"a child that no attempt made", func(h *checker.History) {
			r := *find(h, job.ChildRunID(job.TaskRunID(graphRun, "child", 0), 1))
			r.Run.ID, r.Run.State, r.Attempts = job.ChildRunID(job.TaskRunID(graphRun, "child", 0), 2), job.Failed, nil
			h.Runs = append(h.Runs, r)
		}, []checker.Rule{checker.InventedRun}},

		{"two runs are born of one end", func(h *checker.History) {
			find(h, downRun(2)).Run.Upstreams[0].RunID = upRun(1)
		}, []checker.Rule{checker.ConsumedTwice}},
		{"an end that was consumed is pending", func(h *checker.History) { edge(h, "down").SatisfiedBy = upRun(3) }, []checker.Rule{checker.ConsumedTwice}},
		{"a run is born of a failure", func(h *checker.History) { find(h, downRun(2)).Run.Upstreams[0].RunID = upRun(4) }, []checker.Rule{checker.WrongUpstream}},
		{"a run is born of a run that is not there", func(h *checker.History) { find(h, downRun(2)).Run.Upstreams[0].RunID = runID(97) }, []checker.Rule{checker.WrongUpstream}},
		{"a run is born of nothing", func(h *checker.History) { find(h, downRun(1)).Run.Upstreams = nil }, []checker.Rule{checker.WrongUpstream, checker.EndLost}},
		{"a run is born before the end of which it is born", func(h *checker.History) { find(h, downRun(1)).Run.CreatedAt = second(29) }, []checker.Rule{checker.WrongUpstream}},
		{"a run is born of another job", func(h *checker.History) { find(h, downRun(1)).Run.Upstreams[0].Job = "a" }, []checker.Rule{checker.WrongUpstream, checker.EndLost}},
		{"an end is not counted", func(h *checker.History) { find(h, downRun(2)).Run.Upstreams[0].Coalesced = 0 }, []checker.Rule{checker.EndLost}},
		{"a pending end is gone", func(h *checker.History) { edge(h, "down").SatisfiedBy = job.RunID{} }, []checker.Rule{checker.EndLost}},
		{"an end is counted twice", func(h *checker.History) { edge(h, "down").Coalesced = 1 }, []checker.Rule{checker.EndInvented}},
		{"a run is born beside a live one", func(h *checker.History) { find(h, downRun(2)).Run.CreatedAt = second(35) }, []checker.Rule{checker.FiredBeside}},
		{"nothing is born although all edges are satisfied", func(h *checker.History) { find(h, downRun(3)).Run.State = job.Failed }, []checker.Rule{checker.NotFired}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := goodGraphs()
			c.plant(h)
			if find(h, downRun(3)).Run.State == job.Running {
				c.want = append(c.want, checker.Unfinished)
			}
			expect(t, h, c.want...)
		})
	}
}

// TestAnEdgeMayBeginSatisfied: an end from before the edge counts once, or not at all.
func TestAnEdgeMayBeginSatisfied(t *testing.T) {
	h := goodGraphs()
	find(h, downRun(3)).Run.State = job.Failed
	edge(h, "down").SatisfiedBy = job.RunID{}
	for i := range h.Jobs {
		if h.Jobs[i].Name == "down" {
			h.Jobs[i].Versions[0].CreatedAt = second(33) // the first two of "up" had ended
		}
	}
	find(h, downRun(2)).Run.Upstreams[0].Coalesced = 0
	drop(h, upRun(5))
	forget(h, upRun(5))
	submit(h, upRun(5)).Outcome = checker.Unknown
	expect(t, h)
}
