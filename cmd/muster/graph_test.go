package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

// drawing is a run that is drawn in tests, beginning at noon.
type drawing struct {
	name string
	run  *client.RunWithTasks
}

func taskID(n byte) job.RunID { return job.MakeRunID(noon, [10]byte{8: 1, 9: n}) }

// done is a task that was queued and ran for so many seconds after noon.
func done(name string, state job.State, queued, started, finished int, after ...string) client.TaskRun {
	at := func(s int) job.Instant { return job.At(noon.Add(time.Duration(s) * time.Second)) }
	return client.TaskRun{Name: name, DependsOn: after, State: state, ID: taskID(byte(len(name))), Attempt: 1, Worker: "w1",
		QueuedAt: at(queued), StartedAt: at(started), FinishedAt: at(finished)}
}

func waits(name string, after ...string) client.TaskRun {
	return client.TaskRun{Name: name, DependsOn: after, State: job.Waiting, Reason: job.Dependencies}
}

func with(t client.TaskRun, change func(*client.TaskRun)) client.TaskRun {
	change(&t)
	return t
}

func drawn(state job.State, seconds int, tasks ...client.TaskRun) *client.RunWithTasks {
	r := &client.RunWithTasks{Run: job.Run{ID: job.MakeRunID(noon, [10]byte{9: 1}), Namespace: "default", Job: "graph", JobVersion: 1, State: state,
		Trigger: job.ByAPI, Home: job.HomeQuorum, CreatedAt: job.At(noon), QueuedAt: job.At(noon), StartedAt: job.At(noon)}, Tasks: tasks}
	if state.Terminal() {
		r.FinishedAt = job.At(noon.Add(time.Duration(seconds) * time.Second))
	}
	return r
}

