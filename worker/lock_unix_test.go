//go:build unix

package worker

import (
	"testing"
	"time"
)

// A killed agent's half-made child holds its files for some milliseconds more.
func TestALockThatIsFreedSoonIsWaitedFor(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lockDataDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	freed := time.AfterFunc(lockPatience/10, unlock)
	defer freed.Stop()
	unlock, err = lockDataDir(dir)
	if err != nil {
		t.Fatalf("the successor of a killed agent does not start: %v", err)
	}
	unlock()
}
