package gateway_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker/gateway"
	"github.com/musterhq/muster/worker/gateway/relay"
)

// relayed puts a link between every gateway and its leader, in the process that TestThroughARelay starts.
var relayed = os.Getenv("MUSTER_TEST_RELAYED") != ""

// TestThroughARelay runs all other tests of this package again, with the leader on another node: what a gateway promises
// holds over the wire as well.
func TestThroughARelay(t *testing.T) {
	if relayed {
		t.Skip("this is the process it starts")
	}
	if testing.Short() {
		t.Skip("takes as long as all others")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(exe, "-test.timeout=5m")
	c.Env = append(os.Environ(), "MUSTER_TEST_RELAYED=1")
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("through a relay: %v\n%s", err, out)
	}
}

// node is a gateway and the way to it that its leader has: none in between, or a hub on another node and a link.
type node struct {
	*gateway.Gateway
	changed chan struct{}
	elect   func() (*relay.Hub, string) // makes another node that can lead

	mu     sync.Mutex
	hub    *relay.Hub // of the node that leads, or was the last to
	leader string     // where it is; "" while nobody leads
}

// link puts hubs between the gateway and its leaders.
func (n *node) link(t testing.TB, net *network, name string) {
	t.Helper()
	nodes := 0
	n.elect = func() (*relay.Hub, string) {
		nodes++
		other := fmt.Sprintf("%s-leader-%d", name, nodes)
		own, err := gateway.New(gateway.Config{Node: other, Logger: net.logger}, nil)
		if err != nil {
			t.Fatal(err)
		}
		hub, err := relay.NewHub(relay.HubConfig{Node: other, Gateway: own, Logger: net.logger, SpreadEvery: -1})
		if err != nil {
			t.Fatal(err)
		}
		path, h := hub.Handler()
		return hub, net.serve(t, other, path, h, hub.Unlead)
	}
	n.changed = make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	client := net.client(t)
	go func() {
		done <- relay.Follow(ctx, relay.FollowConfig{Node: name, Self: name, Gateway: n.Gateway, Logger: net.logger, Client: client,
			Changed: n.changed, URL: func(a string) string { return a },
			Leader: func() (string, string, bool) {
				n.mu.Lock()
				defer n.mu.Unlock()
				return n.leader, n.leader, n.leader != ""
			}})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// linked waits for the link.
func (n *node) linked(t testing.TB) {
	for range 3000 {
		if len(n.way().Streams()) == 2 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("no link came about")
}

// way is what the leader calls.
func (n *node) way() *relay.Hub {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hub
}

// SetLeader says who leads. It is another node each time; an earlier one learns of it when it does.
func (n *node) SetLeader(l gateway.Leader) {
	if n.elect == nil {
		n.Gateway.SetLeader(l)
		return
	}
	var hub *relay.Hub
	leader := ""
	if l != nil {
		hub, leader = n.elect()
		if err := hub.Lead(l, 1); err != nil {
			panic(err)
		}
	}
	n.mu.Lock()
	old := n.hub
	if n.leader = leader; hub != nil || old == nil {
		n.hub = hub
	}
	n.mu.Unlock()
	if old != nil {
		go old.Unlead()
	}
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

func (n *node) Assign(ctx context.Context, d []job.Delivery) []bool {
	if n.elect == nil {
		return n.Gateway.Assign(ctx, d)
	}
	return n.way().Assign(ctx, d)
}

func (n *node) Stop(ctx context.Context, o []job.StopOrder) {
	if n.elect == nil {
		n.Gateway.Stop(ctx, o)
		return
	}
	n.way().Stop(ctx, o)
}

func (n *node) Acknowledge(ctx context.Context, a []job.Ack) {
	if n.elect == nil {
		n.Gateway.Acknowledge(ctx, a)
		return
	}
	n.way().Acknowledge(ctx, a)
}

func (n *node) Drain(s job.SessionID) bool {
	if n.elect == nil {
		return n.Gateway.Drain(s)
	}
	return n.way().Drain(s)
}
