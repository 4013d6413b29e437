package fsm

import "github.com/musterhq/muster/job"

// tx is the tables as one log entry changes them. There is no way back from a write: a command validates first (S12).
type tx struct {
	*tables
	index *endedIndex // of the blocks in ended
	names *interner

	// What the node itself must hear of, outside the replicated state.
	changed          []job.JobID // whose schedule changed
	directoryChanged bool
	checkpoint       bool // freeze what this entry leaves behind
}

// addLive writes a live run that was not there.
func (t *tx) addLive(r *job.Run) {
	t.live.add(r)
	t.g.LiveBytes += runSize(r)
	t.pin(r, 1)
}

// replaceLive writes a changed live run.
func (t *tx) replaceLive(old, r *job.Run) {
	t.live.replace(r)
	t.g.LiveBytes += runSize(r) - runSize(old)
}

// settle moves a run that became terminal from the live ones to history.
func (t *tx) settle(old, r *job.Run) {
	t.live.remove(old)
	t.g.LiveBytes -= runSize(old)
	t.addHistory(r)
	t.pin(old, -1)
}

func (t *tx) addHistory(r *job.Run) {
	t.history.add(r)
	t.g.HistoryBytes += runSize(r)
}

func (t *tx) dropHistory(r *job.Run) {
	t.history.remove(r)
	t.g.HistoryBytes -= runSize(r)
}

// pin counts the live runs of a version, and drops a version that is kept for them only when the last one ended.
func (t *tx) pin(r *job.Run, by int) {
	if r.JobID.IsZero() {
		return
	}
	id := versionID{r.JobID, r.JobVersion}
	old := t.pins.get(id)
	p := pin{JobID: r.JobID, Version: r.JobVersion, Namespace: r.Namespace, Name: r.Job}
	if old != nil {
		p = *old
	}
	p.Live += by
	if p.Live > 0 {
		t.pins.put(&p)
		return
	}
	if old != nil {
		t.pins.del(old)
	}
	v := t.versions.get(id)
	if v == nil {
		return
	}
	j := t.jobs.get(jobName{v.Namespace, v.Name})
	if v.Orphan || j != nil && j.ID == v.JobID && v.Version+KeptVersions <= j.Version {
		t.dropVersion(v)
	}
}

func (t *tx) putVersion(v *versionRow) {
	t.versions.put(v)
	t.g.DefinitionBytes += versionSize(v)
}

func (t *tx) dropVersion(v *versionRow) {
	t.versions.del(v)
	t.g.DefinitionBytes -= versionSize(v)
}

func (t *tx) addTick(k *job.Tick) {
	t.ledger.put(k)
	t.aged.add(k.Key())
	t.g.HistoryBytes += tickSize(k)
}

func (t *tx) dropTick(k *job.Tick) {
	t.ledger.del(k)
	t.aged.remove(k.Key())
	t.g.HistoryBytes -= tickSize(k)
}

func (t *tx) putKey(k *keyRow) {
	if old := t.keys.get(jobName{k.Namespace, k.Key}); old != nil {
		t.dropKey(old)
	}
	t.keys.put(k)
	t.keyAges.add(k.age())
	t.g.KeyBytes += keySize(k)
}

func (t *tx) dropKey(k *keyRow) {
	t.keys.del(k)
	t.keyAges.remove(k.age())
	t.g.KeyBytes -= keySize(k)
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

// run answers a run, live or not, or nil.
func (t *tables) run(id job.RunID) *job.Run {
	if r := t.live.rows.get(id); r != nil {
		return r
	}
	return t.history.rows.get(id)
}
