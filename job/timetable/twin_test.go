package timetable

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/robfig/cron/v3"
	"pgregory.net/rapid"

	"github.com/musterhq/muster/job"
)

// The twin: a second way to every answer, slow and plain. It shares nothing with the first but the zone's data: an
// expression is made of items that each know what they match, and time passes step by step on a clock read from package
// time.

// anItem is one item of a field's list.
type anItem struct {
	text  string
	match func(v int) bool
}

type aField struct {
	items []anItem
	star  bool // begins with a star
	stars bool // has a star anywhere
}

func (f aField) String() string {
	var texts []string
	for _, i := range f.items {
		texts = append(texts, i.text)
	}
	return strings.Join(texts, ",")
}

func (f aField) match(v int) bool {
	return slices.ContainsFunc(f.items, func(i anItem) bool { return i.match(v) })
}

// anExpr is an expression: second, minute, hour, day of month, month, day of week.
type anExpr [6]aField

func (e anExpr) String() string {
	var texts []string
	for _, f := range e {
		texts = append(texts, f.String())
	}
	if texts[0] == "0" {
		texts = texts[1:]
	}
	return strings.Join(texts, " ")
}

// match tells whether the expression matches what a clock shows.
func (e anExpr) match(c time.Time) bool {
	dom := e[3].match(c.Day())
	dow := e[5].match(int(c.Weekday())) || c.Weekday() == time.Sunday && e[5].match(7)
	day := dom && dow
	if !e[3].star && !e[5].star {
		day = dom || dow
	}
	return e[0].match(c.Second()) && e[1].match(c.Minute()) && e[2].match(c.Hour()) && e[4].match(int(c.Month())) && day
}

// hourly tells whether it matches in every hour, and says so with a star.
func (e anExpr) hourly() bool {
	for h := range 24 {
		if !e[2].match(h) {
			return false
		}
	}
	return e[2].stars
}

var weekdayNames = []string{"SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"}

func drawItem(t *rapid.T, low, high int, name func(v int) string) anItem {
	number := func(lo, hi int) (int, string) {
		v := rapid.IntRange(lo, hi).Draw(t, "number")
		if name != nil && rapid.IntRange(0, 4).Draw(t, "named") == 0 {
			return v, name(v)
		}
		return v, fmt.Sprint(v)
	}
	switch rapid.IntRange(0, 5).Draw(t, "kind of item") {
	case 0:
		step := rapid.IntRange(1, high).Draw(t, "step")
		// Of the days of the week a star means 0 to 6.
		return anItem{fmt.Sprintf("*/%d", step), func(v int) bool { return (v-low)%step == 0 && !(name != nil && low == 0 && v == 7) }}
	case 1:
		a, text := number(low, high)
		b, toText := number(a, high)
		return anItem{text + "-" + toText, func(v int) bool { return a <= v && v <= b }}
	case 2:
		a, text := number(low, high)
		b, toText := number(a, high)
		step := rapid.IntRange(1, high).Draw(t, "step")
		return anItem{fmt.Sprintf("%s-%s/%d", text, toText, step), func(v int) bool { return a <= v && v <= b && (v-a)%step == 0 }}
	case 3:
		a, text := number(low, high)
		step := rapid.IntRange(1, high).Draw(t, "step")
		return anItem{fmt.Sprintf("%s/%d", text, step), func(v int) bool {
			return v >= a && (v-a)%step == 0 && !(name != nil && low == 0 && v == 7 && a != 7)
		}}
	default:
		a, text := number(low, high)
		return anItem{text, func(v int) bool { return v == a }}
	}
}

func drawField(t *rapid.T, low, high, starsOfTen int, name func(v int) string) aField {
	if rapid.IntRange(1, 10).Draw(t, "star") <= starsOfTen {
		return aField{[]anItem{{"*", func(int) bool { return true }}}, true, true}
	}
	var f aField
	for range rapid.IntRange(1, 3).Draw(t, "items") {
		f.items = append(f.items, drawItem(t, low, high, name))
	}
	f.star = strings.HasPrefix(f.String(), "*")
	f.stars = strings.Contains(f.String(), "*")
	return f
}

