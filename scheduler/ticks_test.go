package scheduler_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/internal/clustertest"
	"github.com/musterhq/muster/job"
)

// failing fails, in one way, each proposal that has a command of a kind.
func failing[C fsm.Command](how clustertest.Failure, which func(C) bool) func([]fsm.Command) clustertest.Failure {
	return func(commands []fsm.Command) clustertest.Failure {
		for _, x := range commands {
			if c, ok := x.(C); ok && which(c) {
				return how
			}
		}
		return clustertest.NoFailure
	}
}

func always[C any](C) bool { return true }

// noGaps checks that a job's ledger has each tick of an interval once.
func noGaps(t *testing.T, name string, ticks []job.Tick, every time.Duration, first job.Instant) {
	t.Helper()
	next := first
	for _, k := range ticks {
		if k.ScheduledAt != next {
			t.Fatalf("%s: the ledger goes on with %s, want %s", name, k.ScheduledAt, next)
		}
		if next = k.ScheduledAt.Add(every); k.Count > 1 {
			if want := k.ScheduledAt.Add(time.Duration(k.Count-1) * every); k.Until != want {
				t.Fatalf("%s: %d ticks from %s end at %s", name, k.Count, k.ScheduledAt, k.Until)
			}
			next = k.Until.Add(every)
		}
	}
}

func limit(t *testing.T, c *clustertest.Core, live int64) {
	t.Helper()
	must(t, insist(func() error {
		_, err := c.Log.Propose(context.Background(), &fsm.SetLimits{Limits: fsm.Limits{MaxLiveBytes: live}})
		return err
	}))
}

// D6: when the store is full, ticks stay due. A leader that takes over must begin all the same, or nothing makes room.
func TestATermBeginsWhenTheStoreIsFull(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		beat := c.Apply(`{name: beat, schedule: {cron: "@every 1s"}, overlap: allow, exec: {command: [work]}}`)
		skip := c.Apply(`{name: skip, schedule: {cron: "@every 1s"}, overlap: skip, exec: {command: [work]}}`)
		var full []job.RunID
		for range 20 {
			full = append(full, c.Submit(job.Submission{Spec: c.Spec(plain)}, nil).ID)
		}
		limit(t, c, 1)
		time.Sleep(5 * time.Second)
		if n := len(c.Control.Unstored()); n == 0 {
			t.Fatal("nothing waits for the store")
		}
		c.Depose()
		c.Lead()
		c.Workers.Add(worker("w", 50), clustertest.Succeed(time.Second))
		time.Sleep(2 * time.Second)
		for _, id := range full {
			expectState(t, c.Run(id), job.Succeeded, job.NoReason)
		}
		limit(t, c, 0)
		time.Sleep(10 * time.Second)
		for _, j := range []*job.Job{beat, skip} {
			noGaps(t, j.Name, c.Ticks(j), time.Second, c.Ticks(j)[0].ScheduledAt)
		}
		var starts []clustertest.Start
		for _, s := range c.Workers.Starts() {
			if s.Job == "skip" {
				starts = append(starts, s)
			}
		}
		if len(starts) == 0 {
			t.Fatal("the job does not run")
		}
		noTwoAtOnce(t, starts[:len(starts)-1])
	})
}

// Ticks take the room there is, a few at a time: otherwise single births, which need less, take all of it for ever.
func TestTicksShareTheRoomOfAFullStore(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		j := c.Apply(`{name: beat, schedule: {cron: "@every 1s"}, overlap: allow, exec: {command: [work]}}`)
		limit(t, c, 1)
		time.Sleep(30 * time.Second)
		limit(t, c, 10_000) // for about ten runs
		time.Sleep(5 * time.Second)
		if n := len(c.RunsOf(j)); n == 0 {
			t.Fatal("no run of a tick is born while there is room for some")
		}
	})
}

// A tick that the next leader stores again has a run that may have ended. What is left are its successors, and none of them
// is replaced by it.
func TestReplaceSparesSuccessorsWhenTicksAreStoredAgain(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		c.Workers.Add(worker("w", 5), clustertest.Succeed(time.Hour))
		j := c.Apply(`{name: long, schedule: {cron: "@every 10s"}, overlap: replace, exec: {command: [work]}}`)
		time.Sleep(15 * time.Second) // 10 runs
		c.Log.Fail(failing(clustertest.NotDone, always[*fsm.StoreTicks]))
		time.Sleep(20 * time.Second) // 20 and 30 are decided
		c.Log.Fail(failing(clustertest.NotDone, always[*fsm.Decide]))
		time.Sleep(3 * time.Second) // and stored, and Raft is not told
		if n := len(c.Control.Unstored()); n != 2 {
			t.Fatalf("%d decisions wait for their acknowledgement, want 2", n)
		}
		c.Depose()
		c.Log.Fail(nil)
		c.Lead()
		time.Sleep(time.Second)
		runs := c.RunsOf(j)
		expectState(t, runs[1], job.Cancelled, job.OverlapReplaced)
		expectState(t, runs[2], job.Running, job.NoReason)
	})
}

