package fsm

import (
	"slices"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

func grantOf(n int, fence job.Fence) job.Grant {
	return job.Grant{RunID: numbered(n), Fence: fence, Attempt: 1, Worker: "w", Boot: "b", GrantedAt: t0, Lane: "default|@exec=|"}
}

func fence(e job.Epoch, n uint32) job.Fence { return job.MakeFence(e, n) }

func (m *machine) grant(want []int, c *Grant) {
	m.Helper()
	if got, _ := m.do(c).([]int); !slices.Equal(got, want) {
		m.Fatalf("grants refused: %v, want %v", got, want)
	}
}

func TestGrantOpensAndEnds(t *testing.T) {
	m := newMachine(t)
	g := grantOf(1, fence(0, 1))
	m.grant(nil, &Grant{Grants: []job.Grant{g, grantOf(2, fence(0, 2))}})
	if got, ok := m.Lease(numbered(1)); !ok || got != g {
		t.Fatalf("lease is %+v", got)
	}
	if n := len(m.Grants()); n != 2 {
		t.Fatalf("%d leases", n)
	}
	m.grant(nil, &Grant{Ended: []job.EndedGrant{{RunID: numbered(1), Fence: fence(0, 1)}}})
	if _, ok := m.Lease(numbered(1)); ok {
		t.Fatal("the ended lease is there")
	}
	if f, ok := m.Ended(numbered(1)); !ok || f != fence(0, 1) {
		t.Fatalf("ended: %d, %v", f, ok)
	}
}

func TestGrantRepeatedIsGrantedOnce(t *testing.T) {
	m := newMachine(t)
	c := &Grant{Grants: []job.Grant{grantOf(1, fence(0, 1))}, Ended: []job.EndedGrant{{RunID: numbered(9), Fence: 5}}}
	m.grant(nil, c)
	before := m.fingerprint()
	m.grant(nil, c)
	if m.fingerprint() != before {
		t.Fatal("repeating a grant changed the state")
	}
}

func TestGrantRefusesASecondLease(t *testing.T) {
	m := newMachine(t)
	m.grant(nil, &Grant{Grants: []job.Grant{grantOf(1, fence(0, 1))}})
	m.grant([]int{0, 2}, &Grant{Grants: []job.Grant{grantOf(1, fence(0, 2)), grantOf(2, fence(0, 3)), grantOf(2, fence(0, 4))}})
	if g, _ := m.Lease(numbered(1)); g.Fence != fence(0, 1) {
		t.Fatalf("the lease is %+v", g)
	}
}

func TestGrantFencesOfARunGrow(t *testing.T) {
	m := newMachine(t)
	m.grant(nil, &Grant{Grants: []job.Grant{grantOf(1, fence(0, 5))}})
	m.grant(nil, &Grant{Ended: []job.EndedGrant{{RunID: numbered(1), Fence: fence(0, 5)}}})
	// A copy of the entry that comes late, and one of an even older grant.
	m.grant([]int{0}, &Grant{Grants: []job.Grant{grantOf(1, fence(0, 5))}})
	m.grant([]int{0}, &Grant{Grants: []job.Grant{grantOf(1, fence(0, 4))}})
	m.grant(nil, &Grant{Grants: []job.Grant{grantOf(1, fence(0, 6))}})
}

func TestGrantEndsBeforeItOpens(t *testing.T) {
	m := newMachine(t)
	m.grant(nil, &Grant{Grants: []job.Grant{grantOf(1, fence(0, 1))}})
	m.grant(nil, &Grant{Grants: []job.Grant{grantOf(1, fence(0, 2))}, Ended: []job.EndedGrant{{RunID: numbered(1), Fence: fence(0, 1)}}})
	if g, _ := m.Lease(numbered(1)); g.Fence != fence(0, 2) {
		t.Fatalf("the lease is %+v", g)
	}
}

func TestGrantEndingWithAnotherFenceChangesNothing(t *testing.T) {
	m := newMachine(t)
	m.grant(nil, &Grant{Grants: []job.Grant{grantOf(1, fence(0, 2))}})
	before := m.fingerprint()
	m.grant(nil, &Grant{Ended: []job.EndedGrant{{RunID: numbered(1), Fence: fence(0, 1)}, {RunID: numbered(7), Fence: fence(0, 1)}}})
	if m.fingerprint() != before {
		t.Fatal("ending what is not there changed the state")
	}
}

func TestGrantEndedAreKeptForAMinute(t *testing.T) {
	m := newMachine(t)
	end := func(n int) {
		f := fence(0, uint32(n))
		m.grant(nil, &Grant{Grants: []job.Grant{grantOf(n, f)}})
		m.grant(nil, &Grant{Ended: []job.EndedGrant{{RunID: numbered(n), Fence: f}}})
	}
	end(1)
	m.pass(job.EndedGrantsKept)
	end(2)
	if _, ok := m.Ended(numbered(1)); !ok {
		t.Fatal("forgotten after exactly a minute")
	}
	m.pass(time.Microsecond)
	end(3)
	if _, ok := m.Ended(numbered(1)); ok {
		t.Fatal("kept after more than a minute")
	}
	if _, ok := m.Ended(numbered(2)); !ok {
		t.Fatal("the later one is forgotten")
	}
	if n := m.View().ended.tree.Len(); n != 2 {
		t.Fatalf("%d blocks are kept", n)
	}
}

func TestGrantIsFenced(t *testing.T) {
	m := newMachine(t)
	if e := m.do(&RaiseEpoch{AtLeast: 4}).(job.Epoch); e != 5 {
		t.Fatalf("epoch %d", e)
	}
	m.refused(&Grant{Epoch: 4, Grants: []job.Grant{grantOf(1, fence(4, 1))}}, job.Fenced)
	m.refused(&Grant{Epoch: 5, Grants: []job.Grant{grantOf(1, fence(5, 1)), grantOf(2, fence(4, 2))}}, job.Invalid)
	m.grant(nil, &Grant{Epoch: 5, Grants: []job.Grant{grantOf(1, fence(5, 1))}})
}

func TestRaiseEpoch(t *testing.T) {
	m := newMachine(t)
	for want := job.Epoch(1); want < 4; want++ {
		if e := m.do(&RaiseEpoch{}).(job.Epoch); e != want || m.Epoch() != want {
			t.Fatalf("epoch %d, want %d", e, want)
		}
	}
	m.do(&RaiseStore{Epoch: 9})
	if e := m.do(&RaiseEpoch{AtLeast: 2}).(job.Epoch); e != 10 {
		t.Fatalf("epoch %d does not exceed the store's", e)
	}
	m.refused(&RaiseStore{Epoch: 9}, job.Fenced)
	m.do(&RaiseStore{Epoch: 10})
	m.refused(&RaiseStore{Epoch: 10}, job.Fenced)
	m.refused(&RaiseEpoch{AtLeast: 1<<32 - 1}, job.Exhausted)
}
