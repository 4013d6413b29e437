package cluster

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"sync"
	"sync/atomic"
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
	call   func(ctx context.Context, address string, commands []byte, sent *atomic.Bool) (index uint64, err error)
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

// newTermGrace is how long this node may take to apply what a new leader found in the log, once it follows it.
const newTermGrace = 500 * time.Millisecond

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
			if leader == "" && f.closing.Err() == nil { // they came just now, and wait as others do
				f.putBack(batch)
				<-f.slots
				continue
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
	var sent atomic.Bool
	answer := make(chan error, 1)
	go func() {
		index, err := f.call(ctx, address, data, &sent)
		switch {
		case err == nil:
			expected.Committed(index)
		case !sent.Load():
			err = &job.Error{Code: job.Unavailable, Reason: reasonNotLeader, Message: "the node that leads the cluster cannot be reached; try again", Cause: err}
		}
		answer <- err
	}()
	// A leader that is gone without a word does not answer. Once this node follows another, a call that has not reached it
	// is taken to that one. One that has is in the log by the first entries of the new term, or never.
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	var late, changed <-chan time.Time
	answered := false
	for {
		select {
		case <-expected.Done(): // perhaps before the answer
			f.deliver(batch, expected)
			if !answered {
				<-answer // the slot bounds the calls, too
			}
			return
		case err = <-answer:
			if err != nil && job.CodeOf(err) != job.Unknown {
				f.settle(batch, nil, err, leader, address)
				return
			}
			answered = true
			timer := time.NewTimer(f.cfg.patience())
			defer timer.Stop()
			late = timer.C
		case <-look.C:
			now, _, ok := f.leader()
			if !ok || now == leader || changed != nil {
				continue
			}
			if !sent.Load() {
				cancel()
				continue
			}
			timer := time.NewTimer(newTermGrace)
			defer timer.Stop()
			changed = timer.C
		case <-changed:
			changed = make(chan time.Time)
			if answered {
				f.refuse(batch, mayHappen(err))
				return
			}
			cancel() // and hear why
			late = time.After(0)
		case <-late:
			if !answered {
				<-answer
			}
			f.refuse(batch, mayHappen(err))
			return
		case <-f.life.Done():
			f.refuse(batch, mayHappen(errClosed))
			return
		}
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
