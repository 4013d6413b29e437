package app_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/memberlist"
	"go.uber.org/goleak"

	"github.com/musterhq/muster/api"
	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/cluster"
	"github.com/musterhq/muster/cluster/clusterpb"
	"github.com/musterhq/muster/internal/access/accesstest"
	"github.com/musterhq/muster/internal/app"
	"github.com/musterhq/muster/internal/pki"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker/workerpb"
)

func TestMain(m *testing.M) {
	// memberlist lets a probe that is on its way end by itself, a few seconds after its shutdown.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
}

// site is a server as `muster server` assembles it, with all its ports, alone in a cluster that has certificates for n2 too.
type site struct {
	t                 *testing.T
	made              *pki.Made
	api, raft, gossip string
	base              string // of the API
	admin             *client.Client
	anybody           *tls.Config   // trusts the cluster, shows nothing
	ahead             atomic.Int64  // how far the node's clock is ahead, in nanoseconds
	node              *tls.Config   // n2, as a node calls
	patience          time.Duration // for what must not happen
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, api: freeAddress(t), raft: freeAddress(t), gossip: freeAddress(t), patience: 500 * time.Millisecond}
	s.base = "https://" + s.api
	var err error
	if s.made, err = pki.Init(filepath.Join(t.TempDir(), "tls"), pki.InitOptions{Nodes: []pki.NodeSpec{
		{Name: "n1", Hosts: []string{"127.0.0.1"}}, {Name: "n2", Hosts: []string{"127.0.0.1"}}}}); err != nil {
		t.Fatal(err)
	}
	if s.anybody, err = pki.ClientConfig(s.made.CA); err != nil {
		t.Fatal(err)
	}
	other, err := pki.LoadNode(s.made.Nodes[1].Dir)
	if err != nil {
		t.Fatal(err)
	}
	s.node = other.PeerClient()
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- app.Run(ctx, app.Options{
			Name: "n1", DataDir: filepath.Join(t.TempDir(), "n1"), HTTP: s.api, Raft: s.raft, Gossip: s.gossip, Join: []string{s.api}, TLS: s.made.Nodes[0].Dir,
			Logger: slog.New(slog.DiscardHandler), Ready: func(string) { close(ready) },
			Now: func() time.Time { return time.Now().Add(time.Duration(s.ahead.Load())) },
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	case <-time.After(time.Minute):
		t.Fatal("the node is not ready after a minute")
	}
	s.admin = s.client(s.token(s.made.AdminToken))
	return s
}