func drawings() []drawing {
	long := strings.Repeat("a-very-long-name", 8) // 128 characters
	fan := []client.TaskRun{done("split", job.Succeeded, 0, 1, 3)}
	var names []string
	for i := range 100 {
		name := fmt.Sprintf("part-%02d", i)
		names = append(names, name)
		fan = append(fan, done(name, job.Succeeded, 3, 3+i/10, 13+i/10, "split"))
	}
	fan = append(fan, done("join", job.Succeeded, 22, 22, 30, names...))
	var comb, chain []client.TaskRun
	for i := range 12 {
		var after []string
		if i > 0 {
			after = []string{fmt.Sprintf("step-%02d", i-1)}
		}
		comb = append(comb, done(fmt.Sprintf("step-%02d", i), job.Succeeded, i, i, i+1, after...))
		comb = append(comb, done(fmt.Sprintf("tooth-%02d", i), job.Succeeded, i+1, i+1, i+2, fmt.Sprintf("step-%02d", i)))
	}
	for i := range 20 {
		var after []string
		if i > 0 {
			after = []string{fmt.Sprintf("link-%02d", i-1)}
		}
		chain = append(chain, done(fmt.Sprintf("link-%02d", i), job.Succeeded, i, i, i+1, after...))
	}
	return []drawing{
		{"no tasks", drawn(job.Succeeded, 5)},
		{"one task", drawn(job.Succeeded, 5, done("only", job.Succeeded, 0, 1, 5))},
		{"chain", drawn(job.Succeeded, 20, chain...)},
		{"diamond", drawn(job.Succeeded, 90, done("extract", job.Succeeded, 0, 1, 11), done("clean", job.Succeeded, 11, 12, 30, "extract"),
			done("enrich", job.Succeeded, 11, 20, 70, "extract"), done("load", job.Succeeded, 70, 71, 90, "clean", "enrich"))},
		{"wide fan", drawn(job.Succeeded, 30, fan...)},
		{"comb", drawn(job.Succeeded, 14, comb...)},
		{"parts that are not connected", drawn(job.Succeeded, 10, done("a", job.Succeeded, 0, 0, 4), done("x", job.Succeeded, 0, 1, 9), done("b", job.Succeeded, 4, 4, 6, "a"),
			done("c", job.Succeeded, 4, 5, 6, "a"), done("y", job.Succeeded, 9, 9, 10, "x"))},
		{"what went wrong", drawn(job.Failed, 60,
			with(done("fetch", job.Failed, 0, 10, 40), func(t *client.TaskRun) {
				t.Reason, t.Attempt, t.ExitCode, t.Error, t.Worker = job.ExitCode, 3, 7, "the command exited with code 7 \x1b[2J after it had said a lot about why it could not do what was asked", "w\x1b[31m2"
			}),
			with(waits("parse", "fetch"), func(t *client.TaskRun) {
				t.State, t.Reason, t.ID = job.Skipped, job.UpstreamFailed, taskID(2)
				t.FinishedAt = job.At(noon.Add(40 * time.Second))
			}),
			with(done("probe", job.Failed, 0, 1, 2), func(t *client.TaskRun) { t.Reason, t.ExitCode, t.AllowFailure = job.TimedOut, 143, true }),
			with(done("stopped", job.Cancelled, 0, 5, 6), func(t *client.TaskRun) { t.Reason = job.CancelRequested }),
			done("alarm", job.Succeeded, 41, 42, 60, "fetch", "probe", "stopped"),
			with(waits("forgotten"), func(t *client.TaskRun) { t.State, t.Reason = 0, 0 }))},
		{"reused, items and children", drawn(job.Running, 0,
			with(done("extract", job.Succeeded, -3600, -3600, -3590), func(t *client.TaskRun) { t.ReusedFrom = taskID(9) }),
			with(done("resize", job.Running, 5, 5, 0, "extract"), func(t *client.TaskRun) {
				t.ForEach, t.FinishedAt, t.Worker, t.Attempt = "tasks.extract.result", 0, "", 0
				t.Items = &client.ItemCounts{Total: 12, Queued: 1, Running: 2, Succeeded: 4, Failed: 1, Cancelled: 1}
			}),
			with(done("child", job.Running, 5, 8, 0, "extract"), func(t *client.TaskRun) {
				t.RunJob, t.ChildID, t.FinishedAt, t.Worker = "thumbnails", taskID(7), 0, ""
			}),
			with(waits("sibling"), func(t *client.TaskRun) {
				t.RunJob, t.State, t.Reason = "other", job.Queued, 0
				t.QueuedAt = job.At(noon)
			}),
			with(waits("again"), func(t *client.TaskRun) {
				t.State, t.Reason, t.Attempt = job.Scheduled, job.RetryBackoff, 2
				t.QueuedAt, t.StartedAt = job.At(noon.Add(20*time.Second)), job.At(noon.Add(15*time.Second))
			}),
			waits("report", "resize", "child"))},
		{"just born", drawn(job.Queued, 0, waits("a"), waits("b", "a"))},
		{"long names", drawn(job.Running, 0, done(long, job.Succeeded, 0, 0, 1), waits(long[:127]+"b", long), waits("short", long[:127]+"b", long))},
	}
}

// Every task stands in the tree once, with what it comes after above it or beside its name.
func TestTaskTree(t *testing.T) {
	t.Parallel()
	var all strings.Builder
	for _, d := range drawings() {
		if len(d.run.Tasks) == 0 {
			continue
		}
		var b strings.Builder
		taskTree(&b, false, d.run, job.At(noon.Add(time.Minute)))
		fmt.Fprintf(&all, "# %s\nTasks: %s\n%s\n", d.name, taskCounts(d.run.Tasks), b.String())
		for i := range d.run.Tasks {
			if n := strings.Count(b.String(), d.run.Tasks[i].Name+" "); n < 1 {
				t.Errorf("%s: the task %s is missing", d.name, d.run.Tasks[i].Name)
			}
		}
		if rows := strings.Count(b.String(), "\n") - 1; rows != len(d.run.Tasks) {
			t.Errorf("%s: %d rows for %d tasks", d.name, rows, len(d.run.Tasks))
		}
		if strings.Contains(b.String(), "\x1b") {
			t.Errorf("%s: lets through what moves a terminal: %q", d.name, b.String())
		}
	}
	golden(t, "tree.txt", all.String())
}

