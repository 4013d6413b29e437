package worker

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// Options of Run.
type Options struct {
	// Addresses are the base URLs of the nodes' APIs. Default: http://127.0.0.1:8080, where `muster dev` listens.
	Addresses []string
	// Name is the worker's, unique in the cluster. Default: the host's name.
	Name string
	// Slots is how many attempts run at once. Default: the number of CPUs. Handlers that mostly wait want many.
	Slots int
	// Handlers are what this worker can run. Required.
	Handlers *Handlers
	// Labels are what selectors match.
	Labels map[string]string
	// DataDir keeps results until they are acknowledged. Default: muster/NAME in the user's cache directory. Two workers
	// on one machine need two.
	DataDir string
	// HTTPClient speaks HTTP/2 and brings the TLS configuration of the cluster. Default: the system's trust.
	HTTPClient *http.Client
	// Logger; default slog.Default().
	Logger *slog.Logger
	// DrainTimeout is how long handlers may go on after ctx has ended. Default 30 s.
	DrainTimeout time.Duration
}

// Run is a worker that runs handlers, until ctx ends and what runs has finished. A service that has work of its own calls
// it in a goroutine.
func Run(ctx context.Context, o Options) error {
	if len(o.Addresses) == 0 {
		o.Addresses = []string{"http://127.0.0.1:8080"}
	}
	if o.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("worker: no Name, and the host has none: %w", err)
		}
		o.Name = host
	}
	if o.DataDir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("worker: no DataDir, and there is no cache directory: %w", err)
		}
		o.DataDir = filepath.Join(cache, "muster", o.Name)
	}
	a, err := New(Config{
		Name: o.Name, DataDir: o.DataDir, Addresses: o.Addresses, Labels: o.Labels, Slots: o.Slots, Handlers: o.Handlers,
		HTTPClient: o.HTTPClient, Logger: o.Logger, DrainTimeout: o.DrainTimeout,
	})
	if err != nil {
		return err
	}
	return a.Run(ctx)
}
