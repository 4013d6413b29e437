package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/job"
)

// ofThe makes a run one of a job.
func ofThe(j *job.Job) func(*job.Run) {
	return func(r *job.Run) { r.JobID, r.Job, r.JobVersion, r.Spec = j.ID, j.Name, j.Version, nil }
}

// endOf is a move that ends a run, by the fast way or the slow one.
func endOf(r *job.Run, st job.State, fast bool) job.Move {
	m := job.Move{ID: r.ID, State: st, FinishedAt: r.CreatedAt + 1}
	if fast {
		m.Fence, m.Attempt, m.Worker = job.MakeFence(1, 1), 1, "w"
	}
	return m
}

// end submits runs of a job and ends them in one call; it answers the runs and for whom the last move says there is something.
func (s *Store) end(t *testing.T, j *job.Job, fast bool, states ...job.State) ([]*job.Run, []job.JobID) {
	t.Helper()
	var runs []*job.Run
	var moves []job.Move
	for _, st := range states {
		r := aRun(nowMs(), ofThe(j))
		runs, moves = append(runs, r), append(moves, endOf(r, st, fast))
	}
	submit(t, s, runs...)
	moved, err := s.Move(t.Context(), 1, moves)
	if err != nil {
		t.Fatal(err)
	}
	for i := range moved {
		if !moved[i].Applied {
			t.Fatalf("not moved: %+v", moved[i])
		}
	}
	return runs, moved[len(moved)-1].Due
}

func (s *Store) mustFire(t *testing.T, jobs ...job.JobID) []*job.Run {
	t.Helper()
	runs, err := s.Fire(t.Context(), 1, jobs, nowMs(), 100)
	if err != nil {
		t.Fatal(err)
	}
	return runs
}

func (s *Store) upstreams(t *testing.T, name string) (list []job.Dependency) {
	t.Helper()
	all, err := s.Dependencies(t.Context(), "default", name)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(d job.Dependency) bool { return d.Job != name })
}

