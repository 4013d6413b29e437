package postgres

import (
	"bytes"
	"context"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/musterhq/muster/job"
)

var movesSQL = func() map[string]string {
	all := statements("moves.sql")
	_, edges, _ := strings.Cut(all["edges"], "\nends AS")
	all["end_attempts"] = strings.NewReplacer("{told}", strings.Join(namesOf(toldColumns, "r."), ", "),
		"{nothing}", strings.TrimSuffix(strings.Repeat("NULL, ", len(toldColumns)), ", ")).Replace(all["end_attempts"])
	for name, finished := range map[string]string{"end_attempts": "$10", "satisfy": "$4"} {
		all[name] = strings.ReplaceAll(all[name], "{edges}", "ends AS"+strings.ReplaceAll(edges, "{finished}", finished))
	}
	return all
}()

// keptAttempts is how many attempts of a run are kept besides its last one.
const keptAttempts = 100

// Move implements storage.Moves. Most moves end a run, and for those that do, one statement says all that job.Move.Apply
// would: they take one round trip, and no row is read. For the others, and for those that did not apply, rows are read
// and locked, moved by Apply, and written back.
func (s *Store) Move(ctx context.Context, epoch job.Epoch, moves []job.Move) ([]job.Moved, error) {
	if len(moves) == 0 {
		return nil, nil
	}
	for i := range moves {
		if m := &moves[i]; m.State < job.Waiting || m.State > job.Skipped {
			return nil, job.Errorf(job.Invalid, "state", "run %s cannot move to state %d", m.ID, m.State)
		}
	}
	answers := make([]job.Moved, len(moves))
	ends, rest := sortMoves(moves)
	applied := false
	if len(ends) > 0 {
		var d dueEdges
		err := s.leaderWrites(ctx, epoch, func(ctx context.Context, f *flight) error {
			d = nil
			return s.endRuns(ctx, f, moves, ends, answers, &d)
		})
		if err != nil {
			return nil, err
		}
		d.tell(answers, ends)
		for _, i := range ends {
			if answers[i].Applied {
				applied = true
			} else {
				rest = append(rest, i)
			}
		}
		slices.Sort(rest)
	}
	if len(rest) == 0 {
		return answers, nil
	}
	var d dueEdges
	err := s.leaderWrites(ctx, epoch, func(ctx context.Context, f *flight) error {
		d = nil
		return s.moveRuns(ctx, f, moves, rest, answers, &d)
	})
	if applied && job.CodeOf(err) == job.Unavailable {
		return nil, unknown(err) // some of it happened
	}
	if err != nil {
		return nil, err
	}
	d.tell(answers, rest)
	return answers, nil
}

// leaderWrites is one transaction of the leader: what do adds to the flight comes after the fence, and the flight lands.
func (s *Store) leaderWrites(ctx context.Context, epoch job.Epoch, do func(ctx context.Context, f *flight) error) error {
	return s.use(ctx, leading, func(ctx context.Context, c *pgx.Conn) error {
		return again(ctx, func() error {
			f := &flight{c: c}
			defer f.end(ctx)
			if err := f.begin(ctx); err != nil {
				return err
			}
			if err := f.fence(ctx, s.cfg.ClusterID(), epoch); err != nil {
				return err
			}
			if err := do(ctx, f); err != nil {
				return err
			}
			return f.land(ctx)
		})
	})
}

// sortMoves splits moves, by index, into those that end_attempts makes, in the order of ids, and the rest, in theirs. All
// moves of a run that has several are in the rest.
func sortMoves(moves []job.Move) (ends, rest []int) {
	times := make(map[job.RunID]int, len(moves))
	for i := range moves {
		times[moves[i].ID]++
	}
	for i := range moves {
		if times[moves[i].ID] == 1 && endsRun(&moves[i]) {
			ends = append(ends, i)
		} else {
			rest = append(rest, i)
		}
	}
	slices.SortFunc(ends, func(i, j int) int { return bytes.Compare(moves[i].ID[:], moves[j].ID[:]) })
	return ends, rest
}

// endsRun tells whether all that Apply does for the move is to refuse it, or to set what end_attempts sets: it ends an
// attempt and the run, and neither a guard nor a kept attempt nor a time to queue at comes with it.
func endsRun(m *job.Move) bool {
	return m.State.Terminal() && m.Fence != 0 && m.IfFence == nil && m.IfState == 0 && m.Ended == nil && m.ReadyAt == 0 && m.QueuedAt == 0
}

