package timetable

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/musterhq/muster/job"
)

// brief writes decisions as "12:00:00 run" and "12:00:00-12:59:00 60 missed/catch_up_none".
func brief(ds []Decision) string {
	var lines []string
	for _, d := range ds {
		s := d.At.Format(time.TimeOnly)
		if !d.Until.Equal(d.At) {
			s += "-" + d.Until.Format(time.TimeOnly)
		}
		if d.Count != 1 {
			s += fmt.Sprintf(" %d", d.Count)
		}
		s += " " + d.Do.String()
		if d.Reason != job.NoReason {
			s += "/" + d.Reason.String()
		}
		lines = append(lines, s)
	}
	return strings.Join(lines, ", ")
}

func TestDue(t *testing.T) {
	t.Parallel()
	noon := at(t, "2026-06-01T12:00:00Z")
	const minutely, secondly = "* * * * *", "@every 1s"
	for name, c := range map[string]struct {
		cron     string
		catchUp  job.CatchUp
		mark     time.Duration // before noon
		now      time.Duration // after noon
		deadline time.Duration
		want     string
	}{
		"nothing is due":                               {minutely, job.CatchUp{}, 30 * time.Second, -time.Second, 0, ""},
		"now is before the mark":                       {minutely, job.CatchUp{}, 0, -time.Hour, 0, ""},
		"now is the mark":                              {minutely, job.CatchUp{}, 0, 0, 0, ""},
		"a tick exactly now":                           {minutely, job.CatchUp{}, 60 * time.Second, 0, 0, "12:00:00 run"},
		"a tick a moment ago":                          {minutely, job.CatchUp{}, 60 * time.Second, 20 * time.Millisecond, 0, "12:00:00 run"},
		"a tick at the mark is not due again":          {minutely, job.CatchUp{}, 0, 60 * time.Second, 0, "12:01:00 run"},
		"within the grace every tick runs, latest":     {secondly, job.CatchUp{Policy: job.CatchUpLatest}, 0, 3 * time.Second, 0, "12:00:01 run, 12:00:02 run, 12:00:03 run"},
		"within the grace every tick runs, none":       {secondly, job.CatchUp{Policy: job.CatchUpNone}, 0, 3 * time.Second, 0, "12:00:01 run, 12:00:02 run, 12:00:03 run"},
		"late by just the grace":                       {minutely, job.CatchUp{Policy: job.CatchUpNone}, 60 * time.Second, Grace, 0, "12:00:00 run"},
		"late by a moment more, none":                  {minutely, job.CatchUp{Policy: job.CatchUpNone}, 60 * time.Second, Grace + 1, 0, "12:00:00 missed/catch_up_none"},
		"late by a moment more, latest":                {minutely, job.CatchUp{Policy: job.CatchUpLatest}, 60 * time.Second, Grace + 1, 0, "12:00:00 run"},
		"late by a moment more, all":                   {minutely, job.CatchUp{Policy: job.CatchUpAll}, 60 * time.Second, Grace + 1, 0, "12:00:00 run"},
		"an hour away, the default is latest":          {minutely, job.CatchUp{}, time.Hour, 30 * time.Second, 0, "11:01:00-11:59:00 59 coalesced/catch_up_coalesced, 12:00:00 run"},
		"an hour away, latest, newest on time":         {minutely, job.CatchUp{}, time.Hour, 0, 0, "11:01:00-11:59:00 59 coalesced/catch_up_coalesced, 12:00:00 run"},
		"an hour away, none, newest late":              {minutely, job.CatchUp{Policy: job.CatchUpNone}, time.Hour, 30 * time.Second, 0, "11:01:00-12:00:00 60 missed/catch_up_none"},
		"an hour away, none, newest on time":           {minutely, job.CatchUp{Policy: job.CatchUpNone}, time.Hour, time.Second, 0, "11:01:00-11:59:00 59 missed/catch_up_none, 12:00:00 run"},
		"some minutes away, all":                       {minutely, job.CatchUp{Policy: job.CatchUpAll}, 3 * time.Minute, 30 * time.Second, 0, "11:58:00 run, 11:59:00 run, 12:00:00 run"},
		"an hour away, all, up to max":                 {minutely, job.CatchUp{Policy: job.CatchUpAll, Max: 2}, time.Hour, 30 * time.Second, 0, "11:01:00-11:58:00 58 missed/catch_up_max, 11:59:00 run, 12:00:00 run"},
		"max does not count what is on time":           {minutely, job.CatchUp{Policy: job.CatchUpAll, Max: 2}, time.Hour, 5 * time.Second, 0, "11:01:00-11:57:00 57 missed/catch_up_max, 11:58:00 run, 11:59:00 run, 12:00:00 run"},
		"two ticks, latest":                            {minutely, job.CatchUp{}, 2 * time.Minute, 30 * time.Second, 0, "11:59:00 coalesced/catch_up_coalesced, 12:00:00 run"},
		"past the start deadline":                      {minutely, job.CatchUp{}, time.Minute, 30 * time.Second, 20 * time.Second, "12:00:00 missed/start_deadline"},
		"just within the start deadline":               {minutely, job.CatchUp{}, time.Minute, 30 * time.Second, 30 * time.Second, "12:00:00 run"},
		"a start deadline shorter than the grace":      {minutely, job.CatchUp{}, time.Minute, 6 * time.Second, 5 * time.Second, "12:00:00 missed/start_deadline"},
		"start deadline before catch-up, latest":       {minutely, job.CatchUp{}, time.Hour, 30 * time.Second, 10 * time.Minute, "11:01:00-11:50:00 50 missed/start_deadline, 11:51:00-11:59:00 9 coalesced/catch_up_coalesced, 12:00:00 run"},
		"start deadline before catch-up, all":          {minutely, job.CatchUp{Policy: job.CatchUpAll, Max: 3}, time.Hour, 30 * time.Second, 10 * time.Minute, "11:01:00-11:50:00 50 missed/start_deadline, 11:51:00-11:57:00 7 missed/catch_up_max, 11:58:00 run, 11:59:00 run, 12:00:00 run"},
		"all that is due is past the start deadline":   {minutely, job.CatchUp{}, time.Hour, 30 * time.Second, time.Second, "11:01:00-12:00:00 60 missed/start_deadline"},
		"a year of seconds, latest":                    {secondly, job.CatchUp{}, 365 * 24 * time.Hour, 0, 0, "12:00:01-11:59:59 31535999 coalesced/catch_up_coalesced, 12:00:00 run"},
		"a year of seconds by cron, latest":            {"* * * * * *", job.CatchUp{}, 365 * 24 * time.Hour, 0, 0, "12:00:01-11:59:59 31535999 coalesced/catch_up_coalesced, 12:00:00 run"},
		"once, while nobody looked":                    {"@at 2026-06-01T09:00:00Z", job.CatchUp{}, 4 * time.Hour, 0, 0, "09:00:00 run"},
		"once, while nobody looked, none":              {"@at 2026-06-01T09:00:00Z", job.CatchUp{Policy: job.CatchUpNone}, 4 * time.Hour, 0, 0, "09:00:00 missed/catch_up_none"},
		"late ones are coalesced into one that is due": {"@every 6s", job.CatchUp{}, 20 * time.Second, 0, 0, "11:59:42-11:59:54 3 coalesced/catch_up_coalesced, 12:00:00 run"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt := mustParse(t, job.Schedule{Cron: c.cron, CatchUp: c.catchUp})
			if got := brief(tt.Due(noon.Add(-c.mark), noon.Add(c.now), c.deadline)); got != c.want {
				t.Errorf("got\n%s; want\n%s", got, c.want)
			}
		})
	}
}

