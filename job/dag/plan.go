package dag

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"

	"cel.dev/cel-go/cel"

	"github.com/musterhq/muster/job"
)

// Validate finds what Document.Validate cannot, which callers ask first: expressions and templates that are wrong, and
// references to what is not before a task. The first thing wrong is answered as a *job.Error with its field, such as
// tasks[3].when.
func Validate(d *job.Document) error {
	if err := literal(d); err != nil {
		return err
	}
	_, err := Compile(d)
	return err
}

// literal refuses what looks like a template where none is filled in, and would be taken for the text that it is.
func literal(d *job.Document) error {
	check := func(field string, texts ...string) error {
		for _, text := range texts {
			if strings.Contains(text, job.TemplateMark) {
				return job.InvalidField(field, "there are no templates here; they stand in env, in http's url, headers and body, and in payload")
			}
		}
		return nil
	}
	all := func(field string, texts map[string]string) error {
		for _, k := range slices.Sorted(maps.Keys(texts)) {
			if err := check(field+"."+k, texts[k]); err != nil {
				return err
			}
		}
		return nil
	}
	errs := []error{all("labels", d.Labels), all("selector", d.Selector)}
	if d.Concurrency != nil {
		errs = append(errs, check("concurrency.key", d.Concurrency.Key))
	}
	for i := range d.Tasks {
		errs = append(errs, all("tasks["+strconv.Itoa(i)+"].selector", d.Tasks[i].Selector))
	}
	return cmp.Or(errs...)
}

// Compile makes the plan of a valid document, with tasks or without. What Validate would refuse it refuses with the same
// error.
func Compile(d *job.Document) (*Plan, error) {
	c := compiler{plan: &Plan{Doc: d, byName: make(map[string]*Task, len(d.Tasks))}, exprs: map[source]*expr{}}
	if err := c.document(); err != nil {
		return nil, err
	}
	return c.plan, nil
}

// Plan is a compiled document. It is immutable and safe for concurrent use.
type Plan struct {
	Doc   *job.Document
	Tasks []*Task // in the document's order; none of a document with one executor

	byName    map[string]*Task
	own       *work    // of a document with one executor
	payload   *payload // of the document, if it has templates
	canonical []byte   // of the document's payload then
	result    *expr
	wants     []uint16 // by task: how many whens, for_eachs and results ask for its result or error
	payOf     bool     // one of those says run.payload
}

// Task is one task of a plan.
type Task struct {
	Index    int // in Plan.Tasks
	Task     *job.Task
	Spec     *job.Document // Document.OfTask; shared, not to be changed
	Up, Down []int         // indices of the tasks right before and after it, in the document's order

	work
	when, forEach *expr
	asks          []int // those whose results or errors when and for_each ask for
	lane          string
}

// work is what a run of the task or of the document is given.
type work struct {
	env, headers map[string]template
	url, body    template
	payload      *payload
	results      []string
	filled       bool // there are templates in the executor
	root         bool // Render looks at the root
	plain        bool
}

// Task finds a task by name; nil if there is none.
func (p *Plan) Task(name string) *Task { return p.byName[name] }

func (p *Plan) work(task string) *work {
	if t := p.byName[task]; t != nil {
		return &t.work
	}
	return p.own
}

// Results lists, by name, the tasks whose outcomes Render will ask for: of one with for_each its items' results too. The
// task "" is a document with one executor.
func (p *Plan) Results(task string) []string { return p.work(task).results }

// NeedsRoot tells whether Render looks at the root's row: because templates say run, or because the payload is the root's.
func (p *Plan) NeedsRoot(task string) bool { return p.work(task).root }

// Plain tells that nothing is to be put in: Render answers the spec as it is, and a payload as it was written or stored.
func (p *Plan) Plain(task string) bool { return p.work(task).plain }

// Outcome is how a task ended, as expressions see it.
type Outcome struct {
	State  job.State
	Reason job.Reason
	Error  string
	Result json.RawMessage
	// Items are the results of the items of a task with for_each, in order, nil where an item has none. If the slice is
	// not nil it is the task's result, and Result does not count.
	Items []json.RawMessage
}

// source is an expression and what it can name: equal ones are compiled once.
type source struct {
	text string
	in   scope
}

type compiler struct {
	plan  *Plan
	exprs map[source]*expr
	above []set // by task: those before it, near and far
}

// set is a set of tasks by index.
type set []uint64

func (s set) has(i int) bool { return s[i/64]&(1<<(i%64)) != 0 }
func (s set) add(i int)      { s[i/64] |= 1 << (i % 64) }

func (c *compiler) document() error {
	p, d := c.plan, c.plan.Doc
	var err error
	if p.payload, err = c.ownPayload(); err != nil {
		return err
	}
	if p.payload != nil {
		p.canonical = canonical(d.Payload)
	}
	if d.Tasks == nil {
		p.own, err = c.work(d, nil)
		return err
	}
	p.own = &work{plain: true}
	if err := c.graph(); err != nil {
		return err
	}
	p.wants = make([]uint16, len(p.Tasks))
	for _, t := range p.Tasks {
		if err := c.task(t); err != nil {
			return err
		}
	}
	if d.Result != "" {
		if p.result, err = c.expr("result", d.Result, taskScope, nil); err != nil {
			return err
		}
		c.asks(p.result)
	}
	return nil
}

