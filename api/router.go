package api

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/musterhq/muster/job"
)

// Verb is what an operation does, for the authoriser. The list is closed.
type Verb string

const (
	Public  Verb = "public"  // tells nothing about anybody's jobs: health, the API's own description
	Read    Verb = "read"    // jobs, runs, output
	Submit  Verb = "submit"  // starts, cancels and retries runs
	Define  Verb = "define"  // changes jobs
	Inspect Verb = "inspect" // workers, the cluster, metrics
	Operate Verb = "operate" // cordons, drains, maintenance, nodes, copies of the state
	Admin   Verb = "admin"   // credentials; replaces the whole state
	Join    Verb = "join"    // needs a join token, which the joiner checks
	Peer    Verb = "peer"    // between nodes: a node's certificate and nothing else
)

// Verbs are all of them.
var Verbs = []Verb{Public, Read, Submit, Define, Inspect, Operate, Admin, Join, Peer}

// Operation is what a request is about to do, as the authoriser sees it.
type Operation struct {
	ID        string // stable, as in the OpenAPI document: "submit-run"
	Verb      Verb
	Namespace string // of the request; "" where the operation has none, "*" for all of them
}

// request is one request on its way through the API.
type request struct {
	ctx       context.Context
	w         *responseWriter
	r         *http.Request
	id        string
	op        *endpoint
	namespace string
	query     url.Values
	authorize func() error // asks again, for streams that outlive a credential
}

type requestKey struct{}

// endpoint is what a route declares beside its handler.
type endpoint struct {
	Operation
	method, path string
	namespaced   bool     // takes ?namespace=
	anyNamespace bool     // and "*" as its value
	stream       bool     // lasts as long as its caller stays
	params       []string // query parameters
	repeated     []string // those of them that may come more than once
}

// router is the one door: nothing reaches a handler but through guard. huma registers its routes here too, as on a
// humago.Mux.
type router struct {
	*API
	mux       *http.ServeMux
	endpoints map[string]*endpoint // by pattern; declared before the handler is registered
	metrics   *metrics
	requests  atomic.Int64 // in progress
	streams   atomic.Int64
	served    atomic.Uint64
	console   http.HandlerFunc // for paths that only the console knows
}

func newRouter(a *API) (*router, error) {
	rt := &router{API: a, mux: http.NewServeMux(), endpoints: map[string]*endpoint{}}
	m, err := newMetrics(a.Registerer)
	rt.metrics = m
	return rt, err
}

// HandleFunc registers a handler for an endpoint that was declared; one that was not is a defect found at start.
func (rt *router) HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request)) {
	op := rt.endpoints[pattern]
	if op == nil {
		panic("api: the route " + pattern + " has no endpoint")
	}
	rt.mux.HandleFunc(pattern, rt.guard(op, h))
}

// ServeHTTP serves one request from its first byte to its last.
func (rt *router) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rw := &responseWriter{ResponseWriter: w}
	rq := &request{ctx: r.Context(), w: rw, r: r, id: rt.requestID(r)}
	start := time.Now()
	defer func() {
		if p := recover(); p != nil {
			rt.panicked(rq, p)
		}
		if rq.op == nil || !rq.op.stream {
			rt.metrics.observe(rq, rw.status, time.Since(start))
		}
	}()
	h := w.Header()
	h["X-Request-Id"] = []string{rq.id}
	h["X-Content-Type-Options"] = nosniff
	h["Cache-Control"] = noStore
	// ServeMux answers an unclean path with a redirect, which would turn some clients' POST into a GET elsewhere. No name of
	// ours begins with a dot or is empty, so such a path names nothing.
	if p := r.URL.Path; strings.Contains(p, "//") || strings.Contains(p, "/.") || r.RequestURI == "*" {
		rt.notFound(rq)
		return
	}
	rt.mux.ServeHTTP(rw, r.WithContext(context.WithValue(r.Context(), requestKey{}, rq)))
}

var (
	nosniff = []string{"nosniff"}
	noStore = []string{"no-store"}
)

// requestID takes over a caller's id if it is harmless in a log, and otherwise makes one.
func (rt *router) requestID(r *http.Request) string {
	if id := r.Header.Get("X-Request-Id"); id != "" && len(id) <= 64 && strings.Trim(id, idCharacters) == "" {
		return id
	}
	return rt.prefix + "-" + strconv.FormatUint(rt.served.Add(1), 36)
}

const idCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"

// guard is what happens before any handler: a place among the requests in progress, the query read strictly, the caller
// authorised, a time limit.
func (rt *router) guard(op *endpoint, h func(http.ResponseWriter, *http.Request)) func(http.ResponseWriter, *http.Request) {
	inProgress, limit := &rt.requests, int64(rt.MaxRequests)
	if op.stream {
		inProgress, limit = &rt.streams, int64(rt.MaxStreams)
	}
	return func(w http.ResponseWriter, r *http.Request) {
		rq := r.Context().Value(requestKey{}).(*request)
		rq.op = op
		if op.Verb != Public { // health must answer on a node that is full
			if inProgress.Add(1) > limit {
				inProgress.Add(-1)
				rt.fail(rq, job.Errorf(job.Unavailable, "overloaded", "this node has as many requests in progress as it takes; try again, here or on another node"))
				return
			}
			defer inProgress.Add(-1)
		}
		if err := rq.readQuery(); err != nil {
			rt.fail(rq, err)
			return
		}
		auth := op.Operation
		auth.Namespace = rq.namespace
		rq.authorize = func() error { return rt.Authorize(r, auth) }
		if err := rq.authorize(); err != nil {
			rt.fail(rq, err)
			return
		}
		ctx := r.Context()
		if !op.stream {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, rt.RequestTimeout)
			defer cancel()
			// A caller that does not read its answer must not hold us for ever. A stream sets its own, write by write.
			_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(rt.RequestTimeout + 30*time.Second))
			r = r.WithContext(ctx)
		}
		rq.ctx, rq.r = ctx, r
		h(w, r)
	}
}

