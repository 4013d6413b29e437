package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

func TestAScheduleOutOfReachIsStoredAndSaidNotToBeEffective(t *testing.T) {
	b := newBench(t)
	for _, code := range []job.Code{job.Unavailable, job.Unknown, job.Fenced} {
		b.raftErr = job.Errorf(code, "no_leader", "no leader")
		name := string(code)
		doc := strings.Replace(nightly, "nightly", strings.ReplaceAll(name, "_", "-"), 1)
		if j := want[job.Job](t, b, 202, "POST", "/v1/jobs", doc); j.Effective || j.NextTickAt != 0 {
			t.Errorf("%s: %+v", code, j)
		}
		if j := want[job.Job](t, b, 200, "GET", "/v1/jobs/"+name, ""); j.Effective {
			t.Errorf("%s: %+v", code, j)
		}
		b.raftErr = nil
		if j := want[job.Job](t, b, 200, "PUT", "/v1/jobs/"+name, doc); !j.Effective || j.Version != 1 || j.NextTickAt == 0 {
			t.Errorf("%s, repeated: %+v", code, j)
		}
		b.raftErr = job.Errorf(code, "no_leader", "no leader")
		if w := b.call("DELETE", "/v1/jobs/"+name, ""); w.Code != 202 {
			t.Errorf("%s, deleted: %d %s", code, w.Code, w.Body)
		}
	}
}

func TestJobsArePausedAndResumed(t *testing.T) {
	b := newBench(t)
	b.withJob(t)
	if j := want[job.Job](t, b, 200, "POST", "/v1/jobs/nightly/pause", ""); !j.Paused || j.NextTickAt != 0 {
		t.Fatalf("%+v", j)
	}
	if j := want[job.Job](t, b, 200, "GET", "/v1/jobs/nightly", ""); !j.Paused || j.NextTickAt != 0 || !j.Effective {
		t.Fatalf("%+v", j)
	}
	if j := want[job.Job](t, b, 200, "POST", "/v1/jobs/nightly/resume", ""); j.Paused || j.NextTickAt == 0 {
		t.Fatalf("%+v", j)
	}
	b.raftErr = job.Errorf(job.Unavailable, "no_leader", "no leader")
	refused(t, b, 503, job.Unavailable, "", "POST", "/v1/jobs/nightly/pause", "")
	refused(t, b, 404, job.NotFound, "", "POST", "/v1/jobs/nothing/pause", "")
}

func TestJobsAreListedByNamePageByPage(t *testing.T) {
	b := newBench(t)
	for i := range 5 {
		want[job.Job](t, b, 201, "POST", "/v1/jobs", fmt.Sprintf(`{"name":"j%d","labels":{"odd":"%d"},"exec":{"command":["true"]}}`, i, i%2))
	}
	var names []string
	for cursor := ""; ; {
		p := want[page[job.Job]](t, b, 200, "GET", "/v1/jobs?limit=2"+cursor, "")
		for _, j := range p.Items {
			names = append(names, j.Name)
		}
		if cursor = "&cursor=" + p.NextCursor; p.NextCursor == "" {
			break
		}
	}
	if d := cmp.Diff([]string{"j0", "j1", "j2", "j3", "j4"}, names); d != "" {
		t.Fatal(d)
	}
	if p := want[page[job.Job]](t, b, 200, "GET", "/v1/jobs?label=odd=1", ""); len(p.Items) != 2 {
		t.Fatalf("%d jobs", len(p.Items))
	}
}

func day(n int) job.Instant { return job.At(time.Date(2026, 3, n, 23, 0, 0, 0, time.UTC)) } // midnight in Berlin

func TestComingTicksAreListed(t *testing.T) {
	b := newBench(t)
	b.withJob(t)
	n := want[NextTicks](t, b, 200, "GET", "/v1/jobs/nightly/next?count=2", "")
	if d := cmp.Diff(NextTicks{Items: []job.Instant{day(10), day(11)}, Cron: "0 0 * * *", TimeZone: "Europe/Berlin"}, n); d != "" {
		t.Fatal(d)
	}
	want[job.Job](t, b, 201, "POST", "/v1/jobs", `{"name":"once","exec":{"command":["true"]}}`)
	if n := want[NextTicks](t, b, 200, "GET", "/v1/jobs/once/next", ""); len(n.Items) != 0 {
		t.Fatalf("%+v", n)
	}
}

