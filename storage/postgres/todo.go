package postgres

import (
	"context"

	"github.com/musterhq/muster/job"
)

// Births and moves that are not written yet: whoever writes one takes it out here.

var errNotWritten = job.Errorf(job.Internal, "", "not written yet")

func (s *Store) Submit(context.Context, []*job.Run) ([]job.Receipt, error) {
	return nil, errNotWritten
}

func (s *Store) Cancel(context.Context, []job.CancelIntent) ([]job.Receipt, error) {
	return nil, errNotWritten
}

func (s *Store) Raise(context.Context, job.Epoch) (job.Epoch, error) { return 0, errNotWritten }

func (s *Store) StoreTicks(context.Context, job.Epoch, []job.Tick) ([]*job.Run, error) {
	return nil, errNotWritten
}

func (s *Store) Move(context.Context, job.Epoch, []job.Move) ([]job.Moved, error) {
	return nil, errNotWritten
}
