package fsm

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/job"
)

func (m *machine) schedule(n int, version uint64) job.Mark {
	m.Helper()
	return m.do(&PutSchedule{JobID: jobNumbered(n), Namespace: "default", Job: fmt.Sprintf("job-%d", n), Version: version,
		Schedule: fmt.Appendf(nil, `{"cron":"%d * * * *"}`, version)}).(job.Mark)
}

func tickAt(n int, version uint64, at job.Instant) job.Tick {
	return job.Tick{JobID: jobNumbered(n), Version: version, ScheduledAt: at, Disposition: job.TickRun, DecidedAt: at}
}

func markTo(n int, version uint64, at job.Instant) job.MarkMove {
	return job.MarkMove{JobID: jobNumbered(n), Version: version, At: at}
}

func (m *machine) decide(c *Decide, want ...job.Tick) {
	m.Helper()
	if d := cmp.Diff(want, m.do(c), cmpopts.EquateEmpty()); d != "" {
		m.Fatalf("recorded (-want +got):\n%s", d)
	}
}

func TestDecideRecordsAndMovesTheMark(t *testing.T) {
	m := newMachine(t)
	m.schedule(1, 1)
	at := t0.Add(time.Minute)
	k := tickAt(1, 1, at)
	c := &Decide{Ticks: []job.Tick{k}, Marks: []job.MarkMove{markTo(1, 1, at)}}
	m.decide(c, k)
	if mark, _ := m.Mark(jobNumbered(1)); mark.At != at {
		t.Fatalf("mark is at %s", mark.At)
	}
	if d := cmp.Diff([]job.Tick{k}, m.Unstored()); d != "" {
		t.Fatal(d)
	}
	// Repeated, it answers what waits for the store and changes nothing.
	before := m.fingerprint()
	m.decide(c, k)
	if m.fingerprint() != before {
		t.Fatal("deciding again changed the state")
	}
	m.decide(&Decide{Stored: []job.TickKey{k.Key(), k.Key()}})
	if n := len(m.Unstored()); n != 0 {
		t.Fatalf("%d decisions wait", n)
	}
	m.decide(c) // decided, stored and forgotten: nothing is left to do
	if n := len(m.Unstored()); n != 0 {
		t.Fatalf("a tick was decided twice: %d decisions wait", n)
	}
}

func TestDecideDropsTicksOfAReplacedVersion(t *testing.T) {
	m := newMachine(t)
	m.schedule(1, 1)
	m.schedule(2, 1)
	m.pass(time.Minute)
	m.schedule(1, 2)
	at := m.at.Add(time.Minute)
	k1, k2 := tickAt(1, 1, at), tickAt(2, 1, at)
	m.decide(&Decide{Ticks: []job.Tick{k1, k2}, Marks: []job.MarkMove{markTo(1, 1, at), markTo(2, 1, at)}}, k2)
	m.decide(&Decide{Ticks: []job.Tick{tickAt(3, 1, at)}, Marks: []job.MarkMove{markTo(3, 1, at)}}) // no such schedule
}

func TestDecideNeverGoesBack(t *testing.T) {
	m := newMachine(t)
	m.schedule(1, 1)
	late, early := t0.Add(time.Hour), t0.Add(time.Minute)
	k := tickAt(1, 1, late)
	m.decide(&Decide{Ticks: []job.Tick{k}, Marks: []job.MarkMove{markTo(1, 1, late)}}, k)
	m.decide(&Decide{Ticks: []job.Tick{tickAt(1, 1, early)}, Marks: []job.MarkMove{markTo(1, 1, early)}})
	if mark, _ := m.Mark(jobNumbered(1)); mark.At != late {
		t.Fatalf("mark is at %s", mark.At)
	}
	// A tick at or before the mark is decided, whatever the new mark.
	m.decide(&Decide{Ticks: []job.Tick{tickAt(1, 1, early)}, Marks: []job.MarkMove{markTo(1, 1, late.Add(time.Hour))}})
}

func TestDecideRefusesWhatDoesNotBelongTogether(t *testing.T) {
	m := newMachine(t)
	m.schedule(1, 1)
	at := t0.Add(time.Minute)
	m.refused(&Decide{Ticks: []job.Tick{tickAt(1, 1, at)}}, job.Invalid)
	m.refused(&Decide{Ticks: []job.Tick{tickAt(1, 1, at+1)}, Marks: []job.MarkMove{markTo(1, 1, at)}}, job.Invalid)
	m.refused(&Decide{Ticks: []job.Tick{tickAt(1, 2, at)}, Marks: []job.MarkMove{markTo(1, 1, at)}}, job.Invalid)
	m.refused(&Decide{Marks: []job.MarkMove{markTo(1, 1, at), markTo(1, 1, at)}}, job.Invalid)
	m.do(&RaiseEpoch{})
	m.refused(&Decide{Marks: []job.MarkMove{markTo(1, 1, at)}}, job.Fenced)
}

