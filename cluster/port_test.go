package cluster_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/cluster"
	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

// authority makes certificates whose common name is their role.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.key = a.newKey()
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return key
}

func (a *authority) issue(role string) tls.Certificate {
	key := a.newKey()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: role}, NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// configs are those of a node: who shows another role than "node" is refused, by either side.
func (a *authority) configs(role string) (server, client *tls.Config) {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	cert := a.issue(role)
	check := func(s tls.ConnectionState) error {
		if s.PeerCertificates[0].Subject.CommonName != "node" {
			return errors.New("that is no node")
		}
		return nil
	}
	server = &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, VerifyConnection: check,
	}
	client = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: pool, VerifyConnection: check}
	return server, client
}

func loopbackPort(t testing.TB, server, client *tls.Config) *cluster.Port {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := cluster.OpenPort(cluster.PortConfig{Listener: l, Server: server, Client: client, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- p.Serve(context.Background()) }()
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return p
}

// perConnection is how a configuration that reloads its certificates looks.
func perConnection(c *tls.Config) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c, nil }}
}

// talk tries both protocols from one port to another.
func talk(from, to *cluster.Port) (viaRaft, viaHTTP error) {
	c, err := from.StreamLayer().Dial(raft.ServerAddress(to.Address()), 3*time.Second)
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err = c.Write([]byte{0, 'h', 'i'}); err == nil {
			b := make([]byte, 3)
			if _, err = io.ReadFull(c, b); err == nil && string(b) != "\x00hi" {
				err = fmt.Errorf("%q came back", b)
			}
		}
	}
	viaRaft = err
	r, err := from.HTTPClient().Get(to.URL(to.Address()) + "/x/y")
	if err == nil {
		b, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if r.StatusCode != 200 || string(b) != "HTTP/2.0" {
			err = fmt.Errorf("status %d, %q", r.StatusCode, b)
		}
	}
	return viaRaft, err
}

func TestPort(t *testing.T) {
	ours, strange := newAuthority(t), newAuthority(t)
	server, client := ours.configs("node")
	workerServer, workerClient := ours.configs("worker")
	strangerServer, strangerClient := strange.configs("node")
	naked := client.Clone()
	naked.Certificates = nil
	for _, c := range []struct {
		name           string
		server, client *tls.Config // of the one that calls
		to             *tls.Config // nil: plain
		ok             bool
	}{
		{"plain", nil, nil, nil, true},
		{"nodes", server, client, server, true},
		{"nodes that reload", server, client, perConnection(server), true},
		{"a worker", workerServer, workerClient, server, false},
		{"a stranger", strangerServer, strangerClient, server, false},
		{"a stranger, to one that reloads", strangerServer, strangerClient, perConnection(server), false},
		{"nobody", server, naked, server, false},
		{"plain to TLS", nil, nil, server, false},
		{"TLS to plain", server, client, nil, false},
		{"a node to a worker", server, client, workerServer, false},
		{"a node to a stranger", server, client, strangerServer, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			toClient := client
			if c.to == nil {
				toClient = nil
			}
			to := loopbackPort(t, c.to, toClient)
			from := loopbackPort(t, c.server, c.client)
			to.Handle("/x/", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) }))
			layer := to.StreamLayer()
			go func() {
				for {
					c, err := layer.Accept()
					if err != nil {
						return
					}
					go func() { _, _ = io.Copy(c, c) }()
				}
			}()
			viaRaft, viaHTTP := talk(from, to)
			if (viaRaft == nil) != c.ok || (viaHTTP == nil) != c.ok {
				t.Errorf("via raft: %v; via http: %v", viaRaft, viaHTTP)
			}
		})
	}
}

// TestPortCloses: whoever says nothing, or too little, is not kept, and closing does not wait for anybody.
func TestPortCloses(t *testing.T) {
	server, client := newAuthority(t).configs("node")
	for _, server := range []*tls.Config{nil, server} {
		c := client
		if server == nil {
			c = nil
		}
		p := loopbackPort(t, server, c)
		for _, say := range []string{"", "GET / HTTP/1.1\r\n\r\n", "PRI", "\x00"} {
			c, err := net.Dial("tcp", p.Address())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := io.WriteString(c, say); err != nil {
				t.Fatal(err)
			}
		}
		entered := make(chan struct{})
		p.Handle("/hang/", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { close(entered); <-r.Context().Done() }))
		done := make(chan error)
		go func() {
			r, err := p.HTTPClient().Get(p.URL(p.Address()) + "/hang/")
			if err == nil {
				r.Body.Close()
			}
			done <- err
		}()
		<-entered
		start := time.Now()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if <-done == nil {
			t.Error("a request outlived the port")
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("it took %s to close", took)
		}
		if _, err := p.StreamLayer().Dial(raft.ServerAddress(p.Address()), time.Second); err == nil {
			t.Error("a closed port dials")
		}
	}
}

