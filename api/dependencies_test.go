package api

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/job"
)

// chain puts load, report after load, and mail after report and load.
func (b *bench) chain(t testing.TB) {
	t.Helper()
	for name, ups := range map[string]string{"load": ``, "report": `,"depends_on":["load"]`, "mail": `,"depends_on":[{"job":"load","on":"done"},"report"]`} {
		want[job.Job](t, b, 201, "PUT", "/v1/jobs/"+name, fmt.Sprintf(`{"name":%q,"exec":{"command":["true"]}%s}`, name, ups))
	}
}

func TestDependenciesAreListed(t *testing.T) {
	b := newBench(t)
	b.chain(t)
	by := job.MakeRunID(testNow, [10]byte{})
	b.satisfied = map[string]job.Dependency{"report/load": {SatisfiedBy: by, SatisfiedAt: job.At(testNow), Coalesced: 2}}
	got := want[Dependencies](t, b, 200, "GET", "/v1/jobs/report/dependencies", "")
	if d := cmp.Diff(Dependencies{
		Upstreams:  []job.Dependency{{Job: "report", Upstream: "load", On: job.OnSuccess, SatisfiedBy: by, SatisfiedAt: job.At(testNow), Coalesced: 2}},
		Dependents: []job.Dependency{{Job: "mail", Upstream: "report", On: job.OnSuccess}},
	}, got); d != "" {
		t.Error(d)
	}
	if w := b.call("GET", "/v1/jobs/load/dependencies", ""); !strings.Contains(w.Body.String(), `"upstreams":[],`) {
		t.Errorf("none is not an empty list: %s", w.Body)
	}
	refused(t, b, 404, job.NotFound, "", "GET", "/v1/jobs/nothing/dependencies", "")
	refused(t, b, 404, job.NotFound, "", "GET", "/v1/jobs/load/dependencies?namespace=other", "")
	without := newBench(t, func(c *Config) { c.Graphs = nil })
	without.chain(t)
	refused(t, without, 404, job.NotFound, "", "GET", "/v1/jobs/load/dependencies", "")
	refused(t, without, 404, job.NotFound, "", "DELETE", "/v1/jobs/load?detach=true", "")
}

func TestAJobIsDeletedFromUnderOthers(t *testing.T) {
	b := newBench(t)
	b.chain(t)
	before := b.writes
	for _, header := range [][]string{nil, {"If-Match", `"1"`}} {
		if p := refused(t, b, 409, job.Conflict, "", "DELETE", "/v1/jobs/load", "", header...); p.Reason != "has_dependents" || !strings.Contains(p.Detail, "mail, report") || !strings.Contains(p.Detail, "detach=true") {
			t.Errorf("%+v", p)
		}
	}
	refused(t, b, 412, job.Conflict, "", "DELETE", "/v1/jobs/load?detach=true", "", "If-Match", `"7"`)
	refused(t, b, 400, job.Invalid, "detach", "DELETE", "/v1/jobs/load?detach=yes", "")
	refused(t, b, 404, job.NotFound, "", "DELETE", "/v1/jobs/nothing?detach=true", "")
	if b.writes != before {
		t.Fatal("a refused deletion changed something")
	}
	// Somebody else changes a dependent in the meantime: his change stays, and the edge goes.
	once := true
	b.beforePut = func() {
		if once {
			once = false
			j := *b.jobs["default/mail"]
			spec := *j.Spec
			spec.Description = "changed meanwhile"
			j.Spec, j.Version = &spec, j.Version+1
			b.jobs["default/mail"] = &j
		}
	}
	want[struct{}](t, b, 204, "DELETE", "/v1/jobs/load?detach=true", "")
	b.beforePut = nil
	mail := want[job.Job](t, b, 200, "GET", "/v1/jobs/mail", "")
	if mail.Spec.Description != "changed meanwhile" || mail.Version != 3 || len(mail.Spec.DependsOn) != 1 || mail.Spec.DependsOn[0].Job != "report" {
		t.Errorf("%+v", mail.Spec)
	}
	if report := want[job.Job](t, b, 200, "GET", "/v1/jobs/report", ""); len(report.Spec.DependsOn) != 0 || report.Version != 2 || !report.Effective {
		t.Errorf("%+v", report)
	}
	refused(t, b, 404, job.NotFound, "", "GET", "/v1/jobs/load", "")
	// Without dependents it is a deletion like any other.
	want[struct{}](t, b, 204, "DELETE", "/v1/jobs/mail?detach=true", "", "If-Match", `"3"`)
}

// A dependent that comes between the detaching and the deletion is detached as well; one that goes is no error.
func TestDependentsComeAndGoWhileAJobIsDeleted(t *testing.T) {
	b := newBench(t)
	b.chain(t)
	late := *b.jobs["default/report"]
	spec := *late.Spec
	spec.Name, late.Name, late.Spec = "late", "late", &spec
	n := 0
	b.beforePut = func() {
		switch n++; n {
		case 1:
			delete(b.jobs, "default/mail") // it comes before report, and is gone when it is to be changed
		case 2:
			b.jobs["default/late"] = &late
		}
	}
	want[struct{}](t, b, 204, "DELETE", "/v1/jobs/load?detach=true", "")
	if left := b.jobs["default/late"]; b.jobs["default/mail"] != nil || len(left.Spec.DependsOn) != 0 {
		t.Errorf("%+v", left.Spec)
	}
}

// Who may read or change a job may read or detach its dependencies: one verb each, in one namespace.
func TestDependenciesNeedWhatJobsNeed(t *testing.T) {
	var asked []Operation
	b := newBench(t, func(c *Config) {
		c.Authorize = func(_ *http.Request, op Operation) error { asked = append(asked, op); return nil }
	})
	b.call("GET", "/v1/jobs/x/dependencies?namespace=a", "")
	b.call("DELETE", "/v1/jobs/x?namespace=a&detach=true", "")
	if d := cmp.Diff([]Operation{{"list-dependencies", Read, "a"}, {"delete-job", Define, "a"}}, asked); d != "" {
		t.Error(d)
	}
}
