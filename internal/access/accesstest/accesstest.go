// Package accesstest walks a node's whole API as every kind of caller and judges each answer by a table of its own; and it
// holds the certificates with which somebody might try to get in at any port.
package accesstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/api"
	"github.com/musterhq/muster/internal/pki"
	"github.com/musterhq/muster/job"
)

// Caller is one who calls, and what is to come of it.
type Caller struct {
	Name  string
	TLS   *tls.Config // of its connections; nil where the API has no TLS
	Token string
	May   []api.Verb // besides Public, which everybody may
	// Namespaces are those that it is confined to; none: all.
	Namespaces []string
	// Unknown: it is nobody, so what it may not is Unauthenticated rather than Forbidden.
	Unknown bool
}

// Verbs of each role, written down a second time: the test is no test if it asks the code that it judges.
var Verbs = map[job.Role][]api.Verb{
	job.RoleAdmin:     {api.Read, api.Submit, api.Define, api.Inspect, api.Operate, api.Admin, api.Join},
	job.RoleOperator:  {api.Read, api.Inspect, api.Operate},
	job.RoleDeveloper: {api.Read, api.Submit, api.Define, api.Inspect},
	job.RoleSubmitter: {api.Read, api.Submit},
	job.RoleViewer:    {api.Read, api.Inspect},
	job.RoleJoin:      {api.Join},
}

// nothing is a name of a job, run, worker, node or credential that is not there, so that what is allowed does no harm.
var nothing = strings.NewReplacer("{name}", "no-such-name", "{id}", "00000000-0000-7000-8000-000000000000", "{$}", "")

// Walk calls every route at base as every caller. A request that is allowed names what does not exist and has no body: its
// answer may be any but 401 and 403.
func Walk(t *testing.T, base string, routes []api.Route, callers []Caller) {
	t.Helper()
	if len(routes) < 40 || len(callers) == 0 {
		t.Fatalf("%d routes, %d callers: that is not the whole API", len(routes), len(callers))
	}
	for _, c := range callers {
		transport := &http.Transport{TLSClientConfig: c.TLS, ForceAttemptHTTP2: true, Proxy: nil}
		client := &http.Client{Transport: transport, Timeout: 30 * time.Second,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		for _, r := range routes {
			if !r.Namespaced {
				c.visit(t, client, base, r, "")
				continue
			}
			for _, namespace := range append([]string{"default", "another", "*"}, c.Namespaces...) {
				c.visit(t, client, base, r, namespace)
			}
		}
		transport.CloseIdleConnections()
	}
}

func (c *Caller) visit(t *testing.T, client *http.Client, base string, r api.Route, namespace string) {
	t.Helper()
	target := base + nothing.Replace(r.Path)
	if namespace != "" {
		target += "?namespace=" + url.QueryEscape(namespace)
	}
	request, err := http.NewRequest(r.Method, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Token != "" {
		request.Header.Set("Authorization", "Bearer "+c.Token)
	}
	answer, err := client.Do(request)
	if err != nil {
		t.Errorf("%s, %s: %v", c.Name, r.ID, err)
		return
	}
	defer answer.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<20)) // what is broken off has said enough
	refused := answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden
	want := r.Verb == api.Public || slices.Contains(c.May, r.Verb)
	if want && len(c.Namespaces) > 0 {
		want = namespace == "" && r.Verb != api.Operate && r.Verb != api.Admin || slices.Contains(c.Namespaces, namespace) || r.Verb == api.Public
	}
	if namespace == "*" && answer.StatusCode == http.StatusBadRequest {
		return // most routes know no *, and say so to everybody
	}
	where := fmt.Sprintf("%s, %s (%s, namespace %q): %d %.200s", c.Name, r.ID, r.Verb, namespace, answer.StatusCode, body)
	if want == refused {
		t.Errorf("%s; allowed: %v", where, want)
		return
	}
	if !refused {
		return
	}
	var problem struct{ Code job.Code }
	code := job.Forbidden
	if c.Unknown {
		code = job.Unauthenticated
	}
	if err := json.Unmarshal(body, &problem); err != nil || problem.Code != code || answer.StatusCode != code.HTTPStatus() {
		t.Errorf("%s; it is to be %s", where, code)
	}
	if asks := answer.Header.Get("WWW-Authenticate") != ""; asks != c.Unknown {
		t.Errorf("%s; WWW-Authenticate: %v", where, asks)
	}
	for _, h := range []string{"Access-Control-Allow-Origin", "Set-Cookie", "Location"} {
		if answer.Header.Get(h) != "" {
			t.Errorf("%s; it has %s", where, h)
		}
	}
}

