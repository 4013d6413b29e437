package sim

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

// The times of the modelled log.
const (
	raftHeartbeat = 300 * time.Millisecond
	raftElection  = 1000 * time.Millisecond // and up to as much again
	raftLease     = 1000 * time.Millisecond // a leader without a majority for so long steps down
)

type role uint8

const (
	follower role = iota
	candidate
	leader
)

// entry is one place in the log. Its bytes are shared by all replicas; the rest is for the trace.
type entry struct {
	term     uint64
	data     []byte // nil: the first of a term
	commands []fsm.Command
	by       *node
}

type snapshot struct {
	index, term uint64
	data        []byte
}

// raftLog is one node's part of Raft. What is on disk survives a crash: term, vote, the log up to synced, the snapshot.
type raftLog struct {
	term     uint64
	vote     int // in that term; -1 nobody
	snap     snapshot
	log      []entry // those after snap.index, or from base on
	base     uint64  // index before the first of log
	baseTerm uint64
	synced   uint64

	role       role
	leader     int // -1: not known
	commit     uint64
	applied    uint64
	heard      time.Duration // of a leader, or when it last voted
	patience   time.Duration
	votes      []bool
	next       []uint64
	match      []uint64
	answered   []time.Duration // when each follower last answered
	syncing    bool
	applying   bool
	generation uint64 // counts wins and losses of leadership
	first      uint64 // index of the first entry of its own term
	transfer   bool
}

func (r *raftLog) last() uint64 { return r.base + uint64(len(r.log)) }

func (r *raftLog) at(index uint64) *entry { return &r.log[index-r.base-1] }

func (r *raftLog) termAt(index uint64) (uint64, bool) {
	switch {
	case index == r.base:
		return r.baseTerm, true
	case index < r.base || index > r.last():
		return 0, false
	}
	return r.at(index).term, true
}

// bootRaft starts from what is on disk.
func (n *node) bootRaft() {
	r := &n.raft
	if r.synced < r.base {
		r.synced = r.base
	}
	lost := r.last() - r.synced
	n.sim.counts["entries lost in a crash"] += int(lost)
	r.log = r.log[:r.synced-r.base]
	r.role, r.leader = follower, -1
	r.commit, r.applied = r.snap.index, r.snap.index
	r.syncing, r.applying, r.transfer = false, false, false
	r.generation++
	n.state = fsm.New()
	if r.snap.index > 0 {
		if err := n.state.Restore(io.NopCloser(bytes.NewReader(r.snap.data))); err != nil {
			panic(err)
		}
	}
	n.restIn()
	n.raftTick()
}

func (n *node) restIn() {
	n.raft.heard = n.sim.now
	n.raft.patience = raftElection + n.sim.upTo(raftElection)
}

// raftTick is the node's timer.
func (n *node) raftTick() {
	s, r := n.sim, &n.raft
	s.at(&n.host, 100*time.Millisecond+s.upTo(20*time.Millisecond), func() {
		switch {
		case r.role == leader:
			n.checkLease()
			if r.role == leader && s.now-n.beatAt >= raftHeartbeat {
				n.beatAt = s.now
				n.replicateAll()
			}
		case s.now-r.heard >= r.patience:
			n.campaign()
		}
		n.raftTick()
	})
}

// checkLease has a leader that hears of no majority step down.
func (n *node) checkLease() {
	near := 0
	for i := range n.sim.nodes {
		if i == n.index || n.sim.now-n.raft.answered[i] < raftLease {
			near++
		}
	}
	if near*2 <= len(n.sim.nodes) {
		n.sim.counts["leases of leaders lost"]++
		n.stepDown(n.raft.term)
	}
}

// newTerm notes a term and the vote in it, which are on disk before anybody hears of them.
func (n *node) newTerm(term uint64) {
	r := &n.raft
	if term > r.term {
		r.term, r.vote = term, -1
	}
}

func (n *node) stepDown(term uint64) {
	r := &n.raft
	n.newTerm(term)
	if r.role == leader {
		r.generation++
		n.sim.note("deposed", n.name, term)
		r.leader = -1
		n.abandon(mayHappen())
		n.leadershipChanged()
	}
	r.role = follower
}

