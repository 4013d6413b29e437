package checker_test

import (
	"bytes"
	"os"
	"regexp"
	"testing"

	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

// TestPlantedBugs breaks each promise in the good history and expects to be told so, and nothing else.
func TestPlantedBugs(t *testing.T) {
	for _, c := range []struct {
		name  string
		plant func(*checker.History)
		want  []checker.Rule
	}{
		{"an accepted run is gone", func(h *checker.History) {
			drop(h, plainRun)
			forget(h, plainRun)
		}, []checker.Rule{checker.Lost}},
		{"an accepted run is gone after it ran", func(h *checker.History) { drop(h, plainRun) },
			[]checker.Rule{checker.Lost, checker.StrangeWork}},
		{"a run that was seen ended is gone", func(h *checker.History) {
			h.Ops = append(h.Ops, checker.Op{Kind: checker.Read, ID: unknownGone, Outcome: checker.OK, Answer: &job.Run{ID: unknownGone, State: job.Failed}})
		}, []checker.Rule{checker.Lost}},
		{"a run never ends", func(h *checker.History) {
			drop(h, plainRun)
			forget(h, plainRun)
			h.Runs = append(h.Runs, checker.Run{Run: job.Run{ID: plainRun, Trigger: job.ByAPI, State: job.Queued}})
		}, []checker.Rule{checker.Unfinished}},
		{"a refused submission made a run", func(h *checker.History) {
			h.Runs = append(h.Runs, checker.Run{Run: job.Run{ID: refusedRun, Trigger: job.ByAPI, State: job.Failed}})
		}, []checker.Rule{checker.RefusedThere}},
		{"a run that nobody asked for", func(h *checker.History) {
			h.Runs = append(h.Runs, checker.Run{Run: job.Run{ID: runID(99), Trigger: job.ByAPI, State: job.Failed}})
		}, []checker.Rule{checker.InventedRun}},
		{"a run is listed twice", func(h *checker.History) { h.Runs = append(h.Runs, *find(h, plainRun)) },
			[]checker.Rule{checker.DoubledRun}},
		{"a submission is answered with another run", func(h *checker.History) {
			submit(h, plainRun).Answer = &job.Run{ID: lostOnce, State: job.Queued}
			submit(h, plainRun).Outcome = checker.OK
		}, []checker.Rule{checker.WrongAnswer}},
		{"a key made two runs, which answers tell", func(h *checker.History) {
			submit(h, keyedOther).Answer = &job.Run{ID: plainRun, State: job.Queued}
		}, []checker.Rule{checker.KeySplit}},
		{"a key made two runs, which the store tells", func(h *checker.History) {
			find(h, keyedRun).Run.Key = "key"
			find(h, unknownThere).Run.Key = "key"
		}, []checker.Rule{checker.KeySplit}},
		{"a key took another body", func(h *checker.History) { submit(h, keyedOther).Body = body(`{"spec": {}, "payload": 2}`) },
			[]checker.Rule{checker.KeyShared}},

		{"a tick is missing in the middle", func(h *checker.History) { cutTick(h, 2); drop(h, tickID(2)); forget(h, tickID(2)) },
			[]checker.Rule{checker.TickMissing}},
		{"the last tick is missing", func(h *checker.History) { cutTick(h, 7); drop(h, tickID(7)); forget(h, tickID(7)) },
			[]checker.Rule{checker.TickMissing}},
		{"a tick is decided twice", func(h *checker.History) { h.Jobs[0].Ticks = append(h.Jobs[0].Ticks, h.Jobs[0].Ticks[0]) },
			[]checker.Rule{checker.TickDoubled}},
		{"a tick is decided in a range too", func(h *checker.History) {
			r := &h.Jobs[0].Ticks[5]
			r.ScheduledAt, r.Count = second(3), 3
		}, []checker.Rule{checker.TickDoubled}},
		{"a tick that was never due", func(h *checker.History) {
			h.Jobs[0].Ticks = append(h.Jobs[0].Ticks, checker.Tick{Tick: job.Tick{Version: 1, ScheduledAt: second(2) + 5, Disposition: job.TickSkipped}})
		}, []checker.Rule{checker.TickInvented}},
		{"a tick from before the job", func(h *checker.History) {
			h.Jobs[0].Ticks = append(h.Jobs[0].Ticks, checker.Tick{Tick: job.Tick{Version: 1, ScheduledAt: second(0), Disposition: job.TickMissed}})
		}, []checker.Rule{checker.TickInvented}},
		{"a range counts too few", func(h *checker.History) { h.Jobs[0].Ticks[5].Count = 1 }, []checker.Rule{checker.TickInvented}},
		{"a tick of the old version is decided by the new one", func(h *checker.History) {
			h.Jobs[0].Ticks[3].Version = 2
			find(h, tickID(6)).Run.JobVersion = 2
		}, []checker.Rule{checker.TickVersion}},
		{"a version begins later than it was in effect", func(h *checker.History) { h.Jobs[0].Versions[0].From = second(6) + 9 },
			[]checker.Rule{checker.TickFrom}},
		{"a version begins before the one before it", func(h *checker.History) {
			h.Jobs[0].Versions[1].From, h.Jobs[0].Versions[0].From = second(6)+1, epoch+1
			h.Ops[0].Before = epoch
		}, []checker.Rule{checker.TickFrom, checker.TickVersion}},
		{"a tick's run was not born", func(h *checker.History) { drop(h, tickID(2)); forget(h, tickID(2)) }, []checker.Rule{checker.TickNoRun}},
		{"a tick names a strange run", func(h *checker.History) { h.Jobs[0].Ticks[0].RunID = plainRun }, []checker.Rule{checker.TickWrongRun}},
		{"a tick's run is of another time", func(h *checker.History) { find(h, tickID(1)).Run.ScheduledAt = second(2) }, []checker.Rule{checker.TickWrongRun}},
		{"a tick that does not run names a run", func(h *checker.History) { h.Jobs[0].Ticks[5].RunID = tickID(4) }, []checker.Rule{checker.TickWrongRun}},
		{"a tick ran twice, under another id", func(h *checker.History) {
			h.Runs = append(h.Runs, checker.Run{Run: job.Run{ID: runID(98), Job: "a", Trigger: job.ByTick, ScheduledAt: second(1), State: job.Failed}})
		}, []checker.Rule{checker.RunNoTick}},
		{"a coalesced tick ran", func(h *checker.History) {
			h.Runs = append(h.Runs, checker.Run{Run: job.Run{ID: tickID(4), Job: "a", Trigger: job.ByTick, ScheduledAt: second(4), State: job.Failed}})
		}, []checker.Rule{checker.RunNoTick}},

		{"the fence goes down", func(h *checker.History) { refence(h, lostOnce, 2, fence(1, 39)) }, []checker.Rule{checker.FenceFell, checker.WrongAttempts}},
		{"the fence stays", func(h *checker.History) { refence(h, retriedRun, 2, fence(1, 50)) },
			[]checker.Rule{checker.FenceFell, checker.FenceShared, checker.WrongAttempts}},
		{"an attempt number is used twice", func(h *checker.History) {
			h.Work = append(h.Work, line(checker.Start, plainRun, 1, fence(1, 20), 100, 2030))
		}, []checker.Rule{checker.FenceFell, checker.AttemptFell, checker.Unexplained}},
		{"an attempt is not recorded", func(h *checker.History) { find(h, lostOnce).Attempts[0].Attempt = 9 },
			[]checker.Rule{checker.Unrecorded, checker.Unexplained, checker.WrongAttempts}},
		{"an attempt is recorded under another fence", func(h *checker.History) { find(h, onceRun).Attempts[0].Fence++ }, []checker.Rule{checker.Unrecorded}},
		{"a second start without a loss", func(h *checker.History) {
			find(h, lostOnce).Attempts[0] = job.Attempt{Attempt: 1, Fence: fence(1, 40), State: job.Succeeded}
		}, []checker.Rule{checker.Unexplained, checker.WrongAttempts}},
		{"a second start after the first was cancelled", func(h *checker.History) {
			find(h, lostOnce).Attempts[0] = job.Attempt{Attempt: 1, Fence: fence(1, 40), State: job.Cancelled, Reason: job.CancelRequested}
		}, []checker.Rule{checker.Unexplained}},
		{"a second start beside the first", func(h *checker.History) { workAt(h, retriedRun, checker.Start, 2).At = moment(2150) }, []checker.Rule{checker.TwoAtOnce}},
		{"a second start before the first was killed", func(h *checker.History) { workAt(h, lostOnce, checker.Start, 2).At = moment(3490) },
			[]checker.Rule{checker.TwoAtOnce, checker.LossInvented}},
		{"at most once, twice", func(h *checker.History) {
			h.Work = append(h.Work, line(checker.Start, onceRun, 2, fence(2, 9), 200, 4000))
			attempt(h, onceRun, job.Attempt{Attempt: 2, Fence: fence(2, 9), State: job.Failed, Reason: job.WorkerLost})
		}, []checker.Rule{checker.AtMostOnce}},
		{"more failures than max_attempts", func(h *checker.History) { submit(h, retriedRun).Body = body(`{"spec": {}}`); failBoth(h) },
			[]checker.Rule{checker.TooOften}},
		{"a success without work", func(h *checker.History) { forget(h, plainRun) }, []checker.Rule{checker.NoWork}},
		{"a success although the command failed", func(h *checker.History) { workAt(h, plainRun, checker.End, 1).Code = 1 }, []checker.Rule{checker.NoWork}},
		{"a success although the command was cut off", func(h *checker.History) { workAt(h, lostOnce, checker.End, 2).Attempt = 1 }, []checker.Rule{checker.NoWork}},
		{"work of a run that is not there", func(h *checker.History) {
			h.Work = append(h.Work, line(checker.Start, unknownGone, 1, fence(1, 70), 100, 3000))
		}, []checker.Rule{checker.StrangeWork}},
		{"a command saw earlier work alive", func(h *checker.History) {
			h.Work = append(h.Work, checker.Work{Event: checker.Stray, Run: lostOnce, Attempt: 2, Fence: fence(2, 1), Life: 200, Alive: 100, At: moment(4001)})
		}, []checker.Rule{checker.OrphanAlive}},
		{"earlier work writes on", func(h *checker.History) {
			h.Work = append(h.Work, line(checker.Beat, lostOnce, 1, fence(1, 40), 100, 4050))
		}, []checker.Rule{checker.OrphanAlive}},

		{"a terminal state changes", func(h *checker.History) {
			h.Ops = append(h.Ops, checker.Op{Kind: checker.Read, ID: onceRun, Outcome: checker.OK, Asked: moment(8000), Done: moment(8001),
				Answer: &job.Run{ID: onceRun, State: job.Cancelled, Reason: job.CancelRequested, Attempt: 1, FinishedAt: second(7)}})
		}, []checker.Rule{checker.NotFinal}},
		{"a terminal reason changes", func(h *checker.History) { find(h, onceRun).Run.Reason = job.TimedOut }, []checker.Rule{checker.NotFinal}},
		{"an end is moved", func(h *checker.History) { find(h, onceRun).Run.FinishedAt++ }, []checker.Rule{checker.NotFinal}},
		{"a start after the run was seen ended", func(h *checker.History) {
			h.Ops = append(h.Ops, checker.Op{Kind: checker.Read, ID: lostOnce, Outcome: checker.OK, Asked: moment(3940), Done: moment(3950),
				Answer: &find(h, lostOnce).Run})
		}, []checker.Rule{checker.StartAfterEnd}},
		{"a start long after a cancel", func(h *checker.History) {
			w := workAt(h, cancelledRun, checker.Start, 1)
			w.Life, w.At = 200, moment(7400)
		}, []checker.Rule{checker.CancelIgnored}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := goodHistory()
			c.plant(h)
			expect(t, h, c.want...)
		})
	}
}

