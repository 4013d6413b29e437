package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker/gateway/internal/call"
	"github.com/musterhq/muster/worker/workerpb"
)

// peer is the leader's end of a link. The goroutine of the request reads and never waits; a second one writes; one more
// renews while there are heartbeats, and one for each session that has something for the term.
type peer struct {
	hub    *Hub
	reign  *reign
	node   string
	call   *call.Call
	out    *outbox
	bornAt time.Time
	seenAt atomic.Int64 // when the node last said something, since bornAt
	lanes  sync.WaitGroup

	mu       sync.Mutex
	why      error // why the link was ended
	beats    []*workerpb.SessionBeat
	renewing bool
}

// serve is the life of one link.
func (h *Hub) serve(ctx context.Context, rpc *connect.BidiStream[workerpb.GatewayMessage, workerpb.LeaderMessage], c *call.Call) (err error) {
	p := &peer{hub: h, call: c, bornAt: time.Now()}
	p.out = newOutbox(h.config.AssignPatience, func() { p.end(errors.New("the node takes nothing")) })
	watch := watchSilence(&p.seenAt, p.bornAt, func() { p.end(errSilent) })
	defer watch.Stop()
	written := make(chan struct{})
	go func() {
		defer close(written)
		if err := p.write(rpc); err != nil {
			p.end(err)
		}
	}()
	defer func() {
		p.out.close()
		cut := time.AfterFunc(time.Second, c.Abort)
		<-written
		cut.Stop()
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.why != nil {
			err = connect.NewError(connect.CodeUnavailable, p.why)
		}
	}()

	m, err := rpc.Receive()
	if err != nil {
		return err
	}
	if m.Hello.GetNode() == "" {
		return connect.NewError(connect.CodeInvalidArgument, errors.New("a link begins with a hello that names the node"))
	}
	p.node = m.Hello.GetNode()
	if ask := h.config.Authorize; ask != nil {
		if err := ask(c.Request, p.node); err != nil {
			return connect.NewError(connect.CodePermissionDenied, errors.New(job.AsError(err).Message))
		}
	}
	r, err := h.await(ctx)
	if err != nil {
		return err
	}
	p.heard()
	if e := job.Epoch(m.Hello.GetEpoch()); e > r.epoch {
		return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("epoch %d is over: the node has seen %d", r.epoch, e))
	}
	p.reign = r
	if err := r.enter(p); err != nil {
		return err
	}
	defer r.parts.Done()
	h.metrics.links.Inc()
	defer h.metrics.links.Dec()
	h.config.Logger.Info("a node's workers are within reach", "node", p.node, "epoch", r.epoch)
	p.out.welcome(&workerpb.LeaderWelcome{Epoch: uint64(r.epoch), WindowResults: uint32(h.config.WindowResults), WindowBytes: uint64(h.config.WindowBytes)})
	err = p.read(rpc)
	p.out.close() // whoever waits in Assign learns that it is unknown
	sessions := r.leave(p)
	p.lanes.Wait()
	p.mu.Lock()
	h.config.Logger.Warn("the link to a node ended", "node", p.node, "epoch", r.epoch, "sessions", sessions, "err", errors.Join(p.why, err))
	p.mu.Unlock()
	return err
}

var errSilent = errors.New("the other side was silent for too long")

// watchSilence calls end when nothing was heard for too long. The timer is to be stopped when the link ends.
func watchSilence(seenAt *atomic.Int64, bornAt time.Time, end func()) *time.Timer {
	var watch *time.Timer
	var mu sync.Mutex
	mu.Lock()
	defer mu.Unlock()
	watch = time.AfterFunc(silence, func() {
		quiet := time.Since(bornAt) - time.Duration(seenAt.Load())
		if quiet >= silence {
			end()
			return
		}
		mu.Lock()
		defer mu.Unlock()
		watch.Reset(silence - quiet)
	})
	return watch
}

