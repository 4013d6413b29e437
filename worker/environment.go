package worker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/musterhq/muster/job"
)

var defaultBaseEnv = []string{
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	"LANG=C.UTF-8",
}

// maxPayloadInEnv is how large a payload may be to be repeated in MUSTER_PAYLOAD; one string of an environment may not
// exceed 128 KiB on Linux, and all of it shares 2 MiB with the arguments. The payload is always on stdin.
const maxPayloadInEnv = 32 << 10

// maxEnvFile bounds a file named in env_from, in bytes.
const maxEnvFile = 256 << 10

// codeVariables choose what code a program runs. Under an allow-list they would undo it: BASH_ENV even runs what is
// written in it, without any file.
var codeVariables = []string{
	"PATH", "LD_*", "DYLD_*", "GCONV_PATH", "LOCPATH", "GLIBC_TUNABLES", "BASH_ENV", "ENV", "BASH_FUNC_*", "SHELLOPTS", "BASHOPTS", "PS4",
	"IFS", "CDPATH", "PYTHON*", "PERL*", "RUBY*", "GEM_*", "NODE_*", "LUA_*", "JAVA_*", "_JAVA_OPTIONS", "JDK_*", "CLASSPATH",
	"PHPRC", "PHP_INI_SCAN_DIR", "TCLLIBPATH", "GIT_*", "EDITOR", "VISUAL", "PAGER", "SHELL", "OPENSSL_CONF", "OPENSSL_MODULES",
}

// environment is a list of KEY=VALUE in which a later value replaces an earlier one.
type environment []string

func (e environment) index(key string) int {
	for i, kv := range e {
		if len(kv) > len(key) && kv[len(key)] == '=' && kv[:len(key)] == key {
			return i
		}
	}
	return -1
}

func (e environment) get(key string) string {
	if i := e.index(key); i >= 0 {
		return e[i][len(key)+1:]
	}
	return ""
}

func (e *environment) set(key, value string) {
	if i := e.index(key); i >= 0 {
		(*e)[i] = key + "=" + value
		return
	}
	*e = append(*e, key+"="+value)
}

// environment builds what the command sees, each step over the one before: the clean base, the user's own, the files of
// env_from, env, and last Muster's variables, which a document cannot forge. Nothing comes from the worker's environment.
func (e *Exec) environment(a *job.Assignment, acc *account) (environment, *refusal) {
	spec := a.Spec.Exec
	env := make(environment, len(e.cfg.BaseEnv), len(e.cfg.BaseEnv)+len(spec.Env)+20)
	copy(env, e.cfg.BaseEnv)
	for _, kv := range [...][2]string{{"HOME", acc.home}, {"USER", acc.name}, {"LOGNAME", acc.name}} {
		if kv[1] != "" {
			env.set(kv[0], kv[1])
		}
	}
	for _, name := range spec.EnvFrom {
		vars, no := e.readEnvFile(name)
		if no != nil {
			return nil, no
		}
		for _, kv := range vars {
			if no := e.checkVariable(kv[0], kv[1], name); no != nil {
				return nil, no
			}
			env.set(kv[0], kv[1])
		}
	}
	for k, v := range spec.Env { // their order does not matter: keys are unique
		if no := e.checkVariable(k, v, "exec.env"); no != nil {
			return nil, no
		}
		env.set(k, v)
	}
	env.set("MUSTER_RUN_ID", a.RunID.String())
	root := a.RootID
	if root.IsZero() {
		root = a.RunID
	}
	env.set("MUSTER_ROOT_ID", root.String())
	env.set("MUSTER_ATTEMPT", strconv.FormatUint(uint64(a.Attempt), 10))
	env.set("MUSTER_FENCE", fenceText(a.Fence))
	scheduled := ""
	if a.ScheduledAt != 0 {
		scheduled = a.ScheduledAt.Time().Format(time.RFC3339Nano)
	}
	env.set("MUSTER_SCHEDULED_AT", scheduled)
	for _, kv := range [...][2]string{{"MUSTER_NAMESPACE", a.Namespace}, {"MUSTER_JOB", a.Job}, {"MUSTER_TASK", a.Task}} {
		if strings.IndexByte(kv[1], 0) >= 0 {
			return nil, neverStarts("a name of the run holds a NUL character")
		}
		env.set(kv[0], kv[1])
	}
	payload := ""
	if len(a.Payload) <= maxPayloadInEnv && bytes.IndexByte(a.Payload, 0) < 0 {
		payload = string(a.Payload)
	}
	env.set("MUSTER_PAYLOAD", payload) // set even when empty: one from env would be mistaken for the run's
	return env, nil
}

