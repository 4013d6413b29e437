package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
// The error says what a caller may rely on:
//
//   - Unavailable: nothing happened. This node does not lead (reason not_leader), is handing over, or is closing; or ctx
//     ended before the commands were in an entry.
//   - Exhausted: nothing happened; too many commands wait already.
//   - Invalid: nothing happened; the commands are too large for one entry.
//   - Unknown: the commands are or were in the log of this node, and may be applied, now or later, or never: leadership
//     was lost, the disk hangs, or ctx ended meanwhile. Repeat the request with the same ids; every command is safe to
//     repeat.
func (n *Node) Propose(ctx context.Context, commands ...fsm.Command) ([]fsm.Result, error) {
	if len(commands) == 0 {
		return nil, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, notProposed(err)
	}
	if n.raft.State() != raft.Leader {
		n.metrics.proposals.WithLabelValues("not_leader").Inc()
		return nil, notLeader(nil)
	}
	results, err := n.proposer.propose(ctx, commands)
	n.metrics.proposals.WithLabelValues(outcome(err)).Inc()
	return results, err
}

// outcome is the label of an error in the metrics.
func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	return string(job.CodeOf(err))
}

func notLeader(cause error) *job.Error {
	return &job.Error{Code: job.Unavailable, Reason: "not_leader", Message: "this node does not lead the cluster; try again or ask another node", Cause: cause}
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
		return &job.Error{Code: job.Unavailable, Reason: "transferring", Message: "leadership is being handed over; try again", Cause: err}
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
	cfg    *Config
	raft   applier
	node   string
	boot   string
	log    *slog.Logger
	metric *metrics

	mu       sync.Mutex
	queue    []*proposal
	commands int // queued
	bytes    int // queued
	closed   bool

	wake      chan struct{}
	inFlight  chan *entry   // handed to Raft, in order
	slots     chan struct{} // one is taken for each entry in flight
	done      chan struct{} // closed when both goroutines have ended
	abandoned chan struct{} // closed when nobody waits for entries any longer
	abandon   sync.Once
	seq       uint64 // of the last entry; fill only
}

// proposal is one call of Propose.
type proposal struct {
	commands []fsm.Command
	size     int
	state    proposalState // under proposer.mu
	done     chan struct{} // closed after results and err are set
	results  []fsm.Result
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
}

func newProposer(cfg *Config, r applier, node, boot string, m *metrics) *proposer {
	return &proposer{
		cfg: cfg, raft: r, node: node, boot: boot, log: cfg.Logger, metric: m,
		wake:      make(chan struct{}, 1),
		inFlight:  make(chan *entry, cfg.MaxInFlight),
		slots:     make(chan struct{}, cfg.MaxInFlight),
		done:      make(chan struct{}),
		abandoned: make(chan struct{}),
	}
}

func (p *proposer) start() {
	var both sync.WaitGroup
	both.Go(p.fill)
	both.Go(p.settle)
	go func() { both.Wait(); close(p.done) }()
}

func (p *proposer) propose(ctx context.Context, commands []fsm.Command) ([]fsm.Result, error) {
	size := fsm.Size(commands...)
	if size > MaxProposalBytes {
		return nil, job.Errorf(job.Invalid, "too_large", "the request needs a log entry of %d bytes; at most %d fit", size, MaxProposalBytes)
	}
	c := &proposal{commands: commands, size: size, done: make(chan struct{})}
	if err := p.enqueue(c); err != nil {
		return nil, err
	}
	select {
	case <-c.done:
		return c.results, c.err
	case <-ctx.Done():
		if p.withdraw(c) {
			return nil, notProposed(context.Cause(ctx))
		}
		select {
		case <-c.done: // both were ready
			return c.results, c.err
		default:
			return nil, mayHappen(context.Cause(ctx))
		}
	case <-p.abandoned:
		if p.withdraw(c) {
			return nil, notLeader(errClosed)
		}
		return nil, mayHappen(errClosed)
	}
}

func (p *proposer) enqueue(c *proposal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return notLeader(errClosed)
	case p.commands > 0 && p.commands+len(c.commands) > p.cfg.MaxQueuedCommands, p.bytes+c.size > p.cfg.MaxQueuedBytes && p.commands > 0:
		return job.Errorf(job.Exhausted, "proposals_full", "%d changes wait to be recorded already; try again later", p.commands)
	}
	p.queue = append(p.queue, c)
	p.commands += len(c.commands)
	p.bytes += c.size
	select {
	case p.wake <- struct{}{}:
	default:
	}
	return nil
}

// withdraw takes a proposal back, unless it is in an entry already. Its place in the queue is skipped later.
func (p *proposer) withdraw(c *proposal) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.state != queued {
		return c.state == withdrawn
	}
	c.state = withdrawn
	p.commands -= len(c.commands)
	p.bytes -= c.size
	c.commands = nil // its place may wait for long
	return true
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

// take answers the proposals of the next entry: at least one if any waits. last means that no more will come.
func (p *proposer) take() (batch []*proposal, last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, commands, bytes := 0, 0, 0
	for _, c := range p.queue {
		if c.state == withdrawn {
			n++
			continue
		}
		if len(batch) > 0 && (commands+len(c.commands) > p.cfg.MaxEntryCommands || bytes+c.size > p.cfg.MaxEntryBytes) {
			break
		}
		n++
		c.state = proposed
		batch = append(batch, c)
		commands += len(c.commands)
		bytes += c.size
	}
	clear(p.queue[:n])
	p.queue = p.queue[n:]
	if len(p.queue) == 0 {
		p.queue = nil // or the array would only grow
	}
	p.commands -= commands
	p.bytes -= bytes
	return batch, p.closed
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
		for _, c := range e.proposals {
			n := len(c.commands)
			c.finish(results[:n:n], nil)
			results = results[n:]
		}
	}
}

func (c *proposal) finish(results []fsm.Result, err error) {
	c.results, c.err = results, err
	close(c.done)
}

// close refuses new proposals, and waits until ctx ends for the entries that are on their way. Raft must run meanwhile:
// when it is shut down it forgets to answer some of them.
func (p *proposer) close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	select {
	case p.wake <- struct{}{}:
	default:
	}
	p.mu.Unlock()
	defer p.abandon.Do(func() { close(p.abandoned) })
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return errors.New("entries on their way to the log did not end")
	}
}
