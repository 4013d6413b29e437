package postgres

import (
	"bytes"
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage"
)

var readSQL = statements("reads.sql")

// read runs a query for people or definitions and collects what it finds.
func read[T any](ctx context.Context, s *Store, scan pgx.RowToFunc[T], query string, args ...any) (list []T, err error) {
	err = s.use(ctx, reading, func(ctx context.Context, c *pgx.Conn) error {
		rows, err := c.Query(ctx, query, args...)
		list, err = collect(rows, err, scan)
		return err
	})
	return list, err
}

// readRuns runs a query for runs of a width.
func (s *Store) readRuns(ctx context.Context, p purpose, w width, query string, args ...any) (runs []*job.Run, err error) {
	err = s.use(ctx, p, func(ctx context.Context, c *pgx.Conn) error {
		rows, err := c.Query(ctx, query, args...)
		runs, err = collectRuns(w, rows, err)
		return err
	})
	return runs, err
}

// collect is pgx.CollectRows for what Query answered, with nil for nothing.
func collect[T any](rows pgx.Rows, err error, scan pgx.RowToFunc[T]) ([]T, error) {
	if err != nil {
		return nil, err
	}
	return pgx.AppendRows([]T(nil), rows, scan)
}

func bound(limit, most int) int {
	if limit <= 0 {
		limit = 100
	}
	return min(limit, most)
}

func instantOf(t *time.Time) job.Instant {
	if t == nil {
		return 0
	}
	return job.At(*t)
}

func noRun(id job.RunID) error {
	return job.Errorf(job.NotFound, "run", "there is no run %s", id)
}

// Run implements storage.Reads.
func (s *Store) Run(ctx context.Context, id job.RunID) (*job.Run, error) {
	runs, err := s.readRuns(ctx, reading, full, readSQL["run"], id[:])
	switch {
	case err != nil:
		return nil, err
	case len(runs) == 0:
		return nil, noRun(id)
	}
	return runs[0], nil
}

// Load implements storage.Moves.
func (s *Store) Load(ctx context.Context, ids []job.RunID) ([]*job.Run, error) {
	list := make([]*job.Run, len(ids))
	if len(ids) == 0 {
		return list, nil
	}
	wanted, lo, hi := idArray(ids)
	runs, err := s.readRuns(ctx, leading, full, readSQL["load"], wanted, lo[:], hi[:])
	if err != nil {
		return nil, err
	}
	byID := make(map[job.RunID]*job.Run, len(runs))
	for _, r := range runs {
		byID[r.ID] = r
	}
	for i, id := range ids {
		list[i] = byID[id]
	}
	return list, nil
}

// idArray is ids as a parameter of type uuid[], with the first and the last of them.
func idArray(ids []job.RunID) (list [][16]byte, lo, hi job.RunID) {
	list = make([][16]byte, len(ids))
	lo, hi = ids[0], ids[0]
	for i, id := range ids {
		list[i] = id
		if bytes.Compare(id[:], lo[:]) < 0 {
			lo = id
		}
		if bytes.Compare(id[:], hi[:]) > 0 {
			hi = id
		}
	}
	return list, lo, hi
}

// Live implements storage.Moves.
func (s *Store) Live(ctx context.Context, after job.RunID, limit int) ([]*job.Run, error) {
	return s.readRuns(ctx, leading, narrow, readSQL["live"], after[:], max(0, limit))
}

// LiveOfJob implements storage.Moves.
func (s *Store) LiveOfJob(ctx context.Context, id job.JobID, limit int) ([]*job.Run, error) {
	return s.readRuns(ctx, leading, narrow, readSQL["live of job"], id[:], max(0, limit))
}

// queuedAhead is how much later than until the ready time of a queued run may be, less what its priority is worth. What is
// queued was ready by the clock of whoever queued it, so only clocks that disagree make it so at all; and a lane of which
// a million runs are due tomorrow must not be walked to its end.
const queuedAhead = 10 * time.Minute

