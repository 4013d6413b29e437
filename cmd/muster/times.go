package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/job/timetable"
)

// moment writes a time for people: on the clock of their zone, and how far away it is.
func (c *cli) moment(i job.Instant) string {
	if i == 0 {
		return ""
	}
	return i.Time().In(c.zone).Format("2006-01-02 15:04:05 MST") + " (" + c.relative(i) + ")"
}

// relative writes how far away a time is: "12s ago", "in 3h".
func (c *cli) relative(i job.Instant) string {
	if i == 0 {
		return ""
	}
	d := c.now().Sub(i.Time())
	switch {
	case d < 0:
		return "in " + span(-d)
	case d < time.Second:
		return "now"
	}
	return span(d) + " ago"
}

// span writes a duration with its two largest units at most.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	if d > 10*time.Second {
		d = d.Round(time.Second)
	}
	switch {
	case d < time.Millisecond:
		return strconv.FormatInt(d.Microseconds(), 10) + "µs"
	case d < time.Second:
		return strconv.FormatInt(d.Milliseconds(), 10) + "ms"
	case d < 10*time.Second:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", d.Seconds()), ".0") + "s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return two(d, time.Minute, "m", time.Second, "s")
	case d < day:
		return two(d, time.Hour, "h", time.Minute, "m")
	}
	return two(d, day, "d", time.Hour, "h")
}

func two(d, large time.Duration, l string, small time.Duration, s string) string {
	text := fmt.Sprintf("%d%s", d/large, l)
	if rest := d % large / small; rest > 0 && d/large < 10 {
		text += fmt.Sprintf("%d%s", rest, s)
	}
	return text
}

// took is how long an attempt has taken, until now if it is not over.
func (c *cli) took(from, to job.Instant) string {
	return tookUntil(from, to, job.At(c.now()))
}

func tookUntil(from, to, now job.Instant) string {
	if from == 0 {
		return ""
	}
	if to == 0 {
		to = now
	}
	return span(max(0, to.Sub(from)))
}

// parseTime reads a time that a person wrote; see timesHelp. A span lies in the past, or with ahead in the future.
func (c *cli) parseTime(flag, s string, ahead bool) (job.Instant, error) {
	if s == "" {
		return 0, nil
	}
	now := c.now()
	if s == "now" {
		return job.At(now), nil
	}
	if d, ok := parseSpan(s); ok {
		if ahead {
			return job.At(now.Add(d)), nil
		}
		return job.At(now.Add(-d)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, c.zone); err == nil {
			return job.At(t), nil
		}
	}
	return 0, usageErrorf("--%s: %q is not a time; write one such as 2026-01-31T09:00:00Z, \"2026-01-31 09:00\" or 12h (see muster help times)", flag, clip(s, 64))
}

// parseSpan reads Go's durations, and days and weeks of 24 hours and 7 days.
func parseSpan(s string) (time.Duration, bool) {
	for unit, length := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		if n, ok := strings.CutSuffix(s, unit); ok {
			if v, err := strconv.ParseUint(n, 10, 16); err == nil {
				return time.Duration(v) * length, true
			}
		}
	}
	d, err := time.ParseDuration(s)
	return d, err == nil && d >= 0
}

// nextTicks lists the coming ticks of a schedule, and says them on the schedule's own clock, which is the one its author
// had in mind.
func (c *cli) nextTicks(s *job.Schedule, n int) ([]job.Instant, error) {
	t, err := timetable.Parse(*s)
	if err != nil {
		return nil, err
	}
	var ticks []job.Instant
	for at := c.now(); len(ticks) < n; {
		next, ok := t.Next(at)
		if !ok {
			break
		}
		ticks = append(ticks, job.At(next))
		at = next
	}
	return ticks, nil
}

// tickWords writes a tick on the clock of its schedule.
func (c *cli) tickWords(s *job.Schedule, at job.Instant) string {
	return at.Time().In(scheduleZone(s.TimeZone)).Format("Mon 2006-01-02 15:04:05 MST") + " (" + c.relative(at) + ")"
}

// scheduleZone is the zone of a schedule that was found valid.
func scheduleZone(name string) *time.Location {
	if zone, err := time.LoadLocation(name); err == nil && name != "Local" {
		return zone
	}
	return time.UTC
}
