//go:build unix

package servers

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var errNoRedis = errors.New("Redis is not installed; run `make deps`")

func findRedis() (string, error) {
	if program := os.Getenv(redisVariable); program != "" {
		if _, err := exec.LookPath(program); err != nil {
			return "", fmt.Errorf("%s names %s, which is no program", redisVariable, program)
		}
		return program, nil
	}
	for _, name := range []string{"redis-server", "/usr/bin/redis-server", "/usr/local/bin/redis-server", "/opt/homebrew/bin/redis-server"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errNoRedis
}

// RedisOptions says what instance of Redis is wanted. The zero value is one for tests, which saves nothing by itself.
type RedisOptions struct {
	// Dir keeps the instance's dump, log and port. "": a directory that goes with the instance.
	Dir string
	// Host is the address to listen on; "": 127.0.0.1.
	Host string
	// Args are of redis-server, such as "--maxmemory", "10mb", after ours.
	Args []string
}

// Redis is an instance of Redis.
type Redis struct {
	*process
	// URL is of database 0, with the password.
	URL string
	// Address is host:port.
	Address, Password string
	// DumpFile is what Save writes, and Start reads.
	DumpFile string
}

// StartRedis starts an instance and returns when it takes requests. It runs until Close, or until this process ends.
func StartRedis(ctx context.Context, o RedisOptions) (*Redis, error) {
	program, err := findRedis()
	if err != nil {
		return nil, err
	}
	owner, err := ownerOf("redis", "nobody")
	if err != nil {
		return nil, err
	}
	dir, err := owner.home("redis", o.Dir)
	if err != nil {
		return nil, err
	}
	guard, err := newGuard(dir, "TERM", o.Dir != "")
	if err != nil {
		return nil, err
	}
	r := &Redis{DumpFile: filepath.Join(dir, "dump.rdb")}
	r.process = &process{name: "Redis", dir: dir, softly: syscall.SIGTERM, guard: guard, owner: owner, ready: r.isReady}
	if err := r.open(ctx, program, o); err != nil {
		guard.close()
		if r.port != nil {
			r.port.release()
		}
		return nil, err
	}
	return r, nil
}

func (r *Redis) open(ctx context.Context, program string, o RedisOptions) error {
	var err error
	if r.Password, err = rememberedSecret(r.dir); err != nil {
		return err
	}
	if r.port, err = rememberedPort(r.dir); err != nil {
		return err
	}
	listen := cmp.Or(o.Host, host)
	config := filepath.Join(r.dir, "redis.conf") // what is in arguments is seen by all
	lines := fmt.Sprintf("bind %s\nport %s\nrequirepass %s\ndir %q\nsave \"\"\nappendonly no\ndaemonize no\n", listen, r.port, r.Password, r.dir)
	if err := errors.Join(os.WriteFile(config, []byte(lines), 0o600), r.owner.give(config)); err != nil {
		return err
	}
	r.args = append([]string{program, config}, o.Args...)
	r.Address = net.JoinHostPort(listen, r.port.String())
	u := url.URL{Scheme: "redis", User: url.UserPassword("", r.Password), Host: r.Address, Path: "/0"}
	r.URL = u.String()
	return r.Start(ctx)
}

// isReady asks, and gets an error while the dump is read.
func (r *Redis) isReady(ctx context.Context) (bool, error) {
	answer, err := r.Do(ctx, "PING")
	return err == nil && answer == "PONG", nil
}

// FlushAll removes all that is in this Redis.
func (r *Redis) FlushAll(ctx context.Context) error {
	_, err := r.Do(ctx, "FLUSHALL")
	return err
}

// Save writes the dump, which the next Start reads.
func (r *Redis) Save(ctx context.Context) error {
	_, err := r.Do(ctx, "SAVE")
	return err
}

// Do sends one command over a connection of its own. It answers strings and numbers; of an array it answers the number of
// elements.
func (r *Redis) Do(ctx context.Context, command ...string) (string, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", r.Address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(patience)
	}
	c.SetDeadline(deadline)
	in := bufio.NewReader(c)
	answer := ""
	for _, words := range [][]string{{"AUTH", r.Password}, command} {
		request := fmt.Sprintf("*%d\r\n", len(words))
		for _, w := range words {
			request += fmt.Sprintf("$%d\r\n%s\r\n", len(w), w)
		}
		if _, err := io.WriteString(c, request); err != nil {
			return "", err
		}
		if answer, err = readAnswer(in); err != nil {
			return "", fmt.Errorf("%s: %w", words[0], err)
		}
	}
	return answer, nil
}

func readAnswer(in *bufio.Reader) (string, error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSpace(line)
	if line == "" {
		return "", errors.New("an empty answer")
	}
	switch kind, rest := line[0], line[1:]; kind {
	case '-':
		return "", errors.New(rest)
	case '$':
		n, err := strconv.Atoi(rest)
		if err != nil || n < 0 {
			return "", err
		}
		b := make([]byte, n+2)
		_, err = io.ReadFull(in, b)
		return string(b[:n]), err
	default:
		return rest, nil
	}
}
