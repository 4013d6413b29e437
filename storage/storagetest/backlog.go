package storagetest

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/musterhq/muster/job"
)

const laneA, laneB = job.LaneKey("default|@exec=|a"), job.LaneKey("other|@exec=,region=eu|b%7C \U0001F680")

// first asks for a lane from its beginning on.
func first(lane job.LaneKey, most int) job.LaneAfter {
	return job.LaneAfter{Lane: lane, Order: math.MinInt64, Max: most}
}

// behind asks for a lane from an entry of it on.
func behind(e job.QueueEntry, most int) job.LaneAfter {
	return job.LaneAfter{Lane: e.Lane, Order: e.Order(), After: e.RunID, Max: most}
}

func inLane(lane job.LaneKey) func(*job.Run) {
	return func(r *job.Run) { r.Lane = string(lane) }
}

// delayed makes a run start at a time.
func delayed(at job.Instant) func(*job.Run) {
	return func(r *job.Run) {
		r.State, r.Reason, r.ReadyAt, r.ScheduledAt, r.QueuedAt = job.Scheduled, job.Delayed, at, at, 0
	}
}

func (f *fixture) backlog(until job.Instant, wants ...job.LaneAfter) []job.QueueEntry {
	f.Helper()
	got, err := f.Backlog(f.ctx, wants, until)
	if err != nil {
		f.Fatalf("backlog: %v", err)
	}
	return got
}

// entriesOf is what a backlog has of runs, in order.
func entriesOf(runs ...*job.Run) []job.QueueEntry {
	var list []job.QueueEntry
	for _, r := range runs {
		list = append(list, r.Entry())
	}
	slices.SortFunc(list, job.QueueEntry.Compare)
	return list
}

