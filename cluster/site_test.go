package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

// site is nodes on disks and loopback sockets, with everything that a server has: ports, node calls, a bootstrapper.
type site struct {
	t     *testing.T
	mu    sync.Mutex
	hosts map[string]*host
}

type host struct {
	site   *site
	name   string
	dir    string
	raft   string
	node   *Node
	port   *Port
	stop   context.CancelFunc
	ended  chan error
	served chan error
	list   []string
}

func newSite(t *testing.T, names ...string) *site {
	s := &site{t: t, hosts: map[string]*host{}}
	t.Cleanup(func() {
		for _, h := range s.hosts {
			h.down()
		}
	})
	for _, name := range names {
		l, err := net.Listen("tcp", "127.0.0.1:0") // an address for as long as the test lives
		if err != nil {
			t.Fatal(err)
		}
		s.hosts[name] = &host{site: s, name: name, dir: t.TempDir(), raft: l.Addr().String(), list: names}
		_ = l.Close()
	}
	return s
}

// up starts a node, or answers why it does not start.
func (h *host) up() error {
	t := h.site.t
	t.Helper()
	l, err := net.Listen("tcp", h.raft)
	if err != nil {
		t.Fatal(err)
	}
	logger, _ := testLogger(h.site.t)
	port, err := OpenPort(PortConfig{Listener: l, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	ctx, stop := context.WithCancel(context.Background())
	go func() { served <- port.Serve(ctx) }()
	n, err := Open(ctx, Config{
		Dir: h.dir, State: fsm.New(), Logger: logger, Port: port, Join: true, Self: job.Node{Name: h.name, API: apiOf(h.name)},
		HeartbeatTimeout: 200 * time.Millisecond, ElectionTimeout: 200 * time.Millisecond, LeaderLease: 100 * time.Millisecond,
		PromoteAfter: 500 * time.Millisecond, SnapshotBytes: 64 << 10, TrailingBytes: 16 << 10,
	})
	if err != nil {
		stop()
		_ = port.Close()
		<-served
		return err
	}
	ended := make(chan error, 2)
	h.site.mu.Lock()
	h.node, h.port, h.stop, h.ended, h.served = n, port, stop, ended, served
	h.site.mu.Unlock()
	b := &Bootstrapper{Greet: h.site.greet, Every: 100 * time.Millisecond}
	for _, name := range h.list {
		b.Addresses = append(b.Addresses, apiOf(name))
	}
	go func() { ended <- b.Run(ctx, n) }()
	go func() {
		ended <- n.Run(ctx, func(ctx context.Context) error {
			if _, err := n.Control().RaiseEpoch(ctx, 0); err != nil {
				return err
			}
			return leadUntilEnd(ctx)
		})
	}()
	return nil
}

func (h *host) start() {
	h.site.t.Helper()
	if err := h.up(); err != nil {
		h.site.t.Fatal(h.name, err)
	}
}

func (h *host) down() {
	h.site.mu.Lock()
	n := h.node
	h.node = nil
	h.site.mu.Unlock()
	if n == nil {
		return
	}
	h.stop()
	if err := errors.Join(<-h.ended, <-h.ended, n.Close(), h.port.Close()); err != nil {
		h.site.t.Error(h.name, "ends:", err)
	}
	<-h.served
}

func (s *site) greet(_ context.Context, address string) (Greeting, error) {
	s.mu.Lock()
	h := s.hosts[strings.TrimPrefix(address, "api-")]
	var n *Node
	if h != nil {
		n = h.node
	}
	s.mu.Unlock()
	if n == nil {
		return Greeting{}, errors.New("connection refused")
	}
	return n.Greeting(), nil
}

// await waits for something that is bound to happen.
func (s *site) await(what string, happened func() bool) {
	s.t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if happened() {
			return
		}
	}
	for _, h := range s.hosts {
		if h.node != nil {
			s.t.Logf("%s: %+v %+v", h.name, h.node.Status(), h.node.State().Nodes())
		}
	}
	s.t.Fatal("in vain: ", what)
}

// gather waits until the named ones are one cluster of voters, each with its row.
func (s *site) gather(names ...string) {
	s.t.Helper()
	s.await(fmt.Sprint(names, " are one cluster"), func() bool {
		leader := ""
		for _, name := range names {
			n := s.hosts[name].node
			st := n.Status()
			if len(st.Servers) != len(names) || st.LeaderID == "" || leader != "" && st.LeaderID != leader || len(n.State().Nodes()) != len(names) {
				return false
			}
			leader = st.LeaderID
			for _, v := range st.Servers {
				if _, ok := n.State().Node(v.ID); !v.Voter || !ok {
					return false
				}
			}
		}
		return true
	})
}

func (s *site) leader() *host {
	s.t.Helper()
	var leader *host
	s.await("somebody leads", func() bool {
		for _, h := range s.hosts {
			if h.node != nil && h.node.Leading() {
				leader = h
			}
		}
		return leader != nil
	})
	return leader
}

// agree waits until all that run have equal states at an equal index.
func (s *site) agree() {
	s.t.Helper()
	s.await("equal states", func() bool {
		seen := map[[32]byte]bool{}
		for _, h := range s.hosts {
			if h.node == nil {
				continue
			}
			sum, err := h.node.State().Hash()
			if err != nil {
				s.t.Fatal(err)
			}
			seen[sum] = true
		}
		return len(seen) == 1
	})
}

// load raises flags of ever new workers through all nodes, and remembers those that were acknowledged.
type load struct {
	site *site
	stop chan struct{}
	done sync.WaitGroup
	mu   sync.Mutex
	acks []string
}

func (s *site) load() *load {
	l := &load{site: s, stop: make(chan struct{})}
	for name := range s.hosts {
		l.done.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-l.stop:
					return
				case <-time.After(2 * time.Millisecond):
				}
				s.mu.Lock()
				n := s.hosts[name].node
				s.mu.Unlock()
				if n == nil {
					continue
				}
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				worker := fmt.Sprintf("%s-%d", name, i)
				if n.Control().FlagWorker(ctx, worker, job.WorkerCordoned) == nil {
					l.mu.Lock()
					l.acks = append(l.acks, worker)
					l.mu.Unlock()
				}
				cancel()
			}
		})
	}
	return l
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acks)
}

