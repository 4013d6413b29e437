package fleet

import (
	"container/heap"
	"encoding/json"
	"sort"

	"github.com/musterhq/muster/job"
)

// Candidate is a run that was popped and read, and could start now.
type Candidate struct {
	Run     *job.Run
	Spec    *job.Document
	Payload json.RawMessage // of the work, templates filled in
	Lane    job.LaneKey
	Limit   int // of its concurrency key; 0: no key
	Slots   int
}

// Seat is what one worker can still take.
type Seat struct {
	Worker  string
	Boot    string
	Session job.SessionID
	Offers  map[string]string
	Free    int
}

// Place says which seat each candidate takes, -1 where none does. It is a pure function of its arguments: candidates are
// served in their order, each by the matching seat with the most free slots, the first of equals; held is how many leases
// hold each concurrency key, by lane.
func Place(seats []Seat, candidates []Candidate, held func(job.LaneKey) int) []int {
	out := make([]int, len(candidates))
	match := matcher{seats: seats}
	rows := map[*matching]*row{}
	taken := map[holdKey]int{}
	free := make([]int, len(seats))
	for i := range seats {
		free[i] = seats[i].Free
	}
	for i := range candidates {
		c := &candidates[i]
		out[i] = -1
		k, keyed := keyOf(c.Lane)
		if keyed && held(c.Lane)+taken[k] >= c.Limit {
			continue
		}
		m := match.lane(c.Lane)
		row := rows[m]
		if row == nil {
			row = newRow(m.seats, free)
			rows[m] = row
		}
		s, ok := row.best(c.Slots)
		if !ok {
			continue
		}
		out[i] = s
		free[s] -= c.Slots
		if keyed {
			taken[k]++
		}
	}
	return out
}

