package checker

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/job/timetable"
)

// maxTicks bounds what one job may have been due, so that a wrong history cannot keep the judge busy for ever.
const maxTicks = 1_000_000

// ticks judges D2 for one job: each tick that was due has one row of the ledger, or lies in one range of it.
func (j *judge) ticks(jb *Job) {
	slices.SortFunc(jb.Versions, func(a, b job.Version) int { return cmp.Compare(a.Version, b.Version) })
	if j.specs == nil {
		j.specs = map[specKey]*job.Document{}
	}
	owner := map[job.Instant]uint64{} // of each due tick
	var due []job.Instant
	for i, v := range jb.Versions {
		j.specs[specKey{jb.Name, v.Version}] = v.Spec
		// A version owns the ticks after its From, up to the From of the next (L7).
		until := jb.Until
		if i+1 < len(jb.Versions) {
			next := jb.Versions[i+1].From
			if next < v.From {
				j.broken(TickFrom, jb.Name, "version %d is from %s, before version %d", jb.Versions[i+1].Version, next, v.Version)
			}
			until = min(until, next)
		}
		if v.Spec == nil || v.Spec.Schedule == nil {
			continue
		}
		table, err := timetable.Parse(*v.Spec.Schedule)
		if err != nil {
			j.broken(TickInvented, jb.Name, "version %d has a schedule that cannot be read: %v", v.Version, err)
			continue
		}
		for _, at := range table.Between(v.From.Time(), until.Time(), maxTicks) {
			due = append(due, job.At(at))
			owner[job.At(at)] = v.Version
		}
	}
	j.report.Due += len(due)
	j.from(jb)

	times := make([]int, len(due)) // how often each was decided
	for _, t := range jb.Ticks {
		t.JobID = jb.ID
		first, found := slices.BinarySearch(due, t.ScheduledAt)
		if t.ScheduledAt > jb.Until {
			continue // decided since, beyond what is judged
		}
		if !found {
			j.broken(TickInvented, tickName(jb, t.ScheduledAt), "it is %s, and was never due", t.Disposition)
			continue
		}
		last, found := first, true
		if t.Until != 0 {
			if last, found = slices.BinarySearch(due, t.Until); !found || last-first+1 != t.Tick.Ticks() {
				j.broken(TickInvented, tickName(jb, t.ScheduledAt), "a range of %d ticks up to %s is %s; due were %d", t.Count, t.Until, t.Disposition, last-first+1)
				last = min(last, len(due)-1)
			}
		}
		j.givenUp(jb, &t)
		for i := first; i <= last; i++ {
			times[i]++
			j.report.Decided[t.Disposition]++
			if owner[due[i]] != t.Version {
				j.broken(TickVersion, tickName(jb, due[i]), "version %d decided it, version %d owns it", t.Version, owner[due[i]])
			}
		}
		j.tickRun(jb, &t)
	}
	for i, n := range times {
		switch {
		case n == 0:
			j.broken(TickMissing, tickName(jb, due[i]), "it was due and nothing was decided")
		case n > 1:
			j.broken(TickDoubled, tickName(jb, due[i]), "it was decided %d times", n)
		}
	}
}

// givenUp judges that a job that wants each tick to run, whatever else runs, gets that.
func (j *judge) givenUp(jb *Job, t *Tick) {
	spec := j.specs[specKey{jb.Name, t.Version}]
	if t.Disposition == job.TickRun || t.Disposition == job.TickPaused || t.Reason == job.CatchUpMaxReason || spec == nil ||
		spec.Overlap != job.OverlapAllow || spec.Schedule == nil || spec.Schedule.CatchUp.Policy != job.CatchUpAll {
		return
	}
	j.broken(TickGivenUp, tickName(jb, t.ScheduledAt), "it is %s (%s), and the job says catch_up: all, overlap: allow", t.Disposition, t.Reason)
}

