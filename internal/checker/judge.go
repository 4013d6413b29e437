package checker

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/musterhq/muster/job"
)

// Violation is one broken promise.
type Violation struct {
	Rule  Rule
	About string // a run's id, a job's name with a tick, a key
	Text  string
}

func (v Violation) String() string { return fmt.Sprintf("%s: %s: %s", v.Rule, v.About, v.Text) }

// Rule names what was broken: the promise, and how.
type Rule string

const (
	Lost          Rule = "D1 lost"            // accepted, and not there
	Unfinished    Rule = "D1 unfinished"      // there, and not ended although all was drained
	RefusedThere  Rule = "D1 refused, there"  // refused, and there all the same
	InventedRun   Rule = "D1 invented"        // there, and nobody asked for it
	DoubledRun    Rule = "D1 doubled"         // listed twice
	WrongAnswer   Rule = "D1 wrong answer"    // a submission was answered with another run
	Denied        Rule = "D1 denied"          // accepted, and a node said afterwards that it does not exist
	Diverged      Rule = "D1 diverged"        // two replicas differ at one place in the log
	WrongHome     Rule = "D1 wrong home"      // accepted, or kept, elsewhere than on the cluster's own store
	AcceptedAway  Rule = "D1 accepted, away"  // accepted between two moments in which its store answered nobody
	KeySplit      Rule = "D1 key split"       // one key, two runs
	KeyShared     Rule = "D1 key shared"      // one key, two bodies, both accepted
	TickMissing   Rule = "D2 missing"         // due, and not decided
	TickDoubled   Rule = "D2 doubled"         // decided twice
	TickInvented  Rule = "D2 invented"        // decided, and never due
	TickVersion   Rule = "D2 wrong version"   // decided by a version that did not own it
	TickFrom      Rule = "D2 from"            // a version came into effect outside of the request that made it
	TickNoRun     Rule = "D2 no run"          // decided to run, and its run is not there
	TickWrongRun  Rule = "D2 wrong run"       // its run is not the one that derives from it
	TickEarly     Rule = "D2 early"           // its run started before its time
	TickGivenUp   Rule = "D2 given up"        // not run, by a job that wants every tick to run
	RunNoTick     Rule = "D2 run, no tick"    // a run of a tick that was not decided to run
	FenceFell     Rule = "D3 fence"           // a later start without a higher fence
	AttemptFell   Rule = "D3 attempt"         // a later start without a higher attempt number
	Unrecorded    Rule = "D3 unrecorded"      // an attempt started, and the run does not know it under this fence
	Unexplained   Rule = "D3 unexplained"     // a second start, and no loss or failure of the first is recorded
	TwoAtOnce     Rule = "D3 two at once"     // a start while the attempt before was alive
	AtMostOnce    Rule = "D3 at most once"    // on_worker_lost: fail, and started again after a loss
	TooOften      Rule = "D3 too often"       // more failed attempts than max_attempts
	NoWork        Rule = "D3 no work"         // succeeded, and no command ended with 0
	StrangeWork   Rule = "D3 strange work"    // a command of a run that is not there
	OrphanAlive   Rule = "D3 orphan"          // work of an earlier life was alive when a later life started work
	FenceShared   Rule = "D3 fence shared"    // one fence for two attempts
	TwoLeaders    Rule = "D3 two leaders"     // one epoch, two leaders
	StrayEpoch    Rule = "D3 stray epoch"     // a fence of an epoch in which nobody led
	OldEpoch      Rule = "D3 old epoch"       // a worker that knew of a leader took work from an earlier one
	LossInvented  Rule = "D3 loss invented"   // repeated after a loss of its worker, to which nothing had happened
	Outlived      Rule = "D3 outlived"        // work of a worker that was paused outlived its lease by far
	NotExercised  Rule = "D3 not exercised"   // somebody was paused for long, and nothing was ever refused
	NotFinal      Rule = "D4 not final"       // terminal, and later something else
	StartAfterEnd Rule = "D4 start after end" // a start after the run had been seen ended
	CancelIgnored Rule = "D4 cancel ignored"  // a start well after a cancel was accepted
	IllegalMove   Rule = "D4 illegal move"    // one node told two states of which the second cannot follow the first
	WrongAttempts Rule = "D4 attempts"        // the recorded attempts of a run cannot have been
	BadAccepted   Rule = "D5 accepted"        // bad input was accepted
	BadAnswer     Rule = "D5 bad answer"      // bad input was refused without a 4xx that names the field
	AwayAnswer    Rule = "D6 away answer"     // its store was away, and a submission was not refused as documented
	AwaySlow      Rule = "D6 away, slow"      // ... or not soon

	TaskEarly      Rule = "T1 early"              // a task was decided or started before all before it had ended
	TaskMissing    Rule = "T1 missing"            // a root ended without a cancel, and a task of it has no run
	TaskTwice      Rule = "T1 twice"              // two runs of one task or item
	WrongDecision  Rule = "T2 wrong decision"     // run_if says something else
	SkippedStarted Rule = "T2 skipped, started"   // work of a run that never was a worker's to do
	WrongItems     Rule = "T4 items"              // the items of a for_each do not fit, or its end does not fit theirs
	TooParallel    Rule = "T4 too parallel"       // more items at work than max_parallel
	RootDisagrees  Rule = "T5 root disagrees"     // a root's end does not fit its tasks'
	RootEarly      Rule = "T5 root early"         // a root ended before a task of it
	WrongReuse     Rule = "T8 reuse"              // a retry took over what it should not, or did again what it should not
	WrongChild     Rule = "T9 child"              // a run_job does not fit the run that it made
	ConsumedTwice  Rule = "edges, consumed twice" // two runs of a job were born of one end of its upstream
	WrongUpstream  Rule = "edges, wrong upstream" // a run was born of something that does not satisfy its job's edges
	EndLost        Rule = "edges, end lost"       // ends that satisfied an edge are neither consumed nor pending
	EndInvented    Rule = "edges, end invented"   // more ends are consumed and pending than there were
	FiredBeside    Rule = "edges, fired beside"   // a run was born of dependencies beside a live one of its job
	NotFired       Rule = "edges, not fired"      // all edges of a job are satisfied, no run of it is live, and none was born
)

