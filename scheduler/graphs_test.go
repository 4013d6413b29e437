package scheduler_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/clustertest"
	"github.com/musterhq/muster/job"
)

// The rules T1 to T9 over a whole term: real dispatcher, settler, resolver and state machine, with workers that are functions.

// tasksOf answers the rows below a root, by task, and items by "task/1".
func tasksOf(t *testing.T, c *clustertest.Core, root job.RunID) map[string]*job.Run {
	t.Helper()
	out := map[string]*job.Run{}
	q := job.RunQuery{Namespace: "default", RootID: root, Limit: 1000}
	for {
		page, err := c.Store.Runs(context.Background(), q)
		must(t, err)
		for _, r := range page.Runs {
			name := r.Task
			if r.Item > 0 {
				name = fmt.Sprintf("%s/%d", r.Task, r.Item)
			}
			out[name] = r
		}
		if q.Before = page.Next; q.Before.IsZero() {
			return out
		}
	}
}

// states are the rows below a root in one line, for comparing: "a:succeeded b:skipped(when_false)".
func states(t *testing.T, c *clustertest.Core, root job.RunID) string {
	t.Helper()
	var out []string
	for name, r := range tasksOf(t, c, root) {
		s := name + ":" + r.State.String()
		if r.Reason != job.NoReason {
			s += "(" + r.Reason.String() + ")"
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// crew is a behaviour by task: what is not named succeeds after a second. It keeps what each was given.
type crew struct {
	does map[string]clustertest.Behaviour

	mu    sync.Mutex
	given map[string][]string // payloads, by task
}

func (w *crew) work(ctx context.Context, a *job.Assignment) job.Outcome {
	w.mu.Lock()
	if w.given == nil {
		w.given = map[string][]string{}
	}
	w.given[a.Task] = append(w.given[a.Task], string(a.Payload))
	w.mu.Unlock()
	if b := w.does[a.Task]; b != nil {
		return b(ctx, a)
	}
	return clustertest.Succeed(time.Second)(ctx, a)
}

func (w *crew) got(task string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := slices.Clone(w.given[task])
	slices.Sort(out)
	return out
}

func answer(result string) clustertest.Behaviour {
	return func(context.Context, *job.Assignment) job.Outcome {
		return job.Outcome{Kind: job.AttemptSucceeded, Result: json.RawMessage(result)}
	}
}

// graph writes the tasks of a document: "a", or "b<a" for one that depends on a, with more fields after a space. Those without
// a run_job are commands.
func graph(lines ...string) string {
	var b strings.Builder
	b.WriteString("tasks:\n")
	for _, l := range lines {
		head, rest, _ := strings.Cut(l, " ")
		name, ups, _ := strings.Cut(head, "<")
		fmt.Fprintf(&b, "  - {name: %s, depends_on: [%s]", name, ups)
		if rest != "" {
			b.WriteString(", " + rest)
		}
		if !strings.Contains(rest, "run_job:") {
			b.WriteString(", exec: {command: [work]}")
		}
		b.WriteString("}\n")
	}
	return b.String()
}

func expectOnce(t *testing.T, c *clustertest.Core) {
	t.Helper()
	seen := map[job.RunID]int{}
	for _, s := range c.Workers.Starts() {
		if seen[s.Run]++; seen[s.Run] > 1 {
			t.Errorf("run %s started %d times", s.Run, seen[s.Run])
		}
	}
}

func TestGraphsInOrder(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		w := &crew{does: map[string]clustertest.Behaviour{"a": answer(`{"n": 41}`)}}
		c.Workers.Add(worker("w", 4), w.work)
		spec := c.Spec(graph("a", "b<a payload: {n: '${{ tasks.a.result.n + 1 }}'}", "c<a", "d<b,c") +
			"result: 'tasks.a.result.n'\npayload: {of: root}\n")
		r := c.Submit(job.Submission{Spec: spec, Payload: []byte(`{"of":"root"}`)}, nil)
		time.Sleep(500 * time.Millisecond)
		expectState(t, c.Run(r.ID), job.Running, job.NoReason)
		if got := states(t, c, r.ID); !strings.HasPrefix(got, "a:succeeded") {
			t.Fatalf("after a: %s", got)
		}
		if rows := tasksOf(t, c, r.ID); rows["d"] != nil {
			t.Fatal("T1: d is decided before b and c have ended")
		}
		time.Sleep(4 * time.Second)
		end := c.Run(r.ID)
		expectState(t, end, job.Succeeded, job.NoReason)
		if string(end.Result) != "41" || end.Attempt != 1 || end.StartedAt == 0 {
			t.Fatalf("the root ended with %s, attempt %d, started %s", end.Result, end.Attempt, end.StartedAt)
		}
		for task, want := range map[string]string{"a": `{"of":"root"}`, "b": `{"n":42}`, "c": `{"of":"root"}`} {
			if got := w.got(task); len(got) != 1 || got[0] != want {
				t.Errorf("%s was given %v, want %s", task, got, want)
			}
		}
		expectOnce(t, c)
	})
}

func TestGraphsConditions(t *testing.T) {
	for name, x := range map[string]struct {
		lines []string
		want  string
		root  job.State
		why   job.Reason
	}{
		"T2": {[]string{"bad", "ok", "all<bad,ok", "done<bad,ok run_if: all_done", "some<bad,ok run_if: any_succeeded", "mend<bad run_if: any_failed",
			"idle<ok run_if: any_failed", "none<ok run_if: none_failed", "on<all"},
			"all:skipped(upstream_failed) bad:failed(exit_code) done:succeeded idle:skipped(run_if_false) mend:succeeded none:succeeded ok:succeeded on:skipped(upstream_skipped) some:succeeded",
			job.Failed, job.TaskFailed},
		"T3": {[]string{"ok", "no<ok when: 'false'", "err<ok when: 'tasks.ok.result.absent == 1'", "yes<ok when: 'tasks.ok.state == \"succeeded\"'"},
			"err:failed(expression_failed) no:skipped(when_false) ok:succeeded yes:succeeded", job.Failed, job.TaskFailed},
		"T5 allow_failure": {[]string{"bad allow_failure: true", "after<bad run_if: all_done"}, "after:succeeded bad:failed(exit_code)", job.Succeeded, job.NoReason},
		"a template that cannot be filled in": {[]string{"ok", "t<ok payload: {x: '${{ tasks.ok.result.absent }}'}, retry: {max_attempts: 3}"},
			"ok:succeeded t:failed(expression_failed)", job.Failed, job.TaskFailed},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, c *clustertest.Core) {
				w := &crew{does: map[string]clustertest.Behaviour{"bad": clustertest.Fail(0), "ok": answer(`{}`)}}
				c.Workers.Add(worker("w", 4), w.work)
				r := c.Submit(job.Submission{Spec: c.Spec(graph(x.lines...))}, nil)
				time.Sleep(10 * time.Second)
				if got := states(t, c, r.ID); got != x.want {
					t.Errorf("rows\n got %s\nwant %s", got, x.want)
				}
				expectState(t, c.Run(r.ID), x.root, x.why)
				expectOnce(t, c)
			})
		})
	}
}

