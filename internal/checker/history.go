package checker

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/musterhq/muster/job"
)

// Moment is a time in nanoseconds since the machine was booted, suspended time included (CLOCK_BOOTTIME).
type Moment int64

// History is everything that is known of one trial. The order within each list does not matter.
type History struct {
	Lives    []Life
	Ops      []Op
	Work     []Work
	Jobs     []Job
	Runs     []Run
	Faults   []Fault
	Leads    []Lead
	Digests  []Digest
	Refusals []Refusal
	// Store is the rung that the cluster has for its own; 0: it is not judged where runs lie.
	Store job.Home
	// Apart is how far the cluster's time was from the true one at most, where clocks were set wrong; 0: not at all. It is
	// not saved with the rest.
	Apart time.Duration
}

// Life is one process of the system, from its start to its end. Several may live at once.
type Life struct {
	Pid int `json:"pid"`
	// Role and Name are what the process is; a restarted one has the same name. A trial of one process needs neither.
	Role  Role   `json:"role,omitempty"`
	Name  string `json:"name,omitempty"`
	Start Moment `json:"start"`
	Ready Moment `json:"ready,omitempty"` // 0: it was killed before
	// Kill is from when on it was being killed, Dead when it was gone for sure; both 0 for one that was stopped softly.
	Kill Moment `json:"kill,omitempty"`
	Dead Moment `json:"dead,omitempty"`
	// Stop is when it was asked to stop softly.
	Stop Moment `json:"stop,omitempty"`
}

// Role is what a process is of the system.
type Role string

const (
	Both   Role = ""     // a node with its own worker
	Node   Role = "node" // alone
	Worker Role = "worker"
	// Store is what keeps the cluster's state (Postgres) or its queue (Redis); the name says which.
	Store Role = "store"
)

// The names of stores, in faults.
const (
	Postgres = "postgres"
	Redis    = "redis"
)

// Fault is what was done to a process without ending it, or to a store.
type Fault struct {
	Kind FaultKind `json:"kind"`
	Role Role      `json:"role,omitempty"`
	Name string    `json:"name"`
	From Moment    `json:"from"`
	To   Moment    `json:"to"`
	// Led: the process was the leader when it began.
	Led bool `json:"led,omitempty"`
}

// FaultKind is what was done.
type FaultKind string

const (
	Pause FaultKind = "pause" // it did not get to run: SIGSTOP
	// Cut: it was cut off from those whom it needs, of a worker all nodes that can reach a leader.
	Cut FaultKind = "cut"
	// Away: a store was stopped or killed, so that connections to it were refused.
	Away FaultKind = "away"
	// Forgot: a store forgot something, or all: flushed, or put back to an earlier day.
	Forgot FaultKind = "forgot"
)

// Lead says that a node began to lead, by its own word.
type Lead struct {
	Name  string    `json:"name"`
	Epoch job.Epoch `json:"epoch"`
	Wall  int64     `json:"wall"` // of the node's clock, for the reader
}

// Digest is the hash of a node's whole replicated state at one place in the log.
type Digest struct {
	Name  string `json:"name"`
	Index uint64 `json:"index"`
	Hash  string `json:"hash"`
}

// Refusal counts what the system refused because it came too late.
type Refusal struct {
	Kind RefusalKind `json:"kind"`
	N    int         `json:"n"`
}

// RefusalKind is who was too late.
type RefusalKind string

const (
	LateWorker RefusalKind = "worker" // results under an old fence
	LateLeader RefusalKind = "leader" // what a node wanted to do as a leader that it no longer was
)

// Op is one request of a client and what became of it. Its invocation and its completion are Asked and Answered.
type Op struct {
	Kind    OpKind  `json:"kind"`
	Asked   Moment  `json:"asked"`
	Done    Moment  `json:"done"`
	Outcome Outcome `json:"outcome"`
	Problem string  `json:"problem,omitempty"` // why it is not ok
	// Node is which node was asked, "" if the client itself chose one. Status is the answer's, if there was one.
	Node   string `json:"node,omitempty"`
	Status int    `json:"status,omitempty"`
	// Bad: the client asked, on purpose, for what must be refused (D5). Field is the field that the refusal names.
	Bad   bool   `json:"bad,omitempty"`
	Field string `json:"field,omitempty"`
	// Reason is the finer reason of a refusal.
	Reason string `json:"reason,omitempty"`

	// Of a submission: the id that the client made, its key, and its body without id and key. Of the others: the run.
	ID   job.RunID       `json:"id,omitzero"`
	Key  string          `json:"key,omitempty"`
	Body json.RawMessage `json:"body,omitempty"`
	// Answer is the run as it was answered.
	Answer *job.Run `json:"answer,omitempty"`

	// Of a Put: the job, the version that is now in effect, and the wall clock before and after.
	Job     string      `json:"job,omitempty"`
	Version uint64      `json:"version,omitempty"`
	Before  job.Instant `json:"before,omitempty"`
	After   job.Instant `json:"after,omitempty"`
}

