package dag

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/musterhq/muster/job"
)

const h = "handler: {name: h}"

// T1: what is decided rests on final rows only, once they all are.
func TestT1Decision(t *testing.T) {
	y := newPlay(t, compiled(t, `- {name: a, `+h+`}
- {name: b, `+h+`}
- {name: c, `+h+`, depends_on: [a, b], priority: 9, selector: {region: eu}}
`), nil)
	y.root.DeadlineAt = start + 1_000_000
	y.g = NewProgress(y.plan, y.root)
	y.step()
	if want := []string{"a queued", "b queued"}; !slices.Equal(y.born, want) {
		t.Fatalf("born %v, want %v", y.born, want)
	}
	y.finish(y.row("a", 0))
	if y.step() {
		t.Fatalf("decided before all upstreams ended: %v", y.born)
	}
	y.finish(y.row("b", 0))
	y.step()
	c := y.row("c", 0)
	if c.State != job.Queued || c.Priority != 9 || c.DeadlineAt != y.root.DeadlineAt || c.Lane != string(job.LaneOf("default", y.plan.Tasks[2].Spec)) || c.JobVersion != 3 {
		t.Errorf("c is %+v", c)
	}
	if a := y.row("a", 0); a.Priority != 4 {
		t.Errorf("a has priority %d, the root has 4", a.Priority)
	}
	if y.run(); y.end.State != job.Succeeded || y.end.StartedAt != start || y.end.Attempt != 1 || y.end.Fence == 0 {
		t.Errorf("the root ended as %+v", y.end)
	}
}

// T2: run_if over how the upstreams ended.
func TestT2RunIf(t *testing.T) {
	const run = "run"
	for _, c := range []struct {
		ends                                      string // of the upstreams
		succeeded, done, anyGood, anyBad, noneBad string
	}{
		{"succeeded succeeded", run, run, run, "run_if_false", run},
		{"succeeded failed", "upstream_failed", run, run, run, "upstream_failed"},
		{"failed failed", "upstream_failed", run, "run_if_false", run, "upstream_failed"},
		{"succeeded cancelled", "upstream_failed", run, run, run, "upstream_failed"},
		{"succeeded skipped", "upstream_skipped", run, run, "run_if_false", run},
		{"skipped skipped", "upstream_skipped", run, "run_if_false", "run_if_false", run},
		{"skipped failed", "upstream_failed", run, "run_if_false", run, "upstream_failed"},
	} {
		for runIf, want := range map[job.RunIf]string{
			job.AllSucceeded: c.succeeded, job.AllDone: c.done, job.AnySucceeded: c.anyGood, job.AnyFailed: c.anyBad, job.NoneFailed: c.noneBad,
		} {
			t.Run(c.ends+" "+string(runIf), func(t *testing.T) {
				ends, doc := map[string]string{}, ""
				for i, how := range strings.Fields(c.ends) {
					when := ""
					if how == "skipped" {
						when = ", when: 'false'"
					}
					doc += fmt.Sprintf("- {name: u%d, %s%s, allow_failure: true}\n", i, h, when)
					ends[fmt.Sprintf("u%d", i)] = how
				}
				y := newPlay(t, compiled(t, doc+"- {name: x, "+h+", depends_on: [u0, u1], run_if: "+string(runIf)+"}\n"), ends).run()
				got := run
				if x := y.row("x", 0); x.State == job.Skipped {
					got = x.Reason.String()
				}
				if got != want || y.end.State != job.Succeeded {
					t.Errorf("x: %s, want %s; the root %s", got, want, y.end.State)
				}
			})
		}
	}
}

// A skip goes on within one Next.
func TestT2SkipCascades(t *testing.T) {
	y := newPlay(t, compiled(t, `- {name: a, `+h+`}
- {name: b, `+h+`, depends_on: [a]}
- {name: c, `+h+`, depends_on: [b]}
- {name: d, `+h+`, depends_on: [c], run_if: all_done}
- {name: e, `+h+`, depends_on: [b, d]}
`), map[string]string{"a": "failed"})
	y.step()
	y.finish(y.row("a", 0))
	y.step()
	want := []string{"a queued", "b skipped upstream_failed", "c skipped upstream_skipped", "d queued"}
	if !slices.Equal(y.born, want) {
		t.Fatalf("born %v, want %v", y.born, want)
	}
	y.run()
	if y.row("e", 0).Reason != job.UpstreamSkipped || y.end.State != job.Failed {
		t.Error(y.states(), y.end.State)
	}
}

