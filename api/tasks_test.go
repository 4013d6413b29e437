package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

const etl = `{"name":"etl","tasks":[
	{"name":"extract","exec":{"command":["true"]},"retry":{"max_attempts":3}},
	{"name":"each","depends_on":["extract"],"for_each":"tasks.extract.result","max_parallel":4,"handler":{"name":"h"}},
	{"name":"child","depends_on":["extract"],"run_job":{"job":"nowhere"},"allow_failure":true},
	{"name":"alarm","depends_on":["extract"],"run_if":"any_failed","exec":{"command":["true"]}},
	{"name":"publish","depends_on":["each","child"],"when":"tasks.child.state == 'succeeded'","exec":{"command":["true"]}}]}`

// open submits a run of the job etl and opens it, as the leader would.
func (b *bench) open(t testing.TB) *job.Run {
	t.Helper()
	if b.call("GET", "/v1/jobs/etl", "").Code == 404 {
		want[job.Job](t, b, 201, "POST", "/v1/jobs", etl) // the job nowhere is looked up when it runs
	}
	r := want[job.Run](t, b, 201, "POST", "/v1/runs", `{"job":"etl"}`)
	return b.change(r.ID, func(r *job.Run) { r.State, r.Attempt, r.StartedAt = job.Running, 1, job.At(testNow) })
}

// change changes a stored run.
func (b *bench) change(id job.RunID, f func(*job.Run)) *job.Run {
	c := *b.runs[id]
	f(&c)
	b.runs[id] = &c
	return &c
}

// bear stores a task run, as the leader would release it.
func (b *bench) bear(root *job.Run, task string, item uint32, state job.State, f ...func(*job.Run)) *job.Run {
	r := &job.Run{ID: job.TaskRunID(root.ID, task, item), RootID: root.ID, Namespace: root.Namespace, JobID: root.JobID, Job: root.Job,
		JobVersion: root.JobVersion, Task: task, Item: item, Trigger: job.ByParent, State: state, CreatedAt: job.At(testNow),
		QueuedAt: job.At(testNow), Home: root.Home, Lane: "default|@exec=|", Payload: json.RawMessage(`"a payload"`)}
	for _, f := range f {
		f(r)
	}
	b.runs[r.ID] = r
	return r
}

func onLeader(r *job.Run) { r.Lane = "default|@leader=|" }

