package scheduler_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/clustertest"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
	"github.com/musterhq/muster/storage/memory"
	"github.com/musterhq/muster/storage/storagetest"
)

// small gives a core a queue whose lanes hold few, from its next leader on.
func small(c *clustertest.Core, room int) *storagetest.Faulty {
	f := storagetest.NewFaulty(c.Store)
	c.Configure = func(x *scheduler.Config) { x.Store, x.LoadLanes = f, true }
	c.Depose()
	c.Queue = memory.New(room)
	c.Lead()
	return f
}

// store stores runs and tells nobody.
func store(t *testing.T, c *clustertest.Core, runs ...*job.Run) {
	t.Helper()
	if _, err := c.Store.Submit(context.Background(), runs); err != nil {
		t.Fatal(err)
	}
}

func birth(t *testing.T, c *clustertest.Core, s job.Submission) *job.Run {
	t.Helper()
	s.ID, s.Namespace = c.NewID(), "default"
	r, err := job.Birth(&s, nil, job.At(time.Now()))
	must(t, err)
	r.Home = job.HomeQuorum
	return r
}

// Q2: a lane of 2,000 runs and a queue that holds 50 of them. All run, in order, whoever leads; hints are lost.
func TestALongBacklogRunsInOrder(t *testing.T) {
	for _, room := range []int{10, 50, 3000} {
		t.Run(fmt.Sprint(room), func(t *testing.T) {
			in(t, func(t *testing.T, c *clustertest.Core) {
				f := small(c, room)
				spec := c.Spec(plain)
				var all []*job.Run
				for i := range 2000 {
					priority := []int{5, 5, 0, 9, 5, 7}[i*7919%6]
					r := birth(t, c, job.Submission{Spec: spec, Priority: &priority})
					store(t, c, r)
					if all = append(all, r); i%10 > 0 {
						c.Term().Born([]*job.Run{r})
					}
					time.Sleep(time.Millisecond)
				}
				time.Sleep(10 * time.Second) // the reconciler finds what was lost
				c.Workers.Add(worker("w", 20), clustertest.Succeed(50*time.Millisecond))
				for range 3 {
					time.Sleep(400 * time.Millisecond)
					c.Depose()
					c.Lead()
				}
				time.Sleep(10 * time.Second)
				for _, r := range all {
					expectState(t, c.Run(r.ID), job.Succeeded, job.NoReason)
				}
				slices.SortFunc(all, func(a, b *job.Run) int { return a.Entry().Compare(b.Entry()) })
				starts := c.Workers.Starts()
				if len(starts) != len(all) {
					t.Fatalf("%d starts of %d runs", len(starts), len(all))
				}
				for i, s := range starts {
					if s.Run != all[i].ID {
						t.Fatalf("start %d is of %s, want %s", i, s.Run, all[i].ID)
					}
				}
				if n := f.Calls(storagetest.Backlog); room == 50 && n > 300 {
					t.Errorf("the backlog was read %d times", n)
				}
			})
		})
	}
}

// What cannot run, is held or is cancelled in the middle of a backlog neither blocks what is behind it nor has it read for
// ever. Runs of a paused job become held when their turn comes, and go on when the job is resumed.
func TestABacklogOfAPausedJobAndCancelledRuns(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		f := small(c, 10)
		paused := c.Apply(`{name: paused, exec: {command: [work]}}`)
		must(t, c.Control.PauseJob(context.Background(), paused.ID))
		var held, rest, cancelled []job.RunID
		for i := range 600 {
			switch i / 100 {
			case 0, 2, 4:
				held = append(held, c.Submit(job.Submission{}, paused).ID)
			default:
				id := c.Submit(job.Submission{Spec: c.Spec(plain)}, nil).ID
				if i%3 > 0 {
					rest = append(rest, id)
					break
				}
				if cancelled = append(cancelled, id); i%2 == 0 {
					c.Cancel(id)
				} else if _, err := c.Store.Cancel(context.Background(), []job.CancelIntent{{ID: id, At: job.At(time.Now())}}); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Millisecond)
		}
		c.Workers.Add(worker("w", 5), clustertest.Succeed(5*time.Millisecond))
		time.Sleep(20 * time.Second)
		for _, id := range rest {
			expectState(t, c.Run(id), job.Succeeded, job.NoReason)
		}
		for _, id := range cancelled {
			expectState(t, c.Run(id), job.Cancelled, job.CancelRequested)
		}
		for _, id := range held {
			expectState(t, c.Run(id), job.Held, job.JobPaused)
		}
		before := f.Calls(storagetest.Backlog)
		time.Sleep(time.Minute)
		if n := f.Calls(storagetest.Backlog) - before; n > 0 {
			t.Errorf("the backlog is read %d times in a minute, and there is none", n)
		}
		must(t, c.Control.ResumeJob(context.Background(), paused.ID))
		c.Term().ScheduleChanged()
		time.Sleep(3 * time.Second)
		for _, id := range held {
			expectState(t, c.Run(id), job.Succeeded, job.NoReason)
		}
	})
}

