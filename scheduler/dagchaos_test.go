package scheduler_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/clustertest"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
	"github.com/musterhq/muster/storage/memory"
)

var dagSeeds = flag.Int("chaos.dagseeds", 40, "how many seeds TestDAGChaos tries")

// keptDAGSeeds once found something, and are tried each time.
var keptDAGSeeds = []uint64{}

// TestDAGChaos runs random graphs, as inline specs and as jobs, while every call of the store fails in every way, leaders are
// deposed between any two of them, and workers die; then everything heals, and all rows are what the rules T1 to T9 say. What
// failed is retried, twice. In each fourth trial nothing happens but what the work does itself, and then the attempts are
// told exactly.
func TestDAGChaos(t *testing.T) {
	for s := range uint64(*dagSeeds) {
		if !slices.Contains(keptDAGSeeds, s) {
			dagChaos(t, s)
		}
	}
	for _, s := range keptDAGSeeds {
		dagChaos(t, s)
	}
}

func dagChaos(t *testing.T, seed uint64) {
	t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
		in(t, func(t *testing.T, c *clustertest.Core) {
			r := rand.New(rand.NewPCG(seed, 4))
			g := &clustertest.Graphs{Core: c, Store: c.Store, Home: job.HomeQuorum, Seed: seed, Roots: 3 + r.IntN(4), Step: 2 * time.Second, Rounds: 2, Limit: 30 * time.Minute}
			if seed%4 != 0 {
				g.Share, g.Cut = []float64{0.01, 0.05, 0.2}[r.IntN(3)], []int{25, 60, 200}[r.IntN(3)]
			}
			if seed%2 == 1 { // a store of its own, and a queue that holds next to nothing
				c.Configure = func(x *scheduler.Config) { x.LoadLanes = true }
				c.Depose()
				c.Queue = memory.New(1 + r.IntN(4))
				c.Lead()
			}
			g.Run()
			t.Logf("%d attempts, %d lost their worker, %d of a second or later attempt; %d calls failed, %d leaders, %d retries", g.Starts, g.Lost, g.Again, g.Failures, g.Leaders, g.Retries)
		})
	})
}
