package sim

import "time"

// network is who can send to whom. Hosts are numbered; a cut is one way.
type network struct {
	cuts map[[2]int]int // how many faults cut it
	slow time.Duration  // more delay than usual
	loss float64        // share of datagrams
}

func (s *Sim) cut(from, to *host) bool { return s.net.cuts[[2]int{from.number, to.number}] > 0 }

// sever cuts one way, or with by = -1 heals it.
func (s *Sim) sever(from, to *host, by int) {
	k := [2]int{from.number, to.number}
	if s.net.cuts[k] += by; s.net.cuts[k] <= 0 {
		delete(s.net.cuts, k)
	}
}

func (s *Sim) delay() time.Duration {
	return 200*time.Microsecond + s.upTo(2*time.Millisecond) + s.upTo(s.net.slow)
}

// datagram reaches another host, or does not.
func (s *Sim) datagram(from, to *host, f func()) {
	if s.cut(from, to) || s.net.loss > 0 && s.rand.Float64() < s.net.loss {
		return
	}
	s.at(to, s.delay(), f)
}

// pipe is one direction of a TCP connection: in order, held up while it is cut, gone when either side ends it.
type pipe struct {
	sim      *Sim
	from, to *host
	life     [2]int
	queue    []func()
	moving   bool
	closed   bool
}

func (s *Sim) pipe(from, to *host) *pipe {
	return &pipe{sim: s, from: from, to: to, life: [2]int{from.life, to.life}}
}

// send queues something; false if the pipe is known to be closed at the sender.
func (p *pipe) send(f func()) bool {
	if p.closed {
		return false
	}
	p.queue = append(p.queue, f)
	p.move(p.sim.delay())
	return true
}

// retransmit is how often a held-up pipe tries.
const retransmit = 250 * time.Millisecond

func (p *pipe) move(d time.Duration) {
	if p.moving || p.closed {
		return
	}
	p.moving = true
	p.sim.after(d, func() {
		p.moving = false
		switch {
		case p.closed || !p.to.up || p.to.life != p.life[1]:
			p.queue = nil
			return
		case p.sim.cut(p.from, p.to) || p.to.frozen:
			p.move(retransmit)
			return
		}
		queue := p.queue
		p.queue = nil
		for _, f := range queue {
			if p.closed || !p.to.up || p.to.life != p.life[1] {
				return
			}
			f()
		}
	})
}

// close drops what is on its way.
func (p *pipe) close() {
	p.closed, p.queue = true, nil
}
