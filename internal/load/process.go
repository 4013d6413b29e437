package load

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// process is a child of ours.
type process struct {
	name   string
	socket string
	cmd    *exec.Cmd
	stdin  io.Closer // its end tells the child that we are gone, however we went
	logs   *tail
	ended  chan struct{}
	err    error // of Wait; read after ended
}

// start starts this very binary with args. Standard output goes to out, which is read until the process ends.
func (b *bench) start(name string, env []string, out func(io.Reader), args ...string) (*process, error) {
	p := &process{name: name, socket: b.socket(name), logs: new(tail), ended: make(chan struct{})}
	_ = os.Remove(p.socket) // a killed predecessor leaves it
	args = append(args, "--debug", p.socket)
	argv := append(append([]string(nil), b.Command...), args...)
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Env, p.cmd.Stderr = append(slices.Clip(b.Env), env...), p.logs
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	p.stdin = stdin
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the %s: %w", name, err)
	}
	go func() {
		defer close(p.ended)
		out(stdout)
		_, _ = io.Copy(io.Discard, stdout)
		p.err = p.cmd.Wait()
	}()
	return p, nil
}

func (b *bench) socket(name string) string { return filepath.Join(b.dir, name+".sock") }

// stop ends a process softly, and hard if that takes long.
func (p *process) stop() {
	if p == nil {
		return
	}
	p.stdin.Close()
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		p.kill()
	}
}

// kill ends it as a crash would.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
	p.stdin.Close()
}

// startNode starts a node on the benchmark's data directory and answers when its API is announced.
func (b *bench) startNode(ctx context.Context, args ...string) (*process, string, error) {
	ready := make(chan string, 1)
	out := func(r io.Reader) {
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			if i := strings.Index(lines.Text(), "http://"); i >= 0 {
				select {
				case ready <- strings.Fields(lines.Text()[i:])[0]:
				default:
				}
			}
		}
	}
	var env []string
	if b.stores != nil { // a URL may hold a password, and everybody can read arguments
		env = append(env, "MUSTER_POSTGRES="+b.stores.Postgres, "MUSTER_REDIS="+b.stores.Redis)
	}
	p, err := b.start("node", env, out, append([]string{"bench", "node", "--data", filepath.Join(b.dir, "node")}, args...)...)
	if err != nil {
		return nil, "", err
	}
	select {
	case url := <-ready:
		return p, url, nil
	case <-p.ended:
		return nil, "", fmt.Errorf("the node ended before it was ready: %w\n%s", p.err, p.logs)
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(60 * time.Second):
		err = fmt.Errorf("the node was not ready after 60 s\n%s", p.logs)
	}
	p.stop()
	return nil, "", err
}

// startWorker starts the worker's process, whose records c collects.
func (b *bench) startWorker(urls []string, c *collector) (*process, error) {
	args := []string{"bench", "worker", "--join", strings.Join(urls, ","), "--name", b.workerName(),
		"--data", filepath.Join(b.dir, "worker"), "--slots", strconv.Itoa(b.Slots)}
	if b.Cluster != nil && b.Cluster.CA != "" {
		args = append(args, "--ca", b.Cluster.CA)
	} else { // a worker that can do nothing but count may take orders from anybody
		args = append(args, "--insecure")
	}
	if b.Cluster != nil && b.Cluster.JoinTokenFile != "" {
		args = append(args, "--join-token", b.Cluster.JoinTokenFile)
	}
	return b.start("worker", nil, c.read, args...)
}

// workerName is unique, and the name of the handler too.
func (b *bench) workerName() string { return filepath.Base(b.dir) }

// alive tells why a process is not.
func (p *process) alive() error {
	if p == nil {
		return nil
	}
	select {
	case <-p.ended:
		return fmt.Errorf("the %s ended: %w\n%s", p.name, p.err, p.logs)
	default:
		return nil
	}
}

// tail keeps the end of what a process logs.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if n := len(t.buf) - 8<<10; n > 0 {
		t.buf = append(t.buf[:0], t.buf[n:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
