package api

import (
	"context"
	"io"

	"github.com/musterhq/muster/job"
)

// What the API needs of the node. A storage.Store is a Store as it is; the rest is put together by internal/app.

// Store owns jobs, versions, runs, attempts and the ledger. Its contract is in package storage.
type Store interface {
	Definitions
	Births
	Reads
}

// Definitions keeps jobs and their versions.
type Definitions interface {
	PutJob(ctx context.Context, p job.PutJob) (*job.Job, error)
	DeleteJob(ctx context.Context, namespace, name string, ifVersion uint64) (*job.Job, error)
	Job(ctx context.Context, namespace, name string) (*job.Job, error)
	Jobs(ctx context.Context, q job.JobQuery) (job.JobPage, error)
	Version(ctx context.Context, id job.JobID, version uint64) (*job.Version, error)
	Versions(ctx context.Context, namespace, name string, limit int) ([]*job.Version, error)
}

// Births is what any node may write (S4).
type Births interface {
	Submit(ctx context.Context, runs []*job.Run) ([]job.Receipt, error)
	Cancel(ctx context.Context, intents []job.CancelIntent) ([]job.Receipt, error)
}

// Reads answers people.
type Reads interface {
	Run(ctx context.Context, id job.RunID) (*job.Run, error)
	Load(ctx context.Context, ids []job.RunID) ([]*job.Run, error)
	Runs(ctx context.Context, q job.RunQuery) (job.RunPage, error)
	Attempts(ctx context.Context, id job.RunID) ([]job.Attempt, error)
	Ticks(ctx context.Context, q job.TickQuery) ([]job.Tick, error)
	Usage(ctx context.Context) (job.Usage, error)
}

// Graphs is what a store knows of how jobs depend on each other.
type Graphs interface {
	// Dependencies answers the edges of a job, to its upstreams and then from its dependents, each by name; none if there
	// is no such job.
	Dependencies(ctx context.Context, namespace, name string) ([]job.Dependency, error)
}

// Schedules is the control state of jobs, which Raft owns (L7). Reads are local and as new as this node's log.
type Schedules interface {
	// PutSchedule brings the job's current version into effect. A document without a schedule ends an older version's.
	// Repeating it, or bringing an older version than the one in effect, changes nothing.
	PutSchedule(ctx context.Context, j *job.Job) error
	// DropSchedule ends the schedule of a job that was deleted.
	DropSchedule(ctx context.Context, j *job.Job) error
	// PauseJob pauses a job or resumes it.
	PauseJob(ctx context.Context, j *job.Job, paused bool) error
	// Mark tells which version ticks, and how far it has.
	Mark(id job.JobID) (job.Mark, bool)
	// Unstored answers the ticks that are decided and that the store may not have yet.
	Unstored(id job.JobID) []job.Tick
	// Paused answers JobPaused, NamespacePaused, Maintenance or NoReason.
	Paused(id job.JobID, namespace string) job.Reason
}

// Leases tells what runs now: live grants are Raft's, so every node knows them, and the store learns of them late.
type Leases interface {
	Grant(id job.RunID) (job.Grant, bool)
	Grants() []job.Grant
}

// Leader answers what only the leader knows, from whichever node asks. Unavailable while there is no leader.
type Leader interface {
	// Explain says in plain sentences why a run is where it is, beyond what its row says: which selector no worker
	// matches, which concurrency key is held by whom, how far down its lane it stands.
	Explain(ctx context.Context, r *job.Run) ([]string, error)
	// Workers answers all workers the leader knows.
	Workers(ctx context.Context) ([]job.Worker, error)
	// Worker answers one, or NotFound.
	Worker(ctx context.Context, name string) (*job.Worker, error)
}

// Flags sets what people decided about workers and the cluster; facts of Raft.
type Flags interface {
	// FlagWorker makes a worker ready, cordoned or draining.
	FlagWorker(ctx context.Context, name string, state job.WorkerState) error
	// Maintain starts or ends maintenance: no ticks and no new attempts.
	Maintain(ctx context.Context, on bool) error
}

// Hints tells the leader what was just stored. It never blocks, and what it says may be lost (Q1).
type Hints interface {
	Born(runs []*job.Run)
	CancelRequested(ids []job.RunID)
}

