package worker

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

// endpoint is a server on loopback and an executor that may reach it, and nothing else on loopback.
func endpoint(t testing.TB, h http.HandlerFunc, change ...func(*HTTPConfig)) (*HTTP, string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	cfg := HTTPConfig{AllowHosts: []string{s.Listener.Addr().String()}}
	for _, c := range change {
		c(&cfg)
	}
	return newHTTP(t, cfg), s.URL
}

func newHTTP(t testing.TB, cfg HTTPConfig) *HTTP {
	t.Helper()
	x, err := NewHTTP(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

func TestHTTPRequest(t *testing.T) {
	t.Parallel()
	var got *http.Request
	var body string
	x, url := endpoint(t, func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got, body = r, string(b)
	})
	for name, tc := range map[string]struct {
		spec    job.HTTP
		payload string
		want    []string // "Header: value", the first is method, the last the body
	}{
		"defaults": {job.HTTP{}, `{"a":1}`, []string{"POST", "Content-Type: application/json", "Muster-Run-Id: 0192f3a4-7c1e-7abc-8def-0123456789ab",
			"Muster-Attempt: 2", "Muster-Fence: 30064771081", "Muster-Scheduled-At: 2026-01-31T09:00:00Z",
			"Idempotency-Key: 0192f3a4-7c1e-7abc-8def-0123456789ab", "User-Agent: Muster", `{"a":1}`}},
		"no payload":  {job.HTTP{}, ``, []string{"POST", "Content-Type: ", ""}},
		"get":         {job.HTTP{Method: "get"}, `{"a":1}`, []string{"GET", "Content-Type: ", ""}},
		"a body":      {job.HTTP{Method: "PUT", Body: "a=b"}, `{"a":1}`, []string{"PUT", "Content-Type: text/plain; charset=utf-8", "a=b"}},
		"a JSON body": {job.HTTP{Body: "[1]"}, `{"a":1}`, []string{"POST", "Content-Type: application/json", "[1]"}},
		"own headers": {job.HTTP{Headers: map[string]string{"content-type": "text/csv", "x-key": "k", "Authorization": "Bearer x", "Idempotency-Key": "mine"}}, `1`,
			[]string{"POST", "Content-Type: text/csv", "X-Key: k", "Authorization: Bearer x", "Idempotency-Key: mine", "1"}},
		"forged": {job.HTTP{Headers: map[string]string{"muster-fence": "1", "Muster-Run-Id": "x"}}, ``,
			[]string{"POST", "Muster-Fence: 30064771081", "Muster-Run-Id: 0192f3a4-7c1e-7abc-8def-0123456789ab", ""}},
		"host": {job.HTTP{Headers: map[string]string{"host": "example.com"}}, ``, []string{"POST", "Host: example.com", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			tc.spec.URL = url + "/hook?x=1"
			a := assignmentOf(&job.Document{HTTP: &tc.spec})
			a.Payload = []byte(tc.payload)
			wantOutcome(t, x.Execute(t.Context(), a, io.Discard), job.AttemptSucceeded, 0, false)
			got.Header.Set("Host", got.Host)
			if got.Method != tc.want[0] || got.RequestURI != "/hook?x=1" || body != tc.want[len(tc.want)-1] {
				t.Errorf("%s %s %q", got.Method, got.RequestURI, body)
			}
			for _, h := range tc.want[1 : len(tc.want)-1] {
				k, v, _ := strings.Cut(h, ": ")
				if got.Header.Get(k) != v || len(got.Header.Values(k)) > 1 {
					t.Errorf("%s: %q, want %q", k, got.Header.Values(k), v)
				}
			}
		})
	}
}

func TestHTTPAnswers(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", MaxResult+1)
	x, url := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		switch q.Get("kind") {
		case "long":
			io.WriteString(w, `"`+long+`"`)
			return
		case "bomb":
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			z.Write(bytes.Repeat([]byte{' '}, 10<<20))
			z.Close()
			return
		case "broken":
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "half")
			return
		}
		code := http.StatusOK
		fmt.Sscan(q.Get("status"), &code)
		w.WriteHeader(code)
		io.WriteString(w, q.Get("body"))
	})
	const ok, failed = job.AttemptSucceeded, job.AttemptFailed
	for _, tc := range []struct {
		query     string
		success   []int
		kind      job.OutcomeKind
		reason    job.Reason
		permanent bool
		result    string
		out       string
	}{
		{`?body={"n":+1}`, nil, ok, 0, false, "", `{"n": 1}`},
		{`?body=[1]`, nil, ok, 0, false, "[1]", "HTTP 200 OK\n[1]\n"},
		{`?body=fine`, nil, ok, 0, false, "", "HTTP 200 OK\nfine\n"},
		{`?status=204`, nil, ok, 0, false, "", "HTTP 204 No Content\n"},
		{`?body="%5Cu0000"`, nil, ok, 0, false, "", "not kept as the result"},
		{`?kind=long`, nil, ok, 0, false, "", "[response truncated at 64 KiB]"},
		{`?kind=bomb`, nil, ok, 0, false, "", "[response truncated at 64 KiB]"},
		{`?kind=broken`, nil, failed, job.ExitCode, false, "", "half"},
		{`?status=500&body="why"`, nil, failed, job.ExitCode, false, `"why"`, "500"},
		{`?status=299`, nil, ok, 0, false, "", ""},
		{`?status=304`, nil, failed, job.ExitCode, false, "", ""},
		{`?status=200`, []int{202}, failed, job.ExitCode, false, "", ""},
		{`?status=404`, []int{200, 404}, ok, 0, false, "", ""},
		{`?status=400`, nil, failed, job.ExitCode, true, "", ""},
		{`?status=401`, nil, failed, job.ExitCode, false, "", ""},
		{`?status=403`, nil, failed, job.ExitCode, false, "", ""},
		{`?status=404`, nil, failed, job.ExitCode, false, "", ""},
		{`?status=405`, nil, failed, job.ExitCode, true, "", ""},
		{`?status=408`, nil, failed, job.ExitCode, false, "", ""},
		{`?status=409`, nil, failed, job.ExitCode, false, "", ""},
		{`?status=413`, nil, failed, job.ExitCode, true, "", ""},
		{`?status=422`, nil, failed, job.ExitCode, true, "", ""},
		{`?status=425`, nil, failed, job.ExitCode, false, "", ""},
		{`?status=429`, nil, failed, job.ExitCode, false, "", ""},
		{`?status=503`, nil, failed, job.ExitCode, false, "", ""},
	} {
		t.Run(tc.query, func(t *testing.T) {
			if strings.Contains(tc.query, "+1") {
				tc.result = `{"n":1}`
			}
			var out bytes.Buffer
			o := x.Execute(t.Context(), assignmentOf(&job.Document{HTTP: &job.HTTP{URL: url + tc.query, SuccessStatus: tc.success}}), &out)
			wantOutcome(t, o, tc.kind, tc.reason, tc.permanent)
			if string(o.Result) != tc.result || !strings.Contains(out.String(), tc.out) || out.Len() > MaxResult+200 {
				t.Errorf("result %s, output of %d bytes: %.100q", o.Result, out.Len(), out.String())
			}
			if (o.Error == "") != (tc.kind == ok) || strings.Contains(o.Error, "?") {
				t.Errorf("error %q", o.Error)
			}
		})
	}
}

