package workerpb

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/musterhq/muster/job"
)

// What goes over the wire comes out the same.
func TestRoundTrips(t *testing.T) {
	t.Parallel()
	text := rapid.StringOfN(rapid.RuneFrom([]rune("abcxyzé ")), 0, 40, -1)
	id := rapid.Custom(func(t *rapid.T) (id job.RunID) {
		copy(id[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
		return id
	})
	rapid.Check(t, func(t *rapid.T) {
		o := job.Outcome{
			RunID: id.Draw(t, "run"), Fence: job.Fence(rapid.Uint64Min(1).Draw(t, "fence")), Attempt: rapid.Uint32Min(1).Draw(t, "attempt"),
			Worker: "w1", Kind: job.OutcomeKind(rapid.IntRange(1, 5).Draw(t, "kind")), Reason: job.Reason(rapid.IntRange(0, 27).Draw(t, "reason")),
			Error: text.Draw(t, "error"), ExitCode: rapid.Int32().Draw(t, "exit"), StartedAt: job.Instant(rapid.Int64Range(0, maxTime).Draw(t, "started")),
			FinishedAt: job.Instant(rapid.Int64Range(0, maxTime).Draw(t, "finished")), Permanent: rapid.Bool().Draw(t, "permanent"),
		}
		if rapid.Bool().Draw(t, "with result") {
			o.Result, _ = json.Marshal(text.Draw(t, "result"))
		}
		got, err := through(t, NewResult(&o), &Result{}).Outcome("w1")
		if diff := cmp.Diff(o, got); err != nil || diff != "" {
			t.Fatalf("outcome: %v %s", err, diff)
		}

		spec := &job.Document{}
		a := &job.Assignment{
			RunID: o.RunID, RootID: o.RunID, Fence: o.Fence, Attempt: o.Attempt, Namespace: text.Draw(t, "ns"), Job: text.Draw(t, "job"),
			JobVersion: rapid.Uint64().Draw(t, "version"), Task: text.Draw(t, "task"), ScheduledAt: o.StartedAt, DeadlineAt: o.FinishedAt,
			Payload: o.Result, Spec: spec,
		}
		if rapid.Bool().Draw(t, "task run") {
			a.RootID = id.Filter(func(id job.RunID) bool { return !id.IsZero() }).Draw(t, "root")
			a.Labels = map[string]string{"k": text.Draw(t, "label")}
		}
		assignment, err := through(t, NewAssignment(a), &Assignment{}).ForJob(spec)
		if diff := cmp.Diff(a, assignment); err != nil || diff != "" {
			t.Fatalf("assignment: %v %s", err, diff)
		}

		s := job.Started{RunID: o.RunID, Fence: o.Fence, At: o.StartedAt}
		if got, err := through(t, NewStarted(&s), &Started{}).ForJob(); err != nil || got != s {
			t.Fatalf("started: %v %+v", err, got)
		}

		h := job.WorkerHello{Name: "w-1", Boot: "b", DataID: "d", Version: text.Draw(t, "v"), Slots: rapid.IntRange(1, 1000).Draw(t, "slots"),
			Labels: map[string]string{"region": text.Draw(t, "region")}, Executors: []string{"exec", "handler"}, Handlers: []string{"a"},
			Running: []job.Fence{o.Fence, 7}}
		hello, err := through(t, NewHello(&h), &Hello{}).WorkerHello()
		if diff := cmp.Diff(h, hello); err != nil || diff != "" {
			t.Fatalf("hello: %v %s", err, diff)
		}
	})
}

func through[M proto.Message](t interface{ Fatal(...any) }, m, out M) M {
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAnErrorIsCutAtACharacter(t *testing.T) {
	t.Parallel()
	for _, s := range []string{strings.Repeat("é", 100), strings.Repeat("日", 100), strings.Repeat("x", 100), "\xff\xfe" + strings.Repeat("z", 100)} {
		got := validText(s, 51)
		if !utf8.ValidString(got) || len(got) > 51+4 || len(got) < 45 {
			t.Errorf("%.10q... became %q (%d bytes)", s, got, len(got))
		}
	}
}

// A time that no answer could hold is not known; it must not make the lists unreadable in which its run stands.
func TestTimesBeyondTheCalendarAreNotKnown(t *testing.T) {
	t.Parallel()
	for _, at := range []int64{-1, math.MinInt64, maxTime + 1, math.MaxInt64} {
		o, err := (&Result{RunId: make([]byte, 16), Fence: 1, Attempt: 1, Kind: Kind_KIND_SUCCEEDED, StartedAt: at, FinishedAt: at}).Outcome("w")
		if err != nil || o.StartedAt != 0 || o.FinishedAt != 0 {
			t.Errorf("%d became %d and %d, %v", at, o.StartedAt, o.FinishedAt, err)
		}
		if s, err := (&Started{RunId: make([]byte, 16), Fence: 1, At: at}).ForJob(); err != nil || s.At != 0 {
			t.Errorf("%d became %d, %v", at, s.At, err)
		}
	}
	b, err := json.Marshal(validTime(maxTime))
	if err != nil {
		t.Fatal(err)
	}
	var back job.Instant
	if err := json.Unmarshal(b, &back); err != nil || int64(back) != maxTime {
		t.Errorf("the last time is read as %d, %v", back, err)
	}
}

func TestLongHellosAreRefused(t *testing.T) {
	t.Parallel()
	for field, change := range map[string]func(*Hello){
		"hello.executors": func(h *Hello) { h.Executors = slices.Repeat([]string{"exec"}, maxExecutors+1) },
		"hello.running":   func(h *Hello) { h.Running = make([]uint64, maxSlots+1) },
	} {
		h := &Hello{Name: "w", Boot: "b", DataId: "d", Slots: 1}
		change(h)
		if _, err := h.WorkerHello(); job.CodeOf(err) != job.Invalid || job.AsError(err).Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// FuzzWorkerMessage gives the conversions whatever a stranger may send: they answer a value that keeps the limits, or an
// Invalid error, and never panic.
func FuzzWorkerMessage(f *testing.F) {
	for _, m := range []*WorkerMessage{
		{Hello: &Hello{Name: "w", Boot: "b", DataId: "d", Slots: 1, Labels: map[string]string{"a": "b"}, Running: []uint64{1, 2}}},
		{Heartbeat: &Heartbeat{Seq: 1, Running: []uint64{3}}, Started: []*Started{{RunId: make([]byte, 16), Fence: 1, At: 5}}},
		{Results: []*Result{{RunId: make([]byte, 16), Fence: 1, Attempt: 1, Kind: Kind_KIND_FAILED, Reason: "exit_code", Error: "x", Result: []byte("{}")}},
			Output: []*Output{{RunId: make([]byte, 16), Fence: 1, Attempt: 1, Offset: 3, Data: []byte("hi")}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m WorkerMessage
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		check := func(err error) bool {
			if err != nil && (job.CodeOf(err) != job.Invalid || job.AsError(err).Field == "") {
				t.Fatalf("refused without naming a field: %v", err)
			}
			return err == nil
		}
		if m.Hello != nil {
			if h, err := m.Hello.WorkerHello(); check(err) && (h.Name == "" || h.Slots < 0 || h.Slots == 0 && !m.Hello.Leaving) {
				t.Fatalf("accepted %+v", h)
			}
		}
		for _, x := range m.Results {
			if o, err := x.Outcome("w"); check(err) && (len(o.Result) > MaxResultBytes || o.Result != nil && !json.Valid(o.Result) ||
				o.Kind == 0 || strings.ContainsRune(o.Error, 0) || !utf8.ValidString(o.Error)) {
				t.Fatalf("accepted %+v", o)
			}
		}
		for _, x := range m.Started {
			_, err := x.ForJob()
			check(err)
		}
		for _, x := range m.Output {
			check(x.Check())
		}
	})
}

// FuzzAssignment does the same for the worker's side.
func FuzzAssignment(f *testing.F) {
	b, err := proto.Marshal(NewAssignment(&job.Assignment{RunID: job.RunID{1}, RootID: job.RunID{2}, Fence: 1, Attempt: 1, Job: "j"}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var x Assignment
		if proto.Unmarshal(b, &x) != nil {
			return
		}
		a, err := x.ForJob(nil)
		if err == nil && (a.Fence == 0 || a.Attempt == 0) || err != nil && job.CodeOf(err) != job.Invalid {
			t.Fatalf("%+v %v", a, err)
		}
	})
}