// T3: when is judged after run_if.
func TestT3When(t *testing.T) {
	for _, c := range []struct{ name, when, a, want, text string }{
		{"true", "tasks.a.result.n > 1", `succeeded {"n": 2}`, "x succeeded", ""},
		{"false", "tasks.a.result.n > 2", `succeeded {"n": 2}`, "x skipped when_false", ""},
		{"a state", "tasks.a.state == 'succeeded' && run.trigger == 'api'", "", "x succeeded", ""},
		{"no such field", "tasks.a.result.m > 2", `succeeded {"n": 2}`, "x failed expression_failed", "when: no such key: m"},
		{"no bool", "tasks.a.result.n", `succeeded {"n": 2}`, "x failed expression_failed", "when: the condition is a int; make it true or false"},
		{"no result", "tasks.a.result.n > 1", "", "x failed expression_failed", "when: "},
		{"not asked after run_if said no", "tasks.a.result.m", "failed", "x skipped upstream_failed", ""},
		{"has", "has(tasks.a.result.n)", `succeeded {}`, "x skipped when_false", ""},
		{"has no result", "!has(tasks.a.result)", "", "x succeeded", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			y := newPlay(t, compiled(t, "- {name: a, "+h+"}\n- {name: x, "+h+", depends_on: [a], when: \""+c.when+"\"}\n"), map[string]string{"a": c.a}).run()
			if got := y.states(); !strings.HasSuffix(got, c.want) {
				t.Errorf("%s, want %s", got, c.want)
			}
			if x := y.row("x", 0); !strings.Contains(x.Error, c.text) || (c.text == "") != (x.Error == "") {
				t.Errorf("the error is %q, want %q", x.Error, c.text)
			}
		})
	}
}

func TestT3WhenOverErrors(t *testing.T) {
	y := newPlay(t, compiled(t, "- {name: a, "+h+", allow_failure: true}\n- {name: x, "+h+
		", depends_on: [a], run_if: all_done, when: \"tasks.a.reason == 'timed_out' && tasks.a.error.contains('wrong') && tasks.a.state == 'failed'\"}\n"),
		map[string]string{"a": "failed timed_out"}).run()
	if got := y.states(); got != "a failed timed_out, x succeeded" {
		t.Error(got)
	}
}

