package checker

import (
	"cmp"
	"slices"

	"github.com/musterhq/muster/job"
)

// lossExplained tells whether something had happened, before moment to, to the worker under which a command started: it
// was killed, stopped, paused or cut off. A node that dies is no reason to lose a worker.
func (j *judge) lossExplained(start *Work, to Moment) bool {
	l := j.lifeOf(start)
	if l == nil {
		return false
	}
	if l.Kill != 0 && l.Kill <= to || l.Stop != 0 && l.Stop <= to {
		return true
	}
	return slices.ContainsFunc(j.h.Faults, func(f Fault) bool {
		return f.Role != Node && f.Name == l.Name && f.From <= to && f.To >= start.At
	})
}

// paused tells whether the worker under which a command started was paused some time between the start and to, or had
// been so briefly before that it cannot have stopped the command yet.
func (j *judge) paused(start *Work, to Moment) bool {
	l := j.lifeOf(start)
	return l != nil && slices.ContainsFunc(j.h.Faults, func(f Fault) bool {
		return f.Kind == Pause && f.Role != Node && f.Name == l.Name && f.From <= to && f.To+Late >= to && f.To >= start.At
	})
}

// leaders judges that there is one effective leader: who led when, whose work was taken, and that whoever was too late
// was refused.
func (j *judge) leaders() {
	led := map[job.Epoch]string{}
	for _, l := range j.h.Leads {
		j.report.Leads++
		if other, twice := led[l.Epoch]; twice {
			j.broken(TwoLeaders, l.Name, "it led in epoch %d, and so did %s", l.Epoch, other)
		}
		led[l.Epoch] = l.Name
	}
	type attempt struct {
		run     job.RunID
		attempt uint32
	}
	fences := map[job.Fence]attempt{}
	var starts []*Work
	for i := range j.h.Work {
		w := &j.h.Work[i]
		if w.Event != Start {
			continue
		}
		starts = append(starts, w)
		a := attempt{w.Run, w.Attempt}
		if other, known := fences[w.Fence]; known && other != a {
			j.broken(FenceShared, w.Run, "attempt %d started with fence %d, and so did attempt %d of %s", w.Attempt, w.Fence, other.attempt, other.run)
		}
		fences[w.Fence] = a
		if _, known := led[w.Fence.Epoch()]; !known && len(led) > 0 {
			j.broken(StrayEpoch, w.Run, "attempt %d started with fence %d of epoch %d, in which nobody led", w.Attempt, w.Fence, w.Fence.Epoch())
		}
	}
	slices.SortStableFunc(starts, func(a, b *Work) int { return cmp.Compare(a.At, b.At) })
	type newest struct {
		epoch job.Epoch
		at    Moment
	}
	known := map[*Life]newest{} // the newest epoch of which a worker has started work
	for _, w := range starts {
		l := j.lifeOf(w)
		if l == nil {
			continue
		}
		switch n, e := known[l], w.Fence.Epoch(); {
		case e > n.epoch:
			known[l] = newest{e, w.At}
		case e < n.epoch && w.At > n.at+Late:
			j.broken(OldEpoch, w.Run, "worker %s started attempt %d of epoch %d %s after its first work of epoch %d", l.Name, w.Attempt, e, span(n.at, w.At), n.epoch)
		}
	}
	j.exercised()
}

// exercised judges that what a pause makes late was refused, and that work did not go on for long without its lease.
func (j *judge) exercised() {
	for _, r := range j.h.Refusals {
		switch r.Kind {
		case LateWorker:
			j.report.LateWorkers += r.N
		case LateLeader:
			j.report.LateLeaders += r.N
		}
	}
	const lease = Moment(job.LeaseTimeout + job.LeaseKillGrace)
	for _, f := range j.h.Faults {
		if f.Kind != Pause {
			continue
		}
		switch long := f.To - f.From; {
		case f.Role == Node:
			if f.Led && long > Moment(job.LeaseKillGrace) && j.report.LateLeaders == 0 {
				j.broken(NotExercised, f.Name, "it was paused for %s while it led, and nothing that it wanted afterwards was refused", span(f.From, f.To))
			}
		case long > lease:
			if j.report.LateWorkers == 0 {
				j.broken(NotExercised, f.Name, "it was paused for %s, beyond its leases, and no result was refused", span(f.From, f.To))
			}
			j.outlived(&f)
		}
	}
}

