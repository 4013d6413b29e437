package cluster

import (
	"bytes"
	"log/slog"
	"os"
	"sync"
	"testing"

	"github.com/musterhq/muster/fsm"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
		return
	}
	// memberlist lets a probe that is on its way end by itself, a few seconds after its shutdown.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
}

// logs collects what a node logs and shows it when the test fails.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func testLogger(t testing.TB) (*slog.Logger, *logs) {
	l := &logs{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(l.String())
		}
	})
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug})), l
}

// open opens a node that is closed with the test.
func open(t testing.TB, cfg Config) *Node {
	t.Helper()
	n, err := tryOpen(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error("close:", err)
		}
	})
	return n
}

func tryOpen(t testing.TB, cfg Config) (*Node, error) {
	t.Helper()
	if cfg.State == nil {
		cfg.State = fsm.New()
	}
	if cfg.Logger == nil {
		cfg.Logger, _ = testLogger(t)
	}
	return Open(t.Context(), cfg)
}
