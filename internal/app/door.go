package app

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/internal/pki"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker"
)

// door is a worker's way into the cluster: it asks where to join, shows the join token until it has a certificate, and
// the certificate from then on.
type door struct {
	WorkerOptions
	identity *pki.Worker    // nil: the cluster has no certificates
	token    *client.Client // shows the join token
	bare     *client.Client // shows the certificate alone
	streams  *http.Client   // carries worker streams
}

func openDoor(o WorkerOptions) (*door, error) {
	d := &door{WorkerOptions: o}
	var secure *tls.Config
	if o.CA != "" {
		var err error
		if d.identity, err = pki.OpenWorker(o.DataDir, o.Name, o.CA); err != nil {
			return nil, err
		}
		secure = d.identity.TLS()
	}
	network := o.Network
	if network == nil {
		network = machine()
	}
	dial := func(ctx context.Context, _, address string) (net.Conn, error) { return network.Dial(ctx, address) }
	d.streams = worker.NewHTTPClient(secure, dial)
	questions := client.Transport(secure)
	// Each connection shows the certificate that was newest when it was made, so none is kept for long.
	questions.DialContext, questions.IdleConnTimeout = dial, 30*time.Second
	open := func(token string) (*client.Client, error) {
		return client.New(client.Config{Addresses: o.Join, Token: token, RetryFor: -1, // join says itself what fails, and tries again
			HTTPClient: &http.Client{Transport: questions, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}})
	}
	var err error
	if d.bare, err = open(""); err != nil {
		return nil, err
	}
	d.token, err = open(o.JoinToken)
	return d, err
}

func (d *door) close() {
	d.bare.HTTPClient.CloseIdleConnections()
	d.token.HTTPClient.CloseIdleConnections()
	d.streams.CloseIdleConnections()
}

// ask asks once where and how to join, and for a certificate if it is time for one.
func (d *door) ask(ctx context.Context) (*client.JoinAnswer, error) {
	q := client.JoinRequest{Name: d.Name, Version: d.Version}
	api := d.token
	if d.identity != nil {
		now := time.Now()
		if d.identity.Certified(now) {
			api = d.bare
		}
		if d.identity.Expiring(now) {
			var err error
			if q.CSR, err = d.identity.Request(); err != nil {
				return nil, err
			}
		}
	}
	answer, err := api.Join(ctx, q)
	if code := job.CodeOf(err); api == d.bare && d.JoinToken != "" && (code == job.Unauthenticated || code == job.Forbidden) {
		api = d.token // the certificate is not, or no longer, believed
		if q.CSR, err = d.identity.Request(); err != nil {
			return nil, err
		}
		answer, err = api.Join(ctx, q)
	}
	if err != nil {
		return nil, err
	}
	if q.CSR != "" && d.identity != nil {
		if answer.Certificate == "" {
			return nil, job.Errorf(job.Invalid, "no_certificate", "the node gave this worker no certificate; is it a server of the cluster?")
		}
		if err := d.identity.Store(answer.Certificate); err != nil {
			return nil, err
		}
		d.Logger.Info("certificate received", "worker", d.Name, "renewed_at", d.identity.RenewAt())
	}
	return answer, nil
}

// join asks until a node answers or ctx ends (then the answer is nil): a worker may be started before its nodes.
func (d *door) join(ctx context.Context) (*client.JoinAnswer, error) {
	pause := 200 * time.Millisecond
	for {
		answer, err := d.ask(ctx)
		switch code := job.CodeOf(err); {
		case err == nil && len(answer.Streams) > 0:
			return answer, nil
		case ctx.Err() != nil:
			return nil, nil
		case err != nil && code != job.Unavailable && code != job.Unknown && code != job.Exhausted:
			return nil, fmt.Errorf("join the cluster: %w", err)
		}
		d.Logger.Warn("no node lets this worker join yet", "addresses", d.Join, "err", err)
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(pause):
			pause = min(2*pause, 10*time.Second)
		}
	}
}

// renew asks for the next certificate when half of this one's life is over.
func (d *door) renew(ctx context.Context) error {
	if d.identity == nil {
		return nil
	}
	for {
		wait := max(time.Until(d.identity.RenewAt()), time.Minute)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		if !d.identity.Expiring(time.Now()) {
			continue
		}
		if _, err := d.ask(ctx); err != nil && ctx.Err() == nil {
			d.Logger.Warn("the certificate cannot be renewed yet", "worker", d.Name, "err", err)
		}
	}
}
