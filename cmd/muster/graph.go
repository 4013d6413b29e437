package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

const (
	formatText    = "text"
	formatMermaid = "mermaid"
	formatDOT     = "dot"
)

const graphHelp = `Draw the tasks of a job, and the jobs that it depends on and that depend on it, as
a tree, or with -o mermaid or -o dot for other programs:

    muster job graph etl
    muster job graph etl -o dot | dot -Tsvg > etl.svg

muster run show draws how the tasks of one run stand.`

func (c *cli) jobGraphCommand() *cobra.Command {
	return &cobra.Command{
		Use: "graph NAME [-o text|mermaid|dot]", Short: "Draw the tasks of a job, and the jobs before and after it", Long: graphHelp,
		Args: takes("NAME"), ValidArgsFunction: c.completeJobs, Annotations: map[string]string{formsOfCommand: formatText + "," + formatMermaid + "," + formatDOT},
		RunE: func(cmd *cobra.Command, args []string) error { return c.jobGraph(cmd.Context(), args[0]) },
	}
}

// jobGraph is what there is to draw of a job.
type jobGraph struct {
	Job   string           `json:"job"`
	Tasks []job.Task       `json:"tasks"`
	Edges []job.Dependency `json:"edges"` // between the jobs before and after this one, and it
	more  bool             // there are further jobs
}

func (c *cli) jobGraph(ctx context.Context, name string) error {
	if err := checkJobName(name); err != nil {
		return err
	}
	ctx, k, err := c.client(ctx)
	if err != nil {
		return err
	}
	j, err := k.Job(ctx, name)
	if err != nil {
		return err
	}
	g := &jobGraph{Job: name, Tasks: j.Spec.Tasks}
	if err := g.readEdges(ctx, k); err != nil {
		return err
	}
	if g.Tasks == nil {
		g.Tasks = []job.Task{}
	}
	return c.print(answer{
		value: g,
		names: func() []string { return []string{name} },
		table: func(b *strings.Builder, color bool) {
			switch c.format {
			case formatMermaid:
				g.mermaid(b)
			case formatDOT:
				g.dot(b)
			default:
				g.text(b, color)
			}
		},
		note: when(g.more, "only the nearest %d jobs are drawn", maxDrawnJobs),
	})
}

// maxDrawnJobs bounds the jobs that are asked for what is before and after them.
const maxDrawnJobs = 200

// readEdges goes from the job up and down along the dependencies between jobs.
func (g *jobGraph) readEdges(ctx context.Context, k *client.Client) error {
	g.Edges = []job.Dependency{}
	for _, up := range []bool{true, false} {
		seen, next := map[string]bool{g.Job: true}, []string{g.Job}
		for len(next) > 0 {
			d, err := dependencies(ctx, k, next[0])
			if err != nil {
				return err
			}
			next = next[1:]
			edges := d.Dependents
			if up {
				edges = d.Upstreams
			} else {
				g.addEdges(d.Upstreams) // what a job after this one waits for besides
			}
			g.addEdges(edges)
			for _, e := range edges {
				other := e.Job
				if up {
					other = e.Upstream
				}
				switch {
				case seen[other]:
				case len(seen) >= maxDrawnJobs:
					g.more = true
				default:
					seen[other] = true
					next = append(next, other)
				}
			}
		}
	}
	slices.SortFunc(g.Edges, func(a, b job.Dependency) int {
		return cmp.Or(strings.Compare(a.Job, b.Job), strings.Compare(a.Upstream, b.Upstream))
	})
	return nil
}

func (g *jobGraph) addEdges(edges []job.Dependency) {
	for _, e := range edges {
		if !slices.ContainsFunc(g.Edges, func(x job.Dependency) bool { return x.Job == e.Job && x.Upstream == e.Upstream }) {
			g.Edges = append(g.Edges, e)
		}
	}
}

// dependencies reads the edges of a job. A job that was deleted a moment ago, or a node that keeps no edges, has none.
func dependencies(ctx context.Context, k *client.Client, name string) (*client.Dependencies, error) {
	d, err := k.Dependencies(ctx, name)
	if job.CodeOf(err) == job.NotFound {
		return new(client.Dependencies), nil
	}
	return d, err
}

