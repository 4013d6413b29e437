package api

import (
	"fmt"
	"strings"
	"testing"

	"github.com/musterhq/muster/job"
)

// Whatever is wrong with a task is refused by its field, whichever way the document comes, and changes nothing (D5).
func TestBadTasksAreRefusedByNameAndWriteNothing(t *testing.T) {
	b := newBench(t)
	tasks := func(list ...string) string { return `"tasks":[` + strings.Join(list, ",") + `]` }
	task := func(rest string) string {
		return tasks(`{"name":"a","exec":{"command":["true"]}}`, `{"name":"b","depends_on":["a"],"exec":{"command":["true"]}`+rest+`}`)
	}
	many := make([]string, job.MaxTasks+1)
	for i := range many {
		many[i] = fmt.Sprintf(`{"name":"t%d","exec":{"command":["true"]}}`, i)
	}
	const do = `,"exec":{"command":["true"]}}`
	for _, c := range []struct{ name, doc, field string }{
		{"unknown field", task(`,"dependson":["a"]`), "tasks[1].dependson"},
		{"unknown field deep in a task", task(`,"retry":{"max_attempt":3}`), "tasks[1].retry.max_attempt"},
		{"tasks that are no list", `"tasks":{"a":1}`, "tasks"},
		{"a task that is text", tasks(`"a"`), "tasks[0]"},
		{"null for a task", tasks(`null`), "tasks[0]"},
		{"no tasks", `"tasks":[]`, "tasks"},
		{"too many tasks", tasks(many...), "tasks"},
		{"a name twice", tasks(`{"name":"a"`+do, `{"name":"a"`+do), "tasks[1].name"},
		{"a name that is none", tasks(`{"name":"a/b"` + do), "tasks[0].name"},
		{"no name", tasks(`{"exec":{"command":["true"]}}`), "tasks[0].name"},
		{"a name that is a number", tasks(`{"name":1` + do), "tasks[0].name"},
		{"tasks and an executor", task("") + `,"handler":{"name":"h"}`, "handler"},
		{"no executor", tasks(`{"name":"a"}`), "tasks[0]"},
		{"two executors", task(`,"http":{"url":"http://x"}`), "tasks[1].http"},
		{"run_job and an executor", task(`,"run_job":{"job":"x"}`), "tasks[1].exec"},
		{"run_job without a job", tasks(`{"name":"a","run_job":{}}`), "tasks[0].run_job.job"},
		{"run_job of a path", tasks(`{"name":"a","run_job":{"job":"../x"}}`), "tasks[0].run_job.job"},
		{"run_job that is text", tasks(`{"name":"a","run_job":"x"}`), "tasks[0].run_job"},
		{"depends_on that is text", tasks(`{"name":"a","depends_on":"b"` + do), "tasks[0].depends_on"},
		{"an edge to a number", tasks(`{"name":"a","depends_on":[1]` + do), "tasks[0].depends_on[0]"},
		{"an unknown upstream", tasks(`{"name":"a","depends_on":["nothing"]` + do), "tasks[0].depends_on[0]"},
		{"an upstream twice", tasks(`{"name":"a"`+do, `{"name":"b","depends_on":["a","a"]`+do), "tasks[1].depends_on[1]"},
		{"itself", tasks(`{"name":"a","depends_on":["a"]` + do), "tasks[0].depends_on"},
		{"a cycle", tasks(`{"name":"a","depends_on":["c"]`+do, `{"name":"b","depends_on":["a"]`+do, `{"name":"c","depends_on":["b"]`+do), "tasks[0].depends_on"},
		{"an unknown run_if", task(`,"run_if":"sometimes"`), "tasks[1].run_if"},
		{"run_if that is a number", task(`,"run_if":1`), "tasks[1].run_if"},
		{"any_failed after nothing", tasks(`{"name":"a","run_if":"any_failed"` + do), "tasks[0].run_if"},
		{"max_parallel without a list", task(`,"max_parallel":2`), "tasks[1].max_parallel"},
		{"max_parallel below zero", task(`,"for_each":"[1]","max_parallel":-1`), "tasks[1].max_parallel"},
		{"max_parallel as text", task(`,"for_each":"[1]","max_parallel":"4"`), "tasks[1].max_parallel"},
		{"allow_failure as text", task(`,"allow_failure":"yes"`), "tasks[1].allow_failure"},
		{"a negative timeout", task(`,"timeout":"-1s"`), "tasks[1].timeout"},
		{"a priority out of range", task(`,"priority":10`), "tasks[1].priority"},
		{"slots out of range", task(`,"slots":-1`), "tasks[1].slots"},
		{"a selector of numbers", task(`,"selector":{"a":1}`), "tasks[1].selector.a"},
		{"attempts out of range", task(`,"retry":{"max_attempts":-1}`), "tasks[1].retry.max_attempts"},
		{"on_worker_lost", task(`,"on_worker_lost":"cry"`), "tasks[1].on_worker_lost"},
		{"a schedule in a task", task(`,"schedule":{"cron":"@daily"}`), "tasks[1].schedule"},
		{"a concurrency key in a task", task(`,"concurrency":{"key":"k"}`), "tasks[1].concurrency"},
		{"an empty command", tasks(`{"name":"a","exec":{"command":[]}}`), "tasks[0].exec.command"},
		{"a payload that is too large", task(`,"payload":"` + strings.Repeat("x", 65<<10) + `"`), "tasks[1].payload"},
		{"NUL in a payload", task(`,"payload":"a\u0000b"`), "tasks[1].payload"},
		{"when that is no text", task(`,"when":true`), "tasks[1].when"},
		{"when that is no expression", task(`,"when":"tasks.a.state =="`), "tasks[1].when"},
		{"when that is no condition", task(`,"when":"1 + 1"`), "tasks[1].when"},
		{"when with an unknown name", task(`,"when":"task.a.state == 'failed'"`), "tasks[1].when"},
		{"when with an unknown function", task(`,"when":"now() > 1"`), "tasks[1].when"},
		{"when about a task that is not before it", tasks(`{"name":"a","when":"tasks.b.state == 'failed'"`+do, `{"name":"b"`+do), "tasks[0].when"},
		{"when about itself", task(`,"when":"tasks.b.state == 'failed'"`), "tasks[1].when"},
		{"when about no task", task(`,"when":"tasks.nothing.state == 'failed'"`), "tasks[1].when"},
		{"when about whichever task", task(`,"when":"tasks[run.job].state == 'failed'"`), "tasks[1].when"},
		{"when that is too long", task(`,"when":"true` + strings.Repeat(" || true", 1000) + `"`), "tasks[1].when"},
		{"when that is too deep", task(`,"when":"` + strings.Repeat("(", 1000) + "true" + strings.Repeat(")", 1000) + `"`), "tasks[1].when"},
		{"for_each that is no list", task(`,"for_each":"1"`), "tasks[1].for_each"},
		{"for_each that is no expression", task(`,"for_each":"[1,"`), "tasks[1].for_each"},
		{"for_each as a list", task(`,"for_each":[1,2]`), "tasks[1].for_each"},
		{"a result that is no expression", task("") + `,"result":"tasks.a.result +"`, "result"},
		{"a result about no task", task("") + `,"result":"tasks.nothing.result"`, "result"},
		{"a result without tasks", `"exec":{"command":["true"]},"result":"1"`, "result"},
		{"a template in a command", tasks(`{"name":"a","exec":{"command":["echo","${{ run.payload }}"]}}`), "tasks[0].exec.command[1]"},
		{"a template in the command of one executor", `"exec":{"command":["echo","${{ run.payload }}"]}`, "exec.command[1]"},
		{"a broken template in the environment", tasks(`{"name":"a","exec":{"command":["true"],"env":{"E":"${{ run. }}"}}}`), "tasks[0].exec.env.E"},
		{"a template without an end", tasks(`{"name":"a","exec":{"command":["true"],"env":{"E":"${{ run.id"}}}`), "tasks[0].exec.env.E"},
		{"item where there is no list", tasks(`{"name":"a","exec":{"command":["true"],"env":{"E":"${{ item }}"}}}`), "tasks[0].exec.env.E"},
		{"tasks where there are none", `"exec":{"command":["true"],"env":{"E":"${{ tasks.a.result }}"}}`, "exec.env.E"},
		{"a broken template in an address", tasks(`{"name":"a","http":{"url":"http://x/${{ }}"}}`), "tasks[0].http.url"},
		{"a broken template in a header", tasks(`{"name":"a","http":{"url":"http://x","headers":{"H":"${{ 1 + }}"}}}`), "tasks[0].http.headers.H"},
		{"a broken template in a body", tasks(`{"name":"a","http":{"url":"http://x","body":"${{ nothing }}"}}`), "tasks[0].http.body"},
		{"a broken template in a task's payload", task(`,"payload":{"x":["${{ nothing }}"]}`), "tasks[1].payload.x[0]"},
		{"a broken template in the job's payload", task("") + `,"payload":{"x":"${{ nothing }}"}`, "payload.x"},
	} {
		for _, way := range []struct{ method, path, before, after, at string }{
			{"POST", "/v1/jobs", `{"name":"x",`, `}`, ""},
			{"PUT", "/v1/jobs/x", `{"name":"x",`, `}`, ""},
			{"POST", "/v1/runs", `{"spec":{`, `}}`, "spec."},
		} {
			w := b.call(way.method, way.path, way.before+c.doc+way.after)
			var p Problem
			decode(t, w.Body.Bytes(), &p)
			if w.Code != 400 || p.Code != job.Invalid || p.Field != way.at+c.field || p.Detail == "" || len(p.Detail) > 1000 {
				t.Errorf("%s, %s %s: %d, field %q and not %q: %.300s", c.name, way.method, way.path, w.Code, p.Field, way.at+c.field, w.Body)
			}
		}
		w := b.call("POST", "/v1/runs/batch", `{"runs":[{"spec":{`+c.doc+`}}]}`)
		p := new(Problem) // of the whole, if the body cannot be read
		if w.Code == 200 {
			var a BatchAnswer
			decode(t, w.Body.Bytes(), &a)
			p = a.Items[0].Problem
		} else {
			decode(t, w.Body.Bytes(), p)
		}
		if p == nil || p.Code != job.Invalid || p.Field != "runs[0].spec."+c.field {
			t.Errorf("%s, in a batch: %d %+v", c.name, w.Code, p)
		}
	}
	refused(t, b, 413, job.Invalid, "", "POST", "/v1/jobs", `{"name":"x",`+task(`,"when":"`+strings.Repeat("x", 2<<20)+`"`)+`}`)
	if b.writes != 0 {
		t.Errorf("%d refusals wrote", b.writes)
	}
	// The other jobs live on.
	want[job.Job](t, b, 201, "POST", "/v1/jobs", etl)
}
