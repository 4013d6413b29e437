package scheduler_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/clustertest"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
	"github.com/musterhq/muster/storage/storagetest"
)

// methods are those of scheduler.Store.
var methods = []storagetest.Method{storagetest.Raise, storagetest.StoreTicks, storagetest.Move, storagetest.Load, storagetest.Live,
	storagetest.LiveOfJob, storagetest.Backlog, storagetest.Heads, storagetest.StartVersion, storagetest.Version, storagetest.Cancel, storagetest.Prune}

// calls counts the calls of a store by method.
func calls(f *storagetest.Faulty) map[storagetest.Method]int {
	n := map[storagetest.Method]int{}
	for _, m := range methods {
		n[m] = f.Calls(m)
	}
	return n
}

// since is what was called since, and how many calls that are.
func since(f *storagetest.Faulty, before map[storagetest.Method]int) (map[storagetest.Method]int, int) {
	n, sum := calls(f), 0
	for m := range n {
		n[m] -= before[m]
		sum += n[m]
	}
	return n, sum
}

// lines counts the lines of a log from warnings on, by message and part.
type lines struct {
	slog.Handler
	mu sync.Mutex
	n  map[string]int
}

func newLines() *lines { return &lines{Handler: slog.DiscardHandler, n: map[string]int{}} }

func (l *lines) Enabled(context.Context, slog.Level) bool { return true }

func (l *lines) Handle(_ context.Context, r slog.Record) error {
	if r.Level < slog.LevelWarn {
		return nil
	}
	text := r.Message
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "part" {
			text += ": " + a.Value.String()
		}
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n[text]++
	return nil
}

func (l *lines) take() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer clear(l.n)
	return maps.Clone(l.n)
}

// faulty gives a core a store that fails on cue, from its next leader on, and a log that is read.
func faulty(c *clustertest.Core) (*storagetest.Faulty, *lines) {
	f, l := storagetest.NewFaulty(c.Store), newLines()
	c.Configure = func(x *scheduler.Config) { x.Store, x.Logger = f, slog.New(l) }
	c.Depose()
	c.Lead()
	return f, l
}

// The store is away for a minute, from any moment on. Nobody spins, what runs goes on, ticks are decided, and when the
// store is back all is done within seconds: nothing twice, nothing lost, and one line in the log for each part.
func TestTheStoreIsAwayForAMinute(t *testing.T) {
	for name, fault := range map[string]storagetest.Fault{"unavailable": storagetest.Unavailable, "unknown": storagetest.Timeout} {
		for offset := range 12 {
			t.Run(fmt.Sprintf("%s after %d", name, offset), func(t *testing.T) {
				in(t, func(t *testing.T, c *clustertest.Core) {
					awayForAMinute(t, c, fault, time.Duration(offset)*437*time.Millisecond)
				})
			})
		}
	}
}

