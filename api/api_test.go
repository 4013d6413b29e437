package api

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/musterhq/muster/job"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is an API over a node, called without a network.
type bench struct {
	*node
	api *API
	log *bytes.Buffer
}

func newBench(t testing.TB, change ...func(*Config)) *bench {
	t.Helper()
	b := &bench{node: newNode(), log: new(bytes.Buffer)}
	c := b.config()
	c.Logger = slog.New(slog.NewTextHandler(&lockedWriter{w: b.log}, nil))
	for _, f := range change {
		f(&c)
	}
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	b.api = a
	return b
}

type lockedWriter struct {
	w io.Writer
}

func (l *lockedWriter) Write(b []byte) (int, error) { return l.w.Write(b) }

// call sends a request; headers come in pairs. A body gets the type of JSON unless a header says otherwise.
func (b *bench) call(method, path, body string, headers ...string) *httptest.ResponseRecorder {
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	r := httptest.NewRequest(method, path, rd)
	if body != "" {
		r.Header.Set("Content-Type", jsonType)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	b.api.ServeHTTP(w, r)
	return w
}

// want calls, asserts the status and decodes the answer.
func want[T any](t testing.TB, b *bench, status int, method, path, body string, headers ...string) T {
	t.Helper()
	w := b.call(method, path, body, headers...)
	if w.Code != status {
		t.Fatalf("%s %s answered %d, want %d: %s", method, path, w.Code, status, w.Body)
	}
	var v T
	if w.Body.Len() > 0 {
		if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
			t.Fatalf("%s %s answered %q: %v", method, path, w.Body, err)
		}
	}
	return v
}

// refused calls and asserts a problem document.
func refused(t testing.TB, b *bench, status int, code job.Code, field, method, path, body string, headers ...string) *Problem {
	t.Helper()
	w := b.call(method, path, body, headers...)
	if got := w.Header().Get("Content-Type"); got != problemType {
		t.Fatalf("%s %s answered %d as %q: %s", method, path, w.Code, got, w.Body)
	}
	var p Problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		t.Fatal(err)
	}
	if w.Code != status || p.Status != status || p.Code != code || p.Field != field {
		t.Fatalf("%s %s answered %d %s field %q, want %d %s field %q: %s", method, clip(path), w.Code, p.Code, p.Field, status, code, field, w.Body)
	}
	if p.Detail == "" || p.Title == "" || p.RequestID == "" {
		t.Fatalf("%s %s answered a poor problem: %s", method, path, w.Body)
	}
	return &p
}

const nightly = `{"name":"nightly","schedule":{"cron":"0 0 * * *","time_zone":"Europe/Berlin"},"labels":{"team":"billing"},"exec":{"command":["true"]}}`

func TestJobsAreCreatedReadChangedAndDeleted(t *testing.T) {
	b := newBench(t)
	j := want[job.Job](t, b, 201, "POST", "/v1/jobs", nightly)
	if j.Name != "nightly" || j.Version != 1 || !j.Effective || j.NextTickAt != job.At(testNow.Add(11*3600e9)) {
		t.Fatalf("created %+v", j)
	}
	if p := refused(t, b, 409, job.Conflict, "name", "POST", "/v1/jobs", nightly); p.Reason != "exists" {
		t.Fatalf("reason %q", p.Reason)
	}
	w := b.call("GET", "/v1/jobs/nightly", "")
	if w.Code != 200 || w.Header().Get("ETag") != `"1"` {
		t.Fatalf("read %d %v", w.Code, w.Header())
	}
	if j := want[job.Job](t, b, 200, "PUT", "/v1/jobs/nightly", nightly); j.Version != 1 {
		t.Fatalf("the same document made version %d", j.Version)
	}
	changed := strings.Replace(nightly, "0 0 * * *", "0 1 * * *", 1)
	if j := want[job.Job](t, b, 200, "PUT", "/v1/jobs/nightly", changed, "If-Match", `"1"`); j.Version != 2 {
		t.Fatalf("a change made version %d", j.Version)
	}
	refused(t, b, 412, job.Conflict, "", "PUT", "/v1/jobs/nightly", nightly, "If-Match", `"1"`)
	refused(t, b, 412, job.Conflict, "", "PUT", "/v1/jobs/nightly", nightly, "If-None-Match", "*")
	refused(t, b, 400, job.Invalid, "If-Match", "PUT", "/v1/jobs/nightly", nightly, "If-Match", "1")
	refused(t, b, 404, job.NotFound, "", "PUT", "/v1/jobs/other", strings.Replace(nightly, "nightly", "other", 1), "If-Match", "*")
	refused(t, b, 400, job.Invalid, "name", "PUT", "/v1/jobs/other", nightly)
	if v := want[page[job.Version]](t, b, 200, "GET", "/v1/jobs/nightly/versions", ""); len(v.Items) != 2 || v.Items[0].Version != 2 {
		t.Fatalf("versions %+v", v)
	}
	refused(t, b, 412, job.Conflict, "", "DELETE", "/v1/jobs/nightly", "", "If-Match", `"1"`)
	want[struct{}](t, b, 204, "DELETE", "/v1/jobs/nightly", "", "If-Match", `"2"`)
	refused(t, b, 404, job.NotFound, "", "GET", "/v1/jobs/nightly", "")
	refused(t, b, 404, job.NotFound, "", "DELETE", "/v1/jobs/nightly", "")
	if j := want[job.Job](t, b, 201, "PUT", "/v1/jobs/nightly", "name: nightly\nexec: {command: [\"true\"]}\n", "Content-Type", "application/yaml"); j.NextTickAt != 0 || !j.Effective {
		t.Fatalf("a job without a schedule: %+v", j)
	}
}

func decode(t testing.TB, data []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
}
