package fsm

import (
	"errors"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/job"
)

func tagNumbered(n byte) Tag { return Tag{0: n, 15: n} }

func isDone(e *Expectation) bool {
	select {
	case <-e.Done():
		return true
	default:
		return false
	}
}

// nobodyWaits fails if a tag is left behind.
func nobodyWaits(t *testing.T, s *State) {
	t.Helper()
	x := &s.expected
	if n := x.count.Load(); n != 0 || len(x.byTag) != 0 || len(x.committed) != 0 {
		t.Fatalf("left behind are %d tags (counted %d) and %d expectations", len(x.byTag), n, len(x.committed))
	}
}

func TestExpectationGetsWhatThisStateAnswered(t *testing.T) {
	m := newMachine(t)
	r := m.born(1)
	e := m.Expect(tagNumbered(1), tagNumbered(2), tagNumbered(3))
	all := m.entry(Origin{}, &Maintain{On: true}, Tagged{tagNumbered(3), &Submit{Runs: []*job.Run{r}}}, Tagged{tagNumbered(9), &Maintain{}},
		Tagged{tagNumbered(1), &FlagWorker{Name: "w", State: "nonsense"}})
	if isDone(e) || e.Results() != nil || e.Index() != 0 {
		t.Fatal("done before all came")
	}
	last := m.entry(Origin{}, &Tagged{tagNumbered(2), &PauseNamespace{Namespace: "n", Paused: true}})
	if !isDone(e) || e.Index() != 2 {
		t.Fatalf("done %v at %d", isDone(e), e.Index())
	}
	if d := cmp.Diff([]Result{all[3], last[0], all[1]}, e.Results(), sameText); d != "" {
		t.Fatalf("results (-want +got):\n%s", d)
	}
	if got := e.Results()[0].Err; job.CodeOf(got) != job.Invalid {
		t.Fatalf("a refusal is delivered as %v", got)
	}
	if m.Paused(job.JobID{}, "n") != job.NamespacePaused {
		t.Fatal("what was answered is not to be read")
	}
	nobodyWaits(t, m.State)
	e.Cancel()
	if e.Results() == nil {
		t.Fatal("a cancel after the end takes the results away")
	}
	if e := m.Expect(); !isDone(e) || len(e.Results()) != 0 {
		t.Fatal("nothing expected does not come")
	}
}

func TestExpectationOfAReplayIsAnswered(t *testing.T) {
	m := newMachine(t)
	o := Origin{Node: "n", Boot: "b", Seq: 1}
	c := Tagged{tagNumbered(1), &RaiseEpoch{}}
	first := m.Expect(tagNumbered(1))
	m.entry(o, c)
	if r := first.Results(); len(r) != 1 || r[0].Value != job.Epoch(1) {
		t.Fatalf("the first is answered %+v", r)
	}
	again := m.Expect(tagNumbered(1))
	m.entry(o, c)
	if r := again.Results(); len(r) != 1 || !errors.Is(r[0].Err, ErrReplayed) || again.Index() != 2 {
		t.Fatalf("the replay is answered %+v", r)
	}
	nobodyWaits(t, m.State)
}

func TestExpectationsMayShareATag(t *testing.T) {
	m := newMachine(t)
	a, b, c := m.Expect(tagNumbered(1), tagNumbered(2), tagNumbered(1)), m.Expect(tagNumbered(1)), m.Expect(tagNumbered(1))
	b.Cancel()
	m.entry(Origin{}, Tagged{tagNumbered(1), &RaiseEpoch{}})
	if r := c.Results(); len(r) != 1 || r[0].Value != job.Epoch(1) {
		t.Fatalf("the other is answered %+v", r)
	}
	if !isDone(b) || b.Results() != nil || b.Index() != 0 {
		t.Fatal("a cancelled expectation is answered")
	}
	m.entry(Origin{}, Tagged{tagNumbered(2), &RaiseEpoch{}}, Tagged{tagNumbered(1), &RaiseEpoch{}})
	if r := a.Results(); len(r) != 3 || r[0].Value != job.Epoch(1) || r[1].Value != job.Epoch(2) || r[2].Value != job.Epoch(1) {
		t.Fatalf("answers are %+v", r)
	}
	nobodyWaits(t, m.State)
}