func offers(have, needs map[string]string) bool {
	for k, v := range needs {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// matcher finds the seats that offer what lanes need. It looks at those alone that offer the rarest of the needs, and
// once for all lanes that need the same: thousands of either must not be compared one by one.
type matcher struct {
	seats  []Seat
	all    []int
	offers map[offer][]int      // indices of seats; nil: not made yet
	known  map[string]*matching // by the text of the needs
}

type offer struct{ key, value string }

type matching struct {
	seats    []int // indices, in order
	capacity int   // how many runs these take together
}

func (x *matcher) lane(l job.LaneKey) *matching {
	text := l.NeedsText()
	m := x.known[text]
	if m != nil {
		return m
	}
	needs, slots := l.Needs()
	m = &matching{}
	for _, s := range x.few(needs) {
		if offers(x.seats[s].Offers, needs) {
			m.seats = append(m.seats, s)
			m.capacity += x.seats[s].Free / slots
		}
	}
	if x.known == nil {
		x.known = map[string]*matching{}
	}
	x.known[text] = m
	return m
}

// few answers seats of which all that meet the needs are.
func (x *matcher) few(needs map[string]string) []int {
	if x.offers == nil {
		x.offers = map[offer][]int{}
		for s := range x.seats {
			x.all = append(x.all, s)
			for k, v := range x.seats[s].Offers {
				x.offers[offer{k, v}] = append(x.offers[offer{k, v}], s)
			}
		}
	}
	few := x.all
	for k, v := range needs {
		if o := x.offers[offer{k, v}]; len(o) < len(few) {
			few = o
		}
	}
	return few
}

// row is a heap of the seats that meet some needs, most free first. Other rows take from the same seats, so an entry may
// be stale, but only upwards: best repairs the top before it answers.
type row struct {
	seats []seen
	free  []int // by index, the truth, shared by all rows
}

// seen is a seat as the heap is ordered by.
type seen struct{ seat, free int }

func newRow(seats, free []int) *row {
	r := &row{free: free, seats: make([]seen, len(seats))}
	for i, s := range seats {
		r.seats[i] = seen{s, free[s]}
	}
	heap.Init(r)
	return r
}

func (r *row) best(slots int) (int, bool) {
	for len(r.seats) > 0 {
		top := &r.seats[0]
		now := r.free[top.seat]
		if top.free == now {
			return top.seat, now >= slots
		}
		top.free = now
		heap.Fix(r, 0)
	}
	return 0, false
}

func (r *row) Len() int { return len(r.seats) }
func (r *row) Less(i, j int) bool {
	if a, b := r.seats[i].free, r.seats[j].free; a != b {
		return a > b
	}
	return r.seats[i].seat < r.seats[j].seat
}
func (r *row) Swap(i, j int) { r.seats[i], r.seats[j] = r.seats[j], r.seats[i] }
func (r *row) Push(any)      {} // rows only shrink in value, never in length
func (r *row) Pop() any      { return nil }

// seats answers what every worker that takes new work can still take, in the order of names.
func (f *Fleet) seats() []Seat {
	out := make([]Seat, 0, len(f.sessions))
	for name, w := range f.workers {
		if w.session == "" || f.flag(name) != job.WorkerReady || f.elapsed() < w.shunned {
			continue
		}
		if n := w.hello.Slots - w.used; n > 0 {
			out = append(out, Seat{Worker: name, Boot: lifeOf(&w.hello).String(), Session: w.session, Offers: w.offers, Free: n})
		}
	}
	sortSeats(out)
	return out
}

// Capacity answers how many runs of each lane could be placed now, were it alone, and how many slots are free in all.
func (f *Fleet) Capacity(lanes []job.LaneKey) (perLane []int, total int) {
	f.mu.Lock()
	seats := f.seats()
	f.mu.Unlock()
	perLane = make([]int, len(lanes))
	for i := range seats {
		total += seats[i].Free
	}
	match := matcher{seats: seats}
	for i, l := range lanes {
		perLane[i] = match.lane(l).capacity
	}
	return perLane, total
}

// Reserve places candidates and reserves what they take: seat is the index of each candidate's seat in seats, or -1. A
// candidate that is in somebody's hand, or was since BeginRead, gets -2: its entry is stale or doubled (Q3) and is dropped;
// whoever had it queues it again if it goes on. The fences
// are given by next, in order.
func (f *Fleet) Reserve(candidates []Candidate, now job.Instant, next func() job.Fence) (grants []job.Grant, sessions []job.SessionID, seat []int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	free := make([]Candidate, 0, len(candidates))
	index := make([]int, 0, len(candidates))
	seat = make([]int, len(candidates))
	for i, c := range candidates {
		_, moving := f.moving[c.Run.ID]
		_, touched := f.touched[c.Run.ID]
		if moving || touched || f.leases[c.Run.ID] != nil || f.reserved[c.Run.ID] != nil {
			seat[i] = -2
			continue
		}
		free, index = append(free, c), append(index, i)
	}
	seats := f.seats()
	picks := Place(seats, free, func(l job.LaneKey) int { k, _ := keyOf(l); return f.held[k] })
	for n, s := range picks {
		i := index[n]
		if seat[i] = s; s < 0 {
			continue
		}
		c := free[n]
		if f.reserved[c.Run.ID] != nil { // the same run twice in one batch
			seat[i] = -2
			continue
		}
		g := job.Grant{
			RunID: c.Run.ID, Fence: next(), Attempt: c.Run.Attempt + 1, Worker: seats[s].Worker, Boot: seats[s].Boot,
			GrantedAt: now, Lane: c.Lane, JobID: c.Run.JobID,
		}
		if c.Slots > 1 {
			g.Slots = int32(c.Slots)
		}
		f.reserved[g.RunID] = &reservation{grant: g}
		f.workers[g.Worker].used += g.SlotCount()
		if k, ok := keyOf(g.Lane); ok {
			f.held[k]++
		}
		grants, sessions = append(grants, g), append(sessions, seats[s].Session)
	}
	return grants, sessions, seat
}

// Open turns reservations into leases once Raft has the grants. It answers the stops that were asked for meanwhile. A lease
// whose worker has said Hello since its seat was chosen loses its session: the worker takes nothing of an earlier one, and
// no Hello would ever tell.
func (f *Fleet) Open(leases []Lease) (stops []job.StopOrder) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range leases {
		l := leases[i]
		r := f.unreserve(&l.Grant)
		if w := f.workers[l.Worker]; w != nil && w.session != l.Session {
			l.Session, leases[i].Session = "", ""
		}
		f.open(&l)
		if r != nil && r.stop != job.NoReason {
			f.leases[l.RunID].Stopping = r.stop
			stops = append(stops, job.StopOrder{Session: l.Session, RunID: l.RunID, Fence: l.Fence, Reason: r.stop})
		}
	}
	return stops
}

// Unreserve gives back reservations whose grants did not come about.
func (f *Fleet) Unreserve(grants []job.Grant) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range grants {
		f.unreserve(&grants[i])
	}
	f.signal()
}

func (f *Fleet) unreserve(g *job.Grant) *reservation {
	r := f.reserved[g.RunID]
	if r == nil || r.grant.Fence != g.Fence {
		return nil
	}
	delete(f.reserved, g.RunID)
	if w := f.workers[g.Worker]; w != nil {
		w.used -= g.SlotCount()
	}
	f.unhold(g.Lane)
	return r
}

func sortSeats(s []Seat) {
	sort.Slice(s, func(i, j int) bool { return s[i].Worker < s[j].Worker })
}