var backlogs = []testCase{
	{"Q2: a lane comes by order and id, priorities and ready times counted", func(f *fixture) {
		var runs []*job.Run
		for i := range 60 {
			// Few different times and priorities, so that many share their order: 60 s are worth one priority.
			runs = append(runs, f.run(f.now.Add(time.Duration(i*13%7-7)*time.Minute), inLane(laneA), func(r *job.Run) {
				r.Priority = uint8(i * 7 % 10)
				if i%3 == 0 {
					r.ReadyAt = f.now.Add(time.Duration(-i%5) * time.Minute)
				}
			}))
		}
		shuffled := slices.Clone(runs)
		rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		f.submit(shuffled...)
		f.submit(f.run(f.now, inLane(laneB)))
		want := entriesOf(runs...)
		ties := 0
		for i := range want[1:] {
			if want[i].Order() == want[i+1].Order() {
				ties++
			}
		}
		if ties < 10 {
			f.Fatalf("%d entries share their order with the next: too few to judge by", ties)
		}
		f.equal("the lane", want, f.backlog(f.now, first(laneA, 100)))
		f.equal("its first", want[:7], f.backlog(f.now, first(laneA, 7)))
		for i, e := range want {
			f.equal("what comes behind a place", want[i+1:min(len(want), i+6)], f.backlog(f.now, behind(e, 5)))
		}
		// A place need not be that of a run which is there.
		for i, e := range want {
			if i > 0 && want[i-1].Order() < e.Order() {
				f.equal("from an order on", want[i:], f.backlog(f.now, job.LaneAfter{Lane: laneA, Order: e.Order(), Max: 100}))
				f.equal("from before an order on", want[i:], f.backlog(f.now, job.LaneAfter{Lane: laneA, Order: e.Order() - 1, After: want[0].RunID, Max: 100}))
			}
		}
		f.equal("behind all", []job.QueueEntry(nil), f.backlog(f.now, job.LaneAfter{Lane: laneA, Order: math.MaxInt64, Max: 100}))
	}},
	{"Q2: what is delayed is there up to a time", func(f *fixture) {
		at := func(i int) job.Instant { return f.now.Add(time.Duration(i) * time.Second) }
		now := f.run(f.now, inLane(laneA))
		var later []*job.Run
		for i := range 5 {
			later = append(later, f.run(f.now, inLane(laneA), delayed(at(i+1)), func(r *job.Run) { r.Priority = 5 }))
		}
		urgent := f.run(f.now, inLane(laneA), delayed(at(4)), func(r *job.Run) { r.Priority = 9 })
		f.submit(append([]*job.Run{now, urgent}, later...)...)
		for until, want := range map[job.Instant][]job.QueueEntry{
			f.now:             entriesOf(now),
			at(1) - 1:         entriesOf(now),
			at(1):             entriesOf(now, later[0]),
			at(3):             entriesOf(now, later[0], later[1], later[2]),
			at(3600):          entriesOf(append([]*job.Run{now, urgent}, later...)...),
			f.now.Add(-86400): entriesOf(now), // what is queued is queued
		} {
			f.equal("the lane until "+until.Sub(f.now).String(), want, f.backlog(until, first(laneA, 100)))
		}
		// A limit counts what is answered, not what is looked at.
		f.equal("two until the third second", entriesOf(now, later[0], later[1])[:2], f.backlog(at(3), first(laneA, 2)))
	}},
	{"Q2: what cannot start is not there", func(f *fixture) {
		var all []*job.Run
		in := func(s job.State, why job.Reason) *job.Run {
			r := f.run(f.now, inLane(laneA), func(r *job.Run) { r.State, r.Reason = s, why })
			all = append(all, r)
			return r
		}
		queued := in(job.Queued, job.NoReason)
		in(job.Waiting, job.OverlapQueued)
		in(job.Held, job.JobPaused)
		in(job.Skipped, job.OverlapSkip)
		intended, ended, failed, running := in(job.Queued, job.NoReason), in(job.Queued, job.NoReason), in(job.Queued, job.NoReason), in(job.Queued, job.NoReason)
		held, retried, requeued := in(job.Queued, job.NoReason), in(job.Queued, job.NoReason), in(job.Queued, job.NoReason)
		later := f.run(f.now, inLane(laneA), delayed(f.now.Add(time.Second)))
		f.submit(append(all, later)...)
		receipts, err := f.Cancel(f.ctx, []job.CancelIntent{{ID: intended.ID, At: f.now}, {ID: later.ID, At: f.now}})
		if err != nil || receipts[0].Err != nil || receipts[1].Err != nil {
			f.Fatalf("cancel: %+v, %v", receipts, err)
		}
		f.move(success(ended.ID, 1<<32|1, f.now),
			job.Move{ID: failed.ID, State: job.Failed, Reason: job.ExitCode, Fence: 1<<32 | 2, Attempt: 1, FinishedAt: f.now},
			job.Move{ID: running.ID, State: job.Running, Fence: 1<<32 | 3, Attempt: 1, Worker: "w", StartedAt: f.now},
			job.Move{ID: held.ID, State: job.Held, Reason: job.JobPaused},
			retry(retried.ID, 1<<32|4, 1, f.now),
			job.Move{ID: requeued.ID, State: job.Queued, Reason: job.WorkerLost, Fence: 1<<32 | 5, Attempt: 1, Losses: 1, QueuedAt: f.now.Add(time.Second), ReadyAt: f.now.Add(time.Second)})
		rows, err := f.Load(f.ctx, []job.RunID{retried.ID, requeued.ID})
		f.code("load", err, "")
		want := entriesOf(queued, rows[0], rows[1])
		f.equal("the lane", want, f.backlog(f.now.Add(time.Hour), first(laneA, 100)))
		f.equal("the lane before the retry is ready", entriesOf(queued, rows[1]), f.backlog(rows[0].ReadyAt-1, first(laneA, 100)))
		// It comes back where it then stands.
		f.move(job.Move{ID: held.ID, State: job.Queued, QueuedAt: f.now.Add(time.Minute)})
		rows, err = f.Load(f.ctx, []job.RunID{retried.ID, requeued.ID, held.ID})
		f.code("load", err, "")
		f.equal("the lane with what was held", entriesOf(queued, rows[0], rows[1], rows[2]), f.backlog(f.now.Add(time.Hour), first(laneA, 100)))
	}},
	{"Q2: several lanes are answered in the order asked, each within its own limit", func(f *fixture) {
		lanes := []job.LaneKey{laneB, laneA, "ns|@exec=|", "ns|@exec=,@slots=2|"}
		in := map[job.LaneKey][]job.QueueEntry{}
		for i := range 40 {
			lane := lanes[i%len(lanes)]
			r := f.run(f.now.Add(time.Duration(-i)*time.Second), inLane(lane))
			f.submit(r)
			in[lane] = append(in[lane], r.Entry())
		}
		for _, list := range in {
			slices.SortFunc(list, job.QueueEntry.Compare)
		}
		want := slices.Concat(in[lanes[2]][:3], in[lanes[0]][5:], in[lanes[3]][2:3])
		got := f.backlog(f.now, first(lanes[2], 3), first("no|@exec=|such lane", 10), behind(in[lanes[0]][4], 10), first(lanes[1], 0), behind(in[lanes[3]][1], 1))
		f.equal("entries", want, got)
		f.equal("nothing asked", []job.QueueEntry(nil), f.backlog(f.now))
	}},
	{"Q2: a tick's run is in its job's lane", func(f *fixture) {
		j := f.put(f.document("a", func(d *job.Document) { d.Selector = map[string]string{"region": "eu"} }))
		r := f.storeTicks(job.Tick{JobID: j.ID, Version: 1, ScheduledAt: f.now, Disposition: job.TickRun, DecidedAt: f.now})[0]
		f.storeTicks(job.Tick{JobID: j.ID, Version: 1, ScheduledAt: f.now.Add(time.Second), Disposition: job.TickRun, DecidedAt: f.now, Waiting: true})
		f.equal("the lane", entriesOf(r), f.backlog(f.now.Add(time.Hour), first(job.LaneOf("default", j.Spec), 10)))
	}},
	{"Q2: paging through 500 entries gives each exactly once", func(f *fixture) {
		var runs []*job.Run
		for i := range 500 {
			// Old ones too: a store that keeps rows by age has some in each place.
			at := f.now.Add(-time.Duration(i*37%11) * 24 * time.Hour)
			runs = append(runs, f.run(at, inLane(laneA), func(r *job.Run) { r.Priority = uint8(i % 10) }))
			if i%5 == 0 {
				delayed(at.Add(time.Hour))(runs[i])
			}
		}
		f.submit(runs...)
		want := entriesOf(runs...)
		for _, size := range []int{1, 7, 100, 250, 499} {
			var got []job.QueueEntry
			next := first(laneA, size)
			for range 501 {
				page := f.backlog(f.now.Add(time.Hour), next)
				if len(page) > size {
					f.Fatalf("%d entries on a page of %d", len(page), size)
				}
				got = append(got, page...)
				if len(page) < size {
					break
				}
				next = behind(page[len(page)-1], size)
			}
			f.equal("entries by pages", want, got)
		}
	}},
}
