package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/musterhq/muster/job"
)

// Config says where the cluster is and who calls.
type Config struct {
	// Addresses are the base URLs of the nodes, such as http://127.0.0.1:8080; at least one. A bare host:port means https if
	// TLS is set, and http otherwise.
	Addresses []string
	// TLS says which nodes to trust, as TrustCA makes it; nil means those that the machine trusts. Not with an HTTPClient.
	TLS *tls.Config
	// Token is the API key; "" sends none.
	Token string
	// Namespace of every call; "" means default.
	Namespace string
	// HTTPClient sends the requests; nil means one of the Client's own. It must not have a Timeout if output is followed.
	HTTPClient *http.Client
	// AttemptTimeout is how long one node may take to answer before the next is asked; 0 means 10 s. Streams have none.
	AttemptTimeout time.Duration
	// RetryFor is how long a call is repeated while the cluster is out of reach, if the context allows; 0 means 30 s, less
	// than 0 means each address is tried once.
	RetryFor time.Duration
}

// Client calls one cluster. It is safe for concurrent use.
type Client struct {
	Config
	own  bool          // the HTTPClient is ours
	next atomic.Uint32 // the address that answered last
}

// New checks the configuration. It connects to nothing.
func New(c Config) (*Client, error) {
	if len(c.Addresses) == 0 {
		return nil, job.InvalidField("client.Config.Addresses", "at least one address is needed, such as http://127.0.0.1:8080")
	}
	if c.TLS != nil && c.HTTPClient != nil {
		return nil, job.InvalidField("client.Config.TLS", "an HTTPClient brings its own; set one of the two")
	}
	scheme := "http://"
	if c.TLS != nil {
		scheme = "https://"
	}
	addresses := make([]string, len(c.Addresses))
	for i, a := range c.Addresses {
		if !strings.Contains(a, "://") {
			a = scheme + a
		}
		u, err := url.Parse(a)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			return nil, job.InvalidField("client.Config.Addresses", "%q is not the address of a node; write one such as http://127.0.0.1:8080", a)
		}
		addresses[i] = strings.TrimRight(a, "/")
	}
	c.Addresses = addresses
	if c.AttemptTimeout == 0 {
		c.AttemptTimeout = 10 * time.Second
	}
	if c.RetryFor == 0 {
		c.RetryFor = 30 * time.Second
	}
	cl := &Client{Config: c}
	if c.HTTPClient == nil {
		t := Transport(c.TLS)
		cl.own = true
		cl.HTTPClient = &http.Client{
			Transport: t,
			// No node redirects; whoever does must not be handed the token.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return cl, nil
}

// Close lets go of idle connections.
func (c *Client) Close() {
	if c.own {
		c.HTTPClient.CloseIdleConnections()
	}
}

// call is one request, wherever it goes.
type call struct {
	method, path string
	query        url.Values
	header       http.Header
	body         any           // marshalled to JSON; nil: none
	upload       io.ReadSeeker // or a body that is sent as it is
	cluster      bool          // has no namespace
	patience     time.Duration // instead of AttemptTimeout, where a node needs longer
	// once: doing it twice is not doing it once, so it is not repeated when it may have happened.
	once bool
}

const maxAnswer = 64 << 20

// do sends a call until a node answers it, and decodes the answer into out. maybe tells whether an earlier attempt may
// have been carried out, so that a refusal can be read in that light.
func (c *Client) do(ctx context.Context, q *call, out any) (maybe bool, err error) {
	body, err := q.encode()
	if err != nil {
		return false, err
	}
	giveUp := time.Now().Add(c.RetryFor)
	pause := 25 * time.Millisecond
	var said failures
	for try := 1; ; try++ {
		at := c.next.Load()
		err = c.once(ctx, c.Addresses[int(at)%len(c.Addresses)], q, body, out)
		code := job.CodeOf(err)
		if code != job.Unavailable && code != job.Unknown {
			return maybe, err
		}
		said.add(err)
		if code == job.Unknown {
			maybe = true
		}
		if ctx.Err() != nil || code == job.Unknown && q.once {
			return maybe, said.worst()
		}
		// Whoever fails first moves the others along too; the next call starts at the node that answered last.
		c.next.CompareAndSwap(at, at+1)
		if try%len(c.Addresses) != 0 {
			continue
		}
		if c.RetryFor < 0 || time.Now().Add(pause).After(giveUp) || !sleep(ctx, pause+rand.N(pause)) {
			return maybe, said.worst()
		}
		pause = min(2*pause, 2*time.Second)
	}
}

// failures are the errors of attempts that came to nothing.
type failures struct{ unknown, answered, unreached error }

func (f *failures) add(err error) {
	switch e := job.AsError(err); {
	case e.Code == job.Unknown:
		f.unknown = err
	case e.Reason == noConnection || e.Reason == untrustedNode:
		f.unreached = err
	default:
		f.answered = err
	}
}

// worst is what the caller has to know of them: that something may have happened, however the attempts after that ended; else
// what a node said, rather than that another one is not there.
func (f *failures) worst() error {
	switch {
	case f.unknown != nil:
		return f.unknown
	case f.answered != nil:
		return f.answered
	}
	return f.unreached
}

// Reasons for which a node said nothing.
const (
	noConnection  = "no_connection"
	untrustedNode = "untrusted"
)

// ask is do for a call whose answer is one T.
func ask[T any](ctx context.Context, c *Client, q *call) (*T, error) {
	v := new(T)
	if _, err := c.do(ctx, q, v); err != nil {
		return nil, err
	}
	return v, nil
}

// sleep waits, and tells whether it was allowed to.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (q *call) encode() ([]byte, error) {
	if q.body == nil {
		return nil, nil
	}
	b, err := json.Marshal(q.body)
	if err != nil {
		return nil, &job.Error{Code: job.Invalid, Reason: "invalid_field", Message: "the request cannot be written as JSON", Cause: err}
	}
	return b, nil
}

