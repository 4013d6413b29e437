package fleet

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/musterhq/muster/job"
)

// bench is a fleet with a clock in the test's hand.
type bench struct {
	*Fleet
	t        *testing.T
	at       time.Duration
	sequence uint32
	flags    map[string]job.WorkerState
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, flags: map[string]job.WorkerState{}}
	start := job.At(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	b.Fleet = New(func() job.Instant { return start.Add(b.at) }, func() time.Duration { return b.at },
		func(w string) job.WorkerState {
			if s := b.flags[w]; s != "" {
				return s
			}
			return job.WorkerReady
		})
	return b
}

func (b *bench) next() job.Fence { b.sequence++; return job.MakeFence(1, b.sequence) }

func (b *bench) attach(name, boot string, slots int, running ...job.Fence) Attached {
	b.t.Helper()
	a, err := b.Attach(job.SessionID(name+"/"+boot), "node-1", job.WorkerHello{
		Name: name, Boot: boot, DataID: name, Slots: slots, Executors: []string{"exec"}, Running: running})
	if err != nil {
		b.t.Fatal(err)
	}
	return a
}

func runID(n int) job.RunID {
	var e [10]byte
	e[9], e[8] = byte(n), byte(n>>8)
	return job.MakeRunID(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), e)
}

func candidate(n int, spec *job.Document) Candidate {
	c := Candidate{Run: &job.Run{ID: runID(n), State: job.Queued, Namespace: "default"}, Spec: spec,
		Lane: job.LaneOf("default", spec), Slots: max(1, spec.Slots)}
	if spec.Concurrency != nil {
		c.Limit = spec.Concurrency.Limit
	}
	return c
}

var plain = &job.Document{Exec: &job.Exec{Command: []string{"true"}}}

// grant reserves and opens.
func (b *bench) grant(cs ...Candidate) []job.Grant {
	grants, sessions, _ := b.Reserve(cs, b.now(), b.next)
	leases := make([]Lease, len(grants))
	for i := range grants {
		leases[i] = Lease{Grant: grants[i], Session: sessions[i]}
	}
	b.Open(leases)
	return grants
}

func TestPlace(t *testing.T) {
	seat := func(name string, free int, labels ...string) Seat {
		h := job.WorkerHello{Executors: []string{"exec"}, Labels: map[string]string{}}
		for i := 0; i < len(labels); i += 2 {
			h.Labels[labels[i]] = labels[i+1]
		}
		return Seat{Worker: name, Offers: h.Offers(), Free: free}
	}
	eu := &job.Document{Exec: plain.Exec, Selector: map[string]string{"region": "eu"}}
	big := &job.Document{Exec: plain.Exec, Slots: 3}
	keyed := &job.Document{Exec: plain.Exec, Concurrency: &job.Concurrency{Key: "k", Limit: 2}}
	handler := &job.Document{Handler: &job.Handler{Name: "resize"}}
	for _, c := range []struct {
		name  string
		seats []Seat
		specs []*job.Document
		held  int
		want  []int
	}{
		{"the emptiest worker first, then evenly", []Seat{seat("a", 2), seat("b", 3)}, []*job.Document{plain, plain, plain, plain, plain, plain}, 0, []int{1, 0, 1, 0, 1, -1}},
		{"a selector picks", []Seat{seat("a", 9), seat("b", 1, "region", "eu")}, []*job.Document{eu, eu, plain}, 0, []int{1, -1, 0}},
		{"a handler that nobody has", []Seat{seat("a", 9)}, []*job.Document{handler, plain}, 0, []int{-1, 0}},
		{"many slots need one worker that has them", []Seat{seat("a", 2), seat("b", 2)}, []*job.Document{big, plain}, 0, []int{-1, 0}},
		{"many slots are taken from one", []Seat{seat("a", 4), seat("b", 3)}, []*job.Document{big, big, plain, plain}, 0, []int{0, 1, 0, -1}},
		{"a concurrency key bounds, with what is held", []Seat{seat("a", 9)}, []*job.Document{keyed, keyed, plain}, 1, []int{0, -1, 0}},
		{"nobody there", nil, []*job.Document{plain}, 0, []int{-1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var cs []Candidate
			for i, s := range c.specs {
				cs = append(cs, candidate(i, s))
			}
			got := Place(c.seats, cs, func(job.LaneKey) int { return c.held })
			if d := cmp.Diff(c.want, got); d != "" {
				t.Fatalf("seats (-want +got):\n%s", d)
			}
		})
	}
}

