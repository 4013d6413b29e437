package bubble

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/internal/app"
	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/internal/clustertest"
	"github.com/musterhq/muster/internal/pki"
	"github.com/musterhq/muster/job"
)

var keep = flag.String("history", "", "where the histories of failed trials are kept; default a new temporary directory")

// world is a cluster and all around it, in one bubble.
type world struct {
	t       *testing.T
	rand    *rand.Rand // of the test's own goroutine
	net     *clustertest.Network
	dir     string
	start   time.Time
	logs    *logs
	rec     recorder
	nodes   []*server
	workers []*agent
	pids    atomic.Int64
	quiet   func() // ends the load
	pool    pool

	made  *pki.Made // nil without certificates
	trust *tls.Config
	token string
	sdk   *client.Client // of all nodes; repeats until it has an answer
}

// pool is the clients that there are.
type pool struct {
	mu         sync.Mutex
	transports []*http.Transport
	clients    map[string]*client.Client // of one node
}

// latency is how long everything takes from one host to another.
const latency = time.Millisecond

// newWorld makes the nodes n1, n2... and starts nothing. It is called inside a bubble.
func newWorld(t *testing.T, seed uint64, nodes int, secure bool) *world {
	t.Helper()
	w := &world{t: t, rand: rand.New(rand.NewPCG(seed, 1)), net: clustertest.NewNetwork(latency), dir: t.TempDir(), start: time.Now(), logs: newLogs(), quiet: func() {}}
	w.pool.clients = map[string]*client.Client{}
	t.Cleanup(func() {
		w.quiet()
		w.stop()
		if t.Failed() {
			w.save(seed)
		}
	})
	if secure {
		w.certify(nodes)
	}
	for range nodes {
		w.addServer()
	}
	w.sdk = w.client(time.Minute, w.addresses()...)
	return w
}

// now is the moment, of the history.
func (w *world) now() checker.Moment { return checker.Moment(time.Second + time.Since(w.start)) }

func (w *world) elapsed() time.Duration { return time.Hour + time.Since(w.start) }

func (w *world) certify(nodes int) {
	w.t.Helper()
	var specs []pki.NodeSpec
	for i := range nodes {
		name := fmt.Sprintf("n%d", i+1)
		specs = append(specs, pki.NodeSpec{Name: name, Hosts: []string{name}})
	}
	var err error
	if w.made, err = pki.Init(filepath.Join(w.dir, "pki"), pki.InitOptions{Nodes: specs}); err != nil {
		w.t.Fatal(err)
	}
	if w.trust, err = client.TrustCA(w.made.CA); err != nil {
		w.t.Fatal(err)
	}
	w.token = read(w.t, w.made.AdminToken)
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// scheme is of the APIs' URLs.
func (w *world) scheme() string {
	if w.made != nil {
		return "https://"
	}
	return "http://"
}

func (w *world) addresses() []string {
	var all []string
	for _, n := range w.nodes {
		all = append(all, w.scheme()+n.api())
	}
	return all
}

// client makes one that sits on a host of its own, which nothing is done to.
func (w *world) client(retry time.Duration, addresses ...string) *client.Client {
	w.t.Helper()
	t := &http.Transport{TLSClientConfig: w.trust, DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
		return w.dial(ctx, "client", address)
	}, IdleConnTimeout: 10 * time.Second}
	w.pool.mu.Lock()
	w.pool.transports = append(w.pool.transports, t)
	w.pool.mu.Unlock()
	c, err := client.New(client.Config{Addresses: addresses, Token: w.token, HTTPClient: &http.Client{Transport: t}, RetryFor: retry, AttemptTimeout: 5 * time.Second})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// dial is what a machine does: it gives up after a while, and says what failed.
func (w *world) dial(ctx context.Context, from, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	c, err := w.net.Dial(ctx, from, address)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "mem", Err: err}
	}
	return c, nil
}

// life is one process of a host, from its start to its end. Once it is dead its network is: what it still does reaches
// nobody, so that however gracefully a killed one ends, the others see a process that is gone.
type life struct {
	w    *world
	host string
	dead atomic.Bool
	ctx  context.Context
	end  context.CancelFunc
	done chan struct{}
	err  error

	record checker.Life
}

