package storagetest

import (
	"time"

	"github.com/musterhq/muster/job"
)

func (f *fixture) storeTicks(ticks ...job.Tick) []*job.Run {
	f.Helper()
	runs, err := f.StoreTicks(f.ctx, 1, ticks)
	if err != nil || len(runs) != len(ticks) {
		f.Fatalf("store %d ticks: %d runs, %v", len(ticks), len(runs), err)
	}
	return runs
}

func (f *fixture) ledger(q job.TickQuery) []job.Tick {
	f.Helper()
	got, err := f.Ticks(f.ctx, q)
	if err != nil {
		f.Fatalf("ticks: %v", err)
	}
	return got
}

var ticks = []testCase{
	{"D2: a tick gives birth to one run, however often it is stored", func(f *fixture) {
		d := f.document("a", func(d *job.Document) {
			d.Deadline, d.StartDeadline = job.Duration(time.Hour), job.Duration(time.Minute)
		})
		j := f.put(d)
		tick := job.Tick{JobID: j.ID, Version: 1, ScheduledAt: f.now.Add(-time.Second), Disposition: job.TickRun, DecidedAt: f.now}
		want := job.BirthOfTick(&tick, "default", "a", d, job.HomeQuorum)
		for range 3 {
			f.equal("run of the tick", want, f.storeTicks(tick)[0])
		}
		f.equal("the run", want, f.read(tick.RunID()))
		f.equal("runs", []job.RunID{want.ID}, f.runs(job.RunQuery{}))
		f.equal("ledger", []job.Tick{tick}, f.ledger(job.TickQuery{JobID: j.ID}))
	}},
	{"a tick stored again after its run has ended starts nothing", func(f *fixture) {
		j := f.put(f.document("a"))
		tick := job.Tick{JobID: j.ID, Version: 1, ScheduledAt: f.now, Disposition: job.TickRun, DecidedAt: f.now}
		f.storeTicks(tick)
		f.move(success(tick.RunID(), 1<<32|1, f.now))
		if r := f.storeTicks(tick)[0]; r == nil || r.State != job.Succeeded {
			f.Fatalf("run of the tick is %+v", r)
		}
		if got := f.liveOf(j.ID); len(got) != 0 {
			f.Fatalf("live runs: %v", got)
		}
	}},
	{"what does not run is in the ledger only, ranges with their count", func(f *fixture) {
		j := f.put(f.document("a"))
		all := []job.Tick{
			{JobID: j.ID, Version: 1, ScheduledAt: f.now.Add(-4 * time.Hour), Until: f.now.Add(-2 * time.Hour), Count: 3, Disposition: job.TickMissed, Reason: job.CatchUpNoneReason, DecidedAt: f.now},
			{JobID: j.ID, Version: 1, ScheduledAt: f.now.Add(-time.Hour), Disposition: job.TickSkipped, Reason: job.OverlapSkip, DecidedAt: f.now},
			{JobID: j.ID, Version: 1, ScheduledAt: f.now.Add(-time.Minute), Disposition: job.TickCoalesced, Reason: job.CatchUpCoalesced, DecidedAt: f.now},
			{JobID: j.ID, Version: 1, ScheduledAt: f.now, Disposition: job.TickPaused, Reason: job.JobPaused, DecidedAt: f.now},
		}
		for i, r := range f.storeTicks(all...) {
			if r != nil {
				f.Fatalf("tick %d has the run %+v", i, r)
			}
		}
		f.equal("runs", []job.RunID(nil), f.runs(job.RunQuery{}))
		f.equal("ledger", []job.Tick{all[3], all[2], all[1], all[0]}, f.ledger(job.TickQuery{JobID: j.ID}))
	}},
	{"overlap queue: a tick may be born waiting", func(f *fixture) {
		j := f.put(f.document("a"))
		r := f.storeTicks(job.Tick{JobID: j.ID, Version: 1, ScheduledAt: f.now, Disposition: job.TickRun, DecidedAt: f.now, Waiting: true})[0]
		if r.State != job.Waiting || r.Reason != job.OverlapQueued || r.QueuedAt != 0 {
			f.Fatalf("run is %+v", r)
		}
	}},
	{"a tick of a version that is gone has a ledger row and no run", func(f *fixture) {
		j := f.put(f.document("a"))
		if _, err := f.DeleteJob(f.ctx, "default", "a", 0); err != nil {
			f.Fatal(err)
		}
		tick := job.Tick{JobID: j.ID, Version: 1, ScheduledAt: f.now, Disposition: job.TickRun, DecidedAt: f.now}
		if r := f.storeTicks(tick)[0]; r != nil {
			f.Fatalf("run of a tick without its version: %+v", r)
		}
		f.equal("ledger", []job.Tick{tick}, f.ledger(job.TickQuery{JobID: j.ID}))
	}},
	{"L7: a tick runs the version that owns it, not the newest", func(f *fixture) {
		j := f.put(f.document("a", func(d *job.Document) { d.Payload = []byte(`"v1"`) }))
		f.put(f.document("a", func(d *job.Document) { d.Payload = []byte(`"v2"`) }))
		r := f.storeTicks(job.Tick{JobID: j.ID, Version: 1, ScheduledAt: f.now, Disposition: job.TickRun, DecidedAt: f.now})[0]
		if r.JobVersion != 1 || string(r.Payload) != `"v1"` {
			f.Fatalf("run is %+v", r)
		}
	}},
	{"a batch of ticks is answered by tick, new ones and old", func(f *fixture) {
		j := f.put(f.document("a"))
		var all []job.Tick
		for i := range 10 {
			k := job.Tick{JobID: j.ID, Version: 1, ScheduledAt: f.now.Add(time.Duration(i) * time.Second), Disposition: job.TickRun, DecidedAt: f.now}
			if i%3 == 1 {
				k.Disposition, k.Reason = job.TickSkipped, job.OverlapSkip
			}
			all = append(all, k)
		}
		f.storeTicks(all[:5]...)
		for i, r := range f.storeTicks(all...) {
			if (r != nil) != (all[i].Disposition == job.TickRun) || r != nil && r.ID != all[i].RunID() {
				f.Fatalf("tick %d has the run %+v", i, r)
			}
		}
	}},
	{"the ledger pages newest first within its bounds, each job by itself", func(f *fixture) {
		a, b := f.put(f.document("a")), f.put(f.document("b"))
		at := func(i int) job.Instant { return f.now.Add(time.Duration(i) * time.Minute) }
		var all []job.Tick
		for i := range 10 {
			for _, j := range []*job.Job{a, b} {
				all = append(all, job.Tick{JobID: j.ID, Version: 1, ScheduledAt: at(i), Disposition: job.TickMissed, DecidedAt: f.now})
			}
		}
		f.storeTicks(all...)
		list := func(q job.TickQuery) (times []job.Instant) {
			q.JobID = a.ID
			for _, k := range f.ledger(q) {
				times = append(times, k.ScheduledAt)
			}
			return times
		}
		f.equal("newest", []job.Instant{at(9), at(8), at(7)}, list(job.TickQuery{Limit: 3}))
		f.equal("next page", []job.Instant{at(6), at(5), at(4)}, list(job.TickQuery{Before: at(7), Limit: 3}))
		f.equal("since is inclusive", []job.Instant{at(9), at(8)}, list(job.TickQuery{Since: at(8)}))
		f.equal("until is exclusive", []job.Instant{at(1), at(0)}, list(job.TickQuery{Until: at(2)}))
		f.equal("all bounds", []job.Instant{at(4), at(3)}, list(job.TickQuery{Since: at(3), Until: at(8), Before: at(5)}))
		f.equal("past the end", []job.Instant(nil), list(job.TickQuery{Before: at(0)}))
	}},
}
