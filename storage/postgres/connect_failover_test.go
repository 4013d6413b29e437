package postgres

import (
	"context"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/musterhq/muster/job"
)

// Of several hosts the first may be one that is switched off: it answers nothing, not even that nobody listens.
func TestFirstHostIsGone(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	u, err := url.Parse(database(t))
	if err != nil {
		t.Fatal(err)
	}
	u.Host = silent.Addr().String() + "," + u.Host
	s := openAt(t, u.String())
	if _, err := s.Raise(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
}

// A node that is paused within a transaction, or switched off, holds what it has locked for some seconds only, whatever
// it was doing.
func TestPausedWithinATransaction(t *testing.T) {
	t.Parallel()
	url := database(t)
	paused, s := openAt(t, url), openAt(t, url)
	s.mustPut(t, document("a"))
	locks := map[purpose]string{
		bearing: "INSERT INTO muster.keys (namespace, key, run_id, body_hash, accepted_at) VALUES ('default', 'k', gen_random_uuid(), '', now())",
		reading: "SELECT pg_advisory_xact_lock(hashtextextended('muster.graph default', 0))",
	}
	for p, lock := range locks {
		held, over := make(chan error, 1), make(chan struct{})
		done := make(chan struct{})
		resume := sync.OnceFunc(func() { close(over) })
		defer resume()
		go func() {
			defer close(done)
			_ = paused.use(context.Background(), p, func(ctx context.Context, c *pgx.Conn) error {
				_, err := c.Exec(ctx, "BEGIN")
				if err == nil {
					_, err = c.Exec(ctx, lock)
				}
				held <- err
				<-over
				return err
			})
		}()
		if err := <-held; err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		work := map[purpose]func() error{
			bearing: func() error {
				receipts, err := s.Submit(t.Context(), []*job.Run{aRun(nowMs(), keyed("k", "body"))})
				if err == nil {
					err = receipts[0].Err
				}
				return err
			},
			reading: func() error {
				_, err := s.PutJob(t.Context(), job.PutJob{ID: job.JobID(randomID(nowMs())), Spec: document("b", "a"), At: nowMs()})
				return err
			},
		}[p]
		for err := work(); err != nil; err = work() {
			if code(t, "a call that waits for it", err, job.Unavailable); time.Since(began) > 15*time.Second {
				t.Fatalf("%s: the lock is held for ever: %v", p, err)
			}
		}
		resume()
		<-done
	}
}

// S11: a node of a cluster whose database was taken over finds that out also while it has no second's rest. Births are
// not under the leader's fence.
func TestTakenOverWhileBusy(t *testing.T) {
	t.Parallel()
	url := database(t)
	first := openAt(t, url, ofCluster("cluster-a"))
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := first.Submit(context.Background(), []*job.Run{aRun(nowMs())}); err != nil {
				ended <- err
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	defer func() { _ = first.Close() }()
	openAt(t, url, ofCluster("cluster-b"), func(c *Config) { c.AdoptStore = true })
	select {
	case err := <-ended:
		if c := job.CodeOf(err); c != job.Unavailable && c != job.Unknown {
			t.Fatal(err)
		}
		wait(t, "the store is refused", func() bool { ok, why := first.Ready(); return !ok && strings.Contains(why, "cluster-b") })
	case <-time.After(3 * askAnyway):
		t.Fatal("births of the one cluster go to the other's store")
	}
}

// S11: a database with the cluster's id that its leader does not write to (an old primary that still takes writes, a copy, one
// that was put back) is refused by its epoch, at once and under load, until somebody says that it is meant.
func TestADatabaseThatTheLeaderDoesNotWriteTo(t *testing.T) {
	t.Parallel()
	url := database(t)
	var raised atomic.Uint32
	knows := func(c *Config) { c.Raised = func() job.Epoch { return job.Epoch(raised.Load()) } }
	s := openAt(t, url, knows)
	raise(t, s, 5)
	raised.Store(5)
	openAt(t, url, knows) // which is fatal if it is refused
	raised.Store(7)       // in another database, by a leader elsewhere
	stop := make(chan struct{})
	var busy sync.WaitGroup
	busy.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = s.Load(context.Background(), []job.RunID{aRun(nowMs()).ID})
				time.Sleep(time.Millisecond)
			}
		}
	})
	defer busy.Wait()
	defer close(stop)
	wait(t, "the store is refused", func() bool { ok, why := s.Ready(); return !ok && strings.Contains(why, "epoch 5") })
	meant := openAt(t, url, knows, func(c *Config) { c.AdoptStore = true })
	if got, err := meant.Raise(t.Context(), 7); job.CodeOf(err) != job.Fenced || got != 7 {
		t.Errorf("the store that was taken over stands at %d, %v", got, err)
	}
	wait(t, "the store is used", func() bool { ok, _ := s.Ready(); return ok })
}