// T4
func TestGraphsLists(t *testing.T) {
	t.Run("max_parallel bounds what is released", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			w := &crew{does: map[string]clustertest.Behaviour{"a": answer(`[1,2,3,4,5]`)}}
			c.Workers.Add(worker("w", 50), w.work)
			r := c.Submit(job.Submission{Spec: c.Spec(graph("a", "m<a for_each: 'tasks.a.result', max_parallel: 2", "z<m"))}, nil)
			time.Sleep(500 * time.Millisecond)
			if got := states(t, c, r.ID); got != "a:succeeded m/1:running m/2:running m:running" {
				t.Fatalf("at first: %s", got)
			}
			time.Sleep(10 * time.Second)
			expectState(t, c.Run(r.ID), job.Succeeded, job.NoReason)
			if got := w.got("m"); !slices.Equal(got, []string{"1", "2", "3", "4", "5"}) {
				t.Errorf("items were given %v", got)
			}
			judgeOverlaps(t, c, "max_parallel", 2, func(s clustertest.Start) bool {
				return slices.Contains([]string{"m"}, c.Run(s.Run).Task)
			})
			expectOnce(t, c)
		})
	})
	t.Run("an item that fails fails the task, after the others", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			w := &crew{does: map[string]clustertest.Behaviour{"m": func(ctx context.Context, a *job.Assignment) job.Outcome {
				if string(a.Payload) == "2" {
					return clustertest.Fail(0)(ctx, a)
				}
				return clustertest.Succeed(time.Second)(ctx, a)
			}}}
			c.Workers.Add(worker("w", 50), w.work)
			r := c.Submit(job.Submission{Spec: c.Spec(graph("m for_each: '[1, 2, 3]'", "none for_each: '[]'", "z<m,none"))}, nil)
			time.Sleep(10 * time.Second)
			if got, want := states(t, c, r.ID), "m/1:succeeded m/2:failed(exit_code) m/3:succeeded m:failed(task_failed) none:succeeded z:skipped(upstream_failed)"; got != want {
				t.Errorf("rows\n got %s\nwant %s", got, want)
			}
			expectState(t, c.Run(r.ID), job.Failed, job.TaskFailed)
		})
	})
	t.Run("a wide one stalls nobody else", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			list := strings.TrimSuffix(strings.Repeat("0,", 1000), ",")
			c.Workers.Add(worker("w", 100), clustertest.Succeed(time.Minute))
			wide := c.Submit(job.Submission{Spec: c.Spec(graph("m for_each: '[" + list + "]'"))}, nil)
			time.Sleep(time.Second)
			h := worker("x", 1)
			h.Executors, h.Handlers = []string{"handler"}, []string{"h"}
			c.Workers.Add(h, clustertest.Succeed(time.Second))
			other := c.Submit(job.Submission{Spec: c.Spec("tasks: [{name: a, handler: {name: h}}]")}, nil)
			time.Sleep(5 * time.Second)
			expectState(t, c.Run(other.ID), job.Succeeded, job.NoReason)
			time.Sleep(12 * time.Minute)
			expectState(t, c.Run(wide.ID), job.Succeeded, job.NoReason)
			if n := len(c.Workers.Starts()); n != 1001 {
				t.Errorf("%d starts", n)
			}
		})
	})
}

