package load

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
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
func (b *bench) start(name string, out func(io.Reader), args ...string) (*process, error) {
	p := &process{name: name, socket: b.socket(name), logs: new(tail), ended: make(chan struct{})}
	_ = os.Remove(p.socket) // a killed predecessor leaves it
	args = append(args, "--debug", p.socket)
	argv := append(append([]string(nil), b.Command...), args...)
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Env, p.cmd.Stderr = b.Env, p.logs
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
	p, err := b.start("node", out, append([]string{"bench", "node", "--data", filepath.Join(b.dir, "node")}, args...)...)
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
	return b.start("worker", c.read, "bench", "worker", "--address", strings.Join(urls, ","), "--name", b.workerName(),
		"--data", filepath.Join(b.dir, "worker"), "--slots", strconv.Itoa(b.Slots))
}

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

// usage is what a process, or the whole machine, has used so far. NaN: not to be had.
type usage struct {
	cpu  float64 // seconds
	rss  float64 // bytes
	peak float64 // bytes
}

var unknown = usage{math.NaN(), math.NaN(), math.NaN()}

// ticksPerSecond is the unit of CPU time in /proc: it has been 100 on all of Linux's ports that matter for long.
const ticksPerSecond = 100

// processUsage reads /proc, where there is one.
func processUsage(pid int) usage {
	u := unknown
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return u
	}
	// The name may hold anything; what follows its last parenthesis are fields 3 and up: utime is 14, stime 15.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) > 12 {
		user, err1 := strconv.ParseFloat(fields[11], 64)
		system, err2 := strconv.ParseFloat(fields[12], 64)
		if err1 == nil && err2 == nil {
			u.cpu = (user + system) / ticksPerSecond
		}
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return u
	}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		if kb, err := strconv.ParseFloat(f[1], 64); err == nil {
			switch f[0] {
			case "VmRSS:":
				u.rss = kb * 1024
			case "VmHWM:":
				u.peak = kb * 1024
			}
		}
	}
	return u
}

// machineCPU is the CPU seconds of everybody on the machine; NaN where it cannot be told.
func machineCPU() float64 {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return math.NaN()
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	f := strings.Fields(line) // cpu user nice system idle iowait irq softirq steal
	if len(f) < 9 {
		return math.NaN()
	}
	sum := 0.0
	for _, i := range []int{1, 2, 3, 6, 7, 8} {
		v, err := strconv.ParseFloat(f[i], 64)
		if err != nil {
			return math.NaN()
		}
		sum += v
	}
	return sum / ticksPerSecond
}