// expect judges a history and wants to be told of these rules, and of nothing else.
func expect(t *testing.T, h *checker.History, want ...checker.Rule) {
	t.Helper()
	got := map[checker.Rule]bool{}
	report := checker.Judge(h)
	for _, v := range report.Violations {
		got[v.Rule] = true
	}
	for _, rule := range want {
		if !got[rule] {
			t.Errorf("%q is not found", rule)
		}
		delete(got, rule)
	}
	if len(got) > 0 {
		t.Errorf("found besides: %v", report.Violations)
	}
}

// submit is the accepted submission with an id.
func submit(h *checker.History, id job.RunID) *checker.Op {
	for i := range h.Ops {
		if op := &h.Ops[i]; op.Kind == checker.Submit && op.ID == id {
			return op
		}
	}
	panic("no submission of " + id.String())
}

func cutTick(h *checker.History, n int) {
	ticks := h.Jobs[0].Ticks[:0]
	for _, t := range h.Jobs[0].Ticks {
		if t.ScheduledAt != second(n) {
			ticks = append(ticks, t)
		}
	}
	h.Jobs[0].Ticks = ticks
}

func workAt(h *checker.History, id job.RunID, e checker.Event, attempt uint32) *checker.Work {
	for i := range h.Work {
		if w := &h.Work[i]; w.Run == id && w.Event == e && w.Attempt == attempt {
			return w
		}
	}
	panic("no such work")
}

