package systemtest

import (
	"flag"
	"os/exec"
	"testing"
	"time"
)

var saturate = flag.Duration("saturate", 5*time.Minute, "how long TestFalseElections keeps the machine busy")

// TestFalseElections counts how often leadership changes for no other reason than that the machine is busy: `muster bench`
// takes all of it that it can get, beside a cluster. It prints a number; what is too many is for people to say.
func TestFalseElections(t *testing.T) {
	long(t)
	c := newCluster(t, shape{nodes: 3, workers: 1, jobs: 10, slots: slots})
	c.start()
	c.settle(2*time.Second, 3*time.Second)
	before := len(c.allLeads())
	term := sum(c.metrics(c.leader()), "muster_raft_term")
	from := time.Now()
	rounds := 0
	for time.Since(from) < *saturate {
		b := exec.Command(c.binary, "bench", "batch", "single", "--quick")
		if err := c.starter.start(b); err != nil {
			t.Fatal(err)
		}
		if err := b.Wait(); err != nil {
			t.Errorf("muster bench: %v", err)
			break
		}
		rounds++
	}
	took := time.Since(from)
	terms := sum(c.metrics(c.leader()), "muster_raft_term") - term
	changes := len(c.allLeads()) - before
	_, r := c.end()
	perHour := float64(changes) / took.Hours()
	row(t, r, "%d rounds of muster bench in %s: %d changes of leadership (%.1f an hour), %d new terms", rounds,
		took.Round(time.Second), changes, perHour, terms)
}
