package clustertest

import (
	"context"
	"sync"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
)

// Unsure is a store, as terms use it, whose calls fail on cue in every way that a call may fail: nothing happened, it
// happened and nobody knows, nobody knows and it did not, nobody knows and it happens later.
type Unsure struct {
	scheduler.Store
	// Fail tells how a call fails, by the method's name. What is done, unknown, is done after so long.
	Fail func(method string) (Failure, time.Duration)
	// late are calls that have not happened yet, though they were answered.
	late sync.WaitGroup
}

// Settle waits until all has happened that was said to be unknown.
func (s *Unsure) Settle() { s.late.Wait() }

func unsure[V any](ctx context.Context, s *Unsure, method string, do func(context.Context) (V, error)) (V, error) {
	var none V
	how, late := s.Fail(method)
	switch how {
	case NoFailure:
		return do(ctx)
	case NotDone:
		return none, job.Errorf(job.Unavailable, "store_unavailable", "%s is not done, on cue", method)
	case DoneUnknown:
		ctx := context.WithoutCancel(ctx)
		if late == 0 {
			_, _ = do(ctx)
			break
		}
		s.late.Go(func() {
			time.Sleep(late)
			_, _ = do(ctx)
		})
	}
	return none, job.Errorf(job.Unknown, "store_unknown", "whether %s is done is not known, on cue", method)
}

// read is a call that changes nothing: it fails in one way.
func read[V any](ctx context.Context, s *Unsure, method string, do func(context.Context) (V, error)) (V, error) {
	var none V
	if how, _ := s.Fail(method); how != NoFailure {
		return none, job.Errorf(job.Unavailable, "store_unavailable", "%s is not answered, on cue", method)
	}
	return do(ctx)
}

func (s *Unsure) Raise(ctx context.Context, epoch job.Epoch) (job.Epoch, error) {
	return unsure(ctx, s, "Raise", func(ctx context.Context) (job.Epoch, error) { return s.Store.Raise(ctx, epoch) })
}

func (s *Unsure) StoreTicks(ctx context.Context, epoch job.Epoch, ticks []job.Tick) ([]*job.Run, error) {
	return unsure(ctx, s, "StoreTicks", func(ctx context.Context) ([]*job.Run, error) { return s.Store.StoreTicks(ctx, epoch, ticks) })
}

func (s *Unsure) Move(ctx context.Context, epoch job.Epoch, moves []job.Move) ([]job.Moved, error) {
	return unsure(ctx, s, "Move", func(ctx context.Context) ([]job.Moved, error) { return s.Store.Move(ctx, epoch, moves) })
}

func (s *Unsure) Cancel(ctx context.Context, intents []job.CancelIntent) ([]job.Receipt, error) {
	return unsure(ctx, s, "Cancel", func(ctx context.Context) ([]job.Receipt, error) { return s.Store.Cancel(ctx, intents) })
}

func (s *Unsure) Release(ctx context.Context, epoch job.Epoch, runs []*job.Run) ([]job.Receipt, error) {
	return unsure(ctx, s, "Release", func(ctx context.Context) ([]job.Receipt, error) { return s.Store.Release(ctx, epoch, runs) })
}

func (s *Unsure) Fire(ctx context.Context, epoch job.Epoch, jobs []job.JobID, now job.Instant, limit int) ([]*job.Run, error) {
	return unsure(ctx, s, "Fire", func(ctx context.Context) ([]*job.Run, error) { return s.Store.Fire(ctx, epoch, jobs, now, limit) })
}

func (s *Unsure) Load(ctx context.Context, ids []job.RunID) ([]*job.Run, error) {
	return read(ctx, s, "Load", func(ctx context.Context) ([]*job.Run, error) { return s.Store.Load(ctx, ids) })
}

func (s *Unsure) Live(ctx context.Context, after job.RunID, limit int) ([]*job.Run, error) {
	return read(ctx, s, "Live", func(ctx context.Context) ([]*job.Run, error) { return s.Store.Live(ctx, after, limit) })
}

func (s *Unsure) LiveOfJob(ctx context.Context, id job.JobID, limit int) ([]*job.Run, error) {
	return read(ctx, s, "LiveOfJob", func(ctx context.Context) ([]*job.Run, error) { return s.Store.LiveOfJob(ctx, id, limit) })
}

func (s *Unsure) Backlog(ctx context.Context, wants []job.LaneAfter, until job.Instant) ([]job.QueueEntry, error) {
	return read(ctx, s, "Backlog", func(ctx context.Context) ([]job.QueueEntry, error) { return s.Store.Backlog(ctx, wants, until) })
}

func (s *Unsure) Version(ctx context.Context, id job.JobID, version uint64) (*job.Version, error) {
	return read(ctx, s, "Version", func(ctx context.Context) (*job.Version, error) { return s.Store.Version(ctx, id, version) })
}

func (s *Unsure) Runs(ctx context.Context, q job.RunQuery) (job.RunPage, error) {
	return read(ctx, s, "Runs", func(ctx context.Context) (job.RunPage, error) { return s.Store.Runs(ctx, q) })
}

func (s *Unsure) Job(ctx context.Context, namespace, name string) (*job.Job, error) {
	return read(ctx, s, "Job", func(ctx context.Context) (*job.Job, error) { return s.Store.Job(ctx, namespace, name) })
}
