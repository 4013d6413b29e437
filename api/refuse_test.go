package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

// Bad input gets a 4xx problem that names the field, and changes nothing (D5).
func TestBadInputIsRefusedByNameAndWritesNothing(t *testing.T) {
	b := newBench(t)
	b.withJob(t)
	before := b.writes
	doc := func(rest string) string { return `{"name":"x","exec":{"command":["true"]}` + rest + `}` }
	run := func(rest string) string { return `{"job":"nightly"` + rest + `}` }
	deep := strings.Repeat(`{"a":`, 10_000) + "1" + strings.Repeat("}", 10_000)
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		field                    string
		headers                  []string
	}{
		{"unknown field of a job", "POST", "/v1/jobs", doc(`,"scheduel":{"cron":"@daily"}`), 400, "scheduel", nil},
		{"unknown field deep in a job", "POST", "/v1/jobs", `{"name":"x","exec":{"comand":["true"]}}`, 400, "exec.comand", nil},
		{"unknown field of a run", "POST", "/v1/runs", run(`,"payloda":1`), 400, "payloda", nil},
		{"doubled field", "POST", "/v1/runs", run(`,"priority":1,"priority":2`), 400, "priority", nil},
		{"cron that is none", "POST", "/v1/jobs", doc(`,"schedule":{"cron":"every day"}`), 400, "schedule.cron", nil},
		{"cron that never fires", "POST", "/v1/jobs", doc(`,"schedule":{"cron":"0 0 30 2 *"}`), 400, "schedule.cron", nil},
		{"cron with TZ=", "POST", "/v1/jobs", doc(`,"schedule":{"cron":"TZ=UTC 0 0 * * *"}`), 400, "schedule.cron", nil},
		{"cron with a bare TZ=", "POST", "/v1/jobs", doc(`,"schedule":{"cron":"TZ=UTC"}`), 400, "schedule.cron", nil},
		{"@every too often", "POST", "/v1/jobs", doc(`,"schedule":{"cron":"@every 1ns"}`), 400, "schedule.cron", nil},
		{"unknown zone", "POST", "/v1/jobs", doc(`,"schedule":{"cron":"@daily","time_zone":"Europe/Brelin"}`), 400, "schedule.time_zone", nil},
		{"zone that is a path", "POST", "/v1/jobs", doc(`,"schedule":{"cron":"@daily","time_zone":"../../etc/passwd"}`), 400, "schedule.time_zone", nil},
		{"schedule and dependencies", "POST", "/v1/jobs", doc(`,"schedule":{"cron":"@daily"},"depends_on":["nightly"]`), 400, "depends_on", nil},
		{"two executors", "POST", "/v1/jobs", doc(`,"handler":{"name":"h"}`), 400, "handler", nil},
		{"no executor", "POST", "/v1/jobs", `{"name":"x"}`, 400, "", nil},
		{"negative timeout", "POST", "/v1/jobs", doc(`,"timeout":"-1s"`), 400, "timeout", nil},
		{"timeout without a unit", "POST", "/v1/jobs", doc(`,"timeout":10`), 400, "timeout", nil},
		{"name with a slash", "POST", "/v1/jobs", `{"name":"a/b","exec":{"command":["true"]}}`, 400, "name", nil},
		{"name with a control character", "POST", "/v1/jobs", `{"name":"a\u0007","exec":{"command":["true"]}}`, 400, "name", nil},
		{"another namespace in the body", "POST", "/v1/jobs?namespace=a", doc(`,"namespace":"b"`), 400, "namespace", nil},
		{"wrong type", "POST", "/v1/jobs", doc(`,"priority":"high"`), 400, "priority", nil},
		{"a list", "POST", "/v1/jobs", `[]`, 400, "", nil},
		{"null", "POST", "/v1/jobs", `null`, 400, "", nil},
		{"broken JSON", "POST", "/v1/jobs", `{"name":`, 400, "", nil},
		{"two values", "POST", "/v1/runs", run("") + run(""), 400, "", nil},
		{"broken YAML", "POST", "/v1/jobs", "name: [", 400, "", []string{"Content-Type", "application/yaml"}},
		{"YAML bomb", "POST", "/v1/jobs", yamlBomb(), 400, "", []string{"Content-Type", "application/yaml"}},
		{"10,000 deep", "POST", "/v1/runs", run(`,"payload":` + deep), 400, "payload" + strings.Repeat(".a", 63), nil},
		{"10,000 deep job", "POST", "/v1/jobs", deep, 400, "a", nil},
		{"10 MB body", "POST", "/v1/runs", run(`,"payload":"` + strings.Repeat("x", 10<<20) + `"`), 413, "", nil},
		{"large payload", "POST", "/v1/runs", run(`,"payload":"` + strings.Repeat("x", 65<<10) + `"`), 400, "payload", nil},
		{"NUL in the payload", "POST", "/v1/runs", run(`,"payload":"a\u0000b"`), 400, "payload", nil},
		{"half a surrogate", "POST", "/v1/runs", run(`,"payload":"\ud800"`), 400, "payload", nil},
		{"number out of range", "POST", "/v1/runs", run(`,"payload":1e999`), 400, "payload", nil},
		{"invalid UTF-8", "POST", "/v1/runs", run(",\"payload\":\"\xff\""), 400, "", nil},
		{"priority out of range", "POST", "/v1/runs", run(`,"priority":10`), 400, "priority", nil},
		{"priority as text", "POST", "/v1/runs", run(`,"priority":"1"`), 400, "priority", nil},
		{"priority with a fraction", "POST", "/v1/runs", run(`,"priority":1.5`), 400, "priority", nil},
		{"negative delay", "POST", "/v1/runs", run(`,"delay":"-1s"`), 400, "delay", nil},
		{"endless delay", "POST", "/v1/runs", run(`,"delay":"90000h"`), 400, "delay", nil},
		{"delay and run_at", "POST", "/v1/runs", run(`,"delay":"1s","run_at":"2026-03-10T13:00:00Z"`), 400, "run_at", nil},
		{"run_at that is no time", "POST", "/v1/runs", run(`,"run_at":"tomorrow"`), 400, "run_at", nil},
		{"run_at too far ahead", "POST", "/v1/runs", run(`,"run_at":"2036-03-10T13:00:00Z"`), 400, "run_at", nil},
		{"job and spec", "POST", "/v1/runs", run(`,"spec":{"exec":{"command":["true"]}}`), 400, "spec", nil},
		{"neither job nor spec", "POST", "/v1/runs", `{}`, 400, "job", nil},
		{"unknown field of a spec", "POST", "/v1/runs", `{"spec":{"exec":{"command":["true"]},"nmae":"x"}}`, 400, "spec.nmae", nil},
		{"schedule in a spec", "POST", "/v1/runs", `{"spec":{"exec":{"command":["true"]},"schedule":{"cron":"@daily"}}}`, 400, "spec.schedule", nil},
		{"another namespace in a spec", "POST", "/v1/runs", `{"spec":{"exec":{"command":["true"]},"namespace":"other"}}`, 400, "spec.namespace", nil},
		{"id that is none", "POST", "/v1/runs", run(`,"id":"7"`), 400, "id", nil},
		{"id of version 4", "POST", "/v1/runs", run(`,"id":"6f1c2c1e-1b7a-4b58-9c79-0f4c6ad8d3a1"`), 400, "id", nil},
		{"id that is empty", "POST", "/v1/runs", run(`,"id":""`), 400, "id", nil},
		{"id too old", "POST", "/v1/runs", run(`,"id":"` + idAt(testNow.Add(-25*time.Hour), 1) + `"`), 400, "id", nil},
		{"id of the future", "POST", "/v1/runs", run(`,"id":"` + idAt(testNow.Add(2*time.Hour), 1) + `"`), 400, "id", nil},
		{"label with a control character", "POST", "/v1/runs", run(`,"labels":{"a":"b\u0001"}`), 400, "labels.a", nil},
		{"label that is a number", "POST", "/v1/runs", run(`,"labels":{"a":1}`), 400, "labels.a", nil},
		{"job name with a slash", "POST", "/v1/runs", `{"job":"a/b"}`, 400, "job", nil},
		{"key too long", "POST", "/v1/runs", run(""), 400, "idempotency_key", []string{"Idempotency-Key", strings.Repeat("k", 256)}},
		{"key with a blank", "POST", "/v1/runs", run(""), 400, "idempotency_key", []string{"Idempotency-Key", "a b"}},
		{"two keys", "POST", "/v1/runs", run(`,"idempotency_key":"a"`), 400, "idempotency_key", []string{"Idempotency-Key", "b"}},
		{"form", "POST", "/v1/runs", run(""), 415, "Content-Type", []string{"Content-Type", "application/x-www-form-urlencoded"}},
		{"plain text", "POST", "/v1/runs", run(""), 415, "Content-Type", []string{"Content-Type", "text/plain"}},
		{"no type", "POST", "/v1/runs", run(""), 415, "Content-Type", []string{"Content-Type", ""}},
		{"YAML where JSON is wanted", "POST", "/v1/runs", "job: nightly", 415, "Content-Type", []string{"Content-Type", "application/yaml"}},
		{"another charset", "POST", "/v1/runs", run(""), 415, "Content-Type", []string{"Content-Type", "application/json; charset=latin1"}},
		{"gzip", "POST", "/v1/runs", run(""), 415, "", []string{"Content-Encoding", "gzip"}},
		{"empty body", "POST", "/v1/runs", " ", 400, "", nil},
		{"%2F in the path", "GET", "/v1/jobs/a%2Fb", "", 400, "name", nil},
		{"%00 in the path", "GET", "/v1/jobs/a%00b", "", 400, "name", nil},
		{"newline in the path", "GET", "/v1/jobs/a%0Ab", "", 400, "name", nil},
		{"invalid UTF-8 in the path", "GET", "/v1/jobs/%ff", "", 400, "name", nil},
		{"dots in the path", "GET", "/v1/jobs/%2e%2e", "", 404, "", nil},
		{"long name in the path", "DELETE", "/v1/jobs/" + strings.Repeat("x", 129), "", 400, "name", nil},
		{"run id in the path", "GET", "/v1/runs/7", "", 400, "id", nil},
		{"namespace", "GET", "/v1/jobs?namespace=a%7Cb", "", 400, "namespace", nil},
		{"namespace twice", "GET", "/v1/jobs?namespace=a&namespace=b", "", 400, "namespace", nil},
		{"unknown parameter", "GET", "/v1/runs?jbo=x", "", 400, "jbo", nil},
		{"parameter where none is taken", "GET", "/v1/cluster?x=1", "", 400, "x", nil},
		{"broken query", "GET", "/v1/runs?job=%zz", "", 400, "", nil},
		{"huge limit", "GET", "/v1/runs?limit=1000000", "", 400, "limit", nil},
		{"limit 0", "GET", "/v1/jobs?limit=0", "", 400, "limit", nil},
		{"negative limit", "GET", "/v1/workers?limit=-1", "", 400, "limit", nil},
		{"limit that overflows", "GET", "/v1/runs?limit=99999999999999999999", "", 400, "limit", nil},
		{"state", "GET", "/v1/runs?state=done", "", 400, "state", nil},
		{"empty state in a list", "GET", "/v1/runs?state=queued,,failed", "", 400, "state", nil},
		{"worker state", "GET", "/v1/workers?state=busy", "", 400, "state", nil},
		{"since", "GET", "/v1/runs?since=yesterday", "", 400, "since", nil},
		{"until before since", "GET", "/v1/runs?since=2026-03-10T00:00:00Z&until=2026-03-09T00:00:00Z", "", 400, "until", nil},
		{"label", "GET", "/v1/runs?label=team", "", 400, "label", nil},
		{"root id", "GET", "/v1/runs?root_id=1", "", 400, "root_id", nil},
		{"job of all namespaces", "GET", "/v1/runs?namespace=*&job=nightly", "", 400, "job", nil},
		{"count", "GET", "/v1/jobs/nightly/next?count=1001", "", 400, "count", nil},
		{"attempt", "GET", "/v1/runs/" + idAt(testNow, 1) + "/logs?attempt=0", "", 400, "attempt", nil},
		{"attempt that overflows", "GET", "/v1/runs/" + idAt(testNow, 1) + "/logs?attempt=4294967296", "", 400, "attempt", nil},
		{"follow", "GET", "/v1/runs/" + idAt(testNow, 1) + "/logs?follow=yes", "", 400, "follow", nil},
		{"event id", "GET", "/v1/runs/" + idAt(testNow, 1) + "/logs", "", 400, "Last-Event-ID", []string{"Last-Event-ID", "1:-5"}},
		{"verify of the future", "GET", "/v1/jobs/nightly/verify?since=2027-01-01T00:00:00Z", "", 400, "since", nil},
		{"backfill of the future", "POST", "/v1/jobs/nightly/backfill", `{"since":"2026-03-09T00:00:00Z","until":"2027-03-10T00:00:00Z"}`, 400, "until", nil},
		{"backfill without an end", "POST", "/v1/jobs/nightly/backfill", `{"since":"2026-03-09T00:00:00Z"}`, 400, "until", nil},
		{"backfill of too much", "POST", "/v1/jobs/nightly/backfill", `{"since":"1990-03-09T00:00:00Z","until":"2026-03-10T00:00:00Z"}`, 400, "until", nil},
		{"worker name", "POST", "/v1/workers/join", `{"name":"../x"}`, 400, "name", nil},
		{"maintenance", "POST", "/v1/cluster/maintenance", `{}`, 400, "maintenance", nil},
		{"certificate request that is none", "POST", "/v1/workers/join", `{"name":"w","csr":"x"}`, 400, "csr", nil},
		{"certificate request that is a key", "POST", "/v1/workers/join", `{"name":"w","csr":"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"}`, 400, "csr", nil},
		{"broken certificate request", "POST", "/v1/workers/join", `{"name":"w","csr":"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"}`, 400, "csr", nil},
		{"large certificate request", "POST", "/v1/workers/join", `{"name":"w","csr":"` + strings.Repeat("x", 17<<10) + `"}`, 400, "csr", nil},
		{"transfer to no name", "POST", "/v1/cluster/transfer", `{"to":"../x"}`, 400, "to", nil},
		{"transfer with a misspelt field", "POST", "/v1/cluster/transfer", `{"ot":"n2"}`, 400, "ot", nil},
		{"transfer without a body", "POST", "/v1/cluster/transfer", ``, 415, "Content-Type", nil},
		{"transfer with a list", "POST", "/v1/cluster/transfer", `["n2"]`, 400, "", nil},
		{"transfer as a read", "GET", "/v1/cluster/transfer", ``, 405, "", nil},
		{"node name", "DELETE", "/v1/cluster/nodes/a%2Fb", ``, 400, "name", nil},
		{"node without a name", "DELETE", "/v1/cluster/nodes/", ``, 404, "", nil},
		{"force", "DELETE", "/v1/cluster/nodes/n2?force=yes", ``, 400, "force", nil},
		{"node as a read", "GET", "/v1/cluster/nodes/n2", ``, 405, "", nil},
		{"unknown parameter of verify", "POST", "/v1/cluster/verify?x=1", ``, 400, "x", nil},
		{"verify as a read", "GET", "/v1/cluster/verify", ``, 405, "", nil},
		{"greeting as a write", "POST", "/v1/cluster/greeting", `{}`, 405, "", nil},
		{"snapshot as JSON", "POST", "/v1/cluster/snapshot", `{}`, 415, "Content-Type", nil},
		{"snapshot that is none", "POST", "/v1/cluster/snapshot", `x`, 400, "", []string{"Content-Type", bytesType}},
		{"snapshot that is empty", "POST", "/v1/cluster/snapshot", ``, 400, "", []string{"Content-Type", bytesType}},
		{"credential without a name", "POST", "/v1/credentials", `{"role":"viewer"}`, 400, "name", nil},
		{"credential name", "POST", "/v1/credentials", `{"name":"a b","role":"viewer"}`, 400, "name", nil},
		{"credential without a role", "POST", "/v1/credentials", `{"name":"a"}`, 400, "role", nil},
		{"role", "POST", "/v1/credentials", `{"name":"a","role":"root"}`, 400, "role", nil},
		{"namespaces of an admin", "POST", "/v1/credentials", `{"name":"a","role":"admin","namespaces":["x"]}`, 400, "namespaces", nil},
		{"namespaces of a join token", "POST", "/v1/credentials", `{"name":"a","role":"join","namespaces":["x"]}`, 400, "namespaces", nil},
		{"namespace of a credential", "POST", "/v1/credentials", `{"name":"a","role":"viewer","namespaces":["*"]}`, 400, "namespaces", nil},
		{"many namespaces", "POST", "/v1/credentials", `{"name":"a","role":"viewer","namespaces":["x"` + strings.Repeat(`,"x"`, 100) + `]}`, 400, "namespaces", nil},
		{"expiry in the past", "POST", "/v1/credentials", `{"name":"a","role":"viewer","expires_in":"-1h"}`, 400, "expires_in", nil},
		{"expiry at once", "POST", "/v1/credentials", `{"name":"a","role":"viewer","expires_in":"0s"}`, 400, "expires_in", nil},
		{"expiry out of sight", "POST", "/v1/credentials", `{"name":"a","role":"viewer","expires_in":"100000h"}`, 400, "expires_in", nil},
		{"expiry without a unit", "POST", "/v1/credentials", `{"name":"a","role":"viewer","expires_in":30}`, 400, "expires_in", nil},
		{"credential with a digest", "POST", "/v1/credentials", `{"name":"a","role":"viewer","digest":"AAAA"}`, 400, "digest", nil},
		{"credential with a token", "POST", "/v1/credentials", `{"name":"a","role":"viewer","token":"x"}`, 400, "token", nil},
		{"credential id", "DELETE", "/v1/credentials/a%20b", ``, 400, "id", nil},
		{"all credentials", "DELETE", "/v1/credentials", ``, 405, "", nil},
		{"cursor of credentials", "GET", "/v1/credentials?cursor=AAAA", ``, 400, "cursor", nil},
		{"limit of credentials", "GET", "/v1/credentials?limit=0", ``, 400, "limit", nil},
		{"nothing there", "GET", "/v1/nothing", "", 404, "", nil},
		{"trailing slash", "GET", "/v1/jobs/", "", 404, "", nil},
		{"doubled slash", "POST", "//v1/jobs", doc(""), 404, "", nil},
		{"path that climbs", "POST", "/v1/x/../jobs", doc(""), 404, "", nil},
		{"method", "PATCH", "/v1/jobs", doc(""), 405, "", nil},
		{"method of a run", "DELETE", "/v1/runs/" + idAt(testNow, 1), "", 405, "", nil},
		{"GET of a batch", "PUT", "/v1/runs/batch", "", 405, "", nil},
		{"TRACE", "TRACE", "/v1/jobs", "", 405, "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			code := job.Invalid
			if c.status == 404 {
				code = job.NotFound
			}
			refused(t, b, c.status, code, c.field, c.method, c.path, c.body, c.headers...)
		})
	}
	if b.writes != before || len(b.born) != 0 {
		t.Fatalf("bad input wrote %d times", b.writes-before)
	}
}

