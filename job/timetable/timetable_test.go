package timetable

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

func at(t testing.TB, s string) time.Time {
	t.Helper()
	u, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return u.UTC()
}

func mustParse(t testing.TB, s job.Schedule) *Timetable {
	t.Helper()
	tt, err := Parse(s)
	if err != nil {
		t.Fatalf("Parse(%+v): %v", s, err)
	}
	return tt
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	day := at(t, "2026-06-01T00:00:00Z")
	for name, c := range map[string]struct {
		s     job.Schedule
		field string
		says  string
	}{
		"nothing":                              {job.Schedule{}, "schedule.cron", "is needed"},
		"only blanks":                          {job.Schedule{Cron: " \t "}, "schedule.cron", "is needed"},
		"too few fields":                       {job.Schedule{Cron: "* * * *"}, "schedule.cron", "has 4"},
		"too many fields":                      {job.Schedule{Cron: "0 0 0 1 1 * 2026"}, "schedule.cron", "has 7"},
		"too long":                             {job.Schedule{Cron: strings.Repeat("1,", 200) + "1 * * * *"}, "schedule.cron", "256"},
		"a megabyte":                           {job.Schedule{Cron: strings.Repeat("*", 1<<20)}, "schedule.cron", "256"},
		"NUL":                                  {job.Schedule{Cron: "0 0 * * *\x00"}, "schedule.cron", "ASCII"},
		"line break":                           {job.Schedule{Cron: "0 0 * * *\n"}, "schedule.cron", "ASCII"},
		"no-break space":                       {job.Schedule{Cron: "0\u00a00 * * *"}, "schedule.cron", "ASCII"},
		"invalid UTF-8":                        {job.Schedule{Cron: "0 0 * * \xff"}, "schedule.cron", "UTF-8"},
		"TZ=":                                  {job.Schedule{Cron: "TZ=Europe/Berlin 0 0 * * *"}, "schedule.cron", "time_zone"},
		"CRON_TZ=":                             {job.Schedule{Cron: "CRON_TZ=UTC 0 0 * * *"}, "schedule.cron", "time_zone"},
		"TZ=UTC alone, robfig panics":          {job.Schedule{Cron: "TZ=UTC"}, "schedule.cron", "time_zone"},
		"TZ= alone, robfig panics":             {job.Schedule{Cron: "TZ="}, "schedule.cron", "time_zone"},
		"minute 60":                            {job.Schedule{Cron: "60 * * * *"}, "schedule.cron", "minute"},
		"hour 24":                              {job.Schedule{Cron: "0 24 * * *"}, "schedule.cron", "hour"},
		"day 0":                                {job.Schedule{Cron: "0 0 0 * *"}, "schedule.cron", "day-of-month"},
		"month 13":                             {job.Schedule{Cron: "0 0 1 13 *"}, "schedule.cron", "month"},
		"weekday 8":                            {job.Schedule{Cron: "0 0 * * 8"}, "schedule.cron", "day-of-week"},
		"second 60":                            {job.Schedule{Cron: "60 0 0 * * *"}, "schedule.cron", "second"},
		"backward range":                       {job.Schedule{Cron: "0 22-2 * * *"}, "schedule.cron", "hour"},
		"step 0":                               {job.Schedule{Cron: "*/0 * * * *"}, "schedule.cron", "minute"},
		"negative number":                      {job.Schedule{Cron: "-1 * * * *"}, "schedule.cron", "minute"},
		"huge number":                          {job.Schedule{Cron: "99999999999999999999 * * * *"}, "schedule.cron", "minute"},
		"lone comma, robfig takes it":          {job.Schedule{Cron: ", * * * *"}, "schedule.cron", "minute"},
		"empty list item, robfig takes it":     {job.Schedule{Cron: "1,,2 * * * *"}, "schedule.cron", "minute"},
		"star with range, robfig takes it":     {job.Schedule{Cron: "*-5 * * * *"}, "schedule.cron", "minute"},
		"plus sign, robfig takes it":           {job.Schedule{Cron: "+5 * * * *"}, "schedule.cron", "minute"},
		"name in a number field":               {job.Schedule{Cron: "0 mon * * *"}, "schedule.cron", "hour"},
		"weekday as month":                     {job.Schedule{Cron: "0 0 1 fri *"}, "schedule.cron", "month"},
		"L":                                    {job.Schedule{Cron: "0 0 L * *"}, "schedule.cron", "28-31"},
		"W":                                    {job.Schedule{Cron: "0 0 15W * *"}, "schedule.cron", "not supported"},
		"#":                                    {job.Schedule{Cron: "0 0 * * 5#3"}, "schedule.cron", "not supported"},
		"H":                                    {job.Schedule{Cron: "H * * * *"}, "schedule.cron", "fixed number"},
		"random range":                         {job.Schedule{Cron: "0~59 * * * *"}, "schedule.cron", "random"},
		"30 February":                          {job.Schedule{Cron: "0 0 30 2 *"}, "schedule.cron", "never comes"},
		"31 of short months":                   {job.Schedule{Cron: "0 0 31 2,4,6,9,11 *"}, "schedule.cron", "never comes"},
		"unknown descriptor":                   {job.Schedule{Cron: "@fortnightly"}, "schedule.cron", "not known"},
		"descriptor and more":                  {job.Schedule{Cron: "@daily 5"}, "schedule.cron", "not known"},
		"@reboot":                              {job.Schedule{Cron: "@reboot"}, "schedule.cron", "init system"},
		"@every alone":                         {job.Schedule{Cron: "@every"}, "schedule.cron", "duration"},
		"@every nonsense":                      {job.Schedule{Cron: "@every soon"}, "schedule.cron", "duration"},
		"@every 1d":                            {job.Schedule{Cron: "@every 1d"}, "schedule.cron", "24h"},
		"@every 0s":                            {job.Schedule{Cron: "@every 0s"}, "schedule.cron", "1s or more"},
		"@every 1ns":                           {job.Schedule{Cron: "@every 1ns"}, "schedule.cron", "1s or more"},
		"@every 1.5s":                          {job.Schedule{Cron: "@every 1.5s"}, "schedule.cron", "whole number"},
		"@every -5s":                           {job.Schedule{Cron: "@every -5s"}, "schedule.cron", "1s or more"},
		"@every 20 years":                      {job.Schedule{Cron: "@every 175200h"}, "schedule.cron", "ten years"},
		"@every beyond what a duration holds":  {job.Schedule{Cron: "@every 99999999999h"}, "schedule.cron", "duration"},
		"@at alone":                            {job.Schedule{Cron: "@at"}, "schedule.cron", "@at needs"},
		"@at nonsense":                         {job.Schedule{Cron: "@at noon"}, "schedule.cron", "@at needs"},
		"@at 31 February":                      {job.Schedule{Cron: "@at 2026-02-31T00:00:00Z"}, "schedule.cron", "@at needs"},
		"@at with a fraction":                  {job.Schedule{Cron: "@at 2026-02-01T00:00:00.5Z"}, "schedule.cron", "whole seconds"},
		"@at in antiquity":                     {job.Schedule{Cron: "@at 0044-03-15T12:00:00Z"}, "schedule.cron", "1970"},
		"zone Local":                           {job.Schedule{Cron: "@daily", TimeZone: "Local"}, "schedule.time_zone", "each machine"},
		"unknown zone":                         {job.Schedule{Cron: "@daily", TimeZone: "Mars/Olympus"}, "schedule.time_zone", "not a time zone"},
		"zone in small letters":                {job.Schedule{Cron: "@daily", TimeZone: "europe/berlin"}, "schedule.time_zone", "did you mean Europe/Berlin?"},
		"zone without its continent":           {job.Schedule{Cron: "@daily", TimeZone: "New York"}, "schedule.time_zone", "did you mean America/New_York?"},
		"zone as a path":                       {job.Schedule{Cron: "@daily", TimeZone: "../../etc/passwd"}, "schedule.time_zone", "not a time zone"},
		"zone that is a folder":                {job.Schedule{Cron: "@daily", TimeZone: "Europe"}, "schedule.time_zone", "not a time zone"},
		"zone checked for @every too":          {job.Schedule{Cron: "@every 1h", TimeZone: "Nowhere"}, "schedule.time_zone", "not a time zone"},
		"unknown policy":                       {job.Schedule{Cron: "@daily", CatchUp: job.CatchUp{Policy: "some"}}, "schedule.catch_up.policy", "none, latest or all"},
		"max below zero":                       {job.Schedule{Cron: "@daily", CatchUp: job.CatchUp{Max: -1}}, "schedule.catch_up.max", "out of range"},
		"max above the limit":                  {job.Schedule{Cron: "@daily", CatchUp: job.CatchUp{Max: 10_001}}, "schedule.catch_up.max", "10000"},
		"end before start":                     {job.Schedule{Cron: "@daily", StartAt: day, EndAt: day.Add(-1)}, "schedule.end_at", "not after"},
		"end at start":                         {job.Schedule{Cron: "@daily", StartAt: day, EndAt: day}, "schedule.end_at", "not after"},
		"no tick between start and end":        {job.Schedule{Cron: "0 12 * * *", StartAt: day, EndAt: day.Add(time.Hour)}, "schedule.end_at", "between"},
		"@at before start":                     {job.Schedule{Cron: "@at 2026-05-31T00:00:00Z", StartAt: day}, "schedule.start_at", "start_at"},
		"@at at the end":                       {job.Schedule{Cron: "@at 2026-06-01T00:00:00Z", EndAt: day}, "schedule.end_at", "before end_at"},
		"start after the last year":            {job.Schedule{Cron: "@daily", StartAt: time.Unix(1<<40, 0)}, "schedule.start_at", "never ticks"},
		"less than a second, no whole one":     {job.Schedule{Cron: "* * * * * *", StartAt: day.Add(1), EndAt: day.Add(time.Second)}, "schedule.end_at", "never ticks"},
		"after Apia's skipped day, no tick":    {job.Schedule{Cron: "0 12 * * *", TimeZone: "Pacific/Apia", StartAt: at(t, "2011-12-30T10:00:01Z"), EndAt: at(t, "2011-12-30T22:00:00Z")}, "schedule.end_at", "never ticks"},
		"29 February between two of them only": {job.Schedule{Cron: "0 0 29 2 *", StartAt: at(t, "2097-01-01T00:00:00Z"), EndAt: at(t, "2104-02-29T00:00:00Z")}, "schedule.end_at", "never ticks"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt, err := Parse(c.s)
			if err == nil {
				t.Fatalf("accepted; ticks first at %v", first(tt))
			}
			var e *job.Error
			if !errors.As(err, &e) {
				t.Fatalf("got a %T: %v", err, err)
			}
			if e.Code != job.Invalid || e.Field != c.field || !strings.Contains(e.Message, c.says) {
				t.Errorf("got code %q, field %q, message %q;\nwant invalid, %q, and %q in the message", e.Code, e.Field, e.Message, c.field, c.says)
			}
			if len(e.Message) > 500 {
				t.Errorf("the message has %d bytes", len(e.Message))
			}
		})
	}
}

