package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"

	"github.com/musterhq/muster/job"
)

// A cursor is where the next page begins: a kind, a position, and a short hash over both and the query's filters. It is no
// secret and grants nothing; the hash is there so that a cursor which was altered, cut off or carried to another query is
// refused instead of answering a page that nobody asked for. The last byte of the hashed text names the format.

type cursorKind byte

const (
	jobCursor  cursorKind = 'j' // position: the last name
	runCursor  cursorKind = 'r' // position: the last id
	tickCursor cursorKind = 't' // position: the last scheduled time
)

const (
	cursorHash = 6
	maxCursor  = 256
)

// makeCursor writes a position down. filters is any text that tells two queries apart.
func makeCursor(kind cursorKind, filters string, position []byte) string {
	b := make([]byte, 0, 1+len(position)+cursorHash)
	b = append(b, byte(kind))
	b = append(b, position...)
	return base64.RawURLEncoding.EncodeToString(append(b, hashCursor(b, filters)...))
}

// readCursor is makeCursor undone.
func readCursor(kind cursorKind, filters, text string) ([]byte, error) {
	if len(text) > maxCursor {
		return nil, errCursor()
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < 1+cursorHash || cursorKind(b[0]) != kind {
		return nil, errCursor()
	}
	n := len(b) - cursorHash
	if !bytes.Equal(b[n:], hashCursor(b[:n], filters)) {
		return nil, errCursor()
	}
	return b[1:n], nil
}

func errCursor() error {
	return &job.Error{Code: job.Invalid, Reason: "invalid_cursor", Field: "cursor",
		Message: "this cursor does not belong to this query; take next_cursor from the page before, and keep the filters as they were"}
}

func hashCursor(b []byte, filters string) []byte {
	h := sha256.New()
	h.Write(b)
	h.Write([]byte{0})
	h.Write([]byte(filters))
	h.Write([]byte{1})
	return h.Sum(nil)[:cursorHash]
}

func readRunCursor(filters, text string) (job.RunID, error) {
	if text == "" {
		return job.RunID{}, nil
	}
	b, err := readCursor(runCursor, filters, text)
	if err != nil {
		return job.RunID{}, err
	}
	if len(b) != len(job.RunID{}) {
		return job.RunID{}, errCursor()
	}
	return job.RunID(b), nil
}

func readTickCursor(filters, text string) (job.Instant, error) {
	if text == "" {
		return 0, nil
	}
	b, err := readCursor(tickCursor, filters, text)
	if err != nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, errCursor()
	}
	return job.Instant(binary.BigEndian.Uint64(b)), nil
}

func makeTickCursor(filters string, at job.Instant) string {
	return makeCursor(tickCursor, filters, binary.BigEndian.AppendUint64(nil, uint64(at)))
}
