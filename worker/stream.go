package worker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker/workerpb"
)

// How long to wait between two attempts to attach.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 10 * time.Second
	// minScatter is over how long agents spread when their node dies, unless it told a longer time.
	minScatter = 20 * time.Millisecond
)

// ownHello numbers a Hello that no Resync asked for.
const ownHello = uint64(1) << 63

// Why a stream ended, where the agent has to know.
var (
	errNoAnswer = errors.New("the node did not acknowledge in time")
	errNoLeader = errors.New("the node knows no leader")
	errMove     = errors.New("the node is going away")
	errLeft     = errors.New("another stream speaks for the worker")
)

// refusedError is a node's final no.
type refusedError struct{ no *job.Error }

func (e *refusedError) Error() string { return e.no.Error() }
func (e *refusedError) Unwrap() error { return e.no }

// stayAttached keeps one stream to one node, to another one after each end, until ctx ends. It returns an error when the
// cluster refuses this worker for good and has never taken it: then a person must act. Later refusals are retried,
// because there may be work whose results are held here.
func (a *Agent) stayAttached(ctx context.Context) error {
	pause := minBackoff
	welcomed := false
	for ctx.Err() == nil {
		address := a.roster.next(a.config.Clock.Elapsed())
		s := newSession(a, address)
		err := s.run(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if s.welcomed {
			welcomed, pause = true, minBackoff
		}
		var no *refusedError
		refused := errors.As(err, &no)
		if refused {
			a.config.Logger.Error("the cluster refuses this worker", "worker", a.config.Name, "node", address, "code", no.no.Code, "err", no)
			if !welcomed && (no.no.Code == job.Forbidden || no.no.Code == job.Invalid) {
				return no.no
			}
		} else {
			a.config.Logger.Warn("stream ended; attaching again", "worker", a.config.Name, "node", address, "err", err)
		}
		// A connection that is dead without knowing it must not carry the next stream as well.
		a.config.HTTPClient.CloseIdleConnections()
		others := false
		if !refused {
			others = a.roster.fail(address, a.config.Clock.Elapsed())
		}
		if a.roster.exhausted() {
			a.refresh(ctx)
		}
		var wait time.Duration
		switch {
		case s.welcomed && !refused:
			wait = rand.N(max(s.scatter, minScatter)) // many others may be on their way from the same node
		case others:
			wait = rand.N(minBackoff)
		default:
			wait = pause/2 + rand.N(pause)
			pause = min(2*pause, maxBackoff)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// session is one stream to one node. The agent's mu guards what is below the line.
type session struct {
	agent    *Agent
	address  string
	specs    [workerpb.MaxSpecs + 1]*job.Document // of the reader
	welcomed bool                                 // of the reader, and of others after its end

	heartbeatEvery time.Duration
	heartbeatLost  time.Duration
	scatter        time.Duration

	// ---
	hello     uint64        // number of the last Hello
	helloDue  bool          // it is to be sent
	helloAt   time.Duration // before it was sent, on Clock.Elapsed
	heardAt   time.Duration // when the node last sent something
	beat      uint64        // number of the last heartbeat
	beatDue   bool
	beats     []sentBeat // not yet acknowledged
	startedAt time.Duration
}

type sentBeat struct {
	seq uint64
	at  time.Duration
}

func newSession(a *Agent, address string) *session {
	now := a.config.Clock.Elapsed()
	return &session{
		agent: a, address: address, heartbeatEvery: job.HeartbeatEvery, heartbeatLost: job.HeartbeatLost,
		helloDue: true, heardAt: now, startedAt: now,
	}
}

// run lives as long as the stream. Its goroutines have ended when it returns, unless the connection holds them up: what
// these still do is nothing to the agent.
func (s *session) run(ctx context.Context) error {
	a := s.agent
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	client := workerpb.NewWorkerServiceClient(a.config.HTTPClient, s.address,
		connect.WithReadMaxBytes(workerpb.MaxMessageBytes), connect.WithAcceptCompression("gzip", nil, nil))
	rpc := client.Attach(ctx)
	// While a request's body is open, net/http does not look at its context: closing it is what ends the stream.
	defer context.AfterFunc(ctx, func() { rpc.CloseRequest() })()
	a.tail.restart()
	a.mu.Lock()
	a.line, a.seat = s, nil
	a.mu.Unlock()
	a.signal()

	parts := new(sync.WaitGroup)
	parts.Go(func() { cancel(s.read(rpc)) })
	parts.Go(func() {
		if err := s.write(ctx, rpc); err != nil {
			// The reader learns better why; but it may be waiting for a node that is gone.
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
				cancel(err)
			}
		}
	})
	s.watch(ctx, cancel)
	a.mu.Lock()
	a.line, a.seat = nil, nil
	a.mu.Unlock()
	ended := make(chan struct{})
	a.left.Go(func() {
		defer close(ended)
		rpc.CloseRequest()
		parts.Wait()
		rpc.CloseResponse()
	})
	select {
	case <-ended:
	case <-time.After(time.Second):
	}
	return context.Cause(ctx)
}

// watch sends heartbeats and ends a stream whose node is silent or leaderless for too long (L4).
func (s *session) watch(ctx context.Context, cancel context.CancelCauseFunc) {
	a := s.agent
	t := time.NewTicker(250 * time.Millisecond)
	defer t.Stop()
	beatAt := a.config.Clock.Elapsed()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := a.config.Clock.Elapsed()
		a.mu.Lock()
		quiet, unrenewed := now-s.heardAt, now-max(s.startedAt, a.lease.renewedAt)
		lost, every, half := s.heartbeatLost, s.heartbeatEvery, a.lease.timeout/2
		due := now-beatAt >= every
		if due {
			beatAt = max(beatAt+every, now-every) // on the beat; but after a sleep of the machine one is enough
			s.beatDue = true
		}
		a.mu.Unlock()
		switch {
		case quiet >= lost:
			cancel(errNoAnswer)
			return
		case unrenewed >= half:
			cancel(errNoLeader)
			return
		}
		if due {
			a.signal()
		}
	}
}

// write sends what gathers while the last message was being written, until the stream ends.
func (s *session) write(ctx context.Context, rpc *connect.BidiStreamForClient[workerpb.WorkerMessage, workerpb.NodeMessage]) error {
	for {
		if m := s.gather(); m != nil {
			if err := rpc.Send(m); err != nil {
				return err
			}
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.agent.wake:
		}
	}
}

// gather makes the next message, or nil.
func (s *session) gather() *workerpb.WorkerMessage {
	a := s.agent
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.line != s {
		return nil // another stream speaks for the agent
	}
	m := &workerpb.WorkerMessage{}
	if s.helloDue {
		s.helloDue = false
		s.helloAt = a.config.Clock.Elapsed()
		a.hellos++
		m.Hello = workerpb.NewHello(&job.WorkerHello{
			Name: a.config.Name, Boot: a.boot, Number: a.hellos, DataID: a.dataID, Version: a.config.Version, Labels: a.config.Labels,
			Slots: a.config.Slots, Executors: a.offers[0], Handlers: a.offers[1],
		})
		m.Hello.Running, m.Hello.Resync, m.Hello.Leaving = a.desk.fences(), s.hello, a.desk.leaving
		return m
	}
	some := false
	if s.beatDue {
		s.beatDue, some = false, true
		s.beat++
		s.beats = append(s.beats, sentBeat{s.beat, a.config.Clock.Elapsed()})
		m.Heartbeat = &workerpb.Heartbeat{Seq: s.beat, Running: a.desk.fences()}
	}
	if a.seat != s {
		if some {
			return m
		}
		return nil
	}
	m.Started = a.desk.announce(job.At(a.config.Clock.Now().Add(-announceAfter)))
	var through uint64
	m.Output, through = a.tail.take()
	m.Results = a.desk.take(through)
	if some || len(m.Started)+len(m.Output)+len(m.Results) > 0 {
		return m
	}
	return nil
}

// askHello asks the writer for a Hello. From here on no work is taken until the Welcome that answers it.
func (s *session) askHello(number uint64) {
	s.hello, s.helloDue = number, true
	s.agent.seat = nil
	s.agent.signal()
}

// read handles what the node sends until the stream ends; it answers why it did.
func (s *session) read(rpc *connect.BidiStreamForClient[workerpb.WorkerMessage, workerpb.NodeMessage]) error {
	for {
		m, err := rpc.Receive()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return errors.New("the node closed the stream")
			}
			return err
		}
		if err := s.handle(m); err != nil {
			return err
		}
	}
}

