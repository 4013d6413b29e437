package job

import "fmt"

// The closed lists of words. Each is a number on disk, never renumbered and never reused, and a word everywhere else.

// State is where a run stands. The diagram is in the package comment.
type State uint8

const (
	Waiting   State = 1 // for its dependencies, or for an earlier run of its job (overlap: queue)
	Held      State = 2 // not startable until something outside it changes; Reason says what
	Scheduled State = 3 // for its time: a delay, or a retry's backoff
	Queued    State = 4 // startable, for a worker
	Running   State = 5 // under a lease
	Succeeded State = 6
	Failed    State = 7
	Cancelled State = 8
	Skipped   State = 9
)

var stateWords = []string{"", "waiting", "held", "scheduled", "queued", "running", "succeeded", "failed", "cancelled", "skipped"}

// Terminal tells whether the state is final (D4).
func (s State) Terminal() bool { return s >= Succeeded }

func (s State) String() string               { return word(stateWords, uint8(s)) }
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
func (s *State) UnmarshalText(b []byte) error {
	return parseWord("state", stateWords, b, (*uint8)(s))
}

// Trigger says why a run exists.
type Trigger uint8

const (
	ByAPI        Trigger = 1
	ByTick       Trigger = 2
	ByBackfill   Trigger = 3
	ByRetry      Trigger = 4
	ByDependency Trigger = 5
	ByParent     Trigger = 6 // a task run, or the run of a task's run_job
)

var triggerWords = []string{"", "api", "tick", "backfill", "retry", "dependency", "parent"}

func (t Trigger) String() string               { return word(triggerWords, uint8(t)) }
func (t Trigger) MarshalText() ([]byte, error) { return []byte(t.String()), nil }
func (t *Trigger) UnmarshalText(b []byte) error {
	return parseWord("trigger", triggerWords, b, (*uint8)(t))
}

// Disposition is what became of a tick (L6). Each tick gets exactly one.
type Disposition uint8

const (
	TickRun       Disposition = 1 // a run was born
	TickSkipped   Disposition = 2 // overlap: skip, or overlap: queue with one run waiting already
	TickCoalesced Disposition = 3 // a later tick runs in its place
	TickMissed    Disposition = 4 // too late when a leader could decide it
	TickPaused    Disposition = 5 // the job or its namespace was paused
)

var dispositionWords = []string{"", "run", "skipped", "coalesced", "missed", "paused"}

func (d Disposition) String() string               { return word(dispositionWords, uint8(d)) }
func (d Disposition) MarshalText() ([]byte, error) { return []byte(d.String()), nil }
func (d *Disposition) UnmarshalText(b []byte) error {
	return parseWord("disposition", dispositionWords, b, (*uint8)(d))
}

// Reason says why a run is in its state, or why a tick has its disposition. docs/reasons.md explains each to users.
type Reason uint8

const (
	NoReason          Reason = 0
	Dependencies      Reason = 1  // waiting for upstreams
	OverlapQueued     Reason = 2  // waiting for, or coalesced into, an earlier run of the job
	OverlapSkip       Reason = 3  // an earlier run of the job was active
	OverlapReplaced   Reason = 4  // cancelled because a later tick replaces it
	Spooled           Reason = 5  // accepted on a node's local disk only
	Deduplicating     Reason = 6  // its idempotency key cannot be checked yet
	Duplicate         Reason = 7  // its key belongs to another run; see canonical_id
	KeyConflict       Reason = 8  // its key was used with another body
	JobPaused         Reason = 9  //
	NamespacePaused   Reason = 10 //
	Delayed           Reason = 11 // its time has not come
	RetryBackoff      Reason = 12 // the next attempt is planned
	ExitCode          Reason = 13 // the command, the handler or the HTTP endpoint said it failed
	TimedOut          Reason = 14 // an attempt ran longer than timeout
	DeadlineExceeded  Reason = 15 // the run took longer than deadline
	StartDeadline     Reason = 16 // not started in time
	WorkerLost        Reason = 17 // the worker vanished, too often or with on_worker_lost: fail
	InvalidResult     Reason = 18 // the result cannot be stored
	CancelRequested   Reason = 19 // somebody asked
	CatchUpNoneReason Reason = 20 // missed: catch_up is none
	CatchUpMaxReason  Reason = 21 // missed: more ticks were overdue than catch_up.max
	CatchUpCoalesced  Reason = 22 // coalesced: catch_up is latest
	NotPermitted      Reason = 23 // the worker's own configuration forbids this work
	CannotStart       Reason = 24 // the work could not be started: no such command, directory, user or handler
	Maintenance       Reason = 25 // the cluster is in maintenance
	LeaseLost         Reason = 26 // an attempt was stopped because its lease ended
	WorkerStopped     Reason = 27 // the worker shut down and gave the run back
	TaskFailed        Reason = 28 // a task of it failed, or was cancelled by itself
	UpstreamFailed    Reason = 29 // skipped: run_if wanted upstreams that failed or were cancelled
	UpstreamSkipped   Reason = 30 // skipped: run_if wanted upstreams that were skipped
	RunIfFalse        Reason = 31 // skipped: no upstream ended as run_if wants
	WhenFalse         Reason = 32 // skipped: its condition was false
	ExpressionFailed  Reason = 33 // an expression or template could not be evaluated
	ChildFailed       Reason = 34 // the run of its run_job did not succeed
)

var reasonWords = []string{"", "dependencies", "overlap_queued", "overlap_skip", "overlap_replaced", "spooled", "deduplicating",
	"duplicate", "key_conflict", "job_paused", "namespace_paused", "delayed", "retry_backoff", "exit_code", "timed_out",
	"deadline_exceeded", "start_deadline", "worker_lost", "invalid_result", "cancel_requested", "catch_up_none",
	"catch_up_max", "catch_up_coalesced", "not_permitted", "cannot_start", "maintenance", "lease_lost", "worker_stopped",
	"task_failed", "upstream_failed", "upstream_skipped", "run_if_false", "when_false", "expression_failed", "child_failed"}

func (r Reason) String() string               { return word(reasonWords, uint8(r)) }
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }
func (r *Reason) UnmarshalText(b []byte) error {
	return parseWord("reason", reasonWords, b, (*uint8)(r))
}

// Home is the rung that alone holds a root run's state (S5).
type Home uint8

const (
	HomeQuorum   Home = 1 // the Raft state; the cluster's own store when embedded
	HomePostgres Home = 2
	HomeLocal    Home = 3 // one node's spool (S8)
)

var homeWords = []string{"", "quorum", "postgres", "local"}

// String is also the `durability` of an acceptance on that rung (S3).
func (h Home) String() string               { return word(homeWords, uint8(h)) }
func (h Home) MarshalText() ([]byte, error) { return []byte(h.String()), nil }
func (h *Home) UnmarshalText(b []byte) error {
	return parseWord("durability", homeWords, b, (*uint8)(h))
}

func word(words []string, v uint8) string {
	if int(v) < len(words) {
		return words[v]
	}
	return fmt.Sprintf("unknown_%d", v) // written by a newer version
}

func parseWord(kind string, words []string, b []byte, v *uint8) error {
	for i, w := range words {
		if w == string(b) {
			*v = uint8(i)
			return nil
		}
	}
	return Errorf(Invalid, "invalid_field", "%.64q is not a %s; use one of %s", b, kind, listWords(words))
}

func listWords(words []string) string {
	s := ""
	for _, w := range words {
		if w == "" {
			continue
		}
		if s != "" {
			s += ", "
		}
		s += w
	}
	return s
}
