package storagetest

import (
	"slices"
	"sync"
	"time"

	"github.com/musterhq/muster/job"
)

// ends moves a run to its end, and answers what follows.
func (g *graphs) ends(r *job.Run, s job.State) job.Moved {
	g.Helper()
	m := g.move(job.Move{ID: r.ID, State: s, FinishedAt: g.now})[0]
	if !m.Applied {
		g.Fatalf("the run did not end: %+v", m)
	}
	return m
}

// ran is a run of a job that ended so.
func (g *graphs) ran(j *job.Job, s job.State) *job.Run {
	g.Helper()
	r := g.root(j)
	g.ends(r, s)
	return r
}

// fire fires these jobs, or all.
func (g *graphs) fire(jobs ...*job.Job) []*job.Run {
	g.Helper()
	var list []job.JobID
	for _, j := range jobs {
		list = append(list, j.ID)
	}
	runs, err := g.Fire(g.ctx, 1, list, g.now, 100)
	g.code("fire", err, "")
	return runs
}

// fires checks how many runs are born.
func (g *graphs) fires(what string, want int) []*job.Run {
	g.Helper()
	runs := g.fire()
	if len(runs) != want {
		g.Fatalf("%s: %d runs are born, want %d", what, len(runs), want)
	}
	return runs
}

// edges answers how the edges to the upstreams of a job stand.
func (g *graphs) edges(name string) (list []job.Dependency) {
	g.Helper()
	all, err := g.Dependencies(g.ctx, "default", name)
	g.code("dependencies", err, "")
	return slices.DeleteFunc(all, func(d job.Dependency) bool { return d.Job != name })
}

// on is the document of a job with one upstream.
func (g *graphs) on(name, upstream string, on job.EdgeOn) *job.Document {
	d := g.depending(name, upstream)
	d.DependsOn[0].On = on
	return d
}

func by(j, upstream string, on job.EdgeOn, r *job.Run, at job.Instant, coalesced uint32) job.Dependency {
	d := job.Dependency{Job: j, Upstream: upstream, On: on, Coalesced: coalesced}
	if r != nil {
		d.SatisfiedBy, d.SatisfiedAt = r.ID, at
	}
	return d
}

