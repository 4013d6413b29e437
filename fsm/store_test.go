package fsm

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

// What the store contract says is tested by storage/storagetest; here is what only this store has.

func (m *machine) limit(l Limits) { m.do(&SetLimits{Limits: l}) }

// endedSize is what a run takes after machine.ends.
func endedSize(r *job.Run) int64 {
	r.Worker = "w"
	return runSize(r)
}

func TestSubmitIsRefusedWhenFullAndMovesAreTaken(t *testing.T) {
	m := newMachine(t)
	size := runSize(m.born(1))
	m.limit(Limits{MaxLiveBytes: 3*size + size/2})
	m.submit(m.born(1), m.born(2))
	e := m.refused(&Submit{Runs: []*job.Run{m.born(3), m.born(4)}}, job.Exhausted)
	if e.Reason != "store_full" {
		t.Fatalf("reason %s", e.Reason)
	}
	m.submit(m.born(3))
	m.refused(&Submit{Runs: []*job.Run{m.born(4)}}, job.Exhausted)
	// What is known needs no room, so that a retry learns what became of it.
	if r := m.submit(m.born(1), m.born(3)); !r[0].Existing || !r[1].Existing {
		t.Fatalf("receipts are %+v", r)
	}
	moved := m.do(&Move{Moves: []job.Move{{ID: numbered(1), State: job.Scheduled, Error: strings.Repeat("x", 10_000), ReadyAt: t0}}}).([]job.Moved)
	if !moved[0].Applied {
		t.Fatal("a move was refused")
	}
	m.ends(1, fence(0, 1))
	m.submit(m.born(4))
}

func TestStoreTicksIsRefusedWhenFull(t *testing.T) {
	m := newMachine(t)
	m.putJob(1, document)
	m.limit(Limits{MaxLiveBytes: 1})
	k := tickAt(1, 1, t0)
	m.refused(&StoreTicks{Ticks: []job.Tick{k}}, job.Exhausted)
	m.limit(Limits{})
	m.do(&StoreTicks{Ticks: []job.Tick{k}})
	m.limit(Limits{MaxLiveBytes: 1})
	if runs := m.do(&StoreTicks{Ticks: []job.Tick{k}}).([]*job.Run); runs[0] == nil {
		t.Fatal("a tick that is stored is refused")
	}
}

func TestBirthsAreRefusedWhenNobodyPrunes(t *testing.T) {
	m := newMachine(t)
	size := endedSize(m.born(1))
	m.limit(Limits{MaxHistoryBytes: size})
	for n := range 3 {
		m.submit(m.born(n))
		m.ends(n, fence(0, 1))
	}
	m.refused(&Submit{Runs: []*job.Run{m.born(9)}}, job.Exhausted)
	if n := m.do(&Prune{Limit: 10}).(int); n != 2 {
		t.Fatalf("%d rows were pruned", n)
	}
	m.submit(m.born(9))
}

func TestPutJobIsRefusedWhenFull(t *testing.T) {
	m := newMachine(t)
	m.limit(Limits{MaxDefinitionBytes: versionOverhead + 3*int64(len(document))})
	m.putJob(1, document)
	m.refused(&PutJob{ID: jobNumbered(2), Namespace: "default", Name: "job-2", Document: []byte(document), At: t0}, job.Exhausted)
	m.do(&DeleteJob{Namespace: "default", Name: "job-1"})
	m.putJob(2, document)
	m.refused(&PutJob{ID: jobNumbered(3), Namespace: "a\x00b", Name: "x", Document: []byte(document)}, job.Invalid)
	m.refused(&PutJob{ID: jobNumbered(3), Namespace: "a", Name: "x", Document: []byte(`{`)}, job.Invalid)
}

func withKey(key string) func(*job.Run) {
	return func(r *job.Run) { r.Key, r.BodyHash = key, []byte("hash") }
}

func TestKeysLiveADayAndAreNeverEvictedEarly(t *testing.T) {
	m := newMachine(t)
	first := m.born(1, withKey("k"))
	m.limit(Limits{MaxKeyBytes: keySize(&keyRow{Namespace: "default", Key: "k", BodyHash: first.BodyHash})})
	m.submit(first)
	r := m.submit(m.born(2, withKey("l")), m.born(3))
	if job.CodeOf(r[0].Err) != job.Exhausted || r[1].Err != nil {
		t.Fatalf("receipts are %+v", r)
	}
	if n := m.do(&Prune{Limit: 10}); n != 0 {
		t.Fatalf("%d rows were pruned", n)
	}
	m.pass(KeyLife - time.Microsecond)
	if r := m.submit(m.born(4, withKey("k"))); !r[0].Existing {
		t.Fatalf("the key was forgotten early: %+v", r[0])
	}
	m.pass(time.Microsecond)
	if r := m.submit(m.born(5, withKey("k"))); r[0].Existing || r[0].Err != nil {
		t.Fatalf("the key lives too long: %+v", r[0])
	}
	m.pass(KeyLife)
	m.do(&Prune{Limit: 10})
	if v := m.View(); v.keys.tree.Len() != 0 || v.keyAges.tree.Len() != 0 || v.g.KeyBytes != 0 {
		t.Fatalf("%d keys are left", v.keys.tree.Len())
	}
}