func TestTasksAreReadWithTheirRun(t *testing.T) {
	b := newBench(t)
	root := b.open(t)
	extract := b.bear(root, "extract", 0, job.Succeeded, func(r *job.Run) {
		r.Attempt, r.Worker, r.StartedAt, r.FinishedAt, r.Result = 1, "w", job.At(testNow), job.At(testNow), json.RawMessage(`["a result"]`)
	})
	each := b.bear(root, "each", 0, job.Running, func(r *job.Run) { r.Items = 6; onLeader(r) })
	for item, s := range []job.State{job.Succeeded, job.Failed, job.Queued, job.Queued, job.Scheduled} {
		b.bear(root, "each", uint32(item)+1, s)
	}
	leased := job.TaskRunID(root.ID, "each", 3)
	b.grants[leased] = job.Grant{RunID: leased, Fence: 1 << 32, Attempt: 1, Worker: "w", GrantedAt: job.At(testNow)}
	child := b.bear(root, "child", 0, job.Running, func(r *job.Run) { r.Attempt = 2; onLeader(r) })
	alarm := b.bear(root, "alarm", 0, job.Skipped, func(r *job.Run) { r.Reason = job.RunIfFalse })
	at := job.At(testNow)
	got := want[RunWithTasks](t, b, 200, "GET", "/v1/runs/"+root.ID.String(), "")
	if got.State != job.Running || got.Worker != "" {
		t.Errorf("the root reads %s on %q", got.State, got.Worker)
	}
	if d := cmp.Diff([]TaskRun{
		{Name: "extract", State: job.Succeeded, ID: extract.ID, Attempt: 1, Worker: "w", QueuedAt: at, StartedAt: at, FinishedAt: at},
		{Name: "each", DependsOn: []string{"extract"}, ForEach: "tasks.extract.result", State: job.Running, ID: each.ID, QueuedAt: at,
			Items: &ItemCounts{Total: 6, Queued: 2, Running: 1, Succeeded: 1, Failed: 1}},
		{Name: "child", DependsOn: []string{"extract"}, RunJob: "nowhere", AllowFailure: true, State: job.Running, ID: child.ID, Attempt: 2, QueuedAt: at,
			ChildID: job.ChildRunID(child.ID, 2)},
		{Name: "alarm", DependsOn: []string{"extract"}, RunIf: job.AnyFailed, State: job.Skipped, Reason: job.RunIfFalse, ID: alarm.ID, QueuedAt: at},
		{Name: "publish", DependsOn: []string{"each", "child"}, When: "tasks.child.state == 'succeeded'", State: job.Waiting, Reason: job.Dependencies},
	}, normalised(got.Tasks)); d != "" {
		t.Error(d)
	}
	if w := b.call("GET", "/v1/runs/"+root.ID.String(), ""); strings.Contains(w.Body.String(), "a payload") || strings.Contains(w.Body.String(), "a result") {
		t.Error("payloads and results of tasks are shown")
	}
	// The version is pinned: another one of the job changes nothing.
	want[job.Job](t, b, 200, "PUT", "/v1/jobs/etl", `{"name":"etl","tasks":[{"name":"other","exec":{"command":["true"]}}]}`)
	again := want[RunWithTasks](t, b, 200, "GET", "/v1/runs/"+root.ID.String(), "")
	if d := cmp.Diff(got.Tasks, normalised(again.Tasks)); d != "" {
		t.Errorf("a new version of the job changed the tasks of its run:\n%s", d)
	}
	// With the job its versions go, once no live run needs them; what was decided is still there.
	b.change(root.ID, func(r *job.Run) { r.State = job.Failed })
	clear(b.versions)
	names := ""
	for _, task := range want[RunWithTasks](t, b, 200, "GET", "/v1/runs/"+root.ID.String(), "").Tasks {
		names += task.Name + " " + task.State.String() + " "
	}
	if names != "alarm skipped child running each running extract succeeded " {
		t.Error(names)
	}
	if w := b.call("GET", "/v1/runs/"+extract.ID.String(), ""); w.Code != 200 || strings.Contains(w.Body.String(), `"tasks"`) {
		t.Errorf("a task run: %d %s", w.Code, w.Body)
	}
}

// normalised gives tasks that say the default the form of those that say nothing.
func normalised(tasks []TaskRun) []TaskRun {
	for i := range tasks {
		if tasks[i].RunIf == job.AllSucceeded {
			tasks[i].RunIf = ""
		}
	}
	return tasks
}

func TestTasksThatWereNeverDecided(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		name       string
		state      job.State
		why        job.Reason
		wantState  job.State
		wantReason job.Reason
	}{
		{"a queued root", job.Queued, 0, job.Waiting, job.Dependencies},
		{"an open root", job.Running, 0, job.Waiting, job.Dependencies},
		{"a cancelled root", job.Cancelled, job.CancelRequested, job.Cancelled, job.CancelRequested},
		{"a root that was not opened in time", job.Failed, job.DeadlineExceeded, job.Cancelled, job.DeadlineExceeded},
		// All tasks were decided then: their rows were dropped.
		{"a root that succeeded", job.Succeeded, 0, 0, 0},
		{"a root of which a task failed", job.Failed, job.TaskFailed, 0, 0},
	} {
		root := b.open(t)
		b.change(root.ID, func(r *job.Run) { r.State, r.Reason = c.state, c.why })
		tasks := want[RunWithTasks](t, b, 200, "GET", "/v1/runs/"+root.ID.String(), "").Tasks
		if len(tasks) != 5 {
			t.Fatalf("%s: %d tasks", c.name, len(tasks))
		}
		for _, task := range tasks {
			if task.State != c.wantState || task.Reason != c.wantReason || !task.ID.IsZero() {
				t.Errorf("%s: %+v", c.name, task)
			}
		}
	}
}

