package api

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

func (b *bench) withJob(t testing.TB) *job.Job {
	t.Helper()
	j := want[job.Job](t, b, 201, "POST", "/v1/jobs", nightly)
	return &j
}

func idAt(at time.Time, last byte) string {
	return job.MakeRunID(at, [10]byte{9: last}).String()
}

func TestRunsAreSubmittedAndRead(t *testing.T) {
	b := newBench(t)
	b.withJob(t)
	r := want[job.Run](t, b, 201, "POST", "/v1/runs", `{"job":"nightly","payload":{"n": 1},"labels":{"a":"b"},"priority":9}`)
	if r.Job != "nightly" || r.JobVersion != 1 || r.State != job.Queued || r.Home != job.HomeQuorum || r.Priority != 9 ||
		string(r.Payload) != `{"n":1}` || r.Labels["a"] != "b" || r.Labels["team"] != "billing" || r.Trigger != job.ByAPI {
		t.Fatalf("submitted %+v", r)
	}
	if len(b.born) != 1 || b.born[0] != r.ID {
		t.Fatalf("the leader was told of %v", b.born)
	}
	if got := want[job.Run](t, b, 200, "GET", "/v1/runs/"+r.ID.String(), ""); got.ID != r.ID || got.RootID != r.ID {
		t.Fatalf("read %+v", got)
	}
	d := want[job.Run](t, b, 201, "POST", "/v1/runs", `{"spec":{"exec":{"command":["true"]}},"delay":"1h"}`)
	if d.State != job.Scheduled || d.Reason != job.Delayed || d.ReadyAt != job.At(testNow.Add(time.Hour)) {
		t.Fatalf("a delayed run: %+v", d)
	}
	refused(t, b, 404, job.NotFound, "job", "POST", "/v1/runs", `{"job":"nothing"}`)
	refused(t, b, 404, job.NotFound, "", "GET", "/v1/runs/"+idAt(testNow, 1), "")
	refused(t, b, 404, job.NotFound, "", "GET", "/v1/runs/"+r.ID.String()+"?namespace=other", "")
}

func TestRepeatingAnIDOrAKeyIsTheSameRun(t *testing.T) {
	b := newBench(t)
	b.withJob(t)
	id := idAt(testNow, 1)
	body := fmt.Sprintf(`{"id":%q,"job":"nightly"}`, id)
	first := want[job.Run](t, b, 201, "POST", "/v1/runs", body)
	if again := want[job.Run](t, b, 200, "POST", "/v1/runs", body); first.ID.String() != id || again.ID != first.ID {
		t.Fatalf("%s, then %s", first.ID, again.ID)
	}
	keyed := want[job.Run](t, b, 201, "POST", "/v1/runs", `{"job":"nightly","payload":1}`, "Idempotency-Key", "k-1")
	same := want[job.Run](t, b, 200, "POST", "/v1/runs", fmt.Sprintf(`{"id":%q, "payload": 1, "job":"nightly"}`, idAt(testNow, 2)), "Idempotency-Key", "k-1")
	if same.ID != keyed.ID {
		t.Fatalf("one key, two runs")
	}
	if p := refused(t, b, 409, job.Conflict, "", "POST", "/v1/runs", `{"job":"nightly","payload":2}`, "Idempotency-Key", "k-1"); p.Reason != "key_conflict" {
		t.Fatalf("reason %q", p.Reason)
	}
	if b.writes != 3 || len(b.born) != 2 {
		t.Fatalf("%d writes, %d hints", b.writes, len(b.born))
	}
}

