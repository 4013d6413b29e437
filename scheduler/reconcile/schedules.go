package reconcile

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler/pace"
)

const (
	// SchedulesEvery is how often versions of jobs are compared with what ticks: all of them when a term begins, for a leader
	// that died may have left half of its work, and then headsPage at a time, so that it costs one query however many there are.
	SchedulesEvery = 30 * time.Second
	headsPage      = 10_000
)

// Definitions is where jobs are kept.
type Definitions interface {
	Heads(ctx context.Context, afterNamespace, afterName string, limit int) ([]job.JobHead, error)
	Version(ctx context.Context, id job.JobID, version uint64) (*job.Version, error)
	StartVersion(ctx context.Context, id job.JobID, version uint64, from job.Instant) error
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

	namespace, name string             // the last job compared; none: at the beginning
	gone            map[job.JobID]bool // marks whose job was not met since the beginning
	compared        bool               // all jobs were, once
	counts          struct{ followed, dropped, dated int }
	older           map[job.JobID]older // jobs of which a version ticks that the store has never had
}

// older is a job that the store has in an older version than the one that ticks, as it was met.
type older struct {
	version uint64
	said    bool
}

// Comparing is the part that compares.
func (s *Schedules) Comparing() *pace.Part {
	trouble := pace.Trouble{Logger: s.Logger, What: "comparing schedules"}
	return &pace.Part{Name: "schedules", First: time.Second, // a new leader first does what cannot wait
		Turn: func(ctx context.Context) (time.Duration, error) {
			err := s.Step(ctx)
			s.tell()
			switch {
			case err != nil && ctx.Err() == nil:
				return trouble.Failed(err), nil
			case !s.compared:
				return 0, nil
			}
			trouble.Over()
			return SchedulesEvery, nil
		}}
}

// Step compares one page. What it stopped at it begins with the next time.
func (s *Schedules) Step(ctx context.Context) error {
	if s.gone == nil {
		// The marks are read before the definitions: a job that is created meanwhile has no mark here, and one that is deleted
		// meanwhile has one; both read as "nothing to do".
		s.gone = map[job.JobID]bool{}
		for _, m := range s.Marks.Marks() {
			s.gone[m.JobID] = true
		}
	}
	heads, err := s.Definitions.Heads(ctx, s.namespace, s.name, headsPage)
	if err != nil {
		return err
	}
	for _, h := range heads {
		delete(s.gone, h.ID)
		m, ok := s.Marks.Mark(h.ID)
		switch {
		case !ok || m.Version < h.Version:
			err = s.follow(ctx, h, ok)
		case m.Version > h.Version:
			s.behind(h, m)
		case m.Version == h.Version && m.From != h.From:
			if err = s.Definitions.StartVersion(ctx, h.ID, h.Version, m.From); err == nil {
				s.counts.dated++
			}
		}
		switch job.CodeOf(err) {
		case "":
		case job.Internal, job.Invalid, job.Exhausted: // of this one job: the others are compared all the same
			s.Logger.Warn("a schedule cannot follow its definition", "namespace", h.Namespace, "job", h.Name, "version", h.Version, "err", err)
		default:
			return err
		}
		s.namespace, s.name = h.Namespace, h.Name
	}
	if len(heads) == headsPage {
		return nil
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.gone), func(a, b job.JobID) int { return bytes.Compare(a[:], b[:]) }) {
		if err := s.Marks.DropSchedule(ctx, id, 0); err != nil {
			return err
		}
		delete(s.gone, id)
		s.counts.dropped++
	}
	s.namespace, s.name, s.gone, s.compared = "", "", nil, true
	return nil
}

// behind says, once, that a job's version that ticks is not in the store, which happens when the store was put back to an
// earlier moment (S11): its ticks get their disposition and no run. Met once it means nothing, since the heads were read
// before the mark.
func (s *Schedules) behind(h job.JobHead, m job.Mark) {
	switch o := s.older[h.ID]; {
	case o.version != h.Version:
		if s.older == nil {
			s.older = map[job.JobID]older{}
		}
		s.older[h.ID] = older{version: h.Version}
	case !o.said:
		s.older[h.ID] = older{h.Version, true}
		s.Logger.Error("the store has an older version of a job than the one that ticks, so its ticks start nothing: was the store put back to an earlier moment? apply the job again",
			"namespace", h.Namespace, "job", h.Name, "version", h.Version, "ticks", m.Version)
	}
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
		s.counts.followed++
	}
	return err
}

// tell says what was mended. That versions are told from when they tick is the way of it, and no defect.
func (s *Schedules) tell() {
	c := s.counts
	s.counts.followed, s.counts.dropped, s.counts.dated = 0, 0, 0
	if n := c.followed + c.dropped; n > 0 {
		s.Logger.Info("schedules follow their definitions, which raft had not heard of", "changed", c.followed, "ended", c.dropped)
		if s.Mended != nil {
			s.Mended("schedules", n)
		}
	}
	if c.dated > 0 {
		s.Logger.Debug("versions were told from when they tick", "count", c.dated)
	}
}
