package clustertest

import (
	"context"
	"fmt"
	"sort"
	"sync"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
)

// Behaviour is what a worker makes of an attempt. It returns how the attempt ended; ctx is cancelled when it is told to
// stop.
type Behaviour func(ctx context.Context, a *job.Assignment) job.Outcome

// Succeed takes a while and succeeds.
func Succeed(after time.Duration) Behaviour {
	return func(ctx context.Context, _ *job.Assignment) job.Outcome {
		select {
		case <-time.After(after):
			return job.Outcome{Kind: job.AttemptSucceeded}
		case <-ctx.Done():
			return job.Outcome{Kind: job.AttemptCancelled, Reason: job.CancelRequested}
		}
	}
}

// Fail takes a while and fails.
func Fail(after time.Duration) Behaviour {
	return func(context.Context, *job.Assignment) job.Outcome {
		time.Sleep(after)
		return job.Outcome{Kind: job.AttemptFailed, Reason: job.ExitCode, ExitCode: 1, Error: "exit status 1"}
	}
}

// Start is one line of the workers' own history: what truly ran.
type Start struct {
	Run     job.RunID
	Job     string
	Attempt uint32
	Fence   job.Fence
	Worker  string
	At      time.Time
	End     time.Time // zero: it did not end; when its worker was killed, if it was
}

// Workers are the agents of a Core; it is the scheduler's Gateways.
type Workers struct {
	core *Core

	mu       sync.Mutex
	agents   map[string]*agent
	sessions map[job.SessionID]*agent
	term     *scheduler.Term
	sequence int
	History  []*Start
	refused  int
	acked    int
	deaf     bool
}

type agent struct {
	hello     job.WorkerHello
	session   job.SessionID
	reachable bool
	behaviour Behaviour
	attempts  map[job.Fence]*attempt
	results   map[job.Fence]job.Outcome // not acknowledged
	life      context.Context
	die       context.CancelFunc
}

type attempt struct {
	*job.Assignment
	stop   context.CancelFunc
	record *Start
}

func newWorkers(c *Core) *Workers {
	return &Workers{core: c, agents: map[string]*agent{}, sessions: map[job.SessionID]*agent{}}
}

// Add starts a worker, which attaches whenever somebody leads. The hello's name, slots, labels, executors and handlers
// count; executors default to exec.
func (w *Workers) Add(h job.WorkerHello, b Behaviour) {
	if len(h.Executors) == 0 {
		h.Executors = []string{"exec", "handler"}
	}
	h.DataID = h.Name
	life, die := context.WithCancel(context.Background())
	a := &agent{hello: h, behaviour: b, reachable: true, attempts: map[job.Fence]*attempt{}, results: map[job.Fence]job.Outcome{}, life: life, die: die}
	w.mu.Lock()
	w.sequence++
	a.hello.Boot = fmt.Sprint(w.sequence)
	w.agents[h.Name] = a
	term := w.term
	w.mu.Unlock()
	go w.beat(a)
	if term != nil {
		w.attach(a, term)
	}
}

// Kill ends a worker as kill -9 does; with restart a new life of it attaches at once, with nothing running.
func (w *Workers) Kill(name string, restart bool) {
	w.mu.Lock()
	a := w.agents[name]
	delete(w.agents, name)
	delete(w.sessions, a.session)
	for _, x := range a.attempts {
		x.record.End = time.Now()
	}
	session, term := a.session, w.term
	w.mu.Unlock()
	a.die()
	if term != nil && a.reachable {
		term.Detach(session)
	}
	if restart {
		w.Add(a.hello, a.behaviour)
	}
}

// Reach cuts a worker off, or lets it attach again.
func (w *Workers) Reach(name string, reachable bool) {
	w.mu.Lock()
	a, term := w.agents[name], w.term
	a.reachable = reachable
	session := a.session
	if !reachable {
		delete(w.sessions, session)
	}
	w.mu.Unlock()
	switch {
	case term == nil:
	case !reachable:
		term.Detach(session)
	default:
		w.attach(a, term)
	}
}

// KillAll takes the workers down at a test's end.
func (w *Workers) KillAll() {
	w.mu.Lock()
	var names []string
	for n := range w.agents {
		names = append(names, n)
	}
	w.mu.Unlock()
	for _, n := range names {
		w.Kill(n, false)
	}
}

// Deaf makes all workers miss acknowledgements, as if their streams broke just before.
func (w *Workers) Deaf(deaf bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deaf = deaf
}

// Refused is how many results were acknowledged as refused.
func (w *Workers) Refused() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.refused
}

// Starts answers the history so far, in order of time.
func (w *Workers) Starts() []Start {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]Start, len(w.History))
	for i, s := range w.History {
		out[i] = *s
	}
	return out
}

// Acknowledged is how many results were acknowledged, to whomever.
func (w *Workers) Acknowledged() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.acked
}

func (w *Workers) attachAll(term *scheduler.Term) {
	w.mu.Lock()
	w.term = term
	clear(w.sessions)
	var agents []*agent
	for _, a := range w.agents {
		if a.reachable {
			agents = append(agents, a)
		}
	}
	w.mu.Unlock()
	sort.Slice(agents, func(i, j int) bool { return agents[i].hello.Name < agents[j].hello.Name })
	for _, a := range agents {
		w.attach(a, term)
	}
}

