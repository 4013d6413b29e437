package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/musterhq/muster/job"
)

const day = 24 * time.Hour

// raised is a store that this test leads.
func raised(t *testing.T, url string, change ...func(*Config)) *Store {
	t.Helper()
	s := openAt(t, url, change...)
	if _, err := s.Raise(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	return s
}

// always makes every partition one that goes whole, or none.
func sized(bytes int64) func(*Store) {
	return func(s *Store) { s.bulkySize = &bytes }
}

func (s *Store) mustPrune(t *testing.T, before job.Instant, limit int) int {
	t.Helper()
	n, err := s.Prune(t.Context(), 1, before, limit)
	if err != nil {
		t.Fatalf("prune: %v", err)
	}
	return n
}

// names answers the partitions of a table, the default one left out.
func partitionsOf(t *testing.T, s *Store, parent string) (list []partition) {
	t.Helper()
	all, err := s.partitions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if p.parent == parent && !p.isDefault() {
			list = append(list, p)
		}
	}
	return list
}

func homeOf(t *testing.T, c *pgx.Conn, id job.RunID) string {
	t.Helper()
	return ask[string](t, c, "SELECT coalesce((SELECT p.relname::text FROM muster.runs r JOIN pg_class p ON p.oid = r.tableoid WHERE r.id = $1), 'nowhere')", id[:])
}

// Partitions are made ahead, once, and rows go where they belong.
func TestPartitionsAhead(t *testing.T) {
	t.Parallel()
	url := database(t)
	var clock atomic.Int64
	begin := time.Date(2031, 3, 5, 12, 0, 0, 0, time.UTC) // a Wednesday
	clock.Store(begin.UnixNano())
	s := raised(t, url, func(c *Config) { c.Now = func() time.Time { return time.Unix(0, clock.Load()) } })
	c := connect(t, url)
	at := job.At(begin)
	early := aRun(at)
	insert(t, c, early) // before there is any partition
	if home := homeOf(t, c, early.ID); home != "runs_default" {
		t.Fatalf("the run is in %s", home)
	}
	for range 2 {
		s.mustPrune(t, at.Add(-30*day), 10)
		for _, parent := range []string{"runs", "attempts", "ticks"} {
			list := partitionsOf(t, s, parent)
			if len(list) != 5 || list[0].name != parent+"_20310303_0000" || list[0].from.Time() != time.Date(2031, 3, 3, 0, 0, 0, 0, time.UTC) || list[4].to.Sub(list[0].from) != 5*7*day {
				t.Fatalf("partitions of %s: %+v", parent, list)
			}
		}
	}
	if home := homeOf(t, c, early.ID); home != "runs_20310303_0000" {
		t.Fatalf("after the partition was made, the run is in %s", home)
	}
	now := aRun(at.Add(8 * day))
	insert(t, c, now)
	if home := homeOf(t, c, now.ID); home != "runs_20310310_0000" {
		t.Fatalf("the run is in %s", home)
	}
	clock.Store(begin.Add(7 * day).UnixNano())
	s.mustPrune(t, at.Add(-23*day), 10)
	if list := partitionsOf(t, s, "runs"); len(list) != 6 {
		t.Fatalf("a week later: %+v", list)
	}
	// Another width goes on where the old partitions end.
	s.cfg.PartitionWidth = 36 * time.Hour
	s.cfg.PartitionsAhead = 30
	s.mustPrune(t, at.Add(-22*day), 10)
	list := partitionsOf(t, s, "runs")
	for i := range list[1:] {
		if list[i].to > list[i+1].from {
			t.Fatalf("partitions overlap: %+v", list)
		}
	}
	if len(list) < 10 {
		t.Fatalf("with another width there are %d partitions", len(list))
	}
}

// Where the default partition got too many rows of this week before the week had a partition, the next weeks have theirs
// all the same, and so have the other tables.
func TestPartitionsAheadOfABusyWeek(t *testing.T) {
	t.Parallel()
	url := database(t)
	s := raised(t, url)
	at := nowMs()
	for range mostMoved/1000 + 1 {
		births := make([]*job.Run, 1000)
		for i := range births {
			births[i] = aRun(at)
		}
		submit(t, s, births...)
	}
	s.mustPrune(t, at.Add(-30*day), 10)
	for parent, want := range map[string]int{"runs": 4, "attempts": 4, "ticks": 5} {
		if list := partitionsOf(t, s, parent); len(list) != want {
			t.Errorf("%s has %d partitions, not %d", parent, len(list), want)
		}
	}
	later := aRun(at.Add(7 * day))
	submit(t, s, later)
	if home := homeOf(t, connect(t, url), later.ID); home == "runs_default" {
		t.Error("a run of the next week is in the default partition")
	}
}

