package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/musterhq/muster/job"
)

type inLogs struct {
	InRun
	Attempt     numberParam `query:"attempt" doc:"which attempt; without it, the last one, or with follow the current one and those after it"`
	Follow      flagParam   `query:"follow" doc:"wait for more until the run has ended, as server-sent events"`
	Accept      string      `header:"Accept" doc:"text/event-stream for events, text/plain for the bare output"`
	LastEventID string      `header:"Last-Event-ID" doc:"of the last event that was received: attempt:offset"`
}

// The events of followed output. Their names and fields are part of the contract.
const (
	outputEvent = "output" // OutputEvent
	gapEvent    = "gap"    // GapEvent
	endEvent    = "end"    // the run, without its tasks
	errorEvent  = "error"  // a problem document; the stream ends
)

// OutputEvent is a piece of output. Its event id is "attempt:offset", the offset being that of the byte after it: sent
// back as Last-Event-ID, it continues there.
type OutputEvent struct {
	Attempt uint32 `json:"attempt"`
	Offset  int64  `json:"offset"`
	Stream  string `json:"stream,omitempty" doc:"which one, where the worker tells them apart"`
	Text    string `json:"text,omitempty"`
	Bytes   string `json:"bytes,omitempty" doc:"base64, instead of text, of what is not UTF-8"`
}

// GapEvent says that output is missing here.
type GapEvent struct {
	Attempt uint32 `json:"attempt"`
	Offset  int64  `json:"offset"`
	Missing int64  `json:"missing" doc:"bytes"`
}

const (
	keepAliveEvery = 15 * time.Second // so that a dead connection shows on both sides
	writeTimeout   = 30 * time.Second // of one write to a stream
	authorizeEvery = 30 * time.Second
)

// runLogs is GET /v1/runs/{id}/logs.
func (a *API) runLogs(rq *request, in *inLogs) error {
	follow, err := in.Follow.read("follow")
	if err != nil {
		return err
	}
	attempt, err := in.Attempt.read("attempt")
	if err != nil {
		return err
	}
	if in.Attempt != "" && attempt == 0 {
		return job.InvalidField("attempt", "the first attempt is 1")
	}
	from, at, err := readEventID(in.LastEventID)
	if err != nil {
		return err
	}
	r, err := a.findRun(rq, in.ID)
	if err != nil {
		return err
	}
	if attempt > max(r.Attempt, 1) && (!follow || r.State.Terminal()) {
		return job.Errorf(job.NotFound, "no_attempt", "run %s has no attempt %d; its last one is %d", r.ID, attempt, r.Attempt)
	}
	l := &logStream{API: a, rq: rq, run: r, only: in.Attempt != "", follow: follow, askedAt: time.Now()}
	l.events = strings.Contains(in.Accept, eventType) || follow && !strings.Contains(in.Accept, "text/plain")
	l.attempt, l.offset = max(attempt, 1), 0
	if !l.only && !follow {
		l.attempt = max(r.Attempt, 1)
	}
	if at > 0 && (!l.only || at == attempt) {
		l.attempt, l.offset = at, from
	}
	l.begin()
	stop := l.keepAlive()
	defer stop()
	if err := l.all(rq.ctx); err != nil {
		l.fail(err)
		return nil
	}
	return nil
}

// readEventID reads what makeEventID wrote.
func readEventID(s string) (offset int64, attempt uint32, err error) {
	if s == "" {
		return 0, 0, nil
	}
	before, after, _ := strings.Cut(s, ":")
	n, err1 := strconv.ParseUint(before, 10, 32)
	offset, err2 := strconv.ParseInt(after, 10, 63)
	if err1 != nil || err2 != nil || n == 0 || offset < 0 {
		return 0, 0, job.InvalidField("Last-Event-ID", "%s is not the id of an event of this stream", quote(s))
	}
	return offset, uint32(n), nil
}

func makeEventID(attempt uint32, offset int64) string {
	return strconv.FormatUint(uint64(attempt), 10) + ":" + strconv.FormatInt(offset, 10)
}

// logStream writes the output of one run, attempt by attempt.
type logStream struct {
	*API
	rq      *request
	run     *job.Run
	only    bool // one attempt, not those after it
	follow  bool
	events  bool
	attempt uint32
	offset  int64     // of the next byte
	askedAt time.Time // when the caller was last authorised

	mu sync.Mutex // one writer at a time: chunks, or the keep-alive
}

func (l *logStream) begin() {
	h := l.rq.w.Header()
	if l.events {
		h.Set("Content-Type", eventType)
		h.Set("X-Accel-Buffering", "no") // a proxy that collects events defeats them
	} else {
		h.Set("Content-Type", plainType)
		h.Set("Content-Security-Policy", "sandbox") // output is somebody's text, whatever a browser makes of it
	}
	l.rq.w.WriteHeader(http.StatusOK)
	l.flush()
}

// all writes until there is no more, or with follow until the run has ended.
func (l *logStream) all(ctx context.Context) error {
	if !l.follow {
		if err := l.rest(ctx); err != nil {
			return err
		}
		return l.end()
	}
	for {
		if err := l.one(ctx); err != nil {
			return err
		}
		switch {
		case l.only && l.ended(), !l.only && l.run.State.Terminal() && l.attempt >= l.run.Attempt:
			return l.end()
		case !l.only && l.run.Attempt > l.attempt:
			l.attempt, l.offset = l.attempt+1, 0
			continue
		}
		// Between attempts, before the first, or before a settled result can be read.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(l.FollowEvery):
		}
		if err := l.again(ctx); err != nil {
			return err
		}
	}
}