func TestTheLedgerIsListedAndVerified(t *testing.T) {
	b := newBench(t)
	b.now = func() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }
	j := b.withJob(t)
	b.now = func() time.Time { return testNow }
	b.marks[j.ID] = job.Mark{JobID: j.ID, Version: 1, From: job.At(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)), At: day(9)}
	tick := func(at, until job.Instant, n uint32, d job.Disposition) {
		b.ticks = append(b.ticks, job.Tick{JobID: j.ID, Version: 1, ScheduledAt: at, Until: until, Count: n, Disposition: d, DecidedAt: at})
	}
	tick(day(1), 0, 0, job.TickRun)
	tick(day(2), day(4), 3, job.TickPaused)
	tick(day(5), 0, 0, job.TickRun)
	tick(day(6), 0, 0, job.TickSkipped)
	tick(day(7), 0, 0, job.TickRun)
	tick(day(8), 0, 0, job.TickRun)
	tick(day(9), 0, 0, job.TickRun)
	p := want[page[TickRow]](t, b, 200, "GET", "/v1/jobs/nightly/ticks?limit=3", "")
	if len(p.Items) != 3 || p.Items[0].RunID != job.TickRunID(j.ID, day(9)) || p.NextCursor == "" {
		t.Fatalf("%+v", p)
	}
	p = want[page[TickRow]](t, b, 200, "GET", "/v1/jobs/nightly/ticks?limit=4&cursor=", "")
	p = want[page[TickRow]](t, b, 200, "GET", "/v1/jobs/nightly/ticks?limit=4&cursor="+p.NextCursor, "")
	if len(p.Items) != 3 || p.Items[2].ScheduledAt != day(1) || p.Items[1].Count != 3 || !p.Items[1].RunID.IsZero() || p.NextCursor != "" {
		t.Fatalf("%+v", p)
	}

	const path = "/v1/jobs/nightly/verify?since=2026-03-01T00:00:00Z"
	v := want[Verification](t, b, 200, "GET", path, "")
	if !v.OK || v.Expected != 9 || v.Decided != 9 || v.Until != day(9)+1 {
		t.Fatalf("%+v", v)
	}
	// Since within a range: the range's row lies before it and still counts.
	if v := want[Verification](t, b, 200, "GET", "/v1/jobs/nightly/verify?since=2026-03-03T00:00:00Z", ""); !v.OK || v.Expected != 7 {
		t.Fatalf("%+v", v)
	}
	b.ticks = append(b.ticks[:4], b.ticks[5:]...) // the 7th is lost
	tick(day(4), 0, 0, job.TickRun)               // the 4th is decided twice
	tick(day(8)+60_000_000, 0, 0, job.TickRun)    // nobody asked for this
	v = want[Verification](t, b, 200, "GET", path, "")
	if d := cmp.Diff(Verification{Since: v.Since, Until: v.Until, Expected: 9, Decided: 8,
		Gaps: []job.Instant{day(7)}, Doubles: []job.Instant{day(4)}, Strays: []job.Instant{day(8) + 60_000_000}}, v); d != "" {
		t.Fatal(d)
	}
	// Nor is one a gap that is decided and not stored yet.
	b.unstored = []job.Tick{{JobID: j.ID, ScheduledAt: day(7), Disposition: job.TickRun}, {JobID: j.ID, ScheduledAt: day(8), Disposition: job.TickRun}}
	if v := want[Verification](t, b, 200, "GET", path, ""); len(v.Gaps) != 0 || len(v.Doubles) != 1 || v.Decided != 9 {
		t.Fatalf("%+v", v)
	}
	b.unstored = nil
	// A tick that is due and not decided yet is no gap: the mark has not passed it.
	b.marks[j.ID] = job.Mark{JobID: j.ID, Version: 1, From: b.marks[j.ID].From, At: day(6)}
	if v := want[Verification](t, b, 200, "GET", path, ""); len(v.Gaps) != 0 || v.Expected != 6 {
		t.Fatalf("%+v", v)
	}
}

