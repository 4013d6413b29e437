package workerpb

import (
	"encoding/json"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/musterhq/muster/job"
)

// Limits of a Hello. They keep a broken worker from filling a node's memory, and are far above what honest ones need.
const (
	maxSlots     = 1 << 20
	maxLabels    = 64
	maxExecutors = 16
	maxHandlers  = 4096
	maxWord      = 256
)

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// NewHello is the wire form of h.
func NewHello(h *job.WorkerHello) *Hello {
	return &Hello{
		Name: h.Name, Boot: h.Boot, DataId: h.DataID, Version: h.Version, Labels: h.Labels, Slots: uint32(h.Slots),
		Executors: h.Executors, Handlers: h.Handlers, Running: FenceNumbers(h.Running), Number: h.Number,
	}
}

// WorkerHello checks x and converts it. A worker that is leaving has no slots, whatever it says.
func (x *Hello) WorkerHello() (job.WorkerHello, error) {
	switch {
	case !validName.MatchString(x.GetName()):
		return job.WorkerHello{}, job.InvalidField("hello.name",
			"%.64q is not a worker's name; use letters, digits, dots, dashes and underscores, up to 128", x.GetName())
	case x.GetBoot() == "" || len(x.GetBoot()) > maxWord:
		return job.WorkerHello{}, job.InvalidField("hello.boot", "must be set, and up to %d bytes long", maxWord)
	case x.GetDataId() == "" || len(x.GetDataId()) > maxWord:
		return job.WorkerHello{}, job.InvalidField("hello.data_id", "must be set, and up to %d bytes long", maxWord)
	case len(x.GetVersion()) > maxWord:
		return job.WorkerHello{}, job.InvalidField("hello.version", "is longer than %d bytes", maxWord)
	case x.GetSlots() > maxSlots:
		return job.WorkerHello{}, job.InvalidField("hello.slots", "%d is more than %d", x.GetSlots(), maxSlots)
	case x.GetSlots() == 0 && !x.GetLeaving():
		return job.WorkerHello{}, job.InvalidField("hello.slots", "must be at least 1")
	case len(x.GetLabels()) > maxLabels:
		return job.WorkerHello{}, job.InvalidField("hello.labels", "%d labels; up to %d are kept", len(x.GetLabels()), maxLabels)
	case len(x.GetExecutors()) > maxExecutors:
		return job.WorkerHello{}, job.InvalidField("hello.executors", "%d executors; there are fewer", len(x.GetExecutors()))
	case len(x.GetRunning()) > maxSlots:
		return job.WorkerHello{}, job.InvalidField("hello.running", "%d attempts; a worker has at most %d slots", len(x.GetRunning()), maxSlots)
	case len(x.GetHandlers()) > maxHandlers:
		return job.WorkerHello{}, job.InvalidField("hello.handlers", "%d handlers; up to %d are kept", len(x.GetHandlers()), maxHandlers)
	}
	for k, v := range x.GetLabels() {
		if k == "" || len(k) > maxWord || len(v) > maxWord {
			return job.WorkerHello{}, job.InvalidField("hello.labels", "label %.64q is empty or longer than %d bytes", k, maxWord)
		}
	}
	for _, e := range x.GetExecutors() {
		if e != "exec" && e != "http" && e != "handler" {
			return job.WorkerHello{}, job.InvalidField("hello.executors", "%.64q is not one of exec, http, handler", e)
		}
	}
	for _, n := range x.GetHandlers() {
		if n == "" || len(n) > maxWord {
			return job.WorkerHello{}, job.InvalidField("hello.handlers", "%.64q is empty or longer than %d bytes", n, maxWord)
		}
	}
	h := job.WorkerHello{
		Name: x.GetName(), Boot: x.GetBoot(), DataID: x.GetDataId(), Version: x.GetVersion(), Labels: x.GetLabels(), Slots: int(x.GetSlots()),
		Executors: x.GetExecutors(), Handlers: x.GetHandlers(), Running: Fences(x.GetRunning()), Number: x.GetNumber(),
	}
	if x.GetLeaving() {
		h.Slots = 0
	}
	return h, nil
}

