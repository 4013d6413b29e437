package checker

import (
	"bytes"
	"maps"
	"slices"
	"strings"

	"github.com/musterhq/muster/job"
)

// submissions judges D1: what was accepted is there and has ended, what was refused is not there, and nothing is there
// that nobody asked for.
func (j *judge) submissions() {
	type fate struct{ ok, maybe bool } // of an id, over all that were sent with it
	sent := map[job.RunID]*fate{}
	for i := range j.h.Ops {
		op := &j.h.Ops[i]
		if op.Kind == Retry && op.Outcome == OK && op.Answer != nil && j.runs[op.Answer.ID] == nil {
			j.broken(Lost, op.Answer.ID, "it was accepted as the retry of %s and is not there", op.ID)
		}
		if op.Kind != Submit {
			continue
		}
		j.bad(op)
		f := sent[op.ID]
		if f == nil {
			f = &fate{}
			sent[op.ID] = f
		}
		switch op.Outcome {
		case OK:
			j.report.Accepted++
			if op.Answer == nil {
				j.broken(WrongAnswer, op.ID, "it was accepted without a run in the answer")
				continue
			}
			// A key may answer an earlier run; that is for keys() to judge.
			if op.Key == "" && op.Answer.ID != op.ID {
				j.broken(WrongAnswer, op.ID, "it was answered with run %s", op.Answer.ID)
			}
			f.ok = f.ok || op.Answer.ID == op.ID
			f.maybe = true
			if j.runs[op.Answer.ID] == nil {
				j.broken(Lost, op.Answer.ID, "it was accepted (%s) and is not there", op.Answer.Home)
			}
		case Unknown:
			j.report.Unknown++
			f.maybe = true
		default:
			j.report.Refused++
		}
	}
	for id, f := range sent {
		if j.runs[id] != nil && !f.maybe {
			j.broken(RefusedThere, id, "every submission of it was refused, and it is there")
		}
	}
	for id, r := range j.runs {
		if !r.Run.State.Terminal() {
			j.broken(Unfinished, id, "all was drained and it is still %s (%s)", r.Run.State, r.Run.Reason)
		}
		if sent[id] == nil && !j.derived(&r.Run) {
			j.broken(InventedRun, id, "nobody asked for it; its trigger is %s", r.Run.Trigger)
		}
	}
}

// derived tells whether a run that nobody submitted follows from something else that is there: a tick or an edge, which
// are judged by themselves, a retry, the root of a task run, or the task run of a child.
func (j *judge) derived(r *job.Run) bool {
	switch {
	case r.Task != "":
		root := j.runs[r.RootID]
		return root != nil && r.Trigger == job.ByParent && r.ID == job.TaskRunID(r.RootID, r.Task, r.Item)
	case !r.ParentID.IsZero():
		parent := j.runs[r.ParentID]
		for n := uint32(1); parent != nil && n <= parent.Run.Attempt; n++ {
			if r.ID == job.ChildRunID(r.ParentID, n) {
				return r.Trigger == job.ByParent
			}
		}
		return false
	case r.Trigger == job.ByRetry:
		of := j.runs[r.RetryOf]
		return of != nil && r.ID == job.RetryRunID(r.RetryOf, of.Run.FinishedAt) && slices.ContainsFunc(j.h.Ops, func(op Op) bool {
			return op.Kind == Retry && op.ID == r.RetryOf && op.Outcome != Refused
		})
	}
	return r.Trigger == job.ByTick || r.Trigger == job.ByDependency
}

// bad judges D5 for one submission that had to be refused.
func (j *judge) bad(op *Op) {
	if !op.Bad {
		return
	}
	j.report.Bad++
	switch {
	case op.Outcome == OK || op.Outcome == Unknown && j.runs[op.ID] != nil:
		j.broken(BadAccepted, op.ID, "%s is bad and was accepted", op.Body)
	case op.Outcome == Refused && op.Status != 0 && (op.Status < 400 || op.Status > 499 || op.Field == ""):
		j.broken(BadAnswer, op.ID, "%s is bad and was refused with %d and the field %q: %s", op.Body, op.Status, op.Field, op.Problem)
	}
}

