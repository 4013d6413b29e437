// Package fleet is what the leader knows of workers and leases during one term: who is attached, what each may still
// take, which run is granted to whom and until when, and which concurrency keys are held. It lives in memory; the leases
// themselves are in Raft and are loaded from there when a term begins (L2).
//
// A run is in at most one of these hands at a time: reserved (a grant is on its way to Raft), leased (granted), or
// moving (a move that ends it or sends it back is on its way to the store). Whoever would act on a run takes it into his
// hand here first, so that the dispatcher, the settler and a cancel never act on one run at once.
package fleet

import (
	"fmt"
	"hash/crc32"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler/pace"
)

// Fleet is safe for concurrent use. Now is the wall clock; elapsed a clock that runs through suspend (L4).
type Fleet struct {
	// Pace is how Tell waits its turn; New sets pace.Real.
	Pace pace.Pace

	now     func() job.Instant
	elapsed func() time.Duration
	flag    func(worker string) job.WorkerState

	telling chan struct{} // with a buffer of one: holds Tell's one caller, who may wait for long

	mu       sync.Mutex
	workers  map[string]*worker
	sessions map[job.SessionID]*worker
	leases   map[job.RunID]*Lease
	reserved map[job.RunID]*reservation
	moving   map[job.RunID]struct{}
	held     map[holdKey]int
	touched  map[job.RunID]struct{} // moved, or its lease ended, since BeginRead
	ended    []job.EndedGrant       // not yet told to Raft
	freed    chan struct{}
}

type worker struct {
	hello       job.WorkerHello
	offers      map[string]string
	session     job.SessionID // "" while no stream is up
	node        string
	past        []string // boots before this one, the latest last
	used        int
	connectedAt job.Instant
	seenAt      job.Instant
	goneSince   time.Duration
	shunned     time.Duration           // no seat before this moment: its stream took nothing
	fences      map[job.Fence]job.RunID // its leases
}

// Lease is a granted run.
type Lease struct {
	job.Grant
	Session   job.SessionID
	Run       *job.Run      // as read at dispatch; nil after a change of leader
	Spec      *job.Document // likewise
	StartedAt job.Instant   // as the worker said; 0 until then
	Stopping  job.Reason    // why the worker was told to stop it
	expiresAt time.Duration // on the elapsed clock, without the grace
	extended  bool          // by the rule for a silent gateway
	released  bool          // its slots are free again: the result is in
}

type reservation struct {
	grant job.Grant
	stop  job.Reason // asked for while the grant was on its way
}

type holdKey struct{ namespace, key string }

func keyOf(l job.LaneKey) (holdKey, bool) {
	k := l.ConcurrencyKey()
	return holdKey{l.Namespace(), k}, k != ""
}

// New makes an empty fleet. flag says whether an operator cordoned a worker or drains it.
func New(now func() job.Instant, elapsed func() time.Duration, flag func(worker string) job.WorkerState) *Fleet {
	return &Fleet{
		Pace: pace.Real{}, now: now, elapsed: elapsed, flag: flag,
		workers: map[string]*worker{}, sessions: map[job.SessionID]*worker{}, leases: map[job.RunID]*Lease{},
		reserved: map[job.RunID]*reservation{}, moving: map[job.RunID]struct{}{}, held: map[holdKey]int{}, touched: map[job.RunID]struct{}{},
		freed: make(chan struct{}, 1), telling: make(chan struct{}, 1),
	}
}

// Freed is signalled when something may be placed that could not before.
func (f *Fleet) Freed() <-chan struct{} { return f.freed }

func (f *Fleet) signal() {
	select {
	case f.freed <- struct{}{}:
	default:
	}
}

// Resume takes over the leases that Raft holds, each given a full term again: late expiry is allowed, early never is.
func (f *Fleet) Resume(grants []job.Grant) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, g := range grants {
		f.open(&Lease{Grant: g})
	}
}

func (f *Fleet) open(l *Lease) {
	l.expiresAt = f.elapsed() + job.LeaseTimeout
	f.leases[l.RunID] = l
	w := f.workers[l.Worker]
	if w == nil {
		w = &worker{hello: job.WorkerHello{Name: l.Worker}, fences: map[job.Fence]job.RunID{}, goneSince: f.elapsed()}
		f.workers[l.Worker] = w
	}
	w.fences[l.Fence] = l.RunID
	w.used += l.SlotCount()
	if k, ok := keyOf(l.Lane); ok {
		f.held[k]++
	}
}

// life is which life of which agent has a lease: job.Grant.Boot holds it, so that the next leader can tell an agent that
// was restarted from a namesake. Grants of earlier versions name the boot alone.
type life struct{ boot, data string }