func first(tt *Timetable) time.Time {
	u, _ := tt.Next(time.Time{})
	return u
}

func TestParseUnderstands(t *testing.T) {
	t.Parallel()
	// Each expression is followed by its first ticks after Thursday 2026-01-01 00:00:00 UTC, in its zone.
	for name, c := range map[string]struct {
		cron, zone string
		ticks      string
	}{
		"five fields":                     {"30 4 * * *", "", "01-01 04:30:00, 01-02 04:30:00"},
		"six fields":                      {"15 30 4 * * *", "", "01-01 04:30:15, 01-02 04:30:15"},
		"blanks of all kinds":             {"  30\t4   * * * ", "", "01-01 04:30:00, 01-02 04:30:00"},
		"list, range and step":            {"0,30 8-10/2 * * *", "", "01-01 08:00:00, 01-01 08:30:00, 01-01 10:00:00, 01-01 10:30:00, 01-02 08:00:00"},
		"step from a number to the end":   {"0 5/9 * * *", "", "01-01 05:00:00, 01-01 14:00:00, 01-01 23:00:00, 01-02 05:00:00"},
		"leading zeros":                   {"09 007 * * *", "", "01-01 07:09:00"},
		"names in any case":               {"0 0 * Feb sAT", "", "02-07 00:00:00, 02-14 00:00:00"},
		"ranges of names":                 {"0 0 * * thu-sat", "", "01-02 00:00:00, 01-03 00:00:00, 01-08 00:00:00"},
		"question mark":                   {"0 0 12 ? * SUN", "", "01-04 12:00:00"},
		"Sunday as 0":                     {"0 0 * * 0", "", "01-04 00:00:00, 01-11 00:00:00"},
		"Sunday as 7":                     {"0 0 * * 7", "", "01-04 00:00:00, 01-11 00:00:00"},
		"Friday to 7":                     {"0 0 * * 5-7", "", "01-02 00:00:00, 01-03 00:00:00, 01-04 00:00:00, 01-09 00:00:00"},
		"Friday to Sunday by name":        {"0 0 * * fri-sun", "", "01-02 00:00:00, 01-03 00:00:00, 01-04 00:00:00, 01-09 00:00:00"},
		"1-7 by twos":                     {"0 0 * * 1-7/2", "", "01-02 00:00:00, 01-04 00:00:00, 01-05 00:00:00, 01-07 00:00:00"},
		"0-7 is every day":                {"0 0 * * 0-7", "", "01-02 00:00:00, 01-03 00:00:00, 01-04 00:00:00"},
		"either day of two":               {"0 0 13 * FRI", "", "01-02 00:00:00, 01-09 00:00:00, 01-13 00:00:00"},
		"both days where one has a star":  {"0 0 */2 * FRI", "", "01-09 00:00:00, 01-23 00:00:00"},
		"star weekday with a step":        {"0 0 1-7 * */7", "", "01-04 00:00:00, 02-01 00:00:00"},
		"first Monday, the old trick":     {"0 0 */40,1-7 * MON", "", "01-05 00:00:00, 02-02 00:00:00, 03-02 00:00:00"},
		"a star in a list is no star":     {"0 0 1,* * MON", "", "01-02 00:00:00, 01-03 00:00:00"},
		"@hourly":                         {"@hourly", "", "01-01 01:00:00, 01-01 02:00:00"},
		"@daily":                          {"@daily", "", "01-02 00:00:00, 01-03 00:00:00"},
		"@midnight":                       {"@midnight", "", "01-02 00:00:00"},
		"@weekly":                         {"@weekly", "", "01-04 00:00:00, 01-11 00:00:00"},
		"@monthly":                        {"@monthly", "", "02-01 00:00:00, 03-01 00:00:00"},
		"@every counts from the epoch":    {"@every 11h", "", "01-01 01:00:00, 01-01 12:00:00"},
		"@every minds no zone":            {"@every 24h", "Asia/Kathmandu", "01-01 05:45:00, 01-02 05:45:00"},
		"@at with an offset":              {"@at 2026-01-31T09:00:00+02:00", "", "01-31 07:00:00"},
		"@at in the zone":                 {"@at 2026-01-31T09:00:00", "America/New_York", "01-31 09:00:00"},
		"@at with a blank, in the zone":   {"@at 2026-01-31 09:00", "America/New_York", "01-31 09:00:00"},
		"zone with odd minutes":           {"0 0 * * *", "Asia/Kathmandu", "01-02 00:00:00, 01-03 00:00:00"},
		"zone by an old name":             {"0 0 * * *", "Asia/Calcutta", "01-02 00:00:00"},
		"zone with a fixed offset":        {"0 0 * * *", "Etc/GMT-14", "01-02 00:00:00"},
		"29 February, in two years' time": {"0 0 29 2 *", "", "2028-02-29 00:00:00, 2032-02-29 00:00:00"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt := mustParse(t, job.Schedule{Cron: c.cron, TimeZone: c.zone})
			from := at(t, "2026-01-01T00:00:00Z").Add(-time.Duration(tt.zone.spanAt(1767225600).offset) * time.Second)
			var got []string
			for _, u := range tt.Between(from, from.AddDate(50, 0, 0), len(strings.Split(c.ticks, ", "))) {
				if u.Location() != time.UTC {
					t.Errorf("%v is not in UTC", u)
				}
				u = u.In(mustZone(t, c.zone).loc)
				layout := "01-02 15:04:05"
				if u.Year() != 2026 {
					layout = "2006-01-02 15:04:05"
				}
				got = append(got, u.Format(layout))
			}
			if s := strings.Join(got, ", "); s != c.ticks {
				t.Errorf("%s ticks at\n%s; want\n%s", c.cron, s, c.ticks)
			}
		})
	}
}

