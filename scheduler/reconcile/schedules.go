package reconcile

import (
	"context"
	"log/slog"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler/pace"
)

// SchedulesEvery is how often the versions of all jobs are compared with what ticks.
const SchedulesEvery = 30 * time.Second

// Definitions is where jobs are kept.
type Definitions interface {
	Heads(ctx context.Context, afterNamespace, afterName string, limit int) ([]job.JobHead, error)
	Version(ctx context.Context, id job.JobID, version uint64) (*job.Version, error)
}

// Marks is what ticks, in Raft.
type Marks interface {
	Marks() []job.Mark
	Mark(id job.JobID) (job.Mark, bool)
	PutSchedule(ctx context.Context, m job.Mark) (job.Mark, error)
	DropSchedule(ctx context.Context, id job.JobID, version uint64) error
}

// Schedules makes what ticks follow the definitions (L7): a definition reaches the store first and Raft second, and
// whoever carried it may have died between.
type Schedules struct {
	Definitions Definitions
	Marks       Marks
	Logger      *slog.Logger
	Mended      func(what string, n int) // may be nil
}

// Comparing is the part that compares soon and then every SchedulesEvery.
func (s *Schedules) Comparing() *pace.Part {
	return &pace.Part{Name: "schedules", First: time.Second, // a new leader first does what cannot wait
		Turn: func(ctx context.Context) (time.Duration, error) {
			if err := s.Step(ctx); err != nil && ctx.Err() == nil {
				s.Logger.Warn("comparing schedules is retried", "err", err)
			}
			return SchedulesEvery, nil
		}}
}

// Step compares once.
func (s *Schedules) Step(ctx context.Context) error {
	// The marks are read before the definitions: a job that is created meanwhile has no mark here, and one that is deleted
	// meanwhile has one; both read as "nothing to do".
	marks := s.Marks.Marks()
	there := make(map[job.JobID]bool, len(marks))
	namespace, name := "", ""
	for {
		heads, err := s.Definitions.Heads(ctx, namespace, name, page)
		if err != nil {
			return err
		}
		for _, h := range heads {
			there[h.ID] = true
			if m, ok := s.Marks.Mark(h.ID); !ok || m.Version < h.Version {
				if err := s.follow(ctx, h, ok); err != nil {
					return err
				}
			}
			namespace, name = h.Namespace, h.Name
		}
		if len(heads) < page {
			break
		}
	}
	for i := range marks {
		if there[marks[i].JobID] {
			continue
		}
		s.Logger.Info("a deleted job's schedule ends", "namespace", marks[i].Namespace, "job", marks[i].Job)
		if err := s.Marks.DropSchedule(ctx, marks[i].JobID, 0); err != nil {
			return err
		}
		s.mended()
	}
	return nil
}

// follow brings a version into effect, if it has a schedule, or ends the schedule of the one before.
func (s *Schedules) follow(ctx context.Context, h job.JobHead, ticks bool) error {
	v, err := s.Definitions.Version(ctx, h.ID, h.Version)
	if job.CodeOf(err) == job.NotFound {
		return nil // deleted meanwhile
	}
	if err != nil {
		return err
	}
	mark, scheduled, err := job.MarkOf(h.ID, h.Version, v.Spec)
	switch {
	case err != nil:
		return err
	case scheduled:
		_, err = s.Marks.PutSchedule(ctx, mark)
	case ticks:
		err = s.Marks.DropSchedule(ctx, h.ID, h.Version)
	default:
		return nil
	}
	if job.CodeOf(err) == job.Conflict {
		return nil // a newer version ticks by now
	}
	if err == nil {
		s.Logger.Info("a schedule follows its definition", "namespace", h.Namespace, "job", h.Name, "version", h.Version)
		s.mended()
	}
	return err
}

func (s *Schedules) mended() {
	if s.Mended != nil {
		s.Mended("schedules", 1)
	}
}
