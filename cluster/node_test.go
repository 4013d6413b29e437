package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
	"github.com/prometheus/client_golang/prometheus"
)

func awaitLeading(t testing.TB, n *Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := n.AwaitLeader(ctx); err != nil {
		t.Fatal(err)
	}
	if err := n.Barrier(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestRestart: state survives Close and Open, under the same id, and the node leads again at once.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	n := open(t, Config{Dir: dir})
	awaitLeading(t, n)
	id := n.ID()
	for range 3 {
		if _, err := n.Control().RaiseEpoch(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Control().FlagWorker(t.Context(), "w1", job.WorkerCordoned); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	n = open(t, Config{Dir: dir})
	awaitLeading(t, n)
	t.Logf("open to leading with everything applied: %s", time.Since(start))
	if n.ID() != id {
		t.Errorf("id %s became %s", id, n.ID())
	}
	if got := n.State().Epoch(); got != 3 {
		t.Errorf("epoch %d, want 3", got)
	}
	if got := n.Control().WorkerFlag("w1"); got != job.WorkerCordoned {
		t.Errorf("worker flag %q", got)
	}
}

const childEnv = "MUSTER_CLUSTER_TEST_CHILD"

// child raises the epoch for ever and prints each that was acknowledged.
func child(dir string) {
	ctx := context.Background()
	n, err := Open(ctx, Config{Dir: dir, State: fsm.New(), Logger: slog.New(slog.DiscardHandler)})
	if err == nil {
		_, err = n.AwaitLeader(ctx)
	}
	for err == nil {
		var e job.Epoch
		if e, err = n.Control().RaiseEpoch(ctx, 0); err == nil {
			fmt.Println(e)
		}
	}
	fmt.Println(err)
	os.Exit(1)
}

// TestHardStop: what a killed process acknowledged is there afterwards (D1).
func TestHardStop(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	acknowledged := 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if _, err := fmt.Sscan(lines.Text(), &acknowledged); err != nil {
			t.Error(lines.Text())
			break
		}
		if acknowledged == 100 {
			_ = cmd.Process.Kill()
		}
	}
	_ = cmd.Wait()
	n := open(t, Config{Dir: dir})
	awaitLeading(t, n)
	if got := int(n.State().Epoch()); got < acknowledged || acknowledged < 100 {
		t.Errorf("acknowledged %d, found %d", acknowledged, got)
	}
}

func TestDirectoryInUse(t *testing.T) {
	dir := t.TempDir()
	n := open(t, Config{Dir: dir})
	_, err := tryOpen(t, Config{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("the data directory %s is in use by another muster process (process %d)", dir, os.Getpid())) {
		t.Fatalf("second open: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, Config{Dir: dir})
}

func TestIdentityGuards(t *testing.T) {
	dir := t.TempDir()
	n := open(t, Config{Dir: dir})
	id := filepath.Join(dir, raftDir, idName)
	_ = n.Close()
	if err := os.WriteFile(id, []byte("rubbish\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tryOpen(t, Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "does not hold a node id") {
		t.Error("damaged id:", err)
	}
	_ = os.Remove(id)
	if _, err := tryOpen(t, Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "is missing but raft.db holds state") {
		t.Error("missing id:", err)
	}
}

func TestValidateNamesTheField(t *testing.T) {
	good := Config{Memory: NewMemory("a"), State: fsm.New(), Logger: slog.New(slog.DiscardHandler)}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for field, spoil := range map[string]func(*Config){
		"Dir":               func(c *Config) { c.Memory = nil },
		"Memory":            func(c *Config) { c.Dir = "x" },
		"State":             func(c *Config) { c.State = nil },
		"Logger":            func(c *Config) { c.Logger = nil },
		"Join":              func(c *Config) { c.Join = true },
		"RaftAddress":       func(c *Config) { c.RaftAddress = "nowhere" },
		"AdvertiseAddress":  func(c *Config) { c.AdvertiseAddress = "nowhere" },
		"AdvertiseAddress ": func(c *Config) { c.RaftAddress = "0.0.0.0:7000" },
		"HeartbeatTimeout":  func(c *Config) { c.HeartbeatTimeout = time.Millisecond },
		"ElectionTimeout":   func(c *Config) { c.HeartbeatTimeout, c.ElectionTimeout = time.Second, time.Millisecond },
		"LeaderLease":       func(c *Config) { c.LeaderLease = time.Second },
		"MaxEntryBytes":     func(c *Config) { c.MaxEntryBytes = 2 << 20 },
		"MaxInFlight":       func(c *Config) { c.MaxInFlight = -1 },
		"SnapshotBytes":     func(c *Config) { c.SnapshotBytes = -1 },
	} {
		c := good
		spoil(&c)
		var e *job.Error
		if err := c.Validate(); !errors.As(err, &e) || e.Field != strings.TrimSpace(field) || e.Code != job.Invalid {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// TestRun: lead runs once per term, after everything is applied, and again after it failed.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory("a")
		n := open(t, Config{Memory: m})
		calls := make(chan error)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			ended <- n.Run(ctx, func(ctx context.Context) error {
				if _, err := n.Control().RaiseEpoch(ctx, 0); err != nil {
					t.Error(err)
				}
				select {
				case err := <-calls:
					return err
				case <-ctx.Done():
					return ctx.Err()
				}
			})
		}()
		calls <- errors.New("the first call fails")
		calls <- nil // and one that just returns is called again too
		synctest.Wait()
		time.Sleep(time.Second)
		synctest.Wait()
		if got := n.State().Epoch(); got != 3 {
			t.Errorf("lead was called %d times, want 3", got)
		}
		if err := n.Run(ctx, nil); err == nil {
			t.Error("a second Run was allowed")
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestRunEndsWithClose: Close waits for the leader's work.
func TestRunEndsWithClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := open(t, Config{Memory: NewMemory("a")})
		leads, ended := make(chan struct{}), make(chan error, 1)
		over := false
		go func() {
			ended <- n.Run(context.Background(), func(ctx context.Context) error {
				close(leads)
				<-ctx.Done()
				time.Sleep(time.Second) // tidying up
				over = true
				return nil
			})
		}()
		<-leads
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if !over {
			t.Error("Close returned before the leader's work had ended")
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if _, err := n.Propose(t.Context(), &fsm.RaiseEpoch{}); job.CodeOf(err) != job.Unavailable {
			t.Error("propose on a closed node:", err)
		}
	})
}

// TestCloseOnAHungDisk: Close says what it leaves behind and returns.
func TestCloseOnAHungDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newSickDisk()
		n, err := tryOpen(t, Config{Memory: d.memory("a"), WriteTimeout: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		awaitLeading(t, n)
		d.hang()
		answer := make(chan error, 1)
		go func() { _, err := n.Propose(context.Background(), &fsm.RaiseEpoch{}); answer <- err }()
		synctest.Wait()
		start := time.Now()
		err = n.Close()
		if err == nil || !strings.Contains(err.Error(), "entries on their way to the log did not end") || time.Since(start) > 11*time.Second {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
		if again := n.Close(); again != err {
			t.Error("the second Close:", again)
		}
		if err := <-answer; job.CodeOf(err) != job.Unknown {
			t.Error(err)
		}
		d.heal() // so that what was left behind can end with the test
	})
}

// TestOverTCP: three nodes with files and sockets elect, and survive the loss of the leader.
func TestOverTCP(t *testing.T) {
	var nodes []*Node
	var peers []Peer
	for range 3 {
		n := open(t, Config{Dir: t.TempDir(), RaftAddress: "127.0.0.1:0", Join: true,
			HeartbeatTimeout: 200 * time.Millisecond, ElectionTimeout: 200 * time.Millisecond, LeaderLease: 100 * time.Millisecond})
		nodes = append(nodes, n)
		peers = append(peers, Peer{n.ID(), string(n.address)})
	}
	for _, n := range nodes {
		if err := n.Bootstrap(t.Context(), peers); err != nil {
			t.Fatal(err)
		}
	}
	if err := nodes[0].Bootstrap(t.Context(), peers); job.CodeOf(err) != job.Conflict {
		t.Error("a second bootstrap:", err)
	}
	leader := func(but *Node) *Node {
		deadline := time.After(20 * time.Second)
		for {
			for _, n := range nodes {
				if n != but && n.Leading() {
					return n
				}
			}
			select {
			case <-time.After(10 * time.Millisecond):
			case <-deadline:
				t.Fatal("nobody leads")
			}
		}
	}
	first := leader(nil)
	if _, err := first.Control().RaiseEpoch(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := leader(first)
	if got, err := second.Control().RaiseEpoch(t.Context(), 0); err != nil || got != 2 {
		t.Error(got, err)
	}
	if s := second.Status(); s.Role != "leader" || len(s.Servers) != 3 || s.LeaderID != second.ID() || s.Address != string(second.address) {
		t.Errorf("%+v", s)
	}
}

// TestAloneIsGivenAnAddress: a cluster of one that is opened with an address tells it to those who will join.
func TestAloneIsGivenAnAddress(t *testing.T) {
	dir := t.TempDir()
	n := open(t, Config{Dir: dir})
	awaitLeading(t, n)
	_ = n.Close()
	n = open(t, Config{Dir: dir, RaftAddress: "127.0.0.1:0", HeartbeatTimeout: 50 * time.Millisecond})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := n.Run(ctx, func(context.Context) error {
		if got := n.Status().Servers; len(got) != 1 || got[0].Address != string(n.address) || !got[0].Voter {
			t.Errorf("%+v", got)
		}
		cancel()
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestSnapshots: bytes of log make a snapshot, the log behind it is cut, and a restart needs both.
func TestSnapshots(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Dir: dir, SnapshotBytes: 64 << 10, TrailingBytes: 16 << 10}
	n := open(t, cfg)
	awaitLeading(t, n)
	var want int
	for range 400 {
		if _, err := n.Control().RaiseEpoch(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		want++
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		list, err := n.stores.snaps.List()
		if err != nil {
			t.Fatal(err)
		}
		first, _ := n.guard.FirstIndex()
		if len(list) > 0 && first > 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no snapshot, or the log was not cut: %d snapshots, first index %d", len(list), first)
		}
		// Each one is another entry, so the log goes on growing.
		if _, err := n.Control().RaiseEpoch(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		want++
	}
	if got := n.raft.ReloadableConfig().TrailingLogs; got < minTrailing || got > 200 {
		t.Errorf("%d entries trail", got)
	}
	_ = n.Close()
	// What a process that was killed had written of a snapshot is in nobody's way and does not stay.
	left := filepath.Join(dir, raftDir, "snapshots", "2-500-1795453024065.tmp")
	if err := os.MkdirAll(left, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(left, "state.bin"), []byte("MUSTER"), 0o600); err != nil {
		t.Fatal(err)
	}
	n = open(t, cfg)
	awaitLeading(t, n)
	if got := n.State().Epoch(); int(got) != want {
		t.Errorf("epoch %d, want %d", got, want)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an unfinished snapshot stays: %v", err)
	}
}

func TestMetrics(t *testing.T) {
	r := prometheus.NewRegistry()
	n := open(t, Config{Memory: NewMemory("a"), Registerer: r})
	awaitLeading(t, n)
	if _, err := n.Control().RaiseEpoch(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		m := f.GetMetric()[0]
		values[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	for name, want := range map[string]float64{"muster_raft_state": 2, "muster_raft_proposals_total": 1, "muster_raft_commit_seconds": 1, "muster_raft_entry_bytes": 1} {
		if values[name] != want {
			t.Errorf("%s = %g, want %g", name, values[name], want)
		}
	}
	_ = n.Close()
	if families, _ := r.Gather(); len(families) != 0 {
		t.Errorf("%d families are left after Close", len(families))
	}
}