// movedColumns are what moves change, in the order of end_attempts and write_runs; the last three only with the latter.
var movedColumns = columnsNamed("id", "state", "reason", "attempt", "losses", "failures", "worker", "fence", "started_at",
	"finished_at", "exit_code", "result", "error", "ready_at", "queued_at", "lane_order")

var endColumns = movedColumns[:13]

// toldColumns are those that end_attempts answers: the narrow ones but for what is as the move says.
var toldColumns = func() (list []*column) {
	for i := range columns[:narrowCount] {
		c := &columns[i]
		if c.name == "id" || c.name == "state" || c.name == "reason" || !slices.Contains(endColumns, c) {
			list = append(list, c)
		}
	}
	return list
}()

// endRuns makes the moves that endsRun is true for. The run answered lacks payload, spec and labels, which nobody needs of
// a run that has ended.
func (s *Store) endRuns(ctx context.Context, f *flight, moves []job.Move, ends []int, answers []job.Moved, due *dueEdges) error {
	rows := make([]job.Run, len(ends))
	runs := make([]*job.Run, len(ends))
	for n, i := range ends {
		m := &moves[i]
		rows[n] = job.Run{ID: m.ID, State: m.State, Reason: m.Reason, Attempt: m.Attempt, Losses: m.Losses, Failures: m.Failures,
			Worker: m.Worker, Fence: m.Fence, StartedAt: m.StartedAt, FinishedAt: m.FinishedAt, ExitCode: m.ExitCode, Result: m.Result, Error: m.Error}
		runs[n] = &rows[n]
		answers[i] = job.Moved{}
	}
	next := 0 // rows come in the order of ids, and not all of them
	ended := func(v [][]byte) error {
		if v[0] == nil {
			due.add(v[len(toldColumns):])
			return nil
		}
		for next < len(ends) && moves[ends[next]].ID != job.RunID(v[0]) {
			next++
		}
		if next == len(ends) {
			return errUnexpected
		}
		i := ends[next]
		r := rows[next]
		next++
		r.Home, r.Reason = job.HomePostgres, 0
		for n, c := range toldColumns {
			if v[n] != nil {
				c.take(&r, v[n])
			}
		}
		answers[i] = job.Moved{Applied: true, Run: &r}
		return nil
	}
	if err := f.then(ctx, movesSQL["end_attempts"], ended, append(columnArgs(endColumns, runs), orderArg(ends))...); err != nil {
		return err
	}
	if !s.cfg.Outbox {
		return nil
	}
	if err := f.fly(ctx); err != nil {
		return err
	}
	var events []*job.Run
	for _, i := range ends {
		if answers[i].Applied {
			events = append(events, answers[i].Run)
		}
	}
	return emit(ctx, f, eventMoved, job.At(s.cfg.Now()), events)
}

// moveRuns makes any moves, in order.
func (s *Store) moveRuns(ctx context.Context, f *flight, moves []job.Move, which []int, answers []job.Moved, due *dueEdges) error {
	ids := make([]job.RunID, 0, len(which))
	for _, i := range which {
		ids = append(ids, moves[i].ID)
	}
	slices.SortFunc(ids, func(x, y job.RunID) int { return bytes.Compare(x[:], y[:]) })
	ids = slices.Compact(ids)
	rows := make(map[job.RunID]*job.Run, len(ids))
	if err := f.then(ctx, movesSQL["lock_runs"], runInto(rows), idsArg(ids)); err != nil {
		return err
	}
	if err := f.fly(ctx); err != nil {
		return err
	}
	changed := make(map[job.RunID]bool, len(ids))
	var ended []*job.Attempt
	var events, ends []*job.Run
	for _, i := range which {
		m := &moves[i]
		r := rows[m.ID]
		if r == nil {
			answers[i] = job.Moved{}
			continue
		}
		n, ok := m.Apply(r)
		answers[i] = job.Moved{Applied: ok, Run: n}
		if !ok {
			continue
		}
		rows[m.ID], changed[m.ID] = n, true
		events = append(events, n)
		if n.State.Terminal() && n.IsRoot() && !n.JobID.IsZero() {
			ends = append(ends, n)
		}
		if m.Ended != nil {
			ended = append(ended, m.Ended)
		}
	}
	write := make([]*job.Run, 0, len(changed))
	for _, id := range ids {
		if changed[id] {
			write = append(write, rows[id])
		}
	}
	if len(write) > 0 {
		if err := f.then(ctx, movesSQL["write_runs"], nil, columnArgs(movedColumns, write)...); err != nil {
			return err
		}
	}
	if err := keepAttempts(ctx, f, ended); err != nil {
		return err
	}
	if err := satisfy(ctx, f, ends, due); err != nil {
		return err
	}
	if s.cfg.Outbox {
		return emit(ctx, f, eventMoved, job.At(s.cfg.Now()), events)
	}
	return nil
}