func mustZone(t testing.TB, name string) *zone {
	t.Helper()
	z, err := findZone("zone", name)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func TestBounds(t *testing.T) {
	t.Parallel()
	start, end := at(t, "2026-06-01T12:00:00Z"), at(t, "2026-06-04T12:00:00Z")
	for name, c := range map[string]struct {
		s           job.Schedule
		first, last string
		n           int
	}{
		"start is inclusive, end exclusive": {job.Schedule{Cron: "0 12 * * *", StartAt: start, EndAt: end}, "2026-06-01T12:00:00Z", "2026-06-03T12:00:00Z", 3},
		"fractions round up":                {job.Schedule{Cron: "0 12 * * *", StartAt: start.Add(1), EndAt: end.Add(1)}, "2026-06-02T12:00:00Z", "2026-06-04T12:00:00Z", 3},
		"@every starts with start_at":       {job.Schedule{Cron: "@every 25h", StartAt: start, EndAt: end}, "2026-06-01T12:00:00Z", "2026-06-03T14:00:00Z", 3},
		"@every is longer than the bounds":  {job.Schedule{Cron: "@every 9000h", StartAt: start, EndAt: end}, "2026-06-01T12:00:00Z", "2026-06-01T12:00:00Z", 1},
		"@at at the start":                  {job.Schedule{Cron: "@at 2026-06-01T12:00:00Z", StartAt: start, EndAt: end}, "2026-06-01T12:00:00Z", "2026-06-01T12:00:00Z", 1},
		"bounds written in another zone":    {job.Schedule{Cron: "0 12 * * *", StartAt: start.In(time.FixedZone("", 3600)), EndAt: end}, "2026-06-01T12:00:00Z", "2026-06-03T12:00:00Z", 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt := mustParse(t, c.s)
			first, last, n := tt.Range(time.Time{}, at(t, "9999-01-01T00:00:00Z"))
			if !first.Equal(at(t, c.first)) || !last.Equal(at(t, c.last)) || n != c.n {
				t.Errorf("%d ticks from %v to %v; want %d from %s to %s", n, first, last, c.n, c.first, c.last)
			}
			if u, ok := tt.Next(last); ok {
				t.Errorf("after the last there is %v", u)
			}
			if u, _ := tt.Next(first.Add(-1)); !u.Equal(first) {
				t.Errorf("a nanosecond before the first tick the next is %v", u)
			}
		})
	}
}

