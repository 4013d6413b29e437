package postgres

import (
	"context"

	"github.com/musterhq/muster/job"
)

type pruning struct{}

func (s *Store) PutJob(context.Context, job.PutJob) (*job.Job, error) { return nil, errNotWritten }
func (s *Store) DeleteJob(context.Context, string, string, uint64) (*job.Job, error) {
	return nil, errNotWritten
}
func (s *Store) Job(context.Context, string, string) (*job.Job, error) { return nil, errNotWritten }
func (s *Store) Jobs(context.Context, job.JobQuery) (p job.JobPage, _ error) {
	return p, errNotWritten
}
func (s *Store) Version(context.Context, job.JobID, uint64) (*job.Version, error) {
	return nil, errNotWritten
}
func (s *Store) Versions(context.Context, string, string, int) ([]*job.Version, error) {
	return nil, errNotWritten
}
func (s *Store) StartVersion(context.Context, job.JobID, uint64, job.Instant) error {
	return errNotWritten
}
func (s *Store) Load(context.Context, []job.RunID) ([]*job.Run, error) { return nil, errNotWritten }
func (s *Store) Live(context.Context, job.RunID, int) ([]*job.Run, error) {
	return nil, errNotWritten
}
func (s *Store) Heads(context.Context, string, string, int) ([]job.JobHead, error) {
	return nil, errNotWritten
}
func (s *Store) LiveOfJob(context.Context, job.JobID, int) ([]*job.Run, error) {
	return nil, errNotWritten
}
func (s *Store) Backlog(context.Context, []job.LaneAfter, job.Instant) ([]job.QueueEntry, error) {
	return nil, errNotWritten
}
func (s *Store) Run(context.Context, job.RunID) (*job.Run, error) { return nil, errNotWritten }
func (s *Store) Runs(context.Context, job.RunQuery) (p job.RunPage, _ error) {
	return p, errNotWritten
}
func (s *Store) Attempts(context.Context, job.RunID) ([]job.Attempt, error) {
	return nil, errNotWritten
}
func (s *Store) Ticks(context.Context, job.TickQuery) ([]job.Tick, error) { return nil, errNotWritten }
func (s *Store) Usage(context.Context) (u job.Usage, _ error)             { return u, errNotWritten }
func (s *Store) Prune(context.Context, job.Epoch, job.Instant, int) (int, error) {
	return 0, errNotWritten
}
