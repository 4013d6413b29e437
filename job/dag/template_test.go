package dag

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/musterhq/muster/job"
)

// Where a template ends is where its expression does.
func TestCut(t *testing.T) {
	for text, want := range map[string]string{
		"":                             "",
		"plain":                        "plain",
		"${{ a }}":                     "<a>",
		"x ${{a}} y ${{ b }}":          "x |<a>| y |<b>",
		"${{a}}${{b}}":                 "<a>|<b>",
		"$${{ a }}":                    "${{ a }}",
		"$$${{ a }}":                   "$${{ a }}",
		"x $${{ ${{ a }}":              "x ${{ |<a>",
		"$ {{ a }} }} {{":              "$ {{ a }} }} {{",
		`${{ "}}" }}`:                  `<"}}">`,
		`${{ '}}' + "\"}}" }}`:         `<'}}' + "\"}}">`,
		`${{ """a"}}""" }}`:            `<"""a"}}""">`,
		`${{ r"\" + "}}" }}`:           `<r"\" + "}}">`,
		`${{ bR'\' + '}}' }}`:          `<bR'\' + '}}'>`,
		`${{ {"a": {"b": 1}} }}`:       `<{"a": {"b": 1}}>`,
		`${{ {"a": {"b": 1}}}}`:        `<{"a": {"b": 1}}>`,
		`${{{"a":1}}}`:                 `<{"a":1}>`,
		`${{ [1].map(x, {"a":x}) }}}}`: `<[1].map(x, {"a":x})>|}}`,
		"${{ a // }}\n + b }}":         "<a // }}\n + b>",
		"${{ a":                        "! there is a ${{ without its }}",
		`${{ "a }}`:                    "! there is a ${{ without its }}",
		`${{ {"a": 1 }}`:               "! there is a ${{ without its }}",
		"${{ a } }":                    "! there is a ${{ without its }}",
		"${{ }}":                       "! there is nothing between ${{ and }}",
		"${{}}":                        "! there is nothing between ${{ and }}",
		"${{ a // }}":                  "! there is a ${{ without its }}",
	} {
		pieces, err := cut(text)
		var got []string
		for _, p := range pieces {
			if p.expr {
				p.text = "<" + p.text + ">"
			}
			got = append(got, p.text)
		}
		s := strings.Join(got, "|")
		if err != nil {
			s = "! " + err.Error()
		}
		if s != want && (err == nil || !strings.HasPrefix(s, want)) {
			t.Errorf("%q is %q, want %q", text, s, want)
		}
	}
}