func TestEveryIsTheSameForEveryLeader(t *testing.T) {
	t.Parallel()
	// Two leaders that look at different times must agree; robfig counts from when it is asked.
	tt := mustParse(t, job.Schedule{Cron: "@every 10m"})
	for _, asked := range []string{"2026-06-01T00:03:07Z", "2026-06-01T00:05:00Z", "2026-06-01T00:09:59.999Z"} {
		if u, _ := tt.Next(at(t, asked)); !u.Equal(at(t, "2026-06-01T00:10:00Z")) {
			t.Errorf("asked at %s the next tick is %v", asked, u)
		}
	}
}

func TestExtremeInstants(t *testing.T) {
	t.Parallel()
	for _, s := range []job.Schedule{
		{Cron: "* * * * * *"}, {Cron: "0 0 29 2 *", TimeZone: "America/New_York"}, {Cron: "@every 1s"}, {Cron: "@every 87000h"},
		{Cron: "@at 2026-01-01T00:00:00Z"}, {Cron: "*/7 */5 * * *", TimeZone: "Australia/Lord_Howe"},
	} {
		tt := mustParse(t, s)
		for _, after := range []time.Time{{}, time.Unix(0, 0), time.Unix(-1<<62, 0), time.Unix(1<<62, 0), time.Unix(lastInstant, 0), time.Unix(lastInstant-1, 0)} {
			if u, ok := tt.Next(after); ok && (u.IsZero() || u.Year() > 9999) {
				t.Errorf("%s: after %v comes %v", tt, after, u)
			}
			tt.Range(after, time.Unix(1<<62, 0))
			tt.Due(after, time.Unix(1<<62, 0), 0)
		}
	}
}

func TestEqualSchedulesShareTheirZone(t *testing.T) {
	t.Parallel()
	a := mustParse(t, job.Schedule{Cron: "@daily", TimeZone: "Europe/Paris"})
	b := mustParse(t, job.Schedule{Cron: "@hourly", TimeZone: "Europe/Paris"})
	if a.zone != b.zone {
		t.Error("two timetables hold two copies of one zone")
	}
}
