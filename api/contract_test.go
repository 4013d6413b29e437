package api

import (
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/musterhq/muster/job"
)

var update = flag.Bool("update", false, "write docs/openapi.json anew")

// docs/openapi.json is what other people generate clients from, so a change of it is seen in review.
func TestTheCommittedOpenAPIIsCurrent(t *testing.T) {
	const file = "../docs/openapi.json"
	got := newBench(t).api.OpenAPI()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(have), "\n"), strings.Split(string(got), "\n")); d != "" {
		t.Fatalf("%s is stale; run go test ./api -run OpenAPI -update:\n%s", file, d)
	}
}

type openAPI struct {
	OpenAPI string
	Paths   map[string]map[string]struct {
		OperationID string
		Parameters  []struct{ Name, In string }
		RequestBody *struct{ Content map[string]any }
		Responses   map[string]any
	}
	Components struct{ Schemas map[string]json.RawMessage }
}

func readOpenAPI(t *testing.T, b *bench) openAPI {
	w := b.call("GET", "/openapi.json", "")
	var doc openAPI
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

// Every route that is documented is there, and asks the authoriser before anything else; so does every one that is not
// documented.
func TestEveryRouteAsksTheAuthoriser(t *testing.T) {
	var asked []Operation
	b := newBench(t, func(c *Config) {
		c.Metrics, c.Console = http.NotFoundHandler(), http.NotFoundHandler()
		c.Authorize = func(_ *http.Request, op Operation) error {
			asked = append(asked, op)
			return job.Errorf(job.Unauthenticated, "no_credential", "who are you?")
		}
	})
	fill := strings.NewReplacer("{name}", "x", "{id}", idAt(testNow, 1))
	walk := func(method, path, id string) {
		t.Helper()
		asked = nil
		w := b.call(method, fill.Replace(path)+"?", `{"not":"looked at"}`)
		if w.Code != 401 || len(asked) != 1 || asked[0].Verb == "" || id != "" && asked[0].ID != id {
			t.Errorf("%s %s answered %d and asked about %+v", method, path, w.Code, asked)
		}
		if !strings.Contains(w.Body.String(), `who are you?; send its token in the header \"Authorization: Bearer TOKEN\"`) || w.Header().Get("WWW-Authenticate") != "Bearer" {
			t.Errorf("%s %s does not say how to pass a token: %s", method, path, w.Body)
		}
		if strings.HasPrefix(path, "/v1/") != (len(asked) == 1 && asked[0].Verb != Public) && path != "/metrics" {
			t.Errorf("%s %s is %s", method, path, asked[0].Verb)
		}
	}
	documented := 0
	doc := readOpenAPI(t, newBench(t))
	for path, methods := range doc.Paths {
		for method, op := range methods {
			documented++
			walk(strings.ToUpper(method), path, op.OperationID)
		}
	}
	for _, op := range b.api.operations() {
		walk(op.Method, strings.TrimSuffix(op.Path, "{$}"), op.ID)
	}
	walk("GET", "/jobs/nightly", "console")
	if n := len(b.api.operations()); n-documented != 2 { // the document itself and the index
		t.Errorf("%d routes, %d documented", n, documented)
	}
	if b.writes != 0 {
		t.Error("it wrote before asking")
	}
}

func TestTheAuthoriserLearnsTheNamespace(t *testing.T) {
	var got Operation
	b := newBench(t, func(c *Config) {
		c.Authorize = func(_ *http.Request, op Operation) error { got = op; return nil }
	})
	for path, ns := range map[string]string{
		"/v1/jobs": "default", "/v1/jobs?namespace=a": "a", "/v1/runs?namespace=*": "*", "/v1/workers": "", "/healthz": "",
	} {
		b.call("GET", path, "")
		if got.Namespace != ns {
			t.Errorf("%s is about %q, want %q", path, got.Namespace, ns)
		}
	}
}

func TestTheDocumentDescribesWhatIsTaken(t *testing.T) {
	b := newBench(t)
	doc := readOpenAPI(t, b)
	if doc.OpenAPI != "3.1.0" {
		t.Errorf("version %q", doc.OpenAPI)
	}
	for _, op := range Operations() {
		path, ok := doc.Paths[op.Path]
		if !ok {
			continue
		}
		d := path[strings.ToLower(op.Method)]
		var query []string
		for _, p := range d.Parameters {
			if p.In == "query" {
				query = append(query, p.Name)
			}
		}
		params := slices.Clone(b.api.router.endpoints[op.Method+" "+op.Path].params)
		slices.Sort(query)
		slices.Sort(params)
		if !slices.Equal(query, params) {
			t.Errorf("%s: documented are %v, taken %v", op.ID, query, params)
		}
		if (strings.Contains(op.Path, "/jobs") || strings.Contains(op.Path, "/runs")) != op.Namespaced {
			t.Errorf("%s: namespaced is %v", op.ID, op.Namespaced)
		}
		if d.Responses["default"] == nil || len(d.Responses) < 2 {
			t.Errorf("%s: responses %v", op.ID, d.Responses)
		}
	}
	if d := doc.Paths["/v1/jobs"]["post"]; d.RequestBody == nil || d.RequestBody.Content[yamlType] == nil {
		t.Error("a job's body is not documented")
	}
	for _, name := range []string{"Problem", "Run", "Job", "Document", "Submission", "Worker"} {
		if doc.Components.Schemas[name] == nil {
			t.Errorf("no schema %s", name)
		}
	}
	if doc.Components.Schemas["ErrorModel"] != nil {
		t.Error("a schema of an error that is never answered")
	}
}

func TestConfigNamesWhatIsMissing(t *testing.T) {
	c := newNode().config()
	c.Leader, c.Store = nil, nil
	_, err := New(c)
	if e := job.AsError(err); e.Code != job.Invalid || e.Field != "api.Config.Leader" {
		t.Fatalf("%v", err)
	}
}

func TestRequestsAreCounted(t *testing.T) {
	reg := prometheus.NewRegistry()
	b := newBench(t, func(c *Config) { c.Registerer = reg })
	b.call("GET", "/v1/jobs", "")
	b.call("GET", "/v1/jobs/x", "")
	b.call("GET", "/nothing", "")
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	series := map[string]int{}
	for _, f := range families {
		series[f.GetName()] = len(f.GetMetric())
	}
	if series["muster_http_request_seconds"] != 3 || series["muster_http_refusals_total"] != 2 {
		t.Errorf("series %v", series)
	}
}

func TestRequestIDsAreTakenOverIfHarmless(t *testing.T) {
	b := newBench(t)
	if got := b.call("GET", "/healthz", "", "X-Request-Id", "abc-1").Header().Get("X-Request-Id"); got != "abc-1" {
		t.Errorf("%q", got)
	}
	for _, bad := range []string{"a b", strings.Repeat("x", 65), "x\"y"} {
		if got := b.call("GET", "/healthz", "", "X-Request-Id", bad).Header().Get("X-Request-Id"); got == bad || got == "" {
			t.Errorf("%q became %q", bad, got)
		}
	}
}
