package checker_test

import (
	"testing"

	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

// Two are submitted while the store of storedHistory is away, one of them before anybody had noticed.
var awayRun, earlyRun = runID(40), runID(42)

// storedHistory is the good history of a cluster whose store is Postgres, which is away from 10 s to 20 s.
func storedHistory() *checker.History {
	h := goodHistory()
	h.Store = job.HomePostgres
	for i := range h.Runs {
		h.Runs[i].Run.Home = job.HomePostgres
	}
	for i := range h.Ops {
		if a := h.Ops[i].Answer; a != nil {
			a.Home = job.HomePostgres
		}
	}
	h.Faults = append(h.Faults, checker.Fault{Kind: checker.Pause, Role: checker.Store, Name: checker.Postgres, From: moment(10_000), To: moment(20_000)},
		checker.Fault{Kind: checker.Forgot, Role: checker.Store, Name: checker.Redis, From: moment(9_000), To: moment(9_000)})
	h.Ops = append(h.Ops, checker.Op{Kind: checker.Submit, ID: awayRun, Node: "n1", Outcome: checker.Refused, Status: 503, Reason: "store_unavailable",
		Asked: moment(16_000), Done: moment(16_010), Body: body(`{"spec": {}}`)})
	for _, early := range []checker.Op{
		{ID: runID(41), Outcome: checker.Unknown, Node: "n1", Asked: moment(9_900), Done: moment(12_000)}, // under way
		{ID: earlyRun, Outcome: checker.Unknown, Node: "n1", Asked: moment(10_100), Done: moment(13_000)}, // nobody had noticed
		{ID: runID(43), Outcome: checker.Unknown, Asked: moment(16_000), Done: moment(19_000)},            // an SDK's patience
		{ID: runID(44), Outcome: checker.Refused, Node: "n1", Bad: true, Status: 422, Field: "spec", Asked: moment(16_000), Done: moment(16_001)},
	} {
		early.Kind, early.Body = checker.Submit, body(`{"spec": {}}`)
		h.Ops = append(h.Ops, early)
	}
	return h
}

func TestAGoodHistoryOfStoresBreaksNothing(t *testing.T) {
	r := checker.Judge(storedHistory())
	for _, v := range r.Violations {
		t.Error(v)
	}
	if r.Away != 3 || r.AwaySlowest != moment(10) {
		t.Errorf("%d submissions while the store was away, the slowest of %d", r.Away, r.AwaySlowest)
	}
}

// TestPlantedBugsOfStores breaks each promise about stores, and expects to be told so and nothing else.
func TestPlantedBugsOfStores(t *testing.T) {
	for _, c := range []struct {
		name  string
		plant func(*checker.History)
		want  []checker.Rule
	}{
		{"accepted on another rung", func(h *checker.History) { submit(h, plainRun).Answer.Home = job.HomeQuorum }, []checker.Rule{checker.WrongHome}},
		{"kept on another rung", func(h *checker.History) { find(h, tickID(1)).Run.Home = job.HomeQuorum }, []checker.Rule{checker.WrongHome}},
		{"accepted while the store is away", func(h *checker.History) {
			op := submit(h, awayRun)
			op.Outcome, op.Status, op.Answer = checker.OK, 201, &job.Run{ID: awayRun, State: job.Queued, Home: job.HomePostgres}
			h.Runs = append(h.Runs, checker.Run{Run: job.Run{ID: awayRun, Trigger: job.ByAPI, State: job.Failed, Home: job.HomePostgres}})
		}, []checker.Rule{checker.AcceptedAway}},
		{"refused late", func(h *checker.History) { submit(h, awayRun).Done = moment(18_000) }, []checker.Rule{checker.AwaySlow}},
		{"of a store that refuses connections, refused late", func(h *checker.History) {
			h.Faults[len(h.Faults)-2].Kind = checker.Away
			for i := range h.Ops {
				if h.Ops[i].ID == earlyRun {
					h.Ops[i].Asked, h.Ops[i].Done = moment(11_200), moment(13_000)
				}
			}
		}, []checker.Rule{checker.AwaySlow, checker.AwayAnswer}},
		{"refused for another reason", func(h *checker.History) { submit(h, awayRun).Reason = "no_leader" }, []checker.Rule{checker.AwayAnswer}},
		{"refused with another status", func(h *checker.History) { submit(h, awayRun).Status = 404 }, []checker.Rule{checker.AwayAnswer}},
		{"not answered at all", func(h *checker.History) {
			op := submit(h, awayRun)
			op.Outcome, op.Status, op.Done = checker.Unknown, 0, moment(22_000)
		}, []checker.Rule{checker.AwaySlow, checker.AwayAnswer}},
		{"refused, and there when the store is back", func(h *checker.History) {
			h.Runs = append(h.Runs, checker.Run{Run: job.Run{ID: awayRun, Trigger: job.ByAPI, State: job.Failed, Home: job.HomePostgres}})
		}, []checker.Rule{checker.RefusedThere}},
		{"denied while the store is away", func(h *checker.History) {
			h.Ops = append(h.Ops, checker.Op{Kind: checker.Read, ID: plainRun, Node: "n1", Status: 404, Outcome: checker.Refused, Asked: moment(16_000), Done: moment(16_001)})
		}, []checker.Rule{checker.Denied}},
		{"a queue that forgot repeats work", func(h *checker.History) {
			h.Work = append(h.Work, line(checker.Start, plainRun, 2, fence(2, 80), 200, 9_100))
			attempt(h, plainRun, job.Attempt{Attempt: 2, Fence: fence(2, 80), State: job.Succeeded})
		}, []checker.Rule{checker.Unexplained, checker.StartAfterEnd, checker.WrongAttempts}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := storedHistory()
			c.plant(h)
			expect(t, h, c.want...)
		})
	}
}
