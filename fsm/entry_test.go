package fsm

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/job"
)

func TestEntryComesBack(t *testing.T) {
	t.Parallel()
	data, err := EncodeEntry(Origin{Node: "n", Boot: "b", Seq: 3}, t0, samples()...)
	if err != nil {
		t.Fatal(err)
	}
	e, err := DecodeEntry(data)
	if err != nil {
		t.Fatal(err)
	}
	if e.At != t0 || e.Origin != (Origin{"n", "b", 3}) || len(e.Commands) != len(samples()) {
		t.Fatalf("entry is %+v", e)
	}
	if n := Size(samples()...); n < len(data) {
		t.Fatalf("the entry of %d bytes is estimated at %d", len(data), n)
	}
}

func TestEntryThatIsTooLargeIsRefused(t *testing.T) {
	t.Parallel()
	_, err := EncodeEntry(Origin{}, t0, &PutJob{Document: bytes.Repeat([]byte("x"), MaxEntryBytes)})
	if e := job.AsError(err); e == nil || e.Code != job.Invalid || e.Reason != "too_large" {
		t.Fatalf("error is %v", err)
	}
}

// TestEntryThatCannotBeReadStopsTheReplica: to skip it would be to diverge in silence.
func TestEntryThatCannotBeReadStopsTheReplica(t *testing.T) {
	t.Parallel()
	entry := func(change func(*wireEntry)) []byte {
		body, _ := encoder.Marshal(&Maintain{On: true})
		w := wireEntry{At: t0, Commands: []wireCommand{{Kind: KindMaintain, Version: 1, Body: body}}}
		change(&w)
		b, err := encoder.Marshal(&w)
		if err != nil {
			t.Fatal(err)
		}
		return append([]byte{entryFormat}, b...)
	}
	good := entry(func(*wireEntry) {})
	for what, data := range map[string][]byte{
		"empty":           nil,
		"another format":  append([]byte{2}, good[1:]...),
		"cut":             good[:len(good)-1],
		"with a tail":     append(bytes.Clone(good), 0),
		"unknown kind":    entry(func(w *wireEntry) { w.Commands[0].Kind = 999 }),
		"unknown version": entry(func(w *wireEntry) { w.Commands[0].Version = 2 }),
		"unknown field":   entry(func(w *wireEntry) { w.Commands[0].Body = []byte{0xa1, 0x18, 0x63, 0x01} }),
		"wrong type":      entry(func(w *wireEntry) { w.Commands[0].Body = []byte{0x01} }),
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := New()
			defer func() {
				if r, ok := recover().(string); !ok || !strings.Contains(r, "index 7 cannot be applied") {
					t.Fatalf("the replica went on: %v", r)
				}
				if s.Index() != 0 {
					t.Fatal("something was applied")
				}
			}()
			s.Apply(&raft.Log{Index: 7, Type: raft.LogCommand, Data: data})
		})
	}
	if r := New().Apply(&raft.Log{Index: 1, Type: raft.LogCommand, Data: good}).([]Result); r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
}

// TestEntryWithInvalidTextIsReadable: what was encoded is in the log for ever, so it must decode.
func TestEntryWithInvalidTextIsReadable(t *testing.T) {
	m := newMachine(t)
	m.submit(m.born(1, func(r *job.Run) { r.Labels = map[string]string{"a\xff": "\x00\xfe"} }))
	m.do(&Move{Moves: []job.Move{{ID: numbered(1), State: job.Failed, Error: "\xff\x00", FinishedAt: t0}}})
	back := New()
	if err := back.Restore(readCloser(persisted(t, m.State)())); err != nil {
		t.Fatal(err)
	}
	if r := back.View().Run(numbered(1)); r.Error != "\xff\x00" {
		t.Fatalf("the error is %q", r.Error)
	}
}

