package storagetest

import (
	"fmt"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/job"
)

// modelJob is a job as a naive reading of the contract has it.
type modelJob struct {
	*job.Job
	edges []*modelEdge // by name of the upstream
	runs  []*job.Run   // root runs, oldest first, as they are
}

type modelEdge struct {
	job.Dependency
	fresh bool
}

// model is a few jobs in a namespace of their own, in a store and beside it.
type model struct {
	*rapid.T
	g         *graphs
	namespace string
	now       job.Instant
	jobs      map[string]*modelJob
	// What satisfied an edge, and where that went.
	satisfied, consumed, dropped int
}

func (m *model) pick(label string) *modelJob {
	if len(m.jobs) == 0 {
		return nil
	}
	names := make([]string, 0, len(m.jobs))
	for n := range m.jobs {
		names = append(names, n)
	}
	slices.Sort(names)
	return m.jobs[rapid.SampledFrom(names).Draw(m.T, label)]
}

func (m *model) ok(err error) {
	if err != nil {
		m.Fatalf("%v", err)
	}
}

func (m *model) equal(what string, want, got any) {
	if d := same(want, got); d != "" {
		m.Fatalf("%s (-want +got):\n%s", what, d)
	}
}

func (e *modelEdge) count() int {
	if e.SatisfiedBy.IsZero() {
		return 0
	}
	return 1 + int(e.Coalesced)
}

// put creates or changes a job. It depends on jobs of lower numbers only.
func (m *model) put() {
	n := rapid.IntRange(0, 4).Draw(m.T, "job")
	d := m.g.document(fmt.Sprintf("j%d", n), func(d *job.Document) {
		d.Namespace = m.namespace
		d.Description = rapid.SampledFrom([]string{"", "x"}).Draw(m.T, "text")
		for up := range n {
			name := fmt.Sprintf("j%d", up)
			if m.jobs[name] != nil && rapid.Bool().Draw(m.T, "depends") {
				on := rapid.SampledFrom([]job.EdgeOn{job.OnSuccess, job.OnSuccess, job.OnFailure, job.OnDone}).Draw(m.T, "on")
				d.DependsOn = append(d.DependsOn, job.Edge{Job: name, On: on})
			}
		}
	})
	j, err := m.g.PutJob(m.g.ctx, job.PutJob{ID: jobID(m.now), Spec: d, At: m.now})
	m.ok(err)
	old := m.jobs[d.Name]
	of := &modelJob{Job: j}
	of.Spec = d
	var kept []*modelEdge
	for _, e := range d.DependsOn {
		n := &modelEdge{Dependency: job.Dependency{Job: d.Name, Upstream: e.Job, On: e.On}, fresh: true}
		if old != nil {
			if i := slices.IndexFunc(old.edges, func(o *modelEdge) bool { return o.Upstream == e.Job && o.On == e.On }); i >= 0 {
				n = old.edges[i]
				kept = append(kept, n)
			}
		}
		of.edges = append(of.edges, n)
	}
	if old != nil {
		of.runs = old.runs
		for _, e := range old.edges {
			if !slices.Contains(kept, e) {
				m.dropped += e.count()
			}
		}
	}
	m.jobs[d.Name] = of
}

func (m *model) remove() {
	j := m.pick("deleted")
	if j == nil {
		return
	}
	for _, o := range m.jobs {
		if slices.ContainsFunc(o.edges, func(e *modelEdge) bool { return e.Upstream == j.Name }) {
			return
		}
	}
	_, err := m.g.DeleteJob(m.g.ctx, m.namespace, j.Name, 0)
	m.ok(err)
	for _, e := range j.edges {
		m.dropped += e.count()
	}
	delete(m.jobs, j.Name)
}

func (m *model) submit() {
	j := m.pick("submitted")
	if j == nil {
		return
	}
	r := m.g.run(m.now, ofJob(j.Job))
	_, err := m.g.Submit(m.g.ctx, copies([]*job.Run{r}))
	m.ok(err)
	j.runs = append(j.runs, r)
}

// end moves a run of a job, which may have ended, to an end.
func (m *model) end() {
	j := m.pick("ended")
	if j == nil || len(j.runs) == 0 {
		return
	}
	r := j.runs[len(j.runs)-1-rapid.IntRange(0, min(2, len(j.runs)-1)).Draw(m.T, "run")]
	s := rapid.SampledFrom([]job.State{job.Succeeded, job.Succeeded, job.Failed, job.Cancelled, job.Skipped}).Draw(m.T, "state")
	moved, err := m.g.Move(m.g.ctx, 1, []job.Move{{ID: r.ID, State: s, FinishedAt: m.now}})
	m.ok(err)
	if moved[0].Applied == r.State.Terminal() {
		m.Fatalf("a run that was %s moved: %v", r.State, moved[0].Applied)
	}
	if !moved[0].Applied {
		return
	}
	r.State, r.FinishedAt = s, m.now
	want := map[job.JobID]bool{}
	if len(j.edges) > 0 {
		want[j.ID] = true
	}
	for _, d := range m.jobs {
		for _, e := range d.edges {
			if e.Upstream != j.Name || !e.On.SatisfiedBy(s) {
				continue
			}
			if !e.SatisfiedBy.IsZero() {
				e.Coalesced++
			}
			e.SatisfiedBy, e.SatisfiedAt, e.fresh = r.ID, m.now, false
			m.satisfied++
			want[d.ID] = true
		}
	}
	got := map[job.JobID]bool{}
	for _, id := range moved[0].Due {
		got[id] = true
	}
	if d := cmp.Diff(want, got); d != "" {
		m.Fatalf("due (-want +got):\n%s", d)
	}
}

