package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

// Propose puts commands into the log and answers what the state machine answered to each, in order. The commands of one
// call share an entry with each other, and with those of other calls that wait at the same time; one that the state
// machine refuses (Result.Err) leaves the others alone.
//
// On a node that does not lead, commands that may come from any node (fsm.Forwardable) go to the leader over Config.Port,
// after waiting for one if need be, and their results are delivered by this node's own state: whoever has the answer can
// read here what it changed.
//
// The error says what a caller may rely on:
//
//   - Unavailable: nothing happened. Nobody leads that this node can reach, or the commands are the leader's own (reason
//     not_leader); leadership is being handed over; this node is closing; some node of the cluster is too old to read the
//     commands (upgrade_pending); or ctx ended before the commands were in an entry.
//   - Exhausted: nothing happened; too many commands wait already.
//   - Invalid: nothing happened; the commands are too large for one entry.
//   - Unknown: the commands are or were in the log of this node or of the leader, or on their way there, and may be
//     applied, now or later, or never: leadership was lost, a disk hangs, a connection broke, or ctx ended meanwhile.
//     Repeat the request with the same ids; every command is safe to repeat.
func (n *Node) Propose(ctx context.Context, commands ...fsm.Command) ([]fsm.Result, error) {
	if len(commands) == 0 {
		return nil, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, notProposed(err)
	}
	results, err := n.proposeAnywhere(ctx, commands)
	n.metrics.proposals.WithLabelValues(outcome(err)).Inc()
	return results, err
}

func (n *Node) proposeAnywhere(ctx context.Context, commands []fsm.Command) ([]fsm.Result, error) {
	if err := n.readable(commands); err != nil {
		return nil, err
	}
	lost := notLeader(nil)
	if n.Leading() {
		n.awaitClock(ctx)
		results, err := n.proposer.propose(ctx, commands)
		if !passedOver(err) {
			return results, err
		}
		lost = job.AsError(err)
	}
	for _, c := range commands {
		if n.cfg.Port == nil || !fsm.Forwardable(c.Kind()) {
			return nil, lost
		}
	}
	return n.peers.forward.propose(ctx, commands)
}

// passedOver tells whether nothing happened because this node does not lead any more, while another may.
func passedOver(err error) bool {
	if job.CodeOf(err) != job.Unavailable {
		return false
	}
	reason := job.AsError(err).Reason
	return reason == reasonNotLeader || reason == reasonTransferring
}

// written is the newest version in which each kind of command is written.
var written = fsm.Supported()

// readable refuses what would stop a node that runs an older version.
func (n *Node) readable(commands []fsm.Command) error {
	for _, c := range commands {
		if node, yes := n.state.Unreadable(c.Kind(), fsm.VersionOf(c)); yes {
			return job.Errorf(job.Unavailable, "upgrade_pending", "node %s runs a version of muster that does not know this; upgrade it first", node)
		}
	}
	return nil
}

// outcome is the label of an error in the metrics.
func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case passedOver(err):
		return "not_leader"
	}
	return string(job.CodeOf(err))
}

const (
	reasonNotLeader    = "not_leader"
	reasonTransferring = "transferring"
)

func notLeader(cause error) *job.Error {
	return &job.Error{Code: job.Unavailable, Reason: reasonNotLeader, Message: "this node does not lead the cluster; try again or ask another node", Cause: cause}
}

func notProposed(cause error) *job.Error {
	return &job.Error{Code: job.Unavailable, Reason: "timeout", Message: "the request ended before it was put into the log", Cause: cause}
}

func mayHappen(cause error) *job.Error {
	return &job.Error{Code: job.Unknown, Reason: "commit_unknown", Message: "the change may have been made or may be made later; repeat the request with the same id", Cause: cause}
}

// classify turns the error of an entry into what its proposers are told. Only what Raft documents as "never appended" is
// Unavailable; whatever is not known is Unknown.
func classify(err error) *job.Error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout):
		return notLeader(err)
	case errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return &job.Error{Code: job.Unavailable, Reason: reasonTransferring, Message: "leadership is being handed over; try again", Cause: err}
	default:
		return mayHappen(err)
	}
}

// applier is what the proposer needs of Raft.
type applier interface {
	ApplyLog(log raft.Log, timeout time.Duration) raft.ApplyFuture
}

// proposer gathers the commands of many callers into few entries. While entries are being committed, what arrives waits
// and goes together into the next one: no timer delays a lone caller, and a crowd shares its syncs.
type proposer struct {
	batcher
	raft   applier
	node   string
	boot   string
	log    *slog.Logger
	metric *metrics
	// term is Raft's, and committed is called with each entry that other nodes wait for; nil when there are none.
	term      func() uint64
	committed func(index, term uint64, nodes []string)

	inFlight chan *entry   // handed to Raft, in order
	done     chan struct{} // closed when both goroutines have ended
	seq      uint64        // of the last entry; fill only
}