// grow waits until n more were acknowledged.
func (l *load) grow(n int) {
	l.site.t.Helper()
	want := l.count() + n
	l.site.await(fmt.Sprint(n, " more writes"), func() bool { return l.count() >= want })
}

// end stops it, and misses nothing that was acknowledged.
func (l *load) end() {
	t := l.site.t
	t.Helper()
	close(l.stop)
	l.done.Wait()
	l.site.agree()
	for _, h := range l.site.hosts {
		if h.node == nil {
			continue
		}
		for _, w := range l.acks {
			if h.node.State().WorkerFlag(w) != job.WorkerCordoned {
				t.Fatalf("%s lacks %s, which was acknowledged", h.name, w)
			}
		}
	}
	t.Logf("%d writes were acknowledged", len(l.acks))
}

// lastEntry is the index of the last entry in a log that nobody has open.
func lastEntry(t *testing.T, db string) uint64 {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "log.db")
	copyFile(t, db, copied)
	log, err := raftboltdb.NewBoltStore(copied)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	last, err := log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	return last
}

// TestDamagedLogRejoins: a node of three whose log is damaged while the others write says what to do, and when that is
// done it is a member again, under another id, with everything.
func TestDamagedLogRejoins(t *testing.T) {
	t.Parallel()
	s := newSite(t, "a", "b", "c")
	for _, h := range s.hosts {
		h.start()
	}
	s.gather("a", "b", "c")
	work := s.load()
	work.grow(100)
	half := filepath.Join(t.TempDir(), "half.db")
	for i, damage := range []struct {
		name  string
		fatal bool // nothing can be read any more
		do    func(t *testing.T, db string)
	}{
		{"newest meta page", false, func(t *testing.T, db string) { flip(t, db, newestMeta(t, db)+56) }},
		{"data pages", true, func(t *testing.T, db string) {
			info, err := os.Stat(db)
			if err != nil {
				t.Fatal(err)
			}
			for at := int64(2 * os.Getpagesize()); at < info.Size(); at += int64(os.Getpagesize()) {
				flip(t, db, at+8)
			}
		}},
		{"truncated", true, func(t *testing.T, db string) {
			if err := os.Truncate(db, 3*int64(os.Getpagesize())); err != nil {
				t.Fatal(err)
			}
		}},
		{"an old copy", false, func(t *testing.T, db string) { copyFile(t, half, db) }},
		{"deleted", true, func(t *testing.T, db string) { _ = os.Remove(db) }},
	} {
		t.Run(damage.name, func(t *testing.T) {
			if testing.Short() && i > 0 {
				t.Skip("each takes some seconds")
			}
			s.t = t
			var victim *host
			for _, h := range s.hosts {
				if h != s.leader() {
					victim = h
				}
			}
			old := victim.node.ID()
			db := filepath.Join(victim.dir, raftDir, dbName)
			victim.down()
			copyFile(t, db, half)
			// What a node does last, and a snapshot of the leader's, may leave a log of which the damage takes nothing.
			for lost := false; !lost; {
				victim.start()
				then := victim.node.raft.LastIndex()
				s.await("it stores more", func() bool { return victim.node.raft.LastIndex() > then+50 })
				n := victim.node
				victim.down()
				before := lastEntry(t, db)
				damage.do(t, db)
				lost = damage.fatal || max(lastEntry(t, db), n.newestSnapshot()) < before
			}
			work.grow(20) // the others go on
			for range 2 {
				err := victim.up()
				if err == nil {
					t.Fatal("it starts as if nothing had happened")
				}
				if want := "move " + filepath.Join(victim.dir, raftDir) + " away and"; !strings.Contains(err.Error(), want) {
					t.Errorf("it does not say %q: %v", want, err)
				}
			}
			if err := os.Rename(filepath.Join(victim.dir, raftDir), filepath.Join(t.TempDir(), "damaged")); err != nil {
				t.Fatal(err)
			}
			victim.start()
			s.gather("a", "b", "c")
			for name, h := range s.hosts {
				if find(h.node.servers(), old) >= 0 {
					t.Errorf("%s still has the old server", name)
				}
				if _, ok := h.node.State().Node(old); ok {
					t.Errorf("%s still has the old row", name)
				}
			}
			if victim.node.ID() == old {
				t.Error("it came back under its old id")
			}
			work.grow(20)
		})
	}
	s.t = t
	work.end()
}

