package postgres

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/internal/servers"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/migrations"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The schema that all migrations make of an empty database is the one in testdata: a change of it is seen in a review.
func TestSchema(t *testing.T) {
	t.Parallel()
	c := connect(t, database(t))
	got := ask[string](t, c, `SELECT string_agg(line, E'\n') || E'\n' FROM (
		SELECT format('column %s.%s %s%s%s%s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
			CASE WHEN a.attnotnull THEN ' NOT NULL' END, CASE WHEN l.collname <> 'default' THEN ' COLLATE ' || l.collname END,
			CASE WHEN a.attidentity <> '' THEN ' IDENTITY' ELSE ' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid) END) AS line, c.relname AS o, '1' || to_char(a.attnum, '000') AS n
		FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum LEFT JOIN pg_collation l ON l.oid = a.attcollation
		WHERE c.relnamespace = 'muster'::regnamespace AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped AND c.relname NOT LIKE '%\_default'
		UNION ALL
		SELECT format('%s %s: %s', CASE c.relkind WHEN 'p' THEN 'partitioned table' ELSE 'table' END, c.relname,
			coalesce(pg_get_partkeydef(c.oid), pg_get_expr(c.relpartbound, c.oid), 'plain')), c.relname, '0'
		FROM pg_class c WHERE c.relnamespace = 'muster'::regnamespace AND c.relkind IN ('r', 'p')
		UNION ALL
		SELECT pg_get_indexdef(i.indexrelid), c.relname, '2' || x.relname
		FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_class x ON x.oid = i.indexrelid WHERE c.relnamespace = 'muster'::regnamespace AND c.relname NOT LIKE '%\_default'
		UNION ALL
		SELECT format('constraint %s.%s %s', c.relname, k.conname, pg_get_constraintdef(k.oid)), c.relname, '3' || k.conname
		FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid WHERE k.connamespace = 'muster'::regnamespace AND c.relname NOT LIKE '%\_default'
		UNION ALL
		SELECT format('function %s(%s) returns %s', p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid)), p.proname, '4'
		FROM pg_proc p WHERE p.pronamespace = 'muster'::regnamespace
		ORDER BY o, n) x`)
	file := filepath.Join("testdata", "schema.golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		gotLines, wantLines := strings.Split(got, "\n"), strings.Split(string(want), "\n")
		for i := range max(len(gotLines), len(wantLines)) {
			line := func(l []string) string {
				if i < len(l) {
					return l[i]
				}
				return "(nothing)"
			}
			if g, w := line(gotLines), line(wantLines); g != w {
				t.Fatalf("line %d of the schema is\n%s\nand in %s it is\n%s\nIf this is meant: go test ./storage/postgres -run TestSchema -update", i+1, g, file, w)
			}
		}
	}
}

// Migrations are numbered without a gap, each says what it is for, and known reads all of their names.
func TestMigrationNames(t *testing.T) {
	t.Parallel()
	files, err := fs.Glob(migrations.Files, "*.sql")
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range known() {
		text, err := fs.ReadFile(migrations.Files, files[i])
		if err != nil || m.Version != int64(i+1) || m.Name == "" || !strings.HasPrefix(string(text), "-- +goose Up\n-- ") || strings.Contains(string(text), "+goose Down") {
			t.Errorf("%s: %+v, %v", files[i], m, err)
		}
	}
}

// Five nodes that start at once on an empty database: each migration is applied once, and all become ready.
func TestMigratedOnce(t *testing.T) {
	t.Parallel()
	url := servers.SharedPostgres(t).Database(t)
	var nodes []*Store
	for range 5 {
		s, _ := start(t, url)
		nodes = append(nodes, s)
	}
	for _, s := range nodes {
		waitReady(t, s)
	}
	c := connect(t, url)
	if n := ask[int](t, c, "SELECT count(*) FROM muster.migrations WHERE version_id > 0"); n != len(known()) {
		t.Errorf("%d migrations were applied; there are %d", n, len(known()))
	}
	if n := ask[int](t, c, "SELECT count(*) FROM muster.cluster"); n != 1 {
		t.Errorf("the database belongs to %d clusters", n)
	}
}

