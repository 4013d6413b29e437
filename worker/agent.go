package worker

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"sync"
	"time"

	"github.com/musterhq/muster/job"
)

// Config of an Agent.
type Config struct {
	// Name is the worker's, unique in the cluster. Required.
	Name string
	// DataDir holds what must outlive the process: unacknowledged results, and which process groups run. The agent locks
	// it. Required.
	DataDir string
	// Addresses are the base URLs of the nodes' APIs, such as https://10.0.0.1:8080. At least one.
	Addresses []string
	// Refresh answers the addresses anew. It is asked now and then, and when none of those that are known answers. Nil: they
	// stay as they are.
	Refresh func(ctx context.Context) ([]string, error)
	// Labels are what selectors match.
	Labels map[string]string
	// Slots is how much runs at once. Default: the number of CPUs.
	Slots int
	// Version of the binary, for people.
	Version string

	// Exec, HTTP and Handlers are what this worker can run; nil: not that. DataDir and Processes of Exec are filled in by
	// the agent. At least one is needed.
	Exec     *ExecConfig
	HTTP     *HTTPConfig
	Handlers *Handlers

	// TLS is what the cluster asks for, with the worker's certificate. Default: the system's trust, no certificate.
	TLS *tls.Config
	// HTTPClient carries the streams instead of NewHTTPClient(TLS, nil). It must speak HTTP/2, and should give up what
	// hangs, as that does.
	HTTPClient *http.Client
	// Logger; default slog.Default().
	Logger *slog.Logger
	// Clock; default the system's.
	Clock Clock
	// DrainTimeout is how long what runs may go on when the agent is asked to stop; then it is stopped and given back.
	// Default 30 s; negative: none.
	DrainTimeout time.Duration
	// StopGrace is how long work that is told to stop may take over it before it is killed. Default 10 s.
	StopGrace time.Duration
	// FlushTimeout is how long the agent, when nothing runs any more, waits for results to be acknowledged before it
	// exits. What is not acknowledged stays on disk for the next start. Default 5 s.
	FlushTimeout time.Duration
	// MaxOutputTail bounds the output kept in memory to be sent, or sent again to another node. Default 8 MiB.
	MaxOutputTail int
}

var validWorkerName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// Validate fills the defaults in and names the field that is wrong.
func (c *Config) Validate() error {
	switch {
	case !validWorkerName.MatchString(c.Name):
		return job.InvalidField("name", "%.64q is not a worker's name; use letters, digits, dots, dashes and underscores, up to 128", c.Name)
	case c.DataDir == "":
		return job.InvalidField("data", "a worker needs a data directory")
	case len(c.Addresses) == 0:
		return job.InvalidField("join", "a worker needs the address of at least one node")
	case c.Slots < 0:
		return job.InvalidField("slots", "must not be negative")
	case c.Exec == nil && c.HTTP == nil && c.Handlers == nil:
		return job.InvalidField("", "the worker can run nothing: allow exec, http, or register handlers")
	}
	for _, a := range c.Addresses {
		if err := checkAddress(a); err != nil {
			return err
		}
	}
	if c.Slots == 0 {
		c.Slots = runtime.GOMAXPROCS(0)
	}
	if c.HTTPClient == nil {
		c.HTTPClient = NewHTTPClient(c.TLS, nil)
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Clock == nil {
		c.Clock = systemClock{}
	}
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&c.DrainTimeout, 30 * time.Second}, {&c.StopGrace, job.LeaseKillGrace}, {&c.FlushTimeout, 5 * time.Second}} {
		if *d.v == 0 {
			*d.v = d.def
		}
		*d.v = max(0, *d.v)
	}
	if c.MaxOutputTail <= 0 {
		c.MaxOutputTail = 8 << 20
	}
	return nil
}

// Clock is the time as the agent sees it.
type Clock interface {
	// Now is the wall clock, for the times that are reported and for deadlines.
	Now() time.Time
	// Elapsed is the time since some moment, on a clock that never jumps and that runs while the machine sleeps: leases
	// are counted on it (L4).
	Elapsed() time.Duration
}

