package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/job"
)

// Greeting is what a node answers to another that looks for its cluster.
type Greeting struct {
	NodeID string `json:"node_id"`
	Name   string `json:"name"`
	Raft   string `json:"raft"` // host:port
	API    string `json:"api"`  // base URL
	// HasState tells whether the node knows a configuration, its own bootstrap or another's. A mere term or vote is none.
	HasState   bool   `json:"has_state"`
	ClusterID  string `json:"cluster_id,omitempty"`
	Store      string `json:"store,omitempty"` // the kind of store that it was started with (S11)
	LeaderID   string `json:"leader_id,omitempty"`
	LeaderRaft string `json:"leader_raft,omitempty"`
	// Knows are the ids of all nodes on its list, itself among them, since every one has answered it; else none.
	Knows []string `json:"knows,omitempty"`
	// Members are the ids of the servers in its configuration.
	Members []string `json:"members,omitempty"`
}

// Greeting is what this node answers to one that looks for its cluster.
func (n *Node) Greeting() Greeting {
	self := n.self()
	g := Greeting{NodeID: n.id, Name: self.Name, Raft: self.Raft, API: self.API, Store: n.cfg.Store, ClusterID: cmp.Or(n.state.ClusterID(), n.cfg.ClusterID)}
	g.LeaderID, g.LeaderRaft, _ = n.Leader()
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		g.Members = append(g.Members, string(s.ID))
	}
	g.HasState = len(g.Members) > 0
	n.mu.Lock()
	defer n.mu.Unlock()
	g.Knows = n.knows
	return g
}

// course is what a node without state does next.
type course struct {
	bootstrap []Peer   // start a cluster of these, sorted by id
	knows     []string // all nodes on the list, if each has answered; sorted
	adopted   bool     // a peer's configuration has this node in it: only its log is still missing
	leader    string   // Raft address of the leader to ask, if a peer with state knows one
	why       string   // what is waited for, in words
	wrong     bool     // why needs a person
}

// chart decides the course of a node without state from one round of greetings: the answers of all addresses on its list
// (nil: none came), in the order of the list. It is the whole of the bootstrap's logic.
//
// Why no two configurations are ever made: a node bootstraps the set S only when every node of S, asked in this round,
// said that it has no state and that S is all that it found itself. So whoever is in S decides for S as well or has not
// decided, and one that decided has state, which keeps everybody else from deciding for another set. A node that is wiped
// meanwhile has another id, and is a stranger to S. An answer may be some seconds old: what a node says it knows only moves
// on, from nodes that were wiped to those that took their places, so nobody can agree on a set that it has left behind.
func chart(self Greeting, addresses []string, answers []*Greeting) course {
	var c course
	peers := map[string]*Greeting{self.NodeID: &self}
	from := map[string]string{}
	var silent []string
	for i, g := range answers {
		if g == nil {
			silent = append(silent, addresses[i])
			continue
		}
		if other, twice := from[g.NodeID]; twice {
			return course{wrong: true, why: fmt.Sprintf("%s and %s are the same node, %s: list each node once", other, addresses[i], nameOf(*g))}
		}
		from[g.NodeID] = addresses[i]
		if g.NodeID != self.NodeID {
			peers[g.NodeID] = g
		}
	}
	ids := slices.Sorted(maps.Keys(peers))
	stateful := false
	for _, id := range ids {
		g := peers[id]
		if id == self.NodeID {
			continue
		}
		if g.ClusterID != "" && self.ClusterID != "" && g.ClusterID != self.ClusterID {
			return course{wrong: true, why: fmt.Sprintf("%s at %s belongs to another cluster, %s", nameOf(*g), from[id], g.ClusterID)}
		}
		if !g.HasState {
			continue
		}
		stateful = true
		c.adopted = c.adopted || slices.Contains(g.Members, self.NodeID)
		// The leader's own word goes before hearsay.
		if g.LeaderRaft != "" && (c.leader == "" || g.LeaderID == g.NodeID) {
			c.leader = g.LeaderRaft
		}
	}
	if stateful {
		if c.leader == "" {
			c.why = "a node of the list has state already, but knows no leader to ask"
		}
		return c
	}
	if len(silent) > 0 {
		c.why = "no answer yet from " + strings.Join(silent, ", ")
		return c
	}
	names, rafts := map[string]string{}, map[string]string{}
	for _, id := range ids {
		g := peers[id]
		if other, taken := names[g.Name]; taken && g.Name != "" {
			return course{wrong: true, why: fmt.Sprintf("two nodes are named %s: %s and %s; give each a name of its own", g.Name, other, cmp.Or(from[id], "this one"))}
		}
		if other, taken := rafts[g.Raft]; taken {
			return course{wrong: true, why: fmt.Sprintf("%s and %s advertise the same address for raft, %s", other, nameOf(*g), g.Raft)}
		}
		names[g.Name], rafts[g.Raft] = cmp.Or(from[id], "this one"), nameOf(*g)
	}
	for _, id := range ids {
		// One that is older than stores are greets without a word of it.
		if g := peers[id]; g.Store != "" && self.Store != "" && g.Store != self.Store {
			return course{wrong: true, why: fmt.Sprintf("%s was started with the store %s, and this node with %s; give all nodes the same --postgres, or none", nameOf(*g), g.Store, self.Store)}
		}
	}
	c.knows = ids
	for _, id := range ids {
		g := peers[id]
		switch {
		case id == self.NodeID:
		case len(g.Knows) == 0:
			c.why = fmt.Sprintf("%s has not heard from all on its list yet", nameOf(*g))
			return c
		case !slices.Equal(g.Knows, ids):
			c.wrong, c.why = true, difference(*g, ids, peers)
			return c
		}
	}
	for _, id := range ids {
		c.bootstrap = append(c.bootstrap, Peer{ID: id, Address: peers[id].Raft})
	}
	return c
}

