package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

// The examples are tried as their readers try them.

func TestExamplesAreValid(t *testing.T) {
	t.Parallel()
	w := world{now: noon}
	golden(t, "examples.txt", w.must(t, "validate", "-f", "../../examples"))
	readme, err := os.ReadFile("../../examples/README.md")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir("../../examples")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "README.md" && !bytes.Contains(readme, []byte("["+e.Name())) {
			t.Errorf("examples/README.md says nothing of %s", e.Name())
		}
	}
}

func TestExamples(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	t.Run("heartbeat", func(t *testing.T) {
		t.Parallel()
		n.must(t, "apply", "-f", "../../examples/heartbeat.yaml")
		look, late := time.NewTicker(50*time.Millisecond), time.After(30*time.Second)
		defer look.Stop()
		var ids []string
		for len(ids) == 0 { // until it ticks by itself
			select {
			case <-look.C:
			case <-late:
				t.Fatal("no tick in 30 s")
			}
			ids = strings.Fields(n.must(t, "run", "list", "--job", "heartbeat", "-o", "name"))
		}
		r := n.muster(t, "run", "logs", "-f", ids[len(ids)-1])
		if r.code != exitOK || r.out != "still alive\n" {
			t.Errorf("%+v", r)
		}
		n.must(t, "job", "verify", "heartbeat")
	})
	t.Run("nightly-load", func(t *testing.T) {
		t.Parallel()
		n.must(t, "apply", "-f", "../../examples/nightly-load.yaml")
		if r := n.muster(t, "job", "run", "nightly-load", "--follow"); r.code != exitOK || !strings.HasPrefix(r.out, "loading for the run planned at ") {
			t.Errorf("%+v", r)
		}
	})
	t.Run("http-check", func(t *testing.T) {
		t.Parallel()
		text, err := os.ReadFile("../../examples/http-check.yaml")
		if err != nil {
			t.Fatal(err)
		}
		here := strings.Replace(string(text), "http://127.0.0.1:8080", n.url, 1) // this node has another port
		n.must(t, "apply", "-f", fileWith(t, "http-check.yaml", here))
		if out := n.must(t, "job", "run", "http-check", "--wait"); out != `{"status":"ok"}`+"\n" {
			t.Errorf("%q", out)
		}
	})
	t.Run("retrying", func(t *testing.T) {
		t.Parallel()
		n.must(t, "apply", "-f", "../../examples/retrying.yaml")
		r := n.muster(t, "job", "run", "retrying", "--follow")
		if r.code != exitOK || !strings.Contains(r.out, "this is attempt 3\n") || !strings.Contains(r.err, "succeeded") {
			t.Errorf("%+v", r)
		}
	})
	t.Run("one-off runs", func(t *testing.T) {
		t.Parallel()
		if out := n.must(t, "run", "submit", "--wait", "--", "sh", "-c", `echo "{\"n\": 42}" > $MUSTER_RESULT_FILE`); out != `{"n":42}`+"\n" {
			t.Errorf("%q", out)
		}
		w := n.world
		w.stdin = `{"a": 1}`
		if out := w.must(t, "run", "submit", "--follow", "--payload", "-", "--", "cat"); out != `{"a":1}` {
			t.Errorf("%q", out)
		}
		if out := n.must(t, "run", "submit", "--http", n.url+"/healthz", "--method", "GET", "--wait"); out != `{"status":"ok"}`+"\n" {
			t.Errorf("%q", out)
		}
	})
	t.Run("handlers", func(t *testing.T) {
		t.Parallel()
		startHandlers(t, n)
		n.must(t, "apply", "-f", "../../examples/resize.yaml")
		if out := n.must(t, "job", "run", "resize", "--payload", `{"width": 4000, "height": 3000, "longest": 1200}`, "--wait"); out != `{"width":1200,"height":900}`+"\n" {
			t.Errorf("%q", out)
		}
		r := n.muster(t, "run", "submit", "--handler", "resize", "--payload", `{"width": 40, "height": 30, "longest": 100}`, "--follow")
		if r.code != exitOK || !strings.Contains(r.out, "attempt 1: 40 x 30") {
			t.Errorf("%+v", r)
		}
		r = n.muster(t, "run", "submit", "--handler", "resize", "--payload", `{"width": -1}`, "--retries", "3", "--wait", "-o", "json")
		var run job.Run
		if err := json.Unmarshal([]byte(r.out), &run); err != nil || r.code != exitRunFailed || run.Attempt != 1 {
			t.Errorf("what no retry can mend: %v, %+v", err, r)
		}
		id := submitted(t, n.world, "--handler", "wait", "--payload", `{"seconds": 600}`)
		n.must(t, "run", "cancel", id)
		if r := n.muster(t, "run", "wait", id); r.code != exitRunFailed || !strings.Contains(r.err, "cancelled") {
			t.Errorf("cancelled: %+v", r)
		}
	})
}

