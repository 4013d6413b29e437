package cluster

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

// A process that is killed between the two writes of its first start leaves a term without a log.
func TestInterruptedBootstrapIsFinished(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, raftDir), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := openStores(filepath.Join(dir, raftDir), 1, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	guard := &stableGuard{StableStore: s.stable, mark: s.mark, log: slog.New(slog.DiscardHandler)}
	if err := guard.SetUint64([]byte(keyTerm), 1); err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, raftDir, idName), []byte("6f1c2c1e-1b7a-4b58-9c79-0f4c6ad8d3a1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // and the second start finds nothing unusual
		n, err := tryOpen(t, Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		awaitLeading(t, n)
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
