package timetable

import (
	"strings"
	"time"
	"unicode/utf8"

	"github.com/musterhq/muster/job"
)

// Limits of a schedule.
const (
	// MaxCron is how many bytes an expression may have.
	MaxCron = 256
	// MaxEvery is the longest interval of @every.
	MaxEvery = 10 * 366 * 24 * time.Hour
	// MaxCatchUp is the greatest catch_up.max, and DefaultCatchUp what 0 means.
	MaxCatchUp     = 10_000
	DefaultCatchUp = 100
)

// Ticks lie in the years 1 to 9999, which is what RFC 3339 can write, and the zero time.Time is none; in Unix seconds.
const (
	firstInstant = -62135596800 + 1
	lastInstant  = 253402300799
)

// A Timetable is a schedule that was found valid: it knows every tick there will ever be. It is immutable, safe for
// concurrent use, and small (about 130 bytes; zones are shared).
type Timetable struct {
	kind    kind
	catchUp job.CatchUpPolicy
	max     int
	expr    string // as written, blanks tidied

	start, end int64 // ticks lie in [start, end), Unix seconds

	pattern pattern // of a cronKind
	zone    *zone   // of a cronKind, and of an onceKind written without an offset

	anchor int64 // of an everyKind a tick, or where one would be; of a onceKind the tick
	every  int64 // of an everyKind, in seconds
}

type kind uint8

const (
	cronKind kind = iota
	everyKind
	onceKind
)

// Parse checks a schedule wholly. Its errors are *job.Error of code invalid, the wrong field named as in a job document
// ("schedule.cron"). It never panics, whatever it is given: a schedule that came through it once will come through it
// on every node of the same TZDataVersion, so that a stored one cannot stop a leader.
func Parse(s job.Schedule) (*Timetable, error) {
	t := &Timetable{start: firstInstant, end: lastInstant + 1}
	expr, err := tidy(s.Cron)
	if err != nil {
		return nil, err
	}
	t.expr = expr
	if t.zone, err = findZone("schedule.time_zone", s.TimeZone); err != nil {
		return nil, err
	}
	if err := t.setCatchUp(s.CatchUp); err != nil {
		return nil, err
	}
	if err := t.setBounds(s.StartAt, s.EndAt); err != nil {
		return nil, err
	}
	word, rest, _ := strings.Cut(expr, " ")
	switch {
	case word == "@every":
		err = t.setEvery(rest, s.StartAt)
	case word == "@at":
		err = t.setOnce(rest)
	case word == "@reboot":
		err = job.InvalidField(cronField,
			"@reboot has no meaning in a cluster, which never starts as a whole; start such work from the machine's init system, or give it a time")
	case strings.HasPrefix(word, "@") && descriptors[expr] == "":
		err = job.InvalidField(cronField,
			"%.64q is not known; use @hourly, @daily, @weekly, @monthly, @yearly, \"@every 10m\" or \"@at 2030-01-31T09:00:00Z\"", expr)
	default:
		t.pattern, err = parsePattern(expr)
	}
	if err != nil {
		return nil, err
	}
	if _, ok := t.next(firstInstant); !ok {
		return nil, t.neverTicks(!s.EndAt.IsZero())
	}
	return t, nil
}

// tidy checks an expression as text and leaves single blanks in it.
func tidy(expr string) (string, error) {
	if len(expr) > MaxCron {
		return "", job.InvalidField(cronField, "the expression has %d bytes; %d are allowed", len(expr), MaxCron)
	}
	if !utf8.ValidString(expr) {
		return "", job.InvalidField(cronField, "the expression is not valid UTF-8; write it in plain ASCII")
	}
	for _, r := range expr {
		if r != '\t' && (r < ' ' || r > '~') {
			return "", job.InvalidField(cronField, "the expression contains %+q; write it in plain printable ASCII", r)
		}
	}
	if strings.ContainsRune(expr, '=') {
		return "", job.InvalidField(cronField, "an expression cannot set a variable such as TZ= or CRON_TZ=; put the zone into time_zone")
	}
	for i := range len(expr) {
		blank := expr[i] == ' ' || expr[i] == '\t'
		if blank && (expr[i] == '\t' || i == 0 || i == len(expr)-1 || expr[i-1] == ' ') {
			expr = strings.Join(strings.Fields(expr), " ")
			break
		}
	}
	if expr == "" {
		return "", job.InvalidField(cronField, `an expression is needed, such as "0 0 * * *", "@daily" or "@every 10m"`)
	}
	return expr, nil
}

