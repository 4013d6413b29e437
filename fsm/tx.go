package fsm

import (
	"errors"

	"github.com/hashicorp/go-memdb"
	"github.com/musterhq/muster/job"
)

// tx applies a batch of entries as one change of the tables. Rows are read from a frozen view under an overlay of what
// the batch changed, and are written once, at the end: reading a memdb transaction that was written to makes it copy
// its paths anew, and a run that is born and ends in one batch is written once instead of twice.
type tx struct {
	s    *State
	base *memdb.Txn // frozen: the state before the batch, or at the last flush
	w    *memdb.Txn // open after the first flush
	g    globals

	marks    overlay[job.JobID, job.Mark]
	flags    overlay[string, flag]
	unstored overlay[job.TickKey, job.Tick]
	leases   overlay[job.RunID, job.Grant]
	ended    overlay[uint64, endedBlock]
	jobs     overlay[jobName, job.Job]
	versions overlay[versionID, versionRow]
	pins     overlay[versionID, pin]
	live     overlay[job.RunID, job.Run]
	history  overlay[job.RunID, job.Run]
	attempts overlay[attemptID, job.Attempt]
	ledger   overlay[job.TickKey, job.Tick]
	keys     overlay[keyName, keyRow]

	changed []job.JobID // whose schedule changed
}

func (s *State) begin() *tx {
	t := &tx{s: s, base: s.db.Load().Txn(false)}
	if raw, err := t.base.First(tableGlobals, indexID, globalsKey(struct{}{})); err == nil && raw != nil {
		t.g = *raw.(*globals)
	}
	t.marks = overlay[job.JobID, job.Mark]{tx: t, table: tableMarks, key: markKey}
	t.flags = overlay[string, flag]{tx: t, table: tableFlags, key: flagKey}
	t.unstored = overlay[job.TickKey, job.Tick]{tx: t, table: tableUnstored, key: tickKey}
	t.leases = overlay[job.RunID, job.Grant]{tx: t, table: tableLeases, key: runKey}
	t.ended = overlay[uint64, endedBlock]{tx: t, table: tableEnded, key: endedKey}
	t.jobs = overlay[jobName, job.Job]{tx: t, table: tableJobs, key: nameKey}
	t.versions = overlay[versionID, versionRow]{tx: t, table: tableVersions, key: versionKey}
	t.pins = overlay[versionID, pin]{tx: t, table: tablePins, key: versionKey}
	t.live = overlay[job.RunID, job.Run]{tx: t, table: tableLive, key: runKey}
	t.history = overlay[job.RunID, job.Run]{tx: t, table: tableHistory, key: runKey}
	t.attempts = overlay[attemptID, job.Attempt]{tx: t, table: tableAttempts, key: attemptKey}
	t.ledger = overlay[job.TickKey, job.Tick]{tx: t, table: tableLedger, key: tickKey}
	t.keys = overlay[keyName, keyRow]{tx: t, table: tableKeys, key: keyKey}
	return t
}

// scan answers a view that includes the batch so far, for the few commands that walk an index. It costs the batch the
// freedom to write each row once, so only rare commands use it.
func (t *tx) scan() *memdb.Txn {
	t.flush()
	t.base = t.w.Snapshot()
	return t.base
}

func (t *tx) flush() {
	if t.w == nil {
		t.w = t.s.db.Load().Txn(true)
	}
	t.marks.flush()
	t.flags.flush()
	t.unstored.flush()
	t.leases.flush()
	t.ended.flush()
	t.jobs.flush()
	t.versions.flush()
	t.pins.flush()
	t.live.flush()
	t.history.flush()
	t.attempts.flush()
	t.ledger.flush()
	t.keys.flush()
}

func (t *tx) commit() {
	t.flush()
	g := t.g
	must(t.w.Insert(tableGlobals, &g))
	t.w.Commit()
}

// overlay is what a batch changed of one table.
type overlay[K comparable, R any] struct {
	tx    *tx
	table string
	key   func(K) []byte
	at    map[K]int // place in list
	list  []change[R]
}

type change[R any] struct {
	row  *R
	gone bool // row is what was deleted
}

// get answers a row as the batch left it, or nil.
func (o *overlay[K, R]) get(k K) *R {
	if i, ok := o.at[k]; ok {
		if o.list[i].gone {
			return nil
		}
		return o.list[i].row
	}
	return lookup[R](o.tx.base, o.table, o.key(k))
}

// put writes a row, which nobody may change from then on.
func (o *overlay[K, R]) put(k K, row *R) { o.set(k, change[R]{row: row}) }

