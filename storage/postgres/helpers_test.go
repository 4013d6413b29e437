package postgres

import (
	"context"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/musterhq/muster/internal/servers"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testCluster = "cluster-under-test"

// database is a new database with the schema and no rows, and nobody's yet.
func database(t *testing.T) (url string) {
	t.Helper()
	pg := servers.SharedPostgres(t)
	template := pg.Template(t, "migrated", func(url string) error {
		_, err := Migrate(context.Background(), url)
		return err
	})
	return pg.Clone(t, template)
}

// open is a store on a database of its own, ready, and closed with the test.
func open(t *testing.T, change ...func(*Config)) *Store {
	t.Helper()
	return openAt(t, database(t), change...)
}

// openAt is a store on a given database, as one node of several has it.
func openAt(t *testing.T, url string, change ...func(*Config)) *Store {
	t.Helper()
	s, _ := start(t, url, change...)
	waitReady(t, s)
	return s
}

// start runs a store, which need not become ready. The channel answers what Serve returns.
func start(t *testing.T, url string, change ...func(*Config)) (*Store, <-chan error) {
	t.Helper()
	cfg := Config{URL: url, ClusterID: func() string { return testCluster }, Migrate: true}
	for _, c := range change {
		c(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background()) }()
	t.Cleanup(func() { _ = s.Close() })
	return s, served
}

func waitReady(t *testing.T, s *Store) {
	t.Helper()
	wait(t, "the store is ready", func() bool { ok, _ := s.Ready(); return ok })
}

// wait looks until something is so.
func wait(t *testing.T, what string, so func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !so() {
		if time.Now().After(deadline) {
			t.Fatalf("not so after 30 s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// connect is a connection past the store, for looking at its tables.
func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

// ask reads one value past the store.
func ask[T any](t *testing.T, c *pgx.Conn, query string, args ...any) (v T) {
	t.Helper()
	if err := c.QueryRow(t.Context(), query, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v
}

// with is a URL with another parameter.
func with(t *testing.T, address, key, value string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set(key, value)
	u.RawQuery = q.Encode()
	return u.String()
}

func code(t *testing.T, what string, err error, want job.Code) {
	t.Helper()
	if job.CodeOf(err) != want {
		t.Fatalf("%s: %v, want the code %q", what, err, want)
	}
}

func contains(t *testing.T, what, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Fatalf("%s is %q, without %q", what, text, p)
		}
	}
}

var _ storage.Store = (*Store)(nil)
