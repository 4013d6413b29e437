package fsm

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/job"
)

// A snapshot file is the magic, a format byte, sections, and the CRC-32C of all before it, big-endian. A section is a
// table's number (one byte, never reused), its rows (each a length, as a uvarint that is not 0, and CBOR), a 0, and how
// many rows there were. Section 0 ends the file.
const (
	snapshotMagic  = "MUSTER\x00S"
	snapshotFormat = 1
	maxRowBytes    = 16 << 20

	sectionEnd     = 0
	sectionWindows = 1
	sectionGlobals = 2
	// From here on a section without rows is left out: a node that does not know it reads the others, and digests the same.
	sectionEdges = 18
)

// tableSection is one table in the file: how its rows are walked, and how one is read.
type tableSection struct {
	number byte
	empty  bool
	rows   iter.Seq[any]
	add    func([]byte) error
	check  func([]byte) error // reads a row and forgets it
}

func sectionOf[K, R any](number byte, t *table[K, R], add func(*R)) tableSection {
	return tableSection{number, t.tree.Len() == 0,
		func(yield func(any) bool) {
			for r := range t.all() {
				if !yield(r) {
					return
				}
			}
		},
		func(b []byte) error {
			r := new(R)
			if err := decoder.Unmarshal(b, r); err != nil {
				return err
			}
			add(r)
			return nil
		},
		func(b []byte) error { return decoder.Unmarshal(b, new(R)) }}
}

// sectionsOf lists the tables in the order of their sections. Indexes are not written; they are made again.
func (t *tables) sectionsOf(names *interner) []tableSection {
	addRun := func(to *runTable) func(*job.Run) {
		return func(r *job.Run) {
			names.run(r)
			to.add(r)
		}
	}
	return []tableSection{
		sectionOf(3, &t.marks, t.marks.put),
		sectionOf(4, &t.flags, t.flags.put),
		sectionOf(5, &t.unstored, t.unstored.put),
		sectionOf(6, &t.leases, t.leases.put),
		sectionOf(7, &t.ended, t.ended.put),
		sectionOf(8, &t.jobs, t.jobs.put),
		sectionOf(9, &t.versions, t.versions.put),
		sectionOf(10, &t.pins, t.pins.put),
		sectionOf(11, &t.live.rows, addRun(&t.live)),
		sectionOf(12, &t.history.rows, addRun(&t.history)),
		sectionOf(13, &t.attempts, t.attempts.put),
		sectionOf(14, &t.ledger, func(k *job.Tick) {
			t.ledger.put(k)
			t.aged.add(k.Key())
		}),
		sectionOf(15, &t.keys, func(k *keyRow) {
			t.keys.put(k)
			t.keyAges.add(k.age())
		}),
		sectionOf(16, &t.nodes, t.nodes.put),
		sectionOf(17, &t.credentials, t.credentials.put),
		sectionOf(sectionEdges, &t.edgeRows.rows, t.edgeRows.rows.put),
	}
}

