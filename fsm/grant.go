package fsm

import "github.com/musterhq/muster/job"

// Grant ends leases and opens others (L2). It answers []int: the indexes of the grants that were not opened, because
// their run has a live lease already or had a higher or the same fence that ended. A grant that is there already, with
// the same fence, counts as opened, so that the command can be repeated.
type Grant struct {
	Epoch  job.Epoch        `cbor:"1,keyasint"`
	Grants []job.Grant      `cbor:"2,keyasint,omitempty"`
	Ended  []job.EndedGrant `cbor:"3,keyasint,omitempty"`
}

// Kind implements Command.
func (*Grant) Kind() Kind { return KindGrant }

// Size implements Command.
func (c *Grant) Size() int {
	n := 16 + 40*len(c.Ended)
	for i := range c.Grants {
		g := &c.Grants[i]
		n += 96 + len(g.Worker) + len(g.Boot) + len(g.Lane)
	}
	return n
}

func (c *Grant) apply(t *tx, m Meta) Result {
	if e := t.fenced(c.Epoch); e != nil {
		return refuse(e)
	}
	for i := range c.Grants {
		if g := &c.Grants[i]; g.RunID.IsZero() || g.Fence.Epoch() != c.Epoch {
			return refuse(job.Errorf(job.Invalid, "fence", "a grant of epoch %d needs a run and a fence of that epoch, not %d", c.Epoch, g.Fence))
		}
	}
	t.endLeases(c.Ended, m)
	var refused []int
	for i := range c.Grants {
		if !t.openLease(&c.Grants[i]) {
			refused = append(refused, i)
		}
	}
	return Result{Value: refused}
}

func (t *tx) openLease(g *job.Grant) bool {
	if held := t.leases.get(g.RunID); held != nil {
		return held.Fence == g.Fence
	}
	if fence, ok := t.index.find(g.RunID); ok && fence >= g.Fence {
		return false // fences of one run only grow (L3): this is a late copy of a grant whose lease is over
	}
	own := *g
	own.Worker, own.Boot, own.Lane = t.names.of(g.Worker), t.names.of(g.Boot), job.LaneKey(t.names.of(string(g.Lane)))
	t.leases.put(&own)
	return true
}

func (t *tx) endLeases(ended []job.EndedGrant, m Meta) {
	for {
		old := t.index.dropOldest(m.At.Add(-job.EndedGrantsKept))
		if old == nil {
			break
		}
		t.ended.del(old)
	}
	var ids []byte
	for _, e := range ended {
		held := t.leases.get(e.RunID)
		if held == nil || held.Fence != e.Fence {
			continue
		}
		t.leases.del(held)
		if ids == nil {
			ids = make([]byte, 0, len(ended)*endedWidth)
		}
		ids = appendEnded(ids, e)
	}
	if len(ids) == 0 {
		return
	}
	t.g.EndedSeq++
	b := &endedBlock{Seq: t.g.EndedSeq, At: m.At, Ids: ids}
	t.ended.put(b)
	t.index.add(b)
}
