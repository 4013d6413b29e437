package scheduler_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/internal/clustertest"
	"github.com/musterhq/muster/job"
)

// in runs a test in a bubble with a core that leads. Time is the bubble's: it begins at 2000-01-01 and costs nothing.
func in(t *testing.T, f func(t *testing.T, c *clustertest.Core)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t)
		defer func() {
			c.Log.Fail(nil)
			c.Depose()
			c.Workers.KillAll()
		}()
		c.Lead()
		f(t, c)
	})
}

func worker(name string, slots int) job.WorkerHello { return job.WorkerHello{Name: name, Slots: slots} }

const plain = `exec: {command: [work]}`

func expectState(t *testing.T, r *job.Run, s job.State, why job.Reason) {
	t.Helper()
	if r.State != s || r.Reason != why {
		t.Fatalf("run is %s (%s), want %s (%s); error %q", r.State, r.Reason, s, why, r.Error)
	}
}

func TestOneRun(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		c.Workers.Add(worker("w", 1), clustertest.Succeed(time.Second))
		r := c.Submit(job.Submission{Spec: c.Spec(plain)}, nil)
		time.Sleep(500 * time.Millisecond)
		expectState(t, c.Run(r.ID), job.Running, job.NoReason)
		time.Sleep(time.Second)
		got := c.Run(r.ID)
		expectState(t, got, job.Succeeded, job.NoReason)
		if got.Attempt != 1 || got.Worker != "w" {
			t.Fatalf("attempt %d on %q", got.Attempt, got.Worker)
		}
		time.Sleep(2 * time.Second)
		if g := c.Control.Grants(); len(g) != 0 {
			t.Fatalf("leases left in raft: %v", g)
		}
	})
}

func TestRetriesWithBackoffUntilAttemptsAreSpent(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		c.Workers.Add(worker("w", 1), clustertest.Fail(0))
		r := c.Submit(job.Submission{Spec: c.Spec(`{exec: {command: [work]}, retry: {max_attempts: 3, initial: 10s, max: 1m}}`)}, nil)
		time.Sleep(5 * time.Second)
		expectState(t, c.Run(r.ID), job.Scheduled, job.RetryBackoff)
		time.Sleep(time.Minute)
		got := c.Run(r.ID)
		expectState(t, got, job.Failed, job.ExitCode)
		starts := c.Workers.Starts()
		if len(starts) != 3 || got.Attempt != 3 {
			t.Fatalf("%d starts, attempt %d; want 3 (L5)", len(starts), got.Attempt)
		}
		// I13: the pauses are at least the backoff, which doubles.
		for i, want := range []time.Duration{10 * time.Second, 20 * time.Second} {
			if gap := starts[i+1].At.Sub(starts[i].At); gap < want || gap > want+want/5+time.Second {
				t.Errorf("pause %d was %s, want about %s", i+1, gap, want)
			}
		}
		past, err := c.Store.Attempts(context.Background(), r.ID)
		if err != nil || len(past) != 2 || past[0].Attempt != 1 || past[1].Attempt != 2 {
			t.Fatalf("attempts kept: %v, %v", past, err)
		}
	})
}

