// Package output keeps the output of runs on the node that received it: append-only segment files of bounded size, with an
// index in memory that is rebuilt when the store is opened. When the bound on the whole is reached, the oldest segment is
// dropped. There is no file per run, and nothing is synced: output is outside the never-lost promise, and what is missing
// is shown as a gap.
//
// A frame on disk is a header of 36 bytes, big-endian, and its data:
//
//	0  uint32  CRC-32C of everything after it
//	4  uint32  length of the data
//	8  [16]byte run
//	24 uint32  attempt
//	28 uint64  offset of the data in the attempt's output
package output

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/musterhq/muster/job"
)

const (
	headerSize   = 36
	maxFrameData = 1 << 20
	suffix       = ".output"
)

var crcTable = crc32.MakeTable(crc32.Castagnoli)

// Config of a Store.
type Config struct {
	// SegmentBytes is when a new segment begins. Default 16 MiB.
	SegmentBytes int64
	// TotalBytes bounds the store on disk, to a segment. Default 1 GiB.
	TotalBytes int64
	// MaxFrames bounds the index, which takes about 100 bytes of memory for each small frame. Default 1,000,000.
	MaxFrames int
}

// Frame is a piece of an attempt's output.
type Frame struct {
	Run     job.RunID
	Attempt uint32
	Offset  int64
	Data    []byte
}

// Store keeps output. It is safe for concurrent use. A store whose disk fails answers the error from Append and goes on
// with what it has.
type Store struct {
	dir    string
	config Config

	mu       sync.RWMutex
	closed   bool
	runs     map[job.RunID]*runLog
	segments []*segment // the oldest first; the last one is written
	bytes    int64
	frames   int
	buffer   []byte
}

type segment struct {
	number uint64
	file   *os.File
	size   int64
	logs   []*attemptLog // one for each frame
}

type runLog struct {
	attempts []*attemptLog // few; usually one
}

type attemptLog struct {
	run     job.RunID
	attempt uint32
	extents []extent      // by offset, not overlapping
	changed chan struct{} // closed and forgotten when something changes; nil when nobody waits
	settled bool          // Close was called
	waiting int           // followers
}

type extent struct {
	offset  int64
	length  int32
	at      int64 // of the data in the segment's file
	segment *segment
}

func (e *extent) end() int64 { return e.offset + int64(e.length) }

// Open opens the store in dir, which it makes if need be, and reads the index from the segments. A damaged end of a
// segment is what a crash leaves: it is cut off.
func Open(dir string, c Config) (*Store, error) {
	if c.SegmentBytes <= 0 {
		c.SegmentBytes = 16 << 20
	}
	if c.TotalBytes <= 0 {
		c.TotalBytes = 1 << 30
	}
	if c.MaxFrames <= 0 {
		c.MaxFrames = 1_000_000
	}
	s := &Store{dir: dir, config: c, runs: map[job.RunID]*runLog{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open output store: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open output store: %w", err)
	}
	var numbers []uint64
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), suffix); ok {
			if n, err := strconv.ParseUint(name, 16, 64); err == nil {
				numbers = append(numbers, n)
			}
		}
	}
	slices.Sort(numbers)
	for _, n := range numbers {
		if err := s.load(n); err != nil {
			return nil, errors.Join(fmt.Errorf("open output store: segment %x: %w", n, err), s.Shut())
		}
	}
	if len(s.segments) == 0 {
		if err := s.begin(); err != nil {
			return nil, fmt.Errorf("open output store: %w", err)
		}
	}
	return s, nil
}

func (s *Store) path(n uint64) string { return filepath.Join(s.dir, fmt.Sprintf("%016x%s", n, suffix)) }

