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
		if r.Run.Trigger != job.ByTick && sent[id] == nil {
			j.broken(InventedRun, id, "nobody submitted it; its trigger is %s", r.Run.Trigger)
		}
	}
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
			for _, w := range j.work[op.ID] {
				if w.Event == Start && w.At > op.Done+CancelInFlight {
					j.broken(CancelIgnored, op.ID, "attempt %d started %s after the cancel was accepted", w.Attempt, span(op.Done, w.At))
					break
				}
			}
		}
		seen := op.Answer
		if seen == nil || !seen.State.Terminal() {
			continue
		}
		for _, w := range j.work[seen.ID] {
			if w.Event == Start && w.At > op.Done {
				j.broken(StartAfterEnd, seen.ID, "attempt %d started %s after the run was seen %s", w.Attempt, span(op.Done, w.At), seen.State)
				break
			}
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