func TestTasksOfAnInlineSpec(t *testing.T) {
	b := newBench(t)
	r := want[job.Run](t, b, 201, "POST", "/v1/runs", `{"spec":{"tasks":[{"name":"a","exec":{"command":["true"]}},{"name":"b","depends_on":["a"],"exec":{"command":["true"]}}]},
		"payload":1,"priority":7,"labels":{"l":"m"}}`)
	if r.Priority != 7 || r.Labels["l"] != "m" || string(r.Payload) != "1" || !b.runs[r.ID].LaneKey().OnLeader() {
		t.Errorf("%+v", r)
	}
	got := want[RunWithTasks](t, b, 200, "GET", "/v1/runs/"+r.ID.String(), "")
	if len(got.Tasks) != 2 || got.Tasks[1].Name != "b" || got.Tasks[1].DependsOn[0] != "a" || got.Tasks[0].State != job.Waiting {
		t.Errorf("%+v", got.Tasks)
	}
	batch := want[BatchAnswer](t, b, 200, "POST", "/v1/runs/batch", `{"runs":[{"spec":{"tasks":[{"name":"a","exec":{"command":["true"]}}]}},
		{"spec":{"tasks":[{"name":"a","depends_on":["a"],"exec":{"command":["true"]}}]}},{"spec":{"tasks":[{"name":"a","exec":{"command":["true"]}}]},"delay":"1m"}]}`)
	if batch.Items[0].Run == nil || batch.Items[2].Run.State != job.Scheduled || batch.Items[1].Problem.Field != "runs[1].spec.tasks[0].depends_on" {
		t.Errorf("%+v %+v", batch.Items[0], batch.Items[1].Problem)
	}
}

// Who submits a run brings its id, if he likes: also one that is derived from another run's.
func TestARunUnderTheIDOfATaskIsNotTheTask(t *testing.T) {
	b := newBench(t)
	root := b.open(t)
	id := job.TaskRunID(root.ID, "extract", 0)
	want[job.Run](t, b, 201, "POST", "/v1/runs?namespace=other", fmt.Sprintf(`{"id":%q,"spec":{"exec":{"command":["true"]}}}`, id))
	if task := want[RunWithTasks](t, b, 200, "GET", "/v1/runs/"+root.ID.String(), "").Tasks[0]; task.State != job.Waiting || !task.ID.IsZero() {
		t.Errorf("%+v", task)
	}
}

// A list longer than one read counts says so, rather than counting some.
func TestMoreItemsThanAreCounted(t *testing.T) {
	b := newBench(t)
	root := b.open(t)
	r := b.bear(root, "each", 0, job.Running, func(r *job.Run) { r.Items = 50 })
	for i := range uint32(50) {
		b.bear(root, "each", i+1, job.Queued)
	}
	for left, partial := range map[int]bool{10: true, 50: true, 51: false, maxItemRows: false} {
		task := TaskRun{}
		if err := b.api.countItems(t.Context(), &task, r, &left); err != nil || task.Items.Partial != partial || !partial && task.Items.Queued != 50 {
			t.Errorf("%v %+v", err, task.Items)
		}
	}
}

func TestTasksAreWrittenAsTheirTagsSay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		task := TaskRun{Name: rapid.String().Draw(t, "name")}
		v := reflect.ValueOf(&task).Elem()
		for i := range v.NumField() {
			f, name := v.Field(i), v.Type().Field(i).Name
			if !rapid.Bool().Draw(t, name+" is set") {
				continue
			}
			switch p := f.Addr().Interface().(type) {
			case *[]string:
				*p = rapid.SliceOfN(rapid.String(), 0, 3).Draw(t, name)
			case *bool:
				*p = true
			case **ItemCounts:
				*p = &ItemCounts{Total: 3, Queued: 1, Partial: rapid.Bool().Draw(t, "partial")}
			case *job.State:
				*p = job.State(rapid.IntRange(0, 9).Draw(t, name))
			case *job.Reason:
				*p = job.Reason(rapid.IntRange(0, 40).Draw(t, name))
			case *job.Instant:
				*p = job.Instant(rapid.Int64Range(0, int64(maxInstant)).Draw(t, name))
			case *job.RunID:
				p[0] = 1
			case *uint32:
				*p = rapid.Uint32().Draw(t, name)
			case *int32:
				*p = rapid.Int32().Draw(t, name)
			default:
				if f.Kind() != reflect.String {
					t.Fatalf("TaskRun has grown the field %s: see appendTask too", name)
				}
				f.SetString(rapid.String().Draw(t, name))
			}
		}
		data, err := json.Marshal(&task)
		if err != nil {
			t.Fatal(err)
		}
		var g, w map[string]any
		if err := json.Unmarshal(appendTask(nil, &task), &g); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &w); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(w, g); d != "" {
			t.Fatalf("-json.Marshal +appendTask:\n%s", d)
		}
	})
}

