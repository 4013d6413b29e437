package job_test

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/musterhq/muster/job"
)

// life is one run with all that ever happened to it, driven the way a leader drives it: one lease at a time, fences that
// grow, outcomes of live leases, and now and then something old that comes back.
type life struct {
	run     *job.Run
	policy  job.AttemptPolicy
	now     job.Instant
	fence   job.Fence // the highest that was issued
	lease   *job.Grant
	past    []job.Move
	fresh   bool // nothing happened since the last of past: a leader that does not know its fate repeats it
	grants  int
	ends    map[job.OutcomeKind]int
	byFence map[job.Fence]bool // whose end is recorded
}

func newLife(t *rapid.T) *life {
	epoch := job.At(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	return &life{
		run: &job.Run{ID: job.RunID{1}, Namespace: "default", Trigger: job.ByAPI, State: job.Queued, CreatedAt: epoch, QueuedAt: epoch},
		now: epoch,
		policy: job.AttemptPolicy{
			Retry: job.Retry{
				MaxAttempts: rapid.IntRange(0, 5).Draw(t, "max_attempts"),
				Backoff:     rapid.SampledFrom([]job.Backoff{job.ExponentialBackoff, job.ConstantBackoff, ""}).Draw(t, "backoff"),
			},
			OnWorkerLost: rapid.SampledFrom([]job.OnWorkerLost{job.RequeueOnLoss, job.FailOnLoss}).Draw(t, "on_worker_lost"),
		},
		fence: job.MakeFence(1, 0), ends: map[job.OutcomeKind]int{}, byFence: map[job.Fence]bool{},
	}
}

// apply makes a move and checks what holds of every move.
func (l *life) apply(t *rapid.T, m job.Move) bool {
	before := *l.run
	n, ok := m.Apply(l.run)
	if !reflect.DeepEqual(before, *l.run) {
		t.Fatalf("Apply changed the stored run")
	}
	if !ok && !reflect.DeepEqual(n, l.run) {
		t.Fatalf("Apply answered false and another run")
	}
	if before.State.Terminal() && ok {
		t.Fatalf("D4: %v became %v", before.State, n.State)
	}
	if n.Fence < before.Fence {
		t.Fatalf("the fence went from %d down to %d", before.Fence, n.Fence)
	}
	if n.Attempt < before.Attempt || n.Losses < before.Losses || n.Failures < before.Failures {
		t.Fatalf("a counter went down: %+v, then %+v", before, *n)
	}
	if n.State.Terminal() && n.FinishedAt == 0 {
		t.Fatalf("terminal without an end: %+v", *n)
	}
	if !n.State.Terminal() && n.FinishedAt != 0 {
		t.Fatalf("an end without being terminal: %+v", *n)
	}
	// A commit of unknown outcome is repeated: twice is once.
	if twice, _ := m.Apply(n); !reflect.DeepEqual(twice, n) {
		t.Fatalf("applied twice is not applied once:\n%+v\n%+v", *n, *twice)
	}
	if ok {
		l.run, l.fresh = n, false
	}
	return ok
}

// grant opens a lease as the dispatcher does.
func (l *life) grant(t *rapid.T) {
	if l.run.State == job.Scheduled && l.run.CancelAt == 0 {
		l.now = max(l.now, l.run.ReadyAt)
	}
	if l.lease != nil || !l.run.Startable(l.now) {
		return // not startable
	}
	// D3: an attempt after the first has the recorded end of the one before it as its reason.
	if l.grants > 0 && !l.byFence[l.fence] {
		t.Fatalf("D3: a second start although the end of fence %d is not recorded", l.fence)
	}
	l.fence++
	l.grants++
	l.fresh = false
	l.lease = &job.Grant{RunID: l.run.ID, Fence: l.fence, Attempt: l.run.Attempt + 1, Worker: "w", GrantedAt: l.now}
}

// running is what the store learns late of an attempt that runs on.
func (l *life) running(t *rapid.T) {
	if l.lease == nil {
		return // no lease
	}
	m := job.Move{ID: l.run.ID, State: job.Running, Fence: l.lease.Fence, Attempt: l.lease.Attempt, Worker: "w",
		StartedAt: l.now, Losses: l.run.Losses, Failures: l.run.Failures}
	ended := l.run.Fence
	l.apply(t, m)
	if l.run.Fence != ended {
		t.Fatalf("running ended an attempt")
	}
}

func (l *life) end(t *rapid.T) {
	if l.lease == nil {
		return // no lease
	}
	o := &job.Outcome{
		RunID: l.run.ID, Fence: l.lease.Fence, Attempt: l.lease.Attempt, Worker: "w", StartedAt: l.lease.GrantedAt, FinishedAt: l.now,
		Kind: rapid.SampledFrom([]job.OutcomeKind{job.AttemptSucceeded, job.AttemptFailed, job.AttemptFailed,
			job.AttemptLost, job.AttemptReturned, job.AttemptCancelled}).Draw(t, "kind"),
		Permanent: rapid.IntRange(0, 9).Draw(t, "permanent") == 0,
	}
	if o.Kind == job.AttemptSucceeded {
		o.Result = json.RawMessage(`1`)
	}
	if o.Kind == job.AttemptFailed {
		o.Reason = job.ExitCode
	}
	before := *l.run
	m := job.AfterAttempt(l.run, l.policy, o, l.now, rapid.Float64Range(0, 0.999).Draw(t, "jitter"))
	if !l.apply(t, m) {
		t.Fatalf("the end of the live lease was refused: %+v on %+v", m, before)
	}
	l.past = append(l.past, m)
	l.lease, l.fresh = nil, true
	l.ends[o.Kind]++
	l.byFence[o.Fence] = true

	n := l.run
	if n.Fence != o.Fence {
		t.Fatalf("the attempt ended and the run's fence is %d, not %d", n.Fence, o.Fence)
	}
	if (m.Ended != nil) != !m.State.Terminal() {
		t.Fatalf("an attempt is kept as a row of its own exactly when the run goes on: %+v", m)
	}
	if before.CancelAt != 0 && !n.State.Terminal() {
		t.Fatalf("D4, L9: cancelled, and yet %v", n.State)
	}
	if before.CancelAt != 0 && n.State != job.Cancelled && o.Kind != job.AttemptSucceeded {
		t.Fatalf("L9: cancelled, the attempt did not succeed, and the run is %v", n.State)
	}
	if o.Kind == job.AttemptSucceeded && n.State != job.Succeeded {
		t.Fatalf("succeeded, and the run is %v", n.State)
	}
	if o.Kind == job.AttemptLost && l.policy.OnWorkerLost == job.FailOnLoss && !n.State.Terminal() {
		t.Fatalf("D3: on_worker_lost: fail, and the run goes on as %v", n.State)
	}
	if n.State == job.Scheduled && n.ReadyAt < l.now {
		t.Fatalf("a retry planned in the past")
	}
}

func (l *life) cancel(t *rapid.T) {
	if l.run.State.Terminal() || l.run.CancelAt != 0 {
		return // nothing to cancel
	}
	n := *l.run // the store records the intent
	n.CancelAt = l.now
	l.run, l.fresh = &n, false
	if l.lease == nil { // the leader makes it so at once
		l.apply(t, job.Move{ID: n.ID, State: job.Cancelled, Reason: job.CancelRequested, FinishedAt: l.now})
		if l.run.State != job.Cancelled {
			t.Fatalf("L9: cancelled without a lease, and %v", l.run.State)
		}
	}
}

// late is the success of an attempt that was given up before it reported: welcome while no higher fence is out (L3).
func (l *life) late(t *rapid.T) {
	if l.lease != nil || l.run.State.Terminal() || l.run.Fence == 0 {
		return // nothing is late
	}
	o := &job.Outcome{RunID: l.run.ID, Fence: l.run.Fence, Attempt: l.run.Attempt, Worker: "w", Kind: job.AttemptSucceeded, FinishedAt: l.now}
	if !l.apply(t, job.AfterAttempt(l.run, l.policy, o, l.now, 0)) || l.run.State != job.Succeeded {
		t.Fatalf("a late success left the run %v", l.run.State)
	}
}

// again replays a move from the past: it changes nothing.
func (l *life) again(t *rapid.T) {
	if len(l.past) == 0 {
		return // no past
	}
	m := rapid.SampledFrom(l.past).Draw(t, "old")
	if m.Fence == l.run.Fence && !l.fresh {
		return // a leader repeats a move only before it does anything else with the run
	}
	before := *l.run
	n, _ := m.Apply(l.run)
	if !reflect.DeepEqual(before, *n) {
		t.Fatalf("an old move changed the run:\n%+v\n%+v", before, *n)
	}
}

func (l *life) check(t *rapid.T) {
	r := l.run
	limit := max(1, l.policy.Retry.MaxAttempts)
	if l.ends[job.AttemptFailed] > limit || int(r.Failures) > limit {
		t.Fatalf("L5: %d failed attempts with max_attempts %d", l.ends[job.AttemptFailed], limit)
	}
	if l.grants > limit+l.ends[job.AttemptLost]+l.ends[job.AttemptReturned] {
		t.Fatalf("L5: %d attempts, %d allowed, %d lost, %d returned", l.grants, limit, l.ends[job.AttemptLost], l.ends[job.AttemptReturned])
	}
	if int(r.Losses) != l.ends[job.AttemptLost] || r.Losses > job.MaxLosses {
		t.Fatalf("L5: %d losses recorded, %d happened, %d allowed", r.Losses, l.ends[job.AttemptLost], job.MaxLosses)
	}
	if r.CancelAt != 0 && r.Startable(l.now.Add(1000*time.Hour)) {
		t.Fatalf("L9: a cancelled run is startable")
	}
	if r.State.Terminal() && l.lease != nil {
		t.Fatalf("terminal under a lease")
	}
}

func TestLifeOfARunKeepsD3AndD4(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLife(t)
		t.Repeat(map[string]func(*rapid.T){
			"":        l.check,
			"grant":   l.grant,
			"running": l.running,
			"end":     l.end,
			"cancel":  l.cancel,
			"again":   l.again,
			"late":    l.late,
			"wait":    func(t *rapid.T) { l.now += job.Instant(rapid.Int64Range(1, 60_000_000).Draw(t, "µs")) },
		})
	})
}

