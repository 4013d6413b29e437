package app

import (
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

// gossipAlong takes part in gossip from when on the cluster's secret is known.
func (n *node) gossipAlong(ctx context.Context) error {
	if n.Gossip == "" {
		return nil
	}
	for len(n.state.GossipSecret()) == 0 {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(50 * time.Millisecond):
		}
	}
	c := cluster.GossipConfig{Address: n.Gossip, AdvertiseHost: n.Advertise, Secret: n.state.GossipSecret()}
	return n.openGossip(ctx, c)
}
