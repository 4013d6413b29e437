package postgres

import (
	"bytes"
	"context"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/musterhq/muster/job"
)

// Cancel implements storage.Births.
func (s *Store) Cancel(ctx context.Context, intents []job.CancelIntent) ([]job.Receipt, error) {
	return s.intents.do(ctx, intents)
}

// writeIntents records what several callers asked for. The first intent for a run counts.
func (s *Store) writeIntents(intents []job.CancelIntent) []job.Receipt {
	now := job.At(s.cfg.Now())
	seen := make(map[job.RunID]bool, len(intents))
	first := make([]job.CancelIntent, 0, len(intents))
	for _, c := range intents {
		if seen[c.ID] {
			continue
		}
		seen[c.ID] = true
		c.At = or(c.At, now)
		if c.Reason == job.CancelRequested {
			c.Reason = job.NoReason // what no reason means
		}
		first = append(first, c)
	}
	// In the order of ids, as moves are made: neither waits for the other while the other waits for it.
	slices.SortFunc(first, func(x, y job.CancelIntent) int { return bytes.Compare(x.ID[:], y.ID[:]) })
	answers := make(map[job.RunID]job.Receipt, len(first))
	s.intend(first, answers)
	receipts := make([]job.Receipt, len(intents))
	for i, c := range intents {
		receipts[i] = answers[c.ID]
	}
	return receipts
}

// intend records intents for different runs in one transaction, split when Postgres cannot hold one of them (S12).
func (s *Store) intend(intents []job.CancelIntent, answers map[job.RunID]job.Receipt) {
	found := make(map[job.RunID]*job.Run, len(intents))
	ids := make([]job.RunID, len(intents))
	for i, c := range intents {
		ids[i] = c.ID
	}
	err := s.use(context.Background(), bearing, func(ctx context.Context, c *pgx.Conn) error {
		return again(ctx, func() error {
			f := &flight{c: c}
			defer f.end(ctx)
			if err := f.begin(ctx); err != nil {
				return err
			}
			err := f.then(ctx, birthsSQL["cancel"], nil, idsArg(ids),
				arrayArg(pgtype.TimestamptzOID, intents, func(b []byte, c *job.CancelIntent) ([]byte, bool) { return putInstant(b, c.At), true }),
				arrayArg(pgtype.Int2OID, intents, func(b []byte, c *job.CancelIntent) ([]byte, bool) {
					return putInt2(b, uint8(c.Reason)), c.Reason != 0
				}))
			if err == nil {
				err = f.then(ctx, birthsSQL["runs_by_id"], runInto(found), idsArg(ids))
			}
			if err == nil {
				err = f.land(ctx)
			}
			return err
		})
	})
	if job.CodeOf(err) == job.Invalid && len(intents) > 1 {
		s.intend(intents[:len(intents)/2], answers)
		s.intend(intents[len(intents)/2:], answers)
		return
	}
	for _, id := range ids {
		switch r := found[id]; {
		case err != nil:
			answers[id] = job.Receipt{Err: err}
		case r == nil:
			answers[id] = job.Receipt{Err: job.Errorf(job.NotFound, "run", "there is no run %s", id)}
		default:
			answers[id] = job.Receipt{Run: r}
		}
	}
}