// TestDueIsThatOfTheTwin decides tick by tick, from the rules as Due's comment states them.
func TestDueIsThatOfTheTwin(t *testing.T) {
	t.Parallel()
	crons := []string{"* * * * *", "*/7 * * * *", "@every 1s", "@every 4s", "@every 13m", "30 2 * * *", "*/5 */10 * * * *", "@at 2026-06-01T11:30:00Z"}
	rapid.Check(t, func(rt *rapid.T) {
		s := job.Schedule{Cron: rapid.SampledFrom(crons).Draw(rt, "cron"), TimeZone: rapid.SampledFrom(livelyZones).Draw(rt, "zone")}
		s.CatchUp.Policy = rapid.SampledFrom([]job.CatchUpPolicy{"", job.CatchUpNone, job.CatchUpLatest, job.CatchUpAll}).Draw(rt, "policy")
		s.CatchUp.Max = rapid.IntRange(0, 20).Draw(rt, "max")
		if rapid.Bool().Draw(rt, "bounded") {
			s.StartAt, s.EndAt = at(t, "2026-06-01T11:10:00Z"), at(t, "2026-06-01T11:59:57Z")
		}
		tt, err := Parse(s)
		if err != nil {
			return // not within the bounds
		}
		now := at(t, "2026-06-01T12:00:00Z").Add(time.Duration(rapid.Int64Range(-5e10, 5e10).Draw(rt, "now")))
		mark := now.Add(-time.Duration(rapid.OneOf(rapid.Int64Range(0, 2e10), rapid.Int64Range(0, 8000e9)).Draw(rt, "behind")))
		deadline := time.Duration(rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(0, 2e10), rapid.Int64Range(0, 4000e9)).Draw(rt, "deadline"))

		ticks := tt.Between(mark, now, 1<<20)
		var want []Decision
		overdue, limit := 0, s.CatchUp.Max
		if limit == 0 {
			limit = DefaultCatchUp
		}
		for i := len(ticks) - 1; i >= 0; i-- { // the newest first
			late := now.Sub(ticks[i])
			d := Decision{At: ticks[i], Until: ticks[i], Count: 1, Do: job.TickRun}
			switch {
			case deadline > 0 && late > deadline:
				d.Do, d.Reason = job.TickMissed, job.StartDeadline
			case now.Sub(ticks[0]) <= Grace:
			case s.CatchUp.Policy == job.CatchUpNone:
				if late > Grace {
					d.Do, d.Reason = job.TickMissed, job.CatchUpNoneReason
				}
			case s.CatchUp.Policy == job.CatchUpAll:
				if late > Grace {
					if overdue++; overdue > limit {
						d.Do, d.Reason = job.TickMissed, job.CatchUpMaxReason
					}
				}
			default:
				if i < len(ticks)-1 {
					d.Do, d.Reason = job.TickCoalesced, job.CatchUpCoalesced
				}
			}
			want = append(want, d)
		}
		slices.Reverse(want)
		var ranges []Decision
		for _, d := range want {
			if n := len(ranges); n > 0 && d.Do != job.TickRun && ranges[n-1].Do == d.Do && ranges[n-1].Reason == d.Reason {
				ranges[n-1].Until = d.At
				ranges[n-1].Count++
			} else {
				ranges = append(ranges, d)
			}
		}
		if got := tt.Due(mark, now, deadline); !slices.Equal(got, ranges) {
			rt.Fatalf("%+v at %s, marked %s, deadline %s:\n%s; want\n%s", s, now, mark, deadline, brief(got), brief(ranges))
		}
	})
}