// The attacks on a scheduler that sends requests for its users: all of them lead to the worker's own machine or network.
func TestHTTPRefusesPrivateTargets(t *testing.T) {
	t.Parallel()
	var reached atomic.Bool
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Store(true) }))
	defer s.Close()
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	x := newHTTP(t, HTTPConfig{AllowHosts: []string{"other.example", "10.1.2.3"}})
	for _, host := range []string{
		"127.0.0.1", "127.1", "127.0.1", "127.255.255.254", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "127.0.0.1.", "1",
		"localhost", "LOCALHOST", "localhost.", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[0:0:0:0:0:0:0:1]",
		"0.0.0.0", "0", "[::]", "0.1.2.3", "169.254.169.254", "[fe80::1]", "[fe80::1%25lo]", "[::ffff:169.254.169.254]", "[fd00:ec2::254]",
		"10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.100.100.200", "198.18.0.1", "[fd00::1]", "[fec0::1]",
		"224.0.0.1", "[ff02::1]", "255.255.255.255", "240.0.0.1", "192.0.0.192", "168.63.129.16",
		"[64:ff9b::127.0.0.1]", "[64:ff9b::a00:1]", "[64:ff9b:1::1]", "[2002:7f00:1::1]", "[2001:0:1::1]", "[::ffff:0:127.0.0.1]",
		"①②⑦.0.0.1", "127。0。0。1",
	} {
		o := x.Execute(t.Context(), assignmentOf(&job.Document{HTTP: &job.HTTP{URL: "http://" + host + ":" + port + "/"}}), io.Discard)
		if o.Kind != job.AttemptFailed || o.Reason != job.NotPermitted && host != "localhost." || reached.Load() {
			t.Errorf("%s: %v %q", host, o.Reason, o.Error)
		}
		if o.Reason == job.NotPermitted && !o.Permanent {
			t.Errorf("%s: it would be tried again", host)
		}
		reached.Store(false)
	}
	for _, url := range []string{"file:///etc/passwd", "gopher://127.0.0.1/", "ftp://example.com/", "//example.com", "example.com", "http:example.com",
		"http://", "unix:///var/run/docker.sock", "http:///x", "http://exa mple.com", "http://[::1", "", "http://\x00"} {
		o := x.Execute(t.Context(), assignmentOf(&job.Document{HTTP: &job.HTTP{URL: url}}), io.Discard)
		wantOutcome(t, o, job.AttemptFailed, job.CannotStart, true)
	}
}

