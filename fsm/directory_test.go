package fsm

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/musterhq/muster/job"
)

func TestClusterIsInitialisedOnce(t *testing.T) {
	m := newMachine(t)
	if m.ClusterID() != "" || m.GossipSecret() != nil {
		t.Fatal("a fresh state has a cluster")
	}
	m.refused(&InitCluster{}, job.Invalid)
	bad := credentialNumbered(1, job.RoleAdmin)
	bad.Digest = nil
	m.refused(&InitCluster{ClusterID: "a", Credentials: []job.Credential{bad}}, job.Invalid)
	one, namesake := credentialNumbered(1, job.RoleAdmin), credentialNumbered(2, job.RoleJoin)
	namesake.Name = one.Name
	m.refused(&InitCluster{ClusterID: "a", Credentials: []job.Credential{one, namesake}}, job.Invalid)
	m.refused(&InitCluster{ClusterID: "a", Credentials: make([]job.Credential, MaxCredentials+1)}, job.Exhausted)

	// Credentials from before there was a cluster must not stand in the way of it.
	early, other := credentialNumbered(7, job.RoleViewer), credentialNumbered(8, job.RoleViewer)
	early.Name = one.Name
	m.do(&PutCredential{Credential: early})
	m.do(&PutCredential{Credential: other})
	secret := []byte{1, 2, 3}
	join := credentialNumbered(2, job.RoleJoin)
	if id := m.do(&InitCluster{ClusterID: "a", GossipSecret: secret, Credentials: []job.Credential{one, join}}); id != "a" {
		t.Fatalf("the cluster is %v", id)
	}
	if d := cmp.Diff([]job.Credential{one, join, other}, m.Credentials()); d != "" {
		t.Fatalf("credentials (-want +got):\n%s", d)
	}
	before := m.fingerprint()
	if id := m.do(&InitCluster{ClusterID: "b", GossipSecret: []byte{9}, Credentials: []job.Credential{credentialNumbered(3, job.RoleAdmin)}}); id != "a" {
		t.Fatalf("the second time the cluster is %v", id)
	}
	if m.fingerprint() != before || m.ClusterID() != "a" || !bytes.Equal(m.GossipSecret(), secret) {
		t.Fatal("the second time something changed")
	}
	m.GossipSecret()[0] = 77
	if !bytes.Equal(m.GossipSecret(), secret) {
		t.Fatal("a reader changed the state")
	}
}

func TestNodesAreKeptByIDAndUniqueByName(t *testing.T) {
	m := newMachine(t)
	m.refused(&PutNode{Node: job.Node{ID: "x"}}, job.Invalid)
	m.refused(&PutNode{Node: job.Node{Name: "x"}}, job.Invalid)
	a, b := nodeNumbered(1), nodeNumbered(2)
	m.do(&PutNode{Node: b})
	m.do(&PutNode{Node: a})
	if d := cmp.Diff([]job.Node{a, b}, m.Nodes()); d != "" {
		t.Fatalf("nodes (-want +got):\n%s", d)
	}
	moved := a
	moved.Raft = "10.1.1.1:8081"
	m.do(&PutNode{Node: moved})
	replacement := nodeNumbered(3)
	replacement.Name = b.Name
	m.do(&PutNode{Node: replacement})
	if d := cmp.Diff([]job.Node{moved, replacement}, m.Nodes()); d != "" {
		t.Fatalf("after a move and a replacement (-want +got):\n%s", d)
	}
	if _, ok := m.Node(b.ID); ok {
		t.Fatal("the replaced node is still there")
	}
	if n, ok := m.NodeNamed(b.Name); !ok || n.ID != replacement.ID {
		t.Fatalf("%s is %+v", b.Name, n)
	}
	// A node that takes another one's name drops it and its own old name.
	thief := replacement
	thief.Name = a.Name
	m.do(&PutNode{Node: thief})
	if d := cmp.Diff([]job.Node{thief}, m.Nodes()); d != "" {
		t.Fatalf("after a rename (-want +got):\n%s", d)
	}
	m.do(&DropNode{ID: "nobody"})
	m.do(&DropNode{ID: thief.ID})
	if _, ok := m.NodeNamed(a.Name); ok || len(m.Nodes()) != 0 {
		t.Fatal("a dropped node is still there")
	}
}

