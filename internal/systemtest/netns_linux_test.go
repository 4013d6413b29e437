package systemtest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/internal/checker"
)

// ownNetwork is the variable that says to the test's binary that it runs in a network namespace of its own, where it can
// make others; it names the file for the table's rows.
const ownNetwork = "MUSTER_TEST_OWN_NETWORK"

// needNetwork is the variable that says that this machine is known to have what partitions need: then to skip them is a
// failure.
const needNetwork = "MUSTER_NEED_NETNS"

func partitionsNeed(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv(needNetwork) != "" {
		t.Fatalf("NOT TESTED, although "+needNetwork+" is set: network partitions need "+format, args...)
	}
	t.Skipf("NOT TESTED: network partitions need "+format, args...)
}

// inOwnNetwork runs the rest of a test in a copy of this process that has a network and mounts of its own. All that it
// makes goes with it. It is false in the process that only waited for the copy.
func inOwnNetwork(t *testing.T) bool {
	t.Helper()
	if os.Getenv(ownNetwork) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		partitionsNeed(t, "root, for network namespaces")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		partitionsNeed(t, "the ip command (Debian: apt-get install iproute2)")
	}
	if !*chaos {
		t.Parallel()
	}
	rows := filepath.Join(t.TempDir(), "rows")
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(a string) bool { // files that this process writes
		return strings.HasPrefix(a, "-test.testlogfile=") || strings.HasPrefix(a, "-test.coverprofile=") || strings.HasPrefix(a, "-test.gocoverdir=")
	})
	args = append(args, "-test.run=^"+t.Name()+"$", "-test.count=1")
	if *built == "" { // the modules may have to be fetched, which takes the network
		args = append(args, "-muster="+buildMuster(t))
	}
	c := exec.Command(os.Args[0], args...)
	c.Env = append(os.Environ(), ownNetwork+"="+rows)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	runtime.LockOSThread() // the parent-death signal comes when the thread ends
	defer runtime.UnlockOSThread()
	out, err := c.CombinedOutput()
	if errno := syscall.Errno(0); err != nil && len(out) == 0 && asErrno(err, &errno) && (errno == syscall.EPERM || errno == syscall.ENOSPC) {
		partitionsNeed(t, "network namespaces, and this system gives none: %v", err)
	}
	t.Logf("in a network of its own:\n%s", out)
	if err != nil {
		t.Error(err)
	}
	var read [][2]string
	if b, err := os.ReadFile(rows); err == nil && json.Unmarshal(b, &read) == nil {
		table.Lock()
		table.rows = append(table.rows, read...)
		table.Unlock()
	}
	return false
}

func asErrno(err error, errno *syscall.Errno) bool {
	p, ok := err.(*os.PathError)
	if ok {
		*errno, ok = p.Err.(syscall.Errno)
	}
	return ok
}

// network is a bridge with a namespace for each process of a cluster. The test itself is on the bridge and reaches all.
type network struct {
	t      *testing.T
	spaces map[string]string // to addresses
	cuts   []checker.Fault   // of workers, that last
}

func newNetwork(t *testing.T, nodes, workers int) *network {
	t.Helper()
	n := &network{t: t, spaces: map[string]string{}}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", "/run/netns", "tmpfs", 0, ""); err != nil {
		t.Fatalf("mount over /run/netns: %v", err)
	}
	n.ip("link set lo up")
	n.ip("link add br0 type bridge")
	n.ip("addr add 10.77.255.254/16 dev br0")
	n.ip("link set br0 up")
	for i := range nodes {
		n.add(n.nodeSpace(i), n.node(i))
	}
	for i := range workers {
		n.add(n.workerSpace(i), fmt.Sprintf("10.77.1.%d", i+1))
	}
	return n
}

func (n *network) add(space, address string) {
	n.spaces[space] = address
	n.ip("netns add " + space)
	n.ip("link add v" + space + " type veth peer name eth0 netns " + space)
	n.ip("link set v" + space + " master br0 up")
	n.ip("-n " + space + " link set lo up")
	n.ip("-n " + space + " addr add " + address + "/16 dev eth0")
	n.ip("-n " + space + " link set eth0 up")
}

func (n *network) ip(args string) {
	n.t.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		n.t.Fatalf("ip %s: %v: %s", args, err, out)
	}
}

func (n *network) node(i int) string { return fmt.Sprintf("10.77.0.%d", i+1) }

