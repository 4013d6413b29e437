package timetable

import (
	"time"

	"github.com/musterhq/muster/job"
)

// Grace is how late a tick may be decided and still count as on time. It covers a busy leader and a quick fail-over, so
// that neither costs a job its ticks under any catch-up policy.
const Grace = 10 * time.Second

// A Decision is what becomes of one tick, or of several in a row that share their fate.
type Decision struct {
	At     time.Time // the tick, or the first of several; UTC
	Until  time.Time // the last of them; At if it is one
	Count  int       // how many ticks these are, 1 or more
	Do     job.Disposition
	Reason job.Reason
}

// Due decides all ticks after mark, up to and including now. The decisions are in order of time and every such tick is in
// exactly one of them; those to run come one by one, the others in ranges. Afterwards the mark is now. A startDeadline
// of zero or less means none.
//
//   - A tick later than startDeadline is missed (start_deadline).
//   - If the oldest tick due is at most Grace late, nobody was away: the rest run.
//   - Otherwise the schedule's catch-up policy decides about the rest. none: what is more than Grace late is missed
//     (catch_up_none), the others run. latest: the newest runs, the others are coalesced into it (catch_up_coalesced).
//     all: of what is more than Grace late the newest catch_up.max run, the older ones are missed (catch_up_max), and
//     what is on time runs.
//
// The answer has at most catch_up.max plus some dozen decisions, and its cost hardly depends on how long nobody looked.
func (t *Timetable) Due(mark, now time.Time, startDeadline time.Duration) []Decision {
	from, to := afterSecond(mark), afterSecond(now)
	oldest, ok := t.next(from)
	if !ok || oldest >= to {
		return nil
	}
	var d decisions
	if startDeadline > 0 {
		inTime := clamp(ceilSecond(now.Add(-startDeadline)), from, to)
		d.several(t, from, inTime, job.TickMissed, job.StartDeadline)
		from = inTime
	}
	late := ceilSecond(now.Add(-Grace)) // ticks before it are more than Grace late
	onTime := clamp(late, from, to)
	switch {
	case oldest >= late:
		d.each(t, from, to)
	case t.catchUp == job.CatchUpNone:
		d.several(t, from, onTime, job.TickMissed, job.CatchUpNoneReason)
		d.each(t, onTime, to)
	case t.catchUp == job.CatchUpAll:
		first := from
		if limit := int64(t.max); t.count(from, onTime) > limit {
			first = t.newest(from, onTime, limit)
		}
		d.several(t, from, first, job.TickMissed, job.CatchUpMaxReason)
		d.each(t, first, to)
	default:
		if t.count(from, to) > 0 {
			last := t.newest(from, to, 1)
			d.several(t, from, last, job.TickCoalesced, job.CatchUpCoalesced)
			d.each(t, last, to)
		}
	}
	return d
}

type decisions []Decision

// each decides to run every tick of [from, to).
func (d *decisions) each(t *Timetable, from, to int64) {
	for {
		u, ok := t.next(from)
		if !ok || u >= to {
			return
		}
		at := instant(u)
		*d = append(*d, Decision{At: at, Until: at, Count: 1, Do: job.TickRun})
		from = u + 1
	}
}

// several decides the same of all ticks of [from, to), if there are any.
func (d *decisions) several(t *Timetable, from, to int64, do job.Disposition, why job.Reason) {
	if s, ok := t.summary(from, to); ok {
		s.Do, s.Reason = do, why
		*d = append(*d, s)
	}
}

// summary is the ticks of [from, to) as one Decision that decides nothing yet; false if there are none.
func (t *Timetable) summary(from, to int64) (Decision, bool) {
	first, ok := t.next(from)
	if !ok || first >= to {
		return Decision{}, false
	}
	s := Decision{At: instant(first), Until: instant(first), Count: 1}
	if second, ok := t.next(first + 1); ok && second < to {
		s.Count = int(t.count(first, to))
		s.Until = instant(t.newest(first, to, 1))
	}
	return s, true
}

func clamp(u, low, high int64) int64 { return min(max(u, low), high) }
