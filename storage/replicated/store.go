// Package replicated is the store contract over the Raft state machine: the embedded store, and the quorum rung of the
// ladder. Writes are proposed as commands of package fsm and answered once they are committed; reads are this node's view
// of the state, as new as its log.
//
// Running is not written in the normal path: a run reads as running while a lease of it lives, which every node knows.
package replicated

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage"
)

// Proposer commits commands, all of one call in one log entry or several in order, and answers one result for each. Its
// errors are *job.Error: Unavailable means that nothing was committed, Unknown that it may have been.
type Proposer interface {
	Propose(ctx context.Context, commands ...fsm.Command) ([]fsm.Result, error)
}

// Store is the contract over a state and the way to change it.
type Store struct {
	proposer Proposer
	state    *fsm.State
}

var (
	_ storage.Store  = (*Store)(nil)
	_ storage.Graphs = (*Store)(nil)
)

// New makes a store. It starts nothing.
func New(proposer Proposer, state *fsm.State) *Store {
	return &Store{proposer: proposer, state: state}
}

// MaxCommandBytes is where a batch is split into several commands: small enough that several share an entry, large enough
// for the largest single run or move.
const MaxCommandBytes = 256 << 10

// maxRunBytes is the largest run that an entry holds, with room for what is around it.
const maxRunBytes = fsm.MaxEntryBytes - 4096

// propose commits one command and answers its value.
func propose[V any](ctx context.Context, s *Store, c fsm.Command) (V, error) {
	var none V
	if n := c.Size(); n > maxRunBytes {
		return none, job.Errorf(job.Invalid, "too_large", "the request takes %d bytes in the log; at most %d fit", n, maxRunBytes)
	}
	results, err := s.proposer.Propose(ctx, c)
	if err != nil {
		return none, err
	}
	if len(results) != 1 {
		return none, job.AsError(fmt.Errorf("propose: %d results for one command", len(results)))
	}
	if err := results[0].Err; err != nil {
		return none, err
	}
	if results[0].Value == nil {
		return none, nil
	}
	v, ok := results[0].Value.(V)
	if !ok {
		return none, job.AsError(fmt.Errorf("propose: the result is a %T", results[0].Value))
	}
	return v, nil
}

// split cuts a batch into runs of items whose sizes sum up to at most MaxCommandBytes, each of at least one item.
func split[T any](items []T, size func(*T) int) [][]T {
	var parts [][]T
	for start := 0; start < len(items); {
		n, end := 0, start
		for end < len(items) && (end == start || n+size(&items[end]) <= MaxCommandBytes) {
			n += size(&items[end])
			end++
		}
		parts = append(parts, items[start:end])
		start = end
	}
	return parts
}

// PutJob implements storage.Definitions.
func (s *Store) PutJob(ctx context.Context, p storage.PutJob) (*job.Job, error) {
	c, err := PutJobCommand(p)
	if err != nil {
		return nil, err
	}
	j, err := propose[*job.Job](ctx, s, c)
	if err != nil {
		return nil, err
	}
	put := *j
	put.Spec = p.Spec // equal to what is stored now, whether it was before or not
	return &put, nil
}

// PutJobCommand is the command that PutJob proposes, for callers that put it into one entry with others.
func PutJobCommand(p storage.PutJob) (*fsm.PutJob, error) {
	if p.Spec == nil {
		return nil, job.Errorf(job.Invalid, "document", "a job needs a document")
	}
	document, err := json.Marshal(p.Spec)
	if err != nil {
		return nil, job.AsError(fmt.Errorf("encode document of job %s: %w", p.Spec.Name, err))
	}
	// The state machine decodes it later and may not fail at that: so it is tried here.
	if err := json.Unmarshal(document, new(job.Document)); err != nil {
		return nil, job.AsError(fmt.Errorf("decode the encoded document of job %s: %w", p.Spec.Name, err))
	}
	return &fsm.PutJob{ID: p.ID, Namespace: p.Spec.Namespace, Name: p.Spec.Name, Document: document,
		IfVersion: p.IfVersion, NewOnly: p.NewOnly, At: p.At}, nil
}

// DeleteJob implements storage.Definitions.
func (s *Store) DeleteJob(ctx context.Context, namespace, name string, ifVersion uint64) (*job.Job, error) {
	return propose[*job.Job](ctx, s, &fsm.DeleteJob{Namespace: namespace, Name: name, IfVersion: ifVersion})
}

// StartVersion implements storage.Definitions. The state machine does it by itself when a schedule is put.
func (s *Store) StartVersion(context.Context, job.JobID, uint64, job.Instant) error { return nil }