func TestCancel(t *testing.T) {
	t.Run("a queued run never starts", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			r := c.Submit(job.Submission{Spec: c.Spec(plain)}, nil)
			c.Cancel(r.ID)
			time.Sleep(time.Second)
			expectState(t, c.Run(r.ID), job.Cancelled, job.CancelRequested)
			c.Workers.Add(worker("w", 1), clustertest.Succeed(0))
			time.Sleep(time.Minute)
			if s := c.Workers.Starts(); len(s) != 0 {
				t.Fatalf("it started: %v", s)
			}
		})
	})
	t.Run("a running one is stopped by its worker", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			c.Workers.Add(worker("w", 1), clustertest.Succeed(time.Hour))
			r := c.Submit(job.Submission{Spec: c.Spec(plain)}, nil)
			time.Sleep(time.Second)
			c.Cancel(r.ID)
			time.Sleep(time.Second)
			expectState(t, c.Run(r.ID), job.Cancelled, job.CancelRequested)
		})
	})
	t.Run("one whose worker is cut off ends with the lease, and is not retried", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			c.Workers.Add(worker("w", 1), clustertest.Succeed(time.Hour))
			r := c.Submit(job.Submission{Spec: c.Spec(`{exec: {command: [work]}, retry: {max_attempts: 5}, concurrency: {key: k}}`)}, nil)
			waits := c.Submit(job.Submission{Spec: c.Spec(`{exec: {command: [work]}, concurrency: {key: k}}`)}, nil)
			time.Sleep(time.Second)
			c.Workers.Reach("w", false)
			c.Workers.Add(worker("w2", 5), clustertest.Succeed(time.Hour))
			c.Cancel(r.ID)
			time.Sleep(20 * time.Second)
			expectState(t, c.Run(r.ID), job.Running, job.NoReason)
			expectState(t, c.Run(waits.ID), job.Queued, job.NoReason) // L9: the key is held until then
			time.Sleep(time.Minute)
			expectState(t, c.Run(r.ID), job.Cancelled, job.CancelRequested)
			expectState(t, c.Run(waits.ID), job.Running, job.NoReason)
			if n := len(c.Workers.Starts()); n != 2 {
				t.Fatalf("%d starts, want 2", n)
			}
		})
	})
	t.Run("a hint that was lost is found", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			r := c.Submit(job.Submission{Spec: c.Spec(plain), RunAt: job.At(time.Now().Add(time.Hour))}, nil)
			if _, err := c.Store.Cancel(context.Background(), []job.CancelIntent{{ID: r.ID, At: job.At(time.Now())}}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			expectState(t, c.Run(r.ID), job.Cancelled, job.CancelRequested)
		})
	})
}

