package client

import (
	"context"
	"io"
	"iter"
	"net/http"
	"net/url"

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
	ID          string       `json:"id"`
	Node        string       `json:"node"`
	Version     string       `json:"version"`
	Leader      string       `json:"leader"`
	Epoch       job.Epoch    `json:"epoch"`
	Store       string       `json:"store"` // embedded, moving or postgres
	Outage      bool         `json:"outage"`
	Maintenance bool         `json:"maintenance"`
	Nodes       []NodeStatus `json:"nodes"`
	Usage       *job.Usage   `json:"usage"`
}

// NodeStatus is one scheduler process.
type NodeStatus struct {
	ID         string      `json:"id"`
	Name       string      `json:"name"`
	Role       string      `json:"role"` // leader, voter or nonvoter
	API        string      `json:"api"`
	Raft       string      `json:"raft"`
	Version    string      `json:"version"`
	Healthy    bool        `json:"healthy"`
	LastSeenAt job.Instant `json:"last_seen_at"`
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

// Ready answers nil when some node can take requests.
func (c *Client) Ready(ctx context.Context) error {
	_, err := c.do(ctx, &call{method: http.MethodGet, path: "/readyz", cluster: true}, nil)
	return err
}