func fenceText(f job.Fence) string { return strconv.FormatUint(uint64(f), 10) }

func (e *Exec) checkVariable(key, value, from string) *refusal {
	if key == "" || strings.ContainsAny(key, "=\x00") || strings.IndexByte(value, 0) >= 0 {
		return neverStarts("the variable %.64q in %s cannot be set: names hold no '=' and nothing holds a NUL character", key, from)
	}
	if e.all {
		return nil
	}
	if matchNames(codeVariables, key) && !matchNames(e.cfg.AllowEnv, key) {
		return notPermitted("this worker may not let %s set %.64q, which could change what code an allowed command runs; see its --allow-env", from, key)
	}
	return nil
}

func matchNames(globs []string, name string) bool {
	return slices.ContainsFunc(globs, func(g string) bool {
		ok, _ := filepath.Match(g, strings.ReplaceAll(name, "/", "_"))
		return ok
	})
}

// readEnvFile reads one file of env_from. Its errors name the file and the line, never the content, which may be secret.
func (e *Exec) readEnvFile(name string) ([][2]string, *refusal) {
	if name == "" || strings.IndexByte(name, 0) >= 0 {
		return nil, neverStarts("exec.env_from holds a name that no file can have")
	}
	b, err := e.loadEnvFile(name)
	var no *refusal
	switch {
	case errors.As(err, &no):
		return nil, no
	case errors.Is(err, fs.ErrNotExist):
		return nil, cannotStart("the environment file %.256q does not exist on this worker", name)
	case err != nil:
		return nil, cannotStart("the environment file %.256q cannot be read: %v", name, reasonOf(err))
	}
	vars, err := parseEnvFile(b)
	if err != nil {
		return nil, cannotStart("the environment file %.256q: %v", name, err)
	}
	return vars, nil
}

