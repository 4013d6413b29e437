package fsm

import (
	"cmp"
	"encoding/json"
	"fmt"
	"sync/atomic"

	"github.com/musterhq/muster/job"
)

// tables is all that is replicated but for the windows of replays. Indexes are derived from the rows.
type tables struct {
	g globals

	marks    table[job.JobID, job.Mark]
	flags    table[string, flagRow]
	unstored table[job.TickKey, job.Tick]
	leases   table[job.RunID, job.Grant]
	ended    table[uint64, endedBlock]

	nodes       table[string, job.Node]
	credentials table[string, job.Credential]

	jobs     table[jobName, job.Job]
	versions table[versionID, versionRow]
	edges    edges // of the current versions
	edgeRows edgeTable
	pins     table[versionID, pin]
	// Runs are in one of two tables: live ones, and history once they are terminal. So the leader's reads, births and
	// pruning each walk a table that holds nothing else, and a backlog does not stand between a reader and history.
	live     runTable
	history  runTable
	attempts table[attemptID, job.Attempt]
	ledger   table[job.TickKey, job.Tick]
	aged     set[job.TickKey] // the ledger by time
	keys     table[jobName, keyRow]
	keyAges  set[keyAge]
}

// runTable keeps runs with their indexes. Settling moves a run from one to the other.
type runTable struct {
	rows        table[job.RunID, job.Run]
	byNamespace set[groupKey]  // root runs
	byJob       set[groupKey]  // by the name of the job; live ones with task runs, which the leader asks for
	byRoot      set[groupKey]  // task runs
	running     set[job.RunID] // whose rows say so: what the leader carries out, and what a late move says
	tasksByJob  bool
}

func newTables() *tables {
	return &tables{
		marks:    newTable(lessID[job.JobID], func(m *job.Mark) job.JobID { return m.JobID }),
		flags:    newTable(cmp.Less[string], func(f *flagRow) string { return f.Key }),
		unstored: newTable(lessTick, (*job.Tick).Key),
		leases:   newTable(lessID[job.RunID], func(g *job.Grant) job.RunID { return g.RunID }),
		ended:    newTable(cmp.Less[uint64], func(b *endedBlock) uint64 { return b.Seq }),
		nodes:    newTable(cmp.Less[string], func(n *job.Node) string { return n.ID }),

		credentials: newTable(cmp.Less[string], func(c *job.Credential) string { return c.ID }),

		jobs:     newTable(lessName, func(j *job.Job) jobName { return jobName{j.Namespace, j.Name} }),
		versions: newTable(lessVersion, func(v *versionRow) versionID { return versionID{v.JobID, v.Version} }),
		edges:    newEdges(),
		edgeRows: newEdgeTable(),
		pins:     newTable(lessVersion, func(p *pin) versionID { return versionID{p.JobID, p.Version} }),
		live:     newRunTable(true),
		history:  newRunTable(false),
		attempts: newTable(lessAttempt, func(a *job.Attempt) attemptID { return attemptID{a.RunID, a.Attempt} }),
		ledger:   newTable(lessTick, (*job.Tick).Key),
		aged:     newSet(lessAged),
		keys:     newTable(lessName, func(k *keyRow) jobName { return jobName{k.Namespace, k.Key} }),
		keyAges:  newSet(lessKeyAge),
	}
}

// frozen answers tables that stay as they are. The caller holds the lock that writers hold: cloning a tree marks its
// nodes as shared.
func (t *tables) frozen() *tables {
	return &tables{
		g: t.g, marks: t.marks.frozen(), flags: t.flags.frozen(), unstored: t.unstored.frozen(), leases: t.leases.frozen(),
		ended: t.ended.frozen(), nodes: t.nodes.frozen(), credentials: t.credentials.frozen(), jobs: t.jobs.frozen(), versions: t.versions.frozen(), edges: t.edges.frozen(), edgeRows: t.edgeRows.frozen(), pins: t.pins.frozen(),
		live: t.live.frozen(), history: t.history.frozen(), attempts: t.attempts.frozen(), ledger: t.ledger.frozen(),
		aged: t.aged.frozen(), keys: t.keys.frozen(), keyAges: t.keyAges.frozen(),
	}
}

func newRunTable(tasksByJob bool) runTable {
	return runTable{rows: newTable(lessID[job.RunID], func(r *job.Run) job.RunID { return r.ID }),
		byNamespace: newSet(lessGroup), byJob: newSet(lessGroup), byRoot: newSet(lessGroup), running: newSet(lessID[job.RunID]), tasksByJob: tasksByJob}
}

func (t *runTable) frozen() runTable {
	return runTable{rows: t.rows.frozen(), byNamespace: t.byNamespace.frozen(), byJob: t.byJob.frozen(),
		byRoot: t.byRoot.frozen(), running: t.running.frozen(), tasksByJob: t.tasksByJob}
}

// add writes a run that is not there.
func (t *runTable) add(r *job.Run) {
	t.replace(r)
	root := r.IsRoot()
	if root {
		t.byNamespace.add(groupKey{namespaceGroup(r.Namespace), r.ID})
	} else {
		t.byRoot.add(groupKey{rootGroup(r.RootID), r.ID})
	}
	if r.Job != "" && (root || t.tasksByJob) {
		t.byJob.add(groupKey{jobGroup(r.Namespace, r.Job), r.ID})
	}
}