// Agent joins a machine to the cluster: it attaches to a node, runs what it is assigned, and reports.
type Agent struct {
	config   Config
	boot     string
	dataID   string
	spool    *Spool
	executor *Executors
	offers   [2][]string // executors, handlers
	tail     *outputTail
	wake     chan struct{}   // for the writer of the stream; with a buffer of one
	reports  chan struct{}   // for the goroutine that spools results; with a buffer of one
	work     context.Context // of all attempts
	roster   *roster
	left     sync.WaitGroup // what ended streams left behind

	drain     chan struct{} // closed when a node tells the worker to finish and stop
	drainOnce sync.Once

	mu     sync.Mutex
	desk   desk     // what runs and what is held
	lease  lease    // of all that runs
	line   *session // the stream, if there is one
	seat   *session // the stream, while its last Hello is accepted: only then work is taken
	hellos uint64   // that were said
	ended  chan struct{}
}

// New checks the configuration and makes an Agent. It does no I/O.
func New(c Config) (*Agent, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	var b [8]byte
	rand.Read(b[:])
	a := &Agent{
		config: c, boot: hex.EncodeToString(b[:]), wake: make(chan struct{}, 1),
		reports: make(chan struct{}, 1), drain: make(chan struct{}), ended: make(chan struct{}, 1), roster: newRoster(c.Addresses),
	}
	a.tail = newOutputTail(c.MaxOutputTail, a.signal)
	a.desk = newDesk(c.Slots)
	a.lease.timeout = job.LeaseTimeout
	return a, nil
}

// Run joins the cluster and works until ctx ends or a node drains the worker. Then it takes no new work, lets what runs
// finish for DrainTimeout, stops the rest and gives it back, and returns when the results are acknowledged or FlushTimeout
// is over. It returns an error if it could not begin, if the cluster refuses this worker before it was ever attached, or
// if a handler ignored its context for so long that it was left behind: then the process should end. An Agent runs once.
func (a *Agent) Run(ctx context.Context) (err error) {
	log := a.config.Logger
	unlock, err := lockDataDir(a.config.DataDir)
	if err != nil {
		return err
	}
	defer unlock()
	if a.dataID, err = dataDirID(a.config.DataDir); err != nil {
		return err
	}
	closeAll, err := a.open(ctx)
	if err != nil {
		return errors.Join(err, closeAll())
	}
	defer func() { err = errors.Join(err, closeAll()) }()

	// Attempts and streams outlive ctx, which only says when to begin to stop.
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	a.work = work
	streams, stopStreams := context.WithCancel(work)
	defer stopStreams()
	refused := make(chan error, 1)
	var parts sync.WaitGroup
	parts.Go(func() { a.report(work) })
	parts.Go(func() { a.tick(work) })
	parts.Go(func() { a.keepFresh(streams) })
	parts.Go(func() {
		if err := a.stayAttached(streams); err != nil {
			refused <- err
		}
	})
	log.Info("worker started", "worker", a.config.Name, "boot", a.boot, "slots", a.config.Slots, "held_results", a.spool.Len())

	select {
	case <-ctx.Done():
	case <-a.drain:
	case err = <-refused:
	}
	log.Info("worker stopping", "worker", a.config.Name)
	a.leave()
	nothingRuns := func() bool { return len(a.desk.running) == 0 }
	if !a.waitFor(a.config.DrainTimeout, nothingRuns) {
		a.stopAll(&Stop{Reason: job.WorkerStopped, Grace: a.config.StopGrace})
		if !a.waitFor(a.config.StopGrace+stopSlack, nothingRuns) {
			// Go cannot end a function from outside. The lease of its attempt runs out after the process has ended.
			err = errors.Join(err, fmt.Errorf("worker: %d attempts did not stop when told to", a.Stats().Running))
		}
	}
	if err == nil && !a.waitFor(a.config.FlushTimeout, func() bool { return len(a.desk.held) == 0 }) {
		log.Warn("results are kept for the next start: nobody acknowledged them", "worker", a.config.Name, "held_results", a.spool.Len())
	}
	stopStreams()
	stopWork()
	parts.Wait()
	a.left.Wait()
	a.config.HTTPClient.CloseIdleConnections()
	log.Info("worker stopped", "worker", a.config.Name)
	return err
}

