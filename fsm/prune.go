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
	base := p.scan()
	nextRun, stopRuns := iter.Pull(ascend[job.Run](base, tableHistory, indexID, nil))
	defer stopRuns()
	nextTick, stopTicks := iter.Pull(ascend[job.Tick](base, tableLedger, indexAge, nil))
	defer stopTicks()
	r, isRun := nextRun()
	k, isTick := nextTick()
	for p.left > 0 && p.g.HistoryBytes > bound && (isRun || isTick) {
		if isRun && (!isTick || job.At(r.ID.Time()) <= k.ScheduledAt) {
			p.dropRun(r)
			r, isRun = nextRun()
		} else {
			p.dropTick(k)
			k, isTick = nextTick()
		}
	}
}

func (p *pruning) oldTicks(before job.Instant) {
	if p.left == 0 {
		return
	}
	for k := range ascend[job.Tick](p.scan(), tableLedger, indexAge, nil) {
		if p.left == 0 || k.ScheduledAt >= before {
			return
		}
		if max(k.ScheduledAt, k.Until) < before {
			p.dropTick(k)
		}
	}
}

// oldRuns drops runs that ended before a time. Runs are kept by id, that is by birth, and some end long after it; so the
// walk goes on where the last one stopped, lest those be looked at again and again.
func (p *pruning) oldRuns(before job.Instant) {
	if p.left == 0 {
		return
	}
	looks := 1000 + 4*p.left
	for r := range ascend[job.Run](p.scan(), tableHistory, indexID, runKey(p.g.PruneAfter)) {
		if job.At(r.ID.Time()) >= before {
			break // born after it, so ended after it
		}
		if p.left == 0 || looks == 0 {
			p.g.PruneAfter = r.ID
			return
		}
		looks--
		if r.FinishedAt < before {
			p.dropRun(r)
		}
	}
	p.g.PruneAfter = job.RunID{}
}

// dropRun drops a run with its attempts. A task run whose root is live stays: the root needs it.
func (p *pruning) dropRun(r *job.Run) {
	if !r.IsRoot() && p.live.get(r.RootID) != nil {
		return
	}
	p.dropHistory(r)
	if r.Attempt > 0 {
		first := uint32(1)
		if r.Attempt > KeptAttempts {
			first = r.Attempt - KeptAttempts
		}
		for a := first; a <= r.Attempt; a++ {
			p.dropAttempt(attemptID{r.ID, a})
		}
	}
	if r.Key != "" {
		p.forgetRunOfKey(r)
	}
	p.left--
}

// forgetRunOfKey leaves with a key what a repeated submission must still be answered.
func (p *pruning) forgetRunOfKey(r *job.Run) {
	name := keyName{r.Namespace, r.Key}
	k := p.keys.get(name)
	if k == nil || k.RunID != r.ID {
		return
	}
	n := *k
	n.Pruned = &job.Run{ID: r.ID, RootID: r.RootID, Namespace: r.Namespace, JobID: r.JobID, Job: r.Job, JobVersion: r.JobVersion,
		Trigger: r.Trigger, State: r.State, Reason: r.Reason, Priority: r.Priority, CreatedAt: r.CreatedAt,
		FinishedAt: r.FinishedAt, Home: r.Home, Key: r.Key, BodyHash: r.BodyHash}
	p.keys.put(name, &n)
}

// dropTick drops a ledger row. One whose decision waits for its acknowledgement stays: stored again, it would run again.
func (p *pruning) dropTick(k *job.Tick) {
	if p.unstored.get(k.Key()) != nil {
		return
	}
	p.ledger.del(k.Key(), k)
	p.g.LedgerRows--
	p.g.HistoryBytes -= tickSize(k)
	p.left--
}

func (t *tx) expireKeys(now job.Instant, limit int) {
	if limit == 0 {
		return
	}
	for k := range ascend[keyRow](t.scan(), tableKeys, indexAge, nil) {
		if limit == 0 || k.AcceptedAt.Add(KeyLife) > now {
			return
		}
		t.keys.del(keyName{k.Namespace, k.Key}, k)
		t.g.KeyBytes -= keySize(k)
		limit--
	}
}