// Submit implements storage.Births.
func (s *Store) Submit(ctx context.Context, runs []*job.Run) ([]job.Receipt, error) {
	return s.births(ctx, runs, func(runs []*job.Run) fsm.Command { return &fsm.Submit{Runs: runs} })
}

// births proposes births in commands of a size. Those that no entry holds are refused alone.
func (s *Store) births(ctx context.Context, runs []*job.Run, command func([]*job.Run) fsm.Command) ([]job.Receipt, error) {
	receipts := make([]job.Receipt, len(runs))
	var fit []int
	for i, r := range runs {
		if n := command(runs[i : i+1]).Size(); n > maxRunBytes {
			receipts[i].Err = job.Errorf(job.Invalid, "too_large", "the run %s takes %d bytes in the log; at most %d fit", r.ID, n, maxRunBytes)
			continue
		}
		fit = append(fit, i)
	}
	one := func(i *int) int { return command(runs[*i : *i+1]).Size() }
	var failed error
	done, same := 0, true
	for _, part := range split(fit, one) {
		some := make([]*job.Run, len(part))
		for n, i := range part {
			some[n] = runs[i]
		}
		answers, err := propose[[]job.Receipt](ctx, s, command(some))
		for n, i := range part {
			if err != nil {
				receipts[i].Err = err
			} else {
				receipts[i] = answers[n]
			}
		}
		same = same && (failed == nil || job.CodeOf(failed) == job.CodeOf(err))
		if err != nil {
			failed = err
		} else {
			done++
		}
	}
	// Parts may fail each in its own way: what may have happened to one must not be called "nothing happened" with another.
	if failed != nil && same && done == 0 && len(fit) == len(runs) {
		return nil, failed
	}
	return receipts, nil
}

// Cancel implements storage.Births.
func (s *Store) Cancel(ctx context.Context, intents []job.CancelIntent) ([]job.Receipt, error) {
	return inParts[job.CancelIntent, job.Receipt](ctx, s, intents, func(*job.CancelIntent) int { return 32 },
		func(part []job.CancelIntent) fsm.Command { return &fsm.Cancel{Intents: part} })
}

// inParts proposes a batch in commands of a size, one after the other, and stops at the first that fails: all of them
// are safe to repeat.
func inParts[T, R any](ctx context.Context, s *Store, items []T, size func(*T) int, command func([]T) fsm.Command) ([]R, error) {
	all := make([]R, 0, len(items))
	for _, part := range split(items, size) {
		answers, err := propose[[]R](ctx, s, command(part))
		if err != nil {
			return nil, err
		}
		all = append(all, answers...)
	}
	return all, nil
}

// Raise implements storage.Moves.
func (s *Store) Raise(ctx context.Context, epoch job.Epoch) (job.Epoch, error) {
	if _, err := propose[any](ctx, s, &fsm.RaiseStore{Epoch: epoch}); err != nil {
		return s.state.View().StoreEpoch(), err
	}
	return epoch, nil
}

// StoreTicks implements storage.Moves.
func (s *Store) StoreTicks(ctx context.Context, epoch job.Epoch, ticks []job.Tick) ([]*job.Run, error) {
	return inParts[job.Tick, *job.Run](ctx, s, ticks, func(*job.Tick) int { return 80 },
		func(part []job.Tick) fsm.Command { return &fsm.StoreTicks{Epoch: epoch, Ticks: part} })
}

// Move implements storage.Moves.
func (s *Store) Move(ctx context.Context, epoch job.Epoch, moves []job.Move) ([]storage.Moved, error) {
	return inParts[job.Move, job.Moved](ctx, s, moves, fsm.MoveSize,
		func(part []job.Move) fsm.Command { return &fsm.Move{Epoch: epoch, Moves: part} })
}

// Prune implements storage.Prunes.
func (s *Store) Prune(ctx context.Context, epoch job.Epoch, before job.Instant, limit int) (int, error) {
	// An idle cluster must not write an entry every time somebody looks. Under a newer epoch the caller has to be told.
	if v := s.state.View(); v.Epoch() <= epoch && !v.Prunable(before) {
		return 0, nil
	}
	dropped := 0
	for dropped < limit {
		part := min(limit-dropped, prunePart)
		n, err := propose[int](ctx, s, &fsm.Prune{Epoch: epoch, Before: before, Limit: part})
		if err != nil {
			return dropped, err
		}
		dropped += n
		if n < part {
			break
		}
	}
	return dropped, nil
}

// prunePart keeps one command short: everything else in the log waits for it.
const prunePart = 1000