// aged is a database with one old week of runs in its own partition: ended ones, live ones, running ones, and some that
// ended lately, of which a few have attempts and a key.
type aged struct {
	*Store
	c      *pgx.Conn
	at     job.Instant // in the old week
	now    job.Instant
	before job.Instant
	stay   []*job.Run
	gone   []*job.Run
}

func newAged(t *testing.T, change ...func(*Store)) *aged {
	t.Helper()
	url := database(t)
	now := nowMs()
	a := &aged{now: now, at: now.Add(-60 * day), before: now.Add(-30 * day)}
	past := openAt(t, url, func(c *Config) { c.Now = func() time.Time { return a.at.Time() }; c.PartitionsAhead = 1 })
	if _, err := past.Raise(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	past.mustPrune(t, a.at.Add(-30*day), 1)
	if err := past.Close(); err != nil {
		t.Fatal(err)
	}
	a.Store, a.c = openAt(t, url), connect(t, url)
	for _, c := range change {
		c(a.Store)
	}
	in := func(list *[]*job.Run, change ...func(*job.Run)) {
		*list = append(*list, aRun(a.at.Add(time.Duration(len(a.stay)+len(a.gone))*time.Millisecond), change...))
	}
	for range 300 {
		in(&a.gone, ended(a.at.Add(time.Hour)))
	}
	for _, st := range []job.State{job.Waiting, job.Held, job.Scheduled, job.Queued, job.Running} {
		in(&a.stay, func(r *job.Run) { r.State, r.Key, r.BodyHash = st, "key of "+st.String(), []byte("hash") })
	}
	in(&a.stay, ended(a.before)) // it ended late
	in(&a.stay, ended(a.now))
	root := a.stay[0] // a live one, with a task run that has ended
	in(&a.stay, ended(a.at.Add(time.Hour)), func(r *job.Run) { r.RootID, r.Task = root.ID, "t" })
	in(&a.stay, ended(a.at.Add(time.Hour)), func(r *job.Run) { r.ParentID, r.Depth = root.ID, 1 }) // made for it
	kept := a.stay[6]                                                                              // one that ended lately
	in(&a.stay, ended(a.at.Add(time.Hour)), func(r *job.Run) { r.RootID, r.Task = kept.ID, "t" })
	for range 300 {
		in(&a.gone, ended(a.at.Add(time.Hour)))
	}
	insert(t, a.c, a.stay...)
	insert(t, a.c, a.gone...)
	for i, r := range []*job.Run{a.stay[0], a.stay[5], a.gone[0]} {
		if _, err := a.c.Exec(t.Context(), "INSERT INTO muster.attempts (run_id, fence, attempt, worker, state) VALUES ($1, $2, 1, 'w', 7)", r.ID[:], i+1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.c.Exec(t.Context(), "INSERT INTO muster.keys SELECT namespace, key, id, body_hash, now() FROM muster.runs WHERE key IS NOT NULL"); err != nil {
		t.Fatal(err)
	}
	if home := homeOf(t, a.c, a.gone[0].ID); home == "runs_default" {
		t.Fatal("the old rows are in no partition of their own")
	}
	return a
}

// check compares what is left with what must be.
func (a *aged) check(t *testing.T) {
	t.Helper()
	for _, r := range a.stay {
		if home := homeOf(t, a.c, r.ID); home != "runs_default" {
			t.Errorf("a run that is %s and ended at %s is in %s", r.State, r.FinishedAt, home)
		}
	}
	if n := ask[int](t, a.c, "SELECT count(*) FROM muster.runs"); n != len(a.stay) {
		t.Errorf("%d runs are left, not %d", n, len(a.stay))
	}
	if n := ask[int](t, a.c, "SELECT count(*) FROM muster.attempts WHERE tableoid = 'muster.attempts_default'::regclass"); n != 2 {
		t.Errorf("%d attempts are left, not 2", n)
	}
	if n := ask[int](t, a.c, "SELECT count(*) FROM muster.keys"); n != 5 {
		t.Errorf("%d keys are left, not 5", n)
	}
	for _, parent := range []string{"runs", "attempts"} {
		for _, p := range partitionsOf(t, a.Store, parent) {
			if p.to <= a.before {
				t.Errorf("%s is still there", p.name)
			}
		}
	}
}

// S2: a partition goes whole once all of it is old; what is live, ended lately or needed by a live root moves over, and
// keys are not lost. A small one goes row by row first, within the limit, with the same end.
func TestPartitionGoes(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int64{"bulky": 0, "small": 1 << 40} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAged(t, sized(size))
			if _, err := a.c.Exec(t.Context(), "ANALYZE muster.runs"); err != nil {
				t.Fatal(err)
			}
			total, calls := 0, 0
			wait(t, "nothing more is dropped", func() bool {
				n := a.mustPrune(t, a.before, 250)
				if total, calls = total+n, calls+1; name == "small" && n > 250 {
					t.Fatalf("%d rows went at once", n)
				}
				return n == 0 && a.pruning.quietUntil != 0
			})
			if total != len(a.gone) {
				t.Errorf("%d rows went, not %d", total, len(a.gone))
			}
			a.check(t)
			if name == "small" && calls < 4 {
				t.Errorf("in %d calls", calls)
			}
		})
	}
}

