package cluster

import (
	"context"
	"fmt"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

// Proposer puts commands into the log: a Node, or whatever forwards to the one that leads. See Node.Propose for what its
// errors promise.
type Proposer interface {
	Propose(ctx context.Context, commands ...fsm.Command) ([]fsm.Result, error)
}

// Control is the control state that Raft owns whatever the store is (design section 1): what the leader decides, and
// what people set. Reads are local and as new as this node's log. Writes answer *job.Error: Fenced under a newer epoch,
// Unavailable when nothing happened, Unknown when it may have; every write is safe to repeat.
type Control struct {
	proposer Proposer
	state    *fsm.State
}

// NewControl makes one over this node's state.
func NewControl(p Proposer, s *fsm.State) *Control { return &Control{p, s} }

// Control is the control state through this node.
func (n *Node) Control() *Control { return NewControl(n, n.state) }

// RaiseEpoch sets the epoch to max(the current one, atLeast) + 1 and answers it (L1).
func (c *Control) RaiseEpoch(ctx context.Context, atLeast job.Epoch) (job.Epoch, error) {
	return propose[job.Epoch](ctx, c.proposer, &fsm.RaiseEpoch{AtLeast: atLeast})
}

// commandBytes is where a batch of the leader is cut into several entries, which is rare: several thousand grants or
// ticks fit.
const commandBytes = 400 << 10

// Grant ends leases and opens others (L2), in this order: a run may have one among either. Grants whose run has a live
// lease already are answered by index and not opened. A batch that is too large for one entry becomes several; then an
// error may leave the first ones made.
func (c *Control) Grant(ctx context.Context, epoch job.Epoch, grants []job.Grant, ended []job.EndedGrant) (refused []int, err error) {
	const most = 2000 // of either: grants carry names of bounded length
	for ; len(ended) > most; ended = ended[most:] {
		if _, err := propose[[]int](ctx, c.proposer, &fsm.Grant{Epoch: epoch, Ended: ended[:most]}); err != nil {
			return nil, err
		}
	}
	for base := 0; ; ended = nil {
		cmd := &fsm.Grant{Epoch: epoch, Grants: grants[:min(len(grants), most)], Ended: ended}
		for cmd.Size() > commandBytes && len(cmd.Grants) > 1 {
			cmd.Grants = cmd.Grants[:len(cmd.Grants)/2]
		}
		indexes, err := propose[[]int](ctx, c.proposer, cmd)
		if err != nil {
			return refused, err
		}
		for _, i := range indexes {
			refused = append(refused, base+i)
		}
		n := len(cmd.Grants)
		if base, grants = base+n, grants[n:]; len(grants) == 0 {
			return refused, nil
		}
	}
}

// Decide records ticks' dispositions, advances marks, and forgets decisions that the store has meanwhile (L6). It answers
// the decisions that are recorded and wait for the store. A batch that is too large for one entry becomes several, cut
// between jobs; then an error may leave the first ones made.
func (c *Control) Decide(ctx context.Context, epoch job.Epoch, ticks []job.Tick, marks []job.MarkMove, stored []job.TickKey) (recorded []job.Tick, err error) {
	whole := &fsm.Decide{Epoch: epoch, Ticks: ticks, Marks: marks, Stored: stored}
	if whole.Size() <= commandBytes {
		return propose[[]job.Tick](ctx, c.proposer, whole)
	}
	for _, part := range cutDecide(whole) {
		answered, err := propose[[]job.Tick](ctx, c.proposer, part)
		recorded = append(recorded, answered...)
		if err != nil {
			return recorded, err
		}
	}
	return recorded, nil
}

// cutDecide cuts a decision between jobs: a tick goes with the move of its job's mark.
func cutDecide(whole *fsm.Decide) []*fsm.Decide {
	of := make(map[job.JobID][]job.Tick, len(whole.Marks))
	for _, t := range whole.Ticks {
		of[t.JobID] = append(of[t.JobID], t)
	}
	part := &fsm.Decide{Epoch: whole.Epoch}
	parts := []*fsm.Decide{part}
	room := func() {
		if part.Size() > commandBytes {
			part = &fsm.Decide{Epoch: whole.Epoch}
			parts = append(parts, part)
		}
	}
	for i := 0; i < len(whole.Stored); i += 2000 {
		room()
		part.Stored = append(part.Stored, whole.Stored[i:min(i+2000, len(whole.Stored))]...)
	}
	for _, m := range whole.Marks {
		room()
		part.Marks = append(part.Marks, m)
		part.Ticks = append(part.Ticks, of[m.JobID]...)
		delete(of, m.JobID)
	}
	for _, ticks := range of { // of no mark: the state machine says what is wrong with them
		part.Ticks = append(part.Ticks, ticks...)
	}
	return parts
}

// PutSchedule makes a version of a job tick from now on, and answers its mark: From is what its version row must say
// (L7). Of m it takes all but From and At. A version below the one that ticks is Conflict.
func (c *Control) PutSchedule(ctx context.Context, m job.Mark) (job.Mark, error) {
	return propose[job.Mark](ctx, c.proposer, &fsm.PutSchedule{
		JobID: m.JobID, Namespace: m.Namespace, Job: m.Job, Version: m.Version, Schedule: m.Schedule,
		Overlap: m.Overlap, StartDeadline: m.StartDeadline,
	})
}

// DropSchedule makes a job tick no longer, unless a version above the given one ticks meanwhile; 0 means whichever.
func (c *Control) DropSchedule(ctx context.Context, id job.JobID, version uint64) error {
	return proposeOnly(ctx, c.proposer, &fsm.DropSchedule{JobID: id, Version: version})
}

// PauseJob makes a job's ticks paused and holds its queued runs (Q4).
func (c *Control) PauseJob(ctx context.Context, id job.JobID) error {
	return proposeOnly(ctx, c.proposer, &fsm.PauseJob{JobID: id, Paused: true})
}

// ResumeJob ends that.
func (c *Control) ResumeJob(ctx context.Context, id job.JobID) error {
	return proposeOnly(ctx, c.proposer, &fsm.PauseJob{JobID: id})
}

// PauseNamespace pauses or resumes all jobs of a namespace (Q4).
func (c *Control) PauseNamespace(ctx context.Context, namespace string, paused bool) error {
	return proposeOnly(ctx, c.proposer, &fsm.PauseNamespace{Namespace: namespace, Paused: paused})
}

// Maintenance starts or ends maintenance, in which nothing new starts.
func (c *Control) Maintenance(ctx context.Context, on bool) error {
	return proposeOnly(ctx, c.proposer, &fsm.Maintain{On: on})
}

// FlagWorker records whether a worker is ready, cordoned or draining.
func (c *Control) FlagWorker(ctx context.Context, name string, state job.WorkerState) error {
	return proposeOnly(ctx, c.proposer, &fsm.FlagWorker{Name: name, State: state})
}

// SetStore decides what the cluster's store is, fsm.StoreEmbedded or fsm.StorePostgres (S11). The first one wins; another
// one than that is Conflict, reason store_setting.
func (c *Control) SetStore(ctx context.Context, kind string) error {
	return proposeOnly(ctx, c.proposer, &fsm.SetStore{Store: kind})
}

// Store answers what the cluster's store is, or "" while nobody has set it.
func (c *Control) Store() string { return c.state.Store() }

// Grants answers the live leases.
func (c *Control) Grants() []job.Grant { return c.state.Grants() }

// Marks answers how far every schedule has ticked.
func (c *Control) Marks() []job.Mark { return c.state.Marks() }

// Mark answers how far one job's schedule has ticked.
func (c *Control) Mark(id job.JobID) (job.Mark, bool) { return c.state.Mark(id) }

// Unstored answers the decided ticks that no store has acknowledged.
func (c *Control) Unstored() []job.Tick { return c.state.Unstored() }

// TakeScheduleChanges answers the schedules put, dropped, paused or resumed since the last call.
func (c *Control) TakeScheduleChanges() []job.JobID { return c.state.TakeScheduleChanges() }

// ScheduleChanges is signalled, with a buffer of one, when TakeScheduleChanges has something.
func (c *Control) ScheduleChanges() <-chan struct{} { return c.state.ScheduleChanges() }

// Paused answers why a job may not start anything now: NoReason, JobPaused, NamespacePaused or Maintenance.
func (c *Control) Paused(id job.JobID, namespace string) job.Reason {
	return c.state.Paused(id, namespace)
}

// WorkerFlag answers whether a worker is ready, cordoned or draining.
func (c *Control) WorkerFlag(name string) job.WorkerState { return c.state.WorkerFlag(name) }

// propose proposes one command and answers its value.
func propose[T any](ctx context.Context, p Proposer, cmd fsm.Command) (T, error) {
	var value T
	results, err := p.Propose(ctx, cmd)
	if err != nil {
		return value, err
	}
	if err := results[0].Err; err != nil {
		return value, err
	}
	value, ok := results[0].Value.(T)
	if !ok && results[0].Value != nil {
		return value, &job.Error{Code: job.Internal, Message: "an internal error occurred",
			Cause: fmt.Errorf("command of kind %d answered %T", cmd.Kind(), results[0].Value)}
	}
	return value, nil
}

func proposeOnly(ctx context.Context, p Proposer, cmd fsm.Command) error {
	results, err := p.Propose(ctx, cmd)
	if err != nil {
		return err
	}
	return results[0].Err
}