func TestEachVersionOwnsItsTicks(t *testing.T) {
	b := newBench(t)
	b.now = func() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }
	j := b.withJob(t)
	b.now = func() time.Time { return time.Date(2026, 3, 5, 12, 0, 0, 0, time.UTC) }
	want[job.Job](t, b, 200, "PUT", "/v1/jobs/nightly", strings.Replace(nightly, "0 0 * * *", "0 13 * * *", 1))
	b.now = func() time.Time { return testNow }
	m := b.marks[j.ID]
	m.At = job.At(testNow)
	b.marks[j.ID] = m
	v := want[Verification](t, b, 200, "GET", "/v1/jobs/nightly/verify?since=2026-03-01T00:00:00Z", "")
	// Midnight of the 2nd to the 5th by the first version; 13:00 in Berlin, which is noon, of the 6th to the 9th by the
	// second, whose From at noon of the 5th is not its own.
	if v.Expected != 4+4 || v.Gaps[3] != day(4) || v.Gaps[4] != job.At(time.Date(2026, 3, 6, 12, 0, 0, 0, time.UTC)) {
		t.Fatalf("%+v", v)
	}
}

func TestPastTicksAreFilledIn(t *testing.T) {
	b := newBench(t)
	b.withJob(t)
	const body = `{"since":"2026-03-01T23:00:00Z","until":"2026-03-04T23:00:00Z"}`
	a := want[BackfillAnswer](t, b, 200, "POST", "/v1/jobs/nightly/backfill", body)
	if len(a.Items) != 3 || a.Items[0].Run.ScheduledAt != day(1) || a.Items[2].Run.ScheduledAt != day(3) ||
		a.Items[0].Run.Trigger != job.ByBackfill || a.Items[0].Run.BackfillID != a.ID || a.Items[0].Run.State != job.Queued {
		t.Fatalf("%+v", a)
	}
	again := want[BackfillAnswer](t, b, 200, "POST", "/v1/jobs/nightly/backfill", body)
	if !again.Items[0].Existing || again.Items[0].Run.ID != a.Items[0].Run.ID || len(b.runs) != 3 {
		t.Fatalf("%+v", again)
	}
	other := want[BackfillAnswer](t, b, 200, "POST", "/v1/jobs/nightly/backfill", strings.Replace(body, "{", `{"id":"b2",`, 1))
	if other.Items[0].Existing || len(b.runs) != 6 || len(b.born) != 6 {
		t.Fatalf("%+v", other)
	}
}

func (b *bench) withWorkers() {
	for i := range 3 {
		name := fmt.Sprintf("w%d", i)
		b.workers[name] = &job.Worker{Name: name, State: job.WorkerReady, Slots: 4, Labels: map[string]string{"region": []string{"eu", "us"}[i%2]}}
	}
}

func TestWorkersAreListedAndFlagged(t *testing.T) {
	b := newBench(t)
	b.withWorkers()
	p := want[page[job.Worker]](t, b, 200, "GET", "/v1/workers?limit=2", "")
	if len(p.Items) != 2 || p.Items[0].Name != "w0" {
		t.Fatalf("%+v", p)
	}
	if p := want[page[job.Worker]](t, b, 200, "GET", "/v1/workers?limit=2&cursor="+p.NextCursor, ""); len(p.Items) != 1 || p.Items[0].Name != "w2" || p.NextCursor != "" {
		t.Fatalf("%+v", p)
	}
	if p := want[page[job.Worker]](t, b, 200, "GET", "/v1/workers?label=region=eu", ""); len(p.Items) != 2 {
		t.Fatalf("%+v", p)
	}
	for verb, state := range map[string]job.WorkerState{"cordon": job.WorkerCordoned, "drain": job.WorkerDraining, "uncordon": job.WorkerReady} {
		if w := want[job.Worker](t, b, 200, "POST", "/v1/workers/w1/"+verb, ""); w.State != state || b.workers["w1"].State != state {
			t.Errorf("%s: %+v", verb, w)
		}
	}
	refused(t, b, 404, job.NotFound, "", "POST", "/v1/workers/w9/cordon", "")
	b.leaderErr = job.Errorf(job.Unavailable, "no_leader", "no leader")
	refused(t, b, 503, job.Unavailable, "", "GET", "/v1/workers", "")
	refused(t, b, 503, job.Unavailable, "", "GET", "/readyz", "")
	want[Health](t, b, 200, "GET", "/healthz", "")
}

