package fsm

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/musterhq/muster/job"
)

// ErrSkipped answers expected commands that this node did not apply itself: it was so far behind that it got their entry
// as part of a snapshot. They are applied; what they answered is not known here.
var ErrSkipped = &job.Error{Code: job.Unknown, Reason: "skipped", Message: "this was applied, but its outcome did not reach this node; repeat the request with the same id to see it"}

// Expectation waits for this node to apply commands that it proposed through another. Whoever makes one cancels it when
// its answers are no longer wanted, or it stays for ever.
type Expectation struct {
	state *State
	tags  []Tag
	done  chan struct{}
	// The rest is under expected.mu until done is closed, and constant from then on.
	results   []Result
	missing   int
	index     uint64
	committed uint64
	cancelled bool
}

// expected is who waits for which tag. Nothing of it is replicated.
type expected struct {
	count atomic.Int64 // of tags: while nobody waits, an entry costs one look at it
	mu    sync.Mutex   // taken after State.mu, never before
	byTag map[Tag]*waiter
	// committed are the expectations whose commands are known to be in the log: once the state is past them, no answer will
	// come. Those that are done are taken out at the next entry.
	committed []*Expectation
}

// waiter is one place in the results of an expectation.
type waiter struct {
	of    *Expectation
	place int
	next  *waiter // of the same tag
}

// Expect is called before commands with these tags are sent to the leader, and delivers what this node's own state
// answers to them when it applies them: the results that every replica has, ErrReplayed and refusals included. The zero
// tag never comes.
func (s *State) Expect(tags ...Tag) *Expectation {
	e := &Expectation{state: s, tags: tags, done: make(chan struct{}), results: make([]Result, len(tags)), missing: len(tags)}
	if len(tags) == 0 {
		close(e.done)
		return e
	}
	x := &s.expected
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.byTag == nil {
		x.byTag = map[Tag]*waiter{}
	}
	for i, t := range tags {
		x.byTag[t] = &waiter{of: e, place: i, next: x.byTag[t]}
	}
	x.count.Store(int64(len(x.byTag)))
	return e
}

// Done is closed when all commands are answered, and at Cancel. From then on every read of the state sees what they wrote.
func (e *Expectation) Done() <-chan struct{} { return e.done }

// Results answers one result for each tag, in order, once Done is closed; nil before that, and after Cancel.
func (e *Expectation) Results() []Result {
	select {
	case <-e.done:
	default:
		return nil
	}
	if e.cancelled {
		return nil
	}
	return e.results
}

// Index is the place in the log of the last of the commands, once Done is closed; 0 if none of them was applied here.
func (e *Expectation) Index() uint64 {
	select {
	case <-e.done:
		return e.index
	default:
		return 0
	}
}

// Committed says that all the commands are in the log up to index, as the leader answered. Without it, a state that was
// restored from a snapshot that holds them leaves the expectation waiting; with it, what did not come is ErrSkipped as
// soon as the state is at index or beyond.
func (e *Expectation) Committed(index uint64) {
	s, x := e.state, &e.state.expected
	s.mu.Lock() // so that no entry is between changing the state and being delivered
	defer s.mu.Unlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	if e.missing == 0 {
		return
	}
	if e.committed == 0 {
		x.committed = append(x.committed, e)
	}
	e.committed = index
	x.passed(s.tables.g.Index)
}

// Cancel ends the expectation. It may be called at any time, and again.
func (e *Expectation) Cancel() {
	x := &e.state.expected
	x.mu.Lock()
	defer x.mu.Unlock()
	if e.missing > 0 {
		x.forget(e, func(int) {})
		x.committed = slices.DeleteFunc(x.committed, func(o *Expectation) bool { return o == e })
		e.cancelled = true
		close(e.done)
	}
}

// deliver answers whoever waits for commands of an entry. The caller holds State.mu and has dropped the readers' view: so
// who is woken sees the entry in every read, and who sees the entry's index finds its expectations answered.
func (x *expected) deliver(index uint64, commands []Command, results []Result) {
	if x.count.Load() == 0 {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for i, c := range commands {
		tag, _ := untagged(c)
		if tag.IsZero() {
			continue
		}
		for w := x.byTag[tag]; w != nil; w = w.next {
			e := w.of
			e.results[w.place], e.index = results[i], index
			if e.missing--; e.missing == 0 {
				close(e.done)
			}
		}
		delete(x.byTag, tag)
	}
	x.count.Store(int64(len(x.byTag)))
	x.passed(index)
}

// restored is for a state that jumped to index.
func (x *expected) restored(index uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.passed(index)
}

// passed skips what is known to be in the log up to index, where the state is, and was not delivered.
func (x *expected) passed(index uint64) {
	x.committed = slices.DeleteFunc(x.committed, func(e *Expectation) bool {
		if e.missing > 0 && e.committed <= index {
			x.skip(e)
		}
		return e.missing == 0
	})
}

// skip answers what is missing with ErrSkipped.
func (x *expected) skip(e *Expectation) {
	x.forget(e, func(place int) { e.results[place].Err = ErrSkipped })
	close(e.done)
}

// forget takes what an expectation still waits for out of the tags, and leaves nothing missing.
func (x *expected) forget(e *Expectation, each func(place int)) {
	for _, t := range e.tags {
		var rest *waiter
		for w := x.byTag[t]; w != nil; w = w.next {
			if w.of == e {
				each(w.place)
			} else {
				rest = &waiter{w.of, w.place, rest}
			}
		}
		if rest == nil {
			delete(x.byTag, t)
		} else {
			x.byTag[t] = rest
		}
	}
	e.missing = 0
	x.count.Store(int64(len(x.byTag)))
}
