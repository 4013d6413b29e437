package relay

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker/gateway"
	"github.com/musterhq/muster/worker/workerpb"
)

const (
	// beatDelay is how long a heartbeat may wait for others to travel with: a thousand a second in messages of their own
	// would cost more than all that is in them.
	beatDelay = 20 * time.Millisecond
	// A message of results is cut into pieces of about so much.
	maxPiece      = 512
	maxPieceBytes = 256 << 10
	// Starts are for readers only: with so many waiting, more are dropped.
	maxStarts = 1 << 16
	// maxTasks bounds what the leader may have a node do ahead of its answers.
	maxTasks = 4096
)

// link is the follower's end of a link. It is the gateway's leader while it lives.
type link struct {
	gateway *gateway.Gateway
	fail    func(error) // ends the link
	wake    chan struct{}
	gone    chan struct{} // closed when the gateway has another leader, or none
	bornAt  time.Time
	seenAt  atomic.Int64 // when the leader last said something, since bornAt

	specs [workerpb.MaxLinkSpecs + 1]*job.Document // of the reader

	leading sync.Mutex // held while the gateway gets this leader, or loses it

	taskMu   sync.Mutex
	tasks    []task
	taskWake chan struct{}

	mu        sync.Mutex
	dead      bool
	replies   []*workerpb.AssignReply
	beats     []*workerpb.SessionBeat
	beatsDue  bool // they have waited for long enough
	beatTimer *time.Timer
	attaches  []*workerpb.SessionAttach
	words     []*workerpb.SessionWords
	starts    int // in words
	lastBytes int // of the results in the last of words
	number    uint64
	pulse     uint64
	attaching map[job.SessionID]chan *workerpb.SessionAttached
	beating   map[uint64]chan []job.Fence
	window    window
}

// task is what the leader wants done in order, and may take a moment: a batch to hand over, or stops.
type task struct {
	number     uint64
	deliveries []job.Delivery
	stops      []job.StopOrder
}

var _ gateway.Leader = (*link)(nil)

func newLink(g *gateway.Gateway, fail func(error)) *link {
	return &link{
		gateway: g, fail: fail, wake: make(chan struct{}, 1), gone: make(chan struct{}), bornAt: time.Now(),
		taskWake: make(chan struct{}, 1), attaching: map[job.SessionID]chan *workerpb.SessionAttached{},
		beating: map[uint64]chan []job.Fence{},
	}
}

func (l *link) heard() { l.seenAt.Store(int64(time.Since(l.bornAt))) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// lead makes the link the leader of the gateway, unless the gateway has heard of a higher epoch, or the link has ended.
func (l *link) lead(w *workerpb.LeaderWelcome) bool {
	l.leading.Lock()
	defer l.leading.Unlock()
	l.mu.Lock()
	dead := l.dead
	l.window.maxResults, l.window.maxBytes = uint64(w.GetWindowResults()), w.GetWindowBytes()
	l.mu.Unlock()
	return !dead && l.gateway.Lead(l, job.Epoch(w.GetEpoch()))
}

// end takes the gateway away from this link first, and only then lets go of those who wait for the leader's answer: what
// they do without one concerns nobody any more.
func (l *link) end() {
	l.leading.Lock()
	defer l.leading.Unlock()
	l.gateway.Unlead(l)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = true
	if l.beatTimer != nil {
		l.beatTimer.Stop()
	}
	l.window.release()
	close(l.gone)
}

// Attach asks the leader to open a session.
func (l *link) Attach(ctx context.Context, session job.SessionID, _ string, h job.WorkerHello) ([]job.Fence, error) {
	x := workerpb.NewHello(&h)
	x.Leaving = h.Slots == 0
	answer := make(chan *workerpb.SessionAttached, 1)
	l.mu.Lock()
	l.attaching[session] = answer
	l.attaches = append(l.attaches, &workerpb.SessionAttach{Session: string(session), Hello: x})
	l.mu.Unlock()
	signal(l.wake)
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.attaching, session)
	}()
	select {
	case a := <-answer:
		if a.GetCode() != "" {
			return nil, &job.Error{Code: job.Code(a.GetCode()), Reason: a.GetReason(), Field: a.GetField(), Message: a.GetMessage()}
		}
		return workerpb.Fences(a.GetStop()), nil
	case <-ctx.Done():
		return nil, job.Errorf(job.Unavailable, "no_answer", "the leader did not answer in time")
	case <-l.gone:
		return nil, job.Errorf(job.Unavailable, "no_leader", "the link to the leader ended")
	}
}

