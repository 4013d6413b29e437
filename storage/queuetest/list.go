package queuetest

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/musterhq/muster/job"
)

// list is the queue as one would explain it: everything in one list, sorted when somebody asks.
type list struct {
	maxLane int
	entries []job.QueueEntry
}

// of answers a lane's entries at now: what is ready by Order, then the rest by ready time.
func (l *list) of(lane job.LaneKey, now job.Instant) (ready, delayed []job.QueueEntry) {
	for _, e := range l.entries {
		switch {
		case e.Lane != lane:
		case e.ReadyAt <= now:
			ready = append(ready, e)
		default:
			delayed = append(delayed, e)
		}
	}
	slices.SortFunc(ready, job.QueueEntry.Compare)
	slices.SortFunc(delayed, func(a, b job.QueueEntry) int {
		return cmp.Or(cmp.Compare(a.ReadyAt, b.ReadyAt), bytes.Compare(a.RunID[:], b.RunID[:]))
	})
	return ready, delayed
}

func (l *list) push(now job.Instant, es []job.QueueEntry) (left []job.QueueEntry) {
	for _, e := range es {
		l.remove(e.RunID)
		l.entries = append(l.entries, e)
	}
	for _, e := range es {
		ready, delayed := l.of(e.Lane, now)
		if all := append(ready, delayed...); len(all) > l.maxLane {
			for _, x := range all[l.maxLane:] {
				left = append(left, x)
				l.remove(x.RunID)
			}
		}
	}
	return left
}

func (l *list) pop(now job.Instant, wants []job.LaneWant) (out []job.QueueEntry) {
	for _, w := range wants {
		ready, _ := l.of(w.Lane, now)
		for _, e := range ready[:min(w.Max, len(ready))] {
			out = append(out, e)
			l.remove(e.RunID)
		}
	}
	return out
}

func (l *list) remove(ids ...job.RunID) {
	l.entries = slices.DeleteFunc(l.entries, func(e job.QueueEntry) bool { return slices.Contains(ids, e.RunID) })
}

func (l *list) lanes(now job.Instant) map[job.LaneKey]job.LaneDepth {
	out := map[job.LaneKey]job.LaneDepth{}
	for _, e := range l.entries {
		ready, delayed := l.of(e.Lane, now)
		d := job.LaneDepth{Lane: e.Lane, Ready: len(ready), Delayed: len(delayed)}
		if len(ready) > 0 {
			d.First = ready[0].Order()
		}
		if len(delayed) > 0 {
			d.NextAt = delayed[0].ReadyAt
		}
		out[e.Lane] = d
	}
	return out
}

// Entries draws what to push: few runs, lanes and times, so that they meet.
func Entries(t *rapid.T, now job.Instant) []job.QueueEntry {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) job.QueueEntry {
		return entry(rapid.IntRange(1, 30).Draw(t, "run"), Lane(t), uint8(rapid.IntRange(0, 9).Draw(t, "priority")),
			now.Add(time.Duration(rapid.IntRange(-10, 5).Draw(t, "ready"))*30*time.Second))
	}), 0, 12).Draw(t, "entries")
}

// Lane draws one of few lanes.
func Lane(t *rapid.T) job.LaneKey {
	return rapid.SampledFrom([]job.LaneKey{"default", "default|@exec=,a%2cb=1|", "other|@handler/x=|key one", ""}).Draw(t, "lane")
}

// Wants draws what to pop.
func Wants(t *rapid.T) []job.LaneWant {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) job.LaneWant {
		return job.LaneWant{Lane: Lane(t), Max: rapid.IntRange(0, 6).Draw(t, "max")}
	}), 0, 4).Draw(t, "wants")
}

// IDs draws some of the runs that Entries draws.
func IDs(t *rapid.T) []job.RunID {
	return rapid.SliceOfN(rapid.Map(rapid.IntRange(1, 30), id), 0, 6).Draw(t, "ids")
}

func sorted(es []job.QueueEntry) []job.QueueEntry {
	es = slices.Clone(es)
	slices.SortFunc(es, func(a, b job.QueueEntry) int { return bytes.Compare(a.RunID[:], b.RunID[:]) })
	return es
}

func same(t *rapid.T, what string, got, want any) {
	t.Helper()
	if d := gocmp.Diff(want, got); d != "" {
		t.Fatalf("%s (-want +got):\n%s", what, d)
	}
}

// asList does random things to a queue and a list. A pop may come with an earlier time than the calls before it.
func asList(t *testing.T, o Options) {
	ctx := context.Background()
	rapid.Check(t, func(rt *rapid.T) {
		l := &list{maxLane: rapid.SampledFrom([]int{1, 3, 8, 1000}).Draw(rt, "maxLane")}
		q := o.Open(t, l.maxLane)
		epoch, now := job.Epoch(1), t0
		ok := func(err error) {
			rt.Helper()
			if err != nil {
				rt.Fatal(err)
			}
		}
		_, err := q.Raise(ctx, epoch)
		ok(err)
		rt.Repeat(map[string]func(*rapid.T){
			"push": func(rt *rapid.T) {
				es := Entries(rt, now)
				left, err := q.Push(ctx, epoch, now, es)
				ok(err)
				same(rt, "left", sorted(left), sorted(l.push(now, es)))
			},
			"pop": func(rt *rapid.T) {
				ws := Wants(rt)
				es, err := q.Pop(ctx, epoch, now, ws)
				ok(err)
				same(rt, "popped", append([]job.QueueEntry{}, es...), append([]job.QueueEntry{}, l.pop(now, ws)...))
			},
			"remove": func(rt *rapid.T) {
				ids := IDs(rt)
				ok(q.Remove(ctx, epoch, ids))
				l.remove(ids...)
			},
			"time": func(rt *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 4).Draw(rt, "steps")) * 30 * time.Second)
			},
			"pop late": func(rt *rapid.T) {
				ws, then := Wants(rt), now.Add(-time.Duration(rapid.IntRange(1, 4).Draw(rt, "before"))*30*time.Second)
				es, err := q.Pop(ctx, epoch, then, ws)
				ok(err)
				same(rt, "popped", append([]job.QueueEntry{}, es...), append([]job.QueueEntry{}, l.pop(then, ws)...))
			},
			"raise": func(rt *rapid.T) {
				epoch += job.Epoch(rapid.IntRange(0, 2).Draw(rt, "by"))
				_, err := q.Raise(ctx, epoch)
				ok(err)
			},
			"reset": func(rt *rapid.T) {
				if rapid.IntRange(0, 5).Draw(rt, "reset") == 0 {
					ok(q.Reset(ctx, epoch))
					l.entries = nil
				}
			},
			"": func(rt *rapid.T) {
				lanes, err := q.Lanes(ctx, now)
				ok(err)
				got := map[job.LaneKey]job.LaneDepth{}
				for _, d := range lanes {
					got[d.Lane] = d
				}
				same(rt, "lanes", got, l.lanes(now))
			},
		})
	})
}