// T6
func TestGraphsCancelled(t *testing.T) {
	long := map[string]clustertest.Behaviour{"a": clustertest.Succeed(time.Hour), "m": clustertest.Succeed(time.Hour)}
	t.Run("a root, with all that is live below it", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			w := &crew{does: long}
			c.Workers.Add(worker("w", 3), w.work)
			r := c.Submit(job.Submission{Spec: c.Spec(graph("a", "b<a", "m for_each: '[1,2,3,4]', max_parallel: 3"))}, nil)
			time.Sleep(time.Second)
			c.Cancel(r.ID)
			time.Sleep(3 * time.Second)
			if got := states(t, c, r.ID); got != "a:cancelled(cancel_requested) m/1:cancelled(cancel_requested) m/2:cancelled(cancel_requested) m/3:cancelled(cancel_requested) m:cancelled(cancel_requested)" {
				t.Errorf("rows: %s", got)
			}
			expectState(t, c.Run(r.ID), job.Cancelled, job.CancelRequested)
		})
	})
	t.Run("by a hint that was lost", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			w := &crew{does: long}
			c.Workers.Add(worker("w", 3), w.work)
			r := c.Submit(job.Submission{Spec: c.Spec(graph("a", "b<a"))}, nil)
			time.Sleep(time.Second)
			_, err := c.Store.Cancel(context.Background(), []job.CancelIntent{{ID: r.ID, At: job.At(time.Now())}})
			must(t, err)
			time.Sleep(15 * time.Second)
			expectState(t, c.Run(r.ID), job.Cancelled, job.CancelRequested)
		})
	})
	t.Run("before it was opened", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			r := c.Submit(job.Submission{Spec: c.Spec(graph("a")), RunAt: job.At(time.Now().Add(time.Minute))}, nil)
			c.Cancel(r.ID)
			time.Sleep(2 * time.Minute)
			expectState(t, c.Run(r.ID), job.Cancelled, job.CancelRequested)
			if got := states(t, c, r.ID); got != "" {
				t.Errorf("rows: %s", got)
			}
		})
	})
	t.Run("one task run concerns that alone", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			w := &crew{does: long}
			c.Workers.Add(worker("w", 5), w.work)
			r := c.Submit(job.Submission{Spec: c.Spec(graph("a", "b", "m for_each: '[1,2,3]', max_parallel: 2", "z<a run_if: all_done"))}, nil)
			time.Sleep(2 * time.Second)
			c.Cancel(job.TaskRunID(r.ID, "a", 0))
			c.Cancel(job.TaskRunID(r.ID, "m", 0))
			time.Sleep(10 * time.Second)
			if got := states(t, c, r.ID); got != "a:cancelled(cancel_requested) b:succeeded m/1:cancelled(cancel_requested) m/2:cancelled(cancel_requested) m:cancelled(cancel_requested) z:succeeded" {
				t.Errorf("rows: %s", got)
			}
			expectState(t, c.Run(r.ID), job.Failed, job.TaskFailed)
		})
	})
}

