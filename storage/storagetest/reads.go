package storagetest

import (
	"slices"
	"time"

	"github.com/musterhq/muster/job"
)

// manyRuns stores runs one second apart, oldest first: of two jobs and of none, in two namespaces, each third one ended.
func (f *fixture) manyRuns(n int) []*job.Run {
	a, b := f.put(f.document("a")), f.put(f.document("a", func(d *job.Document) { d.Namespace = "other" }))
	var all []*job.Run
	for i := range n {
		r := f.run(f.now.Add(time.Duration(i-n)*time.Second), func(r *job.Run) {
			r.Labels = map[string]string{"n": name(i % 5), "all": "x"}
			switch i % 4 {
			case 0:
				ofJob(a)(r)
			case 1:
				ofJob(b)(r)
			case 2:
				r.Namespace = "other"
			}
		})
		f.submit(r)
		if i%3 == 0 {
			m := success(r.ID, job.MakeFence(1, uint32(i+1)), r.CreatedAt)
			m.Worker = "w" + name(i%2)
			if i%2 == 1 {
				m.State, m.Reason = job.Failed, job.ExitCode
			}
			f.move(m)
		}
		all = append(all, f.read(r.ID))
	}
	return all
}

var reads = []testCase{
	{"a run that is not there is not found", func(f *fixture) {
		_, err := f.Run(f.ctx, runID(f.now))
		f.code("run", err, job.NotFound)
		_, err = f.Job(f.ctx, "default", "none")
		f.code("job", err, job.NotFound)
	}},
	{"filters select what they say, newest first", func(f *fixture) {
		all := f.manyRuns(60)
		from, to := all[20].CreatedAt, all[40].CreatedAt
		for what, c := range map[string]struct {
			q    job.RunQuery
			keep func(*job.Run) bool
		}{
			"everything":  {job.RunQuery{}, func(*job.Run) bool { return true }},
			"namespace":   {job.RunQuery{Namespace: "other"}, func(r *job.Run) bool { return r.Namespace == "other" }},
			"job":         {job.RunQuery{Namespace: "default", Job: "a"}, func(r *job.Run) bool { return r.Namespace == "default" && r.Job == "a" }},
			"no such job": {job.RunQuery{Namespace: "default", Job: "b"}, func(r *job.Run) bool { return false }},
			"live":        {job.RunQuery{States: []job.State{job.Queued}}, func(r *job.Run) bool { return r.State == job.Queued }},
			"ended":       {job.RunQuery{States: []job.State{job.Succeeded, job.Failed}}, func(r *job.Run) bool { return r.State.Terminal() }},
			"failed or queued": {job.RunQuery{Namespace: "other", States: []job.State{job.Failed, job.Queued}},
				func(r *job.Run) bool {
					return r.Namespace == "other" && (r.State == job.Failed || r.State == job.Queued)
				}},
			"no such state":      {job.RunQuery{States: []job.State{job.Held}}, func(r *job.Run) bool { return false }},
			"worker":             {job.RunQuery{Worker: "w" + name(1)}, func(r *job.Run) bool { return r.Worker == "w"+name(1) }},
			"labels":             {job.RunQuery{Labels: map[string]string{"n": name(3), "all": "x"}}, func(r *job.Run) bool { return r.Labels["n"] == name(3) }},
			"no such label":      {job.RunQuery{Labels: map[string]string{"n": name(3), "all": "y"}}, func(r *job.Run) bool { return false }},
			"since is inclusive": {job.RunQuery{Since: from}, func(r *job.Run) bool { return r.CreatedAt >= from }},
			"until is exclusive": {job.RunQuery{Until: to}, func(r *job.Run) bool { return r.CreatedAt < to }},
			"all together": {job.RunQuery{Namespace: "default", Job: "a", States: []job.State{job.Queued}, Since: from, Until: to, Labels: map[string]string{"all": "x"}},
				func(r *job.Run) bool {
					return r.Namespace == "default" && r.Job == "a" && r.State == job.Queued && r.CreatedAt >= from && r.CreatedAt < to
				}},
		} {
			var want []job.RunID
			for _, r := range slices.Backward(all) {
				if c.keep(r) {
					want = append(want, r.ID)
				}
			}
			f.equal(what, want, f.runs(c.q))
			// The same by pages of three.
			var paged []job.RunID
			q := c.q
			q.Limit = 3
			for {
				page := f.runs(q)
				paged = append(paged, page...)
				if len(page) < 3 {
					break
				}
				q.Before = page[2]
			}
			f.equal(what+", by pages", want, paged)
		}
	}},
	{"a page has at most 1,000 runs, and 100 if not said", func(f *fixture) {
		var runs []*job.Run
		for i := range 1005 {
			runs = append(runs, f.run(f.now.Add(time.Duration(i)*time.Millisecond)))
		}
		f.submit(runs...)
		for limit, want := range map[int]int{0: 100, 7: 7, 1000: 1000, 5000: 1000} {
			if got := len(f.runs(job.RunQuery{Limit: limit})); got != want {
				f.Fatalf("limit %d answers %d", limit, got)
			}
		}
	}},
	{"a deleted job's runs are still listed under its name", func(f *fixture) {
		j := f.put(f.document("a"))
		rs := f.submit(f.run(f.now, ofJob(j)), f.run(f.now.Add(-time.Second), ofJob(j)))
		f.move(success(rs[1].ID, 1<<32|1, f.now))
		if _, err := f.DeleteJob(f.ctx, "default", "a", 0); err != nil {
			f.Fatal(err)
		}
		f.equal("runs", []job.RunID{rs[0].ID, rs[1].ID}, f.runs(job.RunQuery{Namespace: "default", Job: "a"}))
	}},
	{"usage counts runs, live runs and ledger rows", func(f *fixture) {
		j := f.put(f.document("a"))
		rs := f.submit(f.run(f.now), f.run(f.now), f.run(f.now))
		f.move(success(rs[0].ID, 1<<32|1, f.now))
		f.storeTicks(job.Tick{JobID: j.ID, Version: 1, ScheduledAt: f.now, Disposition: job.TickSkipped, DecidedAt: f.now})
		u, err := f.Usage(f.ctx)
		if err != nil || u.Runs != 3 || u.LiveRuns != 2 || u.Ticks != 1 {
			f.Fatalf("usage is %+v, %v", u, err)
		}
	}},
}

