package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/musterhq/muster/job"
)

// Scratch is a database that is empty and is emptied again: what a benchmark works on.
type Scratch struct{ url string }

// OpenScratch takes a database that has never been a store, and answers what its server says of itself. It refuses one
// that has: what is in it is somebody's.
func OpenScratch(ctx context.Context, url string) (*Scratch, string, error) {
	s := &Scratch{url}
	about := ""
	err := s.connected(ctx, func(c *pgx.Conn) error {
		var there bool
		var version, fsync, commit, pages, buffers, wal string
		err := c.QueryRow(ctx, `SELECT to_regnamespace('muster') IS NOT NULL, current_setting('server_version'), current_setting('fsync'),
			current_setting('synchronous_commit'), current_setting('full_page_writes'), current_setting('shared_buffers'),
			current_setting('max_wal_size')`).Scan(&there, &version, &fsync, &commit, &pages, &buffers, &wal)
		if err != nil {
			return err
		}
		if there {
			return job.Errorf(job.Conflict, "not_empty", "this database holds a Muster's state already, which would be lost; name an empty database")
		}
		about = fmt.Sprintf("PostgreSQL %s (fsync %s, synchronous_commit %s, full_page_writes %s, shared_buffers %s, max_wal_size %s)",
			version, fsync, commit, pages, buffers, wal)
		return nil
	})
	if err != nil {
		return nil, "", err
	}
	return s, about, nil
}

// Empty removes all that a node put there. No node may be connected.
func (s *Scratch) Empty(ctx context.Context) error {
	return s.connected(ctx, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, "DROP SCHEMA IF EXISTS muster CASCADE")
		return err
	})
}

// Counters answers what the server has done so far for this database: its transactions, as of about a second ago, and the
// bytes it has written ahead, for all databases.
func (s *Scratch) Counters(ctx context.Context) (transactions, walBytes float64, err error) {
	err = s.connected(ctx, func(c *pgx.Conn) error {
		return c.QueryRow(ctx, `SELECT xact_commit + xact_rollback, (pg_current_wal_lsn() - '0/0'::pg_lsn)::float8
			FROM pg_stat_database WHERE datname = current_database()`).Scan(&transactions, &walBytes)
	})
	return transactions, walBytes, err
}

func (s *Scratch) connected(ctx context.Context, do func(c *pgx.Conn) error) error {
	cfg, err := parseURL(s.url)
	if err != nil {
		return err
	}
	c, err := pgx.ConnectConfig(ctx, cfg.ConnConfig)
	if err != nil {
		return mapError(err)
	}
	defer c.Close(context.WithoutCancel(ctx))
	return mapError(do(c))
}
