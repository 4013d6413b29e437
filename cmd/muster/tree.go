package main

import (
	"strconv"
	"strings"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

// A graph is drawn as a tree in which everything stands once: under the last of what it comes after. What it comes after
// besides is written behind its name. Only where a path forks does the tree become wider, so a chain of a thousand is a
// list.

// vertex is one thing of a graph: a task of a job, or a job among jobs.
type vertex struct {
	name  string
	after []string // names; one that is not in the graph does not count
}

// branch is a line of the tree.
type branch struct {
	vertex int
	lead   string   // what is drawn before the name
	after  []string // what it comes after, without what it stands under
	below  bool     // it stands under one of the others
}

// maxForks is how many forks deep a tree is drawn, 3 columns each. What comes after that is drawn as a tree of its own.
const maxForks = 8

type tree struct {
	vertices []vertex
	parent   []int // -1: none
	children [][]int
	out      []branch
	later    []int
}

// drawTree orders a graph into the lines of a tree.
func drawTree(vertices []vertex) []branch {
	t := &tree{vertices: vertices, children: make([][]int, len(vertices))}
	t.parent = parents(vertices)
	for v, p := range t.parent {
		if p >= 0 {
			t.children[p] = append(t.children[p], v)
		}
	}
	for v, p := range t.parent {
		if p >= 0 {
			continue
		}
		for t.later = []int{v}; len(t.later) > 0; {
			next := t.later[0]
			t.later = t.later[1:]
			t.draw(next, "", "", 0)
		}
	}
	return t.out
}

// parents answers under which vertex each stands: of those before it the one with the longest way from a beginning, and of
// equal ones the last.
func parents(vertices []vertex) []int {
	index := make(map[string]int, len(vertices))
	for i := range vertices {
		index[vertices[i].name] = i
	}
	open := make([]int, len(vertices)) // what is before it and not placed yet
	next := make([][]int, len(vertices))
	level, parent := make([]int, len(vertices)), make([]int, len(vertices))
	var ready []int
	for i := range vertices {
		parent[i] = -1
		for _, name := range vertices[i].after {
			if up, ok := index[name]; ok {
				open[i]++
				next[up] = append(next[up], i)
			}
		}
		if open[i] == 0 {
			ready = append(ready, i)
		}
	}
	for len(ready) > 0 {
		up := ready[0]
		ready = ready[1:]
		for _, v := range next[up] {
			if p := parent[v]; p < 0 || level[up] > level[p] || level[up] == level[p] && up > p {
				parent[v], level[v] = up, level[up]+1
			}
			if open[v]--; open[v] == 0 {
				ready = append(ready, v)
			}
		}
	}
	for v := range open {
		if open[v] > 0 { // part of a circle, which no document holds
			parent[v] = -1
		}
	}
	return parent
}

// draw adds v and all below it: lead stands before v, prefix before what is below.
func (t *tree) draw(v int, lead, prefix string, forks int) {
	b := branch{vertex: v, lead: lead, below: lead != ""}
	for _, name := range t.vertices[v].after {
		if !b.below || name != t.vertices[t.parent[v]].name {
			b.after = append(b.after, name)
		}
	}
	t.out = append(t.out, b)
	children := t.children[v]
	switch {
	case len(children) == 1:
		t.draw(children[0], prefix+"↓ ", prefix, forks)
		return
	case forks == maxForks:
		t.later = append(t.later, children...)
		return
	}
	for i, child := range children {
		if i < len(children)-1 {
			t.draw(child, prefix+"├─ ", prefix+"│  ", forks+1)
		} else {
			t.draw(child, prefix+"└─ ", prefix+"   ", forks+1)
		}
	}
}

// label is the line's first cell: its place in the tree, its name, and what else it comes after.
func (b *branch) label(name string) string {
	const few = 3
	if len(b.after) == 0 {
		return b.lead + name
	}
	names := make([]string, 0, few)
	for _, n := range b.after[:min(few, len(b.after))] {
		names = append(names, clip(n, 32))
	}
	text := strings.Join(names, ", ")
	if more := len(b.after) - few; more > 0 {
		text += " and " + strconv.Itoa(more) + " more"
	}
	if b.below {
		text = "also after " + text
	} else {
		text = "after " + text
	}
	return b.lead + name + " (" + text + ")"
}

// treeColumns is how wide the column of a tree becomes at most. A line that is longer pushes what is behind it.
const treeColumns = 48

// taskTree draws the tasks of a run.
func taskTree(b *strings.Builder, color bool, r *client.RunWithTasks, now job.Instant) {
	vertices := make([]vertex, len(r.Tasks))
	for i := range r.Tasks {
		vertices[i] = vertex{r.Tasks[i].Name, r.Tasks[i].DependsOn}
	}
	began := beganAt(r)
	t := newTable("TASK", "STATE", "REASON", "STARTED", "TOOK", "ATTEMPT", "WORKER", "NOTE")
	t.most = treeColumns
	for _, line := range drawTree(vertices) {
		task := &r.Tasks[line.vertex]
		started, took, attempt := "", "", ""
		if task.StartedAt != 0 && task.ReusedFrom.IsZero() {
			started = "+0s"
			if d := task.StartedAt.Sub(began); d > 0 {
				started = "+" + span(d)
			}
			if task.State == job.Running || task.State.Terminal() {
				took = tookUntil(task.StartedAt, task.FinishedAt, now)
			}
		}
		if task.Attempt > 0 {
			attempt = strconv.FormatUint(uint64(task.Attempt), 10)
		}
		t.add(line.label(task.Name), stateCell(task.State), reasonWord(task.Reason), started, took, attempt, task.Worker, taskNote(task))
	}
	t.write(b, color)
}

// beganAt is the time from which the times of a run's tasks are counted.
func beganAt(r *client.RunWithTasks) job.Instant {
	if r.StartedAt != 0 {
		return r.StartedAt
	}
	return r.CreatedAt
}

// taskNote is what there is to say of a task besides: its items, its child, where its success comes from, what went wrong.
func taskNote(t *client.TaskRun) string {
	var notes []string
	if t.Items != nil {
		notes = append(notes, itemWords(t.Items))
	}
	if !t.ChildID.IsZero() {
		notes = append(notes, "run of "+t.RunJob+": "+t.ChildID.String())
	} else if t.RunJob != "" {
		notes = append(notes, "runs "+t.RunJob)
	}
	if !t.ReusedFrom.IsZero() {
		notes = append(notes, "reused from "+t.ReusedFrom.String())
	}
	if t.AllowFailure && (t.State == job.Failed || t.State == job.Cancelled) {
		notes = append(notes, "may fail")
	}
	switch {
	case t.Error != "":
		notes = append(notes, clip(clean(t.Error), 80))
	case t.ExitCode != 0:
		notes = append(notes, "exit code "+strconv.Itoa(int(t.ExitCode)))
	}
	return strings.Join(notes, "; ")
}

// itemWords says how the items of a list stand.
func itemWords(n *client.ItemCounts) string {
	words := count(n.Total, "item")
	rest := n.Total
	var parts []string
	for _, p := range []struct {
		n    int
		word string
	}{{n.Succeeded, "succeeded"}, {n.Failed, "failed"}, {n.Cancelled, "cancelled"}, {n.Running, "running"}, {n.Queued, "queued"}} {
		if rest -= p.n; p.n > 0 {
			parts = append(parts, strconv.Itoa(p.n)+" "+p.word)
		}
	}
	if rest > 0 {
		parts = append(parts, strconv.Itoa(rest)+" to come")
	}
	if len(parts) == 0 {
		return words
	}
	return words + ": " + strings.Join(parts, ", ")
}

// taskCounts sums up how the tasks of a run stand.
func taskCounts(tasks []client.TaskRun) string {
	counts := map[job.State]int{}
	for i := range tasks {
		counts[tasks[i].State]++
	}
	var parts []string
	for _, s := range []job.State{job.Succeeded, job.Failed, job.Cancelled, job.Skipped, job.Running, job.Queued, job.Scheduled, job.Held, job.Waiting} {
		if n := counts[s]; n > 0 {
			parts = append(parts, strconv.Itoa(n)+" "+s.String())
		}
	}
	if n := counts[0]; n > 0 {
		parts = append(parts, strconv.Itoa(n)+" no longer known")
	}
	return strconv.Itoa(len(tasks)) + ": " + strings.Join(parts, ", ")
}

// reusedCount is how many tasks took their success over from the retried run.
func reusedCount(tasks []client.TaskRun) (n int) {
	for i := range tasks {
		if !tasks[i].ReusedFrom.IsZero() {
			n++
		}
	}
	return n
}
