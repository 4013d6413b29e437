package cluster_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestWatchLeader: whoever watches is told of each change of the leader, though he took no signal for long.
func TestWatchLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 3)
		old, f := m.leader(nil), m.follower()
		ctx, cancel := context.WithCancel(t.Context())
		changed, ended := make(chan struct{}, 1), make(chan struct{})
		go func() { f.WatchLeader(ctx, changed); close(ended) }()
		<-changed // who leads at the start
		m.cut(old)
		now := m.leader(old)
		seen := time.After(time.Second)
		for known := ""; known != now.host; known, _, _ = f.Leader() {
			select {
			case <-changed:
			case <-seen:
				t.Fatal("nobody said that another leads")
			}
		}
		m.net.HealAll()
		cancel()
		<-ended
	})
}
