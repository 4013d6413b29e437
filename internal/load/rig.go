package load

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

// rig is what a benchmark runs on: nodes, a worker, and a way to both.
type rig struct {
	*bench
	urls   []string
	node   *process // nil if it is not ours
	worker *process // nil if none is ours
	seen   *collector
	api    *client.Client
	nodes  []*client.Client // each asks one node
	http   *http.Client
	mu     sync.Mutex
	jobs   []string // guarded by mu: what we created
}

// open starts node and worker, and waits until the worker takes work.
func (b *bench) open(ctx context.Context) (*rig, error) {
	r, err := b.openNode(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.hire(ctx); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

// openNode starts a node alone.
func (b *bench) openNode(ctx context.Context) (_ *rig, err error) {
	if err := b.fresh(ctx); err != nil {
		return nil, err
	}
	r := &rig{bench: b, seen: new(collector)}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	if b.Cluster != nil {
		r.urls = b.Cluster.Addresses
	} else {
		var url string
		if r.node, url, err = b.startNode(ctx, "--http", "127.0.0.1:0", "--no-worker"); err != nil {
			return nil, err
		}
		r.urls = []string{url}
	}
	return r, r.connect()
}

// hire starts the worker and waits until it takes work, unless the work is for others.
func (r *rig) hire(ctx context.Context) (err error) {
	if r.theirWorkers() {
		return nil
	}
	if r.worker, err = r.startWorker(r.urls, r.seen); err != nil {
		return err
	}
	return r.awaitWorker(ctx)
}

func (r *rig) connect() error {
	trust, err := r.Cluster.trust()
	if err != nil {
		return err
	}
	r.http = &http.Client{Transport: transport(trust)}
	c := client.Config{Addresses: r.urls, Token: r.token(), Namespace: r.namespace(), HTTPClient: r.http}
	if r.api, err = client.New(c); err != nil {
		return err
	}
	for _, url := range r.urls {
		c.Addresses = []string{url}
		api, err := client.New(c)
		if err != nil {
			return err
		}
		r.nodes = append(r.nodes, api)
	}
	return nil
}

func (b *bench) token() string {
	if b.Cluster == nil {
		return ""
	}
	return b.Cluster.Token
}

// namespace is one that nobody else has.
func (b *bench) namespace() string {
	if b.Cluster == nil {
		return job.DefaultNamespace
	}
	return b.workerName()
}

func (r *rig) awaitWorker(ctx context.Context) error {
	return r.until(ctx, 60*time.Second, "the worker to attach", func() bool {
		w, err := r.api.Worker(ctx, r.workerName())
		return err == nil && w.State == job.WorkerReady
	})
}

// until waits for something, and says which process died if one did.
func (r *rig) until(ctx context.Context, limit time.Duration, what string, done func() bool) error {
	for end := time.Now().Add(limit); !done(); {
		if err := errors.Join(r.node.alive(), r.worker.alive()); err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("waited %s in vain for %s", limit, what)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// close leaves a running cluster as it was, and ends what is ours.
func (r *rig) close() {
	if r.node == nil && r.api != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for _, name := range r.jobs {
			if err := r.api.DeleteJob(ctx, name, 0); err != nil {
				r.warn("the job %s is left behind: %v", name, err)
			}
		}
	}
	r.worker.stop()
	r.node.stop()
	if r.http != nil {
		r.http.CloseIdleConnections()
	}
}

// define creates jobs from several connections at once, and answers their ids in order.
func (r *rig) define(ctx context.Context, count int, document func(i int) *job.Document) ([]job.JobID, error) {
	ids := make([]job.JobID, count)
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range min(count, 32) {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= count {
					return nil
				}
				j, err := r.api.PutJob(ctx, document(i))
				if err != nil {
					return err
				}
				ids[i] = j.ID
				r.mu.Lock()
				r.jobs = append(r.jobs, j.Name)
				r.mu.Unlock()
			}
		})
	}
	return ids, g.Wait()
}

// jobName is unique to this repetition, so that a running cluster can be measured twice.
func (r *rig) jobName(i int) string { return fmt.Sprintf("%s-%06d", r.workerName(), i) }

