package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/musterhq/muster/job"
)

// ExecConfig says what commands this worker runs, and how. The zero value runs nothing.
type ExecConfig struct {
	// Allow are globs over the absolute path of the command, as it is found and executed (symbolic links are not
	// followed: what a name in an allowed directory points to is that directory's business). Each is a filepath.Match
	// pattern, in which * stops at a slash; or DIR/** for all below DIR; or "*" for everything. Empty allows nothing.
	// Whoever allows a shell, env, or an interpreter allows everything.
	Allow []string
	// AllowEnv are globs over names of environment variables that a document may set although they let it choose what
	// code an allowed command runs (PATH, LD_PRELOAD, BASH_ENV...). Without it they are refused unless Allow holds "*".
	AllowEnv []string
	// AllowUsers are the users that a document may ask for. "*" is any but root, which must be named.
	AllowUsers []string
	// User runs the commands whose document names no user. "" is the worker's own.
	User string
	// BaseEnv is the environment that every command starts from, as KEY=VALUE; nil is a PATH and a LANG. HOME, USER and
	// LOGNAME follow the user. MUSTER_* are left out, so that the worker's own secrets never reach its work.
	BaseEnv []string
	// EnvDir is where relative names in env_from are looked up; they cannot leave it. "" is DataDir/env.
	EnvDir string
	// AllowEnvFiles are globs (as in Allow) over absolute names in env_from. The worker reads these files as itself,
	// so a document that could name any of them could read the worker's own secrets. Empty allows none.
	AllowEnvFiles []string
	// DataDir is the worker's data directory; result files lie in it. Required.
	DataDir string
	// Processes remembers what runs, so that a restarted worker can kill what its predecessor left. nil: nobody does.
	Processes *Processes
	// KillGrace is the time between SIGTERM and SIGKILL for a context cancelled without a Stop. 0 means 10 s.
	KillGrace time.Duration
	// WaitDelay is how long after the end of the process group the output may still be held open by a process that left
	// the group. 0 means 2 s.
	WaitDelay time.Duration
	// MaxOutput bounds the output of one attempt, in bytes. 0 means 1 MiB.
	MaxOutput int
}

// Validate names the field that is wrong.
func (c *ExecConfig) Validate() error {
	for _, f := range []struct {
		name  string
		globs []string
	}{{"Allow", c.Allow}, {"AllowEnv", c.AllowEnv}, {"AllowEnvFiles", c.AllowEnvFiles}} {
		for _, g := range f.globs {
			if _, err := filepath.Match(strings.TrimSuffix(g, "/**"), ""); err != nil {
				return job.InvalidField(f.name, "%q is not a glob", g)
			}
			if f.name != "AllowEnv" && g != "*" && !filepath.IsAbs(g) {
				return job.InvalidField(f.name, `%q is not absolute; write a glob over absolute paths, or "*" for everything`, g)
			}
		}
	}
	if c.DataDir == "" {
		return job.InvalidField("DataDir", "it is missing; commands leave their results there")
	}
	if c.KillGrace < 0 || c.WaitDelay < 0 || c.MaxOutput < 0 {
		return job.InvalidField("KillGrace", "durations and sizes are not negative")
	}
	return nil
}

// Exec is the executor of commands: an argv, never a shell string. Each command leads a process group of its own, which
// ends with it: when the command has exited, or was told to stop and had its grace, what is left of the group is killed.
// Work that must outlive its command has to leave the group (setsid), and is then nobody's.
//
// What ends an attempt before it began (no such command, directory, user or file) may be mended by a deployment or by
// another worker, so the retry policy decides; what no worker could start (a NUL in an argument) is permanent, and so is
// what the configuration forbids.
type Exec struct {
	cfg     ExecConfig
	path    []string // directories of BaseEnv's PATH
	all     bool     // Allow holds "*"
	users   users
	starter starter

	mu     sync.Mutex
	opened bool
	closed bool
}

