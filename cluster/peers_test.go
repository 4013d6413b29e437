package cluster_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/cluster"
	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/internal/clustertest"
	"github.com/musterhq/muster/job"
)

// mesh is a cluster whose nodes reach each other through their ports, over a network in memory.
type mesh struct {
	t     testing.TB
	net   *clustertest.Network
	nodes []*meshNode
}

type meshNode struct {
	*cluster.Node
	mesh  *mesh
	host  string
	mem   *cluster.Memory
	port  *cluster.Port
	clock *cluster.Clock
	local *recorder
	skew  atomic.Int64 // of this machine's clock, in nanoseconds
}

func newMesh(t testing.TB, nodes int) *mesh {
	m := &mesh{t: t, net: clustertest.NewNetwork(time.Millisecond)}
	// What the libraries leave behind, such as the remote call of a transfer, ends by itself.
	t.Cleanup(func() { time.Sleep(2 * time.Minute) })
	t.Cleanup(func() {
		for _, n := range m.nodes {
			n.stop()
		}
	})
	var peers []cluster.Peer
	for i := range nodes {
		host := fmt.Sprintf("n%d", i)
		n := &meshNode{mesh: m, host: host, mem: cluster.NewMemory(host), local: &recorder{host: host}}
		m.nodes = append(m.nodes, n)
		n.start()
		peers = append(peers, cluster.Peer{ID: host, Address: host + ":7000"})
	}
	for _, n := range m.nodes {
		if err := n.Bootstrap(t.Context(), peers); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func (n *meshNode) start() {
	t := n.mesh.t
	t.Helper()
	l, err := n.mesh.net.Listen(n.host + ":7000")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("MESH_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	n.port, err = cluster.OpenPort(cluster.PortConfig{Listener: l, Logger: log, Dial: func(ctx context.Context, to string) (net.Conn, error) {
		return n.mesh.net.Dial(ctx, n.host, to)
	}})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = n.port.Serve(context.Background()) }()
	n.clock = cluster.NewClock(func() time.Time { return time.Now().Round(0).Add(time.Duration(n.skew.Load())) })
	n.Node, err = cluster.Open(context.Background(), cluster.Config{
		Memory: n.mem, State: fsm.New(), Logger: log, Port: n.port, Clock: n.clock, Join: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	n.Peers().Serve(n.local)
}

func (n *meshNode) stop() {
	if n.Node == nil {
		return
	}
	if err := n.Close(); err != nil {
		n.mesh.t.Error("close:", err)
	}
	if err := n.port.Close(); err != nil {
		n.mesh.t.Error("close port:", err)
	}
	n.Node = nil
}

// cut drops all that goes to and from a node.
func (m *mesh) cut(n *meshNode) {
	for _, other := range m.nodes {
		if other != n {
			m.net.Cut(n.host, other.host)
			m.net.Cut(other.host, n.host)
		}
	}
}

// leader waits until a node other than not leads and the others know it.
func (m *mesh) leader(not *meshNode) *meshNode {
	m.t.Helper()
	for range 10_000 {
		for _, n := range m.nodes {
			if n == not || n.Node == nil || !n.Leading() {
				continue
			}
			known := 0
			for _, o := range m.nodes {
				if o.Node != nil && o != not {
					if id, _, ok := o.Node.Leader(); ok && id == n.host {
						known++
					}
				}
			}
			if known >= len(m.nodes)-1 && n.Barrier(m.t.Context()) == nil {
				return n
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	for _, n := range m.nodes {
		if n.Node != nil {
			m.t.Logf("%s: %+v", n.host, n.Status())
		}
	}
	m.t.Fatal("nobody leads")
	return nil
}

func (m *mesh) follower() *meshNode {
	leader := m.leader(nil)
	return m.nodes[(slices.Index(m.nodes, leader)+1)%len(m.nodes)]
}

// recorder is a Local that notes what it is told.
type recorder struct {
	host    string
	mu      sync.Mutex
	born    []job.QueueEntry
	cancels []job.RunID
	flags   []string
	explain func(*job.Run) ([]string, error)
}

func (r *recorder) Born(e []job.QueueEntry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.born = append(r.born, e...)
}

func (r *recorder) CancelRequested(ids []job.RunID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cancels = append(r.cancels, ids...)
}

func (r *recorder) flag(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flags = append(r.flags, s)
}

func (r *recorder) SchedulesChanged() { r.flag("schedules") }
func (r *recorder) WorkersFlagged()   { r.flag("workers") }

func (r *recorder) Explain(_ context.Context, run *job.Run) ([]string, error) { return r.explain(run) }

func (r *recorder) Workers(context.Context) ([]job.Worker, error) {
	return []job.Worker{{Name: "w", State: job.WorkerReady, Slots: 3, Labels: map[string]string{"a": "b"}, LastSeenAt: 5}}, nil
}

func (r *recorder) Output(ctx context.Context, q cluster.OutputQuery, each func(cluster.OutputChunk) error) error {
	if q.Attempt == 9 {
		return job.Errorf(job.NotFound, "no_attempt", "there is none")
	}
	for i := range int64(3) {
		if err := each(cluster.OutputChunk{Offset: q.From + 10*i, Stream: "stdout", Data: []byte(r.host + q.RunID.String())}); err != nil {
			return err
		}
	}
	if q.Follow {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (r *recorder) Digest(_ context.Context, index uint64) ([32]byte, error) {
	return [32]byte{byte(index), 1: r.host[1]}, nil
}

// put proposes a schedule of its own, whose answer tells which one it was.
func put(ctx context.Context, n *cluster.Node, i int) error {
	mark, err := n.Control().PutSchedule(ctx, job.Mark{JobID: id(i), Namespace: "ns", Job: fmt.Sprint("j", i), Version: uint64(i) + 1, Schedule: []byte(`{"cron":"@daily"}`)})
	if err == nil && (mark.JobID != id(i) || mark.Version != uint64(i)+1) {
		return fmt.Errorf("proposal %d got the answer of %v version %d", i, mark.JobID, mark.Version)
	}
	return err
}

// TestForwarded: a follower's proposals are made by the leader, and are in the follower's state when it answers.
func TestForwarded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 3)
		f := m.follower()
		var all sync.WaitGroup
		start := time.Now()
		for i := range 500 {
			all.Go(func() {
				if err := put(t.Context(), f.Node, i); err != nil {
					t.Error(err)
				}
				if _, ok := f.State().Mark(id(i)); !ok {
					t.Error("the answer came before the change")
				}
			})
		}
		all.Wait()
		if took := time.Since(start); took > 60*time.Millisecond {
			t.Errorf("500 proposals took %s", took) // a few round trips of 2 ms; without a notice of the commit up to 100 ms
		}
		// What the state machine refuses is an answer, too.
		_, err := f.Control().PutSchedule(t.Context(), job.Mark{JobID: id(3), Namespace: "ns", Job: "j3", Version: 1, Schedule: []byte(`{}`)})
		if job.CodeOf(err) != job.Conflict {
			t.Error(err)
		}
		// The leader's own commands are not forwarded.
		_, err = f.Control().RaiseEpoch(t.Context(), 0)
		if job.CodeOf(err) != job.Unavailable || job.AsError(err).Reason != "not_leader" {
			t.Error(err)
		}
	})
}

// TestForwardThroughLeaderChanges: while leaders are cut off, hand over and are closed, no proposal of any node is lost,
// answered wrongly, or said not to have happened when it has.
func TestForwardThroughLeaderChanges(t *testing.T) {
	rounds := 200
	if testing.Short() {
		rounds = 30
	}
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 3)
		m.leader(nil)
		outcomes := make([]job.Code, 0, 10_000)
		var mu sync.Mutex
		ctx, stop := context.WithCancel(t.Context())
		var all sync.WaitGroup
		current := make([]atomic.Pointer[cluster.Node], 3)
		for w := range 6 {
			current[w%3].Store(m.nodes[w%3].Node)
			all.Go(func() {
				for ctx.Err() == nil {
					n := current[w%3].Load()
					if n == nil { // nobody asks a node that is down
						time.Sleep(10 * time.Millisecond)
						continue
					}
					mu.Lock()
					i := len(outcomes)
					outcomes = append(outcomes, "")
					mu.Unlock()
					call, cancel := context.WithTimeout(context.Background(), 5*time.Second)
					err := put(call, n, i)
					cancel()
					code := job.CodeOf(err)
					if err == nil {
						code = "ok"
						if _, there := n.State().Mark(id(i)); !there {
							t.Errorf("proposal %d was answered before it was there", i)
						}
					}
					mu.Lock()
					outcomes[i] = code
					mu.Unlock()
					if code == job.Internal {
						t.Error(err)
					}
					time.Sleep(time.Duration(5+w) * time.Millisecond)
				}
			})
		}
		for round := range rounds {
			old := m.leader(nil)
			i := slices.Index(m.nodes, old)
			time.Sleep(time.Duration(round%7) * 10 * time.Millisecond)
			switch round % 4 {
			case 0:
				m.cut(old)
				m.leader(old)
				m.net.HealAll()
			case 1:
				if err := old.Transfer(ctx, ""); err != nil {
					t.Log("transfer:", err)
				}
			case 2:
				current[i].Store(nil)
				old.stop()
				m.leader(old)
				old.start()
				current[i].Store(old.Node)
			case 3: // a crash, for all that the others can see
				m.net.Kill(old.host)
				current[i].Store(nil)
				old.stop()
				old.start()
				current[i].Store(old.Node)
			}
		}
		stop()
		all.Wait()
		m.leader(nil)
		time.Sleep(5 * time.Second)
		counts := map[job.Code]int{}
		for i, code := range outcomes {
			counts[code]++
			for _, n := range m.nodes {
				_, there := n.State().Mark(id(i))
				if code == "ok" && !there {
					t.Errorf("proposal %d is lost on %s", i, n.host)
				}
				if code == job.Unavailable && there {
					t.Errorf("proposal %d was said not to have happened", i)
				}
			}
		}
		t.Log(counts)
		if counts["ok"] < 10*rounds || counts[""] > 0 {
			t.Error("too little happened")
		}
		// Each change may catch what the old leader had in hand; the rest waits for the new one.
		if bad := counts[job.Unavailable] + counts[job.Unknown]; bad > 2*rounds {
			t.Errorf("%d of %d proposals came to nothing", bad, len(outcomes))
		}
	})
}