func TestCancelledExpectationLeavesNothing(t *testing.T) {
	m := newMachine(t)
	e := m.Expect(tagNumbered(1), tagNumbered(2))
	e.Committed(7)
	m.entry(Origin{}, Tagged{tagNumbered(1), &RaiseEpoch{}})
	e.Cancel()
	e.Cancel()
	e.Committed(8)
	if !isDone(e) || e.Results() != nil {
		t.Fatal("a cancelled expectation has results")
	}
	nobodyWaits(t, m.State)
}

// TestExpectationIsSkippedByARestore: the entries came as a snapshot, so their answers are not known here.
func TestExpectationIsSkippedByARestore(t *testing.T) {
	leader := newMachine(t)
	leader.entry(Origin{}, Tagged{tagNumbered(1), &RaiseEpoch{}})
	leader.entry(Origin{}, Tagged{tagNumbered(2), &RaiseEpoch{}})
	snapshot := persisted(t, leader.State)
	skipped := func(t *testing.T, e *Expectation, place int) {
		t.Helper()
		if r := e.Results(); len(r) <= place || !errors.Is(r[place].Err, ErrSkipped) {
			t.Fatalf("what was skipped is answered %+v", r)
		}
	}
	t.Run("committed before", func(t *testing.T) {
		m := newMachine(t)
		e, later, unknown := m.Expect(tagNumbered(1), tagNumbered(2)), m.Expect(tagNumbered(3)), m.Expect(tagNumbered(4))
		m.entry(Origin{}, Tagged{tagNumbered(1), &RaiseEpoch{}})
		e.Committed(2)
		later.Committed(3)
		if isDone(e) {
			t.Fatal("skipped while the entry may still be applied here")
		}
		if err := m.Restore(readCloser(snapshot())); err != nil {
			t.Fatal(err)
		}
		skipped(t, e, 1)
		if r := e.Results()[0]; r.Value != job.Epoch(1) || e.Index() != 1 {
			t.Fatalf("what came before is answered %+v", r)
		}
		if isDone(later) || isDone(unknown) {
			t.Fatal("what is not known to be in the snapshot was skipped")
		}
		m.index = 2
		m.entry(Origin{}, Tagged{tagNumbered(3), &RaiseEpoch{}}, Tagged{tagNumbered(4), &RaiseEpoch{}})
		if later.Results()[0].Value != job.Epoch(3) || unknown.Results()[0].Value != job.Epoch(4) {
			t.Fatalf("answers are %+v and %+v", later.Results(), unknown.Results())
		}
		nobodyWaits(t, m.State)
	})
	t.Run("committed after", func(t *testing.T) {
		m := newMachine(t)
		e := m.Expect(tagNumbered(2))
		if err := m.Restore(readCloser(snapshot())); err != nil {
			t.Fatal(err)
		}
		if isDone(e) {
			t.Fatal("a restore skipped what nobody has committed")
		}
		e.Committed(2)
		skipped(t, e, 0)
		nobodyWaits(t, m.State)
	})
	t.Run("behind an older state", func(t *testing.T) {
		m := newMachine(t)
		e := m.Expect(tagNumbered(9))
		if err := m.Restore(readCloser(snapshot())); err != nil {
			t.Fatal(err)
		}
		e.Committed(50) // an operator restored an older state over entry 50
		m.index = 50
		m.entry(Origin{}, &Maintain{})
		skipped(t, e, 0)
		nobodyWaits(t, m.State)
	})
}