func awayForAMinute(t *testing.T, c *clustertest.Core, fault storagetest.Fault, offset time.Duration) {
	f, l := faulty(c)
	for i := range 3 {
		c.Workers.Add(worker(fmt.Sprintf("w%d", i), 10), func(ctx context.Context, a *job.Assignment) job.Outcome {
			d := map[string]time.Duration{"long": 30 * time.Second, "": time.Duration(a.Fence%7) * 300 * time.Millisecond}[a.Labels["takes"]]
			return clustertest.Succeed(d)(ctx, a)
		})
	}
	var jobs []*job.Job
	for _, policy := range []string{"allow", "skip", "queue", "replace"} {
		jobs = append(jobs, c.Apply(fmt.Sprintf(`{name: %s, schedule: {cron: "@every 2s", catch_up: all}, overlap: %s, exec: {command: [work]}}`, policy, policy)))
	}
	var runs []job.RunID
	submit := func(n int, labels map[string]string) {
		for range n {
			runs = append(runs, c.Submit(job.Submission{Spec: c.Spec(plain), Labels: labels}, nil).ID)
		}
	}
	submit(5, map[string]string{"takes": "long"})
	submit(60, nil)
	unstartable := c.Submit(job.Submission{Spec: c.Spec(`handler: {name: nobody}`)}, nil)
	time.Sleep(3*time.Second + offset)
	submit(20, nil)
	cancelled := c.Submit(job.Submission{Spec: c.Spec(`handler: {name: nobody}`)}, nil)
	f.All(fault)
	before, decided := calls(f), len(c.Control.Unstored())
	l.take()
	c.Cancel(cancelled.ID) // the intent is stored before the store is away for the leader
	time.Sleep(time.Minute)
	if by, n := since(f, before); n > 60*9 {
		t.Errorf("the store was called %d times in a minute while it was away: %v", n, by)
	}
	for text, n := range l.take() {
		if n > 1 {
			t.Errorf("%d lines say %q", n, text)
		}
	}
	if n := len(c.Control.Unstored()) - decided; n < 25 {
		t.Errorf("%d ticks were decided meanwhile, want at least those of one job", n)
	}
	starts := len(c.Workers.Starts())
	f.All(storagetest.None)
	time.Sleep(2 * time.Second)
	if n := len(c.Workers.Starts()); n == starts {
		t.Error("two seconds after the store is back nothing has started")
	}
	expectState(t, c.Run(cancelled.ID), job.Cancelled, job.CancelRequested)
	expectState(t, c.Run(unstartable.ID), job.Queued, job.NoReason)
	time.Sleep(15 * time.Second)
	for _, id := range runs {
		expectState(t, c.Run(id), job.Succeeded, job.NoReason)
	}
	times := map[job.RunID]int{}
	for _, s := range c.Workers.Starts() {
		if times[s.Run]++; times[s.Run] > 1 {
			t.Errorf("run %s (%s) started %d times", s.Run, s.Job, times[s.Run])
		}
	}
	for _, j := range jobs {
		ticks := c.Ticks(j)
		noGaps(t, j.Name, ticks, 2*time.Second, ticks[0].ScheduledAt)
		if last := ticks[len(ticks)-1].ScheduledAt; job.At(time.Now()).Sub(last) > 5*time.Second {
			t.Errorf("%s: the last tick in the ledger is %s", j.Name, last)
		}
	}
}

// Any single call of a store may fail in any way, done or not.
func TestAnyCallOfTheStoreMayFail(t *testing.T) {
	for _, fault := range []storagetest.Fault{storagetest.Unavailable, storagetest.Timeout, storagetest.ExecuteAndTimeout} {
		for _, m := range methods {
			if m == storagetest.Raise {
				continue
			}
			t.Run(fmt.Sprintf("%s %d", m, fault), func(t *testing.T) {
				in(t, func(t *testing.T, c *clustertest.Core) {
					f, _ := faulty(c)
					c.Workers.Add(worker("w", 5), clustertest.Fail(300*time.Millisecond))
					j := c.Apply(`{name: some, schedule: {cron: "@every 3s"}, overlap: replace, exec: {command: [work]}}`)
					var ids []job.RunID
					for i := range 20 {
						f.Next(m, fault)
						ids = append(ids, c.Submit(job.Submission{Spec: c.Spec(`{exec: {command: [work]}, retry: {max_attempts: 2, initial: 1s}}`)}, nil).ID)
						if i%5 == 0 {
							c.Cancel(ids[i])
						}
						time.Sleep(500 * time.Millisecond)
					}
					time.Sleep(20 * time.Second)
					for _, id := range ids {
						if r := c.Run(id); !r.State.Terminal() || r.Failures > 2 {
							t.Errorf("run is %s (%s) with %d failures", r.State, r.Reason, r.Failures)
						}
					}
					starts := map[job.RunID]map[uint32]bool{}
					for _, s := range c.Workers.Starts() {
						if starts[s.Run] == nil {
							starts[s.Run] = map[uint32]bool{}
						}
						if starts[s.Run][s.Attempt] {
							t.Errorf("attempt %d of run %s started twice", s.Attempt, s.Run)
						}
						starts[s.Run][s.Attempt] = true
					}
					noGaps(t, j.Name, c.Ticks(j), 3*time.Second, c.Ticks(j)[0].ScheduledAt)
					c.Depose()
					time.Sleep(time.Second) // the last attempt ends
				})
			})
		}
	}
}

