package cluster

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"
)

// cell is one pool of gossip as this node sees it. Its fields are under Gossip.mu; memberlist calls its methods with
// names beginning in Notify, one at a time, under a lock of its own.
type cell struct {
	name    string
	gossip  *Gossip
	list    *memberlist.Memberlist
	address string
	peers   []string           // of other nodes in it
	members map[string]*Member // by gossip name
	leaving map[string]bool    // gossip names that said goodbye and are still in members
	deaths  []time.Time        // within the last deathWindow, oldest first
}

// A cell that reports more than a fifth of its members dead within a minute is suspected itself, for as long as that
// minute moves on: most likely this node is cut off. In a small cell a single death is a large part, so it takes a few.
const (
	deathWindow = time.Minute
	deathShare  = 5 // one in five
	deathFloor  = 3
)

func (c *cell) suspected(now time.Time) bool {
	for len(c.deaths) > 0 && now.Sub(c.deaths[0]) > deathWindow {
		c.deaths = c.deaths[1:]
	}
	n := len(c.deaths)
	return n >= deathFloor && n*deathShare > c.alive()+n
}

func (c *cell) alive() int {
	n := 0
	for _, m := range c.members {
		if !m.Node && m.State == MemberAlive {
			n++
		}
	}
	return n
}

// forget drops members that are gone for long.
func (c *cell) forget(now time.Time) {
	for k, m := range c.members {
		if m.State != MemberAlive && now.Sub(m.Since) > rememberedFor {
			delete(c.members, k)
		}
	}
}

// hardCap bounds the workers of a cell whatever joins: beyond it memberlist's own traffic suffers. maxRemembered bounds all
// that is remembered of a cell: whoever has its key can call himself a node, or come and go under ever new names.
const (
	hardCap       = 2500
	maxRemembered = 2 * hardCap
)

var errRefused = errors.New("not a member of this cell")

// NotifyAlive refuses what a member of ours would not say. Whoever holds the key can claim to be anybody, which is why
// nothing rests on it.
func (c *cell) NotifyAlive(n *memberlist.Node) error {
	m, ok := memberOf(n)
	if !ok {
		return errRefused
	}
	if n.Name == memberName(c.gossip.cfg.NodeID, c.gossip.boot) {
		return nil
	}
	c.gossip.mu.Lock()
	defer c.gossip.mu.Unlock()
	if _, known := c.members[n.Name]; known {
		return nil
	}
	if len(c.members) >= maxRemembered {
		maps.DeleteFunc(c.members, func(_ string, m *Member) bool { return m.State != MemberAlive })
	}
	if len(c.members) >= maxRemembered || !m.Node && c.alive() >= hardCap {
		return errRefused
	}
	return nil
}

func (c *cell) NotifyJoin(n *memberlist.Node) {
	m, ok := memberOf(n)
	if !ok {
		return
	}
	g := c.gossip
	g.mu.Lock()
	defer g.mu.Unlock()
	m.Cell, m.State, m.Since = c.name, MemberAlive, g.cfg.Now()
	if !m.Node {
		delete(g.pending, m.Name)
		// A later life of a worker makes what is known of its earlier ones worthless.
		for _, other := range g.cells {
			for k, old := range other.members {
				if old.Name == m.Name && old.State != MemberAlive {
					delete(other.members, k)
				}
			}
		}
	}
	c.members[n.Name] = &m
	c.tell(Joined, m)
}

func (c *cell) NotifyLeave(n *memberlist.Node) {
	g := c.gossip
	g.mu.Lock()
	defer g.mu.Unlock()
	m := c.members[n.Name]
	if m == nil {
		return
	}
	kind := Died
	m.State, m.Since = MemberDead, g.cfg.Now()
	if c.leaving[n.Name] {
		kind, m.State = Left, MemberLeft
		delete(c.leaving, n.Name)
	} else if !m.Node {
		c.deaths = append(c.deaths, m.Since)
	}
	v := *m
	if v.Suspected = c.suspected(m.Since); v.Suspected {
		g.log.Warn("gossip cell suspected: too many members died within a minute", "cell", c.name, "died", len(c.deaths), "alive", c.alive())
	}
	c.forget(m.Since)
	c.tell(kind, v)
}

