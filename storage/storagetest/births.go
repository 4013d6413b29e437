package storagetest

import (
	"encoding/json"
	"sync"
	"time"

	"github.com/musterhq/muster/job"
)

func keyed(key, body string) func(*job.Run) {
	return func(r *job.Run) { r.Key, r.BodyHash = key, []byte(body) }
}

var births = []testCase{
	{"S5: a run reads back as it was submitted, with the store as its home", func(f *fixture) {
		want := f.run(f.now, keyed("k1", "hash"), func(r *job.Run) {
			r.State, r.Reason, r.QueuedAt = job.Scheduled, job.Delayed, 0
			r.Priority, r.ScheduledAt, r.ReadyAt, r.DeadlineAt, r.StartBy = 7, f.now.Add(time.Hour), f.now.Add(time.Hour), f.now.Add(2*time.Hour), f.now.Add(3*time.Hour)
			r.Payload, r.Labels = json.RawMessage(`{"a":[1,2,{"b":"é"}]}`), map[string]string{"x": "1", "y": ""}
			r.RetryOf, r.BackfillID, r.Trigger = runID(f.now), "bf-1", job.ByRetry
		})
		stored := f.submit(want)[0]
		if stored.Home != job.HomeQuorum && stored.Home != job.HomePostgres {
			f.Fatalf("home is %s", stored.Home)
		}
		f.equal("the receipt's run", want, stored)
		f.equal("the run", want, f.read(want.ID))
	}},
	{"receipts come in the order of the runs", func(f *fixture) {
		var runs []*job.Run
		for i := range 50 {
			runs = append(runs, f.run(f.now.Add(time.Duration(i*7%50)*time.Millisecond)))
		}
		f.equal("ids", idsOf(runs), idsOf(f.submit(runs...)))
	}},
	{"nothing submitted is nothing stored", func(f *fixture) {
		if receipts, err := f.Submit(f.ctx, nil); err != nil || len(receipts) != 0 {
			f.Fatalf("submit nothing: %v, %v", receipts, err)
		}
	}},
	{"S10: an id seen before is the same run, whatever came with it", func(f *fixture) {
		r := f.run(f.now)
		f.submit(r)
		other := *r
		other.Priority = 1
		receipts, err := f.Submit(f.ctx, []*job.Run{&other, f.run(f.now)})
		if err != nil || !receipts[0].Existing || receipts[1].Existing {
			f.Fatalf("receipts are %+v, %v", receipts, err)
		}
		f.equal("the run", r, receipts[0].Run)
		f.equal("the run read", r, f.read(r.ID))
		if n := len(f.runs(job.RunQuery{})); n != 2 {
			f.Fatalf("%d runs, want 2", n)
		}
	}},
	{"an id twice in one batch is one run", func(f *fixture) {
		r := f.run(f.now)
		receipts, err := f.Submit(f.ctx, copies([]*job.Run{r, r}))
		if err != nil || receipts[0].Existing || !receipts[1].Existing || receipts[1].Run.ID != r.ID {
			f.Fatalf("receipts are %+v, %v", receipts, err)
		}
	}},
	{"an id of a run that has ended is that run as it is", func(f *fixture) {
		r := f.run(f.now)
		f.submit(r)
		f.move(success(r.ID, 1<<32|1, f.now))
		receipts, err := f.Submit(f.ctx, copies([]*job.Run{r}))
		if err != nil || !receipts[0].Existing || receipts[0].Run.State != job.Succeeded {
			f.Fatalf("receipts are %+v, %v", receipts, err)
		}
	}},
	{"a key with the same body is the earlier run, with another body a conflict", func(f *fixture) {
		first := f.submit(f.run(f.now, keyed("k", "body")))[0]
		again, other, free := f.run(f.now, keyed("k", "body")), f.run(f.now, keyed("k", "other body")), f.run(f.now)
		receipts, err := f.Submit(f.ctx, copies([]*job.Run{again, other, free}))
		f.code("submit", err, "")
		if !receipts[0].Existing || receipts[0].Run.ID != first.ID {
			f.Fatalf("receipt of the same body is %+v", receipts[0])
		}
		if e := job.AsError(receipts[1].Err); e == nil || e.Code != job.Conflict || e.Reason != "key_conflict" {
			f.Fatalf("receipt of another body is %+v", receipts[1])
		}
		if receipts[2].Err != nil || receipts[2].Existing {
			f.Fatalf("receipt of a run without a key is %+v", receipts[2])
		}
		for _, r := range []*job.Run{again, other} {
			_, err := f.Run(f.ctx, r.ID)
			f.code("a run that its key refused", err, job.NotFound)
		}
	}},
	{"a key twice in one batch is one run", func(f *fixture) {
		a, b, c := f.run(f.now, keyed("k", "body")), f.run(f.now, keyed("k", "body")), f.run(f.now, keyed("k", "other"))
		receipts, err := f.Submit(f.ctx, []*job.Run{a, b, c})
		if err != nil || receipts[0].Existing || !receipts[1].Existing || receipts[1].Run.ID != a.ID || job.CodeOf(receipts[2].Err) != job.Conflict {
			f.Fatalf("receipts are %+v, %v", receipts, err)
		}
	}},
	{"a key belongs to its namespace, and outlives the end of its run", func(f *fixture) {
		first := f.submit(f.run(f.now, keyed("k", "body")))[0]
		other := f.submit(f.run(f.now, keyed("k", "other body"), func(r *job.Run) { r.Namespace = "other" }))[0]
		if other.ID == first.ID {
			f.Fatal("a key reached into another namespace")
		}
		f.move(success(first.ID, 1<<32|1, f.now))
		receipts, err := f.Submit(f.ctx, []*job.Run{f.run(f.now, keyed("k", "body"))})
		if err != nil || !receipts[0].Existing || receipts[0].Run.ID != first.ID || receipts[0].Run.State != job.Succeeded {
			f.Fatalf("receipts are %+v, %v", receipts, err)
		}
	}},
	{"a key submitted 200 times at once is one run", func(f *fixture) {
		const submitters = 200
		var (
			wg      sync.WaitGroup
			mu      sync.Mutex
			created int
			seen    = map[job.RunID]int{}
		)
		for range submitters {
			r := f.run(f.now, keyed("k", "body"))
			wg.Go(func() {
				receipts, err := f.Submit(f.ctx, []*job.Run{r})
				mu.Lock()
				defer mu.Unlock()
				if err != nil || receipts[0].Err != nil || receipts[0].Run == nil {
					f.Errorf("submit: %+v, %v", receipts, err)
					return
				}
				if !receipts[0].Existing {
					created++
				}
				seen[receipts[0].Run.ID]++
			})
		}
		wg.Wait()
		if created != 1 || len(seen) != 1 {
			f.Fatalf("%d runs were created, and %d ids answered", created, len(seen))
		}
		if n := len(f.runs(job.RunQuery{})); n != 1 {
			f.Fatalf("%d runs are stored", n)
		}
	}},
	{"one id submitted 50 times at once is one run", func(f *fixture) {
		r := f.run(f.now)
		var wg sync.WaitGroup
		var mu sync.Mutex
		created := 0
		for range 50 {
			own := *r
			wg.Go(func() {
				receipts, err := f.Submit(f.ctx, []*job.Run{&own})
				mu.Lock()
				defer mu.Unlock()
				if err != nil || receipts[0].Err != nil {
					f.Errorf("submit: %+v, %v", receipts, err)
				} else if !receipts[0].Existing {
					created++
				}
			})
		}
		wg.Wait()
		if created != 1 {
			f.Fatalf("%d runs were created", created)
		}
	}},
	{"1,000 runs of 1 KiB in one call are stored", func(f *fixture) {
		var runs []*job.Run
		payload, _ := json.Marshal(string(make([]byte, 0)) + text(1024))
		for i := range 1000 {
			runs = append(runs, f.run(f.now.Add(time.Duration(i)*time.Millisecond), func(r *job.Run) { r.Payload = payload }))
		}
		f.submit(runs...)
		live, err := f.Live(f.ctx, job.RunID{}, 2000)
		if err != nil || len(live) != 1000 {
			f.Fatalf("%d live runs, %v", len(live), err)
		}
	}},
	{"20 runs with a payload of 64 KiB each are stored", func(f *fixture) {
		payload, _ := json.Marshal(text(64<<10 - 2))
		var runs []*job.Run
		for range 20 {
			runs = append(runs, f.run(f.now, func(r *job.Run) { r.Payload = payload }))
		}
		for i, r := range f.submit(runs...) {
			if len(r.Payload) != len(payload) {
				f.Fatalf("payload %d has %d bytes", i, len(r.Payload))
			}
		}
	}},
}

