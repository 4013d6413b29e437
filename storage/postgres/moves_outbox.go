package postgres

import (
	"context"
	"encoding/json"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/musterhq/muster/job"
)

// Kinds of events in muster.outbox. They are on disk: never renumbered, never reused.
const (
	eventBorn  uint8 = 1 // a run was born; it may be terminal already
	eventMoved uint8 = 2 // the leader moved a run, so that its state or its attempt is another
)

// emit adds events of runs, as they then are, to the transaction that makes them so. What the work needs and what it
// answers is not in them: who wants it reads the run.
func emit(ctx context.Context, f *flight, kind uint8, at job.Instant, runs []*job.Run) error {
	if len(runs) == 0 {
		return nil
	}
	bodies := make([][]byte, len(runs))
	for i, r := range runs {
		brief := *r
		brief.Payload, brief.Spec, brief.Result = nil, nil, nil
		body, err := json.Marshal(brief)
		if err != nil {
			return err
		}
		bodies[i] = body
	}
	return f.then(ctx, movesSQL["emit"], nil,
		arrayArg(pgtype.UUIDOID, runs, func(b []byte, r **job.Run) ([]byte, bool) { return append(b, (*r).ID[:]...), true }),
		arrayArg(pgtype.Int2OID, runs, func(b []byte, _ **job.Run) ([]byte, bool) { return putInt2(b, kind), true }),
		arrayArg(pgtype.TimestamptzOID, runs, func(b []byte, _ **job.Run) ([]byte, bool) { return putInstant(b, at), true }),
		arrayArg(pgtype.TextOID, bodies, func(b []byte, body *[]byte) ([]byte, bool) { return append(b, *body...), true }))
}
