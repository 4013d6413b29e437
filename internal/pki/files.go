package pki

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/musterhq/muster/job"
)

// The files of a cluster's directory, and of each node's in it.
const (
	fileCA         = "ca.crt"
	fileCAKey      = "ca.key"
	fileWorkers    = "workers.crt"
	fileWorkersKey = "workers.key"
	fileNode       = "node.crt"
	fileNodeKey    = "node.key"
	fileCluster    = "cluster.json"
	fileAdmin      = "admin.token"
	fileJoin       = "join.token"
	dirNodes       = "nodes"
	dirReplaced    = ".replaced" // below nodes: what renewed certificates took the place of

	maxFile = 1 << 20
)

// clusterFile is cluster.json: what a node needs to know of its cluster before it has any state. It holds no secret.
type clusterFile struct {
	ID          string           `json:"cluster_id"`
	Name        string           `json:"cluster_name"`
	CreatedAt   job.Instant      `json:"created_at"`
	Credentials []credentialFile `json:"credentials"`
}

type credentialFile struct {
	ID        string      `json:"id"`
	Name      string      `json:"name"`
	Role      job.Role    `json:"role"`
	CreatedAt job.Instant `json:"created_at"`
	Digest    []byte      `json:"digest"` // SHA-256 of the secret
}

func (c *clusterFile) credentials() (all []job.Credential) {
	for _, x := range c.Credentials {
		all = append(all, job.Credential{ID: x.ID, Name: x.Name, Role: x.Role, CreatedAt: x.CreatedAt, Digest: x.Digest})
	}
	return all
}

func parseCluster(text []byte) (*clusterFile, error) {
	var c clusterFile
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, err
	}
	if c.ID == "" || job.CheckName("cluster_id", c.ID) != nil {
		return nil, errors.New("it names no cluster")
	}
	for _, x := range c.Credentials {
		if x.ID == "" || !x.Role.Valid() || len(x.Digest) != 32 {
			return nil, fmt.Errorf("its credential %q is not complete", x.Name)
		}
	}
	return &c, nil
}

// read reads one of our files, which are small.
func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = &fs.PathError{Op: "read", Path: path, Err: errors.New("it is too large to be one of Muster's")}
	}
	return text, err
}

// damaged says which file is wrong, and how.
func damaged(path string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return job.Errorf(job.Invalid, "tls_files", "the file %s is missing; give a directory that muster cluster init or certify made, all of it", path)
	}
	if errors.Is(err, fs.ErrPermission) {
		return job.Errorf(job.Invalid, "tls_files", "the file %s cannot be read: permission denied", path)
	}
	return &job.Error{Code: job.Invalid, Reason: "tls_files", Message: fmt.Sprintf("the file %s is not good: %v", path, err), Cause: err}
}

// write makes a file that only its owner reads, and that is on the disk when it returns. It never replaces one.
func write(path string, text []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

// syncDir makes what was made or renamed in a directory outlast a power cut, where the system can.
func syncDir(path string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// stage makes a directory under a name of its own beside path, has it filled, and gives it the name path when all of it is on
// the disk: whoever finds path finds it complete. What an earlier call that was killed left behind is removed.
func stage(path string, fill func(dir string) error) (err error) {
	parent, prefix := filepath.Dir(path), "."+filepath.Base(path)+".unfinished-"
	left, err := filepath.Glob(filepath.Join(escapeGlob(parent), escapeGlob(prefix)+"*"))
	if err != nil {
		return err
	}
	for _, l := range left {
		if err := os.RemoveAll(l); err != nil {
			return err
		}
	}
	dir := filepath.Join(parent, prefix+randomText(8))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := fill(dir); err != nil {
		return err
	}
	if err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = syncDir(p)
		}
		return err
	}); err != nil {
		return err
	}
	if err := os.Rename(dir, path); err != nil {
		return err
	}
	return syncDir(parent)
}

// escapeGlob takes a path as it is, whatever characters it has.
func escapeGlob(path string) string {
	var b []byte
	for i := range len(path) {
		switch path[i] {
		case '*', '?', '[', '\\':
			if filepath.Separator == '/' {
				b = append(b, '\\')
			}
		}
		b = append(b, path[i])
	}
	return string(b)
}

func randomText(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