func drawExpr(t *rapid.T, seconds bool) anExpr {
	e := anExpr{0: {items: []anItem{{"0", func(v int) bool { return v == 0 }}}}}
	if seconds {
		e[0] = drawField(t, 0, 59, 2, nil)
	}
	e[1] = drawField(t, 0, 59, 2, nil)
	e[2] = drawField(t, 0, 23, 4, nil)
	e[3] = drawField(t, 1, 31, 7, nil)
	e[4] = drawField(t, 1, 12, 8, func(v int) string { return time.Month(v).String()[:3] })
	// A range that begins with SUN by name cannot end in a 7; FRI-SUN can.
	e[5] = drawField(t, 0, 7, 7, func(v int) string {
		if v == 7 {
			return "7"
		}
		return weekdayNames[v]
	})
	return e
}

// stepping lists the ticks in [from, to) by letting time pass. A step is a minute or a second; since 1980 no zone's
// offset has had seconds in it.
func (e anExpr) stepping(loc *time.Location, from, to, step int64) []int64 {
	shows := func(u int64) int64 {
		_, offset := time.Unix(u, 0).In(loc).Zone()
		return u + int64(offset)
	}
	match := func(wall int64) bool { return e.match(time.Unix(wall, 0).UTC()) }
	high := int64(0)
	for u := from - 50*3600; u < from; u += 60 {
		high = max(high, shows(u), shows(u+60-step))
	}
	var ticks []int64
	for u := from; u < to; u += step {
		wall := shows(u)
		tick := false
		if e[2].stars {
			tick = match(wall)
			for w := shows(u-step) + step; w < wall && !tick && !e.hourly(); w += step {
				tick = match(w)
			}
		} else {
			for w := high + step; w <= wall && !tick; w += step {
				tick = match(w)
			}
			high = max(high, wall)
		}
		if tick {
			ticks = append(ticks, u)
		}
	}
	return ticks
}

var livelyZones = []string{"America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Pacific/Apia", "America/Havana",
	"America/Sao_Paulo", "Africa/Casablanca", "Asia/Gaza", "Antarctica/Troll", "Antarctica/Casey", "America/St_Johns", "Asia/Pyongyang",
	"Africa/Cairo", "Europe/Dublin", "America/Asuncion", "Asia/Tehran", "Pacific/Kwajalein", "America/Caracas", "UTC"}

func zoneNames(t testing.TB) []string {
	files, err := zoneFiles()
	if err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(maps.Keys(files))
}

// drawInstant draws a whole minute of the years, likely in the days before or the hours after a change of the zone's clock.
func drawInstant(t *rapid.T, loc *time.Location, fromYear, toYear int) int64 {
	year := rapid.IntRange(fromYear, toYear).Draw(t, "year")
	u := time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC).Unix() + 60*rapid.Int64Range(0, 525_599).Draw(t, "minute of the year")
	if rapid.IntRange(0, 3).Draw(t, "anywhere") > 0 {
		if _, change := time.Unix(u, 0).In(loc).ZoneBounds(); !change.IsZero() && change.Year() <= toYear {
			u = change.Unix() - 60*rapid.OneOf(rapid.Int64Range(-180, 0), rapid.Int64Range(0, 2*1440)).Draw(t, "minutes before the change")
		}
	}
	return u
}