func TestABatchAnswersItemByItem(t *testing.T) {
	b := newBench(t)
	b.withJob(t)
	a := want[BatchAnswer](t, b, 200, "POST", "/v1/runs/batch", fmt.Sprintf(`{"runs":[
		{"job":"nightly"}, {"job":"nothing"}, {"jbo":"nightly"}, {"job":"nightly","id":%q}, {"job":"nightly","id":%q}, {"job":"nightly","priority":10}, 7]}`,
		idAt(testNow, 1), idAt(testNow, 1)))
	type fate struct{ code, field string }
	for i, f := range []fate{{}, {"not_found", "runs[1].job"}, {"invalid", "runs[2].jbo"}, {}, {}, {"invalid", "runs[5].priority"}, {"invalid", "runs[6]"}} {
		it := a.Items[i]
		switch {
		case f.code == "" && (it.Run == nil || it.Problem != nil), f.code != "" && (it.Run != nil || string(it.Problem.Code) != f.code || it.Problem.Field != f.field):
			t.Errorf("item %d: %+v %+v", i, it.Run, it.Problem)
		}
	}
	if a.Items[3].Existing || !a.Items[4].Existing || a.Items[3].Run.ID != a.Items[4].Run.ID {
		t.Error("a repeated id in one batch is one run")
	}
	if !strings.Contains(a.Items[2].Problem.Detail, "job") {
		t.Errorf("no suggestion in %q", a.Items[2].Problem.Detail)
	}
	refused(t, b, 400, job.Invalid, "Idempotency-Key", "POST", "/v1/runs/batch", `{"runs":[{"job":"nightly"}]}`, "Idempotency-Key", "k")
	refused(t, b, 400, job.Invalid, "runs", "POST", "/v1/runs/batch", `{"runs":[]}`)
	refused(t, b, 400, job.Invalid, "runs", "POST", "/v1/runs/batch", `{"runs":[`+strings.TrimSuffix(strings.Repeat(`{"job":"nightly"},`, MaxBatch+1), ",")+`]}`)
}

func TestAcceptanceSaysWhereTheRunLies(t *testing.T) {
	b := newBench(t)
	b.withJob(t)
	b.home = job.HomePostgres
	if r := want[job.Run](t, b, 202, "POST", "/v1/runs", `{"job":"nightly"}`); r.Home != job.HomeQuorum {
		t.Fatalf("durability %s", r.Home)
	}
	want[job.Run](t, b, 202, "POST", "/v1/runs?min_durability=quorum", `{"job":"nightly"}`)
	n := b.writes
	w := b.call("POST", "/v1/runs?min_durability=postgres", `{"job":"nightly"}`)
	if w.Code != 503 || w.Header().Get("Retry-After") == "" || b.writes != n {
		t.Fatalf("%d %v, %d writes", w.Code, w.Header(), b.writes-n)
	}
	refused(t, b, 400, job.Invalid, "min_durability", "POST", "/v1/runs?min_durability=paper", `{"job":"nightly"}`)
}

func TestAnIdIsNoWayIntoAnotherNamespace(t *testing.T) {
	b := newBench(t)
	const spec = `"spec":{"exec":{"command":["true"]}}`
	id := `"id":"` + idAt(testNow, 1) + `"`
	want[job.Run](t, b, 201, "POST", "/v1/runs", `{`+spec+`,`+id+`,"payload":"secret"}`)
	want[job.Run](t, b, 200, "POST", "/v1/runs", `{`+spec+`,`+id+`}`)
	if p := refused(t, b, 409, job.Conflict, "id", "POST", "/v1/runs?namespace=other", `{`+spec+`,`+id+`}`); p.Reason != "id_taken" {
		t.Errorf("reason %q", p.Reason)
	}
	a := want[BatchAnswer](t, b, 200, "POST", "/v1/runs/batch?namespace=other", `{"runs":[{`+spec+`,`+id+`}]}`)
	if p := a.Items[0].Problem; p == nil || p.Reason != "id_taken" {
		t.Errorf("in a batch: %+v", a.Items[0])
	}
}

func TestAnUnknownOutcomeNamesTheRun(t *testing.T) {
	b := newBench(t)
	b.storeErr = job.Errorf(job.Unknown, "", "nobody knows")
	if p := refused(t, b, 504, job.Unknown, "", "POST", "/v1/runs", `{"spec":{"exec":{"command":["true"]}}}`); p.RunID.IsZero() {
		t.Fatal("without an id nobody can repeat it")
	}
	const item = `{"spec":{"exec":{"command":["true"]}}`
	a := want[BatchAnswer](t, b, 200, "POST", "/v1/runs/batch", `{"runs":[`+item+`},`+item+`,"priority":99}]}`)
	if p := a.Items[0].Problem; p == nil || p.Code != job.Unknown || p.RunID.IsZero() || a.Items[1].Problem.Code != job.Invalid {
		t.Fatalf("a batch that nobody can repeat: %+v", a.Items)
	}
	// Whoever brought the ids can repeat the whole.
	refused(t, b, 504, job.Unknown, "", "POST", "/v1/runs/batch", `{"runs":[`+item+`,"id":"`+idAt(testNow, 1)+`"}]}`)
}

