package worker

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/fxamacker/cbor/v2"

	"github.com/musterhq/muster/job"
)

// Spool keeps the outcomes of attempts on the worker's disk until the leader has acknowledged them, so that a result
// outlives a cut-off stream and a killed agent.
//
// Nothing is synced to the disk. A process that is killed leaves its writes to the kernel, which keeps them; only a crash
// of the machine can lose some. A result that is lost so is a worker that is lost: its lease runs out, and the run starts
// again or fails as its on_worker_lost says (L5). Execution is at least once in any case (D3), and an fsync would cost
// more than most attempts.
type Spool struct {
	mu      sync.Mutex
	path    string
	f       *os.File
	size    int64 // of what is written and whole
	live    int64 // bytes of it that Pending still needs
	seq     uint64
	max     int64
	pending map[job.Fence]spooled
}

type spooled struct {
	outcome job.Outcome
	seq     uint64
	size    int64
}

// The file is a sequence of records: length of the body (uint32), CRC-32C of kind and body, kind, body.
const (
	spoolHeader    = 9
	spoolOutcome   = 1       // body: CBOR of job.Outcome
	spoolDone      = 2       // body: fences, 8 bytes each
	maxSpoolRecord = 1 << 20 // far above a result and its error
	maxSpool       = 64 << 20
	spoolCompactAt = 1 << 20 // smaller files are left as they are
)

// ErrSpoolFull is returned when 64 MiB of results wait for an acknowledgement. The worker then takes no new work until
// some have been acknowledged: what it has already taken it keeps in memory.
var ErrSpoolFull = job.Errorf(job.Exhausted, "spool_full", "the worker's spool of unacknowledged results is full")

// spoolDecoder reads back whatever was written, text that is not UTF-8 included: refusing one record would lose the rest.
var spoolDecoder = func() cbor.DecMode {
	m, err := cbor.DecOptions{UTF8: cbor.UTF8DecodeInvalid}.DecMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return m
}()

var errSpoolClosed = errors.New("the spool is closed")

// OpenSpool opens the spool in dir, which the caller has locked against a second agent. A torn record at the end is cut
// off: the agent died before it could count on it.
func OpenSpool(dir string) (*Spool, error) {
	s := &Spool{path: filepath.Join(dir, "results.spool"), max: maxSpool, pending: map[job.Fence]spooled{}}
	b, err := os.ReadFile(s.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open the spool: %w", err)
	}
	s.size = s.load(b)
	if s.f, err = os.OpenFile(s.path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, fmt.Errorf("open the spool: %w", err)
	}
	if err := s.f.Truncate(s.size); err != nil {
		s.f.Close()
		return nil, fmt.Errorf("open the spool: %w", err)
	}
	return s, nil
}

// load reads records until the end or the first that is not whole, and says how far it came.
func (s *Spool) load(b []byte) int64 {
	at := 0
	for {
		kind, body, ok := readSpoolRecord(b[at:])
		if !ok {
			return int64(at)
		}
		size := spoolHeader + len(body)
		switch kind {
		case spoolOutcome:
			var o job.Outcome
			if err := spoolDecoder.Unmarshal(body, &o); err != nil {
				return int64(at)
			}
			s.keep(o, int64(size))
		case spoolDone:
			for ; len(body) >= 8; body = body[8:] {
				s.drop(job.Fence(binary.BigEndian.Uint64(body)))
			}
		}
		at += size
	}
}

