package worker

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/musterhq/muster/job"
)

// HTTPConfig says where the requests of this worker may go. The zero value allows the public internet.
type HTTPConfig struct {
	// AllowPrivate allows loopback, private and carrier-grade NAT addresses. Link-local ones, where clouds keep their
	// metadata and credentials, stay refused.
	AllowPrivate bool
	// AllowHosts are exceptions: a host name ("ci.corp"), a suffix ("*.corp"), either with a port ("localhost:8080"), an
	// address or a prefix ("10.0.0.0/8"). What they name may be at any address.
	AllowHosts []string
	// Proxy is the URL of a proxy for all requests; "" is none, whatever the environment says. The proxy then resolves
	// the names, so that only addresses written in the URL itself can be checked here: the proxy must refuse the rest.
	Proxy string
	// MaxRedirects is how many redirects are followed. 0 means 5, negative none.
	MaxRedirects int
	// DialTimeout bounds connecting and the TLS handshake, each. 0 means 10 s. The answer itself may take as long as the
	// attempt may.
	DialTimeout time.Duration
	// TLS is for https targets; nil is the system's roots.
	TLS *tls.Config
}

// Validate names the field that is wrong.
func (c *HTTPConfig) Validate() error {
	_, err := newGuard(c.AllowPrivate, c.AllowHosts)
	if err != nil {
		return err
	}
	if c.Proxy != "" {
		if u, err := url.Parse(c.Proxy); err != nil || u.Host == "" {
			return job.InvalidField("Proxy", "it is not a URL")
		}
	}
	return nil
}

// HTTP is the executor of HTTP requests: one request per attempt.
//
// A response whose status is in success_status (default 200-299) is a success, and its body the result if it is JSON of
// at most 64 KiB that can be stored; another body is no failure, since most endpoints answer something. Connection
// errors and other statuses are failures that the retry policy may mend, as Cloud Tasks has it; only statuses that judge
// the request itself (see permanentStatus) are permanent, because the same request would be sent again. 401, 403, 404
// and 409 are not among them: credentials are rotated, deployments finish, locks are released.
//
// There is no polite end: a stop cancels the request.
type HTTP struct {
	cfg    HTTPConfig
	guard  *guard
	client *http.Client
}

// permanentStatus are the answers that say: this request is wrong.
var permanentStatus = []int{
	http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusGone, http.StatusLengthRequired,
	http.StatusRequestEntityTooLarge, http.StatusRequestURITooLong, http.StatusUnsupportedMediaType,
	http.StatusExpectationFailed, http.StatusUnprocessableEntity, http.StatusRequestHeaderFieldsTooLarge,
	http.StatusUnavailableForLegalReasons, http.StatusNotImplemented, http.StatusHTTPVersionNotSupported,
}

// NewHTTP checks the configuration; it does no I/O.
func NewHTTP(cfg HTTPConfig) (*HTTP, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.MaxRedirects == 0 {
		cfg.MaxRedirects = 5
	}
	if cfg.DialTimeout <= 0 {
		cfg.DialTimeout = 10 * time.Second
	}
	g, err := newGuard(cfg.AllowPrivate, cfg.AllowHosts)
	if err != nil {
		return nil, err
	}
	h := &HTTP{cfg: cfg, guard: g}
	t := &http.Transport{
		DialContext:            h.dial,
		TLSClientConfig:        cfg.TLS,
		TLSHandshakeTimeout:    cfg.DialTimeout,
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           256,
		MaxIdleConnsPerHost:    64,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
	if cfg.Proxy != "" {
		u, err := url.Parse(cfg.Proxy)
		if err != nil {
			return nil, err
		}
		t.Proxy = http.ProxyURL(u)
	}
	h.client = &http.Client{Transport: t, CheckRedirect: h.checkRedirect}
	return h, nil
}

// Close closes idle connections.
func (h *HTTP) Close() error {
	h.client.CloseIdleConnections()
	return nil
}

// dial checks the address after the name was resolved and before the connection is made, for every connection, those of
// redirects included: a name that resolves to another address the second time gains nothing by it.
func (h *HTTP) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: h.cfg.DialTimeout, KeepAlive: 30 * time.Second}
	if h.cfg.Proxy == "" && !h.guard.allowsHost(addr) {
		d.ControlContext = h.guard.control
	}
	return d.DialContext(ctx, network, addr)
}

