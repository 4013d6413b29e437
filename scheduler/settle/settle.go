// Package settle ends attempts: it checks fences, decides with job.AfterAttempt what follows, has the store record a batch
// of moves in one transaction, and only then ends the leases, queues what goes on, and acknowledges the workers.
//
// Crash points. Before the store's commit: the worker sends its result again to the next leader, from its spool. After
// the commit and before the acknowledgement: the result comes again, finds the run terminal or its fence recorded, and is
// acknowledged. After the commit and before Raft hears that the lease ended: the next leader finds a lease of a terminal
// run and ends it. Every step may be repeated.
package settle

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/musterhq/muster/internal/failpoint"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler/dispatch"
	"github.com/musterhq/muster/scheduler/fleet"
	"github.com/musterhq/muster/scheduler/overlap"
	"github.com/musterhq/muster/scheduler/pace"
	"github.com/musterhq/muster/scheduler/specs"
)

// Store is what the settler asks of the store.
type Store interface {
	Move(ctx context.Context, epoch job.Epoch, moves []job.Move) ([]job.Moved, error)
	Load(ctx context.Context, ids []job.RunID) ([]*job.Run, error)
}

// Queue takes what goes on.
type Queue interface {
	Push(ctx context.Context, epoch job.Epoch, now job.Instant, entries []job.QueueEntry) (left []job.QueueEntry, err error)
}

// Gateways acknowledge.
type Gateways interface {
	Acknowledge(ctx context.Context, acks []job.Ack)
}

const (
	// MaxBatch bounds the outcomes of one transaction, and maxBatchBytes their results: a store that is slow must be through
	// with it in the time that a statement has, or it would be tried again for ever.
	MaxBatch      = 1000
	maxBatchBytes = 4 << 20
	// maxInbox and maxInboxBytes bound what waits; a gateway that brings more waits with it, and so does its worker. What
	// the leader itself concludes never waits: there is one conclusion for each lease.
	maxInbox      = 20_000
	maxInboxBytes = 64 << 20
	// maxResult is the result's limit (D6).
	maxResult = 64 << 10
	// maxError bounds the text of an error.
	maxError = 4 << 10
)

// Settler is one term's. Step is called by one goroutine; Report and Move by any.
type Settler struct {
	Epoch    job.Epoch
	Store    Store
	Queue    Queue
	Gateways Gateways
	Fleet    *fleet.Fleet
	Specs    *specs.Specs
	Overlap  *overlap.Tracker
	Now      func() job.Instant
	Jitter   func() float64
	Pace     pace.Pace
	Logger   *slog.Logger
	Metrics  Metrics
	Wake     func()            // the dispatcher has something new
	Settled  func([]*job.Run)  // told of runs that became terminal; may be nil
	Held     func(job.JobID)   // told of jobs of which runs became held
	Ended    func([]*job.Run)  // told of runs that are terminal, perhaps again, for whatever waits for them; may be nil
	Due      func([]job.JobID) // told of jobs that may be due because of a move (Moved.Due); may be nil
	// Later is told of runs that somebody has to look at again, because the store or the queue took nothing.
	Later func(ids ...job.RunID)

	trouble pace.Trouble

	mu    sync.Mutex
	room  *sync.Cond
	inbox []report
	bytes int // of results and errors in the inbox
	ready chan struct{}
	done  bool
}

// Metrics count what the settler sees. Each may be nil.
type Metrics struct {
	Settled func(job.State, job.Reason)
	Refused func() // results under an old fence
}

type report struct {
	session job.SessionID // "" when the leader itself concludes
	job.Outcome
}

func (r *report) weight() int { return len(r.Result) + len(r.Error) }

// Init must be called before any other method.
func (s *Settler) Init() {
	s.trouble = pace.Trouble{Logger: s.Logger, What: "settling"}
	s.room = sync.NewCond(&s.mu)
	s.ready = make(chan struct{}, 1)
}

