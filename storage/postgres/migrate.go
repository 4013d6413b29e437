package postgres

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/migrations"
)

// migrationsTable is where goose keeps what it applied.
const migrationsTable = "muster.migrations"

// migrationLock is the advisory lock of whoever migrates; others wait for it.
const migrationLock int64 = 7236829178463983

// Migration is one step of the schema.
type Migration struct {
	Version   int64
	Name      string
	AppliedAt time.Time // zero: not yet
}

// Migrate brings the schema of a database up to date and answers what it did, for `muster migrate up`. Several at once
// wait for each other, and nodes may run meanwhile.
func Migrate(ctx context.Context, url string) ([]Migration, error) {
	cfg, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	done, err := migrate(ctx, cfg.ConnConfig)
	return done, mapError(err)
}

// Status answers the steps of the schema that this release knows, and when each was applied to a database, and then those
// that a newer release applied, which have no name here, for `muster migrate status`. It changes nothing.
func Status(ctx context.Context, url string) ([]Migration, error) {
	cfg, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, setUpTimeout)
	defer cancel()
	c, err := pgx.ConnectConfig(ctx, cfg.ConnConfig)
	if err != nil {
		return nil, mapError(err)
	}
	defer func() { _ = c.Close(ctx) }() // nothing is under way
	steps := known()
	var there bool
	if err := c.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", migrationsTable).Scan(&there); err != nil || !there {
		return steps, mapError(unreadable(err))
	}
	rows, err := c.Query(ctx, "SELECT version_id, tstamp AT TIME ZONE current_setting('TimeZone') FROM "+migrationsTable+" WHERE is_applied ORDER BY id")
	if err != nil {
		return nil, mapError(unreadable(err))
	}
	var version int64
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&version, &at}, func() error {
		i, ok := slices.BinarySearchFunc(steps, version, func(m Migration, v int64) int { return cmp.Compare(m.Version, v) })
		switch {
		case ok:
			steps[i].AppliedAt = at.UTC()
		case version > 0: // goose begins with a row 0
			steps = slices.Insert(steps, i, Migration{Version: version, AppliedAt: at.UTC()})
		}
		return nil
	})
	return steps, mapError(unreadable(err))
}

// known is the steps that this release has, in order.
func known() []Migration {
	files, err := fs.Glob(migrations.Files, "*.sql")
	if err != nil {
		panic(err) // of a constant pattern
	}
	var steps []Migration
	for _, f := range files {
		number, name, _ := strings.Cut(strings.TrimSuffix(path.Base(f), ".sql"), "_")
		version, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			panic(err) // TestMigrationNames looks at all of them
		}
		steps = append(steps, Migration{Version: version, Name: name})
	}
	slices.SortFunc(steps, func(a, b Migration) int { return cmp.Compare(a.Version, b.Version) })
	return steps
}

// newest is the version of the schema that this release is written for.
func newest() int64 {
	steps := known()
	return steps[len(steps)-1].Version
}

// checkSchema brings the schema to where this release needs it, or refuses it. A newer one than this release knows is
// fine, since nodes of two releases run side by side during an upgrade, until a migration took away what this release
// uses: such a one says so in muster.oldest_schema (package migrations).
func (s *Store) checkSchema(ctx context.Context, c *pgx.Conn) error {
	have, err := schemaVersion(ctx, c)
	if err != nil {
		return err
	}
	switch want := newest(); {
	case have > want:
		var oldest int64
		if err := c.QueryRow(ctx, "SELECT muster.oldest_schema()").Scan(&oldest); err != nil {
			return err
		}
		if oldest > want {
			return refuse("schema_new", "the schema of this Postgres database is at version %d and needs a release that knows version %d; this one knows %d: use a newer release", have, oldest, want)
		}
		s.cfg.Logger.Info("the schema is newer than this release knows, which is fine during an upgrade", "schema", have, "known", want)
		return nil
	case have == want:
		return nil
	case !s.cfg.Migrate:
		return refuse("schema_old", "the schema of this Postgres database is at version %d, and this release needs %d: run `muster migrate up`", have, want)
	}
	done, err := migrate(ctx, s.parsed.ConnConfig)
	for _, m := range done {
		s.cfg.Logger.Info("a migration was applied to postgres", "version", m.Version, "name", m.Name)
	}
	return err
}

// schemaVersion is 0 for a database without Muster's schema.
func schemaVersion(ctx context.Context, c *pgx.Conn) (version int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, setUpTimeout)
	defer cancel()
	var there bool
	if err := c.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", migrationsTable).Scan(&there); err != nil || !there {
		return 0, unreadable(err)
	}
	err = c.QueryRow(ctx, "SELECT coalesce(max(version_id), 0) FROM "+migrationsTable+" WHERE is_applied").Scan(&version)
	return version, unreadable(err)
}

// migrate applies what is missing.
func migrate(ctx context.Context, cfg *pgx.ConnConfig) ([]Migration, error) {
	return migrateTo(ctx, cfg, newest())
}

func migrateTo(ctx context.Context, cfg *pgx.ConnConfig, version int64) (done []Migration, err error) {
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockID(migrationLock), lock.WithLockTimeout(1, 600), lock.WithUnlockTimeout(1, 5))
	if err != nil {
		return nil, err
	}
	db := stdlib.OpenDB(*cfg.Copy())
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := makeSchema(ctx, db); err != nil {
		return nil, unableToMigrate(err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, migrations.Files, goose.WithTableName(migrationsTable),
		goose.WithSessionLocker(locker), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return nil, err
	}
	results, err := provider.UpTo(ctx, version)
	for _, r := range results {
		name := strings.TrimSuffix(path.Base(r.Source.Path), ".sql")
		_, name, _ = strings.Cut(name, "_")
		done = append(done, Migration{Version: r.Source.Version, Name: name, AppliedAt: time.Now().UTC()})
	}
	if err != nil {
		return done, unableToMigrate(err)
	}
	return done, nil
}

func unableToMigrate(err error) error {
	return schemaError("the schema could not be brought up to date", err)
}

func unreadable(err error) error {
	return schemaError("what was applied to this database cannot be read", err)
}

// schemaError says what to do besides what is wrong, where a role may not do it, or where there is a schema already that
// somebody else made or changed.
func schemaError(what string, err error) error {
	var pg *pgconn.PgError
	var why string
	switch {
	case err == nil:
		return nil
	case errors.As(err, &pg) && pg.Code == "42501":
		why = sentence(err) + "; make the role the owner of the database, or run `muster migrate up` as one who may with ?role= in the URL"
	case pg != nil && strings.HasPrefix(pg.Code, "42"):
		why = sentence(err) + "; the schema muster of this database is not as Muster makes it: use another database, or drop that schema if nobody needs it"
	case job.CodeOf(mapError(err)) == job.Unavailable:
		return err
	case pg != nil:
		why = sentence(err)
	default:
		why = oneLine(err.Error())
	}
	return &job.Error{Code: job.Internal, Reason: "migration", Message: what + ": " + why, Cause: err}
}

// makeSchema makes the schema first: goose's own table is in it. An administrator may have made it, for a role that may not.
func makeSchema(ctx context.Context, db *sql.DB) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	var there bool
	if _, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock($1)", migrationLock+1); err != nil {
		return err
	}
	err = tx.QueryRowContext(ctx, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'muster')").Scan(&there)
	if err != nil || there {
		return err
	}
	if _, err := tx.ExecContext(ctx, "CREATE SCHEMA muster"); err != nil {
		return err
	}
	return tx.Commit()
}
