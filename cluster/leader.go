package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/job"
)

// leadership is what Raft last said about this node. Raft's signals are edges and may come faster than anybody acts on
// them; here they become a level with a generation, so that "lost and won again" is not mistaken for "never lost" (L1).
type leadership struct {
	mu         sync.Mutex
	leading    bool
	generation uint64
	changed    chan struct{} // closed and replaced at each signal
}

func newLeadership() *leadership { return &leadership{changed: make(chan struct{})} }

func (l *leadership) set(leading bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leading = leading
	l.generation++
	close(l.changed)
	l.changed = make(chan struct{})
}

// renew begins another generation of the same level: the work of this one ends, and begins anew.
func (l *leadership) renew() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.generation++
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *leadership) get() (leading bool, generation uint64, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leading, l.generation, l.changed
}

// watchLeadership drains Raft's signals and does nothing else: Raft blocks on a channel that nobody reads.
func (n *Node) watchLeadership(notify <-chan bool) {
	for {
		select {
		case leading := <-notify:
			n.leadership.set(leading)
			if leading {
				n.log.Info("leadership won", "term", n.raft.CurrentTerm())
			} else {
				n.log.Info("leadership lost", "term", n.raft.CurrentTerm())
			}
		case <-n.raftStopped:
			n.leadership.set(false)
			return
		}
	}
}

var (
	errTermOver = errors.New("this node no longer leads")
	errClosed   = errors.New("the node is closed")
)

// Run calls lead whenever this node leads, with a context that lives for that one term, until ctx ends or the node is
// closed. Everything that was logged before is applied when lead is called (a barrier). lead must return when its
// context ends, and the next term does not begin before it has: one term's work has wholly ended before the next (L1).
// If lead returns while this node still leads, leadership goes to another node; with no other one, or if none takes it,
// lead is called again after a pause, in the same term.
//
// Run returns nil when ctx ends or the node is closed, and an error only if this process cannot go on as a node: it was
// removed from the cluster, it belongs to another one, or a transfer hangs (hashicorp/raft issue 696: every later
// proposal would be refused), and then a restart helps.
func (n *Node) Run(ctx context.Context, lead func(context.Context) error) error {
	if !n.enterRun() {
		return job.Errorf(job.Conflict, "", "the node is closed, or Run is running already")
	}
	defer n.leaveRun()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(n.closing, func() { cancel(errClosed) })()
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel(nil)
	watch.Go(func() {
		select {
		case <-n.failed:
			cancel(n.failure)
		case <-ctx.Done():
		}
	})
	pause := minRetry
	for {
		generation, ok, err := n.awaitLeadership(ctx)
		if n.broken() {
			return n.failure
		}
		if !ok {
			return err
		}
		start := time.Now()
		err = n.leadOnce(ctx, generation, lead)
		if n.broken() {
			return n.failure
		}
		if ctx.Err() != nil {
			return nil
		}
		if leading, now, _ := n.leadership.get(); !leading || now != generation {
			pause = minRetry
			continue
		}
		n.log.Error("the leader's work ended before its term did", "err", err)
		if time.Since(start) > time.Minute {
			pause = minRetry
		}
		if n.otherVoters() > 0 {
			switch err := n.Transfer(ctx, ""); {
			case err == nil:
				pause = minRetry
				continue
			case n.transferHangs():
				return n.errTransferHangs(err)
			default:
				n.log.Warn("leadership cannot be handed over", "err", err)
			}
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, maxRetry)
		case <-ctx.Done():
		}
	}
}

// How long Run waits before it calls lead again in the same term.
const (
	minRetry = 100 * time.Millisecond
	maxRetry = 5 * time.Second
)