func (p *peer) heard() { p.seenAt.Store(int64(time.Since(p.bornAt))) }

// end ends the link from any goroutine.
func (p *peer) end(why error) {
	p.mu.Lock()
	if p.why == nil {
		p.why = why
	}
	p.mu.Unlock()
	p.out.close()
	p.call.Abort()
}

// enter makes the peer the one of its node. An earlier link of that node has ended, whether this side has heard of it or
// not.
func (r *reign) enter(p *peer) error {
	r.mu.Lock()
	if r.ended {
		r.mu.Unlock()
		return connect.NewError(connect.CodeUnavailable, errors.New("this node no longer leads"))
	}
	old := r.peers[p.node]
	r.peers[p.node] = p
	r.parts.Add(1)
	r.mu.Unlock()
	if old != nil {
		old.end(errors.New("the node came with another link"))
	}
	return nil
}

// leave detaches all sessions of the peer, each after what it said before, and answers how many.
func (r *reign) leave(p *peer) int {
	r.mu.Lock()
	if r.peers[p.node] == p {
		delete(r.peers, p.node)
	}
	var gone []*seat
	for id, s := range r.seats {
		if s.peer == p {
			delete(r.seats, id)
			gone = append(gone, s)
		}
	}
	r.mu.Unlock()
	for _, s := range gone {
		s.push(word{detach: true})
	}
	return len(gone)
}

// write sends what gathers in the outbox, and pulses.
func (p *peer) write(rpc *connect.BidiStream[workerpb.GatewayMessage, workerpb.LeaderMessage]) error {
	table := workerpb.NewSpecTable(&p.hub.specs, workerpb.MaxLinkSpecs)
	for {
		m, ok := p.out.take(table)
		if !ok {
			return nil
		}
		err := rpc.Send(m)
		p.out.sent()
		if err != nil {
			return err
		}
	}
}

// read handles what the node says until the link ends.
func (p *peer) read(rpc *connect.BidiStream[workerpb.GatewayMessage, workerpb.LeaderMessage]) error {
	for {
		m, err := rpc.Receive()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		p.heard()
		if err := p.handle(m); err != nil {
			p.hub.metrics.mistakes.Inc()
			return connect.NewError(connect.CodeInvalidArgument, err)
		}
	}
}

// handle takes the parts of a message in the order of their numbers. It never waits.
func (p *peer) handle(m *workerpb.GatewayMessage) error {
	if m.Hello != nil {
		return job.InvalidField("hello", "comes first, and once")
	}
	for _, x := range m.Replies {
		if err := p.replied(x); err != nil {
			return err
		}
	}
	if len(m.Beats) > 0 {
		p.renew(m.Beats)
	}
	for _, x := range m.Attaches {
		if err := p.attach(x); err != nil {
			return err
		}
	}
	for _, x := range m.Words {
		if err := p.said(x); err != nil {
			return err
		}
	}
	return nil
}

// renew asks the term about heartbeats, beside the reader.
func (p *peer) renew(beats []*workerpb.SessionBeat) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.beats = append(p.beats, beats...)
	if p.renewing {
		return
	}
	p.renewing = true
	p.lanes.Go(func() {
		for {
			p.mu.Lock()
			beats := p.beats
			p.beats = nil
			p.renewing = len(beats) > 0
			p.mu.Unlock()
			if len(beats) == 0 {
				return
			}
			answers := make([]*workerpb.SessionRenewed, len(beats))
			for i, b := range beats {
				unknown := p.reign.leader.Heartbeat(job.SessionID(b.GetSession()), workerpb.Fences(b.GetRunning()))
				answers[i] = &workerpb.SessionRenewed{Number: b.GetNumber(), Unknown: workerpb.FenceNumbers(unknown)}
			}
			p.out.renewed(answers)
		}
	})
}