func (e *Exec) loadEnvFile(name string) ([]byte, error) {
	var f *os.File
	if filepath.IsAbs(name) {
		name = filepath.Clean(name)
		if !matchGlobs(e.cfg.AllowEnvFiles, name) {
			return nil, notPermitted("this worker may not read the environment file %.256q; its --allow-env-file does not match it", name)
		}
		var err error
		if f, err = os.OpenFile(name, os.O_RDONLY|openNonblock, 0); err != nil {
			return nil, err
		}
	} else {
		// os.Root keeps ../ and symbolic links from leading out of the directory.
		root, err := os.OpenRoot(e.cfg.EnvDir)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		if f, err = root.OpenFile(name, os.O_RDONLY|openNonblock, 0); err != nil {
			return nil, err
		}
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil {
		return nil, err
	} else if !fi.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxEnvFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxEnvFile {
		return nil, errors.New("it is larger than 256 KiB")
	}
	return b, nil
}

// parseEnvFile reads KEY=VALUE lines. A line may begin with export; # begins a comment at the start of a line and, after
// a blank, in an unquoted value. 'single' quotes keep all as it is; in "double" quotes \n \t \r \" \\ \$ are known.
// Nothing is expanded and no value spans lines.
func parseEnvFile(b []byte) ([][2]string, error) {
	var vars [][2]string
	for i, line := range strings.Split(string(bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if rest, ok := strings.CutPrefix(line, "export"); ok && rest != "" && (rest[0] == ' ' || rest[0] == '\t') {
			line = strings.TrimSpace(rest)
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || !isVariableName(key) {
			return nil, fmt.Errorf("line %d is not KEY=VALUE", i+1)
		}
		value, err := unquoteEnv(strings.TrimLeft(value, " \t"))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		vars = append(vars, [2]string{key, value})
	}
	return vars, nil
}

func isVariableName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c|0x20 < 'a' || c|0x20 > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

var errEnvQuote = errors.New("a quoted value must end with its quote, and only a comment may follow")

func unquoteEnv(v string) (string, error) {
	if v == "" || v[0] != '\'' && v[0] != '"' {
		if strings.HasPrefix(v, "#") {
			return "", nil
		}
		for i := 1; i < len(v); i++ {
			if v[i] == '#' && (v[i-1] == ' ' || v[i-1] == '\t') {
				v = v[:i]
			}
		}
		return strings.TrimRight(v, " \t\r"), nil
	}
	quote, rest := v[0], v[1:]
	var s strings.Builder
	for i := 0; i < len(rest); i++ {
		c := rest[i]
		switch {
		case c == quote:
			if after := strings.TrimSpace(rest[i+1:]); after != "" && after[0] != '#' {
				return "", errEnvQuote
			}
			return s.String(), nil
		case c == '\\' && quote == '"' && i+1 < len(rest):
			i++
			if j := strings.IndexByte(`ntr"\$`, rest[i]); j >= 0 {
				s.WriteByte("\n\t\r\"\\$"[j])
			} else {
				s.WriteByte('\\')
				s.WriteByte(rest[i])
			}
		default:
			s.WriteByte(c)
		}
	}
	return "", errEnvQuote
}

// resultFile is where a command may leave its result.
type resultFile struct {
	path  string
	dir   string // made for this attempt only; "" if the file lies in the worker's own directory
	owner int    // whose file it must be; -1: the worker's own
}

// newResultFile names the file; the command creates it. A command under another user cannot enter the worker's data
// directory, so it gets a directory of its own among the temporary files.
func (e *Exec) newResultFile(f job.Fence, as *account) (resultFile, error) {
	if as == nil {
		return resultFile{path: filepath.Join(e.resultsDir(), fenceText(f)+".json"), owner: -1}, nil
	}
	dir, err := os.MkdirTemp("", e.foreignResults())
	if err != nil {
		return resultFile{}, err
	}
	if err := os.Lchown(dir, int(as.uid), int(as.gid)); err != nil {
		os.Remove(dir)
		return resultFile{}, err
	}
	return resultFile{path: filepath.Join(dir, "result.json"), dir: dir, owner: int(as.uid)}, nil
}

// foreignResults begins the names of such directories; it differs between workers, which may share a machine.
func (e *Exec) foreignResults() string {
	return fmt.Sprintf("muster-result-%08x-", crc32.Checksum([]byte(e.cfg.DataDir), castagnoli))
}

// clearResults removes what a killed predecessor left.
func (e *Exec) clearResults() error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), e.foreignResults()+"*"))
	if err != nil {
		return err
	}
	for _, dir := range append(dirs, e.resultsDir()) {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// read is the result, nil if there is none. The file's name is in the hands of the command, so what is read must be a
// plain file of its user: not a link to one that only the worker may read, and not a pipe that never ends.
func (r *resultFile) read() (json.RawMessage, error) {
	f, err := os.OpenFile(r.path, os.O_RDONLY|openNoFollow|openNonblock, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the result file cannot be read: %w", reasonOf(err))
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() || !ownedBy(fi, r.owner) {
		return nil, errors.New("the result file is not a regular file of the command's user")
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxResult+4<<10)) // blanks around the result do not count
	if err != nil {
		return nil, fmt.Errorf("the result file cannot be read: %w", reasonOf(err))
	}
	if fi.Size() > int64(len(b)) {
		return nil, errors.New("result: it is larger than 64 KiB")
	}
	return checkResult(b)
}

func (r *resultFile) remove() {
	switch {
	case r.dir != "":
		os.RemoveAll(r.dir)
	case r.path != "":
		os.Remove(r.path)
	}
}