// Only what is wholly old goes whole: a bulky partition in which a part is old stays as it is.
func TestBulkyPartitionWaits(t *testing.T) {
	t.Parallel()
	a := newAged(t, sized(0))
	old := partitionsOf(t, a.Store, "runs")[0]
	for _, before := range []job.Instant{old.from.Add(time.Millisecond), a.at.Add(2 * time.Hour), old.to - 1} {
		if n := a.mustPrune(t, before, 1000); n != 0 {
			t.Fatalf("%d rows went", n)
		}
	}
	if n := ask[int](t, a.c, "SELECT count(*) FROM muster.runs"); n != len(a.stay)+len(a.gone) {
		t.Fatalf("%d runs are left", n)
	}
}

// What is done between the look through a partition and its drop is kept: births, ends and intents.
func TestChangedBeforeDrop(t *testing.T) {
	t.Parallel()
	a := newAged(t, sized(0))
	r := &round{Store: a.Store, pruning: &a.pruning, epoch: 1, before: a.before, left: 1000, began: time.Now()}
	a.pruning.walks = map[string]*walk{}
	all, err := a.partitions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var p *partition
	for i := range all {
		if all[i].parent == "runs" && all[i].from != 0 && all[i].from < a.at && a.at < all[i].to {
			p = &all[i]
		}
	}
	if done, err := r.findKept(t.Context(), p); !done || err != nil {
		t.Fatal(done, err)
	}
	late := aRun(a.at.Add(time.Minute))
	insert(t, a.c, late)
	a.stay = append(a.stay, late)
	// Tasks of roots that are live, or ended only now, whatever became of them meanwhile.
	for i, root := range []*job.Run{a.stay[0], a.stay[3], late} {
		task := aRun(a.at.Add(time.Hour), func(r *job.Run) {
			r.RootID, r.Task, r.State, r.FinishedAt = root.ID, fmt.Sprint("late-", i), job.Skipped, a.at
		})
		insert(t, a.c, task)
		a.stay = append(a.stay, task)
	}
	child := aRun(a.at.Add(time.Hour), ended(a.at.Add(time.Hour)), func(r *job.Run) { r.ParentID = a.stay[1].ID })
	insert(t, a.c, child)
	a.stay = append(a.stay, child)
	if _, err := a.Cancel(t.Context(), []job.CancelIntent{{ID: a.stay[1].ID, At: a.now}}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Move(t.Context(), 1, []job.Move{{ID: a.stay[3].ID, State: job.Succeeded, Fence: 1<<32 | 9, Attempt: 1, FinishedAt: a.now}}); err != nil {
		t.Fatal(err)
	}
	if err := r.drop(t.Context(), p, all, true); err != nil {
		t.Fatal(err)
	}
	if n := ask[int](t, a.c, "SELECT count(*) FROM muster.runs WHERE cancel_at IS NOT NULL"); n != 1 {
		t.Error("the intent is lost")
	}
	wait(t, "all is pruned", func() bool { return a.mustPrune(t, a.before, 1000) == 0 })
	a.check(t)
}

// Rows that are born, moved and cancelled while partitions come and go are neither lost nor doubled, and nobody gets an
// error for it.
func TestPartitionsUnderLoad(t *testing.T) {
	t.Parallel()
	url := database(t)
	now := nowMs()
	s := raised(t, url)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	var born []job.RunID
	fence := atomic.Uint32{}
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				var batch []*job.Run
				for i := range 5 {
					batch = append(batch, aRun(now.Add(-time.Duration(i)*7*day)))
				}
				receipts, err := s.Submit(t.Context(), batch)
				if err != nil {
					t.Errorf("submit: %v", err)
					return
				}
				var moves []job.Move
				for i, r := range receipts {
					if r.Err != nil {
						t.Errorf("submit: %v", r.Err)
						return
					}
					if i%2 == 0 {
						moves = append(moves, job.Move{ID: r.Run.ID, State: job.Succeeded, Fence: job.MakeFence(1, fence.Add(1)), Attempt: 1, FinishedAt: now})
					}
				}
				moved, err := s.Move(t.Context(), 1, moves)
				if err != nil {
					t.Errorf("move: %v", err)
					return
				}
				for _, m := range moved {
					if !m.Applied {
						t.Error("a move found no run")
					}
				}
				mu.Lock()
				for _, r := range batch {
					born = append(born, r.ID)
				}
				mu.Unlock()
			}
		})
	}
	// Partitions of five weeks are made and dropped again, with all rows moved each time.
	janitor := openAt(t, url)
	made, dropped := 0, 0
	for deadline := time.Now().Add(4 * time.Second); time.Now().Before(deadline); {
		for week := range 5 {
			from := now.Add(-time.Duration(week) * 7 * day)
			from -= (from - monday) % job.Instant(7*day/time.Microsecond)
			one := span{from, from.Add(7 * day)}
			err := janitor.fenced(t.Context(), 1, func(ctx context.Context, tx pgx.Tx) error { return makePartition(ctx, tx, one, "runs", "attempts") })
			if err == nil {
				made++
			} else if code := job.CodeOf(err); code != job.Unavailable {
				t.Errorf("make a partition: %v", err)
			}
		}
		all, err := janitor.partitions(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i := range all {
			if all[i].parent != "runs" || all[i].isDefault() {
				continue
			}
			err := janitor.fenced(t.Context(), 1, func(ctx context.Context, tx pgx.Tx) error {
				_, err := dropPartition(ctx, tx, &all[i], attemptsOf(&all[i], all), "true", nil, false)
				return err
			})
			if err == nil {
				dropped++
			} else if code := job.CodeOf(err); code != job.Unavailable && !errors.Is(err, errTooMuch) {
				t.Errorf("drop a partition: %v", err)
			}
		}
	}
	stop()
	wg.Wait()
	c := connect(t, url)
	if n, distinct := ask[int](t, c, "SELECT count(*) FROM muster.runs"), ask[int](t, c, "SELECT count(DISTINCT id) FROM muster.runs"); n != len(born) || distinct != n {
		t.Errorf("%d runs were born, %d are there, %d different ones", len(born), n, distinct)
	}
	if n := ask[int](t, c, "SELECT count(*) FROM muster.runs WHERE state = 6"); n != len(born)/5*3 {
		t.Errorf("%d runs ended, not %d", n, len(born)/5*3)
	}
	t.Logf("%d runs, %d partitions made, %d dropped", len(born), made, dropped)
	if made < 5 || dropped < 5 || len(born) < 100 {
		t.Errorf("too little happened to judge by")
	}
}

