package app

import (
	"context"
	"time"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
	"github.com/musterhq/muster/storage/memory"
	"github.com/musterhq/muster/storage/mirror"
	"github.com/musterhq/muster/storage/postgres"
	"github.com/musterhq/muster/storage/redis"
	"github.com/musterhq/muster/storage/replicated"
)

// The kinds of store (S11).
const (
	storeEmbedded = fsm.StoreEmbedded
	storePostgres = fsm.StorePostgres
)

// Lanes in Redis hold so many entries, and all lanes so many, whatever the backlog is; the rest is loaded from Postgres in
// order (Q2).
const (
	maxLane    = 10_000
	maxEntries = 200_000
)

// storeKind is the kind of store that this node was started with.
func (n *node) storeKind() string {
	if n.Postgres != "" {
		return storePostgres
	}
	return storeEmbedded
}

// clusterID is the id of the cluster as stores know it; "" until the node is part of one.
func (n *node) clusterID() string {
	if id := n.state.ClusterID(); id != "" || !n.LocalOnly {
		return id
	}
	return n.raft.ID()
}

// openStores makes the store and the queue. Nothing is asked of a server yet: one that is away is no reason not to start.
func (n *node) openStores() (err error) {
	if n.Postgres == "" {
		n.store = replicated.New(n.raft, n.state)
		return nil
	}
	n.postgres, err = postgres.New(postgres.Config{URL: n.Postgres, ClusterID: n.clusterID, Migrate: !n.KeepSchema, AdoptStore: n.AdoptStore,
		MayClaim: n.claims.Load, Raised: func() job.Epoch { return n.state.View().StoreEpoch() },
		Logger: n.Logger, Registerer: n.registry})
	if err != nil {
		return err
	}
	n.atEnd("close the store", func(context.Context) error { return n.postgres.Close() })
	n.store = n.postgres
	if n.Redis == "" {
		return nil
	}
	if n.redis, err = redis.New(redis.Config{URL: n.Redis, ClusterID: n.clusterID}); err != nil {
		return err
	}
	n.atEnd("close the queue", func(context.Context) error { return n.redis.Close() })
	n.mirror = mirror.New(mirror.Config{Remote: n.redis.Queue(maxLane), MaxLane: maxLane, MaxTotal: maxEntries, Logger: n.Logger, Registerer: n.registry})
	n.running, err = n.redis.Status()
	return err
}

// queue is the queue of one reign. Where there is Redis, a memory in front of it holds the same and goes on without it.
func (n *node) queue() scheduler.Queue {
	switch {
	case n.postgres == nil:
		return memory.New(0)
	case n.redis == nil:
		return memory.NewBounded(maxLane, maxEntries)
	}
	return n.mirror
}

// claim makes the kind of store a fact of the cluster, where it is none yet: a fresh cluster takes what its first leader has.
// One that keeps jobs or runs in its own state has decided before there was such a fact.
func (n *node) claim(ctx context.Context) error {
	if n.state.Store() != "" {
		return nil
	}
	err := n.control.SetStore(ctx, n.storeKind())
	if job.CodeOf(err) == job.Conflict && n.state.Store() == "" { // it keeps jobs already, from before there was the fact
		return n.control.SetStore(ctx, storeEmbedded)
	}
	return err
}

// agrees says why this node cannot be part of its cluster: its store is another one (S11).
func (n *node) agrees() error {
	switch kind := n.state.Store(); {
	case kind == "" || kind == n.storeKind():
		return nil
	case kind == storePostgres:
		return job.InvalidField("postgres", "this cluster keeps its jobs and runs in Postgres; start the node with the --postgres URL of the others")
	default:
		return job.InvalidField("postgres", "this cluster keeps its jobs and runs in its own replicated state, and cannot move to Postgres yet; start the node without --postgres and --redis, or make a new cluster")
	}
}

// watchStore ends the node when its store turns out to be another one than the cluster's.
func (n *node) watchStore(ctx context.Context) error {
	every := time.NewTicker(200 * time.Millisecond)
	defer every.Stop()
	for {
		if err := n.agrees(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-every.C:
		}
	}
}

// home is the rung that is the cluster's own store.
func (n *node) home() job.Home {
	if n.Postgres != "" {
		return job.HomePostgres
	}
	return job.HomeQuorum
}

// cachedStore answers what runs now from Redis, where the leader keeps the rows of attempts that are older than a second.
// A row is believed only while the lease stands that it was kept for: Raft knows, on every node, and Raft is right.
type cachedStore struct {
	*postgres.Store
	*node
}

func (s cachedStore) Run(ctx context.Context, id job.RunID) (*job.Run, error) {
	if g, ok := s.state.Lease(id); ok {
		if r, err := s.running.Get(ctx, id); err == nil && r != nil && r.Fence == g.Fence {
			return r, nil
		}
	}
	return s.Store.Run(ctx, id)
}

// Cancel implements storage.Births. What was kept of the run does not show the intent.
func (s cachedStore) Cancel(ctx context.Context, intents []job.CancelIntent) ([]job.Receipt, error) {
	receipts, err := s.Store.Cancel(ctx, intents)
	ids := make([]job.RunID, len(intents))
	for i := range intents {
		ids[i] = intents[i].ID
	}
	if late := s.running.Drop(ctx, ids); late != nil { // what is left is forgotten within the cache's time to live
		s.Logger.Debug("dropping rows from the cache", "err", late)
	}
	return receipts, err
}