// Output reads what runs wrote, from whichever node received it.
type Output interface {
	// Output calls each with the chunks of one attempt, in order, from q.From on. It returns at the end of what is there; with
	// q.Follow it waits for more, until it learns that the attempt has ended or ctx ends. An attempt that wrote nothing, or
	// nothing yet, has no chunks and is no error. An error of each ends it and is returned.
	Output(ctx context.Context, q OutputQuery, each func(OutputChunk) error) error
}

// OutputQuery selects the output of one attempt.
type OutputQuery struct {
	RunID   job.RunID
	Attempt uint32
	From    int64 // offset in bytes
	Follow  bool
}

// OutputChunk is a piece of an attempt's output. Output lies outside the never-lost promise: what is missing before this
// chunk shows as an offset greater than the end of the chunk before.
type OutputChunk struct {
	Offset int64  // of its first byte in the attempt's whole output
	Stream string // which one, where the worker tells them apart
	Data   []byte // valid during the call only
}

// Joiner tells a worker where and how to join.
type Joiner interface {
	Join(ctx context.Context, q JoinRequest) (*JoinAnswer, error)
}

// JoinRequest is how a worker asks to join. Its join token, if the cluster wants one, is the request's bearer token.
type JoinRequest struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"` // of the worker's binary
	CSR     string `json:"csr,omitempty"`     // PEM: a request for a worker certificate, where the cluster uses TLS
	Token   string `json:"-"`                 // from the Authorization header
}

// JoinAnswer tells a worker all it needs to attach. Names and keys in it may change: a worker asks again when it reattaches.
type JoinAnswer struct {
	ClusterID   string   `json:"cluster_id,omitempty"`
	Streams     []string `json:"streams"`               // base URLs where worker streams end, this node's first
	Cell        string   `json:"cell,omitempty"`        // gossip: the label of the worker's memberlist
	Seeds       []string `json:"seeds,omitempty"`       // gossip: addresses to join
	GossipKey   []byte   `json:"gossip_key,omitempty"`  // gossip: base64 in JSON
	Certificate string   `json:"certificate,omitempty"` // PEM, if a CSR was sent
	CA          string   `json:"ca,omitempty"`          // PEM
}

// Cluster describes the cluster as this node sees it.
type Cluster interface {
	Status(ctx context.Context) (*ClusterStatus, error)
	// Ready answers nil when this node can take requests: it knows a leader and its store answers.
	Ready(ctx context.Context) error
	// Home is the rung that is the cluster's own store: acceptance there is 201, on a lower one 202 (S3).
	Home() job.Home
	// Rung is the highest rung that this node believes it can reach now.
	Rung() job.Home
}

// ClusterStatus is GET /v1/cluster.
type ClusterStatus struct {
	ID           string       `json:"id"`
	Node         string       `json:"node"` // the one that answers
	Version      string       `json:"version"`
	Leader       string       `json:"leader,omitempty"`
	Epoch        job.Epoch    `json:"epoch"`
	Term         uint64       `json:"term,omitempty" doc:"of Raft"`
	CommitIndex  uint64       `json:"commit_index,omitempty" doc:"of Raft, as the leader has it"`
	Store        string       `json:"store"` // embedded, moving or postgres (S11)
	Outage       bool         `json:"outage" doc:"the store is out of reach, as the answering node sees it"`
	OutageReason string       `json:"outage_reason,omitempty" doc:"one sentence"`
	Queue        string       `json:"queue,omitempty" doc:"where the queue is: memory or redis"`
	QueueOutage  bool         `json:"queue_outage,omitempty" doc:"Redis is out of reach, as the answering node sees it; the leader's memory is the queue meanwhile"`
	Maintenance  bool         `json:"maintenance"`
	Nodes        []NodeStatus `json:"nodes"`
	Quorum       Quorum       `json:"quorum"`          // filled in by the API from Nodes and Leader
	Usage        *job.Usage   `json:"usage,omitempty"` // filled in by the API from the store
}

