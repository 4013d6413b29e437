//go:build unix

package servers

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// childVariable makes this test's binary a process that starts servers and waits to be killed.
const childVariable = "MUSTER_TEST_SERVERS_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		child()
	}
	goleak.VerifyTestMain(m)
}

func child() {
	p, err := sharedPostgres()
	if err != nil {
		panic(err)
	}
	r, err := sharedRedis()
	if err != nil {
		panic(err)
	}
	r.Pause() // what is stopped ends, too
	fmt.Println(p.PID(), r.PID(), p.Dir(), r.Dir(), p.port, r.port)
	time.Sleep(time.Hour)
}

// Servers end with their process, although nobody told them, and leave nothing behind.
func TestServersEndWithTheirProcess(t *testing.T) {
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), childVariable+"=1")
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var pids [2]int
	var dirs, ports [2]string
	_, err = fmt.Fscan(out, &pids[0], &pids[1], &dirs[0], &dirs[1], &ports[0], &ports[1])
	c.Process.Kill()
	c.Wait()
	if err != nil {
		t.Fatal(err)
	}
	for i := range pids {
		if pids[i] < 2 || dirs[i] == "" {
			t.Fatalf("process %d in %q", pids[i], dirs[i])
		}
		deadline := time.Now().Add(30 * time.Second)
		for time.Now().Before(deadline) {
			if _, err := os.Stat(dirs[i]); os.IsNotExist(err) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if _, err := os.Stat(dirs[i]); err == nil {
			t.Errorf("%s is still there", dirs[i])
		}
		if conn, err := net.Dial("tcp", host+":"+ports[i]); err == nil {
			conn.Close()
			t.Errorf("something listens on port %s", ports[i])
		}
	}
}

func TestDatabases(t *testing.T) {
	t.Parallel()
	p := SharedPostgres(t)
	ctx := t.Context()
	fills := 0
	fill := func(url string) error {
		fills++
		_, err := p.SQL(ctx, url, "CREATE TABLE word (w text); INSERT INTO word VALUES ('hello')")
		return err
	}
	a, template := p.Database(t), p.Template(t, "words", fill)
	if again := p.Template(t, "words", fill); again != template || fills != 1 {
		t.Errorf("the template was made %d times, as %s and %s", fills, template, again)
	}
	b := p.Clone(t, template)
	if got, err := p.SQL(ctx, a, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"); err != nil || got != "0" {
		t.Errorf("a fresh database has %s tables, %v", got, err)
	}
	if got, err := p.SQL(ctx, b, "SELECT w FROM word"); err != nil || got != "hello" {
		t.Errorf("the clone has %q, %v", got, err)
	}
	// The URL is for one who owns the database, and nothing else.
	psql := exec.Command(filepath.Join(p.bin, "psql"), "-XqAt", a, "-c", "CREATE TABLE mine (); SELECT rolsuper, rolcreatedb, current_database() FROM pg_roles WHERE rolname = current_user")
	if out, err := psql.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "f|f|"+nameOf(a) {
		t.Errorf("psql answers %q, %v", out, err)
	}
	// And it needs the password.
	psql = exec.Command(filepath.Join(p.bin, "psql"), "-XqAtw", "-h", host, "-p", p.port.String(), "-U", root, "-d", root, "-c", "SELECT 1")
	psql.Env = []string{"HOME=/nonexistent"}
	if out, err := psql.CombinedOutput(); err == nil {
		t.Errorf("without a password psql answers %q", out)
	}
}

func TestPostgresLives(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	p := NewPostgres(t, PostgresOptions{Host: "127.0.0.2", Durable: true, Settings: map[string]string{"max_connections": "17"}})
	db := p.Database(t)
	sql := func(statement, want string) {
		t.Helper()
		if got, err := p.SQL(ctx, db, statement); err != nil || got != want {
			t.Fatalf("%s = %q, %v; want %q", statement, got, err, want)
		}
	}
	sql("SHOW max_connections", "17")
	sql("SHOW fsync", "on")
	sql("CREATE TABLE n (n int)", "")
	for i, end := range []func(){p.Kill, func() { p.Stop() }, func() {
		// A crash that nobody has ordered.
		killProcess(t, p.PID())
		for p.PID() != 0 {
			time.Sleep(time.Millisecond)
		}
	}} {
		sql(fmt.Sprintf("INSERT INTO n VALUES (%d)", i), "")
		pid := p.PID()
		end()
		if p.PID() != 0 {
			t.Fatal("it goes on")
		}
		if _, err := p.SQL(ctx, db, "SELECT 1"); err == nil {
			t.Fatal("it still answers")
		}
		if err := p.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if p.PID() == pid {
			t.Fatal("it is the same process")
		}
		sql("SELECT count(*) FROM n", strconv.Itoa(i+1))
	}
	p.Pause()
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	if _, err := p.SQL(short, db, "SELECT 1"); err == nil {
		t.Error("it answers although it is paused")
	}
	cancel()
	p.Resume()
	sql("SELECT 1", "1")
}