// TestCatchUp: what was accepted anywhere before is there after CatchUp, and a node that is cut off says that it cannot
// tell.
func TestCatchUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 3)
		leader := m.leader(nil)
		a, b := m.follower(), m.nodes[(slices.Index(m.nodes, leader)+2)%3]
		for i := range 50 {
			if err := put(t.Context(), a.Node, i); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if err := b.CatchUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, ok := b.State().Mark(id(i)); !ok {
				t.Fatal("not there after CatchUp")
			}
			if took := time.Since(start); took > 20*time.Millisecond {
				t.Errorf("it took %s", took)
			}
		}
		for _, n := range m.nodes {
			if err := n.CatchUp(t.Context()); err != nil {
				t.Error(err)
			}
		}
		m.cut(leader) // it still believes to lead, for the length of its lease
		if err := leader.CatchUp(t.Context()); job.CodeOf(err) != job.Unavailable {
			t.Error(err)
		}
		m.leader(leader)
		if err := put(t.Context(), a.Node, 1000); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := leader.CatchUp(ctx); job.CodeOf(err) != job.Unavailable {
			t.Error(err)
		}
		m.net.HealAll()
		if err := leader.CatchUp(t.Context()); err != nil {
			t.Error(err)
		}
		if _, ok := leader.State().Mark(id(1000)); !ok {
			t.Error("not there after CatchUp")
		}
	})
}