// What a tick replaces is cancelled although the cancelling fails at first, and by the next leader if this one dies.
func TestReplaceIsRepeatedUntilItIsDone(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		c.Workers.Add(worker("w", 5), clustertest.Succeed(time.Hour))
		j := c.Apply(`{name: long, schedule: {cron: "@every 10s"}, overlap: replace, exec: {command: [work]}}`)
		time.Sleep(15 * time.Second)
		c.Log.Fail(failing(clustertest.NotDone, always[*fsm.Cancel]))
		time.Sleep(10 * time.Second) // 20 waits
		c.Log.Fail(nil)
		time.Sleep(time.Second)
		runs := c.RunsOf(j)
		if runs[0].State != job.Cancelled {
			t.Fatalf("the replaced run is %s", runs[0].State)
		}
		expectState(t, runs[1], job.Running, job.NoReason)
	})
}

// A decision that is cut into several entries may be made in part. The rest is decided from where the marks stand then.
func TestADecisionMadeInPart(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		start := job.At(time.Now())
		var jobs []*job.Job
		for i := range 263 {
			jobs = append(jobs, c.Apply(fmt.Sprintf(`{name: job-%d, schedule: {cron: "@every 1s", catch_up: {policy: all, max: 8}}, overlap: allow, exec: {command: [work]}}`, i)))
		}
		c.Depose()
		time.Sleep(20*time.Second + 500*time.Millisecond)
		entries := 0
		c.Log.Fail(failing(clustertest.NotDone, func(d *fsm.Decide) bool { entries++; return entries > 1 }))
		c.Lead()
		time.Sleep(5 * time.Second)
		c.Log.Fail(nil)
		time.Sleep(5 * time.Second)
		if entries < 2 {
			t.Fatal("the decision was not cut")
		}
		for _, j := range jobs {
			ticks := c.Ticks(j)
			noGaps(t, j.Name, ticks, time.Second, start.Add(time.Second))
			if last := ticks[len(ticks)-1].ScheduledAt; job.At(time.Now()).Sub(last) > 2*time.Second {
				t.Fatalf("%s: the last tick is %s", j.Name, last)
			}
		}
	})
}

// What one job owes is bounded, and so is what an entry holds: two jobs that owe much are not decided in one.
func TestLongCatchUpFitsItsEntries(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		few := c.Apply(`{name: few, schedule: {cron: "@every 1s", catch_up: {policy: all, max: 4900}}, overlap: allow, exec: {command: [work]}}`)
		time.Sleep(1500 * time.Millisecond)
		many := c.Apply(`{name: many, schedule: {cron: "@every 1s", catch_up: {policy: all, max: 10000}}, overlap: allow, exec: {command: [work]}}`)
		c.Depose()
		time.Sleep(3 * time.Hour)
		c.Lead()
		time.Sleep(10 * time.Second)
		for _, j := range []*job.Job{few, many} {
			if ticks := c.Ticks(j); len(ticks) < 4900 {
				t.Fatalf("%s: %d decisions are in the ledger", j.Name, len(ticks))
			}
		}
	})
}

// A tick whose version is gone before the store has it gets no run, and its job is not taken for busy ever after.
func TestATickWithoutARunOverlapsNothing(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		c.Workers.Add(worker("w", 1), clustertest.Succeed(time.Second))
		text := `{name: some, schedule: {cron: "@every 10s"}, overlap: skip, exec: {command: [work, "%d"]}}`
		j := c.Apply(fmt.Sprintf(text, 0))
		c.Log.Fail(failing(clustertest.NotDone, always[*fsm.StoreTicks]))
		time.Sleep(11 * time.Second)
		for i := range fsm.KeptVersions + 1 {
			c.Apply(fmt.Sprintf(text, i+1))
		}
		c.Log.Fail(nil)
		time.Sleep(10 * time.Second)
		ticks := c.Ticks(j)
		if len(c.RunsOf(j)) != 1 || ticks[len(ticks)-1].Disposition != job.TickRun {
			t.Fatalf("ticks: %+v", ticks)
		}
	})
}

// Raft is told that the store has the decisions though no others come along: until then `verify` leaves them out, and the
// next leader stores them again.
func TestTheLastDecisionsAreAcknowledged(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		j := c.Apply(`{name: rare, schedule: {cron: "@every 1m"}, overlap: allow, exec: {command: [work]}}`)
		decides := 0
		c.Log.Fail(failing(clustertest.NoFailure, func(*fsm.Decide) bool { decides++; return true }))
		time.Sleep(65 * time.Second)
		if n := len(c.Ticks(j)); n != 1 {
			t.Fatalf("%d decisions are in the ledger", n)
		}
		if n := len(c.Control.Unstored()); n != 0 {
			t.Fatalf("of %d decisions Raft does not know that they are stored", n)
		}
		if decides != 2 {
			t.Fatalf("one tick took %d entries", decides)
		}
	})
}