// graph links the tasks and finds which are before which. A document that is valid has no dangling edge and no cycle.
func (c *compiler) graph() error {
	p, d := c.plan, c.plan.Doc
	for i := range d.Tasks {
		t := &Task{Index: i, Task: &d.Tasks[i], Spec: d.OfTask(&d.Tasks[i])}
		t.lane = string(job.LaneOf(d.Namespace, t.Spec))
		p.Tasks = append(p.Tasks, t)
		p.byName[t.Task.Name] = t
	}
	left := make([]int, len(p.Tasks))
	var ready []int
	for _, t := range p.Tasks {
		for j, name := range t.Task.DependsOn {
			up := p.byName[name]
			if up == nil {
				return job.InvalidField(at(t, "depends_on")+"["+strconv.Itoa(j)+"]", "there is no task %q in this job; name one of its tasks", name)
			}
			t.Up = append(t.Up, up.Index)
			up.Down = append(up.Down, t.Index)
		}
		if left[t.Index] = len(t.Up); len(t.Up) == 0 {
			ready = append(ready, t.Index)
		}
	}
	c.above = make([]set, len(p.Tasks))
	for done := 0; done < len(ready); done++ {
		t := p.Tasks[ready[done]]
		above := make(set, (len(p.Tasks)+63)/64)
		for _, up := range t.Up {
			above.add(up)
			for i, word := range c.above[up] {
				above[i] |= word
			}
		}
		c.above[t.Index] = above
		for _, down := range t.Down {
			if left[down]--; left[down] == 0 {
				ready = append(ready, down)
			}
		}
	}
	if len(ready) < len(p.Tasks) {
		return job.InvalidField("tasks", "the tasks depend on each other in a circle; remove an edge")
	}
	return nil
}

func at(t *Task, field string) string { return "tasks[" + strconv.Itoa(t.Index) + "]." + field }

func (c *compiler) task(t *Task) error {
	var err error
	if t.Task.When != "" {
		if t.when, err = c.expr(at(t, "when"), t.Task.When, taskScope, t); err != nil {
			return err
		}
		if !may(t.when, cel.BoolKind) {
			return job.InvalidField(at(t, "when"), "the condition is a %s; make it true or false, such as by a comparison", t.when.out)
		}
		t.asks = append(t.asks, c.asks(t.when)...)
	}
	if t.Task.ForEach != "" {
		if t.forEach, err = c.expr(at(t, "for_each"), t.Task.ForEach, taskScope, t); err != nil {
			return err
		}
		if !may(t.forEach, cel.ListKind) {
			return job.InvalidField(at(t, "for_each"), "the expression is a %s; make it a list", t.forEach.out)
		}
		t.asks = append(t.asks, c.asks(t.forEach)...)
	}
	w, err := c.work(t.Spec, t)
	if err == nil {
		t.work = *w
	}
	return err
}

// asks counts the tasks whose results or errors a decision asks for.
func (c *compiler) asks(e *expr) []int {
	var asks []int
	for _, r := range e.refs {
		if r.data {
			i := c.plan.byName[r.task].Index
			c.plan.wants[i]++
			asks = append(asks, i)
		}
	}
	c.plan.payOf = c.plan.payOf || e.payload
	return asks
}

// expr compiles an expression of a task, or with nil of the document, which may look at all tasks.
func (c *compiler) expr(field, text string, in scope, of *Task) (*expr, error) {
	e := c.exprs[source{text, in}]
	if e == nil {
		if len(c.exprs) == MaxExpressions {
			return nil, job.InvalidField(field, "there are more than %d different expressions in this job; split it, or let expressions be alike", MaxExpressions)
		}
		var err error
		if e, err = parseExpr(text, in); err != nil {
			return nil, &job.Error{Code: job.Invalid, Reason: "invalid_expression", Field: field, Message: err.Error()}
		}
		c.exprs[source{text, in}] = e
	}
	for _, r := range e.refs {
		switch up := c.plan.byName[r.task]; {
		case up == nil:
			return nil, job.InvalidField(field, "the expression names the task %q, and there is none in this job; name one of its tasks", job.CleanText(r.task, 64))
		case of == nil:
		case up == of:
			return nil, job.InvalidField(field, "the expression names its own task, %s, which has not ended yet; name one before it", r.task)
		case !c.above[of.Index].has(up.Index):
			return nil, job.InvalidField(field, "the expression names the task %s, which need not have ended before %s starts; add it to depends_on", r.task, of.Task.Name)
		}
	}
	return e, nil
}

// may tells whether an expression can be of a kind: what depends on data is judged when it is there.
func may(e *expr, kind cel.Kind) bool {
	return e.out.Kind() == cel.DynKind || e.out.Kind() == kind
}