func (s *site) token(file string) string {
	s.t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// http2 makes an HTTP client with these certificates, whose connections end with the test.
func (s *site) http2(c *tls.Config) *http.Client {
	transport := &http.Transport{TLSClientConfig: c.Clone(), ForceAttemptHTTP2: true}
	s.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

func (s *site) client(token string) *client.Client {
	s.t.Helper()
	c, err := client.New(client.Config{Addresses: []string{s.base}, Token: token, HTTPClient: s.http2(s.anybody)})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// worker joins as a real one does, and has a certificate then.
func (s *site) worker(name string) (*tls.Config, *client.JoinAnswer) {
	s.t.Helper()
	w, err := pki.OpenWorker(s.t.TempDir(), name, s.made.CA)
	if err != nil {
		s.t.Fatal(err)
	}
	csr, err := w.Request()
	if err != nil {
		s.t.Fatal(err)
	}
	answer, err := s.client(s.token(s.made.JoinToken)).Join(s.t.Context(), client.JoinRequest{Name: name, CSR: csr})
	if err != nil {
		s.t.Fatal(err)
	}
	if err := w.Store(answer.Certificate); err != nil {
		s.t.Fatal(err)
	}
	return w.TLS(), answer
}

// TestAccess tries every way into a server that there is, as everybody who might.
func TestAccess(t *testing.T) {
	s := newSite(t)
	t.Run("gossip", s.gossipPort)
	t.Run("streams", s.workerStreams)
	t.Run("between", s.betweenNodes)
	t.Run("strangers", s.strangers)
	t.Run("routes", s.routes) // last: it moves the clock
}

// routes walks the API.
func (s *site) routes(t *testing.T) {
	made := 0
	token := func(q client.CredentialRequest) *client.NewCredential {
		t.Helper()
		made++
		q.Name = fmt.Sprintf("c%d", made)
		c, err := s.admin.CreateCredential(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	callers := accesstest.Everyone(t, s.made, func(role job.Role, namespaces ...string) string {
		q := client.CredentialRequest{Role: role, Namespaces: namespaces, Name: "whole"}
		if ofAll := role == job.RoleAdmin || role == job.RoleOperator || role == job.RoleJoin; ofAll && len(namespaces) > 0 {
			if _, err := s.admin.CreateCredential(t.Context(), q); job.CodeOf(err) != job.Invalid {
				t.Errorf("a credential of the role %s for some namespaces: %v", role, err)
			}
			return ""
		}
		return token(q).Token
	})
	callers = slices.DeleteFunc(callers, func(c accesstest.Caller) bool { return c.Token == "" && len(c.Namespaces) > 0 })
	expired := token(client.CredentialRequest{Role: job.RoleAdmin, ExpiresIn: api.MinCredentialLife})
	revoked := token(client.CredentialRequest{Role: job.RoleAdmin})
	for _, c := range []*client.NewCredential{expired, revoked} { // both were good
		if _, err := s.client(c.Token).Cluster(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.admin.RevokeCredential(t.Context(), revoked.ID); err != nil {
		t.Fatal(err)
	}
	s.ahead.Store(int64(api.MinCredentialLife + time.Second))
	callers = append(callers,
		accesstest.Caller{Name: "the first admin", TLS: s.anybody, Token: s.token(s.made.AdminToken), May: accesstest.Verbs[job.RoleAdmin]},
		accesstest.Caller{Name: "the join token", TLS: s.anybody, Token: s.token(s.made.JoinToken), May: accesstest.Verbs[job.RoleJoin]},
		accesstest.Caller{Name: "an expired credential", TLS: s.anybody, Token: expired.Token, Unknown: true},
		accesstest.Caller{Name: "a revoked credential", TLS: s.anybody, Token: revoked.Token, Unknown: true})
	accesstest.Walk(t, s.base, api.Operations(), callers)
}

// strangers show certificates that are of no use, at both ports that have TLS, and speak without TLS.
func (s *site) strangers(t *testing.T) {
	for _, x := range accesstest.Intruders(t, s.made.Nodes[1].Dir) {
		for _, protocol := range []string{"h2", "muster-raft"} {
			accesstest.TurnedAway(t, s.raft, x, protocol)
		}
		if !x.API {
			accesstest.TurnedAway(t, s.api, x, "h2")
		}
	}
	// A node that says it wants something else, or nothing, is not guessed at.
	for _, protocols := range [][]string{{"http/1.1"}, nil} {
		config := s.node.Clone()
		config.NextProtos = protocols
		c, err := tls.Dial("tcp", s.raft, config)
		if err != nil {
			continue
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a connection for %q was let in: %v", protocols, err)
		}
		c.Close()
	}
	for _, hello := range []string{"\x00\x01\x02\x03\x04\x05\x06\x07", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"} {
		c, err := net.Dial("tcp", s.raft)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(c, hello)
		b, err := io.ReadAll(c)
		if errors.Is(err, os.ErrDeadlineExceeded) || strings.Contains(string(b), "HTTP") || len(b) > 7 { // an alert of TLS has 7 bytes
			t.Errorf("without TLS, %q is answered %q, %v", hello, b, err)
		}
		c.Close()
	}
}

// between is what nodes call of each other: a node may, at the one port where nodes are; nobody may at the API's.
func (s *site) betweenNodes(t *testing.T) {
	calls := []string{
		clusterpb.NodeServiceProposeProcedure, clusterpb.NodeServiceFreshnessProcedure, clusterpb.NodeServiceProbeProcedure, clusterpb.NodeServiceHintProcedure,
		clusterpb.NodeServiceAskProcedure, clusterpb.NodeServiceOutputProcedure, clusterpb.NodeServiceJoinProcedure, clusterpb.NodeServiceRemoveProcedure,
		clusterpb.NodeServiceTransferProcedure, workerpb.LeaderServiceGatewayProcedure,
	}
	worker, _ := s.worker("between")
	for _, procedure := range calls {
		if !s.served(t, s.http2(s.node), "https://"+s.raft+procedure, "") {
			t.Errorf("a node is refused %s", procedure)
		}
		for name, who := range map[string]*tls.Config{"nobody": s.anybody, "a worker": worker, "a node": s.node} {
			for _, token := range []string{"", s.token(s.made.AdminToken)} {
				if s.served(t, s.http2(who), s.base+procedure, token) {
					t.Errorf("%s (with a token: %v) is served %s by the API's port", name, token != "", procedure)
				}
			}
		}
	}
	// And the API is not at the port of the nodes.
	for _, path := range []string{"/v1/cluster", "/v1/cluster/snapshot", "/metrics", "/healthz", workerpb.WorkerServiceAttachProcedure} {
		if s.served(t, s.http2(s.node), "https://"+s.raft+path, s.token(s.made.AdminToken)) {
			t.Errorf("the port of the nodes serves %s", path)
		}
	}
	// A node may not propose what is the leader's own.
	peer := clusterpb.NewNodeServiceClient(s.http2(s.node), "https://"+s.raft)
	if _, err := peer.Propose(t.Context(), connect.NewRequest(&clusterpb.ProposeRequest{Node: "n2", Commands: []byte("garbage")})); err == nil {
		t.Error("garbage was proposed")
	}
}

// served calls with nothing and tells whether anybody is there who takes such calls, whatever the answer: a procedure that
// finds nothing answers 404 too, but not as the server does that knows no such path.
func (s *site) served(t *testing.T, c *http.Client, url, token string) bool {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/proto")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := c.Do(r)
	if err != nil {
		t.Errorf("%s: %v", url, err)
		return false
	}
	defer answer.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<16))
	nobody := strings.Contains(string(body), "404 page not found") || strings.Contains(string(body), "no_route")
	return answer.StatusCode != http.StatusNotFound || !nobody
}

// attach opens a worker's stream with a certificate, and perhaps a token, and says Hello as that name.
func (s *site) attach(t *testing.T, who *tls.Config, token, name string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	rpc := workerpb.NewWorkerServiceClient(s.http2(who), s.base).Attach(ctx)
	if token != "" {
		rpc.RequestHeader().Set("Authorization", "Bearer "+token)
	}
	defer func() { _ = rpc.CloseRequest(); cancel(); _ = rpc.CloseResponse() }()
	hello := &workerpb.WorkerMessage{Hello: &workerpb.Hello{Name: name, Boot: "b-" + name, DataId: "d-" + name, Slots: 1, Executors: []string{"exec"}}}
	if err := rpc.Send(hello); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for {
		m, err := rpc.Receive()
		if err != nil {
			return err
		}
		if w := m.GetWelcome(); w != nil {
			if w.GetStatus() != workerpb.Welcome_STATUS_ACCEPTED {
				return job.Errorf(job.Code(w.GetCode()), "refused", "%s", w.GetMessage())
			}
			return nil
		}
	}
}

func (s *site) workerStreams(t *testing.T) {
	w1, _ := s.worker("w1")
	w2, _ := s.worker("w2")
	admin, join := s.token(s.made.AdminToken), s.token(s.made.JoinToken)
	for _, x := range []struct {
		about string
		who   *tls.Config
		token string
		ok    bool
	}{
		{"no certificate", s.anybody, "", false},
		{"no certificate, a join token", s.anybody, join, false},
		{"no certificate, an admin's token", s.anybody, admin, false},
		{"another worker's certificate", w2, "", false},
		{"another worker's certificate, an admin's token", w2, admin, false},
		{"a node's certificate", s.node, "", false},
		{"a node's certificate, an admin's token", s.node, admin, false},
		{"its certificate", w1, "", true},
	} {
		err := s.attach(t, x.who, x.token, "w1")
		if (err == nil) != x.ok {
			t.Errorf("%s: %v", x.about, err)
		}
		if code := job.CodeOf(err); err != nil && code != job.Unauthenticated && code != job.Forbidden {
			t.Errorf("%s: it is refused for another reason: %v", x.about, err)
		}
	}
	// A worker has itself renewed, and no other one.
	for name, ok := range map[string]bool{"w1": true, "w2": false} {
		c, err := client.New(client.Config{Addresses: []string{s.base}, HTTPClient: s.http2(w1)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Join(t.Context(), client.JoinRequest{Name: name}); (err == nil) != ok {
			t.Errorf("w1 joins as %s: %v", name, err)
		}
	}
}

// gossipPort is joined with the right key, and is silent for everybody else.
func (s *site) gossipPort(t *testing.T) {
	// A node takes part in gossip a moment after it is ready.
	var answer *client.JoinAnswer
	for end := time.Now().Add(30 * time.Second); answer == nil || answer.Cell == ""; {
		if time.Now().After(end) {
			t.Fatal("the node takes no part in gossip")
		}
		_, answer = s.worker("talker")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	quiet := slog.New(slog.DiscardHandler)
	config := cluster.CellConfig{Cell: answer.Cell, Seeds: answer.Seeds, Key: answer.GossipKey, Name: "talker", Logger: quiet}
	member, err := cluster.JoinCell(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	if len(member.Nodes()) != 1 {
		t.Errorf("with the key: %v", member.Nodes())
	}
	if err := member.Leave(ctx); err != nil {
		t.Error(err)
	}
	wrong := config
	wrong.Name, wrong.Key = "stranger", make([]byte, 32)
	if _, err := cluster.JoinCell(ctx, wrong); err == nil {
		t.Error("a wrong key is let in")
	}
	wrong = config
	wrong.Name, wrong.Cell = "stranger", answer.Cell+"x"
	if _, err := cluster.JoinCell(ctx, wrong); err == nil {
		t.Error("the key of one cell lets in another")
	}
	// Without any key, as the library itself speaks; with the cell's label and without.
	for _, label := range []string{"", answer.Cell, "muster/" + answer.Cell} {
		c := memberlist.DefaultLocalConfig()
		c.Name, c.BindAddr, c.BindPort, c.AdvertisePort, c.Label = "keyless", "127.0.0.1", 0, 0, label
		c.LogOutput = io.Discard
		list, err := memberlist.Create(c)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := list.Join([]string{s.gossip}); n > 0 || err == nil {
			t.Errorf("without a key, label %q: it joined %d", label, n)
		}
		if n := list.NumMembers(); n != 1 {
			t.Errorf("without a key, label %q: it knows %d members", label, n)
		}
		if err := list.Shutdown(); err != nil {
			t.Error(err)
		}
	}
	// A datagram of anybody is not answered.
	c, err := net.Dial("udp", s.gossip)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(s.patience))
	_, _ = c.Write([]byte{0, 0x82, 0xa5, 'S', 'e', 'q', 'N', 'o', 1, 0xa4, 'N', 'o', 'd', 'e', 0xa2, 'n', '1'}) // a ping
	if n, err := c.Read(make([]byte, 1500)); err == nil {
		t.Errorf("a ping without a key is answered with %d bytes", n)
	}
}
