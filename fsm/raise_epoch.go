package fsm

import "github.com/musterhq/muster/job"

// RaiseEpoch sets Raft's epoch to max(the current one, AtLeast) + 1 (L1). It answers the job.Epoch.
type RaiseEpoch struct {
	AtLeast job.Epoch `cbor:"1,keyasint,omitempty"`
}

// Kind implements Command.
func (*RaiseEpoch) Kind() Kind { return KindRaiseEpoch }

// Size implements Command.
func (*RaiseEpoch) Size() int { return 16 }

func (c *RaiseEpoch) apply(t *tx, _ Meta) Result {
	// The store's own epoch counts too: embedded, the two lie side by side.
	highest := max(t.g.Epoch, t.g.StoreEpoch, c.AtLeast)
	if highest == 1<<32-1 {
		return refuse(job.Errorf(job.Exhausted, "epoch", "no epoch is left"))
	}
	t.g.Epoch = highest + 1
	return Result{Value: t.g.Epoch}
}
