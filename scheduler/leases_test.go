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