// T7
func TestGraphsDeadline(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		w := &crew{does: map[string]clustertest.Behaviour{"a": clustertest.Succeed(90 * time.Second)}}
		c.Workers.Add(worker("w", 3), w.work)
		r := c.Submit(job.Submission{Spec: c.Spec("deadline: 1m\n" + graph("a", "b<a"))}, nil)
		time.Sleep(10 * time.Minute)
		expectState(t, c.Run(r.ID), job.Failed, job.DeadlineExceeded)
		rows := tasksOf(t, c, r.ID)
		if b := rows["b"]; b == nil || b.State == job.Succeeded || b.Attempt != 0 {
			t.Errorf("b after the deadline: %+v", b)
		}
	})
}

// T8
func TestGraphsRetried(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		mended := false
		w := &crew{does: map[string]clustertest.Behaviour{"a": answer(`[1,2]`), "b": func(ctx context.Context, a *job.Assignment) job.Outcome {
			if !mended {
				return clustertest.Fail(0)(ctx, a)
			}
			return clustertest.Succeed(0)(ctx, a)
		}, "m": func(ctx context.Context, a *job.Assignment) job.Outcome {
			if !mended && string(a.Payload) == "2" {
				return clustertest.Fail(0)(ctx, a)
			}
			return clustertest.Succeed(0)(ctx, a)
		}}}
		c.Workers.Add(worker("w", 3), w.work)
		spec := c.Spec(graph("a", "b<a", "m<a for_each: 'tasks.a.result'", "z<b,m"))
		r := c.Submit(job.Submission{Spec: spec}, nil)
		time.Sleep(5 * time.Second)
		expectState(t, c.Run(r.ID), job.Failed, job.TaskFailed)
		mended = true
		again, err := job.Birth(&job.Submission{ID: c.NewID(), Namespace: "default", Spec: spec}, nil, job.At(time.Now()))
		must(t, err)
		again.Home, again.Trigger, again.RetryOf, again.ReusedFrom = job.HomeQuorum, job.ByRetry, r.ID, r.ID
		_, err = c.Store.Submit(context.Background(), []*job.Run{again})
		must(t, err)
		c.Term().Born([]*job.Run{again})
		time.Sleep(10 * time.Second)
		expectState(t, c.Run(again.ID), job.Succeeded, job.NoReason)
		rows := tasksOf(t, c, again.ID)
		if got := rows["a"].ReusedFrom; got != job.TaskRunID(r.ID, "a", 0) || string(rows["a"].Result) != "[1,2]" {
			t.Errorf("a is reused from %s with %s", got, rows["a"].Result)
		}
		if !rows["b"].ReusedFrom.IsZero() || rows["m/1"].ReusedFrom != job.TaskRunID(r.ID, "m", 1) || !rows["m/2"].ReusedFrom.IsZero() {
			t.Errorf("reused: b %s, m/1 %s, m/2 %s", rows["b"].ReusedFrom, rows["m/1"].ReusedFrom, rows["m/2"].ReusedFrom)
		}
		if n := len(w.got("a")); n != 1 {
			t.Errorf("a ran %d times", n)
		}
		expectOnce(t, c)
	})
}

