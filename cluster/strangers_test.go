package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// warnings counts what is logged at Warn and above.
type warnings struct{ n atomic.Int64 }

func (w *warnings) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (w *warnings) Handle(context.Context, slog.Record) error    { w.n.Add(1); return nil }
func (w *warnings) WithAttrs([]slog.Attr) slog.Handler           { return w }
func (w *warnings) WithGroup(string) slog.Handler                { return w }

func openQuietGossip(t *testing.T) (*Gossip, *warnings, string) {
	t.Helper()
	w := new(warnings)
	g, err := OpenGossip(t.Context(), GossipConfig{NodeID: "node-1", Logger: slog.New(w)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return g, w, g.Cells()[cellName(1)]
}

// Without the key a stranger fills neither the memory of a node, by announcing much and sending it, nor its connections.
func TestStrangersTakeLittleOfGossip(t *testing.T) {
	_, _, address := openQuietGossip(t)
	dial := func() net.Conn {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	c := dial()
	label := "muster/" + cellName(1)
	head := append([]byte{244, byte(len(label))}, label...)        // memberlist's label header
	head = binary.BigEndian.AppendUint32(append(head, 10), 19<<20) // encrypted, and so long
	if _, err := c.Write(head); err != nil {
		t.Fatal(err)
	}
	_ = c.SetWriteDeadline(time.Now().Add(4 * time.Second))
	sent := 0
	for piece := make([]byte, 64<<10); sent < 16<<20; sent += len(piece) {
		if _, err := c.Write(piece); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after %d bytes: %v", sent, err)
			}
			break
		}
	}
	if sent >= 16<<20 {
		t.Errorf("a node took %d bytes of a stranger on one connection", sent)
	}
	var silent []net.Conn
	for range maxGossipStreams + 50 {
		silent = append(silent, dial())
	}
	for i, c := range silent[:50] {
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second)) // memberlist itself gives it 5 s
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("connection %d of %d is still open: %v", i+1, len(silent), err)
		}
	}
}

// Each datagram of anybody was a line of the log.
func TestStrangersFillNoLog(t *testing.T) {
	_, w, address := openQuietGossip(t)
	c, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 2000 {
		_, _ = c.Write([]byte{244, 1, 'x', 'y'})
		if w.n.Load() > 500 {
			break
		}
		time.Sleep(50 * time.Microsecond)
	}
	for end := time.Now().Add(10 * time.Second); w.n.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing is logged")
		}
	}
	if n := w.n.Load(); n > 3*gossipLines {
		t.Errorf("2000 datagrams made %d lines", n)
	}
}

// Whoever has the key of a cell can call himself a node, and come and go under ever new names: a cell's memory ends somewhere,
// and what is alive stays in it.
func TestACellRemembersSoMany(t *testing.T) {
	g, _, _ := openQuietGossip(t)
	c := g.cells[0]
	member := func(name string, node bool) *memberlist.Node {
		return &memberlist.Node{Name: memberName(name, "boot"), Meta: memberMeta(node, "1")}
	}
	join := func(n *memberlist.Node) bool {
		if c.NotifyAlive(n) != nil {
			return false
		}
		c.NotifyJoin(n)
		return true
	}
	if !join(member("honest", false)) {
		t.Fatal("a worker is refused")
	}
	for i := range 3 * maxRemembered {
		n := member(fmt.Sprintf("fleeting-%d", i), false)
		if !join(n) {
			t.Fatalf("worker %d is refused, though the others have gone", i)
		}
		c.NotifyLeave(n)
	}
	for i := range 3 * maxRemembered {
		join(member(fmt.Sprintf("false-node-%d", i), true))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := len(c.members); n > maxRemembered {
		t.Errorf("%d members are remembered", n)
	}
	if m := c.members[memberName("honest", "boot")]; m == nil || m.State != MemberAlive {
		t.Errorf("the worker that stayed: %+v", m)
	}
}
