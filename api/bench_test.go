package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/musterhq/muster/job"
)

// sink is a store that accepts everything and keeps nothing, so that the benchmarks measure the API.
type sink struct {
	*node
	job *job.Job
}

func (s sink) Job(context.Context, string, string) (*job.Job, error) { return s.job, nil }

func (s sink) Submit(_ context.Context, runs []*job.Run) ([]job.Receipt, error) {
	receipts := make([]job.Receipt, len(runs))
	for i, r := range runs {
		r.Home = job.HomeQuorum
		receipts[i].Run = r
	}
	return receipts, nil
}

func (sink) Born([]*job.Run) {}

type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(int)             {}

func benchSubmit(b *testing.B, path, body string, runs int) {
	n := newNode()
	doc, err := job.ParseDocument([]byte(nightly))
	if err != nil {
		b.Fatal(err)
	}
	s := sink{n, &job.Job{ID: job.JobID{1}, Namespace: "default", Name: "nightly", Version: 1, Spec: doc}}
	c := n.config()
	c.Store, c.Hints = s, s
	a, err := New(c)
	if err != nil {
		b.Fatal(err)
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequest("POST", path, strings.NewReader(body))
	r.Header.Set("Content-Type", jsonType)
	a.ServeHTTP(w, r)
	if w.Code >= 300 || strings.Contains(w.Body.String(), "problem") {
		b.Fatalf("%d %s", w.Code, w.Body)
	}
	d := &discard{http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(d.header)
		r.Body = io.NopCloser(strings.NewReader(body))
		a.ServeHTTP(d, r)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(runs), "ns/run")
}

const oneRun = `{"job":"nightly","payload":{"customer":12345,"kind":"invoice"},"priority":7,"labels":{"a":"b"}}`

func BenchmarkSubmitOne(b *testing.B) { benchSubmit(b, "/v1/runs", oneRun, 1) }

func BenchmarkSubmitInline(b *testing.B) {
	benchSubmit(b, "/v1/runs", `{"spec":{"exec":{"command":["/bin/true"]}},"payload":{"customer":12345}}`, 1)
}

func BenchmarkSubmitBatch(b *testing.B) {
	for _, n := range []int{100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			body := `{"runs":[` + strings.TrimSuffix(strings.Repeat(oneRun+",", n), ",") + `]}`
			benchSubmit(b, "/v1/runs/batch", body, n)
		})
	}
}

// BenchmarkReadTasks reads a run of 1,000 tasks, half of which have run: of a job whose version the store has at hand, and of
// an inline spec, which is decoded for each read, as versions are by the replicated store.
func BenchmarkReadTasks(b *testing.B) {
	tasks := make([]string, job.MaxTasks)
	tasks[0] = `{"name":"task-0","exec":{"command":["/usr/bin/report"]}}`
	for i := 1; i < len(tasks); i++ {
		tasks[i] = fmt.Sprintf(`{"name":"task-%d","depends_on":["task-%d"],"when":"true","exec":{"command":["/usr/bin/report","--daily"],"env":{"A":"B"}}}`, i, i/2)
	}
	list := `"tasks":[` + strings.Join(tasks, ",") + `]`
	for name, body := range map[string]string{"version": `{"job":"large"}`, "inline": `{"spec":{` + list + `}}`} {
		b.Run(name, func(b *testing.B) {
			n := newBench(b)
			want[job.Job](b, n, 201, "POST", "/v1/jobs", `{"name":"large",`+list+`}`)
			root := want[job.Run](b, n, 201, "POST", "/v1/runs", body)
			for i := range tasks[:len(tasks)/2] {
				n.bear(n.runs[root.ID], fmt.Sprintf("task-%d", i), 0, job.Succeeded, func(r *job.Run) {
					r.Attempt, r.Worker, r.StartedAt, r.FinishedAt = 1, "worker-1", job.At(testNow), job.At(testNow)
				})
			}
			d, r := &discard{http.Header{}}, httptest.NewRequest("GET", "/v1/runs/"+root.ID.String(), nil)
			b.ReportAllocs()
			for b.Loop() {
				clear(d.header)
				n.api.ServeHTTP(d, r)
			}
		})
	}
}
