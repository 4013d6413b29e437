package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/musterhq/muster/job"
)

// TrustCA trusts the nodes whose certificates come from one of the authorities in a PEM file, ca.crt of `muster cluster
// init`, and nobody else: not whom the machine trusts.
func TrustCA(file string) (*tls.Config, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, job.Errorf(job.Invalid, "invalid_ca", "%s holds no certificate in PEM", file)
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}, nil
}

// Transport is what a Client sends its requests through; trust may be nil. It gives up on a node that is gone without a word
// soon enough for the next one to be asked.
func Transport(trust *tls.Config) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 64
	t.DialContext = (&net.Dialer{Timeout: 3 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	t.TLSHandshakeTimeout = 5 * time.Second
	if trust != nil {
		t.TLSClientConfig = trust.Clone()
	}
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second}
	return t
}

// untrusted tells whether a connection was given up because of the other side's certificate: before anything was sent.
func untrusted(err error) bool {
	var v *tls.CertificateVerificationError
	return errors.As(err, &v)
}

// notTLS tells whether the other side speaks something else than TLS, so that nothing was sent either.
func notTLS(err error) bool {
	var h tls.RecordHeaderError
	return errors.Is(err, http.ErrSchemeMismatch) || errors.As(err, &h)
}
