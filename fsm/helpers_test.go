package fsm

import (
	"bytes"
	"io"
	"testing"
)

type bufferSink struct {
	bytes.Buffer
	cancelled bool
}

func (*bufferSink) Close() error    { return nil }
func (s *bufferSink) Cancel() error { s.cancelled = true; return nil }
func (*bufferSink) ID() string      { return "" }

// persisted takes a snapshot and answers how to read it, again and again.
func persisted(t testing.TB, s *State) func() io.Reader {
	t.Helper()
	snap, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Release()
	sink := &bufferSink{}
	if err := snap.Persist(sink); err != nil {
		t.Fatal(err)
	}
	data := sink.Bytes()
	return func() io.Reader { return bytes.NewReader(data) }
}