// early judges that a run does not start before its time, by the clock of the machine that it runs on.
func (j *judge) early(id job.RunID, w *Work) {
	at, err := time.Parse(time.RFC3339Nano, w.ScheduledAt)
	if err != nil || w.Wall == 0 {
		return // it has no time
	}
	if by := time.Duration(at.UnixNano() - w.Wall); by > j.apart() {
		j.broken(TickEarly, id, "attempt %d of the run of %s started %s before it", w.Attempt, w.ScheduledAt, by)
	}
}

func tickName(jb *Job, at job.Instant) string { return fmt.Sprintf("%s at %s", jb.Name, at) }

// from judges that a version came into effect while somebody first asked for it: not later, or ticks would vanish between
// two versions without being missed by anyone. Asking again for what is there already changes nothing.
func (j *judge) from(jb *Job) {
	first := map[uint64]*Op{}
	for i := range j.h.Ops {
		op := &j.h.Ops[i]
		if op.Kind == Put && op.Outcome == OK && op.Job == jb.Name && (first[op.Version] == nil || op.Asked < first[op.Version].Asked) {
			first[op.Version] = op
		}
	}
	for _, v := range jb.Versions {
		if op := first[v.Version]; op != nil && (v.From < op.Before.Add(-j.apart()) || v.From > op.After.Add(j.apart())) {
			j.broken(TickFrom, jb.Name, "version %d is from %s; it was asked for at %s and answered as in effect at %s", v.Version, v.From, op.Before, op.After)
		}
	}
}

// apart is how far the nodes' time may be from that of the machine on which all of this happens: a cluster's own time is
// what its nodes agree on, a single process has the machine's.
func (j *judge) apart() time.Duration {
	for i := range j.h.Lives {
		if j.h.Lives[i].Role == Node {
			return Apart
		}
	}
	return 0
}

// tickRun judges that a tick that runs has its one run.
func (j *judge) tickRun(jb *Job, t *Tick) {
	if t.Disposition != job.TickRun {
		if !t.RunID.IsZero() {
			j.broken(TickWrongRun, tickName(jb, t.ScheduledAt), "it is %s and names run %s", t.Disposition, t.RunID)
		}
		return
	}
	id := job.TickRunID(jb.ID, t.ScheduledAt)
	if t.RunID != id {
		j.broken(TickWrongRun, tickName(jb, t.ScheduledAt), "it names run %s; its own is %s", t.RunID, id)
	}
	r := j.runs[id]
	if r == nil {
		j.broken(TickNoRun, tickName(jb, t.ScheduledAt), "run %s is not there", id)
		return
	}
	if r.Run.Trigger != job.ByTick || r.Run.Job != jb.Name || r.Run.ScheduledAt != t.ScheduledAt || r.Run.JobVersion != t.Version {
		j.broken(TickWrongRun, tickName(jb, t.ScheduledAt), "run %s is of %s %s, version %d, trigger %s",
			id, r.Run.Job, r.Run.ScheduledAt, r.Run.JobVersion, r.Run.Trigger)
	}
}

// tickRuns judges that every run of a tick has a tick that was decided to run.
func (j *judge) tickRuns() {
	decided := map[job.RunID]bool{}
	read := map[string]job.Instant{} // up to when, by job
	for i := range j.h.Jobs {
		jb := &j.h.Jobs[i]
		read[jb.Name] = jb.Until
		for _, t := range jb.Ticks {
			if t.Disposition == job.TickRun {
				decided[job.TickRunID(jb.ID, t.ScheduledAt)] = true
			}
		}
	}
	for id, r := range j.runs {
		if r.Run.Trigger != job.ByTick || decided[id] {
			continue
		}
		if until, known := read[r.Run.Job]; known && r.Run.ScheduledAt > until {
			continue // born after the ledger was read
		}
		j.broken(RunNoTick, id, "it is the run of %s at %s, and no such tick was decided to run", r.Run.Job, r.Run.ScheduledAt)
	}
}
