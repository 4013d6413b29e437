package app

import (
	"context"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage"
)

// freshStore answers "not found" only after this node has applied all that the cluster had committed when it was asked:
// what another node accepted a moment ago is not denied here (S7). Where nobody can say what was committed, the answer is
// Unavailable. Everything else is read as this node has it.
type freshStore struct {
	storage.Store
	catchUp func(context.Context) error
}

func (s freshStore) Job(ctx context.Context, namespace, name string) (*job.Job, error) {
	return fresh(ctx, s, func() (*job.Job, error) { return s.Store.Job(ctx, namespace, name) })
}

func (s freshStore) Version(ctx context.Context, id job.JobID, version uint64) (*job.Version, error) {
	return fresh(ctx, s, func() (*job.Version, error) { return s.Store.Version(ctx, id, version) })
}

func (s freshStore) Versions(ctx context.Context, namespace, name string, limit int) ([]*job.Version, error) {
	return fresh(ctx, s, func() ([]*job.Version, error) { return s.Store.Versions(ctx, namespace, name, limit) })
}

func (s freshStore) Run(ctx context.Context, id job.RunID) (*job.Run, error) {
	return fresh(ctx, s, func() (*job.Run, error) { return s.Store.Run(ctx, id) })
}

func (s freshStore) Attempts(ctx context.Context, id job.RunID) ([]job.Attempt, error) {
	return fresh(ctx, s, func() ([]job.Attempt, error) { return s.Store.Attempts(ctx, id) })
}

// fresh reads again what was not found, once this node is as new as the cluster.
func fresh[T any](ctx context.Context, s freshStore, read func() (T, error)) (T, error) {
	v, err := read()
	if job.CodeOf(err) != job.NotFound {
		return v, err
	}
	if late := s.catchUp(ctx); late != nil {
		return v, &job.Error{Code: job.Unavailable, Reason: "behind",
			Message: "this node does not have it and cannot tell whether the cluster does; try again in a few seconds, or ask another node", Cause: late}
	}
	return read()
}
