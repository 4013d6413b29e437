package job

import (
	"encoding/json"
	"sort"
	"strconv"
	"strings"
)

// Run is one execution of a job: the row that its home keeps and the shape that the API answers. The cbor numbers are on
// disk: never renumbered, never reused. A stored Run is immutable; whoever changes one changes a copy.
type Run struct {
	ID          RunID             `json:"id" cbor:"1,keyasint"`
	RootID      RunID             `json:"root_id" cbor:"2,keyasint,omitzero"` // of a root run its own id
	Namespace   string            `json:"namespace" cbor:"3,keyasint"`
	JobID       JobID             `json:"-" cbor:"4,keyasint,omitzero"` // zero with an inline spec
	Job         string            `json:"job,omitempty" cbor:"5,keyasint,omitempty"`
	JobVersion  uint64            `json:"job_version,omitempty" cbor:"6,keyasint,omitempty"`
	Task        string            `json:"task,omitempty" cbor:"7,keyasint,omitempty"`
	Trigger     Trigger           `json:"trigger" cbor:"8,keyasint"`
	State       State             `json:"state" cbor:"9,keyasint"`
	Reason      Reason            `json:"reason,omitempty" cbor:"10,keyasint,omitempty"`
	Priority    uint8             `json:"priority" cbor:"11,keyasint,omitempty"`
	Attempt     uint32            `json:"attempt" cbor:"12,keyasint,omitempty"` // number of the current or last one; the first is 1
	Losses      uint32            `json:"losses,omitempty" cbor:"13,keyasint,omitempty"`
	Worker      string            `json:"worker,omitempty" cbor:"14,keyasint,omitempty"`
	ScheduledAt Instant           `json:"scheduled_at,omitempty" cbor:"15,keyasint,omitempty"` // the tick, or the time asked for
	CreatedAt   Instant           `json:"created_at" cbor:"16,keyasint"`
	ReadyAt     Instant           `json:"ready_at,omitempty" cbor:"17,keyasint,omitempty"` // no attempt starts before it
	QueuedAt    Instant           `json:"queued_at,omitempty" cbor:"18,keyasint,omitempty"`
	StartedAt   Instant           `json:"started_at,omitempty" cbor:"19,keyasint,omitempty"` // of the current or last attempt
	FinishedAt  Instant           `json:"finished_at,omitempty" cbor:"20,keyasint,omitempty"`
	DeadlineAt  Instant           `json:"deadline_at,omitempty" cbor:"21,keyasint,omitempty"`
	Payload     json.RawMessage   `json:"payload,omitempty" cbor:"22,keyasint,omitempty"`
	Result      json.RawMessage   `json:"result,omitempty" cbor:"23,keyasint,omitempty"`
	Error       string            `json:"error,omitempty" cbor:"24,keyasint,omitempty"`
	ExitCode    int32             `json:"exit_code,omitempty" cbor:"25,keyasint,omitempty"`
	Labels      map[string]string `json:"labels,omitempty" cbor:"26,keyasint,omitempty"`
	Home        Home              `json:"durability" cbor:"27,keyasint"`
	Lane        string            `json:"-" cbor:"28,keyasint,omitempty"`              // LaneOf its document
	Spec        json.RawMessage   `json:"spec,omitempty" cbor:"29,keyasint,omitempty"` // the inline document of a run of no job, already normalised
	Key         string            `json:"idempotency_key,omitempty" cbor:"30,keyasint,omitempty"`
	RetryOf     RunID             `json:"retry_of,omitzero" cbor:"31,keyasint,omitzero"`
	CanonicalID RunID             `json:"canonical_id,omitzero" cbor:"32,keyasint,omitzero"`
	CancelAt    Instant           `json:"cancel_requested_at,omitempty" cbor:"33,keyasint,omitempty"` // the intent (L9)
	Fence       Fence             `json:"-" cbor:"34,keyasint,omitempty"`                             // of the last attempt that ended
	BackfillID  string            `json:"backfill_id,omitempty" cbor:"35,keyasint,omitempty"`
	BodyHash    []byte            `json:"-" cbor:"37,keyasint,omitempty"`                  // of the submitted body; set with Key
	StartBy     Instant           `json:"start_by,omitempty" cbor:"38,keyasint,omitempty"` // no first attempt starts after it
	Failures    uint32            `json:"failures,omitempty" cbor:"36,keyasint,omitempty"` // attempts that count against max_attempts
	// CancelReason is why CancelAt was set; none: somebody asked.
	CancelReason Reason `json:"-" cbor:"39,keyasint,omitempty"`
	// Item numbers the run among those of a task with for_each, from 1. The task's own run has Items of them instead, once
	// it is running, and ends when they have.
	Item  uint32 `json:"item,omitempty" cbor:"40,keyasint,omitempty"`
	Items uint32 `json:"items,omitempty" cbor:"41,keyasint,omitempty"`
	// ParentID is the task run (run_job) for which this root run was made; Depth is how many there are above it.
	ParentID RunID `json:"parent_id,omitzero" cbor:"42,keyasint,omitzero"`
	Depth    uint8 `json:"-" cbor:"43,keyasint,omitempty"`
	// ReusedFrom is, of a task run, the one whose success it takes over; of a root run, the one whose successes its tasks
	// take over.
	ReusedFrom RunID `json:"reused_from,omitzero" cbor:"44,keyasint,omitzero"`
	// Upstreams are the runs that satisfied the job's dependencies, by job, of a run that was born of that.
	Upstreams []UpstreamRun `json:"upstreams,omitempty" cbor:"45,keyasint,omitempty"`
}

