package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/musterhq/muster/job"
)

// Limits of the contract (D6). Each is answered by a problem document when it is reached.
const (
	MaxBody        = 1 << 20 // bytes of a request's body; 413
	MaxBatch       = 1_000   // runs of one POST /v1/runs/batch; 400
	MaxPage        = 1_000
	DefaultPage    = 100
	MaxPageBytes   = 8 << 20 // of payloads and results in one page of runs: the page ends early, next_cursor goes on
	MaxBackfill    = 1_000   // runs of one backfill; 400
	MaxVerifyTicks = 10_000  // expected ticks of one verify; 400
	MaxDelay       = 366 * 24 * time.Hour
	MaxKey         = 255 // bytes of an Idempotency-Key
	// An id that a client brings must not be older than MaxIDAge, the life of a key, nor further ahead than MaxIDLead: ids
	// order the runs, and recovery looks for lost hints by the time in them (S10).
	MaxIDAge  = 24 * time.Hour
	MaxIDLead = time.Hour
	// A snapshot is the one body that is larger; it is never held in memory.
	MaxSnapshot    = 4 << 30 // bytes; 413
	MaxRestoreTime = time.Hour
	// A credential lives as long as is said, within these, or until it is revoked.
	MinCredentialLife = time.Minute
	MaxCredentialLife = 10 * 366 * 24 * time.Hour
	MaxNamespaces     = 100 // of one credential; 400
)

// Config is what a node puts into its API.
type Config struct {
	Store     Store
	Schedules Schedules
	Leases    Leases
	Leader    Leader
	Flags     Flags
	Hints     Hints
	Output    Output
	Joiner    Joiner
	Cluster   Cluster

	Graphs      Graphs       // nil: GET /v1/jobs/{name}/dependencies and a deletion with detach answer 404
	Admin       ClusterAdmin // nil: its routes answer 404
	Credentials Credentials  // nil: /v1/credentials answers 404
	Snapshots   Snapshots    // nil: /v1/cluster/snapshot answers 404

	Metrics http.Handler // GET /metrics; nil: 404
	Console http.Handler // GET of everything outside /v1 that is no other route; nil: one plain page at /

	// Authorize decides on every request before a handler or its body is looked at; nil allows everything. Its error is
	// answered as it is: Unauthenticated or Forbidden.
	Authorize func(*http.Request, Operation) error

	Version    string                // of the binary, for OpenAPI and the plain page
	Logger     *slog.Logger          // nil: slog.Default()
	Registerer prometheus.Registerer // nil: no metrics
	Now        func() time.Time      // nil: time.Now
	// RequestTimeout bounds each request but streams; 0 means 30 s.
	RequestTimeout time.Duration
	// BodyTimeout is how long a body may take to arrive; 0 means 20 s.
	BodyTimeout time.Duration
	// FollowEvery is how often a followed run is looked at between its attempts and for its end; 0 means 100 ms.
	FollowEvery time.Duration
	// MaxRequests bounds the requests in progress, streams apart; 0 means 4,096. Full: 503.
	MaxRequests int
	// MaxStreams bounds the open streams; 0 means 1,024. Full: 503.
	MaxStreams int
}

// Validate names what is missing.
func (c *Config) Validate() error {
	missing := ""
	for name, v := range map[string]any{
		"Store": c.Store, "Schedules": c.Schedules, "Leases": c.Leases, "Leader": c.Leader, "Flags": c.Flags,
		"Hints": c.Hints, "Output": c.Output, "Joiner": c.Joiner, "Cluster": c.Cluster,
	} {
		if v == nil && (missing == "" || name < missing) {
			missing = name
		}
	}
	if missing != "" {
		return job.InvalidField("api.Config."+missing, "it has to be set")
	}
	for name, d := range map[string]time.Duration{
		"RequestTimeout": c.RequestTimeout, "BodyTimeout": c.BodyTimeout, "FollowEvery": c.FollowEvery,
	} {
		if d < 0 {
			return job.InvalidField("api.Config."+name, "it cannot be negative")
		}
	}
	if c.MaxRequests < 0 || c.MaxStreams < 0 {
		return job.InvalidField("api.Config.MaxRequests", "neither it nor MaxStreams can be negative")
	}
	return nil
}

// API is the handler of a node's whole HTTP contract.
type API struct {
	Config
	huma    huma.API
	router  *router
	prefix  string // of the request ids of this process
	openAPI []byte

	restoring atomic.Bool // a snapshot is being put in the state's place
}

// New checks the configuration and builds the routes. It starts nothing.
func New(c Config) (*API, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	orElse(&c.Logger, slog.Default())
	orElse(&c.RequestTimeout, 30*time.Second)
	orElse(&c.BodyTimeout, 20*time.Second)
	orElse(&c.FollowEvery, 100*time.Millisecond)
	orElse(&c.MaxRequests, 4096)
	orElse(&c.MaxStreams, 1024)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Authorize == nil {
		c.Authorize = func(*http.Request, Operation) error { return nil }
	}
	a := &API{Config: c}
	var b [6]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, err
	}
	a.prefix = hex.EncodeToString(b[:])
	if err := a.buildRoutes(); err != nil {
		return nil, err
	}
	return a, nil
}

// ServeHTTP makes API an http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.router.ServeHTTP(w, r) }

// OpenAPI is the document that /openapi.json answers.
func (a *API) OpenAPI() []byte { return a.openAPI }

func (a *API) now() job.Instant { return job.At(a.Now()) }

// newRunID makes an id that is ours to make.
func (a *API) newRunID() job.RunID {
	var entropy [10]byte
	_, _ = rand.Read(entropy[:]) // never fails
	return job.MakeRunID(a.Now(), entropy)
}

func (a *API) newJobID() job.JobID { return job.JobID(a.newRunID()) }

func orElse[T comparable](v *T, otherwise T) {
	var zero T
	if *v == zero {
		*v = otherwise
	}
}

// classify makes what a handler or the store answered fit to be shown. An error that ends a request whose time was up, or
// whose caller has gone, is not a defect of ours whatever its type.
func classify(ctx context.Context, err error, wrote bool) *job.Error {
	e := job.AsError(err)
	if e.Code != job.Internal || ctx.Err() == nil {
		return e
	}
	if wrote {
		return &job.Error{Code: job.Unknown, Reason: "timeout", Cause: err,
			Message: "the request took too long; it may have been carried out. Repeat it, with the same id if it creates something"}
	}
	if !errors.Is(ctx.Err(), context.Canceled) {
		return &job.Error{Code: job.Unavailable, Reason: "timeout", Message: "the request took too long; try again, here or on another node", Cause: err}
	}
	return &job.Error{Code: job.Unavailable, Reason: "cancelled", Message: "the caller went away", Cause: err}
}
