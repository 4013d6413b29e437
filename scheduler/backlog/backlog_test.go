package backlog_test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler/backlog"
	"github.com/musterhq/muster/scheduler/pace"
	"github.com/musterhq/muster/storage/memory"
)

const (
	ahead  = 5 * time.Minute
	second = job.Instant(time.Second / time.Microsecond)
)

var (
	ctx   = context.Background()
	lanes = []job.LaneKey{"a", "b", "c"}
)

type state int

const (
	stored state = iota // startable, once its time has come
	inHand
	gone
)

// run is a row of the store, and what the leader was told of it.
type run struct {
	job.QueueEntry
	state     state
	announced bool // its hint came, or somebody found it, while it was due within ahead
}

// world is a store, a queue with little room, a loader between them, and a leader.
type world struct {
	t      *rapid.T
	now    job.Instant
	runs   []*run
	byID   map[job.RunID]*run
	queue  *memory.Queue
	loader *backlog.Loader
	small  bool // its reads
	epoch  job.Epoch

	touched map[job.LaneKey]bool // something was pushed to the lane in this term
	swept   bool
	at      int    // where the sweep through all runs stands
	during  func() // happens while the backlog is read
	reads   int
}

func newWorld(t *rapid.T) *world {
	w := &world{t: t, now: job.At(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)), byID: map[job.RunID]*run{}}
	w.small = rapid.Bool().Draw(t, "small")
	w.queue = memory.New(rapid.SampledFrom([]int{1, 3, 10, 50}).Draw(t, "cap"))
	w.begin()
	return w
}

// begin is another leader's beginning.
func (w *world) begin() {
	w.epoch++
	if _, err := w.queue.Raise(ctx, w.epoch); err != nil {
		w.t.Fatal(err)
	}
	must(w.t, w.queue.Reset(ctx, w.epoch))
	w.touched, w.swept, w.at = map[job.LaneKey]bool{}, false, 0
	for _, r := range w.runs {
		if r.state == inHand { // a lease that the next leader finds ended
			r.state = stored
		}
		r.announced = r.ReadyAt <= w.now.Add(ahead)
	}
	w.loader = backlog.New(backlog.Config{Queue: w.queue, Epoch: w.epoch, Store: w, Now: func() job.Instant { return w.now }, Ahead: ahead,
		InHand: func(id job.RunID) bool { return w.byID[id].state == inHand }, Wake: func() {}, Pace: pace.Real{},
		Logger: slog.New(slog.DiscardHandler), Ordered: true})
	if w.small {
		w.loader.Sizes(6, 2, 1)
	}
}