// Ledger rows go with their partition; a range that reaches into what is kept stays.
func TestLedgerPartitionGoes(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int64{"bulky": 0, "small": 1 << 40} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAged(t, sized(size))
			id := job.JobID(randomID(a.at))
			if _, err := a.c.Exec(t.Context(), `INSERT INTO muster.ticks (job_id, scheduled_at, until_at, count, job_version, disposition, decided_at)
				SELECT $1, $2::timestamptz + i * interval '1 second', CASE i WHEN 5 THEN $2::timestamptz + interval '1 hour' WHEN 7 THEN $3::timestamptz END, NULL, 1, 4, $2 FROM generate_series(0, 99) i`,
				id[:], a.at.Time(), a.before.Time()); err != nil {
				t.Fatal(err)
			}
			wait(t, "all is pruned", func() bool { return a.mustPrune(t, a.before, 250) == 0 && a.pruning.quietUntil != 0 })
			left, err := a.Ticks(t.Context(), job.TickQuery{JobID: id})
			if err != nil || len(left) != 1 || left[0].Until != a.before {
				t.Fatalf("left are %+v, %v", left, err)
			}
			for _, p := range partitionsOf(t, a.Store, "ticks") {
				if p.to <= a.before {
					t.Errorf("%s is still there", p.name)
				}
			}
		})
	}
}

