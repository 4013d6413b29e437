package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

// Node is this process as a member of the cluster.
type Node struct {
	cfg     Config
	id      string
	address raft.ServerAddress
	log     *slog.Logger
	state   *fsm.State
	metrics *metrics

	lock       *dirLock // nil in memory
	stores     *stores
	guard      *logGuard
	raft       *raft.Raft
	transport  raft.Transport
	proposer   *proposer
	peers      *Peers
	leadership *leadership
	unregister func()

	closing       context.Context // ends when Close begins
	beginClosing  context.CancelFunc
	raftStopped   chan struct{} // closed when Raft has ended
	goroutines    sync.WaitGroup
	futures       sync.WaitGroup // of Raft's, see await; Add under mu while not closed
	snapshotting  sync.Mutex
	gate          *gate
	stable        *stableGuard
	membership    sync.Mutex    // held while the leader changes the configuration and the directory
	term          chan struct{} // holds one while a term's work is going on, or none may begin, see holdTerm
	failed        chan struct{} // closed when this process cannot go on as a node
	failure       error         // why; set before failed is closed
	failing       sync.Once
	suspecting    atomic.Bool                                               // see Suspect
	probed        func(id string) (applied uint64, seen time.Time, ok bool) // tests only, see progressOf
	transferStuck atomic.Int64                                              // since when, in Unix nanoseconds; 0: it does not

	mu       sync.Mutex
	closed   bool
	running  chan struct{} // closed when Run returns; nil if it does not run
	knows    []string      // see Greeting
	told     job.Node      // what this node tells of itself, see Announce
	closeErr error
	closeEnd chan struct{}
}

// Open starts a node on what cfg.Dir holds. A node without state that is not told to Join becomes a cluster of one. It
// returns as soon as Raft runs; nobody leads yet, see Run and AwaitLeader.
//
// It refuses a directory that another process uses, and a log that lacks what it once held: such a node may not vote.
func Open(ctx context.Context, cfg Config) (_ *Node, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	n := &Node{
		cfg: cfg, state: cfg.State, metrics: newMetrics(), leadership: newLeadership(),
		raftStopped: make(chan struct{}), closeEnd: make(chan struct{}), failed: make(chan struct{}), told: cfg.Self,
		term: make(chan struct{}, 1),
	}
	if n.told.Reads == nil {
		n.told.Reads = reads()
	}
	n.closing, n.beginClosing = context.WithCancel(context.Background())
	var undo []func()
	defer func() {
		if err != nil {
			n.beginClosing()
			for i := len(undo) - 1; i >= 0; i-- {
				undo[i]()
			}
		}
	}()
	if cfg.Memory != nil {
		n.id, n.stores = cfg.Memory.id, cfg.Memory.stores()
	} else {
		if n.lock, err = lockDir(cfg.Dir); err != nil {
			return nil, err
		}
		undo = append(undo, func() { _ = n.lock.Close() })
		if err = restoreWasCut(cfg.Dir); err != nil {
			return nil, err
		}
		dir := filepath.Join(cfg.Dir, raftDir)
		if n.id, err = nodeID(dir); err != nil {
			return nil, err
		}
		if n.stores, err = openStores(dir, cfg.SnapshotsKept, cfg.Logger); err != nil {
			return nil, err
		}
	}
	undo = append(undo, func() { _ = n.stores.close() })
	n.log = cfg.Logger.With("node", n.id)
	transport, err := n.openTransport()
	if err != nil {
		return nil, err
	}
	undo = append(undo, func() {
		if c, ok := transport.(raft.WithClose); ok {
			_ = c.Close()
		}
	})
	n.transport, n.address = transport, transport.LocalAddr()
	if err := n.startRaft(transport); err != nil {
		return nil, err
	}
	undo = append(undo, func() { _ = n.raft.Shutdown().Error(); close(n.raftStopped); n.goroutines.Wait() })
	n.proposer = newProposer(&n.cfg, n.raft, n.id, uuid.NewString(), n.metrics)
	n.peers = newPeers(n)
	if n.unregister, err = n.register(cfg.Registerer); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	n.planSnapshot()
	n.proposer.start()
	n.peers.start()
	n.goroutines.Go(func() { n.snapshotter(n.closing) })
	if cfg.Self.Name != "" {
		n.goroutines.Go(func() { n.announce(n.closing) })
	}
	n.guard.signal()
	n.log.Info("node open", "address", n.address, "index", n.raft.LastIndex(), "term", n.raft.CurrentTerm())
	return n, nil
}

