package sim

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

// worker is one agent. What is on its disk survives: the id of its data directory, and results not acknowledged.
type worker struct {
	host
	sim    *Sim
	index  int
	label  string // its name in the cluster
	dataID string
	slots  int
	slow   int // times the usual

	attempts []*attempt
	held     []job.Outcome
	seen     map[job.RunID]job.Fence
	renewed  time.Duration
	lost     bool

	stream    *stream
	seated    bool
	hellos    int
	helloAt   time.Duration
	heardAt   time.Duration
	startedAt time.Duration
	beatAt    time.Duration
	seq       int
	beats     []beat
	next      int // which node to try
	retryAt   time.Duration
	backoff   time.Duration
	pid       int
}

type beat struct {
	seq int
	at  time.Duration
}

type attempt struct {
	*job.Assignment
	started  time.Duration
	startAt  job.Instant
	over     bool // its process has ended
	code     int
	stopping job.Reason
}

func (w *worker) start() {
	s := w.sim
	s.boot(&w.host)
	w.attempts, w.seen, w.lost, w.stream, w.seated = nil, map[job.RunID]job.Fence{}, false, nil, false
	for _, o := range w.held {
		w.seen[o.RunID] = max(w.seen[o.RunID], o.Fence)
	}
	w.beats, w.retryAt, w.backoff = nil, s.now, 100*time.Millisecond
	w.renewed = s.now
	s.lives++
	s.history.Lives = append(s.history.Lives, checker.Life{Pid: s.lives, Role: checker.Worker, Name: w.name, Start: moment(s.now), Ready: moment(s.now)})
	w.next = s.rand.IntN(len(s.nodes))
	w.pid = s.lives
	w.tick()
}

// kill ends the agent and, with it, what it runs.
func (w *worker) kill() {
	s := w.sim
	s.note("killed", w.name)
	for i := range s.history.Lives {
		if l := &s.history.Lives[i]; l.Pid == w.pid {
			l.Kill, l.Dead = moment(s.now), moment(s.now)+1
		}
	}
	w.attempts = nil
	if x := w.stream; x != nil {
		w.stream = nil
		w.hangUp(x)
	}
	s.kill(&w.host)
}

// hangUp closes the stream from the worker's side; the node hears of it if it can be reached.
func (w *worker) hangUp(x *stream) {
	s, n := w.sim, x.gateway.node
	if s.cut(&w.host, &n.host) {
		x.up.close()
		x.down.close()
		return // the node will notice the silence
	}
	s.at(&n.host, s.delay(), func() { x.close(false) })
}

// tick is the agent's timers.
func (w *worker) tick() {
	s := w.sim
	s.at(&w.host, 500*time.Millisecond+s.upTo(10*time.Millisecond), func() {
		w.tick()
		w.checkLease()
		x := w.stream
		switch {
		case x == nil:
			if s.now >= w.retryAt {
				w.attach()
			}
			return
		case s.now-w.heardAt >= job.HeartbeatLost, s.now-max(w.startedAt, w.renewed) >= job.LeaseTimeout/2:
			s.note("detach", w.name, int((s.now - w.heardAt).Milliseconds()), int((s.now - w.renewed).Milliseconds()))
			w.stream, w.seated = nil, false
			w.hangUp(x)
			w.later()
			return
		}
		if s.now-w.beatAt >= job.HeartbeatEvery {
			w.beatAt = s.now
			w.seq++
			seq, running := w.seq, w.fences()
			w.beats = append(w.beats, beat{seq, s.now})
			x.up.send(func() { x.seenAt = s.now; x.gateway.heartbeat(x, seq, running) })
		}
	})
}

func (w *worker) later() {
	w.retryAt = w.sim.now + w.backoff/2 + w.sim.upTo(w.backoff)
	w.backoff = min(2*w.backoff, 10*time.Second)
}

// checkLease stops what runs when the lease is over (L4).
func (w *worker) checkLease() {
	if w.lost || len(w.attempts) == 0 || w.sim.now-w.renewed < job.LeaseTimeout {
		return
	}
	w.lost = true
	w.sim.counts["leases of workers lost"]++
	for _, a := range w.attempts {
		if a.Spec.OnLeaseLost != job.FinishOnLeaseLost {
			w.stop(a, job.LeaseLost)
		}
	}
}