// stopSlack is how much longer than its grace an executor may take to end what it was told to stop.
const stopSlack = 5 * time.Second

// open makes the executors and the spool, and kills what an earlier life left running: before the Hello, which would
// otherwise have to list it (L4).
func (a *Agent) open(ctx context.Context) (closeAll func() error, err error) {
	var closers []func() error
	closeAll = func() error {
		var errs []error
		for i := len(closers) - 1; i >= 0; i-- {
			errs = append(errs, closers[i]())
		}
		return errors.Join(errs...)
	}
	processes, err := OpenProcesses(a.config.DataDir)
	if err != nil {
		return closeAll, err
	}
	closers = append(closers, processes.Close)
	killed, err := processes.KillRecorded(ctx)
	if err != nil {
		return closeAll, fmt.Errorf("kill what an earlier agent left running: %w", err)
	}
	if killed > 0 {
		a.config.Logger.Warn("killed process groups that an earlier agent left running", "worker", a.config.Name, "groups", killed)
	}
	if a.spool, err = OpenSpool(a.config.DataDir); err != nil {
		return closeAll, err
	}
	closers = append(closers, a.spool.Close)

	x := &Executors{Handlers: a.config.Handlers}
	closers = append(closers, x.Close)
	if a.config.Exec != nil {
		c := *a.config.Exec
		c.DataDir, c.Processes = a.config.DataDir, processes
		if x.Exec, err = NewExec(c); err != nil {
			return closeAll, err
		}
	}
	if a.config.HTTP != nil {
		if x.HTTP, err = NewHTTP(*a.config.HTTP); err != nil {
			return closeAll, err
		}
	}
	a.executor, a.offers = x, [2][]string{x.Names(), x.HandlerNames()}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range a.spool.Pending() {
		a.desk.resume(o)
	}
	return closeAll, nil
}

// Stats is what an agent does at the moment.
type Stats struct {
	Node        string // the address that it is attached to; "" while it is not
	Running     int    // attempts
	SlotsUsed   int
	HeldResults int // not yet acknowledged
}

// Stats may be called at any time.
func (a *Agent) Stats() Stats {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := Stats{Running: len(a.desk.running), SlotsUsed: a.desk.used, HeldResults: len(a.desk.held)}
	if a.seat != nil {
		s.Node = a.seat.address
	}
	return s
}

// signal wakes the writer.
func (a *Agent) signal() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// leave says that no more work is wanted: at once to ourselves, and by a Hello to the node.
func (a *Agent) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.desk.leaving = true
	if a.line != nil {
		a.line.askHello(ownHello)
	}
}

// waitFor waits until something is true of the desk, which is asked under mu; false when the time is over.
func (a *Agent) waitFor(limit time.Duration, done func() bool) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		a.mu.Lock()
		ok := done()
		a.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-a.ended:
		case <-timer.C:
			return false
		}
	}
}

// moved wakes waitFor, of which there is one at a time.
func (a *Agent) moved() {
	select {
	case a.ended <- struct{}{}:
	default:
	}
}

// stopAll cancels everything that runs.
func (a *Agent) stopAll(why *Stop) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range a.desk.running {
		t.cancel(why)
	}
}

// dataDirID names the data directory for as long as it exists: a worker that comes back with it is the same one.
func dataDirID(dir string) (string, error) {
	path := dir + string(os.PathSeparator) + "id"
	b, err := os.ReadFile(path)
	if err == nil && len(b) >= 32 {
		return string(b[:32]), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read the id of the data directory: %w", err)
	}
	var r [16]byte
	rand.Read(r[:])
	id := hex.EncodeToString(r[:])
	if err := os.WriteFile(path+".new", []byte(id+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write the id of the data directory: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return "", fmt.Errorf("write the id of the data directory: %w", err)
	}
	return id, nil
}
