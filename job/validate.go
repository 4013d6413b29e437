package job

import (
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// The limits of a document. Each is named in the error of whoever exceeds it.
const (
	MaxNameBytes        = 128
	MaxLabels           = 64
	MaxLabelKeyBytes    = 63
	MaxLabelValueBytes  = 256
	MaxDescriptionBytes = 4 << 10
	MaxSpan             = 365 * 24 * time.Hour // of every duration in a document: 8760h
	MaxPriority         = 9
	MaxSlots            = 10_000
	MaxRetryAttempts    = 1_000
	MaxKeyBytes         = 128 // of a concurrency key
	MaxConcurrency      = 100_000
	MaxCatchUp          = 10_000
	MaxCronBytes        = 256
	MaxEdges            = 100   // upstream jobs of one job
	MaxTasks            = 1_000 // of one job
	MaxItems            = 1_000 // of the list of a task's for_each
	MaxRunDepth         = 8     // runs above a run, by run_job
	MaxTaskEdges        = 1_000 // upstream tasks of one task
	MaxExpressionBytes  = 4 << 10
	MaxCommandBytes     = 128 << 10
	MaxEnv              = 1_000
	MaxEnvBytes         = 128 << 10
	MaxEnvFrom          = 16
	MaxPathBytes        = 4 << 10
	MaxExitCodes        = 256
	MaxURLBytes         = 8 << 10
	MaxHeaders          = 64
	MaxHeaderBytes      = 8 << 10 // of one value
	MaxHTTPBodyBytes    = 64 << 10
)

// Validate checks a normalised document wholly but for its expressions and templates, which are for package job/dag. The first thing
// wrong is answered as an *Error with its field. What the schedule's cron expression and time zone mean is checked by
// job/timetable, which callers ask besides: it knows more than this package may.
func (d *Document) Validate() error {
	if d.Name == "" {
		return InvalidField("name", "a job needs a name; write one such as nightly-report")
	}
	if err := CheckName("name", d.Name); err != nil {
		return err
	}
	return answer(d.validate())
}

// ValidateSpec is Validate for an inline spec.
func (d *Document) ValidateSpec() error {
	switch {
	case d.Name != "":
		return InvalidField("name", "an inline spec has no name; create a job to give it one")
	case d.Schedule != nil:
		return InvalidField("schedule", "an inline spec runs once and has no schedule; create a job to schedule it")
	case len(d.DependsOn) > 0:
		return InvalidField("depends_on", "an inline spec runs once and depends on no job; create a job to give it dependencies")
	}
	return answer(d.validate())
}

// answer keeps a nil *Error from becoming an error that is not nil.
func answer(err *Error) error {
	if err == nil {
		return nil
	}
	return err
}

// CheckName checks the name of a job, namespace, task, handler or worker: [A-Za-z0-9][A-Za-z0-9._-]{0,127}.
func CheckName(field, name string) error {
	switch {
	case name == "":
		return InvalidField(field, "a name is missing; write one such as nightly-report")
	case len(name) > MaxNameBytes:
		return InvalidField(field, "the name has %d characters; the limit is %d", len(name), MaxNameBytes)
	case !matches(name, alphanumeric, "._-"):
		return InvalidField(field, "%q is not a name; use letters, digits, dots, dashes and underscores, starting with a letter or digit", abbreviate([]byte(name)))
	}
	return nil
}

// CheckLabels checks labels, or a selector.
func CheckLabels(field string, labels map[string]string) error {
	return answer(checkLabels(field, labels))
}

func checkLabels(field string, labels map[string]string) *Error {
	if len(labels) > MaxLabels {
		return InvalidField(field, "there are %d labels; the limit is %d", len(labels), MaxLabels)
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		v, at := labels[k], joinField(field, pathName(k))
		switch {
		case k == "":
			return InvalidField(field, "a label has no key; give it one")
		case len(k) > MaxLabelKeyBytes:
			return InvalidField(at, "the label's key has %d characters; the limit is %d", len(k), MaxLabelKeyBytes)
		case !matches(k, alphanumeric, "._/-"):
			return InvalidField(at, "%q is not a label's key; use letters, digits, dots, slashes, dashes and underscores, starting with a letter or digit", k)
		case len(v) > MaxLabelValueBytes:
			return InvalidField(at, "the label's value has %d bytes; the limit is %d", len(v), MaxLabelValueBytes)
		case !printable(v, ""):
			return InvalidField(at, "the label's value contains a character that cannot be shown; use printable text")
		}
	}
	return nil
}

const alphanumeric = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

// matches tells whether s is one of first, then any of first and of more.
func matches(s, first, more string) bool {
	for i := range len(s) {
		if strings.IndexByte(first, s[i]) < 0 && (i == 0 || strings.IndexByte(more, s[i]) < 0) {
			return false
		}
	}
	return s != ""
}

// printable tells whether s is valid UTF-8 made of what can be shown, spaces, and the control characters in besides.
func printable(s, besides string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsGraphic(r) && !strings.ContainsRune(besides, r) {
			return false
		}
	}
	return true
}