// CancelInFlight is how long after an accepted cancel a start may still happen: an assignment that was under way (L9
// stops it). It is generous, for machines that are busy.
const CancelInFlight = Moment(5 * time.Second)

// Late is how long after it should have a process on a busy machine may still act: stop work whose lease has ended, or
// start a command that it was told to start.
const Late = Moment(5 * time.Second)

// Noticed is how long a store may answer nothing until every node knows that it is away; one that refuses connections
// is known to be away at once.
const Noticed = Moment(5 * time.Second)

// AtOnce is what at once means to a client of a busy machine.
const AtOnce = Moment(time.Second)

// Apart is how far the time of a cluster may be from the clock of the machine on which all its nodes are: their clocks are
// brought together over a network, and offsets below this one are not followed (L8).
const Apart = 20 * time.Millisecond

// skew is how far moments of the cluster's time may be from each other's truth in this trial.
func (j *judge) skew() time.Duration { return max(Apart, j.h.Apart) }

// Report is what Judge found.
type Report struct {
	Violations []Violation

	Accepted, Unknown, Refused int // submissions
	Cancels                    int // accepted
	Keys                       int // used more than once
	Runs                       int
	Due                        int // ticks
	Decided                    map[job.Disposition]int
	Starts                     int
	AfterLoss, AfterFailure    int // second and later starts, by what is recorded of the attempt before
	Cut                        int // starts that ended with their life
	Overlaps                   int // starts beside an attempt whose worker was paused
	Leads                      int
	LateWorkers, LateLeaders   int // refusals
	Replicas                   int // whose state was compared
	Bad                        int // bad submissions
	Away                       int // submissions asked and answered while the store was away
	AwaySlowest                Moment

	Graphs              int // root runs of jobs with tasks
	Tasks, Items        int // runs of tasks, and of items
	Skipped, Reused     int // of them
	Fired               int // runs born of dependencies
	Consumed, Coalesced int // ends of upstreams, by edge
	Pending             int
}

// Judge judges a history. The violations come in the order of the rules' promises, and of what they are about.
func Judge(h *History) *Report {
	j := &judge{h: h, report: Report{Decided: map[job.Disposition]int{}}, runs: map[job.RunID]*Run{}, work: map[job.RunID][]Work{},
		below: map[job.RunID][]job.RunID{}}
	j.inline = j.inlineSpecs()
	for i := range h.Runs {
		r := &h.Runs[i]
		if j.runs[r.Run.ID] != nil {
			j.broken(DoubledRun, r.Run.ID, "it is listed more than once")
		}
		j.runs[r.Run.ID] = r
	}
	j.report.Runs = len(j.runs)
	for id, r := range j.runs {
		if above := aboveOf(&r.Run); above != (job.RunID{}) {
			j.below[above] = append(j.below[above], id)
		}
	}
	for _, w := range h.Work {
		if w.Event == Start || w.Event == End {
			j.work[w.Run] = append(j.work[w.Run], w)
		}
	}
	for _, ws := range j.work {
		slices.SortStableFunc(ws, func(a, b Work) int { return cmp.Compare(a.At, b.At) })
	}
	j.submissions()
	j.keys()
	j.homes()
	j.away()
	for i := range h.Jobs {
		j.ticks(&h.Jobs[i])
	}
	j.tickRuns()
	j.attempts()
	j.graphs()
	for i := range h.Jobs {
		j.edges(&h.Jobs[i])
	}
	j.orphans()
	j.final()
	j.transitions()
	j.leaders()
	j.replicas()
	slices.SortStableFunc(j.report.Violations, func(a, b Violation) int {
		return cmp.Or(cmp.Compare(a.Rule[:2], b.Rule[:2]), cmp.Compare(a.About, b.About))
	})
	return &j.report
}

type judge struct {
	h      *History
	report Report
	runs   map[job.RunID]*Run
	work   map[job.RunID][]Work // starts and ends, in order
	// documents by job and version, filled by ticks, and of runs that brought their own.
	specs  map[specKey]*job.Document
	inline map[job.RunID]*job.Document
	byJob  map[string][]job.RunID    // root runs
	below  map[job.RunID][]job.RunID // the task runs of a root, and the children of a task run
}

type specKey struct {
	job     string
	version uint64
}

func (j *judge) broken(rule Rule, about any, format string, args ...any) {
	j.report.Violations = append(j.report.Violations, Violation{rule, fmt.Sprint(about), fmt.Sprintf(format, args...)})
}
