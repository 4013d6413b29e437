package cluster

import (
	"testing"
	"time"
)

// A killed process's half-made child holds its files for some milliseconds more.
func TestALockThatIsFreedSoonIsWaitedFor(t *testing.T) {
	dir := t.TempDir()
	first, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	freed := time.AfterFunc(lockPatience/10, func() { first.Close() })
	defer freed.Stop()
	second, err := lockDir(dir)
	if err != nil {
		t.Fatalf("the successor of a killed process does not start: %v", err)
	}
	second.Close()
}