func TestLostWorkers(t *testing.T) {
	t.Run("a run goes to another worker once lease and grace are over, and spends no attempt", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			c.Workers.Add(worker("w1", 1), clustertest.Succeed(time.Hour))
			r := c.Submit(job.Submission{Spec: c.Spec(plain)}, nil)
			time.Sleep(time.Second)
			c.Workers.Kill("w1", false)
			c.Workers.Add(worker("w2", 1), clustertest.Succeed(time.Second))
			time.Sleep(job.LeaseTimeout)
			if n := len(c.Workers.Starts()); n != 1 {
				t.Fatalf("%d starts before the grace was over", n)
			}
			time.Sleep(job.LeaseKillGrace + 5*time.Second)
			got := c.Run(r.ID)
			expectState(t, got, job.Succeeded, job.NoReason)
			if got.Attempt != 2 || got.Losses != 1 || got.Failures != 0 {
				t.Fatalf("attempt %d, losses %d, failures %d", got.Attempt, got.Losses, got.Failures)
			}
			past, _ := c.Store.Attempts(context.Background(), r.ID)
			if len(past) != 1 || past[0].Reason != job.WorkerLost {
				t.Fatalf("the loss is not recorded (D3): %v", past)
			}
		})
	})
	t.Run("a restarted agent gives its runs back at once", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			c.Workers.Add(worker("w1", 1), clustertest.Succeed(10*time.Second))
			r := c.Submit(job.Submission{Spec: c.Spec(plain)}, nil)
			time.Sleep(time.Second)
			c.Workers.Kill("w1", true)
			time.Sleep(2 * time.Second)
			if s := c.Workers.Starts(); len(s) != 2 || s[1].Attempt != 2 {
				t.Fatalf("starts: %v", s)
			}
			time.Sleep(time.Minute)
			expectState(t, c.Run(r.ID), job.Succeeded, job.NoReason)
		})
	})
	t.Run("after three losses it is failed", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			c.Workers.Add(worker("w", 1), clustertest.Succeed(time.Hour))
			r := c.Submit(job.Submission{Spec: c.Spec(plain)}, nil)
			for range job.MaxLosses {
				time.Sleep(time.Second)
				c.Workers.Kill("w", true)
			}
			time.Sleep(time.Second)
			expectState(t, c.Run(r.ID), job.Failed, job.WorkerLost)
		})
	})
	t.Run("on_worker_lost: fail is at most once", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			c.Workers.Add(worker("w", 1), clustertest.Succeed(time.Hour))
			r := c.Submit(job.Submission{Spec: c.Spec(`{exec: {command: [work]}, on_worker_lost: fail, retry: {max_attempts: 5}}`)}, nil)
			time.Sleep(time.Second)
			c.Workers.Kill("w", true)
			time.Sleep(time.Minute)
			expectState(t, c.Run(r.ID), job.Failed, job.WorkerLost)
			if n := len(c.Workers.Starts()); n != 1 {
				t.Fatalf("%d starts", n)
			}
		})
	})
	t.Run("a worker that comes back too late is refused (L3)", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			c.Workers.Add(worker("w1", 1), clustertest.Succeed(2*time.Minute))
			r := c.Submit(job.Submission{Spec: c.Spec(plain)}, nil)
			time.Sleep(time.Second)
			c.Workers.Reach("w1", false)
			c.Workers.Add(worker("w2", 1), clustertest.Succeed(5*time.Minute))
			time.Sleep(150 * time.Second) // w2 has it, w1 has ended it
			if n := len(c.Workers.Starts()); n != 2 {
				t.Fatalf("%d starts", n)
			}
			c.Workers.Reach("w1", true)
			time.Sleep(time.Second)
			if c.Workers.Refused() != 1 {
				t.Fatal("the late result was not refused")
			}
			expectState(t, c.Run(r.ID), job.Running, job.NoReason)
			time.Sleep(5 * time.Minute)
			if got := c.Run(r.ID); got.State != job.Succeeded || got.Worker != "w2" {
				t.Fatalf("%s by %s", got.State, got.Worker)
			}
		})
	})
	t.Run("a late success is welcome while nobody else has the run", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			c.Workers.Add(worker("w1", 1), clustertest.Succeed(2*time.Minute))
			r := c.Submit(job.Submission{Spec: c.Spec(plain)}, nil)
			time.Sleep(time.Second)
			c.Workers.Reach("w1", false)
			time.Sleep(3 * time.Minute)
			expectState(t, c.Run(r.ID), job.Queued, job.WorkerLost)
			c.Workers.Reach("w1", true)
			time.Sleep(10 * time.Minute)
			got := c.Run(r.ID)
			if got.State != job.Succeeded {
				t.Fatalf("%s", got.State)
			}
		})
	})
}

// Crash points of settling (package settle): the store has the move, and nobody else has heard of it.
func TestLeaderDiesAfterTheMoveAndBeforeTheLeaseEnds(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		c.Workers.Deaf(true)
		c.Log.Fail(func(commands []fsm.Command) clustertest.Failure {
			for _, x := range commands {
				if g, ok := x.(*fsm.Grant); ok && len(g.Ended) > 0 {
					return clustertest.NotDone
				}
			}
			return clustertest.NoFailure
		})
		c.Workers.Add(worker("w", 1), clustertest.Fail(0))
		r := c.Submit(job.Submission{Spec: c.Spec(`{exec: {command: [work]}, retry: {max_attempts: 3, initial: 1h, max: 1h}}`)}, nil)
		time.Sleep(time.Second)
		c.Depose()
		if len(c.Control.Grants()) != 1 {
			t.Fatal("the lease should have outlived the leader")
		}
		c.Log.Fail(nil)
		c.Workers.Deaf(false)
		c.Lead() // the worker says it all again
		time.Sleep(10 * time.Second)
		if got := c.Run(r.ID); got.Failures != 1 || got.State != job.Scheduled {
			t.Fatalf("one failure counts %d times; the run is %s", got.Failures, got.State)
		}
		if g := c.Control.Grants(); len(g) != 0 {
			t.Fatalf("leases left: %v", g)
		}
		time.Sleep(2 * time.Hour)
		expectState(t, c.Run(r.ID), job.Scheduled, job.RetryBackoff)
		if n := len(c.Workers.Starts()); n != 2 {
			t.Fatalf("%d starts after the backoff, want 2", n)
		}
	})
}