// TestAsk: questions and hints reach whoever leads, and what a node refuses arrives as it was said.
func TestAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 3)
		leader, f := m.leader(nil), m.follower()
		run := &job.Run{ID: id(7), Namespace: "ns", Lane: "lane", Priority: 4, Labels: map[string]string{"k": "v"}, State: job.Queued}
		leader.local.explain = func(r *job.Run) ([]string, error) {
			if r.ID != run.ID || r.Lane != "lane" || r.Labels["k"] != "v" || r.State != job.Queued {
				t.Errorf("the run arrived as %+v", r)
			}
			return []string{"because", "of this"}, nil
		}
		for _, n := range []*meshNode{leader, f} {
			if why, err := n.Peers().Explain(t.Context(), run); err != nil || fmt.Sprint(why) != "[because of this]" {
				t.Error(why, err)
			}
			if w, err := n.Peers().Workers(t.Context()); err != nil || len(w) != 1 || w[0].Labels["a"] != "b" || w[0].LastSeenAt != 5 {
				t.Error(w, err)
			}
		}
		leader.local.explain = func(*job.Run) ([]string, error) {
			return nil, &job.Error{Code: job.Conflict, Reason: "odd", Field: "run", Message: "it is odd"}
		}
		_, err := f.Peers().Explain(t.Context(), run)
		if e := job.AsError(err); e.Code != job.Conflict || e.Reason != "odd" || e.Field != "run" || e.Message != "it is odd" {
			t.Errorf("%+v", e)
		}
		for _, from := range m.nodes {
			for _, of := range m.nodes {
				var got []cluster.OutputChunk
				err := from.Peers().Output(t.Context(), of.host, cluster.OutputQuery{RunID: id(1), Attempt: 1, From: 5}, func(c cluster.OutputChunk) error {
					c.Data = slices.Clone(c.Data)
					got = append(got, c)
					return nil
				})
				if err != nil || len(got) != 3 || got[2].Offset != 25 || string(got[0].Data) != of.host+job.RunID(id(1)).String() || got[1].Stream != "stdout" {
					t.Error(got, err)
				}
				if d, err := from.Peers().Digest(t.Context(), of.host, 3); err != nil || d != [32]byte{3, 1: of.host[1]} {
					t.Error(d, err)
				}
			}
		}
		if err := f.Peers().Output(t.Context(), leader.host, cluster.OutputQuery{Attempt: 9}, nil); job.CodeOf(err) != job.NotFound {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		chunks := 0
		err = f.Peers().Output(ctx, leader.host, cluster.OutputQuery{Follow: true}, func(cluster.OutputChunk) error { chunks++; return nil })
		if chunks != 3 || err == nil {
			t.Errorf("%d chunks: %v", chunks, err)
		}
		cancel()
		if _, err := f.Peers().Digest(t.Context(), "nobody", 3); job.CodeOf(err) != job.NotFound {
			t.Error(err)
		}
		f.Peers().Born([]job.QueueEntry{{RunID: id(1), Lane: "x", Priority: 3, ReadyAt: 77}, {RunID: id(2)}})
		f.Peers().CancelRequested([]job.RunID{id(3)})
		f.Peers().SchedulesChanged()
		leader.Peers().WorkersFlagged()
		time.Sleep(time.Second)
		leader.local.mu.Lock()
		if l := leader.local; len(l.born) != 2 || l.born[0] != (job.QueueEntry{RunID: id(1), Lane: "x", Priority: 3, ReadyAt: 77}) || len(l.cancels) != 1 ||
			l.cancels[0] != id(3) || fmt.Sprint(l.flags) != "[workers schedules]" {
			t.Errorf("births %v, cancels %v, flags %v", l.born, l.cancels, l.flags)
		}
		leader.local.mu.Unlock()
		if err := f.Peers().Transfer(t.Context(), f.host); err != nil {
			t.Error(err)
		}
		if now := m.leader(nil); now != f {
			t.Errorf("%s leads, not %s", now.host, f.host)
		}
		m.cut(leader)
		if _, err := leader.Peers().Workers(t.Context()); job.CodeOf(err) != job.Unavailable {
			t.Error(err)
		}
		leader.Peers().Born([]job.QueueEntry{{RunID: id(5)}})
	})
}