func lifeOf(h *job.WorkerHello) life {
	l := life{boot: strings.ReplaceAll(h.Boot, "/", "-")}
	if h.DataID != "" {
		l.data = fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(h.DataID)))
	}
	return l
}

func readLife(text string) life {
	boot, data, _ := strings.Cut(text, "/")
	return life{boot, data}
}

func (l life) String() string {
	if l.data == "" {
		return l.boot
	}
	return l.boot + "/" + l.data
}

// Attached says what a hello settled.
type Attached struct {
	Stop       []job.Fence     // the worker runs these without a right to: it must kill them
	Stopping   []job.StopOrder // it was to stop these, and may not have heard
	Lost       []job.Outcome   // granted to an earlier life of the agent, which may have started them
	NeverBegan []Lease         // granted, but never reached the worker: they go back to the queue and cost nothing
}

// Attach opens a session. A second agent with the name of one that is attached is refused, unless it holds the same data
// directory, as a restarted one does (L4). A lease that the hello omits ends at once (L3).
func (f *Fleet) Attach(session job.SessionID, node string, h job.WorkerHello) (Attached, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var a Attached
	w := f.workers[h.Name]
	if w != nil && w.session != "" && w.hello.DataID != h.DataID {
		return a, job.Errorf(job.Conflict, "worker_name_taken",
			"a worker named %q is attached already from another data directory; give this one another --name", h.Name)
	}
	if err := w.overtaken(&h); err != nil {
		return a, err
	}
	own := lifeOf(&h)
	if w != nil {
		// Without a stream it may be alive all the same, and run what it was granted: until its leases have ended the name is
		// taken. A restarted agent brings the same data directory.
		for _, id := range w.fences {
			if of := readLife(f.leases[id].Boot); of.data != "" && of.data != own.data {
				return a, job.Errorf(job.Conflict, "worker_name_taken",
					"a worker named %q from another data directory has runs until they end or its leases do; give this one another --name", h.Name)
			}
		}
	}
	if w == nil {
		w = &worker{fences: map[job.Fence]job.RunID{}}
		f.workers[h.Name] = w
	}
	delete(f.sessions, w.session)
	if w.hello.Boot != "" && w.hello.Boot != h.Boot {
		w.past = append(w.past[max(0, len(w.past)-maxPast+1):], w.hello.Boot)
	}
	w.hello, w.offers, w.session, w.node = h, h.Offers(), session, node
	w.connectedAt, w.seenAt = f.now(), f.now()
	f.sessions[session] = w

	running := make(map[job.Fence]bool, len(h.Running))
	for _, fence := range h.Running {
		running[fence] = true
		if _, ok := w.fences[fence]; !ok {
			a.Stop = append(a.Stop, fence)
		}
	}
	for fence, id := range w.fences {
		l := f.leases[id]
		switch {
		case running[fence]:
			l.Session, l.expiresAt = session, f.elapsed()+job.LeaseTimeout
			if l.Stopping != 0 {
				a.Stopping = append(a.Stopping, job.StopOrder{Session: session, RunID: id, Fence: fence, Reason: l.Stopping})
			}
		case readLife(l.Boot).boot == own.boot:
			a.NeverBegan = append(a.NeverBegan, *l)
		default:
			a.Lost = append(a.Lost, job.Outcome{RunID: id, Fence: fence, Attempt: l.Attempt, Worker: l.Worker,
				Kind: job.AttemptLost, Reason: job.WorkerLost, StartedAt: l.StartedAt,
				Error: "the worker restarted while the run was granted to it"})
		}
	}
	sort.Slice(a.Stopping, func(i, j int) bool { return a.Stopping[i].Fence < a.Stopping[j].Fence })
	sort.Slice(a.Lost, func(i, j int) bool { return a.Lost[i].Fence < a.Lost[j].Fence })
	sort.Slice(a.NeverBegan, func(i, j int) bool { return a.NeverBegan[i].Fence < a.NeverBegan[j].Fence })
	f.signal()
	return a, nil
}

// overtaken refuses a hello that an older one of two is: each comes over the node of its stream, and on the way the later
// may overtake the earlier. What was granted since would end as if it had never begun, while it runs.
func (w *worker) overtaken(h *job.WorkerHello) error {
	switch {
	case w == nil:
	case w.hello.Boot == h.Boot && h.Number < w.hello.Number:
		return job.Errorf(job.Unavailable, "overtaken", "worker %q has said a later hello", h.Name)
	case slices.Contains(w.past, h.Boot):
		return job.Errorf(job.Conflict, "worker_name_taken",
			"a worker named %q was started later with a data directory of the same id; a copied directory needs its file id removed", h.Name)
	}
	return nil
}

// maxPast bounds how many earlier lives of a worker are remembered.
const maxPast = 8

