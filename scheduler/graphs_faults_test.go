package scheduler_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/internal/clustertest"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
)

// D5: what was stored before templates were judged may hold one that means nothing.
func TestABadTemplateHarmsNobodyElse(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		bad := c.Submit(job.Submission{Spec: c.Spec(`exec: {command: [echo], env: {A: '${{ absent( }}'}}`)}, nil)
		j := c.Apply(`{name: older, exec: {command: [echo], env: {A: '${{ absent( }}'}}}`)
		of := c.Submit(job.Submission{Job: "older"}, j)
		r := c.Submit(job.Submission{Spec: c.Spec(plain)}, nil)
		c.Workers.Add(worker("w", 4), clustertest.Succeed(time.Second))
		time.Sleep(10 * time.Second)
		expectState(t, c.Run(r.ID), job.Succeeded, job.NoReason)
		expectState(t, c.Run(bad.ID), job.Failed, job.ExpressionFailed)
		expectState(t, c.Run(of.ID), job.Failed, job.ExpressionFailed)
	})
}

// strained is a store that answers when a test lets it.
type strained struct {
	scheduler.Store
	mu   sync.Mutex
	live time.Duration             // how long Live takes
	load func([]job.RunID) bool    // whether Load fails
	runs func(root job.RunID) bool // whether Runs fails
}

func (s *strained) Live(ctx context.Context, after job.RunID, limit int) ([]*job.Run, error) {
	s.mu.Lock()
	d := s.live
	s.mu.Unlock()
	time.Sleep(d)
	return s.Store.Live(ctx, after, limit)
}

var errAway = job.Errorf(job.Unavailable, "store_unavailable", "away, on cue")

func (s *strained) Load(ctx context.Context, ids []job.RunID) ([]*job.Run, error) {
	s.mu.Lock()
	fails := s.load != nil && s.load(ids)
	s.mu.Unlock()
	if fails {
		return nil, errAway
	}
	return s.Store.Load(ctx, ids)
}

func (s *strained) Runs(ctx context.Context, q job.RunQuery) (job.RunPage, error) {
	s.mu.Lock()
	fails := s.runs != nil && s.runs(q.RootID)
	s.mu.Unlock()
	if fails {
		return job.RunPage{}, errAway
	}
	return s.Store.Runs(ctx, q)
}

// set changes what fails, with what that looks at.
func (s *strained) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func strain(c *clustertest.Core) *strained {
	s := &strained{}
	c.Configure = func(x *scheduler.Config) { s.Store, x.Store = x.Store, s }
	return s
}

// A new leader knows which keys are held once it has met all open roots; until then none of them may be taken.
func TestAKeyIsNotTakenTwiceWhenTheLeaderChanges(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		s := strain(c)
		w := &crew{does: map[string]clustertest.Behaviour{"a": clustertest.Succeed(20 * time.Second)}}
		c.Workers.Add(worker("w", 10), w.work)
		spec := c.Spec("concurrency: {key: k}\n" + graph("a"))
		first := c.Submit(job.Submission{Spec: spec}, nil)
		time.Sleep(time.Second)
		c.Depose()
		s.set(func() { s.live = 5 * time.Second })
		c.Lead()
		second := c.Submit(job.Submission{Spec: spec}, nil)
		time.Sleep(2 * time.Minute)
		expectState(t, c.Run(first.ID), job.Succeeded, job.NoReason)
		expectState(t, c.Run(second.ID), job.Succeeded, job.NoReason)
		if a, b := c.Run(first.ID), c.Run(second.ID); b.StartedAt < a.FinishedAt {
			t.Errorf("the second began at %s, the first ended at %s", b.StartedAt.Time(), a.FinishedAt.Time())
		}
	})
}

// A leader dies between a run_job task's opening and its child's birth, and the next one cannot read what the child's
// payload is made of, for a while.
func TestAChildIsBornHoweverLongItsPayloadCannotBeRead(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		s := strain(c)
		c.Depose()
		c.Lead()
		w := &crew{does: map[string]clustertest.Behaviour{"a": answer(`{"n": 1}`)}}
		c.Workers.Add(worker("w", 10), w.work)
		inner := c.Apply("{name: inner, exec: {command: [work]}}")
		r := c.Submit(job.Submission{Spec: c.Spec(graph("a", "k<a run_job: {job: inner}, payload: {n: '${{ tasks.a.result.n }}'}"))}, nil)
		opened := job.TaskRunID(r.ID, "k", 0)
		a := job.TaskRunID(r.ID, "a", 0)
		away := true
		s.set(func() {
			s.load = func(ids []job.RunID) bool { // but for the dispatcher, when a is to start
				r, err := c.Store.Run(context.Background(), a)
				return away && len(ids) == 1 && ids[0] == a && err == nil && r.State.Terminal()
			}
		})
		time.Sleep(5 * time.Second)
		expectState(t, c.Run(opened), job.Running, job.NoReason)
		c.Depose()
		c.Lead()
		time.Sleep(5 * time.Second)
		s.set(func() { away = false })
		time.Sleep(time.Minute)
		expectState(t, c.Run(r.ID), job.Succeeded, job.NoReason)
		if runs := c.RunsOf(inner); len(runs) != 1 || string(runs[0].Payload) != `{"n":1}` {
			t.Errorf("children: %d", len(runs))
		}
	})
}

