//go:build linux

package worker

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/job"
)

// TestHelperProcess is not a test: other tests start it as an agent of its own, to be killed.
func TestHelperProcess(t *testing.T) {
	dir := os.Getenv("WORKER_TEST_DATA")
	switch os.Getenv("WORKER_TEST_HELPER") {
	case "agent": // runs what it is told until it is killed
		p, err := OpenProcesses(dir)
		if err != nil {
			t.Fatal(err)
		}
		e, err := NewExec(ExecConfig{Allow: []string{"*"}, DataDir: dir, Processes: p, User: os.Getenv("WORKER_TEST_USER")})
		if err != nil {
			t.Fatal(err)
		}
		e.Execute(context.Background(), assignmentOf(sh(os.Getenv("WORKER_TEST_SCRIPT"))), os.Stdout)
	case "init": // is the parent of all orphans, like process 1 of a container
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			t.Fatal(err)
		}
		e, err := NewExec(ExecConfig{Allow: []string{"*"}, DataDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		for range 20 {
			o := e.Execute(context.Background(), assignmentOf(sh("(sleep 1000 & sleep 1000) & sleep 1000 & true")), io.Discard)
			if o.Kind != job.AttemptSucceeded {
				t.Fatalf("%+v", o)
			}
		}
		if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
			t.Fatalf("children are left: %v", err)
		}
	}
}

func helper(t *testing.T, kind, dir, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestHelperProcess$")
	cmd.Env = append(os.Environ(), "WORKER_TEST_HELPER="+kind, "WORKER_TEST_DATA="+dir, "WORKER_TEST_SCRIPT="+script)
	return cmd
}

