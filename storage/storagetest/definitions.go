package storagetest

import (
	"encoding/json"
	"time"

	"github.com/musterhq/muster/job"
)

var definitions = []testCase{
	{"a job reads back as it was put", func(f *fixture) {
		priority := 9
		d := f.document("full", func(d *job.Document) {
			d.Description, d.Labels = "ünïcode", map[string]string{"a": "1", "b": "2"}
			d.Schedule = &job.Schedule{Cron: "0 3 * * *", TimeZone: "Europe/Berlin", CatchUp: job.CatchUp{Policy: job.CatchUpAll, Max: 7}, StartAt: f.now.Time()}
			d.Overlap, d.Priority, d.Deadline = job.OverlapQueueTick, &priority, job.Duration(time.Hour)
			d.Concurrency = &job.Concurrency{Key: "k", Limit: 3}
			d.Retry = job.Retry{MaxAttempts: 3, Backoff: job.ConstantBackoff, Initial: job.Duration(time.Second)}
			d.Selector = map[string]string{"region": "eu"}
			d.Payload = json.RawMessage(`{"n":[1,2.5,"x"]}`)
		})
		put := f.put(d)
		got, err := f.Job(f.ctx, "default", "full")
		f.code("read the job", err, "")
		f.equal("document", d, got.Spec)
		f.equal("document of the answer", d, put.Spec)
		if got.Version != 1 || got.ID != put.ID || got.Namespace != "default" || got.Name != "full" || got.CreatedAt != f.now || got.UpdatedAt != f.now {
			f.Fatalf("job is %+v", got)
		}
	}},
	{"an equal document changes nothing, a different one is the next version", func(f *fixture) {
		first := f.put(f.document("a"))
		again := f.put(f.document("a"))
		if again.Version != 1 || again.ID != first.ID {
			f.Fatalf("an equal document made version %d of %s", again.Version, again.ID)
		}
		later := f.now.Add(time.Minute)
		next, err := f.PutJob(f.ctx, job.PutJob{ID: jobID(f.now), Spec: f.document("a", func(d *job.Document) { d.Description = "new" }), At: later})
		f.code("change the job", err, "")
		if next.Version != 2 || next.ID != first.ID || next.CreatedAt != f.now || next.UpdatedAt != later || next.Spec.Description != "new" {
			f.Fatalf("changed job is %+v", next)
		}
	}},
	{"a version guard holds, and putting twice with it is putting once", func(f *fixture) {
		f.put(f.document("a"))
		change := func(text string, ifVersion uint64) (*job.Job, error) {
			return f.PutJob(f.ctx, job.PutJob{ID: jobID(f.now), Spec: f.document("a", func(d *job.Document) { d.Description = text }), IfVersion: ifVersion, At: f.now})
		}
		for range 2 {
			j, err := change("second", 1)
			f.code("put over version 1", err, "")
			if j.Version != 2 {
				f.Fatalf("version %d, want 2", j.Version)
			}
		}
		_, err := change("third", 1)
		f.code("put over a version that is not current", err, job.Conflict)
		_, err = f.PutJob(f.ctx, job.PutJob{ID: jobID(f.now), Spec: f.document("none"), IfVersion: 1, At: f.now})
		f.code("put over a version of no job", err, job.Conflict)
		j, _ := f.Job(f.ctx, "default", "a")
		if j == nil || j.Version != 2 || j.Spec.Description != "second" {
			f.Fatalf("job is %+v", j)
		}
	}},
	{"new only creates and never changes, and creating twice is creating once", func(f *fixture) {
		p := job.PutJob{ID: jobID(f.now), Spec: f.document("a"), NewOnly: true, At: f.now}
		for range 2 {
			j, err := f.PutJob(f.ctx, p)
			f.code("create", err, "")
			if j.ID != p.ID || j.Version != 1 {
				f.Fatalf("created %+v", j)
			}
		}
		p.ID, p.Spec = jobID(f.now), f.document("a", func(d *job.Document) { d.Description = "other" })
		_, err := f.PutJob(f.ctx, p)
		f.code("create what exists", err, job.Conflict)
	}},
	{"deleting removes the job and its versions; its name is free for another id", func(f *fixture) {
		first := f.put(f.document("a"))
		_, err := f.DeleteJob(f.ctx, "default", "a", 7)
		f.code("delete another version", err, job.Conflict)
		gone, err := f.DeleteJob(f.ctx, "default", "a", 1)
		f.code("delete", err, "")
		if gone.ID != first.ID {
			f.Fatalf("deleted %s, want %s", gone.ID, first.ID)
		}
		_, err = f.Job(f.ctx, "default", "a")
		f.code("read the deleted job", err, job.NotFound)
		_, err = f.DeleteJob(f.ctx, "default", "a", 0)
		f.code("delete again", err, job.NotFound)
		_, err = f.Version(f.ctx, first.ID, 1)
		f.code("version of the deleted job", err, job.NotFound)
		_, err = f.Versions(f.ctx, "default", "a", 10)
		f.code("versions of the deleted job", err, job.NotFound)
		if second := f.put(f.document("a")); second.ID == first.ID || second.Version != 1 {
			f.Fatalf("created again: %+v", second)
		}
	}},
	{"a version stays while a live run needs it, and its runs stay after it", func(f *fixture) {
		j := f.put(f.document("a"))
		r := f.submit(f.run(f.now, ofJob(j)))[0]
		if _, err := f.DeleteJob(f.ctx, "default", "a", 0); err != nil {
			f.Fatal(err)
		}
		v, err := f.Version(f.ctx, j.ID, 1)
		f.code("version that a live run needs", err, "")
		f.equal("document", f.document("a"), v.Spec)
		f.equal("live runs of the deleted job", []job.RunID{r.ID}, f.liveOf(j.ID))
		f.move(success(r.ID, 1<<32|1, f.now))
		if got := f.read(r.ID); got.State != job.Succeeded || got.Job != "a" {
			f.Fatalf("run of the deleted job is %+v", got)
		}
	}},
	{"versions answers newest first, and one by its number", func(f *fixture) {
		var id job.JobID
		for i := range 5 {
			id = f.put(f.document("a", func(d *job.Document) { d.Description = name(i) })).ID
		}
		vs, err := f.Versions(f.ctx, "default", "a", 3)
		f.code("versions", err, "")
		if len(vs) != 3 || vs[0].Version != 5 || vs[2].Version != 3 || vs[0].Spec.Description != name(4) {
			f.Fatalf("versions are %+v", vs)
		}
		v, err := f.Version(f.ctx, id, 2)
		f.code("version 2", err, "")
		if v.Spec.Description != name(1) || v.JobID != id || v.Version != 2 || v.CreatedAt != f.now {
			f.Fatalf("version 2 is %+v", v)
		}
		_, err = f.Version(f.ctx, id, 6)
		f.code("a version that is not there", err, job.NotFound)
		_, err = f.Version(f.ctx, jobID(f.now), 1)
		f.code("a version of no job", err, job.NotFound)
	}},
	{"jobs pages by name within the namespace, and filters by labels", func(f *fixture) {
		for i := range 7 {
			f.put(f.document(name(i), func(d *job.Document) { d.Labels = map[string]string{"odd": []string{"no", "yes"}[i%2], "all": "x"} }))
		}
		f.put(f.document("elsewhere", func(d *job.Document) { d.Namespace = "other" }))
		f.put(f.document(name(1)+".b", func(d *job.Document) { d.Labels = nil }))
		list := func(q job.JobQuery) (names []string) {
			q.Namespace = "default"
			page, err := f.Jobs(f.ctx, q)
			f.code("list jobs", err, "")
			for _, j := range page.Jobs {
				if j.Spec == nil {
					f.Fatalf("job %s has no document", j.Name)
				}
				names = append(names, j.Name)
			}
			return names
		}
		f.equal("first page", []string{name(0), name(1), name(1) + ".b"}, list(job.JobQuery{Limit: 3}))
		f.equal("next page", []string{name(2), name(3), name(4)}, list(job.JobQuery{After: name(1) + ".b", Limit: 3}))
		f.equal("last page", []string{name(5), name(6)}, list(job.JobQuery{After: name(4), Limit: 3}))
		f.equal("past the end", []string(nil), list(job.JobQuery{After: "zzz"}))
		f.equal("by label", []string{name(1), name(3), name(5)}, list(job.JobQuery{Labels: map[string]string{"odd": "yes", "all": "x"}}))
	}},
	{"names in different namespaces are different jobs", func(f *fixture) {
		a := f.put(f.document("a"))
		b := f.put(f.document("a", func(d *job.Document) { d.Namespace = "other" }))
		if a.ID == b.ID {
			f.Fatal("both namespaces have the same job")
		}
		if _, err := f.DeleteJob(f.ctx, "other", "a", 0); err != nil {
			f.Fatal(err)
		}
		if _, err := f.Job(f.ctx, "default", "a"); err != nil {
			f.Fatal(err)
		}
	}},
}