// T4: a task for each item of a list.
func TestT4ForEach(t *testing.T) {
	many := "succeeded [" + strings.Repeat("1,", job.MaxItems) + "1]"
	for _, c := range []struct {
		name, each, more string
		ends             map[string]string
		want, text, end  string
	}{
		{"three", "tasks.a.result", "", map[string]string{"a": `succeeded [1, {"k": [2]}, null]`, "x/2": "succeeded 7"},
			"x succeeded, x/1 succeeded, x/2 succeeded, x/3 succeeded", "", "succeeded [null,7,null]"},
		{"none", "tasks.a.result", "", map[string]string{"a": "succeeded []"}, "x succeeded", "", "succeeded []"},
		{"one fails", "[1, 2]", "", map[string]string{"x/1": "failed"}, "x failed task_failed, x/1 failed exit_code, x/2 succeeded",
			"1 of 2 items did not succeed; the first is item 1 (exit_code)", "failed"},
		{"one is cancelled", "[1, 2]", "", map[string]string{"x/2": "cancelled"}, "x failed task_failed, x/1 succeeded, x/2 cancelled cancel_requested",
			"the first is item 2 (cancelled)", "failed"},
		{"a failure is allowed", "[1, 2]", ", allow_failure: true", map[string]string{"x": "failed"}, "x failed task_failed, x/1 failed exit_code, x/2 failed exit_code",
			"2 of 2 items", "succeeded [null,null]"},
		{"no list", "tasks.a.result", "", map[string]string{"a": "succeeded {}"}, "x failed expression_failed", "for_each: the expression is a map; make it a list", "failed"},
		{"an error", "tasks.a.result.list", "", map[string]string{"a": "succeeded {}"}, "x failed expression_failed", "for_each: no such key: list", "failed"},
		{"too many", "tasks.a.result", "", map[string]string{"a": many}, "x failed expression_failed", "for_each: the list has 1001 items; the limit is 1000", "failed"},
		{"too large an item", "tasks.a.result.map(i, tasks.a.result)", "", map[string]string{"a": `succeeded ["` + strings.Repeat("x", 40_000) + `","` + strings.Repeat("x", 26_000) + `"]`},
			"x failed expression_failed", "for_each: item 1: the value has more than 65536 bytes", "failed"},
		{"too large a list", "tasks.a.result.s.map(i, tasks.a.result.x)", "", map[string]string{"a": `succeeded {"x": "` + strings.Repeat("x", 60_000) + `", "s": [` + strings.Repeat("1,", 20) + "1]}"},
			"x failed expression_failed", "for_each: the items together have more than 1048576 bytes", "failed"},
		{"a NUL", `['a\\u0000']`, "", nil, "x failed expression_failed", "for_each: item 1: ", "failed"},
		{"not what cannot be JSON", "[timestamp('2026-01-01T00:00:00Z'), duration('90s')]", "", nil, "x succeeded, x/1 succeeded, x/2 succeeded", "", "succeeded"},
		{"nor a map of numbers", "[{1: 2}]", "", nil, "x failed expression_failed", "make its keys texts", "failed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			doc := "name: j\nresult: tasks.x.result\ntasks:\n- {name: a, " + h + "}\n- {name: x, " + h + ", depends_on: [a], for_each: \"" + c.each + "\"" + c.more + "}\n"
			y := newPlay(t, compiled(t, doc), c.ends).run()
			got := strings.TrimPrefix(y.states(), "a succeeded, ")
			if got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
			if x := y.row("x", 0); !strings.Contains(x.Error, c.text) || (c.text == "") != (x.Error == "") {
				t.Errorf("the error is %q, want %q", x.Error, c.text)
			}
			if end := strings.TrimSpace(y.end.State.String() + " " + string(y.end.Result)); !strings.HasPrefix(end, c.end) {
				t.Errorf("the root ended %s, want %s", end, c.end)
			}
		})
	}
}

func TestT4Rows(t *testing.T) {
	y := newPlay(t, compiled(t, "- {name: x, "+h+", for_each: \"[1, {'b': 1, 'a': 'ü'}, 2.5]\", max_parallel: 2}\n"), nil)
	y.step()
	x, one, two := y.row("x", 0), y.row("x", 1), y.row("x", 2)
	if x.State != job.Running || x.Items != 3 || x.StartedAt == 0 || !x.LaneKey().OnLeader() || x.Payload != nil {
		t.Errorf("the task's run is %+v", x)
	}
	if one.State != job.Queued || string(one.Payload) != "1" || string(two.Payload) != `{"a":"ü","b":1}` || one.LaneKey().OnLeader() || one.Items != 0 {
		t.Errorf("the items are %+v and %+v", one, two)
	}
	if len(y.rows) != 3 {
		t.Errorf("more than max_parallel were released: %v", y.born)
	}
	y.run()
	if string(y.row("x", 3).Payload) != "2.5" || y.limits["x"] != 2 || y.end.State != job.Succeeded {
		t.Error(y.limits, y.states())
	}
	if x := y.row("x", 0); x.State != job.Succeeded || x.Result != nil || x.FinishedAt == 0 || x.StartedAt != start {
		t.Errorf("the task's run ended as %+v", x)
	}
}