func TestMigrateByHand(t *testing.T) {
	t.Parallel()
	url := servers.SharedPostgres(t).Database(t)
	byHand := func(c *Config) { c.Migrate = false }
	pending := func() (n int) {
		t.Helper()
		steps, err := Status(t.Context(), url)
		if err != nil || len(steps) != len(known()) {
			t.Fatalf("status: %+v, %v", steps, err)
		}
		for _, m := range steps {
			if m.AppliedAt.IsZero() {
				n++
			}
		}
		return n
	}
	contains(t, "the refusal of an empty database", refused(t, url, byHand).Message, "`muster migrate up`", "version 0")
	if n := pending(); n != len(known()) {
		t.Fatalf("%d migrations are pending", n)
	}
	for _, want := range []int{len(known()), 0} {
		done, err := Migrate(t.Context(), url)
		if err != nil || len(done) != want || want > 0 && done[0].Name != known()[0].Name {
			t.Fatalf("migrated %+v, %v", done, err)
		}
	}
	if n := pending(); n != 0 {
		t.Fatalf("%d migrations are pending", n)
	}
	openAt(t, url, byHand)

	// A newer schema than this release knows: nodes of both releases run side by side during an upgrade.
	c := connect(t, url)
	if _, err := c.Exec(t.Context(), "INSERT INTO muster.migrations (version_id, is_applied) VALUES ($1, true)", newest()+1); err != nil {
		t.Fatal(err)
	}
	for _, migrate := range []bool{false, true} {
		openAt(t, url, func(c *Config) { c.Migrate = migrate })
	}
	steps, err := Status(t.Context(), url)
	if err != nil || len(steps) != len(known())+1 || steps[len(known())].Version != newest()+1 || steps[len(known())].AppliedAt.IsZero() {
		t.Fatalf("status: %+v, %v", steps, err)
	}
	// One that took away what this release uses.
	setOldest := func(version int64) {
		if _, err := c.Exec(t.Context(), fmt.Sprintf("CREATE OR REPLACE FUNCTION muster.oldest_schema() RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT %d::bigint'", version)); err != nil {
			t.Fatal(err)
		}
	}
	setOldest(newest() + 1)
	contains(t, "the refusal of a schema that is too new", refused(t, url).Message, "newer release")
	setOldest(newest())
	// An older one.
	if _, err := c.Exec(t.Context(), "DELETE FROM muster.migrations WHERE version_id >= $1", newest()); err != nil {
		t.Fatal(err)
	}
	contains(t, "the refusal of an old schema", refused(t, url, byHand).Message, "`muster migrate up`")
}