func TestLimits(t *testing.T) {
	t.Run("a concurrency key bounds what runs at once", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			running, most := 0, 0
			mu := make(chan struct{}, 1)
			c.Workers.Add(worker("w", 50), func(ctx context.Context, a *job.Assignment) job.Outcome {
				mu <- struct{}{}
				running++
				most = max(most, running)
				<-mu
				time.Sleep(time.Second)
				mu <- struct{}{}
				running--
				<-mu
				return job.Outcome{Kind: job.AttemptSucceeded}
			})
			spec := c.Spec(`{exec: {command: [work]}, concurrency: {key: reports, limit: 4}}`)
			var ids []job.RunID
			for range 20 {
				ids = append(ids, c.Submit(job.Submission{Spec: spec}, nil).ID)
			}
			time.Sleep(time.Minute)
			for _, id := range ids {
				expectState(t, c.Run(id), job.Succeeded, job.NoReason)
			}
			if most != 4 {
				t.Fatalf("%d ran at once, want 4", most)
			}
		})
	})
	t.Run("priority decides among what waits", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			low, high := 1, 8
			for range 3 {
				c.Submit(job.Submission{Spec: c.Spec(plain), Priority: &low}, nil)
			}
			urgent := c.Submit(job.Submission{Spec: c.Spec(plain), Priority: &high}, nil)
			c.Workers.Add(worker("w", 1), clustertest.Succeed(time.Second))
			time.Sleep(time.Minute)
			if s := c.Workers.Starts(); len(s) != 4 || s[0].Run != urgent.ID {
				t.Fatalf("starts: %v", s)
			}
		})
	})
	t.Run("what nobody can execute holds up nothing", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			c.Workers.Add(worker("w", 1), clustertest.Succeed(0))
			stuck := c.Submit(job.Submission{Spec: c.Spec(`handler: {name: nobody}`)}, nil)
			r := c.Submit(job.Submission{Spec: c.Spec(plain)}, nil)
			time.Sleep(10 * time.Second)
			expectState(t, c.Run(r.ID), job.Succeeded, job.NoReason)
			expectState(t, c.Run(stuck.ID), job.Queued, job.NoReason)
			why, err := c.Term().Explain(context.Background(), c.Run(stuck.ID))
			if err != nil || len(why) == 0 || why[0] != "No attached worker, of 1, offers what it needs: the handler nobody." {
				t.Fatalf("explanation %q, %v", why, err)
			}
		})
	})
	t.Run("a delayed run starts at its time, not before", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			c.Workers.Add(worker("w", 1), clustertest.Succeed(0))
			at := time.Now().Add(3 * time.Hour)
			r := c.Submit(job.Submission{Spec: c.Spec(plain), RunAt: job.At(at)}, nil)
			time.Sleep(3*time.Hour - time.Second)
			expectState(t, c.Run(r.ID), job.Scheduled, job.Delayed)
			time.Sleep(2 * time.Second)
			expectState(t, c.Run(r.ID), job.Succeeded, job.NoReason)
			if s := c.Workers.Starts()[0]; s.At.Before(at) || s.At.After(at.Add(time.Second)) {
				t.Fatalf("started at %s, asked for %s", s.At, at)
			}
		})
	})
	t.Run("a deadline ends what has not started", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			r := c.Submit(job.Submission{Spec: c.Spec(`{exec: {command: [work]}, deadline: 1m}`)}, nil)
			time.Sleep(time.Minute + 10*time.Second)
			expectState(t, c.Run(r.ID), job.Failed, job.DeadlineExceeded)
		})
	})
}

