package scheduler_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/clustertest"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
	"github.com/musterhq/muster/storage/storagetest"
)

// raised is a store or a queue whose epoch is its own, as that of a store beside Raft is.
type raised struct {
	epoch   job.Epoch
	unknown int // so many raises are made, and their answers lost
	raises  int
}

func (r *raised) raise(epoch job.Epoch) (job.Epoch, error) {
	r.raises++
	if epoch <= r.epoch {
		return r.epoch, job.Errorf(job.Fenced, "epoch", "epoch %d stands", r.epoch)
	}
	r.epoch = epoch
	if r.unknown > 0 {
		r.unknown--
		return 0, job.Errorf(job.Unknown, "timeout", "no answer")
	}
	return epoch, nil
}

type raisedStore struct {
	scheduler.Store
	*raised
}

func (s raisedStore) Raise(_ context.Context, epoch job.Epoch) (job.Epoch, error) {
	return s.raise(epoch)
}

type raisedQueue struct {
	scheduler.Queue
	*raised
}

func (q raisedQueue) Raise(_ context.Context, epoch job.Epoch) (job.Epoch, error) {
	return q.raise(epoch)
}

// L1: the epoch of a term is above all that stood, wherever it stood.
func TestTheEpochIsAboveAllThatStood(t *testing.T) {
	for _, x := range []struct {
		name         string
		store, queue raised
		want         job.Epoch
	}{
		{"raft is ahead of both", raised{}, raised{}, 2},
		{"the store is ahead, as after raft was restored", raised{epoch: 40}, raised{}, 41},
		{"the queue is ahead", raised{}, raised{epoch: 17}, 18},
		{"the queue is ahead of the store, which is ahead of raft", raised{epoch: 40}, raised{epoch: 70}, 71},
		{"the store is ahead of the queue", raised{epoch: 70}, raised{epoch: 40}, 71},
		{"the same", raised{epoch: 2}, raised{epoch: 2}, 3},
		{"an answer is lost", raised{epoch: 5, unknown: 1}, raised{}, 7},
	} {
		t.Run(x.name, func(t *testing.T) {
			in(t, func(t *testing.T, c *clustertest.Core) {
				c.Depose()
				store, queue := x.store, x.queue
				term, err := scheduler.Begin(context.Background(), scheduler.Config{Control: c.Control, Store: raisedStore{c.Store, &store},
					Queue: raisedQueue{reset{c.Queue}, &queue}, Gateways: c.Workers, Clock: wallClock{time.Now()}, Logger: slog.New(slog.DiscardHandler)})
				must(t, err)
				if term.Epoch() != x.want || store.epoch != x.want || queue.epoch != x.want {
					t.Fatalf("epoch %d, of the store %d, of the queue %d; want %d", term.Epoch(), store.epoch, queue.epoch, x.want)
				}
				if store.raises > 3 {
					t.Errorf("the store was raised %d times", store.raises)
				}
			})
		})
	}
}

// reset is a queue that takes any epoch.
type reset struct{ scheduler.Queue }

func (reset) Reset(context.Context, job.Epoch) error { return nil }

// A term's beginning asks the store for nothing but the epoch, whatever an earlier leader left to do.
func TestABeginningIsShort(t *testing.T) {
	in(t, func(t *testing.T, c *clustertest.Core) {
		f, _ := faulty(c)
		j := c.Apply(`{name: beat, schedule: {cron: "@every 1s"}, overlap: skip, exec: {command: [work]}}`)
		c.Workers.Add(worker("w", 5), clustertest.Succeed(time.Hour))
		c.Submit(job.Submission{Spec: c.Spec(plain)}, nil)
		time.Sleep(time.Second)
		f.Until(storagetest.StoreTicks, storagetest.Unavailable)
		time.Sleep(20 * time.Second)
		c.Depose()
		before := calls(f)
		term, err := scheduler.Begin(context.Background(), scheduler.Config{Control: c.Control, Store: f, Queue: c.Queue, Gateways: c.Workers,
			Clock: wallClock{time.Now()}, Logger: slog.New(slog.DiscardHandler)})
		must(t, err)
		if by, n := since(f, before); n != 1 || by[storagetest.Raise] != 1 || term.Epoch() == 0 {
			t.Fatalf("the store was asked %v", by)
		}
		f.Until(storagetest.StoreTicks, storagetest.None)
		c.Lead()
		time.Sleep(3 * time.Second)
		noGaps(t, j.Name, c.Ticks(j), time.Second, c.Ticks(j)[0].ScheduledAt)
	})
}
