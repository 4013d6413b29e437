package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/musterhq/muster/job"
)

const (
	fileWorkerKey  = "worker.key"
	fileWorkerCert = "worker.crt"
)

// Worker is the worker's side: a key that never leaves its data directory, and the certificate that a node gave for it.
type Worker struct {
	dir, name string
	key       crypto.Signer
	roots     *x509.CertPool // nil: the system's
	now       func() time.Time

	mu          sync.Mutex
	certificate *tls.Certificate // nil: none yet
}

// OpenWorker reads the key of the worker of that name in its data directory, or makes it, and the certificate if there is a
// good one. caFile holds the cluster's root; "" means the system's. One process at a time may have a directory open.
func OpenWorker(dir, name, caFile string) (*Worker, error) {
	return openWorker(dir, name, caFile, time.Now)
}

func openWorker(dir, name, caFile string, now func() time.Time) (*Worker, error) {
	w := &Worker{dir: dir, name: name, now: now}
	if err := job.CheckName("name", name); err != nil {
		return nil, err
	}
	config, err := ClientConfig(caFile)
	if err != nil {
		return nil, err
	}
	w.roots = config.RootCAs
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	if w.key, err = keyIn(dir); err != nil {
		return nil, err
	}
	text, err := read(filepath.Join(dir, fileWorkerCert))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, damaged(filepath.Join(dir, fileWorkerCert), err)
	}
	if err == nil {
		// One that is not good, of another name or of a cluster that is gone, is as none: a node gives another.
		w.certificate, _ = w.check(string(text))
	}
	return w, nil
}

// keyIn is the key in a directory, made if there is none. Nobody ever sees half of it.
func keyIn(dir string) (crypto.Signer, error) {
	path := filepath.Join(dir, fileWorkerKey)
	text, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeKey(dir, path); err != nil {
			return nil, fmt.Errorf("make the worker's key: %w", err)
		}
		text, err = read(path)
	}
	if err != nil {
		return nil, damaged(path, err)
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, job.Errorf(job.Invalid, "tls_files", "the worker's key %s is not good: %v; remove it, and the worker makes another", path, err)
	}
	return key, nil
}

func makeKey(dir, path string) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	text, err := pemKey(key)
	if err != nil {
		return err
	}
	half := path + "." + randomText(8)
	defer os.Remove(half)
	if err := write(half, text); err != nil {
		return err
	}
	err = os.Link(half, path) // unlike a rename it never replaces
	if err != nil && !errors.Is(err, fs.ErrExist) {
		err = os.Rename(half, path) // a file system without links
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(dir)
}

// Request is a certificate request for the key, in PEM.
func (w *Worker) Request() (csrPEM string, err error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: w.name}}, w.key)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), err
}

// Store keeps a certificate that a node gave, and uses it for all connections from now on. One that is not for this worker
// and its key is refused.
func (w *Worker) Store(certPEM string) error {
	c, err := w.check(certPEM)
	if err != nil {
		return &job.Error{Code: job.Invalid, Reason: "worker_certificate", Message: "the certificate that the node gave is not good: " + err.Error(), Cause: err}
	}
	path := filepath.Join(w.dir, fileWorkerCert)
	half := path + "." + randomText(8)
	defer os.Remove(half)
	if err := write(half, []byte(certPEM)); err != nil {
		return fmt.Errorf("keep the worker's certificate: %w", err)
	}
	if err := os.Rename(half, path); err != nil {
		return fmt.Errorf("keep the worker's certificate: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.certificate = c
	return nil
}

// check reads a certificate with its authority, as SignWorker makes them.
func (w *Worker) check(certPEM string) (*tls.Certificate, error) {
	all, err := parseCertificates([]byte(certPEM))
	if err != nil {
		return nil, err
	}
	leaf := all[0]
	if _, err := pair(leaf, w.key); err != nil {
		return nil, err
	}
	if len(leaf.URIs) != 1 {
		return nil, errors.New("it does not say for whom it is")
	}
	if who, ok := parseIdentity(leaf.URIs[0]); !ok || who.Role != RoleWorker || who.Name != w.name {
		return nil, errors.New("it is not for this worker")
	}
	if w.now().After(leaf.NotAfter) {
		return nil, fmt.Errorf("it ended at %s", stamp(leaf.NotAfter))
	}
	between := x509.NewCertPool()
	chain := [][]byte{leaf.Raw}
	for _, c := range all[1:] {
		between.AddCert(c)
		chain = append(chain, c.Raw)
	}
	if w.roots != nil {
		if _, err := leaf.Verify(x509.VerifyOptions{
			Roots: w.roots, Intermediates: between, CurrentTime: w.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}); err != nil {
			return nil, err
		}
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: w.key, Leaf: leaf}, nil
}

// good is the certificate if it is still worth showing: a node breaks off the handshake over one that has ended, so it is
// put away a little before, in case the clocks differ.
func (w *Worker) good(now time.Time) *tls.Certificate {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.certificate == nil {
		return nil
	}
	leaf := w.certificate.Leaf
	margin := min(5*time.Minute, leaf.NotAfter.Sub(leaf.NotBefore.Add(backdated))/20)
	if now.After(leaf.NotAfter.Add(-margin)) {
		return nil
	}
	return w.certificate
}

// Certified tells whether the worker has a certificate that it can show at now. Without one it needs its join token.
func (w *Worker) Certified(now time.Time) bool { return w.good(now) != nil }

// Expiring tells whether it is time to ask for a certificate: there is none, or half of its life is over.
func (w *Worker) Expiring(now time.Time) bool { return !now.Before(w.RenewAt()) }

// RenewAt is when half of the certificate's life is over; the zero time without one.
func (w *Worker) RenewAt() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.certificate == nil {
		return time.Time{}
	}
	begun := w.certificate.Leaf.NotBefore.Add(backdated)
	return begun.Add(w.certificate.Leaf.NotAfter.Sub(begun) / 2)
}

// TLS is for connections to nodes. It shows the newest certificate; connections that are open keep the one that they were
// opened with, and a node ends their streams when that one ends.
func (w *Worker) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: w.roots, Time: w.now,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if c := w.good(w.now()); c != nil {
				return c, nil
			}
			return &tls.Certificate{}, nil
		},
	}
}

// ClientConfig is for whoever calls the API with a token. caFile holds the cluster's root; "" means the system's.
func ClientConfig(caFile string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS13}
	if caFile == "" {
		return c, nil
	}
	text, err := read(caFile)
	if err != nil {
		return nil, damaged(caFile, err)
	}
	all, err := parseCertificates(text)
	if err != nil {
		return nil, damaged(caFile, err)
	}
	c.RootCAs = x509.NewCertPool()
	for _, root := range all {
		c.RootCAs.AddCert(root)
	}
	return c, nil
}