func TestRunsAreCancelledAndRetried(t *testing.T) {
	b := newBench(t)
	b.withJob(t)
	r := want[job.Run](t, b, 201, "POST", "/v1/runs", `{"job":"nightly","payload":1,"priority":2}`)
	path := "/v1/runs/" + r.ID.String()
	if p := refused(t, b, 409, job.Conflict, "", "POST", path+"/retry", ""); p.Reason != "not_terminal" {
		t.Fatalf("reason %q", p.Reason)
	}
	if c := want[job.Run](t, b, 202, "POST", path+"/cancel", ""); c.CancelAt != job.At(testNow) || len(b.cancelled) != 1 {
		t.Fatalf("cancelled %+v, told %v", c, b.cancelled)
	}
	done := *b.runs[r.ID]
	done.State, done.Reason, done.FinishedAt = job.Cancelled, job.CancelRequested, job.At(testNow)
	b.runs[r.ID] = &done
	want[job.Run](t, b, 200, "POST", path+"/cancel", "")
	if len(b.cancelled) != 1 {
		t.Fatal("an intent for a run that has ended")
	}
	b.call("PUT", "/v1/jobs/nightly", strings.Replace(nightly, "true", "false", 1))
	n := want[job.Run](t, b, 201, "POST", path+"/retry", "")
	if n.RetryOf != r.ID || n.JobVersion != 1 || n.Trigger != job.ByRetry || n.Priority != 2 || string(n.Payload) != "1" {
		t.Fatalf("retried as %+v", n)
	}
	if again := want[job.Run](t, b, 200, "POST", path+"/retry", ""); again.ID != n.ID {
		t.Fatal("asked twice, retried twice")
	}
	inline := want[job.Run](t, b, 201, "POST", "/v1/runs", `{"spec":{"exec":{"command":["true"]}}}`)
	ended := *b.runs[inline.ID]
	ended.State, ended.FinishedAt = job.Failed, job.At(testNow)
	b.runs[inline.ID] = &ended
	again := want[job.Run](t, b, 201, "POST", "/v1/runs/"+inline.ID.String()+"/retry", "")
	if string(b.runs[again.ID].Spec) != string(ended.Spec) {
		t.Fatalf("the spec became %s", b.runs[again.ID].Spec)
	}
}

// A store looks at so many rows and no more: what lies behind them is on a later page, and not nowhere.
func TestAPageThatFindsNothingIsNotTheEnd(t *testing.T) {
	b := newBench(t)
	b.withJob(t)
	ids := b.submitN(t, 10)
	b.runs[ids[1]].Worker = "w"
	b.maxScan = 3
	for _, path := range []string{"/v1/runs?worker=w", "/v1/runs?worker=w&limit=1", "/v1/runs?worker=w&state=queued"} {
		if got, n := pages(t, b, path); len(got) != 1 || got[0] != ids[1] || n < 3 {
			t.Errorf("%s: %v on %d pages", path, got, n)
		}
	}
	for _, name := range []string{"a", "b", "c", "d"} {
		want[job.Job](t, b, 201, "POST", "/v1/jobs", `{"name":"`+name+`","exec":{"command":["true"]}}`)
	}
	p := want[page[job.Job]](t, b, 200, "GET", "/v1/jobs?label=team=billing", "")
	if len(p.Items) != 0 || p.NextCursor == "" {
		t.Fatalf("jobs: %d and %q", len(p.Items), p.NextCursor)
	}
	if p = want[page[job.Job]](t, b, 200, "GET", "/v1/jobs?label=team=billing&cursor="+p.NextCursor, ""); len(p.Items) != 1 || p.NextCursor != "" {
		t.Fatalf("jobs on the next page: %d and %q", len(p.Items), p.NextCursor)
	}
}

// submitN submits n runs whose ids are a second apart, and answers them oldest first.
func (b *bench) submitN(t testing.TB, n int) []job.RunID {
	t.Helper()
	ids := make([]job.RunID, n)
	for i := range ids {
		r := want[job.Run](t, b, 201, "POST", "/v1/runs", fmt.Sprintf(`{"job":"nightly","id":%q}`, idAt(testNow.Add(time.Duration(i-n)*time.Second), byte(i))))
		ids[i] = r.ID
	}
	return ids
}

func pages(t testing.TB, b *bench, path string) (ids []job.RunID, n int) {
	t.Helper()
	cursor := ""
	for {
		p := want[page[job.Run]](t, b, 200, "GET", path+cursor, "")
		for _, r := range p.Items {
			ids = append(ids, r.ID)
		}
		if n++; n > 100 {
			t.Fatal("the pages have no end")
		}
		if p.NextCursor == "" {
			return ids, n
		}
		cursor = "&cursor=" + p.NextCursor
	}
}