func yamlBomb() string {
	var s strings.Builder
	s.WriteString("a: &a [x,x,x,x,x,x,x,x,x,x]\n")
	for c := 'b'; c < 'j'; c++ {
		fmt.Fprintf(&s, "%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n", c, c, c-1, c-1, c-1, c-1, c-1, c-1, c-1, c-1, c-1)
	}
	return s.String()
}

func TestRefusalsTellNothingOfTheirCause(t *testing.T) {
	b := newBench(t)
	for _, err := range []error{
		errors.New("dial tcp 10.0.0.7: secret"),
		&job.Error{Code: job.Internal, Message: "an internal error occurred", Cause: errors.New("secret")},
		&job.Error{Code: job.Unavailable, Reason: "store_unavailable", Message: "the store is away", Cause: errors.New("secret")},
	} {
		b.storeErr = err
		w := b.call("GET", "/v1/jobs/x", "")
		if w.Code < 500 || strings.Contains(w.Body.String(), "secret") {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		if (w.Code == 503) != (w.Header().Get("Retry-After") != "") {
			t.Errorf("%d with Retry-After %q", w.Code, w.Header().Get("Retry-After"))
		}
	}
	if n := strings.Count(b.log.String(), "request failed"); n != 2 || !strings.Contains(b.log.String(), "request_id=") {
		t.Errorf("the log has %d defects: %s", n, b.log)
	}
}

// panicky is a store that panics.
type panicky struct{ *node }

func (panicky) Job(context.Context, string, string) (*job.Job, error) { panic("a defect") }

func TestAPanicIsAnswered(t *testing.T) {
	b := newBench(t)
	c := b.config()
	c.Store, c.Logger = panicky{b.node}, b.api.Logger
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	b.api = a
	if p := refused(t, b, 500, job.Internal, "", "GET", "/v1/jobs/x", ""); strings.Contains(p.Detail, "defect") {
		t.Fatalf("it tells %q", p.Detail)
	}
	if !strings.Contains(b.log.String(), "a defect") {
		t.Fatal("nobody would hear of it")
	}
}

func TestAFullNodeRefuses(t *testing.T) {
	b := newBench(t, func(c *Config) { c.MaxRequests = 1 })
	b.api.router.requests.Add(1)
	if w := b.call("GET", "/v1/jobs", ""); w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	want[Health](t, b, 200, "GET", "/healthz", "")
	b.api.router.requests.Add(-1)
	want[page[job.Job]](t, b, 200, "GET", "/v1/jobs", "")
}

// serveOn serves a handler on a real socket with our own server.
func serveOn(t testing.TB, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := Server(ServerConfig{Handler: h})
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close(); <-done })
	return l.Addr().String()
}

