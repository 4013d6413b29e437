//go:build unix && !linux

package worker

import (
	"errors"
	"sync"
	"syscall"
)

func pipeCloexec(fds []int) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := syscall.Pipe(fds); err != nil {
		return err
	}
	syscall.CloseOnExec(fds[0])
	syscall.CloseOnExec(fds[1])
	return nil
}

// starter starts commands. Only Linux has a parent-death signal: here a killed agent leaves its commands running.
type starter struct {
	mu     sync.Mutex
	closed bool
}

func (s *starter) start(c *command, pipes *pipes, record func(pid int) (func(), error)) (*process, error) {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return nil, errors.New("the worker is shutting down")
	}
	attr := &syscall.ProcAttr{
		Dir:   c.dir,
		Env:   c.env,
		Files: []uintptr{uintptr(pipes.childIn), uintptr(pipes.childOut), uintptr(pipes.childOut)},
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	}
	if u := c.user; u != nil {
		attr.Sys.Credential = &syscall.Credential{Uid: u.uid, Gid: u.gid, Groups: u.groups}
	}
	pid, err := syscall.ForkExec(c.path, c.argv, attr)
	if err != nil {
		return nil, err
	}
	return &process{pid: pid}, nil
}

func (s *starter) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

type process struct {
	pid int
	ws  syscall.WaitStatus
}

// wait reaps the leader as well, for want of a portable way not to; while a member of the group lives, its number is not
// given away.
func (p *process) wait() {
	for {
		if _, err := syscall.Wait4(p.pid, &p.ws, 0, nil); err != syscall.EINTR {
			return
		}
	}
}

func (p *process) reap() exitStatus {
	if p.ws.Signaled() {
		return exitStatus{signal: p.ws.Signal()}
	}
	return exitStatus{exit: p.ws.ExitStatus()}
}

func (p *process) groupLives() bool { return syscall.Kill(-p.pid, 0) == nil }
