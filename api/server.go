package api

import (
	"container/list"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/musterhq/muster/job"
)

// ServerConfig configures the server of a node's API.
type ServerConfig struct {
	Handler http.Handler
	TLS     *tls.Config // nil: plain HTTP/1 and HTTP/2
	Logger  *slog.Logger
	// ReadHeaderTimeout is how long a request's head may take; 0 means 10 s.
	ReadHeaderTimeout time.Duration
	// IdleTimeout is how long a connection may stay open between requests; 0 means 2 min.
	IdleTimeout time.Duration
	// BodyTimeout is how long the body of a request may take that nobody reads; 0 means 30 s.
	BodyTimeout time.Duration
	// MaxConnections is how many may be open; beyond it the one goes that has been quiet for the longest. 0 means 20,000,
	// which is more than a node has workers.
	MaxConnections int
}

// Server makes the server, with a limit on everything a slow or hostile caller could hold. There is no ReadTimeout and no
// WriteTimeout: worker streams and followed output have no end, so each request sets its own deadlines.
func Server(c ServerConfig) *http.Server {
	orElse(&c.ReadHeaderTimeout, 10*time.Second)
	orElse(&c.IdleTimeout, 2*time.Minute)
	orElse(&c.BodyTimeout, 30*time.Second)
	orElse(&c.MaxConnections, 20_000)
	orElse(&c.Logger, slog.Default())
	open := &connections{max: c.MaxConnections, all: map[net.Conn]*list.Element{}}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           unread(c.BodyTimeout, c.Handler),
		TLSConfig:         c.TLS,
		ReadHeaderTimeout: c.ReadHeaderTimeout,
		IdleTimeout:       c.IdleTimeout,
		MaxHeaderBytes:    32 << 10,
		Protocols:         protocols,
		ConnState:         open.note,
		ErrorLog:          slog.NewLogLogger(c.Logger.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          250,
			MaxReceiveBufferPerConnection: 4 << 20,
			SendPingTimeout:               30 * time.Second,
			PingTimeout:                   15 * time.Second,
			WriteByteTimeout:              30 * time.Second,
		},
	}
}

// unread bounds how long the server waits for a body that its handler does not read: over HTTP/1 it takes in the rest before it
// answers, and whoever announces a body, is refused and sends none would have a connection for ever. A handler that reads
// sets deadlines of its own.
func unread(timeout time.Duration, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(timeout))
		}
		next.ServeHTTP(w, r)
	})
}

// LocalOnly keeps web pages away from an API that asks for no credential. A page elsewhere can make a browser send
// requests to this machine, with its own name in Origin; and by giving its own name this machine's address (DNS
// rebinding) it can even read the answers, but then that name stands in Host. So both have to be ours.
func LocalOnly(next http.Handler) http.Handler {
	next = NoForeignPages(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !loopbackHost(r.Host) {
			refuse(w, r, job.Errorf(job.Forbidden, "host_not_local", "this node serves loopback only; call it as localhost or 127.0.0.1, or start a server with credentials"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// KnownHosts refuses requests under a name that is not one of the node's own, for an API that asks for no credential: a web
// page can give its own name the node's address (DNS rebinding) and is of the node's origin then, but under that name. Nobody
// can do so with an address, nor with a name that has no dot and so is nobody's domain.
func KnownHosts(names []string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := hostOf(r.Host)
		_, err := netip.ParseAddr(host)
		if err != nil && strings.Contains(host, ".") && !slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(strings.TrimSuffix(n, "."), host) }) {
			refuse(w, r, job.Errorf(job.Forbidden, "host_unknown", "this node has no certificates and so answers by its address, and the names in its --advertise, --http and --join, only"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// hostOf is the host of a Host header.
func hostOf(hostport string) string {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	return strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"), ".")
}

// NoForeignPages refuses requests that a browser makes for a page of another origin. It is for an API that asks for no
// credential: where one is needed, a page has none to send.
func NoForeignPages(next http.Handler) http.Handler {
	cross := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		origin := r.Header.Get("Origin")
		if cross.Check(r) != nil || origin != "" && !sameOrigin(origin, r.Host) || foreignPage(r) {
			refuse(w, r, job.Errorf(job.Forbidden, "cross_origin", "this request was made by a web page of another origin"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// sameOrigin is stricter than CrossOriginProtection, which lets other origins read: a stream that is opened costs as much
// as a write.
func sameOrigin(origin, host string) bool {
	_, rest, ok := strings.Cut(origin, "://")
	return ok && strings.EqualFold(rest, host)
}

// foreignPage tells whether a page elsewhere asks, by what browsers say themselves. An image or a frame that it loads has
// no Origin, cannot be read, and yet holds a stream open. Only to follow a link to here is allowed.
func foreignPage(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "cross-site", "same-site":
		return r.Header.Get("Sec-Fetch-Dest") != "document"
	}
	return false
}

func loopbackHost(hostport string) bool {
	host := hostOf(hostport)
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// Once refuses requests for data until started is true: before that a node knows only what its last snapshot
// held, and would answer "not found" for what was accepted since (S7). Health, metrics and the console are let through, and
// so is what helps a cluster to start: nodes greet each other before any of them knows more, and whoever wonders why it does
// not start asks for its status.
func Once(started func() bool, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		early := r.Method == http.MethodGet && (r.URL.Path == "/v1/cluster" || r.URL.Path == "/v1/cluster/greeting")
		if strings.HasPrefix(r.URL.Path, "/v1/") && !early && !started() {
			w.Header().Set("Retry-After", "1")
			refuse(w, r, job.Errorf(job.Unavailable, "starting", "this node is starting and does not know yet all that the cluster has accepted; try again in a second"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// refuse answers outside the router.
func refuse(w http.ResponseWriter, r *http.Request, e *job.Error) {
	rq := &request{ctx: r.Context(), w: &responseWriter{ResponseWriter: w}, r: r}
	p := problemOf(e)
	rq.writeJSON(p.Status, problemType, p)
}
