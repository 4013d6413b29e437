package load

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

// idle measures a node with its worker, as `muster dev` starts them, that nobody asks anything.
func idle(ctx context.Context, b *bench) error {
	if err := b.fresh(ctx); err != nil {
		return err
	}
	p, _, err := b.startNode(ctx, "--http", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer p.stop()
	if !sleepContext(ctx, b.IdleSettle) {
		return ctx.Err()
	}
	b.say("looking on for %s", b.IdleFor)
	before, counted, begin := processUsage(p.cmd.Process.Pid), b.stores.count(ctx), time.Now()
	postgres, redis := b.stores.usage()
	err = b.profiled(ctx, "idle", func() error {
		if !sleepContext(ctx, b.IdleFor) {
			return ctx.Err()
		}
		return p.alive()
	}, p)
	if err != nil {
		return err
	}
	after := processUsage(p.cmd.Process.Pid)
	seconds := time.Since(begin).Seconds()
	b.set("CPU", "% of a core", 100*(after.cpu-before.cpu)/seconds)
	postgresNow, redisNow := b.stores.usage()
	b.set("Postgres CPU", "% of a core", 100*(postgresNow.cpu-postgres.cpu)/seconds)
	b.set("Redis CPU", "% of a core", 100*(redisNow.cpu-redis.cpu)/seconds)
	b.grown("", "", "1/s", counted, b.stores.count(ctx), seconds)
	b.set("RSS", "MB", after.rss/1e6)
	heap, err := p.liveHeap(ctx)
	if err != nil {
		return err
	}
	b.set("live heap", "MB", heap/1e6)
	return nil
}

// schedules defines many jobs that do not tick and one that does, and kills the node.
func schedules(ctx context.Context, b *bench) error {
	r, err := b.open(ctx)
	if err != nil {
		return err
	}
	defer r.close()
	// The one that ticks comes first: there may be no room for it later.
	ticker := r.workerName() + "-ticker"
	if _, err := r.define(ctx, 1, func(int) *job.Document { return r.everySecond(ticker) }); err != nil {
		return err
	}
	r.say("defining %d jobs", b.IdleJobs)
	begin, c := time.Now(), r.costs(ctx)
	err = b.profiled(ctx, "schedules", func() error {
		_, err = r.define(ctx, b.IdleJobs, func(i int) *job.Document {
			d := r.document(r.jobName(i))
			d.Schedule = &job.Schedule{Cron: yearly(i)}
			return d
		})
		if job.CodeOf(err) == job.Exhausted { // a node's limit, which is worth knowing; the rest can still be measured
			b.warn("only %d of %d jobs fit: %v", len(r.jobs), b.IdleJobs, err)
			err = nil
		}
		return err
	}, r.node)
	if err != nil {
		return err
	}
	count := float64(len(r.jobs) - 1)
	b.set("jobs", "jobs", count)
	b.set("defined", "jobs/s", count/time.Since(begin).Seconds())
	b.set("node CPU per definition", "us", (r.nodeUsage(ctx).cpu-c.node.cpu)/count*1e6)
	if err := r.until(ctx, time.Minute, "the first tick", func() bool { return r.seen.count() > 0 }); err != nil {
		return err
	}
	if err := r.memory(ctx, ""); err != nil {
		return err
	}
	before, counted := processUsage(r.node.cmd.Process.Pid), r.stores.count(ctx)
	at := time.Now()
	if !sleepContext(ctx, b.IdleFor) {
		return ctx.Err()
	}
	b.set("CPU at rest", "% of a core", 100*(processUsage(r.node.cmd.Process.Pid).cpu-before.cpu)/time.Since(at).Seconds())
	b.grown("", " at rest", "1/s", counted, r.stores.count(ctx), time.Since(at).Seconds())
	if err := r.restart(ctx, ticker); err != nil {
		return err
	}
	return r.memory(ctx, "restarted ")
}

// yearly is a cron expression that is due once a year, another minute for each i.
func yearly(i int) string {
	return fmt.Sprintf("%d %d %d %d *", i%60, i/60%24, i/60/24%28+1, i/60/24/28%12+1)
}

func (r *rig) memory(ctx context.Context, what string) error {
	u := r.nodeUsage(ctx)
	r.set(what+"node RSS", "MB", u.rss/1e6)
	heap, err := r.node.liveHeap(ctx)
	if err != nil {
		return err
	}
	r.set(what+"node live heap", "MB", heap/1e6)
	return nil
}

// restart kills the node and measures a new one on its data, from the start of its process: until it serves (the state is
// read), until it leads and its term takes work, until it decided a tick, and until the handler began.
func (r *rig) restart(ctx context.Context, ticker string) error {
	address := r.urls[0]
	host := address[len("http://"):]
	r.say("killing the node")
	r.node.kill()
	begin := time.Now()
	from := r.seen.count()
	times := make(chan map[string]time.Duration, 1)
	watch, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	go func() {
		r.profileStart(watch)
		times <- watchStart(watch, host, begin)
	}()
	node, _, err := r.startNode(ctx, "--http", host, "--no-worker")
	if err != nil {
		return err
	}
	r.node = node
	t := <-times
	if err := r.saveProfiles(ctx, "restart", node); err != nil {
		return err
	}
	r.set("restart: until it serves", "ms", millis(t["serves"]))
	r.set("restart: until it leads", "ms", millis(t["leads"]))
	r.set("restart: from serving to leading", "ms", millis(t["leads"]-t["serves"]))
	decided, err := r.firstTick(watch, ticker, job.At(begin))
	if err != nil {
		return err
	}
	r.set("restart: until the first tick is decided", "ms", millis(decided.Sub(job.At(begin))))
	if err := r.until(watch, time.Minute, "the handler to be called again", func() bool { return r.seen.count() > from }); err != nil {
		return err
	}
	first := r.seen.since(from)[0]
	r.set("restart: until the handler is called", "ms", millis(time.Duration(first.at-begin.UnixNano())))
	return nil
}

// watchStart asks a node that is just starting until it is ready.
func watchStart(ctx context.Context, host string, begin time.Time) map[string]time.Duration {
	t := map[string]time.Duration{}
	c := &http.Client{Timeout: 2 * time.Second}
	defer c.CloseIdleConnections()
	for ctx.Err() == nil {
		if t["serves"] == 0 {
			if conn, err := net.DialTimeout("tcp", host, time.Second); err == nil {
				conn.Close()
				t["serves"] = time.Since(begin)
			}
		}
		if t["serves"] != 0 {
			if resp, err := c.Get("http://" + host + "/readyz"); err == nil {
				resp.Body.Close()
				if resp.StatusCode < 300 {
					t["leads"] = time.Since(begin)
					return t
				}
			}
		}
		sleepContext(ctx, time.Millisecond)
	}
	return t
}

// firstTick is when the first tick after a moment was decided.
func (r *rig) firstTick(ctx context.Context, name string, after job.Instant) (job.Instant, error) {
	var found client.Tick
	err := r.until(ctx, time.Minute, "the first tick after the restart", func() bool {
		found = client.Tick{}
		for t, err := range r.api.Ticks(ctx, name, after.Time().Add(-time.Minute), time.Time{}) {
			if err != nil || t.DecidedAt < after {
				break
			}
			found = t // newest first: the last that fits is the earliest
		}
		return found.DecidedAt != 0
	})
	return found.DecidedAt, err
}