func nameOf(g Greeting) string { return cmp.Or(g.Name, g.NodeID) }

// difference says in which nodes a peer's list is another than ours.
func difference(g Greeting, ids []string, peers map[string]*Greeting) string {
	var more, less []string
	for _, id := range g.Knows {
		if !slices.Contains(ids, id) {
			more = append(more, id)
		}
	}
	for _, id := range ids {
		if !slices.Contains(g.Knows, id) {
			less = append(less, nameOf(*peers[id]))
		}
	}
	s := fmt.Sprintf("the lists of nodes differ (--join): that of %s", nameOf(g))
	if len(less) > 0 {
		s += " lacks " + strings.Join(less, ", ")
	}
	if len(more) > 0 {
		if len(less) > 0 {
			s += " and"
		}
		s += " has besides the node with the id " + strings.Join(more, ", ")
	}
	return s
}

// Bootstrapper is how a node that is told to Join finds its cluster, or makes it together with the others.
type Bootstrapper struct {
	// Addresses are those of the API of all nodes, this one among them: --join. All nodes need the same list to start a
	// new cluster; to find one that exists, one address that answers is enough.
	Addresses []string
	// Greet asks the node at an address. Required. It must tell an answer from anybody else's: mutual TLS does.
	Greet func(ctx context.Context, address string) (Greeting, error)
	// Join asks the leader at a Raft address to make a node a member. Default a node call through Config.Port.
	Join func(ctx context.Context, leader string, self job.Node) error
	// Every is the pause between rounds, less up to half of it. Default 500 ms.
	Every time.Duration
	// Timeout bounds one question. Default 2 s.
	Timeout time.Duration
}

// lostAfter is how long a member hears no leader before it asks around whether it still is one.
const lostAfter = 10 * time.Second

var errRemoved = job.Errorf(job.Conflict, "removed", "this node was removed from the cluster; to let it join again as a new one, "+
	"move the folder raft of its data directory away and start it")

