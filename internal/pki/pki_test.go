package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/musterhq/muster/job"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// town is a cluster's directory with two nodes.
type town struct {
	dir    string
	made   *Made
	home   *home // with the root's key
	n1, n2 *Node
}

func newTown(t *testing.T) *town {
	t.Helper()
	c := &town{dir: filepath.Join(t.TempDir(), "tls")}
	var err error
	c.made, err = Init(c.dir, InitOptions{Nodes: []NodeSpec{{Name: "n1", Hosts: []string{"127.0.0.1"}}, {Name: "n2", Hosts: []string{"n2.example.com", "10.0.0.2"}}}})
	if err != nil {
		t.Fatal(err)
	}
	c.home, c.n1, c.n2 = opened(t, c.dir), load(t, c.made.Nodes[0].Dir), load(t, c.made.Nodes[1].Dir)
	return c
}

func opened(t *testing.T, dir string) *home {
	t.Helper()
	h, err := openCluster(dir)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func load(t *testing.T, dir string) *Node {
	t.Helper()
	n, err := LoadNode(dir)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// worker makes the worker's side, with a certificate from n.
func (c *town) worker(t *testing.T, name string) *Worker {
	t.Helper()
	w, err := OpenWorker(t.TempDir(), name, c.made.CA)
	if err != nil {
		t.Fatal(err)
	}
	certify(t, w, c.n1, 0)
	return w
}

func certify(t *testing.T, w *Worker, n *Node, ttl time.Duration) {
	t.Helper()
	csr, err := w.Request()
	if err != nil {
		t.Fatal(err)
	}
	certificate, _, err := n.SignWorker(csr, w.name, ttl)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Store(certificate); err != nil {
		t.Fatal(err)
	}
}

// shake connects the two sides and sends a byte each way: in TLS 1.3 a client learns with its first read only that its
// certificate was refused.
func shake(t *testing.T, server, client *tls.Config) (state tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	done := make(chan error, 1)
	go func() {
		raw, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			done <- err
			return
		}
		c := tls.Client(raw, client)
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err = c.Write([]byte{1}); err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		done <- err
	}()
	raw, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s := tls.Server(raw, server)
	_ = s.SetDeadline(time.Now().Add(10 * time.Second))
	if serverErr = s.Handshake(); serverErr == nil {
		if _, serverErr = io.ReadFull(s, make([]byte, 1)); serverErr == nil {
			_, serverErr = s.Write([]byte{1})
		}
		state = s.ConnectionState()
	}
	s.Close()
	clientErr = <-done
	return state, serverErr, clientErr
}

func named(c *tls.Config, name string) *tls.Config {
	c = c.Clone()
	c.ServerName = name
	return c
}

func TestWhoGetsIn(t *testing.T) {
	t.Parallel()
	c := newTown(t)
	anybody, err := ClientConfig(c.made.CA)
	if err != nil {
		t.Fatal(err)
	}
	anybody.ServerName = "localhost"
	worker := named(c.worker(t, "w1").TLS(), "localhost")
	for _, x := range []struct {
		name           string
		server, client *tls.Config
		role           Role   // "" and ok: nobody in particular
		who            string // the name in the certificate
		ok             bool
	}{
		{"a node calls a node", c.n1.PeerServer(), c.n2.PeerClient(), RoleNode, "n2", true},
		{"a node calls another's API", c.n1.APIServer(), c.n2.PeerClient(), RoleNode, "n2", true},
		{"a worker calls the API", c.n1.APIServer(), worker, RoleWorker, "w1", true},
		{"anybody calls the API", c.n1.APIServer(), anybody, "", "", true},
		{"by its name", c.n2.APIServer(), named(anybody, "n2.example.com"), "", "", true},
		{"by its address", c.n2.APIServer(), named(anybody, "10.0.0.2"), "", "", true},
		{"by the name of another", c.n1.APIServer(), named(anybody, "n2.example.com"), "", "", false},
		{"a worker calls the nodes' port", c.n1.PeerServer(), worker, "", "", false},
		{"anybody calls the nodes' port", c.n1.PeerServer(), anybody, "", "", false},
	} {
		state, serverErr, clientErr := shake(t, x.server, x.client)
		if ok := serverErr == nil && clientErr == nil; ok != x.ok {
			t.Errorf("%s: server %v, client %v", x.name, serverErr, clientErr)
			continue
		}
		who, known := c.n1.Identify(&state)
		if x.ok && (known != (x.role != "") || who.Role != x.role || who.Name != x.who) {
			t.Errorf("%s: %+v %v", x.name, who, known)
		}
		if known && (who.Cluster != c.made.ClusterID || time.Until(who.ExpiresAt) < time.Hour) {
			t.Errorf("%s: %+v", x.name, who)
		}
		if x.ok && (state.Version != tls.VersionTLS13 || state.DidResume) {
			t.Errorf("%s: version %x, resumed %v", x.name, state.Version, state.DidResume)
		}
	}
	// Not even TLS 1.2, and not without TLS.
	old := named(anybody, "localhost")
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, err, _ := shake(t, c.n1.APIServer(), old); err == nil {
		t.Error("TLS 1.2 was spoken")
	}
}

// presenting is a client, or a server, with these certificates whatever the other side asks for.
func presenting(key crypto.Signer, chain ...*x509.Certificate) *tls.Config {
	c := &tls.Certificate{PrivateKey: key}
	for _, x := range chain {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	return &tls.Config{
		InsecureSkipVerify: true, Certificates: []tls.Certificate{*c}, MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c, nil },
	}
}

// What can be made of what is stolen, or brought along, gets in nowhere.
func TestForgeries(t *testing.T) {
	t.Parallel()
	c, other := newTown(t), newTown(t)
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	nodeURI := identityURI(c.made.ClusterID, RoleNode, "n2")
	forge := func(by *authority, change func(*x509.Certificate)) *x509.Certificate {
		t.Helper()
		x := &x509.Certificate{
			Subject: pkix.Name{CommonName: "n2"}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: both,
			URIs: []*url.URL{nodeURI}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		}
		if change != nil {
			change(x)
		}
		made, err := issue(x, key.Public(), by, key, now, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	workers, workersCert := c.home.workers, c.home.workers.certificate
	// An authority made with the stolen key of the workers' one.
	subKey, _ := newKey()
	sub, err := issue(&x509.Certificate{Subject: pkix.Name{CommonName: "sub"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign, MaxPathLen: 3},
		subKey.Public(), workers, nil, now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	// One that calls itself what the root is called.
	namesake, err := issue(&x509.Certificate{
		Subject: c.home.root.certificate.Subject, SubjectKeyId: c.home.root.certificate.SubjectKeyId, IsCA: true, KeyUsage: x509.KeyUsageCertSign, MaxPathLen: 3,
	}, subKey.Public(), nil, subKey, now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	genuine := forge(c.home.root, nil)
	expired, err := issue(&x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: both, URIs: []*url.URL{nodeURI}},
		key.Public(), c.home.root, nil, now.Add(-2*time.Hour), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	clientOnly := func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }
	uri := func(u string) func(*x509.Certificate) {
		return func(x *x509.Certificate) {
			parsed, err := url.Parse(u)
			if err != nil {
				t.Fatal(err)
			}
			x.URIs = []*url.URL{parsed}
		}
	}
	id := c.made.ClusterID
	for name, x := range map[string]*tls.Config{
		"the workers' authority makes a node":               presenting(key, forge(workers, nil), workersCert),
		"and says that it is for clients only":              presenting(key, forge(workers, clientOnly), workersCert),
		"and sends the root along":                          presenting(key, forge(workers, clientOnly), workersCert, c.home.root.certificate),
		"the workers' authority shows itself":               presenting(workers.key, workersCert),
		"it makes an authority":                             presenting(key, forge(&authority{sub, subKey}, clientOnly), sub, workersCert),
		"it makes an authority that makes a worker":         presenting(key, forge(&authority{sub, subKey}, uri("muster://"+id+"/worker/w1")), sub, workersCert),
		"the root of another cluster, with our id":          presenting(key, forge(other.home.root, nil)),
		"and sends it along":                                presenting(key, forge(other.home.root, nil), other.home.root.certificate),
		"a root of the same name":                           presenting(key, forge(&authority{namesake, subKey}, nil), namesake),
		"a node of another cluster":                         presenting(other.n1.current().tls.PrivateKey.(crypto.Signer), other.n1.current().tls.Leaf),
		"signed by itself":                                  presenting(key, forge(nil, nil)),
		"expired":                                           presenting(key, expired),
		"our root, another cluster's id":                    presenting(key, forge(c.home.root, uri("muster://other/node/n2"))),
		"our root, no URI":                                  presenting(key, forge(c.home.root, func(x *x509.Certificate) { x.URIs = nil })),
		"our root, two URIs":                                presenting(key, forge(c.home.root, func(x *x509.Certificate) { x.URIs = append(x.URIs, identityURI(id, RoleWorker, "w")) })),
		"our root, a worker":                                presenting(key, forge(c.home.root, uri("muster://"+id+"/worker/w1"))),
		"our root, another role":                            presenting(key, forge(c.home.root, uri("muster://"+id+"/admin/n2"))),
		"our root, no name":                                 presenting(key, forge(c.home.root, uri("muster://"+id+"/node/"))),
		"our root, more path":                               presenting(key, forge(c.home.root, uri("muster://"+id+"/node/n2/n3"))),
		"our root, an escaped path":                         presenting(key, forge(c.home.root, uri("muster://"+id+"/node/n%32"))),
		"our root, a query":                                 presenting(key, forge(c.home.root, uri("muster://"+id+"/node/n2?x"))),
		"our root, a user":                                  presenting(key, forge(c.home.root, uri("muster://x@"+id+"/node/n2"))),
		"our root, another scheme":                          presenting(key, forge(c.home.root, uri("https://"+id+"/node/n2"))),
		"our root, an authority that calls itself a node":   presenting(key, forge(c.home.root, func(x *x509.Certificate) { x.IsCA = true; x.KeyUsage |= x509.KeyUsageCertSign })),
		"a certificate of ours without its key":             presenting(subKey, c.n2.current().tls.Leaf),
		"a certificate for something else than connections": presenting(key, forge(c.home.root, func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} })),
	} {
		if _, err, _ := shake(t, c.n1.PeerServer(), x); err == nil {
			t.Errorf("%s: got in at the nodes' port", name)
		}
		// At the API it may be known as a worker at most, if the workers' authority says so.
		if state, err, _ := shake(t, c.n1.APIServer(), x); err == nil {
			t.Errorf("%s: got in at the API: %+v", name, state.PeerCertificates[0].Subject)
		}
		if _, _, err := shake(t, x, c.n1.PeerClient()); err == nil {
			t.Errorf("%s: passed for a node as a server", name)
		}
	}
	// The test can fail: what the root makes of the same key does get in.
	if _, s, cl := shake(t, c.n1.PeerServer(), presenting(key, genuine)); s != nil || cl != nil {
		t.Error(s, cl)
	}
	if _, s, cl := shake(t, presenting(key, genuine), c.n1.PeerClient()); s != nil || cl != nil {
		t.Error(s, cl)
	}
}

// A worker's certificate is no server's: neither for the nodes nor for whoever calls the API.
func TestWorkerIsNoServer(t *testing.T) {
	t.Parallel()
	c := newTown(t)
	w := c.worker(t, "localhost") // a worker may call itself so
	server := presenting(w.key)
	server.Certificates = []tls.Certificate{*w.good(time.Now())}
	if _, _, err := shake(t, server, c.n1.PeerClient()); err == nil {
		t.Error("a worker passed for a node")
	}
	client, err := ClientConfig(c.made.CA)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := shake(t, server, named(client, "localhost")); err == nil {
		t.Error("a worker passed for the API")
	}
	// A worker's key that signs is no authority.
	key, _ := newKey()
	leaf := w.good(time.Now()).Leaf
	forged, err := issue(&x509.Certificate{URIs: []*url.URL{identityURI(c.made.ClusterID, RoleWorker, "w2")}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
		key.Public(), &authority{leaf, w.key}, nil, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err, _ := shake(t, c.n1.APIServer(), presenting(key, forged, leaf, c.home.workers.certificate)); err == nil {
		t.Error("a worker made a worker")
	}
}

func TestSignWorker(t *testing.T) {
	t.Parallel()
	c := newTown(t)
	request := func(key crypto.Signer, change func(*x509.CertificateRequest)) string {
		t.Helper()
		template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "w1"}}
		if change != nil {
			change(template)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	}
	key, _ := newKey()
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	rsaKey, _ := rsa.GenerateKey(rand.Reader, 2048)
	good := request(key, nil)
	block, _ := pem.Decode([]byte(good))
	block.Bytes[len(block.Bytes)-1] ^= 1
	forged := string(pem.EncodeToMemory(block))
	for _, x := range []struct {
		about, csr, name string
		code             job.Code
	}{
		{"as it should be", good, "w1", ""},
		{"a larger curve", request(p384, nil), "w1", ""},
		{"a small curve", request(p224, nil), "w1", job.Invalid},
		{"RSA", request(rsaKey, nil), "w1", job.Invalid},
		{"a signature that is not good", forged, "w1", job.Invalid},
		{"nothing", "", "w1", job.Invalid},
		{"no PEM", "hello", "w1", job.Invalid},
		{"PEM of something else", c.n1.CA(), "w1", job.Invalid},
		{"two requests", good + good, "w1", job.Invalid},
		{"no name", good, "", job.Invalid},
		{"a path for a name", good, "../node/n1", job.Invalid},
		{"a slash in the name", good, "w1/x", job.Invalid},
	} {
		_, _, err := c.n1.SignWorker(x.csr, x.name, 0)
		if job.CodeOf(err) != x.code {
			t.Errorf("%s: %v", x.about, err)
		}
	}
	// Of the request only the key counts.
	greedy := request(key, func(r *x509.CertificateRequest) {
		r.Subject = pkix.Name{CommonName: "n1", Organization: []string{"x"}}
		r.URIs = []*url.URL{identityURI(c.made.ClusterID, RoleNode, "n1")}
		r.DNSNames, r.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
		r.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}} // it is an authority
	})
	text, ca, err := c.n1.SignWorker(greedy, "w1", 0)
	if err != nil {
		t.Fatal(err)
	}
	all, err := parseCertificates([]byte(text))
	if err != nil || len(all) != 2 || ca != c.n1.CA() {
		t.Fatal(len(all), err)
	}
	leaf := all[0]
	if leaf.IsCA || len(leaf.DNSNames)+len(leaf.IPAddresses) != 0 || len(leaf.URIs) != 1 || leaf.URIs[0].String() != "muster://"+c.made.ClusterID+"/worker/w1" ||
		leaf.Subject.CommonName != "w1" || len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
		t.Errorf("%+v", leaf)
	}
	if life := time.Until(leaf.NotAfter); life < workerLife-time.Minute || life > workerLife {
		t.Errorf("it lives for %v", life)
	}
	if time.Since(leaf.NotBefore) < backdated-time.Minute {
		t.Errorf("it begins at %v", leaf.NotBefore)
	}
	for ttl, want := range map[time.Duration]time.Duration{time.Nanosecond: minWorkerLife, -time.Hour: minWorkerLife, time.Hour: time.Hour, 1e6 * time.Hour: maxWorkerLife} {
		text, _, err := c.n1.SignWorker(good, "w1", ttl)
		if err != nil {
			t.Fatal(err)
		}
		all, _ := parseCertificates([]byte(text))
		if life := time.Until(all[0].NotAfter); life > want || life < want-30*time.Second {
			t.Errorf("%v: it lives for %v, want %v", ttl, life, want)
		}
	}
}

func FuzzSignWorker(f *testing.F) {
	f.Add("hello")
	f.Add("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n")
	key, _ := newKey()
	der, _ := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	f.Add(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})))
	f.Fuzz(func(t *testing.T, csr string) {
		if _, err := requestedKey(csr); err != nil && job.CodeOf(err) != job.Invalid {
			t.Error(err)
		}
	})
}

