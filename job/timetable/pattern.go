package timetable

import "math/bits"

// A pattern is a cron expression as sets of numbers: which times on a clock it matches, without regard to any zone. Times
// on a clock are counted in seconds since 1970-01-01 00:00:00 on that clock.
type pattern struct {
	second, minute uint64
	hour           uint32
	dom            uint32 // bit 1 is the first of the month
	month          uint16 // bit 1 is January
	dow            uint8  // bit 0 is Sunday

	// eitherDay: day of month and day of week are both restricted, so that one of them is enough (crontab(5)).
	eitherDay bool
	// inRealTime: the hour field has a star, so a repeated hour is one more hour to tick in.
	inRealTime bool
	// hourly: the same, and every hour matches, so an hour that the clock jumps over has nothing to make up for.
	hourly bool
}

// searchMonths is how far next looks ahead: the calendar repeats, weekdays included, after 400 years.
const searchMonths = 400*12 + 1

// next is the first match at or after wall; false if there is none at all.
func (p *pattern) next(wall int64) (int64, bool) {
	d, tod := split(wall)
	y, m, dd := civil(d)
	days := p.days(y, m)
	if days>>dd&1 != 0 {
		if t, ok := p.timeFrom(tod); ok {
			return d*day + t, true
		}
	}
	days &^= 2<<dd - 1
	for range searchMonths {
		if days != 0 {
			return daysTo(y, m, bits.TrailingZeros32(days))*day + p.firstTime(), true
		}
		if m++; m > 12 {
			y, m = y+1, 1
		}
		days = p.days(y, m)
	}
	return 0, false
}

// matches tells whether the pattern matches the very second wall.
func (p *pattern) matches(wall int64) bool {
	w, ok := p.next(wall)
	return ok && w == wall
}

// count is how many matches lie in [from, to). It costs some nanoseconds per month between them.
func (p *pattern) count(from, to int64) int64 {
	if to <= from {
		return 0
	}
	firstDay, firstTod := split(from)
	lastDay, lastTod := split(to)
	n := int64(0)
	perDay := p.timesBefore(day)
	y, m, d := civil(firstDay)
	if p.days(y, m)>>d&1 != 0 {
		n -= p.timesBefore(firstTod)
	}
	ly, lm, ld := civil(lastDay)
	if p.days(ly, lm)>>ld&1 != 0 {
		n += p.timesBefore(lastTod)
	}
	// The whole days in [firstDay, lastDay), month by month.
	for {
		days := p.days(y, m) &^ (1<<d - 1)
		if y == ly && m == lm {
			days &= 1<<ld - 1
			return n + int64(bits.OnesCount32(days))*perDay
		}
		n += int64(bits.OnesCount32(days)) * perDay
		d = 1
		if m++; m > 12 {
			y, m = y+1, 1
		}
	}
}

// days is the set of days that match in a month, bit 1 the first.
func (p *pattern) days(y int64, m int) uint32 {
	if p.month>>m&1 == 0 {
		return 0
	}
	// Seven weekdays repeated over a month, shifted so that bit 1 is the weekday of the first. 1970-01-01 was a Thursday.
	first := int((daysTo(y, m, 1)%7 + 7 + 4) % 7)
	const everyWeek = 1 | 1<<7 | 1<<14 | 1<<21 | 1<<28 | 1<<35
	byWeekday := uint32((uint64(p.dow) * everyWeek) >> first << 1)
	inMonth := uint32(2)<<monthDays(y, m) - 2
	if p.eitherDay {
		return (p.dom | byWeekday) & inMonth
	}
	return p.dom & byWeekday & inMonth
}

// firstTime is the earliest match in a day.
func (p *pattern) firstTime() int64 {
	return clock(bits.TrailingZeros32(p.hour), bits.TrailingZeros64(p.minute), bits.TrailingZeros64(p.second))
}

// timeFrom is the first match in a day that is not before the time of day tod.
func (p *pattern) timeFrom(tod int64) (int64, bool) {
	h, m, s := int(tod/3600), int(tod/60%60), int(tod%60)
	if p.hour>>h&1 != 0 {
		if p.minute>>m&1 != 0 {
			if later := p.second >> s; later != 0 {
				return clock(h, m, s+bits.TrailingZeros64(later)), true
			}
		}
		if later := p.minute >> (m + 1); later != 0 {
			return clock(h, m+1+bits.TrailingZeros64(later), bits.TrailingZeros64(p.second)), true
		}
	}
	if later := p.hour >> (h + 1); later != 0 {
		return clock(h+1+bits.TrailingZeros32(later), bits.TrailingZeros64(p.minute), bits.TrailingZeros64(p.second)), true
	}
	return 0, false
}

// timesBefore is how many matches of a day are before the time of day tod, at most a whole day.
func (p *pattern) timesBefore(tod int64) int64 {
	h, m, s := tod/3600, tod/60%60, tod%60
	perMinute := int64(bits.OnesCount64(p.second))
	perHour := int64(bits.OnesCount64(p.minute)) * perMinute
	n := int64(bits.OnesCount32(p.hour&(1<<h-1))) * perHour
	if p.hour>>h&1 != 0 {
		n += int64(bits.OnesCount64(p.minute&(1<<m-1))) * perMinute
		if p.minute>>m&1 != 0 {
			n += int64(bits.OnesCount64(p.second & (1<<s - 1)))
		}
	}
	return n
}

func clock(h, m, s int) int64 { return int64(h)*3600 + int64(m)*60 + int64(s) }

// split parts a wall time into days since 1970-01-01 and the time of day.
func split(wall int64) (days, tod int64) {
	days, tod = wall/day, wall%day
	if tod < 0 {
		days, tod = days-1, tod+day
	}
	return days, tod
}

func leap(y int64) bool { return y%4 == 0 && (y%100 != 0 || y%400 == 0) }

func monthDays(y int64, m int) int {
	if m == 2 {
		if leap(y) {
			return 29
		}
		return 28
	}
	return 30 + (m+m>>3)&1 // long and short months take turns, and July and August are both long
}

// daysTo and civil convert between a date of the Gregorian calendar and days since 1970-01-01. Both count years from
// March, so that the leap day is a year's last, in eras of 400 years, 146,097 days each; 719,468 days lie between
// 0000-03-01 and 1970-01-01. package time does the same, at several times the price.

func daysTo(y int64, m, d int) int64 {
	if m <= 2 {
		y--
		m += 12
	}
	era := floorDiv(y, 400)
	yearOfEra := y - era*400
	dayOfYear := int64(153*(m-3)+2)/5 + int64(d) - 1
	return era*146097 + yearOfEra*365 + yearOfEra/4 - yearOfEra/100 + dayOfYear - 719468
}

func civil(days int64) (y int64, m, d int) {
	days += 719468
	era := floorDiv(days, 146097)
	dayOfEra := days - era*146097
	yearOfEra := (dayOfEra - dayOfEra/1460 + dayOfEra/36524 - dayOfEra/146096) / 365
	dayOfYear := int(dayOfEra - (365*yearOfEra + yearOfEra/4 - yearOfEra/100))
	m = (5*dayOfYear + 2) / 153
	d = dayOfYear - (153*m+2)/5 + 1
	y = era*400 + yearOfEra
	if m += 3; m > 12 {
		m -= 12
		y++
	}
	return y, m, d
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}