// D4 without any assumption about who made the move.
func TestD4TerminalNeverChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := &job.Run{State: job.State(rapid.Uint8Range(uint8(job.Succeeded), uint8(job.Skipped)).Draw(t, "state")),
			Fence: job.Fence(rapid.Uint64().Draw(t, "run's fence")), CancelAt: job.Instant(rapid.Int64Range(0, 1).Draw(t, "cancel"))}
		before := *r
		m := job.Move{State: job.State(rapid.Uint8Range(uint8(job.Waiting), uint8(job.Skipped)).Draw(t, "to")),
			Fence: job.Fence(rapid.Uint64().Draw(t, "move's fence")), FinishedAt: 1, Error: "x"}
		if n, ok := m.Apply(r); ok || n != r || !reflect.DeepEqual(*r, before) {
			t.Fatalf("changed %+v into %+v", before, *n)
		}
	})
}

func TestPauseGrowsUpToItsLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := job.Retry{
			Backoff: rapid.SampledFrom([]job.Backoff{job.ExponentialBackoff, job.ConstantBackoff}).Draw(t, "backoff"),
			Initial: job.Duration(rapid.Int64Range(0, int64(job.MaxSpan)).Draw(t, "initial")),
			Max:     job.Duration(rapid.Int64Range(0, int64(job.MaxSpan)).Draw(t, "max")),
		}
		n := rapid.IntRange(1, job.MaxRetryAttempts).Draw(t, "n")
		jitter := rapid.Float64Range(0, 0.999999).Draw(t, "jitter")
		limit := p.Max.Std()
		if limit == 0 {
			limit = 5 * time.Minute
		}
		got, next := p.Pause(n, 0), p.Pause(n+1, 0)
		if got <= 0 || got > limit || next < got {
			t.Fatalf("Pause(%d) = %v, then %v, limit %v", n, got, next, limit)
		}
		if j := p.Pause(n, jitter); j < got || j > got+got/10 {
			t.Fatalf("Pause(%d) with jitter %v = %v, without %v", n, jitter, j, got)
		}
	})
}

