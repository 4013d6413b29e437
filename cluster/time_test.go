package cluster_test

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/job"
)

// TestClusterTime: the nodes' time is that of the median clock, whatever single clocks do; a leader whose clock is wrong
// hands over to one whose clock is right.
func TestClusterTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 3)
		truth := time.Now()
		agree := func(what string, ahead time.Duration) {
			t.Helper()
			for _, n := range m.nodes {
				if off := n.clock.Now().Sub(time.Now().Round(0)) - ahead; off.Abs() > 30*time.Millisecond {
					t.Errorf("%s: the time on %s is off by %s", what, n.host, off)
				}
			}
		}
		m.leader(nil)
		time.Sleep(3 * time.Second)
		agree("at the start", 0)

		leader := m.leader(nil)
		f := m.follower()
		f.skew.Store(int64(time.Hour))
		agree("a follower's clock jumped", 0)
		time.Sleep(5 * time.Second)
		agree("a follower's clock jumped a while ago", 0)
		if now := m.leader(nil); now != leader {
			t.Errorf("%s leads, not %s", now.host, leader.host)
		}
		for _, v := range leader.Members() {
			if off := v.ClockOffset; v.ID == f.host && (off-time.Hour).Abs() > 30*time.Millisecond || v.ID != f.host && off.Abs() > 30*time.Millisecond {
				t.Errorf("the clock of %s is shown to be off by %s", v.ID, off)
			}
		}

		f.skew.Store(0)
		leader.skew.Store(int64(-10 * time.Minute))
		agree("the leader's clock jumped", 0)
		time.Sleep(6 * time.Second)
		agree("the leader's clock jumped a while ago", 0)
		now := m.leader(nil)
		if now == leader {
			t.Error("a leader with a wrong clock still leads")
		}

		// When most of the clocks move, the time moves: nobody can tell that the few are right. Of those two the nearer.
		for i, n := range m.nodes {
			n.skew.Store(int64(i) * int64(time.Minute))
		}
		time.Sleep(10 * time.Second)
		agree("two of three clocks moved", time.Minute)
		if id, _, _ := m.nodes[0].Leader(); id != "n1" {
			t.Errorf("%s leads, and only the clock of n1 is right", id)
		}

		// With two voters left in reach, the earlier clock counts.
		m.cut(m.nodes[0])
		time.Sleep(30 * time.Second)
		id, _, _ := m.nodes[1].Leader()
		if off := m.nodes[1].clock.Now().Sub(time.Now().Round(0)); id != "n1" || (off-time.Minute).Abs() > 30*time.Millisecond {
			t.Errorf("under %s the time is ahead by %s", id, off)
		}
		if time.Since(truth) < time.Minute {
			t.Log("time did not pass")
		}
	})
}

// TestTimeAtFirstStart: a first leader whose clock is far ahead does not begin its term with it.
func TestTimeAtFirstStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 10 {
			m := newMesh(t, 3)
			ctx, stop := context.WithCancel(t.Context())
			began := make(chan time.Duration, 10)
			for i, n := range m.nodes {
				n.skew.Store([]int64{int64(time.Hour), 0, 0}[i])
				const probe = "/muster.cluster.v1.NodeService/Probe"
				n.port.Handle(probe, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { // once
					n.port.Handle(probe, nil)
					http.Error(w, "not yet", http.StatusServiceUnavailable)
				}))
				go func() {
					_ = n.Run(ctx, func(ctx context.Context) error {
						began <- n.clock.Now().Sub(time.Now().Round(0))
						<-ctx.Done()
						return nil
					})
				}()
			}
			if off := <-began; off.Abs() > 30*time.Millisecond {
				t.Errorf("the first term began with a time that is off by %s", off)
			}
			stop()
			for _, n := range m.nodes {
				n.stop()
			}
		}
	})
}

// TestForwardWithoutLeader: proposals wait for a leader, are refused when none comes, and can be taken back.
func TestForwardWithoutLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 3)
		f := m.follower()
		for _, n := range m.nodes {
			if n != f {
				n.stop()
			}
		}
		time.Sleep(5 * time.Second)
		start := time.Now()
		if err := put(t.Context(), f.Node, 1); job.CodeOf(err) != job.Unavailable || job.AsError(err).Reason != "no_leader" {
			t.Error(err)
		}
		if took := time.Since(start); took < time.Second || took > 3*time.Second {
			t.Errorf("it took %s", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := put(ctx, f.Node, 2); job.CodeOf(err) != job.Unavailable || job.AsError(err).Reason != "timeout" {
			t.Error(err)
		}
		answer := make(chan error)
		go func() { answer <- put(t.Context(), f.Node, 3) }()
		for _, n := range m.nodes {
			if n != f {
				n.start()
			}
		}
		if err := <-answer; err != nil {
			t.Error("a leader came, and still:", err)
		}
		// A node that closes lets go of everybody.
		for _, n := range m.nodes {
			if n != f {
				n.stop()
			}
		}
		time.Sleep(5 * time.Second)
		go func() { answer <- put(t.Context(), f.Node, 4) }()
		time.Sleep(100 * time.Millisecond)
		f.stop()
		if err := <-answer; job.CodeOf(err) != job.Unavailable {
			t.Error(err)
		}
	})
}