// outlived judges that a worker that was paused beyond its leases stops the work that it finds when it gets to run again.
func (j *judge) outlived(f *Fault) {
	for id, ws := range j.work {
		for i := range ws {
			w := &ws[i]
			if w.Event != Start || w.At > f.From {
				continue
			}
			l := j.lifeOf(w)
			if l == nil || l.Name != f.Name {
				continue
			}
			if end, known := j.endOf(w, ws); known && end > f.To+Moment(job.LeaseKillGrace)+Late {
				j.broken(Outlived, id, "attempt %d ran until %s after its worker was resumed from a pause of %s", w.Attempt, span(f.To, end), span(f.From, f.To))
			}
		}
	}
}

// replicas judges that the replicas are equal.
func (j *judge) replicas() {
	type first struct{ name, hash string }
	seen := map[uint64]first{}
	names := map[string]bool{}
	for _, d := range j.h.Digests {
		names[d.Name] = true
		if f, known := seen[d.Index]; !known {
			seen[d.Index] = first{d.Name, d.Hash}
		} else if f.hash != d.Hash {
			j.broken(Diverged, d.Name, "at %d its state's hash is %s, that of %s is %s", d.Index, d.Hash, f.name, f.hash)
		}
	}
	j.report.Replicas = len(names)
}

// transitions judges what single nodes told of single runs, one answer after the other: a node's log only goes on, so what
// it tells may be old but never goes back. It also judges that what is accepted is not denied, by whichever node.
func (j *judge) transitions() {
	type place struct {
		node string
		run  job.RunID
	}
	told := map[place][]*Op{}
	accepted := map[job.RunID]Moment{}
	for i := range j.h.Ops {
		op := &j.h.Ops[i]
		if op.Outcome == OK && op.Answer != nil {
			if at, known := accepted[op.Answer.ID]; !known || op.Done < at {
				accepted[op.Answer.ID] = op.Done
			}
			if op.Node != "" {
				p := place{op.Node, op.Answer.ID}
				told[p] = append(told[p], op)
			}
		}
	}
	for i := range j.h.Ops {
		op := &j.h.Ops[i]
		if at, known := accepted[op.ID]; known && op.Status == 404 && op.Asked > at && (op.Kind == Read || op.Kind == Cancel) {
			j.broken(Denied, op.ID, "%s denied it %s after it was accepted: %s", op.Node, span(at, op.Asked), op.Problem)
		}
	}
	for p, ops := range told {
		slices.SortStableFunc(ops, func(a, b *Op) int { return cmp.Compare(a.Asked, b.Asked) })
		for i := 1; i < len(ops); i++ {
			if a, b := ops[i-1], ops[i]; a.Done <= b.Asked && !follows(a.Answer, b.Answer) {
				j.broken(IllegalMove, p.run, "%s told that it is %s after %d losses and %d failures, and %s later %s after %d and %d",
					p.node, a.Answer.State, a.Answer.Losses, a.Answer.Failures, span(a.Done, b.Asked), b.Answer.State, b.Answer.Losses, b.Answer.Failures)
			}
		}
	}
	for id, r := range j.runs {
		j.recordedAttempts(id, r)
	}
}

// follows tells whether a run that was a can be b (the diagram in the documentation of package job).
func follows(a, b *job.Run) bool {
	switch {
	case a.State.Terminal():
		return b.State == a.State
	case b.Losses < a.Losses || b.Failures < a.Failures:
		return false
	case b.State == job.Waiting: // nothing goes back to what it waited for
		return a.State == job.Waiting || a.State == job.Held
	}
	return true
}

// recordedAttempts judges the attempts of one run by themselves: their numbers and fences grow together, and only the last
// one ended the run.
func (j *judge) recordedAttempts(id job.RunID, r *Run) {
	for i := range r.Attempts {
		a := &r.Attempts[i]
		if i > 0 {
			if b := &r.Attempts[i-1]; a.Attempt <= b.Attempt || a.Fence <= b.Fence {
				j.broken(WrongAttempts, id, "attempt %d with fence %d comes after attempt %d with fence %d", a.Attempt, a.Fence, b.Attempt, b.Fence)
			}
		}
		switch last := i == len(r.Attempts)-1; {
		case !last && a.State == job.Succeeded:
			j.broken(WrongAttempts, id, "attempt %d succeeded, and attempt %d was made", a.Attempt, r.Attempts[i+1].Attempt)
		case r.Run.State.Terminal() && !a.State.Terminal():
			j.broken(WrongAttempts, id, "it is %s, and its attempt %d is %s", r.Run.State, a.Attempt, a.State)
		}
	}
}