var edges = []testCase{
	{"ends satisfy what waits for them, and a birth clears it", graph(func(g *graphs) {
		a, b := g.put(g.document("a")), g.put(g.document("b"))
		c := g.depend("c", "b", "a")
		g.fires("nothing ran", 0)
		first := g.ran(a, job.Succeeded)
		last := g.root(a)
		if m := g.ends(last, job.Succeeded); !slices.Equal(m.Due, []job.JobID{c.ID}) {
			g.Fatalf("due are %v", m.Due)
		}
		g.fires("one of two", 0)
		other := g.ran(b, job.Succeeded)
		want := []job.Dependency{by("c", "a", job.OnSuccess, last, g.now, 1), by("c", "b", job.OnSuccess, other, g.now, 0)}
		g.equal("the edges", want, g.edges("c"))
		runs := g.fire(a, c)
		if len(runs) != 1 || first.ID == last.ID {
			g.Fatalf("born: %v", runs)
		}
		c.Spec = g.depending("c", "b", "a")
		birth := job.BirthOfDependencies(c, want, g.now, job.HomeQuorum)
		g.equal("the birth", birth, runs[0])
		g.equal("the run", birth, g.read(birth.ID))
		g.equal("the cleared edges", []job.Dependency{by("c", "a", job.OnSuccess, nil, 0, 0), by("c", "b", job.OnSuccess, nil, 0, 0)}, g.edges("c"))
		g.fires("again", 0)
	})},
	{"an edge is satisfied by the ends that it names, and by none that was skipped", graph(func(g *graphs) {
		up := g.put(g.document("up"))
		names := map[job.EdgeOn]string{job.OnSuccess: "s", job.OnFailure: "f", job.OnDone: "d"}
		all := map[job.EdgeOn]*job.Job{}
		for on, name := range names {
			all[on] = g.put(g.on(name, "up", on))
		}
		g.fires("judged", 0)
		for _, s := range []job.State{job.Succeeded, job.Failed, job.Cancelled, job.Skipped} {
			var want, got []job.JobID
			for on, j := range all {
				if on.SatisfiedBy(s) {
					want = append(want, j.ID)
				}
			}
			got = g.ends(g.root(up), s).Due
			order := func(a, b job.JobID) int { return slices.Compare(a[:], b[:]) }
			slices.SortFunc(want, order)
			slices.SortFunc(got, order)
			g.equal(s.String()+" makes due", want, got)
			for _, r := range g.fires(s.String(), len(want)) {
				g.ends(r, job.Succeeded)
			}
		}
		r := g.root(up)
		g.cancel(r)
		if m := g.move(job.Move{ID: r.ID, State: job.Queued, QueuedAt: g.now})[0]; len(m.Due) != 1 || m.Run.State != job.Cancelled {
			g.Fatalf("an intent ends a run: %+v", m)
		}
		g.fires("cancelled by an intent", 1)
	})},
	{"only the end of a root run of the job counts, and once", graph(func(g *graphs) {
		up := g.put(g.document("up"))
		g.depend("down", "up")
		g.fires("judged", 0)
		root := g.root(up)
		task := g.task(root, "t", 0)
		g.release(task, g.task(root, "skipped", 0, born(job.Skipped, job.WhenFalse)))
		if m := g.move(success(task.ID, 1<<32|1, g.now), retry(root.ID, 1<<32|2, 1, g.now)); m[0].Due != nil || m[1].Due != nil {
			g.Fatalf("due of a task and of an attempt: %+v", m)
		}
		g.ends(g.submit(g.run(g.now))[0], job.Succeeded)
		g.fires("a task, an attempt and an inline run", 0)
		m := success(root.ID, 1<<32|3, g.now)
		for i, moved := range g.move(m, m) {
			if moved.Applied != (i == 0) {
				g.Fatalf("moved: %+v", moved)
			}
		}
		g.move(m)
		if e := g.edges("down")[0]; e.SatisfiedBy != root.ID || e.Coalesced != 0 || e.SatisfiedAt != m.FinishedAt {
			g.Fatalf("the edge is %+v", e)
		}
	})},
	{"no run is born while a root run of the job lives, and its end says so", graph(func(g *graphs) {
		up, down := g.put(g.document("up")), g.depend("down", "up")
		manual := g.root(down)
		g.ran(up, job.Succeeded)
		g.ran(up, job.Succeeded)
		g.fires("a manual run lives", 0)
		if e := g.edges("down")[0]; e.Coalesced != 1 {
			g.Fatalf("a manual run touched the edge: %+v", e)
		}
		if m := g.ends(manual, job.Failed); !slices.Equal(m.Due, []job.JobID{down.ID}) {
			g.Fatalf("due are %v", m.Due)
		}
		r := g.fires("it ended", 1)[0]
		g.ran(up, job.Succeeded)
		g.fires("the born one lives", 0)
		g.ends(r, job.Succeeded)
		g.fires("that ended too", 1)
	})},
	{"new edges start as the past says: only for a job that never ran, by an end that satisfies and is the newest", graph(func(g *graphs) {
		up := g.put(g.document("up"))
		g.depend("none", "up")
		g.fires("an upstream that never ran", 0)
		last := g.ran(up, job.Succeeded)
		g.fires("which did now", 1)
		fresh := g.depend("fresh", "up")
		ranBefore := g.put(g.document("ran"))
		g.ran(ranBefore, job.Failed)
		g.depend("ran", "up")
		g.put(g.on("failure", "up", job.OnFailure))
		runs := g.fires("four new jobs", 1)
		if runs[0].JobID != fresh.ID || runs[0].Upstreams[0].RunID != last.ID || runs[0].Upstreams[0].Coalesced != 0 {
			g.Fatalf("born: %+v", runs[0])
		}
		g.now = g.now.Add(time.Second)
		newer := g.root(up)
		g.depend("waits", "up")
		g.fires("a newer run lives", 0)
		g.ends(newer, job.Succeeded)
		if e := g.edges("waits")[0]; e.SatisfiedBy != newer.ID || e.Coalesced != 0 {
			g.Fatalf("the edge is %+v", e)
		}
	})},
	{"an end before the edge is judged counts once", graph(func(g *graphs) {
		up := g.put(g.document("up"))
		g.ran(up, job.Succeeded)
		g.depend("down", "up")
		g.now = g.now.Add(time.Second)
		r := g.ran(up, job.Succeeded)
		runs := g.fires("both", 1)
		g.equal("upstreams", []job.UpstreamRun{{Job: "up", RunID: r.ID}}, runs[0].Upstreams)
		g.ends(runs[0], job.Succeeded)
		g.fires("again", 0)
	})},
	{"a change of a job keeps how its edges stand, drops those it drops, and begins new ones anew", graph(func(g *graphs) {
		a, b, c := g.put(g.document("a")), g.put(g.document("b")), g.depend("c", "a", "b")
		g.ran(c, job.Succeeded) // so that nothing of the past satisfies new edges
		r := g.ran(a, job.Succeeded)
		d := g.depending("c", "b", "a")
		d.Description = "changed"
		g.put(d)
		kept := by("c", "a", job.OnSuccess, r, g.now, 0)
		g.equal("the edges", []job.Dependency{kept, by("c", "b", job.OnSuccess, nil, 0, 0)}, g.edges("c"))
		g.fires("one of two", 0)
		g.depend("c", "a")
		runs := g.fires("the other is dropped", 1)
		g.ends(runs[0], job.Succeeded)
		g.ran(a, job.Succeeded)
		g.depend("c", "b")
		g.depend("c", "a", "b")
		g.fires("dropped and made anew", 0)
		g.equal("the edges", []job.Dependency{by("c", "a", job.OnSuccess, nil, 0, 0), by("c", "b", job.OnSuccess, nil, 0, 0)}, g.edges("c"))
		g.depend("c", "a")
		g.ran(a, job.Succeeded)
		g.put(g.on("c", "a", job.OnDone))
		g.fires("one with another on is new", 0)
		g.put(g.document("c"))
		if m := g.ends(g.root(c), job.Succeeded); len(m.Due) != 0 || len(g.edges("c")) != 0 {
			g.Fatalf("without edges: %+v", m)
		}
		if m := g.ends(g.root(b), job.Succeeded); len(m.Due) != 0 {
			g.Fatalf("without dependents: %+v", m)
		}
	})},
	{"a deleted job takes its edges along, and its name inherits nothing", graph(func(g *graphs) {
		up := g.put(g.document("up"))
		g.depend("down", "up")
		live := g.root(up)
		g.ran(up, job.Succeeded)
		for _, name := range []string{"down", "up"} {
			if _, err := g.DeleteJob(g.ctx, "default", name, 0); err != nil {
				g.Fatal(err)
			}
		}
		if list, err := g.Dependencies(g.ctx, "default", "down"); err != nil || len(list) != 0 {
			g.Fatalf("edges of no job: %v, %v", list, err)
		}
		again := g.put(g.document("up"))
		down := g.depend("down", "up")
		g.fires("the runs were another job's", 0)
		if m := g.ends(live, job.Succeeded); len(m.Due) != 0 {
			g.Fatalf("due are %v", m.Due)
		}
		if m := g.ends(g.root(again), job.Succeeded); !slices.Equal(m.Due, []job.JobID{down.ID}) {
			g.Fatalf("due are %v", m.Due)
		}
		g.fires("its own", 1)
	})},
	{"a diamond runs its foot once a round", graph(func(g *graphs) {
		top := g.put(g.document("top"))
		g.depend("left", "top")
		g.depend("right", "top")
		g.depend("foot", "left", "right", "top")
		for range 3 {
			g.ran(top, job.Succeeded)
			for _, r := range g.fires("the sides", 2) {
				g.fires("one side", 0)
				g.ends(r, job.Succeeded)
			}
			foot := g.fires("the foot", 1)[0]
			if foot.Job != "foot" || len(foot.Upstreams) != 3 {
				g.Fatalf("born: %+v", foot)
			}
			g.ends(foot, job.Succeeded)
			g.now = g.now.Add(time.Second)
		}
	})},
	{"dependencies are a job's upstreams and then its dependents, by name, in its namespace", graph(func(g *graphs) {
		g.depend("b")
		g.depend("a")
		g.depend("m", "b", "a")
		g.depend("z", "m")
		g.put(g.on("c", "m", job.OnDone))
		g.put(g.document("m", func(d *job.Document) { d.Namespace = "other" }))
		list, err := g.Dependencies(g.ctx, "default", "m")
		g.code("dependencies", err, "")
		g.equal("dependencies", []job.Dependency{by("m", "a", job.OnSuccess, nil, 0, 0), by("m", "b", job.OnSuccess, nil, 0, 0),
			by("c", "m", job.OnDone, nil, 0, 0), by("z", "m", job.OnSuccess, nil, 0, 0)}, list)
		if list, err = g.Dependencies(g.ctx, "other", "m"); err != nil || len(list) != 0 {
			g.Fatalf("elsewhere: %v, %v", list, err)
		}
	})},
	{"a limit leaves the others due; no jobs are none, and not all", graph(func(g *graphs) {
		up := g.put(g.document("up"))
		for i := range 5 {
			g.depend(name(i), "up")
		}
		g.ran(up, job.Succeeded)
		if runs, err := g.Fire(g.ctx, 1, []job.JobID{}, g.now, 10); err != nil || len(runs) != 0 {
			g.Fatalf("no jobs: %v, %v", runs, err)
		}
		seen := map[job.RunID]bool{}
		for _, want := range []int{2, 2, 1, 0} {
			runs, err := g.Fire(g.ctx, 1, nil, g.now, 2)
			if err != nil || len(runs) != want {
				g.Fatalf("%d runs, %v; want %d", len(runs), err, want)
			}
			for _, r := range runs {
				seen[r.ID] = true
			}
		}
		if len(seen) != 5 {
			g.Fatalf("%d runs are born", len(seen))
		}
	})},
	{"each end is consumed once, whoever ends and fires at once", graph(func(g *graphs) {
		const enders, each = 4, 25
		up, down := g.put(g.document("up")), g.depend("down", "up")
		g.fires("judged", 0)
		var mu sync.Mutex
		consumed := 0
		drain := func() {
			runs, err := g.Fire(g.ctx, 1, []job.JobID{down.ID}, g.now, 10)
			if err != nil {
				g.Errorf("fire: %v", err)
			}
			for _, r := range runs {
				mu.Lock()
				consumed += 1 + int(r.Upstreams[0].Coalesced)
				mu.Unlock()
				if _, err := g.Move(g.ctx, 1, []job.Move{{ID: r.ID, State: job.Succeeded, FinishedAt: g.now}}); err != nil {
					g.Errorf("move: %v", err)
				}
			}
		}
		var work sync.WaitGroup
		for range enders {
			var runs []*job.Run
			for range each {
				runs = append(runs, g.root(up))
			}
			work.Go(func() {
				for _, r := range runs {
					if _, err := g.Move(g.ctx, 1, []job.Move{{ID: r.ID, State: job.Succeeded, FinishedAt: g.now}}); err != nil {
						g.Errorf("move: %v", err)
					}
				}
			})
			work.Go(func() {
				for range each {
					drain()
				}
			})
		}
		work.Wait()
		drain()
		if consumed != enders*each {
			g.Fatalf("%d ends are consumed, of %d", consumed, enders*each)
		}
	})},
	{"random jobs, ends and fires: each end that satisfies is consumed exactly once", graph(randomEdges)},
}

// cancel records an intent.
func (g *graphs) cancel(r *job.Run) {
	g.Helper()
	if receipts, err := g.Cancel(g.ctx, []job.CancelIntent{{ID: r.ID, At: g.now}}); err != nil || receipts[0].Err != nil {
		g.Fatalf("cancel: %+v, %v", receipts, err)
	}
}
