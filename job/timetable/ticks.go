package timetable

import "time"

// Next is the first tick after the given instant, in UTC. It is false if there is none: the schedule has ended.
func (t *Timetable) Next(after time.Time) (time.Time, bool) {
	u, ok := t.next(afterSecond(after))
	if !ok {
		return time.Time{}, false
	}
	return instant(u), true
}

// Between lists the ticks after one instant, up to and including another, at most limit of them.
func (t *Timetable) Between(after, until time.Time, limit int) []time.Time {
	var ticks []time.Time
	from, to := afterSecond(after), afterSecond(until)
	for len(ticks) < limit {
		u, ok := t.next(from)
		if !ok || u >= to {
			break
		}
		ticks = append(ticks, instant(u))
		from = u + 1
	}
	return ticks
}

// Range tells how many ticks there are after one instant, up to and including another, and which are the first and the
// last. The two times mean nothing if there are none. It counts without visiting: a year of seconds is as quick as a day.
func (t *Timetable) Range(after, until time.Time) (first, last time.Time, n int) {
	d, ok := t.summary(afterSecond(after), afterSecond(until))
	if !ok {
		return time.Time{}, time.Time{}, 0
	}
	return d.At, d.Until, d.Count
}

// afterSecond is the first whole second after t, kept within what the arithmetic can bear.
func afterSecond(t time.Time) int64 {
	return min(max(t.Unix(), firstInstant-1), lastInstant) + 1
}

func instant(u int64) time.Time { return time.Unix(u, 0).UTC() }

// next is the first tick at or after u.
func (t *Timetable) next(u int64) (int64, bool) {
	u = max(u, t.start)
	if u >= t.end {
		return 0, false
	}
	ok := true
	switch t.kind {
	case everyKind:
		u = t.anchor - floorDiv(t.anchor-u, t.every)*t.every
	case onceKind:
		ok = u <= t.anchor
		u = t.anchor
	default:
		if t.pattern.inRealTime {
			u, ok = t.nextInRealTime(u)
		} else {
			u, ok = t.nextFixed(u)
		}
	}
	return u, ok && u < t.end
}

// count is how many ticks lie in [from, to).
func (t *Timetable) count(from, to int64) int64 {
	from, to = max(from, t.start), min(to, t.end)
	if from >= to {
		return 0
	}
	switch t.kind {
	case everyKind:
		return floorDiv(to-1-t.anchor, t.every) - floorDiv(from-1-t.anchor, t.every)
	case onceKind:
		if from <= t.anchor && t.anchor < to {
			return 1
		}
		return 0
	default:
		if t.pattern.inRealTime {
			return t.countInRealTime(from, to)
		}
		return t.countFixed(from, to)
	}
}

// newest is the n-th last tick of [from, to), which must hold so many.
func (t *Timetable) newest(from, to, n int64) int64 {
	// The greatest u such that [u, to) holds n ticks. First a stretch that is long enough, then the place in it.
	lo := from
	for stretch := int64(60); to-stretch > from; stretch *= 4 {
		if t.count(to-stretch, to) >= n {
			lo = to - stretch
			break
		}
	}
	hi := to // [hi, to) does not hold n ticks, [lo, to) does
	for hi-lo > 1 {
		if mid := lo + (hi-lo)/2; t.count(mid, to) >= n {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo
}

// A fixed-time job ticks at the first instant at which its zone's clock shows a matching time or a later one. That is one
// rule for all that clocks do: a time that is jumped over is reached by the jump itself, and a repeated one had been
// reached before. The clock's high water only ever rises, so the ticks keep their order.

func (t *Timetable) nextFixed(u int64) (int64, bool) {
	wall, ok := t.pattern.next(t.zone.highWater(u-1) + 1)
	if !ok {
		return 0, false
	}
	return t.zone.reaches(wall, max(u, wall-maxOffset)), true
}

func (t *Timetable) countFixed(from, to int64) int64 {
	n := int64(0)
	high := t.zone.highWater(from - 1)
	for u := from; u < to; {
		s := t.zone.spanAt(u)
		end := min(s.end, to)
		// All that the first instant of a span reaches is one tick.
		if wall := u + s.offset; wall > high {
			n += min(1, t.pattern.count(high+1, wall+1))
			high = wall
		}
		if wall := end - 1 + s.offset; wall > high {
			n += t.pattern.count(high+1, wall+1)
			high = wall
		}
		u = end
	}
	return n
}

// A job with a star in its hour field ticks at every instant at which the clock shows a matching time, so in a repeated
// hour again. If it does not tick every hour, it makes up for what the clock jumps over, right after the jump.

func (t *Timetable) nextInRealTime(u int64) (int64, bool) {
	for {
		s := t.zone.spanAt(u)
		if u == s.start && t.makesUp(s) {
			return u, true
		}
		wall, ok := t.pattern.next(u + s.offset)
		if !ok {
			return 0, false
		}
		if at := wall - s.offset; at < s.end {
			return at, true
		}
		if s.end > lastInstant {
			return 0, false
		}
		// No clock shows a match before wall, except that within reach of u it may be put back to before u's own time.
		if s.end >= u+reach {
			u = max(s.end, wall-reach)
		} else {
			u = s.end
		}
	}
}

func (t *Timetable) countInRealTime(from, to int64) int64 {
	n := int64(0)
	for u := from; u < to; {
		s := t.zone.spanAt(u)
		end := min(s.end, to)
		if u == s.start && t.makesUp(s) && !t.pattern.matches(u+s.offset) {
			n++
		}
		n += t.pattern.count(u+s.offset, end+s.offset)
		u = end
	}
	return n
}

// makesUp tells whether there is a match in what the clock jumps over where s begins.
func (t *Timetable) makesUp(s span) bool {
	if t.pattern.hourly || s.start <= firstInstant {
		return false
	}
	before := s.start + t.zone.spanAt(s.start-1).offset // what the clock would have shown
	after := s.start + s.offset
	if after <= before {
		return false
	}
	wall, ok := t.pattern.next(before)
	return ok && wall < after
}
