package fsm

import (
	"fmt"
	"strings"
	"testing"

	"github.com/musterhq/muster/job"
)

// What every store answers to edges is in storage/storagetest; here is what only this one has: an index.

func (m *machine) depends(name string, upstreams ...string) *PutJob {
	var edges []string
	for _, u := range upstreams {
		edges = append(edges, fmt.Sprintf(`{"job":%q,"on":"success"}`, u))
	}
	document := fmt.Sprintf(`{"name":%q,"namespace":"default","depends_on":[%s],"exec":{"command":["true"]}}`, name, strings.Join(edges, ","))
	return &PutJob{ID: jobNumbered(int(m.index)), Namespace: "default", Name: name, Document: []byte(document), At: m.at}
}

func TestEdgesOutliveASnapshot(t *testing.T) {
	m := newMachine(t)
	m.do(m.depends("a"))
	m.do(m.depends("b", "a"))
	m.do(m.depends("c", "b"))
	if err := m.Restore(readCloser(persisted(t, m.State)())); err != nil {
		t.Fatal(err)
	}
	consistent(t, m.State)
	if e := m.refused(m.depends("a", "c"), job.Conflict); e.Reason != "cycle" || !strings.Contains(e.Message, "a -> c -> b -> a") {
		t.Fatalf("a cycle across a snapshot: %v", e)
	}
	if e := m.refused(&DeleteJob{Namespace: "default", Name: "b"}, job.Conflict); e.Reason != "has_dependents" {
		t.Fatalf("a deletion across a snapshot: %v", e)
	}
}

func TestAReaderOfAnOldViewSeesOldEdges(t *testing.T) {
	m := newMachine(t)
	m.do(m.depends("a"))
	m.do(m.depends("b", "a"))
	v := m.View()
	m.do(m.depends("b"))
	if first, all := v.edges.dependents("default", "a", 5); all != 1 || first[0] != "b" {
		t.Fatalf("%d dependents: %v", all, first)
	}
	if _, all := m.View().edges.dependents("default", "a", 5); all != 0 {
		t.Fatalf("%d dependents are left", all)
	}
}

// TestEdgesAreReadFromDocumentsOnly: the word may stand in them for another reason.
func TestEdgesAreReadFromDocumentsOnly(t *testing.T) {
	t.Parallel()
	for document, want := range map[string]int{
		`{"name":"a"}`: 0,
		`{"name":"a","depends_on":[{"job":"b","on":"done"},{"job":"c","on":"success"}]}`:        2,
		`{"name":"a","depends_on":null}`:                                                        0,
		`{"name":"a","description":"\"depends_on\": [{}]"}`:                                     0,
		`{"name":"a","payload":{"depends_on":[{"job":"b"}]}}`:                                   0,
		`{"name":"a","tasks":[{"name":"x"},{"name":"y","depends_on":["x"]}]}`:                   0,
		`{"name":"a","tasks":[{"name":"y","depends_on":["x"]}],"depends_on":[{"job":"tasks"}]}`: 1,
		`{"depends_on"}`: 0,
	} {
		if got := upstreamsOf([]byte(document)); len(got) != want {
			t.Errorf("%s: %v, want %d", document, got, want)
		}
	}
}

// TestPutJobLooksAtNoMoreThanItReaches: a change in a small part of a large graph allocates as it would alone.
func TestPutJobLooksAtNoMoreThanItReaches(t *testing.T) {
	m := &machine{T: t, State: New(), at: t0} // not in parallel: it counts allocations
	m.do(m.depends("a"))
	m.do(m.depends("b", "a"))
	cost := func() float64 {
		tx := &tx{tables: m.tables}
		c := m.depends("c", "b")
		return testing.AllocsPerRun(10, func() {
			if _, e := tx.dependencies(c); e != nil {
				t.Error(e)
			}
		})
	}
	alone := cost()
	m.do(m.depends("x0", "a"))
	for n := range 2000 {
		m.do(m.depends(fmt.Sprintf("x%d", n+1), fmt.Sprintf("x%d", n), "a"))
	}
	if among := cost(); among > alone+2 {
		t.Errorf("%v allocations among 2,000 others, %v alone", among, alone)
	}
}