// Detach closes a session.
func (l *link) Detach(session job.SessionID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead {
		return // the leader detaches all sessions of a link that ended
	}
	l.wordsOf(session).Detach = true
	signal(l.wake)
}

// Heartbeat has the leader renew leases. It answers when the leader has, or when the gateway has left this leader.
func (l *link) Heartbeat(session job.SessionID, running []job.Fence) []job.Fence {
	answer := make(chan []job.Fence, 1)
	l.mu.Lock()
	if l.dead {
		l.mu.Unlock()
		return nil
	}
	l.number++
	number := l.number
	l.beating[number] = answer
	l.beats = append(l.beats, &workerpb.SessionBeat{Number: number, Session: string(session), Running: workerpb.FenceNumbers(running)})
	if len(l.beats) == 1 && !l.beatsDue {
		l.beatTimer = time.AfterFunc(beatDelay, func() {
			l.mu.Lock()
			l.beatsDue = true
			l.mu.Unlock()
			signal(l.wake)
		})
	}
	l.mu.Unlock()
	select {
	case unknown := <-answer:
		return unknown
	case <-l.gone:
		return nil
	}
}

// Started tells when attempts began.
func (l *link) Started(session job.SessionID, s []job.Started) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead || l.starts > maxStarts {
		return
	}
	w := l.wordsOf(session)
	for i := range s {
		w.Started = append(w.Started, workerpb.NewStarted(&s[i]))
	}
	l.starts += len(s)
	signal(l.wake)
}

// Finished hands results over. It blocks while the window is used up.
func (l *link) Finished(session job.SessionID, outcomes []job.Outcome) {
	for len(outcomes) > 0 {
		var results []*workerpb.Result
		bytes := 0
		for len(outcomes) > 0 && len(results) < maxPiece && bytes < maxPieceBytes {
			r := workerpb.NewResult(&outcomes[0])
			results = append(results, r)
			bytes += workerpb.ResultWeight(r)
			outcomes = outcomes[1:]
		}
		l.mu.Lock()
		ready := l.window.take(uint64(len(results)), uint64(bytes))
		l.mu.Unlock()
		if ready != nil {
			select {
			case <-ready:
			case <-l.gone:
				return
			}
		}
		l.mu.Lock()
		if l.dead {
			l.mu.Unlock()
			return
		}
		w := l.wordsOf(session)
		w.Results = append(w.Results, results...)
		l.lastBytes += bytes
		l.mu.Unlock()
		signal(l.wake)
	}
}

// wordsOf answers what collects the words of a session, in the order of all words. Callers hold mu.
func (l *link) wordsOf(session job.SessionID) *workerpb.SessionWords {
	if n := len(l.words); n > 0 {
		if w := l.words[n-1]; w.Session == string(session) && !w.Detach && len(w.Results) < maxPiece && l.lastBytes < maxPieceBytes && len(w.Started) < maxPiece {
			return w
		}
	}
	w := &workerpb.SessionWords{Session: string(session)}
	l.words, l.lastBytes = append(l.words, w), 0
	return w
}

// write sends what gathers while the last message was being written, and pulses, until the link ends.
func (l *link) write(ctx context.Context, rpc *connect.BidiStreamForClient[workerpb.GatewayMessage, workerpb.LeaderMessage]) error {
	timer := time.NewTimer(pulseEvery)
	defer timer.Stop()
	for {
		if m := l.gather(); m != nil {
			if err := rpc.Send(m); err != nil {
				return err
			}
			timer.Reset(pulseEvery)
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.wake:
		case <-timer.C:
			l.pulse++
			if err := rpc.Send(&workerpb.GatewayMessage{Pulse: l.pulse}); err != nil {
				return err
			}
			timer.Reset(pulseEvery)
		}
	}
}

