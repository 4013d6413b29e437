package storagetest_test

import (
	"context"
	"sync"
	"testing"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage"
	"github.com/musterhq/muster/storage/storagetest"
)

// counting is a store of which only Move and Usage work; they count their calls.
type counting struct {
	storage.Store
	mu   sync.Mutex
	done int
}

func (c *counting) Move(context.Context, job.Epoch, []job.Move) ([]job.Moved, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done++
	return []job.Moved{{Applied: true}}, nil
}

func (c *counting) Usage(context.Context) (job.Usage, error) { return job.Usage{Runs: 7}, nil }

func TestFaulty(t *testing.T) {
	t.Parallel()
	of := &counting{}
	f := storagetest.NewFaulty(of)
	move := func(wantCode job.Code, wantDone int) {
		t.Helper()
		moved, err := f.Move(context.Background(), 1, nil)
		if job.CodeOf(err) != wantCode || of.done != wantDone || (err == nil) != (len(moved) == 1) {
			t.Fatalf("moved %v, %v, done %d times; want the code %q after %d", moved, err, of.done, wantCode, wantDone)
		}
	}
	move("", 1)
	f.Next(storagetest.Move, storagetest.Timeout, storagetest.ExecuteAndTimeout, storagetest.None, storagetest.Exhausted)
	move(job.Unknown, 1)
	move(job.Unknown, 2)
	move("", 3)
	move(job.Exhausted, 3)
	move("", 4)
	f.Until(storagetest.Move, storagetest.Fenced)
	f.Next(storagetest.Move, storagetest.Unavailable)
	move(job.Unavailable, 4)
	move(job.Fenced, 4)
	move(job.Fenced, 4)
	f.Until(storagetest.Move, storagetest.None)
	move("", 5)
	f.All(storagetest.Unavailable)
	if _, err := f.Usage(context.Background()); job.CodeOf(err) != job.Unavailable {
		t.Fatal(err)
	}
	f.All(storagetest.None)
	if u, err := f.Usage(context.Background()); err != nil || u.Runs != 7 {
		t.Fatal(u, err)
	}
	if n := f.Calls(storagetest.Move); n != 10 {
		t.Fatalf("%d calls", n)
	}
}
