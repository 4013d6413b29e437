package cluster

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"sync"
	"time"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

// forwarder takes the proposals of a node that does not lead to the one that does. Like the proposer it makes batches of
// what arrives while others are under way. Each command carries a tag, by which this node's own state delivers the result
// when it applies it: no result crosses the wire, and whoever has the answer finds it in what this node shows.
type forwarder struct {
	batcher
	state  *fsm.State
	leader func() (id, address string, ok bool)
	own    func(ctx context.Context, commands []fsm.Command) ([]fsm.Result, error) // when this node leads meanwhile
	call   func(ctx context.Context, leader, address string, commands []byte) (index uint64, sent bool, err error)
	self   string
	count  func(outcome string)

	closing context.Context // no more waiting for a leader
	life    context.Context // of calls; it ends when close has waited long enough
	end     context.CancelFunc
	calls   sync.WaitGroup
	ended   chan struct{} // closed when the goroutine and all calls have ended
	tags    tagger
}

// forwardSlots is how many batches may be under way to the leader, whose own entries they share.
const forwardSlots = 4

// forwardTimeout bounds one call of the leader.
const forwardTimeout = 10 * time.Second

// patience is how long an election may take before proposals that wait for a leader are refused, and those of unknown
// outcome answered so.
func (c *Config) patience() time.Duration { return 2 * (c.HeartbeatTimeout + c.ElectionTimeout) }

// tagger makes tags that no other makes: a random part for this life of the node, and a number.
type tagger struct {
	life [8]byte
	last uint64
	mu   sync.Mutex
}

func (t *tagger) tag(commands []fsm.Command) (tagged []fsm.Command, tags []fsm.Tag) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == 0 {
		_, _ = rand.Read(t.life[:]) // never fails
	}
	tagged, tags = make([]fsm.Command, len(commands)), make([]fsm.Tag, len(commands))
	for i, c := range commands {
		t.last++
		copy(tags[i][:8], t.life[:])
		binary.BigEndian.PutUint64(tags[i][8:], t.last)
		tagged[i] = fsm.Tagged{Tag: tags[i], Command: c}
	}
	return tagged, tags
}

func (f *forwarder) start() {
	f.ended = make(chan struct{})
	go func() {
		f.fill()
		f.calls.Wait()
		close(f.ended)
	}()
}

// fill is the goroutine that makes batches.
func (f *forwarder) fill() {
	for range f.wake {
		for {
			f.slots <- struct{}{}
			leader, address := f.awaitLeader()
			batch, last := f.take()
			if len(batch) == 0 {
				<-f.slots
				if last {
					return
				}
				break
			}
			f.calls.Go(func() {
				defer func() { <-f.slots }()
				f.send(batch, leader, address)
			})
		}
	}
}

// awaitLeader waits for a leader while proposals wait, and refuses those that have waited too long. Meanwhile they are in
// the queue, where a caller who has had enough can take his back.
func (f *forwarder) awaitLeader() (id, address string) {
	noLeader := job.Errorf(job.Unavailable, "no_leader", "the cluster has no leader at the moment; try again in a few seconds")
	for {
		if id, address, ok := f.leader(); ok || f.closing.Err() != nil {
			return id, address
		}
		if !f.expire(time.Now().Add(-f.cfg.patience()), noLeader) {
			return "", ""
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-f.closing.Done():
		}
	}
}

// send takes one batch to the leader, and finishes it or puts it back.
func (f *forwarder) send(batch []*proposal, leader, address string) {
	if leader == "" {
		f.refuse(batch, notLeader(errClosed))
		return
	}
	commands := batch[0].commands
	if len(batch) > 1 {
		commands = nil
		for _, c := range batch {
			commands = append(commands, c.commands...)
		}
	}
	ctx, cancel := context.WithTimeout(f.life, forwardTimeout)
	defer cancel()
	if leader == f.self {
		results, err := f.own(ctx, commands)
		f.settle(batch, results, err, leader, address)
		return
	}
	tagged, tags := f.tags.tag(commands)
	data, err := fsm.EncodeCommands(tagged)
	if err != nil {
		f.settle(batch, nil, job.AsError(err), leader, address)
		return
	}
	expected := f.state.Expect(tags...)
	defer expected.Cancel()
	answer := make(chan error, 1)
	go func() {
		index, sent, err := f.call(ctx, leader, address, data)
		switch {
		case err == nil:
			expected.Committed(index)
		case !sent:
			err = &job.Error{Code: job.Unavailable, Reason: reasonNotLeader, Message: "the node that leads the cluster cannot be reached; try again", Cause: err}
		}
		answer <- err
	}()
	select {
	case <-expected.Done(): // this node learned of the commit before the call's answer
		f.deliver(batch, expected)
		<-answer // the slot bounds the calls, too
		return
	case err = <-answer:
	}
	if err != nil && job.CodeOf(err) != job.Unknown {
		f.settle(batch, nil, err, leader, address)
		return
	}
	// Committed, so this node will apply it; or unknown, and if it is in the log, the next leader commits it with the first
	// entry of its term.
	wait := time.NewTimer(f.cfg.patience())
	defer wait.Stop()
	select {
	case <-expected.Done():
		f.deliver(batch, expected)
	case <-wait.C:
		f.refuse(batch, mayHappen(err))
	case <-f.life.Done():
		f.refuse(batch, mayHappen(errClosed))
	}
}

// settle finishes a batch whose results came without this node's state, or of which nothing has happened.
func (f *forwarder) settle(batch []*proposal, results []fsm.Result, err error, leader, address string) {
	switch {
	case err == nil:
		f.count("ok")
		f.answer(batch, results)
	case passedOver(err) && time.Since(batch[0].since) < f.cfg.patience() && f.closing.Err() == nil:
		// Another leads or will, and this node learns of it in a moment.
		f.count("again")
		select {
		case <-time.After(20 * time.Millisecond):
		case <-f.closing.Done():
		}
		if f.closing.Err() != nil {
			f.refuse(batch, notLeader(errClosed))
			return
		}
		f.putBack(batch)
	case len(batch) > 1 && job.CodeOf(err) == job.Invalid:
		for _, c := range batch { // one of them cannot be written, and must not fail the others
			f.send([]*proposal{c}, leader, address)
		}
	default:
		f.refuse(batch, err)
	}
}

// deliver finishes a batch with what this node's state answered.
func (f *forwarder) deliver(batch []*proposal, e *fsm.Expectation) {
	results := e.Results()
	if results == nil {
		f.refuse(batch, mayHappen(errClosed))
		return
	}
	f.count("ok")
	f.answer(batch, results)
}

func (f *forwarder) answer(batch []*proposal, results []fsm.Result) {
	for _, c := range batch {
		n := len(c.commands)
		mine := results[:n:n]
		results = results[n:]
		var err error
		for _, r := range mine {
			if r.Err == error(fsm.ErrSkipped) {
				err = fsm.ErrSkipped
			}
		}
		if err != nil {
			mine = nil
		}
		c.finish(mine, err)
	}
}

func (f *forwarder) refuse(batch []*proposal, err error) {
	f.count(outcome(err))
	for _, c := range batch {
		c.finish(nil, err)
	}
}

// close refuses new proposals and waits until ctx ends for the calls under way.
func (f *forwarder) close(ctx context.Context) bool {
	f.shut()
	defer f.giveUp()
	defer f.end()
	select {
	case <-f.ended:
		return true
	case <-ctx.Done():
		return false
	}
}
