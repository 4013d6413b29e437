package app

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/cluster"
)

// bootstrap makes this node part of its cluster, and the cluster if there is none yet.
func (n *node) bootstrap(ctx context.Context) error {
	t := n.peerTransport()
	defer t.CloseIdleConnections()
	scheme := "http://"
	if n.identity != nil {
		scheme = "https://"
	}
	b := &cluster.Bootstrapper{Addresses: n.Join, Greet: func(ctx context.Context, address string) (cluster.Greeting, error) {
		if !strings.Contains(address, "://") {
			address = scheme + address
		}
		c, err := client.New(client.Config{Addresses: []string{address}, RetryFor: -1, HTTPClient: &http.Client{Transport: t}})
		if err != nil {
			return cluster.Greeting{}, err
		}
		g, err := c.Greeting(ctx)
		if err != nil {
			return cluster.Greeting{}, err
		}
		return cluster.Greeting(*g), nil
	}}
	return b.Run(ctx, n.raft)
}

// peerTransport reaches the API of other nodes, and nobody who is no node of this cluster.
func (n *node) peerTransport() *http.Transport {
	t := &http.Transport{DialContext: func(ctx context.Context, _, address string) (net.Conn, error) { return n.Network.Dial(ctx, address) },
		TLSHandshakeTimeout: 3 * time.Second, IdleConnTimeout: 10 * time.Second, MaxIdleConnsPerHost: 1}
	if n.identity != nil {
		t.TLSClientConfig = n.identity.PeerClient()
	}
	return t
}

// gossipAlong takes part in gossip from when on the cluster's secret is known, and anew when that changes: a snapshot that is
// restored into a new cluster brings the old one's. The workers find the new cells when they ask again where to join.
func (n *node) gossipAlong(ctx context.Context) error {
	if n.Gossip == "" {
		return nil
	}
	var open []byte
	pause := 50 * time.Millisecond
	for {
		if secret := n.state.GossipSecret(); len(secret) > 0 && !bytes.Equal(secret, open) {
			if old := n.gossip.Swap(nil); old != nil {
				n.Logger.Info("the cluster's gossip has another key; this node leaves the old cells")
				leaving, cancel := context.WithTimeout(ctx, 5*time.Second)
				if err := old.Close(leaving); err != nil {
					n.Logger.Warn("the old gossip does not end well", "err", err)
				}
				cancel()
			}
			c := cluster.GossipConfig{Address: n.Gossip, AdvertiseHost: n.Advertise, Secret: secret}
			switch err := n.openGossip(ctx, c); {
			case err == nil:
				open, pause = secret, time.Second
			default: // a rumour less is no reason to stop
				n.Logger.Error("gossip cannot begin; choose another --gossip address, or free this one", "address", n.Gossip, "err", err)
				pause = 10 * time.Second
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}