func TestCommandsOfAnEntryDoNotTouchEachOther(t *testing.T) {
	m := newMachine(t)
	r := m.entry(Origin{}, &FlagWorker{Name: "a", State: job.WorkerCordoned}, &FlagWorker{Name: "b", State: "nonsense"}, &FlagWorker{Name: "c", State: job.WorkerDraining})
	if r[0].Err != nil || r[1].Err == nil || r[2].Err != nil {
		t.Fatalf("results are %+v", r)
	}
	if m.WorkerFlag("a") != job.WorkerCordoned || m.WorkerFlag("b") != job.WorkerReady || m.WorkerFlag("c") != job.WorkerDraining {
		t.Fatal("flags are wrong")
	}
}

func TestTimeNeverGoesBack(t *testing.T) {
	m := newMachine(t)
	m.at = t0 + 100
	m.do(&Maintain{On: true})
	m.at = t0
	m.do(&Maintain{})
	if m.At() != t0+100 || m.Index() != 2 {
		t.Fatalf("at %s, index %d", m.At(), m.Index())
	}
}

func TestReplayIsRefused(t *testing.T) {
	m := newMachine(t)
	o := Origin{Node: "n1", Boot: "b1", Seq: 5}
	raise := func(o Origin) (job.Epoch, error) {
		r := m.entry(o, &RaiseEpoch{})[0]
		e, _ := r.Value.(job.Epoch)
		return e, r.Err
	}
	if e, err := raise(o); e != 1 || err != nil {
		t.Fatal(e, err)
	}
	if _, err := raise(o); !errors.Is(err, ErrReplayed) {
		t.Fatalf("a replay is answered %v", err)
	}
	if m.Epoch() != 1 {
		t.Fatal("a replay was applied")
	}
	for _, o := range []Origin{{"n1", "b1", 4}, {"n1", "b1", 6}, {"n1", "b2", 5}, {"n2", "b1", 5}, {"", "", 5}, {"", "", 5}} {
		if _, err := raise(o); err != nil {
			t.Fatalf("%+v: %v", o, err)
		}
	}
	back := New()
	if err := back.Restore(readCloser(persisted(t, m.State)())); err != nil {
		t.Fatal(err)
	}
	m.State = back
	if _, err := raise(o); !errors.Is(err, ErrReplayed) {
		t.Fatalf("after a restore a replay is answered %v", err)
	}
}

func TestWindow(t *testing.T) {
	t.Parallel()
	var ws windows
	index := uint64(0)
	seen := func(node string, seq uint64) bool {
		index++
		return ws.seen(Origin{Node: node, Boot: "b", Seq: seq}, index)
	}
	for s := uint64(1); s <= 10_000; s += 2 {
		if seen("a", s) {
			t.Fatalf("seq %d was seen", s)
		}
	}
	for s := uint64(10_000 - windowSeqs + 1); s <= 9999; s++ {
		if want := s%2 == 1; seen("a", s) != want {
			t.Fatalf("seq %d: seen is not %v", s, want)
		}
	}
	if !seen("a", 10_000-windowSeqs-2) {
		t.Fatal("what is older than the window must count as seen")
	}
	if seen("a", 1_000_000) || seen("a", 1_000_000-windowSeqs+1) || !seen("a", 1_000_000-windowSeqs) {
		t.Fatal("a jump does not clear the window")
	}
	// The least recently used life goes first.
	for i := range maxWindows - 1 {
		seen("n"+string(rune('A'+i)), 1)
	}
	seen("a", 1_000_001)
	seen("one more", 1)
	if len(ws.list) != maxWindows || !seen("a", 1_000_001) || seen("nA", 1) {
		t.Fatal("the wrong life was forgotten")
	}
}

func FuzzDecodeEntry(f *testing.F) {
	for _, c := range samples() {
		data, err := EncodeEntry(Origin{Node: "n", Boot: "b", Seq: 1}, t0, c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := DecodeEntry(data)
		if err != nil {
			return
		}
		// Whatever is readable can be applied, and twice with the same outcome.
		a, b := New(), New()
		a.apply(1, e)
		again, err := DecodeEntry(data)
		if err != nil {
			t.Fatal(err)
		}
		b.apply(1, again)
		if hashOf(t, a) != hashOf(t, b) {
			t.Fatal("the same entry made two states")
		}
	})
}