func TestGantt(t *testing.T) {
	t.Parallel()
	var all strings.Builder
	for _, d := range drawings() {
		for _, columns := range []int{80, 120} {
			var b strings.Builder
			gantt(&b, false, d.run, job.At(noon.Add(time.Minute)), columns)
			if columns == 80 {
				fmt.Fprintf(&all, "# %s\n%s\n", d.name, b.String())
			}
			for line := range strings.Lines(b.String()) {
				if n := columnsOf(strings.TrimSuffix(line, "\n")); n > columns {
					t.Errorf("%s: a line of %d columns, more than %d: %s", d.name, n, columns, line)
				}
			}
		}
	}
	golden(t, "gantt.txt", all.String())
}

// With colours nothing else is said than without.
func TestDrawingsInColour(t *testing.T) {
	t.Parallel()
	for _, d := range drawings() {
		for what, draw := range map[string]func(*strings.Builder, bool){
			"tree":  func(b *strings.Builder, color bool) { taskTree(b, color, d.run, job.At(noon)) },
			"gantt": func(b *strings.Builder, color bool) { gantt(b, color, d.run, job.At(noon), 100) },
		} {
			var plain, coloured strings.Builder
			draw(&plain, false)
			draw(&coloured, true)
			var without strings.Builder
			for line := range strings.Lines(coloured.String()) {
				without.WriteString(clean(strings.TrimSuffix(line, "\n")) + "\n")
			}
			if without.String() != plain.String() {
				t.Errorf("%s of %s:\n%s\nin colours:\n%s", what, d.name, plain.String(), without.String())
			}
		}
	}
}

// Whatever the graph, the tree has everything once, below the last of what comes before it.
func TestTreeOfAnyGraph(t *testing.T) {
	t.Parallel()
	for seed := range 200 {
		next := uint64(seed)*0x9e3779b97f4a7c15 + 1
		random := func(n int) int {
			next ^= next << 13
			next ^= next >> 7
			next ^= next << 17
			return int(next % uint64(n))
		}
		vertices := make([]vertex, 1+random(40))
		for i := range vertices {
			vertices[i].name = fmt.Sprintf("t%d", i)
			for up := range i {
				if random(len(vertices)) < 3 {
					vertices[i].after = append(vertices[i].after, fmt.Sprintf("t%d", up))
				}
			}
		}
		place := map[string]int{}
		lines := drawTree(vertices)
		for at, line := range lines {
			v := vertices[line.vertex]
			if _, twice := place[v.name]; twice {
				t.Fatalf("seed %d: %s stands twice", seed, v.name)
			}
			place[v.name] = at
			want := len(v.after)
			if line.below {
				want--
			}
			if len(line.after) != want {
				t.Fatalf("seed %d: %s comes after %v; the tree says %v besides, below is %t", seed, v.name, v.after, line.after, line.below)
			}
		}
		if len(lines) != len(vertices) {
			t.Fatalf("seed %d: %d lines for %d vertices", seed, len(lines), len(vertices))
		}
	}
	// No document holds a circle, but a node may say anything.
	if lines := drawTree([]vertex{{"a", []string{"b"}}, {"b", []string{"a"}}, {"c", []string{"b", "nobody"}}}); len(lines) != 3 {
		t.Errorf("of a circle: %v", lines)
	}
}

