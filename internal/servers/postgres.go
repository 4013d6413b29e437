//go:build unix

package servers

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// PostgresOptions says what instance of PostgreSQL is wanted. The zero value is one for tests.
type PostgresOptions struct {
	// Dir keeps the instance's data, log and port; what is there goes on. "": a directory that goes with the instance.
	Dir string
	// Durable waits for the disk at each commit, as in production. Otherwise nothing that was committed is lost when
	// PostgreSQL is killed, but everything may be when the machine is.
	Durable bool
	// Host is the address to listen on; "": 127.0.0.1.
	Host string
	// Settings are those of postgresql.conf, such as "max_connections": "20".
	Settings map[string]string
}

// Postgres is an instance of PostgreSQL.
type Postgres struct {
	*process
	// URL is of the database muster, which is there from the beginning, empty, for the user muster, who owns it, and has
	// no other rights but to log in.
	URL string

	bin, host, password string
	count               atomic.Int64 // of databases made
	mu                  sync.Mutex   // of making templates
	templates           map[string]error
}

const (
	role = "muster" // whom the URLs are for
	root = "postgres"
)

// postgresSettings are for all instances. Shared memory of queries is in the data directory, so that it goes with it.
var postgresSettings = map[string]string{
	"unix_socket_directories": "", "max_connections": "300", "logging_collector": "off",
	"log_destination": "stderr", "dynamic_shared_memory_type": "mmap", "cluster_name": "muster",
}

var notDurable = map[string]string{"fsync": "off", "full_page_writes": "off", "wal_level": "minimal", "max_wal_senders": "0"}

// StartPostgres starts an instance and returns when it takes requests. It runs until Close, or until this process ends.
func StartPostgres(ctx context.Context, o PostgresOptions) (*Postgres, error) {
	bin, err := findPostgres()
	if err != nil {
		return nil, err
	}
	owner, err := ownerOf("postgres", "nobody")
	if err != nil {
		return nil, err
	}
	dir, err := owner.home("postgres", o.Dir)
	if err != nil {
		return nil, err
	}
	signal := "QUIT"
	if o.Dir != "" {
		signal = "INT"
	}
	guard, err := newGuard(dir, signal, o.Dir != "")
	if err != nil {
		return nil, err
	}
	p := &Postgres{bin: bin, templates: map[string]error{}}
	p.process = &process{name: "PostgreSQL", dir: dir, softly: syscall.SIGINT, guard: guard, owner: owner, ready: p.isReady}
	if err := p.open(ctx, o); err != nil {
		guard.close()
		if p.port != nil {
			p.port.release()
		}
		return nil, err
	}
	return p, nil
}

func (p *Postgres) open(ctx context.Context, o PostgresOptions) error {
	data := filepath.Join(p.dir, "data")
	if _, err := os.Stat(filepath.Join(data, "PG_VERSION")); err != nil {
		if err := newData(p.bin, p.owner, data); err != nil {
			return fmt.Errorf("make a data directory of PostgreSQL: %w", err)
		}
	}
	secret, err := os.ReadFile(filepath.Join(data, secretFile))
	if err != nil {
		return err
	}
	p.password = string(secret)
	if p.port, err = rememberedPort(p.dir); err != nil {
		return err
	}
	settings := maps.Clone(postgresSettings)
	p.host = cmp.Or(o.Host, host)
	settings["listen_addresses"], settings["port"] = p.host, p.port.String()
	if !o.Durable {
		maps.Copy(settings, notDurable)
	}
	maps.Copy(settings, o.Settings)
	p.args = []string{filepath.Join(p.bin, "postgres"), "-D", data}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		p.args = append(p.args, "-c", name+"="+settings[name])
	}
	p.URL = p.urlOf(role, role)
	return p.Start(ctx)
}

// isReady looks at the line of the server's file that is there for this (pg_ctl does the same).
func (p *Postgres) isReady(context.Context) (bool, error) {
	b, err := os.ReadFile(filepath.Join(p.dir, "data", "postmaster.pid"))
	lines := strings.Split(string(b), "\n")
	return err == nil && len(lines) > 7 && lines[0] == strconv.Itoa(p.cmd.Process.Pid) && strings.TrimSpace(lines[7]) == "ready", nil
}

func (p *Postgres) urlOf(user, database string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(user, p.password), Host: net.JoinHostPort(p.host, p.port.String()), Path: "/" + database, RawQuery: "sslmode=disable"}
	return u.String()
}

// RootURL is that of a database for the one who may do everything.
func (p *Postgres) RootURL(database string) string { return p.urlOf(root, nameOf(database)) }

// SQL runs statements in a database, given by name or URL, as the one who may do everything. It answers the rows as psql
// writes them without decoration: a line each, columns separated by |.
func (p *Postgres) SQL(ctx context.Context, database, sql string) (string, error) {
	c := exec.CommandContext(ctx, filepath.Join(p.bin, "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", p.host, "-p", p.port.String(), "-U", root, "-d", nameOf(database), "-c", sql)
	c.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "PGPASSWORD=" + p.password, "PGCONNECT_TIMEOUT=30"}
	var said bytes.Buffer
	c.Stderr = &said
	out, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", sql, err, strings.TrimSpace(said.String()))
	}
	return strings.TrimSuffix(string(out), "\n"), nil
}

// nameOf is the database's name, if it is not that already but a URL.
func nameOf(database string) string {
	if u, err := url.Parse(database); err == nil && u.Scheme != "" {
		return strings.TrimPrefix(u.Path, "/")
	}
	return database
}

func (p *Postgres) createDatabase(ctx context.Context, name, template string) error {
	_, err := p.SQL(ctx, root, fmt.Sprintf("CREATE DATABASE %s OWNER %s TEMPLATE %s", name, role, template))
	return err
}

// newDatabase makes one and answers its URL.
func (p *Postgres) newDatabase(ctx context.Context, template string) (string, error) {
	name := fmt.Sprintf("d%d", p.count.Add(1))
	return p.urlOf(role, name), p.createDatabase(ctx, name, template)
}

func (p *Postgres) dropDatabase(ctx context.Context, database string) error {
	_, err := p.SQL(ctx, root, "DROP DATABASE IF EXISTS "+nameOf(database)+" WITH (FORCE)")
	return err
}

// template makes a database once for this instance, which fill brings to the state that copies of it begin with. Nobody
// may be connected to it after that.
func (p *Postgres) template(ctx context.Context, name string, fill func(url string) error) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	name = "template_" + name
	err, made := p.templates[name]
	if !made {
		if err = p.createDatabase(ctx, name, "template0"); err == nil {
			err = fill(p.urlOf(role, name))
		}
		p.templates[name] = err
	}
	return p.urlOf(role, name), err
}
