package sim

import (
	"time"

	"github.com/musterhq/muster/internal/checker"
)

// faults is what goes wrong.
type faults struct {
	until   time.Duration
	every   time.Duration
	busy    float64 // share of writes that a stream does not take
	unsure  float64 // share of answers of the log that are lost
	healing []func()
	crooked *node // the one whose clock is wrong
	gone    []*node
}

// begin has faults come until a moment. In some seeds a minority fails for good.
func (f *faults) begin(s *Sim, until time.Duration) {
	f.until, f.every = until, time.Second+s.upTo(8*time.Second)
	if s.rand.IntN(6) == 0 {
		for range (len(s.nodes) - 1) / 2 {
			n := s.nodes[s.rand.IntN(len(s.nodes))]
			if !n.up {
				continue
			}
			s.counts["fault: gone for good"]++
			f.gone = append(f.gone, n)
			n.crash()
		}
	}
	f.next(s)
}

func (f *faults) next(s *Sim) {
	s.after(s.upTo(2*f.every), func() {
		if s.now < f.until {
			f.one(s)
			f.next(s)
		}
	})
}

// undo has something healed after d, or when all is.
func (f *faults) undo(s *Sim, d time.Duration, heal func()) {
	done := false
	once := func() {
		if !done {
			done = true
			heal()
		}
	}
	f.healing = append(f.healing, once)
	s.after(d, once)
}

func (f *faults) heal(s *Sim) {
	s.note("healing")
	for _, h := range f.healing {
		h()
	}
	f.healing = nil
}

// kinds of faults, and how often each.
var kinds = []struct {
	name   string
	weight int
	cause  func(*faults, *Sim)
}{
	{"leader crashes", 4, func(f *faults, s *Sim) { f.crash(s, s.leading()) }},
	{"node crashes", 3, func(f *faults, s *Sim) { f.crash(s, s.anyNode()) }},
	{"leader freezes", 4, func(f *faults, s *Sim) { f.freezeNode(s, s.leading()) }},
	{"node freezes", 2, func(f *faults, s *Sim) { f.freezeNode(s, s.anyNode()) }},
	{"leader is cut off", 3, func(f *faults, s *Sim) { f.partition(s, func(n *node) bool { return n == s.leading() }, true) }},
	{"network halves", 2, func(f *faults, s *Sim) {
		side := s.rand.Uint64()
		f.partition(s, func(n *node) bool { return side>>n.index&1 == 1 }, s.rand.IntN(2) == 0)
	}},
	{"one way is cut", 3, func(f *faults, s *Sim) {
		a, b := s.anyNode(), s.anyNode()
		f.sever(s, &a.host, &b.host, false)
	}},
	{"network is a ring", 1, func(f *faults, s *Sim) {
		k := len(s.nodes)
		for i, a := range s.nodes {
			for j, b := range s.nodes {
				if i != j && (i+1)%k != j && (j+1)%k != i {
					f.sever(s, &a.host, &b.host, false)
				}
			}
		}
	}},
	{"leadership moves", 3, func(f *faults, s *Sim) {
		if n := s.leading(); n != nil {
			n.transferLeadership()
		}
	}},
	{"slow to see who leads", 2, func(f *faults, s *Sim) {
		for _, n := range s.nodes {
			n.watcher = 1500 * time.Millisecond
		}
		f.undo(s, s.upTo(20*time.Second), func() {
			for _, n := range s.nodes {
				n.watcher = 0
			}
		})
	}},
	{"leadership moves and comes back", 3, func(f *faults, s *Sim) {
		// The old term sees neither: what it proposes under its old epoch gets into the log again.
		n := s.leading()
		if n == nil || !n.transferLeadership() {
			return
		}
		n.watcher = 20 * time.Second
		var back func()
		back = func() {
			if l := s.leading(); l != nil && l != n && l.term != nil && l.raft.match[n.index] == l.raft.last() {
				s.datagram(&l.host, &n.host, func() {
					if n.raft.role == follower {
						n.campaign()
					}
				})
				return
			}
			if n.watcher > 0 {
				s.after(50*time.Millisecond, back)
			}
		}
		s.after(time.Second, back)
		f.undo(s, 8*time.Second+s.upTo(5*time.Second), func() { n.watcher = 0 })
	}},
	{"slow disk", 2, func(f *faults, s *Sim) {
		n := s.anyNode()
		n.disk = 20*time.Millisecond + s.upTo(3*time.Second)
		d := s.upTo(15 * time.Second)
		f.disturbed(s, d+10*time.Second)
		f.undo(s, d, func() { n.disk = 2 * time.Millisecond })
	}},
	{"replica lags", 2, func(f *faults, s *Sim) {
		n := s.anyNode()
		n.lag = s.upTo(3 * time.Second)
		f.undo(s, s.upTo(20*time.Second), func() { n.lag = 0 })
	}},
	{"packets are lost", 2, func(f *faults, s *Sim) {
		s.net.loss = 0.3 * s.rand.Float64()
		d := s.upTo(20 * time.Second)
		f.disturbed(s, d+10*time.Second)
		f.undo(s, d, func() { s.net.loss = 0 })
	}},
	{"slow network", 2, func(f *faults, s *Sim) {
		s.net.slow = s.upTo(400 * time.Millisecond)
		d := s.upTo(20 * time.Second)
		f.disturbed(s, d+10*time.Second)
		f.undo(s, d, func() { s.net.slow = 0 })
	}},
	{"answers are lost", 3, func(f *faults, s *Sim) {
		f.unsure = 0.3 * s.rand.Float64()
		f.undo(s, s.upTo(20*time.Second), func() { f.unsure = 0 })
	}},
	{"streams are busy", 2, func(f *faults, s *Sim) {
		f.busy = 0.5 * s.rand.Float64()
		f.undo(s, s.upTo(10*time.Second), func() { f.busy = 0 })
	}},
	{"clock is set wrong", 3, func(f *faults, s *Sim) { f.clock(s) }},
	{"worker is killed", 4, func(f *faults, s *Sim) { f.killWorker(s) }},
	{"worker freezes", 4, func(f *faults, s *Sim) { f.freezeWorker(s) }},
	{"worker is cut off", 4, func(f *faults, s *Sim) { f.cutWorker(s) }},
	{"namesake", 1, func(f *faults, s *Sim) { f.namesake(s) }},
}

