package storagetest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/musterhq/muster/job"
)

// depending is the document of a job that depends on others.
func (f *fixture) depending(name string, upstreams ...string) *job.Document {
	return f.document(name, func(d *job.Document) {
		for _, u := range upstreams {
			d.DependsOn = append(d.DependsOn, job.Edge{Job: u, On: job.OnSuccess})
		}
	})
}

// depend puts the document of a job that depends on others.
func (f *fixture) depend(name string, upstreams ...string) *job.Job {
	f.Helper()
	return f.put(f.depending(name, upstreams...))
}

// refusedEdge tries to, and is refused without a trace.
func (f *fixture) refusedEdge(d *job.Document) *job.Error {
	f.Helper()
	before, _ := f.Job(f.ctx, d.Namespace, d.Name)
	j, err := f.PutJob(f.ctx, job.PutJob{ID: jobID(f.now), Spec: d, At: f.now.Add(time.Second)})
	if err == nil {
		f.Fatalf("%s may depend on %v: version %d", d.Name, d.DependsOn, j.Version)
	}
	after, _ := f.Job(f.ctx, d.Namespace, d.Name)
	f.equal("the job", before, after)
	return job.AsError(err)
}

// cyclic checks that a job is refused with a cycle through it.
func (f *fixture) cyclic(want string, name string, upstreams ...string) {
	f.Helper()
	e := f.refusedEdge(f.depending(name, upstreams...))
	if e.Code != job.Conflict || e.Reason != "cycle" || !strings.Contains(e.Message, ": "+want+"; ") {
		f.Fatalf("%s -> %v: %s %s %q, want the cycle %s", name, upstreams, e.Code, e.Reason, e.Message, want)
	}
}

// edgesOf reads who depends on whom, a name of a job and one of its upstreams each.
func (f *fixture) edgesOf(namespace string) (edges [][2]string) {
	f.Helper()
	page, err := f.Jobs(f.ctx, job.JobQuery{Namespace: namespace, Limit: 1000})
	f.code("jobs", err, "")
	for _, j := range page.Jobs {
		for _, e := range j.Spec.DependsOn {
			edges = append(edges, [2]string{j.Name, e.Job})
		}
	}
	return edges
}

// acyclic tells whether nothing among edges depends on itself.
func acyclic(edges [][2]string) bool {
	left := slices.Clone(edges)
	for len(left) > 0 {
		n := len(left)
		left = slices.DeleteFunc(left, func(e [2]string) bool {
			return !slices.ContainsFunc(left, func(o [2]string) bool { return o[0] == e[1] })
		})
		if len(left) == n {
			return false
		}
	}
	return true
}

