package systemtest

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

// slots is how much the worker runs at once: enough for all that is slow, so that nothing waits for long.
const slots = 96

// kind is one way in which a job of the trial behaves.
type kind struct {
	name   string
	share  int // of a hundred jobs
	args   []string
	change func(*job.Document)
}

func with(overlap job.Overlap, catchUp job.CatchUpPolicy) func(*job.Document) {
	return func(d *job.Document) {
		d.Overlap, d.Schedule.CatchUp.Policy = overlap, catchUp
	}
}

// kinds is the mix. What is slow makes a kill hit something that runs; what leaves a process beside itself makes orphans.
var kinds = []kind{
	{"quick", 56, nil, with(job.OverlapAllow, job.CatchUpAll)},
	{"quick-latest", 10, nil, with(job.OverlapAllow, job.CatchUpLatest)},
	{"quick-none", 4, nil, with(job.OverlapAllow, job.CatchUpNone)},
	{"quick-skip", 6, nil, with(job.OverlapSkipTick, job.CatchUpAll)},
	{"slow-allow", 3, []string{"-for", "3s"}, with(job.OverlapAllow, job.CatchUpLatest)},
	{"slow-skip", 5, []string{"-for", "3s"}, with(job.OverlapSkipTick, job.CatchUpAll)},
	{"slow-queue", 4, []string{"-for", "4s"}, with(job.OverlapQueueTick, job.CatchUpAll)},
	{"slow-replace", 2, []string{"-for", "5s"}, with(job.OverlapReplaceRun, job.CatchUpLatest)},
	{"beside", 4, []string{"-for", "5s", "-child", "5s"}, with(job.OverlapSkipTick, job.CatchUpAll)},
	{"flaky", 2, []string{"-fail", "1"}, func(d *job.Document) {
		with(job.OverlapAllow, job.CatchUpAll)(d)
		d.Retry = job.Retry{MaxAttempts: 3, Initial: job.Duration(time.Second)}
	}},
	{"once", 2, []string{"-for", "3s"}, func(d *job.Document) {
		with(job.OverlapSkipTick, job.CatchUpAll)(d)
		d.OnWorkerLost = job.FailOnLoss
	}},
	{"timeout", 2, []string{"-for", "10s"}, func(d *job.Document) {
		with(job.OverlapSkipTick, job.CatchUpAll)(d)
		d.Timeout = job.Duration(time.Second)
	}},
}

// command runs the test's own binary as a history writer.
func command(dir string, args ...string) *job.Exec {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return &job.Exec{
		Command: append([]string{self, historyWriter, "-dir", dir}, args...),
		Env:     map[string]string{"GOMAXPROCS": "1", "GOGC": "off"}, // it is short, and there are many
	}
}

// documents makes the jobs, n in all.
func documents(dir string, n int) []*job.Document {
	var all []*job.Document
	made := 0.0
	for _, k := range kinds {
		made += float64(k.share) * float64(n) / 100
		for i := 0; len(all) < int(made+0.5); i++ {
			d := &job.Document{Name: fmt.Sprintf("%s-%02d", k.name, i), Schedule: &job.Schedule{Cron: "@every 1s"}, Exec: command(dir, k.args...)}
			k.change(d)
			all = append(all, d)
		}
	}
	return all
}

// manual is the job that clients run by name; it has no schedule.
func manual(dir string) *job.Document {
	return &job.Document{Name: "manual", Exec: command(dir, "-for", "200ms")}
}

// put brings a document into effect and records when.
func put(ctx context.Context, t *testing.T, c *client.Client, rec *recorder, d *job.Document) *job.Job {
	t.Helper()
	op := checker.Op{Kind: checker.Put, Asked: now(), Job: d.Name, Before: job.At(time.Now())}
	for {
		j, err := c.PutJob(ctx, d)
		if err != nil {
			if ctx.Err() == nil {
				t.Errorf("put %s: %v", d.Name, err)
			}
			return nil
		}
		if !j.Effective && d.Schedule != nil { // the schedule is not in Raft yet; the same document again changes nothing else
			continue
		}
		op.Done, op.After, op.Outcome, op.Version = now(), job.At(time.Now()), checker.OK, j.Version
		rec.op(op)
		return j
	}
}