// Fences converts a list of fences from the wire.
func Fences(numbers []uint64) []job.Fence {
	if len(numbers) == 0 {
		return nil
	}
	f := make([]job.Fence, len(numbers))
	for i, n := range numbers {
		f[i] = job.Fence(n)
	}
	return f
}

// FenceNumbers converts a list of fences for the wire.
func FenceNumbers(fences []job.Fence) []uint64 {
	if len(fences) == 0 {
		return nil
	}
	n := make([]uint64, len(fences))
	for i, f := range fences {
		n[i] = uint64(f)
	}
	return n
}

// NewAssignment is the wire form of a, without its document: the caller says where that is.
func NewAssignment(a *job.Assignment) *Assignment {
	x := &Assignment{
		RunId: append([]byte(nil), a.RunID[:]...), Fence: uint64(a.Fence), Attempt: a.Attempt, Namespace: a.Namespace,
		Job: a.Job, JobVersion: a.JobVersion, Task: a.Task, ScheduledAt: int64(a.ScheduledAt),
		DeadlineAt: int64(a.DeadlineAt), Payload: a.Payload, Labels: a.Labels,
	}
	if a.RootID != a.RunID && !a.RootID.IsZero() {
		x.RootId = append([]byte(nil), a.RootID[:]...)
	}
	return x
}

// ForJob checks x and converts it; spec is the document that it refers to.
func (x *Assignment) ForJob(spec *job.Document) (*job.Assignment, error) {
	a := &job.Assignment{
		Fence: job.Fence(x.GetFence()), Attempt: x.GetAttempt(), Namespace: x.GetNamespace(), Job: x.GetJob(),
		JobVersion: x.GetJobVersion(), Task: x.GetTask(), ScheduledAt: job.Instant(x.GetScheduledAt()),
		DeadlineAt: job.Instant(x.GetDeadlineAt()), Payload: json.RawMessage(x.GetPayload()), Labels: x.GetLabels(), Spec: spec,
	}
	if len(x.GetPayload()) == 0 {
		a.Payload = nil
	}
	if err := checkAttempt("assignment", x.GetRunId(), x.GetFence(), x.GetAttempt()); err != nil {
		return nil, err
	}
	a.RunID = job.RunID(x.GetRunId())
	a.RootID = a.RunID
	if len(x.GetRootId()) != 0 {
		if len(x.GetRootId()) != len(a.RootID) {
			return nil, job.InvalidField("assignment.root_id", "has %d bytes instead of 16", len(x.GetRootId()))
		}
		a.RootID = job.RunID(x.GetRootId())
	}
	return a, nil
}

// NewResult is the wire form of o. The worker's name does not travel: the node knows whose stream it is.
func NewResult(o *job.Outcome) *Result {
	x := &Result{
		RunId: append([]byte(nil), o.RunID[:]...), Fence: uint64(o.Fence), Attempt: o.Attempt, Kind: Kind(o.Kind),
		Reason: o.Reason.String(), Error: validText(o.Error, MaxErrorBytes), ExitCode: o.ExitCode, Result: o.Result,
		StartedAt: int64(o.StartedAt), FinishedAt: int64(o.FinishedAt), Permanent: o.Permanent,
	}
	return x
}

// Outcome checks x and converts it. A result that cannot be kept, because it is too large or not JSON, makes the outcome
// a permanent failure, invalid_result: refusing it would only make the worker send it again for ever (S12).
func (x *Result) Outcome(worker string) (job.Outcome, error) {
	if err := checkAttempt("result", x.GetRunId(), x.GetFence(), x.GetAttempt()); err != nil {
		return job.Outcome{}, err
	}
	if k := x.GetKind(); k < Kind_KIND_SUCCEEDED || k > Kind_KIND_RETURNED {
		return job.Outcome{}, job.InvalidField("result.kind", "%d is not a kind of end", k)
	}
	o := job.Outcome{
		RunID: job.RunID(x.GetRunId()), Fence: job.Fence(x.GetFence()), Attempt: x.GetAttempt(), Worker: worker,
		Kind: job.OutcomeKind(x.GetKind()), Reason: ParseReason(x.GetReason()), Error: validText(x.GetError(), MaxErrorBytes),
		ExitCode: x.GetExitCode(), Result: json.RawMessage(x.GetResult()), StartedAt: validTime(x.GetStartedAt()),
		FinishedAt: validTime(x.GetFinishedAt()), Permanent: x.GetPermanent(),
	}
	switch n := len(x.GetResult()); {
	case n == 0:
		o.Result = nil
	case n > MaxResultBytes:
		invalidResult(&o, "the result is larger than 64 KiB")
	case !json.Valid(x.GetResult()):
		invalidResult(&o, "the result is not JSON")
	}
	return o, nil
}

