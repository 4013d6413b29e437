package worker

import (
	"context"
	"crypto/tls"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/musterhq/muster/job"
)

const (
	// avoidFor is how long a node that failed is passed over while there are others.
	avoidFor = 30 * time.Second
	// refreshEvery is how often the agent asks for the nodes' addresses, whether it needs them or not.
	refreshEvery   = 10 * time.Minute
	refreshTimeout = 5 * time.Second
)

// NewHTTPClient makes a client for worker streams: it speaks HTTP/2 only, in clear text where the address says http, and
// gives up what hangs: a dial, a handshake, a connection that takes nothing or answers no ping. A nil c is the system's trust,
// without a certificate; a nil dial is the system's network.
func NewHTTPClient(c *tls.Config, dial func(ctx context.Context, network, address string) (net.Conn, error)) *http.Client {
	if dial == nil {
		dial = (&net.Dialer{Timeout: 3 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	}
	p := new(http.Protocols)
	p.SetHTTP2(true)
	p.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{
		Protocols:           p,
		DialContext:         dial,
		TLSClientConfig:     c,
		TLSHandshakeTimeout: 3 * time.Second,
		IdleConnTimeout:     30 * time.Second,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second, WriteByteTimeout: 5 * time.Second},
	}}
}

// checkAddress tells what is wrong with a node's address, if anything is.
func checkAddress(a string) error {
	if u, err := url.Parse(a); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return job.InvalidField("join", "%.128q is not an address; write one such as https://10.0.0.1:8080", a)
	}
	return nil
}

// roster is the nodes that an agent knows. It is safe for concurrent use.
type roster struct {
	mu     sync.Mutex
	known  []string
	last   string                   // that was chosen
	failed map[string]time.Duration // when, on Clock.Elapsed
	tried  map[string]bool          // and failed, since the last refresh or the last success
}

func newRoster(known []string) *roster {
	return &roster{known: slices.Clone(known), failed: map[string]time.Duration{}, tried: map[string]bool{}}
}

// next chooses a node: another one than the last, at random among those that have not failed of late; or else the one whose
// failure is the longest ago.
func (r *roster) next(now time.Duration) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var good, bad []string
	for _, a := range r.known {
		if a == r.last && len(r.known) > 1 {
			continue
		}
		if at, failed := r.failed[a]; failed && now-at < avoidFor {
			bad = append(bad, a)
		} else {
			good = append(good, a)
		}
	}
	if len(good) > 0 {
		r.last = good[rand.IntN(len(good))]
		return r.last
	}
	r.last = slices.MinFunc(bad, func(a, b string) int { return int(r.failed[a] - r.failed[b]) })
	return r.last
}

// fail notes that a node did not serve this agent. It answers whether another one is known that might.
func (r *roster) fail(address string, now time.Duration) (others bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed[address], r.tried[address] = now, true
	for _, a := range r.known {
		if at, failed := r.failed[a]; a != address && (!failed || now-at >= avoidFor) {
			return true
		}
	}
	return false
}

// serves notes that a node serves this agent.
func (r *roster) serves(address string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.failed, address)
	clear(r.tried)
}

// exhausted tells whether all nodes failed since the last refresh.
func (r *roster) exhausted() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.known {
		if !r.tried[a] {
			return false
		}
	}
	return true
}

// replace sets the nodes; what is not an address is left out, and an empty list changes nothing.
func (r *roster) replace(known []string) (changed bool) {
	known = slices.DeleteFunc(slices.Clone(known), func(a string) bool { return checkAddress(a) != nil })
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.tried)
	if len(known) == 0 || slices.Equal(known, r.known) {
		return false
	}
	for a := range r.failed {
		if !slices.Contains(known, a) {
			delete(r.failed, a)
		}
	}
	r.known = known
	return true
}

// refresh asks where the nodes are.
func (a *Agent) refresh(ctx context.Context) {
	if a.config.Refresh == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, refreshTimeout)
	defer cancel()
	known, err := a.config.Refresh(ctx)
	if err != nil {
		a.config.Logger.Debug("the nodes' addresses stay as they were known", "worker", a.config.Name, "err", err)
	}
	if a.roster.replace(known) {
		a.config.Logger.Info("the nodes' addresses changed", "worker", a.config.Name, "addresses", known)
	}
}

// keepFresh refreshes the addresses from time to time, so that an agent whose stream has lived for weeks knows where to go
// when it ends.
func (a *Agent) keepFresh(ctx context.Context) {
	if a.config.Refresh == nil {
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(refreshEvery/2 + rand.N(refreshEvery)):
			a.refresh(ctx)
		}
	}
}
