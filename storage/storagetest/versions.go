package storagetest

import (
	"context"
	"time"

	"github.com/musterhq/muster/job"
)

// Decider is implemented by a store under test that learns from Raft itself from when a version ticks, as the replicated
// one does. Decide makes a version tick there and answers from when. Any other store is told by StartVersion, which both
// take.
type Decider interface {
	Decide(ctx context.Context, j *job.Job) (job.Instant, error)
}

// start makes a version tick from a time on, as the leader does (L7), and answers it.
func (f *fixture) start(j *job.Job) job.Instant {
	f.Helper()
	from := j.UpdatedAt.Add(90 * time.Second)
	if d, ok := f.Store.(Decider); ok {
		var err error
		if from, err = d.Decide(f.ctx, j); err != nil {
			f.Fatalf("decide: %v", err)
		}
	}
	f.code("start the version", f.StartVersion(f.ctx, j.ID, j.Version, from), "")
	return from
}

func (f *fixture) from(id job.JobID, version uint64) job.Instant {
	f.Helper()
	v, err := f.Version(f.ctx, id, version)
	f.code("version", err, "")
	return v.From
}

func (f *fixture) heads() []job.JobHead {
	f.Helper()
	heads, err := f.Heads(f.ctx, "", "", 100)
	f.code("heads", err, "")
	return heads
}

var versions = []testCase{
	{"L7: a version is from its creation until it is said from when it ticks", func(f *fixture) {
		a := f.put(f.document("a"))
		f.put(f.document("b"))
		f.equal("from", f.now, f.from(a.ID, 1))
		from1 := f.start(a)
		f.equal("from, once said", from1, f.from(a.ID, 1))
		if h := f.heads(); len(h) != 2 || h[0].From != from1 || h[1].From != f.now {
			f.Fatalf("heads are %+v", h)
		}
		later := f.now.Add(time.Minute)
		d := f.document("a", func(d *job.Document) { d.Description = "second" })
		a2, err := f.PutJob(f.ctx, job.PutJob{ID: jobID(f.now), Spec: d, At: later})
		f.code("change the job", err, "")
		f.equal("from of the next version", later, f.from(a.ID, 2))
		if h := f.heads(); h[0].Version != 2 || h[0].From != later {
			f.Fatalf("heads are %+v", h)
		}
		from2 := f.start(a2)
		f.equal("from of the first version", from1, f.from(a.ID, 1))
		f.equal("from of the second version", from2, f.from(a.ID, 2))
		f.equal("from of the head", from2, f.heads()[0].From)
		vs, err := f.Versions(f.ctx, "default", "a", 10)
		if err != nil || len(vs) != 2 || vs[0].From != from2 || vs[1].From != from1 {
			f.Fatalf("versions are %+v, %v", vs, err)
		}
	}},
	{"L7: nothing else of the version changes", func(f *fixture) {
		j := f.put(f.document("a"))
		before, err := f.Version(f.ctx, j.ID, 1)
		f.code("version", err, "")
		want := *before
		want.From = f.start(j)
		got, err := f.Version(f.ctx, j.ID, 1)
		f.code("version", err, "")
		f.equal("version", &want, got)
		now, err := f.Job(f.ctx, "default", "a")
		f.code("job", err, "")
		f.equal("job", j, now)
		if again := f.put(f.document("a")); again.Version != 1 {
			f.Fatalf("an equal document made version %d", again.Version)
		}
		f.equal("from after an equal document", want.From, f.from(j.ID, 1))
		f.code("the same again", f.StartVersion(f.ctx, j.ID, 1, want.From), "")
		f.equal("from when said again", want.From, f.from(j.ID, 1))
	}},
	{"L7: a version that is gone is no error", func(f *fixture) {
		j := f.put(f.document("a"))
		f.code("a version that never was", f.StartVersion(f.ctx, j.ID, 7, f.now), "")
		f.code("a job that never was", f.StartVersion(f.ctx, jobID(f.now), 1, f.now), "")
		if _, err := f.DeleteJob(f.ctx, "default", "a", 0); err != nil {
			f.Fatal(err)
		}
		f.code("a deleted job", f.StartVersion(f.ctx, j.ID, 1, f.now), "")
		_, err := f.Version(f.ctx, j.ID, 1)
		f.code("its version", err, job.NotFound)
		if h := f.heads(); len(h) != 0 {
			f.Fatalf("heads are %+v", h)
		}
	}},
}
