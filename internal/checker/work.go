package checker

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/musterhq/muster/job"
)

// attempts judges D3 for each run: by what its commands wrote down, against what is recorded.
func (j *judge) attempts() {
	for id, ws := range j.work {
		r := j.runs[id]
		if r == nil {
			j.broken(StrangeWork, id, "a command of it ran and the run is not there")
		}
		j.starts(id, ws, r)
	}
	for id, r := range j.runs {
		j.outcome(r, j.work[id], j.specOf(&r.Run))
	}
}

// starts judges the starts of one run, in the order in which they happened. r is nil if the run is not there.
func (j *judge) starts(id job.RunID, ws []Work, r *Run) {
	var last *Work
	for i := range ws {
		w := &ws[i]
		if w.Event != Start {
			continue
		}
		j.report.Starts++
		if l := j.lifeOf(w); l != nil && l.Kill != 0 && !slices.ContainsFunc(ws, func(e Work) bool { return e.Event == End && e.Fence == w.Fence }) {
			j.report.Cut++
		}
		j.early(id, w)
		if r != nil {
			if a := recorded(r, w.Attempt); a == nil || a.Fence != w.Fence {
				j.broken(Unrecorded, id, "attempt %d started with fence %d; recorded is %s", w.Attempt, w.Fence, describe(a))
			}
		}
		if last != nil {
			j.again(id, last, w, ws, r)
		}
		last = w
	}
}

// again judges a start after another one.
func (j *judge) again(id job.RunID, last, w *Work, ws []Work, r *Run) {
	if w.Fence <= last.Fence {
		j.broken(FenceFell, id, "it started with fence %d and then with %d", last.Fence, w.Fence)
	}
	if w.Attempt <= last.Attempt {
		j.broken(AttemptFell, id, "it started as attempt %d and then as %d", last.Attempt, w.Attempt)
	}
	switch end, known := j.endOf(last, ws); {
	case !known || w.At >= end:
	case j.paused(last, w.At):
		j.report.Overlaps++ // nobody can stop work whose worker does not get to run; that is what fences are for
	default:
		j.broken(TwoAtOnce, id, "attempt %d started %s before attempt %d had ended", w.Attempt, span(w.At, end), last.Attempt)
	}
	if r == nil {
		return
	}
	switch a := recorded(r, last.Attempt); {
	case a != nil && slices.Contains(losses, a.Reason):
		j.report.AfterLoss++
		if !j.lossExplained(last, w.At) {
			j.broken(LossInvented, id, "attempt %d started after attempt %d: %s; nothing had happened to its worker, process %d", w.Attempt, last.Attempt, describe(a), last.Life)
		}
	case a != nil && a.State == job.Failed && a.Reason != job.NoReason:
		j.report.AfterFailure++
	default:
		j.broken(Unexplained, id, "attempt %d started after attempt %d, of which is recorded: %s", w.Attempt, last.Attempt, describe(a))
	}
}

// losses are the reasons for which an attempt is repeated although the work itself did not fail.
var losses = []job.Reason{job.WorkerLost, job.LeaseLost, job.WorkerStopped}

// endOf is when a start's command had ended for sure, if anyone knows: its own last line, or the end of its life, which
// no command outlives.
func (j *judge) endOf(start *Work, ws []Work) (Moment, bool) {
	for _, w := range ws {
		if w.Event == End && w.Fence == start.Fence && w.At >= start.At {
			return w.At, true
		}
	}
	if l := j.lifeOf(start); l != nil && l.Kill != 0 {
		// It got its signal between these two; only a start before the first is one beside it.
		return l.Kill, true
	}
	return 0, false // it was stopped hard within its life
}

func (j *judge) lifeOf(w *Work) *Life {
	for i := range j.h.Lives {
		// A pid may be given out again, to a later life.
		if l := &j.h.Lives[i]; l.Pid == w.Life && w.At >= l.Start && (l.Dead == 0 || w.At <= l.Dead) {
			return l
		}
	}
	return nil
}

func recorded(r *Run, attempt uint32) *job.Attempt {
	for i := range r.Attempts {
		if r.Attempts[i].Attempt == attempt {
			return &r.Attempts[i]
		}
	}
	return nil
}