// The heap of rows against the plain search it replaces.
func TestPlaceIsTheEmptiestMatchingSeat(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		regions := []string{"eu", "us"}
		var seats []Seat
		for i := range rapid.IntRange(0, 8).Draw(rt, "seats") {
			h := job.WorkerHello{Executors: []string{"exec"}, Labels: map[string]string{"region": rapid.SampledFrom(regions).Draw(rt, "label")}}
			seats = append(seats, Seat{Worker: fmt.Sprint(i), Offers: h.Offers(), Free: rapid.IntRange(1, 5).Draw(rt, "free")})
		}
		var cs []Candidate
		for i := range rapid.IntRange(0, 30).Draw(rt, "candidates") {
			d := &job.Document{Exec: plain.Exec, Slots: rapid.IntRange(1, 3).Draw(rt, "slots")}
			if r := rapid.SampledFrom([]string{"", "eu", "us"}).Draw(rt, "selector"); r != "" {
				d.Selector = map[string]string{"region": r}
			}
			cs = append(cs, candidate(i, d))
		}
		got := Place(seats, cs, func(job.LaneKey) int { return 0 })
		free := make([]int, len(seats))
		for i := range seats {
			free[i] = seats[i].Free
		}
		for i, c := range cs {
			best := -1
			needs, _ := c.Lane.Needs()
			for s := range seats {
				if offers(seats[s].Offers, needs) && (best < 0 || free[s] > free[best]) {
					best = s
				}
			}
			if best >= 0 && free[best] < c.Slots {
				best = -1
			}
			if got[i] != best {
				rt.Fatalf("candidate %d sits on %d, want %d", i, got[i], best)
			}
			if best >= 0 {
				free[best] -= c.Slots
			}
		}
	})
}

func TestLeaseLife(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.attach("w", "b1", 2)
	g := b.grant(candidate(1, plain), candidate(2, plain), candidate(3, plain))
	if len(g) != 2 {
		t.Fatalf("%d grants on 2 slots", len(g))
	}
	// L4: the leader requeues a lease and a grace after it last heard.
	b.at = 20 * time.Second
	if unknown := b.Heartbeat("w/b1", []job.Fence{g[0].Fence, 99}); !cmp.Equal(unknown, []job.Fence{99}) {
		t.Fatalf("unknown fences: %v", unknown)
	}
	b.at = job.LeaseTimeout + job.LeaseKillGrace - 1
	if e, _ := b.Expired(); len(e) != 0 {
		t.Fatalf("expired before lease and grace: %v", e)
	}
	b.at++
	e, _ := b.Expired()
	if len(e) != 1 || e[0].RunID != g[1].RunID {
		t.Fatalf("expired: %v, want the lease that no heartbeat named", e)
	}
	if !b.End(e[0].RunID, e[0].Fence) || b.End(e[0].RunID, e[0].Fence) {
		t.Fatal("a lease ends once")
	}
	var ended []job.EndedGrant
	b.Tell(func(e []job.EndedGrant) error { ended = e; return nil })
	if len(ended) != 1 || ended[0].Fence != e[0].Fence {
		t.Fatalf("ended: %v", ended)
	}
}