// openTransport answers how Raft reaches other nodes.
func (n *Node) openTransport() (raft.Transport, error) {
	switch {
	case n.cfg.Transport != nil:
		return n.cfg.Transport, nil
	case n.cfg.alone():
		_, t := raft.NewInmemTransport(raft.ServerAddress("alone-" + n.id))
		return t, nil
	}
	config := &raft.NetworkTransportConfig{MaxPool: 4, Timeout: 10 * time.Second, Logger: newRaftLogger(n.log), Stream: n.cfg.StreamLayer}
	if n.cfg.Port != nil {
		// Connections to a node that was cut off are given up early, so that it is found again early.
		config.Stream, config.Timeout = n.cfg.Port.StreamLayer(), 5*time.Second
	}
	if config.Stream == nil {
		layer, err := listen(n.cfg.RaftAddress, n.cfg.AdvertiseAddress)
		if err != nil {
			return nil, fmt.Errorf("listen for raft on %s: %w", n.cfg.RaftAddress, err)
		}
		config.Stream = layer
	}
	return networkTransport{raft.NewNetworkTransportWithConfig(config)}, nil
}

func (n *Node) startRaft(transport raft.Transport) error {
	logger := newRaftLogger(n.log)
	notify := make(chan bool, 16)
	config := &raft.Config{
		ProtocolVersion:    raft.ProtocolVersionMax,
		LocalID:            raft.ServerID(n.id),
		HeartbeatTimeout:   n.cfg.HeartbeatTimeout,
		ElectionTimeout:    n.cfg.ElectionTimeout,
		LeaderLeaseTimeout: n.cfg.LeaderLease,
		CommitTimeout:      50 * time.Millisecond,
		MaxAppendEntries:   64,
		// Entries queue up while the one before is being synced and then share one transaction. The price, that the
		// timeout of an apply ends when the entry is queued, costs nothing here: nobody waits for that timeout.
		BatchApplyCh: true,
		// A server that was removed stands for election no more. Its process ends by our own doing, see errRemoved: Raft
		// would leave its transport and goroutines behind.
		ShutdownOnRemove:  false,
		TrailingLogs:      10240, // until the first snapshot sets it
		SnapshotInterval:  neverInterval,
		SnapshotThreshold: neverThreshold,
		NotifyCh:          notify,
		Logger:            logger,
		NoLegacyTelemetry: true,
	}
	n.guard = newLogGuard(n.stores.log, n.stores.mark, n.cfg.WriteTimeout, n.log)
	n.guard.observe = n.metrics.wrote
	// The cache is for followers and counts entries, which may be half a megabyte each.
	cache, err := raft.NewLogCache(64, n.guard)
	if err != nil {
		return err
	}
	stable := &stableGuard{StableStore: n.stores.stable, mark: n.stores.mark, log: n.log}
	n.stable = stable
	path := filepath.Join(n.cfg.Dir, raftDir, dbName)
	err = guardPanics(path, func() error {
		empty, err := n.hasNoLog(cache)
		if err != nil {
			return err
		}
		if empty {
			if err := stable.forgetBootstrap(); err != nil {
				return fmt.Errorf("read raft's term: %w", err)
			}
		}
		var outer raft.Transport
		n.gate, outer = newGate(transport, !empty || !n.cfg.Join)
		if empty && !n.cfg.Join {
			alone := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: config.LocalID, Address: n.address}}}
			if err := raft.BootstrapCluster(config, cache, stable, n.stores.snaps, outer, alone); err != nil {
				return fmt.Errorf("bootstrap: %w", err)
			}
			n.log.Info("started a new cluster of one node")
		}
		n.guard.opening.Store(true)
		n.raft, err = raft.NewRaft(config, n.state, cache, stable, n.stores.snaps, outer)
		n.guard.opening.Store(false)
		if err != nil {
			return fmt.Errorf("start raft: %w", err)
		}
		return nil
	})
	if err != nil {
		if n.gate != nil {
			_ = n.gate.Close()
		}
		return err
	}
	r := n.raft
	n.guard.setLeading(func() bool { return r.State() == raft.Leader })
	n.goroutines.Go(func() { n.watchLeadership(notify) })
	return nil
}

// hasNoLog tells whether this node knows no configuration: it is new, or was killed before it had its first entry.
func (n *Node) hasNoLog(logs raft.LogStore) (bool, error) {
	last, err := logs.LastIndex()
	if err != nil || last > 0 {
		return false, err
	}
	list, err := n.stores.snaps.List()
	return len(list) == 0, err
}

// ID is this node's id, the same for as long as its data directory lives.
func (n *Node) ID() string { return n.id }

// State is the replicated state, as new as this node's log.
func (n *Node) State() *fsm.State { return n.state }

// Leading tells whether this node believes to lead. It may be wrong by the length of a lease: use Run for work.
func (n *Node) Leading() bool { return n.raft.State() == raft.Leader }