// Detach closes a session. The worker's leases run on: only their end moves a run.
func (f *Fleet) Detach(session job.SessionID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w := f.sessions[session]; w != nil {
		delete(f.sessions, session)
		w.session, w.goneSince = "", f.elapsed()
		f.forget(w)
	}
}

// forget drops a worker that is not attached and holds nothing, so that names that never come back take no room.
func (f *Fleet) forget(w *worker) {
	if w.session == "" && len(w.fences) == 0 && w.used == 0 { // used: grants on their way
		delete(f.workers, w.hello.Name)
	}
}

// shunFor is how long a worker gets nothing after its stream took nothing: each try costs two entries in Raft.
const shunFor = time.Second

// Undeliverable notes that a session's stream took nothing.
func (f *Fleet) Undeliverable(session job.SessionID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w := f.sessions[session]; w != nil {
		w.shunned = f.elapsed() + shunFor
	}
}

// Heartbeat renews the leases that the worker says it has, and answers those it has no right to.
func (f *Fleet) Heartbeat(session job.SessionID, running []job.Fence) (unknown []job.Fence) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.sessions[session]
	if w == nil {
		return running
	}
	w.seenAt = f.now()
	until := f.elapsed() + job.LeaseTimeout
	for _, fence := range running {
		id, ok := w.fences[fence]
		if !ok {
			unknown = append(unknown, fence)
			continue
		}
		l := f.leases[id]
		l.expiresAt, l.extended = until, false
	}
	return unknown
}

// WorkerOf is the name of the worker on a session; "" if the session is gone. What a worker says counts for its own
// attempts only, whatever run and fence it names.
func (f *Fleet) WorkerOf(session job.SessionID) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w := f.sessions[session]; w != nil {
		return w.hello.Name
	}
	return ""
}

// Started notes when attempts began.
func (f *Fleet) Started(session job.SessionID, s []job.Started) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.sessions[session]
	for _, x := range s {
		if l := f.leases[x.RunID]; l != nil && l.Fence == x.Fence && w != nil && l.Worker == w.hello.Name {
			l.StartedAt = x.At
		}
	}
}

// Lease answers a run's lease.
func (f *Fleet) Lease(id job.RunID) (Lease, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l := f.leases[id]; l != nil {
		return *l, true
	}
	return Lease{}, false
}

// Leases answers all leases in the order of their fences.
func (f *Fleet) Leases() []Lease {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]Lease, 0, len(f.leases))
	for _, l := range f.leases {
		out = append(out, *l)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Fence < out[j].Fence })
	return out
}

// Release frees the slots of a lease whose result is in, before the result is recorded; its key stays held until End.
func (f *Fleet) Release(id job.RunID, fence job.Fence, worker string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l := f.leases[id]; l != nil && l.Fence == fence && l.Worker == worker && !l.released {
		l.released = true
		f.workers[l.Worker].used -= l.SlotCount()
		f.signal()
	}
}

// End closes a lease. Raft is told with the next entry (Tell).
func (f *Fleet) End(id job.RunID, fence job.Fence) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.leases[id]
	if l == nil || l.Fence != fence {
		return false
	}
	f.close(l)
	f.ended = append(f.ended, job.EndedGrant{RunID: id, Fence: fence})
	return true
}

func (f *Fleet) close(l *Lease) {
	delete(f.leases, l.RunID)
	f.touched[l.RunID] = struct{}{}
	w := f.workers[l.Worker]
	delete(w.fences, l.Fence)
	if !l.released {
		w.used -= l.SlotCount()
	}
	f.forget(w)
	f.unhold(l.Lane)
	f.signal()
}

func (f *Fleet) unhold(lane job.LaneKey) {
	if k, ok := keyOf(lane); ok {
		if f.held[k]--; f.held[k] <= 0 {
			delete(f.held, k)
		}
	}
}

// Hold counts one more holder of a lane's concurrency key, which holds it without a lease: a root run whose tasks run.
func (f *Fleet) Hold(lane job.LaneKey) {
	if k, ok := keyOf(lane); ok {
		f.mu.Lock()
		f.held[k]++
		f.mu.Unlock()
	}
}

// Unhold undoes Hold.
func (f *Fleet) Unhold(lane job.LaneKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unhold(lane)
	f.signal()
}

// Tell hands over the ended leases that Raft has not been told of, all of them and to one caller at a time: whoever has
// Raft open a lease in there can rely on it that the run's earlier one has ended, or ends before. What could not be told,
// or perhaps was not, is told again: ending twice changes nothing.
func (f *Fleet) Tell(raft func(ended []job.EndedGrant) error) error {
	f.Pace.Take(f.telling)
	defer func() { <-f.telling }()
	f.mu.Lock()
	ended := f.ended
	f.ended = nil
	f.mu.Unlock()
	err := raft(ended)
	if err != nil {
		f.mu.Lock()
		f.ended = append(ended[:len(ended):len(ended)], f.ended...)
		f.mu.Unlock()
	}
	return err
}

