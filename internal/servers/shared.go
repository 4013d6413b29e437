//go:build unix

package servers

import (
	"context"
	"sync"
	"time"
)

// TB is what is needed of a *testing.T, a *testing.B or a *rapid.T with Cleanup.
type TB interface {
	Helper()
	Fatal(args ...any)
	Errorf(format string, args ...any)
	Cleanup(func())
}

// The instances that all tests of a process share.
var (
	sharedPostgres = sync.OnceValues(func() (*Postgres, error) { return StartPostgres(context.Background(), PostgresOptions{}) })
	sharedRedis    = sync.OnceValues(func() (*Redis, error) { return StartRedis(context.Background(), RedisOptions{}) })
)

// SharedPostgres is the instance that all tests of this process share. It starts with the first of them, and ends with the
// process. Do not stop it.
func SharedPostgres(t TB) *Postgres {
	t.Helper()
	p, err := sharedPostgres()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// SharedRedis is the instance that all tests of this process share. It starts with the first of them, and ends with the
// process. Each test uses keys of its own, and none stops it or removes what others keep.
func SharedRedis(t TB) *Redis {
	t.Helper()
	r, err := sharedRedis()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// NewPostgres starts an instance of the test's own, which ends with the test.
func NewPostgres(t TB, o PostgresOptions) *Postgres {
	t.Helper()
	p, err := StartPostgres(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// NewRedis starts an instance of the test's own, which ends with the test.
func NewRedis(t TB, o RedisOptions) *Redis {
	t.Helper()
	r, err := StartRedis(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// Database makes an empty database for this test and answers its URL.
func (p *Postgres) Database(t TB) string {
	t.Helper()
	return p.Clone(t, "template0")
}

// Clone makes a database for this test that begins as a copy of another, which is given by name or URL and to which nobody
// may be connected.
func (p *Postgres) Clone(t TB, template string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	url, err := p.newDatabase(ctx, nameOf(template))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.PID() == 0 {
			return // the test has stopped it, and it is not a shared one
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := p.dropDatabase(ctx, url); err != nil {
			t.Errorf("drop the test's database: %v", err)
		}
	})
	return url
}

// Template makes a database once for this instance, whatever tests ask for it, and answers its URL, to Clone from. fill
// brings it to the state that the copies begin with, and leaves no connection to it.
func (p *Postgres) Template(t TB, name string, fill func(url string) error) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	url, err := p.template(ctx, name, fill)
	if err != nil {
		t.Fatal(err)
	}
	return url
}
