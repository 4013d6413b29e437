//go:build unix

package servers

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// The variables that say what to use instead of what is found.
const (
	postgresVariable = "MUSTER_TEST_POSTGRES_BIN" // the directory of PostgreSQL's programs
	redisVariable    = "MUSTER_TEST_REDIS_SERVER" // the program
)

const (
	oldestPostgres = 14
	// secretFile is in a data directory, with the password of its users.
	secretFile = "muster.secret"
	// madeAs changes when data directories are to be made otherwise.
	madeAs = "2"
)

var errNoPostgres = errors.New("PostgreSQL is not installed; run `make deps`")

// Missing is what is not installed of the servers, in the words of Debian's packages.
func Missing() (packages []string) {
	if _, err := findPostgres(); err != nil {
		packages = append(packages, "postgresql")
	}
	if _, err := findRedis(); err != nil {
		packages = append(packages, "redis-server")
	}
	return packages
}

// findPostgres finds the directory of PostgreSQL's programs: that of the postgres in PATH, or else the newest where Debian
// and others keep them.
func findPostgres() (string, error) {
	if dir := os.Getenv(postgresVariable); dir != "" {
		if version(dir) == "" {
			return "", fmt.Errorf("%s names %s, where there is no PostgreSQL", postgresVariable, dir)
		}
		return dir, nil
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil && major(filepath.Dir(path)) >= oldestPostgres {
			return filepath.Dir(path), nil
		}
	}
	best, newest := "", oldestPostgres-1
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin", "/usr/local/opt/postgresql@*/bin"} {
		dirs, _ := filepath.Glob(pattern)
		for _, dir := range dirs {
			if v := major(dir); v > newest {
				best, newest = dir, v
			}
		}
	}
	if best == "" {
		return "", errNoPostgres
	}
	return best, nil
}

// version is such as "15.18 (Debian 15.18-0+deb12u1)", or "" where not all is that we need.
func version(dir string) string {
	for _, program := range []string{"initdb", "psql"} {
		if _, err := os.Stat(filepath.Join(dir, program)); err != nil {
			return ""
		}
	}
	out, _ := exec.Command(filepath.Join(dir, "postgres"), "--version").Output()
	_, v, _ := strings.Cut(strings.TrimSpace(string(out)), ") ")
	return v
}

func major(dir string) int {
	n, _ := strconv.Atoi(regexp.MustCompile(`^\d*`).FindString(version(dir)))
	return n
}

// newData makes a data directory. That takes a second or more, so it is done once for each user of this machine, and
// copied.
func newData(bin string, o *owner, data string) error {
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	made := filepath.Join(cache, "postgres-"+madeAs+"-"+regexp.MustCompile(`[^\w.]+`).ReplaceAllString(version(bin), "-"))
	lock, err := lockFile(made+".lock", syscall.LOCK_EX)
	if err != nil {
		return err
	}
	if _, err = os.Stat(made); err != nil {
		err = makeData(bin, o, made)
	}
	lock.Close()
	if err != nil {
		return err
	}
	if err := copyTree(made, data); err != nil {
		os.RemoveAll(data)
		return err
	}
	return o.giveAll(data)
}

func cacheDir() (string, error) {
	if dir, err := os.UserCacheDir(); err == nil {
		dir = filepath.Join(dir, "muster-servers")
		if os.MkdirAll(dir, 0o700) == nil {
			return dir, nil
		}
	}
	return ownDir("muster-servers")
}

// ownDir makes a directory below that for temporary files, once. The name can be guessed, so it may be there already, of
// somebody who means no good.
func ownDir(name string) (string, error) {
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("%s-%d", name, os.Geteuid()))
	if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
		return "", err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return "", err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); !info.IsDir() || !ok || int(s.Uid) != os.Geteuid() {
		return "", fmt.Errorf("%s belongs to somebody else", dir)
	}
	return dir, nil
}

// makeData makes the directory that is copied, with the users postgres and muster, who have one password, and the
// database muster. Without a password, everybody on this machine could use our servers to run commands as us.
func makeData(bin string, o *owner, made string) error {
	home, err := o.home("initdb", "") // the cache is closed to the owner
	if err != nil {
		return err
	}
	defer os.RemoveAll(home)
	data, verifierFile := filepath.Join(home, "data"), filepath.Join(home, "verifier")
	secret := rand.Text()
	verifier := scramVerifier(secret)
	if err := os.WriteFile(verifierFile, []byte(verifier+"\n"), 0o600); err != nil {
		return err
	}
	if err := o.give(verifierFile); err != nil {
		return err
	}
	run := func(input, program string, args ...string) error {
		c := o.command(filepath.Join(bin, program), args...)
		c.Dir, c.Stdin = home, strings.NewReader(input)
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", program, err, out)
		}
		return nil
	}
	if err := run("", "initdb", "-D", data, "-U", root, "-E", "UTF8", "--locale=C", "-A", "scram-sha-256", "--pwfile", verifierFile, "--no-sync"); err != nil {
		return err
	}
	statements := fmt.Sprintf("CREATE ROLE %[1]s LOGIN PASSWORD '%[2]s'\nCREATE DATABASE %[1]s OWNER %[1]s\n", role, verifier)
	if err := run(statements, "postgres", "--single", "-D", data, "-c", "fsync=off", "-c", "exit_on_error=on", root); err != nil {
		return err
	}
	// Where a server listens is said to each; who comes in there needs the password.
	if err := os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte("host all all all scram-sha-256\n"), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(data, secretFile), []byte(secret), 0o600); err != nil {
		return err
	}
	partly := made + ".partly"
	if err := os.RemoveAll(partly); err != nil {
		return err
	}
	if err := copyTree(data, partly); err != nil {
		return err
	}
	return os.Rename(partly, made)
}

// scramVerifier is what PostgreSQL keeps of a password (RFC 5802). One iteration is enough: nobody guesses ours, and the
// usual 4096 for each connection are felt in tests.
func scramVerifier(password string) string {
	salt := []byte(rand.Text())[:16]
	mac := func(key, text []byte) []byte {
		h := hmac.New(sha256.New, key)
		h.Write(text)
		return h.Sum(nil)
	}
	salted := mac([]byte(password), append(salt[:len(salt):len(salt)], 0, 0, 0, 1))
	stored := sha256.Sum256(mac(salted, []byte("Client Key")))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$1:%s$%s:%s", b64(salt), b64(stored[:]), b64(mac(salted, []byte("Server Key"))))
}

// copyTree copies directories and files, closed to others.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(to, strings.TrimPrefix(path, from))
		if d.IsDir() {
			return os.Mkdir(target, 0o700)
		}
		return copyFile(path, target)
	})
}

func copyFile(from, to string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = w.ReadFrom(r)
	return errors.Join(err, w.Close())
}
