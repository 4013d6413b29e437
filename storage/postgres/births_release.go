package postgres

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/musterhq/muster/job"
)

// Release implements storage.Graphs: births in a transaction of the leader's. New ones take one round trip, by COPY; when
// one of them is there already, those that are missing are inserted, and the others read.
func (s *Store) Release(ctx context.Context, epoch job.Epoch, runs []*job.Run) ([]job.Receipt, error) {
	receipts := make([]job.Receipt, len(runs))
	open := make([]int, 0, len(runs))
	for i, r := range runs {
		if receipts[i].Err = validBirth(r); receipts[i].Err == nil {
			r.Home = job.HomePostgres
			open = append(open, i)
		}
	}
	// In the order of ids: a call and its repetition wait for each other in one direction only.
	slices.SortStableFunc(open, func(i, j int) int { return bytes.Compare(runs[i].ID[:], runs[j].ID[:]) })
	for released := false; len(open) > 0; released = true {
		n, weight := 0, 0
		for n < len(open) && n < batchItems && (n == 0 || weight < batchBytes) {
			weight += birthWeight(&runs[open[n]])
			n++
		}
		if err := s.release(ctx, epoch, runs, open[:n], receipts); err != nil {
			if released && job.CodeOf(err) == job.Unavailable {
				return nil, unknown(err) // some of it happened
			}
			return nil, err
		}
		open = open[n:]
	}
	return receipts, nil
}

// release stores some births together. When Postgres cannot hold one of them, they are split until it is alone (S12).
func (s *Store) release(ctx context.Context, epoch job.Epoch, runs []*job.Run, at []int, receipts []job.Receipt) error {
	err := s.use(ctx, leading, func(ctx context.Context, c *pgx.Conn) error {
		return again(ctx, func() error {
			if !s.cfg.Outbox {
				if err := s.releaseNew(ctx, c, epoch, runs, at, receipts); !taken(err) {
					return err
				}
			}
			return s.releaseMissing(ctx, c, epoch, runs, at, receipts)
		})
	})
	if job.CodeOf(err) != job.Invalid {
		return err
	}
	if len(at) == 1 {
		receipts[at[0]] = job.Receipt{Err: err}
		return nil
	}
	for _, half := range [][]int{at[:len(at)/2], at[len(at)/2:]} {
		if err := s.release(ctx, epoch, runs, half, receipts); err != nil {
			if job.CodeOf(err) == job.Unavailable {
				return unknown(err) // the other half may be there
			}
			return err
		}
	}
	return nil
}

// releaseNew stores births of which none is there, or none at all. The fence comes before the COPY in the same message:
// where it refuses, the rows that follow are ignored.
func (s *Store) releaseNew(ctx context.Context, c *pgx.Conn, epoch job.Epoch, runs []*job.Run, at []int, receipts []job.Receipt) error {
	cluster, err := c.PgConn().EscapeString(s.cfg.ClusterID())
	if err != nil {
		return err
	}
	f := &flight{c: c, open: true}
	defer f.end(ctx)
	before := fmt.Sprintf("%s; SELECT muster.fence('%s', %d); ", beginSQL, cluster, epoch)
	if err := copyRuns(ctx, c.PgConn(), pick(runs, at), before, "; "+commitSQL); err != nil {
		return unsure(err)
	}
	f.open = false
	for _, i := range at {
		receipts[i] = job.Receipt{Run: runs[i]}
	}
	return nil
}

// releaseMissing stores those births that are not there, and reads the others.
func (s *Store) releaseMissing(ctx context.Context, c *pgx.Conn, epoch job.Epoch, runs []*job.Run, at []int, receipts []job.Receipt) error {
	f := &flight{c: c}
	defer f.end(ctx)
	if err := f.begin(ctx); err != nil {
		return err
	}
	if err := f.fence(ctx, s.cfg.ClusterID(), epoch); err != nil {
		return err
	}
	fresh, err := s.insert(ctx, f, pick(runs, at), true)
	if err != nil {
		return err
	}
	var old []job.RunID
	var events []*job.Run
	first := make(map[job.RunID]*job.Run, len(at)) // of those that were new; one may be there twice
	for _, i := range at {
		r := runs[i]
		switch {
		case !fresh[r.ID]:
			old = append(old, r.ID)
		case first[r.ID] == nil:
			first[r.ID] = r
			events = append(events, r)
		}
	}
	found := make(map[job.RunID]*job.Run, len(old))
	if len(old) > 0 {
		if err := f.then(ctx, birthsSQL["runs_by_id"], runInto(found), idsArg(slices.Compact(old))); err != nil {
			return err
		}
	}
	if s.cfg.Outbox {
		if err := emit(ctx, f, eventBorn, job.At(s.cfg.Now()), events); err != nil {
			return err
		}
	}
	if err := f.land(ctx); err != nil {
		return err
	}
	for _, i := range at {
		r := runs[i]
		switch {
		case fresh[r.ID]:
			receipts[i] = job.Receipt{Run: first[r.ID], Existing: first[r.ID] != r}
		case found[r.ID] != nil:
			receipts[i] = job.Receipt{Run: found[r.ID], Existing: true}
		default:
			receipts[i] = job.Receipt{Err: job.Errorf(job.Conflict, "run_pruned", "the run %s was there and is no longer kept", r.ID)}
		}
	}
	return nil
}