// Edges are satisfied by the ends that they like, whichever way a move goes, the last of a batch counts, and a birth clears
// them; while a run of the job is live there is none.
func TestFire(t *testing.T) {
	t.Parallel()
	for name, fast := range map[string]bool{"fast": true, "slow": false} {
		for _, outbox := range []bool{false, true} {
			t.Run(fmt.Sprint(name, outbox), func(t *testing.T) {
				t.Parallel()
				url := database(t)
				s := raised(t, url, func(c *Config) { c.Outbox = outbox })
				a, b := s.mustPut(t, document("a")), s.mustPut(t, document("b"))
				d := document("c", "b", "a")
				d.DependsOn[0].On = job.OnDone
				c := s.mustPut(t, d)
				if runs := s.mustFire(t); len(runs) != 0 {
					t.Fatalf("born of nothing: %v", runs)
				}
				as, due := s.end(t, a, fast, job.Succeeded, job.Failed, job.Succeeded, job.Failed)
				if len(due) != 0 {
					t.Errorf("a failed run of a makes %v due", due)
				}
				if runs := s.mustFire(t, c.ID); len(runs) != 0 {
					t.Fatalf("born of one of two: %v", runs)
				}
				bs, due := s.end(t, b, fast, job.Cancelled)
				if !slices.Equal(due, []job.JobID{c.ID}) {
					t.Errorf("due are %v", due)
				}
				want := []job.Dependency{{Job: "c", Upstream: "a", On: job.OnSuccess, SatisfiedBy: as[2].ID, SatisfiedAt: as[2].CreatedAt + 1, Coalesced: 1},
					{Job: "c", Upstream: "b", On: job.OnDone, SatisfiedBy: bs[0].ID, SatisfiedAt: bs[0].CreatedAt + 1}}
				if d := cmp.Diff(want, s.upstreams(t, "c")); d != "" {
					t.Fatal(d)
				}
				// A new version keeps what stays.
				d = document("c", "b", "a")
				d.DependsOn[0].On, d.Labels = job.OnDone, map[string]string{"v": "2"}
				c = s.mustPut(t, d)
				now := nowMs()
				born, err := s.Fire(t.Context(), 1, []job.JobID{c.ID, a.ID, c.ID}, now, 10)
				if err != nil || len(born) != 1 || c.Version != 2 {
					t.Fatal(born, err, c.Version)
				}
				if d := cmp.Diff(job.BirthOfDependencies(c, want, now, job.HomePostgres), born[0]); d != "" {
					t.Fatal(d)
				}
				if got := load(t, s, born[0].ID)[0]; cmp.Diff(born[0], got) != "" {
					t.Fatal(cmp.Diff(born[0], got))
				}
				for _, e := range s.upstreams(t, "c") {
					if !e.SatisfiedBy.IsZero() || e.SatisfiedAt != 0 || e.Coalesced != 0 {
						t.Errorf("not cleared: %+v", e)
					}
				}
				// Satisfied again while it is live.
				s.end(t, a, fast, job.Succeeded)
				s.end(t, b, fast, job.Failed)
				if runs := s.mustFire(t); len(runs) != 0 {
					t.Fatalf("born while one is live: %v", runs)
				}
				task := aRun(nowMs(), ofThe(c), func(r *job.Run) { r.RootID, r.Task = born[0].ID, "t" })
				if moved, err := s.Move(t.Context(), 1, []job.Move{endOf(born[0], job.Failed, fast)}); err != nil || !slices.Equal(moved[0].Due, []job.JobID{c.ID}) {
					t.Fatal(moved, err)
				}
				if _, err := s.Release(t.Context(), 1, []*job.Run{task}); err != nil { // a task run is nobody's birth or end
					t.Fatal(err)
				}
				if moved, err := s.Move(t.Context(), 1, []job.Move{endOf(task, job.Failed, fast)}); err != nil || moved[0].Due != nil {
					t.Fatal(moved, err)
				}
				if runs := s.mustFire(t); len(runs) != 1 || runs[0].ID == born[0].ID {
					t.Fatalf("born: %v", runs)
				}
				events := 0
				if outbox {
					events = 2
				}
				if n := ask[int](t, connect(t, url), "SELECT count(*) FROM muster.outbox o JOIN muster.runs r ON r.id = o.run_id WHERE o.kind = 1 AND r.trigger = $1", job.ByDependency); n != events {
					t.Errorf("%d births are in the outbox", n)
				}
			})
		}
	}
}

// The edges of a job are those to its upstreams and then those from its dependents, each by name.
func TestDependencies(t *testing.T) {
	t.Parallel()
	s := raised(t, database(t))
	for _, d := range []*job.Document{document("a"), document("z"), document("m", "z", "a"), document("y", "m"), document("b", "m", "a")} {
		s.mustPut(t, d)
	}
	edge := func(of, upstream string) job.Dependency {
		return job.Dependency{Job: of, Upstream: upstream, On: job.OnSuccess}
	}
	for name, want := range map[string][]job.Dependency{
		"m": {edge("m", "a"), edge("m", "z"), edge("b", "m"), edge("y", "m")}, "a": {edge("b", "a"), edge("m", "a")}, "y": {edge("y", "m")}, "none": nil,
	} {
		got, err := s.Dependencies(t.Context(), "default", name)
		if err != nil || cmp.Diff(want, got) != "" {
			t.Errorf("%s: %v\n%s", name, err, cmp.Diff(want, got))
		}
	}
	if got, err := s.Dependencies(t.Context(), "other", "m"); err != nil || len(got) != 0 {
		t.Error(got, err)
	}
}