var dependencies = []testCase{
	{"a job's dependencies read back as they were put, and change with it", func(f *fixture) {
		f.depend("a")
		f.depend("b")
		d := f.depending("c", "b", "a")
		d.DependsOn[1].On = job.OnDone
		f.put(d)
		got, err := f.Job(f.ctx, "default", "c")
		f.code("job", err, "")
		f.equal("document", d, got.Spec)
		if again := f.put(d); again.Version != 1 {
			f.Fatalf("an equal document made version %d", again.Version)
		}
		d2 := f.depending("c", "b")
		d2.DependsOn[0].On = job.OnFailure
		if j := f.put(d2); j.Version != 2 {
			f.Fatalf("version %d", j.Version)
		}
		got, err = f.Job(f.ctx, "default", "c")
		f.code("job", err, "")
		f.equal("changed document", d2, got.Spec)
	}},
	{"an upstream that is not there is refused, with the field and its name", func(f *fixture) {
		f.depend("a")
		f.put(f.document("elsewhere", func(d *job.Document) { d.Namespace = "other" }))
		unknown := func(d *job.Document, field, upstream string) {
			f.Helper()
			if e := f.refusedEdge(d); e.Code != job.Invalid || e.Field != field || !strings.Contains(e.Message, fmt.Sprintf("%q", upstream)) {
				f.Fatalf("an unknown upstream: %+v", e)
			}
		}
		unknown(f.depending("b", "none"), "depends_on[0].job", "none")
		unknown(f.depending("b", "a", "none"), "depends_on[1].job", "none")
		unknown(f.depending("a", "none"), "depends_on[0].job", "none")
		unknown(f.depending("b", "elsewhere"), "depends_on[0].job", "elsewhere")
		f.depend("gone")
		if _, err := f.DeleteJob(f.ctx, "default", "gone", 0); err != nil {
			f.Fatal(err)
		}
		unknown(f.depending("b", "gone"), "depends_on[0].job", "gone")
	}},
	{"a job does not depend on itself", func(f *fixture) {
		f.cyclic("a -> a", "a", "a")
		f.depend("a")
		f.depend("b")
		f.cyclic("a -> a", "a", "b", "a")
	}},
	{"a cycle is refused, and said", func(f *fixture) {
		f.depend("a")
		f.depend("b", "a")
		f.depend("c", "b")
		f.cyclic("a -> b -> a", "a", "b")
		f.cyclic("a -> c -> b -> a", "a", "c")
		f.depend("x")
		f.depend("y", "x", "c")
		f.cyclic("a -> y -> c -> b -> a", "a", "x", "y")
		f.cyclic("b -> c -> b", "b", "y", "c") // of two cycles the shorter one
		f.equal("edges", [][2]string{{"b", "a"}, {"c", "b"}, {"y", "x"}, {"y", "c"}}, f.edgesOf("default"))
	}},
	{"several ways to one job are no cycle", func(f *fixture) {
		f.depend("top")
		f.depend("left", "top")
		f.depend("right", "top")
		f.depend("bottom", "left", "right", "top")
		f.depend("right", "top", "left")
		f.cyclic("top -> bottom -> top", "top", "bottom")
	}},
	{"only what jobs say now counts", func(f *fixture) {
		f.depend("a")
		f.depend("b", "a")
		f.cyclic("a -> b -> a", "a", "b")
		f.depend("b")
		f.depend("a", "b")
		f.cyclic("b -> a -> b", "b", "a")
		f.depend("c")
		f.depend("a", "c")
		if _, err := f.DeleteJob(f.ctx, "default", "b", 0); err != nil {
			f.Fatalf("delete a job that others depended on: %v", err)
		}
		f.depend("b", "a")
		f.cyclic("c -> b -> a -> c", "c", "b")
	}},
	{"namespaces have graphs of their own", func(f *fixture) {
		in := func(d *job.Document) *job.Document { d.Namespace = "other"; return d }
		f.depend("a")
		f.depend("b", "a")
		f.put(in(f.depending("b")))
		f.put(in(f.depending("a", "b")))
		if _, err := f.DeleteJob(f.ctx, "other", "a", 0); err != nil {
			f.Fatalf("delete a job of a name that has dependents elsewhere: %v", err)
		}
		if _, err := f.DeleteJob(f.ctx, "default", "a", 0); job.CodeOf(err) != job.Conflict {
			f.Fatalf("delete a job that has dependents: %v", err)
		}
	}},
	{"a cycle of 300 jobs is refused, in a text of bounded length", func(f *fixture) {
		f.depend(name(0))
		for i := range 299 {
			f.depend(name(i+1), name(i))
		}
		e := f.refusedEdge(f.depending(name(0), name(299)))
		if e.Reason != "cycle" || !strings.Contains(e.Message, name(0)+" -> "+name(299)+" -> ") || len(e.Message) > 2000 {
			f.Fatalf("refused with %+v", e)
		}
	}},
	{"what others depend on is not deleted, and who they are is said", func(f *fixture) {
		f.depend("a")
		var names []string
		for i := range 7 {
			f.depend(name(i), "a")
			names = append(names, name(i))
		}
		refused := func(want []string) {
			f.Helper()
			_, err := f.DeleteJob(f.ctx, "default", "a", 0)
			e := job.AsError(err)
			if e == nil || e.Code != job.Conflict || e.Reason != "has_dependents" {
				f.Fatalf("delete a job with %d dependents: %v", len(want), err)
			}
			var named []string
			for _, n := range names {
				if strings.Contains(e.Message, n) {
					named = append(named, n)
				}
			}
			f.equal("named in "+e.Message, want[:min(5, len(want))], named)
		}
		refused(names)
		if _, err := f.Job(f.ctx, "default", "a"); err != nil {
			f.Fatal(err)
		}
		_, err := f.DeleteJob(f.ctx, "default", "a", 9)
		f.code("delete another version of it", err, job.Conflict)
		for i := range 6 {
			if i%2 == 0 {
				f.depend(name(i))
			} else if _, err := f.DeleteJob(f.ctx, "default", name(i), 0); err != nil {
				f.Fatalf("delete a job that nothing depends on: %v", err)
			}
			refused(names[i+1:])
		}
		f.depend(name(6))
		if _, err := f.DeleteJob(f.ctx, "default", "a", 0); err != nil {
			f.Fatalf("delete it at last: %v", err)
		}
	}},
	{"8 writers that close cycles at once: exactly one of each is refused, 200 times", func(f *fixture) {
		const writers, rounds = 8, 25
		for round := range rounds {
			ring := []int{2, 8, 4}[round%3] // so many writers close one cycle together
			of := func(w int) string { return fmt.Sprintf("r%d-%d", round, w) }
			for w := range writers {
				f.depend(of(w))
			}
			refused := make([]int, writers/ring)
			var wg sync.WaitGroup
			var mu sync.Mutex
			start := make(chan struct{})
			for w := range writers {
				first := w / ring * ring
				d := f.depending(of(w), of(first+(w+1-first)%ring))
				wg.Go(func() {
					<-start
					_, err := f.PutJob(f.ctx, job.PutJob{ID: jobID(f.now), Spec: d, At: f.now})
					if err == nil {
						return
					}
					mu.Lock()
					defer mu.Unlock()
					refused[w/ring]++
					if e := job.AsError(err); e.Code != job.Conflict || e.Reason != "cycle" {
						f.Errorf("writer %d is refused with %v", w, err)
					}
				})
			}
			close(start)
			wg.Wait()
			for _, n := range refused {
				if n != 1 {
					f.Fatalf("round %d: of %d writers that close a cycle together %d are refused", round, ring, n)
				}
			}
		}
		if edges := f.edgesOf("default"); !acyclic(edges) || len(edges) == 0 {
			f.Fatalf("a cycle is among the edges %v", edges)
		}
	}},
	{"an edge to a job that is being deleted: one of the two is refused, 50 times", func(f *fixture) {
		for round := range 50 {
			up, down := fmt.Sprintf("up-%d", round), fmt.Sprintf("down-%d", round)
			f.depend(up)
			var putErr, deleteErr error
			var wg sync.WaitGroup
			start := make(chan struct{})
			wg.Go(func() {
				<-start
				_, putErr = f.PutJob(f.ctx, job.PutJob{ID: jobID(f.now), Spec: f.depending(down, up), At: f.now})
			})
			wg.Go(func() {
				<-start
				_, deleteErr = f.DeleteJob(f.ctx, "default", up, 0)
			})
			close(start)
			wg.Wait()
			if (putErr == nil) == (deleteErr == nil) || putErr != nil && job.CodeOf(putErr) != job.Invalid || deleteErr != nil && job.AsError(deleteErr).Reason != "has_dependents" {
				f.Fatalf("round %d: the edge is answered %v, the deletion %v", round, putErr, deleteErr)
			}
		}
	}},
}