func TestHelloEndsWhatItOmits(t *testing.T) {
	t.Parallel()
	t.Run("the same life of the agent: it never began", func(t *testing.T) {
		t.Parallel()
		b := newBench(t)
		b.attach("w", "b1", 5)
		g := b.grant(candidate(1, plain), candidate(2, plain))
		b.Detach("w/b1")
		a := b.attach("w", "b1", 5, g[0].Fence)
		if len(a.Lost) != 0 || len(a.NeverBegan) != 1 || a.NeverBegan[0].Fence != g[1].Fence {
			t.Fatalf("%+v", a)
		}
	})
	t.Run("another life: it may have begun, so it is lost", func(t *testing.T) {
		t.Parallel()
		b := newBench(t)
		b.attach("w", "b1", 5)
		g := b.grant(candidate(1, plain))
		a := b.attach("w", "b2", 5) // L4: the same data directory, so a restart, though the old stream still stands
		if len(a.NeverBegan) != 0 || len(a.Lost) != 1 || a.Lost[0].Fence != g[0].Fence || a.Lost[0].Kind != job.AttemptLost {
			t.Fatalf("%+v", a)
		}
	})
	t.Run("a result kept from an earlier life is not lost", func(t *testing.T) {
		t.Parallel()
		b := newBench(t)
		b.attach("w", "b1", 5)
		g := b.grant(candidate(1, plain))
		if a := b.attach("w", "b2", 5, g[0].Fence); len(a.Lost)+len(a.NeverBegan)+len(a.Stop) != 0 {
			t.Fatalf("%+v", a)
		}
	})
	t.Run("what it runs without a lease it must stop", func(t *testing.T) {
		t.Parallel()
		b := newBench(t)
		if a := b.attach("w", "b1", 5, 77); !cmp.Equal(a.Stop, []job.Fence{77}) {
			t.Fatalf("%+v", a)
		}
	})
	t.Run("L4: a namesake with another data directory is refused", func(t *testing.T) {
		t.Parallel()
		b := newBench(t)
		b.attach("w", "b1", 5)
		_, err := b.Attach("other", "node-1", job.WorkerHello{Name: "w", Boot: "b9", DataID: "elsewhere", Slots: 1})
		if job.CodeOf(err) != job.Conflict {
			t.Fatalf("error %v, want conflict", err)
		}
		b.Detach("w/b1")
		if _, err := b.Attach("other", "node-1", job.WorkerHello{Name: "w", Boot: "b9", DataID: "elsewhere", Slots: 1}); err != nil {
			t.Fatalf("after the first has gone: %v", err)
		}
	})
}

// A namesake may come while the first is cut off, or after a change of leader: what the first was granted is not lost by
// that, and must not start elsewhere beside it.
func TestANamesakeDoesNotEndLeases(t *testing.T) {
	t.Parallel()
	other := job.WorkerHello{Name: "w", Boot: "b9", DataID: "elsewhere", Slots: 1}
	b := newBench(t)
	b.attach("w", "b1", 1)
	b.grant(candidate(1, plain))
	b.Detach("w/b1")
	if a, err := b.Attach("other", "node-1", other); job.CodeOf(err) != job.Conflict || len(a.Lost) > 0 {
		t.Fatalf("%+v, %v", a, err)
	}
	next := newBench(t)
	next.Resume([]job.Grant{b.Leases()[0].Grant})
	if a, err := next.Attach("other", "node-1", other); job.CodeOf(err) != job.Conflict || len(a.Lost) > 0 {
		t.Fatalf("after a change of leader: %+v, %v", a, err)
	}
	if a := next.attach("w", "b2", 1); len(a.Lost) != 1 {
		t.Fatalf("a restart with the same data directory: %+v", a)
	}
	if _, err := next.Attach("other", "node-1", other); job.CodeOf(err) != job.Conflict {
		t.Fatalf("while the first is attached: %v", err)
	}
}

func TestResumedLeasesGetAFullTerm(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.at = time.Hour
	b.Resume([]job.Grant{{RunID: runID(1), Fence: 5, Worker: "w", Boot: "b1"}})
	b.at += job.LeaseTimeout + job.LeaseKillGrace - 1
	if e, _ := b.Expired(); len(e) != 0 {
		t.Fatalf("expired early: %v", e)
	}
	b.at++
	if e, _ := b.Expired(); len(e) != 1 {
		t.Fatalf("expired: %v", e)
	}
}

