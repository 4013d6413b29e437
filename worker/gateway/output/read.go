package output

import (
	"context"
	"fmt"
	"os"

	"github.com/musterhq/muster/job"
)

// Piece is a stretch of output as it is read. Gap is how many bytes before it are missing here: not received, or dropped
// with an old segment.
type Piece struct {
	Offset int64
	Gap    int64
	Data   []byte
}

// Read answers what there is of an attempt's output from an offset on, up to about limit bytes (one piece at least, if
// there is one), and where to go on reading. Nothing there is no error: pieces is empty and next is from.
func (s *Store) Read(run job.RunID, attempt uint32, from int64, limit int) (pieces []Piece, next int64, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, from, os.ErrClosed
	}
	l := s.find(run, attempt)
	if l == nil {
		return nil, from, nil
	}
	return l.read(max(0, from), limit)
}

// read is Read on a log. Callers hold mu.
func (l *attemptLog) read(from int64, limit int) (pieces []Piece, next int64, err error) {
	next = from
	for _, e := range l.extents[l.search(from):] {
		skip := max(0, from-e.offset)
		length := int64(e.length) - skip
		if len(pieces) > 0 && length > int64(limit) {
			break
		}
		length = min(length, int64(max(limit, 1)))
		data := make([]byte, length)
		if _, err := e.segment.file.ReadAt(data, e.at+skip); err != nil {
			return pieces, next, fmt.Errorf("read output: %w", err)
		}
		start := e.offset + skip
		if n := len(pieces); n > 0 && start == next {
			pieces[n-1].Data = append(pieces[n-1].Data, data...)
		} else {
			pieces = append(pieces, Piece{Offset: start, Gap: start - next, Data: data})
		}
		next = start + length
		if limit -= int(length); limit <= 0 {
			break
		}
	}
	return pieces, next, nil
}

// Attempts answers the attempts of a run that the store has output of, in the order in which they appeared.
func (s *Store) Attempts(run job.RunID) []uint32 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []uint32
	if r := s.runs[run]; r != nil {
		for _, l := range r.attempts {
			if len(l.extents) > 0 {
				out = append(out, l.attempt)
			}
		}
	}
	return out
}

// Follow calls fn with an attempt's output from an offset on, and with what comes, until Close(run) is called, ctx ends,
// or fn answers an error, which it returns. When it returns nil, all that was there at Close has been told. The attempt
// need not have output yet. It follows only what is appended: whoever cannot know whether the run is settled already
// looks at the run's state after the call has begun, and ends it through ctx.
func (s *Store) Follow(ctx context.Context, run job.RunID, attempt uint32, from int64, fn func(Piece) error) error {
	s.mu.Lock()
	l := s.log(run, attempt)
	l.waiting++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		l.waiting--
		s.forget(l)
		s.mu.Unlock()
	}()
	from = max(0, from)
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return os.ErrClosed
		}
		pieces, next, err := l.read(from, 256<<10)
		settled := l.settled
		var changed chan struct{}
		if len(pieces) == 0 && !settled {
			if l.changed == nil {
				l.changed = make(chan struct{})
			}
			changed = l.changed
		}
		s.mu.Unlock()
		if err != nil {
			return err
		}
		for _, p := range pieces {
			if err := fn(p); err != nil {
				return err
			}
		}
		from = next
		switch {
		case len(pieces) > 0:
			if err := ctx.Err(); err != nil {
				return err
			}
		case settled:
			return nil
		default:
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
			}
		}
	}
}

// Close says that an attempt of the run has settled: whoever follows the run here gets the rest and is done. If the run
// is tried again, its next attempt can be followed anew.
func (s *Store) Close(run job.RunID) {
	s.mu.RLock()
	known := s.runs[run] != nil
	s.mu.RUnlock()
	if !known { // most runs have no output
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.runs[run]; r != nil {
		for _, l := range r.attempts {
			l.settled = true
			l.signal()
		}
	}
}
