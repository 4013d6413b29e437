package gateway

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
	"github.com/musterhq/muster/worker/gateway/output"
	"github.com/musterhq/muster/worker/workerpb"
)

// attachTimeout bounds how long the leader may take over a Hello. It is below HeartbeatLost, so that a worker hears what
// became of its Hello before it gives up.
const attachTimeout = 5 * time.Second

// stream is one worker's stream. The goroutine of the request reads; a second one writes; a third hands results to the
// leader while there are some, so that a leader with a full inbox does not stop the reader, and with it the heartbeats.
type stream struct {
	gateway *Gateway
	call    *call.Call
	out     *outbox
	seenAt  atomic.Int64 // when the worker last sent something, by the monotonic clock since bornAt
	bornAt  time.Time
	written chan struct{}  // closed when the writer has ended
	parts   sync.WaitGroup // goroutines other than the reader and the writer
	running atomic.Int32   // attempts that the worker named last
	shed    atomic.Bool    // it was or will be told to go to another node

	hello job.WorkerHello // of the reader

	mu      sync.Mutex
	given   map[job.Fence]job.RunID // attempts handed to this worker here and not acknowledged, for keepOutput
	leader  Leader                  // to whom the worker is attached; nil: to nobody
	session job.SessionID           // under which
	inbox   handover
	beat    *beat // came while the one before it was being asked about
	beating bool
}

// beat is a heartbeat and the session in which it came. It speaks for no other one: what a worker ran before its Hello is
// unknown to a leader that has not taken the Hello yet.
type beat struct {
	*workerpb.Heartbeat
	leader  Leader
	session job.SessionID
}

// handover is what the leader has yet to take.
type handover struct {
	started  []job.Started
	outcomes []job.Outcome
	bytes    int
	busy     bool // a goroutine carries it over
}

// serve is the life of one stream.
func (g *Gateway) serve(ctx context.Context, rpc *connect.BidiStream[workerpb.WorkerMessage, workerpb.NodeMessage], c *call.Call) error {
	s := &stream{gateway: g, call: c, out: newOutbox(c.Abort), written: make(chan struct{}), bornAt: time.Now()}
	if err := g.enter(s); err != nil {
		return err
	}
	defer g.leave(s)
	var watch *time.Timer
	watch = time.AfterFunc(time.Hour, func() {
		quiet := time.Since(s.bornAt) - time.Duration(s.seenAt.Load())
		if quiet < g.config.IdleTimeout {
			watch.Reset(g.config.IdleTimeout - quiet)
			return
		}
		c.Abort()
	})
	watch.Reset(g.config.IdleTimeout)
	defer watch.Stop()

	go s.write(rpc)
	err := s.read(ctx, rpc)
	leader, session := s.unseat()
	s.out.close()
	// The writer may hang in a message that nobody reads; a short while is for one that is just about to be done.
	cut := time.AfterFunc(time.Second, c.Abort)
	<-s.written
	cut.Stop()
	s.parts.Wait()
	if leader != nil {
		leader.Detach(session)
	}
	if s.hello.Name != "" {
		g.config.Logger.Info("worker stream ended", "worker", s.hello.Name, "session", session, "err", err)
	}
	return err
}

// unseat ends the stream's session, and answers what it was.
func (s *stream) unseat() (Leader, job.SessionID) {
	s.mu.Lock()
	leader, session := s.leader, s.session
	s.leader, s.session = nil, ""
	s.inbox.started, s.inbox.outcomes, s.inbox.bytes = nil, nil, 0
	s.mu.Unlock()
	s.out.begin("", false)
	s.gateway.unseat(session)
	return leader, session
}

// write sends what gathers in the outbox until the stream ends.
func (s *stream) write(rpc *connect.BidiStream[workerpb.WorkerMessage, workerpb.NodeMessage]) {
	defer close(s.written)
	defer s.out.close()
	table := workerpb.NewSpecTable(&s.gateway.specs, workerpb.MaxSpecs)
	var batch []*job.Assignment
	for {
		var (
			m  *workerpb.NodeMessage
			ok bool
		)
		if m, batch, ok = s.out.take(batch); !ok {
			return
		}
		s.gave(batch)
		m.Specs, m.Assignments = table.Fill(batch)
		clear(batch)
		err := rpc.Send(m)
		s.out.sent()
		if err != nil {
			s.call.Abort() // the reader must not wait for a worker that cannot be answered
			return
		}
	}
}

// read handles what the worker sends until the stream ends. A nil error means that the worker closed it.
func (s *stream) read(ctx context.Context, rpc *connect.BidiStream[workerpb.WorkerMessage, workerpb.NodeMessage]) error {
	for {
		m, err := rpc.Receive()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		s.seenAt.Store(int64(time.Since(s.bornAt)))
		if err := s.handle(ctx, m); err != nil {
			if job.CodeOf(err) == job.Invalid {
				s.gateway.metrics.malformed.Inc()
				s.gateway.config.Logger.Warn("worker breaks the protocol", "worker", s.hello.Name, "err", err)
				return connect.NewError(connect.CodeInvalidArgument, err)
			}
			return err
		}
	}
}

