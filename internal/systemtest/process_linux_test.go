package systemtest

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/checker"
)

// buildMuster builds the binary as `make build` does, once.
func buildMuster(t *testing.T) string {
	t.Helper()
	if *built != "" {
		return *built
	}
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// buildBreakable builds the binary that ends where it is told to (package failpoint).
func buildBreakable(t *testing.T) string {
	t.Helper()
	path, err := buildWithPoints()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var (
	build           = sync.OnceValues(func() (string, error) { return goBuild("muster") })
	buildWithPoints = sync.OnceValues(func() (string, error) { return goBuild("muster-breakable", "-tags", "failpoints") })
)

// buildDir is where goBuild builds, "" as long as it has not; TestMain removes it.
var buildDir string

var makeBuildDir = sync.OnceValue(func() (err error) {
	buildDir, err = os.MkdirTemp("", "muster-systemtest-")
	return err
})

func goBuild(name string, flags ...string) (path string, err error) {
	if err := makeBuildDir(); err != nil {
		return "", err
	}
	path = filepath.Join(buildDir, name)
	c := exec.Command("go", append(append([]string{"build", "-trimpath", "-buildvcs=false", "-o", path}, flags...), "../../cmd/muster")...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build muster: %w\n%s", err, out)
	}
	return path, nil
}

// starter starts processes. A parent-death signal comes when the thread ends that started the child. This one lives as
// long as the test, so a test that is killed, or panics, leaves no process behind.
type starter struct{ starts chan func() }

func newStarter(t *testing.T) *starter {
	s := &starter{starts: make(chan func())}
	ended := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer close(ended)
		for f := range s.starts {
			f()
		}
	}()
	t.Cleanup(func() {
		close(s.starts)
		<-ended
	})
	return s
}

func (s *starter) start(c *exec.Cmd) error {
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	done := make(chan error)
	s.starts <- func() { done <- c.Start() }
	return <-done
}

// process starts and kills processes of muster, one after the other, over the same data directory.
type process struct {
	t       *testing.T
	role    checker.Role
	name    string           // what it is called in the trial, and its logs
	dir     string           // of the test
	url     string           // of its API, "" if it has none
	http    *http.Client     // that can talk to it
	command func() *exec.Cmd // makes each life's
	began   func(pid int)    // is told of each life; may be nil
	env     []string         // of the next life, besides the test's own
	fragile bool             // it may end by itself
	rec     *recorder
	starter *starter

	count  int
	cmd    *exec.Cmd
	life   checker.Life
	ended  chan error // the process is gone
	paused *checker.Fault
}

// newProcess makes one that ends with the test.
func newProcess(t *testing.T, p process) *process {
	s := &p
	s.t = t
	t.Cleanup(func() {
		if s.cmd != nil {
			s.cmd.Process.Kill()
			<-s.ended
		}
	})
	return s
}

// newDev makes a node with its own worker, as in `muster dev`.
func newDev(t *testing.T, binary, dir string, rec *recorder) *process {
	address := at("127.0.0.1", freePorts(t))
	return newProcess(t, process{
		name: "muster", dir: dir, url: "http://" + address, rec: rec, starter: newStarter(t),
		http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
		command: func() *exec.Cmd {
			return exec.Command(binary, "dev", "--data", filepath.Join(dir, "data"), "--http", address, "--worker-slots", strconv.Itoa(slots), "--log-level", "info")
		},
	})
}

// running tells whether there is a process now, paused or not.
func (s *process) running() bool { return s.cmd != nil }

func (s *process) logFile() string {
	return filepath.Join(s.dir, fmt.Sprintf("%s-%02d.log", s.name, s.count))
}

// start starts the next life. It does not wait until it is ready.
func (s *process) start() {
	s.t.Helper()
	s.count++
	log, err := os.Create(s.logFile())
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	c := s.command()
	c.Env = append(c.Environ(), s.env...)
	c.Stdout, c.Stderr = log, log
	s.life = checker.Life{Role: s.role, Name: s.name, Start: now()}
	if err := s.starter.start(c); err != nil {
		s.t.Fatal(err)
	}
	s.life.Pid = c.Process.Pid
	ended := make(chan error, 1)
	go func() { ended <- c.Wait(); close(ended) }()
	s.cmd, s.ended = c, ended
	if s.began != nil {
		s.began(s.life.Pid)
	}
}

// ready waits until the process takes requests, at most for a time that no restart should need, or for limit if that is
// shorter; then it is false.
func (s *process) ready(limit time.Duration) bool {
	s.t.Helper()
	const patience = 60 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), min(limit, patience))
	defer cancel()
	for {
		if r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/readyz", nil); err != nil {
			s.t.Fatal(err)
		} else if resp, err := s.http.Do(r); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				s.life.Ready = now()
				return true
			}
		}
		select {
		case err := <-s.ended:
			s.t.Fatalf("%s ended by itself: %v\n%s", s.name, err, s.tail())
		case <-ctx.Done():
			if limit < patience {
				return false
			}
			s.t.Fatalf("%s is not ready after %s\n%s", s.name, patience, s.tail())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// alive fails the test if the process has ended by itself and should not have.
func (s *process) alive() {
	s.t.Helper()
	if s.fragile {
		return
	}
	select {
	case err := <-s.ended:
		s.cmd = nil
		s.t.Fatalf("%s ended by itself: %v\n%s", s.name, err, s.tail())
	default:
	}
}

// kill ends the process as a power failure would, and returns when it is gone.
func (s *process) kill() {
	s.t.Helper()
	s.alive()
	s.life.Kill = now()
	if err := s.cmd.Process.Kill(); err != nil {
		s.t.Fatal(err)
	}
	<-s.ended
	s.life.Dead = now()
	s.cmd = nil
	s.rec.add(checker.Line{Life: ptr(s.life)})
}

// died waits until a process is gone that ends by itself, as one that is killed.
func (s *process) died(limit time.Duration) bool {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(limit):
		return false
	}
	s.life.Kill, s.life.Dead = now(), now()
	s.cmd = nil
	s.rec.add(checker.Line{Life: ptr(s.life)})
	return true
}

// pause takes the processor away from the process until resume. led: it is the leader.
func (s *process) pause(led bool) {
	s.t.Helper()
	s.alive()
	s.paused = &checker.Fault{Kind: checker.Pause, Role: s.role, Name: s.name, From: now(), Led: led}
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		s.t.Fatal(err)
	}
}

func (s *process) resume() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		s.t.Fatal(err)
	}
	s.paused.To = now()
	s.rec.add(checker.Line{Fault: s.paused})
	s.paused = nil
}

// stop asks the process to end, which it must within some time.
func (s *process) stop() {
	s.t.Helper()
	s.life.Stop = now()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	select {
	case err := <-s.ended:
		if err != nil {
			s.t.Errorf("%s was asked to stop and ended with: %v\n%s", s.name, err, s.tail())
		}
	case <-time.After(45 * time.Second):
		s.t.Errorf("%s was asked to stop and goes on\n%s", s.name, s.tail())
		s.cmd.Process.Kill()
		<-s.ended
	}
	s.cmd = nil
	s.rec.add(checker.Line{Life: ptr(s.life)})
}

// tail is the end of the last process's log.
func (s *process) tail() string {
	b, err := os.ReadFile(s.logFile())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4096):])
}

func ptr[T any](v T) *T { return &v }
