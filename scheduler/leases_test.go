package scheduler_test

import (
	"context"
	"testing"
	"time"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/internal/clustertest"
	"github.com/musterhq/muster/job"
)

// Many leases end while Raft does not hear of it. Then runs are granted again whose earlier lease is among the last of
// them: Raft must know of its end first, whichever entries fail.
func TestGrantsComeAfterTheEndsOfEarlierLeases(t *testing.T) {
	for name, then := range map[string]func([]fsm.Command) clustertest.Failure{
		"all is well again":           nil,
		"ends without grants do fail": failing(clustertest.NotDone, func(g *fsm.Grant) bool { return len(g.Grants) == 0 }),
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, c *clustertest.Core) {
				urgent := 9
				c.Workers.Add(worker("w", 4000), func(ctx context.Context, a *job.Assignment) job.Outcome {
					switch {
					case a.Attempt > 1:
						return clustertest.Succeed(0)(ctx, a)
					case a.Labels["urgent"] != "":
						return clustertest.Fail(2*time.Second)(ctx, a)
					}
					return clustertest.Fail(time.Second)(ctx, a)
				})
				c.Log.Fail(failing(clustertest.NotDone, func(g *fsm.Grant) bool { return len(g.Ended) > 0 }))
				spec := c.Spec(`{exec: {command: [work]}, retry: {max_attempts: 2, initial: 5s, backoff: constant}}`)
				var ids []job.RunID
				for i := range 3000 {
					s := job.Submission{Spec: spec}
					if i >= 2600 {
						s.Priority, s.Labels = &urgent, map[string]string{"urgent": "yes"}
					}
					ids = append(ids, c.Submit(s, nil).ID)
				}
				time.Sleep(12*time.Second + 250*time.Millisecond)
				c.Log.Fail(then)
				time.Sleep(3 * time.Second)
				c.Log.Fail(nil)
				time.Sleep(3 * time.Second)
				for i, id := range ids {
					if r := c.Run(id); r.State != job.Succeeded {
						t.Fatalf("run %d is %s (%s), attempt %d", i, r.State, r.Reason, r.Attempt)
					}
				}
			})
		})
	}
}

// An entry that is stale is dropped (Q3), and what is behind it does not wait for a signal.
func TestStaleEntriesHoldUpNothing(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		spec := c.Spec(`{exec: {command: [work]}, concurrency: {key: k}}`)
		urgent := 9
		stale := c.Submit(job.Submission{Spec: spec, Priority: &urgent}, nil)
		c.Cancel(stale.ID)
		time.Sleep(time.Second)
		r := c.Submit(job.Submission{Spec: spec}, nil)
		if _, err := c.Queue.Push(context.Background(), c.Term().Epoch(), stale.CreatedAt, []job.QueueEntry{stale.Entry()}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		c.Workers.Add(worker("w", 1), clustertest.Succeed(0))
		time.Sleep(100 * time.Millisecond)
		expectState(t, c.Run(r.ID), job.Succeeded, job.NoReason)
	})
}

// While the store takes nothing, a lease that ran out is reported once, not every second: the settler's inbox is for results.
func TestALeaseThatRanOutIsReportedOnce(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		c.Workers.Add(worker("w", 1000), clustertest.Succeed(time.Hour))
		for range 1000 {
			c.Submit(job.Submission{Spec: c.Spec(plain)}, nil)
		}
		time.Sleep(time.Second)
		c.Workers.Kill("w", false)
		time.Sleep(35 * time.Second)
		c.Log.Fail(failing(clustertest.NotDone, always[*fsm.Move]))
		time.Sleep(time.Minute)
		_, err := c.Term().Attach(context.Background(), "s", "node", job.WorkerHello{Name: "other", Boot: "1", DataID: "other", Slots: 1})
		must(t, err)
		finished := make(chan struct{})
		go func() {
			c.Term().Finished("s", []job.Outcome{{RunID: c.NewID(), Fence: 1, Kind: job.AttemptSucceeded}})
			close(finished)
		}()
		select {
		case <-finished:
		case <-time.After(time.Second):
			t.Fatal("nobody can bring results any more")
		}
	})
}