func (w *worker) renew(at time.Duration) {
	if at >= w.renewed {
		w.renewed, w.lost = at, false
	}
}

func (w *worker) attach() {
	s := w.sim
	n := s.nodes[w.next%len(s.nodes)]
	w.next++
	s.note("attach", w.name, n.name)
	if !n.up || s.cut(&w.host, &n.host) {
		w.later()
		return
	}
	x := &stream{gateway: n.gateway, worker: w, up: s.pipe(&w.host, &n.host), down: s.pipe(&n.host, &w.host), seenAt: s.now}
	w.stream, w.seated = x, false
	w.heardAt, w.startedAt, w.beats = s.now, s.now, nil
	w.beatAt = s.now
	x.up.send(func() {
		x.seenAt = s.now
		x.gateway.streams = append(x.gateway.streams, x)
	})
	w.hello(x)
}

func (w *worker) hello(x *stream) {
	s := w.sim
	w.hellos++
	w.helloAt, w.seated = s.now, false
	number := w.hellos
	h := job.WorkerHello{Name: w.label, Boot: itoa(w.pid), Number: uint64(number), DataID: w.dataID, Slots: w.slots, Executors: []string{"exec"}, Running: w.fences()}
	x.up.send(func() { x.seenAt = s.now; x.gateway.attach(x, h, number) })
}

func (w *worker) fences() []job.Fence {
	out := make([]job.Fence, 0, len(w.attempts)+len(w.held))
	for _, a := range w.attempts {
		out = append(out, a.Fence)
	}
	for i := range w.held {
		out = append(out, w.held[i].Fence)
	}
	return out
}

// heard is called with each message; false: it is of an earlier stream.
func (w *worker) heard(x *stream) bool {
	if w.stream != x {
		return false
	}
	w.heardAt = w.sim.now
	return true
}

func (w *worker) askedAgain(x *stream) {
	if w.heard(x) {
		w.hello(x)
	}
}

func (w *worker) streamEnded(x *stream) {
	if w.stream == x {
		w.stream, w.seated = nil, false
		w.later()
	}
}

func (w *worker) welcomed(x *stream, number int, accepted bool, stop []job.Fence) {
	if !w.heard(x) || number != w.hellos || !accepted {
		return
	}
	w.renew(w.helloAt)
	w.seated, w.backoff = true, 100*time.Millisecond
	w.stopAll(stop)
	if len(w.held) > 0 {
		w.report(x, slices.Clone(w.held))
	}
}

func (w *worker) beatAnswered(x *stream, seq int, renewed bool, unknown []job.Fence) {
	if !w.heard(x) {
		return
	}
	for len(w.beats) > 0 && w.beats[0].seq <= seq {
		if w.beats[0].seq == seq && renewed {
			w.renew(w.beats[0].at)
		}
		w.beats = w.beats[1:]
	}
	w.stopAll(unknown)
}

func (w *worker) stopAll(fences []job.Fence) {
	for _, f := range fences {
		if a := w.find(f); a != nil {
			w.stop(a, job.LeaseLost)
		}
	}
}

func (w *worker) find(f job.Fence) *attempt {
	for _, a := range w.attempts {
		if a.Fence == f {
			return a
		}
	}
	return nil
}