func readSpoolRecord(b []byte) (kind byte, body []byte, ok bool) {
	if len(b) < spoolHeader {
		return 0, nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if n > maxSpoolRecord || len(b) < spoolHeader+int(n) {
		return 0, nil, false
	}
	if binary.BigEndian.Uint32(b[4:]) != crc32.Checksum(b[8:spoolHeader+n], castagnoli) {
		return 0, nil, false
	}
	return b[8], b[spoolHeader : spoolHeader+n], true
}

func appendSpoolRecord(b []byte, kind byte, body []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	b = append(b, 0, 0, 0, 0, kind)
	b = append(b, body...)
	at := len(b) - len(body) - 1
	binary.BigEndian.PutUint32(b[at-4:], crc32.Checksum(b[at:], castagnoli))
	return b
}

// keep and drop change the table in memory; s.mu is held, or nobody else knows s yet.
func (s *Spool) keep(o job.Outcome, size int64) {
	s.drop(o.Fence)
	s.seq++
	s.pending[o.Fence] = spooled{o, s.seq, size}
	s.live += size
}

func (s *Spool) drop(f job.Fence) bool {
	old, ok := s.pending[f]
	if ok {
		delete(s.pending, f)
		s.live -= old.size
	}
	return ok
}

// Add keeps outcomes until Done, in one write for all of them. Either all are kept or, with an error, none. A second
// outcome of the same fence replaces the first.
func (s *Spool) Add(outcomes ...job.Outcome) error {
	if len(outcomes) == 0 {
		return nil
	}
	var (
		b     []byte
		body  bytes.Buffer
		sizes = make([]int64, len(outcomes))
	)
	for i := range outcomes {
		body.Reset()
		if err := cbor.MarshalToBuffer(&outcomes[i], &body); err != nil {
			return fmt.Errorf("spool a result: %w", err)
		}
		if body.Len() > maxSpoolRecord {
			return job.Errorf(job.Invalid, "result_too_big", "an outcome is larger than the spool's records may be")
		}
		b = appendSpoolRecord(b, spoolOutcome, body.Bytes())
		sizes[i] = int64(spoolHeader + body.Len())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live+int64(len(b)) > s.max {
		return ErrSpoolFull
	}
	if err := s.write(b); err != nil {
		return fmt.Errorf("spool a result: %w", err)
	}
	for i, o := range outcomes {
		s.keep(o, sizes[i])
	}
	return nil
}

// Done forgets outcomes that the leader has acknowledged. If that cannot be written, they are forgotten in memory only,
// and a restarted agent sends them once more: the leader refuses what it knows (L3).
func (s *Spool) Done(fences ...job.Fence) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	body := make([]byte, 0, 8*len(fences))
	for _, f := range fences {
		if s.drop(f) {
			body = binary.BigEndian.AppendUint64(body, uint64(f))
		}
	}
	if len(body) == 0 {
		return nil
	}
	if s.size >= spoolCompactAt && s.live < s.size/4 {
		return s.compact() // it leaves out what is done, so there is nothing to append
	}
	var b []byte
	for len(body) > 0 {
		n := min(len(body), maxSpoolRecord)
		b = appendSpoolRecord(b, spoolDone, body[:n])
		body = body[n:]
	}
	return s.write(b)
}

// Pending lists the outcomes that are not done, in the order in which they were added.
func (s *Spool) Pending() []job.Outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	var os []job.Outcome
	for _, p := range s.ordered() {
		os = append(os, p.outcome)
	}
	return os
}

// Len is how many outcomes are not done.
func (s *Spool) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.pending)
}

func (s *Spool) ordered() []spooled {
	ps := make([]spooled, 0, len(s.pending))
	for _, p := range s.pending {
		ps = append(ps, p)
	}
	slices.SortFunc(ps, func(a, b spooled) int { return cmp.Compare(a.seq, b.seq) })
	return ps
}

// write appends. After a write that failed half way the next one begins at the same place; a shorter one leaves a rest
// behind it, which does not pass its checksum.
func (s *Spool) write(b []byte) error {
	if s.f == nil {
		return errSpoolClosed
	}
	if _, err := s.f.WriteAt(b, s.size); err != nil {
		s.f.Truncate(s.size)
		return err
	}
	s.size += int64(len(b))
	return nil
}

// compact replaces the file by one that holds only what is pending.
func (s *Spool) compact() error {
	if s.f == nil {
		return errSpoolClosed
	}
	var (
		b    []byte
		body bytes.Buffer
	)
	for _, p := range s.ordered() {
		body.Reset()
		if err := cbor.MarshalToBuffer(&p.outcome, &body); err != nil {
			return err
		}
		b = appendSpoolRecord(b, spoolOutcome, body.Bytes())
	}
	f, err := replaceFile(s.path, b)
	if err != nil {
		return fmt.Errorf("compact the spool: %w", err)
	}
	s.f.Close()
	s.f, s.size, s.live = f, int64(len(b)), int64(len(b))
	return nil
}

// Close closes the file. What is pending stays on the disk.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.f == nil {
		return nil
	}
	err := s.f.Close()
	s.f = nil
	return err
}