// The client reads what is written, field by field, and writes it again.
func TestTheClientReadsTasks(t *testing.T) {
	b := newBench(t)
	root := b.open(t)
	b.bear(root, "each", 0, job.Failed, func(r *job.Run) {
		r.Items, r.Reason, r.Error, r.ExitCode, r.ReusedFrom, r.Attempt, r.Worker = 2, job.TaskFailed, "e", 3, root.ID, 1, "w"
		r.StartedAt, r.FinishedAt = job.At(testNow), job.At(testNow)
	})
	b.bear(root, "child", 0, job.Queued, func(r *job.Run) { r.Attempt = 1; onLeader(r) })
	answer := b.call("GET", "/v1/runs/"+root.ID.String(), "").Body.Bytes()
	var r client.RunWithTasks
	if err := json.Unmarshal(answer, &r); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(&r)
	if err != nil {
		t.Fatal(err)
	}
	var g, w any
	_, _ = json.Unmarshal(again, &g), json.Unmarshal(answer, &w)
	if d := cmp.Diff(w, g); d != "" {
		t.Errorf("-answered +read:\n%s", d)
	}
}

func TestTaskRunsAreListed(t *testing.T) {
	b := newBench(t)
	root, other := b.open(t), b.open(t)
	for i := range uint32(25) {
		b.bear(root, "each", i+1, job.Queued)
		b.bear(other, "each", i+1, job.Queued)
	}
	b.bear(root, "each", 0, job.Running, func(r *job.Run) { r.Items = 25 })
	b.bear(root, "extract", 0, job.Succeeded)
	leased := job.TaskRunID(root.ID, "each", 3)
	b.grants[leased] = job.Grant{RunID: leased, Fence: 1 << 32, Attempt: 1, Worker: "w", GrantedAt: job.At(testNow)}
	of := "/v1/runs?root_id=" + root.ID.String()
	for path, n := range map[string]int{
		of: 27, of + "&task=each": 26, of + "&task=extract": 1, of + "&task=publish": 0, of + "&task=each&state=running": 2, of + "&task=each&state=queued": 24,
		of + "&task=each&worker=w": 1, of + "&task=extract&worker=w": 0, "/v1/runs?job=etl": 2, "/v1/runs?state=running": 2, of + "&task=each&namespace=other": 0,
	} {
		for _, limit := range []int{1, 7, 100} {
			got, _ := pages(t, b, fmt.Sprintf("%s&limit=%d", path, limit))
			seen := map[job.RunID]bool{}
			for _, id := range got {
				seen[id] = true
			}
			if len(got) != n || len(seen) != n {
				t.Errorf("%s by %d: %d runs, %d different ones, want %d", path, limit, len(got), len(seen), n)
			}
		}
	}
	first := want[page[job.Run]](t, b, 200, "GET", of+"&task=each&limit=1", "")
	refused(t, b, 400, job.Invalid, "cursor", "GET", of+"&task=extract&limit=1&cursor="+first.NextCursor, "")
	refused(t, b, 400, job.Invalid, "task", "GET", "/v1/runs?task=each", "")
	refused(t, b, 400, job.Invalid, "task", "GET", of+"&task=../x", "")
}

