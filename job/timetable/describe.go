package timetable

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"
)

// Describe says in English when the job ticks, such as "every day at 00:00 Europe/Berlin". What would become a riddle in
// words is given as the expression.
func (t *Timetable) Describe() string {
	var s string
	switch t.kind {
	case everyKind:
		s = "every " + spell(time.Duration(t.every)*time.Second)
	case onceKind:
		return "once at " + t.inZone(t.anchor)
	default:
		s = t.describeCron()
	}
	switch {
	case t.start > firstInstant && t.kind == everyKind:
		s += ", counted from " + t.inZone(t.start)
	case t.start > firstInstant:
		s += ", from " + t.inZone(t.start)
	}
	if t.end <= lastInstant {
		s += ", until " + t.inZone(t.end)
	}
	return s
}

func (t *Timetable) inZone(u int64) string {
	layout := "2006-01-02 15:04"
	if u%60 != 0 {
		layout = "2006-01-02 15:04:05"
	}
	return instant(u+t.zone.spanAt(u).offset).Format(layout) + " " + t.zone.name
}

// spell writes a whole number of seconds: "10 minutes", "1 hour 30 minutes", and "minute" for one.
func spell(d time.Duration) string {
	if d == time.Hour || d == time.Minute || d == time.Second {
		return map[time.Duration]string{time.Hour: "hour", time.Minute: "minute", time.Second: "second"}[d]
	}
	var parts []string
	for _, unit := range []struct {
		of   time.Duration
		name string
	}{{time.Hour, "hour"}, {time.Minute, "minute"}, {time.Second, "second"}} {
		if n := int(d / unit.of); n > 0 {
			parts = append(parts, plural(n, unit.name))
			d -= time.Duration(n) * unit.of
		}
	}
	return strings.Join(parts, " ")
}

func plural(n int, unit string) string {
	if n == 1 {
		return "1 " + unit
	}
	return fmt.Sprintf("%d %ss", n, unit)
}

// describeCron joins what can be said of the time of day and of the date.
func (t *Timetable) describeCron() string {
	clock, oftener, ok := t.pattern.clockWords()
	date, daily, alsoOK := t.pattern.dateWords()
	switch {
	case !ok || !alsoOK:
		return fmt.Sprintf("whenever %q matches in %s", t.expr, t.zone.name)
	case oftener && daily && t.pattern.hour == wholeDay:
		return clock // in whatever zone, but for odd offsets
	case oftener && daily:
		return clock + ", " + t.zone.name
	case oftener:
		return clock + ", " + date + ", " + t.zone.name
	case daily:
		return "every day " + clock + " " + t.zone.name
	}
	return date + " " + clock + " " + t.zone.name
}

// clockWords says at which times of day. oftener: it is a phrase like "every 5 minutes", not one like "at 00:00".
func (p *pattern) clockWords() (words string, oftener, ok bool) {
	seconds, minutes, hours := members(p.second), members(p.minute), members(uint64(p.hour))
	if n := len(seconds) * len(minutes) * len(hours); n <= 4 {
		var at []string
		for _, h := range hours {
			for _, m := range minutes {
				for _, s := range seconds {
					c := fmt.Sprintf("%02d:%02d", h, m)
					if len(seconds) > 1 || s > 0 {
						c += fmt.Sprintf(":%02d", s)
					}
					at = append(at, c)
				}
			}
		}
		return "at " + list(at), false, true
	}
	secondsEvery, secondStep := step(seconds, 60)
	minutesEvery, minuteStep := step(minutes, 60)
	hoursEvery, hourStep := step(hours, 24)
	allMinutes := minutesEvery && minuteStep == 1
	zero := len(seconds) == 1 && seconds[0] == 0
	switch {
	case secondsEvery && len(seconds) > 1 && allMinutes:
		words = "every " + spell(time.Duration(secondStep)*time.Second)
	case zero && minutesEvery && len(minutes) > 1:
		words = "every " + spell(time.Duration(minuteStep)*time.Minute)
	case zero && len(minutes) == 1 && hoursEvery:
		words = "every " + spell(time.Duration(hourStep)*time.Hour)
		if minutes[0] > 0 {
			words += fmt.Sprintf(" at minute %d", minutes[0])
		}
		return words, true, true
	case zero && len(minutes) == 1 && consecutive(hours):
		return fmt.Sprintf("every hour from %02d:%02d to %02d:%02d", hours[0], minutes[0], hours[len(hours)-1], minutes[0]), true, true
	default:
		return "", false, false
	}
	if hourStep == 1 && hoursEvery {
		return words, true, true
	}
	if !consecutive(hours) {
		return "", false, false
	}
	return fmt.Sprintf("%s from %02d:00 to %02d:59", words, hours[0], hours[len(hours)-1]), true, true
}

// dateWords says on which days; daily: on all.
func (p *pattern) dateWords() (words string, daily, ok bool) {
	const everyDom, everyDow, everyMonth = 1<<32 - 2, 1<<7 - 1, 1<<13 - 2
	allDom, allDow, allMonths := p.dom == everyDom, p.dow == everyDow, p.month == everyMonth
	doms, dows := members(uint64(p.dom)), weekdayWords(p.dow)
	switch {
	case p.eitherDay && (allDom || allDow), allDom && allDow:
		if allMonths {
			return "", true, true
		}
		return "every day in " + months(p.month), false, true
	case len(doms) > 5 && !allDom, !allDom && !allDow && !p.eitherDay:
		return "", false, false
	case allDom:
		words = dows
	case len(doms) == 1 && len(members(uint64(p.month))) == 1 && allDow:
		return fmt.Sprintf("every year on %d %s", doms[0], months(p.month)), false, true
	default:
		words = "on day " + numbers(doms) + " of every month"
		if !allMonths {
			words = "on day " + numbers(doms) + " of " + months(p.month)
		}
		if p.eitherDay {
			if !allMonths {
				return "", false, false
			}
			words += " and " + dows
		}
		return words, false, true
	}
	if !allMonths {
		words += " in " + months(p.month)
	}
	return words, false, true
}

func weekdayWords(dow uint8) string {
	switch dow {
	case 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<5:
		return "Monday to Friday"
	}
	var names []string
	for _, d := range members(uint64(dow)) {
		names = append(names, time.Weekday(d).String()+"s")
	}
	return "on " + list(names)
}

func months(set uint16) string {
	var names []string
	for _, m := range members(uint64(set)) {
		names = append(names, time.Month(m).String())
	}
	return list(names)
}

func numbers(ns []int) string {
	var texts []string
	for _, n := range ns {
		texts = append(texts, fmt.Sprint(n))
	}
	return list(texts)
}

// list joins with commas and a last "and".
func list(items []string) string {
	if len(items) < 2 {
		return strings.Join(items, "")
	}
	last := len(items) - 1
	return strings.Join(items[:last], ", ") + " and " + items[last]
}

func members(set uint64) []int {
	var ns []int
	for ; set != 0; set &= set - 1 {
		ns = append(ns, bits.TrailingZeros64(set))
	}
	return ns
}

// step tells whether ns is 0, n, 2n and so on, evenly around a clock of size; n.
func step(ns []int, size int) (bool, int) {
	if size%len(ns) != 0 {
		return false, 0
	}
	n := size / len(ns)
	for i, v := range ns {
		if v != i*n {
			return false, 0
		}
	}
	return true, n
}

func consecutive(ns []int) bool { return slices.Max(ns)-slices.Min(ns) == len(ns)-1 }
