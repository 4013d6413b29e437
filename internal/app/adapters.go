package app

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"

	"github.com/musterhq/muster/api"
	"github.com/musterhq/muster/internal/failpoint"
	"github.com/musterhq/muster/job"
)

// The adapters say in the API's words what the parts of a node say in theirs.

func (n *node) buildAPI() (err error) {
	c := api.Config{
		Store: n.apiStore(), Schedules: schedules{n}, Leases: leases{n}, Leader: leader{n}, Flags: flags{n},
		Hints: hints{n}, Output: outputs{n}, Joiner: joiner{n}, Cluster: clusterView{n}, Admin: administer{n}, Snapshots: snapshots{n},
		Metrics: n.metricsHandler(), Version: n.Version, Logger: n.Logger, Registerer: n.registry, Now: n.clock.Now,
	}
	c.Graphs, _ = any(n.store).(api.Graphs)
	if n.guard != nil {
		c.Authorize, c.Credentials = n.guard.Authorize, credentials{n}
	}
	n.api, err = api.New(c)
	return err
}

// apiStore is the store as people are answered from it.
func (n *node) apiStore() api.Store {
	switch {
	case n.postgres == nil:
		return freshStore{n.store, n.raft.CatchUp}
	case n.redis == nil:
		return n.postgres
	}
	return cachedStore{n.postgres, n}
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
	mark, err = s.control.PutSchedule(ctx, mark)
	if job.CodeOf(err) == job.Conflict {
		return nil // a newer version ticks already
	}
	if err != nil {
		return err
	}
	if err := s.store.StartVersion(ctx, j.ID, j.Version, mark.From); err != nil { // the leader tells it later
		s.Logger.Warn("the store is told later since when a version ticks", "job", j.Name, "version", j.Version, "err", err)
	}
	return nil
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
	s.raft.Peers().SchedulesChanged()
	return nil
}

func (s schedules) Mark(id job.JobID) (job.Mark, bool) { return s.control.Mark(id) }
func (s schedules) Unstored(id job.JobID) []job.Tick {
	return slices.DeleteFunc(s.state.Unstored(), func(t job.Tick) bool { return t.JobID != id })
}

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

func (l leader) Explain(ctx context.Context, r *job.Run) ([]string, error) {
	return l.raft.Peers().Explain(ctx, r)
}

func (l leader) Workers(ctx context.Context) ([]job.Worker, error) {
	return l.raft.Peers().Workers(ctx)
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
	f.raft.Peers().WorkersFlagged()
	return nil
}

func (f flags) Maintain(ctx context.Context, on bool) error {
	if err := f.control.Maintenance(ctx, on); err != nil {
		return err
	}
	f.raft.Peers().SchedulesChanged()
	return nil
}

type hints struct{ *node }

func (h hints) Born(runs []*job.Run) {
	failpoint.Hit("births/stored")
	entries := make([]job.QueueEntry, 0, len(runs))
	for _, r := range runs {
		if r.State == job.Queued || r.State == job.Scheduled {
			entries = append(entries, r.Entry())
		}
	}
	if len(entries) > 0 {
		h.raft.Peers().Born(entries)
	}
}

func (h hints) CancelRequested(ids []job.RunID) { h.raft.Peers().CancelRequested(ids) }

type joiner struct{ *node }

// Join implements api.Joiner. Whether the caller may join at all was decided before; which name it may have, is here.
func (j joiner) Join(ctx context.Context, q api.JoinRequest) (*api.JoinAnswer, error) {
	a := &api.JoinAnswer{ClusterID: cmp.Or(j.state.ClusterID(), j.raft.ID()), Streams: j.streams()}
	if j.guard != nil {
		if err := j.guard.MayJoin(ctx, q.Name); err != nil {
			return nil, err
		}
		if q.CSR != "" {
			var err error
			if a.Certificate, a.CA, err = j.identity.SignWorker(q.CSR, q.Name, 0); err != nil {
				return nil, err
			}
		}
	}
	g := j.gossip.Load()
	if g == nil {
		return a, nil
	}
	p, err := g.Assign(ctx, q.Name)
	if err != nil {
		return nil, err
	}
	a.Cell, a.Seeds, a.GossipKey = p.Cell, p.Seeds, p.Key
	return a, nil
}

// streams are where worker streams end: on this node, and on the others in any order.
func (n *node) streams() []string {
	all := []string{n.url}
	for _, v := range n.others() {
		if v.API != "" {
			all = append(all, v.API)
		}
	}
	rand.Shuffle(len(all)-1, func(i, j int) { all[i+1], all[j+1] = all[j+1], all[i+1] })
	return all
}

// others are the other nodes of the directory.
func (n *node) others() []job.Node {
	return slices.DeleteFunc(n.state.Nodes(), func(v job.Node) bool { return v.ID == n.raft.ID() })
}