// gather makes the next message, or nil. What must not wait comes first, and the rest as far as one message goes.
func (l *link) gather() *workerpb.GatewayMessage {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.replies)+len(l.attaches)+len(l.words) == 0 && !l.beatsDue {
		return nil
	}
	m := &workerpb.GatewayMessage{}
	budget := maxMessage
	m.Replies = portion(&l.replies, &budget)
	m.Beats = portion(&l.beats, &budget)
	if len(l.beats) == 0 {
		l.beatsDue = false
	}
	m.Attaches = portion(&l.attaches, &budget)
	if len(l.attaches) == 0 { // words come after the attaches that were before them
		m.Words = portion(&l.words, &budget)
		for _, w := range m.Words {
			l.starts -= len(w.Started)
		}
	}
	return m
}

// handle takes the parts of a message in the order of their numbers. It never waits.
func (l *link) handle(m *workerpb.LeaderMessage) error {
	if len(m.Attached)+len(m.Renewed) > 0 || m.Taken != nil {
		l.mu.Lock()
		for _, x := range m.Attached {
			if c := l.attaching[job.SessionID(x.GetSession())]; c != nil {
				delete(l.attaching, job.SessionID(x.GetSession()))
				c <- x
			}
		}
		for _, x := range m.Renewed {
			if c := l.beating[x.GetNumber()]; c != nil {
				delete(l.beating, x.GetNumber())
				c <- workerpb.Fences(x.GetUnknown())
			}
		}
		if m.Taken != nil {
			l.window.taken(m.Taken.GetResults(), m.Taken.GetBytes())
		}
		l.mu.Unlock()
	}
	for _, x := range m.Specs {
		if x.GetId() == 0 || x.GetId() > workerpb.MaxLinkSpecs {
			return job.InvalidField("spec.id", "%d is outside of the table", x.GetId())
		}
		d, err := document(x.GetDocument())
		if err != nil {
			return err
		}
		l.specs[x.GetId()] = d
	}
	for _, x := range m.Batches {
		if err := l.queue(x); err != nil {
			return err
		}
	}
	for _, x := range m.Orders {
		if err := l.order(x); err != nil {
			return err
		}
	}
	if m.Move > 0 && !l.over() {
		l.gateway.Shed(int(m.Move), 10*time.Second)
	}
	return nil
}

func (l *link) over() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dead
}

// document decodes a job document. Unlike a worker, which may be older than the document, nodes understand each other.
func document(b []byte) (*job.Document, error) {
	d := &job.Document{}
	if err := json.Unmarshal(b, d); err != nil {
		return nil, fmt.Errorf("a job document cannot be read: %w", err)
	}
	return d, nil
}

// queue takes a batch of assignments.
func (l *link) queue(x *workerpb.AssignBatch) error {
	t := task{number: x.GetNumber()}
	for _, s := range x.Sessions {
		for _, y := range s.Assignments {
			var spec *job.Document
			switch {
			case len(y.GetDocument()) > 0:
				var err error
				if spec, err = document(y.GetDocument()); err != nil {
					return err
				}
			case y.GetSpec() > workerpb.MaxLinkSpecs:
				return job.InvalidField("assignment.spec", "%d is outside of the table", y.GetSpec())
			default:
				spec = l.specs[y.GetSpec()]
			}
			a, err := y.ForJob(spec)
			if err != nil {
				return err
			}
			t.deliveries = append(t.deliveries, job.Delivery{Session: job.SessionID(s.GetSession()), Assignment: a})
		}
	}
	return l.do(t)
}