// Everyone is a caller of each kind, for the cluster that pki.Init made: with no credential and with garbage, with the
// certificates of a node and of a worker, and with a token of each role, for all namespaces and for one. The token func makes
// a credential, as the cluster under test does.
func Everyone(t *testing.T, made *pki.Made, token func(role job.Role, namespaces ...string) string) []Caller {
	t.Helper()
	anybody, err := pki.ClientConfig(made.CA)
	if err != nil {
		t.Fatal(err)
	}
	node, err := pki.LoadNode(made.Nodes[0].Dir)
	if err != nil {
		t.Fatal(err)
	}
	callers := []Caller{
		{Name: "nobody", TLS: anybody, Unknown: true},
		{Name: "garbage", TLS: anybody, Token: "hello", Unknown: true},
		{Name: "a token that nobody made", TLS: anybody, Token: job.Token("none", make([]byte, 32)), Unknown: true},
		{Name: "a node", TLS: node.PeerClient(), May: []api.Verb{api.Peer}},
		{Name: "a worker", TLS: newWorker(t, node, made.CA, "w1"), May: []api.Verb{api.Join}},
	}
	for _, r := range job.Roles {
		callers = append(callers,
			Caller{Name: string(r), TLS: anybody, Token: token(r), May: Verbs[r]},
			Caller{Name: string(r) + " of a", TLS: anybody, Token: token(r, "a"), May: Verbs[r], Namespaces: []string{"a"}})
	}
	return callers
}

// newWorker is how a worker connects that has its certificate.
func newWorker(t *testing.T, node *pki.Node, caFile, name string) *tls.Config {
	t.Helper()
	w, err := pki.OpenWorker(t.TempDir(), name, caFile)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := w.Request()
	if err != nil {
		t.Fatal(err)
	}
	text, _, err := node.SignWorker(csr, name, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Store(text); err != nil {
		t.Fatal(err)
	}
	return w.TLS()
}

// Intruder is somebody who tries a port that is not for him.
type Intruder struct {
	Name string
	TLS  *tls.Config // checks nothing of the other side: an intruder does not care
	// API tells that the API's port lets such a connection in, and leaves it to the routes what it may: one without any
	// certificate, or with a worker's of this cluster. The port between nodes turns everyone away.
	API bool
}

// Intruders makes them, for the cluster in the directory that pki.Init made. nodeDir is a node's of it, from which the
// workers' authority is taken to be stolen.
func Intruders(t *testing.T, nodeDir string) []Intruder {
	t.Helper()
	node, err := pki.LoadNode(nodeDir)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "other")
	made, err := pki.Init(other, pki.InitOptions{Nodes: []pki.NodeSpec{{Name: node.Name(), Hosts: []string{"localhost"}}}})
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := pki.LoadNode(made.Nodes[0].Dir)
	if err != nil {
		t.Fatal(err)
	}
	stolen, err := tls.LoadX509KeyPair(filepath.Join(nodeDir, "workers.crt"), filepath.Join(nodeDir, "workers.key"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signed := func(parent *x509.Certificate, by any, role pki.Role, chain ...[]byte) *tls.Config {
		t.Helper()
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: node.Name()}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
			URIs:     []*url.URL{{Scheme: "muster", Host: node.ClusterID(), Path: "/" + string(role) + "/" + node.Name()}},
			DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		}
		if parent == nil {
			parent = template
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
		if err != nil {
			t.Fatal(err)
		}
		return presenting(&tls.Certificate{PrivateKey: key, Certificate: append([][]byte{der}, chain...)})
	}
	theWorker := newWorker(t, node, filepath.Join(nodeDir, "ca.crt"), "intruder")
	theWorker.InsecureSkipVerify = true
	theForeigner := foreign.PeerClient()
	theForeigner.VerifyConnection, theForeigner.InsecureSkipVerify = nil, true
	foreignRoot, err := os.ReadFile(made.CA)
	if err != nil {
		t.Fatal(err)
	}
	foreignRootKey, err := os.ReadFile(made.CAKey)
	if err != nil {
		t.Fatal(err)
	}
	foreignCA, err := tls.X509KeyPair(foreignRoot, foreignRootKey)
	if err != nil {
		t.Fatal(err)
	}
	return []Intruder{
		{Name: "no certificate", TLS: &tls.Config{InsecureSkipVerify: true}, API: true},
		{Name: "a worker's certificate", TLS: theWorker, API: true},
		{Name: "a node of another cluster", TLS: theForeigner},
		{Name: "another cluster's root that uses our id", TLS: signed(foreignCA.Leaf, foreignCA.PrivateKey, pki.RoleNode)},
		{Name: "signed by itself", TLS: signed(nil, key, pki.RoleNode)},
		{Name: "a node made with the stolen key of the workers' authority", TLS: signed(stolen.Leaf, stolen.PrivateKey, pki.RoleNode, stolen.Certificate[0])},
		{Name: "the workers' authority itself", TLS: presenting(&stolen)},
	}
}

func presenting(c *tls.Certificate) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c, nil }}
}

// TurnedAway connects to a TLS port as an intruder and fails the test if it is let in. In TLS 1.3 a client learns that its
// certificate was refused only from what it reads.
func TurnedAway(t *testing.T, address string, who Intruder, protocols ...string) {
	t.Helper()
	config := who.TLS.Clone()
	config.NextProtos = protocols
	raw, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	c := tls.Client(raw, config)
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if err := c.Handshake(); err != nil {
		return
	}
	_, err = c.Read(make([]byte, 1))
	var alert *net.OpError // rather than a silence that ran out
	if !errors.As(err, &alert) || alert.Op != "remote error" {
		t.Errorf("%s was let in at %s: %v", who.Name, address, err)
	}
}
