package api

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/job"
)

// Every route that names a run or a job, for whoever may use another namespace only: it finds nothing, changes nothing, and
// says the very same of what is elsewhere as of what is nowhere.
func TestNoRouteReachesIntoAnotherNamespace(t *testing.T) {
	b := newBench(t, func(c *Config) {
		c.Authorize = func(_ *http.Request, op Operation) error {
			if op.Namespace != "other" {
				return job.Errorf(job.Forbidden, "namespace", "not for the namespace %q", op.Namespace)
			}
			return nil
		}
	})
	authorize := b.api.Authorize
	b.api.Authorize = func(*http.Request, Operation) error { return nil }
	b.withJob(t)
	queued, running, ended := idAt(testNow, 1), idAt(testNow, 2), idAt(testNow, 3)
	for _, id := range []string{queued, running, ended} {
		want[job.Run](t, b, 201, "POST", "/v1/runs", `{"job":"nightly","id":"`+id+`","payload":"secret"}`)
	}
	for id, state := range map[string]job.State{running: job.Running, ended: job.Succeeded} {
		r := *b.runs[mustID(t, id)]
		r.State, r.Attempt, r.Worker, r.FinishedAt = state, 1, "w1", job.At(testNow)
		b.runs[r.ID] = &r
		b.output[r.ID] = []chunkOf{{1, OutputChunk{0, "output", []byte("secret")}}}
		b.attempts[r.ID] = []job.Attempt{{RunID: r.ID, Attempt: 1, Error: "secret"}}
	}
	b.grants[mustID(t, running)] = job.Grant{RunID: mustID(t, running), Worker: "w1", Fence: 7, Attempt: 1}
	b.api.Authorize = authorize
	written := b.writes

	bodies := map[string]string{
		"put-job": nightly, "backfill-job": `{"since":"2026-03-01T00:00:00Z","until":"2026-03-05T00:00:00Z"}`,
	}
	routes := 0
	for _, op := range Operations() {
		var elsewhere []string
		nowhere := ""
		switch {
		case !op.Namespaced:
			continue
		case strings.Contains(op.Path, "{id}"):
			elsewhere, nowhere = []string{queued, running, ended}, idAt(testNow, 9)
		case strings.Contains(op.Path, "{name}"):
			elsewhere, nowhere = []string{"nightly"}, "neverly"
		default:
			continue
		}
		routes++
		if op.ID == "put-job" { // which would make a job of that name in the caller's own namespace, and may
			continue
		}
		ask := func(name, query string) (int, string) {
			path := strings.NewReplacer("{id}", name, "{name}", name).Replace(op.Path) + query
			w := b.call(op.Method, path, bodies[op.ID], "X-Request-Id", "same")
			return w.Code, strings.ReplaceAll(w.Body.String(), name, "NAME")
		}
		status, said := ask(nowhere, "?namespace=other")
		if status != 404 {
			t.Errorf("%s of what is nowhere: %d %s", op.ID, status, said)
		}
		for _, name := range elsewhere {
			if s, text := ask(name, "?namespace=other"); s != status || text != said {
				t.Errorf("%s tells what is elsewhere from what is nowhere: %d %s, and %d %s", op.ID, s, text, status, said)
			}
			for _, query := range []string{"", "?namespace=default", "?namespace=*", "?namespace=other&namespace=default"} {
				if s, text := ask(name, query); s < 400 || strings.Contains(text, "secret") {
					t.Errorf("%s%s: %d %s", op.ID, query, s, text)
				}
			}
		}
	}
	if routes < 14 {
		t.Errorf("%d routes name a run or a job", routes)
	}
	for _, list := range []string{"/v1/runs?namespace=other", "/v1/runs?namespace=other&state=running,queued,succeeded", "/v1/runs?namespace=other&worker=w1",
		"/v1/runs?namespace=other&root_id=" + ended, "/v1/jobs?namespace=other"} {
		if p := want[page[struct{ ID string }]](t, b, 200, "GET", list, ""); len(p.Items) != 0 {
			t.Errorf("%s: %+v", list, p.Items)
		}
	}
	refused(t, b, 403, job.Forbidden, "", "GET", "/v1/runs?namespace=*", "")
	refused(t, b, 404, job.NotFound, "job", "POST", "/v1/runs?namespace=other", `{"job":"nightly"}`)
	refused(t, b, 400, job.Invalid, "namespace", "POST", "/v1/jobs?namespace=other", strings.Replace(nightly, `{`, `{"namespace":"default",`, 1))
	if b.writes != written || len(b.cancelled) != 0 {
		t.Errorf("%d writes, cancelled %v", b.writes-written, b.cancelled)
	}
}

func mustID(t *testing.T, s string) job.RunID {
	t.Helper()
	id, err := job.ParseRunID(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// The id of a retry derives from the run. Whoever foresees it and takes it in a namespace of his own gets nothing, and shows
// nothing to who retries.
func TestARetryAnswersNoRunOfAnotherNamespace(t *testing.T) {
	b := newBench(t)
	b.withJob(t)
	id := mustID(t, idAt(testNow, 1))
	want[job.Run](t, b, 201, "POST", "/v1/runs", `{"job":"nightly","id":"`+id.String()+`"}`)
	r := *b.runs[id]
	r.State, r.FinishedAt = job.Failed, job.At(testNow)
	b.runs[id] = &r
	taken := job.RetryRunID(id, r.FinishedAt)
	b.runs[taken] = &job.Run{ID: taken, Namespace: "other", State: job.Queued, Payload: []byte(`"theirs"`)}
	if p := refused(t, b, 409, job.Conflict, "id", "POST", "/v1/runs/"+id.String()+"/retry", ""); p.Reason != "id_taken" {
		t.Errorf("%+v", p)
	}
}

// A follower that waits, between attempts, is asked for its credential too.
func TestAWaitingStreamDoesNotOutliveItsCredential(t *testing.T) {
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
		b.withJob(t)
		id := b.submitN(t, 1)[0]
		change := func(f func(r *job.Run)) {
			defer b.lock()()
			r := *b.runs[id]
			f(&r)
			b.runs[id] = &r
		}
		change(func(r *job.Run) { r.State, r.Attempt, r.Reason = job.Scheduled, 1, job.RetryBackoff })
		defer time.Sleep(2 * time.Hour) // until the following has ended
		go func() {
			time.Sleep(time.Minute)
			revoked.Store(true)
			time.Sleep(time.Hour)
			change(func(r *job.Run) { r.State, r.Attempt = job.Succeeded, 2 })
		}()
		w := b.call("GET", "/v1/runs/"+id.String()+"/logs?follow=true", "")
		if !strings.Contains(w.Body.String(), `"reason":"revoked"`) || strings.Contains(w.Body.String(), "event: end") {
			t.Fatalf("%s", w.Body)
		}
	})
}

// A script whose list of namespaces came out empty must not get a credential for all of them.
func TestAnEmptyListOfNamespacesIsNotAll(t *testing.T) {
	b := newBench(t)
	refused(t, b, 400, job.Invalid, "namespaces", "POST", "/v1/credentials", `{"name":"ci","role":"viewer","namespaces":[]}`)
	want[NewCredential](t, b, 201, "POST", "/v1/credentials", `{"name":"ci","role":"viewer"}`)
}
