package dagtest

import (
	"encoding/json"
	"hash/fnv"

	"github.com/musterhq/muster/job"
)

// Key names one run within a root: a task's, or with Item > 0 that of one item of its list.
type Key struct {
	Task string
	Item uint32
}

// ID is the run's id.
func (k Key) ID(root job.RunID) job.RunID { return job.TaskRunID(root, k.Task, k.Item) }

// Kind is how an attempt ends.
type Kind int

const (
	Succeeds Kind = iota
	Fails
	FailsForGood
	LosesWorker
)

// Outcomes says how attempts end, as a function of the seed.
type Outcomes struct {
	Seed     uint64
	NoLosses bool
}

func (o Outcomes) hash(k Key, attempt uint32) uint64 {
	h := fnv.New64a()
	b, _ := json.Marshal([]any{o.Seed, k.Task, k.Item, attempt})
	h.Write(b)
	x := h.Sum64()
	x ^= x >> 31 // the lowest bits of FNV follow the last bytes too closely
	x *= 0x9e3779b97f4a7c15
	return x >> 11
}

// Of is how an attempt ends, and with which result.
func (o Outcomes) Of(k Key, attempt uint32) (Kind, json.RawMessage) {
	h := o.hash(k, attempt)
	switch n := h % 20; {
	case n < 14 || n == 19 && o.NoLosses:
		list := numbers(int(h / 20 % 4))
		if h/80%3 == 0 {
			list = append(list, map[string]any{"k": "v"}, nil)
		}
		b, _ := json.Marshal(map[string]any{"n": h / 240 % 6, "list": list})
		return Succeeds, b
	case n < 17:
		return Fails, nil
	case n < 19:
		return FailsForGood, nil
	}
	return LosesWorker, nil
}

// End is how a run of work ended.
type End struct {
	State   job.State
	Reason  job.Reason
	Result  json.RawMessage
	Attempt uint32
}

// Final is how a run ends if nothing else interferes (L5).
func (o Outcomes) Final(k Key, maxAttempts int) *End {
	failures, losses := 0, 0
	for attempt := uint32(1); ; attempt++ {
		switch kind, result := o.Of(k, attempt); kind {
		case Succeeds:
			return &End{job.Succeeded, job.NoReason, result, attempt}
		case FailsForGood:
			return &End{job.Failed, job.ExitCode, nil, attempt}
		case Fails:
			if failures++; failures >= max(1, maxAttempts) {
				return &End{job.Failed, job.ExitCode, nil, attempt}
			}
		case LosesWorker:
			if losses++; losses == 3 {
				return &End{job.Failed, job.WorkerLost, nil, attempt}
			}
		}
	}
}

// Outcome is Of as a worker reports it; that of LosesWorker is not for reporting.
func (o Outcomes) Outcome(k Key, attempt uint32) (job.Outcome, Kind) {
	kind, result := o.Of(k, attempt)
	if kind == Succeeds {
		return job.Outcome{Kind: job.AttemptSucceeded, Result: result}, kind
	}
	return job.Outcome{Kind: job.AttemptFailed, Reason: job.ExitCode, ExitCode: 1, Error: "exit status 1", Permanent: kind == FailsForGood}, kind
}
