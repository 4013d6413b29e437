package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/musterhq/muster/job"
)

// authority is a certificate that may sign, with its key.
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

func newKey() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// issue signs a certificate that lives from a while before now for as long as the issuer lets it. A nil issuer means that it
// signs itself.
func issue(template *x509.Certificate, public crypto.PublicKey, by *authority, key crypto.Signer, now time.Time, life time.Duration) (*x509.Certificate, error) {
	template.NotBefore = now.Add(-backdated).UTC()
	template.NotAfter = now.Add(life).UTC()
	template.BasicConstraintsValid = true
	parent := template
	if by != nil {
		parent, key = by.certificate, by.key
		if template.NotAfter.After(parent.NotAfter) {
			template.NotAfter = parent.NotAfter
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func newRoot(name, cluster string, now time.Time) (*authority, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	c, err := issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "Muster " + name, Organization: []string{cluster}},
		IsCA:    true, MaxPathLen: 1, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, key.Public(), nil, key, now, caLife)
	return &authority{c, key}, err
}

// newWorkersAuthority makes what signs workers. What it signs can be no authority, and no server.
func newWorkersAuthority(name, cluster string, root *authority, now time.Time) (*authority, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	c, err := issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "Muster " + name + " workers", Organization: []string{cluster}},
		IsCA:    true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, key.Public(), root, nil, now, caLife)
	return &authority{c, key}, err
}

// everyHost is in each node's certificate: a node is reached from its own machine too.
var everyHost = []string{"localhost", "127.0.0.1", "::1"}

func (a *authority) node(spec NodeSpec, cluster string, now time.Time, life time.Duration) (*x509.Certificate, crypto.Signer, error) {
	key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: spec.Name, Organization: []string{cluster}}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{identityURI(cluster, RoleNode, spec.Name)},
	}
	for _, h := range slices.Concat(spec.Hosts, everyHost) {
		if ip := net.ParseIP(h); ip != nil {
			if !slices.ContainsFunc(template.IPAddresses, ip.Equal) {
				template.IPAddresses = append(template.IPAddresses, ip)
			}
		} else if h = strings.ToLower(h); !slices.Contains(template.DNSNames, h) {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	c, err := issue(template, key.Public(), a, nil, now, life)
	return c, key, err
}

// hostsOf is the hosts for which a node's certificate was made.
func hostsOf(c *x509.Certificate) (hosts []string) {
	for _, ip := range c.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	hosts = append(hosts, c.DNSNames...)
	return slices.DeleteFunc(hosts, func(h string) bool { return slices.Contains(everyHost, h) })
}

// worker signs a request. Of the request only the key counts.
func (a *authority) worker(csr, name, cluster string, now time.Time, life time.Duration) (*x509.Certificate, error) {
	public, err := requestedKey(csr)
	if err != nil {
		return nil, err
	}
	return issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: name, Organization: []string{cluster}}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{identityURI(cluster, RoleWorker, name)},
	}, public, a, nil, now, life)
}

// requestedKey is the key of a certificate request whose sender has shown to hold it.
func requestedKey(csr string) (crypto.PublicKey, error) {
	refuse := func(cause error, format string, args ...any) error {
		e := job.InvalidField("csr", format, args...)
		e.Cause = cause
		return e
	}
	block, rest := pem.Decode([]byte(csr))
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, refuse(nil, "this is not one certificate request in PEM")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, refuse(err, "the certificate request cannot be read")
	}
	switch key := request.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
			return nil, refuse(nil, "its key is on a curve that is not taken; use P-256")
		}
	case ed25519.PublicKey:
	default: // checking a signature of a huge RSA key is work that a stranger could order
		return nil, refuse(nil, "its key is of a kind that is not taken; use ECDSA with P-256")
	}
	if err := request.CheckSignature(); err != nil {
		return nil, refuse(err, "it is not signed with its own key")
	}
	return request.PublicKey, nil
}

func pemCertificates(certificates ...*x509.Certificate) []byte {
	var b []byte
	for _, c := range certificates {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return b
}

func pemKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

// parseCertificates reads a file of certificates and nothing else.
func parseCertificates(text []byte) (all []*x509.Certificate, err error) {
	for len(strings.TrimSpace(string(text))) > 0 {
		block, rest := pem.Decode(text)
		if block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("it holds something that is not a certificate in PEM")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		all, text = append(all, c), rest
	}
	if len(all) == 0 {
		return nil, errors.New("it holds no certificate")
	}
	return all, nil
}

func parseKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("it holds no private key in PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("its private key cannot be read") // the cause could hold a part of it
	}
	signer, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("its private key is a %T, not ECDSA", key)
	}
	return signer, nil
}

// pair puts a certificate and its key together, and refuses what does not belong together.
func pair(certificate *x509.Certificate, key crypto.Signer) (*authority, error) {
	if public, ok := key.Public().(*ecdsa.PublicKey); !ok || !public.Equal(certificate.PublicKey) {
		return nil, errors.New("the certificate and the private key do not belong together")
	}
	return &authority{certificate, key}, nil
}
