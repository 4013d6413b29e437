package fsm

import (
	"iter"

	"github.com/musterhq/muster/job"
)

// Prune drops from the embedded store what is over its bound of history, oldest first, then terminal runs that ended and
// ledger rows that were due before Before. It drops at most Limit rows and answers how many: int. It also forgets expired
// idempotency keys, at most as many again, which do not count.
type Prune struct {
	Epoch  job.Epoch   `cbor:"1,keyasint"`
	Before job.Instant `cbor:"2,keyasint"`
	Limit  int         `cbor:"3,keyasint"`
}

// MaxPrune bounds the work of one Prune, which holds up everything else in the log.
const MaxPrune = 10_000

// Kind implements Command.
func (*Prune) Kind() Kind { return KindPrune }

// Size implements Command.
func (*Prune) Size() int { return 32 }

func (c *Prune) apply(t *tx, m Meta) Result {
	if e := t.fenced(c.Epoch); e != nil {
		return refuse(e)
	}
	p := &pruning{tx: t, left: min(max(c.Limit, 0), MaxPrune)}
	limit := p.left
	p.overBound(t.g.Limits.filled().MaxHistoryBytes)
	p.oldTicks(c.Before)
	p.oldRuns(c.Before)
	t.expireKeys(m.At, limit)
	return Result{Value: limit - p.left}
}

type pruning struct {
	*tx
	left int // rows that may still be dropped
}

// overBound drops the oldest rows, by the times of ids and of ticks, until history is within its bound.
func (p *pruning) overBound(bound int64) {
	if p.g.HistoryBytes <= bound || p.left == 0 {
		return
	}
	// Rows that must stay are among them; a few more than can be dropped are enough to go on with.
	runs := take(p.history.rows.all(), 2*p.left)
	ticks := take(p.aged.ascend(job.TickKey{ScheduledAt: -1 << 63}), 2*p.left)
	for p.left > 0 && p.g.HistoryBytes > bound && (len(runs) > 0 || len(ticks) > 0) {
		if len(ticks) == 0 || len(runs) > 0 && job.At(runs[0].ID.Time()) <= ticks[0].ScheduledAt {
			p.dropRun(runs[0])
			runs = runs[1:]
		} else {
			p.dropTickOf(p.ledger.get(ticks[0]))
			ticks = ticks[1:]
		}
	}
}

func (p *pruning) oldTicks(before job.Instant) {
	for _, k := range take(p.aged.ascend(job.TickKey{ScheduledAt: -1 << 63}), 2*p.left) {
		if p.left == 0 || k.ScheduledAt >= before {
			return
		}
		if row := p.ledger.get(k); max(row.ScheduledAt, row.Until) < before {
			p.dropTickOf(row)
		}
	}
}

// oldRuns drops runs that ended before a time. Runs are kept by id, that is by birth, and some end long after it; so the
// walk goes on where the last one stopped, lest those be looked at again and again.
func (p *pruning) oldRuns(before job.Instant) {
	if p.left == 0 {
		return
	}
	var old []*job.Run
	looks, next := 1000+4*p.left, job.RunID{}
	for r := range p.history.rows.ascend(p.g.PruneAfter) {
		if job.At(r.ID.Time()) >= before {
			break // born after it, so ended after it
		}
		if len(old) == p.left || looks == 0 {
			next = r.ID
			break
		}
		looks--
		if r.FinishedAt < before && !p.reusable(r, before) {
			old = append(old, r)
		}
	}
	p.g.PruneAfter = next
	for _, r := range old {
		p.dropRun(r)
	}
}

// reusable tells whether a task run belongs to a root that is kept: a retry of that takes its success over (T8).
func (p *pruning) reusable(r *job.Run, before job.Instant) bool {
	if r.IsRoot() {
		return false
	}
	root := p.history.rows.get(r.RootID)
	return root != nil && root.FinishedAt >= before
}

// dropRun drops a run with its attempts. A task run whose root is live stays, and a root whose parent is: they need it.
func (p *pruning) dropRun(r *job.Run) {
	if !r.IsRoot() && p.live.rows.get(r.RootID) != nil || !r.ParentID.IsZero() && p.live.rows.get(r.ParentID) != nil {
		return
	}
	p.dropHistory(r)
	var attempts []*job.Attempt
	for a := range p.attempts.ascend(attemptID{run: r.ID}) {
		if a.RunID != r.ID {
			break
		}
		attempts = append(attempts, a)
	}
	for _, a := range attempts {
		p.dropAttempt(attemptID{a.RunID, a.Attempt})
	}
	if r.Key != "" {
		p.forgetRunOfKey(r)
	}
	p.left--
}

// forgetRunOfKey leaves with a key what a repeated submission must still be answered.
func (p *pruning) forgetRunOfKey(r *job.Run) {
	k := p.keys.get(jobName{r.Namespace, r.Key})
	if k == nil || k.RunID != r.ID {
		return
	}
	n := *k
	n.Pruned = &job.Run{ID: r.ID, RootID: r.RootID, Namespace: r.Namespace, JobID: r.JobID, Job: r.Job, JobVersion: r.JobVersion,
		Trigger: r.Trigger, State: r.State, Reason: r.Reason, Priority: r.Priority, CreatedAt: r.CreatedAt,
		FinishedAt: r.FinishedAt, Home: r.Home, Key: r.Key, BodyHash: r.BodyHash}
	p.putKey(&n)
}

// dropTickOf drops a ledger row. One whose decision waits for its acknowledgement stays: stored again, it would run again.
func (p *pruning) dropTickOf(k *job.Tick) {
	if p.unstored.get(k.Key()) == nil {
		p.dropTick(k)
		p.left--
	}
}

func (t *tx) expireKeys(now job.Instant, limit int) {
	for _, a := range take(t.keyAges.ascend(keyAge{at: -1 << 63}), limit) {
		if a.at.Add(KeyLife) > now {
			return
		}
		t.dropKey(t.keys.get(a.name))
	}
}

// Prunable tells, cheaply, whether a Prune with this Before could change anything, so that an idle cluster need not write
// an entry to learn that nothing is old. It is true where only a longer look could tell.
func (v *View) Prunable(before job.Instant) bool {
	if v.g.HistoryBytes > v.g.Limits.filled().MaxHistoryBytes || !v.g.PruneAfter.IsZero() {
		return true
	}
	for k := range v.aged.ascend(job.TickKey{ScheduledAt: -1 << 63}) {
		if k.ScheduledAt < before {
			return true
		}
		break
	}
	for a := range v.keyAges.ascend(keyAge{at: -1 << 63}) {
		if a.at.Add(KeyLife) <= v.g.At { // on an idle cluster that time stands still, and nothing needs the room
			return true
		}
		break
	}
	looks := 1000
	for r := range v.history.rows.all() {
		if looks--; job.At(r.ID.Time()) >= before {
			break // born after it, so ended after it
		}
		if looks == 0 || r.FinishedAt < before {
			return true
		}
	}
	return false
}

// take collects the first of a walk, so that what was walked can be changed.
func take[T any](walk iter.Seq[T], limit int) []T {
	var list []T
	if limit <= 0 {
		return nil
	}
	for v := range walk {
		if list = append(list, v); len(list) == limit {
			break
		}
	}
	return list
}
