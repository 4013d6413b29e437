package scheduler_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/clustertest"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
	"github.com/musterhq/muster/storage/memory"
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
			healed := func() {}
			behave := func(ctx context.Context, a *job.Assignment) job.Outcome {
				n := int(a.Fence) * 7919
				d := time.Duration(n%3000) * time.Millisecond
				if n%5 == 0 {
					return clustertest.Fail(d)(ctx, a)
				}
				return clustertest.Succeed(d)(ctx, a)
			}
			if seed%2 == 0 { // a store of its own, whose reads fail as well, and a queue that holds next to nothing
				reads := &unsure{share: share, rand: rand.New(rand.NewPCG(seed, 3))}
				c.Configure = func(x *scheduler.Config) {
					x.LoadLanes = true
					reads.Store = x.Store
					x.Store = reads
				}
				c.Depose()
				c.Queue = memory.New(1 + r.IntN(4))
				c.Lead()
				healed = func() { reads.set(0) }
			}
			names := []string{"w1", "w2", "w3"}
			for _, n := range names {
				c.Workers.Add(worker(n, 4), behave)
			}
			start := time.Now()
			var jobs []*job.Job
			var texts []string
			for i, policy := range []string{"allow", "skip", "queue", "replace", "skip"} {
				catchUp := []string{"all", "latest"}[i/4]
				texts = append(texts, fmt.Sprintf(`{name: tick-%d, schedule: {cron: "@every 2s", catch_up: %s}, overlap: %s, retry: {max_attempts: 3, initial: 1s}, exec: {command: [work, "%%d"]}}`, i, catchUp, policy))
				jobs = append(jobs, c.Apply(fmt.Sprintf(texts[i], 0)))
			}
			c.Log.Fail(clustertest.Chaos(seed, share))
			var accepted []job.RunID
			specs := []*job.Document{c.Spec(plain), c.Spec(`{exec: {command: [work]}, retry: {max_attempts: 2, initial: 1s}}`),
				c.Spec(`{exec: {command: [work]}, concurrency: {key: k, limit: 2}}`), c.Spec(`{exec: {command: [work]}, on_worker_lost: fail}`)}
			onceOnly := map[job.RunID]bool{}
			cancelled := map[job.RunID]time.Time{}
			leads, full, cut, paused := true, false, map[string]bool{}, map[int]bool{}
			final := map[job.RunID]job.State{}
			ended := map[job.RunID]time.Time{} // when it was first seen terminal
			keyed := map[job.RunID]bool{}
			for step := range 150 {
				time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond)
				switch r.IntN(16) {
				case 12: // what was born stays, and no more comes
					if full = !full; full {
						limit(t, c, 1)
					} else {
						limit(t, c, 0)
					}
				case 13:
					i := r.IntN(len(jobs))
					if paused[i] = !paused[i]; paused[i] {
						must(t, insist(func() error { return c.Control.PauseJob(context.Background(), jobs[i].ID) }))
					} else {
						must(t, insist(func() error { return c.Control.ResumeJob(context.Background(), jobs[i].ID) }))
						if term := c.Term(); term != nil {
							term.ScheduleChanged()
						}
					}
				case 14:
					i := r.IntN(len(jobs))
					if !full {
						c.Apply(fmt.Sprintf(texts[i], step+1))
					}
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
					if full {
						break
					}
					i := r.IntN(len(specs))
					s := job.Submission{Spec: specs[i]}
					if r.IntN(4) == 0 {
						s.RunAt = job.At(time.Now().Add(time.Duration(r.IntN(20000)) * time.Millisecond))
					}
					run := c.Submit(s, nil)
					accepted = append(accepted, run.ID)
					onceOnly[run.ID], keyed[run.ID] = i == 3, i == 2
				}
				for _, id := range accepted { // D4: terminal is final
					if was, ok := final[id]; ok {
						if now := c.Run(id).State; now != was {
							t.Fatalf("run %s was %s and is %s", id, was, now)
						}
					} else if s := c.Run(id).State; s.Terminal() {
						final[id], ended[id] = s, time.Now()
					}
				}
			}
			// Heal, drain, then judge.
			c.Log.Fail(nil)
			healed()
			limit(t, c, 0)
			for i, is := range paused {
				if is {
					must(t, c.Control.ResumeJob(context.Background(), jobs[i].ID))
				}
			}
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
			judgeEnds(t, c, ended)
			judgeOverlaps(t, c, "the concurrency key", 2, func(s clustertest.Start) bool { return keyed[s.Run] })
			for _, j := range jobs[1:] {
				judgeOverlaps(t, c, j.Name, 1, func(s clustertest.Start) bool { return s.Job == j.Name })
			}
		})
	})
}

// unsure is a store whose reads fail now and then.
type unsure struct {
	scheduler.Store
	mu    sync.Mutex
	share float64
	rand  *rand.Rand
}

func (s *unsure) set(share float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.share = share
}

func (s *unsure) fails() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rand.Float64() < s.share {
		return job.Errorf(job.Unavailable, "store_unavailable", "away, on cue")
	}
	return nil
}

func (s *unsure) Load(ctx context.Context, ids []job.RunID) ([]*job.Run, error) {
	if err := s.fails(); err != nil {
		return nil, err
	}
	return s.Store.Load(ctx, ids)
}

func (s *unsure) Live(ctx context.Context, after job.RunID, limit int) ([]*job.Run, error) {
	if err := s.fails(); err != nil {
		return nil, err
	}
	return s.Store.Live(ctx, after, limit)
}

func (s *unsure) LiveOfJob(ctx context.Context, id job.JobID, limit int) ([]*job.Run, error) {
	if err := s.fails(); err != nil {
		return nil, err
	}
	return s.Store.LiveOfJob(ctx, id, limit)
}

func (s *unsure) Backlog(ctx context.Context, wants []job.LaneAfter, until job.Instant) ([]job.QueueEntry, error) {
	if err := s.fails(); err != nil {
		return nil, err
	}
	return s.Store.Backlog(ctx, wants, until)
}

func (s *unsure) Version(ctx context.Context, id job.JobID, version uint64) (*job.Version, error) {
	if err := s.fails(); err != nil {
		return nil, err
	}
	return s.Store.Version(ctx, id, version)
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

// insist repeats what a caller of the API would.
func insist(f func() error) error {
	for {
		err := f()
		if c := job.CodeOf(err); c != job.Unavailable && c != job.Unknown {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// judgeEnds: what was seen to have ended, a confirmed cancel above all, starts no more (L9, D4).
func judgeEnds(t *testing.T, c *clustertest.Core, ended map[job.RunID]time.Time) {
	for _, s := range c.Workers.Starts() {
		if at, ok := ended[s.Run]; ok && s.At.After(at) {
			t.Errorf("run %s started at %s, and had ended at %s (%s)", s.Run, s.At, at, c.Run(s.Run).State)
		}
	}
}

// judgeOverlaps: of some attempts never more than so many are live at once. None of them takes as long as a lease, so that
// holds for those of workers that are cut off as well.
func judgeOverlaps(t *testing.T, c *clustertest.Core, what string, most int, of func(clustertest.Start) bool) {
	var live []clustertest.Start
	for _, s := range c.Workers.Starts() {
		if !of(s) {
			continue
		}
		live = slices.DeleteFunc(live, func(x clustertest.Start) bool { return !x.End.IsZero() && !x.End.After(s.At) })
		if live = append(live, s); len(live) > most {
			t.Errorf("%s: %d attempts are live at once, %d may be: %+v", what, len(live), most, live)
			return
		}
	}
}