// checkRedirect decides about each hop. Go has copied the headers to the new request; those that the document set were
// meant for the host it named.
func (h *HTTP) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > h.cfg.MaxRedirects {
		return &refusal{job.ExitCode, false, fmt.Sprintf("the endpoint redirected more than %d times", max(0, h.cfg.MaxRedirects))}
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme == "http" {
		return notPermitted("the endpoint redirected from https to http, which is not followed")
	}
	req.Header.Del("Referer") // a URL may hold a secret
	if !strings.EqualFold(req.URL.Host, via[0].URL.Host) {
		for k := range req.Header {
			if !strings.HasPrefix(k, "Muster-") && k != "Content-Type" && k != "Accept" && k != "User-Agent" && k != "Idempotency-Key" {
				req.Header.Del(k)
			}
		}
	}
	if no := h.guard.checkURL(req.URL); no != nil {
		return no
	}
	return nil
}

// Execute sends the document's request and judges the answer.
func (h *HTTP) Execute(ctx context.Context, a *job.Assignment, out io.Writer) job.Outcome {
	o := begin(a)
	if a.Spec == nil || a.Spec.HTTP == nil {
		return failForGood(&o, job.CannotStart, "the document has no http request")
	}
	if ctx.Err() != nil {
		return stopped(&o, a, stopOf(ctx, 0))
	}
	req, no := h.request(ctx, a)
	if no != nil {
		o.Permanent = no.permanent
		return fail(&o, no.reason, "%s", no.text)
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return h.failedRequest(ctx, &o, a, req, err)
	}
	defer resp.Body.Close()
	body, more, err := readBody(resp.Body)
	writeBody(out, resp, body, more)
	if err != nil {
		return h.failedRequest(ctx, &o, a, req, fmt.Errorf("the answer broke off: %w", err))
	}
	var result json.RawMessage
	if !more {
		if result, err = checkResult(body); err != nil {
			if json.Valid(body) {
				fmt.Fprintf(out, "[the response is not kept as the result: %v]\n", err)
			}
			result = nil
		}
	}
	if h.succeeded(a.Spec.HTTP, resp.StatusCode) {
		return succeed(&o, result)
	}
	o.Result = result
	o.Permanent = slices.Contains(permanentStatus, resp.StatusCode)
	return fail(&o, job.ExitCode, "%s answered %s", where(req.URL), statusText(resp.StatusCode))
}

func (h *HTTP) succeeded(spec *job.HTTP, status int) bool {
	if len(spec.SuccessStatus) == 0 {
		return status >= 200 && status <= 299
	}
	return slices.Contains(spec.SuccessStatus, status)
}

