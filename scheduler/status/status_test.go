package status_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler/fleet"
	"github.com/musterhq/muster/scheduler/status"
)

// cache is a status cache that keeps rows for ever.
type cache struct {
	rows map[job.RunID]*job.Run
	puts int
	away error
}

func (c *cache) Put(_ context.Context, runs []*job.Run) error {
	if c.away != nil {
		return c.away
	}
	for _, r := range runs {
		c.rows[r.ID] = r
		c.puts++
	}
	return nil
}

func (c *cache) Drop(_ context.Context, ids []job.RunID) error {
	if c.away != nil {
		return c.away
	}
	for _, id := range ids {
		delete(c.rows, id)
	}
	return nil
}

// stored answers a row for any run.
type stored struct{ loads int }

func (s *stored) Load(_ context.Context, ids []job.RunID) ([]*job.Run, error) {
	s.loads++
	out := make([]*job.Run, len(ids))
	for i, id := range ids {
		out[i] = &job.Run{ID: id, Job: "read", State: job.Queued}
	}
	return out, nil
}

func TestWhatRunsIsShown(t *testing.T) {
	now := job.At(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	wait := func(d time.Duration) { now = now.Add(d) }
	f := fleet.New(func() job.Instant { return now }, func() time.Duration { return 0 }, func(string) job.WorkerState { return job.WorkerReady })
	c, s, lost := &cache{rows: map[job.RunID]*job.Run{}}, &stored{}, 0
	k := &status.Keeper{Cache: c, Store: s, Fleet: f, Now: func() job.Instant { return now }, Lost: func(n int) { lost += n }}
	k.Init()
	step := func() { k.Step(context.Background()) }
	grant := func(n byte, row *job.Run) job.Grant {
		g := job.Grant{RunID: job.RunID{n}, Fence: job.MakeFence(1, uint32(n)), Attempt: 2, Worker: "w", GrantedAt: now}
		f.Open([]fleet.Lease{{Grant: g, Run: row}})
		return g
	}
	first := grant(1, &job.Run{ID: job.RunID{1}, Job: "known", State: job.Scheduled, Reason: job.RetryBackoff, Error: "of the attempt before", Payload: []byte("1")})
	f.Resume([]job.Grant{{RunID: job.RunID{2}, Fence: job.MakeFence(0, 9), Attempt: 1, Worker: "w", GrantedAt: now}})
	step()
	if c.puts != 0 || s.loads != 0 {
		t.Fatal("an attempt is shown that began this moment")
	}
	wait(time.Second)
	step() // reads the one of an earlier leader
	wait(time.Second)
	step()
	r := c.rows[first.RunID]
	if r == nil || r.State != job.Running || r.Reason != job.NoReason || r.Attempt != 2 || r.Worker != "w" || r.Fence != first.Fence || r.StartedAt != first.GrantedAt || r.Error != "" || string(r.Payload) != "1" {
		t.Fatalf("shown as %+v", r)
	}
	if r := c.rows[job.RunID{2}]; r == nil || r.Job != "read" || r.State != job.Running || r.Fence != job.MakeFence(0, 9) {
		t.Fatalf("what an earlier leader gave is shown as %+v", r)
	}
	for range 5 {
		wait(time.Second)
		step()
	}
	if c.puts != 2 || s.loads != 1 {
		t.Fatalf("%d puts, %d reads; want each once", c.puts, s.loads)
	}
	wait(status.Again)
	step()
	if c.puts != 4 {
		t.Fatalf("%d puts after a while; want both again", c.puts)
	}
	f.End(first.RunID, first.Fence)
	c.away = errors.New("away")
	step()
	if lost != 1 {
		t.Fatalf("%d were counted as lost", lost)
	}
	wait(status.Again)
	step()
	c.away = nil
	wait(time.Second)
	step()
	if c.puts != 5 || lost != 2 {
		t.Fatalf("%d puts, %d lost; what was put in vain is put again", c.puts, lost)
	}
	f.End(job.RunID{2}, job.MakeFence(0, 9))
	step()
	if c.rows[job.RunID{2}] != nil {
		t.Fatal("a run is shown that runs no longer")
	}
}

// Whoever waits for a run is told of its end at once, not when the leases are looked at again.
func TestWhatEndedIsDroppedAtOnce(t *testing.T) {
	now := job.At(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	f := fleet.New(func() job.Instant { return now }, func() time.Duration { return 0 }, func(string) job.WorkerState { return job.WorkerReady })
	c := &cache{rows: map[job.RunID]*job.Run{}}
	k := &status.Keeper{Cache: c, Store: &stored{}, Fleet: f, Now: func() job.Instant { return now }}
	k.Init()
	runs := []*job.Run{{ID: job.RunID{1}, State: job.Queued}, {ID: job.RunID{2}, State: job.Queued}}
	for i, r := range runs {
		f.Open([]fleet.Lease{{Grant: job.Grant{RunID: r.ID, Fence: job.MakeFence(1, uint32(i+1)), Attempt: 1, Worker: "w", GrantedAt: now}, Run: r}})
	}
	now = now.Add(status.After)
	turn := k.Keeping()
	if wait, err := turn.Turn(t.Context()); err != nil || wait != status.Every || len(c.rows) != 2 {
		t.Fatalf("the next turn is after %s, %v; %d rows are shown", wait, err, len(c.rows))
	}
	k.Ended([]*job.Run{{ID: job.RunID{7}}}) // it was never shown
	select {
	case <-turn.Signals[0]:
		t.Fatal("a run that nobody was told of wakes the part")
	default:
	}
	now = now.Add(status.Every / 4)
	f.End(job.RunID{1}, job.MakeFence(1, 1))
	k.Ended([]*job.Run{{ID: job.RunID{1}}})
	<-turn.Signals[0]
	if wait, err := turn.Turn(t.Context()); err != nil || wait != status.Every*3/4 {
		t.Fatalf("the next turn is after %s, %v", wait, err)
	}
	if c.rows[job.RunID{1}] != nil || c.rows[job.RunID{2}] == nil || c.puts != 2 {
		t.Fatalf("after %d puts %d rows are shown; want the one that still runs", c.puts, len(c.rows))
	}
}