// T5: the end of the root.
func TestT5End(t *testing.T) {
	fan := ""
	for i := range 8 {
		fan += fmt.Sprintf("- {name: t%d, %s}\n", i, h)
	}
	two := "- {name: a, " + h + "}\n- {name: b, " + h + "}\n"
	for _, c := range []struct {
		name, doc string
		ends      map[string]string
		want      string // state, reason, result
		text      string
	}{
		{"all well", two, nil, "succeeded", ""},
		{"one failed", two, map[string]string{"b": "failed timed_out"}, "failed task_failed", "the task b (timed_out) did not succeed"},
		{"one was cancelled", two, map[string]string{"a": "cancelled"}, "failed task_failed", "the task a (cancelled) did not succeed"},
		{"eight failed", fan, map[string]string{"t0": "failed", "t1": "failed", "t2": "failed", "t3": "cancelled", "t4": "failed", "t5": "failed", "t6": "failed", "t7": "failed"},
			"failed task_failed", "8 tasks did not succeed: t0 (exit_code), t1 (exit_code), t2 (exit_code), t3 (cancelled), t4 (exit_code) and 3 more"},
		{"a failure that is allowed", "- {name: a, " + h + ", allow_failure: true}\n", map[string]string{"a": "failed"}, "succeeded", ""},
		{"skipped", "- {name: a, " + h + ", when: 'false'}\n", nil, "succeeded", ""},
		{"a result", "name: j\nresult: '{\"b\": tasks.b.result, \"a\": tasks.a.state, \"t\": run.job}'\ntasks:\n" + two, map[string]string{"b": "succeeded [1.0]"},
			`succeeded {"a":"succeeded","b":[1],"t":"j"}`, ""},
		{"a result of a skipped task", "name: j\nresult: tasks.a.result\ntasks:\n- {name: a, " + h + ", when: 'false'}\n", nil, "succeeded null", ""},
		{"no result", "name: j\nresult: tasks.b.result.x\ntasks:\n" + two, map[string]string{"b": "succeeded {}"}, "failed expression_failed", "result: no such key: x"},
		{"a result too large", "name: j\nresult: '[tasks.a.result, tasks.a.result]'\ntasks:\n" + two, map[string]string{"a": `succeeded "` + strings.Repeat("x", 40_000) + `"`},
			"failed invalid_result", "result: the value has more than 65536 bytes as JSON"},
		{"a result with NUL", "name: j\nresult: '\"a\\u0000\"'\ntasks:\n" + two, nil, "failed invalid_result", "result: "},
		{"a result that is none", "name: j\nresult: 'b\"abc\"'\ntasks:\n" + two, nil, "failed expression_failed", "result: a value of type bytes cannot be written as JSON"},
	} {
		t.Run(c.name, func(t *testing.T) {
			y := newPlay(t, compiled(t, c.doc), c.ends).run()
			got := y.end.State.String()
			if y.end.Reason != 0 {
				got += " " + y.end.Reason.String()
			}
			if y.end.Result != nil {
				got += " " + string(y.end.Result)
			}
			if got != c.want {
				t.Errorf("ended %s, want %s", got, c.want)
			}
			if !strings.Contains(y.end.Error, c.text) || (c.text == "") != (y.end.Error == "") {
				t.Errorf("the error is %q, want %q", y.end.Error, c.text)
			}
		})
	}
}