func (f *faults) one(s *Sim) {
	total := 0
	for _, k := range kinds {
		total += k.weight
	}
	at := s.rand.IntN(total)
	for _, k := range kinds {
		if at -= k.weight; at < 0 {
			s.note("fault", k.name)
			s.counts["fault: "+k.name]++
			k.cause(f, s)
			return
		}
	}
}

// leading is a node that believes that it leads, or nil.
func (s *Sim) leading() *node {
	var best *node
	for _, n := range s.nodes {
		if n.up && n.raft.role == leader && (best == nil || n.raft.term > best.raft.term) {
			best = n
		}
	}
	return best
}

func (s *Sim) anyNode() *node { return s.nodes[s.rand.IntN(len(s.nodes))] }

func (f *faults) crash(s *Sim, n *node) {
	if n == nil || !n.up {
		return
	}
	n.crash()
	d := 100*time.Millisecond + s.upTo(15*time.Second)
	able := 0
	for _, o := range s.nodes {
		if o.up && !o.frozen {
			able++
		}
	}
	if 2*able <= len(s.nodes) {
		f.disturbed(s, d) // nobody can lead
	}
	f.undo(s, d, func() {
		if !n.up {
			n.start()
		}
	})
}

func (f *faults) freezeNode(s *Sim, n *node) {
	if n == nil || !n.up || n.frozen {
		return
	}
	d := s.upTo(50 * time.Second)
	if s.rand.IntN(2) == 0 {
		d = s.upTo(3 * time.Second)
	}
	s.freeze(&n.host)
	f.disturbed(s, d)
	f.undo(s, d, func() { s.thaw(&n.host) })
}

func (f *faults) length(s *Sim) time.Duration {
	if s.rand.IntN(2) == 0 {
		return s.upTo(8 * time.Second)
	}
	return s.upTo(45 * time.Second)
}