func TestRunsAreListedNewestFirstPageByPage(t *testing.T) {
	b := newBench(t)
	b.withJob(t)
	ids := b.submitN(t, 25)
	got, n := pages(t, b, "/v1/runs?limit=10")
	if len(got) != 25 || n != 3 {
		t.Fatalf("%d runs in %d pages", len(got), n)
	}
	for i := range got {
		if got[i] != ids[24-i] {
			t.Fatalf("place %d is wrong", i)
		}
	}
	if got, _ := pages(t, b, "/v1/runs?limit=10&job=nightly&label=team=billing"); len(got) != 25 {
		t.Fatalf("%d runs", len(got))
	}
	if got, _ := pages(t, b, "/v1/runs?limit=10&label=team=other"); len(got) != 0 {
		t.Fatalf("%d runs", len(got))
	}
	since := testNow.Add(-5 * time.Second).Format(time.RFC3339)
	if got, _ := pages(t, b, "/v1/runs?limit=3&since="+since); len(got) != 5 {
		t.Fatalf("%d runs", len(got))
	}
	if got, _ := pages(t, b, "/v1/runs?limit=10&namespace=other"); len(got) != 0 {
		t.Fatalf("%d runs", len(got))
	}
	if got, _ := pages(t, b, "/v1/runs?limit=10&namespace=*"); len(got) != 25 {
		t.Fatalf("%d runs", len(got))
	}
	refused(t, b, 400, job.Invalid, "namespace", "GET", "/v1/jobs?namespace=*", "")
}

func TestLeasedRunsReadRunning(t *testing.T) {
	b := newBench(t)
	b.withJob(t)
	ids := b.submitN(t, 30)
	for i, id := range ids {
		if i%3 == 0 {
			b.grants[id] = job.Grant{RunID: id, Fence: 1 << 32, Attempt: 1, Worker: "w" + fmt.Sprint(i%2), GrantedAt: job.At(testNow), Lane: "default"}
		}
	}
	if r := want[job.Run](t, b, 200, "GET", "/v1/runs/"+ids[0].String(), ""); r.State != job.Running || r.Worker != "w0" || r.StartedAt != job.At(testNow) {
		t.Fatalf("%+v", r)
	}
	for _, c := range []struct {
		query string
		want  int
	}{{"state=running", 10}, {"state=queued", 20}, {"state=queued,running", 30}, {"state=failed", 0}, {"worker=w0", 5}, {"worker=w1&state=running", 5}, {"worker=w1&state=queued", 0}} {
		for _, limit := range []int{1, 3, 7, 100} {
			got, _ := pages(t, b, fmt.Sprintf("/v1/runs?limit=%d&%s", limit, c.query))
			if len(got) != c.want {
				t.Errorf("%s by %d: %d runs, want %d", c.query, limit, len(got), c.want)
			}
			seen := map[job.RunID]bool{}
			for _, id := range got {
				if seen[id] {
					t.Errorf("%s by %d: %s twice", c.query, limit, id)
				}
				seen[id] = true
			}
		}
	}
	// A row that has seen a later attempt end than the lease's is newer than the lease.
	ended := *b.runs[ids[0]]
	ended.State, ended.Fence, ended.Reason = job.Scheduled, 1<<32, job.RetryBackoff
	b.runs[ids[0]] = &ended
	if r := want[job.Run](t, b, 200, "GET", "/v1/runs/"+ids[0].String(), ""); r.State != job.Scheduled {
		t.Fatalf("%+v", r)
	}
}

func TestCursorsBelongToTheirQuery(t *testing.T) {
	b := newBench(t)
	b.withJob(t)
	b.submitN(t, 3)
	p := want[page[job.Run]](t, b, 200, "GET", "/v1/runs?limit=1", "")
	c := p.NextCursor
	flipped := "A" + c[1:]
	if c[0] == 'A' {
		flipped = "B" + c[1:]
	}
	for _, path := range []string{
		"/v1/runs?limit=1&job=nightly&cursor=" + c, "/v1/runs?namespace=other&cursor=" + c, "/v1/jobs?cursor=" + c,
		"/v1/runs?cursor=" + flipped, "/v1/runs?cursor=" + c[:len(c)-1], "/v1/runs?cursor=x", "/v1/runs?cursor=" + strings.Repeat("A", 1000),
		"/v1/workers?cursor=" + c, "/v1/jobs/nightly/ticks?cursor=" + c,
	} {
		refused(t, b, 400, job.Invalid, "cursor", "GET", path, "")
	}
	want[page[job.Run]](t, b, 200, "GET", "/v1/runs?limit=2&cursor="+c, "")
}

