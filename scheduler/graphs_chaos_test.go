package scheduler_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/clustertest"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
	"github.com/musterhq/muster/storage/memory"
)

// TestGraphsInChaos is TestChaos for jobs with tasks, jobs that run jobs and jobs after jobs: everything fails for some minutes, heals,
// and then every root and every row below it has ended, as the rules say of how its tasks ended.
func TestGraphsInChaos(t *testing.T) {
	for seed := range uint64(*seeds) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			in(t, func(t *testing.T, c *clustertest.Core) { graphChaos(t, c, seed) })
		})
	}
}

func graphChaos(t *testing.T, c *clustertest.Core, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 9))
	share := []float64{0, 0.02, 0.2}[r.IntN(3)]
	reads := &unsure{share: share, rand: rand.New(rand.NewPCG(seed, 3))}
	c.Configure = func(x *scheduler.Config) {
		x.LoadLanes = seed%2 == 0
		reads.Store, x.Store = x.Store, reads
	}
	c.Depose()
	if seed%4 == 0 {
		c.Queue = memory.New(1 + r.IntN(4))
	}
	c.Lead()
	w := &crew{does: map[string]clustertest.Behaviour{}}
	some := func(ctx context.Context, a *job.Assignment) job.Outcome {
		n := int(a.Fence) * 7919
		d := time.Duration(n%2000) * time.Millisecond
		if n%7 == 0 {
			return clustertest.Fail(d)(ctx, a)
		}
		time.Sleep(d)
		return answer(`[1,2,3]`)(ctx, a)
	}
	for _, n := range []string{"", "a", "b", "m", "z", "x"} {
		w.does[n] = some
	}
	names := []string{"w1", "w2", "w3"}
	for _, n := range names {
		c.Workers.Add(worker(n, 4), w.work)
	}
	c.Apply("name: inner\n" + graph("x", "y<x"))
	c.Apply("name: one\nexec: {command: [work]}\n")
	first := c.Apply("name: first\n" + graph("a", "m<a for_each: tasks.a.result, max_parallel: 2, retry: {max_attempts: 2, initial: 1s}",
		"k<a run_job: {job: inner}, retry: {max_attempts: 2, initial: 1s}", "b<a when: 'tasks.a.result[0] == 1', run_if: all_done", "z<m,k,b run_if: all_done"))
	ticking := c.Apply("name: ticking\nschedule: {cron: '@every 7s'}\noverlap: queue\nconcurrency: {key: t, limit: 2}\n" + graph("a", "k<a run_job: {job: one}", "z<k"))
	after := c.Apply("name: after\ndepends_on: [{job: first, on: done}, {job: ticking, on: done}]\n" + graph("a"))
	c.Log.Fail(clustertest.Chaos(seed, share))
	var roots []job.RunID
	cancelled := map[job.RunID]time.Time{}
	leads, cut := true, map[string]bool{}
	for range 80 {
		time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond)
		switch r.IntN(10) {
		case 0:
			if leads = !leads; leads {
				c.Lead()
			} else {
				c.Depose()
			}
		case 1:
			if n := names[r.IntN(3)]; !cut[n] {
				c.Workers.Kill(n, true)
			}
		case 2:
			n := names[r.IntN(3)]
			cut[n] = !cut[n]
			c.Workers.Reach(n, !cut[n])
		case 3:
			if len(roots) > 0 {
				id := roots[r.IntN(len(roots))]
				if task := []string{"", "", "a", "m", "k"}[r.IntN(5)]; task == "" {
					c.Cancel(id)
					cancelled[id] = time.Now()
				} else {
					c.Cancel(job.TaskRunID(id, task, 0))
				}
			}
		case 4:
			for _, j := range []*job.Job{first, ticking} {
				must(t, insist(func() error { return c.Control.PauseJob(context.Background(), j.ID) }))
				time.Sleep(time.Duration(r.IntN(3000)) * time.Millisecond)
				must(t, insist(func() error { return c.Control.ResumeJob(context.Background(), j.ID) }))
			}
			if term := c.Term(); term != nil {
				term.ScheduleChanged()
			}
		default:
			s := job.Submission{Job: "first"}
			if r.IntN(8) == 0 {
				s.RunAt = job.At(time.Now().Add(5 * time.Second))
			}
			roots = append(roots, c.Submit(s, first).ID)
		}
	}
	c.Log.Fail(nil)
	reads.set(0)
	for n, is := range cut {
		if is {
			c.Workers.Reach(n, true)
		}
	}
	if !leads {
		c.Lead()
	}
	must(t, c.Control.PauseJob(context.Background(), ticking.ID))
	time.Sleep(time.Second)
	still := c.Apply("name: ticking\nconcurrency: {key: t, limit: 2}\n" + graph("a"))
	must(t, c.Control.DropSchedule(context.Background(), still.ID, still.Version))
	must(t, c.Control.ResumeJob(context.Background(), ticking.ID))
	c.Term().ScheduleChanged()
	time.Sleep(10 * time.Minute)

	all := append([]job.RunID(nil), roots...)
	for _, j := range []*job.Job{ticking, after} {
		for _, x := range c.RunsOf(j) {
			all = append(all, x.ID)
		}
	}
	for _, id := range all {
		root := c.Run(id)
		if !root.State.Terminal() {
			t.Errorf("the run %s of %s is still %s (%s): %s", id, root.Job, root.State, root.Reason, states(t, c, id))
			continue
		}
		bad := 0
		for name, x := range tasksOf(t, c, id) {
			if !x.State.Terminal() {
				t.Errorf("%s of the %s run %s is still %s (%s)", name, root.State, id, x.State, x.Reason)
			}
			if x.Item == 0 && (x.State == job.Failed || x.State == job.Cancelled) {
				bad++
			}
			for _, s := range c.Workers.Starts() {
				if s.Run == x.ID && s.At.After(root.FinishedAt.Time()) {
					t.Errorf("%s of %s started after its root had ended", name, id)
				}
			}
		}
		if root.State == job.Succeeded && bad > 0 || root.State == job.Failed && bad == 0 {
			t.Errorf("the run %s is %s (%s): %s", id, root.State, root.Reason, states(t, c, id))
		}
	}
	seen := map[job.RunID]map[uint32]bool{} // D3: an attempt starts once, and a second has a recorded reason
	for _, s := range c.Workers.Starts() {
		if seen[s.Run] == nil {
			seen[s.Run] = map[uint32]bool{}
		}
		if seen[s.Run][s.Attempt] {
			t.Errorf("attempt %d of %s started twice", s.Attempt, s.Run)
		}
		seen[s.Run][s.Attempt] = true
	}
	if len(c.RunsOf(after)) == 0 && len(roots) > 0 {
		t.Error("nothing ran after first and ticking")
	}
	if g := c.Control.Grants(); len(g) > 0 {
		t.Errorf("%d leases are left", len(g))
	}
}