func TestTicks(t *testing.T) {
	t.Run("every tick has its run", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			c.Workers.Add(worker("w", 5), clustertest.Succeed(time.Second))
			j := c.Apply(`{name: beat, schedule: {cron: "@every 10s"}, exec: {command: [work]}}`)
			time.Sleep(time.Minute + time.Second)
			ticks, runs := c.Ticks(j), c.RunsOf(j)
			if len(ticks) != 6 || len(runs) < 6 {
				t.Fatalf("%d ticks, %d runs", len(ticks), len(runs))
			}
			for i, k := range ticks {
				if k.Disposition != job.TickRun || k.RunID() != runs[i].ID || runs[i].ScheduledAt != k.ScheduledAt {
					t.Fatalf("tick %+v, run %+v", k, runs[i])
				}
			}
			if u := c.Control.Unstored(); len(u) > 1 {
				t.Fatalf("%d decisions are not acknowledged", len(u))
			}
		})
	})
	overlap := func(policy string) string {
		return fmt.Sprintf(`{name: long, schedule: {cron: "@every 10s"}, overlap: %s, exec: {command: [work]}}`, policy)
	}
	count := func(ticks []job.Tick) map[job.Disposition]int {
		n := map[job.Disposition]int{}
		for _, k := range ticks {
			n[k.Disposition] += k.Ticks()
		}
		return n
	}
	t.Run("overlap: skip", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			c.Workers.Add(worker("w", 5), clustertest.Succeed(25*time.Second))
			j := c.Apply(overlap("skip"))
			time.Sleep(65 * time.Second) // ticks at 10..60; runs at 10 and 40
			if n := count(c.Ticks(j)); n[job.TickRun] != 2 || n[job.TickSkipped] != 4 {
				t.Fatalf("dispositions %v", n)
			}
		})
	})
	t.Run("overlap: queue keeps one waiting, the others coalesce", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			c.Workers.Add(worker("w", 5), clustertest.Succeed(25*time.Second))
			j := c.Apply(overlap("queue"))
			time.Sleep(31 * time.Second) // 10 runs, 20 waits, 30 coalesces
			if n := count(c.Ticks(j)); n[job.TickRun] != 2 || n[job.TickCoalesced] != 1 {
				t.Fatalf("dispositions %v", n)
			}
			runs := c.RunsOf(j)
			expectState(t, runs[1], job.Waiting, job.OverlapQueued)
			time.Sleep(5 * time.Second)
			expectState(t, c.RunsOf(j)[1], job.Running, job.NoReason)
			noTwoAtOnce(t, c.Workers.Starts())
		})
	})
	t.Run("overlap: replace cancels the earlier run first", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			c.Workers.Add(worker("w", 5), clustertest.Succeed(25*time.Second))
			j := c.Apply(overlap("replace"))
			time.Sleep(32 * time.Second)
			runs := c.RunsOf(j)
			if len(runs) != 3 {
				t.Fatalf("%d runs", len(runs))
			}
			expectState(t, runs[0], job.Cancelled, job.OverlapReplaced)
			expectState(t, runs[1], job.Cancelled, job.OverlapReplaced)
			expectState(t, runs[2], job.Running, job.NoReason)
			noTwoAtOnce(t, c.Workers.Starts())
		})
	})
	t.Run("overlap: allow", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			c.Workers.Add(worker("w", 50), clustertest.Succeed(25*time.Second))
			j := c.Apply(overlap("allow"))
			time.Sleep(62 * time.Second)
			if n := count(c.Ticks(j)); n[job.TickRun] != 6 {
				t.Fatalf("dispositions %v", n)
			}
		})
	})
	t.Run("a paused job's ticks are paused, by whichever leader", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			c.Workers.Add(worker("w", 5), clustertest.Succeed(0))
			j := c.Apply(`{name: beat, schedule: {cron: "@every 10s"}, exec: {command: [work]}}`)
			time.Sleep(25 * time.Second) // 10, 20 run
			must(t, c.Control.PauseJob(context.Background(), j.ID))
			time.Sleep(20 * time.Second) // 30, 40 are paused
			c.Depose()
			must(t, c.Control.ResumeJob(context.Background(), j.ID))
			time.Sleep(10 * time.Second) // 50 is missed by nobody: its leader comes late
			c.Lead()
			time.Sleep(10 * time.Second) // 60 runs
			n := count(c.Ticks(j))
			if n[job.TickPaused] != 2 || n[job.TickRun] != 4 {
				t.Fatalf("dispositions %v of %v", n, c.Ticks(j))
			}
		})
	})
	t.Run("a queued run of a paused job is held, and goes on when resumed", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			j := c.Apply(`{name: some, exec: {command: [work]}}`)
			must(t, c.Control.PauseJob(context.Background(), j.ID))
			c.Workers.Add(worker("w", 5), clustertest.Succeed(0))
			r := c.Submit(job.Submission{Job: "some"}, j)
			time.Sleep(10 * time.Second)
			expectState(t, c.Run(r.ID), job.Held, job.JobPaused)
			must(t, c.Control.ResumeJob(context.Background(), j.ID))
			time.Sleep(10 * time.Second)
			expectState(t, c.Run(r.ID), job.Succeeded, job.NoReason)
		})
	})
	t.Run("what a paused job held goes on when the job is deleted", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			j := c.Apply(`{name: some, exec: {command: [work]}}`)
			must(t, c.Control.PauseJob(context.Background(), j.ID))
			c.Workers.Add(worker("w", 5), clustertest.Succeed(0))
			r := c.Submit(job.Submission{Job: "some"}, j)
			time.Sleep(10 * time.Second)
			expectState(t, c.Run(r.ID), job.Held, job.JobPaused)
			_, err := c.Store.DeleteJob(context.Background(), "default", "some", 0)
			must(t, err)
			must(t, c.Control.DropSchedule(context.Background(), j.ID, 0))
			time.Sleep(10 * time.Second)
			expectState(t, c.Run(r.ID), job.Succeeded, job.NoReason)
		})
	})
	t.Run("catch-up after nobody led", func(t *testing.T) {
		for policy, want := range map[string]map[job.Disposition]int{
			"none":   {job.TickMissed: 59, job.TickRun: 1},
			"latest": {job.TickCoalesced: 59, job.TickRun: 1},
			"all":    {job.TickRun: 60},
		} {
			t.Run(policy, func(t *testing.T) {
				in(t, func(t *testing.T, c *clustertest.Core) {
					c.Workers.Add(worker("w", 100), clustertest.Succeed(0))
					j := c.Apply(fmt.Sprintf(`{name: beat, schedule: {cron: "@every 1m", catch_up: %s}, overlap: allow, exec: {command: [work]}}`, policy))
					c.Depose()
					time.Sleep(time.Hour + time.Second)
					c.Lead()
					time.Sleep(30 * time.Second)
					if n := count(c.Ticks(j)); fmt.Sprint(n) != fmt.Sprint(want) {
						t.Fatalf("dispositions %v, want %v", n, want)
					}
				})
			})
		}
	})
	t.Run("start_deadline skips what did not start in time", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			j := c.Apply(`{name: beat, schedule: {cron: "@every 1m"}, start_deadline: 20s, exec: {command: [work]}}`)
			time.Sleep(95 * time.Second)
			expectState(t, c.RunsOf(j)[0], job.Skipped, job.StartDeadline)
		})
	})
	t.Run("L7: a new version owns the ticks after it, the old one those before", func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			c.Workers.Add(worker("w", 5), clustertest.Succeed(0))
			j := c.Apply(`{name: beat, schedule: {cron: "@every 10s"}, exec: {command: [work]}}`)
			c.Depose() // nobody decides the ticks at 10 and 20
			time.Sleep(25 * time.Second)
			c.Apply(`{name: beat, schedule: {cron: "@every 10s", catch_up: all}, exec: {command: [other]}}`)
			time.Sleep(10 * time.Second) // 30
			c.Lead()
			time.Sleep(10 * time.Second) // 40
			versions := map[uint64]int{}
			for _, k := range c.Ticks(j) {
				versions[k.Version] += k.Ticks()
			}
			if versions[1] != 2 || versions[2] != 2 {
				t.Fatalf("ticks by version: %v of %+v", versions, c.Ticks(j))
			}
		})
	})
}

