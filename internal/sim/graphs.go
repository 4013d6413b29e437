package sim

import (
	"encoding/json"
	"fmt"

	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/internal/dagtest"
	"github.com/musterhq/muster/job"
)

// graphs are the runs with tasks that were asked for, and the jobs that run after others.
type graphs struct {
	drawn  []*dagtest.Graph
	trials []*dagtest.Trial // one for each root that was asked for
	work   map[job.RunID]task
	jobs   []*simJob // without a schedule, each put once the one before it is there
}

// task is one task run, or item, of a trial.
type task struct {
	of  *dagtest.Trial
	key dagtest.Key
}

// chain is jobs that run after others, and one that tasks run. Each may only name those before it.
var chain = []struct{ name, text string }{
	{"child", `{name: child, retry: {max_attempts: 2, initial: 1s}, exec: {command: [work]}}`},
	{"chain-a", `{name: chain-a, exec: {command: [work]}}`},
	{"chain-b", `{name: chain-b, depends_on: [{job: chain-a, on: done}], exec: {command: [work]}}`},
	{"chain-c", `{name: chain-c, depends_on: [{job: chain-a, on: success}, {job: chain-b, on: done}], exec: {command: [work]}}`},
}

func (c *clients) beginGraphs() {
	s := c.sim
	c.graphs.work = map[job.RunID]task{}
	for _, x := range chain {
		c.graphs.jobs = append(c.graphs.jobs, &simJob{id: s.newJobID(), name: x.name, text: x.text})
	}
	for i, j := range c.graphs.jobs[1:] {
		before := c.graphs.jobs[i]
		before.then = func() { c.put(j, j.text, false) }
	}
	c.put(c.graphs.jobs[0], c.graphs.jobs[0].text, false)
	for range s.rand.IntN(3) {
		c.graphs.drawn = append(c.graphs.drawn, dagtest.Random(func(_ string, n int) int { return s.rand.IntN(n) },
			dagtest.Options{MaxTasks: 8, RunJobs: []string{"child"}}))
	}
}

// submitGraph asks for a run of one of the graphs. How its work ends is a matter of the seed.
func (c *clients) submitGraph() {
	s := c.sim
	g := c.graphs.drawn[s.rand.IntN(len(c.graphs.drawn))]
	spec, err := g.Spec()
	if err != nil {
		panic(fmt.Sprintf("%v\n%s", err, g.Document()))
	}
	id := s.newRunID()
	x := &dagtest.Trial{Graph: g, Root: id, Outcomes: dagtest.Outcomes{Seed: s.rand.Uint64(), NoLosses: true}, Disturbed: true}
	c.graphs.trials = append(c.graphs.trials, x)
	for run, k := range x.Keys() {
		c.graphs.work[run] = task{x, k}
	}
	c.send(job.Submission{ID: id, Namespace: "default", Spec: spec}, json.RawMessage(fmt.Sprintf(`{"spec":%s}`, g.Document())))
}

// submitChain asks for a run of the job that others come after.
func (c *clients) submitChain() {
	a := c.graphs.jobs[1].name
	c.send(job.Submission{ID: c.sim.newRunID(), Namespace: "default", Job: a}, json.RawMessage(fmt.Sprintf(`{"job":%q}`, a)))
}

// outcome is how an attempt of a graph's work ends, if it is one.
func (g *graphs) outcome(a *job.Assignment) (o job.Outcome, ours bool) {
	t, ours := g.work[a.RunID]
	if ours {
		o, _ = t.of.Outcomes.Outcome(t.key, a.Attempt)
	}
	return o, ours
}

// history is what the checker is to know of jobs without a schedule.
func (g *graphs) history(s *Sim, l *node) {
	v := l.state.View()
	for _, j := range g.jobs {
		jb := checker.Job{ID: j.id, Name: j.name}
		for x := range v.Versions(j.id) {
			jb.Versions = append(jb.Versions, *x)
		}
		for _, d := range v.Dependencies("default", j.name) {
			if d.Job == j.name {
				jb.Edges = append(jb.Edges, d)
			}
		}
		if len(jb.Versions) > 0 {
			s.history.Jobs = append(s.history.Jobs, jb)
		} else if j.there {
			s.broken("the job %s is gone", j.name)
		}
	}
}

// judge compares each root and all that is below it with what an interpreter makes of T1 to T7, and what work was given.
func (g *graphs) judge(s *Sim) {
	roots, below := map[job.RunID]*job.Run{}, map[job.RunID][]*job.Run{}
	for i := range s.history.Runs {
		if r := &s.history.Runs[i].Run; r.IsRoot() {
			roots[r.ID] = r
		} else {
			below[r.RootID] = append(below[r.RootID], r)
		}
	}
	for _, x := range g.trials {
		root, rows := roots[x.Root], below[x.Root]
		if root == nil {
			continue // that it should be there is for the checker to say
		}
		s.counts["graphs judged"]++
		wrong := x.Judge(root, rows, true)
		for _, st := range s.starts {
			if g.work[st.attempt.RunID].of == x {
				s.counts["starts of tasks judged"]++
				wrong = append(wrong, x.Started(st.attempt.Assignment, rows)...)
			}
		}
		for _, w := range wrong {
			s.broken("root %s: %s", x.Root, w)
		}
	}
}

// exercised counts what graphs and edges came to.
func (s *Sim) exercised(r *checker.Report) {
	for what, n := range map[string]int{"task runs": r.Tasks, "items": r.Items, "tasks skipped": r.Skipped, "runs born of edges": r.Fired,
		"edges consumed": r.Consumed, "edges coalesced": r.Coalesced, "edges pending": r.Pending} {
		s.counts[what] += n
	}
}