// handle takes the parts of a message in the order of their numbers.
func (s *stream) handle(ctx context.Context, m *workerpb.WorkerMessage) error {
	if m.Hello != nil {
		if err := s.attach(ctx, m.Hello); err != nil {
			return err
		}
	}
	if s.hello.Name == "" {
		return job.InvalidField("hello", "must come first on a stream")
	}
	if m.Heartbeat != nil {
		if err := s.authorize(); err != nil {
			return err
		}
		s.heartbeat(m.Heartbeat)
	}
	if len(m.Output) > 0 {
		if err := s.keepOutput(m.Output); err != nil {
			return err
		}
	}
	if len(m.Started) > 0 || len(m.Results) > 0 {
		return s.receive(m.Started, m.Results)
	}
	return nil
}

// attach opens a session for a Hello, with the leader there is.
func (s *stream) attach(ctx context.Context, x *workerpb.Hello) error {
	h, err := x.WorkerHello()
	if err != nil {
		return err
	}
	g := s.gateway
	if s.hello.Name == "" {
		g.config.Logger.Info("worker stream began", "worker", h.Name, "boot", h.Boot, "remote", s.call.Request.RemoteAddr)
	} else if h.Name != s.hello.Name || h.Boot != s.hello.Boot || h.DataID != s.hello.DataID {
		return job.InvalidField("hello.name", "a stream belongs to one life of one worker")
	}
	s.hello = h
	s.running.Store(int32(len(h.Running)))
	if err := s.authorize(); err != nil {
		return err
	}
	if old, session := s.unseat(); old != nil {
		old.Detach(session) // the worker came with new facts by itself
	}
	leader, reign := g.current()
	if leader == nil {
		s.out.say(&workerpb.Welcome{Status: workerpb.Welcome_STATUS_WAITING, Resync: x.GetResync()})
		return nil
	}
	session, ok := g.seat(s, reign)
	if !ok {
		return nil // the leader changed between two lines; the Resync is on its way
	}
	s.mu.Lock()
	s.leader, s.session = leader, session
	s.mu.Unlock()
	s.out.begin(session, x.GetLeaving())
	if _, now := g.current(); now != reign {
		s.unseat()
		return nil
	}

	ctx, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	stop, err := leader.Attach(ctx, session, g.config.Node, h)
	if _, now := g.current(); now != reign {
		return nil
	}
	if err != nil {
		s.unseat()
		leader.Detach(session) // it may have been opened, and the answer lost or late
		switch job.CodeOf(err) {
		case job.Conflict, job.Invalid, job.Forbidden:
			return s.refuse(err)
		}
		g.config.Logger.Warn("leader did not take a worker", "worker", h.Name, "err", err)
		return connect.NewError(connect.CodeUnavailable, errors.New("the leader did not answer; attach again"))
	}
	s.out.greet(session, &workerpb.Welcome{
		Status: workerpb.Welcome_STATUS_ACCEPTED, Session: string(session), Resync: x.GetResync(), Stop: workerpb.FenceNumbers(stop),
		HeartbeatEvery: uint32(job.HeartbeatEvery.Milliseconds()), HeartbeatLost: uint32(job.HeartbeatLost.Milliseconds()),
		LeaseTimeout: uint32(job.LeaseTimeout.Milliseconds()), KillGrace: uint32(job.LeaseKillGrace.Milliseconds()),
		MaxUnackedResults: uint32(g.config.MaxUnackedResults), MaxUnackedBytes: uint64(g.config.MaxUnackedBytes),
		Scatter: uint32(g.scatter().Milliseconds()),
	})
	return nil
}

// authorize ends the stream of a worker that may not, or no longer, have it.
func (s *stream) authorize() error {
	if ask := s.gateway.config.Authorize; ask != nil {
		if err := ask(s.call.Request, s.hello); err != nil {
			return s.refuse(err)
		}
	}
	return nil
}

// refuse tells the worker why it may not attach; the stream ends when the worker has read it, or has been silent.
func (s *stream) refuse(err error) error {
	e := job.AsError(err)
	s.gateway.config.Logger.Warn("worker refused", "worker", s.hello.Name, "code", e.Code, "err", err)
	message := e.Message
	if e.Field != "" {
		message = e.Field + ": " + message
	}
	s.out.refuse(&workerpb.Welcome{Status: workerpb.Welcome_STATUS_REFUSED, Code: string(e.Code), Message: message})
	<-s.written // the writer ends after it
	return connect.NewError(connect.CodePermissionDenied, errors.New(message))
}

// heartbeat asks the leader to renew, beside the reader. While one question is out, later heartbeats wait, the latest
// only: it speaks for those before it.
func (s *stream) heartbeat(x *workerpb.Heartbeat) {
	s.running.Store(int32(len(x.GetRunning())))
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &beat{x, s.leader, s.session}
	switch {
	case b.leader == nil:
		s.out.acknowledge(b.GetSeq(), "", false, nil)
	case s.beating:
		s.beat = b
	default:
		s.beating = true
		s.parts.Go(func() { s.renew(b) })
	}
}

