package timetable

import (
	"testing"

	"github.com/musterhq/muster/job"
)

func TestDescribe(t *testing.T) {
	t.Parallel()
	for cron, want := range map[string]string{
		"0 0 * * *":                     "every day at 00:00 Europe/Berlin",
		"@daily":                        "every day at 00:00 Europe/Berlin",
		"30 4,16 * * *":                 "every day at 04:30 and 16:30 Europe/Berlin",
		"0 6,12,18 * * *":               "every day at 06:00, 12:00 and 18:00 Europe/Berlin",
		"15 30 4 * * *":                 "every day at 04:30:15 Europe/Berlin",
		"* * * * *":                     "every minute",
		"*/5 * * * *":                   "every 5 minutes",
		"*/30 * * * * *":                "every 30 seconds",
		"* * * * * *":                   "every second",
		"@hourly":                       "every hour",
		"17 * * * *":                    "every hour at minute 17",
		"17 */6 * * *":                  "every day at 00:17, 06:17, 12:17 and 18:17 Europe/Berlin",
		"5 */2 * * *":                   "every 2 hours at minute 5, Europe/Berlin",
		"*/15 9-17 * * 1-5":             "every 15 minutes from 09:00 to 17:59, Monday to Friday, Europe/Berlin",
		"5 9-17 * * *":                  "every hour from 09:05 to 17:05, Europe/Berlin",
		"0 9 * * 1-5":                   "Monday to Friday at 09:00 Europe/Berlin",
		"0 9 * * SUN":                   "on Sundays at 09:00 Europe/Berlin",
		"0 9 * * MON,THU":               "on Mondays and Thursdays at 09:00 Europe/Berlin",
		"0 9 * 6-8 MON":                 "on Mondays in June, July and August at 09:00 Europe/Berlin",
		"0 9 * 12 *":                    "every day in December at 09:00 Europe/Berlin",
		"@monthly":                      "on day 1 of every month at 00:00 Europe/Berlin",
		"0 0 1,15 * *":                  "on day 1 and 15 of every month at 00:00 Europe/Berlin",
		"0 0 1 1,7 *":                   "on day 1 of January and July at 00:00 Europe/Berlin",
		"@yearly":                       "every year on 1 January at 00:00 Europe/Berlin",
		"0 0 13 * FRI":                  "on day 13 of every month and on Fridays at 00:00 Europe/Berlin",
		"0 0 1,* * MON":                 "every day at 00:00 Europe/Berlin",
		"@every 90m":                    "every 1 hour 30 minutes",
		"@every 1h":                     "every hour",
		"@every 24h":                    "every 24 hours",
		"@every 61s":                    "every 1 minute 1 second",
		"@at 2026-03-08 02:30":          "once at 2026-03-08 02:30 Europe/Berlin",
		"@at 2026-03-08T02:30:15-05:00": "once at 2026-03-08 07:30:15 UTC",
		"*/7 * * * *":                   `whenever "*/7 * * * *" matches in Europe/Berlin`,
		"1,2,3,8 5-9/3 * * *":           `whenever "1,2,3,8 5-9/3 * * *" matches in Europe/Berlin`,
		"0 0 */2 * MON":                 `whenever "0 0 */2 * MON" matches in Europe/Berlin`,
		"0 0 1,2,3,4,5,6,7,8,9 * *":     `whenever "0 0 1,2,3,4,5,6,7,8,9 * *" matches in Europe/Berlin`,
		"0 0 1 1 MON":                   `whenever "0 0 1 1 MON" matches in Europe/Berlin`,
		"   0   0 *\t* *   ":            "every day at 00:00 Europe/Berlin",
		"10-20 0 * * *":                 `whenever "10-20 0 * * *" matches in Europe/Berlin`,
		"*/5 * * * 0":                   "every 5 minutes, on Sundays, Europe/Berlin",
		"0 0 * * 0,6":                   "on Sundays and Saturdays at 00:00 Europe/Berlin",
		"0-59/20 10 * * *":              "every day at 10:00, 10:20 and 10:40 Europe/Berlin",
		"*/10 0 * * *":                  "every 10 minutes from 00:00 to 00:59, Europe/Berlin",
		"*/10 8,12 * * *":               `whenever "*/10 8,12 * * *" matches in Europe/Berlin`,
		"0 0 12 ? * MON":                "on Mondays at 12:00 Europe/Berlin",
		"30 */10 * * * *":               `whenever "30 */10 * * * *" matches in Europe/Berlin`,
		"0 0,30 0-23 * * *":             "every 30 minutes",
	} {
		t.Run(cron, func(t *testing.T) {
			t.Parallel()
			tt := mustParse(t, job.Schedule{Cron: cron, TimeZone: "Europe/Berlin"})
			if got := tt.Describe(); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestDescribeBounds(t *testing.T) {
	t.Parallel()
	start, end := at(t, "2026-06-01T10:00:00Z"), at(t, "2026-07-01T10:00:30Z")
	for want, s := range map[string]job.Schedule{
		"every day at 00:00 UTC": {Cron: "@daily"},
		"every day at 00:00 Europe/Berlin, from 2026-06-01 12:00 Europe/Berlin, until 2026-07-01 12:00:30 Europe/Berlin": {Cron: "@daily", TimeZone: "Europe/Berlin", StartAt: start, EndAt: end},
		"every 10 minutes, counted from 2026-06-01 10:00 UTC":                                                            {Cron: "@every 10m", StartAt: start},
		"every 10 minutes, until 2026-07-01 10:00:30 UTC":                                                                {Cron: "@every 10m", EndAt: end},
	} {
		if got := mustParse(t, s).Describe(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}
