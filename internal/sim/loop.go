package sim

import (
	"context"
	"hash/fnv"
	"iter"
	"time"
)

// event is something that happens at a moment.
type event struct {
	at  time.Duration
	seq uint64
	f   func()
}

// events is a heap by time, and by number among equals.
type events []event

func (h events) less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}

func (h *events) push(e event) {
	*h = append(*h, e)
	s := *h
	for i := len(s) - 1; i > 0; {
		up := (i - 1) / 2
		if !s.less(i, up) {
			break
		}
		s[i], s[up] = s[up], s[i]
		i = up
	}
}

func (h *events) pop() event {
	s := *h
	top := s[0]
	last := len(s) - 1
	s[0] = s[last]
	s[last] = event{}
	s = s[:last]
	*h = s
	for i := 0; ; {
		d := 2*i + 1
		if d >= last {
			break
		}
		if d+1 < last && s.less(d+1, d) {
			d++
		}
		if !s.less(d, i) {
			break
		}
		s[i], s[d] = s[d], s[i]
		i = d
	}
	return top
}

// after has f happen later, whatever becomes of whom.
func (s *Sim) after(d time.Duration, f func()) {
	s.seq++
	s.events.push(event{s.now + max(0, d), s.seq, f})
}

// upTo is a random time below d.
func (s *Sim) upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(s.rand.Int64N(int64(d)))
}

// host is a process: a node or a worker. It can be frozen, and die; what concerns it then waits, or never happens.
type host struct {
	name     string
	number   int
	up       bool
	frozen   bool
	life     int // counts boots
	deferred []func()
	procs    []*proc
}

// at has f happen on a host in its present life; while the host is frozen it waits.
func (s *Sim) at(h *host, d time.Duration, f func()) {
	life := h.life
	var run func()
	run = func() {
		switch {
		case !h.up || h.life != life:
		case h.frozen:
			h.deferred = append(h.deferred, run)
		default:
			f()
		}
	}
	s.after(d, run)
}

func (s *Sim) freeze(h *host) { h.frozen = true }

func (s *Sim) thaw(h *host) {
	if !h.frozen {
		return
	}
	h.frozen = false
	for _, f := range h.deferred { // as they came, with what the scheduler of the machine adds
		s.after(s.upTo(2*time.Millisecond), f)
	}
	h.deferred = nil
}

// kill ends a host at once. Its coroutines are unwound.
func (s *Sim) kill(h *host) {
	h.up, h.frozen, h.deferred = false, false, nil
	procs := h.procs
	h.procs = nil
	for _, p := range procs {
		p.end()
	}
}

func (s *Sim) boot(h *host) { h.up, h.frozen = true, false; h.life++ }

// proc is a coroutine of a host.
type proc struct {
	sim     *Sim
	host    *host
	name    string
	next    func() (struct{}, bool)
	stop    func()
	yield   func(struct{}) bool
	wait    uint64 // counts parks: a wake-up is for one of them
	waking  bool
	over    bool
	idling  bool               // between turns: only time and signals wake it
	signals [2]<-chan struct{} // that wake it as well
}

// killed unwinds a coroutine whose host has died.
type killed struct{}

// spawn starts a coroutine soon.
func (s *Sim) spawn(h *host, name string, f func()) *proc {
	p := &proc{sim: s, host: h, name: name}
	p.next, p.stop = iter.Pull(func(yield func(struct{}) bool) {
		defer func() {
			p.over = true
			if r := recover(); r != nil {
				if _, ok := r.(killed); !ok {
					panic(r)
				}
			}
		}()
		p.yield = yield
		f()
	})
	h.procs = append(h.procs, p)
	p.wake()
	return p
}

// wake resumes the coroutine soon, if it waits.
func (p *proc) wake() { p.wakeIn(p.sim.upTo(100 * time.Microsecond)) }

func (p *proc) wakeIn(d time.Duration) {
	if p.waking || p.over {
		return
	}
	p.waking = true
	p.resumeIn(d)
}

