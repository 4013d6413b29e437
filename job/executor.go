package job

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The rules for what a job executes: its executor, or its tasks and their order.

func indexed(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }

func (d *Document) checkExecutors() *Error {
	if d.Tasks == nil {
		if d.Result != "" {
			return InvalidField("result", "only a job with tasks has a result expression; remove it: what the executor answers is the run's result")
		}
		return checkExecutor("", "a job needs one of exec, http, handler or tasks", d.Exec, d.HTTP, d.Handler)
	}
	if name := d.ExecutorName(); name != "" {
		return InvalidField(name, "a job has either %s or tasks, not both; move %s into a task", name, name)
	}
	if err := checkExpression("result", d.Result); err != nil {
		return err
	}
	switch {
	case len(d.Tasks) == 0:
		return InvalidField("tasks", "there are no tasks; write at least one, or use exec, http or handler instead")
	case len(d.Tasks) > MaxTasks:
		return InvalidField("tasks", "there are %d tasks; the limit is %d", len(d.Tasks), MaxTasks)
	}
	index := make(map[string]int, len(d.Tasks))
	for i := range d.Tasks {
		t, at := &d.Tasks[i], indexed("tasks", i)
		if err := CheckName(at+".name", t.Name); err != nil {
			return AsError(err)
		}
		if first, ok := index[t.Name]; ok {
			return InvalidField(at+".name", "the task %s is there twice (tasks[%d] too); give each its own name", t.Name, first)
		}
		index[t.Name] = i
		if err := t.validate(at); err != nil {
			return err
		}
	}
	return d.checkTaskEdges(index)
}

func (t *Task) validate(at string) *Error {
	return firstOf(
		func() *Error {
			return oneOf(at+".run_if", t.RunIf, AllSucceeded, AllDone, AnySucceeded, AnyFailed, NoneFailed)
		},
		func() *Error {
			if len(t.DependsOn) == 0 && (t.RunIf == AnySucceeded || t.RunIf == AnyFailed) {
				return InvalidField(at+".run_if", "%s looks at the tasks before this one, and there are none; add depends_on, or remove run_if", t.RunIf)
			}
			return nil
		},
		func() *Error { return checkExpression(at+".when", t.When) },
		func() *Error { return checkExpression(at+".for_each", t.ForEach) },
		func() *Error { return t.settings().validate(at) },
		func() *Error { return t.Retry.validate(at + ".retry") },
		func() *Error {
			_, err := ValidatePayload(at+".payload", t.Payload, MaxPayloadBytes)
			if err != nil {
				return AsError(err)
			}
			return nil
		},
		func() *Error { return t.checkMap(at) },
		func() *Error {
			if t.RunJob == nil {
				return checkExecutor(at, "a task needs one of exec, http, handler or run_job", t.Exec, t.HTTP, t.Handler)
			}
			if name := executorName(t.Exec, t.HTTP, t.Handler); name != "" {
				return InvalidField(at+"."+name, "a task has either %s or run_job, not both; keep one of them", name)
			}
			if err := CheckName(at+".run_job.job", t.RunJob.Job); err != nil {
				return AsError(err)
			}
			return nil
		},
	)
}

// TemplateMark begins a template in a document's text; what follows it, up to }}, is an expression.
const TemplateMark = "${{"

// checkExpression bounds an expression and keeps out what no screen shows. What it means is judged by job/dag, which
// callers ask besides: it knows more than this package may.
func checkExpression(field, text string) *Error {
	switch {
	case len(text) > MaxExpressionBytes:
		return InvalidField(field, "the expression has %d bytes; the limit is %d, so make it shorter or let a task work it out", len(text), MaxExpressionBytes)
	case !printable(text, "\n\t\r"):
		return InvalidField(field, "the expression contains a character that cannot be shown; write it as an escape such as \\u200b")
	case text != "" && strings.TrimSpace(text) == "":
		return InvalidField(field, "the expression is empty; write one, or remove the field")
	}
	return nil
}

func (t *Task) checkMap(at string) *Error {
	switch {
	case t.MaxParallel < 0 || t.MaxParallel > MaxItems:
		return InvalidField(at+".max_parallel", "%d is out of range; use 1 to %d", t.MaxParallel, MaxItems)
	case t.MaxParallel > 0 && t.ForEach == "":
		return InvalidField(at+".max_parallel", "max_parallel goes with for_each only; remove it, or add for_each")
	}
	return nil
}