func TestRootsAndTaskRunsAreCancelled(t *testing.T) {
	b := newBench(t)
	root := b.open(t)
	r := b.bear(root, "extract", 0, job.Queued)
	if got := want[job.Run](t, b, 202, "POST", "/v1/runs/"+r.ID.String()+"/cancel", ""); got.CancelAt == 0 || b.runs[root.ID].CancelAt != 0 {
		t.Errorf("the task run %v, its root %v", got.CancelAt, b.runs[root.ID].CancelAt)
	}
	if got := want[job.Run](t, b, 202, "POST", "/v1/runs/"+root.ID.String()+"/cancel", ""); got.CancelAt == 0 || got.State != job.Running {
		t.Errorf("the root: %+v", got)
	}
	if d := cmp.Diff([]job.RunID{r.ID, root.ID}, b.cancelled); d != "" {
		t.Error(d)
	}
	e := want[Explanation](t, b, 200, "GET", "/v1/runs/"+root.ID.String()+"/explain", "")
	if !strings.Contains(e.Explanation[0], "when what runs of it has ended") {
		t.Errorf("%q", e.Explanation)
	}
}

func TestRetryOfARunWithTasks(t *testing.T) {
	b := newBench(t)
	ended := func() *job.Run {
		return b.change(b.open(t).ID, func(r *job.Run) { r.State, r.Reason, r.FinishedAt = job.Failed, job.TaskFailed, job.At(testNow) })
	}
	path := func(r *job.Run) string { return "/v1/runs/" + r.ID.String() + "/retry" }
	for body, reuses := range map[string]bool{"": true, `{}`: true, `{"scope":"failed"}`: true, `{"scope":"all"}`: false} {
		r := ended()
		n := want[job.Run](t, b, 201, "POST", path(r), body)
		if n.RetryOf != r.ID || n.JobVersion != r.JobVersion || n.Trigger != job.ByRetry || n.State != job.Queued || (n.ReusedFrom == r.ID) != reuses || n.ReusedFrom.IsZero() == reuses {
			t.Errorf("%q: %+v", body, n)
		}
		// Asked again it is the same run, whoever does not say otherwise.
		for again, status := range map[string]int{"": 200, `{"scope":"failed"}`: 409, `{"scope":"all"}`: 409} {
			if again == body || strings.Contains(again, "failed") && reuses {
				status = 200
			}
			if w := b.call("POST", path(r), again); w.Code != status || !bytes.Contains(w.Body.Bytes(), []byte(n.ID.String())) {
				t.Errorf("%q after %q: %d %s", again, body, w.Code, w.Body)
			}
		}
	}
	r := ended()
	refused(t, b, 400, job.Invalid, "scope", "POST", path(r), `{"scope":"some"}`)
	refused(t, b, 400, job.Invalid, "scpoe", "POST", path(r), `{"scpoe":"all"}`)
	task := b.bear(r, "extract", 0, job.Failed)
	if p := refused(t, b, 409, job.Conflict, "", "POST", path(task), ""); p.Reason != "not_root" || !strings.Contains(p.Detail, r.ID.String()) || !strings.Contains(p.Detail, "scope failed") {
		t.Errorf("%+v", p)
	}
	if p := refused(t, b, 409, job.Conflict, "", "POST", path(b.open(t)), `{"scope":"all"}`); p.Reason != "not_terminal" {
		t.Errorf("%+v", p)
	}
	// A run of one task has nothing to take over.
	b.withJob(t)
	one := want[job.Run](t, b, 201, "POST", "/v1/runs", `{"job":"nightly"}`)
	b.change(one.ID, func(r *job.Run) { r.State, r.FinishedAt = job.Failed, job.At(testNow) })
	first := want[job.Run](t, b, 201, "POST", path(&one), `{"scope":"failed"}`)
	if again := want[job.Run](t, b, 200, "POST", path(&one), `{"scope":"all"}`); again.ID != first.ID || !first.ReusedFrom.IsZero() {
		t.Errorf("%+v, then %+v", first, again)
	}
}