// NewExec checks the configuration; it does no I/O but to make DataDir absolute, for commands start elsewhere.
func NewExec(cfg ExecConfig) (*Exec, error) {
	err := cfg.Validate()
	if err != nil {
		return nil, err
	}
	if cfg.DataDir, err = filepath.Abs(cfg.DataDir); err != nil {
		return nil, err
	}
	if cfg.BaseEnv == nil {
		cfg.BaseEnv = defaultBaseEnv
	}
	cfg.BaseEnv = slices.DeleteFunc(slices.Clone(cfg.BaseEnv), func(kv string) bool {
		return strings.HasPrefix(kv, "MUSTER_") || strings.IndexByte(kv, '=') <= 0
	})
	if cfg.KillGrace == 0 {
		cfg.KillGrace = job.LeaseKillGrace
	}
	if cfg.WaitDelay == 0 {
		cfg.WaitDelay = 2 * time.Second
	}
	if cfg.EnvDir == "" {
		cfg.EnvDir = filepath.Join(cfg.DataDir, "env")
	}
	e := &Exec{cfg: cfg, all: slices.Contains(cfg.Allow, "*")}
	for _, dir := range filepath.SplitList(environment(cfg.BaseEnv).get("PATH")) {
		if filepath.IsAbs(dir) { // a relative entry would let the document's directory choose the command
			e.path = append(e.path, filepath.Clean(dir))
		}
	}
	return e, nil
}

// Close ends the thread that commands are children of; on Linux what still runs is killed with it.
func (e *Exec) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	return e.starter.Close()
}

func (e *Exec) resultsDir() string { return filepath.Join(e.cfg.DataDir, "results") }

// open makes the directory of result files and empties it of what a killed predecessor left.
func (e *Exec) open() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return errors.New("the worker is shutting down")
	}
	if e.opened {
		return nil
	}
	if err := e.clearResults(); err != nil {
		return err
	}
	if err := os.MkdirAll(e.resultsDir(), 0o700); err != nil {
		return err
	}
	e.opened = true
	return nil
}

// command is one attempt, checked and ready to be started.
type command struct {
	path   string // absolute; what was matched against Allow is what is executed
	argv   []string
	env    environment
	dir    string
	user   *account // nil: the worker's own
	stdin  []byte
	result resultFile
}

// refusal is why a command was not started.
type refusal struct {
	reason    job.Reason
	permanent bool
	text      string
}

func (r *refusal) Error() string { return r.text }

func notPermitted(format string, args ...any) *refusal {
	return &refusal{job.NotPermitted, true, fmt.Sprintf(format, args...)}
}

func cannotStart(format string, args ...any) *refusal {
	return &refusal{job.CannotStart, false, fmt.Sprintf(format, args...)}
}

func neverStarts(format string, args ...any) *refusal {
	return &refusal{job.CannotStart, true, fmt.Sprintf(format, args...)}
}

// Execute runs the document's command.
func (e *Exec) Execute(ctx context.Context, a *job.Assignment, out io.Writer) job.Outcome {
	o := begin(a)
	if a.Spec == nil || a.Spec.Exec == nil {
		return failForGood(&o, job.CannotStart, "the document has no command")
	}
	if ctx.Err() != nil {
		return stopped(&o, a, stopOf(ctx, e.cfg.KillGrace))
	}
	c, no := e.prepare(a)
	if no != nil {
		o.Permanent = no.permanent
		return fail(&o, no.reason, "%s", no.text)
	}
	defer c.result.remove()
	status, stop, no := e.run(ctx, a.Fence, c, NewLimitWriter(out, e.cfg.MaxOutput))
	switch {
	case no != nil:
		o.Permanent = no.permanent
		return fail(&o, no.reason, "%s", no.text)
	case stop != nil:
		o.ExitCode = status.code()
		return stopped(&o, a, stop)
	}
	return e.judge(&o, a.Spec.Exec, c, status)
}