// T6: a cancelled root.
func TestT6Cancel(t *testing.T) {
	doc := `- {name: a, ` + h + `}
- {name: x, ` + h + `, for_each: '[1, 2, 3]', max_parallel: 1}
- {name: c, ` + h + `, depends_on: [a]}
`
	cancel := func(y *play) {
		y.g.Cancel()
		y.root.CancelAt = y.now
	}
	t.Run("what is live ends first", func(t *testing.T) {
		y := newPlay(t, compiled(t, doc), map[string]string{"x": "cancelled"})
		y.step()
		cancel(y)
		live := y.g.Live()
		if y.step() || len(live) != 3 || !slices.Contains(live, y.row("x", 1).ID) || !slices.Contains(live, y.row("x", 0).ID) || !slices.Contains(live, y.row("a", 0).ID) {
			t.Fatalf("live are %v; %s", live, y.states())
		}
		y.run()
		if got := y.states(); got != "a succeeded, x cancelled cancel_requested, x/1 cancelled cancel_requested, c -" || y.end.State != job.Cancelled || y.end.Reason != job.CancelRequested {
			t.Error(got, y.end.State, y.end.Reason)
		}
	})
	t.Run("from the root's row", func(t *testing.T) {
		y := newPlay(t, compiled(t, doc), nil)
		y.step()
		n := *y.root
		n.CancelAt, n.CancelReason = y.now, job.OverlapReplaced
		y.root = &n
		y.g.Note(&n)
		if !y.g.Cancelled() {
			t.Fatal("not cancelled")
		}
		y.rebuild()
		y.run()
		if got := y.states(); got != "a succeeded, x cancelled cancel_requested, x/1 succeeded, c -" || y.end.Reason != job.OverlapReplaced {
			t.Error(got, y.end.Reason)
		}
	})
	t.Run("before anything", func(t *testing.T) {
		y := newPlay(t, compiled(t, doc), nil)
		cancel(y)
		y.run()
		if len(y.rows) != 0 || y.end.State != job.Cancelled {
			t.Error(y.states(), y.end.State)
		}
	})
	t.Run("what was not stored is not born", func(t *testing.T) {
		y := newPlay(t, compiled(t, doc), nil)
		y.g.Next(y.now)
		cancel(y)
		y.g.Again()
		if live := y.g.Live(); len(live) != 0 {
			t.Errorf("live are %v", live)
		}
		y.run()
		if len(y.rows) != 0 || y.end.State != job.Cancelled {
			t.Error(y.states(), y.end.State)
		}
	})
	t.Run("one task run concerns that only", func(t *testing.T) {
		y := newPlay(t, compiled(t, doc), map[string]string{"a": "cancelled"}).run()
		if got := y.states(); got != "a cancelled cancel_requested, x succeeded, x/1 succeeded, x/2 succeeded, x/3 succeeded, c skipped upstream_failed" || y.end.State != job.Failed {
			t.Error(got, y.end.State)
		}
	})
	t.Run("a task with items", func(t *testing.T) {
		y := newPlay(t, compiled(t, doc), map[string]string{"x/1": "cancelled"})
		y.step()
		n := *y.row("x", 0)
		n.CancelAt = y.now
		y.rows[n.ID] = &n
		y.g.Note(&n)
		if live := y.g.LiveItems("x"); len(live) != 1 || live[0] != y.row("x", 1).ID {
			t.Errorf("live are %v", live)
		}
		y.run()
		if got := y.states(); got != "a succeeded, x cancelled cancel_requested, x/1 cancelled cancel_requested, c succeeded" || y.end.State != job.Failed {
			t.Error(got, y.end.State)
		}
	})
}

// T7: what comes after the deadline fails, and so does the root.
func TestT7Deadline(t *testing.T) {
	play := func(doc string, after int) *play {
		y := newPlay(t, compiled(t, doc), nil)
		y.root.DeadlineAt = start + job.Instant(after)
		y.g = NewProgress(y.plan, y.root)
		return y.run()
	}
	y := play("- {name: a, "+h+"}\n- {name: b, "+h+", depends_on: [a]}\n- {name: c, "+h+", depends_on: [b]}\n- {name: d, "+h+", depends_on: [a], when: 'false'}\n", 1000)
	if got := y.states(); got != "a succeeded, b failed deadline_exceeded, c skipped upstream_failed, d skipped when_false" || y.end.Reason != job.DeadlineExceeded || y.end.State != job.Failed {
		t.Error(got, y.end.State, y.end.Reason)
	}
	if b := y.row("b", 0); !strings.Contains(b.Error, "deadline") {
		t.Errorf("b says %q", b.Error)
	}
	y = play("- {name: x, "+h+", for_each: '[1, 2, 3]', max_parallel: 1}\n", 1500)
	if got := y.states(); got != "x failed task_failed, x/1 succeeded, x/2 succeeded, x/3 failed deadline_exceeded" || y.end.Reason != job.DeadlineExceeded {
		t.Error(got, y.end.State, y.end.Reason)
	}
	y = play("- {name: a, "+h+"}\n- {name: x, "+h+", depends_on: [a], for_each: '[1, 2, 3]'}\n- {name: e, "+h+", depends_on: [a], for_each: '[]'}\n", 1000)
	if got := y.states(); got != "a succeeded, x failed deadline_exceeded, e succeeded" || y.end.Reason != job.DeadlineExceeded {
		t.Error(got, y.end.State, y.end.Reason)
	}
	if y.row("x", 0).Items != 0 {
		t.Error("a task that was not released has items")
	}
}

