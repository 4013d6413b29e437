package redis_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	goredis "github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/musterhq/muster/internal/servers"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage"
	"github.com/musterhq/muster/storage/queuetest"
	"github.com/musterhq/muster/storage/redis"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patient is for tests that judge no time on a busy machine.
const patient = 10 * time.Second

var clusters atomic.Int64

// newCluster is the id of a cluster that nobody else has, at any -count.
func newCluster() string { return fmt.Sprintf("test-%d", clusters.Add(1)) }

// client connects to a Redis, as the cluster named, or as one of its own.
func client(t testing.TB, server *servers.Redis, cluster string, timeout time.Duration) *redis.Client {
	t.Helper()
	if cluster == "" {
		cluster = newCluster()
	}
	c, err := redis.New(redis.Config{URL: server.URL, ClusterID: func() string { return cluster }, Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

var t0 = job.At(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))

func entry(n int, lane job.LaneKey) job.QueueEntry {
	return job.QueueEntry{RunID: job.MakeRunID(t0.Time(), [10]byte{7: byte(n >> 16), 8: byte(n >> 8), 9: byte(n)}), Lane: lane, Priority: 5, ReadyAt: t0}
}

func raise(t testing.TB, q storage.Queue, e job.Epoch) {
	t.Helper()
	if stands, err := q.Raise(t.Context(), e); err != nil || stands != e {
		t.Fatalf("raise to %d: %d stands, %v", e, stands, err)
	}
}

func expect(t testing.TB, what string, err error, code job.Code, reason string) {
	t.Helper()
	if e := job.AsError(err); e == nil || e.Code != code || e.Reason != reason {
		t.Errorf("%s: %v (%s), want %s %s", what, err, job.CodeOf(err), code, reason)
	}
}

func TestQueue(t *testing.T) {
	server := servers.SharedRedis(t)
	queuetest.Run(t, queuetest.Options{Open: func(t *testing.T, maxLane int) storage.Queue {
		return client(t, server, "", patient).Queue(maxLane)
	}})
}

// Epochs are 2^32, and the cluster goes above the one that stands in Redis: one that foreign hands wrote must not use them up.
func TestEpochsOfForeignHands(t *testing.T) {
	server, cluster := servers.SharedRedis(t), newCluster()
	q := client(t, server, cluster, patient).Queue(0)
	raise(t, q, 7)
	opts, err := goredis.ParseURL(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	foreign := goredis.NewClient(opts)
	defer foreign.Close()
	key := "{muster:" + cluster + "}:queue"
	for _, epoch := range []string{"4294967295", "99999999999999999999", "10000008", "inf", "nan", "-5", "x", ""} {
		if err := foreign.HSet(t.Context(), key, "epoch", epoch).Err(); err != nil {
			t.Fatal(err)
		}
		raise(t, q, 8)
		if _, err := q.Push(t.Context(), 8, t0, []job.QueueEntry{entry(1, "default")}); err != nil {
			t.Errorf("with the epoch %q before: %v", epoch, err)
		}
	}
	if err := foreign.HSet(t.Context(), key, "epoch", "10000007").Err(); err != nil {
		t.Fatal(err)
	}
	if stands, err := q.Raise(t.Context(), 8); job.CodeOf(err) != job.Fenced || stands != 10_000_007 {
		t.Errorf("%d stands, %v", stands, err)
	}
}

// The rights that doc.go names are enough, and reach no key but the cluster's own.
func TestLeastRights(t *testing.T) {
	ctx := t.Context()
	server := servers.NewRedis(t, servers.RedisOptions{})
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(doc), "ACL SETUSER ")
	rest, _, _ = strings.Cut(rest, "\n//\n")
	rule := strings.Fields(strings.ReplaceAll(rest, "\n//", " "))
	if _, err := server.Do(ctx, append([]string{"ACL", "SETUSER"}, rule...)...); err != nil {
		t.Fatal(err)
	}
	limited := *server
	limited.URL = "redis://muster:PASSWORD@" + server.Address
	t.Run("queue", func(t *testing.T) {
		queuetest.Run(t, queuetest.Options{Open: func(t *testing.T, maxLane int) storage.Queue {
			return client(t, &limited, "", patient).Queue(maxLane)
		}})
	})
	c := client(t, &limited, "", patient)
	q := c.Queue(0)
	raise(t, q, 1)
	if _, err := q.Depths(ctx, 1, []job.LaneKey{"a"}); err != nil {
		t.Error(err)
	}
	s := status(t, c)
	if err := s.Put(ctx, []*job.Run{run(1)}); err != nil {
		t.Error(err)
	}
	if r, err := s.Get(ctx, run(1).ID); r == nil || err != nil {
		t.Error(r, err)
	}
	if err := s.Drop(ctx, []job.RunID{run(1).ID}); err != nil {
		t.Error(err)
	}
}

// L1: both leaders believe in their sequence numbers, and only the newer one is let in. Each call is one that would change
// something.
func TestANewerLeaderFences(t *testing.T) {
	ctx := t.Context()
	server := servers.SharedRedis(t)
	cluster := newCluster()
	older, newer := client(t, server, cluster, patient).Queue(0), client(t, server, cluster, patient).Queue(0)
	raise(t, older, 1)
	if _, err := older.Push(ctx, 1, t0, []job.QueueEntry{entry(1, "a")}); err != nil {
		t.Fatal(err)
	}
	raise(t, newer, 2)
	calls := map[string]func() error{
		"push":   func() error { _, err := older.Push(ctx, 1, t0, []job.QueueEntry{entry(2, "a")}); return err },
		"pop":    func() error { _, err := older.Pop(ctx, 1, t0, []job.LaneWant{{Lane: "a", Max: 9}}); return err },
		"remove": func() error { return older.Remove(ctx, 1, []job.RunID{entry(1, "a").RunID}) },
		"reset":  func() error { return older.Reset(ctx, 1) },
		"depths": func() error { _, err := older.Depths(ctx, 1, nil); return err },
	}
	for what, call := range calls {
		expect(t, what, call(), job.Fenced, "old_epoch")
	}
	stands, err := older.Raise(ctx, 1)
	expect(t, "raise", err, job.Fenced, "old_epoch")
	if stands != 2 {
		t.Errorf("%d stands, want 2", stands)
	}
	for what, call := range calls {
		if err := call(); err == nil {
			t.Errorf("%s went through after a raise that was refused", what)
		}
	}
	es, err := newer.Pop(ctx, 2, t0, []job.LaneWant{{Lane: "a", Max: 9}})
	if err != nil || len(es) != 1 || es[0] != entry(1, "a") {
		t.Fatalf("the newer leader pops %v, %v", es, err)
	}
}

// The same epoch raised again, as by a process that took it from a backup: who raised last has the queue.
func TestTheSameEpochTwice(t *testing.T) {
	server := servers.SharedRedis(t)
	cluster := newCluster()
	a, b := client(t, server, cluster, patient).Queue(0), client(t, server, cluster, patient).Queue(0)
	raise(t, a, 3)
	raise(t, b, 3)
	_, err := a.Push(t.Context(), 3, t0, []job.QueueEntry{entry(1, "a")})
	expect(t, "push", err, job.Unavailable, "queue_lost")
	if _, err := b.Push(t.Context(), 3, t0, []job.QueueEntry{entry(1, "a")}); err != nil {
		t.Error(err)
	}
}

// Q5: whatever is done to the queue behind the leader's back, no call goes on as if nothing had been, and none changes
// anything; Raise and Reset are the way on.
func TestLost(t *testing.T) {
	ctx := t.Context()
	server := servers.NewRedis(t, servers.RedisOptions{})
	do := func(t *testing.T, command ...string) {
		t.Helper()
		if _, err := server.Do(ctx, command...); err != nil {
			t.Fatal(err)
		}
	}
	restored := func(t *testing.T) {
		t.Helper()
		server.Kill() // nothing newer is saved
		if err := server.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name   string
		before func(t *testing.T, key string, q *redis.Queue) // a last good push follows
		after  func(t *testing.T, key string)
	}{
		{"flushed", nil, func(t *testing.T, _ string) { do(t, "FLUSHALL") }},
		{"the epoch's key is gone", nil, func(t *testing.T, key string) { do(t, "DEL", key) }},
		{"an old dump of this epoch", func(t *testing.T, _ string, _ *redis.Queue) { do(t, "SAVE") }, func(t *testing.T, _ string) { restored(t) }},
		{"an old dump of an older epoch", func(t *testing.T, _ string, q *redis.Queue) { do(t, "SAVE"); raise(t, q, 5) }, func(t *testing.T, _ string) { restored(t) }},
		{"an old dump, and as many writes since", func(t *testing.T, _ string, q *redis.Queue) {
			do(t, "SAVE")
			raise(t, q, 5) // the sequence begins again: the number alone would be the same
		}, func(t *testing.T, _ string) { restored(t) }},
		{"foreign hands at the epoch", nil, func(t *testing.T, key string) { do(t, "HSET", key, "epoch", "4") }},
		{"no epoch at all", nil, func(t *testing.T, key string) { do(t, "HDEL", key, "epoch") }},
		{"foreign hands at the token", nil, func(t *testing.T, key string) { do(t, "HSET", key, "token", "") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			cluster := strings.ReplaceAll(t.Name(), " ", "-")
			q := client(t, server, cluster, patient).Queue(0)
			raise(t, q, 5)
			push := func(n int) error { _, err := q.Push(ctx, 5, t0, []job.QueueEntry{entry(n, "a")}); return err }
			if err := push(1); err != nil {
				t.Fatal(err)
			}
			key := "{muster:" + cluster + "}:queue"
			if c.before != nil {
				c.before(t, key, q)
			}
			if err := push(2); err != nil {
				t.Fatal(err)
			}
			c.after(t, key)
			size := func() string { n, _ := server.Do(ctx, "HLEN", "{muster:"+cluster+"}:runs"); return n }
			before := size()
			expect(t, "push", push(3), job.Unavailable, "queue_lost")
			_, err := q.Pop(ctx, 5, t0, []job.LaneWant{{Lane: "a", Max: 1}})
			expect(t, "pop", err, job.Unavailable, "queue_lost")
			expect(t, "remove", q.Remove(ctx, 5, []job.RunID{entry(1, "a").RunID}), job.Unavailable, "queue_lost")
			expect(t, "reset", q.Reset(ctx, 5), job.Unavailable, "queue_lost")
			_, err = q.Depths(ctx, 5, nil)
			expect(t, "depths", err, job.Unavailable, "queue_lost")
			if after := size(); after != before {
				t.Errorf("%s entries became %s", before, after)
			}
			raise(t, q, 5)
			if err := q.Reset(ctx, 5); err != nil {
				t.Fatal(err)
			}
			if err := push(4); err != nil {
				t.Fatal(err)
			}
			es, err := q.Pop(ctx, 5, t0, []job.LaneWant{{Lane: "a", Max: 9}})
			if err != nil || len(es) != 1 || es[0] != entry(4, "a") {
				t.Errorf("popped %v, %v", es, err)
			}
		})
	}
}

// A call that got no answer may have been carried out; after it the queue is lost, and says so without asking.
func TestNoAnswer(t *testing.T) {
	ctx := t.Context()
	server := servers.NewRedis(t, servers.RedisOptions{})
	q := client(t, server, "", 100*time.Millisecond).Queue(0)
	raise(t, q, 1)
	server.Pause()
	began := time.Now()
	_, err := q.Push(ctx, 1, t0, []job.QueueEntry{entry(1, "a")})
	expect(t, "push", err, job.Unknown, "queue_unavailable")
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("it took %s", d)
	}
	_, err = q.Push(ctx, 1, t0, []job.QueueEntry{entry(1, "a")})
	expect(t, "push again", err, job.Unavailable, "queue_lost")
	server.Resume()
	raise(t, client(t, server, "", patient).Queue(0), 1)
	_, err = q.Pop(ctx, 1, t0, []job.LaneWant{{Lane: "a", Max: 1}})
	expect(t, "pop", err, job.Unavailable, "queue_lost")
}

// What Redis refuses to begin with has not happened, and the queue goes on when it may.
func TestAway(t *testing.T) {
	ctx := t.Context()
	server := servers.NewRedis(t, servers.RedisOptions{})
	q := client(t, server, "", patient).Queue(0)
	raise(t, q, 1)
	push := func(n int) error { _, err := q.Push(ctx, 1, t0, []job.QueueEntry{entry(n, "a")}); return err }
	if err := push(1); err != nil {
		t.Fatal(err)
	}
	for what, settings := range map[string][2]string{"full": {"maxmemory", "1"}, "too few replicas": {"min-replicas-to-write", "2"}} {
		t.Run(what, func(t *testing.T) {
			if _, err := server.Do(ctx, "CONFIG", "SET", settings[0], settings[1]); err != nil {
				t.Fatal(err)
			}
			expect(t, "push", push(2), job.Unavailable, "queue_unavailable")
			if err := q.Remove(ctx, 1, []job.RunID{entry(1, "a").RunID}); err == nil {
				t.Error("a write that needs no memory went through: what came after its first write could have failed")
			}
			if _, err := server.Do(ctx, "CONFIG", "SET", settings[0], "0"); err != nil {
				t.Fatal(err)
			}
			if err := push(2); err != nil {
				t.Fatal(err)
			}
		})
	}
	held, err := q.Holds(ctx, []job.RunID{entry(1, "a").RunID, entry(2, "a").RunID})
	if err != nil || !held[0] || !held[1] {
		t.Errorf("held: %v, %v", held, err)
	}
	server.Kill()
	expect(t, "push", push(3), job.Unavailable, "queue_unavailable")
	_, err = q.Raise(ctx, 1)
	expect(t, "raise", err, job.Unavailable, "queue_unavailable")
	_, err = q.Lanes(ctx, t0)
	expect(t, "lanes", err, job.Unavailable, "queue_unavailable")
	_, err = q.Holds(ctx, []job.RunID{entry(1, "a").RunID})
	expect(t, "holds", err, job.Unavailable, "queue_unavailable")
}

func TestTheClustersIDIsNotKnown(t *testing.T) {
	c, err := redis.New(redis.Config{URL: "redis://127.0.0.1:1", ClusterID: func() string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Queue(0).Raise(t.Context(), 1)
	expect(t, "raise", err, job.Unavailable, "queue_unavailable")
}

// Passwords are in no error: not when the URL is wrong, nor when Redis is, or answers with what it was sent.
func TestPasswordsStayIn(t *testing.T) {
	const secret = "s3cr3t-of-mine"
	check := func(t *testing.T, err error) {
		t.Helper()
		if err == nil {
			t.Fatal("no error")
		}
		for e := err; e != nil; {
			if strings.Contains(e.Error(), secret) || strings.Contains(fmt.Sprintf("%#v", e), secret) {
				t.Errorf("the password is in %v", e)
			}
			u, ok := e.(interface{ Unwrap() error })
			if !ok {
				break
			}
			e = u.Unwrap()
		}
	}
	for _, url := range []string{"redis://u:" + secret + "@host:port", "http://u:" + secret + "@host:1", "redis://u:" + secret + "@host:1/x", "redis://:" + secret + "@host:1/0?no_such_thing=1", secret + " \x00"} {
		_, err := redis.New(redis.Config{URL: url, ClusterID: func() string { return "c" }})
		check(t, err)
		if job.CodeOf(err) != job.Invalid {
			t.Errorf("%v is not invalid", err)
		}
	}
	server := servers.SharedRedis(t)
	for _, url := range []string{"redis://:" + secret + "@" + server.Address, "redis://" + secret + ":" + secret + "@" + server.Address, "redis://:" + secret + "@127.0.0.1:1"} {
		c, err := redis.New(redis.Config{URL: url, ClusterID: func() string { return "c" }})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = c.Queue(0).Raise(t.Context(), 1)
		check(t, err)
		expect(t, "raise", err, job.Unavailable, "queue_unavailable")
	}
}

// Nothing outside of the cluster's own keys is touched, and what is emptied leaves nothing but the epoch.
func TestKeys(t *testing.T) {
	ctx := context.Background()
	server := servers.NewRedis(t, servers.RedisOptions{})
	other := client(t, server, "other", patient).Queue(0)
	raise(t, other, 9)
	if _, err := other.Push(ctx, 9, t0, []job.QueueEntry{entry(1, "a")}); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Do(ctx, "SET", "theirs", "1"); err != nil {
		t.Fatal(err)
	}
	keys := func() string { n, _ := server.Do(ctx, "DBSIZE"); return n }
	before := keys()
	q := client(t, server, "{one}", patient).Queue(0)
	raise(t, q, 1)
	var es []job.QueueEntry
	for i := range 2500 { // lanes are emptied a thousand at a time
		es = append(es, entry(i, job.LaneKey(fmt.Sprintf("default|@exec=|key %d", i))))
		if i%2 == 0 {
			es[i].ReadyAt = t0.Add(time.Hour)
		}
	}
	if left, err := q.Push(ctx, 1, t0, es); err != nil || len(left) > 0 {
		t.Fatal(len(left), err)
	}
	if n, _ := server.Do(ctx, "EXISTS", "{muster:%7bone%7d}:queue", "{muster:%7bone%7d}:runs", "{muster:%7bone%7d}:lanes", "{muster:%7bone%7d}:r:default|@exec=|key 1", "{muster:%7bone%7d}:d:default|@exec=|key 2"); n != "5" {
		t.Errorf("%s of 5 keys are where they should be", n)
	}
	if err := q.Reset(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if n, _ := server.Do(ctx, "DEL", "{muster:%7bone%7d}:queue"); n != "1" || keys() != before {
		t.Errorf("%s keys stay, want %s", keys(), before)
	}
	if es, err := other.Pop(ctx, 9, t0, []job.LaneWant{{Lane: "a", Max: 9}}); err != nil || len(es) != 1 {
		t.Errorf("the other cluster pops %v, %v", es, err)
	}
}

// Lua unpacks so many values and no more: all lists are taken in slices.
func TestManyAtOnce(t *testing.T) {
	ctx := t.Context()
	const n = 9500
	q := client(t, servers.SharedRedis(t), "", patient).Queue(n - 100)
	raise(t, q, 1)
	var es []job.QueueEntry
	var ids []job.RunID
	for i := range n {
		e := entry(i, "a")
		if i%2 == 0 {
			e.ReadyAt = t0.Add(time.Duration(i) * time.Millisecond)
		}
		es, ids = append(es, e), append(ids, e.RunID)
	}
	left, err := q.Push(ctx, 1, t0, es)
	if err != nil || len(left) != 100 {
		t.Fatal(len(left), err)
	}
	if left, err = q.Push(ctx, 1, t0.Add(time.Hour), es); err != nil || len(left) != 100 {
		t.Fatal(len(left), err)
	}
	popped, err := q.Pop(ctx, 1, t0.Add(time.Hour), []job.LaneWant{{Lane: "a", Max: n}})
	if err != nil || len(popped) != n-100 {
		t.Fatal(len(popped), err)
	}
	for i := 1; i < len(popped); i++ {
		if popped[i-1].Compare(popped[i]) >= 0 {
			t.Fatalf("entry %d is before the one before it", i)
		}
	}
	if _, err := q.Push(ctx, 1, t0, es); err != nil {
		t.Fatal(err)
	}
	if err := q.Remove(ctx, 1, ids); err != nil {
		t.Fatal(err)
	}
	if d, err := q.Depths(ctx, 1, []job.LaneKey{"a", "b"}); err != nil || !cmp.Equal(d, redis.Depths{Of: []int{0, 0}}) {
		t.Fatal(d, err)
	}
	if _, err := q.Push(ctx, 1, t0, []job.QueueEntry{entry(1, "a"), entry(2, "b"), entry(3, "b")}); err != nil {
		t.Fatal(err)
	}
	if d, err := q.Depths(ctx, 1, []job.LaneKey{"b", "c"}); err != nil || !cmp.Equal(d, redis.Depths{Entries: 3, Lanes: 2, Of: []int{2, 0}}) {
		t.Fatal(d, err)
	}
}

func TestTimesBeyondWhatRedisKeeps(t *testing.T) {
	q := client(t, servers.SharedRedis(t), "", patient).Queue(0)
	raise(t, q, 1)
	e := entry(1, "a")
	e.ReadyAt = 1 << 53
	_, err := q.Push(t.Context(), 1, t0, []job.QueueEntry{e})
	expect(t, "push", err, job.Invalid, "invalid_time")
}

// An epoch that is no number is nobody's.
func TestNoEpoch(t *testing.T) {
	ctx := t.Context()
	server := servers.SharedRedis(t)
	cluster := newCluster()
	q := client(t, server, cluster, patient).Queue(0)
	raise(t, q, 1)
	if _, err := server.Do(ctx, "HSET", "{muster:"+cluster+"}:queue", "epoch", "x"); err != nil {
		t.Fatal(err)
	}
	if err := q.Reset(ctx, 1); err == nil {
		t.Error("the queue goes on")
	}
	raise(t, q, 1)
	if err := q.Reset(ctx, 1); err != nil {
		t.Error(err)
	}
}

// Where a key of another type is in a script's way, Redis stops it in the middle: nobody may think that nothing happened.
func TestKeysOfAnotherType(t *testing.T) {
	ctx := t.Context()
	server := servers.SharedRedis(t)
	cluster := newCluster()
	q := client(t, server, cluster, patient).Queue(0)
	raise(t, q, 1)
	if _, err := server.Do(ctx, "SET", "{muster:"+cluster+"}:r:a", "x"); err != nil {
		t.Fatal(err)
	}
	_, err := q.Push(ctx, 1, t0, []job.QueueEntry{entry(1, "a")})
	expect(t, "push", err, job.Unknown, "queue_unavailable")
	_, err = q.Push(ctx, 1, t0, []job.QueueEntry{entry(1, "b")})
	expect(t, "push", err, job.Unavailable, "queue_lost")
	raise(t, q, 1)
	if err := q.Reset(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Push(ctx, 1, t0, []job.QueueEntry{entry(1, "a")}); err != nil {
		t.Errorf("after a reset: %v", err)
	}
}
