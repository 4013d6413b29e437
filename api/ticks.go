package api

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/job/timetable"
)

type inTicks struct {
	InJob
	Since  timeParam  `query:"since" doc:"inclusive"`
	Until  timeParam  `query:"until" doc:"exclusive"`
	Limit  limitParam `query:"limit"`
	Cursor string     `query:"cursor" doc:"next_cursor of the page before"`
}

// TickRow is a row of the ledger, and the run that was born of it.
type TickRow struct {
	job.Tick
	RunID job.RunID `json:"run_id,omitzero"`
}

func (a *API) listTicks(rq *request, in *inTicks) error {
	q := job.TickQuery{}
	var err error
	if q.Since, err = in.Since.read("since"); err != nil {
		return err
	}
	if q.Until, err = in.Until.read("until"); err != nil {
		return err
	}
	limit, err := in.Limit.read("limit", MaxPage)
	if err != nil {
		return err
	}
	filters := filterText(rq.namespace, in.Name, q.Since, q.Until)
	if q.Before, err = readTickCursor(filters, in.Cursor); err != nil {
		return err
	}
	j, err := a.findJob(rq, &in.InJob)
	if err != nil {
		return err
	}
	q.JobID, q.Limit = j.ID, limit+1
	ticks, err := a.Store.Ticks(rq.ctx, q)
	if err != nil {
		return err
	}
	p := page[TickRow]{Items: []TickRow{}}
	for _, t := range ticks[:min(len(ticks), limit)] {
		row := TickRow{Tick: t}
		if t.Disposition == job.TickRun {
			row.RunID = t.RunID()
		}
		p.Items = append(p.Items, row)
	}
	if len(ticks) > limit {
		p.NextCursor = makeTickCursor(filters, ticks[limit-1].ScheduledAt)
	}
	return rq.json(http.StatusOK, p)
}

type inVerify struct {
	InJob
	Since timeParam `query:"since" doc:"inclusive; without it, 24 hours before until"`
	Until timeParam `query:"until" doc:"exclusive; without it, now"`
}

// Verification compares what the timetable expected with what the ledger says (D2): each expected tick has exactly one
// disposition.
type Verification struct {
	Since    job.Instant   `json:"since"`
	Until    job.Instant   `json:"until" doc:"ticks up to here are decided; later ones that were asked for are still to come"`
	Expected int           `json:"expected"`
	Decided  int           `json:"decided"`
	Gaps     []job.Instant `json:"gaps" doc:"expected, and not in the ledger"`
	Doubles  []job.Instant `json:"doubles" doc:"decided more than once"`
	Strays   []job.Instant `json:"strays" doc:"in the ledger, and not expected"`
	OK       bool          `json:"ok"`
}

func (a *API) verifyTicks(rq *request, in *inVerify) error {
	since, err := in.Since.read("since")
	if err != nil {
		return err
	}
	until, err := in.Until.read("until")
	if err != nil {
		return err
	}
	until = min(cmpOr(until, a.now()), a.now())
	since = cmpOr(since, until.Add(-24*time.Hour))
	if until < since {
		return job.InvalidField("since", "it lies after until, or in the future")
	}
	j, err := a.findJob(rq, &in.InJob)
	if err != nil {
		return err
	}
	// What is due but not decided yet is no gap. Before the first version came into effect nothing was expected.
	mark, ticking := a.Schedules.Mark(j.ID)
	if ticking {
		until = min(until, mark.At+1)
	}
	// Read after the mark and before the ledger: a decision that is not here was stored meanwhile.
	unstored := a.Schedules.Unstored(j.ID)
	v := Verification{Since: since, Until: max(since, until), Gaps: []job.Instant{}, Doubles: []job.Instant{}, Strays: []job.Instant{}}
	expected, err := a.expectedTicks(rq.ctx, j, mark, v.Since, v.Until)
	if err != nil {
		return err
	}
	rows, err := a.ledger(rq.ctx, j.ID, v.Since, v.Until)
	if err != nil {
		return err
	}
	v.compare(expected, withUnstored(rows, unstored, v.Since, v.Until))
	return rq.json(http.StatusOK, v)
}