// A lock that is not had in time is no error, is not tried again at once, and costs nothing else.
func TestTablesBusy(t *testing.T) {
	t.Parallel()
	a := newAged(t, sized(0))
	tx, err := a.c.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT count(*) FROM muster.runs, muster.ticks"); err != nil {
		t.Fatal(err)
	}
	a.mustPrune(t, a.before, 1000)
	began := time.Now()
	for i := range 3 {
		a.mustPrune(t, a.before.Add(time.Duration(i)*time.Second), 1000)
	}
	if took := time.Since(began); took > 600*time.Millisecond {
		t.Errorf("the tables were locked again: %s", took)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	later := a.before.Add(2 * ddlPause)
	wait(t, "all is pruned", func() bool { return a.mustPrune(t, later, 1000) == 0 && a.pruning.quietUntil != 0 })
	a.before = later
	a.stay = append(a.stay[:5], a.stay[6:]...) // the one that ended just then is older by now
	if n := ask[int](t, a.c, "SELECT count(*) FROM muster.runs"); n != len(a.stay) {
		t.Errorf("%d runs are left, not %d", n, len(a.stay))
	}
}

// An idle store is asked nothing for half a minute of its clock, and then again.
func TestPruneRests(t *testing.T) {
	t.Parallel()
	url := database(t)
	s := raised(t, url)
	before := nowMs().Add(-30 * day)
	wait(t, "nothing is old", func() bool { s.mustPrune(t, before, 100); return s.pruning.quietUntil != 0 })
	c := connect(t, url)
	insert(t, c, aRun(before.Add(-day), ended(before.Add(-day))))
	if n := s.mustPrune(t, before.Add(lookAgain-time.Second), 100); n != 0 {
		t.Errorf("%d rows were found at once", n)
	}
	if n := s.mustPrune(t, before.Add(lookAgain), 100); n != 1 {
		t.Errorf("%d rows were found afterwards, not 1", n)
	}
	// A clock that goes back does not make it rest for ever.
	wait(t, "nothing is old", func() bool { s.mustPrune(t, before, 100); return s.pruning.quietUntil != 0 })
	insert(t, c, aRun(before.Add(-10*day), ended(before.Add(-10*day))))
	if n := s.mustPrune(t, before.Add(-5*day), 100); n != 1 {
		t.Errorf("%d rows were found by an earlier clock, not 1", n)
	}
}

// Keys are forgotten when they are old, and versions when nobody can need them.
func TestHousekeeping(t *testing.T) {
	t.Parallel()
	url := database(t)
	now := time.Now()
	s := raised(t, url, func(c *Config) { c.Now = func() time.Time { return now } })
	c := connect(t, url)
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := c.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec("INSERT INTO muster.keys SELECT 'default', 'k' || i, gen_random_uuid(), '', $1::timestamptz - i * interval '1 hour' FROM generate_series(0, 48) i", now)
	many := s.mustPut(t, document("many"))
	for i := range 24 {
		d := document("many")
		d.Description = fmt.Sprint(i)
		s.mustPut(t, d)
	}
	needed := aRun(nowMs(), func(r *job.Run) { r.JobID, r.Job, r.JobVersion, r.Spec = many.ID, "many", 2, nil })
	gone, kept := s.mustPut(t, document("gone")), s.mustPut(t, document("kept"))
	live := aRun(nowMs(), func(r *job.Run) { r.JobID, r.Job, r.JobVersion, r.Spec = kept.ID, "kept", 1, nil })
	insert(t, c, needed, live)
	for _, j := range []*job.Job{gone, kept} {
		if _, err := s.DeleteJob(t.Context(), "default", j.Name, 0); err != nil {
			t.Fatal(err)
		}
	}
	exec("UPDATE muster.job_versions SET deleted_at = deleted_at - interval '2 hours' WHERE deleted_at IS NOT NULL")
	s.mustPrune(t, nowMs().Add(-30*day), 100)
	if n := ask[int](t, c, "SELECT count(*) FROM muster.keys"); n != 24 {
		t.Errorf("%d keys are left, not 24", n)
	}
	if got := ask[string](t, c, "SELECT string_agg(version::text, ',' ORDER BY version) FROM muster.job_versions WHERE job_id = $1", many.ID[:]); got != "2,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25" {
		t.Errorf("versions %s are left", got)
	}
	if n := ask[int](t, c, "SELECT count(*) FROM muster.job_versions WHERE job_id = $1", gone.ID[:]); n != 0 {
		t.Error("a version of a deleted job is left")
	}
	if _, err := s.Version(t.Context(), kept.ID, 1); err != nil {
		t.Errorf("the version that a live run needs: %v", err)
	}
}

// L1: an older leader prunes nothing.
func TestPruneFenced(t *testing.T) {
	t.Parallel()
	a := newAged(t, sized(0))
	if _, err := a.Raise(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	_, err := a.Prune(t.Context(), 1, a.before, 1000)
	code(t, "prune under an older epoch", err, job.Fenced)
	if n := ask[int](t, a.c, "SELECT count(*) FROM muster.runs"); n != len(a.stay)+len(a.gone) {
		t.Fatalf("%d runs are left", n)
	}
}
