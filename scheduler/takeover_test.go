package scheduler_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/internal/clustertest"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
)

type wallClock struct{ began time.Time }

func (wallClock) Now() time.Time           { return time.Now() }
func (c wallClock) Elapsed() time.Duration { return time.Since(c.began) }

// BenchmarkTakeover is what a node does from winning an election, its log applied, to deciding ticks: with 100,000
// different schedules at rest.
func BenchmarkTakeover(b *testing.B) {
	const schedules = 100_000
	c := clustertest.New(b)
	var commands []fsm.Command
	for i := range schedules {
		id := job.JobID(c.NewID())
		commands = append(commands, &fsm.PutSchedule{JobID: id, Namespace: "default", Job: fmt.Sprint("job-", i), Version: 1,
			Schedule: fmt.Appendf(nil, `{"cron":"%d %d %d %d *","time_zone":"UTC"}`, i%60, i/60%24, 1+i%28, 1+i/1000%12)})
		if len(commands) == 500 {
			if _, err := c.Log.Propose(context.Background(), commands...); err != nil {
				b.Fatal(err)
			}
			commands = commands[:0]
		}
	}
	for b.Loop() {
		term, err := scheduler.Begin(context.Background(), scheduler.Config{Control: c.Control, Store: c.Store, Queue: c.Queue,
			Gateways: c.Workers, Clock: wallClock{time.Now()}, Jitter: func() float64 { return 0 },
			Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
		if err != nil || term.Epoch() == 0 {
			b.Fatal(err)
		}
	}
}
