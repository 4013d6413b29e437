package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/musterhq/muster/job"
)

// Node is a node's own directory: who it is, whom it trusts, and the key with which it lets workers in. Files that change are
// read again, so that a renewed certificate needs no restart; but the root, the cluster and the name stay what they were.
type Node struct {
	dir  string
	now  func() time.Time
	root *x509.Certificate
	pool *x509.CertPool

	material atomic.Pointer[material]
	report   atomic.Pointer[func(error)]

	mu      sync.Mutex // held while the files are looked at
	looked  time.Time
	refused string // the state of the files that were not good, told once
}

// material is one consistent reading of the files.
type material struct {
	state   string // of the files, as the file system shows it
	cluster *clusterFile
	who     Identity
	root    *x509.Certificate
	tls     *tls.Certificate
	workers *authority
}

// lookEvery bounds how often the files are looked at.
const lookEvery = time.Second

// LoadNode reads a node's directory and refuses one that is not good.
func LoadNode(dir string) (*Node, error) { return loadNode(dir, time.Now) }

func loadNode(dir string, now func() time.Time) (*Node, error) {
	n := &Node{dir: dir, now: now}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil, job.Errorf(job.Invalid, "tls_files", "%s is not a directory; muster cluster init makes one for each node", dir)
	}
	if _, err := os.Stat(filepath.Join(dir, fileNode)); err != nil {
		if _, err := os.Stat(filepath.Join(dir, fileCAKey)); err == nil {
			return nil, job.Errorf(job.Invalid, "tls_files", "%s is the directory of the whole cluster; give a node its own, %s", dir, filepath.Join(dir, dirNodes, "NAME"))
		}
	}
	m, err := n.read()
	if err != nil {
		return nil, err
	}
	n.root, n.pool, n.looked = m.root, x509.NewCertPool(), now()
	n.pool.AddCert(m.root)
	n.material.Store(m)
	return n, nil
}

var nodeFiles = []string{fileCA, fileNode, fileNodeKey, fileWorkers, fileWorkersKey, fileCluster}

// state is what the file system shows of the files, without reading them.
func (n *Node) state() string {
	var b bytes.Buffer
	for _, f := range nodeFiles {
		if info, err := os.Stat(filepath.Join(n.dir, f)); err == nil {
			fmt.Fprintf(&b, "%s %d %d;", f, info.ModTime().UnixNano(), info.Size())
		}
	}
	return b.String()
}

// read reads the files and checks that they belong together and to this moment.
func (n *Node) read() (*material, error) {
	at := func(file string) string { return filepath.Join(n.dir, file) }
	m := &material{state: n.state()}
	for _, f := range []string{fileNodeKey, fileWorkersKey} {
		if info, err := os.Stat(at(f)); err == nil && info.Mode().Perm()&0o007 != 0 && runtime.GOOS != "windows" {
			return nil, job.Errorf(job.Invalid, "tls_files", "everybody on this machine may use the private key %s; chmod 600 it", at(f))
		}
	}
	text, err := read(at(fileCluster))
	if err == nil {
		m.cluster, err = parseCluster(text)
	}
	if err != nil {
		return nil, damaged(at(fileCluster), err)
	}
	if m.root, err = readCertificate(at(fileCA)); err != nil {
		return nil, err
	}
	own, err := readAuthority(at(fileNode), at(fileNodeKey))
	if err != nil {
		return nil, err
	}
	if m.workers, err = readAuthority(at(fileWorkers), at(fileWorkersKey)); err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(m.root)
	now := n.now()
	if c := own.certificate; now.After(c.NotAfter) {
		return nil, job.Errorf(job.Invalid, "certificate_expired",
			"the certificate %s ended at %s; make a new one with muster cluster certify --renew --node %s", at(fileNode), stamp(c.NotAfter), c.Subject.CommonName)
	} else if now.Before(c.NotBefore) {
		return nil, job.Errorf(job.Invalid, "certificate_not_yet_valid",
			"the certificate %s begins at %s; this machine's clock says %s", at(fileNode), stamp(c.NotBefore), stamp(now))
	}
	who, err := verifyNode([]*x509.Certificate{own.certificate}, m.root, pool, m.cluster.ID, now)
	if err != nil {
		return nil, damaged(at(fileNode), err)
	}
	m.who = who
	if !m.workers.certificate.IsCA {
		return nil, damaged(at(fileWorkers), errors.New("it is no certificate authority"))
	}
	if err := m.workers.certificate.CheckSignatureFrom(m.root); err != nil {
		return nil, damaged(at(fileWorkers), err)
	}
	m.tls = &tls.Certificate{Certificate: [][]byte{own.certificate.Raw}, PrivateKey: own.key, Leaf: own.certificate}
	return m, nil
}

// current is the newest good reading. Files that are not good, or not all there yet, leave the last one in force.
func (n *Node) current() *material {
	now := n.now()
	if !n.mu.TryLock() {
		return n.material.Load()
	}
	defer n.mu.Unlock()
	m := n.material.Load()
	if d := now.Sub(n.looked); d >= 0 && d < lookEvery {
		return m
	}
	n.looked = now
	state := n.state()
	if state == m.state || state == n.refused {
		return m
	}
	next, err := n.read()
	if err == nil {
		err = m.succeeds(next)
	}
	if err != nil {
		n.refused = state
		if report := n.report.Load(); report != nil {
			(*report)(err)
		}
		return m
	}
	n.material.Store(next)
	n.refused = ""
	return next
}

