package cluster

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"github.com/musterhq/muster/job"
)

func TestMarkSurvivesATornWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), markName)
	m, found, err := openMark(path)
	if err != nil || found {
		t.Fatal(found, err)
	}
	for i := uint64(1); i <= 5; i++ {
		if err := m.stored(i, 7); err != nil {
			t.Fatal(err)
		}
	}
	_ = m.termed(8, 6)
	_ = m.Close()
	reopen := func() (mark, error) {
		m, found, err := openMark(path)
		if err != nil {
			return mark{}, err
		}
		defer m.Close()
		if !found {
			t.Error("the mark was not found")
		}
		return m.value(), nil
	}
	if got, err := reopen(); err != nil || got != (mark{Index: 5, Term: 7, Seen: 8, Voted: 6}) {
		t.Fatal(got, err)
	}
	flip(t, path, 20) // slot 0 is the newest: 6 writes
	if got, err := reopen(); err != nil || got != (mark{Index: 5, Term: 7}) {
		t.Fatal("with a torn newest slot:", got, err)
	}
	flip(t, path, markSlot+20)
	if _, err := reopen(); err == nil || !strings.Contains(err.Error(), "damaged in both slots") {
		t.Fatal("with both slots damaged:", err)
	}
}

// flip damages four bytes of a file.
func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 4)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] ^= 0xff
	}
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// filled makes a data directory with a few entries in its log, and answers the path of raft.db and its copy as it was
// about half way.
func filled(t *testing.T) (dir, db, half string) {
	t.Helper()
	dir = t.TempDir()
	db, half = filepath.Join(dir, raftDir, dbName), filepath.Join(t.TempDir(), "half.db")
	for _, copyTo := range []string{half, ""} {
		n, err := tryOpen(t, Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		awaitLeading(t, n)
		for range 10 {
			if err := n.Control().FlagWorker(t.Context(), "some-worker", job.WorkerCordoned); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		if copyTo != "" {
			copyFile(t, db, copyTo)
		}
	}
	return dir, db, half
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// newestMeta is where the newest meta page begins, behind its page header.
func newestMeta(t *testing.T, db string) int64 {
	t.Helper()
	b, err := os.ReadFile(db)
	if err != nil {
		t.Fatal(err)
	}
	page := int64(os.Getpagesize())
	tx := func(at int64) uint64 { return binary.NativeEndian.Uint64(b[at+16+48:]) }
	if tx(page) > tx(0) {
		return page + 16
	}
	return 16
}

// TestDamagedLogIsRefused: whatever lost entries or votes that this node had stored, Open says so, and goes on saying so.
func TestDamagedLogIsRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		damage func(t *testing.T, dir, db, half string)
		says   []string
	}{
		{"old copy put back", func(t *testing.T, _, db, half string) { copyFile(t, half, db) },
			[]string{"lacks the newest 12 of 25 entries", dbName, "is damaged or an old copy", "move ", "restore the newest copy"}},
		{"deleted", func(t *testing.T, _, db, _ string) { _ = os.Remove(db) },
			[]string{"lacks the newest 25 of 25 entries"}},
		{"newest meta page damaged", func(t *testing.T, _, db, _ string) { flip(t, db, newestMeta(t, db)+56) },
			[]string{"lacks the newest 1 of 25 entries"}},
		{"both meta pages damaged", func(t *testing.T, _, db, _ string) { flip(t, db, 72); flip(t, db, int64(os.Getpagesize())+72) },
			[]string{"neither of its meta pages is valid"}},
		{"truncated", func(t *testing.T, _, db, _ string) {
			info, _ := os.Stat(db)
			if err := os.Truncate(db, info.Size()/4); err != nil {
				t.Fatal(err)
			}
		}, []string{"is damaged: it is truncated, it has"}},
		{"truncated to less than a page", func(t *testing.T, _, db, _ string) { _ = os.Truncate(db, 50) },
			[]string{"neither of its meta pages is valid"}},
		{"a command changed", func(t *testing.T, _, db, _ string) {
			b, err := os.ReadFile(db)
			if err != nil {
				t.Fatal(err)
			}
			// Pages are written anew, so old copies of the entry lie about; the newest is in all of them.
			for i := strings.Index(string(b), "some-worker"); i >= 0; {
				b[i] = 'S'
				next := strings.Index(string(b[i:]), "some-worker")
				if next < 0 {
					break
				}
				i += next
			}
			if err := os.WriteFile(db, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{"its checksum does not match"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir, db, half := filled(t)
			test.damage(t, dir, db, half)
			for range 2 {
				n, err := tryOpen(t, Config{Dir: dir})
				if err == nil {
					_ = n.Close()
					t.Fatal("opened without a word")
				}
				for _, s := range test.says {
					if !strings.Contains(err.Error(), s) {
						t.Errorf("does not say %q: %v", s, err)
					}
				}
			}
		})
	}
}

// TestDamagedPages: four bytes changed in the head of any page are found, or do not matter, or are found by bolt; they
// never end the process or fill the memory.
func TestDamagedPages(t *testing.T) {
	dir, db, _ := filled(t)
	sound, err := os.ReadFile(db)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkBolt(db); err != nil {
		t.Fatal(err)
	}
	m, err := os.ReadFile(filepath.Join(dir, raftDir, markName))
	if err != nil {
		t.Fatal(err)
	}
	logger, _ := testLogger(t)
	found, passed := 0, 0
	for page := 0; page < len(sound); page += os.Getpagesize() {
		for _, at := range []int{0, 4, 8, 10, 12, 16, 20, 24, 28, 32, 36, 40} {
			b := append([]byte(nil), sound...)
			for i := range 4 {
				b[page+at+i] ^= 0xff
			}
			// Each time as found, not as the attempt before left it.
			for name, content := range map[string][]byte{db: b, filepath.Join(dir, raftDir, markName): m} {
				if err := os.WriteFile(name, content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if checkBolt(db) != nil {
				found++
				continue
			}
			s, err := openStores(filepath.Join(dir, raftDir), 1, logger)
			if err != nil {
				found++
				continue
			}
			passed++
			if last, _ := s.log.LastIndex(); last != 25 {
				t.Errorf("damage at %d of page %d: the log ends at %d", at, page/os.Getpagesize(), last)
			}
			_ = s.close()
		}
	}
	t.Logf("%d found, %d harmless", found, passed)
	if found < 30 {
		t.Errorf("only %d of %d were found", found, found+passed)
	}
}

// TestForgottenVoteIsRefused: a log of the same length that knows less of terms and votes is refused as well.
func TestForgottenVoteIsRefused(t *testing.T) {
	dir, _, _ := filled(t)
	m, _, err := openMark(filepath.Join(dir, raftDir, markName))
	if err != nil {
		t.Fatal(err)
	}
	_ = m.termed(99, 99)
	_ = m.Close()
	if _, err := tryOpen(t, Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "has forgotten a vote") {
		t.Error(err)
	}
}

// TestLossAccepted: without the mark, as the sentence says, the node goes on with what it has.
func TestLossAccepted(t *testing.T) {
	dir, db, half := filled(t)
	copyFile(t, half, db)
	if err := os.Remove(filepath.Join(dir, raftDir, markName)); err != nil {
		t.Fatal(err)
	}
	logger, said := testLogger(t)
	n := open(t, Config{Dir: dir, Logger: logger})
	awaitLeading(t, n)
	if !strings.Contains(said.String(), "there is no high-water mark beside the raft log") {
		t.Error("it did not warn")
	}
}

// TestTruncationLowersTheMark: what a new leader cuts off the tail is not missed at the next start.
func TestTruncationLowersTheMark(t *testing.T) {
	dir := t.TempDir()
	logger, _ := testLogger(t)
	reopen := func() (*stores, *logGuard) {
		s, err := openStores(dir, 1, logger)
		if err != nil {
			t.Fatal(err)
		}
		return s, newLogGuard(s.log, s.mark, 10e9, logger)
	}
	s, g := reopen()
	for i := uint64(1); i <= 10; i++ {
		if err := g.StoreLog(&raft.Log{Index: i, Term: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.DeleteRange(1, 4); err != nil { // the head, behind a snapshot
		t.Fatal(err)
	}
	if got := s.mark.value(); got.Index != 10 {
		t.Errorf("cutting the head moved the mark to %+v", got)
	}
	if err := g.DeleteRange(8, 10); err != nil {
		t.Fatal(err)
	}
	if got := s.mark.value(); got.Index != 7 || got.Term != 1 {
		t.Errorf("the mark is at %+v", got)
	}
	_ = s.close()
	s, g = reopen()
	if err := g.StoreLogs([]*raft.Log{{Index: 8, Term: 2}, {Index: 9, Term: 2}}); err != nil {
		t.Fatal(err)
	}
	_ = s.close()
	s, g = reopen()
	if got := s.mark.value(); got.Index != 9 || got.Term != 2 {
		t.Errorf("the mark is at %+v", got)
	}
	// Another history of the same length is refused.
	if err := g.inner.DeleteRange(9, 9); err != nil {
		t.Fatal(err)
	}
	if err := g.inner.StoreLog(&raft.Log{Index: 9, Term: 3}); err != nil {
		t.Fatal(err)
	}
	_ = s.close()
	_, err := openStores(dir, 1, logger)
	if err == nil || !strings.Contains(err.Error(), "entry 9 of the raft log") {
		t.Error(err)
	}
}

func TestGuardPanics(t *testing.T) {
	err := guardPanics("x/raft.db", func() error { panic("page 7 already freed") })
	if err == nil || !strings.Contains(err.Error(), "the raft log x/raft.db is damaged (page 7 already freed)") {
		t.Error(err)
	}
	if err := guardPanics("x", func() error { return fmt.Errorf("plain") }); err == nil || err.Error() != "plain" {
		t.Error(err)
	}
}

// FuzzCheckBolt: whatever the file holds, the check ends with an answer.
func FuzzCheckBolt(f *testing.F) {
	path := filepath.Join(f.TempDir(), dbName)
	s, err := raftboltdb.NewBoltStore(path)
	if err != nil {
		f.Fatal(err)
	}
	if err := s.StoreLog(&raft.Log{Index: 1, Data: []byte("data")}); err != nil {
		f.Fatal(err)
	}
	_ = s.Close()
	sound, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(0, []byte{})
	f.Add(4096*3+8, []byte{1, 0, 255, 255})
	f.Fuzz(func(t *testing.T, at int, change []byte) {
		b := append([]byte(nil), sound...)
		if at < 0 || at > len(b) {
			return
		}
		copy(b[at:], change)
		name := filepath.Join(t.TempDir(), dbName)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_ = checkBolt(name)
	})
}

// FuzzDecodeMark: what is read as a mark is what would be written for it.
func FuzzDecodeMark(f *testing.F) {
	b := make([]byte, markBytes)
	encodeMark(b, 7, mark{1, 2, 3, 4})
	f.Add(b)
	f.Add([]byte("MUSTMRK1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		seq, m, ok := decodeMark(b)
		if !ok {
			return
		}
		again := make([]byte, markBytes)
		encodeMark(again, seq, m)
		if !bytes.Equal(again, b[:markBytes]) {
			t.Errorf("%x is read as %d %+v", b, seq, m)
		}
	})
}
