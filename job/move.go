package job

import (
	"encoding/json"
	"time"
)

// OutcomeKind is how an attempt ended.
type OutcomeKind uint8

const (
	AttemptSucceeded OutcomeKind = 1
	AttemptFailed    OutcomeKind = 2 // spends an attempt; Outcome.Reason says why
	AttemptCancelled OutcomeKind = 3 // the worker confirms that it stopped the work because it was told to
	AttemptLost      OutcomeKind = 4 // the worker vanished: it may have started, finished, or neither (L5)
	AttemptReturned  OutcomeKind = 5 // given back before or during the work, by a worker that shuts down: spends no attempt
)

// Outcome is what a worker reports of an attempt, or what the leader concludes about one. The cbor numbers are on the
// disks of workers, which keep results until they are acknowledged: never renumbered, never reused.
type Outcome struct {
	RunID      RunID           `cbor:"1,keyasint"`
	Fence      Fence           `cbor:"2,keyasint"`
	Attempt    uint32          `cbor:"3,keyasint,omitempty"`
	Worker     string          `cbor:"4,keyasint,omitempty"`
	Kind       OutcomeKind     `cbor:"5,keyasint"`
	Reason     Reason          `cbor:"6,keyasint,omitempty"`
	Error      string          `cbor:"7,keyasint,omitempty"`
	ExitCode   int32           `cbor:"8,keyasint,omitempty"`
	Result     json.RawMessage `cbor:"9,keyasint,omitempty"`
	StartedAt  Instant         `cbor:"10,keyasint,omitempty"`
	FinishedAt Instant         `cbor:"11,keyasint,omitempty"`
	Permanent  bool            `cbor:"12,keyasint,omitempty"` // a failure that no retry can mend
}

// Move is one step of a run after its birth. Only the leader makes moves (S4). A move carries values, never increments,
// so making it twice is making it once.
type Move struct {
	ID         RunID           `cbor:"1,keyasint"`
	State      State           `cbor:"2,keyasint"`
	Reason     Reason          `cbor:"3,keyasint,omitempty"`
	Fence      Fence           `cbor:"4,keyasint,omitempty"` // of the attempt this move ends; 0 if it ends none
	Attempt    uint32          `cbor:"5,keyasint,omitempty"`
	Losses     uint32          `cbor:"6,keyasint,omitempty"`
	Worker     string          `cbor:"7,keyasint,omitempty"`
	ReadyAt    Instant         `cbor:"8,keyasint,omitempty"`
	QueuedAt   Instant         `cbor:"9,keyasint,omitempty"`
	StartedAt  Instant         `cbor:"10,keyasint,omitempty"`
	FinishedAt Instant         `cbor:"11,keyasint,omitempty"`
	Result     json.RawMessage `cbor:"12,keyasint,omitempty"`
	Error      string          `cbor:"13,keyasint,omitempty"`
	ExitCode   int32           `cbor:"14,keyasint,omitempty"`
	// Ended is how the attempt itself ended, kept as a row of its own when the run goes on after it.
	Ended    *Attempt `cbor:"15,keyasint,omitempty"`
	Failures uint32   `cbor:"16,keyasint,omitempty"`
	// IfFence guards a move that ends no attempt: it was decided from a row on which the last attempt ended was this one.
	IfFence *Fence `cbor:"17,keyasint,omitempty"`
	// IfState, likewise, guards one that was decided from a row in this state: a root may have been opened meanwhile, and then
	// ends with its tasks only.
	IfState State `cbor:"18,keyasint,omitempty"`
}

// Apply makes the move: the new row, or false when the run is past it. It is false for a terminal run (D4), for a move
// that ends an older attempt than one that ended already or says late that an ended one runs (L3), and for one whose
// IfFence or IfState is not the row's. A move to a state from which an attempt could start becomes cancelled when a cancel
// intent is there (L9). Every store makes moves through this function.
func (m *Move) Apply(r *Run) (*Run, bool) {
	if r.State.Terminal() || m.Fence != 0 && m.Fence < r.Fence || m.State == Running && m.Fence <= r.Fence {
		return r, false
	}
	if m.IfFence != nil && *m.IfFence != r.Fence || m.IfState != 0 && m.IfState != r.State {
		return r, false
	}
	n := *r
	n.State, n.Reason = m.State, m.Reason
	if m.Fence != 0 {
		n.Attempt, n.Losses, n.Worker, n.StartedAt = m.Attempt, m.Losses, m.Worker, m.StartedAt
		n.Fence, n.Failures = m.Fence, m.Failures
	}
	if m.State == Running { // written late, and only for readers: the attempt has not ended
		n.Fence = r.Fence
		return &n, true
	}
	n.Error, n.ExitCode, n.Result = m.Error, m.ExitCode, m.Result
	n.FinishedAt = m.FinishedAt
	if m.ReadyAt != 0 {
		n.ReadyAt = m.ReadyAt
	}
	if m.QueuedAt != 0 {
		n.QueuedAt = m.QueuedAt
	}
	if !n.State.Terminal() {
		n.FinishedAt = 0
		if r.CancelAt != 0 {
			n.State, n.FinishedAt = Cancelled, max(m.QueuedAt, m.ReadyAt, m.FinishedAt, r.CancelAt)
		}
	}
	if n.State == Cancelled && r.CancelAt != 0 {
		n.Reason = cmpOr(r.CancelReason, CancelRequested) // the row knows, whoever made the move
	}
	return &n, true
}

