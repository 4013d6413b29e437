package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/job"
)

// A process that is killed between the two writes of its first start leaves a term without a log.
func TestInterruptedBootstrapIsFinished(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, raftDir), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := openStores(filepath.Join(dir, raftDir), 1, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	guard := &stableGuard{StableStore: s.stable, mark: s.mark, log: slog.New(slog.DiscardHandler)}
	if err := guard.SetUint64([]byte(keyTerm), 1); err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, raftDir, idName), []byte("6f1c2c1e-1b7a-4b58-9c79-0f4c6ad8d3a1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // and the second start finds nothing unusual
		n, err := tryOpen(t, Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		awaitLeading(t, n)
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestChart: what a node without state does after one round of greetings.
func TestChart(t *testing.T) {
	g := func(name string, change ...func(*Greeting)) *Greeting {
		v := Greeting{NodeID: "id-" + name, Name: name, Raft: name + ":1"}
		for _, c := range change {
			c(&v)
		}
		return &v
	}
	knows := func(names ...string) func(*Greeting) {
		return func(v *Greeting) {
			for _, n := range names {
				v.Knows = append(v.Knows, "id-"+n)
			}
		}
	}
	leads := func(of string, members ...string) func(*Greeting) {
		return func(v *Greeting) {
			v.HasState = true
			if of != "" {
				v.LeaderID, v.LeaderRaft = "id-"+of, of+":1"
			}
			for _, m := range members {
				v.Members = append(v.Members, "id-"+m)
			}
		}
	}
	cluster := func(id string) func(*Greeting) { return func(v *Greeting) { v.ClusterID = id } }
	abc := []string{"A", "B", "C"}
	all := knows("a", "b", "c")
	for name, test := range map[string]struct {
		self      *Greeting
		addresses []string
		answers   []*Greeting
		bootstrap int
		leader    string
		adopted   bool
		wrong     bool
		why       string
	}{
		"alone":                   {g("a"), []string{"A"}, []*Greeting{g("a")}, 1, "", false, false, ""},
		"all agree":               {g("a"), abc, []*Greeting{g("a"), g("b", all), g("c", all)}, 3, "", false, false, ""},
		"one is silent":           {g("a"), abc, []*Greeting{g("a"), g("b", all), nil}, 0, "", false, false, "no answer yet from C"},
		"nor does it hear itself": {g("a"), abc, []*Greeting{nil, g("b", all), g("c", all)}, 0, "", false, false, "no answer yet from A"},
		"one has not heard all":   {g("a"), abc, []*Greeting{g("a"), g("b", all), g("c")}, 0, "", false, false, "c has not heard from all on its list yet"},
		"not on its own list":     {g("a"), []string{"B"}, []*Greeting{g("b", knows("a", "b"))}, 2, "", false, false, ""},
		"a list lacks one":        {g("a"), abc, []*Greeting{g("a"), g("b", all), g("c", knows("a", "c"))}, 0, "", false, true, "that of c lacks b"},
		"a list has one more":     {g("a"), abc, []*Greeting{g("a"), g("b", all), g("c", knows("a", "b", "c", "d"))}, 0, "", false, true, "that of c has besides the node with the id id-d"},
		"a wiped node is another": {g("a"), abc, []*Greeting{g("a"), g("b2", knows("a", "b2", "c")), g("c", all)}, 0, "", false, true, "that of c lacks b2 and has besides the node with the id id-b"},
		"a leader is known":       {g("a"), abc, []*Greeting{g("a"), g("b", leads("c", "b", "c")), nil}, 0, "c:1", false, false, ""},
		"its own word goes first": {g("a"), abc, []*Greeting{g("a"), g("b", leads("x", "b", "c")), g("c", leads("c", "b", "c"))}, 0, "c:1", false, false, ""},
		"state but no leader":     {g("a"), abc, []*Greeting{g("a"), g("b", leads("", "b", "c")), g("c", all)}, 0, "", false, false, "knows no leader"},
		"it is a member already":  {g("a"), abc, []*Greeting{g("a"), g("b", leads("", "a", "b", "c")), nil}, 0, "", true, false, ""},
		"two addresses of one":    {g("a"), abc, []*Greeting{g("a"), g("b", all), g("b", all)}, 0, "", false, true, "B and C are the same node, b"},
		"two stores": {g("a", func(v *Greeting) { v.Store = "postgres" }), abc, []*Greeting{g("a", func(v *Greeting) { v.Store = "postgres" }), g("b", all, func(v *Greeting) { v.Store = "postgres" }), g("c", all, func(v *Greeting) { v.Store = "embedded" })}, 0, "", false, true,
			"c was started with the store embedded, and this node with postgres"},
		"two names":                    {g("a"), abc, []*Greeting{g("a"), g("b", all), g("c", all, func(v *Greeting) { v.Name = "b" })}, 0, "", false, true, "two nodes are named b: B and C"},
		"two that are reached at once": {g("a"), abc, []*Greeting{g("a"), g("b", all), g("c", all, func(v *Greeting) { v.Raft = "b:1" })}, 0, "", false, true, "b and c advertise the same address"},
		"another cluster's":            {g("a", cluster("x")), abc, []*Greeting{g("a"), g("b", all, cluster("y")), g("c", all)}, 0, "", false, true, "b at B belongs to another cluster, y"},
		"another cluster's, running":   {g("a", cluster("x")), abc, []*Greeting{g("a"), g("b", leads("b"), cluster("y")), g("c", all)}, 0, "", false, true, "belongs to another cluster"},
	} {
		c := chart(*test.self, test.addresses, test.answers)
		if len(c.bootstrap) != test.bootstrap || c.leader != test.leader || c.adopted != test.adopted || c.wrong != test.wrong || !strings.Contains(c.why, test.why) {
			t.Errorf("%s: %+v", name, c)
		}
		if !slices.IsSortedFunc(c.bootstrap, func(a, b Peer) int { return strings.Compare(a.ID, b.ID) }) {
			t.Errorf("%s: not sorted: %v", name, c.bootstrap)
		}
	}
}

// party is nodes that look for each other, in one process. Each has an address of its API, api-I, and of its Raft.
type party struct {
	t     *testing.T
	rnd   *rand.Rand    // of the test itself
	delay time.Duration // of a greeting, at most
	deaf  float64       // share of greetings that fail
	small bool          // logs, so that snapshots are taken and sent

	mu    sync.Mutex
	odds  *rand.Rand // of greetings
	gen   int
	homes map[string]*guest // by address of the API
}

type guest struct {
	name  string
	mem   *Memory
	disk  *sickDisk
	node  *Node // nil while it is down
	trans *raft.InmemTransport
	list  []string
	stop  context.CancelFunc
	ended chan error
	logs  *logs
	led   atomic.Int32 // terms begun
	leads atomic.Bool
}

func newParty(t *testing.T, seed uint64) *party {
	// What Raft leaves behind of its calls ends by itself.
	t.Cleanup(func() { time.Sleep(2 * time.Minute) })
	p := &party{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), odds: rand.New(rand.NewPCG(seed, 2)), delay: 300 * time.Millisecond, homes: map[string]*guest{}}
	t.Cleanup(func() {
		for _, g := range p.homes {
			p.down(g)
		}
	})
	return p
}

func apiOf(name string) string { return "api-" + name }

// invite makes a node without state; up starts it.
func (p *party) invite(name string, list ...string) *guest {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gen++
	g := &guest{name: name, disk: newSickDisk()}
	g.mem = g.disk.memory(fmt.Sprintf("%s-%d", name, p.gen))
	for _, l := range list {
		g.list = append(g.list, apiOf(l))
	}
	p.homes[apiOf(name)] = g
	return g
}

func (p *party) up(g *guest) {
	p.t.Helper()
	_, trans := raft.NewInmemTransport(raft.ServerAddress("raft-" + g.name))
	logger, said := testLogger(p.t)
	cfg := Config{Memory: g.mem, Transport: trans, Join: true, Logger: logger,
		Self: job.Node{Name: g.name, API: apiOf(g.name)}, PromoteAfter: time.Second}
	if p.small {
		cfg.SnapshotBytes, cfg.TrailingBytes = 16<<10, 1
	}
	n, err := tryOpen(p.t, cfg)
	if err != nil {
		p.t.Fatal(err)
	}
	n.probed = p.probe
	ctx, stop := context.WithCancel(context.Background())
	p.mu.Lock()
	g.node, g.trans, g.stop, g.ended, g.logs = n, trans, stop, make(chan error, 2), said
	for _, other := range p.homes {
		if other != g && other.node != nil {
			other.trans.Connect(trans.LocalAddr(), trans)
			trans.Connect(other.trans.LocalAddr(), other.trans)
		}
	}
	p.mu.Unlock()
	b := &Bootstrapper{Addresses: g.list, Greet: p.greet, Join: p.join}
	go func() { g.ended <- b.Run(ctx, n) }()
	go func() {
		g.ended <- n.Run(ctx, func(ctx context.Context) error {
			g.led.Add(1)
			g.leads.Store(true)
			defer g.leads.Store(false)
			if _, err := n.Control().RaiseEpoch(ctx, 0); err != nil {
				return err
			}
			<-ctx.Done()
			time.Sleep(time.Second) // tidying up
			return nil
		})
	}()
}

// down stops a node and answers the errors with which it ended.
func (p *party) down(g *guest) error {
	p.mu.Lock()
	n := g.node
	g.node = nil
	p.mu.Unlock()
	if n == nil {
		return nil
	}
	g.stop()
	err := errors.Join(<-g.ended, <-g.ended)
	if err := n.Close(); err != nil {
		p.t.Error("close:", err)
	}
	g.trans.DisconnectAll()
	return err
}

func (p *party) at(address string) *Node {
	p.mu.Lock()
	defer p.mu.Unlock()
	if g := p.homes[address]; g != nil {
		return g.node
	}
	return nil
}

func (p *party) chance() (time.Duration, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Duration(p.odds.Int64N(int64(p.delay) + 1)), p.odds.Float64() < p.deaf
}

func (p *party) greet(ctx context.Context, address string) (Greeting, error) {
	for range 2 { // there and back
		wait, deaf := p.chance()
		time.Sleep(wait / 2)
		if deaf {
			return Greeting{}, errors.New("lost")
		}
	}
	n := p.at(address)
	if n == nil {
		return Greeting{}, errors.New("connection refused")
	}
	g := n.Greeting()
	wait, _ := p.chance()
	time.Sleep(wait)
	return g, nil
}

func (p *party) join(ctx context.Context, leader string, self job.Node) error {
	n := p.at("api-" + strings.TrimPrefix(leader, "raft-"))
	if n == nil {
		return job.Errorf(job.Unavailable, "", "connection refused")
	}
	return n.join(ctx, self)
}

// probe answers for any node that is up.
func (p *party) probe(id string) (applied uint64, seen time.Time, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.homes {
		if g.node != nil && g.node.ID() == id {
			return g.node.State().Index(), time.Now(), true
		}
	}
	return 0, time.Time{}, false
}

// gather waits until the named nodes are one cluster: the same leader, all voters, all with the same state.
func (p *party) gather(names ...string) {
	p.t.Helper()
	whole := func() bool {
		leaders, hashes := map[string]bool{}, map[[32]byte]bool{}
		for _, name := range names {
			n := p.at(apiOf(name))
			if n == nil {
				return false
			}
			id, _, _ := n.Leader()
			leaders[id] = true
			h, err := n.State().Hash()
			if err != nil {
				p.t.Fatal(err)
			}
			hashes[h] = true
			servers := n.Status().Servers
			if len(servers) != len(names) || !slices.ContainsFunc(servers, func(s Server) bool { return s.ID == n.ID() }) ||
				slices.ContainsFunc(servers, func(s Server) bool { return !s.Voter }) {
				return false
			}
		}
		return len(leaders) == 1 && !leaders[""] && len(hashes) == 1
	}
	for range 2000 {
		if whole() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	for _, name := range names {
		if n := p.at(apiOf(name)); n != nil {
			p.t.Logf("%s: %+v admitted %v", name, n.Status(), n.gate.admitted.Load())
		}
	}
	p.t.Fatalf("%v are no cluster", names)
}

// TestColdStarts: whatever happens to one of three nodes that start at the same moment, they become one cluster.
func TestColdStarts(t *testing.T) {
	trouble := []struct {
		name string
		make func(p *party, all []*guest)
	}{
		{"none", func(*party, []*guest) {}},
		{"lost greetings", func(p *party, _ []*guest) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.deaf = 0.3
		}},
		{"one is late", func(p *party, all []*guest) {
			late := all[p.rnd.IntN(3)]
			p.down(late)
			time.Sleep(time.Duration(p.rnd.IntN(20_000)) * time.Millisecond)
			p.up(late)
		}},
		{"one is restarted", func(p *party, all []*guest) {
			time.Sleep(time.Duration(p.rnd.IntN(4000)) * time.Millisecond)
			g := all[p.rnd.IntN(3)]
			p.down(g)
			time.Sleep(time.Duration(p.rnd.IntN(2000)) * time.Millisecond)
			p.up(g)
		}},
		{"one is wiped", func(p *party, all []*guest) {
			time.Sleep(time.Duration(p.rnd.IntN(4000)) * time.Millisecond)
			g := all[p.rnd.IntN(3)]
			p.down(g)
			p.up(p.invite(g.name, "a", "b", "c"))
		}},
		{"some are killed between the two writes", func(p *party, all []*guest) {
			broken := all[:1+p.rnd.IntN(3)]
			for _, g := range broken {
				g.disk.full.Store(true)
			}
			time.Sleep(3 * time.Second)
			for _, g := range broken {
				p.down(g)
				g.disk.full.Store(false)
				p.up(g)
			}
		}},
		{"a disk is full for a while", func(p *party, all []*guest) {
			all[0].disk.full.Store(true)
			time.Sleep(3 * time.Second)
			all[0].disk.full.Store(false)
		}},
		{"one leaves its state behind", func(p *party, all []*guest) {
			p.gather("a", "b", "c")
			g := all[p.rnd.IntN(3)]
			p.down(g)
			p.up(p.invite(g.name, "a", "b", "c"))
			time.Sleep(5 * time.Second)
		}},
	}
	seeds := 100
	if testing.Short() {
		seeds = 2 * len(trouble)
	}
	for seed := range seeds {
		what := trouble[seed%len(trouble)]
		t.Run(fmt.Sprintf("%s/%d", what.name, seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newParty(t, uint64(seed))
				var all []*guest
				for _, name := range []string{"a", "b", "c"} {
					list := []string{"a", "b", "c"}
					p.rnd.Shuffle(3, func(i, j int) { list[i], list[j] = list[j], list[i] })
					all = append(all, p.invite(name, list...))
				}
				for _, g := range all {
					p.up(g)
				}
				what.make(p, all)
				p.gather("a", "b", "c")
			})
		})
	}
}