// resumeIn resumes the present wait after d, unless something else has by then.
func (p *proc) resumeIn(d time.Duration) {
	wait := p.wait
	p.sim.at(p.host, d, func() {
		if p.over || p.wait != wait {
			return
		}
		p.wait++
		p.waking = false
		s := p.sim
		outer := s.running
		s.running = p
		s.note("run", p.name)
		_, more := p.next()
		s.running = outer
		if !more {
			p.over = true
			for i, x := range p.host.procs {
				if x == p {
					p.host.procs = append(p.host.procs[:i], p.host.procs[i+1:]...)
					break
				}
			}
		}
	})
}

// park hands the baton back until somebody wakes the coroutine.
func (p *proc) park() {
	if !p.yield(struct{}{}) {
		panic(killed{})
	}
}

// end unwinds the coroutine.
func (p *proc) end() {
	if p.over {
		return
	}
	p.over = true
	outer := p.sim.running
	p.sim.running = p
	p.stop()
	p.sim.running = outer
}

// sleep parks the running coroutine; d below zero is until it is woken.
func (s *Sim) sleep(ctx context.Context, d time.Duration) {
	p := s.running
	if d < 0 {
		if ctx.Err() == nil {
			p.park()
		}
		return
	}
	for until := s.now + d; s.now < until && ctx.Err() == nil; {
		p.resumeIn(until - s.now)
		p.park()
	}
}

// idle parks until d is over, a signal comes or somebody wakes the coroutine.
func (s *Sim) idle(d time.Duration, signals [2]<-chan struct{}) {
	p := s.running
	for _, c := range signals {
		select {
		case <-c:
			return
		default:
		}
	}
	p.signals, p.idling = signals, true
	s.pollers = append(s.pollers, p)
	if d >= 0 {
		p.resumeIn(d)
	}
	p.park()
	p.signals, p.idling = [2]<-chan struct{}{}, false
}

// poll wakes those whose signal has come.
func (s *Sim) poll() {
	kept := s.pollers[:0]
	for _, p := range s.pollers {
		if p.over || !p.idling {
			continue
		}
		if !p.waking && (len(p.signals[0]) > 0 || len(p.signals[1]) > 0) {
			for _, c := range p.signals {
				select {
				case <-c:
				default:
				}
			}
			p.wake()
		}
		kept = append(kept, p)
	}
	clear(s.pollers[len(kept):])
	s.pollers = kept
}

// modelledPace is pace.Pace for the coroutine that runs.
type modelledPace struct{ *Sim }

func (m modelledPace) Sleep(ctx context.Context, d time.Duration) { m.sleep(ctx, d) }

func (m modelledPace) Take(token chan struct{}) {
	for {
		select {
		case token <- struct{}{}:
			return
		default:
			m.counts["token"]++
			m.sleep(context.Background(), time.Millisecond)
		}
	}
}

func (m modelledPace) Each(n int, do func(i int)) {
	for i := range n {
		do(i)
	}
}

// maxSteps is twenty times what a run takes.
const maxSteps = 2_000_000

// run lets events happen until a moment.
func (s *Sim) run(until time.Duration) {
	for len(s.events) > 0 && s.events[0].at <= until && !s.stopped() {
		e := s.events.pop()
		s.now = e.at
		e.f()
		s.poll()
		if s.steps++; s.steps == maxSteps {
			s.broken("after %d steps it is not done: something goes round in circles", maxSteps)
		}
	}
	s.now = max(s.now, until)
}

// note adds something that happened to the trace.
func (s *Sim) note(what string, about ...any) {
	h := s.trace
	mix := func(v uint64) { h = (h ^ v) * 0x100000001b3 }
	text := func(t string) {
		for i := range len(t) {
			mix(uint64(t[i]))
		}
	}
	mix(uint64(s.now))
	text(what)
	for _, a := range about {
		switch v := a.(type) {
		case string:
			text(v)
		case int:
			mix(uint64(v))
		case uint64:
			mix(v)
		case []byte:
			f := fnv.New64a()
			f.Write(v)
			mix(f.Sum64())
		}
	}
	s.trace = h
	if s.Log != nil && what != "run" {
		s.Log(s.now, what, about)
	}
}