func TestDirectoryHasALimit(t *testing.T) {
	m := newMachine(t)
	for n := range MaxNodes {
		m.do(&PutNode{Node: nodeNumbered(n)})
	}
	m.refused(&PutNode{Node: nodeNumbered(MaxNodes)}, job.Exhausted)
	m.do(&PutNode{Node: nodeNumbered(5)})
	replacement := nodeNumbered(MaxNodes)
	replacement.Name = nodeNumbered(5).Name
	m.do(&PutNode{Node: replacement})
	if len(m.Nodes()) != MaxNodes {
		t.Fatalf("there are %d nodes", len(m.Nodes()))
	}
}

func TestUnreadable(t *testing.T) {
	m := newMachine(t)
	reads := func(n int, kinds map[uint16]uint8) {
		node := nodeNumbered(n)
		node.Reads = kinds
		m.do(&PutNode{Node: node})
	}
	check := func(k Kind, version uint8, want string) {
		t.Helper()
		node, yes := m.Unreadable(k, version)
		if node != want || yes != (want != "") {
			t.Errorf("kind %d version %d: %q %v, want %q", k, version, node, yes, want)
		}
	}
	check(KindMove, 200, "") // nobody says anything
	reads(9, nil)
	check(KindMove, 200, "")
	reads(1, map[uint16]uint8{uint16(KindMove): 3, uint16(KindPrune): 1})
	check(KindMove, 3, "")
	check(KindMove, 4, "n1")
	check(KindSubmit, 1, "n1") // a kind that it does not know
	check(999, 1, "n1")
	reads(2, map[uint16]uint8{uint16(KindMove): 2, uint16(KindPrune): 1, uint16(KindSubmit): 1})
	check(KindMove, 2, "")
	check(KindMove, 3, "n2")
	check(KindSubmit, 1, "n1")
	check(KindPrune, 1, "")
	reads(2, map[uint16]uint8{uint16(KindMove): 5, uint16(KindPrune): 1, uint16(KindSubmit): 1})
	check(KindMove, 3, "")
	check(KindMove, 4, "n1")
	back := New()
	if err := back.Restore(readCloser(persisted(t, m.State)())); err != nil {
		t.Fatal(err)
	}
	m.State = back
	check(KindMove, 4, "n1")
	m.do(&DropNode{ID: nodeNumbered(1).ID})
	check(KindMove, 5, "")
	check(KindMove, 6, "n2")
	m.do(&DropNode{ID: nodeNumbered(2).ID})
	check(KindMove, 200, "")
	// What a node of this binary says of itself lets all of this binary through.
	own := map[uint16]uint8{}
	for k, v := range Supported() {
		own[uint16(k)] = v
	}
	reads(3, own)
	for k := range Supported() {
		check(k, Version(k), "")
	}
}