// checkTaskEdges refuses edges to nowhere and cycles.
func (d *Document) checkTaskEdges(index map[string]int) *Error {
	for i := range d.Tasks {
		t, at := &d.Tasks[i], indexed("tasks", i)+".depends_on"
		if len(t.DependsOn) > MaxTaskEdges {
			return InvalidField(at, "there are %d upstream tasks; the limit is %d", len(t.DependsOn), MaxTaskEdges)
		}
		seen := make(map[string]bool, len(t.DependsOn))
		for j, up := range t.DependsOn {
			if _, ok := index[up]; !ok {
				return InvalidField(indexed(at, j), "there is no task %q in this job; name one of its tasks", abbreviate([]byte(up)))
			}
			if seen[up] {
				return InvalidField(indexed(at, j), "the task %s is there twice; keep one of them", up)
			}
			seen[up] = true
		}
	}
	if cycle := d.taskCycle(index); cycle != nil {
		at := indexed("tasks", index[cycle[0]]) + ".depends_on"
		return InvalidField(at, "the tasks depend on each other in a circle: %s; remove one of these edges", abbreviate([]byte(strings.Join(cycle, " -> "))))
	}
	return nil
}

// taskCycle is a cycle of tasks with its first repeated at its end, or nil. The walk keeps its own stack: a chain of
// tasks may be as long as there are tasks.
func (d *Document) taskCycle(index map[string]int) []string {
	const (
		unseen = iota
		open
		done
	)
	state := make([]uint8, len(d.Tasks))
	type visit struct{ task, next int }
	for root := range d.Tasks {
		if state[root] != unseen {
			continue
		}
		state[root] = open
		stack := []visit{{root, 0}}
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			ups := d.Tasks[top.task].DependsOn
			if top.next == len(ups) {
				state[top.task] = done
				stack = stack[:len(stack)-1]
				continue
			}
			up := index[ups[top.next]]
			top.next++
			switch state[up] {
			case unseen:
				state[up] = open
				stack = append(stack, visit{up, 0})
			case open:
				from := slices.IndexFunc(stack, func(v visit) bool { return v.task == up })
				var cycle []string
				for _, v := range stack[from:] {
					cycle = append(cycle, d.Tasks[v.task].Name)
				}
				return append(cycle, d.Tasks[up].Name)
			}
		}
	}
	return nil
}

// ValidateExecutor checks the executor of a document by itself, as Validate does, once values have been put into it.
func (d *Document) ValidateExecutor() error {
	if d.ExecutorName() == "" {
		return nil
	}
	return answer(checkExecutor("", "", d.Exec, d.HTTP, d.Handler))
}

// checkExecutor checks that there is exactly one executor, and that one.
func checkExecutor(in, none string, e *Exec, h *HTTP, f *Handler) *Error {
	var names []string
	if e != nil {
		names = append(names, "exec")
	}
	if h != nil {
		names = append(names, "http")
	}
	if f != nil {
		names = append(names, "handler")
	}
	switch len(names) {
	case 0:
		return InvalidField(in, "%s; add one, such as exec: {command: [/bin/true]}", none)
	case 1:
	default:
		return InvalidField(joinField(in, names[1]), "there is more than one executor (%s); keep one of them", strings.Join(names, ", "))
	}
	switch {
	case e != nil:
		return e.validate(joinField(in, "exec"))
	case h != nil:
		return h.validate(joinField(in, "http"))
	}
	if err := CheckName(joinField(in, "handler.name"), f.Name); err != nil {
		return AsError(err)
	}
	return nil
}

func (e *Exec) validate(in string) *Error {
	if len(e.Command) == 0 || e.Command[0] == "" {
		return InvalidField(in+".command", "the command is empty; write a program and its arguments, such as [/usr/bin/report, --daily]")
	}
	size := 0
	for i, arg := range e.Command {
		if err := checkText(indexed(in+".command", i), arg); err != nil {
			return err
		}
		size += len(arg) + 1
	}
	switch {
	case size > MaxCommandBytes:
		return InvalidField(in+".command", "the command has %d bytes; the limit is %d, so pass large data as the payload or in a file", size, MaxCommandBytes)
	case e.Dir != "" && (!strings.HasPrefix(e.Dir, "/") || len(e.Dir) > MaxPathBytes || !printable(e.Dir, "")):
		return InvalidField(in+".dir", "%q is not an absolute path; write one such as /srv/reports", abbreviate([]byte(e.Dir)))
	case e.User != "" && (!matches(e.User, alphanumeric+"_", "._-") || len(e.User) > 64):
		return InvalidField(in+".user", "%q is not a user name; write the name of a user on the worker", abbreviate([]byte(e.User)))
	case len(e.EnvFrom) > MaxEnvFrom:
		return InvalidField(in+".env_from", "there are %d files; the limit is %d", len(e.EnvFrom), MaxEnvFrom)
	case len(e.SuccessExitCodes) > MaxExitCodes:
		return InvalidField(in+".success_exit_codes", "there are %d exit codes; the limit is %d", len(e.SuccessExitCodes), MaxExitCodes)
	}
	for i, file := range e.EnvFrom {
		if file == "" || len(file) > MaxPathBytes || !printable(file, "") {
			return InvalidField(indexed(in+".env_from", i), "this is not the name of a file; write one such as report.env")
		}
	}
	for i, code := range e.SuccessExitCodes {
		if code < 0 || code > 255 {
			return InvalidField(indexed(in+".success_exit_codes", i), "%d is not an exit code; use 0 to 255", code)
		}
	}
	return checkEnv(in+".env", e.Env)
}

