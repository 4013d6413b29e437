package postgres

import (
	"fmt"
	"strings"
	"testing"

	"github.com/musterhq/muster/job"
)

func TestKnownSpecsAreBounded(t *testing.T) {
	var s specs
	for i := range 2*maxSpecs + 1 {
		n := jobName{"default", fmt.Sprint(i)}
		j := &job.Job{ID: job.JobID{byte(i)}, Version: uint64(i), Spec: &job.Document{}}
		s.put(n, j)
		if k := s.get(n); k.job != j.ID || k.version != j.Version || k.spec != j.Spec {
			t.Fatalf("known is %+v", k)
		}
		if len(s.byName) > maxSpecs {
			t.Fatalf("%d are known", len(s.byName))
		}
	}
	if k := s.get(jobName{"default", "none"}); k.spec != nil {
		t.Fatalf("known is %+v", k)
	}
}

// A document is known by its version: after a change, and after the job was made anew, the new one is answered.
func TestAKnownSpecIsTheCurrentOne(t *testing.T) {
	s, ctx := open(t), t.Context()
	put := func(id byte, text string) *job.Job {
		t.Helper()
		j, err := s.PutJob(ctx, job.PutJob{ID: job.JobID{id}, Spec: &job.Document{Name: "a", Namespace: "default", Description: text, Handler: &job.Handler{Name: "h"}}})
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	is := func(text string) {
		t.Helper()
		for range 2 {
			j, err := s.Job(ctx, "default", "a")
			if err != nil || j.Spec.Description != text {
				t.Fatalf("the job reads %+v, %v; want %.20s", j, err, text)
			}
			j.Version, j.Paused = 99, true // it is the caller's
		}
	}
	put(1, "first")
	is("first")
	put(1, "second")
	is("second")
	put(1, strings.Repeat("x", maxSpecBytes)) // not kept
	is(strings.Repeat("x", maxSpecBytes))
	put(1, "fourth")
	is("fourth")
	if _, err := s.DeleteJob(ctx, "default", "a", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Job(ctx, "default", "a"); job.CodeOf(err) != job.NotFound {
		t.Fatalf("a job that was deleted: %v", err)
	}
	put(2, "anew")
	is("anew")
}
