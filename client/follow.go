package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/musterhq/muster/job"
)

// OutputEvent is a piece of a run's output while it is followed, a gap in it, or its end.
type OutputEvent struct {
	Attempt uint32
	Offset  int64  // of Data, or of the gap, in the attempt's output
	Stream  string // which one, where the worker tells them apart
	Data    []byte
	Missing int64    // bytes that are lost here
	Run     *job.Run // the run that has ended, with the last event
}

// A node sends something every 15 s; one that is silent for silence is gone, whatever its connection says.
const silence = 45 * time.Second

// Follow yields the output of a run as it is written, from its first byte to the run's end; attempt 0 means all attempts.
// A stream that breaks is continued where it broke, on the same node or another, so nothing comes twice.
func (c *Client) Follow(ctx context.Context, id job.RunID, attempt uint32) iter.Seq2[OutputEvent, error] {
	return func(yield func(OutputEvent, error) bool) {
		f := &follower{Client: c, id: id, attempt: attempt, yield: yield}
		pause := 25 * time.Millisecond
		giveUp := time.Now().Add(c.RetryFor)
		for {
			seen := f.events
			done, err := f.once(ctx)
			if done {
				return
			}
			if f.events > seen { // it moves: the patience starts anew
				pause, giveUp = 25*time.Millisecond, time.Now().Add(c.RetryFor)
			}
			code := job.CodeOf(err)
			lost := code == job.Unavailable || code == job.Unknown
			if !lost || ctx.Err() != nil || c.RetryFor < 0 || time.Now().After(giveUp) || !sleep(ctx, pause) {
				if ctx.Err() != nil {
					err = ctx.Err()
				}
				yield(OutputEvent{}, err)
				return
			}
			pause = min(2*pause, 2*time.Second)
		}
	}
}

type follower struct {
	*Client
	id      job.RunID
	attempt uint32
	yield   func(OutputEvent, error) bool
	last    string // the id of the last event
	events  int
}

// once reads one stream. done means that the run has ended, or that nobody wants more.
func (f *follower) once(ctx context.Context) (done bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	q := &call{method: http.MethodGet, path: runPath(f.id) + "/logs", query: url.Values{"follow": {"true"}},
		header: http.Header{"Accept": {"text/event-stream"}}}
	if f.attempt != 0 {
		q.query.Set("attempt", strconv.FormatUint(uint64(f.attempt), 10))
	}
	if f.last != "" {
		q.header.Set("Last-Event-ID", f.last)
	}
	watchdog := time.AfterFunc(silence, cancel)
	defer watchdog.Stop()
	body, err := f.stream(ctx, q)
	if err != nil {
		return false, err
	}
	defer body.Close()
	events := newEventReader(body, func() { watchdog.Reset(silence) })
	for {
		e, err := events.next()
		if err != nil {
			return false, &job.Error{Code: job.Unavailable, Reason: "no_connection", Message: "the stream broke off", Cause: err}
		}
		if done, err := f.handle(e); done || err != nil {
			return done, err
		}
	}
}

// handle reads one event and passes it on.
func (f *follower) handle(e event) (done bool, err error) {
	var data struct {
		Attempt uint32 `json:"attempt"`
		Offset  int64  `json:"offset"`
		Stream  string `json:"stream"`
		Text    string `json:"text"`
		Bytes   string `json:"bytes"`
		Missing int64  `json:"missing"`
	}
	out := OutputEvent{}
	switch e.name {
	case "output", "gap":
		if err = json.Unmarshal(e.data, &data); err == nil && data.Bytes != "" {
			out.Data, err = base64.StdEncoding.DecodeString(data.Bytes)
		} else {
			out.Data = []byte(data.Text)
		}
		out.Attempt, out.Offset, out.Stream, out.Missing = data.Attempt, data.Offset, data.Stream, data.Missing
	case "end":
		out.Run = new(job.Run)
		err, done = json.Unmarshal(e.data, out.Run), true
	case "error":
		var p problemDocument
		if err = json.Unmarshal(e.data, &p); err == nil {
			return false, p.err()
		}
	default: // of a newer node
		return false, nil
	}
	if err != nil {
		return false, &job.Error{Code: job.Internal, Reason: "bad_answer", Message: "an event of the stream cannot be read", Cause: err}
	}
	if e.id != "" {
		f.last = e.id
	}
	f.events++
	return !f.yield(out, nil) || done, nil
}

// event is one server-sent event.
type event struct {
	name, id string
	data     []byte
}

// eventReader reads the part of the event-stream format that nodes write.
type eventReader struct {
	r     *bufio.Reader
	alive func() // called for every line, comments too
}

func newEventReader(r io.Reader, alive func()) *eventReader {
	return &eventReader{bufio.NewReaderSize(r, 64<<10), alive}
}

// maxEvent bounds one event: a piece of output, or a run.
const maxEvent = 16 << 20

var errEventTooLarge = errors.New("an event is larger than any that a node sends")

func (er *eventReader) next() (event, error) {
	var e event
	for {
		line, err := er.line()
		if err != nil {
			return e, err
		}
		er.alive()
		if len(line) == 0 {
			if e.name != "" || e.data != nil {
				return e, nil
			}
			continue
		}
		name, value, _ := strings.Cut(string(line), ":")
		value = strings.TrimPrefix(value, " ")
		switch name {
		case "event":
			e.name = value
		case "id":
			e.id = value
		case "data":
			if len(e.data)+len(value) > maxEvent {
				return e, errEventTooLarge
			}
			if e.data != nil {
				e.data = append(e.data, '\n')
			}
			e.data = append(e.data, value...)
		}
	}
}

func (er *eventReader) line() ([]byte, error) {
	var line []byte
	for {
		part, err := er.r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return bytes.TrimRight(line, "\r\n"), nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		case len(line) > maxEvent:
			return nil, errEventTooLarge
		}
	}
}