// TestMembers: the leader knows who is well.
func TestMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 3)
		leader, f := m.leader(nil), m.follower()
		time.Sleep(1500 * time.Millisecond)
		list, err := f.Peers().Members(t.Context())
		if err != nil || len(list) != 3 {
			t.Fatal(list, err)
		}
		for _, v := range list {
			if !v.Healthy || !v.Voter || v.Leader != (v.ID == leader.host) || time.Since(v.LastSeen) > 2*time.Second {
				t.Errorf("%+v", v)
			}
		}
		m.cut(f)
		time.Sleep(5 * time.Second)
		for _, v := range leader.Members() {
			if v.Healthy != (v.ID != f.host) {
				t.Errorf("%+v", v)
			}
		}
		m.net.HealAll()
		time.Sleep(5 * time.Second)
		for _, v := range leader.Members() {
			if !v.Healthy {
				t.Errorf("%+v", v)
			}
		}
	})
}

// A node that died a moment ago still looks well to the leader's probes. It does not count towards the majority that would
// remain after another one is removed.
func TestRemoveCountsWhoAnswersNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 3)
		leader := m.leader(nil)
		time.Sleep(5 * time.Second) // everybody answered
		var others []*meshNode
		for _, n := range m.nodes {
			if n != leader {
				others = append(others, n)
			}
		}
		dead := others[0].ID()
		others[0].stop()
		err := leader.Remove(t.Context(), others[1].ID(), false)
		if e := job.AsError(err); e == nil || e.Code != job.Conflict || e.Reason != "quorum" {
			t.Fatal("a node was removed that was needed:", err)
		}
		if err := leader.Remove(t.Context(), dead, false); err != nil {
			t.Fatal("the dead one:", err)
		}
	})
}
