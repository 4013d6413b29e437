//go:build unix

package worker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/job"
)

// lockPatience is how long a lock that is taken is tried again. An agent that is killed while it starts a command leaves
// its files open in the half-made child until that has become the command, so its successor may come a moment too early.
const lockPatience = time.Second

// lockDataDir makes the directory if need be and locks it until unlock is called or the process ends, however it ends. The
// kernel holds the lock, so nothing is left behind by a crash.
func lockDataDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	lock := func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }
	err = lock()
	for end := time.Now().Add(lockPatience); errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(end); err = lock() {
		time.Sleep(10 * time.Millisecond) // nobody tells when a lock is free
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, job.Errorf(job.Conflict, "data_dir_locked",
				"another worker uses the data directory %s; give each worker a --data and a --name of its own", dir)
		}
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	return func() { f.Close() }, nil
}