func (f *faults) sever(s *Sim, a, b *host, both bool) {
	if a == b {
		return
	}
	d := f.length(s)
	f.severFor(s, a, b, both, d)
	f.disturbed(s, d)
}

func (f *faults) severFor(s *Sim, a, b *host, both bool, d time.Duration) {
	s.sever(a, b, 1)
	if both {
		s.sever(b, a, 1)
	}
	f.undo(s, d, func() {
		s.sever(a, b, -1)
		if both {
			s.sever(b, a, -1)
		}
	})
}

func (f *faults) partition(s *Sim, side func(*node) bool, both bool) {
	d := f.length(s)
	for _, a := range s.nodes {
		for _, b := range s.nodes {
			if side(a) && !side(b) {
				f.severFor(s, &a.host, &b.host, both, d)
			}
		}
	}
	f.disturbed(s, d)
}

// disturbed notes that workers may have been out of reach for a while because the nodes were.
func (f *faults) disturbed(s *Sim, d time.Duration) {
	for _, w := range s.workers {
		s.fault(checker.Cut, w, d+20*time.Second)
	}
}

func (s *Sim) fault(kind checker.FaultKind, w *worker, d time.Duration) {
	s.history.Faults = append(s.history.Faults, checker.Fault{Kind: kind, Role: checker.Worker, Name: w.name, From: moment(s.now), To: moment(s.now + d)})
}

// clock sets one clock wrong. Only one is at a time: of five, a majority must show the right time to any majority.
func (f *faults) clock(s *Sim) {
	n := s.anyNode()
	if f.crooked != nil && f.crooked != n {
		return
	}
	f.crooked = n
	n.ahead = []time.Duration{time.Hour, -time.Hour, 3 * time.Second, -3 * time.Second, 300 * time.Millisecond, -300 * time.Millisecond}[s.rand.IntN(6)]
	f.undo(s, s.upTo(40*time.Second), func() {
		n.ahead = 0
		s.after(12*time.Second, func() { // by then nobody counts the wrong reading any more
			if n.ahead == 0 && f.crooked == n {
				f.crooked = nil
			}
		})
	})
}

func (f *faults) killWorker(s *Sim) {
	w := s.workers[s.rand.IntN(len(s.workers))]
	if !w.up || w.label != w.name {
		return
	}
	w.kill()
	d := s.upTo(3 * time.Second)
	if s.rand.IntN(3) == 0 {
		d = s.upTo(60 * time.Second)
	}
	f.undo(s, d, func() {
		if !w.up {
			w.start()
		}
	})
}

func (f *faults) freezeWorker(s *Sim) {
	w := s.workers[s.rand.IntN(len(s.workers))]
	if !w.up || w.frozen {
		return
	}
	d := s.upTo(75 * time.Second)
	s.freeze(&w.host)
	at := len(s.history.Faults)
	s.fault(checker.Pause, w, d)
	f.undo(s, d, func() {
		s.history.Faults[at].To = moment(s.now)
		s.thaw(&w.host)
	})
}

func (f *faults) cutWorker(s *Sim) {
	w := s.workers[s.rand.IntN(len(s.workers))]
	d := f.length(s) + s.upTo(20*time.Second)
	way := s.rand.IntN(3)
	for _, n := range s.nodes {
		if way != 0 {
			f.severFor(s, &w.host, &n.host, false, d)
		}
		if way != 1 {
			f.severFor(s, &n.host, &w.host, false, d)
		}
	}
	s.fault(checker.Cut, w, d+10*time.Second)
}

// namesake is a second agent under the name of one, with another data directory.
func (f *faults) namesake(s *Sim) {
	of := s.workers[s.rand.IntN(len(s.workers))]
	if of.label != of.name || !of.up || of.frozen || of.stream == nil {
		return
	}
	w := &worker{sim: s, index: len(s.workers), slots: 1, slow: 1, label: of.label, dataID: "other"}
	w.name, w.number = "x"+itoa(len(s.workers)+1), len(s.nodes)+len(s.workers)
	s.workers = append(s.workers, w)
	w.start()
	f.undo(s, s.upTo(10*time.Second), func() {
		if w.up {
			w.kill()
		}
	})
}