// Putting the pieces together again is the text, and a text that was escaped is itself.
func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"a ${{ b }} c", `${{ "}}" }}`, `${{ {"a": {}} }}`, "$${{", "${{ a // \n }}", `${{ r'\' }}`, `'''${{ '''a''' }}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		escaped, err := cut(strings.ReplaceAll(text, job.TemplateMark, "$"+job.TemplateMark))
		if err != nil {
			t.Fatal(err)
		}
		plain := ""
		for _, p := range escaped {
			if plain += p.text; p.expr {
				t.Fatalf("%q has an expression when it is escaped", text)
			}
		}
		if plain != text && !strings.Contains(text, "$$") {
			t.Fatalf("%q escaped is %q", text, plain)
		}
		pieces, err := cut(text)
		if err != nil {
			return
		}
		rest := text
		for _, p := range pieces {
			if !p.expr {
				continue
			}
			_, after, ok := strings.Cut(rest, p.text)
			if !ok || strings.TrimSpace(p.text) != p.text || p.text == "" {
				t.Fatalf("%q has the expression %q", text, p.text)
			}
			rest = after
		}
	})
}

// Whatever a payload holds, its texts are found, and without templates nothing changes.
func FuzzPayload(f *testing.F) {
	for _, s := range []string{`{"a": "${{ 1 }}", "b": ["x ${{ 'y' }}", 1.50]}`, `"${{ run.payload }}"`, `[[], {}, "\u0024{{ 2 }}"]`, `{"\"": "$${{"}`, `null`, ` { "a" : [ 1 , "${{ [1] }}" ] } `} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		raw, err := job.ValidatePayload("payload", data, 0)
		if err != nil || raw == nil {
			return
		}
		texts := 0
		p, err := cutPayload("payload", raw, func(field, text string) (template, error) {
			if !strings.HasPrefix(field, "payload") || !strings.Contains(text, job.TemplateMark) {
				t.Fatalf("%q at %s", text, field)
			}
			texts++
			return template{{text: text}}, nil // as it is
		})
		if err != nil {
			return
		}
		if p == nil {
			if texts > 0 {
				t.Fatal("templates were found and lost")
			}
			return
		}
		out, err := p.fill(sceneOf("", ""))
		if err != nil {
			t.Fatal(err)
		}
		if string(canonical(out)) != string(canonical(raw)) {
			t.Fatalf("%s became %s", raw, out)
		}
	})
}

// What is refused, with its field and what to do.
func TestValidate(t *testing.T) {
	two := "- {name: a, " + h + "}\n- {name: b, depends_on: [a], "
	web := "- {name: a, http: {url: 'https://example.com'"
	for _, c := range []struct{ name, doc, field, text string }{
		{"a wrong when", two + h + ", when: 'tasks.a.result.n >'}", "tasks[1].when", "it ends in the middle; correct it"},
		{"a when that is a text", two + h + ", when: tasks.a.state}", "tasks[1].when", "the condition is a string; make it true or false"},
		{"a for_each that is a number", two + h + ", for_each: '1'}", "tasks[1].for_each", "the expression is a int; make it a list"},
		{"a wrong result", "name: j\nresult: tasks.a.foo\ntasks:\n- {name: a, " + h + "}", "result", `there is no field "foo"`},
		{"no such task", two + h + ", when: tasks.c.state == 'x'}", "tasks[1].when", `the task "c", and there is none in this job`},
		{"no such task in the result", "name: j\nresult: tasks.c.result\ntasks:\n- {name: a, " + h + "}", "result", `the task "c"`},
		{"its own task", two + h + ", when: tasks.b.state == 'x'}", "tasks[1].when", "names its own task, b"},
		{"no ancestor", two + h + "}\n- {name: c, " + h + ", for_each: tasks.b.result, depends_on: [a]}", "tasks[2].for_each", "the task b, which need not have ended before c starts; add it to depends_on"},
		{"an index", two + h + ", when: 'tasks[run.job].state == \"x\"'}", "tasks[1].when", "a task is named by a constant"},
		{"item in when", two + h + ", for_each: '[1]', when: item > 1}", "tasks[1].when", `there is no "item"`},
		{"item without for_each", two + "exec: {command: [x], env: {A: '${{ item }}'}}}", "tasks[1].exec.env.A", `there is no "item"`},
		{"a template without its end", two + "exec: {command: [x], env: {A: '${{ run.id }'}}}", "tasks[1].exec.env.A", "${{ without its }}; close it"},
		{"a template in the command", two + "exec: {command: [sh, -c, 'echo ${{ run.id }}']}}", "tasks[1].exec.command[2]", "put the value into env"},
		{"a template in the directory", two + "exec: {command: [x], dir: '/srv/${{ run.id }}'}}", "tasks[1].exec.dir", "there are no templates here"},
		{"a template in env_from", two + "exec: {command: [x], env_from: ['${{ run.id }}']}}", "tasks[1].exec.env_from", "there are no templates here"},
		{"a wrong url", "- {name: a, http: {url: 'https://example.com/${{ run.foo }}'}}", "tasks[0].http.url", `there is no field "foo"`},
		{"a url that is none", "- {name: a, http: {url: 'ftp://${{ run.id }}'}}", "tasks[0].http.url", "not an absolute http or https address"},
		{"a url with a fragment", "- {name: a, http: {url: 'https://x/${{ run.id }}#y'}}", "tasks[0].http.url", "fragment"},
		{"a wrong header", web + ", headers: {X: '${{ }}'}}}", "tasks[0].http.headers.X", "nothing between"},
		{"a wrong body", web + ", body: '${{ x }}'}}", "tasks[0].http.body", `there is no "x"`},
		{"a wrong payload", two + h + ", payload: {k: [1, '${{ tasks.b.state }}']}}", "tasks[1].payload.k[1]", "names its own task"},
		{"a template as a name", two + h + ", payload: {'${{ run.id }}': 1}}", "tasks[1].payload", "name of a field"},
		{"the job's payload", "name: j\npayload: {a: '${{ tasks.a.state }}'}\ntasks:\n- {name: a, " + h + "}", "payload.a", `there is no "tasks"`},
		{"a payload of itself", "name: j\npayload: {a: '${{ run.payload.b }}'}\n" + h, "payload.a", "the payload refers to itself"},
		{"one executor", "name: j\nexec: {command: [x], env: {A: '${{ tasks.a.result }}'}}", "exec.env.A", `there is no "tasks" at column 1; known here are run,`},
		{"an inline spec", "name: j\nhttp: {url: 'https://x', body: '${{ run.'}", "http.body", "without its }}"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Validate(parse(t, c.doc))
			e := job.AsError(err)
			if e == nil || e.Code != job.Invalid || e.Field != c.field || !strings.Contains(e.Message, c.text) || strings.ContainsAny(e.Message, "\n") {
				t.Errorf("%v, want %s: ... %s", err, c.field, c.text)
			}
		})
	}
}

func TestValidateBoundsExpressions(t *testing.T) {
	var doc strings.Builder
	doc.WriteString("name: j\nhttp:\n  url: https://example.com\npayload:\n")
	for i := range MaxExpressions + 1 {
		fmt.Fprintf(&doc, "- ${{ %d }}\n", i)
	}
	d := parse(t, doc.String())
	if e := job.AsError(Validate(d)); e == nil || !strings.Contains(e.Message, "more than 4000 different expressions") {
		t.Errorf("%v", e)
	}
}

// What Compile is not promised it refuses all the same.
func TestCompileOfInvalid(t *testing.T) {
	task := func(name string, ups ...string) job.Task {
		return job.Task{Name: name, DependsOn: ups, Handler: &job.Handler{Name: "h"}}
	}
	for _, d := range []*job.Document{
		{Tasks: []job.Task{task("a", "b")}},
		{Tasks: []job.Task{task("a", "b"), task("b", "a")}},
		{Tasks: []job.Task{task("a", "a")}},
	} {
		if _, err := Compile(d); job.CodeOf(err) != job.Invalid {
			t.Errorf("%v", err)
		}
	}
}

// What work is given.
func TestRender(t *testing.T) {
	p := compiled(t, `name: j