func TestHTTPGuard(t *testing.T) {
	t.Parallel()
	g, err := newGuard(false, []string{"ci.corp", "*.svc.corp", "localhost:8080", "10.0.0.0/8", "192.168.1.1", "127.0.0.1:9", "[::1]:9"})
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]bool{
		"ci.corp:80": true, "CI.corp.:443": true, "x.ci.corp:80": false, "ci.corp.evil.com:80": false, "a.svc.corp:1": true, "a.b.svc.corp:1": true,
		"svc.corp:1": false, "evilsvc.corp:1": false, "localhost:8080": true, "localhost:8081": false, "127.0.0.1:9": true, "127.0.0.1:10": false,
		"[::1]:9": true, "[::1]:10": false, "[::ffff:127.0.0.1]:9": true, "corp:1": false,
	} {
		if got := g.allowsHost(addr); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
	private, _ := newGuard(true, nil)
	for addr, want := range map[string][2]bool{ // by exceptions; with AllowPrivate
		"10.9.9.9": {true, true}, "11.0.0.1": {true, true}, "192.168.1.1": {true, true}, "192.168.1.2": {false, true}, "127.0.0.1": {false, true},
		"::1": {false, true}, "::ffff:10.0.0.1": {true, true}, "169.254.169.254": {false, false}, "fd00:ec2::254": {false, false}, "0.0.0.0": {false, false},
		"::": {false, false}, "224.0.0.1": {false, false}, "1.1.1.1": {true, true}, "2606:4700::1111": {true, true}, "64:ff9b::1.1.1.1": {true, true},
		"64:ff9b::192.168.1.2": {false, true}, "64:ff9b::169.254.169.254": {false, false}, "2002:0101:0101::1": {true, true}, "::ffff:1.1.1.1": {true, true},
	} {
		ip := netip.MustParseAddr(addr)
		if got := g.checkAddress(ip) == nil; got != want[0] {
			t.Errorf("%s by exceptions: %v", addr, got)
		}
		if got := private.checkAddress(ip) == nil; got != want[1] {
			t.Errorf("%s with AllowPrivate: %v", addr, got)
		}
	}
	for _, bad := range []string{"", "*", "*.", "http://x", "a b", "a@b", "x.*.y"} {
		if _, err := NewHTTP(HTTPConfig{AllowHosts: []string{bad}}); job.CodeOf(err) != job.Invalid {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestHTTPRedirects(t *testing.T) {
	t.Parallel()
	var reached atomic.Bool
	private := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Store(true) }))
	defer private.Close()
	var seen http.Header
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = r.Header }))
	defer other.Close()
	handler := func(w http.ResponseWriter, r *http.Request) {
		n := 0
		fmt.Sscan(r.URL.Query().Get("n"), &n)
		switch r.URL.Path {
		case "/private":
			http.Redirect(w, r, private.URL, http.StatusFound)
		case "/metadata":
			http.Redirect(w, r, "http://169.254.169.254/latest/meta-data/", http.StatusTemporaryRedirect)
		case "/file":
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		case "/numeric":
			http.Redirect(w, r, "http://2130706433/", http.StatusFound)
		case "/other":
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		case "/hops":
			if n > 0 {
				http.Redirect(w, r, fmt.Sprintf("/hops?n=%d", n-1), http.StatusSeeOther)
			}
		}
	}
	x, url := endpoint(t, handler, func(c *HTTPConfig) { c.AllowHosts = append(c.AllowHosts, other.Listener.Addr().String()) })
	run := func(x *HTTP, path string) job.Outcome {
		spec := &job.HTTP{URL: url + path, Headers: map[string]string{"X-Secret": "s", "Authorization": "s", "Content-Type": "text/x"}, Body: "b"}
		return x.Execute(t.Context(), assignmentOf(&job.Document{HTTP: spec}), io.Discard)
	}
	for _, path := range []string{"/private", "/metadata", "/numeric"} {
		wantOutcome(t, run(x, path), job.AttemptFailed, job.NotPermitted, true)
	}
	wantOutcome(t, run(x, "/file"), job.AttemptFailed, job.CannotStart, true)
	if reached.Load() {
		t.Error("a redirect reached a private address")
	}
	wantOutcome(t, run(x, "/hops?n=5"), job.AttemptSucceeded, 0, false)
	o := run(x, "/hops?n=6")
	wantOutcome(t, o, job.AttemptFailed, job.ExitCode, false)
	if !strings.Contains(o.Error, "more than 5 times") {
		t.Errorf("error %q", o.Error)
	}
	wantOutcome(t, run(x, "/other"), job.AttemptSucceeded, 0, false)
	if seen.Get("X-Secret") != "" || seen.Get("Authorization") != "" || seen.Get("Referer") != "" || seen.Get("Muster-Attempt") != "2" || seen.Get("Content-Type") != "text/x" {
		t.Errorf("another host was sent %v", seen)
	}
	none, _ := NewHTTP(HTTPConfig{AllowPrivate: true, MaxRedirects: -1})
	defer none.Close()
	wantOutcome(t, run(none, "/hops?n=1"), job.AttemptFailed, job.ExitCode, false)
}