// The examples with tasks, and the chain of jobs, end as their heads say.
func TestGraphExamples(t *testing.T) {
	t.Parallel()
	n := startNode(t, "--worker-slots", "8")
	n.must(t, "apply", "-f", "../../examples")

	t.Run("etl", func(t *testing.T) {
		t.Parallel()
		if out := n.must(t, "job", "run", "etl", "--wait"); out != `{"day":"2026-01-31","loaded":162}`+"\n" {
			t.Errorf("%q", out)
		}
		if out := n.must(t, "job", "run", "etl", "--payload", `{"day": "today"}`, "--wait"); out != `{"day":"today","loaded":162}`+"\n" {
			t.Errorf("%q", out)
		}
		r := n.tasksOf(t, n.lastRun(t, "etl"))
		if got := r.states(); got != "extract succeeded, orders succeeded, customers succeeded, load succeeded" {
			t.Error(got)
		}
		if out := n.must(t, "run", "logs", r.ID.String(), "--task", "load"); out != "loading 162 rows\n" {
			t.Errorf("%q", out)
		}
		for _, args := range [][]string{{"run", "show", r.ID.String()}, {"run", "show", r.ID.String(), "--gantt"}, {"job", "graph", "etl"}} {
			if out := n.must(t, args...); !strings.Contains(out, "customers") {
				t.Errorf("%v: %s", args, out)
			}
		}
	})
	t.Run("branch", func(t *testing.T) {
		t.Parallel()
		for _, c := range []struct{ payload, want string }{
			{`{"rows": 1200}`, "count succeeded, in-full succeeded, quick skipped (when_false), publish succeeded, notify failed (exit_code), notify-by-mail succeeded"},
			{`{"rows": 7}`, "count succeeded, in-full skipped (when_false), quick succeeded, publish succeeded, notify failed (exit_code), notify-by-mail succeeded"},
		} {
			n.must(t, "job", "run", "branch", "--payload", c.payload, "--wait")
			r := n.tasksOf(t, n.lastRun(t, "branch"))
			if got := r.states(); got != c.want || r.State != job.Succeeded {
				t.Errorf("%s: %v: %s", c.payload, r.State, got)
			}
			if out := n.must(t, "run", "logs", r.ID.String(), "--task", "notify-by-mail"); out != "mail: published, and the chat is away (exit_code)\n" {
				t.Errorf("%q", out)
			}
		}
		r := n.muster(t, "job", "run", "branch", "--payload", `{"rows": "many"}`, "--wait")
		if got := n.tasksOf(t, n.lastRun(t, "branch")); r.code != exitRunFailed || got.Reason != job.TaskFailed ||
			!strings.HasPrefix(got.states(), "count failed (expression_failed), in-full skipped (upstream_failed), quick skipped (upstream_failed), publish skipped (run_if_false), ") {
			t.Errorf("%+v: %s", r, got.states())
		}
	})
	t.Run("map", func(t *testing.T) {
		t.Parallel()
		want := `[{"file":"north.jpg","number":1},{"file":"east.jpg","number":2},{"file":"south.jpg","number":3},{"file":"west.jpg","number":4}]`
		if out := n.must(t, "job", "run", "map", "--wait"); out != want+"\n" {
			t.Errorf("%q", out)
		}
		r := n.tasksOf(t, n.lastRun(t, "map"))
		if items := r.Tasks[1].Items; r.states() != "find succeeded, resize succeeded, index succeeded" || items == nil || *items != (client.ItemCounts{Total: 4, Succeeded: 4}) {
			t.Errorf("%s, %+v", r.states(), items)
		}
		if ids := strings.Fields(n.must(t, "run", "list", "--root", r.ID.String(), "--task", "resize", "-o", "name")); len(ids) != 5 {
			t.Errorf("the task's run and those of its 4 items: %v", ids)
		}
		if out := n.must(t, "run", "logs", r.ID.String(), "--task", "resize", "--item", "3"); out != "resizing south.jpg\n" {
			t.Errorf("%q", out)
		}
		if out := n.must(t, "run", "logs", r.ID.String(), "--task", "index"); out != `4 pictures: ["north.jpg","east.jpg","south.jpg","west.jpg"]`+"\n" {
			t.Errorf("%q", out)
		}
	})
	t.Run("nightly", func(t *testing.T) {
		t.Parallel()
		if out := n.must(t, "job", "show", "nightly-mail"); strings.Count(out, "not yet") != 2 {
			t.Errorf("before anything ran: %s", out)
		}
		if r := n.muster(t, "job", "delete", "nightly-load"); r.code != exitConflict || !strings.Contains(r.err, "nightly-report") {
			t.Errorf("deleting what others depend on: %+v", r)
		}
		load := strings.TrimSpace(n.must(t, "job", "run", "nightly-load", "-o", "name"))
		n.must(t, "run", "wait", load)
		report := n.firstRun(t, "nightly-report")
		n.must(t, "run", "wait", report)
		mail := n.firstRun(t, "nightly-mail")
		n.must(t, "run", "wait", mail)
		r := n.tasksOf(t, mail)
		if r.Trigger != job.ByDependency || len(r.Upstreams) != 2 || r.Upstreams[0].RunID.String() != load || r.Upstreams[1].RunID.String() != report {
			t.Errorf("%+v", r.Run)
		}
		if out := n.must(t, "run", "show", mail); !strings.Contains(out, "nightly-load: "+load) || !strings.Contains(out, "nightly-report: "+report) {
			t.Errorf("%s", out)
		}
		if out := n.must(t, "job", "graph", "nightly-report"); !strings.Contains(out, "nightly-report (this job)") || !strings.Contains(out, "nightly-load: success, nightly-report: done") {
			t.Errorf("%s", out)
		}
		if ids := strings.Fields(n.must(t, "run", "list", "--job", "nightly-mail", "-o", "name")); len(ids) != 1 {
			t.Errorf("one night, %d mails", len(ids))
		}
	})
	t.Run("retrying what failed", func(t *testing.T) {
		t.Parallel()
		gate := filepath.Join(t.TempDir(), "gate")
		n.must(t, "apply", "-f", fileWith(t, "mend.yaml", `
name: mend
tasks:
  - {name: before, exec: {command: [/bin/sh, -c, 'echo 1 > "$MUSTER_RESULT_FILE"']}}
  - {name: broken, depends_on: [before], exec: {command: [/bin/sh, -c, 'test -e "$0"', `+gate+`]}}
  - {name: after, depends_on: [broken], exec: {command: [/bin/echo, ok]}}
`))
		if r := n.muster(t, "job", "run", "mend", "--wait"); r.code != exitRunFailed {
			t.Errorf("%+v", r)
		}
		first := n.tasksOf(t, n.lastRun(t, "mend"))
		if got := first.states(); got != "before succeeded, broken failed (exit_code), after skipped (upstream_failed)" {
			t.Error(got)
		}
		if err := os.WriteFile(gate, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		id := strings.TrimSpace(n.must(t, "run", "retry", first.ID.String(), "-o", "name"))
		n.must(t, "run", "wait", id)
		second := n.tasksOf(t, id)
		if got := second.states(); got != "before succeeded, broken succeeded, after succeeded" || second.Tasks[0].ReusedFrom != first.Tasks[0].ID {
			t.Errorf("%s; %+v", got, second.Tasks[0])
		}
		id = strings.TrimSpace(n.must(t, "run", "retry", id, "--all", "-o", "name"))
		n.must(t, "run", "wait", id)
		if again := n.tasksOf(t, id); !again.Tasks[0].ReusedFrom.IsZero() || again.State != job.Succeeded {
			t.Errorf("--all: %s; %+v", again.states(), again.Tasks[0])
		}
	})
	t.Run("cancelling a task", func(t *testing.T) {
		t.Parallel()
		n.must(t, "apply", "-f", fileWith(t, "stop.yaml", `
name: stop
tasks:
  - {name: long, allow_failure: true, exec: {command: [/bin/sleep, "600"]}}
  - {name: other, exec: {command: [/bin/echo, ok]}}
`))
		id := strings.TrimSpace(n.must(t, "job", "run", "stop", "-o", "name"))
		n.must(t, "run", "cancel", n.decided(t, id, 0).String())
		n.must(t, "run", "wait", id)
		if got := n.tasksOf(t, id).states(); got != "long cancelled (cancel_requested), other succeeded" {
			t.Error(got)
		}
	})
}

// tasks is a run with its tasks, as -o json has it.
type tasks struct{ client.RunWithTasks }

func (n *node) tasksOf(t *testing.T, id string) (r tasks) {
	t.Helper()
	if err := json.Unmarshal([]byte(n.must(t, "run", "show", id, "-o", "json")), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r tasks) states() string {
	words := make([]string, len(r.Tasks))
	for i, task := range r.Tasks {
		words[i] = task.Name + " " + task.State.String()
		if task.Reason != job.NoReason {
			words[i] += " (" + task.Reason.String() + ")"
		}
	}
	return strings.Join(words, ", ")
}

// lastRun is the newest run of a job.
func (n *node) lastRun(t *testing.T, name string) string {
	t.Helper()
	ids := strings.Fields(n.must(t, "run", "list", "--job", name, "--limit", "1", "-o", "name"))
	if len(ids) != 1 {
		t.Fatalf("%s has no run", name)
	}
	return ids[0]
}

// decided waits until a task of a run has a run of its own.
func (n *node) decided(t *testing.T, id string, task int) job.RunID {
	t.Helper()
	look, late := time.NewTicker(50*time.Millisecond), time.After(30*time.Second)
	defer look.Stop()
	for {
		if r := n.tasksOf(t, id); !r.Tasks[task].ID.IsZero() {
			return r.Tasks[task].ID
		}
		select {
		case <-look.C:
		case <-late:
			t.Fatalf("task %d of the run %s was not decided in 30 s", task, id)
		}
	}
}

// firstRun waits until a job has a run.
func (n *node) firstRun(t *testing.T, name string) string {
	t.Helper()
	look, late := time.NewTicker(50*time.Millisecond), time.After(30*time.Second)
	defer look.Stop()
	for {
		if ids := strings.Fields(n.must(t, "run", "list", "--job", name, "-o", "name")); len(ids) > 0 {
			return ids[len(ids)-1]
		}
		select {
		case <-look.C:
		case <-late:
			t.Fatalf("no run of %s in 30 s", name)
		}
	}
}

// startHandlers builds the example worker and runs it as its reader would.
func startHandlers(t *testing.T, n *node) {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "handlers")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "../../examples/handlers").CombinedOutput(); err != nil {
		t.Fatalf("build examples/handlers: %v\n%s", err, out)
	}
	var logs lockedBuffer
	cmd := exec.Command(binary, "--join", n.url, "--data", t.TempDir())
	cmd.Stdout, cmd.Stderr = &logs, &logs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("examples/handlers: %v\n%s", err, logs.String())
		}
	})
}