// Report takes outcomes in. It blocks while too many wait, and drops them once the term is over: the workers send again.
// What comes from a session is the word of its worker, whatever the outcome says of that.
//
// Results under fences of a newer epoch are not for this leader, which was deposed and does not know it yet: it knows
// nothing of those grants, and would acknowledge what it cannot record.
func (s *Settler) Report(session job.SessionID, outcomes []job.Outcome) {
	outcomes = slices.DeleteFunc(slices.Clone(outcomes), func(o job.Outcome) bool { return o.Fence.Epoch() > s.Epoch })
	if len(outcomes) == 0 {
		return
	}
	if session != "" {
		worker := s.Fleet.WorkerOf(session)
		if worker == "" {
			return // an earlier session of a worker, which says it again on its new one
		}
		for i := range outcomes {
			outcomes[i].Worker = worker
		}
	}
	for i := range outcomes {
		s.Fleet.Release(outcomes[i].RunID, outcomes[i].Fence, outcomes[i].Worker)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for session != "" && (len(s.inbox) >= maxInbox || s.bytes >= maxInboxBytes) && !s.done {
		s.room.Wait()
	}
	if s.done {
		return
	}
	for _, o := range outcomes {
		r := report{session, o}
		s.inbox, s.bytes = append(s.inbox, r), s.bytes+r.weight()
	}
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// Stop lets everybody go who waits in Report.
func (s *Settler) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = true
	s.room.Broadcast()
}

// Settling is the part that settles what was reported. Init must have been called.
func (s *Settler) Settling() *pace.Part {
	return &pace.Part{Name: "settler", Signals: [2]<-chan struct{}{s.ready}, Turn: func(ctx context.Context) (time.Duration, error) {
		if n, err := s.Step(ctx); err != nil || n > 0 {
			return 0, err
		}
		return pace.Forever, nil
	}}
}

// Step settles one batch and tells how many outcomes it took.
func (s *Settler) Step(ctx context.Context) (int, error) {
	s.mu.Lock()
	n, weight := 0, 0
	for n < min(len(s.inbox), MaxBatch) && (n == 0 || weight+s.inbox[n].weight() <= maxBatchBytes) {
		weight += s.inbox[n].weight()
		n++
	}
	batch := make([]report, n)
	copy(batch, s.inbox)
	s.inbox, s.bytes = s.inbox[n:], s.bytes-weight
	if len(s.inbox) == 0 {
		s.inbox = nil
	}
	s.room.Broadcast()
	s.mu.Unlock()
	if n == 0 {
		return 0, nil
	}
	return n, s.settle(ctx, batch)
}

// settling is one outcome on its way through a batch.
type settling struct {
	report
	lease *fleet.Lease
	run   *job.Run
}

func (s *Settler) settle(ctx context.Context, batch []report) error {
	var acks []job.Ack
	ack := func(r *report, refused bool) {
		if refused && s.Metrics.Refused != nil {
			s.Metrics.Refused()
		}
		if r.session != "" {
			acks = append(acks, job.Ack{Session: r.session, RunID: r.RunID, Fence: r.Fence, Refused: refused})
		}
	}
	work, later := s.take(batch, ack)
	held := make([]job.RunID, len(work))
	for i := range work {
		held[i] = work[i].RunID
	}
	moved, err := s.record(ctx, work, ack)
	// The hands are empty before anything is queued: the dispatcher drops what is in somebody's hand.
	s.Fleet.LetGo(held...)
	if len(acks) > 0 { // after an error too: they are of what was refused for good, or recorded before
		s.Gateways.Acknowledge(ctx, acks)
		failpoint.Hit("settle/acknowledged")
	}
	if err != nil {
		return s.giveBack(ctx, append(work, later...), err)
	}
	s.trouble.Over()
	if len(later) > 0 {
		s.putBack(later)
		if len(work) == 0 {
			s.Pace.Sleep(ctx, time.Millisecond)
		}
	}
	return s.after(ctx, moved)
}

// take takes the runs into the settler's hand. What another mover holds this moment, or what is twice in the batch, is
// left for later.
func (s *Settler) take(batch []report, ack func(*report, bool)) (work, later []settling) {
	work = make([]settling, 0, len(batch))
	for i := range batch {
		r := batch[i]
		lease, hand := s.Fleet.TakeHand(r.RunID)
		switch {
		case hand == fleet.Moving:
			later = append(later, settling{report: r})
		case hand == fleet.Reserved:
			ack(&r, true) // a higher fence is being issued (L3)
		default:
			work = append(work, settling{report: r, lease: lease})
		}
	}
	return work, later
}

// record has the store make the moves that follow from the outcomes, and ends their leases.
func (s *Settler) record(ctx context.Context, work []settling, ack func(*report, bool)) ([]job.Moved, error) {
	if err := s.read(ctx, work); err != nil {
		return nil, err
	}
	moves := make([]job.Move, 0, len(work))
	moving := make([]*settling, 0, len(work))
	var orphaned []job.Moved
	now := s.Now()
	for i := range work {
		w := &work[i]
		if w.lease != nil && (w.lease.Fence != w.Fence || w.lease.Worker != w.Worker) {
			ack(&w.report, true) // a higher fence was issued (L3), or this worker never had the run
			continue
		}
		if w.known() {
			if s.Fleet.End(w.RunID, w.Fence) && w.run != nil {
				orphaned = append(orphaned, job.Moved{Run: w.run}) // nobody queued it while the lease stood
			}
			ack(&w.report, w.run != nil && w.run.Fence != w.Fence)
			continue
		}
		m, err := s.decide(ctx, w, now)
		if err != nil {
			return nil, err
		}
		moves, moving = append(moves, m), append(moving, w)
	}
	moved, err := s.move(ctx, moves)
	if err != nil {
		return nil, err
	}
	if len(moving) > 0 {
		failpoint.Hit("settle/moved")
	}
	for i, w := range moving {
		s.Fleet.End(w.RunID, w.Fence)
		ack(&w.report, !moved[i].Applied && moved[i].Run != nil && moved[i].Run.Fence != w.Fence)
	}
	if len(moving) > 0 {
		failpoint.Hit("settle/ended")
	}
	return append(moved, orphaned...), nil
}

// known tells whether the outcome is recorded already, or comes too late to matter. A late success of an attempt that was
// given up is welcome as long as the run is not terminal and no higher fence was issued.
func (w *settling) known() bool {
	r := w.run
	if r == nil || r.State.Terminal() || w.Fence < r.Fence {
		return true
	}
	if w.lease == nil && (w.Fence != r.Fence || w.Worker != r.Worker) {
		return true // nobody was granted this, or somebody else was
	}
	// A row that knows this fence was read after the attempt's end was recorded; a lease may have outlived that in Raft.
	return w.Fence == r.Fence && w.Kind != job.AttemptSucceeded
}

// read loads the rows of runs that were not read at dispatch: those granted under an earlier leader, or without a lease.
func (s *Settler) read(ctx context.Context, work []settling) error {
	var unread []job.RunID
	for i := range work {
		if l := work[i].lease; l != nil && l.Run != nil {
			work[i].run = l.Run
		} else {
			unread = append(unread, work[i].RunID)
		}
	}
	if len(unread) == 0 {
		return nil
	}
	runs, err := s.Store.Load(ctx, unread)
	if err != nil {
		return err
	}
	s.Specs.Prefetch(ctx, s.Pace, runs)
	byID := make(map[job.RunID]*job.Run, len(runs))
	for _, r := range runs {
		if r != nil {
			byID[r.ID] = r
		}
	}
	for i := range work {
		if work[i].run == nil {
			work[i].run = byID[work[i].RunID]
		}
	}
	return nil
}

// giveBack puts outcomes into the inbox again after an error of the store, and says whether the term can go on.
func (s *Settler) giveBack(ctx context.Context, work []settling, err error) error {
	if job.CodeOf(err) == job.Fenced || ctx.Err() != nil {
		return err
	}
	s.putBack(work)
	s.Pace.Sleep(ctx, s.trouble.Failed(err))
	return nil
}

func (s *Settler) putBack(work []settling) {
	s.mu.Lock()
	defer s.mu.Unlock()
	back := make([]report, len(work), len(work)+len(s.inbox))
	for i := range work {
		back[i] = work[i].report
		s.bytes += back[i].weight()
	}
	s.inbox = append(back, s.inbox...)
}

// decide says what follows the attempt.
func (s *Settler) decide(ctx context.Context, w *settling, now job.Instant) (job.Move, error) {
	spec, err := (*job.Document)(nil), error(nil)
	if w.lease != nil && w.lease.Spec != nil {
		spec = w.lease.Spec
	} else if spec, err = s.Specs.Of(ctx, w.run); err != nil {
		if c := job.CodeOf(err); c != job.NotFound && c != job.Internal {
			return job.Move{}, err
		}
		spec = &job.Document{} // the definition is gone: one attempt, as by default
	}
	o := w.Outcome
	sanitise(&o)
	if w.lease != nil {
		o.Attempt, o.Worker = w.lease.Attempt, w.lease.Worker
		if o.StartedAt == 0 {
			o.StartedAt = w.lease.StartedAt
		}
		if why := w.lease.Stopping; (why == job.CancelRequested || why == job.OverlapReplaced) && o.Kind != job.AttemptSucceeded {
			o.Kind, o.Reason = job.AttemptCancelled, why
		}
	}
	return job.AfterAttempt(w.run, job.AttemptPolicy{Retry: spec.Retry, OnWorkerLost: spec.OnWorkerLost}, &o, now, s.Jitter()), nil
}

// sanitise bounds what a worker says, so that no store can choke on it (S12, D5): a result that is not JSON, too large,
// or holds a NUL fails the attempt for good.
func sanitise(o *job.Outcome) {
	o.Error = job.CleanText(o.Error, maxError)
	if len(o.Result) == 0 {
		return
	}
	clean, err := job.ValidatePayload("result", o.Result, maxResult)
	if err != nil {
		o.Kind, o.Reason, o.Permanent, o.Result = job.AttemptFailed, job.InvalidResult, true, nil
		o.Error = job.CleanText(err.Error(), maxError)
		return
	}
	o.Result = clean
}

// move has the store make the moves. Unknown is repeated, and then given back to whoever asked: moves carry values. A batch that fails for good is split until
// the bad one is found, which becomes failed, invalid_result (S12).
func (s *Settler) move(ctx context.Context, moves []job.Move) ([]job.Moved, error) {
	if len(moves) == 0 {
		return nil, nil
	}
	moved, err := s.Store.Move(ctx, s.Epoch, moves)
	for tries := 0; job.CodeOf(err) == job.Unknown && ctx.Err() == nil && tries < 2; tries++ {
		moved, err = s.Store.Move(ctx, s.Epoch, moves)
	}
	switch job.CodeOf(err) {
	case job.Invalid, job.Internal:
	default:
		return moved, err
	}
	if len(moves) > 1 {
		a, err := s.move(ctx, moves[:len(moves)/2])
		if err != nil {
			return nil, err
		}
		b, err := s.move(ctx, moves[len(moves)/2:])
		return append(a, b...), err
	}
	m := moves[0]
	s.Logger.Error("the store refuses a result; the run fails as invalid_result", "run_id", m.ID, "err", err)
	m.State, m.Reason, m.Result, m.Ended = job.Failed, job.InvalidResult, nil, nil
	m.Error, m.FinishedAt, m.ReadyAt, m.QueuedAt = "the store refused the result of this run", s.Now(), 0, 0
	return s.Store.Move(ctx, s.Epoch, []job.Move{m})
}

// after queues what goes on and releases what waited for runs that ended.
func (s *Settler) after(ctx context.Context, moved []job.Moved) error {
	var entries []job.QueueEntry
	var release []job.Move
	var ended, over []*job.Run
	var due []job.JobID
	for _, m := range moved {
		r := m.Run
		if r == nil {
			continue
		}
		due = append(due, m.Due...)
		if r.State.Terminal() {
			over = append(over, r)
		}
		switch {
		case r.State == job.Queued || r.State == job.Scheduled:
			entries = append(entries, dispatch.Entry(r, s.Now()))
		case r.State.Terminal():
			if m.Applied {
				ended = append(ended, r)
				if s.Metrics.Settled != nil {
					s.Metrics.Settled(r.State, r.Reason)
				}
			}
			if next := s.Overlap.Done(r); !next.IsZero() {
				release = append(release, job.Move{ID: next, State: job.Queued, QueuedAt: s.Now(), ReadyAt: s.Now()})
			}
		case r.State == job.Held && s.Held != nil:
			s.Held(r.JobID)
		}
	}
	if len(entries) > 0 {
		if _, err := s.Queue.Push(ctx, s.Epoch, s.Now(), entries); err != nil {
			s.Logger.Debug("queueing retries is left to the reconciler", "count", len(entries), "err", err)
			for i := range entries {
				s.later(entries[i].RunID)
			}
		}
		failpoint.Hit("settle/queued")
	}
	if s.Settled != nil && len(ended) > 0 {
		s.Settled(ended)
	}
	if s.Ended != nil && len(over) > 0 {
		s.Ended(over)
	}
	if s.Due != nil && len(due) > 0 {
		s.Due(due)
	}
	s.Wake()
	if len(release) == 0 {
		return nil
	}
	err := s.Move(ctx, release)
	if err != nil && job.CodeOf(err) != job.Fenced {
		s.Logger.Debug("releasing runs that waited is left to the reconciler", "count", len(release), "err", err)
		for i := range release {
			s.later(release[i].ID)
		}
		return nil
	}
	return err
}

func (s *Settler) later(id job.RunID) {
	if s.Later != nil {
		s.Later(id)
	}
}

// Heard takes in that runs have ended, as somebody read: that they did may have been said to nobody.
func (s *Settler) Heard(ctx context.Context, ended []*job.Run) error {
	moved := make([]job.Moved, len(ended))
	for i, r := range ended {
		moved[i].Run = r
	}
	return s.after(ctx, moved)
}

// Move moves runs that have no lease, each in the hand of the mover; those in another hand are left for later.
func (s *Settler) Move(ctx context.Context, moves []job.Move) error {
	_, err := s.MoveAll(ctx, moves)
	return err
}

// MoveAll is Move that answers, for each, what became of it: the zero Moved of one that was left for later.
func (s *Settler) MoveAll(ctx context.Context, moves []job.Move) ([]job.Moved, error) {
	free := moves[:0:0]
	index := make([]int, 0, len(moves))
	held := make([]job.RunID, 0, len(moves))
	for i, m := range moves {
		lease, hand := s.Fleet.TakeHand(m.ID)
		if hand != fleet.Taken {
			continue
		}
		held = append(held, m.ID)
		if lease == nil {
			free, index = append(free, m), append(index, i)
		}
	}
	moved, err := s.move(ctx, free)
	s.Fleet.LetGo(held...)
	if err != nil {
		return nil, err
	}
	all := make([]job.Moved, len(moves))
	for i := range moved {
		all[index[i]] = moved[i]
	}
	return all, s.after(ctx, moved)
}