// parseDrawn parses e; false if it is one of those that can never tick.
func parseDrawn(t *rapid.T, e anExpr, zone string) (*Timetable, bool) {
	tt, err := Parse(job.Schedule{Cron: e.String(), TimeZone: zone})
	if err != nil {
		var je *job.Error
		if errors.As(err, &je) && strings.Contains(je.Message, "never comes") {
			for d := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC); d.Year() < 2400; d = d.AddDate(0, 0, 1) {
				dom, dow := e[3].match(d.Day()), e[5].match(int(d.Weekday())) || d.Weekday() == time.Sunday && e[5].match(7)
				if e[4].match(int(d.Month())) && (dom && dow || !e[3].star && !e[5].star && (dom || dow)) {
					t.Fatalf("%s: %v, but it matches %s", e, err, d.Format(time.DateOnly))
				}
			}
			return nil, false
		}
		t.Fatalf("%q: %v", e.String(), err)
	}
	return tt, true
}

func TestTicksAreThoseOfTheTwin(t *testing.T) {
	t.Parallel()
	names := zoneNames(t)
	rapid.Check(t, func(rt *rapid.T) {
		zone := rapid.OneOf(rapid.SampledFrom(livelyZones), rapid.SampledFrom(names)).Draw(rt, "zone")
		seconds := rapid.IntRange(0, 3).Draw(rt, "with seconds") == 0
		e := drawExpr(rt, seconds)
		tt, ok := parseDrawn(rt, e, zone)
		if !ok {
			return
		}
		loc := mustZone(t, zone).loc
		from := drawInstant(rt, loc, 1990, 2050)
		step, to := int64(60), from+4*day
		if seconds {
			step, to = 1, from+3*3600
		}
		want := e.stepping(loc, from, to, step)
		after, until := time.Unix(from-1, 0), time.Unix(to-1, 0)
		var got []int64
		for _, u := range tt.Between(after, until, 1<<20) {
			got = append(got, u.Unix())
		}
		if !slices.Equal(got, want) {
			rt.Fatalf("%s in %s from %s ticks at\n%v; want\n%v", e, zone, after.UTC(), inUTC(got), inUTC(want))
		}
		if first, last, n := tt.Range(after, until); n != len(want) || n > 0 && (first.Unix() != want[0] || last.Unix() != want[n-1]) {
			rt.Fatalf("%s in %s from %s: counts %d ticks, %s to %s; want %v", e, zone, after.UTC(), n, first, last, inUTC(want))
		}
	})
}

func inUTC(ticks []int64) []string {
	var texts []string
	for _, u := range ticks[:min(len(ticks), 40)] {
		texts = append(texts, instant(u).Format("2006-01-02 15:04:05"))
	}
	return texts
}

// TestCountsAreThoseOfVisits compares the arithmetic with visiting each tick, over years and past the table of spans.
func TestCountsAreThoseOfVisits(t *testing.T) {
	t.Parallel()
	names := zoneNames(t)
	rapid.Check(t, func(rt *rapid.T) {
		zone := rapid.OneOf(rapid.SampledFrom(livelyZones), rapid.SampledFrom(names)).Draw(rt, "zone")
		e := drawExpr(rt, false)
		tt, ok := parseDrawn(rt, e, zone)
		if !ok {
			return
		}
		from := drawInstant(rt, tt.zone.loc, 1880, 2120)
		ticks := tt.Between(time.Unix(from, 0), instant(lastInstant), rapid.IntRange(1, 3000).Draw(rt, "ticks"))
		last := ticks[len(ticks)-1]
		for _, until := range []time.Time{last, last.Add(-1), last.Add(1)} {
			want := len(ticks)
			if until.Before(last) {
				want--
			}
			_, newest, n := tt.Range(time.Unix(from, 0), until)
			if n != want || n > 0 && !newest.Equal(ticks[n-1]) {
				rt.Fatalf("%s in %s: from %s until %s counts %d up to %s; want %d up to %s", e, zone, instant(from), until, n, newest, want, last)
			}
		}
		for i := 1; i < len(ticks); i++ {
			if !ticks[i].After(ticks[i-1]) {
				rt.Fatalf("%s in %s: %s is followed by %s", e, zone, ticks[i-1], ticks[i])
			}
			between := ticks[i-1].Add(time.Duration(rapid.Int64Range(0, int64(ticks[i].Sub(ticks[i-1]))-1).Draw(rt, "pause")))
			if u, _ := tt.Next(between); !u.Equal(ticks[i]) {
				rt.Fatalf("%s in %s: asked at %s the next tick is %s, but asked at %s it is %s", e, zone, ticks[i-1], ticks[i], between, u)
			}
			if i > 50 {
				break
			}
		}
	})
}

