package cluster

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

func saved(t *testing.T, n *Node) []byte {
	t.Helper()
	var b bytes.Buffer
	h, err := n.SaveSnapshot(t.Context(), &b)
	if err != nil {
		t.Fatal(err)
	}
	if h.ClusterID != n.State().ClusterID() || h.Epoch != n.State().Epoch() || h.Index == 0 || h.Bytes == 0 {
		t.Errorf("%+v", h)
	}
	return b.Bytes()
}

// TestRestoreSnapshot: the whole cluster goes back to what was saved, under a new term with an epoch above all before,
// also a node that was away; nothing of the old term goes on meanwhile.
func TestRestoreSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newParty(t, 1)
		leader, others := p.trioOf()
		n := leader.node
		flag := func(worker string) {
			t.Helper()
			if err := n.Control().FlagWorker(t.Context(), worker, job.WorkerCordoned); err != nil {
				t.Fatal(err)
			}
		}
		flag("before")
		copied := saved(t, n)
		flag("after")
		for range 50 {
			if _, err := n.Control().RaiseEpoch(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
		}
		highest, led := n.State().Epoch(), leader.led.Load()
		away := others[0]
		p.down(away)
		if err := others[1].node.RestoreSnapshot(t.Context(), bytes.NewReader(copied)); reasonOf(err) != "not_leader" {
			t.Error("on a follower:", err)
		}
		start := time.Now()
		if err := n.RestoreSnapshot(t.Context(), bytes.NewReader(copied)); err != nil {
			t.Fatal(err)
		}
		if time.Since(start) < time.Second {
			t.Error("the work of the old term was still tidying up")
		}
		p.up(away)
		p.gather("a", "b", "c")
		time.Sleep(5 * time.Second)
		p.gather("a", "b", "c")
		if got := leader.led.Load(); got != led+1 || !leader.leads.Load() {
			t.Errorf("%d terms began by the restore; leading %v", got-led, leader.leads.Load())
		}
		for name, g := range p.homes {
			s := g.node.State()
			if s.WorkerFlag("before") != job.WorkerCordoned || s.WorkerFlag("after") == job.WorkerCordoned {
				t.Errorf("%s has not gone back", name)
			}
			if s.Epoch() <= highest+epochJump {
				t.Errorf("%s: epoch %d after %d", name, s.Epoch(), highest)
			}
		}
		// What goes on goes on everywhere, through restarts too.
		flag("later")
		for _, g := range others {
			p.down(g)
			p.up(g)
		}
		p.gather("a", "b", "c")
		for name, g := range p.homes {
			if g.node.State().WorkerFlag("later") != job.WorkerCordoned {
				t.Errorf("%s lacks what came after", name)
			}
		}
	})
}

// TestRestoreRefuses: whatever is wrong with a snapshot shows before anything changes.
func TestRestoreRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := open(t, Config{Memory: NewMemory("a"), Self: job.Node{Name: "a"}})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		var terms atomic.Int32
		go func() {
			ended <- n.Run(ctx, func(ctx context.Context) error { terms.Add(1); return leadUntilEnd(ctx) })
		}()
		time.Sleep(5 * time.Second)
		good := saved(t, n)
		other := open(t, Config{Memory: NewMemory("x"), Self: job.Node{Name: "x"}})
		go func() { ended <- other.Run(ctx, leadUntilEnd) }()
		time.Sleep(5 * time.Second)
		before, err := n.State().Hash()
		if err != nil {
			t.Fatal(err)
		}
		bad := map[string][]byte{
			"nothing": {}, "text": []byte(strings.Repeat("no snapshot ", 1000)), "another cluster's": saved(t, other),
			"with an end": append(bytes.Clone(good), 0),
		}
		for _, at := range []int{0, 7, 8, 9, 12, 13, 20, 60, len(good) / 2, len(good) - 40, len(good) - 1} {
			b := bytes.Clone(good)
			b[at] ^= 0x20
			bad["changed at "+string(rune('a'+at%26))+" "+time.Duration(at).String()] = b
		}
		for _, l := range []int{5, 12, 40, len(good) / 2, len(good) - 33, len(good) - 1} {
			bad["cut after "+time.Duration(l).String()] = good[:l]
		}
		for what, b := range bad {
			err := n.RestoreSnapshot(t.Context(), bytes.NewReader(b))
			if code := job.CodeOf(err); code != job.Invalid && (code != job.Conflict || what != "another cluster's") {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := n.RestoreSnapshot(t.Context(), io.MultiReader(bytes.NewReader(good[:30]), failing{})); err == nil {
			t.Error("a body that breaks off")
		}
		if after, err := n.State().Hash(); err != nil || after != before || terms.Load() != 1 {
			t.Errorf("something changed: %d terms, %v", terms.Load(), err)
		}
		if err := n.RestoreSnapshot(t.Context(), bytes.NewReader(good)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		time.Sleep(time.Second)
		if terms.Load() != 2 {
			t.Errorf("%d terms", terms.Load())
		}
		stop()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the connection broke") }

// FuzzReadSavedSnapshot: whatever is read as good is what was saved.
func FuzzReadSavedSnapshot(f *testing.F) {
	n, err := Open(f.Context(), Config{Memory: NewMemory("a"), State: fsm.New(), Logger: discard})
	if err != nil {
		f.Fatal(err)
	}
	defer n.Close()
	awaitLeading(f, n)
	var good bytes.Buffer
	if _, err := n.SaveSnapshot(f.Context(), &good); err != nil {
		f.Fatal(err)
	}
	f.Add(0, []byte{})
	f.Add(10, []byte{255, 255})
	f.Fuzz(func(t *testing.T, at int, change []byte) {
		b := bytes.Clone(good.Bytes())
		if at < 0 || at > len(b) {
			return
		}
		copy(b[at:], change)
		if _, err := ReadSavedSnapshot(bytes.NewReader(b), io.Discard); (err == nil) != bytes.Equal(b, good.Bytes()) {
			t.Errorf("changed at %d by %x: %v", at, change, err)
		}
	})
}
