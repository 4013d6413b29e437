package app

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// expiryWarning is how long before its certificate ends a node begins to say so.
	expiryWarning = 30 * 24 * time.Hour
	expiryEvery   = 24 * time.Hour
)

// exportExpiry tells when this node's certificate ends, of which nobody else knows.
func (n *node) exportExpiry() {
	n.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "muster_certificate_expires_seconds", Help: "When this node's certificate ends, in seconds of Unix time.",
	}, func() float64 { return float64(n.identity.ExpiresAt().Unix()) }))
}

// watchExpiry warns each day while the certificate ends soon. A node whose certificate has ended is cut off from all others,
// and it cannot renew it itself: the root's key is with people.
func (n *node) watchExpiry(ctx context.Context) error {
	if n.identity == nil {
		return nil
	}
	for {
		if text := expiryText(n.identity.ExpiresAt().Sub(n.Now())); text != "" {
			n.Logger.Warn(text, "expires_at", n.identity.ExpiresAt(), "dir", n.TLS, "todo", "muster cluster certify --renew --node "+n.Name)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(expiryEvery):
		}
	}
}

// expiryText is what to say of a certificate that is good for so long, "" for nothing.
func expiryText(left time.Duration) string {
	switch {
	case left > expiryWarning:
		return ""
	case left <= 0:
		return "this node's certificate has ended: no other node and no client accepts it"
	}
	return fmt.Sprintf("this node's certificate ends in less than %d days; afterwards no other node and no client accepts it", int(left/(24*time.Hour))+1)
}