// judge turns the end of a command that nobody stopped into the attempt's outcome.
func (e *Exec) judge(o *job.Outcome, spec *job.Exec, c *command, status exitStatus) job.Outcome {
	result, err := c.result.read()
	o.ExitCode = status.code()
	good := o.ExitCode == 0
	if len(spec.SuccessExitCodes) > 0 {
		good = slices.Contains(spec.SuccessExitCodes, int(o.ExitCode))
	}
	switch {
	case status.signal != 0:
		return fail(o, job.ExitCode, "the command was killed by signal %d (%v)", int(status.signal), status.signal)
	case !good:
		o.Result = result // what a command says of its failure is worth keeping; if it cannot be kept, the failure counts more
		return fail(o, job.ExitCode, "the command exited with code %d", o.ExitCode)
	case err != nil:
		// The work is done, so doing it again would only repeat its effects and, most likely, its result.
		return failForGood(o, job.InvalidResult, "%v; the command wrote it to MUSTER_RESULT_FILE", err)
	}
	return succeed(o, result)
}

// exitStatus is how a process ended.
type exitStatus struct {
	exit   int
	signal syscall.Signal // 0: it exited by itself
}

// code is the exit code as shells count it.
func (s exitStatus) code() int32 {
	if s.signal != 0 {
		return 128 + int32(s.signal)
	}
	return int32(s.exit)
}

// prepare checks the document against the configuration and puts the command together.
func (e *Exec) prepare(a *job.Assignment) (*command, *refusal) {
	spec := a.Spec.Exec
	if len(spec.Command) == 0 || spec.Command[0] == "" {
		return nil, neverStarts("the command is empty")
	}
	for i, arg := range spec.Command {
		if strings.IndexByte(arg, 0) >= 0 {
			return nil, neverStarts("exec.command[%d] holds a NUL character, which no argument can", i)
		}
	}
	if strings.IndexByte(spec.Dir, 0) >= 0 {
		return nil, neverStarts("exec.dir holds a NUL character")
	}
	c := &command{argv: spec.Command, stdin: a.Payload}
	who := spec.User
	if who == "" {
		who = e.cfg.User
	} else if no := e.mayBe(who); no != nil {
		return nil, no
	}
	acc, no := e.users.resolve(who)
	if no != nil {
		return nil, no
	}
	if spec.User != "" && acc.uid == 0 && !slices.Contains(e.cfg.AllowUsers, acc.name) && !acc.own {
		return nil, notPermitted("this worker may not run commands as %q, which is root; its --allow-user must name it", spec.User)
	}
	if !acc.own {
		c.user = acc
	}
	if c.dir, no = chooseDir(spec.Dir, acc); no != nil {
		return nil, no
	}
	if c.path, no = e.find(spec.Command[0], c.dir); no != nil {
		return nil, no
	}
	if err := e.open(); err != nil {
		return nil, cannotStart("the worker cannot prepare its data directory: %v", err)
	}
	if c.env, no = e.environment(a, acc); no != nil {
		return nil, no
	}
	var err error
	if c.result, err = e.newResultFile(a.Fence, c.user); err != nil {
		return nil, cannotStart("the worker cannot prepare a result file: %v", err)
	}
	c.env.set("MUSTER_RESULT_FILE", c.result.path)
	return c, nil
}

func (e *Exec) mayBe(name string) *refusal {
	switch {
	case slices.Contains(e.cfg.AllowUsers, name):
	case name != "root" && slices.Contains(e.cfg.AllowUsers, "*"):
	case e.users.isOwn(name):
	default:
		return notPermitted("this worker may not run commands as user %.64q; its --allow-user does not name that user", name)
	}
	return nil
}

