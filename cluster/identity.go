package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
)

// The files of a node, all below Config.Dir. Raft's own live in one folder together with the node's id, so that moving
// that folder away makes a new, empty server: a server that lost its log must never come back under its old id.
const (
	lockName = "lock"
	raftDir  = "raft"
	idName   = "node-id"
	dbName   = "raft.db"
	markName = "raft.mark"
)

// dirLock keeps other processes out of a data directory for as long as it is open.
type dirLock struct{ f *os.File }

// lockPatience is how long a lock that is taken is tried again. A process that is killed while it starts a command leaves
// its files open in the half-made child until that has become the command, so its successor may come a moment too early.
const lockPatience = time.Second

// lockDir creates the directory if need be and locks it.
func lockDir(dir string) (*dirLock, error) {
	if err := os.MkdirAll(filepath.Join(dir, raftDir), 0o700); err != nil {
		return nil, fmt.Errorf("create data directory: %w", err)
	}
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	err = flock(f)
	for end := time.Now().Add(lockPatience); errors.Is(err, errLocked) && time.Now().Before(end); err = flock(f) {
		time.Sleep(10 * time.Millisecond) // nobody tells when a lock is free
	}
	if err != nil {
		owner, _ := os.ReadFile(path)
		_ = f.Close()
		if !errors.Is(err, errLocked) {
			return nil, fmt.Errorf("lock data directory %s: %w", dir, err)
		}
		by := ""
		if pid := strings.TrimSpace(string(owner)); pid != "" {
			by = " (process " + pid + ")"
		}
		return nil, fmt.Errorf("the data directory %s is in use by another muster process%s; stop it, or give this one a directory of its own", dir, by)
	}
	// The process id is for the sentence above only; the lock is what counts.
	_ = f.Truncate(0)
	_, _ = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	return &dirLock{f}, nil
}

func (l *dirLock) Close() error {
	_ = l.f.Truncate(0)
	return l.f.Close()
}

// nodeID reads this node's id, and makes one in a directory that has no Raft state yet.
func nodeID(dir string) (string, error) {
	path := filepath.Join(dir, idName)
	b, err := os.ReadFile(path)
	switch {
	case err == nil:
		id, err := uuid.Parse(strings.TrimSpace(string(b)))
		if err != nil {
			return "", fmt.Errorf("%s does not hold a node id; restore the file, or move %s away to start as a new node", path, dir)
		}
		return id.String(), nil
	case !errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("read node id: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, dbName)); err == nil {
		return "", fmt.Errorf("%s is missing but %s holds state; restore the file, or move %s away to start as a new node", path, dbName, dir)
	}
	id := uuid.NewString()
	if err := writeFile(path, []byte(id+"\n")); err != nil {
		return "", fmt.Errorf("write node id: %w", err)
	}
	return id, nil
}

// writeFile creates a file so that after a power loss it is there whole or not at all.
func writeFile(path string, b []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	return err
}