// A new edge starts satisfied only if its job never ran and the newest run of the upstream ended so. While that run is live
// it waits for it.
func TestNewEdges(t *testing.T) {
	t.Parallel()
	s := raised(t, database(t))
	a := s.mustPut(t, document("a"))
	old, _ := s.end(t, a, true, job.Succeeded)
	live := aRun(nowMs()+1000, ofThe(a))
	submit(t, s, live)
	s.mustPut(t, document("b", "a"))
	ran := s.mustPut(t, document("ran", "a"))
	s.end(t, ran, true, job.Succeeded)
	if runs := s.mustFire(t); len(runs) != 0 {
		t.Fatalf("born while the newest is live: %v; %v", runs, old)
	}
	failed := document("failed", "a")
	failed.DependsOn[0].On = job.OnFailure
	s.mustPut(t, failed)
	if _, err := s.Move(t.Context(), 1, []job.Move{endOf(live, job.Succeeded, true)}); err != nil {
		t.Fatal(err)
	}
	late := s.mustPut(t, document("late", "a"))
	ranLate := s.mustPut(t, document("ran-late"))
	s.end(t, ranLate, true, job.Failed)
	s.mustPut(t, document("ran-late", "a"))
	names := func(runs []*job.Run) (list []string) {
		for _, r := range runs {
			list = append(list, r.Job)
			if len(r.Upstreams) != 1 || r.Upstreams[0].RunID != live.ID {
				t.Errorf("born of %v", r.Upstreams)
			}
		}
		slices.Sort(list)
		return list
	}
	if got := names(s.mustFire(t)); !slices.Equal(got, []string{"b", "late", "ran"}) {
		t.Fatalf("born: %v", got)
	}
	if runs := s.mustFire(t); len(runs) != 0 {
		t.Fatalf("born again: %v", runs)
	}
	// Another end is another edge; a job made anew under a name is not the one that ran.
	d := document("late", "a")
	d.DependsOn[0].On = job.OnDone
	s.mustPut(t, d)
	if runs := s.mustFire(t); len(runs) != 0 {
		t.Fatalf("born though it ran: %v", runs)
	}
	if _, err := s.DeleteJob(t.Context(), "default", "late", 0); err != nil {
		t.Fatal(err)
	}
	if again := s.mustPut(t, document("late", "a")); again.ID == late.ID {
		t.Fatal("the same job")
	}
	if got := names(s.mustFire(t)); !slices.Equal(got, []string{"late"}) {
		t.Fatalf("born: %v", got)
	}
}

// S12: a job whose document cannot be read, or whose run Postgres cannot hold, stops no other, and is said once.
func TestFireUnfit(t *testing.T) {
	t.Parallel()
	url := database(t)
	var said bytes.Buffer
	s := raised(t, url, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&said, nil)) })
	c := connect(t, url)
	a := s.mustPut(t, document("a"))
	var want []string
	for i := range 40 {
		d := s.mustPut(t, document(fmt.Sprintf("d-%02d", i), "a"))
		switch i {
		case 3, 30:
			text := map[int]string{3: "{", 30: `{"priority": 300}`}[i] // 300 is read as 44, which the table refuses
			if _, err := c.Exec(t.Context(), "UPDATE muster.job_versions SET document = $2 WHERE job_id = $1", d.ID[:], text); err != nil {
				t.Fatal(err)
			}
		default:
			want = append(want, d.Name)
		}
	}
	s.end(t, a, true, job.Succeeded)
	var got []string
	for len(got) < len(want) {
		runs, err := s.Fire(t.Context(), 1, nil, nowMs(), 7)
		if err != nil || len(runs) == 0 || len(runs) > 7 {
			t.Fatalf("%d born, %v", len(runs), err)
		}
		for _, r := range runs {
			got = append(got, r.Job)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("born: %v", got)
	}
	if runs := s.mustFire(t); len(runs) != 0 {
		t.Errorf("born again: %v", runs)
	}
	if n := bytes.Count(said.Bytes(), []byte("cannot be used")); n != 2 {
		t.Errorf("%d complaints:\n%s", n, &said)
	}
}

