package worker

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

func pipeCloexec(fds []int) error { return syscall.Pipe2(fds, syscall.O_CLOEXEC) }

// starter starts all commands from one thread. A child's parent-death signal comes when the thread that started it ends,
// and the Go runtime ends and starts threads as it likes: so one goroutine is locked to a thread, which lives until Close
// or until the agent dies, and every command is that thread's child (L4).
//
// One is enough: Go starts processes one at a time anyway (syscall.ForkLock).
type starter struct {
	mu     sync.Mutex
	work   chan *starting
	ended  chan struct{}
	closed bool
}

// starting is one request to the thread. The answer comes on done.
type starting struct {
	c      *command
	pipes  *pipes
	record func(pid int) (func(), error)
	p      *process
	err    error
	done   chan struct{}
}

var errStarterClosed = errors.New("the worker is shutting down")

// start starts the command. record is called right after, still on the thread, so that little time passes in which a
// process runs that nobody has noted down: for that time the parent-death signal alone stands.
func (s *starter) start(c *command, pipes *pipes, record func(pid int) (func(), error)) (*process, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, errStarterClosed
	}
	if s.work == nil {
		s.work, s.ended = make(chan *starting), make(chan struct{})
		go s.serve()
	}
	s.mu.Unlock()
	r := &starting{c: c, pipes: pipes, record: record, done: make(chan struct{})}
	select {
	case s.work <- r:
		<-r.done
		return r.p, r.err
	case <-s.ended:
		return nil, errStarterClosed
	}
}

// Close ends the thread, and with it whatever still runs under it.
func (s *starter) Close() error {
	s.mu.Lock()
	open := !s.closed && s.work != nil
	s.closed = true
	s.mu.Unlock()
	if open {
		s.work <- nil
		<-s.ended
	}
	return nil
}

func (s *starter) serve() {
	runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
	defer close(s.ended)
	for r := range s.work {
		if r == nil {
			return
		}
		r.p, r.err = forkExec(r)
		close(r.done)
	}
}

func forkExec(r *starting) (*process, error) {
	pidfd := -1
	attr := &syscall.ProcAttr{
		Dir:   r.c.dir,
		Env:   r.c.env,
		Files: []uintptr{uintptr(r.pipes.childIn), uintptr(r.pipes.childOut), uintptr(r.pipes.childOut)},
		Sys:   &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, PidFD: &pidfd},
	}
	if u := r.c.user; u != nil {
		attr.Sys.Credential = &syscall.Credential{Uid: u.uid, Gid: u.gid, Groups: u.groups}
	}
	pid, err := syscall.ForkExec(r.c.path, r.c.argv, attr)
	if err != nil {
		return nil, err
	}
	p := &process{pid: pid}
	if pidfd >= 0 {
		p.fd = pollable(pidfd, "pidfd")
	}
	if p.forget, err = r.record(pid); err != nil {
		// Unrecorded it would outlive a killed agent and run beside its own second attempt.
		p.signalGroup(syscall.SIGKILL)
		p.wait()
		p.reap()
		return nil, err
	}
	return p, nil
}

// process is the leader of one command's group.
type process struct {
	pid    int
	fd     *os.File // its pidfd; nil where the kernel has none
	forget func()   // takes it out of the table of processes
}

// wait returns when the leader is dead, and leaves it unreaped. With a pidfd no thread waits.
func (p *process) wait() {
	if p.fd != nil {
		if raw, err := p.fd.SyscallConn(); err == nil {
			dead := false
			err = raw.Read(func(fd uintptr) bool {
				var info unix.Siginfo
				err := ignoreEINTR(func() error {
					return unix.Waitid(unix.P_PIDFD, int(fd), &info, unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, nil)
				})
				dead = err == nil && info.Signo != 0
				return dead || err != nil && !errors.Is(err, unix.EAGAIN)
			})
			if err == nil && dead {
				return
			}
		}
	}
	ignoreEINTR(func() error { return unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT, nil) })
}

// reap takes the dead leader out of the system's table, which gives its number free. Members of the group that became
// our children (when the agent is process 1 of a container, orphans do) are reaped as well, or they would stay zombies.
func (p *process) reap() exitStatus {
	var ws unix.WaitStatus
	ignoreEINTR(func() error { _, err := unix.Wait4(p.pid, &ws, 0, nil); return err })
	for {
		var other unix.WaitStatus
		if ignoreEINTR(func() error { _, err := unix.Wait4(-p.pid, &other, 0, nil); return err }) != nil {
			break
		}
	}
	if p.fd != nil {
		p.fd.Close()
	}
	if p.forget != nil {
		p.forget()
	}
	if ws.Signaled() {
		return exitStatus{signal: ws.Signal()}
	}
	return exitStatus{exit: ws.ExitStatus()}
}

// groupLives tells whether the group has a living member.
func (p *process) groupLives() bool { return len(groupMembers(p.pid)) > 0 }

func ignoreEINTR(f func() error) error {
	for {
		if err := f(); err != syscall.EINTR {
			return err
		}
	}
}