// del deletes a row that is there.
func (o *overlay[K, R]) del(k K, row *R) { o.set(k, change[R]{row: row, gone: true}) }

func (o *overlay[K, R]) set(k K, c change[R]) {
	if i, ok := o.at[k]; ok {
		o.list[i] = c
		return
	}
	if o.at == nil {
		o.at = make(map[K]int)
	}
	o.at[k] = len(o.list)
	o.list = append(o.list, c)
}

func (o *overlay[K, R]) flush() {
	for _, c := range o.list {
		if !c.gone {
			must(o.tx.w.Insert(o.table, c.row))
			continue
		}
		// A row that was put and deleted within the batch is not there.
		if err := o.tx.w.Delete(o.table, c.row); err != nil && !errors.Is(err, memdb.ErrNotFound) {
			must(err)
		}
	}
	o.at, o.list = nil, nil
}

// must is for errors of memdb, which can only mean that the schema and its use disagree.
func must(err error) {
	if err != nil {
		panic("fsm: " + err.Error())
	}
}

// lookup answers the row with a primary key, or nil.
func lookup[R any](txn *memdb.Txn, table string, key []byte) *R {
	raw, err := txn.First(table, indexID, key)
	must(err)
	if raw == nil {
		return nil
	}
	return raw.(*R)
}

// addLive writes a live run that was not there.
func (t *tx) addLive(r *job.Run) {
	t.live.put(r.ID, r)
	t.g.LiveRuns++
	t.g.LiveBytes += runSize(r)
	t.pin(r, 1)
}

// replaceLive writes a changed live run.
func (t *tx) replaceLive(old, r *job.Run) {
	t.live.put(r.ID, r)
	t.g.LiveBytes += runSize(r) - runSize(old)
}

// settle moves a run that became terminal from the live ones to history.
func (t *tx) settle(old, r *job.Run) {
	t.live.del(old.ID, old)
	t.g.LiveRuns--
	t.g.LiveBytes -= runSize(old)
	t.addHistory(r)
	t.pin(old, -1)
}

func (t *tx) addHistory(r *job.Run) {
	t.history.put(r.ID, r)
	t.g.HistoryRuns++
	t.g.HistoryBytes += runSize(r)
}

func (t *tx) dropHistory(r *job.Run) {
	t.history.del(r.ID, r)
	t.g.HistoryRuns--
	t.g.HistoryBytes -= runSize(r)
}

// run answers a run, live or not, or nil.
func (t *tx) run(id job.RunID) *job.Run {
	if r := t.live.get(id); r != nil {
		return r
	}
	return t.history.get(id)
}

// pin counts the live runs of a version, and drops a version that is kept for them only when the last one ended.
func (t *tx) pin(r *job.Run, by int) {
	if r.JobID.IsZero() {
		return
	}
	id := versionID{r.JobID, r.JobVersion}
	p := pin{JobID: r.JobID, Version: r.JobVersion, Namespace: r.Namespace, Name: r.Job}
	old := t.pins.get(id)
	if old != nil {
		p = *old
	}
	p.Live += by
	if p.Live > 0 {
		t.pins.put(id, &p)
		return
	}
	if old != nil {
		t.pins.del(id, old)
	}
	v := t.versions.get(id)
	if v == nil {
		return
	}
	if v.Orphan {
		t.dropVersion(v)
		return
	}
	if j := t.jobs.get(jobName{v.Namespace, v.Name}); j != nil && v.Version+KeptVersions <= j.Version {
		t.dropVersion(v)
	}
}

func (t *tx) putVersion(v *versionRow) {
	t.versions.put(versionID{v.JobID, v.Version}, v)
	t.g.DefinitionBytes += versionSize(v)
}

func (t *tx) dropVersion(v *versionRow) {
	t.versions.del(versionID{v.JobID, v.Version}, v)
	t.g.DefinitionBytes -= versionSize(v)
}

// fenced refuses what a leader of an older epoch sent (L1). Control and store have an epoch each: a new leader raises
// them one after the other, and from the first raise on the older one is done.
func (t *tx) fenced(epoch job.Epoch) *job.Error {
	if newest := max(t.g.Epoch, t.g.StoreEpoch); epoch < newest {
		return job.Errorf(job.Fenced, "epoch", "epoch %d is over; the current one is %d", epoch, newest)
	}
	return nil
}

// scheduleChanged tells the clock of this node, outside the replicated state, to look at a schedule again.
func (t *tx) scheduleChanged(ids ...job.JobID) { t.changed = append(t.changed, ids...) }
