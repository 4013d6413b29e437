package app

import (
	"cmp"
	"context"
	"encoding/hex"
	"io"
	"slices"
	"sync"

	"github.com/musterhq/muster/api"
	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

// administer changes who leads and who belongs to the cluster.
type administer struct{ *node }

func (a administer) Transfer(ctx context.Context, to string) error {
	return a.raft.Peers().Transfer(ctx, to)
}

func (a administer) Remove(ctx context.Context, name string, force bool) error {
	return a.raft.Peers().Remove(ctx, name, force)
}

func (a administer) Greeting(context.Context) (*api.Greeting, error) {
	g := api.Greeting(a.raft.Greeting())
	return &g, nil
}

// Verify compares the replicas.
func (a administer) Verify(ctx context.Context) (*api.ReplicaCheck, error) {
	results, err := a.raft.Propose(ctx, &fsm.Checkpoint{})
	if err == nil {
		err = results[0].Err
	}
	if err != nil {
		return nil, err
	}
	c := &api.ReplicaCheck{Index: results[0].Value.(uint64), Complete: true, Equal: true}
	var nodes []job.Node // all servers: one without a row has a state, too
	for _, s := range a.raft.Status().Servers {
		row, ok := a.state.Node(s.ID)
		switch {
		case ok:
		case s.ID == a.raft.ID():
			row = job.Node{ID: s.ID, Name: a.Name}
		default:
			row = job.Node{ID: s.ID, Name: s.ID}
		}
		nodes = append(nodes, row)
	}
	slices.SortFunc(nodes, func(a, b job.Node) int { return cmp.Compare(a.Name, b.Name) })
	c.Replicas = make([]api.ReplicaDigest, len(nodes))
	var all sync.WaitGroup
	for i, v := range nodes {
		c.Replicas[i] = api.ReplicaDigest{ID: v.ID, Name: v.Name}
		all.Go(func() {
			digest, err := a.digestOf(ctx, v.ID, c.Index)
			if err != nil {
				c.Replicas[i].Error = job.AsError(err).Message
				return
			}
			c.Replicas[i].Digest = hex.EncodeToString(digest[:])
		})
	}
	all.Wait()
	first := ""
	for _, r := range c.Replicas {
		switch {
		case r.Digest == "":
			c.Complete = false
		case first == "":
			first = r.Digest
		case r.Digest != first:
			c.Equal = false
		}
	}
	return c, nil
}

func (a administer) digestOf(ctx context.Context, id string, index uint64) ([32]byte, error) {
	if id == a.raft.ID() {
		return local(a).Digest(ctx, index)
	}
	return a.raft.Peers().Digest(ctx, id, index)
}

// credentials keeps who may call.
type credentials struct{ *node }

func (c credentials) Credentials() []job.Credential { return c.state.Credentials() }

func (c credentials) PutCredential(ctx context.Context, k job.Credential) error {
	return c.set(ctx, &fsm.PutCredential{Credential: k})
}

func (c credentials) DropCredential(ctx context.Context, id string) error {
	return c.set(ctx, &fsm.DropCredential{ID: id})
}

func (c credentials) set(ctx context.Context, command fsm.Command) error {
	results, err := c.raft.Propose(ctx, command)
	if err != nil {
		return err
	}
	return results[0].Err
}

// snapshots writes copies of the state and puts them back.
type snapshots struct{ *node }

func (s snapshots) Snapshot(ctx context.Context, w io.Writer) error {
	_, err := s.raft.SaveSnapshot(ctx, w)
	return err
}

// Restore replaces the state of the cluster, which only its leader can do.
func (s snapshots) Restore(ctx context.Context, r io.Reader) error {
	if id, _, ok := s.raft.Leader(); ok && id != s.raft.ID() {
		if leader, known := s.state.Node(id); known {
			return job.Errorf(job.Unavailable, "not_leader", "only the node that leads can put a snapshot back: send it to %s, at %s", leader.Name, leader.API)
		}
	}
	return s.raft.RestoreSnapshot(ctx, r)
}