func TestASilentGatewayIsNotManyDeadWorkers(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for i := range 20 {
		b.attach(fmt.Sprint("w", i), "b1", 1)
	}
	for i := range 20 {
		b.grant(candidate(i, plain))
	}
	b.at = job.LeaseTimeout + job.LeaseKillGrace
	if e, extended := b.Expired(); len(e) != 0 || extended != 20 {
		t.Fatalf("%d expired, %d extended; want all extended", len(e), extended)
	}
	b.at += job.LeaseTimeout + job.LeaseKillGrace
	if e, extended := b.Expired(); len(e) != 20 || extended != 0 {
		t.Fatalf("%d expired, %d extended; want them extended once only", len(e), extended)
	}
}

func TestHands(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.attach("w", "b1", 5)
	if _, hand := b.TakeHand(runID(1)); hand != Taken {
		t.Fatal("a free run can be taken")
	}
	if _, hand := b.TakeHand(runID(1)); hand != Moving {
		t.Fatal("a taken run cannot be taken again")
	}
	if _, _, seat := b.Reserve([]Candidate{candidate(1, plain), candidate(2, plain), candidate(2, plain)}, b.now(), b.next); !cmp.Equal(seat, []int{-2, 0, -2}) {
		t.Fatalf("seats %v: a run that moves, or twice in a batch, is dropped", seat)
	}
	if _, hand := b.TakeHand(runID(2)); hand != Reserved {
		t.Fatal("a run whose grant is on its way cannot be taken")
	}
	if order, pending := b.Stop(runID(2), job.CancelRequested); order != nil || !pending {
		t.Fatal("a stop meanwhile is kept")
	}
	grants := []job.Grant{b.reserved[runID(2)].grant}
	stops := b.Open([]Lease{{Grant: grants[0], Session: "w/b1"}})
	if len(stops) != 1 || stops[0].RunID != runID(2) {
		t.Fatalf("stops %v: the stop comes out when the lease opens", stops)
	}
	b.LetGo(runID(1))
	if _, hand := b.TakeHand(runID(1)); hand != Taken {
		t.Fatal("a run that was let go can be taken")
	}
}

// Slots and keys are given back exactly once, whatever the path.
func TestNothingLeaks(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		b := newBench(t)
		boots := map[string]int{}
		keyed := &job.Document{Exec: plain.Exec, Concurrency: &job.Concurrency{Key: "k", Limit: 3}}
		open := map[job.RunID]job.Grant{}
		n := 0
		attach := func(name string, fresh bool, keep []job.Fence) {
			if fresh {
				boots[name]++
			}
			a := b.attach(name, fmt.Sprint(boots[name]), 3, keep...)
			for _, o := range a.Lost {
				b.Release(o.RunID, o.Fence, o.Worker)
				b.End(o.RunID, o.Fence)
				delete(open, o.RunID)
			}
			for _, l := range a.NeverBegan {
				b.End(l.RunID, l.Fence)
				delete(open, l.RunID)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"attach": func(rt *rapid.T) {
				name := rapid.SampledFrom([]string{"w1", "w2"}).Draw(rt, "name")
				var keep []job.Fence
				for _, g := range open {
					if g.Worker == name && rapid.Bool().Draw(rt, "keep") {
						keep = append(keep, g.Fence)
					}
				}
				attach(name, rapid.Bool().Draw(rt, "fresh"), keep)
			},
			"detach": func(rt *rapid.T) {
				name := rapid.SampledFrom([]string{"w1", "w2"}).Draw(rt, "name")
				b.Detach(job.SessionID(fmt.Sprintf("%s/%d", name, boots[name])))
			},
			"grant": func(rt *rapid.T) {
				spec := rapid.SampledFrom([]*job.Document{plain, keyed}).Draw(rt, "spec")
				n++
				for _, g := range b.grant(candidate(n, spec)) {
					open[g.RunID] = g
				}
			},
			"unreserve": func(rt *rapid.T) {
				n++
				grants, _, _ := b.Reserve([]Candidate{candidate(n, keyed)}, b.now(), b.next)
				b.Unreserve(grants)
			},
			"end": func(rt *rapid.T) {
				for id, g := range open {
					if rapid.Bool().Draw(rt, "release") {
						b.Release(id, g.Fence, g.Worker)
					}
					b.End(id, g.Fence)
					delete(open, id)
					return
				}
			},
			"": func(rt *rapid.T) {
				used, held := map[string]int{}, 0
				for _, g := range open {
					used[g.Worker]++
					if g.Lane.ConcurrencyKey() != "" {
						held++
					}
				}
				for _, w := range b.Workers() {
					if w.SlotsUsed != used[w.Name] {
						rt.Fatalf("%s: %d slots used, %d leases open", w.Name, w.SlotsUsed, used[w.Name])
					}
				}
				if got := b.Held(job.LaneOf("default", keyed)); got != held {
					rt.Fatalf("%d hold the key, want %d", got, held)
				}
				if held > 3 {
					rt.Fatalf("%d leases hold a key with limit 3", held)
				}
			},
		})
	})
}

