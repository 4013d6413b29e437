//go:build unix

package servers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	host = "127.0.0.1"
	// patience is how long a start, with recovery, or an orderly stop may take on a machine that is busy.
	patience = time.Minute
	// killed is how long the system may take to end processes that were killed.
	killed = 10 * time.Second
)

// process is a server, from life to life, on one port and over one directory.
type process struct {
	name   string         // as people call it
	dir    string         // of the user that the server runs as, with all that it writes
	softly syscall.Signal // ends it in order
	guard  *guard
	owner  *owner
	port   *port
	args   []string                            // its command
	ready  func(context.Context) (bool, error) // looks, and does not wait

	mu   sync.Mutex
	cmd  *exec.Cmd // nil while there is no process
	gone *os.File  // at its end when the last process of the server is
}

// launch starts the server in a shell that says its process id before it becomes the server: so the guard knows it from
// the beginning on.
const launch = `echo $$ >pid && exec "$@"`

// Start starts the server, if it does not run, and returns when it takes requests.
func (p *process) Start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		if !p.endedWithin(time.Millisecond) {
			return nil
		}
		p.reap()
	}
	log, err := os.OpenFile(filepath.Join(p.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	defer log.Close()
	gone, alive, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	defer alive.Close()
	c := p.owner.command("/bin/sh", append([]string{"-c", launch, "sh"}, p.args...)...)
	c.Dir, c.Stdout, c.Stderr, c.ExtraFiles = p.dir, log, log, []*os.File{alive}
	if err := c.Start(); err != nil {
		gone.Close()
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	p.cmd, p.gone = c, gone
	alive.Close()

	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		ok, err := p.ready(ctx)
		switch {
		case err != nil || ctx.Err() != nil:
			p.kill()
			return fmt.Errorf("start %s: %w\n%s", p.name, errors.Join(ctx.Err(), err), p.tail())
		case ok:
			return nil
		case p.endedWithin(10 * time.Millisecond):
			p.reap()
			return fmt.Errorf("%s did not start:\n%s", p.name, p.tail())
		}
	}
}

// Stop ends the server in order: it answers what it does, and keeps what it keeps.
func (p *process) Stop() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return nil
	}
	p.signal(syscall.SIGCONT)
	p.cmd.Process.Signal(p.softly)
	if p.endedWithin(patience) {
		p.reap()
		return nil
	}
	p.kill()
	return fmt.Errorf("%s did not stop within %s and was killed", p.name, patience)
}

// Kill ends all processes of the server as a power failure would, and returns when they are gone.
func (p *process) Kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kill()
}

func (p *process) kill() {
	if p.cmd == nil {
		return
	}
	p.signal(syscall.SIGSTOP) // it makes no more processes, and does not notice that it loses some
	p.signal(syscall.SIGKILL)
	p.endedWithin(killed)
	p.reap()
}

// Pause takes the processor away from all processes of the server until Resume. The system still accepts connections to
// it, as to a machine that hangs.
func (p *process) Pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.signal(syscall.SIGSTOP)
}

// Resume ends Pause.
func (p *process) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.signal(syscall.SIGCONT)
}

// PID is the server's first process, or 0 if it does not run.
func (p *process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	if p.endedWithin(time.Millisecond) {
		p.reap()
		return 0
	}
	return p.cmd.Process.Pid
}

// Dir is the directory with the server's data, its log and, while it runs, its process id in the file pid.
func (p *process) Dir() string { return p.dir }

// Close stops the server for good, in order if its directory stays, and lets go of its port. The directory is removed
// unless the options named it. It may be called twice.
func (p *process) Close() error {
	var err error
	if p.guard.keep {
		err = p.Stop()
	} else {
		p.Kill()
	}
	p.guard.close()
	p.port.release()
	return err
}

