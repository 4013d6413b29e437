package timetable

import (
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

// TestClockChanges has what clocks did and will do, each case from the law and the calendar, not from a run of the code.
func TestClockChanges(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		zone, cron  string
		after, till string // UTC
		ticks       string // UTC
	}{
		"New York spring, fixed time in the gap": {"America/New_York", "30 2 * * *", "2026-03-07T12:00:00Z", "2026-03-09T12:00:00Z",
			"2026-03-08T07:00:00Z 2026-03-09T06:30:00Z"},
		"New York spring, the gap's first minute": {"America/New_York", "0 2 * * *", "2026-03-07T12:00:00Z", "2026-03-09T12:00:00Z",
			"2026-03-08T07:00:00Z 2026-03-09T06:00:00Z"},
		"New York spring, the gap's end is itself a tick": {"America/New_York", "0 2,3 * * *", "2026-03-07T12:00:00Z", "2026-03-08T12:00:00Z",
			"2026-03-08T07:00:00Z"},
		"New York spring, many ticks in one gap": {"America/New_York", "*/15 2 * * *", "2026-03-07T12:00:00Z", "2026-03-08T12:00:00Z",
			"2026-03-08T07:00:00Z"},
		"New York spring, a weekday in the gap": {"America/New_York", "30 2 * * SUN", "2026-03-07T12:00:00Z", "2026-03-20T00:00:00Z",
			"2026-03-08T07:00:00Z 2026-03-15T06:30:00Z"},
		"New York spring, hourly owes nothing": {"America/New_York", "30 * * * *", "2026-03-08T06:00:00Z", "2026-03-08T09:00:00Z",
			"2026-03-08T06:30:00Z 2026-03-08T07:30:00Z 2026-03-08T08:30:00Z"},
		"New York spring, every second hour makes up": {"America/New_York", "30 */2 * * *", "2026-03-08T05:00:00Z", "2026-03-08T09:00:00Z",
			"2026-03-08T05:30:00Z 2026-03-08T07:00:00Z 2026-03-08T08:30:00Z"},
		"New York spring, written out every hour is fixed": {"America/New_York", "30 0-23 * * *", "2026-03-08T06:00:00Z", "2026-03-08T08:00:00Z",
			"2026-03-08T06:30:00Z 2026-03-08T07:00:00Z 2026-03-08T07:30:00Z"},
		"New York spring, quarters go on in step": {"America/New_York", "*/15 * * * *", "2026-03-08T06:44:00Z", "2026-03-08T07:16:00Z",
			"2026-03-08T06:45:00Z 2026-03-08T07:00:00Z 2026-03-08T07:15:00Z"},
		"New York spring, what is made up for meets a tick": {"America/New_York", "*/30 */24,2,3 * * *", "2026-03-08T04:00:00Z", "2026-03-08T08:00:00Z",
			"2026-03-08T05:00:00Z 2026-03-08T05:30:00Z 2026-03-08T07:00:00Z 2026-03-08T07:30:00Z"},
		"New York autumn, fixed time once, the first": {"America/New_York", "30 1 * * *", "2026-10-31T12:00:00Z", "2026-11-02T12:00:00Z",
			"2026-11-01T05:30:00Z 2026-11-02T06:30:00Z"},
		"New York autumn, several in the hour once each": {"America/New_York", "*/20 1 * * *", "2026-10-31T12:00:00Z", "2026-11-01T12:00:00Z",
			"2026-11-01T05:00:00Z 2026-11-01T05:20:00Z 2026-11-01T05:40:00Z"},
		"New York autumn, the hour after": {"America/New_York", "0 2 * * *", "2026-10-31T12:00:00Z", "2026-11-02T12:00:00Z",
			"2026-11-01T07:00:00Z 2026-11-02T07:00:00Z"},
		"New York autumn, hourly in both": {"America/New_York", "30 * * * *", "2026-11-01T05:00:00Z", "2026-11-01T08:00:00Z",
			"2026-11-01T05:30:00Z 2026-11-01T06:30:00Z 2026-11-01T07:30:00Z"},
		"New York autumn, asked within the repeated hour": {"America/New_York", "30 1 * * *", "2026-11-01T06:10:00Z", "2026-11-02T12:00:00Z",
			"2026-11-02T06:30:00Z"},
		"Berlin spring": {"Europe/Berlin", "30 2 * * *", "2026-03-28T12:00:00Z", "2026-03-30T12:00:00Z",
			"2026-03-29T01:00:00Z 2026-03-30T00:30:00Z"},
		"Berlin autumn, fixed": {"Europe/Berlin", "0 2 * * *", "2026-10-24T12:00:00Z", "2026-10-26T12:00:00Z",
			"2026-10-25T00:00:00Z 2026-10-26T01:00:00Z"},
		"Berlin autumn, every second hour twice": {"Europe/Berlin", "30 */2 * * *", "2026-10-24T22:00:00Z", "2026-10-25T04:00:00Z",
			"2026-10-24T22:30:00Z 2026-10-25T00:30:00Z 2026-10-25T01:30:00Z 2026-10-25T03:30:00Z"},
		"Berlin autumn, the last tick of a year twice": {"Europe/Berlin", "30 */24,2 25 10 *", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z",
			"2026-10-24T22:30:00Z 2026-10-25T00:30:00Z 2026-10-25T01:30:00Z"},
		"Berlin 2040, beyond the table of changes": {"Europe/Berlin", "30 2 * * *", "2040-03-24T12:00:00Z", "2040-03-26T12:00:00Z",
			"2040-03-25T01:00:00Z 2040-03-26T00:30:00Z"},
		"Lord Howe spring, half an hour": {"Australia/Lord_Howe", "15 2 * * *", "2026-10-03T00:00:00Z", "2026-10-05T00:00:00Z",
			"2026-10-03T15:30:00Z 2026-10-04T15:15:00Z"},
		"Lord Howe spring, just after the gap": {"Australia/Lord_Howe", "45 2 * * *", "2026-10-03T00:00:00Z", "2026-10-05T00:00:00Z",
			"2026-10-03T15:45:00Z 2026-10-04T15:45:00Z"},
		"Lord Howe autumn, half an hour": {"Australia/Lord_Howe", "45 1 * * *", "2026-04-03T16:00:00Z", "2026-04-05T16:00:00Z",
			"2026-04-04T14:45:00Z 2026-04-05T15:15:00Z"},
		"Lord Howe autumn, hourly sees only the half that repeats": {"Australia/Lord_Howe", "15,45 * * * *", "2026-04-04T14:00:00Z", "2026-04-04T16:00:00Z",
			"2026-04-04T14:15:00Z 2026-04-04T14:45:00Z 2026-04-04T15:15:00Z 2026-04-04T15:45:00Z"},
		"Sao Paulo 2018, midnight is jumped over": {"America/Sao_Paulo", "0 0 * * *", "2018-11-03T12:00:00Z", "2018-11-05T12:00:00Z",
			"2018-11-04T03:00:00Z 2018-11-05T02:00:00Z"},
		"Sao Paulo 2018, the hour before midnight repeats": {"America/Sao_Paulo", "30 23 * * *", "2018-02-17T12:00:00Z", "2018-02-19T12:00:00Z",
			"2018-02-18T01:30:00Z 2018-02-19T02:30:00Z"},
		"Sao Paulo 2018, midnight comes once": {"America/Sao_Paulo", "0 0 * * *", "2018-02-17T12:00:00Z", "2018-02-19T12:00:00Z",
			"2018-02-18T03:00:00Z 2018-02-19T03:00:00Z"},
		"Havana, midnight repeats": {"America/Havana", "0 0 * * *", "2026-10-31T12:00:00Z", "2026-11-02T12:00:00Z",
			"2026-11-01T04:00:00Z 2026-11-02T05:00:00Z"},
		"Beirut, midnight is jumped over": {"Asia/Beirut", "0 0 * * *", "2026-03-27T23:00:00Z", "2026-03-29T23:00:00Z",
			"2026-03-28T22:00:00Z 2026-03-29T21:00:00Z"},
		"Troll, two hours": {"Antarctica/Troll", "30 1,2 * * *", "2026-03-28T12:00:00Z", "2026-03-30T12:00:00Z",
			"2026-03-29T01:00:00Z 2026-03-29T23:30:00Z 2026-03-30T00:30:00Z"},
		"Apia skips a day": {"Pacific/Apia", "0 12 * * *", "2011-12-29T00:00:00Z", "2012-01-01T00:00:00Z",
			"2011-12-29T22:00:00Z 2011-12-30T10:00:00Z 2011-12-30T22:00:00Z 2011-12-31T22:00:00Z"},
		"Apia skips a month's thirtieth": {"Pacific/Apia", "0 0 30 * *", "2011-12-01T00:00:00Z", "2012-02-01T00:00:00Z",
			"2011-12-30T10:00:00Z 2012-01-29T10:00:00Z"},
		"Apia skips a day, hourly does not notice": {"Pacific/Apia", "0 * * * *", "2011-12-30T08:30:00Z", "2011-12-30T11:30:00Z",
			"2011-12-30T09:00:00Z 2011-12-30T10:00:00Z 2011-12-30T11:00:00Z"},
		"Kwajalein lived a day twice": {"Pacific/Kwajalein", "0 12 * * *", "1969-09-29T00:00:00Z", "1969-10-02T12:00:00Z",
			"1969-09-29T01:00:00Z 1969-09-30T01:00:00Z 1969-10-02T00:00:00Z"},
		"Pyongyang 2015, half an hour back at midnight": {"Asia/Pyongyang", "45 23 * * *", "2015-08-14T00:00:00Z", "2015-08-16T00:00:00Z",
			"2015-08-14T14:45:00Z 2015-08-15T15:15:00Z"},
		"@every takes no notice": {"America/New_York", "@every 30m", "2026-03-08T06:30:00Z", "2026-03-08T08:00:00Z",
			"2026-03-08T07:00:00Z 2026-03-08T07:30:00Z 2026-03-08T08:00:00Z"},
		"@at in a gap": {"America/New_York", "@at 2026-03-08 02:30", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z",
			"2026-03-08T07:00:00Z"},
		"@at in a repeated hour": {"America/New_York", "@at 2026-11-01 01:30", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z",
			"2026-11-01T05:30:00Z"},
		"29 February over 2100": {"America/New_York", "0 0 29 2 *", "2093-01-01T00:00:00Z", "2109-01-01T00:00:00Z",
			"2096-02-29T05:00:00Z 2104-02-29T05:00:00Z 2108-02-29T05:00:00Z"},
		"29 February, Sundays, over 2100": {"UTC", "0 0 29 2 */7", "2075-01-01T00:00:00Z", "2130-01-01T00:00:00Z",
			"2088-02-29T00:00:00Z 2128-02-29T00:00:00Z"},
		"the last day of a leap year": {"Europe/Berlin", "0 12 31 12 *", "2103-12-31T12:00:00Z", "2105-12-31T12:00:00Z",
			"2104-12-31T11:00:00Z 2105-12-31T11:00:00Z"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt := mustParse(t, job.Schedule{Cron: c.cron, TimeZone: c.zone})
			after, till := at(t, c.after), at(t, c.till)
			var got []string
			for _, u := range tt.Between(after, till, 100) {
				got = append(got, u.Format(time.RFC3339))
			}
			if s := strings.Join(got, " "); s != c.ticks {
				t.Errorf("ticks at\n%s; want\n%s", s, c.ticks)
			}
			if _, last, n := tt.Range(after, till); n != len(got) || n > 0 && last.Format(time.RFC3339) != got[n-1] {
				t.Errorf("counts %d ticks up to %v", n, last)
			}
		})
	}
}

func TestBetweenKeepsItsLimits(t *testing.T) {
	t.Parallel()
	tt := mustParse(t, job.Schedule{Cron: "@every 1m"})
	noon := at(t, "2026-06-01T12:00:00Z")
	for name, c := range map[string]struct {
		after, until time.Time
		limit, want  int
	}{
		"after is exclusive, until inclusive": {noon, noon.Add(2 * time.Minute), 10, 2},
		"limit":                               {noon, noon.Add(time.Hour), 10, 10},
		"limit zero":                          {noon, noon.Add(time.Hour), 0, 0},
		"until before after":                  {noon, noon.Add(-time.Hour), 10, 0},
		"until a moment too early":            {noon, noon.Add(time.Minute - 1), 10, 0},
		"after within a second":               {noon.Add(1), noon.Add(time.Minute), 10, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := tt.Between(c.after, c.until, c.limit); len(got) != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
}