// handle takes the parts of a message in the order of their numbers.
func (s *session) handle(m *workerpb.NodeMessage) error {
	a := s.agent
	now := a.config.Clock.Elapsed()
	a.mu.Lock()
	left := a.line != s
	s.heardAt = now
	a.mu.Unlock()
	if left {
		// Its session may be over for the leader, which then answers heartbeats of it with all that they list.
		return errLeft
	}
	if m.Welcome != nil {
		if err := s.welcome(m.Welcome); err != nil {
			return err
		}
	}
	if m.HeartbeatAck != nil {
		s.acknowledged(m.HeartbeatAck)
	}
	for _, x := range m.Specs {
		if x.GetId() == 0 || x.GetId() > workerpb.MaxSpecs {
			return job.InvalidField("spec.id", "%d is outside of the table", x.GetId())
		}
		s.specs[x.GetId()] = a.document(x.GetDocument())
	}
	if len(m.Assignments) > 0 {
		if err := s.assigned(m.Assignments); err != nil {
			return err
		}
	}
	for _, x := range m.Stops {
		reason := workerpb.ParseReason(x.GetReason())
		grace := a.config.StopGrace
		switch reason {
		case job.CancelRequested, job.DeadlineExceeded:
		default:
			reason, grace = job.LeaseLost, leaseGrace
		}
		a.stop(job.Fence(x.GetFence()), &Stop{Reason: reason, Grace: grace})
	}
	if len(m.Acks) > 0 {
		a.forget(m.Acks)
	}
	if m.Resync != 0 {
		a.mu.Lock()
		if a.line == s {
			s.askHello(m.Resync)
		}
		a.mu.Unlock()
	}
	if m.Drain {
		a.drainOnce.Do(func() { close(a.drain) })
	}
	if m.Move {
		return errMove
	}
	return nil
}