func TestTasksAreExplained(t *testing.T) {
	b := newBench(t)
	root := b.open(t)
	path := "/v1/runs/" + root.ID.String() + "/explain"
	explain := func(task string) string {
		t.Helper()
		q := ""
		if task != "" {
			q = "?task=" + task
		}
		return strings.Join(want[Explanation](t, b, 200, "GET", path+q, "").Explanation, " ")
	}
	b.change(root.ID, func(r *job.Run) { r.State = job.Queued })
	if s := explain("publish"); !strings.Contains(s, "until the run "+root.ID.String()+" has begun") || !strings.Contains(s, "with priority 5") || !strings.Contains(s, "selector") {
		t.Errorf("before the root was opened: %s", s)
	}
	b.change(root.ID, func(r *job.Run) { r.State = job.Running })
	b.bear(root, "extract", 0, job.Succeeded, func(r *job.Run) { r.Worker = "w" })
	each := b.bear(root, "each", 0, job.Running, func(r *job.Run) { r.Items = 2 })
	b.bear(root, "each", 1, job.Failed)
	child := b.bear(root, "child", 0, job.Running, func(r *job.Run) { r.Attempt = 1; onLeader(r) })
	b.bear(root, "alarm", 0, job.Skipped, func(r *job.Run) { r.Reason = job.RunIfFalse })
	for task, wants := range map[string][]string{
		"":        {"consists of other runs", "5 in all: 1 succeeded, 1 skipped, 2 running, 1 waiting.", "each is running, as the run " + each.ID.String(), "publish: it waits for each (running), child (running)."},
		"publish": {"It waits for each (running), child (running)."},
		"each":    {"2 in all: 0 succeeded, 1 failed", "selector"},
		"child":   {"makes the run " + job.ChildRunID(child.ID, 1).String()},
		"alarm":   {"no task before it ended as its run_if asks"},
	} {
		s := explain(task)
		for _, w := range wants {
			if !strings.Contains(s, w) {
				t.Errorf("%q lacks %q: %s", task, w, s)
			}
		}
	}
	made := &job.Run{ID: job.ChildRunID(child.ID, 1), Namespace: "default", Job: "nowhere", State: job.Queued, ParentID: child.ID}
	b.runs[made.ID] = made
	if s := explain("child"); !strings.Contains(s, "of the job nowhere, which is queued") {
		t.Error(s)
	}
	b.change(root.ID, func(r *job.Run) { r.State, r.Reason = job.Cancelled, job.CancelRequested })
	if s := explain("publish"); !strings.Contains(s, "never started") || !strings.Contains(s, "cancelled on request") {
		t.Error(s)
	}
	refused(t, b, 404, job.NotFound, "task", "GET", path+"?task=nothing", "")
	refused(t, b, 400, job.Invalid, "task", "GET", path+"?task=%2e", "")
	refused(t, b, 400, job.Invalid, "task", "GET", "/v1/runs/"+each.ID.String()+"/explain?task=each", "")
}

