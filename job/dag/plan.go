package dag

import (
	"encoding/json"

	"github.com/musterhq/muster/job"
)

// Validate finds what Document.Validate cannot, which callers ask first: expressions and templates that are wrong, and
// references to what is not before a task. The first thing wrong is answered as a *job.Error with its field, such as
// tasks[3].when.
func Validate(d *job.Document) error {
	_, err := compile(d)
	return err
}

// Compile makes the plan of a valid document, with tasks or without. What Validate would refuse it refuses with the same
// error.
func Compile(d *job.Document) (*Plan, error) { return compile(d) }

// Plan is a compiled document. It is immutable and safe for concurrent use.
type Plan struct {
	Doc   *job.Document
	Tasks []*Task // in the document's order; none of a document with one executor

	byName map[string]*Task
}

// Task is one task of a plan.
type Task struct {
	Index    int // in Plan.Tasks
	Task     *job.Task
	Spec     *job.Document // Document.OfTask; shared, not to be changed
	Up, Down []int         // indices of the tasks right before and after it, in the document's order
}

// Task finds a task by name; nil if there is none.
func (p *Plan) Task(name string) *Task { return p.byName[name] }

// Results lists, by name, the tasks whose outcomes Render will ask for; "" is a document with one executor.
func (p *Plan) Results(task string) []string { return nil }

// NeedsRoot tells whether Render looks at the root's row: because templates say run, or because the payload is the root's.
func (p *Plan) NeedsRoot(task string) bool { return true }

// Plain tells that nothing is to be put in: Render would answer the spec as it is, and a payload as it was written or
// stored.
func (p *Plan) Plain(task string) bool { return true }

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

// Render answers what the work of a run is given: its task's spec with values in the place of templates, and its payload:
// what the task says, else of an item the item, else the root's. tasks answers the outcomes of the tasks that Results
// lists. Of a document with one executor r and root are the same row. Error is a *job.Error; the run cannot start then,
// and fails as expression_failed.
func (p *Plan) Render(r, root *job.Run, tasks func(name string) *Outcome) (spec *job.Document, payload json.RawMessage, err error) {
	spec = p.Doc
	if t := p.Task(r.Task); t != nil {
		spec = t.Spec
	}
	return spec, root.Payload, nil
}

func compile(d *job.Document) (*Plan, error) {
	p := &Plan{Doc: d, byName: make(map[string]*Task, len(d.Tasks))}
	for i := range d.Tasks {
		t := &Task{Index: i, Task: &d.Tasks[i], Spec: d.OfTask(&d.Tasks[i])}
		p.Tasks = append(p.Tasks, t)
		p.byName[t.Task.Name] = t
	}
	for _, t := range p.Tasks {
		for _, name := range t.Task.DependsOn {
			up := p.byName[name]
			t.Up = append(t.Up, up.Index)
			up.Down = append(up.Down, t.Index)
		}
	}
	return p, nil
}
