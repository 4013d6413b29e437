// Command handlers is a worker with functions of its own: jobs call them by name, with typed arguments and results.
//
//	go run ./examples/handlers --join http://127.0.0.1:8080
//	muster run submit --handler resize --payload '{"width": 4000, "height": 3000, "longest": 1200}' --wait
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/musterhq/muster/worker"
)

func main() {
	join := flag.String("join", "http://127.0.0.1:8080", "the addresses of the nodes, with commas between")
	name := flag.String("name", "handlers-example", "the worker's name, unique in the cluster")
	data := flag.String("data", "", "where results are kept until the cluster has them (default: the user's cache)")
	flag.Parse()

	// The first signal lets what runs finish.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := worker.Run(ctx, worker.Options{
		Addresses: strings.Split(*join, ","),
		Name:      *name,
		DataDir:   *data,
		Slots:     16, // more than there are CPUs, for handlers that mostly wait
		Handlers:  handlers(),
		Labels:    map[string]string{"app": "handlers-example"},
	})
	if err != nil {
		slog.Error("the worker ended", "err", err)
		os.Exit(1)
	}
}

// handlers are the functions that this worker offers.
func handlers() *worker.Handlers {
	h := new(worker.Handlers)
	worker.Register(h, "resize", resize)
	worker.Register(h, "wait", wait)
	return h
}

// Image is what a run of resize brings as its payload.
type Image struct {
	Width   int `json:"width"`
	Height  int `json:"height"`
	Longest int `json:"longest"` // what the longer side is to become
}

// Size is its result.
type Size struct {
	Width  int `json:"width"`
	Height int `json:"height"`
}

// resize is a pure function, so running it twice does no harm. One that writes should do so under the run's id, which is
// the same for every attempt.
func resize(ctx context.Context, in Image) (Size, error) {
	if in.Width <= 0 || in.Height <= 0 || in.Longest <= 0 {
		// No retry can mend a wrong request.
		return Size{}, worker.Permanent(errors.New("width, height and longest must be positive"))
	}
	info := worker.InfoFrom(ctx)
	fmt.Fprintf(info.Output, "run %s, attempt %d: %d x %d\n", info.RunID, info.Attempt, in.Width, in.Height)
	longer := max(in.Width, in.Height)
	if longer <= in.Longest {
		return Size{in.Width, in.Height}, nil
	}
	return Size{max(1, in.Width*in.Longest/longer), max(1, in.Height*in.Longest/longer)}, nil
}

// Pause is the payload of wait.
type Pause struct {
	Seconds float64 `json:"seconds"`
}

// wait shows how a handler is stopped: by its context, when the run is cancelled, its time is over or the worker stops.
func wait(ctx context.Context, in Pause) (struct{}, error) {
	t := time.NewTimer(time.Duration(in.Seconds * float64(time.Second)))
	defer t.Stop()
	select {
	case <-t.C:
		return struct{}{}, nil
	case <-ctx.Done():
		return struct{}{}, context.Cause(ctx)
	}
}