// TestListsThatDiffer: no cluster is started, and everybody says why.
func TestListsThatDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newParty(t, 1)
		a, b, c := p.invite("a", "a", "b"), p.invite("b", "a", "b", "c"), p.invite("c", "a", "b", "c")
		for _, g := range []*guest{a, b, c} {
			p.up(g)
		}
		time.Sleep(time.Minute)
		for _, g := range []*guest{a, b, c} {
			if s := g.node.Status(); s.LastIndex != 0 || s.LeaderID != "" {
				t.Errorf("%s: %+v", g.name, s)
			}
		}
		if said := b.logs.String(); strings.Count(said, "the lists of nodes differ (--join): that of a lacks c") != 1 {
			t.Error("b does not say once what is wrong:", said)
		}
	})
}

// TestAloneOnTheList: one server whose list is itself starts at once.
func TestAloneOnTheList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newParty(t, 1)
		p.delay = 0
		g := p.invite("a", "a")
		start := time.Now()
		p.up(g)
		awaitLeading(t, g.node)
		if took := time.Since(start); took > 2*time.Second {
			t.Error("it took", took)
		}
		p.gather("a")
	})
}

// TestAWipedNodeHasNoVoice: an empty node at the address of a server does not vote in its name. Else what was committed
// with that server's help would be lost.
func TestAWipedNodeHasNoVoice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newParty(t, 1)
		all := map[string]*guest{}
		for _, name := range []string{"a", "b", "c"} {
			all[name] = p.invite(name, "a", "b", "c")
			p.up(all[name])
		}
		p.gather("a", "b", "c")
		var leader *guest
		var others []*guest
		for _, g := range all {
			if g.node.Leading() {
				leader = g
			} else {
				others = append(others, g)
			}
		}
		// behind lacks what the leader and the other commit now.
		behind, wiped := others[0], others[1]
		behind.trans.DisconnectAll()
		for _, g := range all {
			g.trans.Disconnect(behind.trans.LocalAddr())
		}
		want, err := leader.node.Control().RaiseEpoch(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		p.down(wiped)
		p.down(leader)
		wiped = p.invite(wiped.name, "a", "b", "c")
		p.up(wiped) // behind is connected to it now
		time.Sleep(time.Minute)
		if behind.node.Leading() {
			t.Fatal("a node without what was committed leads")
		}
		if wiped.node.raft.LastIndex() != 0 {
			t.Error("the wiped node has taken entries for its former self")
		}
		p.up(leader)
		p.gather("a", "b", "c")
		if got := leader.node.State().Epoch(); got < want {
			t.Errorf("epoch %d, and %d was acknowledged", got, want)
		}
	})
}