func (n *node) campaign() {
	s, r := n.sim, &n.raft
	n.newTerm(r.term + 1)
	r.role, r.leader, r.vote = candidate, -1, n.index
	r.votes = make([]bool, len(s.nodes))
	r.votes[n.index] = true
	n.restIn()
	term, last := r.term, r.last()
	lastTerm, _ := r.termAt(last)
	if n.tally() {
		return
	}
	for _, o := range s.nodes {
		if o == n {
			continue
		}
		s.datagram(&n.host, &o.host, func() {
			granted := o.ballot(n.index, term, last, lastTerm)
			answer := o.raft.term
			s.datagram(&o.host, &n.host, func() {
				switch {
				case answer > r.term:
					n.stepDown(answer)
				case granted && r.role == candidate && r.term == term:
					r.votes[o.index] = true
					n.tally()
				}
			})
		})
	}
}

func (n *node) ballot(from int, term, last, lastTerm uint64) bool {
	r := &n.raft
	if term < r.term {
		return false
	}
	if term > r.term {
		n.stepDown(term)
	}
	own, _ := r.termAt(r.last())
	// What is in memory only may not count: but a vote is for logs at least as long as this one, so more is safe.
	if r.vote >= 0 && r.vote != from || lastTerm < own || lastTerm == own && last < r.last() {
		return false
	}
	r.vote = from
	n.restIn()
	return true
}

func (n *node) tally() bool {
	s, r := n.sim, &n.raft
	if r.role != candidate || 2*count(r.votes) <= len(s.nodes) {
		return false
	}
	if by, twice := s.leaders[r.term]; twice {
		s.broken("the model of the log: two leaders in term %d: %d and %d", r.term, by, n.index)
	}
	s.leaders[r.term] = n.index
	s.counts["elections"]++
	s.note("elected", n.name, r.term)
	r.role, r.leader, r.transfer = leader, n.index, false
	r.generation++
	r.next, r.match = make([]uint64, len(s.nodes)), make([]uint64, len(s.nodes))
	r.answered = make([]time.Duration, len(s.nodes))
	for i := range s.nodes {
		r.next[i], r.answered[i] = r.last()+1, s.now
	}
	r.log = append(r.log, entry{term: r.term, by: n})
	r.first = r.last()
	n.beatAt = s.now
	n.sync()
	n.replicateAll()
	n.leadershipChanged()
	return true
}

func count(bs []bool) (n int) {
	for _, b := range bs {
		if b {
			n++
		}
	}
	return n
}

// sync brings what is in memory to disk. Only one write is under way at a time.
func (n *node) sync() {
	s, r := n.sim, &n.raft
	if r.syncing {
		return
	}
	r.syncing = true
	d := n.disk + s.upTo(2*time.Millisecond)
	if s.options.plant.AckBeforeSync && r.role != leader {
		d += 3 * time.Second
	}
	s.at(&n.host, d, func() {
		r.syncing = false
		through, term := r.last(), r.term
		// What came while the disk was busy waits for the next write; here it is taken along, as a group.
		r.synced = max(r.synced, through)
		if r.role == leader && r.term == term {
			r.match[n.index] = r.synced
			n.replicateAll()
			n.advance()
			n.flush()
		}
		n.answerAppends()
		if r.synced < r.last() {
			n.sync()
		}
	})
}

func (n *node) replicateAll() {
	for i := range n.sim.nodes {
		if i != n.index {
			n.replicate(i)
		}
	}
}

// replicate sends a follower what it lacks, as far as is on disk here.
func (n *node) replicate(to int) {
	const most = 64
	s, r, o := n.sim, &n.raft, n.sim.nodes[to]
	if r.next[to] <= r.base {
		n.sendSnapshot(o)
		return
	}
	prev := r.next[to] - 1
	prevTerm, _ := r.termAt(prev)
	end := min(max(r.synced, prev), prev+most)
	entries := slices.Clone(r.log[prev-r.base : end-r.base])
	term, commit := r.term, r.commit
	if len(entries) > 0 {
		r.next[to] = end + 1 // optimistic; a refusal puts it back
	}
	s.datagram(&n.host, &o.host, func() { o.takeEntries(n, term, prev, prevTerm, entries, commit) })
}

