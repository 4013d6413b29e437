package pki

import (
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

// copied is a copy of a node's directory, as on the node's machine.
func copied(t *testing.T, from string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "node")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	put(t, from, dir, nodeFiles...)
	return dir
}

func put(t *testing.T, from, to string, files ...string) {
	t.Helper()
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join(from, f))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, f), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// hand is a clock that is moved by hand.
type hand struct{ offset atomic.Int64 }

func (h *hand) now() time.Time          { return time.Now().Add(time.Duration(h.offset.Load())) }
func (h *hand) forward(d time.Duration) { h.offset.Add(int64(d)) }

func TestReload(t *testing.T) {
	t.Parallel()
	c, other := newTown(t), newTown(t)
	dir := copied(t, c.made.Nodes[0].Dir)
	var clock hand
	n, err := loadNode(dir, clock.now)
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	n.OnReload(func(err error) { told = append(told, err.Error()) })
	server := n.APIServer() // made once, as a listener's is
	first := n.current().tls.Leaf
	serves := func() string {
		t.Helper()
		clock.forward(lookEvery)
		presented, err := server.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return presented.Leaf.SerialNumber.String()
	}
	same := func(about string, want int, part string) {
		t.Helper()
		for range 3 {
			if serves() != first.SerialNumber.String() {
				t.Errorf("%s: it took the new files", about)
			}
		}
		if len(told) != want || want > 0 && !strings.Contains(told[want-1], part) {
			t.Errorf("%s: told %q", about, told)
		}
	}
	same("nothing changed", 0, "")

	made, err := Certify(c.dir, CertifyOptions{Node: NodeSpec{Name: "n1"}, Renew: true, Now: clock.now})
	if err != nil {
		t.Fatal(err)
	}
	// The files come one after the other; until all are there the old ones count.
	put(t, made.Dir, dir, fileNode)
	same("half of it", 1, "do not belong together")
	if err := os.Remove(filepath.Join(dir, fileNodeKey)); err != nil {
		t.Fatal(err)
	}
	same("a file is missing", 2, "node.key is missing")
	if err := os.WriteFile(filepath.Join(dir, fileNodeKey), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	same("garbage", 3, "no private key")
	put(t, made.Dir, dir, fileNodeKey)
	if got := serves(); got == first.SerialNumber.String() || got != load(t, made.Dir).current().tls.Leaf.SerialNumber.String() {
		t.Error("it did not take the renewed certificate")
	}
	if _, s, cl := shake(t, server, c.n2.PeerClient()); s != nil || cl != nil {
		t.Error(s, cl)
	}
	if got := n.ExpiresAt(); !got.Equal(made.ExpiresAt) {
		t.Error(got, made.ExpiresAt)
	}
	first, told = n.current().tls.Leaf, nil

	put(t, c.made.Nodes[1].Dir, dir, fileNode, fileNodeKey)
	same("another node's", 1, "for the node n2, and this is n1")
	put(t, other.made.Nodes[0].Dir, dir, nodeFiles...)
	same("another cluster's", 2, "of another cluster")
	twin := t.TempDir() // that says it is the same cluster
	h, err := newCluster(twin, c.made.ClusterID, "twin", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(twin, "n1"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := h.writeNode(filepath.Join(twin, "n1"), NodeSpec{Name: "n1"}, time.Now(), nodeLife); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(twin, "n1"), dir, nodeFiles...)
	same("another root", 3, "of another cluster")
	put(t, made.Dir, dir, nodeFiles...)
	if serves() != first.SerialNumber.String() || len(told) != 3 {
		t.Error(told)
	}
	expired, err := Certify(c.dir, CertifyOptions{Node: NodeSpec{Name: "n1"}, Renew: true, Days: 1, Now: func() time.Time { return time.Now().Add(-25 * time.Hour) }})
	if err != nil {
		t.Fatal(err)
	}
	put(t, expired.Dir, dir, fileNode, fileNodeKey)
	same("one that has ended", 4, "ended at")
	if _, err := loadNode(dir, clock.now); job.CodeOf(err) != job.Invalid || !strings.Contains(err.Error(), "--renew --node n1") {
		t.Error(err)
	}
}

// Many handshakes look at the files at once.
func TestReloadTogether(t *testing.T) {
	t.Parallel()
	c := newTown(t)
	dir := copied(t, c.made.Nodes[0].Dir)
	var clock hand
	n, err := loadNode(dir, clock.now)
	if err != nil {
		t.Fatal(err)
	}
	made, err := Certify(c.dir, CertifyOptions{Node: NodeSpec{Name: "n1"}, Renew: true})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 200 {
				clock.forward(lookEvery / 4)
				if m := n.current(); m == nil || m.tls == nil {
					t.Error("nothing is in force")
				}
			}
		})
	}
	put(t, made.Dir, dir, nodeFiles...)
	all.Wait()
	clock.forward(lookEvery)
	if !n.current().tls.Leaf.Equal(load(t, made.Dir).current().tls.Leaf) {
		t.Error("the new certificate was not taken")
	}
}

