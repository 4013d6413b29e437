package main

import (
	"bytes"
	"context"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/musterhq/muster/internal/app"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) {
	// memberlist lets a probe that is on its way end by itself, a few seconds after its shutdown.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
}

// noon is when commands run in tests that show times.
var noon = time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)

// world is what a command runs in.
type world struct {
	stdin string
	env   []string
	now   time.Time // zero: the real one
	ctx   context.Context

	inspect func(string) (*app.SnapshotReport, error) // nil: the real one
	recover func(context.Context, app.RecoverOptions) (*app.RecoverReport, error)

	patience time.Duration // zero: the real one
	watch    *lockedBuffer // sees standard error as it is written
}

type result struct {
	code     int
	out, err string
}

// muster runs a command line.
func (w world) muster(t testing.TB, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	var stderr io.Writer = &errs
	if w.watch != nil {
		stderr = io.MultiWriter(&errs, w.watch)
	}
	c := newCLI(strings.NewReader(w.stdin), &out, stderr, w.env)
	defer c.close()
	if !w.now.IsZero() {
		c.now, c.zone = func() time.Time { return w.now }, time.UTC
	}
	if w.patience > 0 {
		c.patience = w.patience
	}
	if w.inspect != nil {
		c.inspect = w.inspect
	}
	if w.recover != nil {
		c.recover = w.recover
	}
	ctx := w.ctx
	if ctx == nil {
		ctx = t.Context()
	}
	code := c.run(ctx, args)
	return result{code, out.String(), errs.String()}
}

// must is muster for commands that succeed.
func (w world) must(t testing.TB, args ...string) string {
	t.Helper()
	r := w.muster(t, args...)
	if r.code != exitOK {
		t.Fatalf("muster %s: exit code %d\nstdout: %s\nstderr: %s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return r.out
}

// golden compares text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (go test -update writes it anew):\n%s", path, diff)
	}
}

// fileWith writes a file of its own for a test.
func fileWith(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// node is `muster dev` in this process.
type node struct {
	world
	url  string
	data string
	stop func() result // asks it to stop, and waits
}

// startNode runs `muster dev` on a free port until the test ends.
func startNode(t testing.TB, args ...string) *node {
	t.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	out, code := watch("a second one stops it at once."), make(chan int, 1)
	var logs lockedBuffer
	data, home := t.TempDir(), t.TempDir()
	go func() {
		args := append([]string{"dev", "--data", data, "--http", "127.0.0.1:0"}, args...)
		code <- run(ctx, args, strings.NewReader(""), out, &logs, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home})
	}()
	n := &node{data: data, stop: sync.OnceValue(func() result {
		cancel(interrupted{os.Interrupt})
		return result{<-code, out.String(), logs.String()}
	})}
	t.Cleanup(func() {
		if r := n.stop(); r.code != exitOK {
			t.Errorf("muster dev: exit code %d\n%s%s", r.code, r.out, r.err)
		}
	})
	select {
	case <-out.seen:
	case c := <-code:
		code <- c
		t.Fatalf("muster dev did not start: exit code %d, %s", c, logs.String())
	}
	_, rest, _ := strings.Cut(out.String(), "is ready at ")
	n.url, _, _ = strings.Cut(rest, "\n")
	n.env = []string{"MUSTER_ADDRESS=" + n.url}
	return n
}

// lockedBuffer is written by one goroutine and read by another.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
