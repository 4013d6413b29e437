package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// mark is the high-water mark: what this node has once held on disk and may have acknowledged to others. It lies beside
// the log because the log cannot testify for itself: a bolt file whose newest meta page is damaged opens on the older
// one without a word, and an old copy put back is a valid file. A voter that forgot an entry, a term or a vote can help
// to elect a leader that lacks what was acknowledged, so it must not start.
type mark struct {
	Index uint64 // of the last entry stored
	Term  uint64 // of that entry
	Seen  uint64 // the newest term this server knew
	Voted uint64 // the newest term in which it voted
}

// The file holds two slots, written in turn, each in a sector of its own: a torn write damages one and leaves the other.
// The valid slot with the higher sequence counts.
const (
	markSlot  = 512
	markMagic = "MUSTMRK1"
	markBytes = 8 + 8 + 4*8 + 4 // magic, sequence, fields, crc
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// markFile is the open file. Raising the mark is a write without a sync: losing it only weakens the protection.
// Lowering it syncs, and happens before the log is truncated, because a mark that is too high refuses a sound log.
type markFile struct {
	mu   sync.Mutex
	f    *os.File
	seq  uint64
	last mark
}

// openMark opens or creates the file. found is false when there was none.
func openMark(path string) (m *markFile, found bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, fmt.Errorf("open high-water mark: %w", err)
	}
	m = &markFile{f: f}
	buf := make([]byte, 2*markSlot)
	n, err := f.ReadAt(buf, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		_ = f.Close()
		return nil, false, fmt.Errorf("read high-water mark: %w", err)
	}
	if n == 0 {
		// Both slots exist from the start, so that later writes need no space.
		if err := m.format(buf, path); err != nil {
			_ = f.Close()
			return nil, false, fmt.Errorf("create high-water mark: %w", err)
		}
		return m, false, nil
	}
	valid := false
	for slot := range 2 {
		if seq, v, ok := decodeMark(buf[slot*markSlot:]); ok && (!valid || seq > m.seq) {
			m.seq, m.last, valid = seq, v, true
		}
	}
	if !valid {
		_ = f.Close()
		return nil, true, fmt.Errorf("the high-water mark %s is damaged in both slots, so nothing proves that the log is complete; %s, or delete the mark to trust the log as it is",
			path, whatToDo(filepath.Dir(path)))
	}
	return m, true, nil
}

func (m *markFile) format(buf []byte, path string) error {
	encodeMark(buf, 0, mark{})
	if _, err := m.f.WriteAt(buf, 0); err != nil {
		return err
	}
	if err := m.f.Sync(); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// stored raises the mark after entries were stored.
func (m *markFile) stored(index, term uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.last
	v.Index, v.Term = index, term
	return m.write(v, false)
}

// termed raises the mark after the stable store kept a term or a vote.
func (m *markFile) termed(seen, voted uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.last
	v.Seen, v.Voted = max(v.Seen, seen), max(v.Voted, voted)
	return m.write(v, false)
}

// lower sets the mark before the tail of the log is cut.
func (m *markFile) lower(index, term uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.last
	v.Index, v.Term = index, term
	return m.write(v, true)
}

// write needs m.mu.
func (m *markFile) write(v mark, sync bool) error {
	if v == m.last && !sync {
		return nil
	}
	m.seq++
	buf := make([]byte, markBytes)
	encodeMark(buf, m.seq, v)
	if _, err := m.f.WriteAt(buf, int64(m.seq%2)*markSlot); err != nil {
		return fmt.Errorf("write high-water mark: %w", err)
	}
	m.last = v
	if sync {
		if err := m.f.Sync(); err != nil {
			return fmt.Errorf("sync high-water mark: %w", err)
		}
	}
	return nil
}

func (m *markFile) value() mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last
}

func (m *markFile) Close() error { return m.f.Close() }

func encodeMark(b []byte, seq uint64, v mark) {
	b = append(b[:0], markMagic...)
	b = binary.BigEndian.AppendUint64(b, seq)
	for _, n := range []uint64{v.Index, v.Term, v.Seen, v.Voted} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeMark(b []byte) (seq uint64, v mark, ok bool) {
	if len(b) < markBytes || string(b[:8]) != markMagic ||
		binary.BigEndian.Uint32(b[markBytes-4:]) != crc32.Checksum(b[:markBytes-4], castagnoli) {
		return 0, mark{}, false
	}
	n := func(i int) uint64 { return binary.BigEndian.Uint64(b[8+8*i:]) }
	return n(0), mark{Index: n(1), Term: n(2), Seen: n(3), Voted: n(4)}, true
}

// syncDir makes names created in dir survive a power loss.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if e := d.Close(); err == nil {
		err = e
	}
	return err
}
