package resolve

import (
	"context"
	"slices"
	"time"

	"github.com/musterhq/muster/internal/failpoint"
	"github.com/musterhq/muster/job"
)

// advance has what follows from what was noted stored: births, of each root a share, so that none waits for one that is
// wide, and the ends of roots of which no birth is left.
func (r *Resolver) advance(ctx context.Context) error {
	roots := slices.DeleteFunc(r.touched, func(o *root) bool { return r.roots[o.row.ID] != o })
	r.touched = nil
	now := r.Now()
	for _, o := range roots {
		if o.touched, o.kept = false, false; o.broken {
			continue
		}
		s := o.g.Next(now)
		o.births, o.ends = append(o.births, s.Births...), append(o.ends, s.Moves...)
		if s.End != nil {
			s.End.Fence = r.Fence()
			o.ends = append(o.ends, *s.End)
		}
	}
	if err := r.release(ctx, roots); err != nil {
		for _, o := range roots { // nothing is lost: what was not stored is answered again
			r.again(o)
			r.touch(o)
		}
		return err
	}
	return r.end(ctx, roots)
}

// again has what follows from a root decided anew, but for what is stored.
func (r *Resolver) again(o *root) {
	if !o.broken {
		o.births, o.ends = nil, nil
		o.g.Again()
	}
}

// share takes births of roots, of each in its turn as many as of the others, up to what is released at once.
func share(roots []*root) (births []*job.Run, of []*root) {
	wide := slices.DeleteFunc(slices.Clone(roots), func(o *root) bool { return len(o.births) == 0 })
	size := 0
	for len(wide) > 0 {
		each := max(1, (maxBirths-len(births))/len(wide))
		for _, o := range wide {
			for n := 0; n < each && len(o.births) > 0; n++ {
				x := o.births[0]
				size += 256 + len(x.Payload) + len(x.Result)
				if len(births) == maxBirths || len(births) > 0 && size > maxBytes {
					return births, of
				}
				births, of, o.births = append(births, x), append(of, o), o.births[1:]
			}
		}
		wide = slices.DeleteFunc(wide, func(o *root) bool { return len(o.births) == 0 })
	}
	return births, of
}

// release stores births, notes them, and queues what can start. Roots that have more are touched, those first that got the
// least.
func (r *Resolver) release(ctx context.Context, roots []*root) error {
	births, of := share(roots)
	if len(births) == 0 {
		return nil
	}
	stored, err := r.store(ctx, births)
	if err != nil {
		return err
	}
	failpoint.Hit("resolve/released")
	var startable []*job.Run
	served := map[*root]bool{}
	for i, x := range stored {
		if x == nil {
			continue
		}
		of[i].g.Note(x)
		served[of[i]] = true
		if x.State == job.Queued {
			startable = append(startable, x)
		}
	}
	r.Born(startable)
	for _, o := range roots {
		if len(o.births) > 0 && !served[o] {
			r.touch(o)
		}
	}
	for _, o := range roots {
		if served[o] { // what was born ended may let more follow, too
			r.touch(o)
		}
	}
	return nil
}

// store has the store take births, however often it takes, and answers the rows as they are.
func (r *Resolver) store(ctx context.Context, births []*job.Run) ([]*job.Run, error) {
	var receipts []job.Receipt
	err := r.persist(ctx, func() (err error) {
		receipts, err = r.Store.Release(ctx, r.Epoch, births)
		return err
	})
	if len(births) == 1 && err == nil {
		err = receipts[0].Err
	}
	switch {
	case err == nil:
	case job.CodeOf(err) == job.Fenced || ctx.Err() != nil:
		return nil, err
	case len(births) > 1: // one of them (S12)
		a, err := r.store(ctx, births[:len(births)/2])
		if err != nil {
			return nil, err
		}
		b, err := r.store(ctx, births[len(births)/2:])
		return append(a, b...), err
	case births[0].Reason != job.InvalidResult:
		r.Logger.Error("the store refuses a task's run; it fails as invalid_result", "run_id", births[0].ID, "err", err)
		return r.store(ctx, []*job.Run{unstorable(births[0], r.Now())})
	default:
		r.Logger.Error("the store refuses even to note that a task's run failed; its run waits", "run_id", births[0].ID, "err", err)
		return []*job.Run{nil}, nil
	}
	rows := make([]*job.Run, len(births))
	for i := range receipts {
		if receipts[i].Err != nil {
			one, err := r.store(ctx, births[i:i+1])
			if err != nil {
				return nil, err
			}
			rows[i] = one[0]
			continue
		}
		rows[i] = receipts[i].Run
		if rows[i] != nil && (rows[i].RootID != births[i].RootID || rows[i].Task != births[i].Task) {
			// A client chose it. Whoever looks again finds the same, so that it is no row changes nothing (T1).
			r.Logger.Error("the id of a task's run belongs to another run; the task fails", "run_id", births[i].ID, "root_id", births[i].RootID)
			n := unstorable(births[i], r.Now())
			n.Reason, n.Error = job.CannotStart, "the id of this task's run belongs to another run"
			rows[i] = n
		}
	}
	return rows, nil
}

func unstorable(x *job.Run, now job.Instant) *job.Run {
	n := *x
	n.State, n.Reason, n.FinishedAt, n.QueuedAt = job.Failed, job.InvalidResult, now, 0
	n.Payload, n.Result, n.Labels, n.Items = nil, nil, nil, 0
	n.Error = "the store refused this run"
	return &n
}

// end ends tasks with for_each, and roots, of which no birth is left.
func (r *Resolver) end(ctx context.Context, roots []*root) error {
	var moves []job.Move
	var of []*root
	for _, o := range roots {
		if len(o.births) > 0 {
			continue
		}
		for _, m := range o.ends {
			moves, of = append(moves, m), append(of, o)
		}
		o.ends = nil
	}
	if len(moves) == 0 {
		return nil
	}
	moved, err := r.move(ctx, moves)
	if err == nil {
		failpoint.Hit("resolve/ended")
	}
	for i, o := range of {
		if err != nil || moved[i].Run == nil { // in somebody's hand
			o.ends, o.kept = append(o.ends, moves[i]), true
			r.touch(o)
		}
	}
	return err
}

// move makes moves; what was moved the settler tells (Ended). The zero Moved is for those in somebody's hand.
func (r *Resolver) move(ctx context.Context, moves []job.Move) (moved []job.Moved, err error) {
	err = r.persist(ctx, func() error {
		moved, err = r.Mover.MoveAll(ctx, moves)
		return err
	})
	return moved, err
}

// persist repeats what the store may do yet.
func (r *Resolver) persist(ctx context.Context, do func() error) error {
	for {
		err := do()
		switch job.CodeOf(err) {
		case job.Unavailable, job.Exhausted, job.Unknown:
		default:
			return err
		}
		if r.Pace.Sleep(ctx, r.failed(err)); ctx.Err() != nil {
			return err
		}
	}
}

func (r *Resolver) failed(err error) (pause time.Duration) {
	r.troubles.Lock()
	defer r.troubles.Unlock()
	return r.trouble.Failed(err)
}