// order passes on what is for a session's worker.
func (l *link) order(x *workerpb.SessionOrders) error {
	session := job.SessionID(x.GetSession())
	if len(x.Stops) > 0 {
		t := task{stops: make([]job.StopOrder, 0, len(x.Stops))}
		for _, s := range x.Stops {
			if len(s.GetRunId()) != len(job.RunID{}) {
				return job.InvalidField("stop.run_id", "has %d bytes instead of 16", len(s.GetRunId()))
			}
			t.stops = append(t.stops, job.StopOrder{Session: session, RunID: job.RunID(s.GetRunId()), Fence: job.Fence(s.GetFence()),
				Reason: workerpb.ParseReason(s.GetReason())})
		}
		if err := l.do(t); err != nil { // not before the assignments that came before
			return err
		}
	}
	if len(x.Acks) > 0 {
		acks := make([]job.Ack, 0, len(x.Acks))
		for _, a := range x.Acks {
			if len(a.GetRunId()) != len(job.RunID{}) {
				return job.InvalidField("ack.run_id", "has %d bytes instead of 16", len(a.GetRunId()))
			}
			acks = append(acks, job.Ack{Session: session, RunID: job.RunID(a.GetRunId()), Fence: job.Fence(a.GetFence()), Refused: a.GetRefused()})
		}
		l.gateway.Acknowledge(context.Background(), acks)
	}
	if x.GetDrain() {
		l.gateway.Drain(session)
	}
	return nil
}

func (l *link) do(t task) error {
	l.taskMu.Lock()
	defer l.taskMu.Unlock()
	if n := len(l.tasks); n > 0 && t.stops != nil && l.tasks[n-1].stops != nil {
		l.tasks[n-1].stops = append(l.tasks[n-1].stops, t.stops...)
		return nil
	}
	if len(l.tasks) >= maxTasks {
		return fmt.Errorf("the leader has %d batches under way", len(l.tasks))
	}
	l.tasks = append(l.tasks, t)
	signal(l.taskWake)
	return nil
}

// assign does the leader's tasks in their order until the link ends.
func (l *link) assign(ctx context.Context) {
	for {
		l.taskMu.Lock()
		tasks := l.tasks
		l.tasks = nil
		l.taskMu.Unlock()
		for i := range tasks {
			t := &tasks[i]
			if ctx.Err() != nil {
				return // the leader learns from the link's end that it does not know
			}
			if t.stops != nil {
				l.gateway.Stop(ctx, t.stops)
				continue
			}
			reply := &workerpb.AssignReply{Number: t.number}
			for n, ok := range l.gateway.Assign(ctx, t.deliveries) {
				if !ok {
					reply.Refused = append(reply.Refused, uint32(n))
				}
			}
			l.mu.Lock()
			l.replies = append(l.replies, reply)
			l.mu.Unlock()
			signal(l.wake)
		}
		if len(tasks) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-l.taskWake:
		}
	}
}

// window is how many results may be under way. The link's mu guards it.
type window struct {
	maxResults, maxBytes   uint64
	sentResults, sentBytes uint64 // since the link began
	doneResults, doneBytes uint64 // of them the leader has taken
	waiting                []claim
}

type claim struct {
	results, bytes uint64
	ready          chan struct{}
}

// fits: one piece always does.
func (w *window) fits(results, bytes uint64) bool {
	underWay, size := w.sentResults-w.doneResults, w.sentBytes-w.doneBytes
	return underWay == 0 || underWay+results <= w.maxResults && size+bytes <= w.maxBytes
}

// take takes room, at once or when the channel that it answers is closed.
func (w *window) take(results, bytes uint64) (ready chan struct{}) {
	if len(w.waiting) == 0 && w.fits(results, bytes) {
		w.sentResults += results
		w.sentBytes += bytes
		return nil
	}
	c := claim{results, bytes, make(chan struct{})}
	w.waiting = append(w.waiting, c)
	return c.ready
}

// taken hears how much the leader has taken, and makes room for those who wait, in their order.
func (w *window) taken(results, bytes uint64) {
	w.doneResults, w.doneBytes = min(results, w.sentResults), min(bytes, w.sentBytes)
	for len(w.waiting) > 0 && w.fits(w.waiting[0].results, w.waiting[0].bytes) {
		c := w.waiting[0]
		w.waiting = w.waiting[1:]
		w.sentResults += c.results
		w.sentBytes += c.bytes
		close(c.ready)
	}
}

// release lets all go who wait: the link has ended.
func (w *window) release() { w.waiting = nil }
