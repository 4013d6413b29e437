package fsm

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/job"
)

func readCloser(r io.Reader) io.ReadCloser { return io.NopCloser(r) }

// everything has a row in every table.
func everything(t *testing.T) *machine {
	m := newMachine(t)
	m.putJob(1, document)
	m.putJob(2, `{"name":"job-2","namespace":"default","depends_on":[{"job":"job-1","on":"done"}],"exec":{"command":["true"]}}`)
	m.do(&SetStore{Store: StoreEmbedded})
	m.schedule(1, 1)
	at := t0.Add(1000)
	k := tickAt(1, 1, at)
	m.decide(&Decide{Ticks: []job.Tick{k}, Marks: []job.MarkMove{markTo(1, 1, at)}}, k)
	m.do(&StoreTicks{Ticks: []job.Tick{k}})
	m.submit(m.born(1, withKey("k")), m.born(2))
	m.grant(nil, &Grant{Grants: []job.Grant{grantOf(1, fence(0, 1)), grantOf(2, fence(0, 2))}})
	m.do(&Move{Moves: []job.Move{{ID: numbered(2), State: job.Queued, Fence: fence(0, 2), Attempt: 1, Ended: &job.Attempt{RunID: numbered(2), Attempt: 1, State: job.Failed}}}})
	m.ends(2, fence(0, 3))
	m.grant(nil, &Grant{Ended: []job.EndedGrant{{RunID: numbered(2), Fence: fence(0, 2)}}})
	m.do(&PauseNamespace{Namespace: "x", Paused: true})
	m.entry(Origin{Node: "n", Boot: "b", Seq: 1}, &Maintain{On: true})
	m.do(&InitCluster{ClusterID: "c", GossipSecret: []byte("secret"), Credentials: []job.Credential{credentialNumbered(1, job.RoleAdmin)}})
	m.do(&PutNode{Node: nodeNumbered(1)})
	for _, s := range m.tables.sectionsOf(nil) {
		n := 0
		for range s.rows {
			n++
		}
		if n == 0 {
			t.Fatalf("section %d is empty", s.number)
		}
	}
	return m
}

func TestSnapshotComesBack(t *testing.T) {
	m := everything(t)
	back := New()
	if err := back.Restore(readCloser(persisted(t, m.State)())); err != nil {
		t.Fatal(err)
	}
	if hashOf(t, back) != hashOf(t, m.State) {
		t.Fatal("the restored state differs")
	}
	consistent(t, back)
	if f, ok := back.Ended(numbered(2)); !ok || f != fence(0, 2) {
		t.Fatal("the ended lease is forgotten")
	}
	if !bytes.Equal(snapshotBytes(t, back), snapshotBytes(t, m.State)) {
		t.Fatal("the restored state writes another snapshot")
	}
}

func TestSnapshotStaysAsItWas(t *testing.T) {
	m := everything(t)
	want := snapshotBytes(t, m.State)
	snap, _ := m.Snapshot()
	for n := range 100 {
		m.submit(m.born(100 + n))
	}
	m.ends(1, fence(0, 9))
	m.entry(Origin{Node: "n", Boot: "b", Seq: 2}, &Maintain{})
	sink := &bufferSink{}
	if err := snap.Persist(sink); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(sink.Bytes(), want) {
		t.Fatal("what was applied after the snapshot is in it")
	}
}

func TestDamagedSnapshotIsRefusedAndChangesNothing(t *testing.T) {
	m := everything(t)
	data := snapshotBytes(t, m.State)
	other := New()
	other.Apply(mustLog(t, 1, &FlagWorker{Name: "w", State: job.WorkerCordoned}))
	before := hashOf(t, other)
	try := func(what string, data []byte) {
		t.Helper()
		if err := other.Restore(readCloser(bytes.NewReader(data))); err == nil {
			t.Fatalf("%s: restored", what)
		}
		if hashOf(t, other) != before {
			t.Fatalf("%s: the state changed", what)
		}
	}
	try("nothing", nil)
	for n := 0; n < len(data); n += 1 + n/7 {
		try("cut", data[:n])
		damaged := bytes.Clone(data)
		damaged[n] ^= 0x41
		try("flipped", damaged)
	}
	format := bytes.Clone(data)
	format[len(snapshotMagic)]++
	try("another format", format)
}

func mustLog(t testing.TB, index uint64, commands ...Command) *raft.Log {
	t.Helper()
	data, err := EncodeEntry(Origin{}, t0, commands...)
	if err != nil {
		t.Fatal(err)
	}
	return &raft.Log{Index: index, Type: raft.LogCommand, Data: data}
}

type brokenSink struct {
	bufferSink
	left int
}

var errDisk = errors.New("disk full")

func (s *brokenSink) Write(b []byte) (int, error) {
	if s.left -= len(b); s.left < 0 {
		return 0, errDisk
	}
	return len(b), nil
}

func TestPersistCancelsWhenTheDiskIsFull(t *testing.T) {
	m := everything(t)
	snap, _ := m.Snapshot()
	for _, left := range []int{0, 10, len(snapshotBytes(t, m.State)) - 1} {
		sink := &brokenSink{left: left}
		if err := snap.Persist(sink); !errors.Is(err, errDisk) || !sink.cancelled {
			t.Fatalf("with %d bytes left: %v, cancelled %v", left, err, sink.cancelled)
		}
	}
}

func FuzzRestore(f *testing.F) {
	s := New()
	s.Apply(mustLog(f, 1, samples()...))
	f.Add(snapshotBytes(f, s))
	f.Add(snapshotBytes(f, New()))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := New()
		if err := s.Restore(readCloser(bytes.NewReader(data))); err == nil {
			hashOf(t, s)
		}
	})
}
