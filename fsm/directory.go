package fsm

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/musterhq/muster/job"
)

// MaxNodes is how many nodes the directory holds. A cluster has three to five; the rest is room for mistakes.
const MaxNodes = 100

// InitCluster names the cluster and lays down its first secrets. The first one wins: a later one changes nothing. Its
// credentials take the place of any that have one of their ids or names. It answers the cluster's id, a string.
type InitCluster struct {
	ClusterID    string           `cbor:"1,keyasint"`
	GossipSecret []byte           `cbor:"2,keyasint,omitempty"`
	Credentials  []job.Credential `cbor:"3,keyasint,omitempty"`
}

// Kind implements Command.
func (*InitCluster) Kind() Kind { return KindInitCluster }

// Size implements Command.
func (c *InitCluster) Size() int {
	n := 24 + len(c.ClusterID) + len(c.GossipSecret)
	for i := range c.Credentials {
		n += credentialSize(&c.Credentials[i])
	}
	return n
}

func (c *InitCluster) apply(t *tx, _ Meta) Result {
	if t.g.ClusterID != "" {
		return Result{Value: t.g.ClusterID}
	}
	if c.ClusterID == "" {
		return refuse(job.Errorf(job.Invalid, "cluster", "the cluster has no id"))
	}
	if len(c.Credentials) > MaxCredentials {
		return refuse(job.Errorf(job.Exhausted, "credentials_full", "%d credentials are too many to begin with", len(c.Credentials)))
	}
	ids, names := map[string]bool{}, map[string]bool{}
	for i := range c.Credentials {
		k := &c.Credentials[i]
		if e := checkCredential(k); e != nil {
			return refuse(e)
		}
		if ids[k.ID] || names[k.Name] {
			return refuse(job.Errorf(job.Invalid, "credential", "two of the first credentials are %q", k.Name))
		}
		ids[k.ID], names[k.Name] = true, true
	}
	t.g.ClusterID, t.g.GossipSecret = c.ClusterID, bytes.Clone(c.GossipSecret)
	var replaced []*job.Credential
	for k := range t.credentials.all() {
		if ids[k.ID] || names[k.Name] {
			replaced = append(replaced, k)
		}
	}
	for _, k := range replaced {
		t.credentials.del(k)
	}
	for i := range c.Credentials {
		own := c.Credentials[i]
		t.credentials.put(&own)
	}
	t.directoryChanged = true
	return Result{Value: t.g.ClusterID}
}

// PutNode writes a node's row in the directory. A node of the same name with another id was replaced by this one, and its
// row goes. It answers nothing.
type PutNode struct {
	Node job.Node `cbor:"1,keyasint"`
}

// Kind implements Command.
func (*PutNode) Kind() Kind { return KindPutNode }

// Size implements Command.
func (c *PutNode) Size() int {
	n := &c.Node
	return 48 + len(n.ID) + len(n.Name) + len(n.API) + len(n.Raft) + len(n.Gossip) + len(n.Version) + 5*len(n.Reads)
}

func (c *PutNode) apply(t *tx, _ Meta) Result {
	if c.Node.ID == "" || c.Node.Name == "" {
		return refuse(job.Errorf(job.Invalid, "node", "a node needs an id and a name"))
	}
	var namesake *job.Node
	for n := range t.nodes.all() {
		if n.Name == c.Node.Name && n.ID != c.Node.ID {
			namesake = n
		}
	}
	if namesake == nil && t.nodes.get(c.Node.ID) == nil && t.nodes.tree.Len() >= MaxNodes {
		return refuse(job.Errorf(job.Exhausted, "nodes_full", "the cluster has %d nodes; no more fit", MaxNodes))
	}
	if namesake != nil {
		t.nodes.del(namesake)
	}
	own := c.Node
	t.nodes.put(&own)
	t.directoryChanged = true
	return Result{}
}

// DropNode takes a node out of the directory. One that is not there is gone already. It answers nothing.
type DropNode struct {
	ID string `cbor:"1,keyasint"`
}

// Kind implements Command.
func (*DropNode) Kind() Kind { return KindDropNode }

// Size implements Command.
func (c *DropNode) Size() int { return 16 + len(c.ID) }

func (c *DropNode) apply(t *tx, _ Meta) Result {
	if old := t.nodes.get(c.ID); old != nil {
		t.nodes.del(old)
		t.directoryChanged = true
	}
	return Result{}
}

// directory is what is looked up far more often than it changes: with each request and each proposal. It is made anew
// when it changes, so that reading it takes no lock and freezes no tables.
type directory struct {
	clusterID    string
	gossipSecret []byte
	store        string
	nodes        table[string, job.Node]
	credentials  table[string, job.Credential]
	// readable has the newest version of each kind that all nodes read, and the node that reads no newer one. It is nil
	// while no node says what it reads.
	readable map[Kind]leastReader
	first    string // a node that says what it reads
}

type leastReader struct {
	version uint8
	node    string // by name
}

// newDirectory freezes tables; the caller holds the lock that writers hold.
func newDirectory(t *tables) *directory {
	d := &directory{clusterID: t.g.ClusterID, gossipSecret: t.g.GossipSecret, store: t.g.Store, nodes: t.nodes.frozen(), credentials: t.credentials.frozen()}
	nodes := d.byName()
	for i := range nodes {
		if len(nodes[i].Reads) > 0 && d.readable == nil {
			d.first, d.readable = nodes[i].Name, map[Kind]leastReader{}
		}
		for k := range nodes[i].Reads {
			d.readable[Kind(k)] = leastReader{}
		}
	}
	for k := range d.readable {
		least := leastReader{version: 1<<8 - 1}
		for i := range nodes {
			n := &nodes[i]
			if len(n.Reads) == 0 {
				continue
			}
			if v := n.Reads[uint16(k)]; v < least.version || least.node == "" {
				least = leastReader{v, n.Name}
			}
		}
		d.readable[k] = least
	}
	return d
}

func (d *directory) byName() []job.Node {
	list := values(d.nodes.all())
	slices.SortFunc(list, func(a, b job.Node) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// ClusterID answers the cluster's id, or "" before there is one.
func (s *State) ClusterID() string { return s.directory.Load().clusterID }

// GossipSecret answers the key of the gossip, or nil.
func (s *State) GossipSecret() []byte { return bytes.Clone(s.directory.Load().gossipSecret) }

// Nodes answers the directory of nodes by name. Nobody may change what its rows refer to.
func (s *State) Nodes() []job.Node { return s.directory.Load().byName() }

// Node answers a node by its id.
func (s *State) Node(id string) (job.Node, bool) { return value(s.directory.Load().nodes.get(id)) }

// NodeNamed answers a node by its name.
func (s *State) NodeNamed(name string) (job.Node, bool) {
	for n := range s.directory.Load().nodes.all() {
		if n.Name == name {
			return *n, true
		}
	}
	return job.Node{}, false
}

// Unreadable tells whether a command of this kind and version would stop a node that cannot read it, and names one. It
// may be put into the log once none is left. A node that does not say what it reads counts as one that reads all that
// this binary does, and so does whoever is not in the directory.
func (s *State) Unreadable(k Kind, version uint8) (node string, yes bool) {
	d := s.directory.Load()
	if d.readable == nil {
		return "", false
	}
	least, ok := d.readable[k]
	if !ok {
		return d.first, true // no node knows the kind
	}
	if version > least.version {
		return least.node, true
	}
	return "", false
}