// Expired answers the leases that ended longer than the grace ago, are in nobody's hand, and were not reported yet. When more than a fifth of
// the leases of one node's workers lapse together, and more than a handful, they are extended once instead: a paused
// gateway is not thousands of dead workers (L4).
func (f *Fleet) Expired() (expired []Lease, extended int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	const handful = 10
	now := f.elapsed()
	total, lapsed := map[string]int{}, map[string][]*Lease{}
	for _, l := range f.leases {
		node := f.workers[l.Worker].node
		total[node]++
		if _, ok := f.moving[l.RunID]; !ok && !l.released && now >= l.expiresAt+job.LeaseKillGrace {
			lapsed[node] = append(lapsed[node], l)
		}
	}
	for node, ls := range lapsed {
		workers := map[string]bool{}
		for _, l := range ls {
			workers[l.Worker] = true
		}
		suspicious := len(workers) > handful && len(ls)*5 > total[node]
		for _, l := range ls {
			if suspicious && !l.extended {
				l.extended, l.expiresAt = true, now+job.LeaseTimeout
				extended++
				continue
			}
			expired = append(expired, *l)
		}
	}
	sort.Slice(expired, func(i, j int) bool { return expired[i].Fence < expired[j].Fence })
	return expired, extended
}

// Hand says what TakeHand found.
type Hand int

const (
	Taken    Hand = iota // the run is in the caller's hand
	Moving               // another mover has it, for a moment
	Reserved             // a grant with a higher fence is on its way
)

// TakeHand takes a run into the hand of a mover, and answers its lease if it has one. LetGo gives it back.
func (f *Fleet) TakeHand(id job.RunID) (*Lease, Hand) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, taken := f.moving[id]; taken {
		return nil, Moving
	}
	if f.reserved[id] != nil {
		return nil, Reserved
	}
	f.moving[id] = struct{}{}
	if l := f.leases[id]; l != nil {
		c := *l
		return &c, Taken
	}
	return nil, Taken
}

// LetGo ends what TakeHand began.
func (f *Fleet) LetGo(ids ...job.RunID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range ids {
		delete(f.moving, id)
		f.touched[id] = struct{}{}
	}
}

// BeginRead is called by the dispatcher before it reads rows: a run that somebody moves from now on is refused by
// Reserve, because the row may say that it is queued when it has ended meanwhile.
func (f *Fleet) BeginRead() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.touched)
}

// Stop asks for a run to be stopped. With a lease it answers the order for the worker; while a grant is on its way the
// wish is kept and comes out of Open. Otherwise none of both is true and the caller may move the run.
func (f *Fleet) Stop(id job.RunID, why job.Reason) (order *job.StopOrder, pending bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.reserved[id]; r != nil {
		r.stop = why
		return nil, true
	}
	l := f.leases[id]
	if l == nil {
		return nil, false
	}
	l.Stopping = why
	return &job.StopOrder{Session: l.Session, RunID: id, Fence: l.Fence, Reason: why}, false
}

// Stopping answers the stops that attached workers have not answered yet, to be said again.
func (f *Fleet) Stopping() []job.StopOrder {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []job.StopOrder
	for _, l := range f.leases {
		if l.Stopping != 0 && !l.released && f.sessions[l.Session] != nil {
			out = append(out, job.StopOrder{Session: l.Session, RunID: l.RunID, Fence: l.Fence, Reason: l.Stopping})
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Fence < out[j].Fence })
	return out
}

// InHand tells whether a run is reserved, leased or moving: then the queue need not know it.
func (f *Fleet) InHand(id job.RunID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, moving := f.moving[id]
	return moving || f.reserved[id] != nil || f.leases[id] != nil
}

// Held is how many leases and open roots hold a concurrency key.
func (f *Fleet) Held(lane job.LaneKey) int {
	k, ok := keyOf(lane)
	if !ok {
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held[k]
}

// Workers answers all workers by name.
func (f *Fleet) Workers() []job.Worker {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]job.Worker, 0, len(f.workers))
	for _, w := range f.workers {
		state := f.flag(w.hello.Name)
		if w.session == "" {
			state = job.WorkerGone
		}
		out = append(out, job.Worker{
			Name: w.hello.Name, State: state, Node: w.node, Version: w.hello.Version, Labels: w.hello.Labels,
			Slots: w.hello.Slots, SlotsUsed: w.used, Executors: w.hello.Executors, Handlers: w.hello.Handlers,
			ConnectedAt: w.connectedAt, LastSeenAt: w.seenAt,
		})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// FlagChanged is called when an operator cordons, drains or uncordons a worker.
func (f *Fleet) FlagChanged() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.signal()
}