func (n *node) sendSnapshot(o *node) {
	s, r := n.sim, &n.raft
	snap, term := r.snap, r.term
	s.datagram(&n.host, &o.host, func() {
		if term < o.raft.term {
			return
		}
		o.hear(n.index, term)
		or := &o.raft
		if snap.index > or.applied {
			s.counts["snapshots installed"]++
			s.note("snapshot", o.name, snap.index)
			if err := o.state.Restore(io.NopCloser(bytes.NewReader(snap.data))); err != nil {
				s.broken("%s cannot restore the snapshot at %d: %v", o.name, snap.index, err)
				return
			}
			or.snap, or.log, or.base, or.baseTerm = snap, nil, snap.index, snap.term
			or.synced, or.applied, or.commit = snap.index, snap.index, max(or.commit, snap.index)
			o.kick()
		}
		index := max(snap.index, or.base)
		s.datagram(&o.host, &n.host, func() { n.acknowledged(o.index, term, index) })
	})
}

// hear is of a leader of this term.
func (n *node) hear(from int, term uint64) {
	r := &n.raft
	if term > r.term || r.role != follower {
		n.stepDown(term)
	}
	r.leader, r.heard = from, n.sim.now
}

func (n *node) takeEntries(from *node, term, prev, prevTerm uint64, entries []entry, commit uint64) {
	s, r := n.sim, &n.raft
	if term < r.term {
		now := r.term
		s.datagram(&n.host, &from.host, func() {
			if now > from.raft.term {
				from.stepDown(now)
			}
		})
		return
	}
	n.hear(from.index, term)
	if own, ok := r.termAt(prev); prev > r.base && (!ok || own != prevTerm) {
		hint := min(prev-1, r.last())
		s.datagram(&n.host, &from.host, func() { from.refusedAppend(n.index, term, hint) })
		return
	}
	for i, e := range entries {
		index := prev + uint64(i) + 1
		if index <= r.base {
			continue
		}
		if own, ok := r.termAt(index); ok && own == e.term {
			continue
		} else if ok {
			if index <= r.commit {
				s.broken("the model of the log: %s drops the committed entry %d", n.name, index)
			}
			s.counts["entries overwritten"] += int(r.last() - index + 1)
			r.log = r.log[:index-r.base-1]
			r.synced = min(r.synced, index-1)
		}
		r.log = append(r.log, e)
	}
	through := prev + uint64(len(entries))
	// Nothing beyond what was compared may count as committed.
	if c := min(commit, through); c > r.commit {
		r.commit = c
		n.applySoon()
	}
	if r.synced >= through || s.options.plant.AckBeforeSync {
		s.datagram(&n.host, &from.host, func() { from.acknowledged(n.index, term, through) })
		return
	}
	n.owed = append(n.owed, owedAnswer{from, term, through})
	n.sync()
}

// owedAnswer waits for the disk.
type owedAnswer struct {
	to            *node
	term, through uint64
}

func (n *node) answerAppends() {
	for _, a := range n.owed {
		if a.term == n.raft.term && n.raft.synced >= a.through {
			n.sim.datagram(&n.host, &a.to.host, func() { a.to.acknowledged(n.index, a.term, a.through) })
		}
	}
	n.owed = n.owed[:0]
}

func (n *node) refusedAppend(from int, term, hint uint64) {
	r := &n.raft
	if r.role != leader || r.term != term {
		return
	}
	r.answered[from] = n.sim.now
	if hint < r.match[from] {
		return // overtaken by a later answer
	}
	r.next[from] = max(r.match[from]+1, min(r.next[from], hint+1))
	n.replicate(from)
}

func (n *node) acknowledged(from int, term, through uint64) {
	r := &n.raft
	if r.role != leader || r.term != term {
		return
	}
	r.answered[from] = n.sim.now
	if through > r.match[from] {
		r.match[from] = through
		r.next[from] = max(r.next[from], through+1)
		n.advance()
	}
	if r.next[from] <= r.synced {
		n.replicate(from)
	}
}