func FuzzCursor(f *testing.F) {
	f.Add(makeCursor(runCursor, "a", make([]byte, 16)), "a")
	f.Add(makeTickCursor("b", 5), "b")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, text, filters string) {
		if id, err := readRunCursor(filters, text); err == nil && text != "" && makeCursor(runCursor, filters, id[:]) != text {
			t.Fatal("a cursor that nobody made was read")
		}
		if at, err := readTickCursor(filters, text); err == nil && text != "" && makeTickCursor(filters, at) != text {
			t.Fatal("a cursor that nobody made was read")
		}
	})
}

// FuzzRunBody: whatever the body, the answer is the run or a problem, and a refusal writes nothing.
func FuzzRunBody(f *testing.F) {
	for _, s := range []string{oneRun, `{"spec":{"exec":{"command":["x"]}},"run_at":"2026-03-10T13:00:00Z"}`, `{"id":"x"}`, `[`, `{"job":null}`, "\x00", `{"labels":{"":""}}`,
		`{"spec":{"tasks":[{"name":"a","exec":{"command":["x"],"env":{"E":"${{ run.payload.x }}"}}},{"name":"b","depends_on":["a"],"when":"tasks.a.result > 1","for_each":"[1]","run_job":{"job":"j"}}],"result":"tasks.b.result"}}`} {
		f.Add([]byte(s), false)
		f.Add([]byte(`{"runs":[`+s+`]}`), true)
	}
	b := newBench(f)
	b.withJob(f)
	f.Fuzz(func(t *testing.T, body []byte, batch bool) {
		before := b.writes
		path := "/v1/runs"
		if batch {
			path += "/batch"
		}
		w := b.call("POST", path, string(body))
		if len(body) == 0 {
			return
		}
		if w.Code >= 500 {
			t.Fatalf("%d: %s", w.Code, w.Body)
		}
		if !json.Valid(w.Body.Bytes()) {
			t.Fatalf("not JSON: %s", w.Body)
		}
		if w.Code >= 400 && b.writes != before {
			t.Fatalf("a refusal wrote: %s", w.Body)
		}
	})
}

func TestAttemptsAndExplanations(t *testing.T) {
	b := newBench(t)
	b.withJob(t)
	id := b.submitN(t, 1)[0]
	path := "/v1/runs/" + id.String()
	if p := want[page[job.Attempt]](t, b, 200, "GET", path+"/attempts", ""); len(p.Items) != 0 {
		t.Fatalf("%+v", p)
	}
	e := want[Explanation](t, b, 200, "GET", path+"/explain", "")
	if len(e.Explanation) != 2 || !strings.Contains(e.Explanation[1], "selector") {
		t.Fatalf("%+v", e)
	}
	b.leaderErr = job.Errorf(job.Unavailable, "no_leader", "no leader")
	if e := want[Explanation](t, b, 200, "GET", path+"/explain", ""); len(e.Explanation) != 2 || !strings.Contains(e.Explanation[1], "cannot be asked") {
		t.Fatalf("%+v", e)
	}
	b.attempts[id] = []job.Attempt{{RunID: id, Attempt: 1, State: job.Failed, Reason: job.ExitCode}}
	r := *b.runs[id]
	r.State, r.Attempt, r.Worker, r.ExitCode, r.Reason, r.Error = job.Failed, 2, "w1", 3, job.ExitCode, "boom"
	b.runs[id] = &r
	if p := want[page[job.Attempt]](t, b, 200, "GET", path+"/attempts", ""); len(p.Items) != 2 || p.Items[1].ExitCode != 3 {
		t.Fatalf("%+v", p)
	}
	if e := want[Explanation](t, b, 200, "GET", path+"/explain", ""); len(e.Explanation) != 1 || !strings.Contains(e.Explanation[0], "exit code 3") || !strings.Contains(e.Explanation[0], "boom") {
		t.Fatalf("%+v", e)
	}
}

// Each state and reason has its sentence; a word that is added without one shows here.
func TestEveryStateHasASentence(t *testing.T) {
	for s := job.Waiting; s <= job.Skipped; s++ {
		for why := job.NoReason; why <= job.ChildFailed; why++ {
			r := &job.Run{State: s, Reason: why, Job: "j", Worker: "w", Attempt: 1, ReadyAt: job.At(testNow)}
			if text := sentence(r, job.At(testNow)-1); len(text) < 8 || strings.Contains(text, "%!") {
				t.Errorf("%s, %s: %q", s, why, text)
			}
		}
	}
}
