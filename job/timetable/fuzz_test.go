package timetable

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/musterhq/muster/job"
)

func FuzzParse(f *testing.F) {
	for _, cron := range []string{
		"0 0 * * *", "*/5 9-17 * jan-mar mon-fri", "0 30 2 29 2 */7", "@daily", "@every 90s", "@at 2026-03-08 02:30",
		"TZ=UTC", "CRON_TZ=", "TZ=TZ=TZ=", "0 0 30 2 *", ", * * * *", "*-5 * * * *", "0 0 ? * 5-7/2", "99999999999 * * * *", "@every -5s", "@",
	} {
		f.Add(cron, "America/New_York", int64(1772000000), int64(0), int64(0), "latest", 0)
		f.Add(cron, "", int64(1793500000), int64(1793000000), int64(1893000000), "all", 7)
	}
	f.Fuzz(func(t *testing.T, cron, zone string, now, start, end int64, policy string, limit int) {
		s := job.Schedule{Cron: cron, TimeZone: zone, CatchUp: job.CatchUp{Policy: job.CatchUpPolicy(policy), Max: limit}}
		if start != 0 {
			s.StartAt = time.Unix(start, 0)
		}
		if end != 0 {
			s.EndAt = time.Unix(end, 0)
		}
		tt, err := Parse(s)
		if err != nil {
			var e *job.Error
			if !errors.As(err, &e) || e.Code != job.Invalid || e.Field == "" || e.Message == "" || !utf8.ValidString(e.Message) {
				t.Fatalf("%+v: a poor error: %#v", s, err)
			}
			return
		}
		first, ok := tt.Next(time.Time{})
		if !ok {
			t.Fatalf("%+v was accepted and never ticks", s)
		}
		for _, after := range []time.Time{first, time.Unix(now, 0)} {
			for range 20 {
				next, ok := tt.Next(after)
				if !ok {
					break
				}
				if !next.After(after) || next.Year() > 9999 || !s.EndAt.IsZero() && !next.Before(s.EndAt) || !s.StartAt.IsZero() && next.Before(s.StartAt) {
					t.Fatalf("%+v: after %s comes %s", s, after, next)
				}
				after = next
			}
		}
		mark, until := time.Unix(now, 0), time.Unix(now, 0).AddDate(1, 0, 0)
		_, _, want := tt.Range(mark, until)
		n := 0
		for _, d := range tt.Due(mark, until, 0) {
			n += d.Count
		}
		if n != want || tt.Describe() == "" || tt.String() == "" {
			t.Fatalf("%+v: %d ticks are decided, %d are due; %s", s, n, want, tt.Describe())
		}
	})
}

func FuzzParseCrontab(f *testing.F) {
	files, err := filepath.Glob("testdata/*.crontab")
	if err != nil || len(files) == 0 {
		f.Fatal("no crontabs to begin with")
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, "")
		f.Add(data, "system")
		f.Add(data, "user")
	}
	f.Add([]byte("CRON_TZ=Local\n0 0 * * * a%b\\%c%\n=x\n\"=\"=\n@ \n-* * * * * \\"), "")
	f.Fuzz(func(t *testing.T, data []byte, form string) {
		c, err := ParseCrontab(bytes.NewReader(data), CrontabOptions{Form: CrontabForm(form)})
		if err != nil {
			if job.CodeOf(err) != job.Invalid {
				t.Fatalf("a poor error: %#v", err)
			}
			return
		}
		names := map[string]bool{}
		for _, e := range c.Entries {
			if !jobName.MatchString(e.Name) || names[e.Name] {
				t.Fatalf("the name %q is invalid or taken", e.Name)
			}
			names[e.Name] = true
			if _, err := Parse(e.Schedule); err != nil {
				t.Fatalf("line %d: %v", e.Line, err)
			}
			if len(e.Command) != 3 || e.Command[2] == "" || e.Line < 1 {
				t.Fatalf("a poor entry: %+v", e)
			}
		}
		for _, s := range c.Skipped {
			if s.Why == "" || s.Line < 1 || !utf8.ValidString(s.Text) || !utf8.ValidString(s.Why) {
				t.Fatalf("a poor reason: %+v", s)
			}
		}
	})
}