// chooseDir is where the command starts: the document's directory, else the user's home, else the root.
func chooseDir(dir string, acc *account) (string, *refusal) {
	if dir == "" {
		if fi, err := os.Stat(acc.home); acc.home != "" && err == nil && fi.IsDir() {
			return acc.home, nil
		}
		return "/", nil
	}
	if !filepath.IsAbs(dir) {
		return "", neverStarts("exec.dir %.256q is not an absolute path", dir)
	}
	switch fi, err := os.Stat(dir); {
	case errors.Is(err, fs.ErrNotExist):
		return "", cannotStart("the directory %.256q does not exist on this worker", dir)
	case err != nil:
		return "", cannotStart("the directory %.256q cannot be entered: %v", dir, reasonOf(err))
	case !fi.IsDir():
		return "", cannotStart("%.256q is not a directory", dir)
	}
	return filepath.Clean(dir), nil
}

// find resolves the command to an absolute path and checks that it is allowed. The search uses the worker's own PATH:
// with the document's, the document would choose what an allowed name means.
func (e *Exec) find(name, dir string) (string, *refusal) {
	var candidates []string
	switch {
	case filepath.IsAbs(name):
		candidates = []string{filepath.Clean(name)}
	case strings.Contains(name, "/"):
		candidates = []string{filepath.Join(dir, name)}
	default:
		for _, d := range e.path {
			candidates = append(candidates, filepath.Join(d, name))
		}
	}
	blocked := ""
	for _, path := range candidates {
		fi, err := os.Stat(path)
		if err != nil || fi.IsDir() {
			continue
		}
		if fi.Mode()&0o111 == 0 || !fi.Mode().IsRegular() {
			blocked = path
			continue
		}
		if !e.allowed(path) {
			return "", notPermitted("this worker may not run %.256q; its --allow-exec does not match it", path)
		}
		return path, nil
	}
	// What is not allowed is not looked for on the asker's behalf: whether the file exists is none of its business.
	if len(candidates) == 1 && !e.allowed(candidates[0]) || len(e.cfg.Allow) == 0 {
		return "", notPermitted("this worker may not run %.256q; its --allow-exec does not match it", name)
	}
	if blocked != "" {
		return "", cannotStart("the command %.256q is not executable", blocked)
	}
	return "", cannotStart("the command %.256q was not found on this worker", name)
}

func (e *Exec) allowed(path string) bool { return e.all || matchGlobs(e.cfg.Allow, path) }

func matchGlobs(globs []string, path string) bool {
	for _, g := range globs {
		if g == "*" {
			return true
		}
		if dir, ok := strings.CutSuffix(g, "/**"); ok {
			for p := filepath.Dir(path); ; p = filepath.Dir(p) {
				if ok, _ := filepath.Match(dir, p); ok || dir == "" {
					return true
				}
				if len(p) <= 1 {
					break
				}
			}
			continue
		}
		if ok, _ := filepath.Match(g, path); ok {
			return true
		}
	}
	return false
}

// startRefusal puts the error of the system call into a sentence. The checks before it have passed, so what is left is
// about rights, formats and limits.
func startRefusal(err error, c *command) *refusal {
	who := ""
	if c.user != nil {
		who = " as user " + c.user.name
	}
	switch {
	case errors.Is(err, syscall.E2BIG):
		return neverStarts("the command's arguments and environment are larger than this system accepts")
	case errors.Is(err, syscall.ENOEXEC):
		return cannotStart("the command %.256q is not in a format that this worker's system can execute; a script needs a #! line", c.path)
	case errors.Is(err, fs.ErrNotExist):
		return cannotStart("the command %.256q cannot be started%s: it, its interpreter or its directory does not exist", c.path, who)
	case errors.Is(err, fs.ErrPermission):
		return cannotStart("the command %.256q cannot be started in %.256q%s: permission denied", c.path, c.dir, who)
	}
	return cannotStart("the command %.256q cannot be started%s: %v", c.path, who, reasonOf(err))
}

// reasonOf strips the path and the operation that a PathError repeats.
func reasonOf(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
