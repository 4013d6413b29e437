package cluster

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

// RecoverOptions are how Recover makes a cluster of one node.
type RecoverOptions struct {
	// Address is the host:port at which the others will reach this node's Raft. Default the one that its log has.
	Address string
	// Logger. Default none.
	Logger *slog.Logger
}

// Recovery is what a data directory holds, for the choice of the node that recovers: the one with the highest term of the
// last entry, and among those the highest index.
type Recovery struct {
	NodeID    string    `json:"node_id"`
	ClusterID string    `json:"cluster_id"`
	LastIndex uint64    `json:"last_index"`
	LastTerm  uint64    `json:"last_term"` // of that entry
	Epoch     job.Epoch `json:"epoch"`     // after Recover: the new one
	Servers   []Server  `json:"servers"`   // as the log has them, before Recover
}

// Inspect tells what a data directory holds, without changing it. No process may use it meanwhile.
func Inspect(dir string) (Recovery, error) {
	return withState(dir, slog.New(slog.DiscardHandler), func(o *offline) (Recovery, error) {
		return o.found, o.replay()
	})
}

// Recover makes the cluster of a node whose majority is lost for good a cluster of this node alone. What the node has in
// its log counts as committed; what only the lost ones had is lost. The epoch jumps by a thousand, so that nothing that
// they may have issued is issued again.
//
// The other servers of the old cluster must never run again on what they have on disk: together they could be a majority
// of the old configuration and go on beside this one. Move their raft folders away, and start them: they join as new ones.
//
// It refuses a directory that a process uses, and a damaged log. It may be repeated.
func Recover(dir string, o RecoverOptions) (Recovery, error) {
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return withState(dir, log, func(s *offline) (Recovery, error) {
		address := raft.ServerAddress(o.Address)
		for _, v := range s.found.Servers {
			if address == "" && v.ID == s.found.NodeID {
				address = raft.ServerAddress(v.Address)
			}
		}
		if address == "" {
			return s.found, job.InvalidField("Address", "the log does not have this node's address for raft; name it")
		}
		if err := s.replay(); err != nil {
			return s.found, err
		}
		_, transport := raft.NewInmemTransport(address)
		config := raft.DefaultConfig()
		config.LocalID, config.Logger = raft.ServerID(s.found.NodeID), newRaftLogger(log)
		self := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: config.LocalID, Address: address}}}
		state := &raisingState{State: fsm.New(), dir: dir}
		err := guardPanics(s.path, func() error {
			return raft.RecoverCluster(config, state, s.guard, s.stable, s.stores.snaps, transport, self)
		})
		if err != nil {
			return s.found, fmt.Errorf("recover the cluster: %w", err)
		}
		s.found.Epoch = state.raised
		return s.found, forgetRestore(dir)
	})
}

// offline is a data directory that no node runs on.
type offline struct {
	dir, path string
	stores    *stores
	guard     *logGuard
	stable    *stableGuard
	found     Recovery
}

func withState(dir string, log *slog.Logger, do func(*offline) (Recovery, error)) (found Recovery, err error) {
	raftAt := filepath.Join(dir, raftDir)
	path := filepath.Join(raftAt, dbName)
	if _, err := os.Stat(path); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return found, job.Errorf(job.NotFound, "no_state", "%s holds no state of a cluster", dir)
		}
		return found, fmt.Errorf("look for the raft log: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return found, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	id, err := nodeID(raftAt)
	if err != nil {
		return found, err
	}
	s, err := openStores(raftAt, 2, log)
	if err != nil {
		return found, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	o := &offline{
		dir: dir, path: path, stores: s, guard: newLogGuard(s.log, s.mark, changeTimeout, log),
		stable: &stableGuard{StableStore: s.stable, mark: s.mark, log: log}, found: Recovery{NodeID: id},
	}
	if err := guardPanics(path, o.look); err != nil {
		return found, err
	}
	return do(o)
}

// look reads the end of the log, and the newest configuration in it.
func (o *offline) look() error {
	list, err := o.stores.snaps.List()
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	var servers []raft.Server
	if len(list) > 0 {
		o.found.LastIndex, o.found.LastTerm = list[0].Index, list[0].Term
		servers = list[0].Configuration.Servers
	}
	first, err := o.guard.FirstIndex()
	if err != nil {
		return fmt.Errorf("read the raft log: %w", err)
	}
	last, err := o.guard.LastIndex()
	if err != nil {
		return fmt.Errorf("read the raft log: %w", err)
	}
	for i := last; i >= max(first, o.found.LastIndex+1) && i > 0; i-- {
		var e raft.Log
		if err := o.guard.GetLog(i, &e); err != nil {
			return fmt.Errorf("read entry %d of the raft log: %w", i, err)
		}
		if i == last {
			defer func() { o.found.LastIndex, o.found.LastTerm = e.Index, e.Term }()
		}
		if e.Type == raft.LogConfiguration {
			servers = raft.DecodeConfiguration(e.Data).Servers
			break
		}
	}
	if last == 0 && len(list) == 0 {
		return job.Errorf(job.NotFound, "no_state", "%s holds no state of a cluster", o.dir)
	}
	for _, v := range servers {
		o.found.Servers = append(o.found.Servers, Server{ID: string(v.ID), Address: string(v.Address), Voter: v.Suffrage == raft.Voter})
	}
	return nil
}

// replay builds the state, so that whatever cannot be read shows before anything is changed.
func (o *offline) replay() error {
	return guardPanics(o.path, func() error {
		state := fsm.New()
		from := uint64(0)
		list, err := o.stores.snaps.List()
		if err != nil {
			return fmt.Errorf("list snapshots: %w", err)
		}
		if len(list) > 0 {
			_, r, err := o.stores.snaps.Open(list[0].ID)
			if err != nil {
				return fmt.Errorf("open snapshot %s: %w", list[0].ID, err)
			}
			if err := state.Restore(r); err != nil {
				return err
			}
			from = list[0].Index
		}
		for i := from + 1; i <= o.found.LastIndex; i++ {
			var e raft.Log
			if err := o.guard.GetLog(i, &e); err != nil {
				return fmt.Errorf("read entry %d of the raft log: %w", i, err)
			}
			state.Apply(&e)
		}
		o.found.ClusterID, o.found.Epoch = state.ClusterID(), state.Epoch()
		return nil
	})
}

// raisingState is a state whose snapshots have a higher epoch.
type raisingState struct {
	*fsm.State
	dir    string
	raised job.Epoch
}

// Snapshot implements raft.FSM.
func (s *raisingState) Snapshot() (raft.FSMSnapshot, error) {
	inner, err := s.State.Snapshot()
	return &raisingSnapshot{inner, s}, err
}

type raisingSnapshot struct {
	raft.FSMSnapshot
	of *raisingState
}

// Persist implements raft.FSMSnapshot.
func (s *raisingSnapshot) Persist(sink raft.SnapshotSink) error {
	f, err := newSpool(s.of.dir)
	if err == nil {
		defer f.Close()
		err = s.FSMSnapshot.Persist(keepOpen{f})
	}
	if err == nil {
		_, err = f.rewind()
	}
	if err == nil {
		err = fsm.RaiseSnapshotEpoch(f, sink, s.of.State.Epoch()+epochJump-1)
	}
	if err != nil {
		return errors.Join(err, sink.Cancel())
	}
	s.of.raised = s.of.State.Epoch() + epochJump
	return nil
}
