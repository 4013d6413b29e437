package checker_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

// epoch is when the good history begins.
var epoch = job.At(time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC))

func second(n int) job.Instant      { return epoch.Add(time.Duration(n) * time.Second) }
func moment(ms int) checker.Moment  { return checker.Moment(time.Duration(ms) * time.Millisecond) }
func runID(n byte) job.RunID        { return job.MakeRunID(epoch.Time(), [10]byte{9: n}) }
func tickID(n int) job.RunID        { return job.TickRunID(jobID, second(n)) }
func fence(epoch, n int) job.Fence  { return job.MakeFence(job.Epoch(epoch), uint32(n)) }
func docOf(s string) *job.Document  { return must(s) }
func body(s string) json.RawMessage { return json.RawMessage(s) }

var jobID = job.MakeJobID(epoch.Time(), [10]byte{1})

func must(s string) *job.Document {
	d := new(job.Document)
	if err := json.Unmarshal([]byte(s), d); err != nil {
		panic(err)
	}
	return d
}

// The submitted runs of the good history.
var (
	plainRun     = runID(1) // accepted, ran once
	unknownThere = runID(2) // its submission was not answered, and it is there
	unknownGone  = runID(3) // ... and it is not
	refusedRun   = runID(4)
	keyedRun     = runID(5) // submitted twice with one key
	keyedOther   = runID(6) // the id of the second submission
	cancelledRun = runID(7)
	lostOnce     = runID(8)  // killed in its first attempt, repeated
	retriedRun   = runID(9)  // failed, repeated by its policy
	onceRun      = runID(10) // killed, and not to be repeated
)