func TestTheClientSpeaksOfTasks(t *testing.T) {
	b := newBench(t)
	b.chain(t)
	root := b.open(t)
	task := b.bear(root, "extract", 0, job.Failed, func(r *job.Run) { r.Reason = job.ExitCode })
	b.change(root.ID, func(r *job.Run) { r.State, r.Reason, r.FinishedAt = job.Failed, job.TaskFailed, job.At(testNow) })
	server := httptest.NewServer(b.api)
	defer server.Close()
	c, err := client.New(client.Config{Addresses: []string{server.URL}, RetryFor: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := t.Context()
	whole, err := c.RunWithTasks(ctx, root.ID)
	if err != nil || whole.ID != root.ID || whole.Reason != job.TaskFailed || len(whole.Tasks) != 5 || whole.Tasks[0].ID != task.ID || whole.Tasks[0].Reason != job.ExitCode {
		t.Fatalf("%+v %v", whole, err)
	}
	for r, err := range c.Runs(ctx, client.RunFilter{RootID: root.ID, Task: "extract"}) {
		if err != nil || r.ID != task.ID {
			t.Errorf("%+v %v", r, err)
		}
	}
	if e, err := c.ExplainTask(ctx, root.ID, "extract"); err != nil || e.RunID != task.ID || e.Reason != job.ExitCode {
		t.Errorf("%+v %v", e, err)
	}
	if n, err := c.RetryScoped(ctx, root.ID, client.RetryAll); err != nil || !n.ReusedFrom.IsZero() {
		t.Errorf("%+v %v", n, err)
	}
	if _, err := c.RetryScoped(ctx, root.ID, client.RetryFailed); job.AsError(err).Reason != "other_scope" {
		t.Errorf("%v", err)
	}
	if n, err := c.Retry(ctx, root.ID); err != nil || n.RetryOf != root.ID {
		t.Errorf("%+v %v", n, err)
	}
	if d, err := c.Dependencies(ctx, "report"); err != nil || len(d.Upstreams) != 1 || d.Upstreams[0].Upstream != "load" || len(d.Dependents) != 1 || d.Dependents[0].Job != "mail" {
		t.Errorf("%+v %v", d, err)
	}
	if err := c.DeleteJob(ctx, "load", 0); job.AsError(err).Reason != "has_dependents" {
		t.Errorf("%v", err)
	}
	if err := c.DeleteJobDetached(ctx, "load", 1); err != nil {
		t.Error(err)
	}
}

// An explanation stays one that a person can read, however many tasks there are.
func TestAnExplanationOfManyTasksIsShort(t *testing.T) {
	b := newBench(t)
	tasks := []string{`{"name":"t0","exec":{"command":["true"]}}`}
	for i := 1; i < 40; i++ {
		ups := make([]string, i)
		for j := range ups {
			ups[j] = fmt.Sprintf(`"t%d"`, j)
		}
		tasks = append(tasks, fmt.Sprintf(`{"name":"t%d","depends_on":[%s],"exec":{"command":["true"]}}`, i, strings.Join(ups, ",")))
	}
	r := want[job.Run](t, b, 201, "POST", "/v1/runs", `{"spec":{"tasks":[`+strings.Join(tasks, ",")+`]}}`)
	b.change(r.ID, func(r *job.Run) { r.State = job.Running })
	for i := range 20 {
		b.bear(b.runs[r.ID], fmt.Sprintf("t%d", i), 0, job.Queued)
	}
	e := want[Explanation](t, b, 200, "GET", "/v1/runs/"+r.ID.String()+"/explain", "").Explanation
	all := strings.Join(e, "\n")
	if len(e) > maxTaskSentences+5 || !strings.Contains(all, "20 queued, 20 waiting") || !strings.Contains(all, "or have failed: 30.") {
		t.Error(all)
	}
	e = want[Explanation](t, b, 200, "GET", "/v1/runs/"+r.ID.String()+"/explain?task=t39", "").Explanation
	if len(e) != 1 || !strings.HasPrefix(e[0], "It waits for t0 (queued), t1 (queued)") || !strings.HasSuffix(e[0], ", 34 more.") {
		t.Error(e)
	}
}

// Ticks and backfills of a job with tasks are roots like any other.
func TestRunsOfAScheduleHaveTasks(t *testing.T) {
	b := newBench(t)
	j := want[job.Job](t, b, 201, "POST", "/v1/jobs", strings.Replace(etl, `"tasks"`, `"schedule":{"cron":"0 0 * * *"},"deadline":"1h","tasks"`, 1))
	a := want[BatchAnswer](t, b, 200, "POST", "/v1/jobs/etl/backfill", `{"since":"2026-03-08T00:00:00Z","until":"2026-03-10T00:00:00Z"}`)
	if len(a.Items) != 2 {
		t.Fatalf("%+v", a)
	}
	tick := job.BirthOfTick(&job.Tick{JobID: j.ID, Version: 1, ScheduledAt: job.At(testNow), DecidedAt: job.At(testNow), Disposition: job.TickRun}, j.Namespace, j.Name, j.Spec, job.HomeQuorum)
	b.runs[tick.ID] = tick
	for _, id := range []job.RunID{a.Items[0].Run.ID, a.Items[1].Run.ID, tick.ID} {
		r := want[RunWithTasks](t, b, 200, "GET", "/v1/runs/"+id.String(), "")
		if len(r.Tasks) != 5 || r.Tasks[4].State != job.Waiting || r.DeadlineAt == 0 {
			t.Errorf("%+v", r)
		}
	}
}
