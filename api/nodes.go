package api

import (
	"errors"
	"html"
	"net/http"
	"strings"

	"github.com/musterhq/muster/job"
)

// Health is what /healthz and /readyz answer when all is well.
type Health struct {
	Status string `json:"status"`
}

// healthz says that the process answers, and no more: a node without a leader is healthy, and restarting it would not help.
func (a *API) healthz(rq *request, _ *inNothing) error {
	return rq.json(http.StatusOK, Health{"ok"})
}

// readyz says whether to send requests here.
func (a *API) readyz(rq *request, _ *inNothing) error {
	if err := a.Cluster.Ready(rq.ctx); err != nil {
		if e := new(job.Error); errors.As(err, &e) {
			return err
		}
		return &job.Error{Code: job.Unavailable, Reason: "not_ready", Message: "this node cannot take requests now", Cause: err}
	}
	return rq.json(http.StatusOK, Health{"ok"})
}

func (a *API) serveMetrics(rq *request, _ *inNothing) error {
	if a.Metrics == nil {
		return job.Errorf(job.NotFound, "no_route", "this node offers no metrics")
	}
	a.Metrics.ServeHTTP(rq.w, rq.r)
	return nil
}

func (a *API) serveOpenAPI(rq *request, _ *inNothing) error {
	rq.writeBytes(http.StatusOK, "application/openapi+json", a.openAPI)
	return nil
}

// index is the console, or a page that says what this is.
func (a *API) index(rq *request, _ *inNothing) error {
	if a.Console != nil {
		a.Console.ServeHTTP(rq.w, rq.r)
		return nil
	}
	version := cmpOr(a.Version, "dev")
	if !strings.Contains(rq.r.Header.Get("Accept"), "text/html") {
		return rq.text(http.StatusOK, "Muster "+version+", a distributed job scheduler.\n\n"+
			"The API is under /v1 and described at /openapi.json.\n"+
			"Try: GET /v1/jobs, GET /v1/runs, GET /v1/workers, GET /v1/cluster, /readyz, /metrics\n")
	}
	h := rq.w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'none'; frame-ancestors 'none'")
	rq.writeBytes(http.StatusOK, "text/html; charset=utf-8", []byte(`<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Muster</title></head><body>
<h1>Muster `+html.EscapeString(version)+`</h1>
<p>A distributed job scheduler. The API is under <code>/v1</code> and described at <a href="/openapi.json">/openapi.json</a>.</p>
<ul><li><a href="/v1/jobs">jobs</a></li><li><a href="/v1/runs">runs</a></li><li><a href="/v1/workers">workers</a></li>
<li><a href="/v1/cluster">cluster</a></li><li><a href="/readyz">readiness</a></li><li><a href="/metrics">metrics</a></li></ul>
</body></html>
`))
	return nil
}

// elsewhere is what no route serves: the console's own paths, or nothing.
func (a *API) elsewhere(w http.ResponseWriter, r *http.Request) {
	rq := r.Context().Value(requestKey{}).(*request)
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	if a.Console == nil || !reads || r.URL.Path == "/v1" || strings.HasPrefix(r.URL.Path, "/v1/") {
		a.router.notFound(rq)
		return
	}
	a.router.console(w, r)
}