// killedAgent starts an agent with one command, waits until the command has written n process numbers, and kills the
// agent as hard as it can be.
func killedAgent(t *testing.T, dir, user, script string, n int) (pids []int) {
	t.Helper()
	cmd := helper(t, "agent", dir, script)
	cmd.Env = append(cmd.Env, "WORKER_TEST_USER="+user)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for len(pids) < n && lines.Scan() {
		pid, err := strconv.Atoi(lines.Text())
		if err != nil {
			t.Fatalf("the agent says %q", lines.Text())
		}
		pids = append(pids, pid)
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if len(pids) < n {
		t.Fatalf("the agent wrote only %v", pids)
	}
	return pids
}

func TestKilledAgentLeavesNothing(t *testing.T) {
	t.Parallel()
	users := []string{""}
	if os.Geteuid() == 0 {
		users = append(users, "nobody") // a change of user clears the parent-death signal if it comes after it
	}
	for _, user := range users {
		t.Run("as "+user, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			// The command, and a child of it that the parent-death signal does not reach.
			pids := killedAgent(t, dir, user, `trap '' TERM; echo $$; sh -c 'echo $$; while :; do sleep 0.05; done'; true`, 2)
			eventually(t, "the parent-death signal", func() bool { return !alive(pids[0]) })
			if !alive(pids[1]) {
				t.Fatal("the child died by itself: this test shows nothing")
			}
			p, err := OpenProcesses(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			killed, err := p.KillRecorded(t.Context())
			if killed != 1 || err != nil {
				t.Errorf("killed %d, %v", killed, err)
			}
			if alive(pids[1]) {
				t.Error("the child lives on")
			}
			if killed, err := p.KillRecorded(t.Context()); killed != 0 || err != nil {
				t.Errorf("the second time: %d, %v", killed, err)
			}
			// The next agent also removes the files that results were to be left in.
			e := newExec(t, func(c *ExecConfig) { c.DataDir = dir })
			write(t, e.resultsDir(), "x")
			wantOutcome(t, e.Execute(t.Context(), assignmentOf(sh("true")), io.Discard), job.AttemptSucceeded, 0, false)
			left, err := filepath.Glob(filepath.Join(os.TempDir(), e.foreignResults()+"*"))
			if n := countFiles(t, e.resultsDir()); n != 0 || len(left) != 0 || err != nil {
				t.Errorf("left: %d files, %v, %v", n, left, err)
			}
		})
	}
}

// A group without its leader is only killed if it is provably the attempt's.
func TestKillRecordedSparesStrangers(t *testing.T) {
	t.Parallel()
	start := func(fence string, leaderLives bool) (pgid, pid int, end func()) {
		script := `echo $$; exec sleep 1000`
		if !leaderLives {
			script = `sh -c 'echo $$; exec sleep 1000' & read x`
		}
		cmd := exec.Command("/bin/sh", "-c", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Env = []string{"PATH=/bin:/usr/bin", "MUSTER_FENCE=" + fence}
		in, _ := cmd.StdinPipe()
		out, _ := cmd.StdoutPipe()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		pid, _ = strconv.Atoi(strings.TrimSpace(line))
		if !leaderLives {
			in.Close()
			cmd.Wait()
		}
		return cmd.Process.Pid, pid, func() {
			syscall.Kill(pid, syscall.SIGKILL)
			if leaderLives {
				cmd.Wait()
			}
			eventually(t, "the end of a stranger", func() bool { return !alive(pid) })
		}
	}
	const fence = 77
	for _, tc := range []struct {
		name        string
		mark        string
		leaderLives bool
		startOff    uint64 // added to the leader's start time in the record
		want        int
	}{
		{"the leader lives", "0", true, 0, 1},
		{"a recycled number", "77", true, 1, 0},
		{"the leader is dead, a member is marked", "77", false, 0, 1},
		{"the leader is dead, no member is marked", "78", false, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pgid, pid, end := start(tc.mark, tc.leaderLives)
			defer end()
			dir := t.TempDir()
			r := processRecord{'S', pgid, fence, tc.startOff}
			if tc.leaderLives {
				began, _, err := processStart(pgid)
				if err != nil {
					t.Fatal(err)
				}
				r.start += began
			}
			write(t, dir, processHeader(bootID())+string(r.append(nil)))
			p, err := OpenProcesses(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			killed, err := p.KillRecorded(t.Context())
			if killed != tc.want || err != nil {
				t.Errorf("killed %d, %v; want %d", killed, err, tc.want)
			}
			if alive(pid) != (tc.want == 0) {
				t.Errorf("alive: %v", alive(pid))
			}
		})
	}
}

func write(t *testing.T, dir, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "processes"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDecodeProcesses(t *testing.T) {
	t.Parallel()
	rec := func(kind byte, pgid int, start uint64) string {
		return string(processRecord{kind, pgid, 5, start}.append(nil))
	}
	h := processHeader("boot")
	for name, tc := range map[string]struct {
		file string
		want int
	}{
		"empty":             {"", 0},
		"header only":       {h, 0},
		"one":               {h + rec('S', 100, 1), 1},
		"ended":             {h + rec('S', 100, 1) + rec('E', 100, 1), 0},
		"another's end":     {h + rec('S', 100, 1) + rec('E', 100, 2), 1},
		"two":               {h + rec('S', 100, 1) + rec('S', 101, 1), 2},
		"a recycled number": {h + rec('S', 100, 1) + rec('E', 100, 1) + rec('S', 100, 2), 1},
		"another boot":      {processHeader("earlier") + rec('S', 100, 1), 0},
		"torn":              {h + rec('S', 100, 1) + rec('S', 101, 1)[:20], 1},
		"damaged":           {h + rec('S', 100, 1) + strings.Repeat("\xff", 32) + rec('S', 101, 1), 1},
		"everybody":         {h + rec('S', 0, 1) + rec('S', 1, 1) + rec('S', -1, 1), 0}, // kill(-1) is everybody
		"something else":    {"hello", 0},
	} {
		if got := decodeProcesses([]byte(tc.file), "boot"); len(got) != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func FuzzDecodeProcesses(f *testing.F) {
	f.Add([]byte(processHeader("boot") + string(processRecord{'S', 2, 3, 4}.append(nil))))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, r := range decodeProcesses(b, "boot") {
			if r.pgid <= 1 {
				t.Errorf("would kill group %d", r.pgid)
			}
		}
	})
}

func TestProcessesStaySmall(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p, err := OpenProcesses(dir)
	if err != nil {
		t.Fatal(err)
	}
	keep, err := p.add(1, os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	other := exec.Command("sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { other.Process.Kill(); other.Wait() }()
	for range 40_000 {
		forget, err := p.add(2, other.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		forget()
	}
	b, err := os.ReadFile(filepath.Join(dir, "processes"))
	if err != nil || len(b) > processLogMax+1000 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if got := decodeProcesses(b, bootID()); len(got) != 1 || got[0].pgid != os.Getpid() {
		t.Errorf("left: %v", got)
	}
	keep()
	if p.Len() != 0 {
		t.Errorf("%d are recorded", p.Len())
	}
	p.Close()
	if _, err := p.add(3, os.Getpid()); err == nil {
		t.Error("a closed table records")
	}
}

// When the agent is process 1 of a container, the orphans of its commands become its children.
func TestOrphansAreReaped(t *testing.T) {
	t.Parallel()
	if b, err := helper(t, "init", t.TempDir(), "").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, b)
	}
}

func TestThousandCommandsLeaveNothing(t *testing.T) {
	dir := t.TempDir()
	p, err := OpenProcesses(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	e := newExec(t, func(c *ExecConfig) { c.DataDir, c.Processes = dir, p })
	a := assignmentOf(&job.Document{Exec: &job.Exec{Command: []string{"/bin/true"}}})
	a.Payload = []byte("{}")
	if o := e.Execute(t.Context(), a, io.Discard); o.Kind != job.AttemptSucceeded {
		t.Fatal(o.Error)
	}
	fds := countFiles(t, "/proc/self/fd")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 125 {
				if o := e.Execute(t.Context(), a, io.Discard); o.Kind != job.AttemptSucceeded {
					t.Error(o.Error)
				}
			}
		})
	}
	wg.Wait()
	if n := countFiles(t, "/proc/self/fd"); n > fds {
		t.Errorf("%d descriptors were open, now %d", fds, n)
	}
	if n := p.Len(); n != 0 {
		t.Errorf("%d processes are still recorded", n)
	}
	if n := countFiles(t, e.resultsDir()); n != 0 {
		t.Errorf("%d result files are left", n)
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err == nil && info.Signo != 0 {
		t.Error("there is a zombie")
	}
	b, err := os.ReadFile(filepath.Join(dir, "processes"))
	if left := decodeProcesses(b, bootID()); err != nil || len(left) != 0 {
		t.Errorf("on disk: %v, %v", left, err)
	}
}

func countFiles(t *testing.T, dir string) int {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(es)
}

func TestStarterSurvivesIdleThreads(t *testing.T) {
	t.Parallel()
	e := newExec(t)
	out := newTranscript()
	// If the starting thread were one of the runtime's own, it would end with such goroutines, and the command with it.
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan job.Outcome, 1)
	go func() { done <- e.Execute(ctx, assignmentOf(sh("echo ready; exec sleep 1000")), out) }()
	out.waitFor(t, "ready")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(lockAndEnd)
	}
	wg.Wait()
	select {
	case o := <-done:
		t.Fatalf("the command died with a thread: %+v", o)
	case <-time.After(20 * time.Millisecond):
	}
	cancel(&Stop{Reason: job.CancelRequested})
	wantOutcome(t, <-done, job.AttemptCancelled, job.CancelRequested, false)
}

func lockAndEnd() {
	runtime.LockOSThread()
	// Still locked, so the thread ends here.
}
