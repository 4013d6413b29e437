package checker

import (
	"net/http"
	"slices"
)

// homes judges that what was accepted, and what is there in the end, lies on the cluster's own store.
func (j *judge) homes() {
	own := j.h.Store
	if own == 0 {
		return
	}
	for i := range j.h.Ops {
		op := &j.h.Ops[i]
		if op.Kind == Submit && op.Outcome == OK && op.Answer != nil && op.Answer.Home != own {
			j.broken(WrongHome, op.Answer.ID, "it was accepted as %q; the cluster's store is %q", op.Answer.Home, own)
		}
	}
	for id, r := range j.runs {
		if r.Run.Home != own {
			j.broken(WrongHome, id, "it is kept on %q; the cluster's store is %q", r.Run.Home, own)
		}
	}
}

// away judges submissions while the store answered nobody (S7): none can be accepted, and once that is noticed each is
// refused at once, with 503 store_unavailable.
func (j *judge) away() {
	for i := range j.h.Ops {
		op := &j.h.Ops[i]
		if op.Kind != Submit || op.Bad {
			continue
		}
		n := slices.IndexFunc(j.h.Faults, func(f Fault) bool {
			return f.Role == Store && f.Name == Postgres && (f.Kind == Away || f.Kind == Pause) && f.From <= op.Asked && op.Asked < f.To
		})
		if n < 0 {
			continue
		}
		f := &j.h.Faults[n]
		if op.Done <= f.To {
			j.report.Away++
			if op.Outcome == OK {
				j.broken(AcceptedAway, op.ID, "it was accepted %s after its store had gone, %s before that was back", span(f.From, op.Done), span(op.Done, f.To))
			}
		}
		noticed := f.From + AtOnce
		if f.Kind == Pause {
			noticed = f.From + Noticed
		}
		if op.Node == "" || op.Asked < noticed || op.Asked > f.To-AtOnce {
			continue // an SDK asks again until its time is over
		}
		if took := op.Done - op.Asked; took > AtOnce {
			j.broken(AwaySlow, op.ID, "%s after the store had gone it was answered only after %s: %d %s", span(f.From, op.Asked), span(op.Asked, op.Done), op.Status, op.Problem)
		}
		j.report.AwaySlowest = max(j.report.AwaySlowest, op.Done-op.Asked)
		if op.Outcome != OK && (op.Outcome != Refused || op.Status != http.StatusServiceUnavailable || op.Reason != "store_unavailable") {
			j.broken(AwayAnswer, op.ID, "%s after the store had gone it was answered %s: %d %s", span(f.From, op.Asked), op.Outcome, op.Status, op.Problem)
		}
	}
}
