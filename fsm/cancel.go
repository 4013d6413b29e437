package fsm

import "github.com/musterhq/muster/job"

// Cancel records intents (L9). It answers []job.Receipt: each run as it then is, or NotFound. The first intent stays.
type Cancel struct {
	Intents []job.CancelIntent `cbor:"1,keyasint"`
}

// Kind implements Command.
func (*Cancel) Kind() Kind { return KindCancel }

// Size implements Command.
func (c *Cancel) Size() int { return 16 + 32*len(c.Intents) }

func (c *Cancel) apply(t *tx, m Meta) Result {
	receipts := make([]job.Receipt, len(c.Intents))
	for i, intent := range c.Intents {
		r := t.run(intent.ID)
		switch {
		case r == nil:
			receipts[i].Err = job.Errorf(job.NotFound, "run", "there is no run %s", intent.ID)
			continue
		case !r.State.Terminal() && r.CancelAt == 0:
			n := *r
			if n.CancelAt = intent.At; n.CancelAt == 0 {
				n.CancelAt = m.At
			}
			if n.CancelReason = intent.Reason; n.CancelReason == job.CancelRequested {
				n.CancelReason = job.NoReason
			}
			t.replaceLive(r, &n)
			r = &n
		}
		receipts[i].Run = r
	}
	return Result{Value: receipts}
}
