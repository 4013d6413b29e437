// Package call lets the server of a stream end it from outside: reads and writes that hang end with it. It is for
// handlers of bidirectional streams over HTTP/2, whose contexts do not end when the other side merely goes silent.
package call

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"
)

// Call is what a stream needs of the HTTP request that carries it.
type Call struct {
	Request *http.Request

	control *http.ResponseController
	mu      sync.Mutex
	over    bool // the handler has returned: the ResponseWriter must not be touched
}

type key struct{}

// From is the Call of a request that Serve serves.
func From(ctx context.Context) (*Call, bool) {
	c, ok := ctx.Value(key{}).(*Call)
	return c, ok
}

// Serve has h serve the request as a stream that may last for weeks: the server's read and write timeouts, which are for
// requests, are lifted. It is an error if the ResponseWriter cannot have deadlines; then nothing was served.
func Serve(w http.ResponseWriter, r *http.Request, h http.Handler) error {
	c := &Call{Request: r, control: http.NewResponseController(w)}
	if err := errors.Join(c.control.SetReadDeadline(time.Time{}), c.control.SetWriteDeadline(time.Time{})); err != nil {
		return err
	}
	defer c.finish()
	h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), key{}, c)))
	return nil
}

func (c *Call) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
}

// Abort ends reads and writes of the stream at once, also those that hang.
func (c *Call) Abort() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	past := time.Unix(1, 0)
	c.control.SetReadDeadline(past)
	c.control.SetWriteDeadline(past)
}