func TestWorkersJoin(t *testing.T) {
	b := newBench(t)
	a := want[JoinAnswer](t, b, 200, "POST", "/v1/workers/join", `{"name":"w1"}`)
	if len(a.Streams) != 1 || string(a.GossipKey) != "key" {
		t.Fatalf("%+v", a)
	}
	if p := refused(t, b, 401, job.Unauthenticated, "", "POST", "/v1/workers/join", `{"name":"w1"}`, "Authorization", "Bearer wrong"); p.Reason != "join_token" {
		t.Fatalf("%+v", p)
	}
}

func TestTheNodeDescribesItself(t *testing.T) {
	b := newBench(t)
	if s := want[ClusterStatus](t, b, 200, "GET", "/v1/cluster", ""); s.Leader != "n1" || s.Usage == nil {
		t.Fatalf("%+v", s)
	}
	want[MaintenanceRequest](t, b, 200, "POST", "/v1/cluster/maintenance", `{"maintenance":true}`)
	if s := want[ClusterStatus](t, b, 200, "GET", "/v1/cluster", ""); !s.Maintenance {
		t.Fatalf("%+v", s)
	}
	if w := b.call("GET", "/v1/cluster/snapshot", ""); w.Code != 200 || w.Body.String() != "snapshot" {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	b.storeErr = job.Errorf(job.Unavailable, "x", "not now")
	refused(t, b, 503, job.Unavailable, "", "GET", "/v1/cluster/snapshot", "")
	if w := b.call("GET", "/", ""); w.Code != 200 || !strings.Contains(w.Body.String(), "/openapi.json") {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if w := b.call("GET", "/", "", "Accept", "text/html,*/*"); !strings.Contains(w.Body.String(), "<h1>") || w.Header().Get("Content-Security-Policy") == "" {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	refused(t, b, 404, job.NotFound, "", "GET", "/metrics", "")
}

func TestTheConsoleGetsWhatIsNotTheAPIs(t *testing.T) {
	b := newBench(t, func(c *Config) {
		c.Console = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "console "+r.URL.Path) })
	})
	for _, path := range []string{"/", "/jobs/nightly", "/assets/x.js"} {
		if w := b.call("GET", path, ""); w.Body.String() != "console "+path {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	refused(t, b, 404, job.NotFound, "", "GET", "/v1/nothing", "")
	refused(t, b, 404, job.NotFound, "", "POST", "/assets/x.js", "")
}

func TestOutputIsRead(t *testing.T) {
	b := newBench(t)
	b.withJob(t)
	id := b.submitN(t, 1)[0]
	path := "/v1/runs/" + id.String() + "/logs"
	if w := b.call("GET", path, ""); w.Code != 200 || w.Body.Len() != 0 || w.Header().Get("Content-Type") != plainType {
		t.Fatalf("%d %q", w.Code, w.Body)
	}
	r := *b.runs[id]
	r.State, r.Attempt = job.Succeeded, 2
	b.runs[id] = &r
	b.output[id] = []chunkOf{
		{1, OutputChunk{0, "", []byte("first\n")}}, {2, OutputChunk{0, "", []byte("second ")}}, {2, OutputChunk{10, "", []byte("end\n")}},
	}
	if w := b.call("GET", path, ""); w.Body.String() != "second \n[muster: 3 bytes of output are missing here]\nend\n" {
		t.Fatalf("%q", w.Body)
	}
	if w := b.call("GET", path+"?attempt=9", ""); w.Code != 404 || !strings.Contains(w.Body.String(), `"no_attempt"`) {
		t.Fatalf("an attempt that the run never had: %d %q", w.Code, w.Body)
	}
	if w := b.call("GET", path+"?attempt=1", ""); w.Body.String() != "first\n" {
		t.Fatalf("%q", w.Body)
	}
	w := b.call("GET", path+"?attempt=2", "", "Accept", eventType, "Last-Event-ID", "2:3")
	if got := w.Body.String(); !strings.HasPrefix(got, "event: output\nid: 2:7\ndata: {\"attempt\":2,\"offset\":3,\"text\":\"ond \"}\n\nevent: gap\n") ||
		!strings.Contains(got, `"missing":3`) || !strings.Contains(got, "event: end\ndata: {") {
		t.Fatalf("%s", got)
	}
	refused(t, b, 404, job.NotFound, "", "GET", "/v1/runs/"+idAt(testNow, 99)+"/logs?follow=true", "")
	refused(t, b, 404, job.NotFound, "", "GET", path+"?namespace=other", "")
}

// blockingOutput follows for ever: like a node that never learns that an attempt ended.
type blockingOutput struct{ *node }

func (o blockingOutput) Output(ctx context.Context, q OutputQuery, each func(OutputChunk) error) error {
	err := o.node.Output(ctx, q, each)
	if err == nil && q.Follow {
		<-ctx.Done()
		err = ctx.Err()
	}
	return err
}

// A run is followed from before its first attempt, through a retry, to its end, all output once and in order.
func TestOutputIsFollowedThroughAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		c := b.config()
		c.Output, c.FollowEvery = blockingOutput{b.node}, time.Second
		a, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		b.api = a
		b.withJob(t)
		id := b.submitN(t, 1)[0]
		change := func(f func(r *job.Run)) {
			defer b.lock()()
			r := *b.runs[id]
			f(&r)
			b.runs[id] = &r
		}
		write := func(attempt uint32, offset int64, text string) {
			defer b.lock()()
			b.output[id] = append(b.output[id], chunkOf{attempt, OutputChunk{offset, "", []byte(text)}})
		}
		go func() {
			time.Sleep(3 * time.Second)
			write(1, 0, "one ")
			change(func(r *job.Run) { r.State, r.Attempt = job.Running, 1 })
			time.Sleep(20 * time.Second)
			write(1, 4, "two ")
			change(func(r *job.Run) { r.State = job.Scheduled })
			time.Sleep(5 * time.Second)
			write(2, 0, "three")
			change(func(r *job.Run) { r.State, r.Attempt = job.Succeeded, 2 })
		}()
		r := httptest.NewRequest("GET", "/v1/runs/"+id.String()+"/logs?follow=true", nil)
		w := httptest.NewRecorder()
		b.api.ServeHTTP(w, r)
		got := w.Body.String()
		order := []string{`"text":"one "`, `"text":"two "`, `"attempt":2,"offset":0,"text":"three"`, "event: end", `"state":"succeeded"`}
		for _, part := range order {
			_, rest, ok := strings.Cut(got, part)
			if !ok {
				t.Fatalf("no %s, in order, in %s", part, w.Body)
			}
			got = rest
		}
		if !strings.Contains(w.Body.String(), ": still here") || strings.Count(w.Body.String(), "event: output") != 3 {
			t.Fatalf("%s", w.Body)
		}
	})
}

func TestAFollowerThatLeavesEndsTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.withJob(t)
		id := b.submitN(t, 1)[0]
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r := httptest.NewRequest("GET", "/v1/runs/"+id.String()+"/logs?follow=true", nil).WithContext(ctx)
		b.api.ServeHTTP(httptest.NewRecorder(), r)
		if n := b.api.router.streams.Load(); n != 0 || ctx.Err() == nil {
			t.Fatalf("%d streams, %v", n, ctx.Err())
		}
	})
}

func TestAStreamDoesNotOutliveItsCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var revoked atomic.Bool
		b := newBench(t, func(c *Config) {
			c.FollowEvery = time.Second
			c.Authorize = func(*http.Request, Operation) error {
				if revoked.Load() {
					return job.Errorf(job.Unauthenticated, "revoked", "the credential was revoked")
				}
				return nil
			}
		})
		b.api.Config.Output = blockingOutput{b.node}
		b.withJob(t)
		id := b.submitN(t, 1)[0]
		go func() {
			time.Sleep(time.Minute + time.Second)
			revoked.Store(true)
		}()
		w := b.call("GET", "/v1/runs/"+id.String()+"/logs?follow=true", "")
		if !strings.Contains(w.Body.String(), "event: error\n") || !strings.Contains(w.Body.String(), `"reason":"revoked"`) {
			t.Fatalf("%s", w.Body)
		}
	})
}