// load reads one segment into the index.
func (s *Store) load(n uint64) error {
	f, err := os.OpenFile(s.path(n), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	g := &segment{number: n, file: f}
	s.segments = append(s.segments, g)
	r := io.NewSectionReader(f, 0, 1<<62)
	var head [headerSize]byte
	data := make([]byte, 0, 64<<10)
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			break
		}
		length := binary.BigEndian.Uint32(head[4:])
		if length == 0 || length > maxFrameData {
			break
		}
		data = slices.Grow(data[:0], int(length))[:length]
		if _, err := io.ReadFull(r, data); err != nil {
			break
		}
		sum := crc32.Update(crc32.Checksum(head[4:], crcTable), crcTable, data)
		offset := int64(binary.BigEndian.Uint64(head[28:]))
		if sum != binary.BigEndian.Uint32(head[:]) || offset < 0 {
			break
		}
		l := s.log(job.RunID(head[8:24]), binary.BigEndian.Uint32(head[24:]))
		for _, gap := range l.missing(offset, offset+int64(length)) {
			l.insert(extent{offset: gap[0], length: int32(gap[1] - gap[0]), at: g.size + headerSize + gap[0] - offset, segment: g})
			g.logs = append(g.logs, l)
			s.frames++
		}
		g.size += headerSize + int64(length)
	}
	s.bytes += g.size
	return f.Truncate(g.size)
}

// begin opens a new segment. Callers hold mu, or are alone.
func (s *Store) begin() error {
	n := uint64(1)
	if len(s.segments) > 0 {
		n = s.segments[len(s.segments)-1].number + 1
	}
	f, err := os.OpenFile(s.path(n), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	s.segments = append(s.segments, &segment{number: n, file: f})
	return nil
}

// Append keeps frames. What is there already, by run, attempt and offset, is left alone: appending again changes nothing.
// The frames are in one write; after an error none of them, or all that came before a full segment, are kept.
func (s *Store) Append(frames ...Frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	for len(frames) > 0 {
		n, err := s.append(frames)
		if err != nil {
			return fmt.Errorf("append output: %w", err)
		}
		frames = frames[n:]
	}
	return nil
}

// append writes as many frames as the segment takes, at least one, and answers how many.
func (s *Store) append(frames []Frame) (int, error) {
	g := s.segments[len(s.segments)-1]
	if g.size >= s.config.SegmentBytes || len(g.logs) >= max(1, s.config.MaxFrames/16) {
		if err := s.begin(); err != nil {
			return 0, err
		}
		s.dropOldest()
		g = s.segments[len(s.segments)-1]
	}
	type piece struct {
		log *attemptLog
		extent
	}
	var (
		pieces []piece
		buf    = s.buffer[:0]
		n      int
	)
	for n < len(frames) && (n == 0 || g.size+int64(len(buf)) < s.config.SegmentBytes) {
		f := &frames[n]
		n++
		if f.Offset < 0 || len(f.Data) == 0 {
			continue
		}
		l := s.log(f.Run, f.Attempt)
		for _, gap := range l.missing(f.Offset, f.Offset+int64(len(f.Data))) {
			for from := gap[0]; from < gap[1]; from += maxFrameData {
				to := min(gap[1], from+maxFrameData)
				data := f.Data[from-f.Offset : to-f.Offset]
				start := len(buf)
				buf = append(buf, make([]byte, headerSize)...)
				buf = append(buf, data...)
				head := buf[start:]
				binary.BigEndian.PutUint32(head[4:], uint32(len(data)))
				copy(head[8:24], f.Run[:])
				binary.BigEndian.PutUint32(head[24:], f.Attempt)
				binary.BigEndian.PutUint64(head[28:], uint64(from))
				binary.BigEndian.PutUint32(head, crc32.Checksum(head[4:], crcTable))
				// Indexed at once, so that a frame that comes twice in one call is kept once; taken out again on failure.
				e := extent{offset: from, length: int32(len(data)), at: g.size + int64(start) + headerSize, segment: g}
				l.insert(e)
				pieces = append(pieces, piece{l, e})
			}
		}
		s.forget(l)
	}
	if cap(buf) <= 1<<20 {
		s.buffer = buf
	}
	if len(pieces) == 0 {
		return n, nil
	}
	if _, err := g.file.WriteAt(buf, g.size); err != nil {
		for _, p := range pieces {
			p.log.remove(func(e *extent) bool { return e.segment == g && e.at == p.at })
			s.forget(p.log)
		}
		return 0, errors.Join(err, g.file.Truncate(g.size)) // a torn frame is not read as one anyway
	}
	g.size += int64(len(buf))
	s.bytes += int64(len(buf))
	s.frames += len(pieces)
	for _, p := range pieces {
		g.logs = append(g.logs, p.log)
		p.log.signal()
	}
	return n, nil
}

// dropOldest removes segments until the store is within its bounds. Callers hold mu.
func (s *Store) dropOldest() {
	for len(s.segments) > 1 && (s.bytes+s.config.SegmentBytes > s.config.TotalBytes || s.frames > s.config.MaxFrames) {
		g := s.segments[0]
		s.segments = s.segments[1:]
		s.bytes -= g.size
		s.frames -= len(g.logs)
		done := map[*attemptLog]bool{} // a log has as many entries as frames
		for _, l := range g.logs {
			if !done[l] {
				done[l] = true
				l.remove(func(e *extent) bool { return e.segment == g })
				s.forget(l)
			}
		}
		g.file.Close()
		os.Remove(s.path(g.number))
	}
}

// log finds or makes the log of an attempt. Callers hold mu for writing.
func (s *Store) log(run job.RunID, attempt uint32) *attemptLog {
	if l := s.find(run, attempt); l != nil {
		return l
	}
	r := s.runs[run]
	if r == nil {
		r = &runLog{}
		s.runs[run] = r
	}
	l := &attemptLog{run: run, attempt: attempt}
	r.attempts = append(r.attempts, l)
	return l
}

func (s *Store) find(run job.RunID, attempt uint32) *attemptLog {
	if r := s.runs[run]; r != nil {
		for _, l := range r.attempts {
			if l.attempt == attempt {
				return l
			}
		}
	}
	return nil
}

// forget drops a log that holds nothing and that nobody follows. Callers hold mu for writing.
func (s *Store) forget(l *attemptLog) {
	if len(l.extents) > 0 || l.waiting > 0 {
		return
	}
	r := s.runs[l.run]
	if r == nil {
		return
	}
	r.attempts = slices.DeleteFunc(r.attempts, func(x *attemptLog) bool { return x == l })
	if len(r.attempts) == 0 {
		delete(s.runs, l.run)
	}
}

// Shut closes the files; what is appended afterwards is refused. It may be called twice.
func (s *Store) Shut() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	var errs []error
	for _, g := range s.segments {
		errs = append(errs, g.file.Close())
	}
	for _, r := range s.runs {
		for _, l := range r.attempts {
			l.signal()
		}
	}
	return errors.Join(errs...)
}

