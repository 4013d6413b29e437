package load

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

// cron defines jobs that tick every second, all at the same moment as schedules do, and measures a window of whole
// seconds from some time after the last definition.
func cron(ctx context.Context, b *bench) error {
	for _, jobs := range b.CronJobs {
		if err := b.cronWith(ctx, jobs); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) cronWith(ctx context.Context, jobs int) error {
	r, err := b.open(ctx)
	if err != nil {
		return err
	}
	defer r.close()
	what := fmt.Sprintf("%d jobs ", jobs)
	r.say("defining %d jobs", jobs)
	begin := time.Now()
	defined, err := r.define(ctx, jobs, func(i int) *job.Document {
		return r.everySecond(r.jobName(i))
	})
	if err != nil {
		return err
	}
	b.set(what+"defined", "jobs/s", float64(jobs)/time.Since(begin).Seconds())

	w := window{jobs: defined, ticks: int(b.CronFor / time.Second)}
	w.from = job.At(time.Now().Add(3 * time.Second).Truncate(time.Second))
	r.say("%d jobs tick for %s", jobs, b.CronFor)
	sleepContext(ctx, time.Until(w.from.Time().Add(-500*time.Millisecond)))
	c := r.costs(ctx)
	err = b.profiled(ctx, fmt.Sprintf("cron%d", jobs), func() error {
		// The window ends half a second before the tick after it, so that costs are those of its own ticks.
		sleepContext(ctx, time.Until(w.until().Time().Add(-500*time.Millisecond)))
		return ctx.Err()
	}, r.node, r.worker)
	if err != nil {
		return err
	}
	r.charge(ctx, what, c, jobs*w.ticks)
	if err := w.await(ctx, r); err != nil {
		return err
	}
	return w.judge(ctx, r, what)
}

// everySecond is a job that ticks every second, however long its runs take.
func (r *rig) everySecond(name string) *job.Document {
	d := r.document(name)
	d.Overlap, d.Schedule = job.OverlapAllow, &job.Schedule{Cron: "@every 1s"}
	return d
}

// window is the ticks of jobs in some whole seconds.
type window struct {
	jobs  []job.JobID
	from  job.Instant
	ticks int // of each job
}

func (w *window) until() job.Instant { return w.from.Add(time.Duration(w.ticks) * time.Second) }

// await waits until all ticks of the window have started, or no more do, and then stops the clock: what follows asks the
// node a lot.
func (w *window) await(ctx context.Context, r *rig) error {
	want := len(w.jobs) * w.ticks
	have, read, moved := 0, 0, time.Now()
	for have < want && time.Since(moved) < patience/2 {
		fresh := r.seen.since(read)
		read += len(fresh)
		for _, s := range fresh {
			if s.scheduledAt >= w.from && s.scheduledAt < w.until() {
				have++
				moved = time.Now()
			}
		}
		if err := r.node.alive(); err != nil {
			return err
		}
		if !sleepContext(ctx, 50*time.Millisecond) {
			return ctx.Err()
		}
	}
	if r.node == nil {
		return nil
	}
	return r.api.Maintain(ctx, true)
}

// judge compares the window's ticks with the handler's record and with the ledger.
func (w *window) judge(ctx context.Context, r *rig, what string) error {
	type tick struct {
		at     job.Instant
		starts int
	}
	expected := make(map[job.RunID]*tick, len(w.jobs)*w.ticks)
	for _, id := range w.jobs {
		for i := range w.ticks {
			at := w.from.Add(time.Duration(i) * time.Second)
			expected[job.TickRunID(id, at)] = &tick{at: at}
		}
	}
	lags := make([]time.Duration, 0, len(expected))
	strangers := 0
	for _, s := range r.seen.since(0) {
		if s.scheduledAt < w.from || s.scheduledAt >= w.until() {
			continue
		}
		t := expected[s.run]
		if t == nil {
			strangers++
			continue
		}
		if t.starts++; t.starts == 1 {
			lags = append(lags, time.Duration(s.at-s.scheduledAt.Time().UnixNano()))
		}
	}
	never, twice := 0, 0
	for _, t := range expected {
		switch {
		case t.starts == 0:
			never++
		case t.starts > 1:
			twice++
		}
	}
	gaps, doubles, strays, err := w.ledger(ctx, r)
	if err != nil {
		return err
	}
	r.spread(what+"lag", lags)
	r.set(what+"ticks", "ticks", float64(len(expected)))
	r.set(what+"ticks never started", "ticks", float64(never))
	r.set(what+"ticks started twice", "ticks", float64(twice))
	r.set(what+"ledger gaps", "ticks", float64(gaps))
	r.set(what+"ledger doubles", "ticks", float64(doubles))
	if never+twice+gaps+doubles+strays+strangers > 0 {
		r.warn("%sof %d ticks %d never started, %d started twice, %d were not expected; the ledger has %d gaps, %d doubles, %d strays; decided: %s",
			what, len(expected), never, twice, strangers, gaps, doubles, strays, r.dispositions(ctx))
	}
	return nil
}

// ledger has the node verify each job's ledger, and counts again what it says is decided.
func (w *window) ledger(ctx context.Context, r *rig) (gaps, doubles, strays int, err error) {
	r.say("verifying %d ledgers", len(w.jobs))
	var next, g, d, s atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for range 8 {
		group.Go(func() error {
			for i := int(next.Add(1)) - 1; i < len(w.jobs); i = int(next.Add(1)) - 1 {
				v, err := w.verify(ctx, r, r.jobName(i))
				if err != nil {
					return err
				}
				// A mark that is behind shortens what the node looks at: what is not decided is a gap to us.
				g.Add(int64(max(len(v.Gaps), w.ticks-v.Decided)))
				d.Add(int64(len(v.Doubles)))
				s.Add(int64(len(v.Strays)))
			}
			return nil
		})
	}
	err = group.Wait()
	return int(g.Load()), int(d.Load()), int(s.Load()), err
}

// verify has the node verify one ledger, as soon as it says of all ticks of the window that they are stored: it learns that
// a little later than that they are.
func (w *window) verify(ctx context.Context, r *rig, name string) (v *client.Verification, err error) {
	for end := time.Now().Add(patience / 2); ; {
		v, err = r.api.Verify(ctx, name, w.from.Time(), w.until().Time())
		if err != nil || v.Decided >= w.ticks || time.Now().After(end) || !sleepContext(ctx, 20*time.Millisecond) {
			return v, err
		}
	}
}

// dispositions is what the node says it decided of all ticks, the window's and others.
func (r *rig) dispositions(ctx context.Context) string {
	m, err := r.metrics(ctx)
	if err != nil {
		return err.Error()
	}
	var parts []string
	for k, v := range m {
		if strings.HasPrefix(k, "muster_ticks_total") {
			parts = append(parts, fmt.Sprintf("%s %.0f", strings.TrimPrefix(k, "muster_ticks_total"), v))
		}
	}
	return strings.Join(parts, ", ")
}

// sleepContext tells whether it slept that long.
func sleepContext(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
