package fsm

import (
	"bytes"
	"testing"

	"github.com/musterhq/muster/job"
)

// What every store answers to Release and Fire is in storage/storagetest; here is what only this one has.

func (m *machine) fire(limit int) []*job.Run {
	m.Helper()
	return m.do(&Fire{Now: m.at, Limit: limit}).([]*job.Run)
}

func (m *machine) ran(n int, j *job.Job) []job.JobID {
	m.Helper()
	m.submit(m.born(n, func(r *job.Run) { r.JobID, r.Job, r.JobVersion = j.ID, j.Name, j.Version }))
	return m.do(&Move{Moves: []job.Move{{ID: numbered(n), State: job.Succeeded, FinishedAt: m.at}}}).([]job.Moved)[0].Due
}

func (m *machine) full() {
	m.do(&SetLimits{Limits: Limits{MaxLiveBytes: 1}})
}

func TestReleaseIsTakenByAFullStore(t *testing.T) {
	m := newMachine(t)
	m.full()
	m.refused(&Submit{Runs: []*job.Run{m.born(1)}}, job.Exhausted)
	r := m.do(&Release{Runs: []*job.Run{m.born(1), nil, m.born(0, func(r *job.Run) { r.ID = job.RunID{} })}}).([]job.Receipt)
	if r[0].Err != nil || job.CodeOf(r[1].Err) != job.Invalid || job.CodeOf(r[2].Err) != job.Invalid || m.View().Run(numbered(1)) == nil {
		t.Fatalf("receipts are %+v", r)
	}
}

func TestFireWaitsForRoom(t *testing.T) {
	m := newMachine(t)
	a := m.do(m.depends("a")).(*job.Job)
	m.do(m.depends("b", "a"))
	m.fire(10)
	if m.View().Fires() {
		t.Fatal("something is due before anything ran")
	}
	m.ran(1, a)
	m.submit(m.born(2))
	m.full()
	if m.View().Fires() || len(m.fire(10)) != 0 {
		t.Fatal("a full store gave birth")
	}
	m.do(&SetLimits{})
	if !m.View().Fires() || len(m.fire(10)) != 1 || m.View().Fires() {
		t.Fatal("a job that was due is not born once there is room")
	}
}

// TestEdgesOfAnOlderSnapshot: what knew edges from documents only has them judged, and they are satisfied from then on.
func TestEdgesOfAnOlderSnapshot(t *testing.T) {
	m := newMachine(t)
	a := m.do(m.depends("a")).(*job.Job)
	m.ran(1, a)
	b := m.do(m.depends("b", "a")).(*job.Job)
	s := m.freeze()
	older := *s.tables
	older.edgeRows = newEdgeTable()
	var data bytes.Buffer
	if err := (&snapshot{tables: &older, windows: s.windows}).write(&data); err != nil {
		t.Fatal(err)
	}
	if err := m.Restore(readCloser(&data)); err != nil {
		t.Fatal(err)
	}
	consistent(t, m.State)
	if m.View().Fires() || len(m.fire(10)) != 0 {
		t.Fatal("what ended before the upgrade made a run")
	}
	if due := m.ran(2, a); len(due) != 1 || due[0] != b.ID || len(m.fire(10)) != 1 {
		t.Fatalf("due are %v", due)
	}
}

// TestNoEdgesNoSection: a node that does not know the table reads a snapshot of a cluster that has no edges.
func TestNoEdgesNoSection(t *testing.T) {
	m := newMachine(t)
	m.do(m.depends("a"))
	sections := func() (list []byte) {
		err := readSections(bytes.NewReader(snapshotBytes(t, m.State)), func(number byte) (func([]byte) error, error) {
			list = append(list, number)
			return func([]byte) error { return nil }, nil
		}, func() {})
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if bytes.IndexByte(sections(), sectionEdges) >= 0 {
		t.Fatal("an empty section is written")
	}
	m.do(m.depends("b", "a"))
	if bytes.IndexByte(sections(), sectionEdges) < 0 {
		t.Fatal("the edges are lost")
	}
}
