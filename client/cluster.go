package client

import (
	"context"
	"io"
	"iter"
	"net/http"
	"net/url"
	"time"

	"github.com/musterhq/muster/job"
)

// WorkerFilter selects workers; the zero value selects all.
type WorkerFilter struct {
	State  job.WorkerState
	Labels map[string]string
}

// Workers lists workers by name. The sequence ends after its first error.
func (c *Client) Workers(ctx context.Context, f WorkerFilter) iter.Seq2[job.Worker, error] {
	q := withLabels(url.Values{}, f.Labels)
	setIf(q, "state", string(f.State))
	return list[job.Worker](ctx, c, "/v1/workers", q, true)
}

func workerPath(name string) string { return "/v1/workers/" + url.PathEscape(name) }

// Worker reads a worker.
func (c *Client) Worker(ctx context.Context, name string) (*job.Worker, error) {
	return ask[job.Worker](ctx, c, &call{method: http.MethodGet, path: workerPath(name), cluster: true})
}

// Cordon gives a worker no new work.
func (c *Client) Cordon(ctx context.Context, name string) (*job.Worker, error) {
	return c.flag(ctx, name, "cordon")
}

// Uncordon undoes Cordon and Drain.
func (c *Client) Uncordon(ctx context.Context, name string) (*job.Worker, error) {
	return c.flag(ctx, name, "uncordon")
}

// Drain lets a worker finish what it has, and stop.
func (c *Client) Drain(ctx context.Context, name string) (*job.Worker, error) {
	return c.flag(ctx, name, "drain")
}

func (c *Client) flag(ctx context.Context, name, verb string) (*job.Worker, error) {
	return ask[job.Worker](ctx, c, &call{method: http.MethodPost, path: workerPath(name) + "/" + verb, cluster: true})
}

// JoinRequest is how a worker asks to join; the Client's Token is its join token.
type JoinRequest struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	CSR     string `json:"csr,omitempty"` // PEM
}

// JoinAnswer tells a worker all it needs to attach.
type JoinAnswer struct {
	ClusterID   string   `json:"cluster_id"`
	Streams     []string `json:"streams"`
	Cell        string   `json:"cell"`
	Seeds       []string `json:"seeds"`
	GossipKey   []byte   `json:"gossip_key"`
	Certificate string   `json:"certificate"`
	CA          string   `json:"ca"`
}

// Join asks where and how a worker joins.
func (c *Client) Join(ctx context.Context, q JoinRequest) (*JoinAnswer, error) {
	return ask[JoinAnswer](ctx, c, &call{method: http.MethodPost, path: "/v1/workers/join", body: q, cluster: true})
}

// ClusterStatus describes the cluster as the node that answers sees it.
type ClusterStatus struct {
	ID           string       `json:"id"`
	Node         string       `json:"node"`
	Version      string       `json:"version"`
	Leader       string       `json:"leader"`
	Epoch        job.Epoch    `json:"epoch"`
	Term         uint64       `json:"term"`
	CommitIndex  uint64       `json:"commit_index"`
	Store        string       `json:"store"`  // embedded, moving or postgres
	Outage       bool         `json:"outage"` // the store is out of reach of Node
	OutageReason string       `json:"outage_reason"`
	Queue        string       `json:"queue"` // memory or redis
	QueueOutage  bool         `json:"queue_outage"`
	Maintenance  bool         `json:"maintenance"`
	Nodes        []NodeStatus `json:"nodes"`
	Quorum       Quorum       `json:"quorum"`
	Usage        *job.Usage   `json:"usage"`
}

// NodeStatus is one scheduler process.
type NodeStatus struct {
	ID            string      `json:"id"`
	Name          string      `json:"name"`
	Role          string      `json:"role"` // leader, voter or nonvoter
	API           string      `json:"api"`
	Raft          string      `json:"raft"`
	Version       string      `json:"version"`
	Healthy       bool        `json:"healthy"`
	LastSeenAt    job.Instant `json:"last_seen_at"`
	AppliedIndex  uint64      `json:"applied_index"`
	Behind        uint64      `json:"behind"`          // entries of the log that it has not applied yet
	ClockOffsetMS int64       `json:"clock_offset_ms"` // against the median of the voters
	Streams       int         `json:"streams"`         // workers attached to it
}

// Quorum says how much the cluster can lose.
type Quorum struct {
	Healthy   bool     `json:"healthy"`
	Voters    int      `json:"voters"`
	Answering int      `json:"answering"`
	Tolerates int      `json:"tolerates"` // voters that may still fail
	Summary   string   `json:"summary"`   // one sentence
	Advice    []string `json:"advice"`    // what to do, if something is to be done
}

