package fsm

import (
	"bytes"
	"strings"
	"testing"

	"github.com/musterhq/muster/job"
)

func TestTheFirstStoreWins(t *testing.T) {
	m := newMachine(t)
	if m.Store() != "" || m.View().Store() != "" {
		t.Fatal("a fresh state has a store")
	}
	m.refused(&SetStore{}, job.Invalid)
	m.refused(&SetStore{Store: "redis"}, job.Invalid)
	for range 2 {
		m.do(&SetStore{Store: StorePostgres})
		if m.Store() != StorePostgres || m.View().Store() != StorePostgres {
			t.Fatalf("the store is %q", m.Store())
		}
	}
	if e := m.refused(&SetStore{Store: StoreEmbedded}, job.Conflict); e.Reason != "store_setting" || !strings.Contains(e.Message, "postgres store, not in embedded") {
		t.Fatalf("another store: %v", e)
	}
	// It is in a snapshot, and in one whose epoch was raised.
	var raised bytes.Buffer
	if err := RaiseSnapshotEpoch(persisted(t, m.State)(), &raised, 7); err != nil {
		t.Fatal(err)
	}
	back := New()
	if err := back.Restore(readCloser(&raised)); err != nil {
		t.Fatal(err)
	}
	if back.Store() != StorePostgres || back.View().Store() != StorePostgres {
		t.Fatalf("restored, the store is %q", back.Store())
	}
	// Restoring one from before it was set takes it back.
	if err := m.Restore(readCloser(persisted(t, New())())); err != nil || m.Store() != "" {
		t.Fatalf("the store is %q: %v", m.Store(), err)
	}
}

func TestPostgresDoesNotHideAnEmbeddedStore(t *testing.T) {
	for what, fill := range map[string]func(*machine){
		"a job":            func(m *machine) { m.putJob(1, document) },
		"a live run":       func(m *machine) { m.submit(m.born(1)) },
		"a run that ended": func(m *machine) { m.submit(m.born(1)); m.ends(1, fence(0, 1)) },
	} {
		t.Run(what, func(t *testing.T) {
			m := newMachine(t)
			fill(m)
			if e := m.refused(&SetStore{Store: StorePostgres}, job.Conflict); e.Reason != "store_setting" {
				t.Fatal(e)
			}
			m.do(&SetStore{Store: StoreEmbedded})
		})
	}
	m := newMachine(t)
	m.do(&RaiseEpoch{})
	m.do(&InitCluster{ClusterID: "c"})
	m.do(&SetStore{Store: StorePostgres}) // what Raft always owns is no reason
}
