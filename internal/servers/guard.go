//go:build unix

package servers

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

// guard ends a server when this process has ended.
type guard struct {
	keep bool // the directory
	once sync.Once
	cmd  *exec.Cmd
	pipe *os.File // that ends with us
}

// watch waits for the end of its input. What is left then of a server in the working directory is stopped: with the
// signal $1, and after a while for good. A PostgreSQL that was killed leaves a small piece of shared memory behind, which
// its next life would take; it goes, too, where there is no next life.
const watch = `trap '' INT TERM HUP QUIT
while read -r _; do :; done
if read -r pid <pid; then
	kill -CONT "$pid" && kill "-$1" "$pid" && for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
		kill -0 "$pid" || break
		sleep 0.5
	done
	kill -KILL "$pid"
fi
rm -f pid
if [ -n "$2" ]; then
	set -- "$PWD" $(sed -n 7p data/postmaster.pid)
	[ -n "$3" ] && ipcrm -m "$3"
	cd / && { rm -rf "$1" || { sleep 1; rm -rf "$1"; }; }
fi`

func newGuard(dir, signal string, keep bool) (*guard, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	remove := "remove"
	if keep {
		remove = ""
	}
	c := exec.Command("/bin/sh", "-c", watch, "sh", signal, remove)
	c.Dir, c.Stdin = dir, r
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.Start(); err != nil {
		w.Close()
		return nil, err
	}
	return &guard{keep: keep, cmd: c, pipe: w}, nil
}

// close lets the guard do its work and waits for it.
func (g *guard) close() {
	g.once.Do(func() {
		g.pipe.Close()
		g.cmd.Wait()
	})
}

// port is one that this process, and no other that uses this package, takes for its servers. A server that is down for a
// while finds it again.
type port struct {
	number int
	lock   *os.File
}

// Below are the ports of internal/systemtest, above those that the system gives out by itself.
const firstPort, lastPort = 10000, 11999

var nextPort struct {
	sync.Mutex
	number int
}

// takePort takes the wanted port if it is free, or any other.
func takePort(wanted int) (*port, error) {
	dir, err := ownDir("muster-ports")
	if err != nil {
		return nil, err
	}
	nextPort.Lock()
	defer nextPort.Unlock()
	if nextPort.number == 0 {
		nextPort.number = firstPort + os.Getpid()*7%(lastPort-firstPort)
	}
	for range lastPort - firstPort {
		n := wanted
		if wanted = 0; n == 0 {
			n = nextPort.number
			if nextPort.number++; nextPort.number > lastPort {
				nextPort.number = firstPort
			}
		}
		lock, err := lockFile(filepath.Join(dir, strconv.Itoa(n)), syscall.LOCK_EX|syscall.LOCK_NB)
		if err != nil {
			continue
		}
		if l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(n))); err == nil {
			l.Close()
			return &port{number: n, lock: lock}, nil
		}
		lock.Close()
	}
	return nil, fmt.Errorf("no free port between %d and %d", firstPort, lastPort)
}

func (p *port) String() string { return strconv.Itoa(p.number) }

func (p *port) release() { p.lock.Close() }

// lockFile takes a lock that the system lets go of when this process ends.
func lockFile(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), how)
		if err == nil {
			return f, nil
		}
		if err != syscall.EINTR {
			f.Close()
			return nil, err
		}
	}
}

// rememberedPort takes the port that the server in this directory had before, if it is free.
func rememberedPort(dir string) (*port, error) {
	file := filepath.Join(dir, "port")
	b, _ := os.ReadFile(file)
	was, _ := strconv.Atoi(string(b))
	p, err := takePort(was)
	if err == nil {
		err = os.WriteFile(file, []byte(p.String()), 0o600)
	}
	return p, err
}

// rememberedSecret makes a password for the server in this directory, once.
func rememberedSecret(dir string) (string, error) {
	file := filepath.Join(dir, "secret")
	if b, err := os.ReadFile(file); err == nil {
		return string(b), nil
	}
	secret := rand.Text()
	return secret, os.WriteFile(file, []byte(secret), 0o600)
}
