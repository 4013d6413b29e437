package fsm

import "github.com/musterhq/muster/job"

// Move makes the leader's moves in the embedded store, with job.Move.Apply, and keeps the attempts that they end. It
// answers []job.Moved. Moves are taken however full the store is: results have to land somewhere (D6). The end of a root run
// satisfies the edges of the jobs that depend on its job; see PutJob for why that is no new version. Version 2 is for moves
// with IfState.
type Move struct {
	Epoch job.Epoch  `cbor:"1,keyasint"`
	Moves []job.Move `cbor:"2,keyasint"`
}

// Kind implements Command.
func (*Move) Kind() Kind { return KindMove }

func (c *Move) version() uint8 {
	for i := range c.Moves {
		if c.Moves[i].IfState != 0 {
			return 2
		}
	}
	return 1
}

// Size implements Command.
func (c *Move) Size() int {
	n := 16
	for i := range c.Moves {
		n += MoveSize(&c.Moves[i])
	}
	return n
}

// MoveSize estimates the encoded size of one move.
func MoveSize(m *job.Move) int {
	n := 144 + len(m.Worker) + len(m.Result) + len(m.Error)
	if m.Ended != nil {
		n += 112 + len(m.Ended.Worker) + len(m.Ended.Error)
	}
	return n
}

func (c *Move) apply(t *tx, _ Meta) Result {
	if e := t.fenced(c.Epoch); e != nil {
		return refuse(e)
	}
	for i := range c.Moves {
		if s := c.Moves[i].State; s < job.Waiting || s > job.Skipped {
			return refuse(job.Errorf(job.Invalid, "state", "run %s cannot move to state %d", c.Moves[i].ID, s))
		}
	}
	answers := make([]job.Moved, len(c.Moves))
	for i := range c.Moves {
		m := &c.Moves[i]
		r := t.live.rows.get(m.ID)
		if r == nil {
			answers[i].Run = t.history.rows.get(m.ID)
			continue
		}
		n, ok := m.Apply(r)
		answers[i] = job.Moved{Applied: ok, Run: n}
		if !ok {
			continue
		}
		n.Worker = t.names.of(n.Worker)
		if n.State.Terminal() {
			t.settle(r, n)
			answers[i].Due = t.satisfy(n)
		} else {
			t.replaceLive(r, n)
		}
		if m.Ended != nil {
			t.addAttempt(m.Ended)
		}
	}
	return Result{Value: answers}
}

// addAttempt keeps a superseded attempt. Attempts that were given back count against nothing, so a run may have any
// number: the oldest go.
func (t *tx) addAttempt(a *job.Attempt) {
	id := attemptID{a.RunID, a.Attempt}
	if old := t.attempts.get(id); old != nil {
		t.g.HistoryBytes -= attemptSize(old)
	}
	t.attempts.put(a)
	t.g.HistoryBytes += attemptSize(a)
	if a.Attempt > KeptAttempts {
		id.attempt = a.Attempt - KeptAttempts
		t.dropAttempt(id)
	}
}

func (t *tx) dropAttempt(id attemptID) {
	if old := t.attempts.get(id); old != nil {
		t.attempts.del(old)
		t.g.HistoryBytes -= attemptSize(old)
	}
}
