package timetable

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/robfig/cron/v3"

	"github.com/musterhq/muster/job"
)

const cronField = "schedule.cron"

// The descriptors, as the expressions they are short for.
var descriptors = map[string]string{
	"@hourly":   "0 * * * *",
	"@daily":    "0 0 * * *",
	"@midnight": "0 0 * * *",
	"@weekly":   "0 0 * * 0",
	"@monthly":  "0 0 1 * *",
	"@yearly":   "0 0 1 1 *",
	"@annually": "0 0 1 1 *",
}

// The fields of an expression, in robfig's order, and what a message says of each.
var fields = [6]struct{ name, use string }{
	{"second", "0 to 59"},
	{"minute", "0 to 59"},
	{"hour", "0 to 23"},
	{"day-of-month", "1 to 31"},
	{"month", "1 to 12 or JAN to DEC"},
	{"day-of-week", "0 to 7 or SUN to SAT (0 and 7 are Sunday)"},
}

const (
	fieldHour  = 2
	fieldDom   = 3
	fieldMonth = 4
	fieldDow   = 5
	wholeDay   = 1<<24 - 1
	allFields  = cron.Second | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow
)

var robfig = cron.NewParser(allFields)

// parsePattern reads five or six fields, or a descriptor that is short for them.
//
// What is robfig's and what is ours: robfig turns the numbers, names, ranges, lists and steps of a field into a set. It
// also lets things pass that mean nothing (",", "*-5", "+5") and panics on a few, so a field's shape is checked first.
// Three meanings differ from robfig's and follow crontab(5): 7 is Sunday too; a field that begins with a star, "*/2"
// included, is unrestricted when day of month and day of week are combined; and the hour's star decides about DST.
func parsePattern(expr string) (pattern, error) {
	if full, ok := descriptors[expr]; ok {
		expr = full
	}
	var f [6]string
	switch n := splitFields(expr, f[1:]); n {
	case 5:
		f[0] = "0"
	case 6:
		splitFields(expr, f[:])
	default:
		return pattern{}, job.InvalidField(cronField,
			"a cron expression has five fields (minute hour day-of-month month day-of-week), or six with the second first, but %.64q has %d",
			expr, n)
	}
	for i, text := range f {
		if !wellFormed(text, i >= fieldMonth) {
			return pattern{}, badField(i, text, nil)
		}
	}
	written := f
	f[fieldDow] = sundayIsAlsoSeven(f[fieldDow])
	spec, err := askRobfig(f)
	if err != nil {
		for i := range f {
			one := [6]string{"*", "*", "*", "*", "*", "*"}
			one[i] = f[i]
			if _, err := askRobfig(one); err != nil {
				return pattern{}, badField(i, written[i], err)
			}
		}
		return pattern{}, &job.Error{Code: job.Invalid, Reason: "invalid_field", Field: cronField,
			Message: fmt.Sprintf("%.64q is not a cron expression", expr), Cause: err}
	}

	p := pattern{
		second: spec.Second & (1<<60 - 1),
		minute: spec.Minute & (1<<60 - 1),
		hour:   uint32(spec.Hour & wholeDay),
		dom:    uint32(spec.Dom & (1<<32 - 2)),
		month:  uint16(spec.Month & (1<<13 - 2)),
		dow:    uint8(spec.Dow & (1<<7 - 1)),
	}
	p.eitherDay = !starred(f[fieldDom]) && !starred(f[fieldDow])
	p.inRealTime = strings.ContainsAny(f[fieldHour], "*?")
	p.hourly = p.inRealTime && p.hour == wholeDay
	// Two thousand is as good as any year to begin at: the search covers all there are.
	if _, ok := p.next(daysTo(2000, 1, 1) * day); !ok {
		return pattern{}, job.InvalidField(cronField,
			"%.64q names a date that never comes; correct its day of month, month or day of week", expr)
	}
	return p, nil
}

// starred tells whether a day field restricts nothing in the sense of crontab(5).
func starred(field string) bool { return field[0] == '*' || field[0] == '?' }

// splitFields puts what blanks separate into f, as far as there is room, and returns how many there are.
func splitFields(expr string, f []string) int {
	n := 0
	for {
		expr = strings.TrimLeft(expr, " \t")
		if expr == "" {
			return n
		}
		end := strings.IndexAny(expr, " \t")
		if end < 0 {
			end = len(expr)
		}
		if n < len(f) {
			f[n] = expr[:end]
		}
		expr = expr[end:]
		n++
	}
}