// TestRecover is the runbook for a lost majority: two of three are destroyed, the third goes on alone with everything,
// and new nodes join it.
func TestRecover(t *testing.T) {
	t.Parallel()
	s := newSite(t, "a", "b", "c")
	for _, h := range s.hosts {
		h.start()
	}
	s.gather("a", "b", "c")
	work := s.load()
	work.grow(300)
	for range 20 {
		if _, err := s.leader().node.Control().RaiseEpoch(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
	close(work.stop)
	work.done.Wait()
	s.agree()
	last := s.hosts["a"]
	issued, cluster := last.node.State().Epoch(), last.node.State().ClusterID()
	if _, err := Recover(last.dir, RecoverOptions{}); err == nil || !strings.Contains(err.Error(), "is in use by another muster process") {
		t.Error("while it runs:", err)
	}
	for _, h := range s.hosts {
		h.down()
	}
	for _, name := range []string{"b", "c"} {
		if err := os.RemoveAll(filepath.Join(s.hosts[name].dir, raftDir)); err != nil {
			t.Fatal(err)
		}
		if _, err := Inspect(s.hosts[name].dir); job.CodeOf(err) != job.NotFound {
			t.Error("what was destroyed:", err)
		}
	}
	found, err := Inspect(last.dir)
	if err != nil || len(found.Servers) != 3 || found.ClusterID != cluster || found.Epoch < issued || found.LastIndex == 0 || found.LastTerm < 2 {
		t.Fatalf("%+v %v", found, err)
	}
	if again, err := Inspect(last.dir); err != nil || again.LastIndex != found.LastIndex {
		t.Fatalf("looking changed it: %+v %v", again, err)
	}
	issued = found.Epoch // as the nodes stopped one by one, others led
	// A damaged log is refused.
	db := filepath.Join(last.dir, raftDir, dbName)
	whole := filepath.Join(t.TempDir(), "whole.db")
	copyFile(t, db, whole)
	if err := os.Truncate(db, 3*int64(os.Getpagesize())); err != nil {
		t.Fatal(err)
	}
	if _, err := Recover(last.dir, RecoverOptions{}); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Error("a damaged log:", err)
	}
	copyFile(t, whole, db)
	for range 2 { // killed in the middle, one does it again
		r, err := Recover(last.dir, RecoverOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if r.Epoch < issued+epochJump || r.LastIndex != found.LastIndex {
			t.Errorf("%+v", r)
		}
	}
	last.start()
	s.await("it leads alone", func() bool { return last.node.Leading() && len(last.node.Status().Servers) == 1 })
	s.await("its first term begins", func() bool { return last.node.State().Epoch() > issued+epochJump })
	for _, name := range []string{"b", "c"} {
		s.hosts[name].start()
	}
	s.gather("a", "b", "c")
	work.stop = make(chan struct{})
	work.end()
	if got := s.hosts["c"].node.State().ClusterID(); got != cluster {
		t.Error("another cluster:", got)
	}
}

// TestMovedNodeIsFound: a follower that comes back at another address is found there, and one that was removed meanwhile is not.
func TestMovedNodeIsFound(t *testing.T) {
	t.Parallel()
	s := newSite(t, "a", "b", "c")
	for _, h := range s.hosts {
		h.start()
	}
	s.gather("a", "b", "c")
	leader := s.leader()
	var away *host
	for _, h := range s.hosts {
		if h != leader {
			away = h
		}
	}
	elsewhere := func() {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		away.raft = l.Addr().String()
		_ = l.Close()
	}
	away.down()
	elsewhere()
	away.start()
	s.await("it is found", func() bool {
		st := away.node.Status()
		row, _ := leader.node.State().Node(away.node.ID())
		return st.LeaderID != "" && st.Role == "follower" && st.Address == away.raft && row.Raft == away.raft
	})
	id := away.node.ID()
	away.down()
	if err := s.leader().node.Remove(t.Context(), away.name, false); err != nil {
		t.Fatal(err)
	}
	elsewhere()
	away.start()
	s.await("it ends", func() bool { return away.node.broken() })
	if n := len(s.leader().node.Status().Servers); n != 2 || find(s.leader().node.servers(), id) >= 0 {
		t.Error("a removed node came back by moving:", n)
	}
	away.stop()
	for range 2 {
		if err := <-away.ended; err != errRemoved && err != nil {
			t.Error(err)
		}
		away.ended <- nil
	}
}

// TestCutRestore: a node that was killed while a snapshot was restored through it, when no other had it, does not start. Without
// the note of it this one is in step with the others a moment later, with another state.
func TestCutRestore(t *testing.T) {
	t.Parallel()
	s := newSite(t, "a", "b", "c")
	for _, h := range s.hosts {
		h.start()
	}
	s.gather("a", "b", "c")
	work := s.load()
	work.grow(20)
	close(work.stop)
	work.done.Wait()
	s.agree()
	h := s.leader()
	var saved bytes.Buffer
	if _, err := h.node.SaveSnapshot(t.Context(), &saved); err != nil {
		t.Fatal(err)
	}
	if err := h.node.RestoreSnapshot(t.Context(), &saved); err != nil {
		t.Fatal(err)
	}
	s.agree()
	marker := filepath.Join(h.dir, raftDir, restoringName)
	if _, err := os.Stat(marker); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("after a restore that ended well:", err)
	}
	h.down()
	// As Raft does it, before any other node has it: a snapshot one beyond the end of the log.
	found, err := Inspect(h.dir)
	if err != nil {
		t.Fatal(err)
	}
	s.await("the others go on without it", func() bool { return s.leader().node.Status().AppliedIndex > found.LastIndex+1 })
	stores, err := openStores(filepath.Join(h.dir, raftDir), 2, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	other := fsm.New()
	servers := raft.Configuration{}
	for _, v := range found.Servers {
		servers.Servers = append(servers.Servers, raft.Server{ID: raft.ServerID(v.ID), Address: raft.ServerAddress(v.Address)})
	}
	_, transport := raft.NewInmemTransport("x")
	sink, err := stores.snaps.Create(raft.SnapshotVersionMax, found.LastIndex+1, found.LastTerm, servers, 1, transport)
	if err != nil {
		t.Fatal(err)
	}
	frozen, err := other.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(frozen.Persist(sink), stores.close()); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(marker, nil); err != nil {
		t.Fatal(err)
	}
	if err := h.up(); err == nil {
		t.Fatal("it starts")
	} else if reasonOf(err) != "restore_cut" {
		t.Error(err)
	}
	if _, err := Recover(h.dir, RecoverOptions{}); err != nil {
		t.Error("the last resort:", err)
	}
	if err := restoreWasCut(h.dir); err != nil {
		t.Error("after it was recovered:", err)
	}
}