// attach opens a session.
func (p *peer) attach(x *workerpb.SessionAttach) error {
	id := job.SessionID(x.GetSession())
	if id == "" || x.Hello == nil {
		return job.InvalidField("attaches.session", "must be set, and have a hello")
	}
	hello, err := x.Hello.WorkerHello()
	if err != nil {
		return err
	}
	s := &seat{peer: p, id: id, worker: hello.Name}
	p.reign.mu.Lock()
	if p.reign.seats[id] != nil {
		p.reign.mu.Unlock()
		return job.InvalidField("attaches.session", "%.128q is open already", string(id))
	}
	if !p.reign.ended { // the link is about to end
		p.reign.seats[id] = s // before the term hears of it, which may use it at once
	}
	p.reign.mu.Unlock()
	s.push(word{attach: &hello, until: time.Now().Add(attachTimeout)})
	return nil
}

// said queues what a session's worker said.
func (p *peer) said(x *workerpb.SessionWords) error {
	s := p.reign.seat(job.SessionID(x.GetSession()))
	if s == nil || s.peer != p {
		// A worker that says Hello anew overtakes what its node was handing over: it says that again in its new session.
		bytes := 0
		for _, y := range x.Results {
			bytes += workerpb.ResultWeight(y)
		}
		p.out.took(len(x.Results), bytes)
		return nil
	}
	w := word{detach: x.GetDetach()}
	for _, y := range x.Started {
		started, err := y.ForJob()
		if err != nil {
			return err
		}
		w.started = append(w.started, started)
	}
	for _, y := range x.Results {
		o, err := y.Outcome(s.worker)
		if err != nil {
			return err
		}
		w.outcomes = append(w.outcomes, o)
		w.bytes += workerpb.ResultWeight(y)
	}
	w.results = len(w.outcomes)
	p.hub.metrics.results.Add(float64(w.results))
	if w.detach {
		p.reign.mu.Lock()
		delete(p.reign.seats, s.id)
		p.reign.mu.Unlock()
	}
	s.push(w)
	return nil
}

// seat is a session of another node, as the leader sees it. Its words go to the term one after another.
type seat struct {
	peer   *peer
	id     job.SessionID
	worker string

	mu   sync.Mutex
	todo []word
	busy bool
}

// word is one thing that a session has to say to the term.
type word struct {
	attach   *job.WorkerHello
	until    time.Time // when the answer to attach comes too late
	started  []job.Started
	outcomes []job.Outcome
	results  int // of them count against the window: those that the node sent
	bytes    int
	detach   bool
}

func (s *seat) push(w word) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.todo = append(s.todo, w)
	if !s.busy {
		s.busy = true
		s.peer.lanes.Go(s.run)
	}
}

func (s *seat) run() {
	for {
		s.mu.Lock()
		todo := s.todo
		s.todo = nil
		s.busy = len(todo) > 0
		s.mu.Unlock()
		if len(todo) == 0 {
			return
		}
		for i := range todo {
			s.say(&todo[i])
		}
	}
}

func (s *seat) say(w *word) {
	term, p := s.peer.reign.leader, s.peer
	if w.attach != nil {
		ctx, cancel := context.WithDeadline(context.Background(), w.until)
		stop, err := term.Attach(ctx, s.id, p.node, *w.attach)
		cancel()
		answer := &workerpb.SessionAttached{Session: string(s.id), Stop: workerpb.FenceNumbers(stop)}
		if err != nil {
			e := job.AsError(err)
			answer.Code, answer.Reason, answer.Field, answer.Message = string(e.Code), e.Reason, e.Field, e.Message
		}
		p.out.attached(answer)
	}
	if len(w.started) > 0 {
		term.Started(s.id, w.started)
	}
	if len(w.outcomes) > 0 {
		term.Finished(s.id, w.outcomes)
		if w.results > 0 {
			p.out.took(w.results, w.bytes)
		}
	}
	if w.detach {
		term.Detach(s.id)
	}
}