const graphedJob = `name: etl
tasks:
  - {name: extract, retry: {max_attempts: 3}, exec: {command: [/usr/bin/extract, --day, "yes \"really\" \\ # ; | [x]"]}}
  - {name: probe, allow_failure: true, http: {method: GET, url: "https://example.com/?a=1&b=<2>"}}
  - {name: resize, depends_on: [extract], for_each: "tasks.extract.result.files", max_parallel: 4, handler: {name: resize}}
  - {name: child, depends_on: [extract, probe], run_if: all_done, when: "tasks.extract.result.name == \"a;b#c\\\\\" && run.labels['x'] != '<&>'", run_job: {job: thumbnails}}
  - {name: graph, depends_on: [resize, child], run_if: none_failed, exec: {command: [end]}}
  - {name: end, depends_on: [graph], exec: {command: [subgraph]}}
`

func graphOf(t *testing.T, doc string, edges ...job.Dependency) *jobGraph {
	t.Helper()
	d, err := job.ParseDocument([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	return &jobGraph{Job: d.Name, Tasks: d.Tasks, Edges: edges}
}

func TestJobGraphs(t *testing.T) {
	t.Parallel()
	plain := "name: etl\nexec: {command: [x]}\n"
	edges := []job.Dependency{
		{Job: "etl", Upstream: "load", On: job.OnSuccess}, {Job: "load", Upstream: "fetch", On: job.OnDone}, {Job: "etl", Upstream: "fetch", On: job.OnSuccess},
		{Job: "mail", Upstream: "etl", On: job.OnFailure}, {Job: "report", Upstream: "etl", On: job.OnSuccess}, {Job: "mail", Upstream: "report", On: job.OnDone},
	}
	var all strings.Builder
	for _, c := range []struct {
		name string
		g    *jobGraph
	}{
		{"tasks", graphOf(t, graphedJob)}, {"jobs", graphOf(t, plain, edges...)}, {"both", graphOf(t, graphedJob, edges...)}, {"neither", graphOf(t, plain)},
	} {
		var b strings.Builder
		c.g.text(&b, false)
		b.WriteString("\n")
		c.g.mermaid(&b)
		b.WriteString("\n")
		c.g.dot(&b)
		fmt.Fprintf(&all, "# %s\n%s\n", c.name, b.String())
	}
	golden(t, "graph.txt", all.String())
}

// graphNode is a node that knows a few jobs, and one run with tasks.
func graphNode(t *testing.T) (w world, asked *lockedBuffer) {
	t.Helper()
	asked = new(lockedBuffer)
	at := func(d time.Duration) job.Instant { return job.At(noon.Add(d)) }
	documents := map[string]string{"etl": strings.Replace(graphedJob, "tasks:", "depends_on: [load, {job: fetch, on: done}]\ntasks:", 1),
		"load": "name: load\ndepends_on: [fetch]\nexec: {command: [x]}\n", "fetch": "name: fetch\nexec: {command: [x]}\n", "mail": "name: mail\ndepends_on: [{job: etl, on: failure}]\nexec: {command: [x]}\n"}
	answers := map[string]any{}
	var edges []job.Dependency
	for _, name := range sortedKeys(documents) {
		d, err := job.ParseDocument([]byte(documents[name]))
		if err != nil {
			t.Fatal(err)
		}
		answers["/v1/jobs/"+name] = job.Job{ID: job.MakeJobID(noon, [10]byte{1}), Namespace: "default", Name: name, Version: 2, Spec: d, Effective: true, UpdatedAt: at(-time.Hour)}
		for _, e := range d.DependsOn {
			edge := job.Dependency{Job: name, Upstream: e.Job, On: e.On}
			if e.Job == "fetch" {
				edge.SatisfiedBy, edge.SatisfiedAt, edge.Coalesced = taskID(5), at(-time.Minute), 2
			}
			edges = append(edges, edge)
		}
	}
	for name := range documents {
		d := client.Dependencies{Upstreams: []job.Dependency{}, Dependents: []job.Dependency{}}
		for _, e := range edges {
			if e.Job == name {
				d.Upstreams = append(d.Upstreams, e)
			}
			if e.Upstream == name {
				d.Dependents = append(d.Dependents, e)
			}
		}
		answers["/v1/jobs/"+name+"/dependencies"] = d
	}
	run := drawings()[8].run
	run.Upstreams = []job.UpstreamRun{{Job: "fetch", RunID: taskID(3), Coalesced: 2}, {Job: "load", RunID: taskID(4)}}
	run.RetryOf, run.ReusedFrom = taskID(2), taskID(2)
	id := run.ID.String()
	answers["/v1/runs/"+id] = run
	answers["/v1/runs/"+id+"/explain"] = client.Explanation{RunID: run.ID, State: job.Waiting, Reason: job.Dependencies, Explanation: []string{"It waits for resize."}}
	answers["/v1/runs/"+id+"/retry"] = job.Run{ID: taskID(6), RetryOf: run.ID, State: job.Queued, Home: job.HomeQuorum, Trigger: job.ByRetry}
	item := job.Run{ID: job.TaskRunID(run.ID, "resize", 3), RootID: run.ID, Namespace: "default", Job: "graph", JobVersion: 1, Task: "resize", Item: 3, State: job.Succeeded,
		Trigger: job.ByParent, Home: job.HomeQuorum, CreatedAt: at(0), Result: json.RawMessage(`{"n":1}`)}
	answers["/v1/runs/"+item.ID.String()] = item
	answers["/v1/runs"] = map[string]any{"items": []job.Run{item}}
	ended := drawings()[7].run
	ended.ID = taskID(42)
	answers["/v1/runs/"+ended.ID.String()] = ended
	answers["/v1/runs/"+taskID(43).String()] = job.Run{ID: taskID(43), RootID: run.ID, Task: "resize", Items: 12, State: job.Running, Home: job.HomeQuorum, Trigger: job.ByParent}
	answers["/v1/runs/"+taskID(44).String()] = job.Run{ID: taskID(44), RootID: run.ID, Task: "extract", ReusedFrom: taskID(45), State: job.Succeeded, Home: job.HomeQuorum, Trigger: job.ByParent}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodDelete && r.URL.Path == "/v1/jobs/load" {
			w.WriteHeader(http.StatusConflict)
			fmt.Fprint(w, `{"code":"conflict","reason":"has_dependents","detail":"the job load is upstream of etl; remove it from their depends_on or delete them first; or delete it with detach=true, which gives each of them a version without it"}`)
			return
		}
		if strings.HasSuffix(r.URL.Path, "/logs") {
			return // nothing was written
		}
		body := make([]byte, 256)
		n, _ := r.Body.Read(body)
		q := r.URL.Query()
		q.Del("namespace")
		fmt.Fprintf(asked, "%s %s?%s %s\n", r.Method, r.URL.Path, q.Encode(), body[:n])
		a, ok := answers[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprintf(w, `{"code":"not_found","detail":"there is no %s"}`, r.URL.Path)
			return
		}
		if err := json.NewEncoder(w).Encode(a); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(s.Close)
	return world{now: noon.Add(time.Minute), env: []string{"MUSTER_ADDRESS=" + s.URL}}, asked
}

func TestGraphCommands(t *testing.T) {
	t.Parallel()
	w, asked := graphNode(t)
	id, items, reused := drawings()[8].run.ID.String(), taskID(43).String(), taskID(44).String()
	var all strings.Builder
	for _, line := range []string{
		"run show " + id, "run show " + id + " --gantt", "run show " + id + " --task resize --item 3", "run show " + id + " --task nobody", "run show " + id + " --task resize --item 13", "run show " + id + " --task resize --item 12",
		"run show " + id + " --task report", "run logs " + id + " --task extract --item 1", "run logs " + id + " --task resize --item 0", "run logs " + id, "run logs " + items, "run logs " + reused,
		"run explain " + id + " --task report",
		"run list --root " + id + " --task resize", "job show etl", "job show fetch", "job graph etl", "job graph load -o mermaid", "job graph mail -o dot", "job graph nobody",
		"run retry " + id, "run retry " + id + " --all", "run logs -f " + taskID(42).String(), "job delete load", "run list --task a", "run show " + id + " --item 3",
	} {
		r := w.muster(t, strings.Fields(line)...)
		fmt.Fprintf(&all, "$ muster %s\n%s", line, r.out)
		for l := range strings.Lines(r.err) {
			all.WriteString("stderr: " + l)
		}
		if r.code != 0 {
			fmt.Fprintf(&all, "exit code %d\n", r.code)
		}
		all.WriteByte('\n')
	}
	golden(t, "graphs.txt", all.String())

	var r client.RunWithTasks
	if err := json.Unmarshal([]byte(w.must(t, "run", "show", id, "-o", "json")), &r); err != nil || len(r.Tasks) != 6 || r.Tasks[1].Items.Total != 12 {
		t.Errorf("as JSON: %v, %+v", err, r)
	}
	var g struct {
		Tasks []job.Task
		Edges []job.Dependency
	}
	if err := json.Unmarshal([]byte(w.must(t, "job", "graph", "etl", "-o", "json")), &g); err != nil || len(g.Tasks) != 6 || len(g.Edges) != 4 {
		t.Errorf("as JSON: %v, %+v", err, g)
	}
	if text, table := w.must(t, "job", "graph", "etl", "-o", "text"), w.must(t, "job", "graph", "etl"); text != table {
		t.Errorf("-o text: %s", text)
	}
	if r := w.muster(t, "job", "show", "etl", "-o", "mermaid"); r.code != exitUsage {
		t.Errorf("another command as mermaid: %+v", r)
	}
	if r := w.muster(t, "job", "delete", "fetch", "--detach"); r.code != exitOK || !strings.Contains(asked.String(), "DELETE /v1/jobs/fetch?detach=true") {
		t.Errorf("detaching: %+v", r)
	}
	for _, want := range []string{"POST /v1/runs/" + id + "/retry? \n", `"scope":"all"`, "root_id=" + id + "&task=resize", "/explain?task=report"} {
		if !strings.Contains(asked.String(), want) {
			t.Errorf("nobody asked %q:\n%s", want, asked.String())
		}
	}
	for args, want := range map[string]string{
		"list --root " + id + " --task ": "resize\n", "show " + id + " --task ": "report\n",
	} {
		if out := w.must(t, append(append([]string{"__complete", "run"}, strings.Fields(args)...), "")...); !strings.Contains(strings.ReplaceAll(out, "\t", "\n"), want) {
			t.Errorf("completion of run %s: %s", args, out)
		}
	}
	if out := w.must(t, "__complete", "job", "graph", "etl", "-o", ""); !strings.Contains(out, "mermaid\n") {
		t.Errorf("completion of forms: %s", out)
	}
}

// What docs/dags.md shows is taken as it stands.
func TestDocumentedGraphs(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/dags.md")
	if err != nil {
		t.Fatal(err)
	}
	var documents []string
	within := false
	for line := range strings.Lines(string(page)) {
		text, indented := strings.CutPrefix(line, "    ")
		switch {
		case indented && strings.HasPrefix(text, "name: "):
			documents = append(documents, text)
			within = true
		case indented && within:
			documents[len(documents)-1] += text
		default:
			within = false
		}
	}
	if len(documents) < 4 {
		t.Errorf("%d documents; are they still indented by four?", len(documents))
	}
	w := world{now: noon, stdin: strings.Join(documents, "---\n")}
	w.must(t, "validate", "-f", "-")
	for _, line := range strings.Split(string(page), "\n") {
		if args, ok := strings.CutPrefix(line, "    muster "); ok {
			args, _, _ = strings.Cut(args, "#")
			if r := w.muster(t, append(strings.Fields(args), "--help")...); r.code != exitOK {
				t.Errorf("muster %s: %s", args, r.err)
			}
		}
	}
}
