package scheduler_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/internal/clustertest"
	"github.com/musterhq/muster/job"
)

// eventful is a graph that meets every step of the resolver: a fan, a list, a child with tasks, a retry of it, a skip.
func eventful(c *clustertest.Core) (*crew, job.Submission) {
	w := &crew{does: map[string]clustertest.Behaviour{
		"a": answer(`[1,2,3]`), "x": clustertest.Succeed(500 * time.Millisecond),
	}}
	c.Apply("name: inner\n" + graph("x", "y<x"))
	return w, job.Submission{Spec: c.Spec(graph("a", "m<a for_each: tasks.a.result, max_parallel: 2", "k<a run_job: {job: inner}", "no<a when: 'false'",
		"z<m,k,no run_if: all_done") + "concurrency: {key: k}\n")}
}

const eventfulEnd = "a:succeeded k:succeeded m/1:succeeded m/2:succeeded m/3:succeeded m:succeeded no:skipped(when_false) z:succeeded"

// TestGraphsSurviveTheirLeader deposes the leader right after each entry of the log in turn, whatever is in it: the next one
// goes on, and starts nothing twice.
func TestGraphsSurviveTheirLeader(t *testing.T) {
	for after := 1; ; after++ {
		last := false
		t.Run(fmt.Sprintf("entry %d", after), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := clustertest.New(t)
				defer func() { c.Log.Fail(nil); c.Depose(); c.Workers.KillAll() }()
				c.Lead()
				w, s := eventful(c)
				c.Workers.Add(worker("w", 8), w.work)
				r := c.Submit(s, nil)
				n, cut := 0, false
				c.Log.Fail(func([]fsm.Command) clustertest.Failure {
					if n++; n >= after && !cut { // from here on, until somebody else leads
						if n > after {
							return clustertest.LostUnknown
						}
						return clustertest.DoneUnknown
					}
					return clustertest.NoFailure
				})
				for range 200 {
					time.Sleep(50 * time.Millisecond)
					if !cut && n >= after {
						c.Depose()
						cut = true
						c.Lead()
					}
				}
				if last = !cut; last {
					c.Log.Fail(nil)
				}
				time.Sleep(2 * time.Minute)
				if got := states(t, c, r.ID); got != eventfulEnd {
					t.Errorf("rows\n got %s\nwant %s", got, eventfulEnd)
				}
				expectState(t, c.Run(r.ID), job.Succeeded, job.NoReason)
				expectOnce(t, c)
				if g := c.Control.Grants(); len(g) > 0 {
					t.Errorf("%d leases are left", len(g))
				}
				again := c.Submit(s, nil) // the key is free
				time.Sleep(time.Minute)
				expectState(t, c.Run(again.ID), job.Succeeded, job.NoReason)
			})
		})
		if last || t.Failed() {
			if after < 10 {
				t.Errorf("there were %d entries only", after)
			}
			return
		}
	}
}

// TestGraphsOverABadLog: a share of all proposals fails in every way.
func TestGraphsOverABadLog(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			in(t, func(t *testing.T, c *clustertest.Core) {
				w, s := eventful(c)
				c.Workers.Add(worker("w", 8), w.work)
				c.Log.Fail(clustertest.Chaos(seed, 0.3))
				var roots []job.RunID
				for i := range 4 {
					roots = append(roots, c.Submit(s, nil).ID)
					if i == 2 {
						time.Sleep(3 * time.Second)
						c.Depose()
						c.Lead()
					}
				}
				time.Sleep(30 * time.Second)
				c.Log.Fail(nil)
				time.Sleep(5 * time.Minute)
				for _, id := range roots {
					expectState(t, c.Run(id), job.Succeeded, job.NoReason)
					if got := states(t, c, id); got != eventfulEnd {
						t.Errorf("rows\n got %s\nwant %s", got, eventfulEnd)
					}
				}
			})
		})
	}
}
