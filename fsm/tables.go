package fsm

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"sync/atomic"

	"github.com/hashicorp/go-memdb"
	"github.com/musterhq/muster/job"
)

// The tables. Each has a number in snapshots, in the list rows; numbers are never reused.
const (
	tableGlobals  = "globals"
	tableMarks    = "marks"
	tableFlags    = "flags"
	tableUnstored = "unstored"
	tableLeases   = "leases"
	tableEnded    = "ended"
	tableJobs     = "jobs"
	tableVersions = "versions"
	tablePins     = "pins"
	tableLive     = "live"
	tableHistory  = "history"
	tableAttempts = "attempts"
	tableLedger   = "ledger"
	tableKeys     = "keys"
)

// The indexes besides the primary one.
const (
	indexID        = "id"
	indexNamespace = "namespace" // (namespace, id) of root runs
	indexJob       = "job"       // (namespace, job name, id)
	indexRoot      = "root"      // (root id, id) of task runs
	indexAge       = "age"       // time first
)

// globals is the single row of counters and settings.
type globals struct {
	Index       uint64      `cbor:"1,keyasint"`
	At          job.Instant `cbor:"2,keyasint"` // the state's time: the greatest At applied (L8)
	Epoch       job.Epoch   `cbor:"3,keyasint"`
	StoreEpoch  job.Epoch   `cbor:"4,keyasint"`
	Maintenance bool        `cbor:"5,keyasint,omitempty"`
	Limits      Limits      `cbor:"6,keyasint"`
	// How full it is: rows, and bytes by the functions in size.go.
	LiveRuns        int   `cbor:"10,keyasint"`
	HistoryRuns     int   `cbor:"11,keyasint"`
	LedgerRows      int   `cbor:"12,keyasint"`
	UnstoredTicks   int   `cbor:"13,keyasint"`
	Flags           int   `cbor:"14,keyasint"`
	Marks           int   `cbor:"15,keyasint"`
	LiveBytes       int64 `cbor:"20,keyasint"`
	HistoryBytes    int64 `cbor:"21,keyasint"`
	KeyBytes        int64 `cbor:"22,keyasint"`
	DefinitionBytes int64 `cbor:"23,keyasint"`
	// PruneAfter is where the walk over history that looks for old rows goes on.
	PruneAfter job.RunID `cbor:"30,keyasint,omitzero"`
	EndedSeq   uint64    `cbor:"31,keyasint,omitempty"` // blocks of ended leases so far
}

// flag is a switch that a person set: a paused job or namespace, a cordoned worker.
type flag struct {
	Key   string `cbor:"1,keyasint"`
	Value string `cbor:"2,keyasint,omitempty"`
}

func jobFlag(id job.JobID) string      { return "j" + string(id[:]) }
func namespaceFlag(name string) string { return "n" + name }
func workerFlag(name string) string    { return "w" + name }
func flagKey(k string) []byte          { return []byte(k) }
func runKey(id job.RunID) []byte       { return append(make([]byte, 0, 16), id[:]...) }
func markKey(id job.JobID) []byte      { return append(make([]byte, 0, 16), id[:]...) }
func endedKey(seq uint64) []byte       { return binary.BigEndian.AppendUint64(nil, seq) }
func globalsKey(struct{}) []byte       { return []byte{0} }
func nameKey(n jobName) []byte         { return joined(n.namespace, n.name, nil) }
func keyKey(k keyName) []byte          { return joined(k.namespace, k.key, nil) }
func attemptKey(a attemptID) []byte    { return binary.BigEndian.AppendUint32(runKey(a.run), a.attempt) }
func versionKey(v versionID) []byte    { return binary.BigEndian.AppendUint64(markKey(v.job), v.version) }
func tickKey(t job.TickKey) []byte     { return appendInstant(markKey(t.JobID), t.ScheduledAt) }
func appendInstant(b []byte, at job.Instant) []byte {
	return binary.BigEndian.AppendUint64(b, uint64(at)^1<<63) // keeps the order of negative instants too
}

// joined is a key of names, each closed by a zero byte (names hold none), and a tail.
func joined(a, b string, tail []byte) []byte {
	k := make([]byte, 0, len(a)+len(b)+2+len(tail))
	k = append(append(k, a...), 0)
	k = append(append(k, b...), 0)
	return append(k, tail...)
}

type jobName struct{ namespace, name string }
type keyName struct{ namespace, key string }
type versionID struct {
	job     job.JobID
	version uint64
}
type attemptID struct {
	run     job.RunID
	attempt uint32
}

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

// spec is the document. It was decoded once when the command was applied, so it decodes.
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
// last fields are what is left of the run.
type keyRow struct {
	Namespace  string      `cbor:"1,keyasint"`
	Key        string      `cbor:"2,keyasint"`
	RunID      job.RunID   `cbor:"3,keyasint"`
	BodyHash   []byte      `cbor:"4,keyasint,omitempty"`
	AcceptedAt job.Instant `cbor:"5,keyasint"`
	Pruned     *job.Run    `cbor:"6,keyasint,omitempty"`
}

