package systemtest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/checker"
)

// buildMuster builds the binary as `make build` does.
func buildMuster(t *testing.T, dir string) string {
	t.Helper()
	if *binary != "" {
		return *binary
	}
	path := filepath.Join(dir, "muster")
	c := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", path, "../../cmd/muster")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build muster: %v\n%s", err, out)
	}
	return path
}

// server starts and kills processes of muster, one after the other, over the same data directory.
type server struct {
	t       *testing.T
	binary  string
	dir     string // of the test; the data is below
	address string
	rec     *recorder
	starts  chan func()

	count int
	cmd   *exec.Cmd
	life  checker.Life
	ended chan error // the process is gone
}

func newServer(t *testing.T, binary, dir string, rec *recorder) *server {
	s := &server{t: t, binary: binary, dir: dir, rec: rec, starts: make(chan func())}
	s.address = freeAddress(t)
	// A parent-death signal comes when the thread ends that started the child. This one lives as long as the test, so a
	// test that is killed, or panics, leaves no process behind.
	ended := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer close(ended)
		for f := range s.starts {
			f()
		}
	}()
	t.Cleanup(func() {
		if s.cmd != nil {
			s.cmd.Process.Kill()
			<-s.ended
		}
		close(s.starts)
		<-ended
	})
	return s
}

func (s *server) url() string { return "http://" + s.address }

// freeAddress finds a port that is free now and, one hopes, at every restart.
func freeAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start starts the next life. It does not wait until it is ready.
func (s *server) start() {
	s.t.Helper()
	s.count++
	log, err := os.Create(filepath.Join(s.dir, fmt.Sprintf("muster-%02d.log", s.count)))
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	c := exec.Command(s.binary, "dev", "--data", filepath.Join(s.dir, "data"), "--http", s.address, "--worker-slots", strconv.Itoa(slots), "--log-level", "info")
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	s.life = checker.Life{Start: now()}
	done := make(chan error)
	s.starts <- func() { err := c.Start(); done <- err }
	if err := <-done; err != nil {
		s.t.Fatal(err)
	}
	s.life.Pid = c.Process.Pid
	ended := make(chan error, 1)
	go func() { ended <- c.Wait(); close(ended) }()
	s.cmd, s.ended = c, ended
}

// ready waits until the process takes requests, at most for a time that no restart should need, or for limit if that is
// shorter; then it is false.
func (s *server) ready(limit time.Duration) bool {
	s.t.Helper()
	const patience = 60 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), min(limit, patience))
	defer cancel()
	poll := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		if r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url()+"/readyz", nil); err != nil {
			s.t.Fatal(err)
		} else if resp, err := poll.Do(r); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				s.life.Ready = now()
				return true
			}
		}
		select {
		case err := <-s.ended:
			s.t.Fatalf("muster ended by itself: %v\n%s", err, s.tail())
		case <-ctx.Done():
			if limit < patience {
				return false
			}
			s.t.Fatalf("muster is not ready after %s\n%s", patience, s.tail())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// kill ends the process as a power failure would, and returns when it is gone.
func (s *server) kill() {
	s.t.Helper()
	select {
	case err := <-s.ended:
		s.t.Fatalf("muster ended by itself: %v\n%s", err, s.tail())
	default:
	}
	s.life.Kill = now()
	if err := s.cmd.Process.Kill(); err != nil {
		s.t.Fatal(err)
	}
	<-s.ended
	s.life.Dead = now()
	s.cmd = nil
	s.rec.add(checker.Line{Life: ptr(s.life)})
}

// stop asks the process to end, which it must within some time.
func (s *server) stop() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	select {
	case err := <-s.ended:
		if err != nil {
			s.t.Errorf("muster was asked to stop and ended with: %v\n%s", err, s.tail())
		}
	case <-time.After(45 * time.Second):
		s.t.Errorf("muster was asked to stop and goes on\n%s", s.tail())
		s.cmd.Process.Kill()
		<-s.ended
	}
	s.cmd = nil
	s.rec.add(checker.Line{Life: ptr(s.life)})
}

// tail is the end of the last process's log.
func (s *server) tail() string {
	b, err := os.ReadFile(filepath.Join(s.dir, fmt.Sprintf("muster-%02d.log", s.count)))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4096):])
}

func ptr[T any](v T) *T { return &v }
