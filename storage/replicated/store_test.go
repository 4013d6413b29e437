package replicated_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage"
	"github.com/musterhq/muster/storage/replicated"
	"github.com/musterhq/muster/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// direct applies straight into a state, through the encoding, without Raft.
type direct struct {
	mu    sync.Mutex
	state *fsm.State
	index uint64
	at    func() job.Instant
}

func (d *direct) Propose(_ context.Context, commands ...fsm.Command) ([]fsm.Result, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.index++
	data, err := fsm.EncodeEntry(fsm.Origin{Node: "n1", Boot: "b1", Seq: d.index}, d.at(), commands...)
	if err != nil {
		return nil, err
	}
	return d.state.Apply(&raft.Log{Index: d.index, Type: raft.LogCommand, Data: data}).([]fsm.Result), nil
}

func now() job.Instant { return job.At(time.Now()) }

// ticking makes versions tick in Raft, where the store over it learns from when.
type ticking struct{ replicated.Proposer }

// Decide implements storagetest.Decider.
func (t ticking) Decide(ctx context.Context, j *job.Job) (job.Instant, error) {
	results, err := t.Propose(ctx, &fsm.PutSchedule{JobID: j.ID, Namespace: j.Namespace, Job: j.Name, Version: j.Version, Schedule: []byte(`{"cron":"@daily"}`)})
	if err != nil || results[0].Err != nil {
		return 0, errors.Join(err, results[0].Err)
	}
	return results[0].Value.(job.Mark).From, nil
}

func openDirect() (*replicated.Store, *direct) {
	d := &direct{state: fsm.New(), at: now}
	return replicated.New(d, d.state), d
}

func TestContract(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, func(*testing.T) storage.Store {
		s, d := openDirect()
		return struct {
			*replicated.Store
			ticking
		}{s, ticking{d}}
	})
}

// TestContractFaulty proves that the wrapper passes everything through until it is told to fail.
func TestContractFaulty(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, func(*testing.T) storage.Store {
		s, d := openDirect()
		return struct {
			*storagetest.Faulty
			ticking
		}{storagetest.NewFaulty(s), ticking{d}}
	})
}
