package fsm

import "github.com/musterhq/muster/job"

// Release stores runs that the leader gives birth to in the embedded store. It answers []job.Receipt, one for each run in
// order: see storage.Graphs. They are taken however full the store is: what was opened has to come to an end (D6).
type Release struct {
	Epoch job.Epoch  `cbor:"1,keyasint"`
	Runs  []*job.Run `cbor:"2,keyasint"`
}

// Kind implements Command.
func (*Release) Kind() Kind { return KindRelease }

// Size implements Command.
func (c *Release) Size() int { return 16 + (&Submit{Runs: c.Runs}).Size() }

func (c *Release) apply(t *tx, m Meta) Result {
	if e := t.fenced(c.Epoch); e != nil {
		return refuse(e)
	}
	receipts := make([]job.Receipt, len(c.Runs))
	for i, r := range c.Runs {
		if receipts[i].Err = validBirth(r); receipts[i].Err == nil {
			receipts[i] = t.birth(r, m)
		}
	}
	return Result{Value: receipts}
}