// T9
func TestGraphsRunJobs(t *testing.T) {
	with := func(t *testing.T, inner string, does map[string]clustertest.Behaviour, f func(t *testing.T, c *clustertest.Core, inner *job.Job)) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			w := &crew{does: does}
			c.Workers.Add(worker("w", 5), w.work)
			f(t, c, c.Apply("name: inner\n"+inner))
		})
	}
	t.Run("its result is the task's", func(t *testing.T) {
		with(t, graph("x")+"result: 'run.payload.n'\n", nil, func(t *testing.T, c *clustertest.Core, inner *job.Job) {
			r := c.Submit(job.Submission{Spec: c.Spec(graph("a payload: {n: 7}, run_job: {job: inner}", "b<a") + "result: tasks.a.result\n")}, nil)
			time.Sleep(10 * time.Second)
			end := c.Run(r.ID)
			expectState(t, end, job.Succeeded, job.NoReason)
			if string(end.Result) != "7" {
				t.Errorf("result %s", end.Result)
			}
			child := c.Run(job.ChildRunID(job.TaskRunID(r.ID, "a", 0), 1))
			if child.ParentID != job.TaskRunID(r.ID, "a", 0) || child.Trigger != job.ByParent || child.Depth != 1 || child.JobVersion != inner.Version {
				t.Errorf("child %+v", child)
			}
		})
	})
	t.Run("one that fails is retried by the task", func(t *testing.T) {
		with(t, `exec: {command: [work]}`, map[string]clustertest.Behaviour{"": clustertest.Fail(0)}, func(t *testing.T, c *clustertest.Core, inner *job.Job) {
			r := c.Submit(job.Submission{Spec: c.Spec(graph("a run_job: {job: inner}, retry: {max_attempts: 3, initial: 1s}"))}, nil)
			time.Sleep(time.Minute)
			expectState(t, c.Run(r.ID), job.Failed, job.TaskFailed)
			a := tasksOf(t, c, r.ID)["a"]
			expectState(t, a, job.Failed, job.ChildFailed)
			if runs := c.RunsOf(inner); len(runs) != 3 || a.Attempt != 3 {
				t.Errorf("%d children, attempt %d", len(runs), a.Attempt)
			}
		})
	})
	t.Run("cancelling the root cancels the child", func(t *testing.T) {
		with(t, graph("x"), map[string]clustertest.Behaviour{"x": clustertest.Succeed(time.Hour)}, func(t *testing.T, c *clustertest.Core, inner *job.Job) {
			r := c.Submit(job.Submission{Spec: c.Spec(graph("a run_job: {job: inner}"))}, nil)
			time.Sleep(2 * time.Second)
			c.Cancel(r.ID)
			time.Sleep(5 * time.Second)
			expectState(t, c.Run(r.ID), job.Cancelled, job.CancelRequested)
			expectState(t, c.RunsOf(inner)[0], job.Cancelled, job.CancelRequested)
		})
	})
	t.Run("no such job", func(t *testing.T) {
		with(t, graph("x"), nil, func(t *testing.T, c *clustertest.Core, inner *job.Job) {
			r := c.Submit(job.Submission{Spec: c.Spec(graph("a run_job: {job: absent}, retry: {max_attempts: 3}"))}, nil)
			time.Sleep(10 * time.Second)
			a := tasksOf(t, c, r.ID)["a"]
			expectState(t, a, job.Failed, job.CannotStart)
			if a.Attempt != 1 {
				t.Errorf("attempt %d", a.Attempt)
			}
		})
	})
	t.Run("a job that runs itself ends at the bound", func(t *testing.T) {
		with(t, graph("x run_job: {job: inner}"), nil, func(t *testing.T, c *clustertest.Core, inner *job.Job) {
			r := c.Submit(job.Submission{Job: "inner"}, inner)
			time.Sleep(time.Minute)
			expectState(t, c.Run(r.ID), job.Failed, job.TaskFailed)
			if runs := c.RunsOf(inner); len(runs) != job.MaxRunDepth+1 {
				t.Errorf("%d runs", len(runs))
			}
		})
	})
}

