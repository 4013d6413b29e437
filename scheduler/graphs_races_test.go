package scheduler_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/clustertest"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
)

// A move that somebody decided before a root was opened sends it back to the queue, and the leader dies: the next one opens it
// anew, and meets a run_job task that is running already.
func TestARunJobTaskThatNobodyKnowsIsFound(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		w := &crew{does: map[string]clustertest.Behaviour{"": clustertest.Succeed(20 * time.Second)}}
		c.Workers.Add(worker("w", 10), w.work)
		inner := c.Apply("{name: inner, exec: {command: [work]}}")
		r := c.Submit(job.Submission{Spec: c.Spec(graph("k run_job: {job: inner}", "z<k"))}, nil)
		time.Sleep(time.Second)
		_, err := c.Store.Move(context.Background(), c.Term().Epoch(), []job.Move{{ID: r.ID, State: job.Queued, QueuedAt: job.At(time.Now())}})
		must(t, err)
		c.Depose()
		c.Lead()
		time.Sleep(2 * time.Minute)
		expectState(t, c.Run(r.ID), job.Succeeded, job.NoReason)
		if n := len(c.RunsOf(inner)); n != 1 {
			t.Errorf("%d children", n)
		}
	})
}

// T7: what a task runs has no more time than the task.
func TestAChildHasTheDeadlineOfItsTask(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		c.Apply("{name: inner, selector: {no: worker}, exec: {command: [work]}}")
		r := c.Submit(job.Submission{Spec: c.Spec("deadline: 1m\n" + graph("k run_job: {job: inner}, retry: {max_attempts: 3}"))}, nil)
		time.Sleep(10 * time.Minute)
		expectState(t, c.Run(r.ID), job.Failed, job.DeadlineExceeded)
	})
}

// A root and a run without tasks share a key, and the leader changes.
func TestARunDoesNotTakeTheKeyOfARootWhenTheLeaderChanges(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		s := strain(c)
		w := &crew{does: map[string]clustertest.Behaviour{"a": clustertest.Succeed(20 * time.Second)}}
		c.Workers.Add(worker("w", 10), w.work)
		first := c.Submit(job.Submission{Spec: c.Spec("concurrency: {key: k}\n" + graph("a"))}, nil)
		time.Sleep(time.Second)
		c.Depose()
		s.set(func() { s.live = 5 * time.Second })
		c.Lead()
		second := c.Submit(job.Submission{Spec: c.Spec("{concurrency: {key: k}, exec: {command: [work]}}")}, nil)
		time.Sleep(2 * time.Minute)
		expectState(t, c.Run(first.ID), job.Succeeded, job.NoReason)
		expectState(t, c.Run(second.ID), job.Succeeded, job.NoReason)
		if a, b := c.Run(first.ID), c.Run(second.ID); b.StartedAt < a.FinishedAt {
			t.Errorf("the second began at %s, the first ended at %s", b.StartedAt.Time(), a.FinishedAt.Time())
		}
	})
}

// refusing is a store that has a defect, of one root.
type refusing struct {
	scheduler.Store
	of atomic.Pointer[job.RunID]
}

func (s *refusing) Runs(ctx context.Context, q job.RunQuery) (job.RunPage, error) {
	if of := s.of.Load(); of != nil && *of == q.RootID {
		return job.RunPage{}, job.Errorf(job.Internal, "defect", "on cue")
	}
	return s.Store.Runs(ctx, q)
}

// One of two roots that are opened together cannot be read for a while: the other goes on to hold its key.
func TestAKeyIsHeldThoughAnotherRootCannotBeRead(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		s := &refusing{}
		c.Configure = func(x *scheduler.Config) { s.Store, x.Store = x.Store, s }
		c.Depose()
		c.Lead()
		w := &crew{does: map[string]clustertest.Behaviour{"a": clustertest.Succeed(20 * time.Second)}}
		c.Workers.Add(worker("w", 10), w.work)
		retried := c.Submit(job.Submission{Spec: c.Spec(graph("x", "y<x"))}, nil)
		time.Sleep(10 * time.Second)
		s.of.Store(&retried.ID)
		keyed := c.Spec("concurrency: {key: k}\n" + graph("a"))
		birth := func(spec *job.Document) *job.Run {
			r, err := job.Birth(&job.Submission{ID: c.NewID(), Namespace: "default", Spec: spec}, nil, job.At(time.Now()))
			must(t, err)
			r.Home = job.HomeQuorum
			time.Sleep(time.Millisecond) // one after the other in the queue
			return r
		}
		first, again, second := birth(keyed), birth(c.Spec(graph("x", "y<x"))), birth(keyed)
		again.Trigger, again.RetryOf, again.ReusedFrom = job.ByRetry, retried.ID, retried.ID
		all := []*job.Run{first, again, second}
		_, err := c.Store.Submit(context.Background(), all)
		must(t, err)
		c.Term().Born(all)
		time.Sleep(3 * time.Second)
		s.of.Store(nil)
		time.Sleep(2 * time.Minute)
		for _, r := range all {
			expectState(t, c.Run(r.ID), job.Succeeded, job.NoReason)
		}
		if a, b := c.Run(first.ID), c.Run(second.ID); b.StartedAt < a.FinishedAt {
			t.Errorf("the second began at %s, the first ended at %s", b.StartedAt.Time(), a.FinishedAt.Time())
		}
	})
}

// T9: a child that would wait for a key until those end that wait for the child is refused.
func TestAChildDoesNotWaitForTheKeyOfThoseAboveIt(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		c.Workers.Add(worker("w", 4), clustertest.Succeed(time.Second))
		c.Apply("{name: inner, concurrency: {key: k}, exec: {command: [work]}}")
		c.Apply("{name: pair, concurrency: {key: p, limit: 2}, exec: {command: [work]}}")
		c.Apply("name: between\n" + graph("b run_job: {job: inner}"))
		for key, want := range map[string]job.State{"k": job.Failed, "p": job.Succeeded} {
			name := map[string]string{"k": "between", "p": "pair"}[key]
			r := c.Submit(job.Submission{Spec: c.Spec("concurrency: {key: " + key + "}\n" + graph("a run_job: {job: "+name+"}"))}, nil)
			time.Sleep(time.Minute)
			if got := c.Run(r.ID).State; got != want {
				t.Errorf("%s: %s, want %s", key, got, want)
			}
		}
	})
}