func TestAfterAttempt(t *testing.T) {
	const now = job.Instant(1_000_000_000)
	retry3 := job.AttemptPolicy{Retry: job.Retry{MaxAttempts: 3}}
	for _, c := range []struct {
		name    string
		run     job.Run
		policy  job.AttemptPolicy
		outcome job.Outcome
		state   job.State
		reason  job.Reason
		readyAt job.Instant
	}{
		{"success", job.Run{}, retry3, job.Outcome{Kind: job.AttemptSucceeded}, job.Succeeded, job.NoReason, 0},
		{"success after a cancel intent stands", job.Run{CancelAt: 1}, retry3, job.Outcome{Kind: job.AttemptSucceeded}, job.Succeeded, job.NoReason, 0},
		{"failure without a policy", job.Run{}, job.AttemptPolicy{}, job.Outcome{Kind: job.AttemptFailed, Reason: job.ExitCode}, job.Failed, job.ExitCode, 0},
		{"failure with attempts left", job.Run{}, retry3, job.Outcome{Kind: job.AttemptFailed, Reason: job.ExitCode}, job.Scheduled, job.RetryBackoff, now.Add(time.Second)},
		{"second failure waits longer", job.Run{Failures: 1}, retry3, job.Outcome{Kind: job.AttemptFailed}, job.Scheduled, job.RetryBackoff, now.Add(2 * time.Second)},
		{"last failure", job.Run{Failures: 2}, retry3, job.Outcome{Kind: job.AttemptFailed, Reason: job.TimedOut}, job.Failed, job.TimedOut, 0},
		{"permanent failure", job.Run{}, retry3, job.Outcome{Kind: job.AttemptFailed, Reason: job.NotPermitted, Permanent: true}, job.Failed, job.NotPermitted, 0},
		{"failure after a cancel intent", job.Run{CancelAt: 1}, retry3, job.Outcome{Kind: job.AttemptFailed}, job.Cancelled, job.CancelRequested, 0},
		{"a retry after the deadline is none", job.Run{DeadlineAt: now.Add(time.Second)}, retry3, job.Outcome{Kind: job.AttemptFailed}, job.Failed, job.DeadlineExceeded, 0},
		{"first loss", job.Run{}, job.AttemptPolicy{}, job.Outcome{Kind: job.AttemptLost}, job.Queued, job.WorkerLost, now},
		{"third loss", job.Run{Losses: 2}, retry3, job.Outcome{Kind: job.AttemptLost}, job.Failed, job.WorkerLost, 0},
		{"loss with on_worker_lost: fail", job.Run{}, job.AttemptPolicy{OnWorkerLost: job.FailOnLoss}, job.Outcome{Kind: job.AttemptLost}, job.Failed, job.WorkerLost, 0},
		{"loss after a cancel intent", job.Run{CancelAt: 1}, retry3, job.Outcome{Kind: job.AttemptLost}, job.Cancelled, job.CancelRequested, 0},
		{"returned", job.Run{Failures: 2, Losses: 2}, retry3, job.Outcome{Kind: job.AttemptReturned}, job.Queued, job.WorkerStopped, now},
		{"cancel confirmed", job.Run{CancelAt: 1}, retry3, job.Outcome{Kind: job.AttemptCancelled}, job.Cancelled, job.CancelRequested, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := job.AfterAttempt(&c.run, c.policy, &c.outcome, now, 0)
			if m.State != c.state || m.Reason != c.reason || m.ReadyAt != c.readyAt {
				t.Errorf("got %v %v %v, want %v %v %v", m.State, m.Reason, m.ReadyAt, c.state, c.reason, c.readyAt)
			}
		})
	}
}