// Hellos of two streams come over two nodes, and the older one may come last.
func TestAHelloThatWasOvertakenChangesNothing(t *testing.T) {
	b := newBench(t)
	hello := func(session, boot string, number uint64, running ...job.Fence) (Attached, error) {
		return b.Attach(job.SessionID(session), "node", job.WorkerHello{Name: "w", Boot: boot, DataID: "d", Number: number, Slots: 4,
			Executors: []string{"exec"}, Running: running})
	}
	if _, err := hello("second", "boot", 2); err != nil {
		t.Fatal(err)
	}
	g := b.grant(candidate(1, plain))
	if a, err := hello("first", "boot", 1); job.CodeOf(err) != job.Unavailable || len(a.NeverBegan) > 0 {
		t.Errorf("a hello of before the grant: %+v, %v", a, err)
	}
	b.Detach("first")
	if unknown := b.Heartbeat("second", []job.Fence{g[0].Fence}); len(unknown) > 0 || b.WorkerOf("second") != "w" {
		t.Errorf("the later session is gone, and does not know %v", unknown)
	}
	if a, err := hello("third", "boot", 3, g[0].Fence); err != nil || len(a.Stop) > 0 {
		t.Errorf("the next hello: %+v, %v", a, err)
	}
	if a, err := hello("fourth", "next boot", 1); err != nil || len(a.Lost) != 1 {
		t.Errorf("a restart: %+v, %v", a, err)
	}
	if a, err := hello("fifth", "boot", 4, g[0].Fence); job.CodeOf(err) != job.Conflict {
		t.Errorf("a hello of the life before: %+v, %v", a, err)
	}
	if b.WorkerOf("fourth") != "w" {
		t.Error("the session after the restart is gone")
	}
}

// Between the choice of a seat and the lease lies Raft. The hello that comes in between cannot list the run, and no later
// one need come.
func TestALeaseOfASessionThatWasReplacedIsNotForDelivery(t *testing.T) {
	b := newBench(t)
	b.attach("w", "boot", 4)
	grants, sessions, _ := b.Reserve([]Candidate{candidate(1, plain)}, b.now(), b.next)
	if _, err := b.Attach("moved", "node-2", job.WorkerHello{Name: "w", Boot: "boot", DataID: "w", Slots: 4, Executors: []string{"exec"}}); err != nil {
		t.Fatal(err)
	}
	leases := []Lease{{Grant: grants[0], Session: sessions[0]}}
	b.Open(leases)
	if leases[0].Session != "" {
		t.Errorf("the lease is for delivery on %q, where the worker takes nothing any more", leases[0].Session)
	}
}