// Many open roots are adopted at once, from a store that fails now and then.
func TestManyRootsAreAdopted(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		s := strain(c)
		w := &crew{does: map[string]clustertest.Behaviour{"a": clustertest.Succeed(10 * time.Second)}}
		c.Workers.Add(worker("w", 1000), w.work)
		spec := c.Spec(graph("a", "b<a"))
		var roots []job.RunID
		for range 200 {
			roots = append(roots, c.Submit(job.Submission{Spec: spec}, nil).ID)
		}
		time.Sleep(5 * time.Second)
		c.Depose()
		var n atomic.Int64
		s.set(func() { s.runs = func(job.RunID) bool { return n.Add(1)%3 == 0 } })
		c.Lead()
		time.Sleep(2 * time.Minute)
		for _, id := range roots {
			expectState(t, c.Run(id), job.Succeeded, job.NoReason)
		}
		expectOnce(t, c)
	})
}

// A client may have chosen, for a run of its own, the id that a task's run would have.
func TestATaskWhoseIDIsTakenFails(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		c.Workers.Add(worker("w", 4), clustertest.Succeed(time.Second))
		root := c.NewID()
		c.Submit(job.Submission{ID: job.TaskRunID(root, "b", 0), Spec: c.Spec(plain)}, nil)
		c.Submit(job.Submission{ID: root, Spec: c.Spec(graph("a", "b<a", "c<b"))}, nil)
		time.Sleep(time.Minute)
		expectState(t, c.Run(root), job.Failed, job.TaskFailed)
	})
}

// Explain says what an open root, and one that waits, wait for.
func TestRootsAreExplained(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		spec := c.Spec("concurrency: {key: k}\n" + graph("a", "b", "c<a,b"))
		first := c.Submit(job.Submission{Spec: spec}, nil)
		time.Sleep(time.Second)
		second := c.Submit(job.Submission{Spec: spec}, nil)
		time.Sleep(time.Second)
		for id, want := range map[job.RunID]string{
			first.ID:  "It waits for 2 of its tasks to end",
			second.ID: "Other runs hold its concurrency key \"k\": 1 now.",
		} {
			why, err := c.Term().Explain(context.Background(), c.Run(id))
			must(t, err)
			if got := strings.Join(why, " "); !strings.Contains(got, want) || strings.Contains(got, "worker") {
				t.Errorf("explained as %q, want %q", got, want)
			}
		}
	})
}

// A run's end is stored, and the answer is lost however often it is asked for: what waited for it goes on all the same.
func TestAnEndThatNobodyHeardOfIsFound(t *testing.T) {
	lost := func(commands []fsm.Command) clustertest.Failure {
		for _, x := range commands {
			if m, ok := x.(*fsm.Move); ok && m.Moves[0].State == job.Cancelled {
				return clustertest.DoneUnknown
			}
		}
		return clustertest.NoFailure
	}
	t.Run("by the next tick's run", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			j := c.Apply(`{name: long, schedule: {cron: "@every 10s"}, overlap: queue, exec: {command: [work]}}`)
			time.Sleep(21 * time.Second)
			runs := c.RunsOf(j)
			expectState(t, runs[1], job.Waiting, job.OverlapQueued)
			c.Log.Fail(lost)
			c.Cancel(runs[0].ID)
			time.Sleep(time.Second)
			expectState(t, c.Run(runs[0].ID), job.Cancelled, job.CancelRequested)
			c.Log.Fail(nil)
			time.Sleep(15 * time.Second)
			expectState(t, c.Run(runs[1].ID), job.Queued, job.NoReason)
		})
	})
	t.Run("by the root of a task", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			r := c.Submit(job.Submission{Spec: c.Spec(graph("a", "b<a run_if: all_done"))}, nil)
			time.Sleep(time.Second)
			c.Log.Fail(lost)
			c.Cancel(job.TaskRunID(r.ID, "a", 0))
			time.Sleep(time.Second)
			c.Log.Fail(nil)
			time.Sleep(16 * time.Second)
			if got := states(t, c, r.ID); got != "a:cancelled(cancel_requested) b:queued" {
				t.Errorf("rows: %s", got)
			}
		})
	})
}
