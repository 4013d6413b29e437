package fsm

import "github.com/musterhq/muster/job"

// StoreTicks writes ledger rows of decided ticks to the embedded store and gives birth to their runs. It answers
// []*job.Run: by tick the run that is there, or nil. Without room it is Exhausted and stores nothing; the ticks stay due.
type StoreTicks struct {
	Epoch job.Epoch  `cbor:"1,keyasint"`
	Ticks []job.Tick `cbor:"2,keyasint"`
}

// Kind implements Command.
func (*StoreTicks) Kind() Kind { return KindStoreTicks }

// Size implements Command.
func (c *StoreTicks) Size() int { return 16 + 80*len(c.Ticks) }

func (c *StoreTicks) apply(t *tx, _ Meta) Result {
	if e := t.fenced(c.Epoch); e != nil {
		return refuse(e)
	}
	births := make([]*job.Run, len(c.Ticks))
	need, fresh := int64(0), false
	for i := range c.Ticks {
		k := &c.Ticks[i]
		if t.ledger.get(k.Key()) != nil {
			continue
		}
		fresh = true
		if births[i] = t.birthOf(k); births[i] != nil {
			need += runSize(births[i])
		}
	}
	if fresh {
		if e := t.full(need); e != nil {
			return refuse(e)
		}
	}
	runs := make([]*job.Run, len(c.Ticks))
	for i := range c.Ticks {
		k := &c.Ticks[i]
		// A tick that is in the ledger had its run, which may have been pruned since.
		if t.ledger.get(k.Key()) == nil {
			own := *k
			t.addTick(&own)
			if r := births[i]; r != nil && t.run(r.ID) == nil {
				t.names.run(r)
				t.addLive(r)
			}
		}
		if k.Disposition == job.TickRun {
			runs[i] = t.run(k.RunID())
		}
	}
	return Result{Value: runs}
}

// birthOf makes the run of a tick, or nil if it has none or its version is gone.
func (t *tx) birthOf(k *job.Tick) *job.Run {
	if k.Disposition != job.TickRun {
		return nil
	}
	v := t.versions.get(versionID{k.JobID, k.Version})
	if v == nil || v.Orphan {
		return nil
	}
	return job.BirthOfTick(k, v.Namespace, v.Name, v.spec(), job.HomeQuorum)
}