// Run makes n part of a cluster, and watches that it still is. It returns nil when ctx ends or n is closed, and an error
// when the node cannot go on: it was removed, or belongs to another cluster.
func (b *Bootstrapper) Run(ctx context.Context, n *Node) error {
	if b.Greet == nil || len(b.Addresses) == 0 {
		return job.InvalidField("Addresses", "a node needs the addresses of the others, and a way to greet them")
	}
	every, timeout := cmp.Or(b.Every, 500*time.Millisecond), cmp.Or(b.Timeout, 2*time.Second)
	join := b.Join
	if join == nil {
		join = n.askToJoin
	}
	said, heard := &teller{log: n.log}, memory{}
	lonely := time.Now() // since when no leader is heard
	cut := 0             // how many rounds in a row a leader said that this node is none of its own
	for {
		outside := false
		switch {
		case !n.member():
			if err := b.round(ctx, n, join, timeout, said, heard); err != nil {
				return err
			}
		case n.moved():
			answers, _ := b.ask(ctx, n.homes(b.Addresses), timeout)
			outside = n.cutOut(answers)
			b.move(ctx, n, join, answers, timeout, said)
		case n.heard() && find(n.servers(), n.id) >= 0:
			lonely = time.Now()
		case time.Since(lonely) < lostAfter && find(n.servers(), n.id) >= 0:
		// Its own configuration is no proof: one that joins, or is sent a snapshot, reads those of before it was added.
		default:
			answers, _ := b.ask(ctx, n.homes(b.Addresses), timeout)
			outside = n.cutOut(answers)
		}
		// Once is no proof: a leader that was held up, and led before this node was added, says it as well, for a moment.
		if cut++; !outside {
			cut = 0
		}
		if cut > 1 {
			n.fail(errRemoved)
		}
		select {
		case <-time.After(every - time.Duration(rand.Int64N(int64(every)/2+1))):
		case <-ctx.Done():
			return nil
		case <-n.closing.Done():
			return nil
		case <-n.failed:
			return n.failure
		}
	}
}

// moved tells whether the others look for this node at an address that is no longer its own. A leader puts that right itself.
func (n *Node) moved() bool {
	servers := n.servers()
	at := find(servers, n.id)
	return at >= 0 && servers[at].Address != n.address && !n.Leading()
}

// move tells the leader of a cluster that this node belongs to where it is now. One that was removed is not among its
// members, and does not come back this way.
func (b *Bootstrapper) move(ctx context.Context, n *Node, join func(context.Context, string, job.Node) error, answers []*Greeting, timeout time.Duration, said *teller) {
	id := cmp.Or(n.state.ClusterID(), n.cfg.ClusterID)
	for _, g := range answers {
		if g == nil || g.LeaderID != g.NodeID || g.NodeID == n.id || id != "" && g.ClusterID != id || !slices.Contains(g.Members, n.id) {
			continue
		}
		asking, cancel := context.WithTimeout(ctx, 5*timeout)
		if err := join(asking, g.LeaderRaft, n.self()); err == nil {
			n.log.Info("told the leader the new address of this node", "leader", g.LeaderRaft, "address", n.address)
		} else {
			said.tell(slog.LevelWarn, "the leader cannot note the new address of this node yet: "+err.Error())
		}
		cancel()
		return
	}
}

// round asks everybody once and does what follows from the answers.
func (b *Bootstrapper) round(ctx context.Context, n *Node, join func(context.Context, string, job.Node) error, timeout time.Duration, said *teller, heard memory) error {
	answers, odd := b.ask(ctx, b.Addresses, timeout)
	answers = heard.fill(b.Addresses, answers)
	if ctx.Err() != nil {
		return nil
	}
	self := n.Greeting()
	c := chart(self, b.Addresses, answers)
	n.mu.Lock()
	n.knows = c.knows
	n.mu.Unlock()
	if c.adopted {
		n.gate.admit()
	}
	switch {
	case len(c.bootstrap) > 0:
		err := n.Bootstrap(ctx, c.bootstrap)
		if err == nil {
			n.log.Info("started a new cluster", "nodes", len(c.bootstrap))
		} else if job.CodeOf(err) != job.Conflict { // a leader was faster
			said.tell(slog.LevelWarn, "the cluster cannot be started: "+err.Error())
		}
	case c.leader != "" && !c.adopted:
		asking, cancel := context.WithTimeout(ctx, 5*timeout)
		defer cancel()
		node := n.self()
		switch err := join(asking, c.leader, node); {
		case err == nil:
			n.gate.admit()
			n.log.Info("joining the cluster", "leader", c.leader)
		case job.CodeOf(err) == job.Invalid, job.CodeOf(err) == job.Forbidden:
			said.tell(slog.LevelError, "the leader refuses this node: "+err.Error())
		default:
			said.tell(slog.LevelInfo, "the leader cannot take this node in yet: "+err.Error())
		}
	case c.wrong:
		said.tell(slog.LevelError, "no cluster can be started: "+c.why)
	case odd != "":
		said.tell(slog.LevelWarn, "waiting to start or join a cluster: "+strings.TrimPrefix(c.why+odd, "; "))
	case c.why != "":
		said.tell(slog.LevelInfo, "waiting to start or join a cluster: "+c.why)
	}
	return nil
}