// AttemptPolicy is the part of a document that decides what follows an attempt.
type AttemptPolicy struct {
	Retry        Retry
	OnWorkerLost OnWorkerLost
}

// AfterAttempt says what becomes of a run when an attempt of it ends. jitter in [0,1) spreads the backoff by up to a
// tenth; now is the leader's clock. It is pure, so that every path (result, lease end, fail-over) agrees.
func AfterAttempt(r *Run, p AttemptPolicy, o *Outcome, now Instant, jitter float64) Move {
	m := Move{
		ID: r.ID, Fence: o.Fence, Attempt: o.Attempt, Losses: r.Losses, Failures: r.Failures, Worker: o.Worker,
		StartedAt: o.StartedAt, FinishedAt: cmpOr(o.FinishedAt, now), Error: o.Error, ExitCode: o.ExitCode, Reason: o.Reason,
	}
	goOn := func(s State, why Reason, readyAt Instant) {
		m.State, m.Reason, m.ReadyAt, m.QueuedAt = s, why, readyAt, 0
		if s == Queued {
			m.QueuedAt = now
		}
		end := Attempt{RunID: r.ID, Attempt: o.Attempt, Fence: o.Fence, Worker: o.Worker, StartedAt: o.StartedAt,
			FinishedAt: m.FinishedAt, State: Failed, Reason: o.Reason, Error: o.Error, ExitCode: o.ExitCode}
		if o.Kind == AttemptReturned {
			end.State = Cancelled
		}
		m.Ended = &end
	}
	switch o.Kind {
	case AttemptSucceeded:
		m.State, m.Reason, m.Result = Succeeded, NoReason, o.Result
	case AttemptCancelled:
		m.State, m.Reason = Cancelled, cmpOr(o.Reason, CancelRequested)
	case AttemptFailed:
		m.Failures++
		switch {
		case r.CancelAt != 0:
			m.State, m.Reason = Cancelled, CancelRequested
		case o.Permanent || int(m.Failures) >= max(1, p.Retry.MaxAttempts):
			m.State, m.Result = Failed, o.Result
		default:
			readyAt := now.Add(p.Retry.Pause(int(m.Failures), jitter))
			if r.DeadlineAt != 0 && readyAt >= r.DeadlineAt {
				m.State, m.Reason = Failed, DeadlineExceeded
				break
			}
			goOn(Scheduled, RetryBackoff, readyAt)
		}
	case AttemptLost:
		m.Losses, o.Reason = r.Losses+1, cmpOr(o.Reason, WorkerLost)
		switch {
		case r.CancelAt != 0:
			m.State, m.Reason = Cancelled, CancelRequested
		case p.OnWorkerLost == FailOnLoss || m.Losses >= MaxLosses:
			m.State, m.Reason = Failed, WorkerLost
		default:
			goOn(Queued, WorkerLost, now)
		}
	case AttemptReturned:
		// Its number is used up, but it counts neither as a loss nor against max_attempts.
		if r.CancelAt != 0 {
			m.State, m.Reason = Cancelled, CancelRequested
		} else {
			goOn(Queued, WorkerStopped, now)
		}
	}
	if m.State.Terminal() {
		m.ReadyAt, m.QueuedAt = 0, 0
	}
	return m
}

// Pause is how long to wait after the n-th failed attempt (n from 1).
func (p Retry) Pause(n int, jitter float64) time.Duration {
	initial, limit := p.Initial.Std(), p.Max.Std()
	if initial <= 0 {
		initial = time.Second
	}
	if limit <= 0 {
		limit = 5 * time.Minute
	}
	d := initial
	if p.Backoff != ConstantBackoff {
		for i := 1; i < n && d < limit; i++ {
			d *= 2
		}
	}
	d = min(d, limit)
	return d + time.Duration(jitter*float64(d)/10)
}

func cmpOr[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}