// A run whose lease outlived its attempt in Raft goes on when the worker says so, not seconds later.
func TestARunFreedByAHelloIsQueuedAtOnce(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		c.Log.Fail(func(commands []fsm.Command) clustertest.Failure {
			for _, x := range commands {
				if g, ok := x.(*fsm.Grant); ok && len(g.Ended) > 0 {
					return clustertest.NotDone
				}
			}
			return clustertest.NoFailure
		})
		c.Workers.Add(worker("w", 1), func(context.Context, *job.Assignment) job.Outcome {
			time.Sleep(10 * time.Second)
			return job.Outcome{Kind: job.AttemptReturned, Reason: job.WorkerStopped}
		})
		r := c.Submit(job.Submission{Spec: c.Spec(plain)}, nil)
		time.Sleep(10*time.Second + 100*time.Millisecond)
		expectState(t, c.Run(r.ID), job.Queued, job.WorkerStopped)
		if len(c.Control.Grants()) != 1 {
			t.Fatal("the lease should have outlived the attempt")
		}
		c.Depose()
		c.Workers.Kill("w", false)
		c.Log.Fail(nil)
		c.Lead()
		time.Sleep(100 * time.Millisecond)
		c.Workers.Add(worker("w", 1), clustertest.Succeed(time.Hour))
		time.Sleep(100 * time.Millisecond)
		if n := len(c.Workers.Starts()); n != 2 {
			t.Fatalf("%d starts, want the second at once", n)
		}
	})
}

