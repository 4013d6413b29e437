package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/musterhq/muster/internal/servers"
	"github.com/musterhq/muster/job"
)

func ofCluster(id string) func(*Config) {
	return func(c *Config) { c.ClusterID = func() string { return id } }
}

// logs collects what a store says.
type logs struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logs) to(c *Config) {
	c.Logger = slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// refused starts a store that Serve gives up on, and answers why.
func refused(t *testing.T, url string, change ...func(*Config)) *job.Error {
	t.Helper()
	s, served := start(t, url, change...)
	select {
	case err := <-served:
		if ok, _ := s.Ready(); ok || err == nil {
			t.Fatalf("Serve answered %v, ready: %v", err, ok)
		}
		_, callErr := s.Job(t.Context(), "default", "a")
		code(t, "a call", callErr, job.Unavailable)
		return job.AsError(err)
	case <-time.After(30 * time.Second):
		t.Fatal("Serve goes on trying")
		return nil
	}
}

// S11: a database that belongs to another cluster is refused in one sentence, and can be taken over.
func TestForeignStore(t *testing.T) {
	t.Parallel()
	url := database(t)
	first := openAt(t, url, ofCluster("cluster-a"))
	openAt(t, url, ofCluster("cluster-a")) // another node of it
	e := refused(t, url, ofCluster("cluster-b"))
	contains(t, "the refusal", e.Message, "cluster-a", "cluster-b", "--adopt-store")
	if e.Reason != "store_of_another_cluster" || strings.Contains(e.Message, "\n") {
		t.Errorf("refused with %+v", e)
	}

	var said logs
	second := openAt(t, url, ofCluster("cluster-b"), said.to, func(c *Config) { c.AdoptStore = true })
	contains(t, "the log", said.String(), "level=WARN", "taken over", "previous_cluster_id=cluster-a")
	wait(t, "the first cluster's store is refused", func() bool { ok, _ := first.Ready(); return !ok })
	_, why := first.Ready()
	contains(t, "why", why, "cluster-b")
	second.mustPut(t, document("a"))
	e = refused(t, url, ofCluster("cluster-a"))
	contains(t, "the refusal", e.Message, "cluster-b")
}

// S11: two clusters that find an empty database at once: one has it.
func TestClaimRace(t *testing.T) {
	t.Parallel()
	url := database(t)
	var has atomic.Int32
	var wg sync.WaitGroup
	for i := range 6 {
		s, served := start(t, url, ofCluster(fmt.Sprintf("cluster-%d", i)))
		wg.Go(func() {
			for {
				select {
				case <-served:
					return
				case <-time.After(5 * time.Millisecond):
					if ok, _ := s.Ready(); ok {
						has.Add(1)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if has.Load() != 1 {
		t.Fatalf("%d clusters have the database", has.Load())
	}
}

// A cluster whose runs are elsewhere does not take an empty database for its own, unless it is told to.
func TestEmptyStoreRefused(t *testing.T) {
	t.Parallel()
	never := func(c *Config) { c.MayClaim = func() bool { return false } }
	for _, url := range []string{database(t), servers.SharedPostgres(t).Database(t)} {
		s, _ := start(t, url, never)
		wait(t, "it is refused", func() bool { ok, why := s.Ready(); return !ok && strings.Contains(why, "--adopt-store") })
		_, err := s.Job(t.Context(), "default", "a")
		code(t, "a call", err, job.Unavailable)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		openAt(t, url, never, func(c *Config) { c.AdoptStore = true })
		openAt(t, url, never) // it is ours by now
	}
}

// A store waits for its cluster's id, and says so.
func TestClusterIDComesLater(t *testing.T) {
	t.Parallel()
	var id atomic.Value
	id.Store("")
	s, _ := start(t, database(t), func(c *Config) { c.ClusterID = func() string { return id.Load().(string) } })
	wait(t, "it says what it waits for", func() bool { _, why := s.Ready(); return strings.Contains(why, "id is not known yet") })
	id.Store("cluster-a")
	waitReady(t, s)
}

// An address that leads to another database all of a sudden is refused until it leads back: what is there is not claimed,
// not migrated and not written to, even where it is empty.
func TestAddressLeadsElsewhere(t *testing.T) {
	t.Parallel()
	pg := servers.SharedPostgres(t)
	mine, others, empty := database(t), database(t), pg.Database(t)
	other := openAt(t, others, ofCluster("cluster-b"))
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	s := openAt(t, mine)
	nameOf := func(u string) string { p, _ := url.Parse(u); return strings.TrimPrefix(p.Path, "/") }
	swap := func(a, b string) { // all that is connected is thrown out
		t.Helper()
		for _, sql := range []string{
			fmt.Sprintf("ALTER DATABASE %s ALLOW_CONNECTIONS false", a),
			fmt.Sprintf("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname IN ('%s', '%s')", a, b),
			fmt.Sprintf("ALTER DATABASE %s RENAME TO %s_tmp", a, a), fmt.Sprintf("ALTER DATABASE %s RENAME TO %s", b, a),
			fmt.Sprintf("ALTER DATABASE %s_tmp RENAME TO %s", a, b), fmt.Sprintf("ALTER DATABASE %s ALLOW_CONNECTIONS true", b),
		} {
			if _, err := pg.SQL(t.Context(), "postgres", sql); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct{ with, why string }{{nameOf(others), "cluster-b"}, {nameOf(empty), "empty"}} {
		swap(nameOf(mine), c.with)
		wait(t, "it is refused", func() bool { ok, why := s.Ready(); return !ok && strings.Contains(why, c.why) })
		_, err := s.PutJob(t.Context(), job.PutJob{ID: job.JobID(randomID(nowMs())), Spec: document("a"), At: nowMs()})
		code(t, "a call", err, job.Unavailable)
		swap(nameOf(mine), c.with)
		waitReady(t, s)
	}
	s.mustPut(t, document("a"))
	if ask[bool](t, connect(t, empty), "SELECT to_regclass('muster.cluster') IS NOT NULL") {
		t.Error("the empty database was migrated")
	}
	if jobs := ask[int](t, connect(t, others), "SELECT count(*) FROM muster.jobs"); jobs != 0 {
		t.Error("the other cluster's database was written to")
	}
}

// While Postgres is dead every call answers at once, with the reason store_unavailable, and afterwards they succeed.
func TestKilled(t *testing.T) {
	t.Parallel()
	pg := servers.NewPostgres(t, servers.PostgresOptions{})
	var said logs
	s := openAt(t, pg.URL, said.to)
	s.mustPut(t, document("a"))
	for range 2 {
		was := strings.Count(said.String(), "postgres is away")
		pg.Kill()
		began := time.Now()
		for range 200 {
			_, err := s.Job(t.Context(), "default", "a")
			e := job.AsError(err)
			if e == nil || e.Code != job.Unavailable || e.Reason != storeUnavailable {
				t.Fatalf("a call while Postgres is dead: %v", err)
			}
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Fatalf("200 calls took %s", took)
		}
		if ok, why := s.Ready(); ok || strings.Contains(why, "\n") {
			t.Fatalf("ready: %v, %q", ok, why)
		}
		wait(t, "the log says so", func() bool { return strings.Count(said.String(), "postgres is away") > was })
		if err := pg.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		waitReady(t, s)
		if _, err := s.Job(t.Context(), "default", "a"); err != nil {
			t.Fatal(err)
		}
	}
}

// A Postgres that hangs is noticed within 3 s, with calls under way and without, and no call takes longer than 5 s.
func TestHangs(t *testing.T) {
	t.Parallel()
	pg := servers.NewPostgres(t, servers.PostgresOptions{})
	s := openAt(t, pg.URL)
	s.mustPut(t, document("a"))
	for _, callers := range []int{0, 20} {
		pg.Pause()
		began := time.Now()
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				began := time.Now()
				_, err := s.Job(t.Context(), "default", "a")
				if job.CodeOf(err) != job.Unavailable || time.Since(began) > 5*time.Second {
					t.Errorf("a call took %s: %v", time.Since(began), err)
				}
			})
		}
		wait(t, "the store is away", func() bool { ok, _ := s.Ready(); return !ok })
		if took := time.Since(began); took > 3500*time.Millisecond {
			t.Errorf("noticed after %s", took)
		}
		wg.Wait()
		pg.Resume()
		waitReady(t, s)
		if _, err := s.Job(t.Context(), "default", "a"); err != nil {
			t.Fatal(err)
		}
	}
	// It can be closed while Postgres hangs.
	pg.Pause()
	began := time.Now()
	if err := s.Close(); err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("closed after %s: %v", time.Since(began), err)
	}
	pg.Resume()
}

// One connection that breaks is one call that fails at most.
func TestConnectionsEnded(t *testing.T) {
	t.Parallel()
	url := database(t)
	s, c := openAt(t, url), connect(t, url)
	s.mustPut(t, document("a"))
	for range 5 {
		if _, err := c.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"); err != nil {
			t.Fatal(err)
		}
		wait(t, "calls succeed again", func() bool { _, err := s.Job(t.Context(), "default", "a"); return err == nil })
	}
}

// A statement that waits for a lock too long fails as one that did nothing, and Postgres is not away for that.
func TestLocked(t *testing.T) {
	t.Parallel()
	url := database(t)
	s, c := openAt(t, url), connect(t, url)
	tx, err := c.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "LOCK TABLE muster.jobs IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	_, err = s.PutJob(t.Context(), job.PutJob{ID: job.JobID(randomID(nowMs())), Spec: document("a"), At: nowMs()})
	e := job.AsError(err)
	if e == nil || e.Code != job.Unavailable || !strings.Contains(e.Message, "55P03") {
		t.Fatalf("a call that waits for a lock: %v", err)
	}
	if ok, why := s.Ready(); !ok {
		t.Fatalf("away: %s", why)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.mustPut(t, document("a"))
}

func TestServerThatWillNotDo(t *testing.T) {
	t.Parallel()
	pg := servers.SharedPostgres(t)
	ascii := pg.Database(t)
	u, err := url.Parse(ascii)
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{"DROP DATABASE " + u.Path[1:], "CREATE DATABASE " + u.Path[1:] + " ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0 OWNER muster"} {
		if _, err := pg.SQL(t.Context(), "postgres", sql); err != nil {
			t.Fatal(err)
		}
	}
	contains(t, "the refusal", refused(t, ascii).Message, "SQL_ASCII", "UTF8")

	s, _ := start(t, with(t, database(t), "default_transaction_read_only", "on"))
	wait(t, "a standby is refused", func() bool { ok, why := s.Ready(); return !ok && strings.Contains(why, "read-only") })
}

// A password is in no error, no reason and no log, whatever is wrong with the address.
func TestPasswordsStayIn(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3t"
	good, err := url.Parse(database(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{
		"postgres://u:" + secret + "@host:port/db", "postgres://u:" + secret + "%zz@host/db", "postgres://u:" + secret + "@@host]/db?x=%",
		"host=h password='" + secret, "host=h password=" + secret + " port=x", "postgres://u:" + secret + "@h/db?sslmode=never", "://" + secret, secret, "",
		"postgres://u:" + secret + "@h/db?connect_timeout=" + secret,
	} {
		_, err := New(Config{URL: address, ClusterID: func() string { return "c" }})
		if address == secret && err == nil {
			continue // the name of a database
		}
		if job.CodeOf(err) != job.Invalid || strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, errors.Unwrap(err)), secret) {
			t.Errorf("%q: %v", address, err)
		}
	}
	closed := "127.0.0.1:1"
	for what, change := range map[string]func(*url.URL){
		"a wrong password": func(u *url.URL) { u.User = url.UserPassword(u.User.Username(), secret) },
		"nobody there":     func(u *url.URL) { u.User, u.Host = url.UserPassword("u", secret), closed },
		"no such database": func(u *url.URL) { u.Path = "/none" },
		"no such host":     func(u *url.URL) { u.User, u.Host = url.UserPassword("u", secret), "no-such-host.invalid:5432" },
	} {
		u := *good
		change(&u)
		password, _ := u.User.Password()
		var said logs
		s, _ := start(t, u.String(), said.to)
		wait(t, what+" is logged", func() bool { return strings.Contains(said.String(), "postgres is away") })
		_, why := s.Ready()
		_, err := s.Job(t.Context(), "default", "a")
		_, statusErr := Status(t.Context(), u.String())
		for _, text := range []string{said.String(), why, fmt.Sprintf("%v %+v", err, err), fmt.Sprintf("%v %+v", statusErr, statusErr)} {
			if strings.Contains(text, password) {
				t.Errorf("%s: the password is in %q", what, text)
			}
		}
		code(t, "a call with "+what, err, job.Unavailable)
		if strings.Contains(why, "\n") || strings.Count(why, closed) > 2 { // with TLS and without is said once
			t.Errorf("%s takes more than a line: %q", what, why)
		}
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	s, err := New(Config{URL: "postgres://u@127.0.0.1:1/db", ClusterID: func() string { return "c" }})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Serve(context.Background()); err != nil {
		t.Fatalf("Serve after Close: %v", err)
	}
	code(t, "Serve twice", s.Serve(context.Background()), job.Internal)
	_, err = s.Job(t.Context(), "default", "a")
	code(t, "a call after Close", err, job.Unavailable)

	opened, served := start(t, database(t))
	waitReady(t, opened)
	if err := opened.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Fatalf("Serve: %v", err)
	}
	if ok, why := opened.Ready(); ok || why == "" {
		t.Fatal("it is ready after Close")
	}
}

// What an error of the driver means depends on whether a commit was sent.
func TestMapError(t *testing.T) {
	t.Parallel()
	server := func(code, severity string) error {
		return fmt.Errorf("query: %w", &pgconn.PgError{Code: code, Severity: severity, Message: "text"})
	}
	for _, c := range []struct {
		name         string
		err          error
		read, commit job.Code
	}{
		{"nothing", nil, "", ""},
		{"ours", job.Errorf(job.NotFound, "job", "no"), job.NotFound, job.NotFound},
		{"serialization", server("40001", "ERROR"), job.Unavailable, job.Unavailable},
		{"deadlock", server("40P01", "ERROR"), job.Unavailable, job.Unavailable},
		{"a lock not had in time", server("55P03", "ERROR"), job.Unavailable, job.Unavailable},
		{"cancelled by its timeout", server("57014", "ERROR"), job.Unavailable, job.Unavailable},
		{"shut down", server("57P01", "FATAL"), job.Unavailable, job.Unknown},
		{"crashed", server("57P02", "FATAL"), job.Unavailable, job.Unknown},
		{"a disk that is full", server("53100", "ERROR"), job.Unavailable, job.Unavailable},
		{"read only", server("25006", "ERROR"), job.Unavailable, job.Unavailable},
		{"fenced", server("MU001", "ERROR"), job.Fenced, job.Fenced},
		{"taken over", server("MU002", "ERROR"), job.Fenced, job.Fenced},
		{"a NUL in a text", server("22021", "ERROR"), job.Invalid, job.Invalid},
		{"a constraint", server("23514", "ERROR"), job.Invalid, job.Invalid},
		{"a row too large for its index", server("54000", "ERROR"), job.Invalid, job.Invalid},
		{"a statement of ours that is wrong", server("42601", "ERROR"), job.Internal, job.Internal},
		{"a right that was taken away", server("42501", "ERROR"), job.Unavailable, job.Unavailable},
		{"a table that is gone", server("42P01", "ERROR"), job.Unavailable, job.Unavailable},
		{"an index that is broken", server("XX002", "ERROR"), job.Unavailable, job.Unavailable},
		{"no time left", fmt.Errorf("x: %w", context.DeadlineExceeded), job.Unavailable, job.Unknown},
		{"given up", context.Canceled, job.Unavailable, job.Unknown},
		{"reset", &net.OpError{Op: "read", Err: syscall.ECONNRESET}, job.Unavailable, job.Unknown},
		{"closed", net.ErrClosed, job.Unavailable, job.Unknown},
		{"a value that cannot be encoded", errors.New("cannot encode"), job.Internal, job.Unknown},
	} {
		if got := job.CodeOf(mapError(c.err)); got != c.read {
			t.Errorf("%s: %q, want %q", c.name, got, c.read)
		}
		if got := job.CodeOf(mapError(unsure(c.err))); got != c.commit {
			t.Errorf("%s when a commit was sent: %q, want %q", c.name, got, c.commit)
		}
	}
}

// What Postgres asks to be repeated is repeated.
func TestSerializationIsRepeated(t *testing.T) {
	t.Parallel()
	s := open(t)
	tries := 0
	err := s.transact(t.Context(), reading, func(ctx context.Context, tx pgx.Tx) error {
		if tries++; tries < 4 {
			_, err := tx.Exec(ctx, "DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$")
			return err
		}
		return nil
	})
	if err != nil || tries != 4 {
		t.Fatalf("%d tries, %v", tries, err)
	}
}