// index makes memdb keys without reflection. Reads pass the finished key.
type index[R any] func(*R) (key []byte, ok bool)

func (f index[R]) FromObject(raw any) (bool, []byte, error) {
	k, ok := f(raw.(*R))
	return ok, k, nil
}

func (f index[R]) FromArgs(args ...any) ([]byte, error) { return args[0].([]byte), nil }

func tableOf[R any](name string, primary func(*R) []byte, more map[string]index[R]) *memdb.TableSchema {
	t := &memdb.TableSchema{Name: name, Indexes: map[string]*memdb.IndexSchema{}}
	t.Indexes[indexID] = &memdb.IndexSchema{Name: indexID, Unique: true,
		Indexer: index[R](func(r *R) ([]byte, bool) { return primary(r), true })}
	for n, f := range more {
		// Every key ends with the row's id, so it is unique by itself and memdb need not append one.
		t.Indexes[n] = &memdb.IndexSchema{Name: n, Unique: true, AllowMissing: true, Indexer: f}
	}
	return t
}

func schema() *memdb.DBSchema {
	runID := func(r *job.Run) []byte { return runKey(r.ID) }
	byNamespace := func(r *job.Run) ([]byte, bool) {
		return namespaceRunKey(r.Namespace, r.ID), r.IsRoot()
	}
	byRoot := func(r *job.Run) ([]byte, bool) { return append(runKey(r.RootID), r.ID[:]...), !r.IsRoot() }
	tables := []*memdb.TableSchema{
		tableOf(tableGlobals, func(*globals) []byte { return globalsKey(struct{}{}) }, nil),
		tableOf(tableMarks, func(m *job.Mark) []byte { return markKey(m.JobID) }, nil),
		tableOf(tableFlags, func(f *flag) []byte { return flagKey(f.Key) }, nil),
		tableOf(tableUnstored, func(t *job.Tick) []byte { return tickKey(t.Key()) }, nil),
		tableOf(tableLeases, func(g *job.Grant) []byte { return runKey(g.RunID) }, nil),
		tableOf(tableEnded, func(e *endedBlock) []byte { return endedKey(e.Seq) }, nil),
		tableOf(tableJobs, func(j *job.Job) []byte { return nameKey(jobName{j.Namespace, j.Name}) }, nil),
		tableOf(tableVersions, func(v *versionRow) []byte { return versionKey(versionID{v.JobID, v.Version}) }, nil),
		tableOf(tablePins, func(p *pin) []byte { return versionKey(versionID{p.JobID, p.Version}) }, nil),
		tableOf(tableLive, runID, map[string]index[job.Run]{
			indexNamespace: byNamespace,
			// Task runs too: what is live of a job is asked by the leader.
			indexJob:  func(r *job.Run) ([]byte, bool) { return joined(r.Namespace, r.Job, r.ID[:]), r.Job != "" },
			indexRoot: byRoot,
		}),
		tableOf(tableHistory, runID, map[string]index[job.Run]{
			indexNamespace: byNamespace,
			indexJob:       func(r *job.Run) ([]byte, bool) { return joined(r.Namespace, r.Job, r.ID[:]), r.Job != "" && r.IsRoot() },
			indexRoot:      byRoot,
		}),
		tableOf(tableAttempts, func(a *job.Attempt) []byte { return attemptKey(attemptID{a.RunID, a.Attempt}) }, nil),
		tableOf(tableLedger, func(t *job.Tick) []byte { return tickKey(t.Key()) }, map[string]index[job.Tick]{
			indexAge: func(t *job.Tick) ([]byte, bool) {
				return append(appendInstant(make([]byte, 0, 24), t.ScheduledAt), t.JobID[:]...), true
			},
		}),
		tableOf(tableKeys, func(k *keyRow) []byte { return keyKey(keyName{k.Namespace, k.Key}) }, map[string]index[keyRow]{
			indexAge: func(k *keyRow) ([]byte, bool) {
				return append(appendInstant(nil, k.AcceptedAt), keyKey(keyName{k.Namespace, k.Key})...), true
			},
		}),
	}
	s := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{}}
	for _, t := range tables {
		s.Tables[t.Name] = t
	}
	return s
}

func namespaceRunKey(namespace string, id job.RunID) []byte {
	k := make([]byte, 0, len(namespace)+1+16)
	k = append(append(k, namespace...), 0)
	return append(k, id[:]...)
}

// newTables makes empty tables. A database that is a snapshot does not keep track of who watches each node of its trees,
// which nobody does here and which would cost a third of every write.
func newTables() *memdb.MemDB {
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		panic(err) // the schema is wrong, which every test would find
	}
	return db.Snapshot()
}