// missing answers the parts of [from, to) that the log does not hold.
func (l *attemptLog) missing(from, to int64) (gaps [][2]int64) {
	if n := len(l.extents); n == 0 || l.extents[n-1].end() <= from { // the usual case: at the end
		return [][2]int64{{from, to}}
	}
	for _, e := range l.extents[l.search(from):] {
		if e.offset >= to {
			break
		}
		if e.offset > from {
			gaps = append(gaps, [2]int64{from, e.offset})
		}
		from = max(from, e.end())
	}
	if from < to {
		gaps = append(gaps, [2]int64{from, to})
	}
	return gaps
}

// search answers the index of the first extent that ends after the offset.
func (l *attemptLog) search(offset int64) int {
	i, _ := slices.BinarySearchFunc(l.extents, offset, func(e extent, offset int64) int {
		if e.end() <= offset {
			return -1
		}
		return 1
	})
	return i
}

func (l *attemptLog) insert(e extent) { l.extents = slices.Insert(l.extents, l.search(e.offset), e) }

func (l *attemptLog) remove(which func(*extent) bool) {
	l.extents = slices.DeleteFunc(l.extents, func(e extent) bool { return which(&e) })
}

// signal wakes followers. Callers hold mu for writing.
func (l *attemptLog) signal() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}
