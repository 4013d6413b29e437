package bubble

import (
	"context"
	"slices"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

// patience is how long a drain may take: a lease, its grace, and losing the rest of a run twice.
const patience = 5 * time.Minute

// end lets the trial end when all that was done to it is undone: the schedules end, all runs end, and what the system then
// says is judged together with what was written down.
func (l *load) end() *checker.Report {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	at := time.Now().Add(15 * time.Second).Truncate(time.Second)
	until := job.At(at.Add(-time.Second))
	for _, d := range l.docs {
		if d.Schedule != nil {
			d.Schedule.EndAt = at
			l.put(ctx, d)
		}
	}
	if late := time.Since(at); late > 0 {
		l.t.Errorf("it took until %s after their end to change the schedules", late)
	}
	time.Sleep(time.Until(at) + 10*time.Second) // all ticks are decided by then; the checker says which are not
	for _, d := range l.docs {
		if v, err := l.sdk.Verify(ctx, d.Name, time.Time{}, time.Time{}); err != nil || !v.OK {
			l.t.Errorf("the system's own verification of %s: %+v, %v", d.Name, v, err)
		}
	}
	l.drained(ctx)
	l.observe(ctx)
	time.Sleep(5 * time.Second)
	l.digests(ctx)
	l.read(ctx, until)
	l.stop()
	l.recordLeads()
	h := &checker.History{}
	for _, line := range l.rec.all() {
		h.Add(line)
	}
	report := checker.Judge(h)
	for i, v := range report.Violations {
		if i == 20 {
			l.t.Errorf("and %d more", len(report.Violations)-i)
			break
		}
		l.t.Error(v)
	}
	report.Violations = nil
	l.t.Logf("%s: %+v", time.Since(l.start).Round(time.Second), *report)
	return report
}

// drained waits until all runs have ended. The checker says of those that have not.
func (l *load) drained(ctx context.Context) {
	live := client.RunFilter{States: []job.State{job.Waiting, job.Held, job.Scheduled, job.Queued, job.Running}}
	for ctx.Err() == nil {
		left := 0
		for _, err := range l.sdk.Runs(ctx, live) {
			if err == nil || ctx.Err() == nil {
				left++
			}
		}
		if left == 0 {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	l.t.Errorf("all runs did not end within %s", patience)
	for r, err := range l.sdk.Runs(context.Background(), live) {
		if err == nil {
			why, err := l.sdk.Explain(context.Background(), r.ID)
			l.t.Logf("%s %s of %q: %+v %v", r.ID, r.State, r.Job, why, err)
		}
	}
}

// observe records how every run is seen now; so it must stay.
func (l *load) observe(ctx context.Context) {
	for r, err := range l.sdk.Runs(ctx, client.RunFilter{AllNamespaces: true}) {
		if err != nil {
			l.t.Errorf("list the runs: %v", err)
			return
		}
		at := l.now()
		l.rec.op(checker.Op{Kind: checker.Read, Asked: at, Done: at, Outcome: checker.OK, ID: r.ID, Answer: r})
	}
}

// digests compares the replicas, of all nodes that run.
func (l *load) digests(ctx context.Context) {
	l.t.Helper()
	check, err := l.sdk.VerifyReplicas(ctx)
	if err != nil {
		l.t.Errorf("the replicas cannot be compared: %v", err)
		return
	}
	var names []string
	for _, r := range check.Replicas {
		if r.Digest == "" {
			l.t.Errorf("%s has no digest: %s", r.Name, r.Error)
			continue
		}
		names = append(names, r.Name)
		l.rec.add(checker.Line{Digest: &checker.Digest{Name: r.Name, Index: check.Index, Hash: r.Digest}})
	}
	for _, n := range l.nodes {
		if n.now != nil && !slices.Contains(names, n.name) {
			l.t.Errorf("the state of %s was not compared; those of %v were", n.name, names)
		}
	}
}

// read records all that the system says in the end.
func (l *load) read(ctx context.Context, until job.Instant) {
	l.t.Helper()
	for _, doc := range l.docs {
		j, err := l.sdk.Job(ctx, doc.Name)
		if err != nil {
			l.t.Fatalf("read %s: %v", doc.Name, err)
		}
		all := checker.Job{ID: j.ID, Name: j.Name, Until: until}
		if all.Versions, err = l.sdk.Versions(ctx, j.Name); err != nil {
			l.t.Fatalf("read the versions of %s: %v", doc.Name, err)
		}
		for t, err := range l.sdk.Ticks(ctx, j.Name, time.Time{}, time.Time{}) {
			if err != nil {
				l.t.Fatalf("read the ledger of %s: %v", doc.Name, err)
			}
			all.Ticks = append(all.Ticks, checker.Tick{Tick: t.Tick, RunID: t.RunID})
		}
		l.rec.add(checker.Line{Job: &all})
	}
	for r, err := range l.sdk.Runs(ctx, client.RunFilter{AllNamespaces: true}) {
		if err != nil {
			l.t.Fatalf("list the runs: %v", err)
		}
		attempts, err := l.sdk.Attempts(ctx, r.ID)
		if err != nil {
			l.t.Errorf("read the attempts of %s: %v", r.ID, err)
		}
		l.rec.add(checker.Line{Run: &checker.Run{Run: *r, Attempts: attempts}})
	}
}
