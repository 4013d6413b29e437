package fsm

import (
	"bytes"
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/job"
	"pgregory.net/rapid"
)

// TestTableFrozenStaysAsItWas guards the trees' copy-on-write, on which every view and snapshot rests: random writes go on
// while many clones are held, and none may change. A twin in plain maps says what each must hold.
func TestTableFrozenStaysAsItWas(t *testing.T) {
	t.Parallel()
	type row struct{ key, value int }
	type held struct {
		table table[int, row]
		want  []row
	}
	rapid.Check(t, func(rt *rapid.T) {
		tb := newTable(cmp.Less[int], func(r *row) int { return r.key })
		twin := map[int]int{}
		var clones []held
		contents := func(tb *table[int, row]) (list []row) {
			for r := range tb.all() {
				list = append(list, *r)
			}
			return list
		}
		seed := rapid.Uint64().Draw(rt, "seed")
		next := func(n int) int {
			seed ^= seed << 13
			seed ^= seed >> 7
			seed ^= seed << 17
			return int(seed % uint64(n))
		}
		seed |= 1
		span := rapid.SampledFrom([]int{10, 100, 3000}).Draw(rt, "span")
		for i := range 3000 {
			k := next(span)
			if old, ok := twin[k]; ok && next(3) == 0 {
				tb.del(&row{k, old})
				delete(twin, k)
			} else {
				tb.put(&row{k, i})
				twin[k] = i
			}
			if next(60) == 0 {
				want := make([]row, 0, len(twin))
				for k, v := range twin {
					want = append(want, row{k, v})
				}
				slices.SortFunc(want, func(a, b row) int { return cmp.Compare(a.key, b.key) })
				clones = append(clones, held{tb.frozen(), want})
			}
		}
		for i, c := range clones {
			if got := contents(&c.table); !slices.Equal(got, c.want) {
				rt.Fatalf("clone %d of %d changed after it was made", i, len(clones))
			}
		}
	})
}

// TestTableWalks compares walks of a table with the obvious ones over a slice.
func TestTableWalks(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		keys := rapid.SliceOfDistinct(rapid.IntRange(0, 200), rapid.ID[int]).Draw(rt, "keys")
		s := newSet(cmp.Less[int])
		for _, k := range keys {
			s.add(k)
		}
		from := rapid.IntRange(-1, 201).Draw(rt, "from")
		slices.Sort(keys)
		var up, down []int
		for _, k := range keys {
			if k >= from {
				up = append(up, k)
			}
			if k <= from {
				down = append(down, k)
			}
		}
		slices.Reverse(down)
		if got := slices.Collect(s.ascend(from)); !slices.Equal(got, up) {
			rt.Fatalf("upward: %v, want %v", got, up)
		}
		if got := slices.Collect(s.descend(from)); !slices.Equal(got, down) {
			rt.Fatalf("downward: %v, want %v", got, down)
		}
	})
}

func TestKeysAreOrderedByTheirBytes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		id := rapid.Custom(func(t *rapid.T) job.RunID {
			var id job.RunID
			copy(id[:], rapid.SliceOfN(rapid.ByteRange(0, 3), 16, 16).Draw(t, "id"))
			return id
		})
		a, b := id.Draw(rt, "a"), id.Draw(rt, "b")
		if compareID(a, b) != bytes.Compare(a[:], b[:]) {
			rt.Fatalf("%x and %x", a, b)
		}
	})
}

// TestReadersSeeWholeEntries reads and snapshots while entries are applied: each entry submits two runs, and no reader
// may see one without the other. The race detector makes most of it.
func TestReadersSeeWholeEntries(t *testing.T) {
	t.Parallel()
	d := &driver{s: New()}
	var logs []*raft.Log
	for n := range 300 {
		logs = append(logs, d.log(t0, &Submit{Runs: []*job.Run{bornAt(2*n, t0), bornAt(2*n+1, t0)}}))
		if n%3 == 0 {
			logs = append(logs, d.log(t0, &Move{Moves: []job.Move{{ID: numbered(2 * n), State: job.Succeeded, FinishedAt: t0}, {ID: numbered(2*n + 1), State: job.Succeeded, FinishedAt: t0}}}))
		}
		if n%50 == 0 {
			logs = append(logs, d.log(t0, &Prune{Before: t0 + 1, Limit: 2}))
		}
	}
	var done atomic.Bool
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for !done.Load() {
				v := d.s.View()
				live, history := 0, 0
				for range v.Live(job.RunID{}) {
					live++
				}
				for range v.Runs(Which{History: true, Namespace: "default"}) {
					history++
				}
				if f := v.Fill(); live%2 != 0 || f.LiveRuns != live || f.HistoryRuns != history {
					t.Errorf("a reader saw %d live and %d ended runs: %+v", live, history, f)
					return
				}
			}
		})
	}
	wg.Go(func() {
		for !done.Load() {
			snap, _ := d.s.Snapshot()
			sink := &bufferSink{}
			if err := snap.Persist(sink); err != nil {
				t.Error(err)
				return
			}
			if err := New().Restore(readCloser(bytes.NewReader(sink.Bytes()))); err != nil {
				t.Error(err)
				return
			}
		}
	})
	d.apply(logs)
	done.Store(true)
	wg.Wait()
}
