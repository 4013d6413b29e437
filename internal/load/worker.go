package load

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/musterhq/muster/worker"
)

// handlerName is the handler that all jobs of the benchmarks call.
const handlerName = "bench"

// WorkerOptions of Work.
type WorkerOptions struct {
	Addresses []string
	Name      string
	DataDir   string
	Slots     int
	Records   io.Writer // gets a record of each start
	Logger    *slog.Logger
}

// Work is the worker's process: a handler that does nothing but to record that it was called.
func Work(ctx context.Context, o WorkerOptions) error {
	rec := newRecorder()
	var handlers worker.Handlers
	handlers.Handle(handlerName, func(ctx context.Context, _ json.RawMessage) (json.RawMessage, error) {
		at := time.Now().UnixNano()
		info := worker.InfoFrom(ctx)
		rec.add(start{run: info.RunID, scheduledAt: info.ScheduledAt, at: at, attempt: info.Attempt})
		return nil, nil
	})
	var g errgroup.Group
	stop := make(chan struct{})
	g.Go(func() error { return rec.run(o.Records, stop) })
	g.Go(func() error {
		defer close(stop)
		return worker.Run(ctx, worker.Options{Addresses: o.Addresses, Name: o.Name, Slots: o.Slots, Handlers: &handlers,
			DataDir: o.DataDir, Logger: o.Logger})
	})
	return g.Wait()
}