// TestPortRefuses: the number of those who have not said what they want is bounded.
func TestPortRefuses(t *testing.T) {
	p := loopbackPort(t, nil, nil)
	p.Handle("/x/", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) }))
	var silent []net.Conn
	for range 400 {
		c, err := net.Dial("tcp", p.Address())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent = append(silent, c)
	}
	// A node gets in all the same, and at once.
	start := time.Now()
	r, err := p.HTTPClient().Get(p.URL(p.Address()) + "/x/")
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("strangers kept a node out for %v", took)
	}
	var refused, waited atomic.Int32
	var all sync.WaitGroup
	for _, c := range silent {
		all.Go(func() {
			_, _ = c.Read(make([]byte, 1))
			if time.Since(start) < 3*time.Second {
				refused.Add(1)
			} else {
				waited.Add(1)
			}
		})
	}
	all.Wait()
	if refused.Load() < 100 || waited.Load() < 200 {
		t.Errorf("%d of 400 silent connections were refused at once, %d when their time was up", refused.Load(), waited.Load())
	}
}

// trioOverTLS is a cluster over loopback with TLS.
func trioOverTLS(t testing.TB) []*cluster.Node {
	ca := newAuthority(t)
	var nodes []*cluster.Node
	var peers []cluster.Peer
	for i := range 3 {
		server, client := ca.configs("node")
		p := loopbackPort(t, server, client)
		id := fmt.Sprint("n", i)
		n, err := cluster.Open(t.Context(), cluster.Config{
			Memory: cluster.NewMemory(id), State: fsm.New(), Logger: slog.New(slog.DiscardHandler), Port: p, Join: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := n.Close(); err != nil {
				t.Error("close:", err)
			}
		})
		n.Peers().Serve(&recorder{host: id})
		nodes = append(nodes, n)
		peers = append(peers, cluster.Peer{ID: id, Address: p.Address()})
	}
	for _, n := range nodes {
		if err := n.Bootstrap(t.Context(), peers); err != nil {
			t.Fatal(err)
		}
	}
	awaitAll(t, nodes)
	return nodes
}

// awaitAll waits until all know the same leader.
func awaitAll(t testing.TB, nodes []*cluster.Node) (leader, follower *cluster.Node) {
	t.Helper()
	for range 3000 {
		first, _, ok := nodes[0].Leader()
		i := slices.IndexFunc(nodes, func(n *cluster.Node) bool { return n.Leading() })
		same := !slices.ContainsFunc(nodes, func(n *cluster.Node) bool { id, _, _ := n.Leader(); return id != first })
		if ok && same && i >= 0 && nodes[i].ID() == first && nodes[i].Barrier(t.Context()) == nil {
			return nodes[i], nodes[(i+1)%len(nodes)]
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("nobody leads")
	return nil, nil
}

// TestOverTLS: forwarding, catching up and a change of leader over real connections.
func TestOverTLS(t *testing.T) {
	nodes := trioOverTLS(t)
	leader, f := awaitAll(t, nodes)
	var all sync.WaitGroup
	var next atomic.Int64
	for range 8 {
		all.Go(func() {
			for range 25 {
				i := int(next.Add(1))
				if err := put(t.Context(), f, i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	for _, n := range nodes {
		if err := n.CatchUp(t.Context()); err != nil {
			t.Error(err)
		}
		if _, ok := n.State().Mark(id(int(next.Load()))); !ok {
			t.Error("not there after CatchUp")
		}
	}
	if err := f.Peers().Transfer(t.Context(), f.ID()); err != nil {
		t.Fatal(err)
	}
	if err := put(t.Context(), leader, 1000); err != nil {
		t.Error(err)
	}
	if now, _ := awaitAll(t, nodes); now != f {
		t.Error("the leader is another")
	}
	var list []cluster.NodeStatus
	var err error
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if list, err = leader.Peers().Members(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(list, func(v cluster.NodeStatus) bool { return !v.Healthy }) || time.Now().After(end) {
			break
		}
	}
	for _, v := range list {
		if !v.Healthy || v.ClockOffset.Abs() > time.Second {
			t.Errorf("%+v", v)
		}
	}
	if len(list) != 3 {
		t.Error(list)
	}
}

// TestPeerThatDies: a change that was on its way to a node that ends is Unknown; one that never left is Unavailable.
func TestPeerThatDies(t *testing.T) {
	target, from := loopbackPort(t, nil, nil), loopbackPort(t, nil, nil)
	n, err := cluster.Open(t.Context(), cluster.Config{
		Memory: cluster.NewMemory("a"), State: fsm.New(), Logger: slog.New(slog.DiscardHandler), Port: from, Join: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	join := func() error { return n.Peers().Join(t.Context(), target.Address(), job.Node{ID: "a"}) }
	if err := join(); job.CodeOf(err) != job.Unavailable {
		t.Error("nobody answers there:", err)
	}
	entered := make(chan struct{})
	target.Handle("/muster.cluster.v1.NodeService/", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	}))
	go func() { <-entered; target.Close() }()
	if err := join(); job.CodeOf(err) != job.Unknown {
		t.Error("the connection broke:", err)
	}
	if err := join(); job.CodeOf(err) != job.Unavailable {
		t.Error("nobody listens:", err)
	}
}