// L1: what an old leader releases or fires does not happen.
func TestGraphsFenced(t *testing.T) {
	t.Parallel()
	url := database(t)
	old, next := raised(t, url), openAt(t, url)
	a := old.mustPut(t, document("a"))
	old.mustPut(t, document("b", "a"))
	old.end(t, a, true, job.Succeeded)
	raise(t, next, 2)
	_, err := old.Fire(t.Context(), 1, nil, nowMs(), 10)
	code(t, "fire", err, job.Fenced)
	_, err = old.fire(t.Context(), 1, []job.JobID{a.ID}, nowMs(), 10)
	code(t, "fire", err, job.Fenced)
	task := aRun(nowMs())
	for range 2 { // by COPY, and when it is there
		_, err = old.Release(t.Context(), 1, []*job.Run{copyOf(task)})
		code(t, "release", err, job.Fenced)
		if _, err := next.Release(t.Context(), 2, []*job.Run{copyOf(task)}); err != nil {
			t.Fatal(err)
		}
	}
	runs, err := next.Fire(t.Context(), 2, nil, nowMs(), 10)
	if err != nil || len(runs) != 1 {
		t.Fatal(runs, err)
	}
}

// A node that hangs while it changes a job holds up no move and no birth: what it locks of edges it locks with its COMMIT.
func TestPausedEditHoldsUpNobody(t *testing.T) {
	t.Parallel()
	url := database(t)
	s, api := raised(t, url), openAt(t, url)
	a, b := s.mustPut(t, document("a")), s.mustPut(t, document("b"))
	c := s.mustPut(t, document("c", "a"))
	hung := errors.New("hung")
	for name, do := range map[string]func(ctx context.Context, f *flight) error{
		"drops an edge": func(ctx context.Context, f *flight) error {
			_, err := putJob(ctx, f, &job.PutJob{ID: c.ID, Spec: document("c", "b"), At: nowMs()}, []byte("{}"))
			return err
		},
	} {
		err := api.define(t.Context(), func(ctx context.Context, f *flight) error {
			if err := do(ctx, f); err != nil {
				return err
			}
			began := time.Now()
			s.end(t, a, true, job.Succeeded)
			s.end(t, b, false, job.Succeeded)
			if runs := s.mustFire(t); len(runs) != 1 {
				t.Errorf("%s: born: %v", name, runs)
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("%s: it took %s", name, took)
			}
			return hung
		})
		if err == nil {
			t.Fatal("it did not hang")
		}
	}
}