// replace writes a run that is there; what else it is indexed by never changes.
func (t *runTable) replace(r *job.Run) {
	t.rows.put(r)
	keep(&t.running, r.ID, r.State == job.Running)
}

func (t *runTable) remove(r *job.Run) {
	t.rows.del(r)
	t.running.remove(r.ID)
	root := r.IsRoot()
	if root {
		t.byNamespace.remove(groupKey{namespaceGroup(r.Namespace), r.ID})
	} else {
		t.byRoot.remove(groupKey{rootGroup(r.RootID), r.ID})
	}
	if r.Job != "" && (root || t.tasksByJob) {
		t.byJob.remove(groupKey{jobGroup(r.Namespace, r.Job), r.ID})
	}
}

// globals are the counters and settings.
type globals struct {
	Index       uint64      `cbor:"1,keyasint"`
	At          job.Instant `cbor:"2,keyasint"` // the state's time: the greatest At applied (L8)
	Epoch       job.Epoch   `cbor:"3,keyasint"`
	StoreEpoch  job.Epoch   `cbor:"4,keyasint"`
	Maintenance bool        `cbor:"5,keyasint,omitempty"`
	Limits      Limits      `cbor:"6,keyasint"`
	// How full it is, in bytes by the functions in size.go.
	LiveBytes       int64 `cbor:"20,keyasint"`
	HistoryBytes    int64 `cbor:"21,keyasint"`
	KeyBytes        int64 `cbor:"22,keyasint"`
	DefinitionBytes int64 `cbor:"23,keyasint"`
	// PruneAfter is where the walk over history that looks for old rows goes on.
	PruneAfter job.RunID `cbor:"30,keyasint,omitzero"`
	EndedSeq   uint64    `cbor:"31,keyasint,omitempty"` // blocks of ended leases so far
	// The cluster's name and the key of its gossip, from InitCluster.
	ClusterID    string `cbor:"40,keyasint,omitempty"`
	GossipSecret []byte `cbor:"41,keyasint,omitempty"`
	Store        string `cbor:"42,keyasint,omitempty"` // from SetStore
}

// flagRow is a switch that a person set: a paused job or namespace, a cordoned worker.
type flagRow struct {
	Key   string `cbor:"1,keyasint"`
	Value string `cbor:"2,keyasint,omitempty"`
}

// The first byte of a flag's key says of what it is.
func jobFlag(id job.JobID) string      { return "j" + id.String() }
func namespaceFlag(name string) string { return "n" + name }
func workerFlag(name string) string    { return "w" + name }

// versionRow is one version of a job: the document as JSON, and decoded once it was asked for.
type versionRow struct {
	JobID     job.JobID   `cbor:"1,keyasint"`
	Version   uint64      `cbor:"2,keyasint"`
	Namespace string      `cbor:"3,keyasint"`
	Name      string      `cbor:"4,keyasint"`
	From      job.Instant `cbor:"5,keyasint"`
	CreatedAt job.Instant `cbor:"6,keyasint"`
	Document  []byte      `cbor:"7,keyasint"`
	Orphan    bool        `cbor:"8,keyasint,omitempty"` // the job is deleted; the row stays while runs need it

	decoded atomic.Pointer[job.Document]
}

// spec is the document. It was encoded from one by whoever proposed it, so it decodes.
func (v *versionRow) spec() *job.Document {
	if d := v.decoded.Load(); d != nil {
		return d
	}
	d := new(job.Document)
	if err := json.Unmarshal(v.Document, d); err != nil {
		panic(fmt.Sprintf("fsm: stored document of job %s version %d: %v", v.JobID, v.Version, err))
	}
	v.decoded.Store(d)
	return d
}

// changed is a copy with a change.
func (v *versionRow) changed(f func(*versionRow)) *versionRow {
	n := &versionRow{JobID: v.JobID, Version: v.Version, Namespace: v.Namespace, Name: v.Name, From: v.From,
		CreatedAt: v.CreatedAt, Document: v.Document, Orphan: v.Orphan}
	n.decoded.Store(v.decoded.Load())
	f(n)
	return n
}

// pin counts the live runs of a version: it stays while they need it. It also finds the live runs of a job by its id,
// though they are indexed by name.
type pin struct {
	JobID     job.JobID `cbor:"1,keyasint"`
	Version   uint64    `cbor:"2,keyasint"`
	Live      int       `cbor:"3,keyasint"`
	Namespace string    `cbor:"4,keyasint"`
	Name      string    `cbor:"5,keyasint"`
}

// keyRow remembers an idempotency key from its acceptance for KeyLife, longer than the run itself if need be: then the
// last field is what is left of the run.
type keyRow struct {
	Namespace  string      `cbor:"1,keyasint"`
	Key        string      `cbor:"2,keyasint"`
	RunID      job.RunID   `cbor:"3,keyasint"`
	BodyHash   []byte      `cbor:"4,keyasint,omitempty"`
	AcceptedAt job.Instant `cbor:"5,keyasint"`
	Pruned     *job.Run    `cbor:"6,keyasint,omitempty"`
}

func (k *keyRow) age() keyAge { return keyAge{k.AcceptedAt, jobName{k.Namespace, k.Key}} }