func (c *cell) NotifyUpdate(n *memberlist.Node) {
	c.gossip.mu.Lock()
	defer c.gossip.mu.Unlock()
	if m, ok := memberOf(n); ok && c.members[n.Name] != nil {
		c.members[n.Name].Address, c.members[n.Name].Version = m.Address, m.Version
	}
}

// NotifyMsg hears goodbyes.
func (c *cell) NotifyMsg(b []byte) {
	name, ok := strings.CutPrefix(string(b), goodbye)
	if !ok {
		return
	}
	c.gossip.mu.Lock()
	defer c.gossip.mu.Unlock()
	if m := c.members[name]; m != nil && m.State == MemberAlive {
		c.leaving[name] = true
	}
}

// goodbye and its gossip name is what a member sends to the nodes before it leaves. memberlist knows who left and who
// died, but does not tell: the state of the node in its events is never set (v0.7).
const goodbye = "bye "

func sayGoodbye(list *memberlist.Memberlist) {
	self := list.LocalNode().Name
	for _, n := range list.Members() {
		if m, ok := memberOf(n); ok && m.Node && n.Name != self {
			_ = list.SendBestEffort(n, []byte(goodbye+self)) // lost, the leaver counts as dead: a rumour like any other
		}
	}
}

// tell needs Gossip.mu. It does not tell of this node itself.
func (c *cell) tell(kind EventKind, m Member) {
	g := c.gossip
	if m.Node && m.Name == g.cfg.NodeID {
		return
	}
	select {
	case g.events <- Event{kind, m}:
	default:
		g.dropped.Inc()
	}
}

// A member's name in gossip is its own and that of its life, so that a restart is a new member that nobody has to
// outlive first. Its metadata is its role and version.
const (
	roleNode   = 'n'
	roleWorker = 'w'
	maxMeta    = 64
	bootSep    = "~"
)

func memberName(name, boot string) string { return name + bootSep + boot }

func memberMeta(node bool, version string) []byte {
	role := byte(roleWorker)
	if node {
		role = roleNode
	}
	return append([]byte{role}, version[:min(len(version), 48)]...)
}

func memberOf(n *memberlist.Node) (Member, bool) {
	name, boot, ok := strings.Cut(n.Name, bootSep)
	if !ok || !validMemberName(name) || len(boot) == 0 || len(boot) > 16 || len(n.Meta) == 0 || len(n.Meta) > maxMeta {
		return Member{}, false
	}
	return Member{Name: name, Boot: boot, Node: n.Meta[0] == roleNode, Version: string(n.Meta[1:]), Address: n.Address()}, true
}

// validMemberName tells whether s is a name as the design has it: [A-Za-z0-9][A-Za-z0-9._-]{0,127}.
func validMemberName(s string) bool {
	for i := range len(s) {
		switch b := s[i]; {
		case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9':
		case i > 0 && (b == '.' || b == '_' || b == '-'):
		default:
			return false
		}
	}
	return len(s) > 0 && len(s) <= 128
}

// delegate gives memberlist the metadata and, on a node, hears goodbyes.
type delegate struct {
	meta []byte
	hear func([]byte) // nil on a worker
}

func (d *delegate) NodeMeta(limit int) []byte { return d.meta[:min(len(d.meta), limit)] }
func (d *delegate) NotifyMsg(b []byte) {
	if d.hear != nil {
		d.hear(b)
	}
}
func (*delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (*delegate) LocalState(bool) []byte          { return nil }
func (*delegate) MergeRemoteState([]byte, bool)   {}

var errNoSeed = errors.New("no node of the cell could be reached")

func noSeed(err error) error { return fmt.Errorf("%w: %w", errNoSeed, err) }
