package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/musterhq/muster/job"
)

const (
	jsonType  = "application/json"
	yamlType  = "application/yaml"
	plainType = "text/plain; charset=utf-8"
	eventType = "text/event-stream"
	bytesType = "application/octet-stream"
)

// buffers holds bodies on their way in and answers on their way out.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

func takeBuffer() *bytes.Buffer { return buffers.Get().(*bytes.Buffer) }

// giveBuffer keeps small buffers only, so that one large request does not stay in memory for ever.
func giveBuffer(b *bytes.Buffer) {
	if b.Cap() <= 256<<10 {
		b.Reset()
		buffers.Put(b)
	}
}

// body reads the whole body, at most MaxBody bytes of it and within BodyTimeout. The bytes are valid until release. A
// type outside allowed is 415: a web page can send text/plain without asking anybody, so JSON has to say that it is JSON.
func (rq *request) body(a *API, allowed ...string) (data []byte, mediaType string, release func(), err error) {
	release = func() {}
	if mediaType, err = rq.mediaType(allowed); err != nil {
		return nil, "", release, err
	}
	if rq.r.ContentLength > MaxBody {
		return nil, "", release, errTooLarge(MaxBody)
	}
	rc := http.NewResponseController(rq.w)
	_ = rc.SetReadDeadline(time.Now().Add(a.BodyTimeout))
	buf := takeBuffer()
	_, err = buf.ReadFrom(http.MaxBytesReader(rq.w, rq.r.Body, MaxBody))
	if err != nil {
		giveBuffer(buf)
		return nil, "", release, a.bodyError(rq, err, MaxBody)
	}
	// Left in place, the deadline would end the connection's background read, and with it a request still at work.
	_ = rc.SetReadDeadline(time.Time{})
	return buf.Bytes(), mediaType, func() { giveBuffer(buf) }, nil
}

// bodyError says why a body could not be read.
func (a *API) bodyError(rq *request, err error, limit int64) error {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return errTooLarge(limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		rq.w.Header().Set("Connection", "close")
		return &job.Error{Code: job.Invalid, Reason: reasonBodyTimeout, Cause: err,
			Message: "the request's body did not arrive within " + a.BodyTimeout.String()}
	}
	return &job.Error{Code: job.Invalid, Reason: "body_broken", Message: "the request's body broke off", Cause: err}
}

func errTooLarge(limit int64) error {
	return job.Errorf(job.Invalid, reasonTooLarge, "the body is larger than %d bytes", limit)
}

// largeBody is a body that is read as it arrives, at most limit bytes of it. BodyTimeout bounds each wait for more of it.
type largeBody struct {
	a     *API
	rq    *request
	body  io.Reader
	limit int64
	err   error // why there is no more, apart from its end
}

// large answers the body of a request for reading as it arrives.
func (rq *request) large(a *API, limit int64, allowed ...string) (*largeBody, error) {
	if _, err := rq.mediaType(allowed); err != nil {
		return nil, err
	}
	if rq.r.ContentLength > limit {
		return nil, errTooLarge(limit)
	}
	return &largeBody{a: a, rq: rq, body: http.MaxBytesReader(rq.w, rq.r.Body, limit), limit: limit}, nil
}

func (l *largeBody) Read(p []byte) (int, error) {
	if l.err != nil {
		return 0, l.err
	}
	rc := http.NewResponseController(l.rq.w)
	_ = rc.SetReadDeadline(time.Now().Add(l.a.BodyTimeout))
	n, err := l.body.Read(p)
	switch {
	case err == io.EOF:
		_ = rc.SetReadDeadline(time.Time{}) // as for a small body
	case err != nil:
		l.err = l.a.bodyError(l.rq, err, l.limit)
		err = l.err
	}
	return n, err
}

func (rq *request) mediaType(allowed []string) (string, error) {
	if enc := rq.r.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return "", job.Errorf(job.Invalid, reasonMediaType, "a body cannot be encoded as %.32q; send it as it is", enc)
	}
	text := rq.r.Header.Get("Content-Type")
	if text == jsonType && allowed[0] == jsonType { // what nearly every request says
		return jsonType, nil
	}
	t, params, err := mime.ParseMediaType(text)
	switch t {
	case "application/x-yaml", "text/yaml", "text/x-yaml":
		t = yamlType
	}
	if cs := params["charset"]; err == nil && (cs == "" || strings.EqualFold(cs, "utf-8")) {
		for _, a := range allowed {
			if t == a {
				return t, nil
			}
		}
	}
	return "", &job.Error{Code: job.Invalid, Reason: reasonMediaType, Field: "Content-Type",
		Message: "this endpoint takes " + strings.Join(allowed, " or ") + "; say so in Content-Type"}
}

// decode reads a JSON body into v, strictly.
func (rq *request) decode(a *API, v any) error {
	data, _, release, err := rq.body(a, jsonType)
	if err != nil {
		return err
	}
	defer release()
	return job.DecodeStrict(data, v, "")
}

// json answers v.
func (rq *request) json(status int, v any) error {
	rq.writeJSON(status, jsonType, v)
	return nil
}

// writeJSON writes the answer whole, with its length. What cannot be encoded is a defect; what cannot be written has lost
// its reader.
func (rq *request) writeJSON(status int, contentType string, v any) {
	buf := takeBuffer()
	defer giveBuffer(buf)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err)
	}
	rq.writeBytes(status, contentType, buf.Bytes())
}

func (rq *request) writeBytes(status int, contentType string, b []byte) {
	h := rq.w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(b)))
	rq.w.WriteHeader(status)
	_, _ = rq.w.Write(b)
}

// nothing answers that it is done.
func (rq *request) nothing() error {
	rq.w.WriteHeader(http.StatusNoContent)
	return nil
}

// text answers a short plain text.
func (rq *request) text(status int, s string) error {
	h := rq.w.Header()
	h.Set("Content-Type", plainType)
	h.Set("Content-Length", strconv.Itoa(len(s)))
	rq.w.WriteHeader(status)
	_, _ = io.WriteString(rq.w, s)
	return nil
}