func must(t *rapid.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Backlog is the store's: of each lane those after a place, in order.
func (w *world) Backlog(_ context.Context, wants []job.LaneAfter, until job.Instant) (out []job.QueueEntry, _ error) {
	w.reads++
	for _, want := range wants {
		var lane []job.QueueEntry
		for _, r := range w.runs {
			if r.state != gone && r.Lane == want.Lane && r.ReadyAt <= until &&
				cmp.Or(cmp.Compare(r.Order(), want.Order), bytes.Compare(r.RunID[:], want.After[:])) > 0 {
				lane = append(lane, r.QueueEntry)
			}
		}
		slices.SortFunc(lane, job.QueueEntry.Compare)
		out = append(out, lane[:min(len(lane), want.Max)]...)
	}
	if f := w.during; f != nil {
		w.during = nil
		f()
	}
	return out, nil
}

func (w *world) push(entries ...job.QueueEntry) {
	if len(entries) == 0 {
		return
	}
	for _, e := range entries {
		w.touched[e.Lane] = w.touched[e.Lane] || e.ReadyAt <= w.now.Add(ahead)
	}
	_, err := w.loader.Push(ctx, w.epoch, w.now, entries)
	must(w.t, err)
}

// tell is the hint of a run, or of one that goes on.
func (w *world) tell(r *run) {
	if r.ReadyAt <= w.now.Add(ahead) {
		r.announced = true
	}
	w.push(r.QueueEntry)
}

func (w *world) birth() {
	t := w.t
	n := len(w.runs)
	r := &run{QueueEntry: job.QueueEntry{RunID: job.RunID{0: byte(rapid.IntRange(0, 3).Draw(t, "id")), 14: byte(n >> 8), 15: byte(n)},
		Lane: rapid.SampledFrom(lanes).Draw(t, "lane"), Priority: uint8(rapid.SampledFrom([]int{5, 5, 5, 0, 9}).Draw(t, "priority")),
		ReadyAt: w.now.Add(time.Duration(rapid.SampledFrom([]int{0, 0, 0, 0, -30, -600, 1, 20, 100, 290, 400, 700}).Draw(t, "delay")) * time.Second)}}
	w.runs, w.byID[r.RunID] = append(w.runs, r), r
	if rapid.IntRange(0, 4).Draw(t, "hint") > 0 {
		w.tell(r)
	}
}

func (w *world) any(s state) *run {
	var some []*run
	for _, r := range w.runs {
		if r.state == s {
			some = append(some, r)
		}
	}
	if len(some) == 0 {
		return nil
	}
	return some[rapid.IntRange(0, len(some)-1).Draw(w.t, "which")]
}

// load has the loader read what it wants to, as a dispatcher that looks at the lanes makes it.
func (w *world) load() {
	for i := 0; ; i++ {
		_, err := w.loader.Lanes(ctx, w.now)
		must(w.t, err)
		n, err := w.loader.Step(ctx)
		must(w.t, err)
		if n == 0 {
			return
		}
		if i > 1000 {
			w.t.Fatal("the loader reads and reads")
		}
	}
}

// first is what must be popped next of a lane: the first of those that the leader was told of and that are ready.
func (w *world) first(lane job.LaneKey, all bool) *run {
	var first *run
	for _, r := range w.runs {
		if r.Lane == lane && r.state == stored && (r.announced || all) && r.ReadyAt <= w.now &&
			(first == nil || r.Compare(first.QueueEntry) < 0) {
			first = r
		}
	}
	return first
}

// pop takes the next of a lane, drops what is stale, and judges what it gets.
func (w *world) pop(lane job.LaneKey) *run {
	for {
		w.load() // a dispatcher whose entries were all stale looks again
		got, err := w.loader.Pop(ctx, w.epoch, w.now, []job.LaneWant{{Lane: lane, Max: 1}})
		must(w.t, err)
		want := w.first(lane, false)
		if len(got) == 0 {
			if want != nil && w.touched[lane] {
				w.t.Fatalf("nothing is popped, and %s is ready; %d lanes are short, the queue holds %d", describe(&want.QueueEntry), w.loader.Short(), w.held())
			}
			return nil
		}
		r := w.byID[got[0].RunID]
		if r.state != stored || r.ReadyAt > w.now { // Q3
			continue
		}
		if !w.touched[lane] {
			w.t.Fatalf("%s is popped of a lane that nobody loaded", describe(&r.QueueEntry))
		}
		if want != nil && want.Compare(r.QueueEntry) < 0 {
			w.t.Fatalf("%s is popped before %s", describe(&r.QueueEntry), describe(&want.QueueEntry))
		}
		r.state = inHand
		return r
	}
}

func describe(e *job.QueueEntry) string {
	return fmt.Sprintf("%x of lane %s, priority %d, ready %s, order %d", e.RunID[14:], e.Lane, e.Priority, e.ReadyAt, e.Order())
}

// reconcile offers what is due soon and not queued, up to n runs from where it stands.
func (w *world) reconcile(from, n int) {
	var offer []job.QueueEntry
	for _, r := range w.runs[from:min(len(w.runs), from+n)] {
		if r.state != stored || r.ReadyAt > w.now.Add(ahead) {
			continue
		}
		r.announced = true
		w.touched[r.Lane] = true // held, or offered
		if held, err := w.loader.Holds(ctx, []job.RunID{r.RunID}); err != nil {
			w.t.Fatal(err)
		} else if !held[0] {
			offer = append(offer, r.QueueEntry)
		}
	}
	w.push(offer...)
}

func (w *world) step() {
	t := w.t
	switch rapid.SampledFrom([]string{"birth", "birth", "birth", "births", "pop", "pop", "pops", "end", "return", "retry", "cancel", "wait", "wait long",
		"sweep", "reconcile", "during", "new leader", "load"}).Draw(t, "step") {
	case "birth":
		w.birth()
	case "births":
		for range rapid.IntRange(2, 40).Draw(t, "births") {
			w.birth()
		}
	case "pop":
		w.pop(rapid.SampledFrom(lanes).Draw(t, "lane"))
	case "pops":
		lane := rapid.SampledFrom(lanes).Draw(t, "lane")
		for range rapid.IntRange(2, 30).Draw(t, "pops") {
			w.pop(lane)
		}
	case "end":
		if r := w.any(inHand); r != nil {
			r.state = gone
		}
	case "return": // it had no seat, or its worker took nothing
		if r := w.any(inHand); r != nil {
			r.state = stored
			w.tell(r)
		}
	case "retry":
		if r := w.any(inHand); r != nil {
			r.state, r.announced = stored, false
			r.ReadyAt = w.now.Add(time.Duration(rapid.SampledFrom([]int{0, 1, 60, 400}).Draw(t, "backoff")) * time.Second)
			w.tell(r)
		}
	case "cancel":
		if r := w.any(stored); r != nil {
			r.state = gone
			if rapid.Bool().Draw(t, "removed") {
				must(t, w.loader.Remove(ctx, w.epoch, []job.RunID{r.RunID}))
			}
		}
	case "wait":
		w.now += job.Instant(rapid.IntRange(1, 5).Draw(t, "seconds")) * second
	case "wait long": // no longer than the reconciler takes to go round, or what becomes due meanwhile is late
		w.reconcile(0, len(w.runs))
		w.now += job.Instant(rapid.IntRange(5, 240).Draw(t, "seconds")) * second
		w.reconcile(0, len(w.runs))
	case "sweep":
		w.sweep(rapid.IntRange(1, 50).Draw(t, "rows"))
	case "reconcile":
		w.reconcile(0, len(w.runs))
	case "during":
		n := rapid.IntRange(1, 5).Draw(t, "births during a read")
		w.during = func() {
			for range n {
				w.birth()
			}
		}
	case "new leader":
		if rapid.IntRange(0, 3).Draw(t, "whether") == 0 {
			w.begin()
		}
	case "load":
		w.load()
	}
}

// sweep is a part of the way through all live runs that a new leader goes.
func (w *world) sweep(rows int) {
	if w.swept {
		return
	}
	w.reconcile(w.at, rows)
	if w.at += rows; w.at >= len(w.runs) {
		w.swept = true
		w.loader.Swept()
	}
}

// Whatever the queue has room for, a lane is popped in order. Exactly: what is popped comes before every ready run of its
// lane that the leader was told of, be it by its hint, by the reconciler or by a new term's beginning; and when nothing is
// popped there is no such run. So a run whose hint was lost is late by no more than the reconciler, and never makes another
// one late. Times are whole seconds here: what the queue left before its time may be late by less than one.
func TestOrderIsThatOfAQueueWithoutABound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			w.step()
		}
		w.drain()
	})
}

// drain pops all there is, and expects that nothing is left or remembered.
func (w *world) drain() {
	for !w.swept {
		w.sweep(100)
	}
	for range 12 {
		w.reconcile(0, len(w.runs))
		for _, lane := range lanes {
			for r := w.pop(lane); r != nil; r = w.pop(lane) {
				r.state = gone
			}
		}
		w.now += 120 * second
	}
	for _, r := range w.runs {
		if r.state == stored {
			w.t.Fatalf("%s is never popped", describe(&r.QueueEntry))
		}
	}
	w.load()
	if w.loader.Short() != 0 || w.held() != 0 {
		w.t.Fatalf("%d lanes are short and %d entries queued when all is done", w.loader.Short(), w.held())
	}
}

// held is how many entries the queue holds.
func (w *world) held() (n int) {
	depths, err := w.queue.Lanes(ctx, w.now)
	must(w.t, err)
	for _, d := range depths {
		n += d.Ready + d.Delayed
	}
	return n
}