// T8: a retry takes over what succeeded.
func TestT8Reuse(t *testing.T) {
	doc := `name: j
result: '[tasks.a.result, tasks.x.result]'
tasks:
- {name: a, ` + h + `}
- {name: s, ` + h + `, depends_on: [a], when: 'false'}
- {name: b, ` + h + `, depends_on: [a]}
- {name: x, ` + h + `, depends_on: [a], for_each: tasks.a.result}
- {name: c, ` + h + `, depends_on: [b]}
- {name: d, ` + h + `, depends_on: [a, s], run_if: all_done}
- {name: e, ` + h + `, depends_on: [x]}
`
	p := compiled(t, doc)
	again := func(first *play, ends map[string]string) *play {
		y := newPlay(t, p, ends)
		y.root.ID[15]++
		y.root.ReusedFrom, y.root.RetryOf = first.root.ID, first.root.ID
		y.old = first.sorted()
		y.rebuild()
		return y
	}
	first := newPlay(t, p, map[string]string{"a": "succeeded [10, 20]", "b": "failed", "x/1": "succeeded 11", "x/2": "failed"}).run()
	second := again(first, map[string]string{"x/2": "succeeded 21"})
	second.crash = true
	second.run()
	want := "a succeeded reused, s skipped when_false, b succeeded, x succeeded, x/1 succeeded reused, x/2 succeeded, c succeeded, d succeeded, e succeeded"
	if got := second.states(); got != want || second.end.State != job.Succeeded || string(second.end.Result) != "[[10,20],[11,21]]" {
		t.Errorf("%s\nwant\n%s, ended %s %s", got, want, second.end.State, second.end.Result)
	}
	if a := second.row("a", 0); a.ReusedFrom != first.row("a", 0).ID || string(a.Result) != "[10, 20]" || a.Attempt != 0 {
		t.Errorf("a is %+v", a)
	}
	if x := second.row("x", 1); string(x.Payload) != "10" || string(x.Result) != "11" || x.ReusedFrom != first.row("x", 1).ID {
		t.Errorf("an item is %+v", x)
	}
	// Of a retry of a retry the row that ran is named, and a list that succeeded wholly counts as reused.
	third := again(second, nil).run()
	want = "a succeeded reused, s skipped when_false, b succeeded reused, x succeeded reused, x/1 succeeded reused, x/2 succeeded reused, c succeeded reused, d succeeded, e succeeded reused"
	if got := third.states(); got != want || string(third.end.Result) != "[[10,20],[11,21]]" {
		t.Errorf("%s\nwant\n%s, ended %s", got, want, third.end.Result)
	}
	if third.row("a", 0).ReusedFrom != first.row("a", 0).ID || third.row("x", 2).ReusedFrom != second.row("x", 2).ID || third.row("x", 0).ReusedFrom != second.row("x", 0).ID {
		t.Error("reused_from does not name the row that ran")
	}
	// What was reused does not come too late.
	late := again(second, nil)
	late.root.DeadlineAt = start
	late.rebuild()
	late.run()
	if got := late.states(); !strings.Contains(got, "c succeeded reused, d failed deadline_exceeded, e succeeded reused") {
		t.Error(got)
	}
}

func TestT8ListOfAnotherLength(t *testing.T) {
	p := compiled(t, "- {name: a, "+h+"}\n- {name: x, "+h+", depends_on: [a], for_each: 'run.labels.n == \"2\" ? [1, 2] : [1]'}\n- {name: e, "+h+", depends_on: [x]}\n")
	first := newPlay(t, p, nil)
	first.root.Labels = map[string]string{"team": "x", "n": "2"}
	first.g = NewProgress(p, first.root)
	first.run()
	y := newPlay(t, p, nil)
	y.root.Labels = map[string]string{"team": "x", "n": "1"}
	y.root.ID[15]++
	y.old = first.sorted()
	y.rebuild()
	if got := y.run().states(); got != "a succeeded reused, x succeeded, x/1 succeeded, e succeeded" {
		t.Error(got)
	}
}

// T9: a task that runs another job is the leader's, as its items are.
func TestT9RunJob(t *testing.T) {
	y := newPlay(t, compiled(t, "- {name: a, run_job: {job: k}}\n- {name: x, run_job: {job: k}, for_each: '[1]'}\n"), nil)
	y.step()
	for _, r := range y.rows {
		if !r.LaneKey().OnLeader() || r.Item+r.Items == 0 && r.State != job.Queued {
			t.Errorf("%s is %s in lane %s", label(r), r.State, r.Lane)
		}
	}
	y.run()
}
