package app

import (
	"context"
	"time"

	"github.com/musterhq/muster/api"
	"github.com/musterhq/muster/job"
)

// clusterView is the cluster as people see it. What only the leader knows is asked of it, wherever the question comes.
type clusterView struct{ *node }

// memberPatience is how long the leader may take to say how the nodes do. Without an answer this node says what it knows.
const memberPatience = 2 * time.Second

func (c clusterView) Status(ctx context.Context) (*api.ClusterStatus, error) {
	s := c.raft.Status()
	out := &api.ClusterStatus{ID: s.ID, Node: c.Name, Version: c.Version, Epoch: c.state.Epoch(), Term: s.Term, CommitIndex: s.CommitIndex,
		Store: c.storeKind(), Queue: "memory", Maintenance: c.control.Paused(job.JobID{}, "") == job.Maintenance}
	if id := c.state.ClusterID(); id != "" {
		out.ID = id
	}
	if c.postgres != nil {
		up, why := c.postgres.Ready()
		out.Outage, out.OutageReason = !up, why
	}
	if c.redis != nil {
		out.Queue, out.QueueOutage = "redis", c.redis.Ping(ctx) != nil || c.term.Load() != nil && !c.mirror.Follows()
	}
	for _, v := range s.Servers {
		x := api.NodeStatus{ID: v.ID, Name: v.ID, Role: api.RoleNonvoter, Raft: v.Address}
		if v.Voter {
			x.Role = api.RoleVoter
		}
		if row, ok := c.state.Node(v.ID); ok {
			x.Name, x.API, x.Version = row.Name, row.API, row.Version
		}
		if v.ID == s.LeaderID {
			x.Role = api.RoleLeader
		}
		if v.ID == s.ID {
			x.Name, x.API, x.Version, x.Healthy, x.LastSeenAt, x.AppliedIndex = c.Name, c.url, c.Version, true, job.At(c.clock.Now()), s.AppliedIndex
		}
		if x.Role == api.RoleLeader {
			out.Leader = x.Name
		}
		out.Nodes = append(out.Nodes, x)
	}
	if s.LeaderID != "" {
		c.ask(ctx, out)
	}
	return out, nil
}

// ask fills in what the leader knows.
func (c clusterView) ask(ctx context.Context, out *api.ClusterStatus) {
	ctx, cancel := context.WithTimeout(ctx, memberPatience)
	defer cancel()
	members, err := c.raft.Peers().Members(ctx)
	if err != nil {
		return
	}
	streams := map[string]int{}
	if workers, err := c.raft.Peers().Workers(ctx); err == nil {
		for _, w := range workers {
			if w.State != job.WorkerGone {
				streams[w.Node]++
			}
		}
	}
	for _, m := range members {
		if m.Leader {
			out.CommitIndex = max(out.CommitIndex, m.Applied)
		}
	}
	for i := range out.Nodes {
		x := &out.Nodes[i]
		for _, m := range members {
			if m.ID != x.ID {
				continue
			}
			if m.Name != "" { // the leader's directory is newer than this node's by a moment
				x.Name, x.API, x.Version = m.Name, m.API, m.Version
			}
			x.Healthy, x.AppliedIndex, x.ClockOffsetMS = m.Healthy, max(m.Applied, x.AppliedIndex), m.ClockOffset.Milliseconds()
			if !m.LastSeen.IsZero() {
				x.LastSeenAt = job.At(m.LastSeen)
			}
			if out.CommitIndex > x.AppliedIndex {
				x.Behind = out.CommitIndex - x.AppliedIndex
			}
		}
		x.Streams = streams[x.Name]
		if x.Role == api.RoleLeader {
			out.Leader = x.Name
		}
	}
}

// Ready implements api.Cluster: this node knows what was accepted and, if it leads, works.
func (c clusterView) Ready(context.Context) error {
	if !c.started.Load() {
		return job.Errorf(job.Unavailable, "starting", "this node does not know yet all that the cluster has accepted")
	}
	id, _, ok := c.raft.Leader()
	if !ok || id == c.raft.ID() && c.term.Load() == nil {
		return errNoLeader
	}
	return nil
}

func (c clusterView) Home() job.Home { return c.home() }
func (c clusterView) Rung() job.Home { return c.home() }