// failedRequest explains an error of the client in one sentence. The address is named without user, path and query, which
// may hold secrets.
func (h *HTTP) failedRequest(ctx context.Context, o *job.Outcome, a *job.Assignment, req *http.Request, err error) job.Outcome {
	if ctx.Err() != nil {
		return stopped(o, a, stopOf(ctx, 0))
	}
	var no *refusal
	if errors.As(err, &no) {
		o.Permanent = no.permanent
		return fail(o, no.reason, "%s", no.text)
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return fail(o, job.ExitCode, "the request to %s failed: %v", where(req.URL), err)
}

func where(u *url.URL) string { return u.Scheme + "://" + u.Host }

func statusText(code int) string {
	if t := http.StatusText(code); t != "" {
		return strconv.Itoa(code) + " " + t
	}
	return strconv.Itoa(code)
}

// drainBody is how much of a long body is read beyond what is kept, so that the connection can be used again.
const drainBody = 64 << 10

// readBody reads what is kept of a body, decompressed; more says that there was more.
func readBody(r io.Reader) (body []byte, more bool, err error) {
	body, err = io.ReadAll(io.LimitReader(r, MaxResult+1))
	if len(body) > MaxResult {
		io.Copy(io.Discard, io.LimitReader(r, drainBody))
		return body[:MaxResult], true, nil
	}
	return body, false, err
}

func writeBody(out io.Writer, resp *http.Response, body []byte, more bool) {
	fmt.Fprintf(out, "HTTP %s\n", statusText(resp.StatusCode))
	if len(body) == 0 {
		return
	}
	out.Write(body)
	if body[len(body)-1] != '\n' {
		io.WriteString(out, "\n")
	}
	if more {
		fmt.Fprintf(out, "[response truncated at %s]\n", sizeText(MaxResult))
	}
}

// refusedHeaders belong to the connection or to Muster; a document that set them could smuggle requests or forge a fence.
var refusedHeaders = []string{
	"Connection", "Content-Length", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade", "Expect",
}

// request builds the request, and refuses what no endpoint should ever see.
func (h *HTTP) request(ctx context.Context, a *job.Assignment) (*http.Request, *refusal) {
	spec := a.Spec.HTTP
	method := strings.ToUpper(spec.Method)
	switch {
	case method == "":
		method = http.MethodPost
	case !httpguts.ValidHeaderFieldName(method), method == http.MethodConnect, method == http.MethodTrace:
		return nil, neverStarts("http.method %.32q is not a method that can be used", spec.Method)
	}
	u, err := url.Parse(spec.URL)
	if err != nil {
		return nil, neverStarts("http.url is not a URL") // the error would repeat it, and what is secret in it
	}
	if no := h.guard.checkURL(u); no != nil {
		return nil, no
	}
	body, contentType := requestBody(spec, a.Payload, method)
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), r)
	if err != nil {
		return nil, neverStarts("the request to %s cannot be built", where(u))
	}
	head := req.Header
	head.Set("User-Agent", "Muster")
	head.Set("Idempotency-Key", a.RunID.String())
	if contentType != "" {
		head.Set("Content-Type", contentType)
	}
	for _, k := range slices.Sorted(maps.Keys(spec.Headers)) {
		v := spec.Headers[k]
		name := http.CanonicalHeaderKey(k)
		switch {
		case !httpguts.ValidHeaderFieldName(k):
			return nil, neverStarts("http.headers: %.64q is not a header name", k)
		case !httpguts.ValidHeaderFieldValue(v):
			return nil, neverStarts("http.headers: the value of %.64q holds a character that no header may", k)
		case slices.Contains(refusedHeaders, name):
			return nil, neverStarts("http.headers: %.64q cannot be set, it belongs to the connection", k)
		case name == "Host":
			if !httpguts.ValidHostHeader(v) {
				return nil, neverStarts("http.headers: the value of %.64q is not a host", k)
			}
			req.Host = v
		default:
			head.Set(name, v)
		}
	}
	head.Set("Muster-Run-Id", a.RunID.String())
	head.Set("Muster-Attempt", strconv.FormatUint(uint64(a.Attempt), 10))
	head.Set("Muster-Fence", fenceText(a.Fence))
	head.Del("Muster-Scheduled-At")
	if a.ScheduledAt != 0 {
		head.Set("Muster-Scheduled-At", a.ScheduledAt.Time().Format(time.RFC3339Nano))
	}
	return req, nil
}

func requestBody(spec *job.HTTP, payload json.RawMessage, method string) (body []byte, contentType string) {
	switch {
	case spec.Body != "":
		body = []byte(spec.Body)
		if json.Valid(body) {
			return body, "application/json"
		}
		return body, "text/plain; charset=utf-8"
	case len(payload) > 0 && method != http.MethodGet && method != http.MethodHead:
		return payload, "application/json"
	}
	return nil, ""
}

// ipOf is an address as written in a URL, if the host is one.
func ipOf(host string) (netip.Addr, bool) {
	ip, err := netip.ParseAddr(host)
	return ip, err == nil
}