// refence gives an attempt another fence, in what its command wrote and in what is recorded.
func refence(h *checker.History, id job.RunID, attempt uint32, f job.Fence) {
	for i := range h.Work {
		if w := &h.Work[i]; w.Run == id && w.Attempt == attempt {
			w.Fence = f
		}
	}
	r := find(h, id)
	for i := range r.Attempts {
		if r.Attempts[i].Attempt == attempt {
			r.Attempts[i].Fence = f
		}
	}
}

// failBoth lets both attempts of the retried run fail.
func failBoth(h *checker.History) {
	workAt(h, retriedRun, checker.End, 2).Code = 7
	drop(h, retriedRun)
	h.Runs = append(h.Runs, checker.Run{Run: job.Run{ID: retriedRun, Trigger: job.ByAPI, State: job.Failed, Reason: job.ExitCode, Attempt: 2}, Attempts: []job.Attempt{
		{Attempt: 1, Fence: fence(1, 50), State: job.Failed, Reason: job.ExitCode}, {Attempt: 2, Fence: fence(1, 51), State: job.Failed, Reason: job.ExitCode}}})
}

// TestEveryRuleIsBroken keeps the tables complete: a rule that nothing breaks may never have worked.
func TestEveryRuleIsBroken(t *testing.T) {
	judge, err := os.ReadFile("judge.go")
	if err != nil {
		t.Fatal(err)
	}
	var planted []byte
	for _, name := range []string{"planted_test.go", "planted_cluster_test.go", "planted_stores_test.go", "planted_graphs_test.go"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		planted = append(planted, b...)
	}
	rules := regexp.MustCompile(`(?m)^\t(\w+) +Rule = `).FindAllSubmatch(judge, -1)
	if len(rules) < 20 {
		t.Fatalf("only %d rules found in judge.go", len(rules))
	}
	for _, m := range rules {
		if !bytes.Contains(planted, append([]byte("checker."), m[1]...)) {
			t.Errorf("no planted bug breaks %s", m[1])
		}
	}
}
