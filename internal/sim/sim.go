package sim

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
)

// Options of a run. The zero value is the usual run.
type Options struct {
	// Log is told of all that happens, for the eyes; nil: nobody is.
	Log   func(at time.Duration, what string, about []any)
	plant Plant
}

// Plant is how tests break what the simulation must catch: parts are wrapped, or the model cheats.
type Plant struct {
	Control       func(scheduler.Control) scheduler.Control
	Store         func(scheduler.Store) scheduler.Store
	Gateways      func(scheduler.Gateways) scheduler.Gateways
	Clock         func(time.Time) time.Time
	AnyEpoch      bool // gateways take work of deposed leaders
	AckBeforeSync bool // followers acknowledge what is not on disk
}

func (o *Options) control(c scheduler.Control) scheduler.Control {
	if f := o.plant.Control; f != nil {
		return f(c)
	}
	return c
}

func (o *Options) store(c scheduler.Store) scheduler.Store {
	if f := o.plant.Store; f != nil {
		return f(c)
	}
	return c
}

func (o *Options) gateways(c scheduler.Gateways) scheduler.Gateways {
	if f := o.plant.Gateways; f != nil {
		return f(c)
	}
	return c
}

func (o *Options) skewed(t time.Time) time.Time {
	if f := o.plant.Clock; f != nil {
		return f(t)
	}
	return t
}

// Result is what a run came to.
type Result struct {
	Seed       uint64
	Trace      uint64        // a hash of all that happened, in order
	Virtual    time.Duration // simulated
	Steps      int
	Counts     map[string]int // faults, refusals and other things worth counting
	Violations []string
	Report     *checker.Report
	History    *checker.History
}

// Sim is one run.
type Sim struct {
	Log     func(at time.Duration, what string, about []any)
	options Options
	rand    *rand.Rand
	now     time.Duration
	seq     uint64
	steps   int
	trace   uint64
	events  events
	pollers []*proc
	running *proc

	nodes         []*node
	workers       []*worker
	net           network
	faults        faults
	snapshotEvery uint64

	leaders   map[uint64]int // by term
	committed map[uint64]*committed
	hashes    map[uint64]hashed
	epoch     job.Epoch // of the newest leader whose command was taken
	ledBy     map[job.Epoch]string
	fences    map[job.RunID]job.Fence
	ends      map[job.RunID]job.State
	from      map[versionOf]job.Instant // of versions that came into effect

	clients    clients
	history    checker.History
	lives      int
	starts     []*started
	counts     map[string]int
	violations []string
}

type committed struct {
	term   uint64
	data   []byte
	judged bool
}

type versionOf struct {
	id      job.JobID
	version uint64
}

type hashed struct {
	by   string
	hash [32]byte
}

// started is an attempt that began.
type started struct {
	worker  *worker
	attempt *attempt
	at, end time.Duration // end 0: not yet
}

func itoa(n int) string { return strconv.Itoa(n) }

func moment(d time.Duration) checker.Moment { return checker.Moment(d) + checker.Moment(time.Hour) }

func (s *Sim) broken(format string, args ...any) {
	if len(s.violations) < 20 {
		s.violations = append(s.violations, fmt.Sprintf("%s: ", s.now.Round(time.Millisecond))+fmt.Sprintf(format, args...))
	}
}

// stopped: what is broken does not get better.
func (s *Sim) stopped() bool { return len(s.violations) > 0 }

// limit is how much virtual time a cluster may take to do all there is to do, once nothing fails any more.
const limit = 6 * time.Minute

// Run simulates one seed.
func Run(seed uint64, o Options) *Result {
	s := &Sim{Log: o.Log, options: o, rand: rand.New(rand.NewPCG(seed, 0x6d7573746572)), trace: 0xcbf29ce484222325,
		net: network{cuts: map[[2]int]int{}}, leaders: map[uint64]int{}, committed: map[uint64]*committed{}, hashes: map[uint64]hashed{},
		ledBy: map[job.Epoch]string{}, fences: map[job.RunID]job.Fence{}, ends: map[job.RunID]job.State{}, from: map[versionOf]job.Instant{}, counts: map[string]int{}}
	defer s.end()
	s.build()
	s.clients.sim = s
	s.run(5 * time.Second)
	s.clients.begin()
	long := 40*time.Second + s.upTo(80*time.Second)
	s.faults.begin(s, s.now+long)
	s.run(s.now + long)
	s.faults.heal(s)
	s.clients.stop()
	s.run(s.now + 20*time.Second)
	s.clients.calm()
	for healed := s.now; !s.stopped() && !s.quiet(); {
		if s.run(s.now + time.Second); s.now > healed+limit {
			s.broken("all was healed %s ago, and it is not done: %s", limit, s.unfinished())
		}
	}
	if !s.stopped() {
		s.run(s.now + 3*time.Second)
	}
	r := &Result{Seed: seed, Virtual: s.now, Steps: s.steps, Counts: s.counts, History: &s.history}
	if !s.stopped() {
		r.Report = s.judge()
	}
	r.Trace, r.Violations = s.trace, s.violations
	return r
}

func (s *Sim) build() {
	count := 3
	if s.rand.IntN(4) == 0 {
		count = 5
	}
	s.snapshotEvery = uint64(60 + s.rand.IntN(400))
	number := 0
	for i := range count {
		n := &node{sim: s, index: i}
		n.name, n.number = "n"+itoa(i+1), number
		n.raft.vote = -1
		n.disk = s.upTo(4 * time.Millisecond)
		number++
		s.nodes = append(s.nodes, n)
	}
	for i := range 2 + s.rand.IntN(3) {
		w := &worker{sim: s, index: i, slots: 1 + s.rand.IntN(4), slow: 1}
		w.name, w.number = "w"+itoa(i+1), number
		w.label, w.dataID = w.name, w.name
		if s.rand.IntN(5) == 0 {
			w.slow = 4
		}
		number++
		s.workers = append(s.workers, w)
	}
	for _, n := range s.nodes {
		n.start()
	}
	for _, w := range s.workers {
		w.start()
	}
}

// end unwinds all coroutines.
func (s *Sim) end() {
	for _, n := range s.nodes {
		s.kill(&n.host)
	}
	for _, w := range s.workers {
		s.kill(&w.host)
	}
}