// advance commits what a majority has on disk, if it is of this term.
func (n *node) advance() {
	r := &n.raft
	ms := slices.Clone(r.match)
	slices.Sort(ms)
	index := ms[(len(ms)-1)/2]
	if t, ok := r.termAt(index); !ok || t != r.term || index <= r.commit {
		return
	}
	r.commit = index
	n.applySoon()
	for i := range n.sim.nodes { // the commit notice: followers that wait for their own commands
		if i != n.index && n.sim.nodes[i].expecting > 0 {
			n.replicate(i)
		}
	}
}

// applySoon applies what is committed, after the lag of this node.
func (n *node) applySoon() {
	s, r := n.sim, &n.raft
	if r.applying || r.applied >= r.commit {
		return
	}
	r.applying = true
	s.at(&n.host, s.upTo(200*time.Microsecond)+s.upTo(n.lag), func() {
		r.applying = false
		for r.applied < r.commit && r.applied < r.last() {
			n.apply(r.applied + 1)
		}
		n.compact()
	})
}

func (n *node) apply(index uint64) {
	s, r := n.sim, &n.raft
	e := r.at(index)
	if known := s.committed[index]; known == nil {
		s.committed[index] = &committed{term: e.term, data: e.data}
		s.note("commit", index, e.term, e.data)
	} else if known.term != e.term || !bytes.Equal(known.data, e.data) {
		s.broken("at %d %s has another entry than was applied before", index, n.name)
	}
	r.applied = index
	if e.data == nil {
		n.kick()
		return
	}
	results := n.state.Apply(&raft.Log{Index: index, Term: e.term, Type: raft.LogCommand, Data: e.data}).([]fsm.Result)
	s.applied(n, index, e, results)
	n.deliver(index, e.term, results)
}

// compact takes a snapshot now and then, and keeps a short tail of the log.
func (n *node) compact() {
	const tail = 20
	r := &n.raft
	if r.applied < r.snap.index+n.sim.snapshotEvery {
		return
	}
	term, _ := r.termAt(r.applied)
	f, err := n.state.Snapshot()
	if err != nil {
		panic(err)
	}
	sink := &sink{}
	if err := f.Persist(sink); err != nil {
		panic(err)
	}
	f.Release()
	r.snap = snapshot{r.applied, term, sink.Bytes()}
	n.sim.counts["snapshots taken"]++
	if keep := r.applied - tail; keep > r.base && keep <= r.synced {
		t, _ := r.termAt(keep)
		r.log = slices.Clone(r.log[keep-r.base:])
		r.base, r.baseTerm = keep, t
	}
}

type sink struct{ bytes.Buffer }

func (*sink) ID() string    { return "sim" }
func (*sink) Cancel() error { return nil }
func (*sink) Close() error  { return nil }

// transferTo has another node campaign at once.
func (n *node) transferLeadership() bool {
	s, r := n.sim, &n.raft
	best := -1
	for i := range s.nodes {
		if i != n.index && s.now-r.answered[i] < raftLease && r.match[i] == r.last() && (best < 0 || s.rand.IntN(2) == 0) {
			best = i
		}
	}
	if r.role != leader || best < 0 {
		return false
	}
	s.counts["transfers"]++
	o, term := s.nodes[best], r.term
	s.datagram(&n.host, &o.host, func() {
		if o.raft.term == term && o.raft.role == follower {
			o.campaign()
		}
	})
	return true
}

func mayHappen() error {
	return &job.Error{Code: job.Unknown, Reason: "commit_unknown", Message: "the change may have been made or may be made later"}
}

func notLeader() error {
	return &job.Error{Code: job.Unavailable, Reason: "not_leader", Message: "this node does not lead the cluster"}
}

func timedOut(why string) error {
	return &job.Error{Code: job.Unavailable, Reason: "timeout", Message: fmt.Sprintf("nothing was put into the log: %s", why)}
}