// again reads the run anew. What cannot be reached for a moment is asked again later: the stream outlives a fail-over. It
// also asks the authoriser again now and then: a stream must not outlive its caller's credential, whatever it waits for.
func (l *logStream) again(ctx context.Context) error {
	if time.Since(l.askedAt) >= authorizeEvery {
		if err := l.rq.authorize(); err != nil {
			return err
		}
		l.askedAt = time.Now()
	}
	r, err := l.Store.Run(ctx, l.run.ID)
	if err == nil {
		l.run = l.asItIs(r)
		return nil
	}
	if outOfReach(err) && ctx.Err() == nil {
		return nil
	}
	return err
}

// ended tells whether the attempt that is written has ended, so that no more output is to come.
func (l *logStream) ended() bool {
	r := l.run
	return r.State.Terminal() || r.Attempt > l.attempt || r.Attempt == l.attempt && r.State != job.Running
}

// one writes the current attempt to its end. The node that has the output may not know that the attempt has ended, if it
// ended before somebody followed it or on another node; the run's own state knows, so it is watched meanwhile.
func (l *logStream) one(ctx context.Context) error {
	if l.ended() {
		return l.rest(ctx)
	}
	following, stop := context.WithCancel(ctx)
	watched := make(chan error, 1)
	go func() {
		defer stop()
		watched <- l.watch(following)
	}()
	err := l.Output.Output(following, OutputQuery{RunID: l.run.ID, Attempt: l.attempt, From: l.offset, Follow: true}, l.chunk)
	stop()
	if err2 := <-watched; err2 != nil {
		return err2
	}
	if err != nil && (ctx.Err() != nil || !errors.Is(err, context.Canceled)) {
		return err
	}
	if l.ended() {
		return l.rest(ctx)
	}
	return nil
}

// watch returns once the attempt has ended, or nobody follows it any more. Only the watcher touches l.run meanwhile.
func (l *logStream) watch(ctx context.Context) error {
	tick := time.NewTicker(l.FollowEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := l.again(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		if l.ended() {
			return nil
		}
	}
}

// rest writes what there is of the current attempt.
func (l *logStream) rest(ctx context.Context) error {
	return l.Output.Output(ctx, OutputQuery{RunID: l.run.ID, Attempt: l.attempt, From: l.offset}, l.chunk)
}

func (l *logStream) chunk(c OutputChunk) error {
	if skip := l.offset - c.Offset; skip > 0 { // resumed within it
		if skip >= int64(len(c.Data)) {
			return nil
		}
		c.Offset, c.Data = l.offset, c.Data[skip:]
	}
	if missing := c.Offset - l.offset; missing > 0 {
		if err := l.gap(missing); err != nil {
			return err
		}
	}
	l.offset = c.Offset + int64(len(c.Data))
	if !l.events {
		return l.write(c.Data)
	}
	e := OutputEvent{Attempt: l.attempt, Offset: c.Offset, Stream: c.Stream}
	if utf8.Valid(c.Data) {
		e.Text = string(c.Data)
	} else {
		e.Bytes = encodeBytes(c.Data)
	}
	return l.event(outputEvent, makeEventID(l.attempt, l.offset), e)
}

func (l *logStream) gap(missing int64) error {
	if l.events {
		return l.event(gapEvent, "", GapEvent{Attempt: l.attempt, Offset: l.offset, Missing: missing})
	}
	return l.write(fmt.Appendf(nil, "\n[muster: %d bytes of output are missing here]\n", missing))
}

func (l *logStream) end() error {
	if !l.events {
		return nil
	}
	return l.event(endEvent, "", l.run)
}

// fail ends a stream that has begun: with an event that says why, or by breaking off.
func (l *logStream) fail(err error) {
	if l.rq.ctx.Err() != nil { // nobody is listening
		return
	}
	e := job.AsError(err)
	l.Logger.Warn("a followed output broke off", "request_id", l.rq.id, "run_id", l.run.ID, "err", err)
	if !l.events {
		panic(http.ErrAbortHandler)
	}
	p := problemOf(e)
	p.RequestID = l.rq.id
	_ = l.event(errorEvent, "", p)
}

func (l *logStream) event(name, id string, v any) error {
	data, err := json.Marshal(v) // on one line, so it is one data field
	if err != nil {
		return err
	}
	b := make([]byte, 0, len(data)+64)
	b = append(append(append(b, "event: "...), name...), '\n')
	if id != "" {
		b = append(append(append(b, "id: "...), id...), '\n')
	}
	b = append(append(append(b, "data: "...), data...), '\n', '\n')
	return l.write(b)
}

func (l *logStream) write(b []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = http.NewResponseController(l.rq.w).SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := l.rq.w.Write(b); err != nil {
		return err
	}
	return l.flush()
}

func (l *logStream) flush() error { return http.NewResponseController(l.rq.w).Flush() }

// keepAlive writes a comment now and then until it is stopped. The returned function waits for its goroutine.
func (l *logStream) keepAlive() (stop func()) {
	if !l.events || !l.follow {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(keepAliveEvery)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				if l.write([]byte(": still here\n\n")) != nil {
					return // the chunks will meet the same error
				}
			}
		}
	}()
	return func() { close(quit); <-done }
}