// jobs are the jobs of the graph, those that come first first.
func (g *jobGraph) jobs() []vertex {
	index := map[string]int{}
	var out []vertex
	add := func(name string) int {
		i, ok := index[name]
		if !ok {
			i = len(out)
			index[name] = i
			out = append(out, vertex{name: name})
		}
		return i
	}
	for _, e := range g.Edges {
		add(e.Upstream)
		i := add(e.Job)
		out[i].after = append(out[i].after, e.Upstream)
	}
	slices.SortFunc(out, func(x, y vertex) int { return strings.Compare(x.name, y.name) })
	return out
}

// edge finds how a job depends on another one.
func (g *jobGraph) edge(of, upstream string) job.Dependency {
	i := slices.IndexFunc(g.Edges, func(e job.Dependency) bool { return e.Job == of && e.Upstream == upstream })
	return g.Edges[i]
}

func (g *jobGraph) taskVertices() []vertex {
	out := make([]vertex, len(g.Tasks))
	for i := range g.Tasks {
		out[i] = vertex{g.Tasks[i].Name, g.Tasks[i].DependsOn}
	}
	return out
}

func (g *jobGraph) text(b *strings.Builder, color bool) {
	if len(g.Tasks) > 0 {
		t := newTable("TASK", "RUNS", "IF", "FOR EACH")
		t.most = treeColumns
		for _, line := range drawTree(g.taskVertices()) {
			task := &g.Tasks[line.vertex]
			t.add(line.label(task.Name), taskWords(task), conditionWords(task), forEachWords(task))
		}
		t.write(b, color)
	}
	if len(g.Tasks) > 0 && len(g.Edges) > 0 {
		b.WriteByte('\n')
	}
	if len(g.Edges) > 0 {
		t := newTable("JOB", "RUNS AFTER")
		t.most = treeColumns
		jobs := g.jobs()
		for _, line := range drawTree(jobs) {
			v := &jobs[line.vertex]
			name := v.name
			if name == g.Job {
				name += " (this job)"
			}
			var after []string
			for _, up := range v.after {
				after = append(after, up+": "+string(g.edge(v.name, up).On))
			}
			t.add(line.lead+name, strings.Join(after, ", "))
		}
		t.write(b, color)
	}
	if len(g.Tasks) == 0 && len(g.Edges) == 0 {
		fmt.Fprintf(b, "The job %s has one task, depends on no job, and no job depends on it.\n", g.Job)
	}
}

// taskWords says in one cell what a task does.
func taskWords(t *job.Task) string {
	if t.RunJob != nil {
		return "job " + t.RunJob.Job
	}
	return executorWords(&job.Document{Exec: t.Exec, HTTP: t.HTTP, Handler: t.Handler})
}

// conditionWords says when a task runs, if that is not simply after those before it.
func conditionWords(t *job.Task) string {
	var words []string
	if t.RunIf != "" && t.RunIf != job.AllSucceeded {
		words = append(words, string(t.RunIf))
	}
	if t.When != "" {
		words = append(words, clip(clean(t.When), 48))
	}
	return strings.Join(words, " and ")
}

func forEachWords(t *job.Task) string {
	switch {
	case t.ForEach == "":
		return ""
	case t.MaxParallel == 0:
		return clip(clean(t.ForEach), 48)
	}
	return clip(clean(t.ForEach), 48) + ", " + strconv.Itoa(t.MaxParallel) + " at once"
}

// caption is what stands in the box of a task, line by line.
func caption(t *job.Task) []string {
	lines := []string{t.Name}
	if t.RunJob != nil {
		lines = append(lines, "runs "+t.RunJob.Job)
	}
	if words := conditionWords(t); words != "" {
		lines = append(lines, "if "+words)
	}
	if words := forEachWords(t); words != "" {
		lines = append(lines, "for each "+words)
	}
	if t.AllowFailure {
		lines = append(lines, "may fail")
	}
	return lines
}

// Both languages get boxes with ids of our own, so that no name is ever read as a word of theirs.

func (g *jobGraph) mermaid(b *strings.Builder) {
	b.WriteString("flowchart LR\n")
	jobs := g.jobs()
	if len(jobs) == 0 && len(g.Tasks) == 0 {
		jobs = []vertex{{name: g.Job}}
	}
	id := ids(jobs)
	for i, v := range jobs {
		if v.name == g.Job && len(g.Tasks) > 0 {
			continue // it is drawn with its tasks
		}
		fmt.Fprintf(b, "  j%d[\"%s\"]\n", i, mermaidText(v.name))
	}
	if len(g.Tasks) > 0 {
		indent := "  "
		at, inJobs := id[g.Job]
		if inJobs {
			fmt.Fprintf(b, "  subgraph j%d [\"%s\"]\n", at, mermaidText(g.Job))
			indent = "    "
		}
		g.mermaidTasks(b, indent)
		if inJobs {
			b.WriteString("  end\n")
		}
	}
	for i, v := range jobs {
		for _, up := range v.after {
			fmt.Fprintf(b, "  j%d -->|%s| j%d\n", id[up], g.edge(v.name, up).On, i)
		}
	}
}

