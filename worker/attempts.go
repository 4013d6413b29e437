package worker

import (
	"context"
	"errors"
	"time"

	"github.com/musterhq/muster/job"
)

// lease is what entitles the agent to run what it runs; all its leases live and die together. Agent.mu guards it.
type lease struct {
	timeout   time.Duration
	renewedAt time.Duration // on Clock.Elapsed: before the last acknowledged heartbeat was sent
	lost      bool
}

// renew counts from the moment before something acknowledged was sent.
func (l *lease) renew(sentAt time.Duration) {
	if sentAt >= l.renewedAt {
		l.renewedAt, l.lost = sentAt, false
	}
}

// assign starts what a stream brought. Assignments that do not belong to the session that is seated are dropped: a Hello
// that was sent meanwhile has omitted them, and they may run elsewhere already.
func (a *Agent) assign(s *session, as []*job.Assignment) {
	now := job.At(a.config.Clock.Now())
	elapsed := a.config.Clock.Elapsed()
	var start []*attempt
	a.mu.Lock()
	if a.seat != s || elapsed-a.lease.renewedAt >= a.lease.timeout {
		a.mu.Unlock()
		a.config.Logger.Debug("assignments of an earlier session dropped", "worker", a.config.Name, "count", len(as))
		return
	}
	returned := 0
	for _, x := range as {
		t, r := a.desk.admit(x, now)
		switch {
		case t != nil:
			start = append(start, t)
			t.out = &attemptOutput{tail: a.tail, run: x.RunID, fence: x.Fence, attempt: x.Attempt}
		case r != nil:
			returned++
		default:
			a.config.Logger.Warn("assignment with an old fence dropped", "worker", a.config.Name, "run_id", x.RunID, "fence", uint64(x.Fence))
		}
	}
	contexts := make([]context.Context, len(start))
	for i, t := range start {
		contexts[i], t.cancel = context.WithCancelCause(a.work)
	}
	a.mu.Unlock()
	for i, t := range start {
		go a.execute(contexts[i], t)
	}
	if returned > 0 {
		a.config.Logger.Warn("assignments given back", "worker", a.config.Name, "count", returned)
		a.toReport()
	}
}

// execute runs one attempt to its end.
func (a *Agent) execute(ctx context.Context, t *attempt) {
	if limit, reason := timeLimit(t, a.config.Clock.Now()); reason != job.NoReason {
		stop := &Stop{Reason: reason, Grace: a.config.StopGrace}
		if limit <= 0 {
			t.cancel(stop)
		} else {
			timer := time.AfterFunc(limit, func() { t.cancel(stop) })
			defer timer.Stop()
		}
	}
	o := a.perform(ctx, t)
	t.cancel(nil)
	o.RunID, o.Fence, o.Attempt, o.Worker = t.RunID, t.Fence, t.Attempt, a.config.Name
	if o.StartedAt == 0 {
		o.StartedAt = t.startedAt
	}
	if o.FinishedAt == 0 {
		o.FinishedAt = job.At(a.config.Clock.Now())
	}
	after := t.out.end()
	a.mu.Lock()
	a.desk.finish(t, o, after)
	idle := len(a.desk.running) == 0
	a.mu.Unlock()
	if idle {
		a.moved()
	}
	a.toReport()
}

// perform calls the executor. Handlers write to the output without a limit of their own.
func (a *Agent) perform(ctx context.Context, t *attempt) job.Outcome {
	// A process that stood still between taking the assignment and this moment comes back when the run may have been given
	// to another worker, and may even have ended there: checkLease has not looked yet.
	if a.leaseOver() {
		return job.Outcome{Kind: job.AttemptReturned, Reason: job.LeaseLost, Error: "the lease ended before the work began"}
	}
	if t.Spec == nil {
		return job.Outcome{Kind: job.AttemptFailed, Reason: job.CannotStart, Permanent: true,
			Error: "the job's document came without an executor that this worker can read"}
	}
	if t.Spec.Handler != nil {
		return a.executor.Execute(ctx, t.Assignment, NewLimitWriter(t.out, MaxOutput))
	}
	return a.executor.Execute(ctx, t.Assignment, t.out)
}