// outcome judges one run's end against its work.
func (j *judge) outcome(r *Run, ws []Work, spec *job.Document) {
	id := r.Run.ID
	if r.Run.State == job.Succeeded && j.byWorker(&r.Run) {
		a := recorded(r, r.Run.Attempt)
		if a == nil || !slices.ContainsFunc(ws, func(w Work) bool {
			return w.Event == End && w.Attempt == a.Attempt && w.Fence == a.Fence && w.Code == 0 && w.Signal == 0
		}) {
			j.broken(NoWork, id, "it succeeded by attempt %d, and no command of that attempt ended with 0", r.Run.Attempt)
		}
	}
	if spec == nil {
		return
	}
	failures, lost := 0, uint32(0)
	for _, a := range r.Attempts {
		switch {
		case slices.Contains(losses, a.Reason):
			if a.Reason == job.WorkerLost && lost == 0 {
				lost = a.Attempt
			}
		case a.State == job.Failed:
			failures++
		}
	}
	if most := max(1, spec.Retry.MaxAttempts); failures > most {
		j.broken(TooOften, id, "%d attempts failed; max_attempts is %d", failures, most)
	}
	if spec.OnWorkerLost == job.FailOnLoss && lost != 0 {
		for _, w := range ws {
			if w.Event == Start && w.Attempt > lost {
				j.broken(AtMostOnce, id, "attempt %d was lost and attempt %d started; its job says on_worker_lost: fail", lost, w.Attempt)
				break
			}
		}
	}
}

// specOf is the document that a run goes by, nil if it is not known.
func (j *judge) specOf(r *job.Run) *job.Document {
	if r.Task != "" {
		if t := j.taskOf(r); t != nil {
			return j.specOf(&j.runs[r.RootID].Run).OfTask(t)
		}
		return nil
	}
	if r.Job != "" {
		return j.specs[specKey{r.Job, r.JobVersion}]
	}
	for range 100 { // retries of retries
		of := j.runs[r.RetryOf]
		if j.inline[r.ID] != nil || of == nil {
			break
		}
		r = &of.Run
	}
	return j.inline[r.ID]
}

// byWorker tells whether a run is a worker's to do. Others are the leader's: roots with tasks, the run of a task with
// for_each itself, tasks that run a job, and what a retry took over.
func (j *judge) byWorker(r *job.Run) bool {
	if r.Task == "" {
		spec := j.specOf(r)
		return spec == nil || spec.Tasks == nil
	}
	t := j.taskOf(r)
	return r.ReusedFrom.IsZero() && r.State != job.Skipped && (t == nil || t.RunJob == nil && (t.ForEach == "" || r.Item > 0))
}

// taskOf is the task that a task run is of, nil if it is not known.
func (j *judge) taskOf(r *job.Run) *job.Task {
	root := j.runs[r.RootID]
	if root == nil {
		return nil
	}
	d := j.specOf(&root.Run)
	for i := 0; d != nil && i < len(d.Tasks); i++ {
		if d.Tasks[i].Name == r.Task {
			return &d.Tasks[i]
		}
	}
	return nil
}

// inlineSpecs are the documents of runs that brought their own.
func (j *judge) inlineSpecs() map[job.RunID]*job.Document {
	specs := map[job.RunID]*job.Document{}
	for i := range j.h.Ops {
		op := &j.h.Ops[i]
		var body struct {
			Spec *job.Document `json:"spec"`
		}
		if op.Kind == Submit && json.Unmarshal(op.Body, &body) == nil && body.Spec != nil {
			specs[op.ID] = body.Spec
		}
	}
	return specs
}

// orphans judges that no work of an earlier life is alive once a later life of the same worker has started work (L4): by the commands that
// looked, and by lines that were written too late.
func (j *judge) orphans() {
	firsts := map[*Life]Moment{} // of each life its first start
	for i := range j.h.Work {
		w := &j.h.Work[i]
		if l := j.lifeOf(w); l != nil && w.Event == Start && (firsts[l] == 0 || w.At < firsts[l]) {
			firsts[l] = w.At
		}
	}
	for i := range j.h.Work {
		w := &j.h.Work[i]
		if w.Event == Stray {
			j.broken(OrphanAlive, w.Run, "when attempt %d of it started under process %d, work of process %d was alive", w.Attempt, w.Life, w.Alive)
			continue
		}
		own := j.bornUnder(w)
		for l, first := range firsts {
			if own != nil && l.Name == own.Name && l.Start > own.Start && w.At > first {
				j.broken(OrphanAlive, w.Run, "process %d of attempt %d wrote %q %s after process %d had started work", w.Pid, w.Attempt, w.Event, span(first, w.At), l.Pid)
				break
			}
		}
	}
}

// bornUnder is the life that started the command of a line, which it may have outlived.
func (j *judge) bornUnder(w *Work) (own *Life) {
	for i := range j.h.Lives {
		if l := &j.h.Lives[i]; l.Pid == w.Life && l.Start <= w.At && (own == nil || l.Start > own.Start) {
			own = l
		}
	}
	return own
}

func span(from, to Moment) time.Duration { return time.Duration(to - from).Round(time.Millisecond) }

func describe(a *job.Attempt) string {
	if a == nil {
		return "nothing"
	}
	s := a.State.String()
	if a.Reason != job.NoReason {
		s += " (" + a.Reason.String() + ")"
	}
	return s
}