func TestHTTPRefusesBadRequests(t *testing.T) {
	t.Parallel()
	x, url := endpoint(t, func(http.ResponseWriter, *http.Request) { t.Error("it was sent") })
	for name, spec := range map[string]*job.HTTP{
		"a line break in a value": {Headers: map[string]string{"X-A": "b\r\nX-C: d"}},
		"a NUL in a value":        {Headers: map[string]string{"X-A": "b\x00"}},
		"a line break in a name":  {Headers: map[string]string{"X-A\r\nX-B": "b"}},
		"a colon in a name":       {Headers: map[string]string{"X-A:": "b"}},
		"an empty name":           {Headers: map[string]string{"": "b"}},
		"a bad host":              {Headers: map[string]string{"Host": "a/b c"}},
		"another length":          {Headers: map[string]string{"content-length": "3"}},
		"another framing":         {Headers: map[string]string{"Transfer-Encoding": "chunked"}},
		"an upgrade":              {Headers: map[string]string{"connection": "upgrade"}},
		"a method with a break":   {Method: "GET / HTTP/1.1\r\nX: y\r\n\r\nGET"},
		"connect":                 {Method: "CONNECT"},
		"trace":                   {Method: "trace"},
	} {
		spec.URL = url
		o := x.Execute(t.Context(), assignmentOf(&job.Document{HTTP: spec}), io.Discard)
		if o.Kind != job.AttemptFailed || o.Reason != job.CannotStart || !o.Permanent {
			t.Errorf("%s: %+v", name, o)
		}
	}
}