func (d *Document) validate() *Error {
	if d.Namespace != "" {
		if err := CheckName("namespace", d.Namespace); err != nil {
			return AsError(err)
		}
	}
	switch {
	case len(d.Description) > MaxDescriptionBytes:
		return InvalidField("description", "the description has %d bytes; the limit is %d", len(d.Description), MaxDescriptionBytes)
	case !printable(d.Description, "\n\t\r\u200d"):
		return InvalidField("description", "the description contains a character that cannot be shown; use printable text")
	case d.Schedule != nil && len(d.DependsOn) > 0:
		return InvalidField("depends_on", "a job has either a schedule or depends_on, not both; keep one of them")
	}
	return firstOf(
		func() *Error { return checkLabels("labels", d.Labels) },
		func() *Error { return d.Schedule.validate() },
		func() *Error { return d.checkEdges() },
		func() *Error { return checkSpan("start_deadline", d.StartDeadline) },
		func() *Error { return checkSpan("deadline", d.Deadline) },
		func() *Error {
			return oneOf("overlap", d.Overlap, OverlapAllow, OverlapSkipTick, OverlapQueueTick, OverlapReplaceRun)
		},
		func() *Error { return d.Concurrency.validate() },
		func() *Error { return d.settings().validate("") },
		func() *Error { return d.Retry.validate("retry") },
		func() *Error {
			_, err := ValidatePayload("payload", d.Payload, MaxPayloadBytes)
			if err != nil {
				return AsError(err)
			}
			return nil
		},
		func() *Error { return d.checkExecutors() },
	)
}

