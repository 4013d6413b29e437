package load

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/musterhq/muster/worker"
)

// Handler is what the worker's process runs: a handler that does nothing but to record that it was called.
type Handler struct {
	// Handlers are what the worker is given: the one handler.
	Handlers *worker.Handlers
	records  *recorder
}

// NewHandler makes the handler of this name.
func NewHandler(name string) *Handler {
	h := &Handler{Handlers: new(worker.Handlers), records: newRecorder()}
	h.Handlers.Handle(name, func(ctx context.Context, _ json.RawMessage) (json.RawMessage, error) {
		at := time.Now().UnixNano()
		info := worker.InfoFrom(ctx)
		h.records.add(start{run: info.RunID, scheduledAt: info.ScheduledAt, at: at, attempt: info.Attempt})
		return nil, nil
	})
	return h
}

// Run runs the worker, and writes a record of each call to w, until the worker ends.
func (h *Handler) Run(ctx context.Context, w io.Writer, work func(context.Context) error) error {
	var g errgroup.Group
	stop := make(chan struct{})
	g.Go(func() error { return h.records.run(w, stop) })
	g.Go(func() error {
		defer close(stop)
		return work(ctx)
	})
	return g.Wait()
}
