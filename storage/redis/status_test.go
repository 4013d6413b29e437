package redis_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/internal/servers"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage/redis"
)

func run(n int) *job.Run {
	return &job.Run{ID: entry(n, "").RunID, Namespace: "default", Job: "report", State: job.Running, Attempt: 2, Worker: "w1", CreatedAt: t0, StartedAt: t0,
		Payload: json.RawMessage(`{"a":1}`), Labels: map[string]string{"team": "x"}, Lane: "default", Fence: job.MakeFence(3, 4)}
}

func status(t *testing.T, c *redis.Client) *redis.Status {
	t.Helper()
	s, err := c.Status()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStatus(t *testing.T) {
	ctx := t.Context()
	server := servers.SharedRedis(t)
	cluster := newCluster()
	s := status(t, client(t, server, cluster, patient))
	large := run(3)
	large.Payload = json.RawMessage(`"` + strings.Repeat("x", redis.MaxStatusRow) + `"`)
	var rows []*job.Run
	for i := range 1200 { // more than go in one round trip
		rows = append(rows, run(i+10))
	}
	if err := s.Put(ctx, append([]*job.Run{run(1), run(2), large}, rows...)); err != nil {
		t.Fatal(err)
	}
	get := func(n int) *job.Run {
		t.Helper()
		r, err := s.Get(ctx, run(n).ID)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if d := cmp.Diff(run(1), get(1)); d != "" {
		t.Errorf("a row (-want +got):\n%s", d)
	}
	if get(3) != nil {
		t.Error("a row that is too large is there")
	}
	if get(1209) == nil {
		t.Error("the last row is not there")
	}
	if err := s.Drop(ctx, []job.RunID{run(1).ID, run(77777).ID}); err != nil {
		t.Fatal(err)
	}
	if get(1) != nil || get(2) == nil {
		t.Error("the wrong row was dropped")
	}
	key := "{muster:" + cluster + "}:s:" + run(2).ID.String()
	ttl, err := server.Do(ctx, "TTL", key)
	if err != nil || ttl == "-1" || ttl == "-2" {
		t.Errorf("it lives for %s, %v", ttl, err)
	}
	for what, value := range map[string]string{"nothing": "", "another format": "\x02\xa0", "no row": "\x01xx", "a field that this version does not know": "\x01\xa1\x19\x03\xe7\x01", "another run": "\x01\xa0"} {
		if _, err := server.Do(ctx, "SET", key, value); err != nil {
			t.Fatal(err)
		}
		if r := get(2); r != nil {
			t.Errorf("%s is read as %+v", what, r)
		}
	}
	if s := status(t, client(t, server, "", patient)); true {
		if r, err := s.Get(ctx, run(15).ID); r != nil || err != nil {
			t.Errorf("another cluster reads %v, %v", r, err)
		}
	}
}

func TestStatusAway(t *testing.T) {
	ctx := t.Context()
	c, err := redis.New(redis.Config{URL: "redis://127.0.0.1:1", ClusterID: func() string { return "c" }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := status(t, c)
	_, err = s.Get(ctx, run(1).ID)
	expect(t, "get", err, job.Unavailable, "status_unavailable")
	expect(t, "put", s.Put(ctx, []*job.Run{run(1)}), job.Unavailable, "status_unavailable")
	expect(t, "drop", s.Drop(ctx, []job.RunID{run(1).ID}), job.Unavailable, "status_unavailable")
	if err := s.Put(ctx, nil); err != nil {
		t.Errorf("nothing to put: %v", err)
	}
}
