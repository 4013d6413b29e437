package fsm

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/hashicorp/go-memdb"
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
)

// rows lists the tables in the order of their sections.
var rows = []struct {
	section byte
	table   string
	decode  func([]byte) (any, error)
}{
	{2, tableGlobals, decodeRow[globals]},
	{3, tableMarks, decodeRow[job.Mark]},
	{4, tableFlags, decodeRow[flag]},
	{5, tableUnstored, decodeRow[job.Tick]},
	{6, tableLeases, decodeRow[job.Grant]},
	{7, tableEnded, decodeRow[endedBlock]},
	{8, tableJobs, decodeRow[job.Job]},
	{9, tableVersions, decodeRow[versionRow]},
	{10, tablePins, decodeRow[pin]},
	{11, tableLive, decodeRow[job.Run]},
	{12, tableHistory, decodeRow[job.Run]},
	{13, tableAttempts, decodeRow[job.Attempt]},
	{14, tableLedger, decodeRow[job.Tick]},
	{15, tableKeys, decodeRow[keyRow]},
}

func decodeRow[R any](b []byte) (any, error) {
	r := new(R)
	return r, decoder.Unmarshal(b, r)
}

// snapshot is the state at one moment. Its tables are frozen, so it needs no lock.
type snapshot struct {
	txn     *memdb.Txn
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
	for _, t := range rows {
		sec.begin(t.section)
		it, err := s.txn.LowerBound(t.table, indexID, []byte(nil))
		if err != nil {
			return err
		}
		for raw := it.Next(); raw != nil; raw = it.Next() {
			if err := sec.row(raw); err != nil {
				return fmt.Errorf("table %s: %w", t.table, err)
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
	s.n++
	s.uvarint(uint64(len(b)))
	_, err = s.w.Write(b)
	return err
}

func (s *section) end() {
	s.w.WriteByte(0)
	s.uvarint(s.n)
}

func (s *section) uvarint(v uint64) { s.w.Write(binary.AppendUvarint(s.num[:0], v)) }

// readSnapshot builds tables from a snapshot, and answers them only if all of it is right.
func readSnapshot(in io.Reader) (*memdb.MemDB, windows, *endedIndex, error) {
	r := &snapshotReader{r: bufio.NewReaderSize(in, 256<<10), sum: crc32.New(castagnoli)}
	ended := newEndedIndex()
	var ws windows
	fail := func(err error) (*memdb.MemDB, windows, *endedIndex, error) { return nil, windows{}, nil, err }
	head := r.bytes(len(snapshotMagic) + 1)
	if r.err != nil {
		return fail(r.err)
	}
	if string(head[:len(snapshotMagic)]) != snapshotMagic {
		return fail(errors.New("this is not a snapshot of muster"))
	}
	if f := head[len(snapshotMagic)]; f != snapshotFormat {
		return fail(fmt.Errorf("snapshot format %d is not known to this version of muster", f))
	}
	db := newTables()
	txn := db.Txn(true)
	defer txn.Abort()
	for {
		number := r.byte()
		if r.err != nil {
			return fail(r.err)
		}
		if number == sectionEnd {
			break
		}
		err := r.section(number, func(table string, row any) error {
			if w, ok := row.(*window); ok {
				ws.list = append(ws.list, w)
				return nil
			}
			if b, ok := row.(*endedBlock); ok {
				ended.add(b) // in the order of their numbers, so oldest first
			}
			return txn.Insert(table, row)
		})
		if err != nil {
			return fail(err)
		}
	}
	want := r.sum.Sum32()
	if got := r.bytes(4); r.err != nil {
		return fail(r.err)
	} else if binary.BigEndian.Uint32(got) != want {
		return fail(errors.New("the snapshot is damaged: its checksum does not match"))
	}
	txn.Commit()
	return db, ws, ended, nil
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

func (s *snapshotReader) section(number byte, add func(table string, row any) error) error {
	table, decode := "", decodeRow[window]
	for _, t := range rows {
		if t.section == number {
			table, decode = t.table, t.decode
		}
	}
	if table == "" && number != sectionWindows {
		return fmt.Errorf("snapshot section %d is not known to this version of muster", number)
	}
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
		row, err := decode(b)
		if err == nil {
			err = add(table, row)
		}
		if err != nil {
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