// goodHistory keeps every promise, and has an example of all that they allow: two lives of the system, the first one
// killed at 3.5 s, a job of two versions, and one submitted run of every kind.
func goodHistory() *checker.History {
	h := &checker.History{
		Lives: []checker.Life{
			{Pid: 100, Start: moment(1), Ready: moment(300), Kill: moment(3500), Dead: moment(3510)},
			{Pid: 200, Start: moment(3520), Ready: moment(3900)},
		},
	}
	// Ticks 1 to 3 run in the first life, 4 and 5 are coalesced, 6 runs; version 2 owns what is after 6.
	j := checker.Job{ID: jobID, Name: "a", Until: second(7)}
	schedule := `{"name": "a", "schedule": {"cron": "@every 1s"}, "overlap": "allow"}`
	j.Versions = []job.Version{{JobID: jobID, Version: 2, From: second(6) + 1, Spec: docOf(schedule)}, {JobID: jobID, Version: 1, From: epoch + 1, Spec: docOf(schedule)}}
	h.Ops = append(h.Ops, checker.Op{Kind: checker.Put, Outcome: checker.OK, Job: "a", Version: 2, Before: second(6), After: second(6) + 2})
	h.Ops = append(h.Ops, checker.Op{Kind: checker.Put, Outcome: checker.OK, Job: "a", Version: 2, Asked: moment(6500), Before: second(6) + 500, After: second(6) + 502})
	for _, n := range []int{1, 2, 3, 6, 7} {
		version, life, at := uint64(1), 100, 1000*n
		if n > 6 {
			version = 2
		}
		if n > 3 {
			life = 200
		}
		j.Ticks = append(j.Ticks, checker.Tick{Tick: job.Tick{Version: version, ScheduledAt: second(n), Disposition: job.TickRun}, RunID: tickID(n)})
		h.Runs = append(h.Runs, checker.Run{Run: job.Run{ID: tickID(n), Job: "a", JobVersion: version, Trigger: job.ByTick, ScheduledAt: second(n),
			State: job.Succeeded, Attempt: 1, FinishedAt: second(n)}})
		work(h, tickID(n), 1, fence(1, n), life, at, at+10, 0)
	}
	j.Ticks = append(j.Ticks, checker.Tick{Tick: job.Tick{Version: 1, ScheduledAt: second(4), Until: second(5), Count: 2, Disposition: job.TickCoalesced}})
	h.Jobs = append(h.Jobs, j)

	submitted := func(id job.RunID, outcome checker.Outcome, text, key string) {
		op := checker.Op{Kind: checker.Submit, ID: id, Outcome: outcome, Asked: moment(2000), Done: moment(2001), Body: body(text), Key: key}
		if outcome == checker.OK {
			op.Answer = &job.Run{ID: id, State: job.Queued}
		}
		h.Ops = append(h.Ops, op)
	}
	run := func(id job.RunID, state job.State, reason job.Reason) {
		h.Runs = append(h.Runs, checker.Run{Run: job.Run{ID: id, Trigger: job.ByAPI, State: state, Reason: reason, FinishedAt: second(7)}})
	}
	plain := `{"spec": {}}`
	for n, id := range []job.RunID{plainRun, unknownThere, keyedRun} {
		run(id, job.Succeeded, 0)
		work(h, id, 1, fence(1, 20+n), 100, 2010, 2020, 0)
	}
	submitted(plainRun, checker.OK, plain, "")
	submitted(unknownThere, checker.Unknown, plain, "")
	submitted(unknownGone, checker.Unknown, plain, "")
	submitted(refusedRun, checker.Refused, plain, "")

	submitted(keyedRun, checker.OK, plain, "key")
	submitted(keyedOther, checker.OK, plain, "key")
	h.Ops[len(h.Ops)-1].Answer = &job.Run{ID: keyedRun, State: job.Succeeded, Attempt: 1, FinishedAt: second(7)}
	h.Ops[len(h.Ops)-1].Asked, h.Ops[len(h.Ops)-1].Done = moment(2500), moment(2501)
	submitted(keyedOther, checker.Refused, `{"spec": {}, "payload": 1}`, "key") // 409

	submitted(cancelledRun, checker.OK, plain, "")
	run(cancelledRun, job.Cancelled, job.CancelRequested)
	h.Ops = append(h.Ops, checker.Op{Kind: checker.Cancel, ID: cancelledRun, Outcome: checker.OK, Asked: moment(2300), Done: moment(2310), Answer: &job.Run{ID: cancelledRun, State: job.Running}})
	h.Work = append(h.Work, line(checker.Start, cancelledRun, 1, fence(1, 30), 100, 2305))
	end := line(checker.End, cancelledRun, 1, fence(1, 30), 100, 2350)
	end.Signal = 15
	h.Work = append(h.Work, end)
	attempt(h, cancelledRun, job.Attempt{Attempt: 1, Fence: fence(1, 30), State: job.Cancelled, Reason: job.CancelRequested})

	submitted(lostOnce, checker.OK, plain, "")
	run(lostOnce, job.Succeeded, 0)
	h.Work = append(h.Work, line(checker.Start, lostOnce, 1, fence(1, 40), 100, 3400), line(checker.Beat, lostOnce, 1, fence(1, 40), 100, 3600))
	attempt(h, lostOnce, job.Attempt{Attempt: 1, Fence: fence(1, 40), State: job.Failed, Reason: job.WorkerLost})
	work(h, lostOnce, 2, fence(2, 1), 200, 4000, 4100, 0)

	submitted(retriedRun, checker.OK, `{"spec": {"retry": {"max_attempts": 2}}}`, "")
	run(retriedRun, job.Succeeded, 0)
	work(h, retriedRun, 1, fence(1, 50), 100, 2100, 2200, 7)
	attempt(h, retriedRun, job.Attempt{Attempt: 1, Fence: fence(1, 50), State: job.Failed, Reason: job.ExitCode})
	work(h, retriedRun, 2, fence(1, 51), 100, 3200, 3300, 0)

	submitted(onceRun, checker.OK, `{"spec": {"on_worker_lost": "fail"}}`, "")
	run(onceRun, job.Failed, job.WorkerLost)
	h.Work = append(h.Work, line(checker.Start, onceRun, 1, fence(1, 60), 100, 3450))
	attempt(h, onceRun, job.Attempt{Attempt: 1, Fence: fence(1, 60), State: job.Failed, Reason: job.WorkerLost})

	for i := range h.Runs { // what everybody saw in the end
		r := &h.Runs[i]
		r.Run.Attempt = uint32(len(r.Attempts))
		seen := r.Run
		h.Ops = append(h.Ops, checker.Op{Kind: checker.Read, ID: seen.ID, Outcome: checker.OK, Asked: moment(9000), Done: moment(9001), Answer: &seen})
	}
	return h
}