// wellFormed tells whether a field is a list of N, N-M, N/S, N-M/S and "*", "*/S", with names for N if they are allowed.
func wellFormed(field string, names bool) bool {
	for more := true; more; {
		var item string
		item, field, more = strings.Cut(field, ",")
		of, step, stepped := strings.Cut(item, "/")
		if stepped && !number(step) {
			return false
		}
		if of == "*" || of == "?" {
			continue
		}
		low, high, ranged := strings.Cut(of, "-")
		if !number(low) && !(names && letters(low)) {
			return false
		}
		if ranged && !number(high) && !(names && letters(high)) {
			return false
		}
	}
	return true
}

// number is a run of digits that surely fits an int.
func number(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != "" && len(s) <= 9
}

func letters(s string) bool {
	for i := range len(s) {
		if c := s[i] | 0x20; c < 'a' || c > 'z' {
			return false
		}
	}
	return len(s) == 3
}

// sundayIsAlsoSeven rewrites a day-of-week field so that robfig, which knows only 0, understands 7, 5-7 and FRI-SUN.
func sundayIsAlsoSeven(field string) string {
	if !strings.ContainsAny(field, "7uU") {
		return field
	}
	items := strings.Split(field, ",")
	for i, item := range items {
		of, step, stepped := strings.Cut(item, "/")
		low, high, ranged := strings.Cut(of, "-")
		if !ranged {
			if low == "7" {
				items[i] = "0" // with a step too: from 7 on there is only 7
			}
			continue
		}
		if high != "7" && !(strings.EqualFold(high, "sun") && low != "0" && !strings.EqualFold(low, "sun")) {
			continue
		}
		from, by := weekday(low), 1
		if stepped {
			by, _ = strconv.Atoi(step)
		}
		if from < 0 || by < 1 {
			continue // robfig will say what is wrong with it
		}
		var days []string
		for d := from; d <= 7; d += by {
			days = append(days, strconv.Itoa(d%7))
		}
		items[i] = strings.Join(days, ",")
	}
	return strings.Join(items, ",")
}

// weekday is the number of a day of the week, 0 to 7; -1 if s is none.
func weekday(s string) int {
	if len(s) == 1 && s[0] >= '0' && s[0] <= '7' {
		return int(s[0] - '0')
	}
	for i, name := range []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"} {
		if strings.EqualFold(s, name) {
			return i
		}
	}
	return -1
}

// askRobfig never panics. Nothing that robfig is known to panic on gets this far; a stored schedule that made it do so
// would stop every leader, one after the other.
func askRobfig(f [6]string) (spec *cron.SpecSchedule, err error) {
	defer func() {
		if r := recover(); r != nil {
			spec, err = nil, fmt.Errorf("robfig/cron: %v", r)
		}
	}()
	s, err := robfig.Parse(strings.Join(f[:], " "))
	if err != nil {
		return nil, err
	}
	spec, ok := s.(*cron.SpecSchedule)
	if !ok {
		return nil, fmt.Errorf("robfig/cron: unexpected %T", s)
	}
	return spec, nil
}

// badField says what is wrong with field i; cause may be nil.
func badField(i int, text string, cause error) error {
	e := job.InvalidField(cronField, "the %s field %.64q is wrong: use %s, with * for all, ranges as in 1-5, lists as in 1,15 and steps as in */2",
		fields[i].name, text, fields[i].use)
	switch upper := strings.ToUpper(text); {
	case strings.Contains(text, "~"):
		e.Message = fmt.Sprintf("the %s field %.64q asks for a random time, which differs from node to node; write a fixed one", fields[i].name, text)
	case i != fieldMonth && i != fieldDow && strings.HasPrefix(upper, "H"):
		e.Message = fmt.Sprintf("the %s field %.64q uses H, which is not supported; write a fixed number", fields[i].name, text)
	case i == fieldDom && strings.ContainsAny(upper, "LW#"), i == fieldDow && (strings.Contains(upper, "#") || strings.HasSuffix(upper, "L")):
		e.Message = fmt.Sprintf("the %s field %.64q uses L, W or #, which are not supported; for the last day of a month tick on 28-31 and test the date in the job", fields[i].name, text)
	}
	e.Cause = cause
	return e
}
