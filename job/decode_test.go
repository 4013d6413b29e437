package job_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/job"
)

// The example of the design, section 5, but for the alternative that it shows in the same breath.
const exampleDocument = `
name: nightly-report
namespace: default
labels: {team: billing}
schedule: {cron: "0 0 * * *", time_zone: Europe/Berlin, catch_up: latest}   # catch_up: X is short for {policy: X}
start_deadline: 10m
overlap: skip              # allow | skip | queue | replace
priority: 5                # 0..9, 9 first
timeout: 10m
retry: {max_attempts: 3, backoff: exponential, initial: 1s, max: 5m}
selector: {region: eu}
slots: 1
concurrency: {key: reports, limit: 4}
exec: {command: [/usr/bin/report, --daily], dir: /srv, user: report, env: {LANG: C}, env_from: [report.env], success_exit_codes: [0]}
`

const exampleTasks = `
name: nightly-etl
tasks:
  - {name: extract, exec: {command: [/bin/extract]}}
  - {name: load, depends_on: [extract], run_if: all_succeeded, http: {method: POST, url: https://example.com/load}}
`

func intPointer(v int) *int { return &v }

func TestParseDocumentReadsTheExampleOfTheDesign(t *testing.T) {
	got, err := job.ParseDocument([]byte(exampleDocument))
	if err != nil {
		t.Fatal(err)
	}
	want := &job.Document{
		Name: "nightly-report", Namespace: "default", Labels: map[string]string{"team": "billing"},
		Schedule:      &job.Schedule{Cron: "0 0 * * *", TimeZone: "Europe/Berlin", CatchUp: job.CatchUp{Policy: job.CatchUpLatest}},
		StartDeadline: job.Duration(10 * time.Minute), Overlap: job.OverlapSkipTick, Priority: intPointer(5),
		Timeout: job.Duration(10 * time.Minute),
		Retry: job.Retry{MaxAttempts: 3, Backoff: job.ExponentialBackoff,
			Initial: job.Duration(time.Second), Max: job.Duration(5 * time.Minute)},
		Selector: map[string]string{"region": "eu"}, Slots: 1, OnWorkerLost: job.RequeueOnLoss, OnLeaseLost: job.KillOnLeaseLost,
		Concurrency: &job.Concurrency{Key: "reports", Limit: 4},
		Exec: &job.Exec{Command: []string{"/usr/bin/report", "--daily"}, Dir: "/srv", User: "report",
			Env: map[string]string{"LANG": "C"}, EnvFrom: []string{"report.env"}, SuccessExitCodes: []int{0}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseDocumentFillsInDefaults(t *testing.T) {
	got, err := job.ParseDocument([]byte(`{"name": "a", "schedule": {"cron": "@daily"}, "concurrency": {"key": "k"}, "http": {"url": "https://example.com"}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := &job.Document{
		Name: "a", Namespace: "default", Overlap: job.OverlapSkipTick, Priority: intPointer(5), Slots: 1,
		Schedule: &job.Schedule{Cron: "@daily", TimeZone: "UTC", CatchUp: job.CatchUp{Policy: job.CatchUpLatest}},
		Retry: job.Retry{MaxAttempts: 1, Backoff: job.ExponentialBackoff,
			Initial: job.Duration(time.Second), Max: job.Duration(5 * time.Minute)},
		OnWorkerLost: job.RequeueOnLoss, OnLeaseLost: job.KillOnLeaseLost,
		Concurrency: &job.Concurrency{Key: "k", Limit: 1},
		HTTP:        &job.HTTP{Method: "POST", URL: "https://example.com"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	again := *got
	again.Normalize()
	if diff := cmp.Diff(want, &again); diff != "" {
		t.Errorf("Normalize twice is not Normalize once: %s", diff)
	}
}

func TestParseDocumentAccepts(t *testing.T) {
	for name, doc := range map[string]string{
		"JSON":                              `{"name": "a", "exec": {"command": ["/bin/true"]}}`,
		"YAML that looks a little like it":  `{name: a, exec: {command: [/bin/true]}}`,
		"a byte order mark":                 "\ufeffname: a\nhandler: {name: h}",
		"a leading and a closing separator": "---\nname: a\nhandler: {name: h}\n---\n",
		"the long form of catch_up":         "name: a\nhandler: {name: h}\nschedule: {cron: '@daily', catch_up: {policy: all, max: 7}}",
		"on, which YAML 1.1 reads as true":  "name: b\nhandler: {name: h}\ndepends_on: [{job: a, on: done}]",
		"an upstream in short":              "name: b\nhandler: {name: h}\ndepends_on: [a]",
		"a time as YAML has it":             "name: a\nhandler: {name: h}\nschedule: {cron: '@daily', start_at: 2026-01-31T09:00:00Z}",
		"a field without a value":           "name: a\nhandler: {name: h}\nlabels:\nselector:\npayload:\nschedule:",
		"anchors, aliases and merges":       "name: a\ntasks:\n- {name: x, exec: &e {command: [/bin/x], dir: /srv}}\n- {name: y, exec: {<<: *e, command: [/bin/y]}}\n- {name: z, exec: *e}",
		"tasks":                             exampleTasks,
		"text that is explicitly so":        "name: a\nexec: {command: [/bin/echo, !!str 12]}",
		"an emoji":                          `{"name": "a", "description": "\ud83d\ude00 😀", "handler": {"name": "h"}}`,
		"a long first pause without max":    "name: a\nhandler: {name: h}\nretry: {initial: 10m}",
		"a short max without initial":       "name: a\nhandler: {name: h}\nretry: {max: 100ms}",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := job.ParseDocument([]byte(doc)); err != nil {
				t.Errorf("ParseDocument: %v", err)
			}
		})
	}
}

func TestParseDocumentReadsMergedFieldsUnderOwnOnes(t *testing.T) {
	d, err := job.ParseDocument([]byte("name: a\ntasks:\n- {name: x, exec: &e {command: [/bin/x], dir: /srv}}\n- {name: y, exec: {<<: *e, command: [/bin/y]}}"))
	if err != nil {
		t.Fatal(err)
	}
	if e := d.Tasks[1].Exec; e.Command[0] != "/bin/y" || e.Dir != "/srv" {
		t.Errorf("exec = %+v", e)
	}
}

// refusal is what an error about input must have; message is a part of the sentence.
type refusal struct{ name, input, field, reason, message string }

func (r refusal) check(t *testing.T, err error) {
	t.Helper()
	var e *job.Error
	if !errors.As(err, &e) {
		t.Fatalf("err = %v, want a *job.Error", err)
	}
	if e.Code != job.Invalid || e.Field != r.field || e.Reason != r.reason || !strings.Contains(e.Message, r.message) {
		t.Errorf("got  field %q, reason %q, message %q\nwant field %q, reason %q, message with %q", e.Field, e.Reason, e.Message, r.field, r.reason, r.message)
	}
}

func TestParseDocumentRefuses(t *testing.T) {
	deep := strings.Repeat("[", 70) + strings.Repeat("]", 70)
	bomb := "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := 1; i < 9; i++ {
		bomb += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10), ","))
	}
	for _, c := range []refusal{
		{"an unknown field, with what was meant", "name: a\nshedule: {cron: '@daily'}", "shedule", "unknown_field", `unknown field "shedule"; did you mean "schedule"? (line 2)`},
		{"an unknown field in JSON, with its line", "{\"name\": \"a\",\n \"shedule\": {}}", "shedule", "unknown_field", `did you mean "schedule"? (line 2)`},
		{"an unknown field deeper down", "name: a\nexec:\n  command: [x]\n  envs: {}", "exec.envs", "unknown_field", `unknown field "envs"; did you mean "env"? (line 4)`},
		{"an unknown field of a task", "name: a\ntasks:\n- name: x\n  exec: {cmd: [x]}", "tasks[0].exec.cmd", "unknown_field", `did you mean "command"? (line 4)`},
		{"an unknown field of the long catch_up", "name: a\nschedule: {cron: '@daily', catch_up: {polcy: all}}", "schedule.catch_up.polcy", "unknown_field", `did you mean "policy"?`},
		{"a field one level too high", "name: a\ncron: '@daily'", "cron", "unknown_field", `did you mean "schedule.cron"?`},
		{"a field unlike any", "name: a\nhandler: {function: h}", "handler.function", "unknown_field", `known here are name`},
		{"a name in another case", "name: a\nPriority: 3", "Priority", "unknown_field", `did you mean "priority"?`},
		{"text for a number", "name: a\npriority: high", "priority", "invalid_field", `expected a whole number, found the text "high" (line 2)`},
		{"a fraction for a whole number", "name: a\nslots: 1.5", "slots", "invalid_field", "expected a whole number, found the number 1.5"},
		{"a number beyond the type", "name: a\nslots: 99999999999999999999", "slots", "invalid_field", "out of range"},
		{"a number for text", "name: a\nexec: {command: [x], env: {PORT: 8080}}", "exec.env.PORT", "invalid_field", "expected text, found the number 8080; put it in quotes (line 2)"},
		{"a number for text in a list", "name: a\nexec:\n  command:\n  - sleep\n  - 5", "exec.command[1]", "invalid_field", "expected text, found the number 5; put it in quotes (line 5)"},
		{"text for a list", "name: a\nexec: {command: sleep 5}", "exec.command", "invalid_field", `expected a list, found the text "sleep 5"`},
		{"a list for an object", "name: a\nexec: [sleep, 5]", "exec", "invalid_field", "expected an object, found a list"},
		{"null in a list", "name: a\nexec: {command: [x, null]}", "exec.command[1]", "invalid_field", "expected text, found null"},
		{"null in a map", "name: a\nlabels: {team: }", "labels.team", "invalid_field", "expected text, found null"},
		{"a number for a duration", "name: a\ntimeout: 10", "timeout", "invalid_field", `a duration is text with a unit, such as "90s" or "10m" (line 2)`},
		{"a duration with an unknown unit", "name: a\nretry: {initial: 1d}", "retry.initial", "invalid_field", `"1d" is not a duration`},
		{"a duration without a value", "name: a\ntimeout:", "timeout", "invalid_field", "has no value"},
		{"a time that is none", "name: a\nschedule: {cron: '@daily', start_at: tomorrow}", "schedule.start_at", "invalid_field", "RFC 3339"},
		{"a date without time", "name: a\nschedule: {cron: '@daily', start_at: 2026-01-31}", "schedule.start_at", "invalid_field", "RFC 3339"},
		{"a field twice in YAML", "name: a\nslots: 1\nslots: 2", "slots", "duplicate_field", `the field "slots" is there twice; keep one of them (line 3)`},
		{"a field twice in JSON", `{"name": "a", "slots": 1, "slots": 2}`, "slots", "duplicate_field", "there twice"},
		{"a field twice, once escaped", `{"name": "a", "slots": 1, "\u0073lots": 2}`, "slots", "duplicate_field", "there twice"},
		{"a label twice", `{"name": "a", "labels": {"x": "1", "x": "2"}}`, "labels.x", "duplicate_field", "there twice"},
		{"a field twice in the payload", `{"name": "a", "payload": {"x": [{"y": 1, "y": 2}]}}`, "payload.x[0].y", "duplicate_field", "there twice"},
		{"a label with a dot, as a path has it", "name: a\nlabels: {a.b: 3}", `labels["a.b"]`, "invalid_field", "expected text, found the number 3; put it in quotes (line 2)"},
		{"more after the JSON", `{"name": "a"} {"name": "b"}`, "", "invalid_syntax", "more data follows after the end of the JSON at line 1, column 15"},
		{"another YAML document", "name: a\nhandler: {name: h}\n---\nname: b", "", "invalid_syntax", "another document follows"},
		{"nothing", "", "", "invalid_syntax", "the document is empty"},
		{"only a comment", "# hello\n", "", "invalid_syntax", "the document is empty"},
		{"a list", "- name: a", "", "invalid_field", "expected an object, found a list"},
		{"bare text", "hello", "", "invalid_field", `expected an object, found the text "hello"`},
		{"JSON that ends early", `{"name": "a"`, "", "invalid_syntax", "it ends in the middle at line 1, column 13"},
		{"a trailing comma", `{"name": "a",}`, "", "invalid_syntax", "expected a field name in double quotes, found '}' at line 1, column 14"},
		{"a trailing comma in a list", `{"name": ["a", ]}`, "name", "invalid_field", "expected text, found a list"},
		{"YAML indented with tabs", "name: a\nexec:\n\tcommand: [x]", "", "invalid_syntax", "indent with spaces, not with tabs"},
		{"broken YAML", "name: [a", "", "invalid_syntax", "this is not valid YAML"},
		{"an unknown anchor", "name: *a", "", "invalid_syntax", "unknown anchor"},
		{"invalid UTF-8", "name: a\xff", "", "invalid_text", "byte 8 is not valid UTF-8"},
		{"UTF-16", "\xff\xfen\x00a\x00", "", "invalid_text", "UTF-8"},
		{"a NUL", "name: a\x00", "", "invalid_text", "NUL"},
		{"an escaped NUL in JSON", `{"name": "a\u0000"}`, "name", "invalid_text", "NUL"},
		{"an escaped NUL in YAML", `name: "a\0"`, "name", "invalid_text", "NUL"},
		{"an escaped NUL in a key", `{"labels": {"a\u0000": "b"}}`, "labels", "invalid_text", "NUL"},
		{"half a surrogate pair", `{"description": "\ud83d"}`, "description", "invalid_text", "surrogate"},
		{"nesting in JSON", `{"payload": ` + deep + `}`, "payload" + strings.Repeat("[0]", 63), "too_deep", "more than 64 deep"},
		{"nesting in YAML", `payload: ` + deep, "payload" + strings.Repeat("[0]", 63), "too_deep", "more than 64 deep"},
		{"an alias within itself", "payload: &a [*a]", "payload" + strings.Repeat("[0]", 63), "too_deep", "more than 64 deep"},
		{"an alias bomb", bomb, "", "too_large", "more than 100000 values"},
		{"a merge bomb", "a: &a {<<: [*a, *a]}", "a", "invalid_field", `"<<"`},
		{"too many bytes", "name: " + strings.Repeat("a", job.MaxDocumentBytes), "", "too_large", "the limit is 1048576"},
		{"too many values", "payload: [" + strings.Repeat("a,", 200_000) + "]", "", "too_large", "more than 100000 values"},
		{"a number that readers disagree on", "payload: 0644", "payload", "invalid_field", "more than one way"},
		{"infinity", "payload: .inf", "payload", "invalid_field", "more than one way"},
		{"a number beyond a double", "name: a\npayload: {x: 1e999}", "payload.x", "invalid_field", "beyond the range"},
		{"an unknown tag", "name: !secret a", "name", "invalid_field", "tag !secret"},
		{"a YAML key that is a list", "? [a]\n: b", "", "invalid_syntax", "field name"},
		{"a namespace that is no name", "name: a\nnamespace: a/b\nhandler: {name: h}", "namespace", "invalid_field", "is not a name"},
		{"an invalid value, with its line", "name: a\nhandler: {name: h}\nretry:\n  max_attempts: -1", "retry.max_attempts", "invalid_field", "(line 4)"},
		{"an invalid value in JSON, with its line", "{\"name\": \"a\",\n\"handler\": {\"name\": \"h\"},\n\"priority\":\n12}", "priority", "invalid_field", "(line 4)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := job.ParseDocument([]byte(c.input))
			c.check(t, err)
		})
	}
}

func TestParseDocumentIn(t *testing.T) {
	for _, c := range []struct{ name, namespace, document, want string }{
		{"names none", "ops", "name: a\nhandler: {name: h}", "ops"},
		{"names the same", "ops", "name: a\nnamespace: ops\nhandler: {name: h}", "ops"},
		{"names another", "ops", "name: a\nnamespace: dev\nhandler: {name: h}", ""},
		{"default is another too", "ops", "name: a\nnamespace: default\nhandler: {name: h}", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := job.ParseDocumentIn(c.namespace, []byte(c.document))
			if c.want == "" {
				refusal{field: "namespace", reason: "invalid_field", message: "but the request is for"}.check(t, err)
			} else if err != nil || d.Namespace != c.want {
				t.Errorf("got %+v, %v", d, err)
			}
		})
	}
}

func TestParseDocuments(t *testing.T) {
	const a, b = "name: a\nhandler: {name: h}\n", "name: b\nhandler: {name: h}\n"
	t.Run("a stream", func(t *testing.T) {
		docs, err := job.ParseDocuments([]byte("---\n" + a + "---\n# nothing\n---\n" + b))
		if err != nil || len(docs) != 2 || docs[0].Name != "a" || docs[1].Name != "b" {
			t.Errorf("got %v, %v", docs, err)
		}
	})
	t.Run("JSON one after the other", func(t *testing.T) {
		docs, err := job.ParseDocuments([]byte(`{"name": "a", "handler": {"name": "h"}}` + "\n" + `{"name": "b", "handler": {"name": "h"}}`))
		if err != nil || len(docs) != 2 || docs[1].Name != "b" {
			t.Errorf("got %v, %v", docs, err)
		}
	})
	t.Run("a namespace for those that name none", func(t *testing.T) {
		docs, err := job.ParseDocumentsIn("ops", []byte(a+"---\nnamespace: ops\n"+b))
		if err != nil || docs[0].Namespace != "ops" || docs[1].Namespace != "ops" {
			t.Errorf("got %v, %v", docs, err)
		}
		_, err = job.ParseDocumentsIn("ops", []byte(a+"---\nnamespace: dev\n"+b))
		refusal{field: "namespace", reason: "invalid_field", message: `document 2: the document says "dev" but the request is for "ops"`}.check(t, err)
	})
	// A document that is alone is not counted.
	for _, alone := range []string{"name: a", "name: a\nexce: {}", "---\n# nothing\n---\nname: [", `{"name": "a"}`, `{"name": "a"`, `{"name": "a", "exce": {}}`} {
		if _, err := job.ParseDocuments([]byte(alone)); err == nil || strings.Contains(err.Error(), "document 1") {
			t.Errorf("%q alone: %v", alone, err)
		}
	}
	for _, c := range []refusal{
		{"the second is wrong", a + "---\nname: b\nexce: {}", "exce", "unknown_field", `document 2: unknown field "exce"; did you mean "exec"? (line 5)`},
		{"the second JSON is wrong", `{"name": "a", "handler": {"name": "h"}}` + "\n" + `{"name": "b", "exce": {}}`, "exce", "unknown_field", `document 2: unknown field "exce"; did you mean "exec"? (line 2)`},
		{"the second is invalid", a + "---\nname: b", "", "invalid_field", "document 2: a job needs one of"},
		{"the first is invalid", "name: a\n---\n" + b, "", "invalid_field", "document 1: a job needs one of"},
		{"one name twice", a + "---\n" + b + "---\n" + a, "name", "invalid_field", "document 3: document 1 is the job a too"},
		{"no document", "---\n", "", "invalid_syntax", "there is no document"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := job.ParseDocuments([]byte(c.input))
			c.check(t, err)
		})
	}
}

func TestParseSpec(t *testing.T) {
	d, err := job.ParseSpec([]byte(`{"exec": {"command": ["/bin/true"]}}`))
	if err != nil || d.Namespace != "" || *d.Priority != 5 {
		t.Errorf("got %+v, %v", d, err)
	}
	for _, c := range []refusal{
		{"a name", `{"name": "a", "handler": {"name": "h"}}`, "name", "invalid_field", "has no name"},
		{"a schedule", `{"schedule": {"cron": "@daily"}, "handler": {"name": "h"}}`, "schedule", "invalid_field", "has no schedule"},
		{"depends_on", `{"depends_on": [{"job": "a"}], "handler": {"name": "h"}}`, "depends_on", "invalid_field", "depends on no job"},
		{"no executor", `{}`, "", "invalid_field", "needs one of"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := job.ParseSpec([]byte(c.input))
			c.check(t, err)
		})
	}
}

// body has one of everything that the API's bodies are made of.
type body struct {
	ID     job.RunID `json:"id,omitzero"`
	Job    string    `json:"job"`
	RunAt  job.Instant
	Delay  job.Duration      `json:"delay"`
	Count  *int              `json:"count"`
	Small  uint8             `json:"small"`
	Ratio  float64           `json:"ratio"`
	On     bool              `json:"on"`
	Labels map[string]string `json:"labels"`
	Runs   []body            `json:"runs"`
	Spec   *job.Document     `json:"spec"`
	Any    any               `json:"any"`
	Raw    json.RawMessage   `json:"raw"`
	State  job.State         `json:"state"`
	Bytes  []byte            `json:"bytes"`
	Hidden string            `json:"-"`
	embedded
	*Shared
}

type embedded struct {
	Inner string `json:"inner"`
	Job   string `json:"job"` // hidden by the outer one
}

type Shared struct {
	Limit int `json:"limit"`
}

func TestDecodeStrict(t *testing.T) {
	const id = "0192f3a4-7c1e-7abc-8def-0123456789ab"
	var got body
	err := job.DecodeStrict([]byte(`{"id": "`+id+`", "job": "a", "RunAt": "2026-01-31T09:00:00Z", "delay": "5s", "count": null, "small": 255,
		"ratio": 1e-3, "on": true, "labels": {"a": "b"}, "runs": [{"job": "b"}], "spec": {"exec": {"command": ["x"]}},
		"any": {"x": null}, "raw": [1, {"x": 2}], "state": "queued", "bytes": "aGk=", "inner": "i", "limit": 3}`), &got, "")
	if err != nil {
		t.Fatal(err)
	}
	if got.ID.String() != id || got.Job != "a" || got.Small != 255 || got.Runs[0].Job != "b" || got.Inner != "i" || got.Limit != 3 ||
		got.State != job.Queued || string(got.Bytes) != "hi" || got.Spec.Exec.Command[0] != "x" || string(got.Raw) != `[1, {"x": 2}]` {
		t.Errorf("got %+v", got)
	}

	for _, c := range []refusal{
		{"an unknown field", `{"jbo": 1}`, "jbo", "unknown_field", `unknown field "jbo"; did you mean "job"?`},
		{"a field that Go alone knows", `{"Hidden": "x"}`, "Hidden", "unknown_field", `unknown field "Hidden"`},
		{"an unknown field in a list", `{"runs": [{}, {"spec": {"exec": {"comand": []}}}]}`, "runs[1].spec.exec.comand", "unknown_field", `did you mean "command"?`},
		{"an escaped unknown field", `{"\u006abo": 1}`, "jbo", "unknown_field", `did you mean "job"?`},
		{"a wrong type", `{"runs": [{"job": 7}]}`, "runs[0].job", "invalid_field", "expected text, found the number 7; put it in quotes"},
		{"a wrong type of the whole", `[]`, "", "invalid_field", "expected an object, found a list"},
		{"null as the whole", `null`, "", "invalid_field", "expected an object, found null"},
		{"nothing", ` `, "", "invalid_syntax", "expected an object, found nothing"},
		{"an id that is none", `{"id": "x"}`, "id", "invalid_id", `"x" is not an id`},
		{"a word that is none", `{"runs": [{"state": "done"}]}`, "runs[0].state", "invalid_field", `"done" is not a state; use one of waiting`},
		{"a time that is none", `{"RunAt": 5}`, "RunAt", "invalid_field", "a time is written as RFC 3339"},
		{"a number beyond its type", `{"small": 256}`, "small", "invalid_field", "the number 256 is out of range"},
		{"a negative number for an unsigned one", `{"small": -1}`, "small", "invalid_field", "the number -1 is out of range"},
		{"an exponent for a whole number", `{"small": 1e1}`, "small", "invalid_field", "expected a whole number"},
		{"text that is not base64", `{"bytes": "?"}`, "bytes", "invalid_field", "base64"},
		{"text for a truth", `{"on": "yes"}`, "on", "invalid_field", `expected true or false, found the text "yes"`},
		{"a field twice in free JSON", `{"any": {"x": {"y": 1, "y": 1}}}`, "any.x.y", "duplicate_field", "there twice"},
		{"a field twice among many", `{"labels": {` + manyLabels(40) + `, "k30": "x"}}`, "labels.k30", "duplicate_field", "there twice"},
		{"a number beyond a double in free JSON", `{"raw": [1e400]}`, "raw[0]", "invalid_field", "beyond the range"},
		{"a number too small for a double", `{"raw": [1e-400]}`, "raw[0]", "invalid_field", "beyond the range"},
		{"more after the end", `{} x`, "", "invalid_syntax", "more data follows"},
		{"a number with a leading zero", `{"small": 01}`, "", "invalid_syntax", "expected a value, found '0' at line 1, column 11"},
		{"a word that is no JSON", `{"on": tru}`, "", "invalid_syntax", "not valid JSON"},
		{"a raw line break in text", "{\"job\": \"a\nb\"}", "", "invalid_syntax", "control character"},
		{"a bad escape", `{"job": "\x"}`, "job", "invalid_text", "backslash"},
		{"a missing colon", `{"job" "a"}`, "", "invalid_syntax", "expected a colon"},
		{"a missing comma", `{"job": "a" "on": true}`, "", "invalid_syntax", "expected a comma or the end of the object, found '\"' at line 1, column 13"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var into body
			c.check(t, job.DecodeStrict([]byte(c.input), &into, ""))
		})
	}
	t.Run("the root's name leads every path", func(t *testing.T) {
		var into body
		refusal{field: "items[3].runs[0].jbo", reason: "unknown_field"}.check(t, job.DecodeStrict([]byte(`{"runs": [{"jbo": 1}]}`), &into, "items[3]"))
	})
	t.Run("a list as the whole", func(t *testing.T) {
		var into []body
		refusal{field: "[1].job", reason: "invalid_field"}.check(t, job.DecodeStrict([]byte(`[{}, {"job": 1}]`), &into, ""))
	})
}

func manyLabels(n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf(`"k%d": "v"`, i))
	}
	return strings.Join(all, ", ")
}

func TestWithin(t *testing.T) {
	_, err := job.ParseSpec([]byte(`{"exec": {"comand": []}}`))
	refusal{field: "runs[3].spec.exec.comand", reason: "unknown_field"}.check(t, job.Within("runs[3].spec", err))
	if job.Within("x", nil) != nil {
		t.Error("nil is an error within something")
	}
}

func TestValidatePayload(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"nothing", "", ""},
		{"null", "null", "null"},
		{"text", `"x"`, `"x"`},
		{"white space is dropped", " {\"a\" : [ 1 , 2 ]} \n", `{"a":[1,2]}`},
		{"angle brackets stay", `{"a": "<b>&"}`, `{"a":"<b>&"}`},
		{"big whole numbers stay", `[12345678901234567890123]`, `[12345678901234567890123]`},
		{"zero with an exponent", `[0e999]`, `[0e999]`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := job.ValidatePayload("payload", []byte(c.in), 0)
			if err != nil || string(got) != c.want {
				t.Errorf("got %s, %v; want %s", got, err, c.want)
			}
		})
	}
	deep := strings.Repeat("[", 65) + strings.Repeat("]", 65)
	for _, c := range []refusal{
		{"not JSON", `{a: 1}`, "payload", "invalid_syntax", "not valid JSON"},
		{"too large", `"` + strings.Repeat("x", job.MaxPayloadBytes) + `"`, "payload", "too_large", "the limit is 65536"},
		{"too deep", deep, "payload" + strings.Repeat("[0]", 64), "too_deep", "more than 64"},
		{"invalid UTF-8", "\"\xff\"", "payload", "invalid_text", "UTF-8"},
		{"a raw NUL", "\"\x00\"", "payload", "invalid_text", "NUL"},
		{"an escaped NUL", `["\u0000"]`, "payload[0]", "invalid_text", "NUL"},
		{"an escaped NUL in a key", `{"\u0000": 1}`, "payload", "invalid_text", "NUL"},
		{"a number beyond a double", `{"a": -1e999}`, "payload.a", "invalid_field", "-1e999 is beyond the range"},
		{"a very long number", "[1." + strings.Repeat("0", 2000) + "]", "payload[0]", "invalid_field", "longer than 1000"},
		{"a field twice", `[{"a": {"b": 1, "b": 2}}]`, "payload[0].a.b", "duplicate_field", "twice"},
		{"two values", `1 2`, "payload", "invalid_syntax", "more data follows"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := job.ValidatePayload("payload", []byte(c.input), 0)
			c.check(t, err)
		})
	}
	t.Run("the answer is a copy", func(t *testing.T) {
		in := []byte(`[1]`)
		got, _ := job.ValidatePayload("payload", in, 0)
		in[1] = '2'
		if string(got) != `[1]` {
			t.Error("the payload changed with the caller's buffer")
		}
	})
}

// A struct with more fields than the scanner has bits for.
func TestDecodeStrictOfManyFields(t *testing.T) {
	var fields []reflect.StructField
	for i := range 100 {
		fields = append(fields, reflect.StructField{Name: fmt.Sprintf("F%d", i), Type: reflect.TypeFor[int]()})
	}
	into := reflect.New(reflect.StructOf(fields)).Interface()
	if err := job.DecodeStrict([]byte(`{"F1": 1, "F98": 2, "F99": 3}`), into, ""); err != nil {
		t.Fatal(err)
	}
	refusal{field: "F99", reason: "duplicate_field"}.check(t, job.DecodeStrict([]byte(`{"F98": 1, "F99": 2, "F99": 3}`), into, ""))
	refusal{field: "F1", reason: "duplicate_field"}.check(t, job.DecodeStrict([]byte(`{"F1": 1, "F98": 2, "F1": 3}`), into, ""))
	refusal{field: "F100", reason: "unknown_field"}.check(t, job.DecodeStrict([]byte(`{"F100": 1}`), into, ""))
}