// NodeStatus is one scheduler process. The leader knows of the others; what it cannot know of a node that does not answer is
// what it knew last.
type NodeStatus struct {
	ID            string      `json:"id"`
	Name          string      `json:"name"`
	Role          string      `json:"role" enum:"leader,voter,nonvoter"`
	API           string      `json:"api,omitempty"`
	Raft          string      `json:"raft,omitempty"`
	Version       string      `json:"version,omitempty"`
	Healthy       bool        `json:"healthy" doc:"it answers the leader"`
	LastSeenAt    job.Instant `json:"last_seen_at,omitempty"`
	AppliedIndex  uint64      `json:"applied_index"`
	Behind        uint64      `json:"behind" doc:"entries of the log that it has not applied yet"`
	ClockOffsetMS int64       `json:"clock_offset_ms" doc:"of its clock against the median of the voters"`
	Streams       int         `json:"streams" doc:"workers attached to it"`
}

// Roles of a node.
const (
	RoleLeader   = "leader"
	RoleVoter    = "voter"
	RoleNonvoter = "nonvoter"
)

// Quorum says how much a cluster can lose, for people who must not have to count.
type Quorum struct {
	Healthy   bool     `json:"healthy" doc:"it is led, and a majority of the voters answers"`
	Voters    int      `json:"voters"`
	Answering int      `json:"answering" doc:"voters that answer"`
	Tolerates int      `json:"tolerates" doc:"voters that may still fail before nothing is decided any more"`
	Summary   string   `json:"summary" doc:"one sentence"`
	Advice    []string `json:"advice,omitempty" doc:"what to do, if something is to be done"`
}

// ClusterAdmin changes who leads and who belongs to the cluster, from whichever node asks. Unavailable while there is no
// leader to ask.
type ClusterAdmin interface {
	// Transfer hands leadership to the node named to, or to the best one if it is "". NotFound: no such node; Conflict: it
	// is no voter. It returns once another node leads.
	Transfer(ctx context.Context, to string) error
	// Remove takes a node out of the cluster. NotFound: no such node; Conflict with reason quorum: the nodes that remain
	// would not be able to decide, and force was not given.
	Remove(ctx context.Context, name string, force bool) error
	// Verify compares the replicas: each node's digest of its whole state at one and the same index. A node that does not
	// answer is said in its row, and is no error.
	Verify(ctx context.Context) (*ReplicaCheck, error)
	// Greeting is what a node tells another that starts. It must answer before the node has started.
	Greeting(ctx context.Context) (*Greeting, error)
}

// ReplicaCheck is what POST /v1/cluster/verify answers.
type ReplicaCheck struct {
	Index    uint64          `json:"index" doc:"of the log, at which all digests were taken"`
	Equal    bool            `json:"equal" doc:"all digests that could be had are the same"`
	Complete bool            `json:"complete" doc:"every node of the cluster answered"`
	Replicas []ReplicaDigest `json:"replicas"`
}

// ReplicaDigest is one node's.
type ReplicaDigest struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Digest string `json:"digest,omitempty" doc:"SHA-256 in hexadecimal"`
	Error  string `json:"error,omitempty" doc:"why there is none"`
}

// Greeting is what a node tells another one at bootstrap, over the API, whose addresses are the ones that people list.
type Greeting struct {
	NodeID     string   `json:"node_id"`
	Name       string   `json:"name"`
	Raft       string   `json:"raft"`
	API        string   `json:"api"`
	HasState   bool     `json:"has_state"`
	ClusterID  string   `json:"cluster_id,omitempty"`
	Store      string   `json:"store,omitempty"` // the kind of store that it was started with
	LeaderID   string   `json:"leader_id,omitempty"`
	LeaderRaft string   `json:"leader_raft,omitempty"`
	Knows      []string `json:"knows,omitempty"`   // the ids of all nodes on its list, once each has answered it
	Members    []string `json:"members,omitempty"` // the ids of the servers in its configuration of Raft
}

// Credentials keeps who may call. Reads are local and as new as this node's log.
type Credentials interface {
	Credentials() []job.Credential
	// PutCredential adds one. Conflict: its name is taken.
	PutCredential(ctx context.Context, c job.Credential) error
	// DropCredential revokes one. NotFound, or Conflict with reason last_admin.
	DropCredential(ctx context.Context, id string) error
}

// Snapshots writes a consistent copy of the replicated state, and puts one in its place.
type Snapshots interface {
	Snapshot(ctx context.Context, w io.Writer) error
	// Restore replaces the cluster's state by a copy that Snapshot wrote. It keeps what it reads in a file of its own and
	// checks all of it before the first change. Invalid: it is damaged or none; Conflict: it is another cluster's.
	Restore(ctx context.Context, r io.Reader) error
}