func (m *model) fire() {
	var jobs []job.JobID
	looked := m.jobs
	if rapid.Bool().Draw(m.T, "some") {
		looked = map[string]*modelJob{}
		for range 2 {
			if j := m.pick("fired"); j != nil {
				looked[j.Name] = j
				jobs = append(jobs, j.ID)
			}
		}
		if jobs == nil {
			return
		}
	}
	limit := rapid.IntRange(1, 3).Draw(m.T, "limit")
	if jobs == nil {
		limit = 1000 // jobs of other worlds may be due as well
	}
	var due []*modelJob
	for _, j := range looked {
		m.judge(j)
	}
	for _, j := range looked {
		if j.due() {
			due = append(due, j)
		}
	}
	runs, err := m.g.Fire(m.g.ctx, 1, jobs, m.now, limit)
	m.ok(err)
	runs = slices.DeleteFunc(runs, func(r *job.Run) bool { return r.Namespace != m.namespace })
	if len(runs) != min(limit, len(due)) {
		m.Fatalf("%d runs are born, %d jobs are due, the limit is %d", len(runs), len(due), limit)
	}
	for _, r := range runs {
		j := m.jobs[r.Job]
		if !slices.Contains(due, j) {
			m.Fatalf("a run of %s is born", r.Job)
		}
		var by []job.Dependency
		for _, e := range j.edges {
			by = append(by, e.Dependency)
			m.consumed += e.count()
			e.SatisfiedBy, e.SatisfiedAt, e.Coalesced = job.RunID{}, 0, 0
		}
		m.equal("the birth", job.BirthOfDependencies(j.Job, by, m.now, job.HomeQuorum), r)
		own := *r
		j.runs = append(j.runs, &own)
	}
}

func (m *model) judge(j *modelJob) {
	for _, e := range j.edges {
		if !e.fresh {
			continue
		}
		e.fresh = false
		if r := m.jobs[e.Upstream].newest(); r != nil && len(j.runs) == 0 && e.On.SatisfiedBy(r.State) {
			e.SatisfiedBy, e.SatisfiedAt = r.ID, r.FinishedAt
			m.satisfied++
		}
	}
}

func (j *modelJob) newest() (newest *job.Run) {
	for _, r := range j.runs {
		if newest == nil || slices.Compare(newest.ID[:], r.ID[:]) < 0 {
			newest = r
		}
	}
	return newest
}

func (j *modelJob) due() bool {
	return len(j.edges) > 0 && !slices.ContainsFunc(j.edges, func(e *modelEdge) bool { return e.SatisfiedBy.IsZero() }) &&
		!slices.ContainsFunc(j.runs, func(r *job.Run) bool { return !r.State.Terminal() })
}

// check compares how all edges stand, and that nothing was lost or counted twice.
func (m *model) check() {
	pending := 0
	for _, j := range m.jobs {
		var want []job.Dependency
		for _, e := range j.edges {
			want = append(want, e.Dependency)
			pending += e.count()
		}
		got, err := m.g.Dependencies(m.g.ctx, m.namespace, j.Name)
		m.ok(err)
		m.equal("the edges of "+j.Name, want, slices.DeleteFunc(got, func(d job.Dependency) bool { return d.Job != j.Name }))
	}
	if m.satisfied != m.consumed+m.dropped+pending {
		m.Fatalf("%d ends satisfied something; %d were consumed, %d dropped with their edges, and %d wait", m.satisfied, m.consumed, m.dropped, pending)
	}
}

// randomEdges plays random worlds, one after the other, in one store.
func randomEdges(g *graphs) {
	world := 0
	rapid.Check(g.fixture.T, func(t *rapid.T) {
		world++
		m := &model{T: t, g: g, namespace: fmt.Sprintf("w%d", world), now: g.now, jobs: map[string]*modelJob{}}
		for range rapid.IntRange(5, 30).Draw(t, "steps") {
			m.now = m.now.Add(time.Millisecond)
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0, 1:
				m.put()
			case 2:
				m.remove()
			case 3, 4:
				m.submit()
			case 5, 6, 7:
				m.end()
			default:
				m.fire()
			}
			m.check()
		}
	})
}