func TestAKeyOutlivesItsRun(t *testing.T) {
	m := newMachine(t)
	m.submit(m.born(1, withKey("k")))
	m.ends(1, fence(0, 1))
	if n := m.do(&Prune{Before: t0.Add(time.Hour), Limit: 10}); n != 1 {
		t.Fatalf("%d rows were pruned", n)
	}
	r := m.submit(m.born(2, withKey("k")))[0]
	if !r.Existing || r.Run.ID != numbered(1) || r.Run.State != job.Succeeded {
		t.Fatalf("receipt is %+v", r)
	}
	other := m.born(3, withKey("k"))
	other.BodyHash = []byte("other")
	if r := m.submit(other)[0]; job.CodeOf(r.Err) != job.Conflict {
		t.Fatalf("receipt is %+v", r)
	}
}

func TestPruneOverTheBoundTakesTheOldestFirst(t *testing.T) {
	m := newMachine(t)
	m.putJob(1, document)
	size := endedSize(m.born(1))
	var ticks []job.Tick
	for n := range 10 {
		r := bornAt(n*10_000, t0) // a second apart by their ids
		m.submit(r)
		m.ends(n*10_000, fence(0, 1))
		k := tickAt(1, 1, job.At(r.ID.Time()).Add(500*time.Millisecond))
		k.Disposition = job.TickSkipped
		ticks = append(ticks, k)
	}
	m.do(&StoreTicks{Ticks: ticks})
	m.submit(m.born(77)) // live, and among the oldest
	m.limit(Limits{MaxHistoryBytes: 5*(size+tickOverhead) + tickOverhead})
	if n := m.do(&Prune{Limit: 3}); n != 3 {
		t.Fatalf("%d rows were pruned", n)
	}
	if n := m.do(&Prune{Limit: 100}); n != 6 {
		t.Fatalf("%d rows were pruned", n)
	}
	v := m.View()
	for n := range 10 {
		if got := v.Run(numbered(n*10_000)) != nil; got != (n >= 5) {
			t.Errorf("run %d is there: %v", n, got)
		}
		if got := v.ledger.get(ticks[n].Key()) != nil; got != (n >= 4) {
			t.Errorf("tick %d is there: %v", n, got)
		}
	}
	if v.Run(numbered(77)) == nil {
		t.Error("a live run was pruned")
	}
}

func TestPruneKeepsWhatIsNotAcknowledged(t *testing.T) {
	m := newMachine(t)
	m.putJob(1, document)
	m.schedule(1, 1)
	at := t0.Add(time.Minute)
	k := tickAt(1, 1, at)
	m.decide(&Decide{Ticks: []job.Tick{k}, Marks: []job.MarkMove{markTo(1, 1, at)}}, k)
	m.do(&StoreTicks{Ticks: []job.Tick{k}})
	m.do(&Move{Moves: []job.Move{{ID: k.RunID(), State: job.Succeeded, FinishedAt: at}}})
	prune := &Prune{Before: at.Add(time.Hour), Limit: 10}
	if n := m.do(prune); n != 1 { // the run, not the row
		t.Fatalf("%d rows were pruned", n)
	}
	if runs := m.do(&StoreTicks{Ticks: []job.Tick{k}}).([]*job.Run); runs[0] != nil {
		t.Fatal("a tick ran again after its run was pruned")
	}
	m.decide(&Decide{Stored: []job.TickKey{k.Key()}})
	if n := m.do(prune); n != 1 {
		t.Fatalf("%d rows were pruned", n)
	}
}

func TestPruneWalksPastRunsThatEndedLate(t *testing.T) {
	m := newMachine(t)
	m.limit(Limits{MaxLiveBytes: 1 << 40, MaxHistoryBytes: 1 << 40})
	// 3,000 old runs that ended today stand before one that ended long ago.
	late := t0.Add(30 * 24 * time.Hour)
	for start := 0; start < 3000; start += 500 {
		c, e := &Submit{}, &Move{}
		for n := start; n < start+500; n++ {
			c.Runs = append(c.Runs, bornAt(n, t0))
			e.Moves = append(e.Moves, job.Move{ID: numbered(n), State: job.Succeeded, FinishedAt: late})
		}
		m.do(c)
		m.do(e)
	}
	m.submit(bornAt(5000, t0))
	m.do(&Move{Moves: []job.Move{{ID: numbered(5000), State: job.Succeeded, FinishedAt: t0}}})
	total := 0
	for range 4 {
		total += m.do(&Prune{Before: late, Limit: 10}).(int)
	}
	if total != 1 || m.View().Run(numbered(5000)) != nil {
		t.Fatalf("%d rows were pruned", total)
	}
}