func (w *Workers) attach(a *agent, term *scheduler.Term) {
	w.mu.Lock()
	w.sequence++
	a.session = job.SessionID(fmt.Sprintf("%s-%d", a.hello.Name, w.sequence))
	w.sessions[a.session] = a
	h, session := a.hello, a.session
	h.Running = nil
	for f := range a.attempts {
		h.Running = append(h.Running, f)
	}
	var results []job.Outcome
	for f, o := range a.results {
		h.Running = append(h.Running, f)
		results = append(results, o)
	}
	w.mu.Unlock()
	sort.Slice(h.Running, func(i, j int) bool { return h.Running[i] < h.Running[j] })
	sort.Slice(results, func(i, j int) bool { return results[i].Fence < results[j].Fence })
	stop, err := term.Attach(context.Background(), session, "node", h)
	if err != nil {
		panic(err)
	}
	w.stopFences(a, stop)
	if len(results) > 0 {
		term.Finished(session, results)
	}
}

func (w *Workers) stopFences(a *agent, fences []job.Fence) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range fences {
		if x := a.attempts[f]; x != nil {
			x.stop()
		}
	}
}

// beat is the heartbeat.
func (w *Workers) beat(a *agent) {
	tick := time.NewTicker(job.HeartbeatEvery)
	defer tick.Stop()
	for {
		select {
		case <-a.life.Done():
			return
		case <-tick.C:
		}
		w.mu.Lock()
		term, session, ok := w.term, a.session, a.reachable && w.sessions[a.session] == a
		var running []job.Fence
		for f := range a.attempts {
			running = append(running, f)
		}
		for f := range a.results {
			running = append(running, f)
		}
		w.mu.Unlock()
		if ok && term != nil && term == w.core.Term() {
			w.stopFences(a, term.Heartbeat(session, running))
		}
	}
}

// Assign implements scheduler.Gateways.
func (w *Workers) Assign(_ context.Context, deliveries []job.Delivery) []bool {
	out := make([]bool, len(deliveries))
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, d := range deliveries {
		a := w.sessions[d.Session]
		if a == nil || !a.reachable {
			continue
		}
		out[i] = true
		ctx, stop := context.WithCancel(a.life)
		x := &attempt{Assignment: d.Assignment, stop: stop,
			record: &Start{Run: d.RunID, Job: d.Job, Attempt: d.Attempt, Fence: d.Fence, Worker: a.hello.Name, At: time.Now()}}
		a.attempts[d.Fence] = x
		w.History = append(w.History, x.record)
		go w.execute(ctx, a, x)
	}
	return out
}

func (w *Workers) execute(ctx context.Context, a *agent, x *attempt) {
	started := job.At(time.Now())
	o := a.behaviour(ctx, x.Assignment)
	x.stop()
	if a.life.Err() != nil {
		return // died with its worker
	}
	o.RunID, o.Fence, o.Attempt, o.Worker = x.RunID, x.Fence, x.Attempt, a.hello.Name
	o.StartedAt, o.FinishedAt = started, job.At(time.Now())
	w.mu.Lock()
	x.record.End = time.Now()
	delete(a.attempts, x.Fence)
	a.results[x.Fence] = o
	term, session, ok := w.term, a.session, a.reachable && w.sessions[a.session] == a
	w.mu.Unlock()
	if ok && term != nil {
		term.Finished(session, []job.Outcome{o})
	}
}

// Stop implements scheduler.Gateways.
func (w *Workers) Stop(_ context.Context, orders []job.StopOrder) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range orders {
		if a := w.sessions[o.Session]; a != nil && a.reachable {
			if x := a.attempts[o.Fence]; x != nil {
				x.stop()
			}
		}
	}
}

// Acknowledge implements scheduler.Gateways.
func (w *Workers) Acknowledge(_ context.Context, acks []job.Ack) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acked += len(acks)
	for _, k := range acks {
		if w.deaf {
			break
		}
		if a := w.sessions[k.Session]; a != nil && a.reachable {
			delete(a.results, k.Fence)
			if k.Refused {
				w.refused++
			}
		}
	}
}

// Describe says what the workers know of a run, for a test's failure message.
func (w *Workers) Describe(id job.RunID) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := ""
	for _, h := range w.History {
		if h.Run == id {
			s += fmt.Sprintf("started on %s at %s under %d, ended %s; ", h.Worker, h.At.Format("04:05.000"), h.Fence, h.End.Format("04:05.000"))
		}
	}
	for name, a := range w.agents {
		for f, x := range a.attempts {
			if x.RunID == id {
				s += fmt.Sprintf("%s (session %s, attached %t) runs it under %d; ", name, a.session, w.sessions[a.session] == a, f)
			}
		}
		for f, o := range a.results {
			if o.RunID == id {
				s += fmt.Sprintf("%s (session %s, attached %t) has its result under %d; ", name, a.session, w.sessions[a.session] == a, f)
			}
		}
	}
	return s
}
