package systemtest

import (
	"bufio"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

// digests records what the replicas' states are, and wants to know all of them.
func (c *cluster) digests() {
	c.t.Helper()
	if c.dev {
		return
	}
	var check struct {
		Index    uint64
		Complete bool
		Replicas []struct{ Name, Digest, Error string }
	}
	var err error
	c.http.Timeout = 10 * time.Second
	defer func() { c.http.Timeout = time.Second }()
	for range 5 {
		if err = c.call(c.leader(), http.MethodPost, "/v1/cluster/verify", &check); err == nil && check.Complete {
			break
		}
		wait(time.Second)
	}
	if err != nil {
		c.t.Errorf("the replicas could not be compared: %v", err)
	}
	for _, r := range check.Replicas {
		if r.Digest == "" {
			c.t.Errorf("%s has no digest: %s", r.Name, r.Error)
			continue
		}
		c.rec.add(checker.Line{Digest: &checker.Digest{Name: r.Name, Index: check.Index, Hash: r.Digest}})
	}
	if len(check.Replicas) != len(c.nodes) && err == nil {
		c.t.Errorf("the states of %d nodes were compared, there are %d", len(check.Replicas), len(c.nodes))
	}
}

// leads records, from the nodes' logs, who began to lead in which epoch.
func (c *cluster) leads() {
	c.t.Helper()
	for _, l := range c.allLeads() {
		c.rec.add(checker.Line{Lead: &l})
	}
}

func (c *cluster) allLeads() (all []checker.Lead) {
	c.t.Helper()
	for _, n := range c.nodes {
		all = append(all, c.leadsOf(n)...)
	}
	return all
}

var leadsLine = regexp.MustCompile(`^time=(\S+) level=INFO msg="this node leads" .*\bepoch=(\d+)`)

func (c *cluster) leadsOf(n *process) (all []checker.Lead) {
	c.t.Helper()
	logs, err := filepath.Glob(filepath.Join(n.dir, n.name+"-*.log"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, name := range logs {
		f, err := os.Open(name)
		if err != nil {
			c.t.Fatal(err)
		}
		for in := bufio.NewScanner(f); in.Scan(); {
			m := leadsLine.FindStringSubmatch(in.Text())
			if m == nil {
				continue
			}
			at, _ := time.Parse(time.RFC3339Nano, m[1])
			epoch, _ := strconv.ParseUint(m[2], 10, 32)
			all = append(all, checker.Lead{Name: n.name, Epoch: job.Epoch(epoch), Wall: at.UnixNano()})
		}
		f.Close()
	}
	return all
}

// metrics reads a node's numbers: by name and labels, as they are written.
func (c *cluster) metrics(n *process) map[string]float64 {
	var text string
	if !n.running() || n.paused != nil || c.call(n, http.MethodGet, "/metrics", &text) != nil {
		return nil
	}
	all := map[string]float64{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name != "#" {
			all[name], _ = strconv.ParseFloat(value, 64)
		}
	}
	return all
}

// sum adds the numbers with a name, whatever their labels.
func sum(all map[string]float64, name string) (n int) {
	for k, v := range all {
		if k == name || strings.HasPrefix(k, name+"{") {
			n += int(v)
		}
	}
	return n
}

// refusals records how often a worker's late word was refused, over all nodes that still live.
func (c *cluster) refusals() {
	c.t.Helper()
	n := 0
	for _, p := range c.nodes {
		n += sum(c.metrics(p), "muster_results_refused_total")
	}
	c.rec.add(checker.Line{Refusal: &checker.Refusal{Kind: checker.LateWorker, N: n}})
}

// lateLeader counts what a node wanted to do as a leader and was refused: its proposals that did not go through, and the
// links over which other nodes heard of an epoch that they knew to be over.
func (c *cluster) lateLeader(l *process) (proposals, links int) {
	for k, v := range c.metrics(l) {
		if strings.HasPrefix(k, "muster_raft_proposals_total{") && !strings.Contains(k, `outcome="ok"`) {
			proposals += int(v)
		}
	}
	for _, p := range c.nodes {
		links += sum(c.metrics(p), "muster_relay_links_deposed_total")
	}
	return proposals, links
}