// awaitLeadership waits until this node leads. ok is false when Run must return err.
func (n *Node) awaitLeadership(ctx context.Context) (generation uint64, ok bool, err error) {
	for {
		if ctx.Err() != nil {
			return 0, false, nil
		}
		leading, generation, changed := n.leadership.get()
		if leading {
			return generation, true, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// leadOnce is one call of lead within one term.
func (n *Node) leadOnce(ctx context.Context, generation uint64, lead func(context.Context) error) error {
	term, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel(nil)
	watch.Go(func() {
		for {
			leading, now, changed := n.leadership.get()
			if !leading || now != generation {
				cancel(errTermOver)
				return
			}
			select {
			case <-changed:
			case <-term.Done():
				return
			}
		}
	})
	select {
	case n.term <- struct{}{}:
		defer func() { <-n.term }()
	case <-term.Done():
		return context.Cause(term)
	}
	if err := n.Barrier(term); err != nil {
		return fmt.Errorf("apply what was logged before: %w", err)
	}
	n.awaitClock(term)
	if err := n.announceAddress(term); err != nil {
		return fmt.Errorf("announce the address of this node: %w", err)
	}
	if err := n.initCluster(term); err != nil {
		return fmt.Errorf("give the cluster an identity: %w", err)
	}
	if err := n.checkCluster(); err != nil {
		n.fail(err)
		return err
	}
	n.metrics.terms.Inc()
	watch.Go(func() { n.govern(term) })
	return lead(term)
}

// fail ends Run with an error: this process cannot go on as a node.
func (n *Node) fail(err error) {
	n.failing.Do(func() {
		n.log.Error("this node cannot go on", "err", err)
		n.failure = err
		close(n.failed)
	})
}

func (n *Node) broken() bool {
	select {
	case <-n.failed:
		return true
	default:
		return false
	}
}

// announceAddress puts this node's address into the configuration if it has changed, as when a node that was alone is
// given one.
func (n *Node) announceAddress(ctx context.Context) error {
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		if string(s.ID) == n.id && s.Address != n.address && s.Suffrage == raft.Voter {
			n.log.Info("address of this node changed", "from", s.Address, "to", n.address)
			return n.await(ctx, func() error { return n.raft.AddVoter(s.ID, n.address, 0, n.cfg.BarrierTimeout).Error() })
		}
	}
	return nil
}

// Barrier waits until everything that was logged before is applied here. Only a leader can.
func (n *Node) Barrier(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.BarrierTimeout)
	defer cancel()
	return n.await(ctx, func() error { return n.raft.Barrier(n.cfg.BarrierTimeout).Error() })
}

// Transfer hands leadership to another voter, by name or id; "" is the one that is furthest. Only the leader can.
func (n *Node) Transfer(ctx context.Context, to string) error {
	if !n.Leading() {
		return notLeader(nil)
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.TransferTimeout)
	defer cancel()
	transfer := n.raft.LeadershipTransfer
	if to == "" && n.otherVoters() == 0 {
		return job.Errorf(job.Conflict, "no_other_voter", "there is no other node that could lead")
	}
	if to != "" {
		servers := n.servers()
		at := n.findNode(servers, to)
		switch {
		case at < 0:
			return job.Errorf(job.NotFound, "", "the cluster has no node %q", to)
		case string(servers[at].ID) == n.id:
			return nil
		case servers[at].Suffrage != raft.Voter:
			return job.Errorf(job.Conflict, "no_voter", "%s does not vote yet: it still catches up", to)
		}
		transfer = func() raft.Future { return n.raft.LeadershipTransferToServer(servers[at].ID, servers[at].Address) }
	}
	err := n.await(ctx, func() error { return transfer().Error() })
	switch {
	case err == nil:
		n.transferStuck.Store(0)
		return nil
	case errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, context.DeadlineExceeded):
		n.transferStuck.CompareAndSwap(0, time.Now().UnixNano())
		if n.transferHangs() {
			n.fail(n.errTransferHangs(err))
		}
	default:
		n.transferStuck.Store(0)
	}
	if errors.Is(err, raft.ErrNotLeader) {
		return notLeader(err)
	}
	return &job.Error{Code: job.Unavailable, Reason: "no_transfer", Message: "leadership could not be handed over; try again", Cause: err}
}

func (n *Node) errTransferHangs(err error) error {
	return fmt.Errorf("a leadership transfer has been hanging for more than %s, restart this node: %w", 2*n.cfg.TransferTimeout, err)
}

// transferHangs tells whether transfers have failed for so long because an earlier one never ended.
func (n *Node) transferHangs() bool {
	since := n.transferStuck.Load()
	return since != 0 && time.Since(time.Unix(0, since)) > 2*n.cfg.TransferTimeout
}

// await waits for one of Raft's futures, which take no context. Close waits for those left behind.
func (n *Node) await(ctx context.Context, future func() error) error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return errClosed
	}
	n.futures.Add(1)
	n.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		defer n.futures.Done()
		done <- future()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (n *Node) otherVoters() int {
	others := 0
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter && string(s.ID) != n.id {
			others++
		}
	}
	return others
}

func (n *Node) enterRun() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || n.running != nil {
		return false
	}
	n.running = make(chan struct{})
	return true
}

func (n *Node) leaveRun() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.running)
	n.running = nil
}
