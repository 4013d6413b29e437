package fsm

import "github.com/musterhq/muster/job"

// FlagWorker keeps what a person wants of a worker: ready, cordoned or draining. It outlives streams and leaders.
type FlagWorker struct {
	Name  string          `cbor:"1,keyasint"`
	State job.WorkerState `cbor:"2,keyasint"`
}

// Kind implements Command.
func (*FlagWorker) Kind() Kind { return KindFlagWorker }

// Size implements Command.
func (c *FlagWorker) Size() int { return 24 + len(c.Name) }

func (c *FlagWorker) apply(t *tx, _ Meta) Result {
	if c.Name == "" {
		return refuse(job.Errorf(job.Invalid, "worker", "no worker is named"))
	}
	switch c.State {
	case job.WorkerReady, job.WorkerCordoned, job.WorkerDraining:
	default:
		return refuse(job.Errorf(job.Invalid, "worker", "a worker cannot be flagged %q", c.State))
	}
	_, e := t.setFlag(workerFlag(c.Name), string(c.State), c.State != job.WorkerReady)
	return answer(e)
}
