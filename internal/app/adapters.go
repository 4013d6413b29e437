package app

import (
	"context"

	"github.com/musterhq/muster/api"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
)

// The adapters say in the API's words what the parts of a node say in theirs.

func (n *node) buildAPI() (err error) {
	n.api, err = api.New(api.Config{
		Store: n.store, Schedules: schedules{n}, Leases: leases{n}, Leader: leader{n}, Flags: flags{n}, Hints: hints{n},
		Output: outputs{n}, Joiner: joiner{n}, Cluster: clusterView{n}, Metrics: n.metricsHandler(),
		Version: n.Version, Logger: n.Logger, Registerer: n.registry, Now: n.Now,
	})
	return err
}

type schedules struct{ *node }

func (s schedules) PutSchedule(ctx context.Context, j *job.Job) error {
	mark, ticks, err := job.MarkOf(j.ID, j.Version, j.Spec)
	if err != nil {
		return err
	}
	if !ticks {
		return s.control.DropSchedule(ctx, j.ID, j.Version)
	}
	_, err = s.control.PutSchedule(ctx, mark)
	if job.CodeOf(err) == job.Conflict {
		return nil // a newer version ticks already
	}
	return err
}

func (s schedules) DropSchedule(ctx context.Context, j *job.Job) error {
	return s.control.DropSchedule(ctx, j.ID, 0)
}

func (s schedules) PauseJob(ctx context.Context, j *job.Job, paused bool) error {
	change := s.control.ResumeJob
	if paused {
		change = s.control.PauseJob
	}
	if err := change(ctx, j.ID); err != nil {
		return err
	}
	if t := s.term.Load(); t != nil {
		t.ScheduleChanged()
	}
	return nil
}

func (s schedules) Mark(id job.JobID) (job.Mark, bool) { return s.control.Mark(id) }
func (s schedules) Paused(id job.JobID, namespace string) job.Reason {
	return s.control.Paused(id, namespace)
}

// holds tells the gateway whose output it takes. Raft has a grant before its worker is told, and remembers the fence for
// a minute after its end; by then the last output is through.
func (n *node) holds(worker string, run job.RunID, fence job.Fence) bool {
	if g, ok := n.state.Lease(run); ok && g.Fence == fence {
		return g.Worker == worker
	}
	ended, ok := n.state.Ended(run)
	return ok && ended == fence
}

type leases struct{ *node }

func (l leases) Grant(id job.RunID) (job.Grant, bool) { return l.state.Lease(id) }
func (l leases) Grants() []job.Grant                  { return l.state.Grants() }

type leader struct{ *node }

func (l leader) leading() (*scheduler.Term, error) {
	if t := l.term.Load(); t != nil {
		return t, nil
	}
	return nil, job.Errorf(job.Unavailable, "no_leader", "no node leads at the moment; try again in a few seconds")
}

func (l leader) Explain(ctx context.Context, r *job.Run) ([]string, error) {
	t, err := l.leading()
	if err != nil {
		return nil, err
	}
	return t.Explain(ctx, r)
}

func (l leader) Workers(context.Context) ([]job.Worker, error) {
	t, err := l.leading()
	if err != nil {
		return nil, err
	}
	workers := t.Workers()
	addresses := map[string]string{} // gossip is a rumour, and good enough for this
	for _, m := range l.gossip.Members() {
		addresses[m.Name] = m.Address
	}
	for i := range workers {
		workers[i].Address = addresses[workers[i].Name]
	}
	return workers, nil
}

func (l leader) Worker(ctx context.Context, name string) (*job.Worker, error) {
	workers, err := l.Workers(ctx)
	if err != nil {
		return nil, err
	}
	for i := range workers {
		if workers[i].Name == name {
			return &workers[i], nil
		}
	}
	return nil, job.Errorf(job.NotFound, "no_worker", "there is no worker named %q", name)
}

type flags struct{ *node }

func (f flags) FlagWorker(ctx context.Context, name string, state job.WorkerState) error {
	if err := f.control.FlagWorker(ctx, name, state); err != nil {
		return err
	}
	if t := f.term.Load(); t != nil {
		t.WorkerFlagged()
	}
	return nil
}

func (f flags) Maintain(ctx context.Context, on bool) error {
	if err := f.control.Maintenance(ctx, on); err != nil {
		return err
	}
	if t := f.term.Load(); t != nil {
		t.ScheduleChanged()
	}
	return nil
}

type hints struct{ *node }

func (h hints) Born(runs []*job.Run) {
	if t := h.term.Load(); t != nil {
		t.Born(runs)
	}
}

func (h hints) CancelRequested(ids []job.RunID) {
	if t := h.term.Load(); t != nil {
		t.CancelRequested(ids)
	}
}

type joiner struct{ *node }

func (j joiner) Join(ctx context.Context, q api.JoinRequest) (*api.JoinAnswer, error) {
	p, err := j.gossip.Assign(ctx, q.Name)
	if err != nil {
		return nil, err
	}
	return &api.JoinAnswer{ClusterID: j.raft.ID(), Streams: []string{j.url}, Cell: p.Cell, Seeds: p.Seeds, GossipKey: p.Key}, nil
}

type clusterView struct{ *node }

func (c clusterView) Status(context.Context) (*api.ClusterStatus, error) {
	s := c.raft.Status()
	out := &api.ClusterStatus{ID: s.ID, Node: c.Name, Version: c.Version, Epoch: c.state.Epoch(), Store: "embedded",
		Maintenance: c.control.Paused(job.JobID{}, "") == job.Maintenance}
	for _, v := range s.Servers {
		x := api.NodeStatus{ID: v.ID, Name: v.ID, Role: "nonvoter", Raft: v.Address}
		if v.Voter {
			x.Role = "voter"
		}
		if v.ID == s.LeaderID {
			x.Role = "leader"
			out.Leader = v.ID
		}
		if v.ID == s.ID {
			x.Name, x.API, x.Version, x.Healthy, x.LastSeenAt = c.Name, c.url, c.Version, true, job.At(c.Now())
			if x.Role == "leader" {
				out.Leader = c.Name
			}
		}
		out.Nodes = append(out.Nodes, x)
	}
	return out, nil
}

func (c clusterView) Ready(context.Context) error {
	if c.term.Load() == nil {
		return job.Errorf(job.Unavailable, "no_leader", "no node leads at the moment")
	}
	return nil
}

func (clusterView) Home() job.Home { return job.HomeQuorum }
func (clusterView) Rung() job.Home { return job.HomeQuorum }