// expectedTicks are the ticks in [since, until), each by the version that owned its time (L7).
func (a *API) expectedTicks(ctx context.Context, j *job.Job, mark job.Mark, since, until job.Instant) ([]job.Instant, error) {
	versions, err := a.Store.Versions(ctx, j.Namespace, j.Name, MaxPage)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(versions, func(x, y *job.Version) int { return int(int64(x.Version) - int64(y.Version)) })
	// Raft says from when a version ticks; its row has a copy, or, if it never got one, at least the time it was written.
	from := func(v *job.Version) job.Instant {
		if v.Version == mark.Version && mark.From != 0 {
			return mark.From
		}
		return cmpOr(v.From, v.CreatedAt)
	}
	var all []job.Instant
	for i, v := range versions {
		// A version owns the ticks after its From, up to the From of the next.
		after, last := max(from(v), since-1), until-1
		if i+1 < len(versions) {
			last = min(last, from(versions[i+1]))
		}
		if v.Spec == nil || v.Spec.Schedule == nil || after >= last {
			continue
		}
		t, err := timetable.Parse(*v.Spec.Schedule)
		if err != nil {
			return nil, err
		}
		for _, at := range t.Between(after.Time(), last.Time(), MaxVerifyTicks+1-len(all)) {
			all = append(all, job.At(at))
		}
		if len(all) > MaxVerifyTicks {
			return nil, &job.Error{Code: job.Invalid, Reason: "too_many", Field: "since",
				Message: "more than 10000 ticks are expected in this time; ask for a shorter one"}
		}
	}
	return all, nil
}

// ledger answers the rows that touch [since, until), oldest first. A row may stand for a range that began before since,
// so it reads on until a row lies wholly before.
func (a *API) ledger(ctx context.Context, id job.JobID, since, until job.Instant) ([]job.Tick, error) {
	const step = 1000
	var rows []job.Tick
	q := job.TickQuery{JobID: id, Until: until, Limit: step}
	for {
		part, err := a.Store.Ticks(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, t := range part {
			if t.ScheduledAt >= since || t.Until >= since {
				rows = append(rows, t)
			}
			if t.ScheduledAt < since {
				slices.Reverse(rows)
				return rows, nil
			}
		}
		if len(part) < step || len(rows) > 2*MaxVerifyTicks {
			slices.Reverse(rows)
			return rows, nil
		}
		q.Before = part[len(part)-1].ScheduledAt
	}
}

// withUnstored adds the decisions in [since, until) that no row tells of.
func withUnstored(rows, unstored []job.Tick, since, until job.Instant) []job.Tick {
	stored := make(map[job.Instant]bool, len(rows))
	for _, t := range rows {
		stored[t.ScheduledAt] = true
	}
	for _, t := range unstored {
		if !stored[t.ScheduledAt] && t.ScheduledAt < until && max(t.ScheduledAt, t.Until) >= since {
			rows = append(rows, t)
		}
	}
	return rows
}

// compare lays the rows over the expected ticks.
func (v *Verification) compare(expected []job.Instant, rows []job.Tick) {
	v.Expected = len(expected)
	times := make([]int, len(expected)) // how often each was decided
	for _, t := range rows {
		i, found := slices.BinarySearch(expected, t.ScheduledAt)
		if t.Until == 0 || t.Until == t.ScheduledAt {
			if !found {
				v.Strays = append(v.Strays, t.ScheduledAt)
				continue
			}
			times[i]++
			continue
		}
		for ; i < len(expected) && expected[i] <= t.Until; i++ {
			times[i]++
		}
	}
	for i, n := range times {
		switch {
		case n == 0:
			v.Gaps = append(v.Gaps, expected[i])
		case n > 1:
			v.Doubles = append(v.Doubles, expected[i])
		}
		if n > 0 {
			v.Decided++
		}
	}
	v.OK = len(v.Gaps)+len(v.Doubles)+len(v.Strays) == 0
}

func cmpOr[T comparable](v, otherwise T) T {
	orElse(&v, otherwise)
	return v
}