// TestWhoIsAnsweredReadsItsWrite: once an expectation is done, every read sees the entry; and who sees the entry's index
// finds the expectation done.
func TestWhoIsAnsweredReadsItsWrite(t *testing.T) {
	t.Parallel()
	d := &driver{s: New()}
	const entries = 300
	var logs []*raft.Log
	var waiting []*Expectation
	for n := range entries {
		tag := Tag{0: byte(n), 1: byte(n >> 8), 2: 1}
		waiting = append(waiting, d.s.Expect(tag))
		logs = append(logs, d.log(t0, Tagged{tag, &Submit{Runs: []*job.Run{bornAt(n, t0)}}}))
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for n, e := range waiting {
			<-e.Done()
			if d.s.View().Run(numbered(n)) == nil || d.s.Index() < e.Index() {
				t.Errorf("entry %d is answered and not to be read", n)
				return
			}
		}
	})
	wg.Go(func() {
		for {
			at := d.s.Index()
			for i := range int(at) {
				if !isDone(waiting[i]) {
					t.Errorf("the state is at %d and entry %d is not answered", at, i+1)
					return
				}
			}
			if at == entries {
				return
			}
		}
	})
	wg.Go(func() {
		for n := range 1000 {
			e := d.s.Expect(Tag{0: byte(n), 1: byte(n >> 8), 2: 2})
			e.Committed(1 << 40)
			e.Cancel()
		}
	})
	d.apply(logs)
	wg.Wait()
	nobodyWaits(t, d.s)
}

func TestCommandsTravel(t *testing.T) {
	t.Parallel()
	sent := []Command{&Maintain{On: true}}
	for i, c := range samples() {
		sent = append(sent, Tagged{tagNumbered(byte(i + 1)), c})
	}
	data, err := EncodeCommands(sent)
	if err != nil {
		t.Fatal(err)
	}
	if n := Size(sent...); n < len(data) {
		t.Fatalf("the commands of %d bytes are estimated at %d", len(data), n)
	}
	got, err := DecodeCommands(data)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(sent, got); d != "" {
		t.Fatalf("came through as (-want +got):\n%s", d)
	}
	inLog, err := EncodeEntry(Origin{}, t0, sent...)
	if err != nil {
		t.Fatal(err)
	}
	e, err := DecodeEntry(inLog)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(sent, e.Commands); d != "" {
		t.Fatalf("came out of the log as (-want +got):\n%s", d)
	}
}

func TestCommandsThatCannotBeReadAreRefused(t *testing.T) {
	t.Parallel()
	encode := func(w wireCommand) []byte {
		b, err := encoder.Marshal(&wireCommands{[]wireCommand{w}})
		if err != nil {
			t.Fatal(err)
		}
		return append([]byte{commandsFormat}, b...)
	}
	body := []byte{0xa1, 0x01, 0xf5}
	if _, err := DecodeCommands(encode(wireCommand{Kind: KindMaintain, Version: 1, Body: body})); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		data []byte
		code job.Code
	}{
		"nothing":        {nil, job.Invalid},
		"another format": {[]byte{9, 0xa0}, job.Invalid},
		"no encoding":    {[]byte{commandsFormat, 0xff}, job.Invalid},
		"unknown kind":   {encode(wireCommand{Kind: 999, Version: 1, Body: body}), job.Unavailable},
		"newer version":  {encode(wireCommand{Kind: KindMaintain, Version: 9, Body: body}), job.Unavailable},
		"wrong body":     {encode(wireCommand{Kind: KindMaintain, Version: 1, Body: []byte{0x01}}), job.Invalid},
	} {
		if _, err := DecodeCommands(c.data); job.CodeOf(err) != c.code {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestForwardable walks every kind, so that a new one is decided about.
func TestForwardable(t *testing.T) {
	t.Parallel()
	leaders := map[Kind]bool{KindRaiseEpoch: true, KindGrant: true, KindDecide: true, KindInitCluster: true,
		KindRaiseStore: true, KindStoreTicks: true, KindMove: true, KindPrune: true, KindRelease: true, KindFire: true}
	for k := range Supported() {
		if Forwardable(k) == leaders[k] {
			t.Errorf("kind %d: forwardable %v", k, Forwardable(k))
		}
	}
	if Forwardable(999) {
		t.Error("an unknown kind is forwardable")
	}
	if c := (Tagged{tagNumbered(1), &Move{}}); Forwardable(c.Kind()) {
		t.Error("a tag makes a move forwardable")
	}
}

func FuzzDecodeCommands(f *testing.F) {
	for _, c := range append(samples(), Tagged{tagNumbered(1), &Maintain{On: true}}) {
		data, err := EncodeCommands([]Command{c})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		commands, err := DecodeCommands(data)
		if err != nil {
			if c := job.CodeOf(err); c != job.Invalid && c != job.Unavailable {
				t.Fatalf("%v", err)
			}
			return
		}
		New().apply(1, &Entry{Commands: commands})
	})
}
