package storagetest

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/musterhq/muster/job"
)

func (f *fixture) liveOf(id job.JobID) []job.RunID {
	f.Helper()
	live, err := f.LiveOfJob(f.ctx, id, 100)
	if err != nil {
		f.Fatalf("live runs of a job: %v", err)
	}
	return idsOf(live)
}

var moves = []testCase{
	{"L1: raising takes higher epochs only", func(f *fixture) {
		f.raise(1, 1, job.Fenced)
		f.raise(5, 5, "")
		f.raise(4, 5, job.Fenced)
		f.raise(6, 6, "")
	}},
	{"L1: what an older epoch sends is refused and changes nothing", func(f *fixture) {
		j := f.put(f.document("a"))
		r := f.submit(f.run(f.now, ofJob(j)))[0]
		f.raise(3, 3, "")
		tick := job.Tick{JobID: j.ID, Version: 1, ScheduledAt: f.now, Disposition: job.TickRun, DecidedAt: f.now}
		_, err := f.StoreTicks(f.ctx, 2, []job.Tick{tick})
		f.code("store ticks", err, job.Fenced)
		_, err = f.Move(f.ctx, 2, []job.Move{success(r.ID, 1<<32|1, f.now)})
		f.code("move", err, job.Fenced)
		_, err = f.Prune(f.ctx, 2, f.now.Add(time.Hour), 10)
		f.code("prune", err, job.Fenced)
		f.equal("the run", r, f.read(r.ID))
		_, err = f.Run(f.ctx, tick.RunID())
		f.code("the tick's run", err, job.NotFound)
		answers, err := f.Move(f.ctx, 3, []job.Move{success(r.ID, 3<<32|1, f.now)})
		if err != nil || !answers[0].Applied {
			f.Fatalf("move under the current epoch: %+v, %v", answers, err)
		}
	}},
	{"a run that succeeds keeps its result, and settling twice is settling once", func(f *fixture) {
		r := f.run(f.now)
		f.submit(r)
		m := success(r.ID, 1<<32|7, f.now)
		first := f.move(m)[0]
		if !first.Applied || first.Run.State != job.Succeeded {
			f.Fatalf("settled: %+v", first)
		}
		want, _ := m.Apply(r)
		f.equal("the run", want, f.read(r.ID))
		again := f.move(m)[0]
		if again.Applied {
			f.Fatal("a terminal run was moved")
		}
		f.equal("the run answered again", want, again.Run)
	}},
	{"D4: a terminal run never moves again", func(f *fixture) {
		for _, end := range []job.State{job.Succeeded, job.Failed, job.Cancelled, job.Skipped} {
			r := f.submit(f.run(f.now))[0]
			f.move(job.Move{ID: r.ID, State: end, Reason: job.ExitCode, FinishedAt: f.now})
			before := f.read(r.ID)
			for _, to := range []job.State{job.Queued, job.Running, job.Succeeded, job.Failed, job.Cancelled} {
				if m := f.move(job.Move{ID: r.ID, State: to, Fence: 9 << 32, Attempt: 9, FinishedAt: f.now.Add(time.Hour)})[0]; m.Applied {
					f.Fatalf("a %s run moved to %s", end, to)
				}
			}
			f.equal("the run", before, f.read(r.ID))
		}
	}},
	{"L3: a move that ends an older attempt does not apply", func(f *fixture) {
		r := f.submit(f.run(f.now))[0]
		f.move(retry(r.ID, 1<<32|5, 1, f.now))
		before := f.read(r.ID)
		if m := f.move(success(r.ID, 1<<32|4, f.now))[0]; m.Applied {
			f.Fatalf("a stale result was taken: %+v", m.Run)
		}
		f.equal("the run", before, f.read(r.ID))
		if m := f.move(success(r.ID, 1<<32|6, f.now))[0]; !m.Applied {
			f.Fatalf("the newer result was refused: %+v", m.Run)
		}
	}},
	{"an attempt that a retry follows is kept, once", func(f *fixture) {
		r := f.submit(f.run(f.now))[0]
		m1, m2 := retry(r.ID, 1<<32|5, 1, f.now), retry(r.ID, 1<<32|6, 2, f.now.Add(time.Minute))
		for range 2 {
			if m := f.move(m1)[0]; !m.Applied || m.Run.State != job.Scheduled || m.Run.ReadyAt != m1.ReadyAt || m.Run.Failures != 1 {
				f.Fatalf("moved: %+v", m)
			}
		}
		f.move(m2)
		f.move(success(r.ID, 1<<32|7, f.now))
		got, err := f.Attempts(f.ctx, r.ID)
		f.code("attempts", err, "")
		f.equal("attempts", []job.Attempt{*m1.Ended, *m2.Ended}, got)
	}},
	{"a move that does not apply keeps no attempt", func(f *fixture) {
		r := f.submit(f.run(f.now))[0]
		f.move(success(r.ID, 1<<32|5, f.now))
		f.move(retry(r.ID, 1<<32|6, 2, f.now))
		got, err := f.Attempts(f.ctx, r.ID)
		f.code("attempts", err, "")
		f.equal("attempts", []job.Attempt(nil), got)
	}},
	{"a run of which nothing ended has no attempts, and no run has none", func(f *fixture) {
		r := f.submit(f.run(f.now))[0]
		got, err := f.Attempts(f.ctx, r.ID)
		f.code("attempts", err, "")
		f.equal("attempts", []job.Attempt(nil), got)
		_, err = f.Attempts(f.ctx, runID(f.now))
		f.code("attempts of no run", err, job.NotFound)
	}},
	{"a batch of moves is answered one by one; no run is nil", func(f *fixture) {
		rs := f.submit(f.run(f.now), f.run(f.now), f.run(f.now))
		f.move(success(rs[1].ID, 1<<32|1, f.now))
		got := f.move(success(rs[0].ID, 1<<32|2, f.now), success(rs[1].ID, 1<<32|3, f.now), success(runID(f.now), 1<<32|4, f.now), success(rs[2].ID, 1<<32|5, f.now))
		applied := []bool{got[0].Applied, got[1].Applied, got[2].Applied, got[3].Applied}
		if !slices.Equal(applied, []bool{true, false, false, true}) || got[1].Run == nil || got[2].Run != nil {
			f.Fatalf("answers are %+v", got)
		}
	}},
	{"two moves of one run in one batch are made in order", func(f *fixture) {
		r := f.submit(f.run(f.now))[0]
		got := f.move(retry(r.ID, 1<<32|1, 1, f.now), success(r.ID, 1<<32|2, f.now), success(r.ID, 1<<32|3, f.now))
		if !got[0].Applied || !got[1].Applied || got[2].Applied {
			f.Fatalf("answers are %+v", got)
		}
		if r := f.read(r.ID); r.State != job.Succeeded || r.Fence != 1<<32|2 {
			f.Fatalf("run is %+v", r)
		}
	}},
	{"running, written late, ends nothing", func(f *fixture) {
		r := f.submit(f.run(f.now))[0]
		m := f.move(job.Move{ID: r.ID, State: job.Running, Fence: 1<<32 | 3, Attempt: 1, Worker: "w7", StartedAt: f.now})[0]
		if !m.Applied || m.Run.State != job.Running || m.Run.Worker != "w7" {
			f.Fatalf("run is %+v", m.Run)
		}
		live, err := f.Live(f.ctx, job.RunID{}, 10)
		f.code("live", err, "")
		f.equal("live runs", []job.RunID{r.ID}, idsOf(live))
		if m := f.move(success(r.ID, 1<<32|3, f.now))[0]; !m.Applied {
			f.Fatal("the result of the attempt that was written running is refused")
		}
	}},
	{"100 results of 64 KiB in one call are stored", func(f *fixture) {
		result, _ := json.Marshal(text(64<<10 - 2))
		var runs []*job.Run
		var ms []job.Move
		for i := range 100 {
			r := f.run(f.now)
			m := success(r.ID, job.MakeFence(1, uint32(i+1)), f.now)
			m.Result = result
			runs, ms = append(runs, r), append(ms, m)
		}
		f.submit(runs...)
		for i, m := range f.move(ms...) {
			if !m.Applied || len(m.Run.Result) != len(result) {
				f.Fatalf("move %d: applied %v", i, m.Applied)
			}
		}
	}},
	{"load answers by id, live or ended, nil where there is none", func(f *fixture) {
		rs := f.submit(f.run(f.now), f.run(f.now))
		f.move(success(rs[0].ID, 1<<32|1, f.now))
		got, err := f.Load(f.ctx, []job.RunID{rs[1].ID, runID(f.now), rs[0].ID, rs[1].ID})
		f.code("load", err, "")
		f.equal("ids", []job.RunID{rs[1].ID, {}, rs[0].ID, rs[1].ID}, idsOf(got))
		if got[2].State != job.Succeeded {
			f.Fatalf("ended run loaded as %s", got[2].State)
		}
	}},
	{"live pages in the order of ids and leaves out what ended", func(f *fixture) {
		var want []job.RunID
		for i := range 20 {
			r := f.submit(f.run(f.now.Add(time.Duration(i) * time.Millisecond)))[0]
			if i%3 == 0 {
				f.move(success(r.ID, job.MakeFence(1, uint32(i+1)), f.now))
			} else {
				want = append(want, r.ID)
			}
		}
		var got []job.RunID
		after := job.RunID{}
		for {
			page, err := f.Live(f.ctx, after, 5)
			f.code("live", err, "")
			got = append(got, idsOf(page)...)
			if len(page) < 5 {
				break
			}
			after = page[4].ID
		}
		f.equal("live runs", want, got)
	}},
	{"live runs of one job are those of its id", func(f *fixture) {
		a, b := f.put(f.document("a")), f.put(f.document("b"))
		var want []job.RunID
		for i := range 6 {
			j := []*job.Job{a, b}[i%2]
			r := f.submit(f.run(f.now.Add(time.Duration(i)*time.Millisecond), ofJob(j)))[0]
			if j == a {
				want = append(want, r.ID)
			}
		}
		f.submit(f.run(f.now))
		f.move(success(want[1], 1<<32|1, f.now))
		f.equal("live runs", []job.RunID{want[0], want[2]}, f.liveOf(a.ID))
		first, err := f.LiveOfJob(f.ctx, a.ID, 1)
		f.code("live of job", err, "")
		f.equal("one live run", want[:1], idsOf(first))
		if _, err := f.DeleteJob(f.ctx, "default", "a", 0); err != nil {
			f.Fatal(err)
		}
		again := f.put(f.document("a"))
		r := f.submit(f.run(f.now, ofJob(again)))[0]
		f.equal("live runs of the new job", []job.RunID{r.ID}, f.liveOf(again.ID))
		f.equal("live runs of the deleted job", []job.RunID{want[0], want[2]}, f.liveOf(a.ID))
		f.equal("live runs of no job", []job.RunID(nil), f.liveOf(jobID(f.now)))
	}},
	{"a move from an old row does not apply", func(f *fixture) {
		r := f.submit(f.run(f.now))[0]
		seen := r.Fence
		f.move(job.Move{ID: r.ID, State: job.Scheduled, Reason: job.RetryBackoff, Fence: 1<<32 | 1, Attempt: 1, ReadyAt: f.now.Add(time.Minute)})
		m := f.move(job.Move{ID: r.ID, State: job.Skipped, Reason: job.StartDeadline, FinishedAt: f.now, IfFence: &seen})[0]
		if m.Applied || m.Run.State != job.Scheduled {
			f.Fatalf("the run is %+v", m.Run)
		}
	}},
	{"L7: heads are all jobs' versions, by namespace and name, in pages", func(f *fixture) {
		in := func(namespace string) func(*job.Document) { return func(d *job.Document) { d.Namespace = namespace } }
		b := f.put(f.document("b"))
		a := f.put(f.document("a"))
		z := f.put(f.document("a", in("zone")))
		b2 := f.put(f.document("b", func(d *job.Document) { d.Description = "changed" }))
		gone := f.put(f.document("gone"))
		if _, err := f.DeleteJob(f.ctx, "default", "gone", 0); err != nil {
			f.Fatal(err)
		}
		head := func(j *job.Job) job.JobHead {
			return job.JobHead{ID: j.ID, Namespace: j.Namespace, Name: j.Name, Version: j.Version, From: f.now}
		}
		if b2.ID != b.ID || b2.Version != 2 || gone.ID.IsZero() {
			f.Fatalf("jobs: %+v, %+v", b2, gone)
		}
		var got []job.JobHead
		namespace, name := "", ""
		for {
			page, err := f.Heads(f.ctx, namespace, name, 2)
			f.code("heads", err, "")
			if len(page) == 0 {
				break
			}
			got = append(got, page...)
			namespace, name = page[len(page)-1].Namespace, page[len(page)-1].Name
		}
		f.equal("heads", []job.JobHead{head(a), head(b2), head(z)}, got)
	}},
}
