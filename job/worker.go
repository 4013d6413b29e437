package job

import "encoding/json"

// WorkerHello is how a worker introduces itself on a new stream.
type WorkerHello struct {
	Name      string            // unique in the cluster
	Boot      string            // one life of the agent process; changes with each start
	Number    uint64            // grows with each hello of one life: on their way they may overtake each other; 0: not told
	DataID    string            // of the data directory whose lock the agent holds: tells a restart from a namesake (L4)
	Version   string            // of the binary
	Labels    map[string]string // what selectors match
	Slots     int               // how much runs at once
	Executors []string          // "exec", "http", "handler"
	Handlers  []string          // names of registered handlers
	Running   []Fence           // attempts it is running, or holds a result of, at this moment
}

// SessionID names one stream of one worker. What is sent to a session that is gone is undeliverable.
type SessionID string

// Assignment tells a worker to run one attempt.
type Assignment struct {
	RunID       RunID
	RootID      RunID
	Fence       Fence
	Attempt     uint32
	Namespace   string
	Job         string
	JobVersion  uint64
	Task        string
	ScheduledAt Instant
	DeadlineAt  Instant
	Payload     json.RawMessage
	Labels      map[string]string
	Spec        *Document // of a task: with its task's executor and settings in place; shared, immutable
}

// Delivery is an assignment on its way to a session.
type Delivery struct {
	Session SessionID
	*Assignment
}

// StopOrder tells a worker to stop an attempt: it was cancelled, or its lease is over.
type StopOrder struct {
	Session SessionID
	RunID   RunID
	Fence   Fence
	Reason  Reason // CancelRequested, LeaseLost, DeadlineExceeded
}

// Ack tells a worker that the result of an attempt is recorded, or refused for good: either way it can forget it.
type Ack struct {
	Session SessionID
	RunID   RunID
	Fence   Fence
	Refused bool
}

// Started is a worker's word that an attempt began.
type Started struct {
	RunID RunID
	Fence Fence
	At    Instant
}

// WorkerState is what the leader thinks of a worker.
type WorkerState string

const (
	WorkerReady    WorkerState = "ready"
	WorkerCordoned WorkerState = "cordoned" // takes no new work
	WorkerDraining WorkerState = "draining" // finishes what it has, then stops
	WorkerGone     WorkerState = "gone"     // no stream; its leases run out
)

// Worker is a worker as the API shows it.
type Worker struct {
	Name        string            `json:"name"`
	State       WorkerState       `json:"state"`
	Node        string            `json:"node,omitempty"` // where its stream ends
	Address     string            `json:"address,omitempty"`
	Version     string            `json:"version,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Slots       int               `json:"slots"`
	SlotsUsed   int               `json:"slots_used"`
	Executors   []string          `json:"executors,omitempty"`
	Handlers    []string          `json:"handlers,omitempty"`
	ConnectedAt Instant           `json:"connected_at,omitempty"`
	LastSeenAt  Instant           `json:"last_seen_at,omitempty"`
}