func firstOf(checks ...func() *Error) *Error {
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (s *Schedule) validate() *Error {
	if s == nil {
		return nil
	}
	switch {
	case strings.TrimSpace(s.Cron) == "":
		return InvalidField("schedule.cron", `a schedule needs a cron expression, such as "0 0 * * *" or "@every 5m"`)
	case len(s.Cron) > MaxCronBytes:
		return InvalidField("schedule.cron", "the expression has %d bytes; the limit is %d", len(s.Cron), MaxCronBytes)
	case !printable(s.Cron, ""):
		return InvalidField("schedule.cron", "the expression contains a character that cannot be shown; use plain text")
	case s.TimeZone != "" && !matches(s.TimeZone, alphanumeric, "/_+-") || len(s.TimeZone) > MaxLabelKeyBytes:
		return InvalidField("schedule.time_zone", "%q is not a time zone; use an IANA name such as Europe/Berlin", abbreviate([]byte(s.TimeZone)))
	case s.CatchUp.Max < 0 || s.CatchUp.Max > MaxCatchUp:
		return InvalidField("schedule.catch_up.max", "%d is out of range; use 1 to %d", s.CatchUp.Max, MaxCatchUp)
	case s.CatchUp.Max > 0 && s.CatchUp.Policy != CatchUpAll:
		return InvalidField("schedule.catch_up.max", "max goes with policy: all only; remove it, or set the policy to all")
	case !s.StartAt.IsZero() && !s.EndAt.IsZero() && !s.EndAt.After(s.StartAt):
		return InvalidField("schedule.end_at", "the schedule ends before it starts; make end_at later than start_at")
	}
	return oneOf("schedule.catch_up.policy", s.CatchUp.Policy, CatchUpNone, CatchUpLatest, CatchUpAll)
}

func (d *Document) checkEdges() *Error {
	if len(d.DependsOn) > MaxEdges {
		return InvalidField("depends_on", "there are %d upstream jobs; the limit is %d", len(d.DependsOn), MaxEdges)
	}
	seen := map[string]bool{}
	for i, e := range d.DependsOn {
		at := indexed("depends_on", i)
		if err := CheckName(at+".job", e.Job); err != nil {
			return AsError(err)
		}
		switch {
		case e.Job == d.Name:
			return InvalidField(at+".job", "the job depends on itself: %s -> %s; remove this edge", d.Name, d.Name)
		case seen[e.Job]:
			return InvalidField(at+".job", "the job %s is there twice; keep one of them", e.Job)
		}
		seen[e.Job] = true
		if err := oneOf(at+".on", e.On, OnSuccess, OnFailure, OnDone); err != nil {
			return err
		}
	}
	return nil
}

func (c *Concurrency) validate() *Error {
	switch {
	case c == nil:
		return nil
	case c.Key == "":
		return InvalidField("concurrency.key", "a concurrency limit needs a key; runs that share it count together")
	case len(c.Key) > MaxKeyBytes:
		return InvalidField("concurrency.key", "the key has %d bytes; the limit is %d", len(c.Key), MaxKeyBytes)
	case !printable(c.Key, ""):
		return InvalidField("concurrency.key", "the key contains a character that cannot be shown; use printable text")
	case c.Limit < 1 || c.Limit > MaxConcurrency:
		return InvalidField("concurrency.limit", "%d is out of range; use 1 to %d", c.Limit, MaxConcurrency)
	}
	return nil
}

// settings are what a task may set for itself and otherwise inherits.
type settings struct {
	timeout      Duration
	selector     map[string]string
	slots        int
	priority     *int
	onWorkerLost OnWorkerLost
	onLeaseLost  OnLeaseLost
}

func (d *Document) settings() settings {
	return settings{d.Timeout, d.Selector, d.Slots, d.Priority, d.OnWorkerLost, d.OnLeaseLost}
}

func (t *Task) settings() settings {
	return settings{t.Timeout, t.Selector, t.Slots, t.Priority, t.OnWorkerLost, t.OnLeaseLost}
}

func (s settings) validate(in string) *Error {
	switch {
	case s.slots < 0 || s.slots > MaxSlots:
		return InvalidField(joinField(in, "slots"), "%d is out of range; use 1 to %d", s.slots, MaxSlots)
	case s.priority != nil && (*s.priority < 0 || *s.priority > MaxPriority):
		return InvalidField(joinField(in, "priority"), "%d is out of range; use 0 to %d, %d first", *s.priority, MaxPriority, MaxPriority)
	}
	return firstOf(
		func() *Error { return checkSpan(joinField(in, "timeout"), s.timeout) },
		func() *Error { return checkLabels(joinField(in, "selector"), s.selector) },
		func() *Error {
			return oneOf(joinField(in, "on_worker_lost"), s.onWorkerLost, RequeueOnLoss, FailOnLoss)
		},
		func() *Error {
			return oneOf(joinField(in, "on_lease_lost"), s.onLeaseLost, KillOnLeaseLost, FinishOnLeaseLost)
		},
	)
}

func (p *Retry) validate(in string) *Error {
	if p == nil {
		return nil
	}
	if p.MaxAttempts < 0 || p.MaxAttempts > MaxRetryAttempts {
		return InvalidField(in+".max_attempts", "%d is out of range; use 1 to %d, counting the first attempt", p.MaxAttempts, MaxRetryAttempts)
	}
	for _, err := range []*Error{
		oneOf(in+".backoff", p.Backoff, ExponentialBackoff, ConstantBackoff),
		checkSpan(in+".initial", p.Initial),
		checkSpan(in+".max", p.Max),
	} {
		if err != nil {
			return err
		}
	}
	if p.Max > 0 && p.Initial > p.Max {
		return InvalidField(in+".initial", "the first pause %v is longer than the longest, %v; raise max or lower initial", p.Initial, p.Max)
	}
	return nil
}

func checkSpan(field string, d Duration) *Error {
	switch {
	case d < 0:
		return InvalidField(field, "%v is negative; write a duration such as 10m", d)
	case d.Std() > MaxSpan:
		return InvalidField(field, "%v is too long; the limit is %v (one year)", d, Duration(MaxSpan))
	}
	return nil
}

// oneOf checks a word from a closed list; "" means the default.
func oneOf[T ~string](field string, word T, words ...T) *Error {
	if word == "" || slices.Contains(words, word) {
		return nil
	}
	list := ""
	for i, w := range words {
		if i > 0 {
			list += ", "
		}
		list += string(w)
	}
	return InvalidField(field, "%q is not known here; use one of %s", abbreviate([]byte(word)), list)
}

// checkURL accepts absolute http and https addresses. Names and passwords in an address would be stored and shown with
// it, so they are refused.
func checkURL(field, raw string) *Error {
	if len(raw) > MaxURLBytes {
		return InvalidField(field, "the address has %d bytes; the limit is %d", len(raw), MaxURLBytes)
	}
	if strings.Contains(raw, TemplateMark) {
		return nil // judged when its values are known; where they stand is for job/dag to say
	}
	u, err := url.Parse(raw)
	switch {
	case raw == "":
		return InvalidField(field, "the address is missing; write one such as https://example.com/hook")
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Opaque != "":
		return InvalidField(field, "this is not an absolute http or https address; write one such as https://example.com/hook")
	case u.User != nil:
		return InvalidField(field, "the address contains a user name or password, which everybody who can read the job would see; leave it out")
	case strings.Contains(raw, "#"):
		return InvalidField(field, "the address contains a fragment (#...), which is never sent; leave it out")
	}
	return nil
}