// Leader is who leads as far as this node knows; ok is false when it knows of nobody.
func (n *Node) Leader() (id, address string, ok bool) {
	a, i := n.raft.LeaderWithID()
	return string(i), string(a), i != ""
}

// WatchLeader signals, until ctx ends, whenever this node learns of another leader, or of none. A signal that nobody has taken
// yet counts for those after it.
func (n *Node) WatchLeader(ctx context.Context, changed chan<- struct{}) {
	seen := make(chan raft.Observation, 1) // one that does not fit says no more than the one that is in it
	o := raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	n.raft.RegisterObserver(o)
	defer n.raft.DeregisterObserver(o)
	for {
		select {
		case changed <- struct{}{}: // first of all who leads now
		default:
		}
		select {
		case <-seen:
		case <-ctx.Done():
			return
		}
	}
}

// AwaitLeader waits until this node knows a leader and answers its id.
func (n *Node) AwaitLeader(ctx context.Context) (string, error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if id, _, ok := n.Leader(); ok {
			return id, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", job.Errorf(job.Unavailable, "no_leader", "the cluster has no leader at the moment")
		case <-n.closing.Done():
			return "", notLeader(errClosed)
		}
	}
}

// Status is how a node stands, for people.
type Status struct {
	ID, Address             string
	Role                    string // follower, candidate, leader or stopped
	Term                    uint64
	LastIndex, CommitIndex  uint64
	AppliedIndex            uint64
	LastContact             time.Duration // since the leader was heard; 0 on the leader, negative if never
	LeaderID, LeaderAddress string
	Servers                 []Server
}

// Server is a member as the Raft configuration has it.
type Server struct {
	ID, Address string
	Voter       bool
}

// Status answers how this node stands.
func (n *Node) Status() Status {
	s := Status{
		ID: n.id, Term: n.raft.CurrentTerm(), LastIndex: n.raft.LastIndex(), CommitIndex: n.raft.CommitIndex(),
		AppliedIndex: n.raft.AppliedIndex(), LastContact: n.lastContact(),
	}
	switch n.raft.State() {
	case raft.Follower:
		s.Role = "follower"
	case raft.Candidate:
		s.Role = "candidate"
	case raft.Leader:
		s.Role = "leader"
	default:
		s.Role = "stopped"
	}
	s.LeaderID, s.LeaderAddress, _ = n.Leader()
	for _, v := range n.raft.GetConfiguration().Configuration().Servers {
		s.Servers = append(s.Servers, Server{ID: string(v.ID), Address: string(v.Address), Voter: v.Suffrage == raft.Voter})
		if string(v.ID) == n.id {
			s.Address = string(v.Address)
		}
	}
	return s
}

func (n *Node) lastContact() time.Duration {
	if n.raft.State() == raft.Leader {
		return 0
	}
	last := n.raft.LastContact()
	if last.IsZero() {
		return -1
	}
	return time.Since(last)
}

// Close stops this node: it refuses new proposals, ends Run's term, waits for what is on its way, hands leadership over
// if somebody can take it, and releases everything. It may be called twice. An error means that something hangs, such as
// the disk, and was left behind; the files are then closed by the end of the process.
func (n *Node) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		<-n.closeEnd
		return n.closeErr
	}
	n.closed = true
	running := n.running
	n.mu.Unlock()
	defer close(n.closeEnd)
	ctx, cancel := context.WithTimeout(context.Background(), n.cfg.CloseTimeout)
	defer cancel()
	n.beginClosing()
	var errs []error
	if running != nil {
		select {
		case <-running:
		case <-ctx.Done():
			errs = append(errs, errors.New("the leader's work did not end"))
		}
	}
	if err := n.peers.close(ctx); err != nil {
		errs = append(errs, err)
	}
	if err := n.proposer.close(ctx); err != nil {
		errs = append(errs, err)
	}
	within := func(what string, f func()) bool {
		done := make(chan struct{})
		go func() { defer close(done); f() }()
		select {
		case <-done:
			return true
		case <-ctx.Done():
			errs = append(errs, fmt.Errorf("%s did not end in time", what))
			return false
		}
	}
	if n.raft.State() == raft.Leader && n.otherVoters() > 0 {
		within("the transfer of leadership", func() {
			if err := n.raft.LeadershipTransfer().Error(); err != nil {
				n.log.Warn("leadership cannot be handed over", "err", err)
			}
		})
	}
	within("calls of raft", n.futures.Wait)
	stopped := within("raft", func() { _ = n.raft.Shutdown().Error() })
	close(n.raftStopped)
	n.goroutines.Wait()
	n.unregister()
	if stopped {
		errs = append(errs, n.stores.close())
		if n.lock != nil {
			errs = append(errs, n.lock.Close())
		}
	}
	n.closeErr = errors.Join(errs...)
	return n.closeErr
}