func FuzzIdentity(f *testing.F) {
	f.Add("muster://id/node/n1")
	f.Add("muster://id/worker/w1")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := url.Parse(text)
		if err != nil {
			return
		}
		if who, ok := parseIdentity(u); ok && identityURI(who.Cluster, who.Role, who.Name).String() != text {
			// Parsing may have normalised the scheme; nothing else is lenient.
			if u.String() != identityURI(who.Cluster, who.Role, who.Name).String() {
				t.Errorf("%q is %+v", text, who)
			}
		}
	})
}

// A certificate that ends while its connection is open is nobody's from then on.
func TestIdentityEnds(t *testing.T) {
	t.Parallel()
	c := newTown(t)
	w := c.worker(t, "w1")
	certify(t, w, c.n1, time.Hour)
	state, s, cl := shake(t, c.n1.APIServer(), named(w.TLS(), "localhost"))
	if s != nil || cl != nil {
		t.Fatal(s, cl)
	}
	later, err := loadNode(c.made.Nodes[0].Dir, func() time.Time { return time.Now().Add(61 * time.Minute) })
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := c.n1.Identify(&state); !ok {
		t.Error("it is not known while it is good")
	}
	if who, ok := later.Identify(&state); ok {
		t.Errorf("it is known after its end: %+v", who)
	}
	if _, ok := c.n1.Identify(nil); ok {
		t.Error("no connection is somebody")
	}
	// And a handshake with it fails; but a worker does not show it.
	if _, err, _ := shake(t, later.APIServer(), named(presenting(w.key, w.good(time.Now()).Leaf, c.home.workers.certificate), "localhost")); err == nil {
		t.Error("an expired certificate was taken")
	}
}

