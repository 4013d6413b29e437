package pki

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

func TestInit(t *testing.T) {
	t.Parallel()
	c := newTown(t)
	modes(t, c.dir)
	for _, n := range []string{"n1", "n2"} {
		if _, err := os.Stat(filepath.Join(c.dir, dirNodes, n, fileCAKey)); err == nil {
			t.Errorf("%s holds the root's key", n)
		}
		for _, f := range []string{fileAdmin, fileJoin} {
			if _, err := os.Stat(filepath.Join(c.dir, dirNodes, n, f)); err == nil {
				t.Errorf("%s holds %s", n, f)
			}
		}
	}
	if c.n1.ClusterID() != c.made.ClusterID || c.n2.ClusterID() != c.made.ClusterID || c.n1.Name() != "n1" || c.n2.Name() != "n2" {
		t.Error(c.n1.ClusterID(), c.n2.ClusterID(), c.n1.Name(), c.n2.Name())
	}
	roles := map[job.Role]string{job.RoleAdmin: c.made.AdminToken, job.RoleJoin: c.made.JoinToken}
	all := c.n1.Credentials()
	if len(all) != len(roles) {
		t.Fatal(all)
	}
	for _, x := range all {
		token, err := os.ReadFile(roles[x.Role])
		if err != nil {
			t.Fatal(err)
		}
		id, secret, ok := job.ParseToken(string(token))
		if !ok || id != x.ID || !x.Matches(secret, job.At(time.Now())) || x.CreatedAt == 0 || x.Name == "" {
			t.Errorf("%s: %+v", x.Role, x)
		}
		for _, f := range []string{filepath.Join(c.dir, fileCluster), filepath.Join(c.made.Nodes[0].Dir, fileCluster)} {
			if text, err := os.ReadFile(f); err != nil || bytes.Contains(text, bytes.TrimSpace(token)) {
				t.Errorf("%s holds a token, or cannot be read: %v", f, err)
			}
		}
	}
	leaf := c.n2.current().tls.Leaf
	for _, h := range []string{"n2.example.com", "10.0.0.2", "localhost", "127.0.0.1", "::1"} {
		if err := leaf.VerifyHostname(h); err != nil {
			t.Error(err)
		}
	}
	for _, h := range []string{"n1.example.com", "10.0.0.1"} {
		if leaf.VerifyHostname(h) == nil {
			t.Errorf("n2 is good for %s", h)
		}
	}
	root, workers := c.home.root.certificate, c.home.workers.certificate
	for what, x := range map[string]struct {
		c    *x509.Certificate
		life time.Duration
	}{"the root": {root, caLife}, "the workers' authority": {workers, caLife}, "a node": {leaf, nodeLife}} {
		if left := time.Until(x.c.NotAfter); left > x.life || left < x.life-time.Minute {
			t.Errorf("%s is good for %v", what, left)
		}
		if time.Since(x.c.NotBefore) < backdated-time.Minute {
			t.Errorf("%s begins at %v", what, x.c.NotBefore)
		}
	}
	if !workers.IsCA || !workers.MaxPathLenZero || len(workers.ExtKeyUsage) != 1 || workers.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || leaf.IsCA {
		t.Errorf("%+v", workers)
	}
	// Two clusters share nothing.
	other := newTown(t)
	if other.made.ClusterID == c.made.ClusterID || bytes.Equal(other.home.root.certificate.Raw, root.Raw) {
		t.Error("two clusters are one")
	}
}