payload: {day: "${{ run.scheduled_at }}", n: 1.50}
tasks:
- {name: a, `+h+`}
- {name: env, depends_on: [a], exec: {command: [x], env: {A: "n=${{ tasks.a.result.n }}, ${{ tasks.a.result.l }} $${{", B: "${{ run.payload.day }}", C: plain}}}
- {name: web, depends_on: [a], payload: {all: "${{ tasks.a.result }}", text: "<${{ tasks.a.result.s }}>", k: 1.50}, http: {url: "https://x/${{ run.id }}", headers: {H: "${{ tasks.a.state }}"}, body: "${{ null }}${{ 1.5 }}${{ true }}"}}
- {name: each, depends_on: [a], for_each: tasks.a.result.l, `+h+`}
- {name: more, depends_on: [a], for_each: tasks.a.result.l, payload: ["${{ item }}", "${{ index }}"], `+h+`}
- {name: fixed, depends_on: [a], payload: {z: 1, a: [2]}, `+h+`}
`)
	root := rootOf(p)
	root.ScheduledAt = start
	tasks := func(name string) *Outcome {
		if name != "a" {
			t.Errorf("it asks for %s", name)
		}
		return &Outcome{State: job.Succeeded, Result: json.RawMessage(`{"n": 2.0, "s": "ü\"", "l": [5, {"b": 1, "a": null}]}`)}
	}
	render := func(task string, item uint32, payload string) (*job.Document, string) {
		t.Helper()
		spec, got, err := p.Render(&job.Run{Task: task, Item: item, Payload: json.RawMessage(payload)}, root, tasks)
		if err != nil {
			t.Fatalf("%s: %v", task, err)
		}
		return spec, string(got)
	}
	own := `{"day":"2026-03-01T12:00:00Z","n":1.50}`
	spec, payload := render("env", 0, "")
	if want := map[string]string{"A": `n=2, [5,{"a":null,"b":1}] ${{`, "B": "2026-03-01T12:00:00Z", "C": "plain"}; fmt.Sprint(spec.Exec.Env) != fmt.Sprint(want) || payload != own {
		t.Errorf("env: %v, payload %s", spec.Exec.Env, payload)
	}
	if p.Task("env").Spec.Exec.Env["B"] == spec.Exec.Env["B"] {
		t.Error("the plan was changed")
	}
	spec, payload = render("web", 0, "")
	if spec.HTTP.URL != "https://x/"+root.ID.String() || spec.HTTP.Headers["H"] != "succeeded" || spec.HTTP.Body != "1.5true" ||
		payload != `{"all":{"l":[5,{"a":null,"b":1}],"n":2,"s":"ü\""},"text":"<ü\">","k":1.50}` {
		t.Errorf("web: %+v, payload %s", spec.HTTP, payload)
	}
	if spec, payload = render("a", 0, ""); spec != p.Task("a").Spec || payload != own {
		t.Errorf("a: payload %s", payload)
	}
	if _, payload = render("each", 2, `{"b": 1}`); payload != `{"b": 1}` {
		t.Errorf("each: payload %s", payload)
	}
	if _, payload = render("more", 2, `{"b": 1}`); payload != `[{"b":1},1]` {
		t.Errorf("more: payload %s", payload)
	}
	if _, payload = render("fixed", 0, ""); payload != `{"a":[2],"z":1}` && payload != `{"z":1,"a":[2]}` {
		t.Errorf("fixed: payload %s", payload)
	}
	root.Payload = json.RawMessage(`{"day": "${{ run.id }}"}`) // submitted: data, whatever it looks like
	if spec, payload = render("env", 0, ""); payload != string(root.Payload) || spec.Exec.Env["B"] != "${{ run.id }}" {
		t.Errorf("a submitted payload was read as a template: %s, %s", payload, spec.Exec.Env["B"])
	}
	for task, want := range map[string]struct {
		results     string
		root, plain bool
	}{"a": {"", true, false}, "env": {"a", true, false}, "web": {"a", true, false}, "each": {"", false, true}, "more": {"", false, false}, "fixed": {"", false, true}} {
		if got := strings.Join(p.Results(task), ","); got != want.results || p.NeedsRoot(task) != want.root || p.Plain(task) != want.plain {
			t.Errorf("%s: results %q, root %v, plain %v", task, got, p.NeedsRoot(task), p.Plain(task))
		}
	}
}

// The payload of a run's document is rendered although the document was written anew where it is stored.
func TestRenderOfARewrittenPayload(t *testing.T) {
	d := parse(t, "name: j\npayload: {a: \"${{ run.id < 'z' }}\"}\nhandler: {name: h}")
	root := &job.Run{Payload: d.Payload}
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	again, err := job.ParseDocument(b)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Compile(again)
	if err != nil {
		t.Fatal(err)
	}
	if _, payload, err := p.Render(root, root, nil); err != nil || string(payload) != `{"a":true}` {
		t.Errorf("%s, %v", payload, err)
	}
}

func TestRenderOfOneExecutor(t *testing.T) {
	p := compiled(t, "name: j\nexec: {command: [x], env: {A: '${{ run.payload.a }}'}}")
	root := rootOf(p)
	root.Payload = json.RawMessage(`{"a": [1]}`)
	spec, payload, err := p.Render(root, root, nil)
	if err != nil || spec.Exec.Env["A"] != "[1]" || string(payload) != `{"a": [1]}` || p.Plain("") || !p.NeedsRoot("") || len(p.Tasks) != 0 {
		t.Errorf("%+v, %s, %v", spec, payload, err)
	}
	if p := compiled(t, "name: j\nhandler: {name: h}"); !p.Plain("") {
		t.Error("without templates it is not plain")
	}
}

// What cannot be put in is said with its field, and never reaches a worker.
func TestRenderFails(t *testing.T) {
	p := compiled(t, `- {name: a, `+h+`}
- {name: env, depends_on: [a], exec: {command: [x], env: {A: "${{ tasks.a.result.x }}"}}}
- {name: url, depends_on: [a], http: {url: "${{ tasks.a.result.x }}"}}
- {name: head, depends_on: [a], http: {url: "https://x", headers: {H: "${{ tasks.a.result.x }}"}}}
- {name: body, depends_on: [a], http: {url: "https://x", body: "${{ tasks.a.result.x }}"}}
- {name: load, depends_on: [a], payload: {k: "${{ tasks.a.result.x }}"}, `+h+`}
- {name: text, depends_on: [a], payload: "${{ tasks.a.result.x }}${{ tasks.a.result.x }}", `+h+`}
`)
	long := `"` + strings.Repeat("x", 65_000) + `"`
	for _, c := range []struct{ task, x, field, text string }{
		{"env", "", "tasks[1].exec.env.A", "no such key: x"},
		{"env", `"a\u0000b"`, "tasks[1].exec.env.A", "NUL"},
		{"url", `"ftp://x"`, "tasks[2].http.url", "absolute http or https address"},
		{"url", `"https://u:p@x"`, "tasks[2].http.url", "password"},
		{"url", `"https://u:p@x/${{"`, "tasks[2].http.url", "no part of one"},
		{"head", `"a\r\nB: c"`, "tasks[3].http.headers.H", "line break"},
		{"body", `["` + strings.Repeat("x", 66_000) + `"]`, "tasks[4].http.body", "the limit is 65536"},
		{"load", `"a\u0000b"`, "tasks[5].payload.k", "NUL"},
		{"text", long, "tasks[6].payload", "more than 65536 bytes"},
		{"load", `["` + strings.Repeat("x", 65_530) + `"]`, "tasks[5].payload", "the limit is 65536"},
	} {
		t.Run(c.task+" "+c.text, func(t *testing.T) {
			result := `{}`
			if c.x != "" {
				result = `{"x": ` + c.x + `}`
			}
			spec, payload, err := p.Render(&job.Run{Task: c.task}, rootOf(p), func(string) *Outcome { return &Outcome{State: job.Succeeded, Result: json.RawMessage(result)} })
			e := job.AsError(err)
			if e == nil || e.Reason != "expression_failed" || e.Field != c.field || !strings.Contains(e.Message, c.text) || spec != nil || payload != nil {
				t.Errorf("%v, want %s: ... %s", err, c.field, c.text)
			}
		})
	}
}