func (n *network) nodeSpace(i int) string {
	if n == nil {
		return ""
	}
	return fmt.Sprintf("n%d", i+1)
}

func (n *network) workerSpace(i int) string {
	if n == nil {
		return ""
	}
	return fmt.Sprintf("w%d", i+1)
}

// drop loses, silently, all that one sends to another: it goes to a hardware address that nobody has.
func (n *network) drop(from, to *process) {
	n.t.Helper()
	n.ip("-n " + from.name + " neigh replace " + n.spaces[to.name] + " lladdr 02:00:00:00:00:99 dev eth0 nud permanent")
}

// cut loses what two groups send to each other.
func (n *network) cut(some, others []*process) {
	n.t.Helper()
	for _, a := range some {
		for _, b := range others {
			n.drop(a, b)
			n.drop(b, a)
		}
	}
}

// lost notes that a worker reaches no node, or none that reaches the leader, until the network heals.
func (n *network) lost(w *process) {
	n.cuts = append(n.cuts, checker.Fault{Kind: checker.Cut, Role: w.role, Name: w.name, From: now()})
}

func (n *network) heal() {
	if n == nil {
		return
	}
	n.t.Helper()
	for space := range n.spaces {
		n.ip("-n " + space + " neigh flush dev eth0 nud permanent")
	}
}

// healed ends the cuts and records them.
func (c *cluster) healed() {
	c.t.Helper()
	c.net.heal()
	for _, f := range c.net.cuts {
		f.To = now()
		c.rec.add(checker.Line{Fault: &f})
	}
	c.net.cuts = nil
}

// TestPartitions takes the network apart in several ways, heals it, and wants all promises kept.
func TestPartitions(t *testing.T) {
	if !inOwnNetwork(t) {
		return
	}
	s := shape{nodes: full(5, 3), workers: full(4, 2), jobs: full(50, 20), slots: slots}
	s.net = newNetwork(t, s.nodes, s.workers)
	c := newCluster(t, s)
	c.start()
	short := func() { c.settle(10*time.Second, 14*time.Second) }
	if !*chaos {
		short = func() { c.settle(4*time.Second, 5*time.Second) }
	}
	beyondLease := func() { c.settle(46*time.Second, 50*time.Second) }
	each := func(from, to []*process) {
		for _, a := range from {
			for _, b := range to {
				s.net.drop(a, b)
			}
		}
	}
	trials := []struct {
		name  string
		long  bool
		begin func(l *process, f []*process)
		last  func()
	}{
		{"leader alone", false, func(l *process, f []*process) { s.net.cut([]*process{l}, f) }, short},
		{"one way: nobody is heard by the leader", false, func(l *process, f []*process) { each(f, []*process{l}) }, short},
		{"one way: the leader is heard by nobody", true, func(l *process, f []*process) { each([]*process{l}, f) }, short},
		{"ring", true, func(_ *process, _ []*process) {
			for i, a := range c.nodes {
				for k, b := range c.nodes {
					if d := (k - i + len(c.nodes)) % len(c.nodes); d > 1 && d < len(c.nodes)-1 {
						s.net.drop(a, b)
					}
				}
			}
		}, short},
		{"a bridge: one node reaches all, the halves not each other", true, func(l *process, f []*process) { s.net.cut([]*process{l, f[0]}, f[2:]) }, short},
		{"halves, the leader in the smaller one with a worker, for longer than a lease", true, func(l *process, f []*process) {
			w := c.workers[0]
			s.net.lost(w)
			s.net.cut(append([]*process{l, w}, f[:len(f)/2-1]...), append(f[len(f)/2-1:len(f):len(f)], c.workers[1:]...))
		}, beyondLease},
		{"a worker alone, for longer than a lease", true, func(l *process, f []*process) {
			w := c.workers[1]
			s.net.lost(w)
			s.net.cut([]*process{w}, append([]*process{l}, f...))
		}, beyondLease},
		{"leader alone, for longer than a lease", true, func(l *process, f []*process) { s.net.cut([]*process{l}, f) }, beyondLease},
	}
	done := 0
	for _, p := range trials {
		if p.long && !*chaos {
			continue
		}
		t.Log(p.name)
		p.begin(c.leader(), c.followers())
		p.last()
		c.healed()
		c.awaitWhole()
		c.awaitWorkers()
		c.settle(2*time.Second, 4*time.Second)
		done++
	}
	_, r := c.end()
	row(t, r, "%d kinds of partition of %d nodes and %d workers, healed", done, s.nodes, s.workers)
}
