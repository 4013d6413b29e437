package scheduler_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/clustertest"
	"github.com/musterhq/muster/job"
)

var (
	seeds    = flag.Int("chaos.seeds", 60, "how many seeds TestChaos tries")
	oneSeed  = flag.Uint64("chaos.seed", 0, "try only this seed")
	keptSeed = []uint64{101, 239} // seeds that once found something, tried each time
)

// TestChaos lets everything fail at random for some minutes of fake time, heals it, and judges D1 to D4: nothing accepted
// is lost, each tick has one disposition and at most one run, a second start has a recorded reason, terminal is final.
// (It does not replay exactly: goroutines are scheduled as they like. What a seed finds is found again soon.)
func TestChaos(t *testing.T) {
	if *oneSeed != 0 {
		chaos(t, *oneSeed)
		return
	}
	for _, s := range keptSeed {
		chaos(t, s)
	}
	for s := range uint64(*seeds) {
		if !slices.Contains(keptSeed, s+1) {
			chaos(t, s+1)
		}
	}
}

func chaos(t *testing.T, seed uint64) {
	t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			r := rand.New(rand.NewPCG(seed, 2))
			c.Log.Delay(time.Duration(r.IntN(20)) * time.Millisecond)
			share := []float64{0, 0.02, 0.2}[r.IntN(3)]
			behave := func(ctx context.Context, a *job.Assignment) job.Outcome {
				n := int(a.Fence) * 7919
				d := time.Duration(n%3000) * time.Millisecond
				if n%5 == 0 {
					return clustertest.Fail(d)(ctx, a)
				}
				return clustertest.Succeed(d)(ctx, a)
			}
			names := []string{"w1", "w2", "w3"}
			for _, n := range names {
				c.Workers.Add(worker(n, 4), behave)
			}
			start := time.Now()
			var jobs []*job.Job
			for i, policy := range []string{"allow", "skip", "queue", "replace"} {
				jobs = append(jobs, c.Apply(fmt.Sprintf(`{name: tick-%d, schedule: {cron: "@every 2s", catch_up: all}, overlap: %s, retry: {max_attempts: 3, initial: 1s}, exec: {command: [work]}}`, i, policy)))
			}
			c.Log.Fail(clustertest.Chaos(seed, share))
			var accepted []job.RunID
			specs := []*job.Document{c.Spec(plain), c.Spec(`{exec: {command: [work]}, retry: {max_attempts: 2, initial: 1s}}`),
				c.Spec(`{exec: {command: [work]}, concurrency: {key: k, limit: 2}}`), c.Spec(`{exec: {command: [work]}, on_worker_lost: fail}`)}
			onceOnly := map[job.RunID]bool{}
			cancelled := map[job.RunID]time.Time{}
			leads, cut := true, map[string]bool{}
			final := map[job.RunID]job.State{}
			for range 150 {
				time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond)
				switch r.IntN(12) {
				case 0:
					if leads {
						c.Depose()
					} else {
						c.Lead()
					}
					leads = !leads
				case 1:
					if n := names[r.IntN(3)]; !cut[n] {
						c.Workers.Kill(n, true)
					}
				case 2, 3:
					n := names[r.IntN(3)]
					cut[n] = !cut[n]
					c.Workers.Reach(n, !cut[n])
				case 4:
					if len(accepted) > 0 {
						id := accepted[r.IntN(len(accepted))]
						c.Cancel(id)
						cancelled[id] = time.Now()
					}
				default:
					i := r.IntN(len(specs))
					s := job.Submission{Spec: specs[i]}
					if r.IntN(4) == 0 {
						s.RunAt = job.At(time.Now().Add(time.Duration(r.IntN(20000)) * time.Millisecond))
					}
					run := c.Submit(s, nil)
					accepted = append(accepted, run.ID)
					onceOnly[run.ID] = i == 3
				}
				for _, id := range accepted { // D4: terminal is final
					if was, ok := final[id]; ok {
						if now := c.Run(id).State; now != was {
							t.Fatalf("run %s was %s and is %s", id, was, now)
						}
					} else if s := c.Run(id).State; s.Terminal() {
						final[id] = s
					}
				}
			}
			// Heal, drain, then judge.
			c.Log.Fail(nil)
			for n, is := range cut {
				if is {
					c.Workers.Reach(n, true)
				}
			}
			if !leads {
				c.Lead()
			}
			time.Sleep(5 * time.Second)
			for _, j := range jobs {
				must(t, c.Control.PauseJob(context.Background(), j.ID))
			}
			for _, j := range jobs { // held runs of paused jobs would stay
				if _, err := c.Store.DeleteJob(context.Background(), j.Namespace, j.Name, 0); err != nil {
					t.Fatal(err)
				}
				must(t, c.Control.DropSchedule(context.Background(), j.ID, 0))
				must(t, c.Control.ResumeJob(context.Background(), j.ID))
			}
			end := time.Now()
			time.Sleep(5 * time.Minute)
			judge(t, c, jobs, accepted, onceOnly, cancelled, start, end)
		})
	})
}

func judge(t *testing.T, c *clustertest.Core, jobs []*job.Job, accepted []job.RunID, onceOnly map[job.RunID]bool, cancelled map[job.RunID]time.Time, start, end time.Time) {
	starts := map[job.RunID][]clustertest.Start{}
	for _, s := range c.Workers.Starts() {
		starts[s.Run] = append(starts[s.Run], s)
	}
	all := append([]job.RunID(nil), accepted...)
	for _, j := range jobs {
		ticks := c.Ticks(j)
		covered := job.At(start)
		for _, k := range ticks { // D2: none missing, none twice
			if want := covered.Add(2 * time.Second); covered != job.At(start) && k.ScheduledAt != want {
				t.Errorf("%s: the tick after %s is %s", j.Name, covered, k.ScheduledAt)
			}
			covered = k.ScheduledAt
			if k.Count > 1 {
				covered = k.Until
			}
			if k.Disposition == job.TickRun {
				all = append(all, k.RunID())
			}
		}
		if gap := job.At(end).Sub(covered); gap > 4*time.Second {
			t.Errorf("%s: no tick is decided in the last %s", j.Name, gap)
		}
	}
	for _, id := range all {
		r := c.Run(id) // D1
		if !r.State.Terminal() {
			t.Errorf("run %s (%s) is still %s (%s), attempt %d; workers: %s", id, r.Job, r.State, r.Reason, r.Attempt, c.Workers.Describe(id))
			continue
		}
		past, err := c.Store.Attempts(context.Background(), id)
		if err != nil {
			t.Fatal(err)
		}
		recorded := map[uint32]bool{r.Attempt: true}
		for _, a := range past {
			recorded[a.Attempt] = true
		}
		var last job.Fence
		for i, s := range starts[id] {
			if s.Fence <= last {
				t.Errorf("run %s: start %d has fence %d after %d", id, i, s.Fence, last)
			}
			last = s.Fence
			if i > 0 && !recorded[s.Attempt-1] { // D3: a second start has a recorded reason
				t.Errorf("run %s: attempt %d started, and nothing is recorded of attempt %d; %s", id, s.Attempt, s.Attempt-1, c.Workers.Describe(id))
			}
		}
		if onceOnly[id] && len(starts[id]) > 1 {
			t.Errorf("run %s has on_worker_lost: fail and started %d times", id, len(starts[id]))
		}
	}
	if u, g := c.Control.Unstored(), c.Control.Grants(); len(g) > 0 {
		t.Errorf("left in raft: %d decisions, %d leases", len(u), len(g))
	}
}
