package systemtest

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/app"
	"github.com/musterhq/muster/job"
)

// wrongClock is the variable that turns the test's own binary into `muster server` with a clock that can be set wrong: it
// names the file that holds by how much. So the product needs no such flag.
const wrongClock = "MUSTER_TEST_WRONG_CLOCK"

// serveWithWrongClock runs a server. args are those of the command: flag, value, flag, value.
func serveWithWrongClock(file string, args []string) int {
	flags := map[string]string{}
	for i := 1; i+1 < len(args); i += 2 {
		flags[args[i]] = args[i+1]
	}
	var offset atomic.Int64
	read := func() {
		if b, err := os.ReadFile(file); err == nil {
			if d, err := time.ParseDuration(strings.TrimSpace(string(b))); err == nil {
				offset.Store(int64(d))
			}
		}
	}
	read()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		for ctx.Err() == nil {
			wait(5 * time.Millisecond)
			read()
		}
	}()
	err := app.Run(ctx, app.Options{
		Name: flags["--name"], DataDir: flags["--data"], HTTP: flags["--http"], Raft: flags["--raft"], Gossip: flags["--gossip"],
		Join: strings.Split(flags["--join"], ","), TLS: flags["--tls"], Version: "test", Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		// Only the wall clock is wrong, as when somebody sets it: the time since the boot goes on as it did.
		Now: func() time.Time { return time.Now().Round(0).Add(time.Duration(offset.Load())) },
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// setClock makes a node's clock wrong by d.
func (c *cluster) setClock(n *process, d time.Duration) {
	c.t.Helper()
	name := c.clockFile(n.name)
	if err := os.WriteFile(name+".new", []byte(d.String()), 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		c.t.Fatal(err)
	}
}

// TestWrongClock sets one node's clock an hour ahead and back, and an hour behind and back: the leader's, then a
// follower's. The commands' notes carry the machine's own clock, so the checker sees a tick that is early.
func TestWrongClock(t *testing.T) {
	c := newCluster(t, shape{nodes: 3, workers: 2, jobs: full(50, 20), slots: slots, clocks: true})
	c.start()
	c.settle(2*time.Second, 3*time.Second)
	var moved int
	for i, by := range []time.Duration{time.Hour, -time.Hour} {
		for _, leads := range []bool{true, false} {
			if !*chaos && leads != (i == 0) {
				continue // one ahead, one behind
			}
			before := c.leader()
			n := before
			if !leads {
				n = c.followers()[0]
			}
			c.setClock(n, by)
			c.settle(time.Duration(full(10, 5))*time.Second, time.Duration(full(15, 6))*time.Second)
			if c.leader() != before {
				moved++
			}
			c.setClock(n, 0)
			c.settle(time.Duration(full(10, 3))*time.Second, time.Duration(full(15, 4))*time.Second)
		}
	}
	h, r := c.end()
	lates := lateness(h, 0, now())
	row(t, r, "leadership moved %d times; ticks late by %s", moved, spread(lates))
	if r.Decided[job.TickMissed] > 0 {
		t.Errorf("%d ticks were missed", r.Decided[job.TickMissed])
	}
}