func (s *stream) renew(b *beat) {
	for b != nil {
		unknown := b.leader.Heartbeat(b.session, workerpb.Fences(b.GetRunning()))
		s.out.acknowledge(b.GetSeq(), b.session, true, unknown)
		s.mu.Lock()
		b, s.beat = s.beat, nil
		s.beating = b != nil
		s.mu.Unlock()
	}
}

// receive queues starts and results for the leader.
func (s *stream) receive(started []*workerpb.Started, results []*workerpb.Result) error {
	starts := make([]job.Started, len(started))
	for i, x := range started {
		var err error
		if starts[i], err = x.ForJob(); err != nil {
			return err
		}
	}
	outcomes := make([]job.Outcome, len(results))
	bytes := 0
	for i, x := range results {
		var err error
		if outcomes[i], err = x.Outcome(s.hello.Name); err != nil {
			return err
		}
		bytes += workerpb.ResultWeight(x)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leader == nil {
		s.gateway.metrics.dropped.Add(float64(len(results)))
		return nil
	}
	b := &s.inbox
	b.started = append(b.started, starts...)
	b.outcomes = append(b.outcomes, outcomes...)
	b.bytes += bytes
	c := &s.gateway.config
	// A worker that keeps to its window is always below; starts have no window, and each announces a result.
	if len(b.outcomes) > c.MaxUnackedResults || len(b.outcomes) > 1 && b.bytes > c.MaxUnackedBytes+workerpb.MaxResultWeight ||
		len(b.started) > 1<<16 {
		return connect.NewError(connect.CodeResourceExhausted,
			fmt.Errorf("more results are under way than the window of %d results and %d bytes allows", c.MaxUnackedResults, c.MaxUnackedBytes))
	}
	if !b.busy && len(b.started)+len(b.outcomes) > 0 {
		b.busy = true
		s.parts.Go(s.carry)
	}
	return nil
}

// carry hands over what is in the inbox until it is empty.
func (s *stream) carry() {
	for {
		s.mu.Lock()
		b := &s.inbox
		if len(b.started)+len(b.outcomes) == 0 {
			b.busy = false
			s.mu.Unlock()
			return
		}
		started, outcomes := b.started, b.outcomes
		b.started, b.outcomes, b.bytes = nil, nil, 0
		leader, session := s.leader, s.session
		s.mu.Unlock()
		if leader == nil {
			continue
		}
		if len(started) > 0 {
			leader.Started(session, started)
		}
		if len(outcomes) > 0 {
			leader.Finished(session, outcomes)
			s.gateway.metrics.results.Add(float64(len(outcomes)))
		}
	}
}

// maxGiven bounds what is remembered of a worker whose results are never acknowledged.
const maxGiven = 1 << 14

// gave remembers what is about to be written. This node learns from Raft that a lease was granted, and may learn it later
// than the worker, which has begun to write by then.
func (s *stream) gave(batch []*job.Assignment) {
	if len(batch) == 0 || s.gateway.config.Holds == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.given == nil || len(s.given)+len(batch) > maxGiven {
		s.given = make(map[job.Fence]job.RunID, len(batch))
	}
	for _, a := range batch {
		s.given[a.Fence] = a.RunID
	}
}

// settled forgets what is acknowledged: Raft, which is asked from then on, knows it by now.
func (s *stream) settled(acks []*workerpb.Ack) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range acks {
		delete(s.given, job.Fence(a.GetFence()))
	}
}

// holds tells whether the worker holds a run under a fence, or did a moment ago.
func (s *stream) holds(run job.RunID, fence job.Fence) bool {
	ask := s.gateway.config.Holds
	if ask == nil {
		return true
	}
	s.mu.Lock()
	given, ok := s.given[fence]
	s.mu.Unlock()
	return ok && given == run || ask(s.hello.Name, run, fence)
}

// keepOutput stores output. What cannot be kept becomes a gap: output is outside the never-lost promise.
func (s *stream) keepOutput(pieces []*workerpb.Output) error {
	frames := make([]output.Frame, 0, len(pieces))
	bytes, foreign := 0, 0
	for _, x := range pieces {
		if err := x.Check(); err != nil {
			return err
		}
		run := job.RunID(x.GetRunId())
		if fence := job.Fence(x.GetFence()); !s.holds(run, fence) {
			foreign++ // of an attempt that was given up long ago, or of somebody else's
			continue
		}
		frames = append(frames, output.Frame{Run: run, Attempt: x.GetAttempt(), Offset: int64(x.GetOffset()), Data: x.GetData()})
		bytes += len(x.GetData())
	}
	if foreign > 0 {
		s.gateway.metrics.outputForeign.Add(float64(foreign))
		s.gateway.config.Logger.Debug("output of runs that the worker does not hold was dropped", "worker", s.hello.Name, "pieces", foreign)
	}
	s.gateway.metrics.outputBytes.Add(float64(bytes))
	if s.gateway.config.Output == nil {
		return nil
	}
	if err := s.gateway.config.Output.Append(frames...); err != nil {
		s.gateway.metrics.outputErrors.Inc()
		s.gateway.config.Logger.Debug("run output not kept", "worker", s.hello.Name, "err", err)
	}
	return nil
}