func (s *session) welcome(w *workerpb.Welcome) error {
	a := s.agent
	if w.GetStatus() == workerpb.Welcome_STATUS_REFUSED {
		return &refusedError{job.Errorf(job.Code(w.GetCode()), "refused", "%s", w.GetMessage())}
	}
	a.mu.Lock()
	if a.line != s || w.GetResync() != s.hello || s.helloDue {
		a.mu.Unlock()
		return nil // answers an earlier Hello than the last
	}
	if w.GetStatus() != workerpb.Welcome_STATUS_ACCEPTED {
		a.mu.Unlock()
		a.config.Logger.Info("waiting for a leader", "worker", a.config.Name, "node", s.address)
		return nil
	}
	first := !s.welcomed
	s.welcomed = true
	set := func(d *time.Duration, ms uint32) {
		if ms > 0 {
			*d = time.Duration(ms) * time.Millisecond
		}
	}
	set(&s.heartbeatEvery, w.GetHeartbeatEvery())
	set(&s.heartbeatLost, w.GetHeartbeatLost())
	set(&s.scatter, min(w.GetScatter(), uint32(maxBackoff.Milliseconds())))
	set(&a.lease.timeout, w.GetLeaseTimeout())
	a.lease.renew(s.helloAt)
	a.desk.reseat(w)
	a.seat = s
	a.mu.Unlock()
	for _, f := range w.GetStop() {
		a.stop(job.Fence(f), &Stop{Reason: job.LeaseLost, Grace: leaseGrace})
	}
	if first {
		a.roster.serves(s.address)
		a.config.Logger.Info("attached", "worker", a.config.Name, "node", s.address, "session", w.GetSession())
	}
	a.signal()
	return nil
}

// acknowledged renews the lease from before the heartbeat was sent, and stops what the leader does not know.
func (s *session) acknowledged(x *workerpb.HeartbeatAck) {
	a := s.agent
	a.mu.Lock()
	var at time.Duration
	found := false
	for len(s.beats) > 0 && s.beats[0].seq <= x.GetSeq() {
		found = s.beats[0].seq == x.GetSeq()
		at = s.beats[0].at
		s.beats = s.beats[1:]
	}
	if found && x.GetRenewed() {
		a.lease.renew(at)
	}
	a.mu.Unlock()
	for _, f := range x.GetUnknown() {
		a.stop(job.Fence(f), &Stop{Reason: job.LeaseLost, Grace: leaseGrace})
	}
}

func (s *session) assigned(xs []*workerpb.Assignment) error {
	a := s.agent
	as := make([]*job.Assignment, len(xs))
	for i, x := range xs {
		var spec *job.Document
		switch {
		case len(x.GetDocument()) > 0:
			spec = a.document(x.GetDocument())
		case x.GetSpec() > workerpb.MaxSpecs:
			return job.InvalidField("assignment.spec", "%d is outside of the table", x.GetSpec())
		default:
			spec = s.specs[x.GetSpec()]
		}
		var err error
		if as[i], err = x.ForJob(spec); err != nil {
			return err
		}
	}
	a.assign(s, as)
	return nil
}

// document decodes a job document. One that cannot be read is nil, and its attempts fail for good: whoever sent it is
// newer, or broken, and the stream must not suffer for it.
func (a *Agent) document(b []byte) *job.Document {
	d := &job.Document{}
	if err := json.Unmarshal(b, d); err != nil {
		a.config.Logger.Error("job document cannot be read", "worker", a.config.Name, "err", err)
		return nil
	}
	return d
}

// forget drops acknowledged results.
func (a *Agent) forget(acks []*workerpb.Ack) {
	fences := make([]job.Fence, 0, len(acks))
	a.mu.Lock()
	for _, x := range acks {
		if f := job.Fence(x.GetFence()); a.desk.acknowledge(f) {
			fences = append(fences, f)
		}
	}
	empty := len(a.desk.held) == 0
	blocked := a.desk.next < len(a.desk.queue)
	a.mu.Unlock()
	if err := a.spool.Done(fences...); err != nil {
		a.config.Logger.Warn("acknowledged results not forgotten on disk; they will be sent again", "worker", a.config.Name, "err", err)
	}
	if empty {
		a.moved()
	}
	if blocked {
		a.signal() // the window has room again
	}
}