var prunes = []testCase{
	{"what ended long ago goes, what ended since or lives stays", func(f *fixture) {
		old := f.now.Add(-48 * time.Hour)
		rs := f.submit(f.run(old), f.run(old), f.run(old), f.run(f.now))
		f.move(retry(rs[0].ID, 1<<32|1, 1, old), success(rs[0].ID, 1<<32|2, old), success(rs[1].ID, 1<<32|3, f.now), success(rs[3].ID, 1<<32|4, f.now))
		for i, want := range []int{1, 0} {
			n, err := f.Prune(f.ctx, 1, f.now.Add(-24*time.Hour), 100)
			if err != nil || n != want {
				f.Fatalf("prune %d dropped %d, %v; want %d", i, n, err, want)
			}
		}
		_, err := f.Run(f.ctx, rs[0].ID)
		f.code("the pruned run", err, job.NotFound)
		_, err = f.Attempts(f.ctx, rs[0].ID)
		f.code("its attempts", err, job.NotFound)
		for _, i := range []int{1, 2, 3} {
			f.read(rs[i].ID)
		}
		f.equal("runs", []job.RunID{rs[3].ID}, f.runs(job.RunQuery{States: []job.State{job.Succeeded}, Since: f.now}))
	}},
	{"live runs are never dropped, however old", func(f *fixture) {
		old := f.now.Add(-90 * 24 * time.Hour)
		states := []job.State{job.Waiting, job.Held, job.Scheduled, job.Queued}
		var want []job.RunID
		for i, s := range states {
			r := f.run(old.Add(time.Duration(i)*time.Millisecond), func(r *job.Run) { r.State = s })
			f.submit(r)
			want = append(want, r.ID)
		}
		n, err := f.Prune(f.ctx, 1, f.now.Add(time.Hour), 100)
		if err != nil || n != 0 {
			f.Fatalf("prune dropped %d, %v", n, err)
		}
		live, err := f.Live(f.ctx, job.RunID{}, 10)
		f.code("live", err, "")
		f.equal("live runs", want, idsOf(live))
	}},
	{"ledger rows go by their tick", func(f *fixture) {
		j := f.put(f.document("a"))
		cut := f.now.Add(-time.Hour)
		f.storeTicks(
			job.Tick{JobID: j.ID, Version: 1, ScheduledAt: cut.Add(-time.Second), Disposition: job.TickMissed, DecidedAt: f.now},
			job.Tick{JobID: j.ID, Version: 1, ScheduledAt: cut, Disposition: job.TickMissed, DecidedAt: f.now})
		n, err := f.Prune(f.ctx, 1, cut, 100)
		if err != nil || n != 1 {
			f.Fatalf("prune dropped %d, %v", n, err)
		}
		if got := f.ledger(job.TickQuery{JobID: j.ID}); len(got) != 1 || got[0].ScheduledAt != cut {
			f.Fatalf("ledger is %+v", got)
		}
	}},
	{"a prune drops no more than its limit, and the next goes on", func(f *fixture) {
		old := f.now.Add(-48 * time.Hour)
		var runs []*job.Run
		var ms []job.Move
		for i := range 25 {
			r := f.run(old)
			runs, ms = append(runs, r), append(ms, success(r.ID, job.MakeFence(1, uint32(i+1)), old))
		}
		f.submit(runs...)
		f.move(ms...)
		total := 0
		for i, want := range []int{10, 10, 5, 0} {
			n, err := f.Prune(f.ctx, 1, f.now, 10)
			if err != nil || n != want {
				f.Fatalf("prune %d dropped %d, %v; want %d", i, n, err, want)
			}
			total += n
		}
		if left := f.runs(job.RunQuery{}); len(left) != 0 {
			f.Fatalf("%d runs are left", len(left))
		}
	}},
	{"usage goes down with what is pruned", func(f *fixture) {
		old := f.now.Add(-48 * time.Hour)
		r := f.submit(f.run(old))[0]
		f.move(success(r.ID, 1<<32|1, old))
		if _, err := f.Prune(f.ctx, 1, f.now, 10); err != nil {
			f.Fatal(err)
		}
		u, err := f.Usage(f.ctx)
		if err != nil || u.Runs != 0 || u.LiveRuns != 0 {
			f.Fatalf("usage is %+v, %v", u, err)
		}
	}},
}