func TestHTTPStops(t *testing.T) {
	t.Parallel()
	arrived := make(chan bool, 1)
	x, url := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			io.WriteString(w, "a") // then nothing, for ever
			w.(http.Flusher).Flush()
		}
		arrived <- true
		<-r.Context().Done()
	})
	for _, path := range []string{"/", "/slow"} {
		for _, tc := range stops {
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() { <-arrived; cancel(&Stop{Reason: tc.reason, Grace: time.Hour}) }()
			o := x.Execute(ctx, assignmentOf(&job.Document{HTTP: &job.HTTP{URL: url + path}}), io.Discard)
			wantOutcome(t, o, tc.kind, tc.reason, tc.permanent)
		}
	}
}

func TestHTTPEndlessAnswer(t *testing.T) {
	t.Parallel()
	x, url := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 32<<10)); err != nil {
				return
			}
		}
	})
	o := x.Execute(t.Context(), assignmentOf(&job.Document{HTTP: &job.HTTP{URL: url}}), io.Discard)
	wantOutcome(t, o, job.AttemptSucceeded, 0, false)
}

func TestHTTPConnectionErrorsAreRetryable(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	x := newHTTP(t, HTTPConfig{AllowPrivate: true})
	o := x.Execute(t.Context(), assignmentOf(&job.Document{HTTP: &job.HTTP{URL: "http://user:pw@" + addr + "/secret?secret"}}), io.Discard)
	wantOutcome(t, o, job.AttemptFailed, job.ExitCode, false)
	if strings.Contains(o.Error, "secret") || strings.Contains(o.Error, "pw") || !strings.Contains(o.Error, addr) {
		t.Errorf("error %q", o.Error)
	}
}

func TestHTTPReusesConnections(t *testing.T) {
	t.Parallel()
	var conns atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "[1]") }))
	s.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateNew {
			conns.Add(1)
		}
	}
	s.Start()
	defer s.Close()
	x := newHTTP(t, HTTPConfig{AllowPrivate: true})
	for range 20 {
		o := x.Execute(t.Context(), assignmentOf(&job.Document{HTTP: &job.HTTP{URL: s.URL}}), io.Discard)
		wantOutcome(t, o, job.AttemptSucceeded, 0, false)
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections for 20 requests", n)
	}
}

func TestHTTPUsesOnlyTheConfiguredProxy(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	t.Setenv("http_proxy", "http://127.0.0.1:1")
	x, url := endpoint(t, func(http.ResponseWriter, *http.Request) {})
	wantOutcome(t, x.Execute(t.Context(), assignmentOf(&job.Document{HTTP: &job.HTTP{URL: url}}), io.Discard), job.AttemptSucceeded, 0, false)

	var asked atomic.Value
	proxy := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked.Store(r.RequestURI) }))
	defer proxy.Close()
	x = newHTTP(t, HTTPConfig{Proxy: proxy.URL})
	wantOutcome(t, x.Execute(t.Context(), assignmentOf(&job.Document{HTTP: &job.HTTP{URL: "http://example.com/x"}}), io.Discard), job.AttemptSucceeded, 0, false)
	if asked.Load() != "http://example.com/x" {
		t.Errorf("the proxy was asked for %v", asked.Load())
	}
	o := x.Execute(t.Context(), assignmentOf(&job.Document{HTTP: &job.HTTP{URL: "http://169.254.169.254/"}}), io.Discard)
	wantOutcome(t, o, job.AttemptFailed, job.NotPermitted, true)
}