// readQuery reads the query's parameters: an unknown one is refused, because a filter that is silently not applied
// answers a question that nobody asked; and a repeated one, because two readers of it could choose differently.
func (rq *request) readQuery() error {
	if rq.op.namespaced {
		rq.namespace = defaultNamespace
	}
	if rq.r.URL.RawQuery == "" {
		return nil
	}
	q, err := url.ParseQuery(rq.r.URL.RawQuery)
	if err != nil {
		return &job.Error{Code: job.Invalid, Reason: "invalid_query", Message: "the query of the URL cannot be read; escape what is special in it", Cause: err}
	}
	for name, values := range q {
		if !slices.Contains(rq.op.params, name) {
			if len(rq.op.params) == 0 {
				return job.InvalidField(clip(name), "this endpoint takes no query parameters")
			}
			return job.InvalidField(clip(name), "this endpoint has no such query parameter; it takes %s", strings.Join(rq.op.params, ", "))
		}
		if len(values) > 1 && !slices.Contains(rq.op.repeated, name) {
			return job.InvalidField(name, "it is given %d times", len(values))
		}
		for _, v := range values {
			if err := plainText(name, v, 1024); err != nil {
				return err
			}
		}
	}
	rq.query = q
	if ns := q.Get("namespace"); ns != "" {
		if err := checkName("namespace", ns); err != nil && !(ns == "*" && rq.op.anyNamespace) {
			return err
		}
		rq.namespace = ns
	}
	return nil
}

const defaultNamespace = "default"

// notFound answers a path that nothing serves, or a method that its path does not.
func (rt *router) notFound(rq *request) {
	var allow []string
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete} {
		probe := &http.Request{Method: m, URL: rq.r.URL, Host: rq.r.Host}
		if _, pattern := rt.mux.Handler(probe); pattern != "" && pattern != "/" {
			allow = append(allow, m)
		}
	}
	if len(allow) > 0 && !slices.Contains(allow, rq.r.Method) {
		rq.w.Header().Set("Allow", strings.Join(allow, ", "))
		rt.fail(rq, job.Errorf(job.Invalid, reasonMethod, "this path takes %s", strings.Join(allow, ", ")))
		return
	}
	rt.fail(rq, job.Errorf(job.NotFound, "no_route", "there is nothing at this path; /openapi.json lists what is there"))
}

// fail answers with the problem document of err. Once an answer has begun it can only be broken off.
func (rt *router) fail(rq *request, err error) {
	e := classify(rq.ctx, err, rq.r.Method != http.MethodGet && rq.r.Method != http.MethodHead)
	if e.Code == job.Internal {
		rt.Logger.Error("request failed", slog.String("request_id", rq.id), slog.String("operation", rq.name()), slog.Any("err", e))
	} else if e.Cause != nil {
		rt.Logger.Debug("request refused", slog.String("request_id", rq.id), slog.String("operation", rq.name()), slog.Any("err", e))
	}
	if rq.w.status != 0 {
		panic(http.ErrAbortHandler)
	}
	p := problemOf(e)
	p.RequestID = rq.id
	if e.Code == job.Unauthenticated && e.Reason == "no_credential" { // whoever has one must not have to guess how to show it
		p.Detail += "; send its token in the header \"Authorization: Bearer TOKEN\""
	}
	if s := retryAfter(e.Code); s != "" {
		rq.w.Header().Set("Retry-After", s)
	}
	if e.Code == job.Unauthenticated {
		rq.w.Header().Set("WWW-Authenticate", "Bearer")
	}
	rt.metrics.refused(rq, e)
	rq.writeJSON(p.Status, problemType, p)
}

func (rq *request) name() string {
	if rq.op == nil {
		return "none"
	}
	return rq.op.ID
}

// panicked answers a defect. http.ErrAbortHandler is no defect: it breaks an answer off that has begun.
func (rt *router) panicked(rq *request, p any) {
	if p == http.ErrAbortHandler {
		panic(p)
	}
	rt.metrics.panicked()
	rt.Logger.Error("request panicked", slog.String("request_id", rq.id), slog.String("operation", rq.name()),
		slog.Any("err", fmt.Errorf("%v", p)), slog.String("stack", string(debug.Stack())))
	if rq.w.status != 0 {
		panic(http.ErrAbortHandler)
	}
	e := job.Errorf(job.Internal, "panic", "an internal error occurred")
	doc := problemOf(e)
	doc.RequestID = rq.id
	rq.writeJSON(doc.Status, problemType, doc)
}

// responseWriter remembers whether an answer has begun, and how.
type responseWriter struct {
	http.ResponseWriter
	status int
}

func (w *responseWriter) WriteHeader(status int) {
	if w.status == 0 || w.status < 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *responseWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach deadlines and flushing.
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