// ask greets all addresses at once. odd says of those whose answer is none what came instead.
func (b *Bootstrapper) ask(ctx context.Context, addresses []string, timeout time.Duration) (answers []*Greeting, odd string) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answers, failures := make([]*Greeting, len(addresses)), make([]error, len(addresses))
	var all sync.WaitGroup
	for i, a := range addresses {
		all.Go(func() {
			g, err := b.Greet(ctx, a)
			if failures[i] = err; err == nil && g.NodeID != "" {
				answers[i] = &g
			}
		})
	}
	all.Wait()
	for i, err := range failures {
		// That nobody is there yet needs no words. That somebody is there and is not understood needs a person.
		if err != nil && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
			odd += fmt.Sprintf("; asking %s: %v", addresses[i], err)
		}
	}
	return answers, odd
}

// memory is the last answer of each address. A lost answer does not undo the one before for a while.
type memory map[string]remembered

type remembered struct {
	greeting *Greeting
	at       time.Time
}

const greetingKept = 10 * time.Second

// fill puts what is remembered in the place of answers that did not come.
func (m memory) fill(addresses []string, answers []*Greeting) []*Greeting {
	for i, a := range addresses {
		if answers[i] != nil {
			m[a] = remembered{answers[i], time.Now()}
		} else if old := m[a]; old.greeting != nil && time.Since(old.at) < greetingKept {
			answers[i] = old.greeting
		}
	}
	return answers
}

// teller logs a sentence when it changes, and again each minute.
type teller struct {
	log  *slog.Logger
	last string
	at   time.Time
}

func (t *teller) tell(level slog.Level, sentence string) {
	if sentence == t.last && time.Since(t.at) < time.Minute {
		return
	}
	t.last, t.at = sentence, time.Now()
	t.log.Log(context.Background(), level, sentence)
}

// member tells whether this node's log says that it is in a cluster. It stays true of one that was removed and does not
// know.
func (n *Node) member() bool { return n.raft.LastIndex() > 0 }

// heard tells whether this node leads, or heard a leader lately.
func (n *Node) heard() bool {
	since := n.lastContact()
	return since >= 0 && since < n.cfg.HeartbeatTimeout*3
}

// homes are the addresses to ask for the cluster: those of the list, and what the directory knows besides.
func (n *Node) homes(list []string) []string {
	all := slices.Clone(list)
	for _, row := range n.state.Nodes() {
		if row.API != "" && row.ID != n.id {
			all = append(all, row.API)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// cutOut tells whether a leader, by its own word, has a configuration without this node.
func (n *Node) cutOut(answers []*Greeting) bool {
	id := cmp.Or(n.state.ClusterID(), n.cfg.ClusterID)
	return slices.ContainsFunc(answers, func(g *Greeting) bool {
		return g != nil && g.LeaderID == g.NodeID && g.NodeID != n.id && len(g.Members) > 0 && !slices.Contains(g.Members, n.id) &&
			(id == "" || g.ClusterID == id)
	})
}

// Peer is a node as Raft addresses it.
type Peer struct{ ID, Address string }

// Bootstrap starts a cluster of these voters, of which this node is one. Every one of them must be told the identical
// list. A node that has state refuses with Conflict.
func (n *Node) Bootstrap(ctx context.Context, peers []Peer) error {
	c := raft.Configuration{}
	for _, p := range peers {
		c.Servers = append(c.Servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(p.ID), Address: raft.ServerAddress(p.Address)})
	}
	err := n.await(ctx, func() error { return n.raft.BootstrapCluster(c).Error() })
	if errors.Is(err, raft.ErrCantBootstrap) {
		return job.Errorf(job.Conflict, "bootstrapped", "this node belongs to a cluster already")
	}
	if err != nil {
		return errors.Join(err, n.stable.forgetBootstrap()) // it may be tried again
	}
	n.gate.admit()
	return nil
}