func TestPutScheduleOldVersionOwnsWhatWasDue(t *testing.T) {
	m := newMachine(t)
	first := m.schedule(1, 1)
	if first.From != t0 || first.At != t0 || len(first.Earlier) != 0 {
		t.Fatalf("mark is %+v", first)
	}
	m.pass(time.Hour)
	second := m.schedule(1, 2)
	if second.From != m.at || second.At != t0 || len(second.Earlier) != 1 {
		t.Fatalf("mark is %+v", second)
	}
	if e := second.Earlier[0]; e.Version != 1 || e.Until != second.From || string(e.Schedule) != string(first.Schedule) {
		t.Fatalf("earlier version is %+v", e)
	}
	m.pass(time.Hour)
	third := m.schedule(1, 3)
	if third.From != m.at || third.At != t0 || len(third.Earlier) != 2 || third.Earlier[1].Version != 2 {
		t.Fatalf("mark is %+v", third)
	}
	// One decision covers all versions' ticks and clears the earlier ones.
	ticks := []job.Tick{tickAt(1, 1, t0.Add(30*time.Minute)), tickAt(1, 2, t0.Add(90*time.Minute)), tickAt(1, 3, m.at.Add(time.Minute))}
	m.decide(&Decide{Ticks: ticks, Marks: []job.MarkMove{markTo(1, 3, m.at.Add(time.Minute))}}, ticks...)
	if mark, _ := m.Mark(jobNumbered(1)); len(mark.Earlier) != 0 || mark.At != m.at.Add(time.Minute) {
		t.Fatalf("mark is %+v", mark)
	}
}

func TestPutScheduleKeepsEarlierVersionsPastAShortMove(t *testing.T) {
	m := newMachine(t)
	m.schedule(1, 1)
	m.pass(time.Hour)
	m.schedule(1, 2)
	m.decide(&Decide{Marks: []job.MarkMove{markTo(1, 2, t0.Add(time.Minute))}})
	if mark, _ := m.Mark(jobNumbered(1)); len(mark.Earlier) != 1 || mark.At != t0.Add(time.Minute) {
		t.Fatalf("mark is %+v", mark)
	}
}

func TestPutScheduleAheadOfTheClock(t *testing.T) {
	m := newMachine(t)
	m.schedule(1, 1)
	ahead := t0.Add(time.Minute)
	m.decide(&Decide{Marks: []job.MarkMove{markTo(1, 1, ahead)}})
	if mark := m.schedule(1, 2); mark.From != ahead || mark.At != ahead || len(mark.Earlier) != 0 {
		t.Fatalf("mark is %+v", mark)
	}
}

func TestPutScheduleVersions(t *testing.T) {
	m := newMachine(t)
	m.schedule(1, 2)
	before := m.fingerprint()
	m.pass(time.Minute)
	if mark := m.schedule(1, 2); mark.From != t0 || m.fingerprint() != before {
		t.Fatalf("putting the same version again made %+v", mark)
	}
	m.refused(&PutSchedule{JobID: jobNumbered(1), Namespace: "default", Job: "job-1", Version: 1, Schedule: []byte(`{}`)}, job.Conflict)
	m.refused(&PutSchedule{JobID: jobNumbered(1), Version: 3, Schedule: []byte(`{`)}, job.Invalid)
	for v := uint64(3); v < 3+job.MaxEarlier; v++ {
		m.pass(time.Second)
		m.schedule(1, v)
	}
	m.pass(time.Second)
	m.refused(&PutSchedule{JobID: jobNumbered(1), Version: 99, Schedule: []byte(`{}`)}, job.Unavailable)
}

func TestPutScheduleTellsTheVersionRow(t *testing.T) {
	m := newMachine(t)
	m.putJob(1, document)
	m.pass(time.Hour)
	mark := m.schedule(1, 1)
	if v := m.View().Version(jobNumbered(1), 1); v.From != mark.From {
		t.Fatalf("version is from %s, the mark from %s", v.From, mark.From)
	}
}

func TestDropSchedule(t *testing.T) {
	m := newMachine(t)
	m.schedule(1, 3)
	m.do(&DropSchedule{JobID: jobNumbered(1), Version: 2})
	if _, ok := m.Mark(jobNumbered(1)); !ok {
		t.Fatal("a newer version was dropped")
	}
	for range 2 {
		m.do(&DropSchedule{JobID: jobNumbered(1), Version: 3})
	}
	if n := len(m.Marks()); n != 0 {
		t.Fatalf("%d marks", n)
	}
}