func checkEnv(in string, env map[string]string) *Error {
	if len(env) > MaxEnv {
		return InvalidField(in, "there are %d variables; the limit is %d", len(env), MaxEnv)
	}
	size := 0
	for _, name := range slices.Sorted(maps.Keys(env)) {
		at := joinField(in, pathName(name))
		switch {
		case !matches(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_", "0123456789"):
			return InvalidField(at, "%q is not a variable's name; use letters, digits and underscores, not starting with a digit", abbreviate([]byte(name)))
		case strings.HasPrefix(strings.ToUpper(name), "MUSTER_"):
			return InvalidField(at, "variables that start with MUSTER_ are set by Muster; choose another name")
		}
		if err := checkText(at, env[name]); err != nil {
			return err
		}
		size += len(name) + len(env[name]) + 2
	}
	if size > MaxEnvBytes {
		return InvalidField(in, "the variables have %d bytes; the limit is %d, so pass large data as the payload or in a file", size, MaxEnvBytes)
	}
	return nil
}

func checkText(field, text string) *Error {
	if strings.IndexByte(text, 0) >= 0 {
		return InvalidField(field, "the text contains a NUL character; remove it")
	}
	return nil
}

var methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

func (h *HTTP) validate(in string) *Error {
	if err := checkURL(in+".url", h.URL); err != nil {
		return err
	}
	switch {
	case h.Method != "" && !slices.Contains(methods, h.Method):
		return InvalidField(in+".method", "%q is not a method; use one of %s", abbreviate([]byte(h.Method)), strings.Join(methods, ", "))
	case len(h.Body) > MaxHTTPBodyBytes:
		return InvalidField(in+".body", "the body has %d bytes; the limit is %d", len(h.Body), MaxHTTPBodyBytes)
	case len(h.Headers) > MaxHeaders:
		return InvalidField(in+".headers", "there are %d headers; the limit is %d", len(h.Headers), MaxHeaders)
	case len(h.SuccessStatus) > 500:
		return InvalidField(in+".success_status", "there are %d statuses; list each once", len(h.SuccessStatus))
	}
	if err := checkText(in+".body", h.Body); err != nil {
		return err
	}
	for i, s := range h.SuccessStatus {
		if s < 200 || s > 599 {
			return InvalidField(indexed(in+".success_status", i), "%d is not the status of a response; use 200 to 599", s)
		}
	}
	return checkHeaders(in+".headers", h.Headers)
}

// connectionHeaders are decided by whoever opens the connection, so a document's would be ignored or break the request.
var connectionHeaders = []string{"connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}

func checkHeaders(in string, headers map[string]string) *Error {
	seen := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		value, at, lower := headers[name], joinField(in, pathName(name)), strings.ToLower(name)
		switch {
		case len(name) > MaxNameBytes || !matches(name, alphanumeric+"!#$%&'*+-.^_`|~", ""):
			return InvalidField(at, "%q is not a header's name; use letters, digits and dashes", abbreviate([]byte(name)))
		case strings.HasPrefix(lower, "muster-"):
			return InvalidField(at, "headers that start with Muster- are set by Muster; choose another name")
		case slices.Contains(connectionHeaders, lower):
			return InvalidField(at, "the header %s is set by the worker that sends the request; remove it", name)
		case seen[lower] != "":
			return InvalidField(at, "the header %s is there twice (%s too); keep one of them", name, seen[lower])
		case len(value) > MaxHeaderBytes:
			return InvalidField(at, "the header's value has %d bytes; the limit is %d", len(value), MaxHeaderBytes)
		case strings.IndexFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) >= 0:
			return InvalidField(at, "the header's value contains a line break or another control character; remove it")
		}
		seen[lower] = name
	}
	return nil
}

// UnmarshalJSON accepts a job's name as short for {"job": NAME}. An unknown field is left to the strict decoder.
func (e *Edge) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		*e = Edge{}
		return json.Unmarshal(b, &e.Job)
	}
	type plain Edge
	return json.Unmarshal(b, (*plain)(e))
}
