//go:build unix

package clustertest_test

import (
	"context"
	"flag"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/clustertest"
	"github.com/musterhq/muster/internal/servers"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
	"github.com/musterhq/muster/storage"
	"github.com/musterhq/muster/storage/postgres"
)

var seed = flag.Uint64("graphs.seed", 1, "the seed of TestGraphs")

// TestGraphs has many random graphs run at once, in real time, over each store, while its calls fail, terms are replaced and
// workers die. All rows must be what the rules T1 to T9 say. (TestDAGChaos, in package scheduler, is for what goes wrong
// between any two steps; this is for what a real store answers to all that.)
func TestGraphs(t *testing.T) {
	for name, open := range map[string]func(*testing.T, *clustertest.Core) (storage.Store, job.Home){
		"embedded": func(_ *testing.T, c *clustertest.Core) (storage.Store, job.Home) { return c.Store, job.HomeQuorum },
		"postgres": func(t *testing.T, c *clustertest.Core) (storage.Store, job.Home) {
			c.Configure = func(x *scheduler.Config) { x.LoadLanes = true }
			return openPostgres(t), job.HomePostgres
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := clustertest.New(t)
			store, home := open(t, c)
			defer func() {
				c.Log.Fail(nil)
				c.Depose()
				c.Workers.KillAll()
			}()
			g := &clustertest.Graphs{Core: c, Store: store, Home: home, Seed: *seed, Roots: 32, Share: 0.03, Cut: 150, Step: 50 * time.Millisecond, Rounds: 1, Limit: 30 * time.Second}
			g.Run()
			t.Logf("%d attempts, %d lost their worker, %d of a second or later attempt; %d calls failed, %d leaders, %d retries", g.Starts, g.Lost, g.Again, g.Failures, g.Leaders, g.Retries)
		})
	}
}

// openPostgres is a store on a database of its own.
func openPostgres(t *testing.T) *postgres.Store {
	t.Helper()
	s, err := postgres.New(postgres.Config{URL: servers.SharedPostgres(t).Database(t), ClusterID: func() string { return "cluster-under-test" }, Migrate: true})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background()) }()
	t.Cleanup(func() { // before the database goes
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		<-served
	})
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if ok, why := s.Ready(); ok {
			return s
		} else if time.Now().After(end) {
			t.Fatalf("the store is not ready: %v", why)
		}
	}
}