func (w *world) begin(host string, role checker.Role) *life {
	l := &life{w: w, host: host, done: make(chan struct{}), record: checker.Life{Pid: int(w.pids.Add(1)), Role: role, Name: host, Start: w.now()}}
	l.ctx, l.end = context.WithCancel(context.Background())
	return l
}

func (l *life) network() *app.Network {
	return &app.Network{
		Listen: func(_ context.Context, address string) (net.Listener, error) {
			if l.dead.Load() {
				return nil, errors.New("this process was killed")
			}
			return l.w.net.Listen(address)
		},
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			if l.dead.Load() {
				return nil, &net.OpError{Op: "dial", Net: "mem", Err: errors.New("this process was killed")}
			}
			c, err := l.w.dial(ctx, l.host, address)
			if err == nil && l.dead.Load() {
				return nil, errors.Join(errors.New("this process was killed"), c.Close())
			}
			return c, err
		},
	}
}

func (l *life) run(f func(context.Context) error) {
	go func() {
		defer close(l.done)
		l.err = f(l.ctx)
	}()
}

// kill ends it as kill -9 does, as far as anybody else can see. It returns when the process is gone, which takes some of the
// bubble's time.
func (l *life) kill() {
	l.record.Kill = l.w.now()
	l.dead.Store(true)
	l.w.net.Kill(l.host)
	l.end()
	<-l.done
	l.record.Dead = l.w.now()
	l.w.rec.add(checker.Line{Life: &l.record})
}

// finish ends it gently.
func (l *life) finish() error {
	l.record.Stop = l.w.now()
	l.end()
	<-l.done
	l.w.rec.add(checker.Line{Life: &l.record})
	return l.err
}

// server is a node, over all its lives.
type server struct {
	w     *world
	name  string
	place string       // its data directory
	ahead atomic.Int64 // of the true time: its wall clock
	join  []string     // nil: all that there are
	tls   string
	now   *life // nil: it does not run
	ready atomic.Bool
	wiped int
	gone  atomic.Bool // it is not, or no longer, to be there
}

func (w *world) addServer() *server {
	name := fmt.Sprintf("n%d", len(w.nodes)+1)
	n := &server{w: w, name: name, place: filepath.Join(w.dir, name)}
	if w.made != nil {
		n.tls = filepath.Join(w.dir, "pki", "nodes", name)
	}
	w.nodes = append(w.nodes, n)
	return n
}

func (n *server) api() string { return n.name + ":8080" }

// start starts it.
func (n *server) start() {
	w := n.w
	join := n.join
	if join == nil {
		for _, v := range w.nodes {
			if !v.gone.Load() {
				join = append(join, v.api())
			}
		}
	}
	l := w.begin(n.name, checker.Node)
	n.now = l
	n.ready.Store(false)
	o := app.Options{
		DataDir: n.place, HTTP: n.api(), Name: n.name, Version: "test", Logger: w.logs.logger(n.name), Raft: n.name + ":7000", Join: join,
		TLS: n.tls, Insecure: n.tls == "", Network: l.network(), Elapsed: w.elapsed,
		Now:   func() time.Time { return time.Now().Add(time.Duration(n.ahead.Load())) },
		Ready: func(string) { n.ready.Store(true) },
	}
	l.run(func(ctx context.Context) error {
		err := app.Run(ctx, o)
		if ctx.Err() == nil && !l.dead.Load() && !n.gone.Load() {
			w.t.Errorf("%s ended by itself: %v", n.name, err)
		}
		return err
	})
}

func (n *server) kill() {
	n.now.kill()
	n.now = nil
}

// wipe takes away what a node that does not run has on its disk.
func (n *server) wipe() {
	n.wiped++
	n.place = filepath.Join(n.w.dir, fmt.Sprintf("%s-%d", n.name, n.wiped))
}

// agent is a worker, over all its lives.
type agent struct {
	w     *world
	name  string
	slots int
	now   *work // nil: it does not run
}

func (w *world) addWorker(slots int) *agent {
	a := &agent{w: w, name: fmt.Sprintf("w%d", len(w.workers)+1), slots: slots}
	w.workers = append(w.workers, a)
	return a
}