func line(e checker.Event, id job.RunID, n int, f job.Fence, life, ms int) checker.Work {
	return checker.Work{Event: e, Run: id, Attempt: uint32(n), Fence: f, Life: life, Pid: 1000 + n, At: moment(ms)}
}

// work is a whole attempt: both lines and, unless it failed, what is recorded of it.
func work(h *checker.History, id job.RunID, n int, f job.Fence, life, from, to, code int) {
	end := line(checker.End, id, n, f, life, to)
	end.Code = code
	h.Work = append(h.Work, line(checker.Start, id, n, f, life, from), end)
	if code == 0 {
		attempt(h, id, job.Attempt{Attempt: uint32(n), Fence: f, State: job.Succeeded})
	}
}

func attempt(h *checker.History, id job.RunID, a job.Attempt) {
	r := find(h, id)
	a.RunID = id
	r.Attempts = append(r.Attempts, a)
}

func find(h *checker.History, id job.RunID) *checker.Run {
	for i := range h.Runs {
		if h.Runs[i].Run.ID == id {
			return &h.Runs[i]
		}
	}
	panic("no run " + id.String())
}

func drop(h *checker.History, id job.RunID) {
	for i := range h.Runs {
		if h.Runs[i].Run.ID == id {
			h.Runs = append(h.Runs[:i], h.Runs[i+1:]...)
			break
		}
	}
	ops := h.Ops[:0]
	for _, op := range h.Ops { // nobody has seen it either
		if op.Kind != checker.Read || op.ID != id {
			ops = append(ops, op)
		}
	}
	h.Ops = ops
}

func forget(h *checker.History, id job.RunID) { // what its commands wrote
	kept := h.Work[:0]
	for _, w := range h.Work {
		if w.Run != id {
			kept = append(kept, w)
		}
	}
	h.Work = kept
}

func TestAGoodHistoryBreaksNothing(t *testing.T) {
	r := checker.Judge(goodHistory())
	for _, v := range r.Violations {
		t.Error(v)
	}
	want := checker.Report{Accepted: 7, Unknown: 2, Refused: 2, Cancels: 1, Keys: 1, Runs: 12, Due: 7,
		Decided: map[job.Disposition]int{job.TickRun: 5, job.TickCoalesced: 2}, Starts: 14, AfterLoss: 1, AfterFailure: 1, Cut: 2}
	if r.Violations = nil; !reflect.DeepEqual(*r, want) {
		t.Errorf("counted %+v\nwant    %+v", *r, want)
	}
}

func TestAHistoryIsReadAsItWasWritten(t *testing.T) {
	h := goodHistory()
	var file bytes.Buffer
	add := func(l checker.Line) {
		b, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		file.Write(append(b, '\n'))
	}
	for i := range h.Lives {
		add(checker.Line{Life: &h.Lives[i]})
	}
	for i := range h.Ops {
		add(checker.Line{Op: &h.Ops[i]})
	}
	for i := range h.Work {
		add(checker.Line{Work: &h.Work[i]})
	}
	for i := range h.Jobs {
		add(checker.Line{Job: &h.Jobs[i]})
	}
	for i := range h.Runs {
		add(checker.Line{Run: &h.Runs[i]})
	}
	file.WriteString(`{"work": {"event": "sta`) // the writer was killed
	read := &checker.History{}
	if err := read.Read(&file); err != nil {
		t.Fatal(err)
	}
	got, want := checker.Judge(read), checker.Judge(goodHistory())
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read back it is judged %+v\nwant %+v", got, want)
	}
	if err := read.Read(bytes.NewBufferString("{]\n")); err == nil {
		t.Error("a line that is no JSON is read without an error")
	}
}