func TestABodyThatNeverEndsIsGivenUp(t *testing.T) {
	b := newBench(t, func(c *Config) { c.BodyTimeout = 50 * time.Millisecond })
	addr := serveOn(t, b.api)
	for _, head := range []string{"Content-Length: 100\r\n", "Transfer-Encoding: chunked\r\n"} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n%s\r\n", head)
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		answer, err := io.ReadAll(c)
		if err != nil {
			t.Fatalf("after %q: %v", answer, err)
		}
		if !strings.HasPrefix(string(answer), "HTTP/1.1 408 ") || !strings.Contains(string(answer), reasonBodyTimeout) {
			t.Errorf("%s", answer)
		}
		c.Close()
	}
	if b.writes != 0 {
		t.Error("it wrote")
	}
}

func TestAnEndlessChunkedBodyIsCutOff(t *testing.T) {
	b := newBench(t)
	addr := serveOn(t, b.api)
	endless := io.MultiReader(strings.NewReader(`{"job":"x","payload":"`), neverEnding('x'))
	resp, err := http.Post("http://"+addr+"/v1/runs", jsonType, io.LimitReader(endless, 64<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	if resp.StatusCode != 413 {
		t.Fatalf("%d", resp.StatusCode)
	}
}

type neverEnding byte

func (b neverEnding) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(b)
	}
	return len(p), nil
}