// proposal is one call of Propose.
type proposal struct {
	commands []fsm.Command
	size     int
	from     string        // the node that forwarded it; "" is this one
	since    time.Time     // when it was queued first
	state    proposalState // under batcher.mu
	done     chan struct{} // closed after results, index and err are set
	results  []fsm.Result
	index    uint64 // of the entry
	err      error
}

type proposalState uint8

const (
	queued proposalState = iota
	proposed
	withdrawn
)

// entry is one log entry on its way.
type entry struct {
	proposals []*proposal
	commands  int
	future    raft.ApplyFuture
	start     time.Time
	term      uint64 // not later than that of the entry
}

func newProposer(cfg *Config, r applier, node, boot string, m *metrics) *proposer {
	return &proposer{
		batcher: newBatcher(cfg, cfg.MaxInFlight),
		raft:    r, node: node, boot: boot, log: cfg.Logger, metric: m,
		inFlight: make(chan *entry, cfg.MaxInFlight),
		done:     make(chan struct{}),
	}
}

func (p *proposer) start() {
	var both sync.WaitGroup
	both.Go(p.fill)
	both.Go(p.settle)
	go func() { both.Wait(); close(p.done) }()
}

// fill is the goroutine that makes entries.
func (p *proposer) fill() {
	defer close(p.inFlight)
	for range p.wake {
		for {
			p.slots <- struct{}{}
			batch, last := p.take()
			if len(batch) == 0 {
				<-p.slots
				if last {
					return
				}
				break
			}
			p.send(batch)
		}
	}
}

// send hands one entry to Raft. The caller holds a slot for it.
func (p *proposer) send(batch []*proposal) {
	e := &entry{proposals: batch, start: time.Now()}
	var commands []fsm.Command
	if len(batch) == 1 {
		commands = batch[0].commands
	} else {
		for _, c := range batch {
			commands = append(commands, c.commands...)
		}
	}
	e.commands = len(commands)
	p.seq++
	data, err := fsm.EncodeEntry(fsm.Origin{Node: p.node, Boot: p.boot, Seq: p.seq}, job.At(p.cfg.Now()), commands...)
	if err != nil {
		<-p.slots
		if len(batch) == 1 {
			batch[0].finish(nil, job.AsError(err))
			return
		}
		// One of them cannot be written. It must not fail the others.
		for _, c := range batch {
			p.slots <- struct{}{}
			p.send([]*proposal{c})
		}
		return
	}
	p.metric.entryBytes.Observe(float64(len(data)))
	p.metric.entryCommands.Observe(float64(e.commands))
	if p.term != nil {
		e.term = p.term()
	}
	e.future = p.raft.ApplyLog(raft.Log{Data: data, Extensions: checksum(data)}, p.cfg.WriteTimeout)
	p.inFlight <- e
}

// settle is the goroutine that waits for entries and answers their proposers.
func (p *proposer) settle() {
	for e := range p.inFlight {
		err := e.future.Error()
		<-p.slots
		p.metric.commit.Observe(time.Since(e.start).Seconds())
		if err != nil {
			answer := classify(err)
			p.log.Debug("entry not committed", "code", answer.Code, "commands", e.commands, "err", err)
			for _, c := range e.proposals {
				c.finish(nil, answer)
			}
			continue
		}
		results, ok := e.future.Response().([]fsm.Result)
		if !ok || len(results) != e.commands {
			answer := &job.Error{Code: job.Internal, Message: "an internal error occurred",
				Cause: fmt.Errorf("the state machine answered %d commands with %T", e.commands, e.future.Response())}
			for _, c := range e.proposals {
				c.finish(nil, answer)
			}
			continue
		}
		p.tellOthers(e)
		for _, c := range e.proposals {
			n := len(c.commands)
			c.index = e.future.Index()
			c.finish(results[:n:n], nil)
			results = results[n:]
		}
	}
}

// tellOthers says who waits for an entry that is committed. The entry's term is known when Raft's was the same before and
// after: only while this node leads does it take entries, and terms only grow.
func (p *proposer) tellOthers(e *entry) {
	if p.committed == nil {
		return
	}
	var nodes []string
	for _, c := range e.proposals {
		if c.from != "" && !slices.Contains(nodes, c.from) {
			nodes = append(nodes, c.from)
		}
	}
	if len(nodes) > 0 && p.term() == e.term {
		p.committed(e.future.Index(), e.term, nodes)
	}
}

func (c *proposal) finish(results []fsm.Result, err error) {
	c.results, c.err = results, err
	close(c.done)
}

// close refuses new proposals, and waits until ctx ends for the entries that are on their way. Raft must run meanwhile:
// when it is shut down it forgets to answer some of them.
func (p *proposer) close(ctx context.Context) error {
	p.shut()
	defer p.giveUp()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return errors.New("entries on their way to the log did not end")
	}
}
