package systemtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

var fewer = flag.Int("rounds", 0, "how often the trials of -chaos pause or wipe at most; 0: as often as is worth it")

var chaos = flag.Bool("chaos", false, "the cluster trials at full length; without it only the short ones, with small counts")

// full picks a count: the one of `make chaos`, or the one of every `go test`.
func full(chaosCount, short int) int {
	if *chaos {
		return chaosCount
	}
	return short
}

// long skips a trial that cannot be made short.
func long(t *testing.T) {
	t.Helper()
	if !*chaos {
		t.Skip("it takes longer than a lease; -chaos runs it")
	}
}

// rounds is how often a trial does what it does: most times, unless -rounds says less.
func rounds(most int) int {
	if *fewer > 0 {
		return min(most, *fewer)
	}
	return most
}

// shape is what a trial's cluster is made of.
type shape struct {
	nodes, workers int
	jobs           int // that tick every second
	slots          int // of each worker
	quiet          bool
	clocks         bool     // the nodes are this test's binary, which reads how wrong its clock is from a file
	net            *network // nil: all on loopback
	stores         bool     // the nodes keep everything in a Postgres and a Redis of their own
	breakable      bool     // the nodes end where they are told to (package failpoint)
	dev            bool     // one `muster dev` instead of the nodes: for working on these tests
}

// cluster is real nodes and workers, each a process, and the clients of a trial.
type cluster struct {
	shape
	t       *testing.T
	dir     string
	binary  string
	rec     *recorder
	starter *starter
	seed    uint64
	rand    *rand.Rand
	token   string
	ca      *tls.Config
	http    *http.Client // asks one node, once, and does not wait for long
	nodes   []*process
	workers []*process
	docs    []*job.Document // that tick
	others  []*job.Document // of graphs, without a schedule
	stored  *stores         // nil: embedded
	load    *load
	stop    func() // ends the load
	began   time.Time
}