// The SDK against the API, over a socket: each of its methods, on the paths and shapes that the handlers have.
func TestTheClientSpeaksTheAPI(t *testing.T) {
	b := newBench(t)
	b.now = time.Now
	b.withWorkers()
	c, err := client.New(client.Config{Addresses: []string{"127.0.0.1:1", serveOn(t, b.api)}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := t.Context()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	doc, err := job.ParseDocument([]byte(nightly))
	must("parse", err)
	j, err := c.CreateJob(ctx, doc)
	must("create", err)
	_, err = c.CreateJob(ctx, doc)
	if e := job.AsError(err); e.Code != job.Conflict || e.Reason != "exists" || e.Field != "name" {
		t.Fatalf("create again: %v", err)
	}
	doc.Priority = new(int)
	_, err = c.ChangeJob(ctx, doc, j.Version)
	must("change", err)
	_, err = c.ChangeJob(ctx, doc, 1)
	if e := job.AsError(err); e.Code != job.Conflict || e.Reason != reasonPrecondition {
		t.Fatalf("change an old version: %v", err)
	}
	if j, err = c.PutJob(ctx, doc); err != nil || j.Version != 2 || *j.Spec.Priority != 0 {
		t.Fatalf("put: %+v %v", j, err)
	}
	_, err = c.PauseJob(ctx, "nightly")
	must("pause", err)
	_, err = c.ResumeJob(ctx, "nightly")
	must("resume", err)
	if n, err := c.NextTicks(ctx, "nightly", 3); err != nil || len(n.Items) != 3 {
		t.Fatalf("next: %+v %v", n, err)
	}
	if v, err := c.Versions(ctx, "nightly"); err != nil || len(v) != 2 {
		t.Fatalf("versions: %+v %v", v, err)
	}
	for _, err := range c.Ticks(ctx, "nightly", time.Now().Add(-time.Hour), time.Now()) {
		must("ticks", err)
	}
	if v, err := c.Verify(ctx, "nightly", time.Time{}, time.Time{}); err != nil || !v.OK {
		t.Fatalf("verify: %+v %v", v, err)
	}
	if _, items, err := c.Backfill(ctx, "nightly", time.Now().Add(-72*time.Hour), time.Now(), "b1"); err != nil || len(items) != 3 || items[0].Run == nil {
		t.Fatalf("backfill: %+v %v", items, err)
	}
	for j, err := range c.Jobs(ctx, client.JobFilter{Labels: map[string]string{"team": "billing"}}) {
		if must("jobs", err); j.Name != "nightly" {
			t.Fatalf("jobs: %+v", j)
		}
	}
	r, err := c.Submit(ctx, client.Submission{Job: "nightly", Payload: map[string]int{"n": 1}, Labels: map[string]string{"a": "b"}, Delay: time.Hour, Key: "k"})
	must("submit", err)
	if again, err := c.Submit(ctx, client.Submission{ID: r.ID, Job: "nightly"}); err != nil || again.ID != r.ID || string(again.Payload) != `{"n":1}` {
		t.Fatalf("submit again: %+v %v", again, err)
	}
	items, err := c.SubmitBatch(ctx, []client.Submission{{Job: "nightly", RunAt: time.Now().Add(time.Hour)}, {Job: "nothing"},
		{Spec: &job.Document{Exec: &job.Exec{Command: []string{"true"}}}}})
	must("batch", err)
	if items[0].Run == nil || job.CodeOf(items[1].Err) != job.NotFound || items[2].Run == nil {
		t.Fatalf("batch: %+v", items)
	}
	if got, err := c.Run(ctx, r.ID); err != nil || got.State != job.Scheduled {
		t.Fatalf("run: %+v %v", got, err)
	}
	n := 0
	for _, err := range c.Runs(ctx, client.RunFilter{Job: "nightly", States: []job.State{job.Scheduled, job.Running}, Labels: map[string]string{"team": "billing"}}) {
		must("runs", err)
		n++
	}
	if n != 2 {
		t.Fatalf("runs: %d", n)
	}
	_, err = c.Explain(ctx, r.ID)
	must("explain", err)
	got, err := c.Cancel(ctx, r.ID)
	if must("cancel", err); got.CancelAt == 0 {
		t.Fatalf("cancel: %+v", got)
	}
	unlock := b.lock()
	ended := *b.runs[r.ID]
	ended.State, ended.Attempt, ended.FinishedAt = job.Cancelled, 1, job.At(time.Now())
	b.runs[r.ID] = &ended
	b.output[r.ID] = []chunkOf{{1, OutputChunk{0, "", []byte("hello\n")}}}
	unlock()
	if got, err := c.Wait(ctx, r.ID); err != nil || got.State != job.Cancelled {
		t.Fatalf("wait: %+v %v", got, err)
	}
	if at, err := c.Attempts(ctx, r.ID); err != nil || len(at) != 1 {
		t.Fatalf("attempts: %+v %v", at, err)
	}
	again, err := c.Retry(ctx, r.ID)
	if must("retry", err); again.RetryOf != r.ID {
		t.Fatalf("retry: %+v", again)
	}
	out, err := c.Output(ctx, r.ID, 1)
	must("output", err)
	text, err := io.ReadAll(out)
	if out.Close(); err != nil || string(text) != "hello\n" {
		t.Fatalf("output: %q %v", text, err)
	}
	var followed strings.Builder
	for e, err := range c.Follow(ctx, r.ID, 0) {
		must("follow", err)
		followed.Write(e.Data)
		if e.Run != nil {
			followed.WriteString(e.Run.State.String())
		}
	}
	if followed.String() != "hello\ncancelled" {
		t.Fatalf("follow: %q", followed.String())
	}
	for w, err := range c.Workers(ctx, client.WorkerFilter{State: job.WorkerReady}) {
		if must("workers", err); w.Slots != 4 {
			t.Fatalf("workers: %+v", w)
		}
	}
	for _, f := range []func(context.Context, string) (*job.Worker, error){c.Cordon, c.Drain, c.Uncordon, c.Worker} {
		_, err := f(ctx, "w1")
		must("worker", err)
	}
	if a, err := c.Join(ctx, client.JoinRequest{Name: "w9"}); err != nil || string(a.GossipKey) != "key" {
		t.Fatalf("join: %+v %v", a, err)
	}
	must("maintain", c.Maintain(ctx, true))
	if s, err := c.Cluster(ctx); err != nil || !s.Maintenance || len(s.Nodes) != 1 {
		t.Fatalf("cluster: %+v %v", s, err)
	}
	snap, err := c.Snapshot(ctx)
	must("snapshot", err)
	text, _ = io.ReadAll(snap)
	if snap.Close(); string(text) != "snapshot" {
		t.Fatalf("snapshot: %q", text)
	}
	must("restore", c.Restore(ctx, strings.NewReader("snapshot")))
	if err := c.Restore(ctx, strings.NewReader("something else")); job.AsError(err).Reason != "snapshot_damaged" {
		t.Fatalf("restore: %v", err)
	}
	must("transfer", c.Transfer(ctx, ""))
	must("transfer", c.Transfer(ctx, "n2"))
	if err := c.RemoveNode(ctx, "n3", false); job.AsError(err).Reason != "quorum" {
		t.Fatalf("remove: %v", err)
	}
	must("remove", c.RemoveNode(ctx, "n3", true))
	if v, err := c.VerifyReplicas(ctx); err != nil || !v.Equal || !v.Complete || len(v.Replicas) != 1 {
		t.Fatalf("verify: %+v %v", v, err)
	}
	if g, err := c.Greeting(ctx); err != nil || g.NodeID != "1" || !g.HasState {
		t.Fatalf("greeting: %+v %v", g, err)
	}
	cred, err := c.CreateCredential(ctx, client.CredentialRequest{Name: "ci", Role: job.RoleViewer, Namespaces: []string{"a"}, ExpiresIn: time.Hour})
	must("credential", err)
	if id, _, ok := job.ParseToken(cred.Token); !ok || id != cred.ID || cred.ExpiresAt == 0 {
		t.Fatalf("credential: %+v", cred)
	}
	for cr, err := range c.Credentials(ctx) {
		if must("credentials", err); cr.ID != cred.ID || cr.Name != "ci" || cr.Role != job.RoleViewer {
			t.Fatalf("credentials: %+v", cr)
		}
	}
	must("revoke", c.RevokeCredential(ctx, cred.ID))
	must("ready", c.Ready(ctx))
	must("delete", c.DeleteJob(ctx, "nightly", 2))
}