// MaxResultWeight is the most that one honest result weighs.
const MaxResultWeight = 128 + MaxResultBytes + MaxErrorBytes

// ResultWeight is what a result counts against the window of bytes (Welcome.max_unacked_bytes).
func ResultWeight(x *Result) int { return 128 + len(x.GetResult()) + len(x.GetError()) }

func invalidResult(o *job.Outcome, why string) {
	o.Kind, o.Reason, o.Error, o.Result, o.Permanent = job.AttemptFailed, job.InvalidResult, why, nil, true
}

// NewStarted is the wire form of s.
func NewStarted(s *job.Started) *Started {
	return &Started{RunId: append([]byte(nil), s.RunID[:]...), Fence: uint64(s.Fence), At: int64(s.At)}
}

// ForJob checks x and converts it.
func (x *Started) ForJob() (job.Started, error) {
	if err := checkAttempt("started", x.GetRunId(), x.GetFence(), 1); err != nil {
		return job.Started{}, err
	}
	return job.Started{RunID: job.RunID(x.GetRunId()), Fence: job.Fence(x.GetFence()), At: validTime(x.GetAt())}, nil
}

// Check tells what is wrong with a piece of output, if anything is.
func (x *Output) Check() error {
	if err := checkAttempt("output", x.GetRunId(), x.GetFence(), x.GetAttempt()); err != nil {
		return err
	}
	if len(x.GetData()) > MaxOutputBytes {
		return job.InvalidField("output.data", "%d bytes in one piece; the limit is %d", len(x.GetData()), MaxOutputBytes)
	}
	if x.GetOffset() > 1<<62 {
		return job.InvalidField("output.offset", "%d is beyond any output", x.GetOffset())
	}
	return nil
}

// ParseReason is the reason of a word, and NoReason for a word that this version does not know: a newer peer's.
func ParseReason(word string) job.Reason {
	if word == "" {
		return job.NoReason
	}
	var r job.Reason
	if err := r.UnmarshalText([]byte(word)); err != nil {
		return job.NoReason
	}
	return r
}

// validTime is the time that a worker's clock showed, or 0, not known, if RFC 3339 cannot write it: it ends with the year
// 9999, and one answer that holds a later time could not be read by anybody.
func validTime(at int64) job.Instant {
	if at < 0 || at > maxTime {
		return 0
	}
	return job.Instant(at)
}

var maxTime = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC).UnixMicro()

func checkAttempt(what string, runID []byte, fence uint64, attempt uint32) error {
	switch {
	case len(runID) != len(job.RunID{}):
		return job.InvalidField(what+".run_id", "has %d bytes instead of 16", len(runID))
	case fence == 0:
		return job.InvalidField(what+".fence", "is not set")
	case attempt == 0:
		return job.InvalidField(what+".attempt", "counts from 1")
	}
	return nil
}

// validText cuts s to limit bytes, at a character, and makes it valid UTF-8 without NUL, which Postgres does not take.
func validText(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
		for len(s) > 0 && !utf8.RuneStart(s[len(s)-1]) {
			s = s[:len(s)-1]
		}
		if len(s) > 0 && s[len(s)-1] >= utf8.RuneSelf {
			s = s[:len(s)-1]
		}
	}
	if strings.IndexByte(s, 0) >= 0 {
		s = strings.ReplaceAll(s, "\x00", "\uFFFD")
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
