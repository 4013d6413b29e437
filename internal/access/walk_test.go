package access_test

import (
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/api"
	"github.com/musterhq/muster/internal/access"
	"github.com/musterhq/muster/internal/access/accesstest"
	"github.com/musterhq/muster/internal/pki"
	"github.com/musterhq/muster/job"
)

// nobody is behind the API: what comes past the guard panics, which the API answers with 500.
type nobody struct {
	api.Store
	api.Schedules
	api.Leases
	api.Leader
	api.Flags
	api.Hints
	output
	api.Joiner
	api.Cluster
}

type output api.Output // embedded under its own name it would hide its method

type credentials map[string]job.Credential

func (c credentials) Credential(id string) (job.Credential, bool) { x, ok := c[id]; return x, ok }

func (c credentials) add(role job.Role, id string, expires time.Time, namespaces ...string) (token string) {
	secret := slices.Repeat([]byte{byte(len(c))}, 32)
	c[id] = job.Credential{ID: id, Name: id, Role: role, Namespaces: namespaces, ExpiresAt: job.At(expires), Digest: job.SecretDigest(secret)}
	return job.Token(id, secret)
}

// The API behind the guard and the certificates of a node, over real connections; internal/app does the same with a whole node.
func TestEveryRouteForEveryone(t *testing.T) {
	t.Parallel()
	made, err := pki.Init(filepath.Join(t.TempDir(), "tls"), pki.InitOptions{Nodes: []pki.NodeSpec{{Name: "n1", Hosts: []string{"127.0.0.1"}}, {Name: "n2", Hosts: []string{"127.0.0.1"}}}})
	if err != nil {
		t.Fatal(err)
	}
	node, err := pki.LoadNode(made.Nodes[1].Dir)
	if err != nil {
		t.Fatal(err)
	}
	known := credentials{}
	guard := access.New(access.Config{Credentials: known, Identify: node.Identify})
	n := nobody{}
	handler, err := api.New(api.Config{
		Store: n, Schedules: n, Leases: n, Leader: n, Flags: n, Hints: n, Output: n, Joiner: n, Cluster: n,
		Authorize: guard.Authorize, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server := &http.Server{Handler: guard.Handler(handler), TLSConfig: node.APIServer(), ErrorLog: quiet, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(listener, "", "") }()
	defer func() { server.Close(); <-served }()

	callers := accesstest.Everyone(t, made, func(role job.Role, namespaces ...string) string {
		return known.add(role, strings.Join(append([]string{string(role)}, namespaces...), "-"), time.Time{}, namespaces...)
	})
	anybody := callers[0].TLS
	callers = append(callers,
		accesstest.Caller{Name: "an expired credential", TLS: anybody, Token: known.add(job.RoleAdmin, "expired", time.Now().Add(-time.Second)), Unknown: true},
		accesstest.Caller{Name: "a revoked credential", TLS: anybody, Token: known.add(job.RoleAdmin, "revoked", time.Time{}), Unknown: true})
	delete(known, "revoked")
	for _, x := range accesstest.Intruders(t, made.Nodes[0].Dir) {
		if !x.API {
			accesstest.TurnedAway(t, listener.Addr().String(), x, "h2")
		}
	}
	accesstest.Walk(t, "https://"+listener.Addr().String(), api.Operations(), callers)

	// The port between nodes, which nobody but a node gets into.
	peers, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	between := &http.Server{Handler: http.NotFoundHandler(), TLSConfig: node.PeerServer(), ErrorLog: quiet, ReadHeaderTimeout: 10 * time.Second}
	go func() { served <- between.ServeTLS(peers, "", "") }()
	defer func() { between.Close(); <-served }()
	for _, x := range accesstest.Intruders(t, made.Nodes[0].Dir) {
		accesstest.TurnedAway(t, peers.Addr().String(), x, "h2")
	}
	transport := &http.Transport{TLSClientConfig: node.PeerClient(), ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	answer, err := (&http.Client{Transport: transport}).Get("https://" + peers.Addr().String())
	if err != nil {
		t.Fatalf("a node does not get in: %v", err)
	}
	answer.Body.Close()
}