// UpstreamRun is what satisfied one dependency of a job: the last run that did, and how many more did before it.
type UpstreamRun struct {
	Job       string `json:"job" cbor:"1,keyasint"`
	RunID     RunID  `json:"run_id" cbor:"2,keyasint"`
	Coalesced uint32 `json:"coalesced,omitempty" cbor:"3,keyasint,omitempty"`
}

// MarshalJSON fills in what a root run leaves out on disk.
func (r Run) MarshalJSON() ([]byte, error) {
	type plain Run
	if r.RootID.IsZero() {
		r.RootID = r.ID
	}
	return json.Marshal(plain(r))
}

// IsRoot tells whether r is a root run.
func (r *Run) IsRoot() bool { return r.RootID.IsZero() || r.RootID == r.ID }

// Startable tells whether an attempt may be granted at now (Q3): what a popped queue entry must still be.
func (r *Run) Startable(now Instant) bool {
	return (r.State == Queued || r.State == Scheduled && r.ReadyAt <= now) && r.CancelAt == 0
}

// LaneKey is the lane (Q2) in which the run queues.
func (r *Run) LaneKey() LaneKey { return LaneKey(r.Lane) }

// IfOpened is the guard (Move.IfState) of a move that was decided from this row and must not be made once the leader has opened
// the run; none for a run that needs no opening.
func (r *Run) IfOpened() State {
	if r.LaneKey().OnLeader() {
		return r.State
	}
	return 0
}

// LaneKey names a lane: namespace, selector and concurrency key, in one canonical text. Namespaces contain no '|'.
type LaneKey string

// What a run needs of a worker besides labels is in its lane as labels that no user can write, so that all entries of a
// lane can be served by the same workers and one that cannot be never holds up another.
const (
	needExecutor = "@"         // + executor name
	needHandler  = "@handler/" // + handler name
	needSlots    = "@slots"    // more than one
	needLeader   = "@leader"   // no worker: the leader carries it out by giving birth to other runs
	leaderBelow  = "below"     // its value for what an open root waits for, which must never wait for that root to end
)

// LaneOf is the lane for runs of a document.
func LaneOf(namespace string, spec *Document) LaneKey {
	key := ""
	if spec.Concurrency != nil {
		key = spec.Concurrency.Key
	}
	executor := spec.ExecutorName()
	if executor == "" {
		below := leaderBelow
		if len(spec.Tasks) > 0 {
			below = ""
		}
		return MakeLane(namespace, map[string]string{needLeader: below}, key)
	}
	needs := make(map[string]string, len(spec.Selector)+2)
	for k, v := range spec.Selector {
		needs[k] = v
	}
	switch {
	case spec.Handler != nil:
		needs[needHandler+spec.Handler.Name] = ""
	default:
		needs[needExecutor+executor] = ""
	}
	if spec.Slots > 1 {
		needs[needSlots] = strconv.Itoa(spec.Slots)
	}
	return MakeLane(namespace, needs, key)
}

// OnLeader tells whether the leader itself carries out what queues in the lane: root runs with tasks, and tasks that run
// other runs. Such a run is running, in the store, from when the leader opened it until the runs below it have ended; it
// never has a lease.
func (l LaneKey) OnLeader() bool { return strings.HasPrefix(l.NeedsText(), needLeader+"=") }

// Below tells whether an open root waits for what queues in a leader's lane: then no bound of open roots may hold it up.
func (l LaneKey) Below() bool { return l.NeedsText() == needLeader+"="+leaderBelow }

// LaneBelow is a root's lane when it is the run of a task's run_job.
func (l LaneKey) LaneBelow() LaneKey {
	if !l.OnLeader() {
		return l
	}
	return MakeLane(l.Namespace(), map[string]string{needLeader: leaderBelow}, l.ConcurrencyKey())
}