func (g *jobGraph) mermaidTasks(b *strings.Builder, indent string) {
	tasks := g.taskVertices()
	id := ids(tasks)
	for i := range g.Tasks {
		open, shut := `["`, `"]`
		if g.Tasks[i].ForEach != "" {
			open, shut = `[["`, `"]]`
		}
		lines := caption(&g.Tasks[i])
		for n := range lines {
			lines[n] = mermaidText(lines[n])
		}
		fmt.Fprintf(b, "%st%d%s%s%s\n", indent, i, open, strings.Join(lines, "<br/>"), shut)
	}
	for i, v := range tasks {
		for _, up := range v.after {
			fmt.Fprintf(b, "%st%d --> t%d\n", indent, id[up], i)
		}
	}
}

func ids(vertices []vertex) map[string]int {
	m := make(map[string]int, len(vertices))
	for i := range vertices {
		m[vertices[i].name] = i
	}
	return m
}

// mermaidText writes what means something to Mermaid, or to Markdown or HTML within it, as a character's number.
func mermaidText(s string) string {
	var b strings.Builder
	for _, r := range clean(s) {
		if r < 0x80 && strings.ContainsRune("\"#&<>`;\\*[]{}()|", r) {
			fmt.Fprintf(&b, "#%d;", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func (g *jobGraph) dot(b *strings.Builder) {
	fmt.Fprintf(b, "digraph \"%s\" {\n  rankdir=LR;\n  compound=true;\n  node [shape=box];\n", dotText(g.Job))
	jobs := g.jobs()
	if len(jobs) == 0 && len(g.Tasks) == 0 {
		jobs = []vertex{{name: g.Job}}
	}
	id := ids(jobs)
	for i, v := range jobs {
		if v.name != g.Job || len(g.Tasks) == 0 {
			fmt.Fprintf(b, "  j%d [label=\"%s\"];\n", i, dotText(v.name))
		}
	}
	indent := "  "
	_, inJobs := id[g.Job]
	if inJobs = inJobs && len(g.Tasks) > 0; inJobs {
		fmt.Fprintf(b, "  subgraph cluster_tasks {\n    label=\"%s\";\n", dotText(g.Job))
		indent = "    "
	}
	tasks := g.taskVertices()
	taskID := ids(tasks)
	for i := range g.Tasks {
		lines := caption(&g.Tasks[i])
		for n := range lines {
			lines[n] = dotText(lines[n])
		}
		double := ""
		if g.Tasks[i].ForEach != "" {
			double = ", peripheries=2"
		}
		fmt.Fprintf(b, "%st%d [label=\"%s\"%s];\n", indent, i, strings.Join(lines, `\n`), double)
	}
	for i, v := range tasks {
		for _, up := range v.after {
			fmt.Fprintf(b, "%st%d -> t%d;\n", indent, taskID[up], i)
		}
	}
	if inJobs {
		b.WriteString("  }\n")
	}
	for _, v := range jobs {
		for _, up := range v.after {
			from, clipFrom := g.dotEnd(id, up, true)
			to, clipTo := g.dotEnd(id, v.name, false)
			fmt.Fprintf(b, "  %s -> %s [label=\"%s\"%s%s];\n", from, to, g.edge(v.name, up).On, clipFrom, clipTo)
		}
	}
	b.WriteString("}\n")
}

// dotEnd is an end of an edge between jobs. DOT has no edges to clusters, only such as are cut off at one.
func (g *jobGraph) dotEnd(id map[string]int, name string, tail bool) (node, attribute string) {
	switch {
	case name != g.Job || len(g.Tasks) == 0:
		return fmt.Sprintf("j%d", id[name]), ""
	case tail:
		return fmt.Sprintf("t%d", len(g.Tasks)-1), ", ltail=cluster_tasks"
	}
	return "t0", ", lhead=cluster_tasks"
}

var dotEscape = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

func dotText(s string) string { return dotEscape.Replace(clean(s)) }