func TestScheduleChanges(t *testing.T) {
	m := newMachine(t)
	taken := func(want ...int) {
		t.Helper()
		signalled := false
		select {
		case <-m.ScheduleChanges():
			signalled = true
		default:
		}
		if signalled != (len(want) > 0) {
			t.Fatalf("signalled: %v, want changes of %v", signalled, want)
		}
		var ids []job.JobID
		for _, n := range want {
			ids = append(ids, jobNumbered(n))
		}
		slices.SortFunc(ids, compareID)
		got := m.TakeScheduleChanges()
		slices.SortFunc(got, compareID)
		if !slices.Equal(got, ids) {
			t.Fatalf("changed: %v, want %v", got, ids)
		}
	}
	taken()
	m.schedule(1, 1)
	m.schedule(2, 1)
	m.schedule(1, 1)
	taken(1, 2)
	m.decide(&Decide{Marks: []job.MarkMove{markTo(1, 1, t0.Add(time.Minute))}})
	taken()
	m.do(&PauseJob{JobID: jobNumbered(1), Paused: true})
	m.do(&PauseJob{JobID: jobNumbered(1), Paused: true})
	taken(1)
	m.do(&PauseNamespace{Namespace: "other", Paused: true})
	taken()
	m.do(&PauseNamespace{Namespace: "default", Paused: true})
	taken(1, 2)
	m.do(&Maintain{On: true})
	taken(1, 2)
	m.do(&DropSchedule{JobID: jobNumbered(2)})
	m.do(&DropSchedule{JobID: jobNumbered(2)})
	taken(2)
	other := New()
	if err := other.Restore(readCloser(persisted(t, m.State)())); err != nil {
		t.Fatal(err)
	}
	m.State = other
	taken(1)
}

func TestPaused(t *testing.T) {
	m := newMachine(t)
	m.schedule(1, 1)
	id := jobNumbered(1)
	expect := func(want job.Reason) {
		t.Helper()
		if got := m.Paused(id, "default"); got != want {
			t.Fatalf("paused: %s, want %s", got, want)
		}
	}
	resumed := func() job.Instant {
		mark, _ := m.Mark(id)
		return mark.ResumedAt
	}
	expect(job.NoReason)
	m.do(&PauseJob{JobID: id, Paused: true})
	expect(job.JobPaused)
	m.do(&PauseNamespace{Namespace: "default", Paused: true})
	expect(job.NamespacePaused)
	m.do(&Maintain{On: true})
	expect(job.Maintenance)
	if !m.View().Maintenance() || !slices.Equal(m.View().PausedNamespaces(), []string{"default"}) {
		t.Fatal("what is paused is not listed")
	}
	if resumed() != 0 {
		t.Fatal("pausing is not resuming")
	}
	for _, c := range []Command{&Maintain{}, &PauseNamespace{Namespace: "default"}, &PauseJob{JobID: id}} {
		m.pass(time.Minute)
		m.do(c)
		if resumed() != m.at {
			t.Fatalf("after %T the mark was resumed at %s", c, resumed())
		}
		before := m.fingerprint()
		m.pass(time.Minute)
		m.do(c)
		if m.fingerprint() != before {
			t.Fatalf("%T again changed the state", c)
		}
	}
	expect(job.NoReason)
	if mark := m.schedule(1, 2); mark.ResumedAt == 0 {
		t.Fatal("a new version forgot when the job was resumed")
	}
	m.refused(&PauseJob{Paused: true}, job.Invalid)
	m.refused(&PauseNamespace{Paused: true}, job.Invalid)
}

func TestFlagWorker(t *testing.T) {
	m := newMachine(t)
	for _, s := range []job.WorkerState{job.WorkerReady, job.WorkerCordoned, job.WorkerDraining, job.WorkerReady} {
		m.do(&FlagWorker{Name: "w1", State: s})
		if got := m.WorkerFlag("w1"); got != s {
			t.Fatalf("flag is %s, want %s", got, s)
		}
	}
	if n := m.View().flags.tree.Len(); n != 0 {
		t.Fatalf("%d flags are kept for a worker that is ready", n)
	}
	m.refused(&FlagWorker{Name: "w1", State: job.WorkerGone}, job.Invalid)
	m.refused(&FlagWorker{State: job.WorkerReady}, job.Invalid)
}

func TestAMarkMovesOnlyFromWhereItWasDecidedFrom(t *testing.T) {
	t.Parallel()
	s := New()
	id := job.MakeJobID(time.Unix(1_800_000_000, 0), [10]byte{1})
	t0 := job.At(time.Unix(1_800_000_000, 0))
	apply := func(at job.Instant, c Command) Result {
		t.Helper()
		data, err := EncodeEntry(Origin{}, at, c)
		if err != nil {
			t.Fatal(err)
		}
		return s.Apply(&raft.Log{Index: s.Index() + 1, Type: raft.LogCommand, Data: data}).([]Result)[0]
	}
	apply(t0, &RaiseEpoch{})
	apply(t0, &PutSchedule{JobID: id, Namespace: "n", Job: "j", Version: 1, Schedule: []byte(`{"cron":"@every 1m"}`)})
	tick := func(at job.Instant) []job.Tick {
		return []job.Tick{{JobID: id, Version: 1, ScheduledAt: at, Disposition: job.TickRun, DecidedAt: at}}
	}
	decide := func(was, at job.Instant) int {
		r := apply(at, &Decide{Epoch: 1, Ticks: tick(at), Marks: []job.MarkMove{{JobID: id, Version: 1, At: at, Was: was}}})
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		return len(r.Value.([]job.Tick))
	}
	if n := decide(t0+30, t0+60); n != 0 {
		t.Fatal("a decision from another mark was recorded: it could hide a tick between (D2)")
	}
	if n := decide(t0, t0+60); n != 1 {
		t.Fatal("a decision from the mark as it stands was refused")
	}
}
