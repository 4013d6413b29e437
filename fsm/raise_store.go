package fsm

import "github.com/musterhq/muster/job"

// RaiseStore makes Epoch the embedded store's. A lower or equal one than the store's is Fenced.
type RaiseStore struct {
	Epoch job.Epoch `cbor:"1,keyasint"`
}

// Kind implements Command.
func (*RaiseStore) Kind() Kind { return KindRaiseStore }

// Size implements Command.
func (*RaiseStore) Size() int { return 16 }

func (c *RaiseStore) apply(t *tx, _ Meta) Result {
	if e := t.fenced(c.Epoch); e != nil {
		return refuse(e)
	}
	if c.Epoch <= t.g.StoreEpoch {
		return refuse(job.Errorf(job.Fenced, "epoch", "the store is at epoch %d already", t.g.StoreEpoch))
	}
	t.g.StoreEpoch = c.Epoch
	return Result{}
}
