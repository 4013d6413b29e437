package pki

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

func TestWorkerFromJoinToRenewal(t *testing.T) {
	t.Parallel()
	c := newTown(t)
	dir := filepath.Join(t.TempDir(), "data")
	var clock hand
	open := func() *Worker {
		t.Helper()
		w, err := openWorker(dir, "w1", c.made.CA, clock.now)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	n, err := loadNode(c.made.Nodes[0].Dir, clock.now)
	if err != nil {
		t.Fatal(err)
	}
	w := open()
	config := named(w.TLS(), "localhost") // made once, as a client's is
	who := func() string {
		t.Helper()
		state, s, cl := shake(t, n.APIServer(), config)
		if s != nil || cl != nil {
			t.Fatal(s, cl)
		}
		who, _ := n.Identify(&state)
		return who.Name
	}
	if !w.Expiring(clock.now()) || w.Certified(clock.now()) || who() != "" {
		t.Error("it begins with a certificate")
	}
	certify(t, w, n, 24*time.Hour)
	if w.Expiring(clock.now()) || !w.Certified(clock.now()) || who() != "w1" {
		t.Error("it does not use its certificate")
	}
	modes(t, dir)
	first := w.good(clock.now()).Leaf
	w = open() // the agent starts again
	config = named(w.TLS(), "localhost")
	if !w.good(clock.now()).Leaf.Equal(first) {
		t.Error("it forgot its certificate")
	}
	clock.forward(12*time.Hour - time.Minute)
	if w.Expiring(clock.now()) {
		t.Error("it renews early")
	}
	clock.forward(2 * time.Minute)
	if !w.Expiring(clock.now()) || !w.Certified(clock.now()) || who() != "w1" {
		t.Error("half of its life is over")
	}
	certify(t, w, n, 24*time.Hour)
	if w.Expiring(clock.now()) || w.good(clock.now()).Leaf.Equal(first) || who() != "w1" {
		t.Error("it did not renew")
	}
	// One that has ended is not shown: the handshake would fail, and with it the way back in with a join token.
	clock.forward(24*time.Hour - time.Minute)
	if w.Certified(clock.now()) || !w.Expiring(clock.now()) || who() != "" {
		t.Error("it shows a certificate that is about to end")
	}
	clock.forward(time.Hour)
	if w = open(); w.Certified(clock.now()) || w.certificate != nil {
		t.Error("it took up a certificate that has ended")
	}
	modes(t, dir)
}

func TestWorkerTakesOnlyItsOwn(t *testing.T) {
	t.Parallel()
	c, other := newTown(t), newTown(t)
	w := c.worker(t, "w1")
	sign := func(n *Node, by *Worker, name string) string {
		t.Helper()
		csr, err := by.Request()
		if err != nil {
			t.Fatal(err)
		}
		text, _, err := n.SignWorker(csr, name, 0)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	second := c.worker(t, "w1")
	before := w.good(time.Now()).Leaf
	good := sign(c.n1, w, "w1")
	leafOnly := good[:strings.Index(good, "-----END CERTIFICATE-----")+len("-----END CERTIFICATE-----\n")]
	for about, text := range map[string]string{
		"of another cluster": sign(other.n1, w, "w1"), "for another key": sign(c.n1, second, "w1"), "for another name": sign(c.n1, w, "w2"),
		"nothing": "", "garbage": "hello", "the root": c.n1.CA(), "without what signed it": leafOnly,
		"a node's": string(pemCertificates(c.n1.current().tls.Leaf)),
	} {
		if err := w.Store(text); job.CodeOf(err) != job.Invalid {
			t.Errorf("%s: %v", about, err)
		}
	}
	if !w.good(time.Now()).Leaf.Equal(before) {
		t.Error("a refused certificate took the place of the good one")
	}
	if err := w.Store(good); err != nil {
		t.Error(err)
	}
}

func TestOpenWorker(t *testing.T) {
	t.Parallel()
	c, other := newTown(t), newTown(t)
	dir := t.TempDir()
	first, err := OpenWorker(dir, "w1", c.made.CA)
	if err != nil {
		t.Fatal(err)
	}
	certify(t, first, c.n1, 0)
	// Another name, or another cluster: the certificate is put aside, the key stays.
	for _, x := range []struct{ name, ca string }{{"w2", c.made.CA}, {"w1", other.made.CA}} {
		w, err := OpenWorker(dir, x.name, x.ca)
		if err != nil || w.certificate != nil {
			t.Errorf("%+v: %v", x, err)
		}
		if _, err := pair(first.certificate.Leaf, w.key); err != nil {
			t.Error(err)
		}
	}
	// Several at once agree on one key.
	together := filepath.Join(t.TempDir(), "data")
	workers := make([]*Worker, 8)
	var all sync.WaitGroup
	for i := range workers {
		all.Go(func() { workers[i], _ = OpenWorker(together, "w", c.made.CA) })
	}
	all.Wait()
	csr, _ := workers[0].Request()
	text, _, err := c.n1.SignWorker(csr, "w", 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, w := range workers {
		if err := w.Store(text); err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
	modes(t, together)
	if left, _ := os.ReadDir(together); len(left) != 2 {
		t.Error(left)
	}
	for about, x := range map[string]struct {
		name, ca, key string
		want          string
	}{
		"no name":       {"", c.made.CA, "", "a name is missing"},
		"a bad key":     {"w1", c.made.CA, "hello", "remove it, and the worker makes another"},
		"no CA":         {"w1", filepath.Join(dir, "none"), "", "is missing"},
		"a key for CA":  {"w1", c.made.CAKey, "", "not a certificate in PEM"},
		"an empty CA":   {"w1", os.DevNull, "", "holds no certificate"},
		"a node's cert": {"w1", c.made.CA, string(pemCertificates(c.n1.root)), "no private key"},
	} {
		d := t.TempDir()
		if x.key != "" {
			spoil(t, d, fileWorkerKey, x.key)
		}
		if _, err := OpenWorker(d, x.name, x.ca); job.CodeOf(err) != job.Invalid || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v", about, err)
		}
	}
	// A stored certificate that is damaged is as none.
	spoil(t, dir, fileWorkerCert, "hello")
	if w, err := OpenWorker(dir, "w1", c.made.CA); err != nil || w.certificate != nil || !w.Expiring(time.Now()) {
		t.Error(err)
	}
}

// Without a CA of its own a worker trusts whom the machine trusts, which is nobody of ours.
func TestSystemRoots(t *testing.T) {
	t.Parallel()
	c := newTown(t)
	w, err := OpenWorker(t.TempDir(), "w1", "")
	if err != nil {
		t.Fatal(err)
	}
	config, err := ClientConfig("")
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []*tls.Config{w.TLS(), config} {
		if _, _, err := shake(t, c.n1.APIServer(), named(x, "localhost")); err == nil {
			t.Error("a node was trusted that nobody vouched for")
		}
	}
	certify(t, w, c.n1, 0) // it takes what the node gives
	if !w.Certified(time.Now()) {
		t.Error("it has no certificate")
	}
}