func TestCredentialsAreAddedOnce(t *testing.T) {
	m := newMachine(t)
	c := credentialNumbered(1, job.RoleDeveloper)
	c.Namespaces, c.ExpiresAt = []string{"a"}, t0.Add(time.Hour)
	for _, spoil := range []func(*job.Credential){
		func(c *job.Credential) { c.ID = "" },
		func(c *job.Credential) { c.ID = "a_b" }, // no token can name it
		func(c *job.Credential) { c.Name = "" },
		func(c *job.Credential) { c.Role = "" },
		func(c *job.Credential) { c.Digest = []byte("secret") },
	} {
		bad := c
		spoil(&bad)
		m.refused(&PutCredential{Credential: bad}, job.Invalid)
	}
	m.do(&PutCredential{Credential: c})
	m.do(&PutCredential{Credential: c}) // the answer was lost; it is repeated
	if got, ok := m.Credential(c.ID); !ok || !cmp.Equal(got, c) {
		t.Fatalf("it is %+v", got)
	}
	if _, ok := m.Credential("nobody"); ok {
		t.Fatal("there is a credential of nobody")
	}
	for what, change := range map[string]func(*job.Credential){
		"name":       func(c *job.Credential) { c.Name = "other" },
		"role":       func(c *job.Credential) { c.Role = job.RoleAdmin },
		"namespaces": func(c *job.Credential) { c.Namespaces = nil },
		"digest":     func(c *job.Credential) { c.Digest = job.SecretDigest(nil) },
		"created":    func(c *job.Credential) { c.CreatedAt++ },
		"expiry":     func(c *job.Credential) { c.ExpiresAt = 0 },
	} {
		other := c
		change(&other)
		if e := m.refused(&PutCredential{Credential: other}, job.Conflict); e.Reason != "credential_exists" {
			t.Errorf("another %s: %v", what, e)
		}
	}
	namesake := credentialNumbered(2, job.RoleViewer)
	namesake.Name = c.Name
	if e := m.refused(&PutCredential{Credential: namesake}, job.Conflict); e.Reason != "name_taken" {
		t.Fatalf("reason %s", e.Reason)
	}
	if got := m.do(&DropCredential{ID: c.ID}); !cmp.Equal(got, c) {
		t.Fatalf("dropped %+v", got)
	}
	m.refused(&DropCredential{ID: c.ID}, job.NotFound)
	m.do(&PutCredential{Credential: namesake})
}

func TestLastAdminStays(t *testing.T) {
	m := newMachine(t)
	first, second, brief := credentialNumbered(1, job.RoleAdmin), credentialNumbered(2, job.RoleAdmin), credentialNumbered(3, job.RoleAdmin)
	brief.ExpiresAt = t0.Add(time.Hour)
	for _, c := range []job.Credential{first, second, brief, credentialNumbered(4, job.RoleOperator)} {
		m.do(&PutCredential{Credential: c})
	}
	m.do(&DropCredential{ID: first.ID})
	m.pass(time.Hour)
	if e := m.refused(&DropCredential{ID: second.ID}, job.Conflict); e.Reason != "last_admin" {
		t.Fatalf("with an admin besides that has expired: %v", e)
	}
	m.do(&DropCredential{ID: brief.ID}) // expired, so it is no admin
	m.do(&DropCredential{ID: credentialNumbered(4, "").ID})
	m.refused(&DropCredential{ID: second.ID}, job.Conflict)
	m.do(&PutCredential{Credential: first})
	m.do(&DropCredential{ID: second.ID})
}

func TestCredentialsHaveALimit(t *testing.T) {
	m := newMachine(t)
	for n := range MaxCredentials {
		c := credentialNumbered(n, job.RoleViewer)
		m.tables.credentials.put(&c)
	}
	m.refused(&PutCredential{Credential: credentialNumbered(MaxCredentials, job.RoleViewer)}, job.Exhausted)
	m.do(&PutCredential{Credential: credentialNumbered(5, job.RoleViewer)})
}

// TestDirectoryStaysAsItWas: what a reader holds is of one moment.
func TestDirectoryStaysAsItWas(t *testing.T) {
	m := newMachine(t)
	m.do(&PutNode{Node: nodeNumbered(1)})
	held := m.directory.Load()
	for n := range 90 {
		m.do(&PutNode{Node: nodeNumbered(n)})
		m.do(&PutCredential{Credential: credentialNumbered(n, job.RoleViewer)})
	}
	m.do(&DropNode{ID: nodeNumbered(1).ID})
	if d := cmp.Diff([]job.Node{nodeNumbered(1)}, held.byName()); d != "" || held.credentials.tree.Len() != 0 {
		t.Fatalf("what was read before changed:\n%s", d)
	}
	if got := fmt.Sprint(len(m.Nodes()), len(m.Credentials())); got != "89 90" {
		t.Fatal(got)
	}
}