// A worker's word counts for what was granted to it, whatever run and fence it names.
func TestAWorkerSettlesOnlyItsOwn(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		c.Workers.Add(worker("honest", 1), clustertest.Succeed(time.Minute))
		running := c.Submit(job.Submission{Spec: c.Spec(plain)}, nil)
		queued := c.Submit(job.Submission{Spec: c.Spec(`{exec: {command: [work]}, retry: {max_attempts: 9}}`), RunAt: job.At(time.Now().Add(time.Hour))}, nil)
		time.Sleep(time.Second)
		fence := c.Workers.Starts()[0].Fence
		term := c.Term()
		_, err := term.Attach(context.Background(), "forged", "node", job.WorkerHello{Name: "liar", Boot: "1", DataID: "liar", Slots: 1})
		must(t, err)
		for _, f := range []job.Fence{fence, fence + 1, 1 << 63} {
			for _, id := range []job.RunID{running.ID, queued.ID} {
				for _, k := range []job.OutcomeKind{job.AttemptSucceeded, job.AttemptFailed, job.AttemptLost, job.AttemptReturned} {
					term.Finished("forged", []job.Outcome{{RunID: id, Fence: f, Attempt: 1, Worker: "honest", Kind: k}})
				}
			}
		}
		term.Started("forged", []job.Started{{RunID: running.ID, Fence: fence, At: 1}})
		time.Sleep(time.Second)
		expectState(t, c.Run(running.ID), job.Running, job.NoReason)
		expectState(t, c.Run(queued.ID), job.Scheduled, job.Delayed)
		if l, _ := term.Lease(running.ID); l.StartedAt == 1 {
			t.Fatal("another worker's word about the start was taken")
		}
		time.Sleep(2 * time.Hour)
		for _, id := range []job.RunID{running.ID, queued.ID} {
			if r := c.Run(id); r.State != job.Succeeded || r.Worker != "honest" || r.Attempt != 1 {
				t.Fatalf("run is %s by %q, attempt %d", r.State, r.Worker, r.Attempt)
			}
		}
	})
}