// Two nodes for some seconds: one leads, with several moves and births at once, the other changes jobs meanwhile. Nobody
// gets an error, and of the ends of each upstream every edge that stays counts each once.
func TestEdgesUnderLoad(t *testing.T) {
	t.Parallel()
	url := database(t)
	s, api := raised(t, url), openAt(t, url)
	seconds := 3 * time.Second
	if testing.Short() {
		seconds = time.Second
	}
	var ups, downs []*job.Job
	for i := range 5 {
		ups = append(ups, s.mustPut(t, document(fmt.Sprint("up-", i))))
	}
	edges := func(i int, extra int) []string { // two that stay, and one that comes and goes
		list := []string{fmt.Sprint("up-", i%5), fmt.Sprint("up-", (i+1)%5)}
		if extra > 0 {
			list = append(list, fmt.Sprint("up-", (i+2+extra%3)%5))
		}
		rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		return list
	}
	for i := range 10 {
		downs = append(downs, s.mustPut(t, document(fmt.Sprint("down-", i), edges(i, 0)...)))
	}
	s.mustFire(t) // judges all
	ends := make([]atomic.Int64, 5)
	var mu sync.Mutex
	counted := map[string]int{} // down/up: by births
	births := 0
	var endBirths func(runs []*job.Run) error
	endBirths = func(runs []*job.Run) error {
		for _, r := range runs {
			mu.Lock()
			births++
			for _, u := range r.Upstreams {
				counted[r.Job+"/"+u.Job] += 1 + int(u.Coalesced)
			}
			mu.Unlock()
			moved, err := s.Move(t.Context(), 1, []job.Move{endOf(r, job.Succeeded, rand.IntN(2) == 0)})
			if err != nil {
				return err
			}
			if !moved[0].Applied || r.Job != "passing" && !slices.Contains(moved[0].Due, r.JobID) {
				return fmt.Errorf("the end of a birth: %+v", moved[0])
			}
			next, err := s.Fire(t.Context(), 1, moved[0].Due, nowMs(), 100)
			if err != nil {
				return err
			}
			if err := endBirths(next); err != nil {
				return err
			}
		}
		return nil
	}
	stop := time.Now().Add(seconds)
	var wg sync.WaitGroup
	work := func(what string, do func() error) {
		wg.Go(func() {
			for time.Now().Before(stop) {
				if err := do(); err != nil {
					t.Errorf("%s: %v", what, err)
					return
				}
			}
		})
	}
	for range 3 {
		work("move", func() error {
			var runs []*job.Run
			var moves []job.Move
			for range 1 + rand.IntN(20) {
				u := rand.IntN(5)
				r := aRun(nowMs(), ofThe(ups[u]))
				st := job.Succeeded
				if rand.IntN(4) == 0 {
					st = job.Failed
				} else {
					ends[u].Add(1)
				}
				runs, moves = append(runs, r), append(moves, endOf(r, st, rand.IntN(3) > 0))
			}
			if _, err := s.Submit(t.Context(), runs); err != nil {
				return err
			}
			moved, err := s.Move(t.Context(), 1, moves)
			if err != nil {
				return err
			}
			var due []job.JobID
			for _, m := range moved {
				due = append(due, m.Due...)
			}
			born, err := s.Fire(t.Context(), 1, due, nowMs(), 100)
			if err != nil {
				return err
			}
			return endBirths(born)
		})
	}
	work("sweep", func() error {
		born, err := s.Fire(t.Context(), 1, nil, nowMs(), 100)
		if err != nil {
			return err
		}
		return endBirths(born)
	})
	var edits atomic.Int64
	for n := range 2 {
		work("edit", func() error {
			i := 2*rand.IntN(5) + n
			d := document(fmt.Sprint("down-", i), edges(i, rand.IntN(4))...)
			d.Labels = map[string]string{"n": fmt.Sprint(edits.Add(1))}
			_, err := api.PutJob(t.Context(), job.PutJob{ID: job.JobID(randomID(nowMs())), Spec: d, At: nowMs()})
			return err
		})
	}
	work("make and delete", func() error {
		d := document("passing", "up-0", "up-3", "up-1")
		if _, err := api.PutJob(t.Context(), job.PutJob{ID: job.JobID(randomID(nowMs())), Spec: d, At: nowMs()}); err != nil {
			return err
		}
		_, err := api.DeleteJob(t.Context(), "default", "passing", 0)
		return err
	})
	wg.Wait()
	if t.Failed() {
		return
	}
	for i := range downs { // without the edges that come and go
		s.mustPut(t, document(fmt.Sprint("down-", i), edges(i, 0)...))
	}
	for runs := s.mustFire(t); len(runs) > 0; runs = s.mustFire(t) {
		if err := endBirths(runs); err != nil {
			t.Fatal(err)
		}
	}
	for i := range downs {
		for _, e := range s.upstreams(t, fmt.Sprint("down-", i)) {
			n := counted[e.Job+"/"+e.Upstream]
			if !e.SatisfiedBy.IsZero() {
				n += 1 + int(e.Coalesced)
			}
			if want := int(ends[e.Upstream[3]-'0'].Load()); n != want {
				t.Errorf("%s counts %d ends of %s, of %d", e.Job, n, e.Upstream, want)
			}
		}
	}
	t.Logf("%d births, %d edits", births, edits.Load())
	if n := ask[int](t, connect(t, url), "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"); n != 0 {
		t.Errorf("%d deadlocks", n)
	}
	if births < 20 || edits.Load() < 20 {
		t.Error("too little happened")
	}
}