// Cluster describes the cluster.
func (c *Client) Cluster(ctx context.Context) (*ClusterStatus, error) {
	return ask[ClusterStatus](ctx, c, &call{method: http.MethodGet, path: "/v1/cluster", cluster: true})
}

// Maintain starts or ends maintenance: no ticks and no new attempts; what runs goes on.
func (c *Client) Maintain(ctx context.Context, on bool) error {
	_, err := c.do(ctx, &call{method: http.MethodPost, path: "/v1/cluster/maintenance", body: map[string]bool{"maintenance": on}, cluster: true}, nil)
	return err
}

// Snapshot downloads a copy of the replicated state. A read that ends in an error has not got all of it.
func (c *Client) Snapshot(ctx context.Context) (io.ReadCloser, error) {
	return c.stream(ctx, &call{method: http.MethodGet, path: "/v1/cluster/snapshot", cluster: true})
}

// Restore replaces the cluster's state by a snapshot, which is read from its start, of this same cluster. What was accepted
// since it was taken is lost.
func (c *Client) Restore(ctx context.Context, snapshot io.ReadSeeker) error {
	body, err := c.stream(ctx, &call{method: http.MethodPost, path: "/v1/cluster/snapshot", upload: snapshot, cluster: true, once: true})
	if err != nil {
		return err
	}
	return body.Close()
}

// slow is how long a node may take over what it needs the others for.
const slow = 40 * time.Second

// Transfer lets the node named to lead, or the best one if it is "".
func (c *Client) Transfer(ctx context.Context, to string) error {
	body := map[string]string{}
	if to != "" {
		body["to"] = to
	}
	_, err := c.do(ctx, &call{method: http.MethodPost, path: "/v1/cluster/transfer", body: body, cluster: true, patience: slow,
		once: to == ""}, nil) // the next one that is the best is another
	return err
}

// RemoveNode takes a node out of the cluster; force even if those that remain cannot decide without nodes that do not answer.
func (c *Client) RemoveNode(ctx context.Context, name string, force bool) error {
	q := url.Values{}
	if force {
		q.Set("force", "true")
	}
	maybe, err := c.do(ctx, &call{method: http.MethodDelete, path: "/v1/cluster/nodes/" + url.PathEscape(name), query: q, cluster: true, patience: slow}, nil)
	if maybe && job.CodeOf(err) == job.NotFound {
		return nil // an attempt that nobody answered did it
	}
	return err
}

// ReplicaCheck compares the nodes' states at one index of the log.
type ReplicaCheck struct {
	Index    uint64          `json:"index"`
	Equal    bool            `json:"equal"`
	Complete bool            `json:"complete"` // every node answered
	Replicas []ReplicaDigest `json:"replicas"`
}

// ReplicaDigest is one node's.
type ReplicaDigest struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Digest string `json:"digest,omitempty"`
	Error  string `json:"error,omitempty"` // why there is none
}

// VerifyReplicas compares the nodes' states.
func (c *Client) VerifyReplicas(ctx context.Context) (*ReplicaCheck, error) {
	return ask[ReplicaCheck](ctx, c, &call{method: http.MethodPost, path: "/v1/cluster/verify", cluster: true, patience: slow})
}

// Greeting is what a node tells another one that starts.
type Greeting struct {
	NodeID     string   `json:"node_id"`
	Name       string   `json:"name"`
	Raft       string   `json:"raft"`
	API        string   `json:"api"`
	HasState   bool     `json:"has_state"`
	ClusterID  string   `json:"cluster_id"`
	Store      string   `json:"store,omitempty"` // the kind of store that it was started with
	LeaderID   string   `json:"leader_id"`
	LeaderRaft string   `json:"leader_raft"`
	Knows      []string `json:"knows"`
	Members    []string `json:"members"`
}

// Greeting asks a node who it is; for nodes, by the certificate in Config.TLS.
func (c *Client) Greeting(ctx context.Context) (*Greeting, error) {
	return ask[Greeting](ctx, c, &call{method: http.MethodGet, path: "/v1/cluster/greeting", cluster: true})
}

// Ready answers nil when some node can take requests.
func (c *Client) Ready(ctx context.Context) error {
	_, err := c.do(ctx, &call{method: http.MethodGet, path: "/readyz", cluster: true}, nil)
	return err
}