// timeLimit answers what ends first: the attempt's timeout or the run's deadline. NoReason: neither is set.
func timeLimit(t *attempt, now time.Time) (time.Duration, job.Reason) {
	var limit time.Duration
	reason := job.NoReason
	if t.Spec != nil && t.Spec.Timeout > 0 {
		limit, reason = t.Spec.Timeout.Std(), job.TimedOut
	}
	if t.DeadlineAt != 0 {
		if d := t.DeadlineAt.Time().Sub(now); reason == job.NoReason || d < limit {
			limit, reason = d, job.DeadlineExceeded
		}
	}
	return limit, reason
}

// stop cancels one attempt, if it runs.
func (a *Agent) stop(f job.Fence, why *Stop) {
	a.mu.Lock()
	t := a.desk.running[f]
	a.mu.Unlock()
	if t != nil {
		t.cancel(why)
	}
}

// leaseGrace is what work gets when its lease has ended: less than the leader's kill grace, so that killing is over when
// the run may start elsewhere.
const leaseGrace = job.LeaseKillGrace - 3*time.Second

// leaseOver tells whether nothing may begin now.
func (a *Agent) leaseOver() bool {
	now := a.config.Clock.Elapsed()
	a.mu.Lock()
	defer a.mu.Unlock()
	return now-a.lease.renewedAt >= a.lease.timeout
}

// checkLease stops what runs when the lease is over, unless its job lets it finish.
func (a *Agent) checkLease() {
	now := a.config.Clock.Elapsed()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lease.lost || len(a.desk.running) == 0 || now-a.lease.renewedAt < a.lease.timeout {
		return
	}
	a.lease.lost = true
	a.config.Logger.Error("the lease ended: no node acknowledged a heartbeat in time", "worker", a.config.Name,
		"running", len(a.desk.running))
	for _, t := range a.desk.running {
		if t.Spec == nil || t.Spec.OnLeaseLost != job.FinishOnLeaseLost {
			t.cancel(&Stop{Reason: job.LeaseLost, Grace: leaseGrace})
		}
	}
}

// tick looks after the lease and announces attempts that have run for a while.
func (a *Agent) tick(ctx context.Context) {
	ticker := time.NewTicker(announceAfter)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			a.checkLease()
			a.mu.Lock()
			for _, t := range a.desk.running {
				if !t.announced {
					a.desk.announceDue = true
					break
				}
			}
			due := a.desk.announceDue
			a.mu.Unlock()
			if due {
				a.signal()
			}
		}
	}
}

// announceAfter is how long an attempt runs before its start is told: for shorter ones the result tells both.
const announceAfter = 250 * time.Millisecond

// report spools results in batches and queues them for the stream.
func (a *Agent) report(ctx context.Context) {
	for {
		last := false
		select {
		case <-ctx.Done():
			last = true
		case <-a.reports:
		}
		a.mu.Lock()
		batch := a.desk.finished
		a.desk.finished = nil
		a.mu.Unlock()
		if len(batch) == 0 {
			if last {
				return
			}
			continue
		}
		outcomes := make([]job.Outcome, len(batch))
		for i, r := range batch {
			outcomes[i] = r.outcome
		}
		err := a.spool.Add(outcomes...)
		if err != nil {
			a.config.Logger.Warn("results kept in memory only", "worker", a.config.Name, "results", len(batch), "err", err)
		}
		a.mu.Lock()
		a.desk.queue = append(a.desk.queue, batch...)
		a.desk.full = errors.Is(err, ErrSpoolFull)
		a.mu.Unlock()
		a.signal()
	}
}

func (a *Agent) toReport() {
	select {
	case a.reports <- struct{}{}:
	default:
	}
}