// once asks one node.
func (c *Client) once(ctx context.Context, address string, q *call, body []byte, out any) error {
	ctx, cancel := context.WithTimeout(ctx, max(c.AttemptTimeout, q.patience))
	defer cancel()
	resp, err := c.send(ctx, address, q, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return broken(q, err)
	}
	if resp.StatusCode >= 300 {
		return problem(resp, data)
	}
	if out != nil && len(data) > 0 {
		if err := json.Unmarshal(data, out); err != nil {
			return &job.Error{Code: job.Internal, Reason: "bad_answer", Message: "the node's answer cannot be read", Cause: err}
		}
	}
	return nil
}

// send sends the request and answers the response's head.
func (c *Client) send(ctx context.Context, address string, q *call, body []byte) (*http.Response, error) {
	query := q.query
	if !q.cluster && c.Namespace != "" && query.Get("namespace") == "" {
		if query == nil {
			query = url.Values{}
		}
		query.Set("namespace", c.Namespace)
	}
	target := address + q.path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	var rd io.Reader
	if body != nil {
		rd = bytes.NewReader(body)
	}
	r, err := http.NewRequestWithContext(ctx, q.method, target, rd)
	if err != nil {
		return nil, &job.Error{Code: job.Invalid, Reason: "invalid_field", Message: "the request cannot be made", Cause: err}
	}
	for k, v := range q.header {
		r.Header[k] = v
	}
	switch {
	case q.upload != nil:
		if r.ContentLength, err = q.upload.Seek(0, io.SeekEnd); err == nil {
			_, err = q.upload.Seek(0, io.SeekStart)
		}
		if err != nil {
			return nil, &job.Error{Code: job.Invalid, Reason: "invalid_field", Message: "what is to be sent cannot be read from its start", Cause: err}
		}
		r.Body = io.NopCloser(q.upload)
		r.Header.Set("Content-Type", "application/octet-stream")
	case body != nil:
		r.Header.Set("Content-Type", "application/json")
	}
	if c.Token != "" {
		r.Header.Set("Authorization", "Bearer "+c.Token)
	}
	resp, err := c.HTTPClient.Do(r)
	if err != nil {
		return nil, broken(q, err)
	}
	return resp, nil
}

// broken says what a failed exchange means: one that never reached a node, or that only reads, did nothing.
func broken(q *call, err error) error {
	var op *net.OpError
	switch {
	case untrusted(err):
		return &job.Error{Code: job.Unavailable, Reason: untrustedNode, Cause: err,
			Message: "the node cannot prove that it is one: its certificate is not of the authority that was named, or not for this address"}
	case q.method == http.MethodGet || errors.As(err, &op) && op.Op == "dial" || notTLS(err):
		return &job.Error{Code: job.Unavailable, Reason: noConnection, Message: "no node could be reached", Cause: err}
	}
	return &job.Error{Code: job.Unknown, Reason: "no_answer", Message: "the node was asked and did not answer; the request may have been carried out", Cause: err}
}

// problemDocument is how a node refuses.
type problemDocument struct {
	Code   job.Code `json:"code"`
	Reason string   `json:"reason"`
	Field  string   `json:"field"`
	Detail string   `json:"detail"`
}

func (p *problemDocument) err() *job.Error {
	return &job.Error{Code: p.Code, Reason: p.Reason, Field: p.Field, Message: p.Detail}
}

// problem makes the error that the node had. An answer without a problem document comes from something in between.
func problem(resp *http.Response, data []byte) error {
	var p problemDocument
	if err := json.Unmarshal(data, &p); err == nil && p.Code != "" {
		return p.err()
	}
	if resp.StatusCode == http.StatusBadRequest && bytes.Contains(data, []byte("HTTP request to an HTTPS server")) { // net/http says so
		return &job.Error{Code: job.Invalid, Reason: "wants_tls", Message: "the node speaks TLS only; write its address with https://"}
	}
	return &job.Error{Code: job.CodeForStatus(resp.StatusCode), Reason: "no_problem_document",
		Message: "something that is no node of Muster answered " + resp.Status}
}