// The deadline of a body must not outlive the body: a request may work longer than its body may take to arrive.
func TestTheBodysDeadlineEndsWithTheBody(t *testing.T) {
	slow := &slowStore{node: newNode(), release: make(chan struct{})}
	c := slow.config()
	c.Store, c.BodyTimeout = slow, 30*time.Millisecond
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	addr := serveOn(t, a)
	time.AfterFunc(150*time.Millisecond, func() { close(slow.release) })
	resp, err := http.Post("http://"+addr+"/v1/runs", jsonType, strings.NewReader(`{"spec":{"exec":{"command":["true"]}}}`))
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 201 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
}

// slowStore answers once it is released, or when the request is given up.
type slowStore struct {
	*node
	release chan struct{}
}

func (s *slowStore) Submit(ctx context.Context, runs []*job.Run) ([]job.Receipt, error) {
	select {
	case <-s.release:
		return s.node.Submit(ctx, runs)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestATimeoutIsUnknownForAWrite(t *testing.T) {
	slow := &slowStore{node: newNode(), release: make(chan struct{})}
	b := newBench(t)
	c := slow.config()
	c.Store, c.RequestTimeout, c.Logger = slow, 10*time.Millisecond, b.api.Logger
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	b.api = a
	p := refused(t, b, 504, job.Unknown, "", "POST", "/v1/runs", `{"spec":{"exec":{"command":["true"]}}}`)
	if p.Reason != "timeout" || p.RunID.IsZero() {
		t.Fatalf("%+v", p)
	}
}

func TestTheServerSpeaksHTTP2WithoutTLS(t *testing.T) {
	addr := serveOn(t, newBench(t).api)
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("http://" + addr + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.ProtoMajor != 2 || resp.StatusCode != 200 {
		t.Fatalf("%s %d", resp.Proto, resp.StatusCode)
	}
}

// A node that has not replayed its log yet knows less than what it has promised.
func TestOnceANodeHasStarted(t *testing.T) {
	b := newBench(t)
	var started bool
	h := Once(func() bool { return started }, b.api)
	ask := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w
	}
	const accepted = "/v1/runs/0192f3a4-7c1e-7abc-8def-0123456789ab"
	if w := ask(accepted); w.Code != 503 || w.Header().Get("Retry-After") == "" || w.Header().Get("Content-Type") != problemType {
		t.Errorf("while the node starts: %d %q: %s", w.Code, w.Header(), w.Body)
	}
	for _, path := range []string{"/healthz", "/v1/cluster", "/v1/cluster/greeting"} {
		if w := ask(path); w.Code != 200 {
			t.Errorf("%s of a node that starts: %d", path, w.Code)
		}
	}
	for _, path := range []string{"/v1/cluster/snapshot", "/v1/credentials", "/v1/workers"} {
		if w := ask(path); w.Code != 503 {
			t.Errorf("%s of a node that starts: %d", path, w.Code)
		}
	}
	started = true
	if w := ask(accepted); w.Code != 404 {
		t.Errorf("afterwards: %d", w.Code)
	}
}

func TestLocalOnly(t *testing.T) {
	b := newBench(t)
	h := LocalOnly(b.api)
	for _, c := range []struct {
		name, method, host, origin, fetchSite string
		status                                int
	}{
		{"a program", "GET", "127.0.0.1:8080", "", "", 200},
		{"by name", "GET", "localhost:8080", "", "", 200},
		{"IPv6", "GET", "[::1]:8080", "", "", 200},
		{"another loopback address", "GET", "127.8.9.1", "", "", 200},
		{"its own page", "GET", "localhost:8080", "http://localhost:8080", "same-origin", 200},
		{"rebinding", "GET", "evil.example:8080", "", "", 403},
		{"a name that looks local", "GET", "localhost.evil.example", "", "", 403},
		{"an address that looks local", "GET", "127.0.0.1.evil.example", "", "", 403},
		{"a private address", "GET", "10.0.0.1", "", "", 403},
		{"no host", "GET", "", "", "", 403},
		{"a page elsewhere writes", "POST", "localhost:8080", "https://evil.example", "cross-site", 403},
		{"a page elsewhere writes, old browser", "POST", "localhost:8080", "https://evil.example", "", 403},
		{"a page elsewhere reads", "GET", "localhost:8080", "https://evil.example", "", 403},
		{"a page without origin", "POST", "localhost:8080", "null", "", 403},
		{"a page on another port", "POST", "localhost:8080", "http://localhost:9999", "same-site", 403},
		{"a picture of a page elsewhere", "GET", "localhost:8080", "", "cross-site", 403},
		{"a picture of a page on another port", "GET", "localhost:8080", "", "same-site", 403},
		{"an address typed in", "GET", "localhost:8080", "", "none", 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest(c.method, "/v1/jobs", strings.NewReader(nightly))
			r.Host = c.host
			for k, v := range map[string]string{"Origin": c.origin, "Sec-Fetch-Site": c.fetchSite, "Content-Type": jsonType} {
				if v != "" {
					r.Header.Set(k, v)
				}
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != c.status {
				t.Fatalf("%d, want %d: %s", w.Code, c.status, w.Body)
			}
			if c.status == 403 && w.Header().Get("Content-Type") != problemType {
				t.Fatalf("refused as %q", w.Header().Get("Content-Type"))
			}
		})
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.Host = "localhost:8080"
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	r.Header.Set("Sec-Fetch-Dest", "document")
	w := httptest.NewRecorder()
	if h.ServeHTTP(w, r); w.Code != 200 {
		t.Errorf("a link is answered %d", w.Code)
	}
	if b.writes != 0 {
		t.Error("a page wrote")
	}
}

// A server without credentials may be called by any name, but by no page.
func TestNoForeignPages(t *testing.T) {
	b := newBench(t)
	h := NoForeignPages(b.api)
	for _, c := range []struct {
		method, host, origin, site string
		status                     int
	}{
		{"GET", "10.0.0.1:8080", "", "", 200},
		{"GET", "n1.example.com", "https://n1.example.com", "same-origin", 200},
		{"POST", "10.0.0.1:8080", "https://evil.example", "cross-site", 403},
		{"GET", "10.0.0.1:8080", "https://evil.example", "", 403},
		{"GET", "10.0.0.1:8080", "", "cross-site", 403},
	} {
		r := httptest.NewRequest(c.method, "/v1/jobs", strings.NewReader(nightly))
		r.Host = c.host
		for k, v := range map[string]string{"Origin": c.origin, "Sec-Fetch-Site": c.site, "Content-Type": jsonType} {
			if v != "" {
				r.Header.Set(k, v)
			}
		}
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != c.status {
			t.Errorf("%+v: %d", c, w.Code)
		}
	}
	if b.writes != 0 {
		t.Error("a page wrote")
	}
}

// A page that gives its own name a node's address is of the node's origin, but under a name that the node does not have.
func TestKnownHosts(t *testing.T) {
	b := newBench(t)
	h := KnownHosts([]string{"N1.example.com", "lb.example.com."}, NoForeignPages(b.api))
	for host, status := range map[string]int{
		"10.0.0.1:8080": 200, "[fd00::1]:8080": 200, "127.0.0.1": 200, "localhost:8080": 200, "n1:8080": 200, "n1.example.com:8080": 200,
		"n1.example.com.:8080": 200, "lb.example.com": 200, "evil.example:8080": 403, "evil.example.": 403, "n1.example.com.evil.example": 403,
		"10.0.0.1.evil.example": 403, "10.0.0.1.": 200,
	} {
		r := httptest.NewRequest("GET", "/v1/jobs", nil)
		r.Host = host
		r.Header.Set("Origin", "http://"+host)
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != status {
			t.Errorf("%s: %d", host, w.Code)
		}
	}
}
