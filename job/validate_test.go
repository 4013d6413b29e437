package job_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/job"
)

func TestValidate(t *testing.T) {
	const h = "\nhandler: {name: h}"
	var labels, env strings.Builder
	for i := range 65 {
		fmt.Fprintf(&labels, "k%d: v, ", i)
	}
	for i := range 5 {
		fmt.Fprintf(&env, "E%d: %s, ", i, strings.Repeat("x", 30_000))
	}
	exec := func(rest string) string { return "name: a\nexec: {command: [/bin/true], " + rest + "}" }
	web := func(rest string) string { return "name: a\nhttp: {url: 'https://example.com/x', " + rest + "}" }
	url := func(u string) string { return "name: a\nhttp: {url: '" + u + "'}" }
	tasks := func(list ...string) string { return "name: a\ntasks:\n- " + strings.Join(list, "\n- ") }
	const name, invalid = "name: a\n", "invalid_field"
	for _, c := range []refusal{
		{"no name", h[1:], "name", invalid, "a job needs a name"},
		{"a name that starts with a dot", "name: .a" + h, "name", invalid, `".a" is not a name`},
		{"a name with a space", "name: a b" + h, "name", invalid, "is not a name"},
		{"a name beyond ASCII", "name: bärs" + h, "name", invalid, "is not a name"},
		{"a name of 129", "name: " + strings.Repeat("a", 129) + h, "name", invalid, "has 129 characters; the limit is 128"},
		{"a description too long", name + "description: " + strings.Repeat("x", 4097) + h, "description", invalid, "the limit is 4096"},
		{"a description with an escape character", name + `description: "\e[31m"` + h, "description", invalid, "cannot be shown"},
		{"65 labels", name + "labels: {" + labels.String() + "}" + h, "labels", invalid, "there are 65 labels; the limit is 64"},
		{"a label's key with a space", name + "labels: {a b: c}" + h, `labels["a b"]`, invalid, "is not a label's key"},
		{"a label's key too long", name + "labels: {" + strings.Repeat("k", 64) + ": c}" + h, "labels." + strings.Repeat("k", 64), invalid, "the limit is 63"},
		{"a label without key", name + "labels: {'': c}" + h, "labels", invalid, "has no key"},
		{"a label's value too long", name + "labels: {k: " + strings.Repeat("v", 257) + "}" + h, "labels.k", invalid, "the limit is 256"},
		{"a label's value with a line break", name + `labels: {k: "a\nb"}` + h, "labels.k", invalid, "cannot be shown"},
		{"a selector like labels", name + `selector: {"a b": c}` + h, `selector["a b"]`, invalid, "is not a label's key"},

		{"no executor", "name: a", "", invalid, "a job needs one of exec, http, handler or tasks; add one"},
		{"two executors", name + "exec: {command: [x]}\nhttp: {url: 'https://example.com'}", "http", invalid, "more than one executor (exec, http)"},
		{"an executor and tasks", tasks("{name: x, handler: {name: h}}") + h, "handler", invalid, "either handler or tasks"},
		{"schedule and depends_on", name + "schedule: {cron: '@daily'}\ndepends_on: [b]" + h, "depends_on", invalid, "not both"},

		{"a schedule without cron", name + "schedule: {time_zone: UTC}" + h, "schedule.cron", invalid, "needs a cron expression"},
		{"a cron expression too long", name + "schedule: {cron: '" + strings.Repeat("*", 257) + "'}" + h, "schedule.cron", invalid, "the limit is 256"},
		{"a time zone that is a path", name + "schedule: {cron: '@daily', time_zone: ../../etc/passwd}" + h, "schedule.time_zone", invalid, "is not a time zone"},
		{"a catch_up that is none", name + "schedule: {cron: '@daily', catch_up: some}" + h, "schedule.catch_up.policy", invalid, `"some" is not known here; use one of none, latest, all`},
		{"catch_up.max beyond", name + "schedule: {cron: '@daily', catch_up: {policy: all, max: 10001}}" + h, "schedule.catch_up.max", invalid, "1 to 10000"},
		{"catch_up.max without all", name + "schedule: {cron: '@daily', catch_up: {max: 5}}" + h, "schedule.catch_up.max", invalid, "policy: all only"},
		{"an end before the start", name + "schedule: {cron: '@daily', start_at: 2026-02-01T00:00:00Z, end_at: 2026-01-01T00:00:00Z}" + h, "schedule.end_at", invalid, "ends before it starts"},

		{"an unknown overlap", name + "overlap: forbid" + h, "overlap", invalid, "use one of allow, skip, queue, replace"},
		{"a negative timeout", name + "timeout: -1s" + h, "timeout", invalid, "is negative"},
		{"a timeout beyond a year", name + "timeout: 8761h" + h, "timeout", invalid, "the limit is 8760h0m0s (one year)"},
		{"a deadline beyond a year", name + "deadline: 8761h" + h, "deadline", invalid, "one year"},
		{"a negative start_deadline", name + "start_deadline: -1s" + h, "start_deadline", invalid, "is negative"},
		{"priority 10", name + "priority: 10" + h, "priority", invalid, "use 0 to 9, 9 first"},
		{"priority -1", name + "priority: -1" + h, "priority", invalid, "use 0 to 9"},
		{"10,001 slots", name + "slots: 10001" + h, "slots", invalid, "use 1 to 10000"},
		{"-1 slots", name + "slots: -1" + h, "slots", invalid, "use 1 to 10000"},
		{"1,001 attempts", name + "retry: {max_attempts: 1001}" + h, "retry.max_attempts", invalid, "use 1 to 1000, counting the first attempt"},
		{"an unknown backoff", name + "retry: {backoff: linear}" + h, "retry.backoff", invalid, "use one of exponential, constant"},
		{"initial over max", name + "retry: {initial: 2m, max: 1m}" + h, "retry.initial", invalid, "longer than the longest"},
		{"an unknown on_worker_lost", name + "on_worker_lost: retry" + h, "on_worker_lost", invalid, "use one of requeue, fail"},
		{"an unknown on_lease_lost", name + "on_lease_lost: wait" + h, "on_lease_lost", invalid, "use one of kill, finish"},
		{"concurrency without key", name + "concurrency: {limit: 3}" + h, "concurrency.key", invalid, "needs a key"},
		{"a concurrency key too long", name + "concurrency: {key: " + strings.Repeat("k", 129) + "}" + h, "concurrency.key", invalid, "the limit is 128"},
		{"a concurrency key with a tab", name + `concurrency: {key: "a\tb"}` + h, "concurrency.key", invalid, "cannot be shown"},
		{"a concurrency limit beyond", name + "concurrency: {key: k, limit: 100001}" + h, "concurrency.limit", invalid, "use 1 to 100000"},
		{"a payload too large", name + "payload: " + strings.Repeat("x", job.MaxPayloadBytes) + h, "payload", "too_large", "the limit is 65536"},

		{"an empty command", "name: a\nexec: {command: []}", "exec.command", invalid, "the command is empty"},
		{"no command", "name: a\nexec: {dir: /srv}", "exec.command", invalid, "the command is empty"},
		{"an empty program", "name: a\nexec: {command: ['', x]}", "exec.command", invalid, "the command is empty"},
		{"a command too long", "name: a\nexec: {command: [x, " + strings.Repeat("y", 128<<10) + "]}", "exec.command", invalid, "the limit is 131072"},
		{"a relative dir", exec("dir: srv"), "exec.dir", invalid, "is not an absolute path"},
		{"a user with a colon", exec("user: 'root:0'"), "exec.user", invalid, "is not a user name"},
		{"a variable that is none", exec("env: {A-B: c}"), "exec.env.A-B", invalid, "is not a variable's name"},
		{"a variable of ours", exec("env: {MUSTER_TOKEN: c}"), "exec.env.MUSTER_TOKEN", invalid, "are set by Muster"},
		{"too much environment", exec("env: {" + env.String() + "}"), "exec.env", invalid, "the limit is 131072"},
		{"an env file without name", exec("env_from: ['']"), "exec.env_from[0]", invalid, "not the name of a file"},
		{"an exit code beyond", exec("success_exit_codes: [0, 256]"), "exec.success_exit_codes[1]", invalid, "use 0 to 255"},

		{"no address", "name: a\nhttp: {method: GET}", "http.url", invalid, "the address is missing"},
		{"a relative address", url("/x"), "http.url", invalid, "not an absolute http or https address"},
		{"an address of another scheme", url("file:///etc/passwd"), "http.url", invalid, "not an absolute http or https address"},
		{"an address without host", url("http://:80/"), "http.url", invalid, "not an absolute"},
		{"an opaque address", url("http:example.com"), "http.url", invalid, "not an absolute"},
		{"an address with a password", url("https://u:p@example.com/"), "http.url", invalid, "user name or password"},
		{"an address with a fragment", url("https://example.com/#x"), "http.url", invalid, "fragment"},
		{"a method in small letters", web("method: get"), "http.method", invalid, "use one of GET, HEAD, POST"},
		{"a header's name with a space", web("headers: {'a b': c}"), `http.headers["a b"]`, invalid, "is not a header's name"},
		{"a header's value with a line break", web(`headers: {a: "b\r\nHost: c"}`), "http.headers.a", invalid, "line break"},
		{"a header of ours", web("headers: {muster-fence: '1'}"), "http.headers.muster-fence", invalid, "set by Muster"},
		{"a header of the connection", web("headers: {Content-Length: '1'}"), "http.headers.Content-Length", invalid, "set by the worker"},
		{"a header twice", web("headers: {X-A: '1', x-a: '2'}"), "http.headers.x-a", invalid, "there twice (X-A too)"},
		{"a body too large", web("body: " + strings.Repeat("x", 64<<10+1)), "http.body", invalid, "the limit is 65536"},
		{"a status that is none", web("success_status: [200, 99]"), "http.success_status[1]", invalid, "200 to 599"},

		{"a handler without name", name + "handler: {}", "handler.name", invalid, "a name is missing"},
		{"a handler's name that is none", name + "handler: {name: a/b}", "handler.name", invalid, "is not a name"},

		{"a job upstream of itself", name + "depends_on: [a]" + h, "depends_on[0].job", invalid, "depends on itself: a -> a"},
		{"an upstream twice", name + "depends_on: [b, {job: b, on: done}]" + h, "depends_on[1].job", invalid, "there twice"},
		{"an unknown end", name + "depends_on: [{job: b, on: finished}]" + h, "depends_on[0].on", invalid, "use one of success, failure, done"},

		{"no tasks", name + "tasks: []", "tasks", invalid, "there are no tasks"},
		{"a task without name", tasks("{handler: {name: h}}"), "tasks[0].name", invalid, "a name is missing"},
		{"a task without executor", tasks("{name: x}"), "tasks[0]", invalid, "a task needs one of exec, http, handler or run_job; add one"},
		{"a task with an empty command", tasks("{name: x, handler: {name: h}}", "{name: y, exec: {command: []}}"), "tasks[1].exec.command", invalid, "the command is empty"},
		{"a task's name twice", tasks("{name: x, handler: {name: h}}", "{name: x, handler: {name: h}}"), "tasks[1].name", invalid, "the task x is there twice (tasks[0] too)"},
		{"an unknown upstream task", tasks("{name: x, handler: {name: h}, depends_on: [y]}"), "tasks[0].depends_on[0]", invalid, `there is no task "y"`},
		{"an upstream task twice", tasks("{name: x, handler: {name: h}}", "{name: y, handler: {name: h}, depends_on: [x, x]}"), "tasks[1].depends_on[1]", invalid, "there twice"},
		{"an unknown run_if", tasks("{name: x, handler: {name: h}, run_if: always}"), "tasks[0].run_if", invalid, "use one of all_succeeded"},
		{"T2: any_succeeded of none", tasks("{name: x, handler: {name: h}, run_if: any_succeeded}"), "tasks[0].run_if", invalid, "any_succeeded looks at the tasks before this one, and there are none; add depends_on"},
		{"T2: any_failed of none", tasks("{name: x, handler: {name: h}}", "{name: y, handler: {name: h}, run_if: any_failed}"), "tasks[1].run_if", invalid, "any_failed looks at the tasks before this one"},
		{"a when too long", tasks("{name: x, handler: {name: h}, when: '" + strings.Repeat("1", job.MaxExpressionBytes+1) + "'}"), "tasks[0].when", invalid, "has 4097 bytes; the limit is 4096"},
		{"a for_each too long", tasks("{name: x, handler: {name: h}, for_each: '" + strings.Repeat("1", job.MaxExpressionBytes+1) + "'}"), "tasks[0].for_each", invalid, "the limit is 4096"},
		{"a when of spaces", tasks("{name: x, handler: {name: h}, when: '  '}"), "tasks[0].when", invalid, "is empty"},
		{"a when that cannot be shown", tasks(`{name: x, handler: {name: h}, when: "a\u200bb"}`), "tasks[0].when", invalid, "cannot be shown"},
		{"a result too long", tasks("{name: x, handler: {name: h}}") + "\nresult: '" + strings.Repeat("1", job.MaxExpressionBytes+1) + "'", "result", invalid, "the limit is 4096"},
		{"a result of one executor", name + "result: '1'" + h, "result", invalid, "only a job with tasks"},
		{"a task upstream of itself", tasks("{name: x, handler: {name: h}, depends_on: [x]}"), "tasks[0].depends_on", invalid, "in a circle: x -> x;"},
		{"a circle of three", tasks("{name: s, handler: {name: h}}", "{name: a, handler: {name: h}, depends_on: [s, c]}", "{name: b, handler: {name: h}, depends_on: [a]}", "{name: c, handler: {name: h}, depends_on: [b]}"),
			"tasks[1].depends_on", invalid, "in a circle: a -> c -> b -> a;"},
		{"a task's priority beyond", tasks("{name: x, handler: {name: h}, priority: 11}"), "tasks[0].priority", invalid, "use 0 to 9"},
		{"a task's retry", tasks("{name: x, handler: {name: h}, retry: {max_attempts: 1001}}"), "tasks[0].retry.max_attempts", invalid, "use 1 to 1000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := job.ParseDocument([]byte(c.input))
			c.check(t, err)
		})
	}
	for name, doc := range map[string]string{
		"a name of 128":                 "name: " + strings.Repeat("a", 128) + h,
		"a label without value":         name + "labels: {k: ''}" + h,
		"a label beyond ASCII":          name + "labels: {k: Größe}" + h,
		"a year":                        name + "timeout: 8760h" + h,
		"priority 0":                    name + "priority: 0" + h,
		"every limit of numbers":        name + "slots: 10000\nretry: {max_attempts: 1000}\nconcurrency: {key: 'a b', limit: 100000}" + h,
		"start and end":                 name + "schedule: {cron: '@daily', start_at: 2026-01-01T00:00:00+02:00, end_at: 2026-01-01T00:00:00Z}" + h,
		"an address with port and path": url("http://[::1]:8080/x?y=%20z"),
		"overlap without a schedule":    name + "overlap: skip" + h,
		"no exit codes at all":          exec("success_exit_codes: []"),
	} {
		t.Run("accepts "+name, func(t *testing.T) {
			if _, err := job.ParseDocument([]byte(doc)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestValidateTasksBounds(t *testing.T) {
	chain := func(n int) *job.Document {
		d := &job.Document{Name: "a"}
		for i := range n {
			task := job.Task{Name: fmt.Sprintf("t%d", i), Handler: &job.Handler{Name: "h"}}
			if i > 0 {
				task.DependsOn = []string{fmt.Sprintf("t%d", i-1)}
			}
			d.Tasks = append(d.Tasks, task)
		}
		d.Normalize()
		return d
	}
	if err := chain(job.MaxTasks).Validate(); err != nil {
		t.Errorf("a chain of %d tasks: %v", job.MaxTasks, err)
	}
	refusal{field: "tasks", reason: "invalid_field", message: "there are 1001 tasks; the limit is 1000"}.check(t, chain(job.MaxTasks+1).Validate())
	d := chain(job.MaxTasks)
	d.Tasks[0].DependsOn = []string{"t999"}
	refusal{field: "tasks[0].depends_on", reason: "invalid_field", message: "in a circle: t0 -> t999"}.check(t, d.Validate())
}

func TestValidateWithoutNormalizeAcceptsTheSame(t *testing.T) {
	d := &job.Document{Name: "a", Handler: &job.Handler{Name: "h"}, Schedule: &job.Schedule{Cron: "@daily"}}
	if err := d.Validate(); err != nil {
		t.Error(err)
	}
}

func TestNormalizeOfATask(t *testing.T) {
	d, err := job.ParseDocument([]byte("name: a\nretry: {max_attempts: 4, initial: 2s}\ntasks:\n- {name: x, http: {url: 'https://example.com'}, retry: {initial: 10m}}\n- {name: y, exec: {command: [y]}}"))
	if err != nil {
		t.Fatal(err)
	}
	want := []job.Task{
		{Name: "x", RunIf: job.AllSucceeded, HTTP: &job.HTTP{Method: "POST", URL: "https://example.com"}, Retry: &job.Retry{
			MaxAttempts: 4, Backoff: job.ExponentialBackoff, Initial: job.Duration(10 * time.Minute), Max: job.Duration(10 * time.Minute)}},
		{Name: "y", RunIf: job.AllSucceeded, Exec: &job.Exec{Command: []string{"y"}, SuccessExitCodes: []int{0}}},
	}
	if diff := cmp.Diff(want, d.Tasks); diff != "" {
		t.Error(diff)
	}
}

func TestEqualDocuments(t *testing.T) {
	parse := func(doc string) *job.Document {
		t.Helper()
		d, err := job.ParseDocument([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	base := "name: a\nhandler: {name: h}\nschedule: {cron: '@daily', start_at: 2026-01-01T00:00:00Z}\npayload: {x: 1}\n"
	for _, c := range []struct {
		name, other string
		want        bool
	}{
		{"itself", base, true},
		{"defaults spelt out", base + "slots: 1\npriority: 5\noverlap: skip\nnamespace: default\n", true},
		{"one instant in another zone", strings.Replace(base, "2026-01-01T00:00:00Z", "2026-01-01T01:00:00+01:00", 1), true},
		{"another layout", `{"payload": {"x":1}, "schedule": {"catch_up": "latest", "start_at": "2026-01-01T00:00:00Z", "cron": "@daily"}, "handler": {"name": "h"}, "name": "a"}`, true},
		{"the payload in another order", base[:strings.Index(base, "payload")] + `payload: {"\u0078": 1}`, true},
		{"another payload", strings.Replace(base, "x: 1", "x: 2", 1), false},
		{"another timeout", base + "timeout: 1s\n", false},
		{"a label more", base + "labels: {a: b}\n", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := job.EqualDocuments(parse(base), parse(c.other)); got != c.want {
				t.Errorf("EqualDocuments = %v, want %v", got, c.want)
			}
		})
	}
	t.Run("not yet normalised, and left so", func(t *testing.T) {
		raw := &job.Document{Name: "a", Handler: &job.Handler{Name: "h"}}
		if !job.EqualDocuments(raw, parse("name: a\nhandler: {name: h}")) || raw.Priority != nil {
			t.Error("unequal, or changed")
		}
	})
	t.Run("nil", func(t *testing.T) {
		if !job.EqualDocuments(nil, nil) || job.EqualDocuments(nil, parse(base)) {
			t.Error("nil is equal to nil only")
		}
	})
}

func TestYAML(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"defaults are left out", exampleDocument, `name: nightly-report
labels:
  team: billing
schedule:
  cron: 0 0 * * *
  time_zone: Europe/Berlin
start_deadline: 10m
concurrency:
  key: reports
  limit: 4
timeout: 10m
retry:
  max_attempts: 3
selector:
  region: eu
exec:
  command: [/usr/bin/report, --daily]
  dir: /srv
  user: report
  env:
    LANG: C
  env_from: [report.env]
`},
		{"tasks", exampleTasks, `name: nightly-etl
tasks:
  - name: extract
    exec:
      command: [/bin/extract]
  - name: load
    depends_on: [extract]
    http:
      url: https://example.com/load
`},
		{"text that looks like something else", `{"name": "a", "labels": {"a": "true", "b": "12", "c": "1e5", "d": "null", "e": "", "f": "- x", "g": "a: b", "h": "0644", "i": "2026-01-01", "j": "no", "k": "12:30"}, "handler": {"name": "h"}}`, `name: a
labels:
  a: "true"
  b: "12"
  c: "1e5"
  d: "null"
  e: ""
  f: '- x'
  g: 'a: b'
  h: "0644"
  i: "2026-01-01"
  j: "no"
  k: "12:30"
handler:
  name: h
`},
		{"short forms and a payload", `{"name": "a", "payload": {"n": 1.50, "list": [1, null, true, {"k": []}], "empty": {}}, "http": {"url": "https://example.com", "body": "a\nb\n"}, "depends_on": ["b", {"job": "c", "on": "done"}]}`, `name: a
depends_on:
  - b
  - job: c
    on: done
payload:
  n: 1.50
  list:
    - 1
    - null
    - true
    - k: []
  empty: {}
http:
  url: https://example.com
  body: |
    a
    b
`},
		{"catch_up", "name: a\nhandler: {name: h}\nschedule: {cron: '@daily', catch_up: none, start_at: 2026-01-01T01:00:00+01:00}", `name: a
schedule:
  cron: '@daily'
  catch_up: none
  start_at: "2026-01-01T01:00:00+01:00"
handler:
  name: h
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := job.ParseDocument([]byte(c.in))
			if err != nil {
				t.Fatal(err)
			}
			got, err := d.YAML()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, string(got)); diff != "" {
				t.Error(diff)
			}
			checkRoundTrip(t, d)
		})
	}
}

// checkRoundTrip writes a document as YAML and as JSON and expects the same document back.
func checkRoundTrip(t *testing.T, d *job.Document) {
	t.Helper()
	for _, form := range []struct {
		name  string
		write func(*job.Document) ([]byte, error)
	}{{"YAML", (*job.Document).YAML}, {"JSON", func(d *job.Document) ([]byte, error) { return jsonMarshal(d) }}} {
		text, err := form.write(d)
		if err != nil {
			t.Fatalf("%s: %v", form.name, err)
		}
		again, err := job.ParseDocument(text)
		if err != nil {
			t.Fatalf("read back the %s: %v\n%s", form.name, err, text)
		}
		if !job.EqualDocuments(d, again) {
			t.Fatalf("the %s reads back otherwise: %s\n%s", form.name, cmp.Diff(d, again), text)
		}
	}
}
