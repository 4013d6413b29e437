package clock

import (
	"context"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/job/timetable"
)

// decide says what becomes of every tick of one job up to now. Versions that were replaced decide theirs first (L7),
// then come the ticks of a pause that ended, then the rest. With blind, the store is not asked which runs are active: what
// cannot be decided without it is that error.
func (c *Clock) decide(ctx context.Context, e *entry, now job.Instant, blind error) ([]job.Tick, error) {
	m := &e.mark
	d := decision{clock: c, ctx: ctx, mark: m, now: now, blind: blind}
	after := m.At
	for i := range m.Earlier {
		v := &m.Earlier[i]
		table, err := c.parse(v.Schedule)
		if err != nil {
			c.Logger.Error("a replaced schedule cannot be read; its last ticks are lost", "namespace", m.Namespace, "job", m.Job, "version", v.Version, "err", err)
		} else if err := d.span(table, v.Version, v.Overlap, v.StartDeadline.Std(), after, min(v.Until, now)); err != nil {
			return nil, err
		}
		after = max(after, min(v.Until, now))
	}
	if err := d.span(e.table, m.Version, m.Overlap, m.StartDeadline.Std(), after, now); err != nil {
		return nil, err
	}
	return d.ticks, nil
}

// decision collects what is decided of one job.
type decision struct {
	clock *Clock
	ctx   context.Context
	mark  *job.Mark
	now   job.Instant
	blind error
	ticks []job.Tick

	looked  bool // active and waiting are known
	active  []job.RunID
	waiting bool
}

// span decides the ticks of one version in (after, until].
func (d *decision) span(table *timetable.Timetable, version uint64, policy job.Overlap, startDeadline time.Duration, after, until job.Instant) error {
	if why := d.clock.Control.Paused(d.mark.JobID, d.mark.Namespace); why != job.NoReason {
		d.paused(table, version, why, after, until)
		return nil
	}
	if r := min(d.mark.ResumedAt, until); r > after {
		d.paused(table, version, job.JobPaused, after, r)
		after = r
	}
	for _, x := range table.Due(after.Time(), until.Time(), startDeadline) {
		t := job.Tick{JobID: d.mark.JobID, Version: version, ScheduledAt: job.At(x.At), Disposition: x.Do, Reason: x.Reason, DecidedAt: d.now}
		if x.Count > 1 {
			t.Until, t.Count = job.At(x.Until), uint32(x.Count)
		}
		if x.Do == job.TickRun && policy != job.OverlapAllow {
			if err := d.overlap(&t, policy); err != nil {
				return err
			}
		}
		d.ticks = append(d.ticks, t)
	}
	return nil
}

// paused decides a whole range at once.
func (d *decision) paused(table *timetable.Timetable, version uint64, why job.Reason, after, until job.Instant) {
	first, last, n := table.Range(after.Time(), until.Time())
	if n == 0 {
		return
	}
	t := job.Tick{JobID: d.mark.JobID, Version: version, ScheduledAt: job.At(first), Disposition: job.TickPaused, Reason: why, DecidedAt: d.now}
	if n > 1 {
		t.Until, t.Count = job.At(last), uint32(n)
	}
	d.ticks = append(d.ticks, t)
}

// overlap applies the policy to a tick that would run: it looks at runs of earlier ticks that are not terminal, those
// decided in this very batch included.
func (d *decision) overlap(t *job.Tick, policy job.Overlap) error {
	if !d.looked {
		if d.clock.inDoubt(d.mark.JobID) {
			return errDoubt
		}
		if d.blind != nil && !d.clock.Overlap.Known(d.mark.JobID) {
			return d.blind
		}
		runs, waiting, err := d.clock.Overlap.Active(d.ctx, d.mark.JobID)
		if err != nil {
			return err
		}
		d.looked, d.active, d.waiting = true, runs, !waiting.IsZero()
	}
	if len(d.active) > 0 {
		switch policy {
		case job.OverlapQueueTick:
			if d.waiting {
				t.Disposition, t.Reason = job.TickCoalesced, job.OverlapQueued
				return nil
			}
			t.Waiting, d.waiting = true, true
		case job.OverlapReplaceRun: // the earlier ones are cancelled once this one is stored
			t.Waiting, d.waiting = true, true
		default:
			t.Disposition, t.Reason = job.TickSkipped, job.OverlapSkip
			return nil
		}
	}
	d.active = append(d.active, t.RunID())
	return nil
}
