package checker_test

import (
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

// The runs of the good cluster.
var (
	steady  = runID(30) // one attempt
	orphan  = runID(31) // its worker w2 was killed, w1 repeated it
	overdue = runID(32) // its worker w1 was paused beyond the lease, w2 repeated it
	beside  = runID(33) // the same, and the first attempt was alive meanwhile
	badRun  = runID(34) // what was submitted under this id was bad
)

// Of the good cluster: the pids of its processes.
const (
	pidN1, pidN2, pidN3 = 11, 12, 13
	pidW1, pidW2, pidW3 = 21, 22, 23 // w3 is the second life of w2
)

// goodCluster keeps every promise: three nodes and two workers. Node n1 leads and is killed at 3 s, n2 leads and is paused
// from 20 to 40 s, n3 leads. Worker w2 is killed at 5 s and restarted; w1 is paused from 100 to 150 s.
func goodCluster() *checker.History {
	sec := func(s int) checker.Moment { return moment(1000 * s) }
	h := &checker.History{
		Lives: []checker.Life{
			{Role: checker.Node, Name: "n1", Pid: pidN1, Start: 1, Kill: sec(3), Dead: sec(3) + 1},
			{Role: checker.Node, Name: "n2", Pid: pidN2, Start: 1, Stop: sec(300)},
			{Role: checker.Node, Name: "n3", Pid: pidN3, Start: 1, Stop: sec(300)},
			{Role: checker.Worker, Name: "w1", Pid: pidW1, Start: 1, Stop: sec(300)},
			{Role: checker.Worker, Name: "w2", Pid: pidW2, Start: 1, Kill: sec(5), Dead: sec(5) + 1},
			{Role: checker.Worker, Name: "w2", Pid: pidW3, Start: sec(6), Stop: sec(300)},
		},
		Faults: []checker.Fault{
			{Kind: checker.Pause, Role: checker.Node, Name: "n2", From: sec(20), To: sec(40), Led: true},
			{Kind: checker.Pause, Role: checker.Worker, Name: "w1", From: sec(100), To: sec(150)},
		},
		Leads:    []checker.Lead{{Name: "n1", Epoch: 1}, {Name: "n2", Epoch: 2}, {Name: "n3", Epoch: 3}},
		Refusals: []checker.Refusal{{Kind: checker.LateLeader, N: 2}, {Kind: checker.LateWorker, N: 1}},
		Digests:  []checker.Digest{{Name: "n2", Index: 90, Hash: "ab"}, {Name: "n3", Index: 90, Hash: "ab"}, {Name: "n2", Index: 80, Hash: "cd"}},
	}
	run := func(id job.RunID, attempts ...job.Attempt) {
		r := job.Run{ID: id, Trigger: job.ByAPI, State: job.Succeeded, Attempt: uint32(len(attempts)), Losses: uint32(len(attempts) - 1), FinishedAt: second(200)}
		for i := range attempts {
			attempts[i].RunID, attempts[i].Attempt = id, uint32(i+1)
			attempts[i].State, attempts[i].Reason = job.Failed, job.WorkerLost
		}
		attempts[len(attempts)-1].State, attempts[len(attempts)-1].Reason = job.Succeeded, job.NoReason
		h.Runs = append(h.Runs, checker.Run{Run: r, Attempts: attempts})
		h.Ops = append(h.Ops,
			checker.Op{Kind: checker.Submit, ID: id, Outcome: checker.OK, Node: "n3", Status: 201, Asked: moment(900), Done: moment(910), Answer: &job.Run{ID: id, State: job.Queued}, Body: body(`{"spec": {}}`)},
			// n2 is behind: an old answer, not one that goes back.
			checker.Op{Kind: checker.Read, ID: id, Outcome: checker.OK, Node: "n2", Status: 200, Asked: moment(920), Done: moment(921), Answer: &job.Run{ID: id, State: job.Waiting}},
			checker.Op{Kind: checker.Read, ID: id, Outcome: checker.OK, Node: "n2", Status: 200, Asked: moment(1920), Done: moment(1921), Answer: &job.Run{ID: id, State: job.Running, Attempt: 1}},
			checker.Op{Kind: checker.Read, ID: id, Outcome: checker.OK, Node: "n2", Status: 200, Asked: sec(290), Done: sec(290), Answer: &r})
	}
	did := func(id job.RunID, n int, f job.Fence, pid int, from, to checker.Moment) {
		w := checker.Work{Event: checker.Start, Run: id, Attempt: uint32(n), Fence: f, Life: pid, Pid: 1000 + n, At: from,
			ScheduledAt: epoch.Time().Format(time.RFC3339Nano), Wall: epoch.Time().UnixNano() + 5e6}
		h.Work = append(h.Work, w)
		if to != 0 {
			w.Event, w.At = checker.End, to
			h.Work = append(h.Work, w)
		}
	}
	run(steady, job.Attempt{Fence: fence(1, 1)})
	did(steady, 1, fence(1, 1), pidW1, sec(1), sec(2))
	run(orphan, job.Attempt{Fence: fence(1, 2)}, job.Attempt{Fence: fence(2, 1)})
	did(orphan, 1, fence(1, 2), pidW2, sec(2), 0)
	did(orphan, 2, fence(2, 1), pidW1, sec(6), sec(7))
	run(overdue, job.Attempt{Fence: fence(3, 1)}, job.Attempt{Fence: fence(3, 3)})
	did(overdue, 1, fence(3, 1), pidW1, sec(99), sec(105)) // its word comes late
	did(overdue, 2, fence(3, 3), pidW3, sec(140), sec(141))
	run(beside, job.Attempt{Fence: fence(3, 2)}, job.Attempt{Fence: fence(3, 4)})
	did(beside, 1, fence(3, 2), pidW1, sec(99), sec(151)) // stopped as soon as its worker ran again
	did(beside, 2, fence(3, 4), pidW3, sec(140), sec(145))
	h.Ops = append(h.Ops, checker.Op{Kind: checker.Submit, ID: badRun, Outcome: checker.Refused, Bad: true, Node: "n1", Status: 400, Field: "spec", Asked: 1, Done: 2, Body: body(`{"spec": 7}`)})
	return h
}

func TestAGoodClusterBreaksNothing(t *testing.T) {
	r := checker.Judge(goodCluster())
	for _, v := range r.Violations {
		t.Error(v)
	}
	want := checker.Report{Accepted: 4, Refused: 1, Bad: 1, Runs: 4, Decided: map[job.Disposition]int{}, Starts: 7, AfterLoss: 3, Cut: 1,
		Overlaps: 1, Leads: 3, LateWorkers: 1, LateLeaders: 2, Replicas: 2}
	if r.Violations = nil; !reflect.DeepEqual(*r, want) {
		t.Errorf("counted %+v\nwant    %+v", *r, want)
	}
}

// TestPlantedClusterBugs breaks each promise that takes more than one process to break.
func TestPlantedClusterBugs(t *testing.T) {
	start := func(h *checker.History, id job.RunID, n uint32) *checker.Work { return workAt(h, id, checker.Start, n) }
	read := func(h *checker.History, id job.RunID, node string, at checker.Moment, r job.Run) {
		r.ID = id
		h.Ops = append(h.Ops, checker.Op{Kind: checker.Read, ID: id, Outcome: checker.OK, Node: node, Status: 200, Asked: at, Done: at, Answer: &r})
	}
	for _, c := range []struct {
		name  string
		plant func(*checker.History)
		want  []checker.Rule
	}{
		{"two nodes lead in one epoch", func(h *checker.History) {
			h.Leads[2].Epoch = 2
			h.Leads = append(h.Leads, checker.Lead{Name: "n3", Epoch: 3})
		},
			[]checker.Rule{checker.TwoLeaders}},
		{"one node leads twice in one epoch", func(h *checker.History) { h.Leads = append(h.Leads, h.Leads[2]) }, []checker.Rule{checker.TwoLeaders}},
		{"work of an epoch in which nobody led", func(h *checker.History) { h.Leads = h.Leads[:2] }, []checker.Rule{checker.StrayEpoch}},
		{"a zombie leader's work is taken", func(h *checker.History) {
			refence(h, overdue, 1, fence(1, 9)) // w1 has had work of epoch 2 for long
		}, []checker.Rule{checker.OldEpoch}},
		{"two runs get one fence", func(h *checker.History) { refence(h, overdue, 1, fence(3, 2)) }, []checker.Rule{checker.FenceShared}},
		{"a run is started twice because a leader died", func(h *checker.History) {
			h.Lives[4].Kill, h.Lives[4].Dead = 0, 0
			workAt(h, orphan, checker.Start, 1).At = moment(1000)
		}, []checker.Rule{checker.LossInvented}},
		{"a run is started twice because its gateway was paused", func(h *checker.History) { h.Faults[1].Name, h.Faults[1].Role = "n3", checker.Node },
			[]checker.Rule{checker.LossInvented, checker.TwoAtOnce}},
		{"a run is started twice because another worker was paused", func(h *checker.History) { h.Faults[1].Name = "w2" },
			[]checker.Rule{checker.LossInvented, checker.TwoAtOnce}},
		{"a second start beside work of a worker that was cut off and has to kill it", func(h *checker.History) { h.Faults[1].Kind = checker.Cut },
			[]checker.Rule{checker.TwoAtOnce}},
		{"a worker that was paused lets its work go on", func(h *checker.History) { workAt(h, beside, checker.End, 1).At = moment(190_000) },
			[]checker.Rule{checker.Outlived}},
		{"no result was refused after a worker's pause", func(h *checker.History) { h.Refusals = h.Refusals[:1] }, []checker.Rule{checker.NotExercised}},
		{"nothing was refused after a leader's pause", func(h *checker.History) { h.Refusals = h.Refusals[1:] }, []checker.Rule{checker.NotExercised}},
		{"two replicas differ", func(h *checker.History) { h.Digests[1].Hash = "ac" }, []checker.Rule{checker.Diverged}},
		{"a node denies a run that another one accepted", func(h *checker.History) {
			h.Ops = append(h.Ops, checker.Op{Kind: checker.Read, ID: steady, Outcome: checker.Refused, Node: "n1", Status: 404, Asked: moment(911), Done: moment(912)})
		}, []checker.Rule{checker.Denied}},
		{"a node tells an older state after a newer one", func(h *checker.History) {
			read(h, orphan, "n3", moment(2000), job.Run{State: job.Running, Attempt: 1})
			read(h, orphan, "n3", moment(2100), job.Run{State: job.Waiting})
		}, []checker.Rule{checker.IllegalMove}},
		{"a node forgets a loss", func(h *checker.History) {
			read(h, orphan, "n3", moment(6000), job.Run{State: job.Running, Attempt: 2, Losses: 1})
			read(h, orphan, "n3", moment(6100), job.Run{State: job.Running, Attempt: 2})
		}, []checker.Rule{checker.IllegalMove}},
		{"a node revives a run that it told ended", func(h *checker.History) { read(h, steady, "n2", moment(291_000), job.Run{State: job.Queued}) },
			[]checker.Rule{checker.IllegalMove}},
		{"the attempts are recorded out of order", func(h *checker.History) { a := find(h, orphan).Attempts; a[0], a[1] = a[1], a[0] },
			[]checker.Rule{checker.WrongAttempts}},
		{"an attempt of a run that has ended runs", func(h *checker.History) { find(h, orphan).Attempts[1].State = job.Running },
			[]checker.Rule{checker.WrongAttempts}},
		{"a tick's run starts early", func(h *checker.History) { start(h, steady, 1).Wall -= int64(time.Second) }, []checker.Rule{checker.TickEarly}},
		{"bad input is accepted", func(h *checker.History) {
			submit(h, steady).Bad = true
		}, []checker.Rule{checker.BadAccepted}},
		{"bad input is an error of the server", func(h *checker.History) { submit(h, badRun).Status = 500 }, []checker.Rule{checker.BadAnswer}},
		{"a refusal names no field", func(h *checker.History) { submit(h, badRun).Field = "" }, []checker.Rule{checker.BadAnswer}},
		{"a tick is missed by a job that wants all", func(h *checker.History) {
			g := goodHistory()
			for _, v := range g.Jobs[0].Versions {
				v.Spec.Schedule.CatchUp.Policy = job.CatchUpAll
			}
			g.Jobs[0].Ticks[5].Disposition = job.TickMissed
			*h = *g
		}, []checker.Rule{checker.TickGivenUp}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := goodCluster()
			c.plant(h)
			expect(t, h, c.want...)
		})
	}
}

var history = flag.String("history", "", "judge the history saved in this directory: all its *.jsonl")

// TestReplay judges a saved history again.
func TestReplay(t *testing.T) {
	if *history == "" {
		t.Skip("no -history DIR")
	}
	files, err := filepath.Glob(filepath.Join(*history, "*.jsonl"))
	if err != nil || len(files) == 0 {
		t.Fatalf("there is no *.jsonl in %s (%v)", *history, err)
	}
	h := &checker.History{}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		err = h.Read(f)
		f.Close()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	r := checker.Judge(h)
	for _, v := range r.Violations {
		t.Error(v)
	}
	r.Violations = nil
	t.Logf("%+v", *r)
}