// Runs in a backlog that are not ready yet start when they are, although the queue has no room for them before.
func TestDelayedRunsOfAFullLaneStartInTime(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		small(c, 10)
		for range 400 { // ten a second take 40 s
			c.Submit(job.Submission{Spec: c.Spec(plain)}, nil)
		}
		urgent := 9
		var delayed []*job.Run
		for i := range 30 {
			at := time.Now().Add(5*time.Second + time.Duration(i)*time.Second)
			delayed = append(delayed, c.Submit(job.Submission{Spec: c.Spec(plain), Priority: &urgent, RunAt: job.At(at)}, nil))
		}
		c.Workers.Add(worker("w", 1), clustertest.Succeed(100*time.Millisecond))
		time.Sleep(2 * time.Minute)
		at := map[job.RunID]time.Time{}
		for _, s := range c.Workers.Starts() {
			at[s.Run] = s.At
		}
		if len(at) != 430 {
			t.Fatalf("%d runs started", len(at))
		}
		for i, r := range delayed {
			if late := at[r.ID].Sub(r.ReadyAt.Time()); late < 0 || late > 1200*time.Millisecond {
				t.Errorf("delayed run %d started %s after its time", i, late)
			}
		}
	})
}

// Q3: a node that was paused sends an old hint of a run that was found, run and settled meanwhile; other stale entries.
func TestStaleEntriesAreDropped(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		c.Workers.Add(worker("w", 5), clustertest.Succeed(time.Second))
		old := birth(t, c, job.Submission{Spec: c.Spec(plain)})
		store(t, c, old) // and the node is paused before it says so
		time.Sleep(10 * time.Second)
		expectState(t, c.Run(old.ID), job.Succeeded, job.NoReason)
		cancelled := c.Submit(job.Submission{Spec: c.Spec(plain), RunAt: job.At(time.Now().Add(time.Minute))}, nil)
		c.Cancel(cancelled.ID)
		running := c.Submit(job.Submission{Spec: c.Spec(plain)}, nil)
		retried := c.Submit(job.Submission{Spec: c.Spec(plain), RunAt: job.At(time.Now().Add(time.Hour))}, nil)
		gone := birth(t, c, job.Submission{Spec: c.Spec(plain)})
		time.Sleep(100 * time.Millisecond)
		starts := len(c.Workers.Starts())
		early := retried.Entry()
		early.ReadyAt = job.At(time.Now())
		for range 3 {
			c.Term().Queued([]job.QueueEntry{old.Entry(), cancelled.Entry(), running.Entry(), gone.Entry(), early})
			time.Sleep(100 * time.Millisecond)
		}
		if n := len(c.Workers.Starts()); n != starts {
			t.Fatalf("%d starts of stale entries", n-starts)
		}
		time.Sleep(2 * time.Minute)
		expectState(t, c.Run(old.ID), job.Succeeded, job.NoReason)
		expectState(t, c.Run(cancelled.ID), job.Cancelled, job.CancelRequested)
		expectState(t, c.Run(running.ID), job.Succeeded, job.NoReason)
		expectState(t, c.Run(retried.ID), job.Scheduled, job.Delayed)
		lanes, err := c.Queue.Lanes(context.Background(), job.At(time.Now()))
		must(t, err)
		for _, l := range lanes {
			if l.Ready > 0 {
				t.Errorf("%d stale entries stay in lane %s", l.Ready, l.Lane)
			}
		}
		time.Sleep(time.Hour)
		expectState(t, c.Run(retried.ID), job.Succeeded, job.NoReason)
	})
}

// A single run starts when its grant is in Raft: no timer is on its way, neither at a term's beginning nor after a while.
func TestASingleRunStartsAtOnce(t *testing.T) {
	for _, loads := range []bool{false, true} {
		t.Run(fmt.Sprint(loads), func(t *testing.T) {
			in(t, func(t *testing.T, c *clustertest.Core) {
				const reading, granting = 700 * time.Microsecond, 2 * time.Millisecond
				c.Configure = func(x *scheduler.Config) { x.LoadLanes, x.Store = loads, slow{x.Store, reading} }
				c.Workers.Add(worker("w", 5), clustertest.Succeed(20*time.Millisecond))
				c.Depose()
				c.Lead()
				c.Log.Delay(granting)
				time.Sleep(137 * time.Millisecond)
				behind := 0 // an entry that tells Raft of ended leases, as there is one each second
				for i := range 200 {
					r := birth(t, c, job.Submission{Spec: c.Spec(plain)})
					store(t, c, r)
					told := time.Now()
					c.Term().Born([]*job.Run{r})
					time.Sleep(time.Duration(i*7919%400)*time.Millisecond + 50*time.Millisecond)
					s := c.Workers.Starts()
					last := s[len(s)-1]
					if took := last.At.Sub(told); last.Run != r.ID || took > reading+2*granting {
						t.Fatalf("run %d started after %s", i, took)
					} else if took > reading+granting {
						behind++
					}
				}
				if behind > 4 {
					t.Errorf("%d of 200 runs waited for another entry", behind)
				}
			})
		})
	}
}