// assigned starts what came in the session that is seated.
func (w *worker) assigned(x *stream, a *job.Assignment) {
	s := w.sim
	if !w.heard(x) || !w.seated || s.now-w.renewed >= job.LeaseTimeout {
		s.counts["assignments dropped by workers"]++
		s.note("dropped", w.name, uint64(a.Fence))
		return
	}
	if a.Fence <= w.seen[a.RunID] {
		return
	}
	w.seen[a.RunID] = a.Fence
	if len(w.attempts) >= w.slots {
		w.hold(job.Outcome{RunID: a.RunID, Fence: a.Fence, Attempt: a.Attempt, Kind: job.AttemptReturned, Reason: job.WorkerStopped, FinishedAt: job.At(w.now())})
		return
	}
	t := &attempt{Assignment: a, started: s.now, startAt: job.At(w.now())}
	w.attempts = append(w.attempts, t)
	s.began(w, t)
	x.up.send(func() { x.gateway.started(x, []job.Started{{RunID: a.RunID, Fence: a.Fence, At: t.startAt}}) })
	long := s.upTo(1500 * time.Millisecond)
	switch s.rand.IntN(12) {
	case 0:
		long += s.upTo(20 * time.Second)
	case 1, 2, 3:
		long = s.upTo(20 * time.Millisecond)
	}
	code := 0
	if o, ours := s.clients.graphs.outcome(a); ours {
		code = int(o.ExitCode)
	} else if s.rand.IntN(6) == 0 {
		code = 1
	}
	w.endsIn(t, long*time.Duration(w.slow), code)
}

// endsIn has the attempt's process end: that does not ask whether the agent gets to run.
func (w *worker) endsIn(t *attempt, d time.Duration, code int) {
	s, life := w.sim, w.life
	s.after(d, func() {
		if t.over || !w.up || w.life != life {
			return
		}
		t.over, t.code = true, code
		s.ended(w, t)
		s.at(&w.host, 0, func() { w.collect(t) })
	})
}

func (w *worker) now() time.Time { return began.Add(w.sim.now) }

// stop has an attempt's process end within the grace.
func (w *worker) stop(t *attempt, why job.Reason) {
	if t.stopping != 0 || t.over {
		return
	}
	t.stopping = why
	w.sim.note("stop", w.name, why.String(), uint64(t.Fence))
	grace := w.sim.upTo(time.Second)
	if w.sim.rand.IntN(4) == 0 {
		grace = w.sim.upTo(6900 * time.Millisecond) // it is killed then
	}
	w.endsIn(t, grace, 143)
}

// collect is told of an end.
func (w *worker) collect(t *attempt) {
	i := slices.Index(w.attempts, t)
	if i < 0 {
		return
	}
	w.attempts = slices.Delete(w.attempts, i, i+1)
	o := job.Outcome{RunID: t.RunID, Fence: t.Fence, Attempt: t.Attempt, Kind: job.AttemptSucceeded, StartedAt: t.startAt, FinishedAt: job.At(w.now())}
	switch {
	case t.code == 0:
		o.Result = json.RawMessage(`{"ok":true}`)
	case t.stopping == job.CancelRequested:
		o.Kind, o.Reason = job.AttemptCancelled, job.CancelRequested
	case t.stopping != 0:
		o.Kind, o.Reason = job.AttemptLost, job.LeaseLost
	default:
		o.Kind, o.Reason, o.ExitCode, o.Error = job.AttemptFailed, job.ExitCode, int32(t.code), "exit status 1"
	}
	if said, ours := w.sim.clients.graphs.outcome(t.Assignment); ours {
		switch o.Kind {
		case job.AttemptSucceeded:
			o.Result = said.Result
		case job.AttemptFailed:
			o.Permanent = said.Permanent
		}
	}
	w.hold(o)
}

// hold keeps a result until it is acknowledged.
func (w *worker) hold(o job.Outcome) {
	o.Worker = w.label
	w.held = append(w.held, o)
	if x := w.stream; x != nil && w.seated {
		w.report(x, []job.Outcome{o})
	}
}

func (w *worker) report(x *stream, outcomes []job.Outcome) {
	s := w.sim
	x.up.send(func() { x.seenAt = s.now; x.gateway.finished(x, outcomes) })
}

func (w *worker) told(x *stream, f job.Fence, why job.Reason) {
	if !w.heard(x) {
		return
	}
	if why != job.CancelRequested && why != job.DeadlineExceeded {
		why = job.LeaseLost
	}
	if a := w.find(f); a != nil {
		w.stop(a, why)
	}
}

func (w *worker) acknowledged(x *stream, f job.Fence) {
	if w.heard(x) {
		w.held = slices.DeleteFunc(w.held, func(o job.Outcome) bool { return o.Fence == f })
	}
}
