package fleet

import (
	"container/heap"
	"sort"

	"github.com/musterhq/muster/job"
)

// Candidate is a run that was popped and read, and could start now.
type Candidate struct {
	Run   *job.Run
	Spec  *job.Document
	Lane  job.LaneKey
	Limit int // of its concurrency key; 0: no key
	Slots int
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
	rows := map[job.LaneKey]*row{} // the seats that meet a lane's needs
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
		row := rows[c.Lane]
		if row == nil {
			row = newRow(seats, free, c.Lane)
			rows[c.Lane] = row
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

// row is a heap of the seats that meet one lane's needs, most free first. Other rows take from the same seats, so an
// entry may be stale, but only upwards: best repairs the top before it answers.
type row struct {
	seats []int // indices
	free  []int // by index, the truth, shared by all rows
	seen  []int // by index, free as this heap is ordered by
}

func newRow(seats []Seat, free []int, lane job.LaneKey) *row {
	r := &row{free: free, seen: append([]int(nil), free...)}
	needs, _ := lane.Needs()
	for s := range seats {
		if offers(seats[s].Offers, needs) {
			r.seats = append(r.seats, s)
		}
	}
	heap.Init(r)
	return r
}

func (r *row) best(slots int) (int, bool) {
	for len(r.seats) > 0 {
		s := r.seats[0]
		if r.seen[s] == r.free[s] {
			return s, r.free[s] >= slots
		}
		r.seen[s] = r.free[s]
		heap.Fix(r, 0)
	}
	return 0, false
}

func (r *row) Len() int { return len(r.seats) }
func (r *row) Less(i, j int) bool {
	if a, b := r.seen[r.seats[i]], r.seen[r.seats[j]]; a != b {
		return a > b
	}
	return r.seats[i] < r.seats[j]
}
func (r *row) Swap(i, j int) { r.seats[i], r.seats[j] = r.seats[j], r.seats[i] }
func (r *row) Push(any)      {} // rows only shrink in value, never in length
func (r *row) Pop() any      { return nil }

// seats answers what every worker that takes new work can still take, in the order of names.
func (f *Fleet) seats() []Seat {
	out := make([]Seat, 0, len(f.sessions))
	for name, w := range f.workers {
		if w.session == "" || f.flag(name) != job.WorkerReady {
			continue
		}
		if n := w.hello.Slots - w.used; n > 0 {
			out = append(out, Seat{Worker: name, Boot: w.hello.Boot, Session: w.session, Offers: w.offers, Free: n})
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
	for i, l := range lanes {
		needs, slots := l.Needs()
		for s := range seats {
			if offers(seats[s].Offers, needs) {
				perLane[i] += seats[s].Free / slots
			}
		}
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

// Open turns reservations into leases once Raft has the grants. It answers the stops that were asked for meanwhile.
func (f *Fleet) Open(leases []Lease) (stops []job.StopOrder) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range leases {
		l := leases[i]
		r := f.unreserve(&l.Grant)
		f.open(&l)
		if r != nil && r.cancel {
			f.leases[l.RunID].Stopping = job.CancelRequested
			stops = append(stops, job.StopOrder{Session: l.Session, RunID: l.RunID, Fence: l.Fence, Reason: job.CancelRequested})
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