// keys judges that a key is one run, and one body.
func (j *judge) keys() {
	type use struct {
		runs   map[job.RunID]bool
		bodies map[string]bool
		times  int
	}
	keys := map[string]*use{}
	of := func(key string) *use {
		if keys[key] == nil {
			keys[key] = &use{runs: map[job.RunID]bool{}, bodies: map[string]bool{}}
		}
		return keys[key]
	}
	for i := range j.h.Ops {
		op := &j.h.Ops[i]
		if op.Kind != Submit || op.Key == "" {
			continue
		}
		u := of(op.Key)
		u.times++
		if op.Outcome == OK && op.Answer != nil {
			u.runs[op.Answer.ID] = true
			u.bodies[string(bytes.TrimSpace(op.Body))] = true
		}
	}
	for id, r := range j.runs {
		// One that turned out to be a duplicate says so, and never ran.
		if r.Run.Key != "" && !(r.Run.State == job.Skipped && r.Run.Reason == job.Duplicate) {
			of(r.Run.Key).runs[id] = true
		}
	}
	for key, u := range keys {
		if u.times > 1 {
			j.report.Keys++
		}
		if len(u.runs) > 1 {
			var ids []string
			for id := range u.runs {
				ids = append(ids, id.String())
			}
			slices.Sort(ids)
			j.broken(KeySplit, key, "it stands for %d runs: %s", len(ids), strings.Join(ids, " "))
		}
		if len(u.bodies) > 1 {
			j.broken(KeyShared, key, "it was accepted with %d bodies: %s", len(u.bodies), strings.Join(slices.Sorted(maps.Keys(u.bodies)), " "))
		}
	}
}

// final judges D4 over all that clients saw: once ended, always ended so, and no start after it.
func (j *judge) final() {
	for i := range j.h.Ops {
		op := &j.h.Ops[i]
		if op.Outcome != OK {
			continue
		}
		if op.Kind == Cancel {
			j.report.Cancels++
			if w := j.startAfter(op.ID, op.Done+CancelInFlight); w != nil {
				j.broken(CancelIgnored, op.ID, "attempt %d of %s started %s after the cancel was accepted", w.Attempt, w.Run, span(op.Done, w.At))
			}
		}
		seen := op.Answer
		if seen == nil || !seen.State.Terminal() {
			continue
		}
		if w := j.startAfter(seen.ID, op.Done); w != nil {
			j.broken(StartAfterEnd, seen.ID, "attempt %d of %s started %s after the run was seen %s", w.Attempt, w.Run, span(op.Done, w.At), seen.State)
		}
		r := j.runs[seen.ID]
		if r == nil {
			if op.Kind != Submit { // else it is reported as lost already
				j.broken(Lost, seen.ID, "it was seen %s and is not there", seen.State)
			}
			continue
		}
		now := &r.Run
		if now.State != seen.State || now.Reason != seen.Reason || now.FinishedAt != seen.FinishedAt || now.Attempt != seen.Attempt {
			j.broken(NotFinal, seen.ID, "it was seen %s (%s) of %s by attempt %d, and is %s (%s) of %s by attempt %d",
				seen.State, seen.Reason, seen.FinishedAt, seen.Attempt, now.State, now.Reason, now.FinishedAt, now.Attempt)
		}
	}
}

// startAfter is a start after a moment, of a run or of what grew from it.
func (j *judge) startAfter(id job.RunID, after Moment) *Work {
	for i := range j.work[id] {
		if w := &j.work[id][i]; w.Event == Start && w.At > after {
			return w
		}
	}
	for _, below := range j.below[id] {
		if w := j.startAfter(below, after); w != nil {
			return w
		}
	}
	return nil
}