func everything(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			text, err := os.ReadFile(path)
			fmt.Fprintf(&b, "%s %x\n", path, text)
			return err
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestInitOverwritesNothing(t *testing.T) {
	t.Parallel()
	c := newTown(t)
	before := everything(t, c.dir)
	spec := []NodeSpec{{"n1", []string{"127.0.0.1"}}}
	if _, err := Init(c.dir, InitOptions{Nodes: spec}); job.CodeOf(err) != job.Conflict || !strings.Contains(err.Error(), "holds a cluster already") {
		t.Error(err)
	}
	if everything(t, c.dir) != before {
		t.Error("a refused init changed something")
	}
	parent := t.TempDir()
	full := filepath.Join(parent, "full")
	if err := os.Mkdir(full, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(full, InitOptions{Nodes: spec}); job.CodeOf(err) != job.Conflict || !strings.Contains(err.Error(), "is not empty") {
		t.Error(err)
	}
	if _, err := Init(filepath.Join(full, "x"), InitOptions{Nodes: spec}); job.CodeOf(err) != job.Invalid || !strings.Contains(err.Error(), "is not a directory") {
		t.Error(err)
	}
	empty := filepath.Join(parent, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(empty, InitOptions{Nodes: spec}); err != nil {
		t.Error(err)
	}
	modes(t, empty)
}

// An init that was killed at any point leaves nothing at its directory, and the next one clears up behind it.
func TestInitAfterAKill(t *testing.T) {
	t.Parallel()
	parent := filepath.Join(t.TempDir(), "a[b]*") // a path is taken as it is
	dir := filepath.Join(parent, "tls")
	half := filepath.Join(parent, ".tls.unfinished-0123456789abcdef")
	theirs := filepath.Join(parent, ".tls.other")
	for _, d := range []string{filepath.Join(half, dirNodes, "n1"), theirs} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(half, fileCAKey), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadNode(filepath.Join(dir, dirNodes, "n1")); err == nil {
		t.Error("a half-made cluster was loaded")
	}
	made, err := Init(dir, InitOptions{Nodes: []NodeSpec{{"n1", []string{"127.0.0.1"}}}})
	if err != nil {
		t.Fatal(err)
	}
	load(t, made.Nodes[0].Dir)
	if left, err := os.ReadDir(parent); err != nil || len(left) != 2 {
		t.Errorf("%v %v", left, err)
	}
}

// What fails half-way leaves nothing behind.
func TestStageFails(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	fault := fmt.Errorf("the disk is full")
	err := stage(filepath.Join(parent, "tls"), func(dir string) error {
		if err := write(filepath.Join(dir, "x"), nil); err != nil {
			t.Error(err)
		}
		return fault
	})
	if left, _ := os.ReadDir(parent); err == nil || len(left) != 0 {
		t.Errorf("%v: %v", err, left)
	}
}

func TestCertify(t *testing.T) {
	t.Parallel()
	c := newTown(t)
	certify := func(name string, renew bool, days int, hosts ...string) (*MadeNode, error) {
		return Certify(c.dir, CertifyOptions{Node: NodeSpec{name, hosts}, Renew: renew, Days: days})
	}
	made, err := certify("n3", false, 0, "n3.example.com")
	if err != nil {
		t.Fatal(err)
	}
	n3 := load(t, made.Dir)
	if _, s, cl := shake(t, c.n1.PeerServer(), n3.PeerClient()); s != nil || cl != nil {
		t.Error(s, cl)
	}
	before := everything(t, c.dir)
	for _, x := range []struct {
		about string
		err   error
		code  job.Code
		want  string
	}{
		{"one that is there", second(certify("n1", false, 0, "10.0.0.1")), job.Conflict, "has a certificate already; say --renew"},
		{"a renewed one that is not", second(certify("n9", true, 0)), job.NotFound, "there is no node n9"},
		{"no hosts", second(certify("n9", false, 0)), job.Invalid, "write n9=HOST"},
		{"too long", second(certify("n9", false, MaxDays+1, "h")), job.Invalid, "out of range"},
		{"for less than nothing", second(certify("n9", false, -1, "h")), job.Invalid, "out of range"},
		{"a node's directory", second(Certify(c.made.Nodes[0].Dir, CertifyOptions{Node: NodeSpec{"n9", []string{"h"}}})), job.NotFound, "has no ca.key"},
		{"no directory", second(Certify(filepath.Join(c.dir, "none"), CertifyOptions{Node: NodeSpec{"n9", []string{"h"}}})), job.NotFound, "does not exist"},
	} {
		if job.CodeOf(x.err) != x.code || !strings.Contains(x.err.Error(), x.want) {
			t.Errorf("%s: %v", x.about, x.err)
		}
	}
	if everything(t, c.dir) != before {
		t.Error("a refused certify changed something")
	}
	old := c.n2.current().tls.Leaf
	if made, err = certify("n2", true, 30); err != nil {
		t.Fatal(err)
	}
	renewed := load(t, made.Dir).current().tls.Leaf
	if err := renewed.VerifyHostname("n2.example.com"); err != nil || renewed.VerifyHostname("10.0.0.2") != nil {
		t.Error("the hosts were not kept", err)
	}
	if left := time.Until(renewed.NotAfter); left > 30*24*time.Hour || left < 29*24*time.Hour || renewed.Equal(old) {
		t.Errorf("it is good for %v", left)
	}
	kept, err := filepath.Glob(filepath.Join(c.dir, dirNodes, dirReplaced, "n2-*", fileNode))
	if err != nil || len(kept) != 1 {
		t.Error(kept, err)
	}
	if made, err = certify("n2", true, 0, "n2.example.org"); err != nil {
		t.Fatal(err)
	}
	if renewed = load(t, made.Dir).current().tls.Leaf; renewed.VerifyHostname("n2.example.org") != nil || renewed.VerifyHostname("n2.example.com") == nil {
		t.Error(renewed.DNSNames)
	}
	modes(t, c.dir)
	// A certificate does not outlive what signed it, and a root that has ended signs nothing.
	late := func() time.Time { return c.home.root.certificate.NotAfter.Add(-24 * time.Hour) }
	if made, err = Certify(c.dir, CertifyOptions{Node: NodeSpec{"n8", []string{"h"}}, Now: late}); err != nil || made.ExpiresAt.After(c.home.root.certificate.NotAfter) {
		t.Error(made, err)
	}
	late = func() time.Time { return c.home.root.certificate.NotAfter.Add(time.Hour) }
	if _, err = Certify(c.dir, CertifyOptions{Node: NodeSpec{"n9", []string{"h"}}, Now: late}); job.CodeOf(err) != job.Conflict {
		t.Error(err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestBadNodes(t *testing.T) {
	t.Parallel()
	for _, x := range []struct{ spec, want string }{
		{"", "a name is missing"},
		{"=h", "a name is missing"},
		{"n1", "write n1=HOST"},
		{"n1=", "a host is empty"},
		{"n1=a,,b", "a host is empty"},
		{"a/b=h", "is not a name"},
		{"../x=h", "is not a name"},
		{".x=h", "is not a name"},
		{"n1=h:8080", "without a port"},
		{"n1=[::1]:80", "without a port"},
		{"n1=http://h", "without a port"},
		{"n1=10.0.0", "is not a host"},
		{"n1=10.0.0.256", "is not a host"},
		{"n1=*.example.com", "is not a host"},
		{"n1=a b", "is not a host"},
		{"n1=-a", "is not a host"},
		{"n1=a..b", "is not a host"},
		{"n1=ä.example.com", "is not a host"},
		{"n1=" + strings.Repeat("a", 64), "is not a host"},
		{"n1=" + strings.Repeat("a.", 200), "is not a host"},
		{"n1=" + strings.Repeat("h,", 32) + "h", "the limit is 32"},
	} {
		dir := filepath.Join(t.TempDir(), "tls")
		_, err := Init(dir, InitOptions{Nodes: []NodeSpec{ParseNodeSpec(x.spec)}})
		if e := job.AsError(err); err == nil || e.Code != job.Invalid || e.Field != "node" || !strings.Contains(e.Message, x.want) {
			t.Errorf("%q: %v", x.spec, err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%q made something", x.spec)
		}
	}
	for _, spec := range []string{"n1=h", "n1 = a , b", "n1=10.0.0.1,::1,fe80::1,n1.example.com,under_score", "N.1_x-y=xn--bcher-kva.example"} {
		if _, err := Init(filepath.Join(t.TempDir(), "tls"), InitOptions{Nodes: []NodeSpec{ParseNodeSpec(spec)}}); err != nil {
			t.Errorf("%q: %v", spec, err)
		}
	}
	twice := []NodeSpec{{"n1", []string{"a"}}, {"N1", []string{"b"}}}
	if _, err := Init(filepath.Join(t.TempDir(), "tls"), InitOptions{Nodes: twice}); job.CodeOf(err) != job.Invalid || !strings.Contains(err.Error(), "twice") {
		t.Error(err)
	}
	if _, err := Init(filepath.Join(t.TempDir(), "tls"), InitOptions{Nodes: make([]NodeSpec, 101)}); job.CodeOf(err) != job.Invalid {
		t.Error(err)
	}
	if _, err := Init(filepath.Join(t.TempDir(), "tls"), InitOptions{ClusterName: "a b", Nodes: twice[:1]}); job.CodeOf(err) != job.Invalid {
		t.Error(err)
	}
}

// A cluster that gets new certificates keeps its id, and whoever holds old ones is a stranger to it.
func TestInitOfAClusterThatIsThere(t *testing.T) {
	t.Parallel()
	spec := []NodeSpec{{Name: "n1", Hosts: []string{"127.0.0.1"}}}
	old, err := Init(filepath.Join(t.TempDir(), "old"), InitOptions{Nodes: spec})
	if err != nil {
		t.Fatal(err)
	}
	made, err := Init(filepath.Join(t.TempDir(), "new"), InitOptions{Nodes: spec, ClusterID: old.ClusterID})
	if err != nil || made.ClusterID != old.ClusterID {
		t.Fatalf("made %+v: %v", made, err)
	}
	was, err := LoadNode(old.Nodes[0].Dir)
	if err != nil {
		t.Fatal(err)
	}
	is, err := LoadNode(made.Nodes[0].Dir)
	if err != nil {
		t.Fatal(err)
	}
	thief := was.current().tls.Leaf
	if _, err := verifyNode([]*x509.Certificate{thief}, is.root, is.pool, is.ClusterID(), time.Now()); err == nil {
		t.Error("the old certificate is still good")
	}
	for _, id := range []string{"x", strings.ToUpper(old.ClusterID), "{" + old.ClusterID + "}"} {
		if _, err := Init(filepath.Join(t.TempDir(), "bad"), InitOptions{Nodes: spec, ClusterID: id}); job.AsError(err).Field != "cluster-id" {
			t.Errorf("%q: %v", id, err)
		}
	}
}
