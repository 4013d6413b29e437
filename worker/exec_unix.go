//go:build unix

package worker

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/musterhq/muster/job"
)

const (
	openNoFollow = syscall.O_NOFOLLOW
	openNonblock = syscall.O_NONBLOCK
)

// ownedBy tells whether a file is the user's; -1 is the worker's own.
func ownedBy(fi fs.FileInfo, uid int) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if uid < 0 {
		uid = os.Geteuid()
	}
	return ok && int(st.Uid) == uid
}

var copyBuffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// run starts the command and sees it to its end. stop is set if it was stopped rather than ended by itself.
func (e *Exec) run(ctx context.Context, fence job.Fence, c *command, out io.Writer) (status exitStatus, stop *Stop, no *refusal) {
	pipes, err := openPipes(c.stdin)
	if err != nil {
		return status, nil, cannotStart("the worker cannot open pipes for the command: %v", err)
	}
	p, err := e.starter.start(c, pipes, func(pid int) (func(), error) { return e.cfg.Processes.add(fence, pid) })
	pipes.closeChildEnds()
	if err != nil {
		pipes.close()
		return status, nil, startRefusal(err, c)
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		pipes.copyOut(out)
	}()
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		pipes.feed(c.stdin)
	}()
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		p.wait()
	}()

	select {
	case <-exited:
	case <-ctx.Done():
		select {
		case <-exited: // it ended by itself at the same moment; that counts
		default:
			stop = stopOf(ctx, e.cfg.KillGrace)
			p.end(stop.Grace, exited)
		}
	}
	// The leader is dead but not reaped, so its number still names our group and nobody else's.
	p.signalGroup(syscall.SIGKILL)
	status = p.reap()

	// Whoever still holds the output has left the group. He is given a moment, for a daemon closes what it inherited.
	pipes.out.SetReadDeadline(time.Now().Add(e.cfg.WaitDelay))
	<-copied
	pipes.close() // ends feed, too
	<-fed
	return status, stop, nil
}

// end stops a process group: SIGTERM, and SIGKILL once the grace is over. It returns when the leader is dead and the
// group has gone or had its grace: a shell dies of SIGTERM at once while the program it started still cleans up.
func (p *process) end(grace time.Duration, exited <-chan struct{}) {
	if grace > 0 {
		p.signalGroup(syscall.SIGTERM)
		over := time.NewTimer(grace)
		defer over.Stop()
		select {
		case <-exited:
			pause := 5 * time.Millisecond
			for p.groupLives() {
				select {
				case <-over.C:
					return
				case <-time.After(pause): // no system tells when a group is empty
					pause = min(2*pause, 250*time.Millisecond)
				}
			}
			return
		case <-over.C:
		}
	}
	p.signalGroup(syscall.SIGKILL)
	<-exited
}

// signalGroup is only called while the leader is not reaped.
func (p *process) signalGroup(s syscall.Signal) { syscall.Kill(-p.pid, s) }

// pipes are the descriptors between the worker and one command: stdin for the payload, and one for stdout and stderr
// together, so that their order is kept.
type pipes struct {
	in       *os.File // nil without a payload: the command reads /dev/null
	out      *os.File
	childIn  int
	childOut int
}

func openPipes(payload []byte) (*pipes, error) {
	p := &pipes{childIn: -1, childOut: -1}
	var fds [2]int
	if err := pipeCloexec(fds[:]); err != nil {
		return nil, err
	}
	p.out, p.childOut = pollable(fds[0], "output"), fds[1]
	if len(payload) == 0 {
		fd, err := syscall.Open(os.DevNull, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err != nil {
			p.close()
			return nil, err
		}
		p.childIn = fd
		return p, nil
	}
	if err := pipeCloexec(fds[:]); err != nil {
		p.close()
		return nil, err
	}
	p.in, p.childIn = pollable(fds[1], "stdin"), fds[0]
	return p, nil
}

// pollable wraps the worker's end: the runtime waits for it without a thread, and a deadline or Close ends that.
func pollable(fd int, name string) *os.File {
	syscall.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), name)
}

func (p *pipes) closeChildEnds() {
	for _, fd := range []*int{&p.childIn, &p.childOut} {
		if *fd >= 0 {
			syscall.Close(*fd)
			*fd = -1
		}
	}
}

func (p *pipes) close() {
	p.closeChildEnds()
	p.out.Close()
	if p.in != nil {
		p.in.Close()
	}
}

// feed writes the payload. A command need not read it.
func (p *pipes) feed(payload []byte) {
	if p.in != nil {
		p.in.Write(payload)
		p.in.Close()
	}
}

// copyOut passes the output on until nobody can write any more. What out refuses is dropped: the command must not hang
// because its output cannot be kept.
func (p *pipes) copyOut(out io.Writer) {
	buf := copyBuffers.Get().(*[32 << 10]byte)
	defer copyBuffers.Put(buf)
	broken := false
	for {
		n, err := p.out.Read(buf[:])
		if n > 0 && !broken {
			_, werr := out.Write(buf[:n])
			broken = werr != nil
		}
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) && !broken {
				io.WriteString(out, "\n[output closed: a process outside the command's group still held it open]\n")
			}
			return
		}
	}
}