// plainJob is a job for runs that are submitted.
func (r *rig) plainJob(ctx context.Context) (string, error) {
	_, err := r.define(ctx, 1, func(i int) *job.Document {
		return r.document(r.jobName(i))
	})
	return r.jobName(0), err
}

// metrics reads the counters and gauges of all nodes and adds them up, label sets as they are written.
func (r *rig) metrics(ctx context.Context) (map[string]float64, error) {
	m := map[string]float64{}
	for _, url := range r.urls {
		if err := r.addMetrics(ctx, url, m); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (r *rig) addMetrics(ctx context.Context, url string, m map[string]float64) error {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/metrics", nil)
	if err != nil {
		return err
	}
	r.authorize(q)
	resp, err := r.http.Do(q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s/metrics answered %s", url, resp.Status)
	}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		line := lines.Text()
		if i := strings.LastIndexByte(line, ' '); i > 0 && line[0] != '#' {
			if v, err := strconv.ParseFloat(line[i+1:], 64); err == nil {
				m[line[:i]] += v
			}
		}
	}
	return lines.Err()
}

func (b *bench) authorize(q *http.Request) {
	if token := b.token(); token != "" {
		q.Header.Set("Authorization", "Bearer "+token)
	}
}

// nodeUsage asks the system about a node of ours, and other nodes about themselves.
func (r *rig) nodeUsage(ctx context.Context) usage {
	if r.node != nil {
		return processUsage(r.node.cmd.Process.Pid)
	}
	m, err := r.metrics(ctx)
	if err != nil {
		return unknown
	}
	return usage{cpu: m["process_cpu_seconds_total"], rss: m["process_resident_memory_bytes"], peak: math.NaN()}
}

// costs is what everybody has used at one moment.
type costs struct {
	at                      time.Time
	node, worker, generator usage
	postgres, redis         usage
	machine                 float64
	metrics                 map[string]float64
	counters                map[string]float64 // of the stores
}

func (r *rig) costs(ctx context.Context) costs {
	c := costs{node: r.nodeUsage(ctx), generator: processUsage(os.Getpid()), machine: machineCPU()}
	switch {
	case r.worker != nil:
		c.worker = processUsage(r.worker.cmd.Process.Pid)
	case r.theirWorkers():
		c.worker = unknown
	}
	c.postgres, c.redis = r.stores.usage()
	c.metrics, _ = r.metrics(ctx) // without them the figures that need them are left out
	c.counters = r.stores.count(ctx)
	c.at = time.Now()
	return c
}

// charge adds what was used since c, per run if runs were done.
func (r *rig) charge(ctx context.Context, what string, c costs, runs int) {
	now := r.costs(ctx)
	generator := now.generator.cpu - c.generator.cpu
	r.set(what+"generator CPU", "s", generator)
	ours, others := 0.0, now.machine-c.machine-generator
	for _, part := range []struct {
		name string
		cpu  float64
	}{{"node", now.node.cpu - c.node.cpu}, {"Postgres", now.postgres.cpu - c.postgres.cpu}, {"Redis", now.redis.cpu - c.redis.cpu},
		{"worker", now.worker.cpu - c.worker.cpu}} {
		r.set(what+part.name+" CPU", "s", part.cpu)
		if runs > 0 {
			r.set(what+part.name+" CPU per run", "us", part.cpu/float64(runs)*1e6)
		}
		if !math.IsNaN(part.cpu) {
			others -= part.cpu
			if part.name != "worker" {
				ours += part.cpu
			}
		}
	}
	if runs > 0 {
		r.headline(what+"CPU per run without the worker", "us", ours/float64(runs)*1e6)
		r.grown(what, " per run", "", c.counters, now.counters, float64(runs))
	}
	r.set(what+"others on the machine", "cores", max(0, others)/now.at.Sub(c.at).Seconds())
	r.set(what+"node peak RSS", "MB", now.node.peak/1e6)
	r.set(what+"worker peak RSS", "MB", now.worker.peak/1e6)
	if c.metrics == nil || now.metrics == nil {
		return
	}
	grown := func(name string) float64 { return now.metrics[name] - c.metrics[name] }
	for name := range now.metrics {
		if why, ok := strings.CutPrefix(name, "muster_reconciled_total{"); ok && grown(name) > 0 {
			r.set(what+"mended by the reconciler, "+strings.Trim(why, "}"), "runs", grown(name))
		}
	}
	// The usual reasons for a long maximum: a hint that was lost, so that the reconciler found the run seconds later; a
	// disk that was busy; and a snapshot.
	r.set(what+"log writes", "writes", grown("muster_raft_log_write_seconds_count"))
	r.set(what+"log writes over 100 ms", "writes", grown("muster_raft_log_write_seconds_count")-grown(`muster_raft_log_write_seconds_bucket{le="0.1"}`))
	r.set(what+"snapshots", "snapshots", grown("muster_raft_snapshot_seconds_count"))
}

// ids makes ids that carry their number, so that a start can be matched without a table.
type ids struct{ mark [6]byte }

func newIDs() (x ids) {
	_, _ = rand.Read(x.mark[:]) // never fails
	return x
}

func (x ids) make(at time.Time, n int) job.RunID {
	entropy := [10]byte{6: byte(n >> 24), 7: byte(n >> 16), 8: byte(n >> 8), 9: byte(n)}
	copy(entropy[:6], x.mark[:])
	return job.MakeRunID(at, entropy)
}

// number answers which run an id is; false for one of somebody else.
func (x ids) number(id job.RunID) (int, bool) {
	// The version and the variant overwrite some bits of the mark; the last three bytes of it are whole.
	return int(id[12])<<24 | int(id[13])<<16 | int(id[14])<<8 | int(id[15]), bytes.Equal(id[9:12], x.mark[3:])
}

// submitter sends submissions. The generator shares the machine with what it measures, so it builds bodies by hand and
// looks into an answer only as far as is needed: what became of each run is counted elsewhere.
type submitter struct {
	*rig
	ids     ids
	job     string
	query   string
	payload string
}

func (r *rig) submitter(name string) *submitter {
	return &submitter{rig: r, ids: newIDs(), job: name, query: "?namespace=" + r.namespace(), payload: `{"text":"` + strings.Repeat("x", max(0, r.PayloadBytes-11)) + `"}`}
}

func (s *submitter) item(b []byte, n int) []byte {
	b = append(b, `{"job":"`...)
	b = append(b, s.job...)
	b = append(b, `","id":"`...)
	b = append(b, s.ids.make(time.Now(), n).String()...)
	b = append(b, `","payload":`...)
	b = append(b, s.payload...)
	return append(b, '}')
}

// one submits the run with number n.
func (s *submitter) one(ctx context.Context, n int) error {
	return s.post(ctx, n, "/v1/runs", s.item(nil, n))
}

// batch submits the runs from n to m.
func (s *submitter) batch(ctx context.Context, n, m int) error {
	b := append(make([]byte, 0, (m-n)*(len(s.payload)+128)), `{"runs":[`...)
	for i := n; i < m; i++ {
		if i > n {
			b = append(b, ',')
		}
		b = s.item(b, i)
	}
	return s.post(ctx, n/(m-n), "/v1/runs/batch", append(b, "]}"...))
}

var errRefused = errors.New("refused")

// post sends a request to the node whose turn it is.
func (s *submitter) post(ctx context.Context, turn int, path string, body []byte) error {
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, s.urls[turn%len(s.urls)]+path+s.query, bytes.NewReader(body))
	if err != nil {
		return err
	}
	q.Header.Set("Content-Type", "application/json")
	s.authorize(q)
	resp, err := s.http.Do(q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer bytes.Buffer
	if _, err := answer.ReadFrom(resp.Body); err != nil {
		return err
	}
	if resp.StatusCode >= 300 || bytes.Contains(answer.Bytes(), []byte(`"problem":`)) {
		return fmt.Errorf("%w: %s: %.300s", errRefused, resp.Status, answer.Bytes())
	}
	return nil
}
