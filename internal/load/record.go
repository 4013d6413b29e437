package load

import (
	"encoding/binary"
	"io"
	"sync"
	"time"

	"github.com/musterhq/muster/job"
)

// start is one call of the handler, as the worker's process saw it.
type start struct {
	run         job.RunID
	scheduledAt job.Instant
	at          int64 // Unix nanoseconds
	attempt     uint32
}

const startBytes = 16 + 8 + 8 + 4

func (s *start) append(b []byte) []byte {
	b = append(b, s.run[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(s.scheduledAt))
	b = binary.LittleEndian.AppendUint64(b, uint64(s.at))
	return binary.LittleEndian.AppendUint32(b, s.attempt)
}

func readStart(b []byte) (s start) {
	copy(s.run[:], b)
	s.scheduledAt = job.Instant(binary.LittleEndian.Uint64(b[16:]))
	s.at = int64(binary.LittleEndian.Uint64(b[24:]))
	s.attempt = binary.LittleEndian.Uint32(b[32:])
	return s
}

// recorder writes the starts of a worker's process to its standard output. Calls only append to memory, so that a
// reader that is slow, or a pipe that is full, does not slow the worker.
type recorder struct {
	mu   sync.Mutex
	buf  []byte // guarded by mu
	wake chan struct{}
}

func newRecorder() *recorder { return &recorder{wake: make(chan struct{}, 1)} }

func (r *recorder) add(s start) {
	r.mu.Lock()
	first := len(r.buf) == 0
	r.buf = s.append(r.buf)
	r.mu.Unlock()
	if first {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// run writes until stop is closed, and then what is left.
func (r *recorder) run(w io.Writer, stop <-chan struct{}) error {
	var spare []byte
	for last := false; ; {
		r.mu.Lock()
		out := r.buf
		r.buf = spare[:0]
		r.mu.Unlock()
		if len(out) > 0 {
			if _, err := w.Write(out); err != nil {
				return err
			}
		}
		spare = out
		if last {
			return nil
		}
		select {
		case <-r.wake:
			time.Sleep(2 * time.Millisecond) // more will come: one write for many
		case <-stop:
			last = true
		}
	}
}

// collector keeps the starts that a worker's process reports.
type collector struct {
	mu     sync.Mutex
	starts []start // guarded by mu
	broken error   // guarded by mu
}

// read collects until the pipe ends.
func (c *collector) read(r io.Reader) {
	buf := make([]byte, 2048*startBytes)
	have := 0
	for {
		n, err := r.Read(buf[have:])
		have += n
		whole := have - have%startBytes
		c.mu.Lock()
		for i := 0; i < whole; i += startBytes {
			c.starts = append(c.starts, readStart(buf[i:]))
		}
		if err != nil && err != io.EOF {
			c.broken = err
		}
		c.mu.Unlock()
		have = copy(buf, buf[whole:have])
		if err != nil {
			return
		}
	}
}

// replace is for starts that somebody else recorded.
func (c *collector) replace(starts []start) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.starts = starts
}

func (c *collector) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.starts)
}

// since answers the starts after the first n.
func (c *collector) since(n int) []start {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]start(nil), c.starts[n:]...)
}