// newCluster makes certificates and processes, and starts nothing.
func newCluster(t *testing.T, s shape) *cluster {
	t.Helper()
	if !*chaos {
		t.Parallel() // they mostly wait
	}
	seed := chosenSeed(t)
	c := &cluster{shape: s, t: t, seed: seed, dir: t.TempDir(), rand: rand.New(rand.NewPCG(seed, 7)), starter: newStarter(t), began: time.Now()}
	if *keep != "" {
		c.dir = filepath.Join(absolute(t, *keep), t.Name())
		if err := os.RemoveAll(c.dir); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(c.dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	c.rec = newRecorder(t, c.dir)
	if err := os.WriteFile(filepath.Join(c.dir, workFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.binary = buildMuster(t)
	serve := c.binary
	if s.breakable {
		serve = buildBreakable(t)
	}
	var where []string
	if s.stores {
		c.stored = startStores(c)
		where = []string{"--postgres", c.stored.postgres.URL, "--redis", c.stored.redis.URL}
	}
	var names, hosts, apis []string
	var ports []int
	for i := range s.nodes {
		host, port := "127.0.0.1", 0
		if s.net != nil {
			host, port = s.net.node(i), 8080
		} else {
			port = freePorts(t)
		}
		names, hosts, ports = append(names, fmt.Sprintf("n%d", i+1)), append(hosts, host), append(ports, port)
		apis = append(apis, at(host, port))
	}
	if !s.dev {
		c.certify(names, hosts)
	}
	c.http = &http.Client{Transport: &http.Transport{TLSClientConfig: c.ca, DisableKeepAlives: true}, Timeout: time.Second}
	var endpoints []endpoint
	for i, name := range names {
		p := process{role: checker.Node, name: name, dir: c.dir, url: c.url(apis[i]), http: c.http, rec: c.rec, starter: c.starter}
		p.command = func() *exec.Cmd {
			args := []string{"server", "--name", name, "--data", filepath.Join(c.dir, name), "--http", apis[i], "--raft", at(hosts[i], ports[i]+1),
				"--gossip", at(hosts[i], ports[i]+2), "--join", strings.Join(apis, ","), "--tls", c.pki("nodes", name), "--log-level", "info"}
			args = append(args, where...)
			switch {
			case s.dev:
				args = []string{"dev", "--no-worker", "--data", filepath.Join(c.dir, name), "--http", apis[i], "--log-level", "info"}
			case s.clocks:
				x := exec.Command(os.Args[0], args...)
				x.Env = append(os.Environ(), wrongClock+"="+c.clockFile(name))
				return x
			}
			return c.inside(s.net.nodeSpace(i), exec.Command(serve, args...))
		}
		c.nodes = append(c.nodes, newProcess(t, p))
		endpoints = append(endpoints, endpoint{name, p.url})
	}
	for i := range s.workers {
		name := fmt.Sprintf("w%d", i+1)
		p := process{role: checker.Worker, name: name, dir: c.dir, rec: c.rec, starter: c.starter}
		p.command = func() *exec.Cmd {
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			args := []string{"worker", "--name", name, "--data", filepath.Join(c.dir, name), "--join", strings.Join(apis, ","),
				"--slots", strconv.Itoa(s.slots), "--label", "worker=" + name, "--allow-exec", self, "--allow-exec", nothing, "--no-http", "--log-level", "info"}
			if !s.dev {
				args = append(args, "--join-token", c.pki("join.token"), "--ca", c.pki("ca.crt"))
			}
			return c.inside(s.net.workerSpace(i), exec.Command(c.binary, args...))
		}
		p.began = func(pid int) { // long before its first command
			if err := os.WriteFile(workerFile(c.dir, pid), []byte(name), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c.workers = append(c.workers, newProcess(t, p))
	}
	c.docs = documents(c.dir, s.jobs)
	c.load = newLoad(t, c.dir, endpoints, c.ca, c.token, c.rec, c.docs)
	c.stop = func() {}
	return c
}

func absolute(t *testing.T, dir string) string {
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func at(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

func (c *cluster) url(address string) string {
	if c.dev {
		return "http://" + address
	}
	return "https://" + address
}

func (c *cluster) pki(path ...string) string {
	return filepath.Join(append([]string{c.dir, "pki"}, path...)...)
}

func (c *cluster) clockFile(node string) string { return filepath.Join(c.dir, "clock-"+node) }

// inside runs a command in a network namespace, "" for the test's own. The program that enters it becomes the command.
func (c *cluster) inside(space string, x *exec.Cmd) *exec.Cmd {
	if space == "" {
		return x
	}
	return exec.Command("ip", append([]string{"netns", "exec", space}, x.Args...)...)
}

// certify does what a user does first.
func (c *cluster) certify(names, hosts []string) {
	c.t.Helper()
	args := []string{"cluster", "init", "--dir", c.pki()}
	for i, n := range names {
		args = append(args, "--node", n+"="+hosts[i])
	}
	if out, err := exec.Command(c.binary, args...).CombinedOutput(); err != nil {
		c.t.Fatalf("muster %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	token, err := os.ReadFile(c.pki("admin.token"))
	if err != nil {
		c.t.Fatal(err)
	}
	c.token = strings.TrimSpace(string(token))
	pem, err := os.ReadFile(c.pki("ca.crt"))
	if err != nil {
		c.t.Fatal(err)
	}
	c.ca = &tls.Config{RootCAs: x509.NewCertPool()}
	if !c.ca.RootCAs.AppendCertsFromPEM(pem) {
		c.t.Fatalf("no certificate in %s", c.pki("ca.crt"))
	}
}

// portBlock is how many ports a node may take one after the other: API, Raft, and the gossip cells.
const portBlock = 12

var ports struct {
	sync.Mutex
	next int
	held []net.Listener
}

// freePorts finds the first of some that are free, below those that the system gives out by itself. They are taken again at
// every restart of a node, so they are kept from other processes of these tests until this one ends, by a name that the
// system forgets then.
func freePorts(t *testing.T) int {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	if ports.next == 0 {
		ports.next = 12000 + os.Getpid()%1400*portBlock
	}
	for range 1000 {
		first := ports.next
		if ports.next += portBlock; ports.next > 30000 {
			ports.next = 12000
		}
		name, err := net.Listen("unix", "@muster-systemtest-ports-"+strconv.Itoa(first))
		if err != nil {
			continue
		}
		if !free(first) {
			name.Close()
			continue
		}
		ports.held = append(ports.held, name)
		return first
	}
	t.Fatal("no free ports")
	return 0
}

func free(first int) bool {
	for p := first; p < first+portBlock; p++ {
		l, err := net.Listen("tcp", at("127.0.0.1", p))
		if err != nil {
			return false
		}
		l.Close()
		u, err := net.ListenPacket("udp", at("127.0.0.1", p))
		if err != nil {
			return false
		}
		u.Close()
	}
	return true
}

// start starts all, makes the jobs and begins the load.
func (c *cluster) start() {
	c.t.Helper()
	for _, n := range c.nodes {
		n.start()
	}
	c.leader()
	c.stored.awaitNodes()
	for _, w := range c.workers {
		w.start()
	}
	c.awaitWorkers()
	if c.quiet {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	put(ctx, c.t, c.load.sdk, c.rec, manual(c.dir))
	for _, d := range c.docs {
		put(ctx, c.t, c.load.sdk, c.rec, d)
	}
	if c.t.Failed() {
		c.t.FailNow()
	}
	clients, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { c.load.run(clients, c.seed) })
	c.stop = sync.OnceFunc(func() { stop(); wg.Wait() })
	c.t.Cleanup(c.stop)
}

// status is what one node says about the cluster.
type status struct {
	Node   string    `json:"node"`
	Leader string    `json:"leader"`
	Epoch  job.Epoch `json:"epoch"`
	Nodes  []struct {
		ID, Name, Role string
		Healthy        bool
		Behind         uint64
		Streams        int
	} `json:"nodes"`
}

// call asks one node once.
func (c *cluster) call(n *process, method, path string, out any) error {
	r, err := http.NewRequest(method, n.url+path, nil)
	if err != nil {
		return err
	}
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b.Bytes())
	}
	if text, ok := out.(*string); ok {
		*text = b.String()
		return nil
	}
	return json.Unmarshal(b.Bytes(), out)
}

// status asks a node that runs.
func (c *cluster) status(n *process) (s status, ok bool) {
	return s, n.running() && n.paused == nil && c.call(n, http.MethodGet, "/v1/cluster", &s) == nil
}

// leader waits until a node says of itself that it leads, in the newest epoch of all that answer.
func (c *cluster) leader() *process {
	c.t.Helper()
	var found *process
	c.await(time.Minute, "a leader", func() bool {
		var epoch job.Epoch
		for _, n := range c.nodes {
			s, ok := c.status(n)
			if !ok || s.Epoch < epoch {
				continue
			}
			for _, x := range s.Nodes {
				if x.Role == "leader" && x.Name == n.name || c.dev && s.Leader != "" {
					found, epoch = n, s.Epoch
				}
			}
		}
		return found != nil && epoch > 0
	})
	return found
}

// followers are the nodes that run and do not lead.
func (c *cluster) followers() []*process {
	c.t.Helper()
	l := c.leader()
	return slices.DeleteFunc(slices.Clone(c.nodes), func(n *process) bool { return n == l || !n.running() || n.paused != nil })
}

// await polls.
func (c *cluster) await(limit time.Duration, what string, done func() bool) {
	c.t.Helper()
	for end := time.Now().Add(limit); ; wait(20 * time.Millisecond) {
		if done() {
			return
		}
		for _, p := range slices.Concat(c.nodes, c.workers) {
			if p.running() {
				p.alive()
			}
		}
		if time.Now().After(end) {
			var logs strings.Builder
			for _, p := range c.nodes {
				fmt.Fprintf(&logs, "--- %s\n%s", p.name, p.tail())
			}
			c.t.Fatalf("there is no %s after %s\n%s", what, limit, logs.String())
		}
	}
}

// awaitWorkers waits until all workers that run are attached.
func (c *cluster) awaitWorkers() {
	c.t.Helper()
	want := 0
	for _, w := range c.workers {
		if w.running() {
			want++
		}
	}
	c.await(time.Minute, fmt.Sprintf("%d attached workers", want), func() bool {
		var got struct{ Items []job.Worker }
		for _, n := range c.nodes {
			if n.running() && n.paused == nil && c.call(n, http.MethodGet, "/v1/workers?limit=100", &got) == nil {
				break
			}
		}
		attached := 0
		for _, w := range got.Items {
			if w.State == job.WorkerReady {
				attached++
			}
		}
		return attached >= want
	})
}

// awaitWhole waits until all nodes are voters, by what the leader says and by what each says of itself: of one that was
// replaced the leader may still speak well.
func (c *cluster) awaitWhole() {
	c.t.Helper()
	c.await(90*time.Second, "whole cluster", func() bool {
		l := c.leader()
		return c.dev || !slices.ContainsFunc(c.nodes, func(n *process) bool { return !c.votes(l, n) || !c.votes(n, n) })
	})
	for _, n := range c.nodes {
		n.ready(time.Minute)
	}
}

// votes tells whether one node says of another, or of itself, that it is a voter and up to date.
func (c *cluster) votes(asked, of *process) bool {
	s, ok := c.status(asked)
	for _, n := range s.Nodes {
		if n.Name == of.name && (n.Role == "voter" || n.Role == "leader") && n.Healthy && n.Behind < 1000 {
			return ok && len(s.Nodes) == len(c.nodes)
		}
	}
	return false
}

// heal ends all that was done to the cluster.
func (c *cluster) heal() {
	c.t.Helper()
	c.net.heal()
	for _, p := range slices.Concat(c.nodes, c.workers) {
		switch {
		case p.paused != nil:
			p.resume()
		case !p.running():
			p.start()
		}
	}
	c.awaitWhole()
	c.awaitWorkers()
}

// settle lets the cluster run, undisturbed, so that what a fault has done can be seen.
func (c *cluster) settle(from, to time.Duration) {
	wait(from + time.Duration(c.rand.Int64N(int64(to-from))))
}

// end heals, drains and reads everything, and judges it.
func (c *cluster) end() (*checker.History, *checker.Report) {
	c.t.Helper()
	c.heal()
	c.settle(2*time.Second, 3*time.Second)
	c.stop()
	d := &drain{t: c.t, dir: c.dir, rec: c.rec, api: c.load.sdk, docs: c.docs, graphs: c.others != nil, others: c.others}
	d.end()
	d.observe()
	c.digests()
	c.refusals()
	d.read()
	for _, p := range slices.Concat(c.workers, c.nodes) {
		p.stop()
	}
	c.leads()
	h := c.rec.history(c.t, c.dir)
	report := checker.Judge(h)
	for i, v := range report.Violations {
		if i == 50 {
			c.t.Errorf("and %d more", len(report.Violations)-i)
			break
		}
		c.t.Error(v)
	}
	return h, report
}