func TestGraphsHoldTheirKey(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		w := &crew{does: map[string]clustertest.Behaviour{"a": clustertest.Succeed(10 * time.Second)}}
		c.Workers.Add(worker("w", 10), w.work)
		spec := c.Spec("concurrency: {key: k}\n" + graph("a", "b<a"))
		first := c.Submit(job.Submission{Spec: spec}, nil)
		time.Sleep(time.Second)
		second := c.Submit(job.Submission{Spec: spec}, nil)
		time.Sleep(2 * time.Second)
		c.Depose()
		c.Lead()
		time.Sleep(5 * time.Second)
		expectState(t, c.Run(first.ID), job.Running, job.NoReason)
		expectState(t, c.Run(second.ID), job.Queued, job.NoReason)
		time.Sleep(time.Minute)
		expectState(t, c.Run(first.ID), job.Succeeded, job.NoReason)
		expectState(t, c.Run(second.ID), job.Succeeded, job.NoReason)
		if a, b := c.Run(first.ID), c.Run(second.ID); b.StartedAt < a.FinishedAt {
			t.Errorf("the second began at %s, the first ended at %s", b.StartedAt, a.FinishedAt)
		}
		expectOnce(t, c)
	})
}

func TestGraphsPaused(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		w := &crew{}
		c.Workers.Add(worker("w", 10), w.work)
		j := c.Apply("name: some\n" + graph("a", "b<a", "c<b"))
		r := c.Submit(job.Submission{Job: "some"}, j)
		time.Sleep(500 * time.Millisecond)
		must(t, c.Control.PauseJob(context.Background(), j.ID))
		time.Sleep(10 * time.Second)
		expectState(t, c.Run(r.ID), job.Running, job.NoReason)
		if got := states(t, c, r.ID); got != "a:succeeded b:held(job_paused)" {
			t.Errorf("rows: %s", got)
		}
		must(t, c.Control.ResumeJob(context.Background(), j.ID))
		c.Term().ScheduleChanged()
		time.Sleep(10 * time.Second)
		expectState(t, c.Run(r.ID), job.Succeeded, job.NoReason)
		expectOnce(t, c)
	})
}

func TestGraphsOverlap(t *testing.T) {
	for policy, want := range map[string]int{"skip": 2, "queue": 3, "replace": 6} {
		t.Run(policy, func(t *testing.T) {
			in(t, func(t *testing.T, c *clustertest.Core) {
				w := &crew{does: map[string]clustertest.Behaviour{"a": clustertest.Succeed(20 * time.Second)}}
				c.Workers.Add(worker("w", 10), w.work)
				j := c.Apply("name: long\nschedule: {cron: '@every 10s'}\noverlap: " + policy + "\n" + graph("a", "b<a"))
				time.Sleep(64 * time.Second)
				n := 0
				for _, k := range c.Ticks(j) {
					if k.Disposition == job.TickRun {
						n++
					}
				}
				if n < want {
					t.Errorf("%d runs of ticks, want at least %d", n, want)
				}
				live := 0
				for _, r := range c.RunsOf(j) {
					if r.State == job.Running {
						live++
					}
				}
				if live > 1 {
					t.Errorf("%d roots are open at once", live)
				}
			})
		})
	}
}

func TestJobsAfterJobs(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		w := &crew{}
		c.Workers.Add(worker("w", 10), w.work)
		a := c.Apply("{name: a, exec: {command: [work]}}")
		b := c.Apply("name: b\n" + graph("x", "y<x"))
		z := c.Apply("{name: z, depends_on: [{job: a}, {job: b}], exec: {command: [work]}}")
		c.Submit(job.Submission{Job: "a"}, a)
		time.Sleep(10 * time.Second)
		if runs := c.RunsOf(z); len(runs) != 0 {
			t.Fatalf("z has %d runs before b has ended", len(runs))
		}
		of := c.Submit(job.Submission{Job: "b"}, b)
		time.Sleep(4 * time.Second) // less than the look at all takes, or the hint is of no use
		runs := c.RunsOf(z)
		if len(runs) != 1 {
			t.Fatalf("z has %d runs", len(runs))
		}
		if u := runs[0].Upstreams; runs[0].Trigger != job.ByDependency || len(u) != 2 || u[1].RunID != of.ID {
			t.Errorf("%s by %+v", runs[0].Trigger, u)
		}
		time.Sleep(time.Minute)
		if n := len(c.RunsOf(z)); n != 1 {
			t.Errorf("%d runs of z a minute later", n)
		}
		expectState(t, c.RunsOf(z)[0], job.Succeeded, job.NoReason)
	})
}