func text(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('a' + i%26)
	}
	return string(b)
}

var cancels = []testCase{
	{"L9: an intent is recorded once and changes no state", func(f *fixture) {
		r := f.submit(f.run(f.now))[0]
		for i := range 2 {
			receipts, err := f.Cancel(f.ctx, []job.CancelIntent{{ID: r.ID, At: f.now.Add(time.Duration(i+1) * time.Second)}})
			if err != nil || receipts[0].Err != nil {
				f.Fatalf("cancel: %+v, %v", receipts, err)
			}
			if got := receipts[0].Run; got.CancelAt != f.now.Add(time.Second) || got.State != job.Queued {
				f.Fatalf("after intent %d the run is %+v", i, got)
			}
		}
		if got := f.read(r.ID); got.CancelAt != f.now.Add(time.Second) || got.Startable(f.now.Add(time.Hour)) {
			f.Fatalf("the run is %+v", got)
		}
	}},
	{"an intent for no run is not found, and the others count", func(f *fixture) {
		r := f.submit(f.run(f.now))[0]
		receipts, err := f.Cancel(f.ctx, []job.CancelIntent{{ID: runID(f.now), At: f.now}, {ID: r.ID, At: f.now}})
		f.code("cancel", err, "")
		f.code("the receipt of no run", receipts[0].Err, job.NotFound)
		if receipts[1].Err != nil || receipts[1].Run.CancelAt != f.now {
			f.Fatalf("receipt is %+v", receipts[1])
		}
	}},
	{"D4: an intent for a run that has ended changes nothing", func(f *fixture) {
		r := f.submit(f.run(f.now))[0]
		f.move(success(r.ID, 1<<32|1, f.now))
		before := f.read(r.ID)
		receipts, err := f.Cancel(f.ctx, []job.CancelIntent{{ID: r.ID, At: f.now}})
		if err != nil || receipts[0].Err != nil {
			f.Fatalf("cancel: %+v, %v", receipts, err)
		}
		f.equal("the receipt's run", before, receipts[0].Run)
		f.equal("the run", before, f.read(r.ID))
	}},
	{"D4: cancel absorbs: a move to where an attempt could start becomes cancelled", func(f *fixture) {
		for _, state := range []job.State{job.Queued, job.Scheduled, job.Waiting, job.Held} {
			r := f.submit(f.run(f.now))[0]
			if _, err := f.Cancel(f.ctx, []job.CancelIntent{{ID: r.ID, At: f.now}}); err != nil {
				f.Fatal(err)
			}
			m := f.move(job.Move{ID: r.ID, State: state, ReadyAt: f.now.Add(time.Minute)})[0]
			if !m.Applied || m.Run.State != job.Cancelled || m.Run.Reason != job.CancelRequested || m.Run.FinishedAt == 0 {
				f.Fatalf("a cancelled run moved to %s is %+v", state, m.Run)
			}
			if got := f.read(r.ID); got.State != job.Cancelled {
				f.Fatalf("run is %s", got.State)
			}
		}
	}},
	{"the first intent's reason is the run's, whoever moves it", func(f *fixture) {
		r := f.submit(f.run(f.now))[0]
		for _, why := range []job.Reason{job.OverlapReplaced, job.CancelRequested} {
			if _, err := f.Cancel(f.ctx, []job.CancelIntent{{ID: r.ID, At: f.now, Reason: why}}); err != nil {
				f.Fatal(err)
			}
		}
		m := f.move(job.Move{ID: r.ID, State: job.Cancelled, Reason: job.CancelRequested, FinishedAt: f.now})[0]
		if !m.Applied || m.Run.Reason != job.OverlapReplaced {
			f.Fatalf("the run is %+v", m.Run)
		}
	}},
	{"a result that comes before the cancel took effect stands", func(f *fixture) {
		r := f.submit(f.run(f.now))[0]
		if _, err := f.Cancel(f.ctx, []job.CancelIntent{{ID: r.ID, At: f.now}}); err != nil {
			f.Fatal(err)
		}
		if m := f.move(success(r.ID, 1<<32|1, f.now))[0]; !m.Applied || m.Run.State != job.Succeeded {
			f.Fatalf("the run is %+v", m.Run)
		}
	}},
}