// While results cannot be recorded they wait, so many and no more; leases are renewed all the same.
func TestResultsWaitBoundedAndLeasesLive(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		f, _ := faulty(c)
		c.Workers.Add(worker("w", 3), clustertest.Succeed(100*time.Second))
		r := c.Submit(job.Submission{Spec: c.Spec(plain)}, nil)
		time.Sleep(time.Second)
		f.All(storagetest.Unavailable)
		term := c.Term()
		_, err := term.Attach(context.Background(), "s", "node", job.WorkerHello{Name: "talker", Boot: "1", DataID: "talker", Slots: 1})
		must(t, err)
		brought := make(chan int)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range 50 {
				o := make([]job.Outcome, 1000)
				for k := range o {
					o[k] = job.Outcome{RunID: c.NewID(), Fence: job.MakeFence(term.Epoch(), uint32(1e6+i*1000+k)), Attempt: 1, Kind: job.AttemptSucceeded}
				}
				term.Finished("s", o)
				brought <- len(o)
			}
		}()
		n := 0
		for waiting := true; waiting; {
			select {
			case k := <-brought:
				n += k
			case <-time.After(time.Second):
				waiting = false
			}
		}
		if n < 20_000 || n > 25_000 {
			t.Errorf("%d results were taken in while none can be recorded", n)
		}
		time.Sleep(70 * time.Second) // more than lease and grace
		expectState(t, c.Run(r.ID), job.Running, job.NoReason)
		f.All(storagetest.None)
		for range 50 - n/1000 {
			<-brought
		}
		<-done
		time.Sleep(40 * time.Second)
		if got := c.Run(r.ID); got.State != job.Succeeded || got.Attempt != 1 {
			t.Errorf("the run is %s, attempt %d", got.State, got.Attempt)
		}
	})
}

// A leader that finds the store away does not begin, and says so; when the store is back it does.
func TestATermBeginsWhenTheStoreIsBack(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		f, _ := faulty(c)
		c.Workers.Add(worker("w", 3), clustertest.Succeed(20*time.Second))
		j := c.Apply(`{name: beat, schedule: {cron: "@every 5s"}, overlap: skip, exec: {command: [work]}}`)
		r := c.Submit(job.Submission{Spec: c.Spec(plain)}, nil)
		time.Sleep(12 * time.Second)
		c.Depose()
		f.All(storagetest.Unavailable)
		_, err := scheduler.Begin(context.Background(), scheduler.Config{Control: c.Control, Store: f, Queue: c.Queue})
		if job.CodeOf(err) != job.Unavailable {
			t.Fatalf("a term begins without the store: %v", err)
		}
		time.AfterFunc(15*time.Second, func() { f.All(storagetest.None) })
		c.Lead()
		time.Sleep(20 * time.Second)
		if got := c.Run(r.ID); got.State != job.Succeeded || got.Attempt != 1 {
			t.Fatalf("the run is %s, attempt %d", got.State, got.Attempt)
		}
		noGaps(t, j.Name, c.Ticks(j), 5*time.Second, c.Ticks(j)[0].ScheduledAt)
	})
}

// idleCalls is what a term asks of the store in a minute in which nothing happens: a look at live runs every five seconds,
// a page of schedules every thirty, and whether there is history to drop, which a store answers from memory mostly.
const idleCalls = 48

func TestAnIdleLeaderAsksLittle(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		for i := range 10_000 {
			c.Apply(fmt.Sprintf(`{name: job-%d, schedule: {cron: "0 0 1 6 *"}, exec: {command: [work]}}`, i))
		}
		f, _ := faulty(c)
		c.Workers.Add(worker("w", 3), clustertest.Succeed(0))
		time.Sleep(time.Minute)
		before := calls(f)
		time.Sleep(time.Minute)
		if by, n := since(f, before); n > idleCalls {
			t.Errorf("%d calls in a minute, want at most %d: %v", n, idleCalls, by)
		}
	})
}