// L7: the store has a definition and Raft never heard of it, or the other way round.
func TestSchedulesFollowDefinitions(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		c.Workers.Add(worker("w", 5), clustertest.Succeed(0))
		kept := c.Apply(`{name: kept, schedule: {cron: "@every 10s"}, exec: {command: [work]}}`)
		gone := c.Apply(`{name: gone, schedule: {cron: "@every 10s"}, exec: {command: [work]}}`)
		edited := c.Apply(`{name: edited, schedule: {cron: "@every 10s"}, exec: {command: [work]}}`)
		stopped := c.Apply(`{name: stopped, schedule: {cron: "@every 10s"}, exec: {command: [work]}}`)
		put := func(document string) *job.Job {
			d, err := job.ParseDocument([]byte(document))
			must(t, err)
			j, err := c.Store.PutJob(context.Background(), job.PutJob{ID: job.JobID(c.NewID()), Spec: d, At: job.At(time.Now())})
			must(t, err)
			return j
		}
		unborn := put(`{name: unborn, schedule: {cron: "@every 10s"}, exec: {command: [work]}}`)
		put(`{name: edited, schedule: {cron: "@every 1m"}, exec: {command: [work]}}`)
		put(`{name: stopped, exec: {command: [work]}}`)
		_, err := c.Store.DeleteJob(context.Background(), "default", "gone", 0)
		must(t, err)
		time.Sleep(35 * time.Second)
		for _, x := range []struct {
			j    *job.Job
			want uint64
		}{{kept, 1}, {gone, 0}, {edited, 2}, {stopped, 0}, {unborn, 1}} {
			if m, _ := c.Control.Mark(x.j.ID); m.Version != x.want {
				t.Errorf("%s: version %d ticks, want %d", x.j.Name, m.Version, x.want)
			}
		}
		if len(c.RunsOf(unborn)) == 0 {
			t.Error("a definition that Raft had not heard of does not tick")
		}
	})
}

func noTwoAtOnce(t *testing.T, starts []clustertest.Start) {
	t.Helper()
	for i := 1; i < len(starts); i++ {
		if starts[i-1].End.IsZero() || starts[i].At.Before(starts[i-1].End) {
			t.Fatalf("start %d at %s overlaps the one before, which ended %s", i, starts[i].At, starts[i-1].End)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A node that has just started may not know the cluster's time yet, and its own clock may be wrong: what it takes in as
// queued starts at once all the same.
func TestARunFromANodeWhoseClockIsAheadStartsAtOnce(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		c.Workers.Add(worker("w", 1), clustertest.Succeed(0))
		time.Sleep(time.Second)
		r, err := job.Birth(&job.Submission{ID: c.NewID(), Namespace: "default", Spec: c.Spec(plain)}, nil, job.At(time.Now().Add(time.Hour)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Store.Submit(context.Background(), []*job.Run{r}); err != nil {
			t.Fatal(err)
		}
		c.Term().Born([]*job.Run{r})
		time.Sleep(time.Second)
		expectState(t, c.Run(r.ID), job.Succeeded, job.NoReason)
	})
}

// A leader that was deposed and does not know it yet meets a worker that a newer one gave work to. It must not have the
// work stopped, nor acknowledge its result: nobody would have it.
func TestADeposedLeaderLeavesANewerOnesWorkAlone(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		term, ctx := c.Term(), context.Background()
		newer := job.MakeFence(term.Epoch()+1, 1)
		hello := job.WorkerHello{Name: "w", Boot: "1", DataID: "w", Slots: 1, Executors: []string{"exec"}}
		if _, err := term.Attach(ctx, "s1", "node", hello); err != nil {
			t.Fatal(err)
		}
		if unknown := term.Heartbeat("s1", []job.Fence{newer, job.MakeFence(term.Epoch(), 9)}); len(unknown) != 1 || unknown[0] == newer {
			t.Errorf("it calls unknown: %v", unknown)
		}
		run := c.Submit(job.Submission{Spec: c.Spec(plain), RunAt: job.At(time.Now().Add(time.Hour))}, nil)
		before := c.Workers.Acknowledged()
		term.Finished("s1", []job.Outcome{{RunID: run.ID, Fence: newer, Attempt: 1, Kind: job.AttemptSucceeded}})
		time.Sleep(time.Second)
		if n := c.Workers.Acknowledged() - before; n != 0 {
			t.Errorf("%d results acknowledged that were not recorded", n)
		}
		hello.Running = []job.Fence{newer}
		if stop, err := term.Attach(ctx, "s2", "node", hello); job.CodeOf(err) != job.Unavailable || len(stop) > 0 {
			t.Errorf("stop %v, %v", stop, err)
		}
	})
}