func TestBadDirectories(t *testing.T) {
	t.Parallel()
	c, other := newTown(t), newTown(t)
	good := c.made.Nodes[0].Dir
	for _, x := range []struct {
		about, want string
		spoil       func(dir string)
	}{
		{"a mixture of two clusters: the root", "is not good", func(d string) { put(t, other.made.Nodes[0].Dir, d, fileCA) }},
		{"the workers' authority", "workers.crt is not good", func(d string) { put(t, other.made.Nodes[0].Dir, d, fileWorkers, fileWorkersKey) }},
		{"the cluster's file", "node.crt is not good", func(d string) { put(t, other.made.Nodes[0].Dir, d, fileCluster) }},
		{"a node for the workers' authority", "no certificate authority", func(d string) {
			for from, to := range map[string]string{fileNode: fileWorkers, fileNodeKey: fileWorkersKey} {
				text, err := os.ReadFile(filepath.Join(d, from))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(d, to), text, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}},
		{"the workers' authority for a node", "node.crt is not good", func(d string) {
			for from, to := range map[string]string{fileWorkers: fileNode, fileWorkersKey: fileNodeKey} {
				text, err := os.ReadFile(filepath.Join(d, from))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(d, to), text, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}},
		{"a file that is too large", "too large", func(d string) { spoil(t, d, fileCA, strings.Repeat("x", maxFile+1)) }},
		{"no JSON", "cluster.json is not good", func(d string) { spoil(t, d, fileCluster, "hello") }},
		{"no id", "names no cluster", func(d string) { spoil(t, d, fileCluster, "{}") }},
		{"an id with a slash", "names no cluster", func(d string) { spoil(t, d, fileCluster, `{"cluster_id":"a/b"}`) }},
		{"half a credential", "is not complete", func(d string) {
			spoil(t, d, fileCluster, `{"cluster_id":"a","credentials":[{"id":"x","name":"admin","role":"admin"}]}`)
		}},
		{"two certificates", "2 certificates", func(d string) { spoil(t, d, fileCA, c.n1.CA()+other.n1.CA()) }},
		{"an empty file", "no certificate", func(d string) { spoil(t, d, fileNode, "") }},
		{"text behind", "not a certificate in PEM", func(d string) { spoil(t, d, fileCA, c.n1.CA()+"hello") }},
		{"a key that everybody reads", "chmod 600", func(d string) {
			if runtime.GOOS == "windows" {
				t.Skip()
			}
			if err := os.Chmod(filepath.Join(d, fileNodeKey), 0o644); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		dir := copied(t, good)
		x.spoil(dir)
		if _, err := LoadNode(dir); job.CodeOf(err) != job.Invalid || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v", x.about, err)
		}
	}
	for _, f := range nodeFiles {
		dir := copied(t, good)
		if err := os.Remove(filepath.Join(dir, f)); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadNode(dir); job.CodeOf(err) != job.Invalid || !strings.Contains(err.Error(), f+" is missing") {
			t.Errorf("without %s: %v", f, err)
		}
	}
	if _, err := LoadNode(c.dir); job.CodeOf(err) != job.Invalid || !strings.Contains(err.Error(), "directory of the whole cluster") {
		t.Error(err)
	}
	if _, err := LoadNode(filepath.Join(c.dir, "none")); job.CodeOf(err) != job.Invalid {
		t.Error(err)
	}
	early := func() time.Time { return time.Now().Add(-2 * backdated) }
	if _, err := loadNode(good, early); job.CodeOf(err) != job.Invalid || !strings.Contains(err.Error(), "clock says") {
		t.Error(err)
	}
}

func spoil(t *testing.T, dir, file, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, file), []byte(text), fs.FileMode(0o600)); err != nil {
		t.Fatal(err)
	}
}