func modes(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		want := os.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if err == nil && info.Mode().Perm() != want {
			err = errors.New(path + " has the mode " + info.Mode().String())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// identify does not lean on what verified the chain: not every caller's pool is ours.
func TestIdentify(t *testing.T) {
	t.Parallel()
	c, other := newTown(t), newTown(t)
	key, _ := newKey()
	forged, err := issue(&x509.Certificate{URIs: []*url.URL{identityURI(c.made.ClusterID, RoleNode, "n1")}}, key.Public(), other.home.root, nil, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	leaf, root := c.n1.current().tls.Leaf, c.home.root.certificate
	worker := c.worker(t, "w1").good(time.Now()).Leaf
	for _, x := range []struct {
		about string
		chain []*x509.Certificate
		after time.Duration
		role  Role
	}{
		{"a node", []*x509.Certificate{leaf, root}, 0, RoleNode},
		{"a worker", []*x509.Certificate{worker, c.home.workers.certificate, root}, 0, RoleWorker},
		{"nothing", nil, 0, ""},
		{"no root", []*x509.Certificate{leaf}, 0, ""},
		{"another root", []*x509.Certificate{forged, other.home.root.certificate}, 0, ""},
		{"a worker without what is between", []*x509.Certificate{worker, root}, 0, ""},
		{"the workers' authority trusted by itself", []*x509.Certificate{worker, c.home.workers.certificate}, 0, ""},
		{"a node a year later", []*x509.Certificate{leaf, root}, nodeLife, ""},
		{"a node at the end of the root", []*x509.Certificate{leaf, root}, caLife, ""},
	} {
		if who, ok := identify(x.chain, root, c.made.ClusterID, time.Now().Add(x.after)); ok != (x.role != "") || who.Role != x.role {
			t.Errorf("%s: %+v %v", x.about, who, ok)
		}
	}
}