// Backlog implements storage.Moves.
func (s *Store) Backlog(ctx context.Context, wants []job.LaneAfter, until job.Instant) (entries []job.QueueEntry, err error) {
	if len(wants) == 0 {
		return nil, nil
	}
	n := len(wants)
	lanes, hashes, places := make([]string, n), make([]int64, n), make([]int64, n)
	afters, most := make([][16]byte, n), make([]int64, n)
	for i, w := range wants {
		lanes[i], hashes[i], places[i], afters[i], most[i] = string(w.Lane), laneHash(w.Lane), w.Order, w.After, int64(max(0, w.Max))
	}
	err = s.use(ctx, leading, func(ctx context.Context, c *pgx.Conn) error {
		rows, err := c.Query(ctx, readSQL["backlog"], lanes, hashes, places, afters, most, until.Time(), int64(until.Add(queuedAhead)))
		entries, err = collect(rows, err, func(row pgx.CollectableRow) (e job.QueueEntry, err error) {
			var place int64
			var ready time.Time
			err = row.Scan(&place, (*[16]byte)(&e.RunID), &e.Priority, &ready)
			if err == nil {
				e.Lane, e.ReadyAt = wants[place-1].Lane, job.At(ready)
			}
			return e, err
		})
		return err
	})
	return entries, err
}

// Attempts implements storage.Reads.
func (s *Store) Attempts(ctx context.Context, id job.RunID) (list []job.Attempt, err error) {
	err = s.use(ctx, reading, func(ctx context.Context, c *pgx.Conn) error {
		rows, err := c.Query(ctx, readSQL["attempts"], id[:])
		list, err = collect(rows, err, func(row pgx.CollectableRow) (job.Attempt, error) {
			a := job.Attempt{RunID: id}
			var started, finished *time.Time
			err := row.Scan((*uint64)(&a.Fence), &a.Attempt, &a.Worker, &started, &finished, (*uint8)(&a.State), (*uint8)(&a.Reason), &a.ExitCode, &a.Error)
			a.StartedAt, a.FinishedAt = instantOf(started), instantOf(finished)
			return a, err
		})
		if err != nil || len(list) > 0 {
			return err
		}
		var there bool
		if err := c.QueryRow(ctx, readSQL["run exists"], id[:]).Scan(&there); err != nil || there {
			return err
		}
		return noRun(id)
	})
	return list, err
}

// Ticks implements storage.Reads.
func (s *Store) Ticks(ctx context.Context, q storage.TickQuery) ([]job.Tick, error) {
	until := endOfTime
	for _, bound := range []job.Instant{q.Until, q.Before} {
		if bound != 0 {
			until = min(until, bound)
		}
	}
	return read(ctx, s, scanTick, readSQL["ticks"], q.JobID[:], q.Since.Time(), until.Time(), bound(q.Limit, 10_000))
}

func scanTick(row pgx.CollectableRow) (t job.Tick, err error) {
	var scheduled, decided time.Time
	var until *time.Time
	err = row.Scan((*[16]byte)(&t.JobID), &scheduled, &until, &t.Count, &t.Version, (*uint8)(&t.Disposition), (*uint8)(&t.Reason), &decided, &t.Waiting)
	t.ScheduledAt, t.Until, t.DecidedAt = job.At(scheduled), instantOf(until), job.At(decided)
	return t, err
}

// endOfTime is later than any time that is stored: 9999-12-31.
const endOfTime job.Instant = 253_402_214_400_000_000

// exactCount is up to where Usage counts; see the statement.
const exactCount = 20_000

// Usage implements storage.Reads. Counts over exactCount are estimates, as Postgres keeps them for its planner.
func (s *Store) Usage(ctx context.Context) (u storage.Usage, err error) {
	var runs, live, ticks, manyRuns, manyLive, manyTicks int64
	err = s.use(ctx, reading, func(ctx context.Context, c *pgx.Conn) error {
		return c.QueryRow(ctx, readSQL["usage"], exactCount+1).Scan(&runs, &manyRuns, &live, &manyLive, &ticks, &manyTicks, &u.Bytes)
	})
	estimate := func(counted, estimated int64) int {
		if counted > exactCount {
			return int(max(counted, estimated))
		}
		return int(counted)
	}
	u.Runs, u.LiveRuns, u.Ticks = estimate(runs, manyRuns), estimate(live, manyLive), estimate(ticks, manyTicks)
	u.LiveRuns = min(u.LiveRuns, u.Runs)
	if rows := u.Runs + u.Ticks; rows > 0 { // about: rows of all kinds are taken to be of one size
		u.HistoryBytes = int64(float64(u.Bytes) * float64(rows-u.LiveRuns) / float64(rows))
	}
	return u, err
}