func TestRedisLives(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	r := NewRedis(t, RedisOptions{Host: "127.0.0.2", Args: []string{"--maxmemory", "20mb"}})
	do := func(want string, command ...string) {
		t.Helper()
		if got, err := r.Do(ctx, command...); err != nil || got != want {
			t.Fatalf("%s = %q, %v; want %q", command, got, err, want)
		}
	}
	do("2", "CONFIG", "GET", "maxmemory")
	do("OK", "SET", "a", "1")
	if err := r.Save(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(r.DumpFile); err != nil {
		t.Error(err)
	}
	do("OK", "SET", "a", "2")
	r.Kill()
	if err := r.Start(ctx); err != nil {
		t.Fatal(err)
	}
	do("1", "GET", "a") // as it was saved
	if err := r.FlushAll(ctx); err != nil {
		t.Fatal(err)
	}
	do("", "GET", "a")
	r.Pause()
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	if _, err := r.Do(short, "PING"); err == nil {
		t.Error("it answers although it is paused")
	}
	cancel()
	r.Resume()
	do("PONG", "PING")
	if err := r.Stop(); err != nil {
		t.Error(err)
	}
	if err := os.Remove(r.DumpFile); err != nil {
		t.Error(err)
	}
	if err := r.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Do(ctx, "NOSUCHCOMMAND"); err == nil {
		t.Error("an error is none")
	}
}

// What is in a directory goes on with the next process, on the same port and with the same password.
func TestDirectoriesStay(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dir, err := os.MkdirTemp("", "muster-servers-test-") // such as others may enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var pURL, rURL string
	for i := range 2 {
		p, err := StartPostgres(ctx, PostgresOptions{Dir: filepath.Join(dir, "postgres"), Durable: true})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		r, err := StartRedis(ctx, RedisOptions{Dir: filepath.Join(dir, "redis")})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if i == 0 {
			_, err = p.SQL(ctx, p.URL, "CREATE TABLE kept ()")
			pURL, rURL = p.URL, r.URL
		} else {
			_, err = p.SQL(ctx, p.URL, "SELECT * FROM kept")
		}
		if err != nil {
			t.Error(err)
		}
		if p.URL != pURL || r.URL != rURL {
			t.Errorf("the URLs are now %s and %s", p.URL, r.URL)
		}
		for _, c := range []interface{ Close() error }{p, r} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestAServerThatDoesNotStartSaysWhy(t *testing.T) {
	t.Parallel()
	_, err := StartPostgres(t.Context(), PostgresOptions{Settings: map[string]string{"max_connections": "many"}})
	if err == nil || !strings.Contains(err.Error(), `invalid value for parameter "max_connections"`) {
		t.Error(err)
	}
	_, err = StartRedis(t.Context(), RedisOptions{Args: []string{"--no-such-setting", "1"}})
	if err == nil || !strings.Contains(err.Error(), "no-such-setting") {
		t.Error(err)
	}
}

func TestWhatIsNotInstalledIsSaid(t *testing.T) {
	t.Setenv(postgresVariable, "/nonexistent")
	t.Setenv(redisVariable, "/nonexistent")
	if _, err := StartPostgres(t.Context(), PostgresOptions{}); err == nil || !strings.Contains(err.Error(), postgresVariable) {
		t.Error(err)
	}
	if _, err := StartRedis(t.Context(), RedisOptions{}); err == nil || !strings.Contains(err.Error(), redisVariable) {
		t.Error(err)
	}
}

func TestPortsAreNotTakenTwice(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	taken := map[int]bool{}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			p, err := takePort(0)
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(p.release)
			mu.Lock()
			defer mu.Unlock()
			if taken[p.number] {
				t.Errorf("port %s twice", p)
			}
			taken[p.number] = true
			other, err := takePort(p.number) // as another process would
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(other.release)
			if other.number == p.number {
				t.Errorf("port %s twice", p)
			}
			taken[other.number] = true
		})
	}
	all.Wait()
}

func killProcess(t *testing.T, pid int) {
	t.Helper()
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
}