// work compiles the templates of a spec: of a task, or with nil of the document.
func (c *compiler) work(spec *job.Document, of *Task) (*work, error) {
	b := workBuilder{compiler: c, of: of, scope: runScope, names: map[string]bool{}}
	inherits := true
	if of != nil {
		b.in, b.scope, inherits = at(of, ""), taskScope, spec.Payload == nil
		if of.forEach != nil {
			b.scope, inherits = itemScope, false
		}
	}
	if err := b.executor(spec); err != nil {
		return nil, err
	}
	if of != nil {
		var err error
		if b.payload, err = cutPayload(b.in+"payload", spec.Payload, b.template); err != nil {
			return nil, err
		}
	}
	b.results = slices.Sorted(maps.Keys(b.names))
	b.root = b.run || inherits
	b.plain = !b.filled && b.payload == nil && (!inherits || c.plan.payload == nil)
	return &b.work, nil
}

// ownPayload compiles the document's payload, which cannot look at itself.
func (c *compiler) ownPayload() (*payload, error) {
	return cutPayload("payload", c.plan.Doc.Payload, func(field, text string) (template, error) {
		b := workBuilder{compiler: c, scope: runScope}
		t, err := b.template(field, text)
		if err == nil && b.itself {
			return nil, job.InvalidField(field, "the payload refers to itself; take run.payload out of it")
		}
		return t, err
	})
}

// workBuilder compiles the templates of one spec and notes what they name.
type workBuilder struct {
	*compiler
	work
	in     string // what the spec's fields begin with
	of     *Task
	scope  scope
	names  map[string]bool // of tasks
	run    bool            // they name run
	itself bool            // they name run.payload
}

// template compiles a text that has templates.
func (b *workBuilder) template(field, text string) (template, error) {
	pieces, err := cut(text)
	if err != nil {
		return nil, &job.Error{Code: job.Invalid, Reason: "invalid_expression", Field: field, Message: err.Error()}
	}
	t := make(template, len(pieces))
	for i, p := range pieces {
		if !p.expr {
			t[i].text = p.text
			continue
		}
		e, err := b.expr(field, p.text, b.scope, b.of)
		if err != nil {
			return nil, err
		}
		t[i].expr = e
		b.run, b.itself = b.run || e.run, b.itself || e.payload
		for _, r := range e.refs {
			b.names[r.task] = true
		}
	}
	return t, nil
}

// maybe compiles a text if it has templates.
func (b *workBuilder) maybe(field, text string) (template, error) {
	if !strings.Contains(text, job.TemplateMark) {
		return nil, nil
	}
	b.filled = true
	return b.template(field, text)
}

func (b *workBuilder) texts(field string, texts map[string]string) (map[string]template, error) {
	var all map[string]template
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		t, err := b.maybe(field+"."+name, texts[name])
		if err != nil {
			return nil, err
		}
		if t != nil {
			if all == nil {
				all = map[string]template{}
			}
			all[name] = t
		}
	}
	return all, nil
}

func (b *workBuilder) executor(spec *job.Document) (err error) {
	if e := spec.Exec; e != nil {
		for i, arg := range e.Command {
			if strings.Contains(arg, job.TemplateMark) {
				return job.InvalidField(b.in+"exec.command["+strconv.Itoa(i)+"]", "a command holds no templates, so that data never becomes a command; put the value into env, and let the command read it there")
			}
		}
		for field, text := range map[string]string{"dir": e.Dir, "env_from": strings.Join(e.EnvFrom, " ")} {
			if strings.Contains(text, job.TemplateMark) {
				return job.InvalidField(b.in+"exec."+field, "there are no templates here; they stand in env, in http's url, headers and body, and in payload")
			}
		}
		if b.env, err = b.texts(b.in+"exec.env", e.Env); err != nil {
			return err
		}
	}
	if h := spec.HTTP; h != nil {
		if b.url, err = b.maybe(b.in+"http.url", h.URL); err != nil {
			return err
		}
		if err = b.checkURL(h); err != nil {
			return err
		}
		if b.headers, err = b.texts(b.in+"http.headers", h.Headers); err != nil {
			return err
		}
		if b.body, err = b.maybe(b.in+"http.body", h.Body); err != nil {
			return err
		}
	}
	return nil
}

// checkURL checks what is written of an address with templates, unless even its beginning is not.
func (b *workBuilder) checkURL(h *job.HTTP) error {
	if b.url == nil || b.url[0].expr != nil {
		return nil
	}
	var url strings.Builder
	for _, g := range b.url {
		if url.WriteString(g.text); g.expr != nil {
			url.WriteString("0") // may stand for a port
		}
	}
	err := (&job.Document{HTTP: &job.HTTP{Method: h.Method, URL: url.String()}}).ValidateExecutor()
	if e := job.AsError(err); e != nil && !strings.Contains(url.String(), job.TemplateMark) {
		return job.InvalidField(b.in+e.Field, "%s", e.Message)
	}
	return nil
}