func TestVersionsAreKeptWhileNeeded(t *testing.T) {
	m := newMachine(t)
	doc := func(v int) string {
		return fmt.Sprintf(`{"name":"x","namespace":"default","description":"%d","exec":{"command":["true"]}}`, v)
	}
	m.putJob(1, doc(1))
	m.submit(m.born(1, func(r *job.Run) { r.JobID, r.Job, r.JobVersion = jobNumbered(1), "job-1", 1 }))
	for v := 2; v <= KeptVersions+5; v++ {
		m.putJob(1, doc(v))
	}
	has := func(v uint64) bool { return m.View().Version(jobNumbered(1), v) != nil }
	for v := uint64(1); v <= KeptVersions+5; v++ {
		if want := v == 1 || v > 5; has(v) != want {
			t.Errorf("version %d is there: %v", v, has(v))
		}
	}
	m.ends(1, fence(0, 1))
	if has(1) {
		t.Error("version 1 stays though nobody needs it")
	}
	m.do(&DeleteJob{Namespace: "default", Name: "job-1"})
	if v := m.View(); v.versions.tree.Len() != 0 || v.g.DefinitionBytes != 0 || v.pins.tree.Len() != 0 {
		t.Errorf("%d versions and %d bytes are left", v.versions.tree.Len(), v.g.DefinitionBytes)
	}
}

func TestAttemptsAreBounded(t *testing.T) {
	m := newMachine(t)
	m.submit(m.born(1))
	for a := uint32(1); a <= KeptAttempts+20; a++ {
		m.do(&Move{Moves: []job.Move{{ID: numbered(1), State: job.Queued, Fence: fence(0, a), Attempt: a, QueuedAt: t0,
			Ended: &job.Attempt{RunID: numbered(1), Attempt: a, Fence: fence(0, a), State: job.Cancelled}}}})
	}
	list := m.View().Attempts(numbered(1))
	if len(list) != KeptAttempts || list[0].Attempt != 21 {
		t.Fatalf("%d attempts from %d on", len(list), list[0].Attempt)
	}
	m.ends(1, fence(0, 500))
	m.do(&Prune{Before: t0.Add(time.Hour), Limit: 10})
	if v := m.View(); v.attempts.tree.Len() != 0 || v.g.HistoryBytes != 0 {
		t.Fatalf("%d attempts and %d bytes are left", v.attempts.tree.Len(), v.g.HistoryBytes)
	}
}

func TestTaskRunsStayWithTheirRoot(t *testing.T) {
	m := newMachine(t)
	task := func(r *job.Run) { r.RootID, r.Task, r.Trigger = numbered(100), "t", job.ByParent }
	m.submit(m.born(100), m.born(200, task), m.born(300, task))
	m.ends(200, fence(0, 1))
	prune := &Prune{Before: t0.Add(time.Hour), Limit: 10}
	if n := m.do(prune); n != 0 {
		t.Fatalf("%d rows of a live DAG were pruned", n)
	}
	var tasks, roots []job.RunID
	for r := range m.View().Runs(Which{Live: true, History: true, RootID: numbered(100)}) {
		tasks = append(tasks, r.ID)
	}
	for r := range m.View().Runs(Which{Live: true, History: true}) {
		roots = append(roots, r.ID)
	}
	if len(tasks) != 2 || tasks[0] != numbered(300) || len(roots) != 1 {
		t.Fatalf("tasks %v, roots %v", tasks, roots)
	}
	m.ends(100, fence(0, 2))
	m.ends(300, fence(0, 3))
	if n := m.do(prune); n != 3 {
		t.Fatalf("%d rows were pruned", n)
	}
}

func TestSubmitRefusesWhatCannotBeStored(t *testing.T) {
	m := newMachine(t)
	r := m.submit(m.born(1, func(r *job.Run) { r.ID = job.RunID{} }), m.born(2, func(r *job.Run) { r.Namespace = "" }),
		m.born(3, func(r *job.Run) { r.State = 77 }), nil, m.born(4))
	for i := range 4 {
		if job.CodeOf(r[i].Err) != job.Invalid {
			t.Errorf("receipt %d is %+v", i, r[i])
		}
	}
	if r[4].Err != nil {
		t.Errorf("receipt 4 is %+v", r[4])
	}
	m.refused(&Move{Moves: []job.Move{{ID: numbered(4), State: 77}}}, job.Invalid)
}
