package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/musterhq/muster/job"
)

// partition is one of runs, attempts or ticks. Runs and attempts have the same ones, by the time in the run's id.
type partition struct {
	parent, name string
	size         int64       // in bytes, without indexes and what is stored out of line
	from, to     job.Instant // of the default partition, and of one whose bounds are not ours, 0
}

func (p *partition) isDefault() bool { return p.name == p.parent+"_default" }

func (p *partition) table() string { return pgx.Identifier{"muster", p.name}.Sanitize() }

func (s *Store) partitions(ctx context.Context) (list []partition, err error) {
	err = s.use(ctx, leading, func(ctx context.Context, c *pgx.Conn) error {
		rows, err := c.Query(ctx, pruneSQL["partitions"])
		list, err = collect(rows, err, func(row pgx.CollectableRow) (p partition, err error) {
			var from, to *time.Time
			err = row.Scan(&p.parent, &p.name, &p.size, &from, &to)
			p.from, p.to = instantOf(from), instantOf(to)
			return p, err
		})
		return err
	})
	return list, err
}

// span is a range of time that a partition covers.
type span struct{ from, to job.Instant }

// monday is where partitions are counted from: 1970-01-05.
const monday = job.Instant(4 * 24 * time.Hour / time.Microsecond)

// missing are the spans from that of now on, as many as configured, which a table has no partition for. One that overlaps
// a partition of another width is left out: what it would hold is in the default partition.
func (s *Store) missing(parent string, list []partition) (spans []span) {
	width := job.Instant(s.cfg.PartitionWidth / time.Microsecond)
	at := job.At(s.cfg.Now())
	at -= (at - monday) % width
next:
	for range s.cfg.PartitionsAhead + 1 {
		one := span{at, at + width}
		at += width
		for _, p := range list {
			if p.parent == parent && p.from < one.to && one.from < p.to {
				continue next
			}
		}
		spans = append(spans, one)
	}
	return spans
}

// makePartitions makes those that are missing, ahead of the time when they are needed. Without them rows go to the
// default partition, which costs speed and nothing else; so a failure is only logged.
func (r *round) makePartitions(ctx context.Context, list []partition) {
	if r.before < r.ddlAfter && r.before >= r.ddlAfter.Add(-ddlPause) {
		return
	}
	for _, parents := range [][]string{{"runs", "attempts"}, {"ticks"}} {
		for _, one := range r.missing(parents[0], list) {
			err := r.fenced(ctx, r.epoch, func(ctx context.Context, tx pgx.Tx) error { return makePartition(ctx, tx, one, parents...) })
			if err != nil {
				r.ddlFailed("make", parents[0], one.from, err)
			}
			if err != nil && !errors.Is(err, errTooMuch) { // which is said of this one alone: the next can still be made in time
				return
			}
		}
	}
}

// ddlFailed notes that partitions are better left alone for a while.
func (r *round) ddlFailed(what, table string, from job.Instant, err error) {
	r.ddlAfter = r.before.Add(ddlPause)
	level := r.cfg.Logger.Warn
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "55P03" || job.CodeOf(err) == job.Unavailable {
		level = r.cfg.Logger.Info // the tables are busy
	}
	level("a partition waits", "to", what, "table", table, "from", from.String(), "err", err)
}

// lockTables makes everybody wait who reads or writes these tables, or gives up soon. They are locked from the top, in
// one order, as every statement does, so that nobody waits in a circle.
func lockTables(ctx context.Context, tx pgx.Tx, parents ...string) error {
	if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '700ms'"); err != nil {
		return err
	}
	for _, parent := range parents {
		if _, err := tx.Exec(ctx, "LOCK TABLE muster."+parent+" IN ACCESS EXCLUSIVE MODE"); err != nil {
			return err
		}
	}
	return nil
}

// mostMoved is how many rows a new partition may take over from the default one, and mostDefault how many bytes that may
// have, all of which Postgres looks at: everybody waits meanwhile.
const (
	mostMoved   = 20_000
	mostDefault = 256 << 20
)

var errTooMuch = errors.New("the default partition has too many rows for it; they stay there until they are old")

// makePartition makes the partitions of some tables for one span, in one transaction. Rows that the default partition
// has of it move over: Postgres refuses a partition otherwise.
func makePartition(ctx context.Context, tx pgx.Tx, one span, parents ...string) error {
	for _, parent := range parents {
		column, from, to := bounds(parent, one)
		var rows, size int64
		err := tx.QueryRow(ctx, fmt.Sprintf("SELECT count(*), pg_relation_size('muster.%[1]s_default') FROM (SELECT FROM muster.%[1]s_default WHERE %[2]s >= '%[3]s' AND %[2]s < '%[4]s' LIMIT %[5]d) x",
			parent, column, from, to, mostMoved+1)).Scan(&rows, &size)
		if err != nil {
			return err
		}
		if rows > mostMoved || size > mostDefault {
			return errTooMuch
		}
	}
	if err := lockTables(ctx, tx, parents...); err != nil {
		return err
	}
	for _, parent := range parents {
		column, from, to := bounds(parent, one)
		name := pgx.Identifier{"muster", parent + "_" + one.from.Time().Format("20060102_1504")}.Sanitize()
		for _, sql := range []string{
			fmt.Sprintf("CREATE TABLE %s (LIKE muster.%s INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE)", name, parent),
			fmt.Sprintf("WITH moved AS (DELETE FROM muster.%s_default WHERE %s >= '%s' AND %s < '%s' RETURNING *) INSERT INTO %s SELECT * FROM moved",
				parent, column, from, column, to, name),
			fmt.Sprintf("ALTER TABLE muster.%s ATTACH PARTITION %s FOR VALUES FROM ('%s') TO ('%s')", parent, name, from, to),
		} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
	}
	return nil
}