// succeeds refuses a reading that makes the node somebody else.
func (m *material) succeeds(next *material) error {
	switch {
	case next.cluster.ID != m.cluster.ID || !next.root.Equal(m.root):
		return job.Errorf(job.Conflict, "another_cluster", "the new certificate is of another cluster; a node changes its cluster with a new data directory only")
	case next.who.Name != m.who.Name:
		return job.Errorf(job.Conflict, "another_node", "the new certificate is for the node %s, and this is %s", next.who.Name, m.who.Name)
	}
	return nil
}

// OnReload sets who is told, once, of changed files that are not good. It is called during a handshake: it must be quick.
func (n *Node) OnReload(report func(error)) { n.report.Store(&report) }

// ClusterID is the cluster's id.
func (n *Node) ClusterID() string { return n.material.Load().cluster.ID }

// Name is the node's.
func (n *Node) Name() string { return n.material.Load().who.Name }

// ExpiresAt is when the node's certificate ends.
func (n *Node) ExpiresAt() time.Time { return n.current().who.ExpiresAt }

// Credentials are those that the cluster begins with.
func (n *Node) Credentials() []job.Credential { return n.material.Load().cluster.credentials() }

// CA is the root's certificate in PEM.
func (n *Node) CA() string { return string(pemCertificates(n.root)) }

// base is what all connections have in common. Tickets are off: a resumed connection would bring back an identity that was
// established by an earlier one.
func (n *Node) base() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Time: n.now, SessionTicketsDisabled: true,
		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return n.current().tls, nil },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return n.current().tls, nil },
	}
}

// APIServer is for the port of the API: a caller may bring a certificate, and if so one of this cluster.
func (n *Node) APIServer() *tls.Config {
	c := n.base()
	c.ClientAuth, c.ClientCAs, c.NextProtos = tls.VerifyClientCertIfGiven, n.pool, []string{"h2", "http/1.1"}
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return nil
		}
		if _, ok := n.Identify(&s); !ok {
			return errStranger
		}
		return nil
	}
	return c
}

// PeerServer is for the port between nodes: nobody but a node of this cluster gets in. The caller sets NextProtos.
func (n *Node) PeerServer() *tls.Config {
	c := n.base()
	c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, n.pool
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if who, ok := n.Identify(&s); !ok || who.Role != RoleNode {
			return errStranger
		}
		return nil
	}
	return c
}

// PeerClient is for calls to other nodes, at either of their ports. The server has to be a node of this cluster; which of its
// addresses was dialled is not compared (see the package comment). The caller sets NextProtos.
func (n *Node) PeerClient() *tls.Config {
	c := n.base()
	c.InsecureSkipVerify = true // of the name alone: VerifyConnection does all the rest
	c.VerifyConnection = func(s tls.ConnectionState) error {
		_, err := verifyNode(s.PeerCertificates, n.root, n.pool, n.ClusterID(), n.now())
		return err
	}
	return c
}

var errStranger = errors.New("the certificate is not one of this cluster's, or not for this")

// verifyNode tells which node presents these certificates as a server.
func verifyNode(certificates []*x509.Certificate, root *x509.Certificate, pool *x509.CertPool, cluster string, now time.Time) (Identity, error) {
	if len(certificates) == 0 {
		return Identity{}, errStranger
	}
	// No intermediates: a node's certificate lies directly under the root.
	chains, err := certificates[0].Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if err != nil {
		return Identity{}, err
	}
	for _, chain := range chains {
		if who, ok := identify(chain, root, cluster, now); ok && who.Role == RoleNode {
			return who, nil
		}
	}
	return Identity{}, errStranger
}

// Identify tells who is on the other side of a connection that this node accepted: false for nobody, and for whoever's
// certificate has ended since.
func (n *Node) Identify(s *tls.ConnectionState) (Identity, bool) {
	if s == nil {
		return Identity{}, false
	}
	for _, chain := range s.VerifiedChains {
		if who, ok := identify(chain, n.root, n.ClusterID(), n.now()); ok {
			return who, true
		}
	}
	return Identity{}, false
}

// SignWorker makes a worker's certificate from its request. Whether the caller may have that name was decided before. A ttl
// of 0 means 7 days. The certificate comes with the authority that signed it.
func (n *Node) SignWorker(csrPEM, name string, ttl time.Duration) (certPEM, caPEM string, err error) {
	if err := job.CheckName("name", name); err != nil {
		return "", "", err
	}
	if ttl == 0 {
		ttl = workerLife
	}
	m := n.current()
	c, err := m.workers.worker(csrPEM, name, m.cluster.ID, n.now(), min(max(ttl, minWorkerLife), maxWorkerLife))
	if err != nil {
		return "", "", err
	}
	return string(pemCertificates(c, m.workers.certificate)), n.CA(), nil
}