// OpKind is what a client asked for.
type OpKind string

const (
	Submit OpKind = "submit"
	Cancel OpKind = "cancel"
	Retry  OpKind = "retry" // of the run ID; the answer is the new one
	Read   OpKind = "read"
	Put    OpKind = "put"
)

// Outcome is what an answer, or the lack of one, means.
type Outcome string

const (
	OK      Outcome = "ok"      // it happened
	Refused Outcome = "refused" // it did not happen
	Unknown Outcome = "unknown" // it may have happened, once
)

// Work is a line that a command wrote about itself.
type Work struct {
	Event       Event     `json:"event"`
	Run         job.RunID `json:"run"`
	Attempt     uint32    `json:"attempt"`
	Fence       job.Fence `json:"fence"`
	Job         string    `json:"job,omitempty"`
	ScheduledAt string    `json:"scheduled_at,omitempty"`
	Life        int       `json:"life"` // pid of the process of ours that started it
	Pid         int       `json:"pid"`
	At          Moment    `json:"at"`
	Wall        int64     `json:"wall"` // nanoseconds since the Unix epoch, for the reader
	Code        int       `json:"code,omitempty"`
	Signal      int       `json:"signal,omitempty"`
	// Given is what the command was given to work with, for the trial to compare.
	Given string `json:"given,omitempty"`
	// Alive is, of a Stray, the life whose work was seen alive.
	Alive int `json:"alive,omitempty"`
}

// Event is what a command notes.
type Event string

const (
	Start Event = "start"
	End   Event = "end"
	// Beat is noted again and again by a process that a command left beside itself.
	Beat Event = "beat"
	// Stray is noted by a command that, when it started, saw work of an earlier life of the system alive.
	Stray Event = "stray"
)

// Job is a job as the system answers it in the end.
type Job struct {
	ID       job.JobID     `json:"id"`
	Name     string        `json:"name"`
	Versions []job.Version `json:"versions"`
	Ticks    []Tick        `json:"ticks"` // the whole ledger
	// Until is up to when its ticks are judged: the system says that it has decided all up to here.
	Until job.Instant `json:"until"`
	// Edges are those to its upstreams, and how they stand in the end.
	Edges []job.Dependency `json:"edges,omitempty"`
}

// Tick is a row of the ledger, and the run that the system names for it.
type Tick struct {
	job.Tick
	RunID job.RunID `json:"run_id,omitzero"`
}

// Run is a run as the system answers it in the end.
type Run struct {
	Run      job.Run       `json:"run"`
	Attempts []job.Attempt `json:"attempts,omitempty"`
}

// Line is one line of a saved history: one of its fields is set.
type Line struct {
	Life    *Life    `json:"life,omitempty"`
	Op      *Op      `json:"op,omitempty"`
	Work    *Work    `json:"work,omitempty"`
	Job     *Job     `json:"job,omitempty"`
	Run     *Run     `json:"run,omitempty"`
	Fault   *Fault   `json:"fault,omitempty"`
	Lead    *Lead    `json:"lead,omitempty"`
	Digest  *Digest  `json:"digest,omitempty"`
	Refusal *Refusal `json:"refusal,omitempty"`
	Store   job.Home `json:"store,omitempty"`
}

// Read adds the lines of one file to the history. A last line that was cut off is left out: its writer was killed.
func (h *History) Read(from io.Reader) error {
	in := bufio.NewReader(from)
	for n := 1; ; n++ {
		text, err := in.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(text)) == 0 {
			continue
		}
		var l Line
		if err := json.Unmarshal(text, &l); err != nil {
			return fmt.Errorf("line %d of the history: %w", n, err)
		}
		h.Add(l)
	}
}

// Add adds one fact.
func (h *History) Add(l Line) {
	switch {
	case l.Life != nil:
		h.Lives = append(h.Lives, *l.Life)
	case l.Op != nil:
		h.Ops = append(h.Ops, *l.Op)
	case l.Work != nil:
		h.Work = append(h.Work, *l.Work)
	case l.Job != nil:
		h.Jobs = append(h.Jobs, *l.Job)
	case l.Run != nil:
		h.Runs = append(h.Runs, *l.Run)
	case l.Fault != nil:
		h.Faults = append(h.Faults, *l.Fault)
	case l.Lead != nil:
		h.Leads = append(h.Leads, *l.Lead)
	case l.Digest != nil:
		h.Digests = append(h.Digests, *l.Digest)
	case l.Refusal != nil:
		h.Refusals = append(h.Refusals, *l.Refusal)
	case l.Store != 0:
		h.Store = l.Store
	}
}