// bounds is the column by which a table is partitioned, and a span of it as literals.
func bounds(parent string, one span) (column, from, to string) {
	switch parent {
	case "ticks":
		return "scheduled_at", one.from.Time().Format(time.RFC3339Nano), one.to.Time().Format(time.RFC3339Nano)
	case "attempts":
		column = "run_id"
	default:
		column = "id"
	}
	return column, firstFrom(one.from).String(), firstFrom(one.to).String()
}

// drop drops a partition of which all is old, with the attempts beside it. What must stay moves to the default partition
// in the same transaction: of a small one whatever is left, of a bulky one what was found before and what is live now.
func (r *round) drop(ctx context.Context, p *partition, all []partition, large bool) error {
	if r.before < r.ddlAfter && r.before >= r.ddlAfter.Add(-ddlPause) {
		return nil
	}
	stays, kept := "true", [][16]byte(nil)
	switch {
	case p.parent == "ticks":
		stays = fmt.Sprintf("until_at >= '%s'", r.before.Time().Format(time.RFC3339Nano))
	case large:
		kept = r.walks[p.name].kept
		if len(kept) > mostKept {
			r.ddlFailed("be dropped", p.name, p.from, fmt.Errorf("more than %d of its runs are live or ended lately", mostKept))
			delete(r.walks, p.name)
			return nil
		}
		stays = "state < 6 OR id = ANY ($1)"
	}
	gone := 0
	err := r.fenced(ctx, r.epoch, func(ctx context.Context, tx pgx.Tx) (err error) {
		gone, err = dropPartition(ctx, tx, p, attemptsOf(p, all), stays, kept, large && p.parent == "runs")
		return err
	})
	delete(r.walks, p.name)
	switch {
	case errors.Is(err, errTooMuch):
		return nil // of a small one what is left, because it ended lately, is still too much
	case job.CodeOf(err) == job.Fenced:
		return err
	case err != nil:
		r.ddlFailed("be dropped", p.name, p.from, err)
		return nil
	}
	r.cfg.Logger.Info("a partition was dropped", "table", p.name, "from", p.from.String(), "to", p.to.String(), "rows", gone)
	if large {
		r.dropped, r.left = r.dropped+gone, r.left-gone
	}
	return nil
}

// attemptsOf is the partition of attempts for the same span as one of runs, or nil.
func attemptsOf(p *partition, all []partition) *partition {
	for i := range all {
		if o := &all[i]; p.parent == "runs" && o.parent == "attempts" && !o.isDefault() && o.from == p.from && o.to == p.to {
			return o
		}
	}
	return nil
}

// dropPartition answers about how many rows went. Of a partition that was walked through, kept are those which had to stay.
func dropPartition(ctx context.Context, tx pgx.Tx, p, attempts *partition, stays string, kept [][16]byte, walked bool) (gone int, err error) {
	parents := []string{p.parent}
	if attempts != nil {
		parents = append(parents, attempts.parent)
	}
	if err := lockTables(ctx, tx, parents...); err != nil {
		return 0, err
	}
	// The default partition takes no row of a span that has a partition: so it is detached first.
	detach := func(p *partition) error {
		_, err := tx.Exec(ctx, fmt.Sprintf("ALTER TABLE muster.%s DETACH PARTITION %s", p.parent, p.table()))
		return err
	}
	if err := detach(p); err != nil {
		return 0, err
	}
	if err := tx.QueryRow(ctx, "SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = $1::text::regclass", p.table()).Scan(&gone); err != nil {
		return 0, err
	}
	var args []any
	if walked {
		args = []any{kept}
	}
	tag, err := tx.Exec(ctx, fmt.Sprintf("INSERT INTO muster.%s_default SELECT * FROM %s WHERE %s LIMIT %d", p.parent, p.table(), stays, mostKept+1), args...)
	if err != nil {
		return 0, err
	}
	stayed := int(tag.RowsAffected())
	if walked && stayed <= mostKept {
		if tag, err = tx.Exec(ctx, p.statement("tasks kept"), kept, mostKept+1); err != nil {
			return 0, err
		}
		stayed += int(tag.RowsAffected())
	}
	if stayed > mostKept {
		return 0, errTooMuch
	}
	if attempts != nil {
		if err := detach(attempts); err != nil {
			return 0, err
		}
		_, from, to := bounds("attempts", span{p.from, p.to})
		_, err := tx.Exec(ctx, fmt.Sprintf("INSERT INTO muster.attempts_default SELECT a.* FROM %s a WHERE a.run_id IN (SELECT id FROM muster.runs_default WHERE id >= '%s' AND id < '%s')",
			attempts.table(), from, to))
		if err != nil {
			return 0, err
		}
		if _, err := tx.Exec(ctx, "DROP TABLE "+attempts.table()); err != nil {
			return 0, err
		}
	}
	_, err = tx.Exec(ctx, "DROP TABLE "+p.table())
	return max(0, gone-stayed), err
}