// Offers are a worker's labels together with what it can execute, in the terms of LaneOf.
func (h *WorkerHello) Offers() map[string]string {
	m := make(map[string]string, len(h.Labels)+len(h.Executors)+len(h.Handlers))
	for k, v := range h.Labels {
		m[k] = v
	}
	for _, e := range h.Executors {
		m[needExecutor+e] = ""
	}
	for _, f := range h.Handlers {
		m[needHandler+f] = ""
	}
	return m
}

// Needs splits what a lane asks of a worker into labels that it must offer and free slots.
func (l LaneKey) Needs() (labels map[string]string, slots int) {
	labels = l.Selector()
	slots = 1
	if s, ok := labels[needSlots]; ok {
		slots, _ = strconv.Atoi(s)
		delete(labels, needSlots)
	}
	return labels, max(1, slots)
}

// MakeLane puts a lane's name together.
func MakeLane(namespace string, selector map[string]string, concurrencyKey string) LaneKey {
	if len(selector) == 0 && concurrencyKey == "" {
		return LaneKey(namespace)
	}
	keys := make([]string, 0, len(selector))
	for k := range selector {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var b strings.Builder
	b.WriteString(namespace)
	b.WriteByte('|')
	for i, k := range keys {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(laneEscape.Replace(k))
		b.WriteByte('=')
		b.WriteString(laneEscape.Replace(selector[k]))
	}
	b.WriteByte('|')
	b.WriteString(laneEscape.Replace(concurrencyKey))
	return LaneKey(b.String())
}

var (
	laneEscape   = strings.NewReplacer("%", "%25", "|", "%7c", ",", "%2c", "=", "%3d")
	laneUnescape = strings.NewReplacer("%25", "%", "%7c", "|", "%2c", ",", "%3d", "=")
)

// Namespace is the lane's namespace.
func (l LaneKey) Namespace() string {
	ns, _, _ := strings.Cut(string(l), "|")
	return ns
}

// Selector is the lane's selector; nil means any worker.
func (l LaneKey) Selector() map[string]string {
	_, rest, ok := strings.Cut(string(l), "|")
	sel, _, _ := strings.Cut(rest, "|")
	if !ok || sel == "" {
		return nil
	}
	m := map[string]string{}
	for _, kv := range strings.Split(sel, ",") {
		k, v, _ := strings.Cut(kv, "=")
		m[laneUnescape.Replace(k)] = laneUnescape.Replace(v)
	}
	return m
}

// NeedsText is the part of the lane's name that Needs reads: equal for lanes that need the same of a worker.
func (l LaneKey) NeedsText() string {
	_, rest, _ := strings.Cut(string(l), "|")
	needs, _, _ := strings.Cut(rest, "|")
	return needs
}

// ConcurrencyKey is the lane's concurrency key; "" means none.
func (l LaneKey) ConcurrencyKey() string {
	i := strings.LastIndexByte(string(l), '|')
	if i < 0 {
		return ""
	}
	return laneUnescape.Replace(string(l[i+1:]))
}

// Order is where an entry stands in its lane: ready time - priority * 60 s, the smallest first, so that waiting ages a
// run past higher priorities (Q2).
func Order(readyAt Instant, priority uint8) int64 { return int64(readyAt) - int64(priority)*60_000_000 }

// Attempt is one try of a run on a worker.
type Attempt struct {
	RunID      RunID   `json:"run_id" cbor:"1,keyasint"`
	Attempt    uint32  `json:"attempt" cbor:"2,keyasint"`
	Fence      Fence   `json:"fence" cbor:"3,keyasint"`
	Worker     string  `json:"worker" cbor:"4,keyasint"`
	StartedAt  Instant `json:"started_at,omitempty" cbor:"5,keyasint,omitempty"`
	FinishedAt Instant `json:"finished_at,omitempty" cbor:"6,keyasint,omitempty"`
	State      State   `json:"state" cbor:"7,keyasint"` // how it ended; running while it runs
	Reason     Reason  `json:"reason,omitempty" cbor:"8,keyasint,omitempty"`
	Error      string  `json:"error,omitempty" cbor:"9,keyasint,omitempty"`
	ExitCode   int32   `json:"exit_code,omitempty" cbor:"10,keyasint,omitempty"`
}

// Receipt answers one submitted birth.
type Receipt struct {
	Run      *Run // as stored; with Existing the run that was there already
	Existing bool // the id or the key was seen before: nothing new was created
	Err      error
}

// CancelIntent asks for a run to be cancelled (L9). It commutes with births and other intents (S4).
type CancelIntent struct {
	ID RunID   `cbor:"1,keyasint"`
	At Instant `cbor:"2,keyasint"`
	// Reason is CancelRequested, the default, or OverlapReplaced.
	Reason Reason `cbor:"3,keyasint,omitempty"`
}