func (t *Timetable) setCatchUp(c job.CatchUp) error {
	switch c.Policy {
	case "":
		t.catchUp = job.CatchUpLatest
	case job.CatchUpNone, job.CatchUpLatest, job.CatchUpAll:
		t.catchUp = c.Policy
	default:
		return job.InvalidField("schedule.catch_up.policy", "%.64q is not a policy; use none, latest or all", string(c.Policy))
	}
	if c.Max < 0 || c.Max > MaxCatchUp {
		return job.InvalidField("schedule.catch_up.max", "%d is out of range; use 1 to %d, or 0 for the default of %d", c.Max, MaxCatchUp, DefaultCatchUp)
	}
	if t.max = c.Max; t.max == 0 {
		t.max = DefaultCatchUp
	}
	return nil
}

// setBounds takes over start_at and end_at. Ticks are whole seconds, so both round up to one.
func (t *Timetable) setBounds(start, end time.Time) error {
	if !start.IsZero() && !end.IsZero() && !end.After(start) {
		return job.InvalidField("schedule.end_at", "%s is not after start_at, %s; give a later end or none",
			end.UTC().Format(time.RFC3339), start.UTC().Format(time.RFC3339))
	}
	if !start.IsZero() {
		t.start = max(t.start, ceilSecond(start))
	}
	if !end.IsZero() {
		t.end = min(t.end, ceilSecond(end))
	}
	return nil
}

func ceilSecond(t time.Time) int64 {
	if t.Nanosecond() > 0 {
		return t.Unix() + 1
	}
	return t.Unix()
}

// setEvery anchors the interval at start_at, or at the Unix epoch: counted from a leader's clock it would shift with
// every new leader.
func (t *Timetable) setEvery(text string, start time.Time) error {
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		return job.InvalidField(cronField, "@every needs a duration such as 90s, 10m or 24h, not %.64q", text)
	case d < time.Second || d%time.Second != 0:
		return job.InvalidField(cronField, "@every %s is not a whole number of seconds, 1s or more; write one such as 1s or 10m", d)
	case d > MaxEvery:
		return job.InvalidField(cronField, "@every %s is longer than ten years; use a shorter interval, or @at for a single time", d)
	}
	t.kind, t.every = everyKind, int64(d/time.Second)
	if !start.IsZero() {
		t.anchor = ceilSecond(start)
	}
	return nil
}

// The forms of @at without an offset, in the schedule's own zone.
var localLayouts = []string{"2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02 15:04"}

func (t *Timetable) setOnce(text string) error {
	t.kind = onceKind
	at, err := time.Parse(time.RFC3339, text)
	local := false
	for i := 0; err != nil && i < len(localLayouts); i++ {
		at, err = time.Parse(localLayouts[i], text)
		local = err == nil
	}
	switch {
	case err != nil:
		return job.InvalidField(cronField,
			"@at needs a time such as 2030-01-31T09:00:00Z, or 2030-01-31T09:00:00 in the schedule's time_zone, not %.64q", text)
	case at.Nanosecond() != 0:
		return job.InvalidField(cronField, "@at %s has a fraction of a second; write whole seconds", text)
	case at.Year() < 1970 || at.Year() > 9998:
		return job.InvalidField(cronField, "@at %s is not in the years 1970 to 9998", text)
	}
	t.anchor = at.Unix()
	if local {
		// As with any tick: a time the clock jumps over is right after the jump, a repeated one is its first.
		t.anchor = t.zone.reaches(t.anchor, t.anchor-maxOffset)
	} else {
		t.zone = utc
	}
	return nil
}

func (t *Timetable) neverTicks(ends bool) error {
	field, bound := "schedule.start_at", "from start_at on"
	if ends {
		field, bound = "schedule.end_at", "before end_at"
		if t.start > firstInstant {
			bound = "between start_at and end_at"
		}
	}
	return job.InvalidField(field, "%q never ticks %s; widen the bounds or change schedule.cron", t.expr, bound)
}

// String is the expression as written, with single blanks.
func (t *Timetable) String() string { return t.expr }