// signal sends it to the first process of the server, and then to those that this one has made, which are in groups of
// their own.
func (p *process) signal(s syscall.Signal) {
	if p.cmd == nil {
		return
	}
	pid := p.cmd.Process.Pid
	var children []int
	if s != syscall.SIGSTOP {
		children = childrenOf(pid) // while it has them
	}
	p.cmd.Process.Signal(s)
	if s == syscall.SIGSTOP {
		children = childrenOf(pid) // now that it makes no others
	}
	for _, child := range children {
		syscall.Kill(child, s)
	}
}

// endedWithin waits for the end of all processes of the server, which hold the other end of the pipe.
func (p *process) endedWithin(d time.Duration) bool {
	p.gone.SetReadDeadline(time.Now().Add(d))
	_, err := p.gone.Read(make([]byte, 1))
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

func (p *process) reap() {
	p.cmd.Wait()
	p.gone.Close()
	os.Remove(filepath.Join(p.dir, "pid"))
	p.cmd, p.gone = nil, nil
}

// tail is the end of the server's log.
func (p *process) tail() string {
	b, err := os.ReadFile(filepath.Join(p.dir, "log"))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b[max(0, len(b)-2048):]))
}

// childrenOf finds the processes that one has made.
func childrenOf(pid int) (children []int) {
	if files, _ := filepath.Glob("/proc/[0-9]*/stat"); files != nil {
		for _, f := range files {
			b, _ := os.ReadFile(f)
			// The name, in brackets, may be anything.
			if words := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])); len(words) > 1 && words[1] == strconv.Itoa(pid) {
				child, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
				children = append(children, child)
			}
		}
		return children
	}
	out, _ := exec.Command("ps", "-A", "-o", "pid=,ppid=").Output()
	for line := range strings.Lines(string(out)) {
		if words := strings.Fields(line); len(words) == 2 && words[1] == strconv.Itoa(pid) {
			child, _ := strconv.Atoi(words[0])
			children = append(children, child)
		}
	}
	return children
}

// ErrClosed is why a server cannot have its data in a directory: its user may not enter it.
var ErrClosed = errors.New("it is closed to the server's user")

// owner is whom a server runs as, which is never root.
type owner struct {
	name       string
	credential *syscall.Credential // nil: us
}

// ownerOf finds the first of these users that there is, or takes us where we have no rights to give up.
func ownerOf(names ...string) (*owner, error) {
	if os.Geteuid() != 0 {
		return &owner{name: "this user"}, nil
	}
	for _, name := range names {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil && uid != 0 {
			return &owner{name: "user " + name, credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
		}
	}
	return nil, fmt.Errorf("none of the users %s exists, and no server may run as root", strings.Join(names, ", "))
}

// command is one that this owner runs, in a process group of its own, so that Ctrl-C does not reach it. Nothing of our
// environment is handed on: there are variables that change what a server does.
func (o *owner) command(name string, args ...string) *exec.Cmd {
	c := exec.Command(name, args...)
	c.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: o.credential}
	return c
}

// give makes the owner that of a directory, or of a file.
func (o *owner) give(path string) error {
	if o.credential == nil {
		return nil
	}
	return os.Lchown(path, int(o.credential.Uid), int(o.credential.Gid))
}

// giveAll is give for a whole tree.
func (o *owner) giveAll(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, o.give(path))
	})
}

// reaches tells whether the owner may enter a directory, that is all above it.
func (o *owner) reaches(dir string) error {
	c := o.command("/bin/sh", "-c", `cd -- "$1"`, "sh", dir)
	c.Dir = "/"
	if c.Run() != nil {
		return fmt.Errorf("%s may not enter %s, or a directory above it; use another, such as one below %s: %w", o.name, dir, os.TempDir(), ErrClosed)
	}
	return nil
}

// home makes the directory of a server: the one that is asked for, or a new one.
func (o *owner) home(kind, dir string) (string, error) {
	var err error
	if dir == "" {
		dir, err = os.MkdirTemp("", "muster-"+kind+"-")
	} else if dir, err = filepath.Abs(dir); err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = errors.Join(os.Chmod(dir, 0o700), o.give(dir))
	}
	if err == nil {
		err = o.reaches(dir)
	}
	return dir, err
}