// TestUTCIsAsRobfigHasIt compares with robfig's own search, where the two mean to agree: in UTC, and day fields whose
// stars have no step.
func TestUTCIsAsRobfigHasIt(t *testing.T) {
	t.Parallel()
	parser := cron.NewParser(cron.SecondOptional | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)
	rapid.Check(t, func(rt *rapid.T) {
		e := drawExpr(rt, rapid.Bool().Draw(rt, "with seconds"))
		for _, i := range []int{3, 5} {
			if s := e[i].String(); s != "*" && strings.ContainsAny(s, "*7uU") {
				return
			}
		}
		spec, err := parser.Parse("CRON_TZ=UTC " + e.String())
		if err != nil {
			rt.Fatal(err)
		}
		tt, ok := parseDrawn(rt, e, "")
		after := instant(drawInstant(rt, time.UTC, 1990, 2200))
		for range 10 {
			want := spec.Next(after)
			if want.IsZero() { // robfig gives up after five years
				return
			}
			if !ok {
				rt.Fatalf("%s never comes, but robfig says %s", e, want)
			}
			got, _ := tt.Next(after)
			if !got.Equal(want) {
				rt.Fatalf("%s after %s: %s, but robfig says %s", e, after, got, want)
			}
			after = got
		}
	})
}

func TestEveryIsArithmetic(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		every := rapid.Int64Range(1, 100_000).Draw(rt, "seconds")
		s := job.Schedule{Cron: fmt.Sprintf("@every %ds", every)}
		anchor := int64(0)
		if rapid.Bool().Draw(rt, "anchored") {
			anchor = rapid.Int64Range(-1e9, 2e9).Draw(rt, "start")
			s.StartAt = instant(anchor)
		}
		tt, err := Parse(s)
		if err != nil {
			rt.Fatal(err)
		}
		from := rapid.Int64Range(-1e9, 2e9).Draw(rt, "from")
		to := from + rapid.Int64Range(0, 1000).Draw(rt, "for")
		var want []int64
		for u := from; u < to; u++ {
			if (u-anchor)%every == 0 && (s.StartAt.IsZero() || u >= anchor) {
				want = append(want, u)
			}
		}
		var got []int64
		for _, u := range tt.Between(instant(from-1), instant(to-1), 1<<20) {
			got = append(got, u.Unix())
		}
		_, _, n := tt.Range(instant(from-1), instant(to-1))
		if !slices.Equal(got, want) || n != len(want) {
			rt.Fatalf("got %v, counted %d; want %v", got, n, want)
		}
	})
}

func TestCalendarIsThatOfPackageTime(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		days := rapid.Int64Range(-720_000, 2_940_000).Draw(rt, "days")
		u := time.Unix(days*day, 0).UTC()
		y, m, d := civil(days)
		if int(y) != u.Year() || m != int(u.Month()) || d != u.Day() {
			rt.Fatalf("day %d is %d-%d-%d; want %s", days, y, m, d, u)
		}
		if back := daysTo(y, m, d); back != days {
			rt.Fatalf("day %d comes back as %d", days, back)
		}
		if n := u.AddDate(0, 1, -u.Day()).Day(); monthDays(y, m) != n && u.Day() <= 28 {
			rt.Fatalf("%d-%d has %d days; want %d", y, m, monthDays(y, m), n)
		}
	})
}