// keepAttempts stores attempts that runs go on after. The same one again replaces it, as what is said of it last.
func keepAttempts(ctx context.Context, f *flight, ended []*job.Attempt) error {
	type attemptID struct {
		run   job.RunID
		fence job.Fence
	}
	last := make(map[attemptID]int, len(ended))
	var kept []*job.Attempt
	var over []job.Attempt
	for _, a := range ended {
		id := attemptID{a.RunID, a.Fence}
		if i, again := last[id]; again {
			kept[i] = a
			continue
		}
		last[id] = len(kept)
		kept = append(kept, a)
		if a.Attempt > keptAttempts {
			over = append(over, job.Attempt{RunID: a.RunID, Attempt: a.Attempt - keptAttempts})
		}
	}
	if len(kept) == 0 {
		return nil
	}
	if err := f.then(ctx, movesSQL["keep_attempts"], nil, attemptArgs(kept)...); err != nil || len(over) == 0 {
		return err
	}
	return f.then(ctx, movesSQL["drop_attempts"], nil,
		arrayArg(pgtype.UUIDOID, over, func(b []byte, a *job.Attempt) ([]byte, bool) { return append(b, a.RunID[:]...), true }),
		arrayArg(pgtype.Int4OID, over, func(b []byte, a *job.Attempt) ([]byte, bool) { return putInt4(b, a.Attempt), true }))
}

func attemptArgs(list []*job.Attempt) [][]byte {
	type put = func(b []byte, a **job.Attempt) ([]byte, bool)
	instant := func(at func(*job.Attempt) job.Instant) put {
		return func(b []byte, a **job.Attempt) ([]byte, bool) { return putInstant(b, at(*a)), at(*a) != 0 }
	}
	return [][]byte{
		arrayArg(pgtype.UUIDOID, list, func(b []byte, a **job.Attempt) ([]byte, bool) { return append(b, (*a).RunID[:]...), true }),
		arrayArg(pgtype.Int8OID, list, func(b []byte, a **job.Attempt) ([]byte, bool) { return putInt8(b, int64((*a).Fence)), true }),
		arrayArg(pgtype.Int4OID, list, func(b []byte, a **job.Attempt) ([]byte, bool) { return putInt4(b, (*a).Attempt), true }),
		arrayArg(pgtype.TextOID, list, func(b []byte, a **job.Attempt) ([]byte, bool) { return append(b, (*a).Worker...), true }),
		arrayArg(pgtype.TimestamptzOID, list, instant(func(a *job.Attempt) job.Instant { return a.StartedAt })),
		arrayArg(pgtype.TimestamptzOID, list, instant(func(a *job.Attempt) job.Instant { return a.FinishedAt })),
		arrayArg(pgtype.Int2OID, list, func(b []byte, a **job.Attempt) ([]byte, bool) { return putInt2(b, uint8((*a).State)), true }),
		arrayArg(pgtype.Int2OID, list, func(b []byte, a **job.Attempt) ([]byte, bool) {
			return putInt2(b, uint8((*a).Reason)), (*a).Reason != 0
		}),
		arrayArg(pgtype.Int4OID, list, func(b []byte, a **job.Attempt) ([]byte, bool) {
			return putInt4(b, uint32((*a).ExitCode)), (*a).ExitCode != 0
		}),
		arrayArg(pgtype.TextOID, list, func(b []byte, a **job.Attempt) ([]byte, bool) { return append(b, (*a).Error...), (*a).Error != "" }),
	}
}