// A database of the release before: a node does not run on it as it is, and what is in it is the same afterwards. Its runs
// have none of the new fields, and an edge that it has is judged as a new one.
func TestMigrateWithData(t *testing.T) {
	t.Parallel()
	url := servers.SharedPostgres(t).Database(t)
	cfg, err := parseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := migrateTo(t.Context(), cfg.ConnConfig, 1); err != nil {
		t.Fatal(err)
	}
	c := connect(t, url)
	at := nowMs()
	up, down, r := job.JobID(randomID(at)), job.JobID(randomID(at)), aRun(at)
	for _, sql := range []string{
		fmt.Sprintf("INSERT INTO muster.jobs (id, namespace, name, version, created_at, updated_at) VALUES ('%s', 'default', 'up', 1, now(), now()), ('%s', 'default', 'down', 1, now(), now())", up, down),
		`INSERT INTO muster.job_versions (job_id, version, from_at, created_at, document) SELECT id, 1, now(), now(), '{"name": "' || name || '", "namespace": "default", "exec": {"command": ["x"]}}' FROM muster.jobs`,
		fmt.Sprintf("INSERT INTO muster.job_dependencies (job_id, upstream_id, on_end) VALUES ('%s', '%s', 1)", down, up),
		fmt.Sprintf(`INSERT INTO muster.runs (id, namespace, job_id, job, job_version, trigger, state, priority, created_at, finished_at, payload, lane_hash, lane_order)
			VALUES ('%s', 'default', '%s', 'up', 1, 1, 6, 5, '%s', '%[3]s', '{"a": 1}', 0, 0)`, r.ID, up, at.Time().Format(time.RFC3339Nano)),
	} {
		if _, err := c.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	contains(t, "the refusal", refused(t, url, func(c *Config) { c.Migrate = false }).Message, "version 1", "needs 2", "`muster migrate up`")
	// Whoever reads the tables for long, as a dump does, is not waited for by everybody: it is tried again.
	dump, err := c.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dump.Exec(t.Context(), "SELECT count(*) FROM muster.runs"); err != nil {
		t.Fatal(err)
	}
	_, err = Migrate(t.Context(), url)
	code(t, "migrate beside a dump", err, job.Unavailable)
	contains(t, "the reason", err.Error(), "lock timeout")
	if err := dump.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := raised(t, url)
	got := load(t, s, r.ID)[0]
	want := &job.Run{ID: r.ID, Namespace: "default", JobID: up, Job: "up", JobVersion: 1, Trigger: job.ByAPI, State: job.Succeeded, Priority: 5,
		CreatedAt: at, FinishedAt: at, Payload: []byte(`{"a": 1}`), Home: job.HomePostgres}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if born := s.mustFire(t); len(born) != 1 || born[0].JobID != down || born[0].Upstreams[0].RunID != r.ID {
		t.Errorf("born: %v", born)
	}
}

// A role that may not make schemas uses the one that an administrator made.
func TestSchemaMadeByAdministrator(t *testing.T) {
	t.Parallel()
	pg := servers.SharedPostgres(t)
	url := pg.Database(t)
	for _, sql := range []string{"CREATE SCHEMA muster AUTHORIZATION muster", "DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || ' OWNER TO postgres; REVOKE CREATE ON DATABASE ' || current_database() || ' FROM muster, public'; END $$"} {
		if _, err := pg.SQL(t.Context(), url, sql); err != nil {
			t.Fatal(err)
		}
	}
	openAt(t, url).mustPut(t, document("a"))
}

// A schema that somebody else made, and a role that may make none, are refused with what to do about it.
func TestSchemaCannotBeMade(t *testing.T) {
	t.Parallel()
	pg := servers.SharedPostgres(t)
	for _, c := range []struct{ name, sql, why string }{
		{"others' tables", "CREATE SCHEMA muster AUTHORIZATION muster; CREATE TABLE muster.jobs (x text)", "not as Muster makes it"},
		{"another list of migrations", "CREATE SCHEMA muster AUTHORIZATION muster; CREATE TABLE muster.migrations (x text); ALTER TABLE muster.migrations OWNER TO muster", "not as Muster makes it"},
		{"a schema of another role", "CREATE SCHEMA muster", "owner of the database"},
		{"no right to make one", "DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || ' OWNER TO postgres; REVOKE CREATE ON DATABASE ' || current_database() || ' FROM muster, public'; END $$", "owner of the database"},
	} {
		url := pg.Database(t)
		if _, err := pg.SQL(t.Context(), url, c.sql); err != nil {
			t.Fatal(err)
		}
		_, err := Migrate(t.Context(), url)
		code(t, c.name, err, job.Internal)
		contains(t, c.name, job.AsError(err).Message, c.why, "Postgres says: ")
		s, _ := start(t, url)
		wait(t, c.name+" is refused", func() bool {
			ok, why := s.Ready()
			return !ok && strings.Contains(why, c.why) && !strings.Contains(why, "\n")
		})
	}
}
