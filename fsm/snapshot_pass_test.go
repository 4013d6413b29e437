package fsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/musterhq/muster/job"
)

func TestSnapshotInfo(t *testing.T) {
	m := everything(t)
	m.do(&RaiseEpoch{AtLeast: 5})
	id, index, epoch, err := SnapshotInfo(persisted(t, m.State)())
	if id != "c" || index != m.Index() || epoch != 6 || err != nil {
		t.Fatalf("cluster %q, index %d, epoch %d: %v", id, index, epoch, err)
	}
	m.do(&RaiseStore{Epoch: 9})
	if _, _, epoch, _ := SnapshotInfo(persisted(t, m.State)()); epoch != 9 {
		t.Fatalf("with a store at 9 the epoch is %d", epoch)
	}
}

func TestRaisedSnapshotDiffersInItsEpochOnly(t *testing.T) {
	m := everything(t)
	m.do(&RaiseEpoch{AtLeast: 5})
	for _, c := range []struct{ atLeast, want job.Epoch }{{0, 7}, {6, 7}, {7, 8}, {40, 41}} {
		var out bytes.Buffer
		if err := RaiseSnapshotEpoch(persisted(t, m.State)(), &out, c.atLeast); err != nil {
			t.Fatal(err)
		}
		if id, index, epoch, err := SnapshotInfo(bytes.NewReader(out.Bytes())); id != "c" || index != m.Index() || epoch != c.want || err != nil {
			t.Fatalf("at least %d: cluster %q, index %d, epoch %d: %v", c.atLeast, id, index, epoch, err)
		}
		back := New()
		if err := back.Restore(readCloser(&out)); err != nil {
			t.Fatal(err)
		}
		consistent(t, back)
		if back.Epoch() != c.want {
			t.Fatalf("restored, the epoch is %d", back.Epoch())
		}
		// A leader of before the restore is fenced out by it.
		r := back.Apply(mustLog(t, 1000, &Prune{Epoch: max(c.atLeast, 6)})).([]Result)
		if job.CodeOf(r[0].Err) != job.Fenced {
			t.Fatalf("a command of the old epoch is answered %+v", r[0])
		}
		back.tables.g = m.tables.g
		if hashOf(t, back) != hashOf(t, m.State) {
			t.Fatal("more than the epoch changed")
		}
	}
}

func TestDamagedSnapshotIsNotRaised(t *testing.T) {
	m := everything(t)
	data := snapshotBytes(t, m.State)
	try := func(what string, data []byte) {
		t.Helper()
		if _, _, _, err := SnapshotInfo(bytes.NewReader(data)); err == nil {
			t.Errorf("%s: there is information about it", what)
		}
		if err := RaiseSnapshotEpoch(bytes.NewReader(data), &bytes.Buffer{}, 0); err == nil {
			t.Errorf("%s: it is raised", what)
		}
	}
	try("nothing", nil)
	for n := 0; n < len(data); n += 1 + n/7 {
		try("cut", data[:n])
		damaged := bytes.Clone(data)
		damaged[n] ^= 0x41
		try("flipped", damaged)
	}
	// A snapshot of a newer version is whole, and still not to be restored here.
	newer := append(bytes.Clone(data[:len(data)-5]), 99, 1, 0xa0, 0, 1, sectionEnd)
	newer = binary.BigEndian.AppendUint32(newer, crc32.Checksum(newer, castagnoli))
	if _, _, _, err := SnapshotInfo(bytes.NewReader(newer)); err == nil {
		t.Error("a section that cannot be read is let through")
	}
	var none bytes.Buffer
	none.WriteString(snapshotMagic)
	none.Write([]byte{snapshotFormat, sectionEnd})
	none.Write(binary.BigEndian.AppendUint32(nil, crc32.Checksum(none.Bytes(), castagnoli)))
	if err := RaiseSnapshotEpoch(&none, &bytes.Buffer{}, 0); err == nil {
		t.Error("a snapshot without an epoch is raised")
	}
}

func TestSnapshotIsNotRaisedBeyondTheLastEpoch(t *testing.T) {
	m := everything(t)
	if err := RaiseSnapshotEpoch(persisted(t, m.State)(), &bytes.Buffer{}, 1<<32-1); err == nil {
		t.Fatal("the epoch went around")
	}
	full := &brokenSink{left: 100}
	if err := RaiseSnapshotEpoch(persisted(t, m.State)(), full, 0); !errors.Is(err, errDisk) {
		t.Fatalf("on a full disk: %v", err)
	}
}