// snapshot is the state at one moment. Its tables are frozen, so it needs no lock.
type snapshot struct {
	tables  *tables
	windows []window
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Persist implements raft.FSMSnapshot. Applies go on meanwhile.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.write(sink); err != nil {
		return errors.Join(fmt.Errorf("write snapshot: %w", err), sink.Cancel())
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (*snapshot) Release() {}

func (s *snapshot) write(out io.Writer) error {
	sum := crc32.New(castagnoli)
	w := bufio.NewWriterSize(io.MultiWriter(out, sum), 256<<10)
	w.WriteString(snapshotMagic)
	w.WriteByte(snapshotFormat)
	if err := s.sections(w); err != nil {
		return err
	}
	if err := w.Flush(); err != nil { // which repeats the first error of any write
		return err
	}
	_, err := out.Write(binary.BigEndian.AppendUint32(nil, sum.Sum32()))
	return err
}

func (s *snapshot) hash() (sum [32]byte, err error) {
	h := sha256.New()
	w := bufio.NewWriterSize(h, 256<<10)
	if err := s.sections(w); err != nil {
		return sum, err
	}
	err = w.Flush()
	return [32]byte(h.Sum(nil)), err
}

func (s *snapshot) sections(w *bufio.Writer) error {
	sec := section{w: w}
	sec.begin(sectionWindows)
	for i := range s.windows {
		if err := sec.row(&s.windows[i]); err != nil {
			return err
		}
	}
	sec.end()
	sec.begin(sectionGlobals)
	if err := sec.row(&s.tables.g); err != nil {
		return err
	}
	sec.end()
	for _, t := range s.tables.sectionsOf(nil) {
		if t.number >= sectionEdges && t.empty {
			continue
		}
		sec.begin(t.number)
		for r := range t.rows {
			if err := sec.row(r); err != nil {
				return fmt.Errorf("section %d: %w", t.number, err)
			}
		}
		sec.end()
	}
	return w.WriteByte(sectionEnd)
}

// section writes one table.
type section struct {
	w   *bufio.Writer
	n   uint64
	num [binary.MaxVarintLen64]byte
}

func (s *section) begin(number byte) {
	s.n = 0
	s.w.WriteByte(number)
}

func (s *section) row(r any) error {
	b, err := encoder.Marshal(r)
	if err != nil {
		return err
	}
	return s.raw(b)
}

func (s *section) raw(b []byte) error {
	s.n++
	s.uvarint(uint64(len(b)))
	_, err := s.w.Write(b)
	return err
}

func (s *section) end() {
	s.w.WriteByte(0)
	s.uvarint(s.n)
}

func (s *section) uvarint(v uint64) { s.w.Write(binary.AppendUvarint(s.num[:0], v)) }

// restored is what a snapshot holds.
type restored struct {
	tables  *tables
	windows windows
	ended   *endedIndex
}

// readSnapshot builds a state from a snapshot, and answers it only if all of it is right.
func readSnapshot(in io.Reader) (*restored, error) {
	out := &restored{tables: newTables(), ended: newEndedIndex()}
	readers := map[byte]func([]byte) error{
		sectionWindows: func(b []byte) error {
			w := new(window)
			out.windows.list = append(out.windows.list, w)
			return decoder.Unmarshal(b, w)
		},
		sectionGlobals: func(b []byte) error { return decoder.Unmarshal(b, &out.tables.g) },
	}
	for _, t := range out.tables.sectionsOf(new(interner)) {
		readers[t.number] = t.add
	}
	err := readSections(in, func(number byte) (func([]byte) error, error) {
		if readers[number] == nil {
			return nil, errUnknownSection(number)
		}
		return readers[number], nil
	}, func() {})
	if err != nil {
		return nil, err
	}
	out.tables.restoreEdges()
	for b := range out.tables.ended.all() { // in the order of their numbers, so oldest first
		out.ended.add(b)
	}
	return out, nil
}

func errUnknownSection(number byte) error {
	return fmt.Errorf("snapshot section %d is not known to this version of muster", number)
}

// readSections walks a snapshot: begin answers what reads the rows of a section, end is called behind its last one. The
// checksum stands at the end, so what was read is good only if there is no error.
func readSections(in io.Reader, begin func(number byte) (func([]byte) error, error), end func()) error {
	r := &snapshotReader{r: bufio.NewReaderSize(in, 256<<10), sum: crc32.New(castagnoli)}
	head := r.bytes(len(snapshotMagic) + 1)
	if r.err != nil {
		return r.err
	}
	if string(head[:len(snapshotMagic)]) != snapshotMagic {
		return errors.New("this is not a snapshot of muster")
	}
	if f := head[len(snapshotMagic)]; f != snapshotFormat {
		return fmt.Errorf("snapshot format %d is not known to this version of muster", f)
	}
	for number := r.byte(); r.err == nil && number != sectionEnd; number = r.byte() {
		read, err := begin(number)
		if err != nil {
			return err
		}
		if err := r.section(number, read); err != nil {
			return err
		}
		end()
	}
	want := r.sum.Sum32()
	if got := r.bytes(4); r.err != nil {
		return r.err
	} else if binary.BigEndian.Uint32(got) != want {
		return errors.New("the snapshot is damaged: its checksum does not match")
	}
	return nil
}

// snapshotReader reads and sums; after an error everything it answers is zero.
type snapshotReader struct {
	r   *bufio.Reader
	sum interface {
		io.Writer
		Sum32() uint32
	}
	buf []byte
	err error
}

func (s *snapshotReader) section(number byte, add func([]byte) error) error {
	n := uint64(0)
	for {
		size := s.uvarint()
		if s.err != nil {
			return s.err
		}
		if size == 0 {
			break
		}
		if size > maxRowBytes {
			return fmt.Errorf("the snapshot is damaged: a row of %d bytes", size)
		}
		b := s.bytes(int(size))
		if s.err != nil {
			return s.err
		}
		if err := add(b); err != nil {
			return fmt.Errorf("snapshot section %d, row %d: %w", number, n, err)
		}
		n++
	}
	if count := s.uvarint(); s.err == nil && count != n {
		return fmt.Errorf("the snapshot is damaged: section %d has %d rows instead of %d", number, n, count)
	}
	return s.err
}

// bytes answers n bytes, valid until the next call.
func (s *snapshotReader) bytes(n int) []byte {
	if cap(s.buf) < n {
		s.buf = make([]byte, n)
	}
	b := s.buf[:n]
	if s.err == nil {
		if _, s.err = io.ReadFull(s.r, b); s.err != nil {
			s.err = fmt.Errorf("the snapshot ends too early: %w", s.err)
		}
		s.sum.Write(b)
	}
	return b
}

func (s *snapshotReader) byte() byte { return s.bytes(1)[0] }

func (s *snapshotReader) uvarint() uint64 {
	v, err := binary.ReadUvarint(byteReader{s})
	if err != nil && s.err == nil {
		s.err = err
	}
	return v
}

type byteReader struct{ s *snapshotReader }

func (b byteReader) ReadByte() (byte, error) {
	c := b.s.byte()
	return c, b.s.err
}