func (a *agent) start() {
	w := a.w
	l := &work{life: w.begin(a.name, checker.Worker), released: make(chan struct{})}
	a.now = l
	o := app.WorkerOptions{
		Name: a.name, DataDir: filepath.Join(w.dir, a.name), Join: w.addresses(), Insecure: w.made == nil, Slots: a.slots, Handlers: l.handlers(),
		Version: "test", Logger: w.logs.logger(a.name), Network: l.network(), Elapsed: w.elapsed, DrainTimeout: -1,
	}
	if w.made != nil {
		o.CA, o.JoinToken = w.made.CA, read(w.t, w.made.JoinToken)
	}
	l.run(func(ctx context.Context) error {
		err := app.RunWorker(ctx, o)
		if ctx.Err() == nil && !l.dead.Load() {
			w.t.Errorf("worker %s ended by itself: %v", a.name, err)
		}
		return err
	})
}

// kill ends it with all its work.
func (a *agent) kill() {
	a.now.kill()
	close(a.now.released)
	a.now = nil
}

// stop ends everything.
func (w *world) stop() {
	var all sync.WaitGroup
	for _, a := range w.workers {
		if a.now != nil {
			all.Go(func() {
				if err := a.now.finish(); err != nil {
					w.t.Errorf("worker %s ended: %v", a.name, err)
				}
				close(a.now.released)
				a.now = nil
			})
		}
	}
	all.Wait()
	for _, n := range w.nodes {
		if n.now != nil {
			all.Go(func() {
				if err := n.now.finish(); err != nil {
					w.t.Errorf("node %s ended: %v", n.name, err)
				}
				n.now = nil
			})
		}
	}
	all.Wait()
	for _, t := range w.pool.transports {
		t.CloseIdleConnections()
	}
	w.pool.transports = nil
	time.Sleep(2 * time.Minute) // Raft leaves calls behind that end by their own limits
}

// await polls until something is so.
func (w *world) await(limit time.Duration, what string, done func() bool) {
	w.t.Helper()
	for end := time.Now().Add(limit); !done(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("no %s after %s", what, limit)
		}
	}
}

// leader waits until somebody leads and its term has begun, and answers who.
func (w *world) leader(but ...*server) *server {
	w.t.Helper()
	var found *server
	w.await(2*time.Minute, "leader", func() bool {
		found = w.leads(but...)
		return found != nil
	})
	return found
}

// leads answers who says of itself that it leads in the newest epoch, nil if nobody does.
func (w *world) leads(but ...*server) (found *server) {
	var epoch job.Epoch
	for _, n := range w.nodes {
		if n.now == nil || slices.Contains(but, n) {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
		s, err := w.clientOf(n).Cluster(ctx)
		cancel()
		if err == nil && s.Leader == n.name && s.Epoch >= epoch && s.Epoch > 0 {
			found, epoch = n, s.Epoch
		}
	}
	return found
}

// clientOf is the client that asks one node, once.
func (w *world) clientOf(n *server) *client.Client {
	w.pool.mu.Lock()
	c := w.pool.clients[n.name]
	w.pool.mu.Unlock()
	if c == nil {
		c = w.client(-1, w.scheme()+n.api())
		w.pool.mu.Lock()
		w.pool.clients[n.name] = c
		w.pool.mu.Unlock()
	}
	return c
}

// whole waits until every node that runs takes requests and every worker is attached.
func (w *world) whole() {
	w.t.Helper()
	for _, n := range w.nodes {
		if n.now != nil {
			w.await(2*time.Minute, n.name+" that is ready", n.ready.Load)
		}
	}
	w.leader()
	w.await(2*time.Minute, "worker of all that run", func() bool {
		attached := map[string]bool{}
		for v, err := range w.sdk.Workers(context.Background(), client.WorkerFilter{}) {
			if err != nil {
				return false
			}
			attached[v.Name] = v.State != job.WorkerGone
		}
		for _, a := range w.workers {
			if a.now != nil && !attached[a.name] {
				return false
			}
		}
		return true
	})
}

// logs gathers what all log.
type logs struct {
	mu sync.Mutex
	b  strings.Builder
}

func newLogs() *logs { return &logs{} }

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logs) logger(host string) *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelInfo})).With("host", host)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
