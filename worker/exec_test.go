//go:build unix

package worker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

func newExec(t testing.TB, change ...func(*ExecConfig)) *Exec {
	t.Helper()
	cfg := ExecConfig{Allow: []string{"*"}, DataDir: t.TempDir(), WaitDelay: 200 * time.Millisecond}
	for _, c := range change {
		c(&cfg)
	}
	e, err := NewExec(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func sh(script string) *job.Document {
	return &job.Document{Exec: &job.Exec{Command: []string{"/bin/sh", "-c", script}}}
}

func TestExecOutcomes(t *testing.T) {
	t.Parallel()
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("not a program"), 0o755); err != nil {
		t.Fatal(err)
	}
	locked := filepath.Join(t.TempDir(), "locked")
	if err := os.WriteFile(locked, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	lost := filepath.Join(t.TempDir(), "lost")
	if err := os.WriteFile(lost, []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	big := fmt.Sprintf("head -c %d /dev/zero | tr '\\0' 1 >$MUSTER_RESULT_FILE", MaxResult+1)
	argv := func(a ...string) *job.Document { return &job.Document{Exec: &job.Exec{Command: a}} }
	with := func(d *job.Document, f func(*job.Exec)) *job.Document { f(d.Exec); return d }
	const ok, failed = job.AttemptSucceeded, job.AttemptFailed
	for _, tc := range []struct {
		name      string
		spec      *job.Document
		kind      job.OutcomeKind
		reason    job.Reason
		permanent bool
		exit      int32
		result    string
		text      string // part of the error
	}{
		{"success", sh("true"), ok, 0, false, 0, "", ""},
		{"by name", argv("true"), ok, 0, false, 0, "", ""},
		{"exit code", sh("exit 3"), failed, job.ExitCode, false, 3, "", "the command exited with code 3"},
		{"a code that is success", with(sh("exit 3"), func(e *job.Exec) { e.SuccessExitCodes = []int{0, 3} }), ok, 0, false, 3, "", ""},
		{"zero that is not", with(sh("exit 0"), func(e *job.Exec) { e.SuccessExitCodes = []int{3} }), failed, job.ExitCode, false, 0, "", "code 0"},
		{"signal", sh("kill -SEGV $$"), failed, job.ExitCode, false, 139, "", "killed by signal 11"},
		{"a signal is no exit code", with(sh("kill -KILL $$"), func(e *job.Exec) { e.SuccessExitCodes = []int{137} }), failed, job.ExitCode, false, 137, "", "signal 9"},

		{"result", sh(`echo '{"rows": 3}' >$MUSTER_RESULT_FILE`), ok, 0, false, 0, `{"rows":3}`, ""},
		{"result of a failure", sh(`echo '"why"' >$MUSTER_RESULT_FILE; exit 1`), failed, job.ExitCode, false, 1, `"why"`, "code 1"},
		{"result moved into place", sh(`echo 1 >$MUSTER_RESULT_FILE.x; mv $MUSTER_RESULT_FILE.x $MUSTER_RESULT_FILE`), ok, 0, false, 0, "1", ""},
		{"empty result", sh(`: >$MUSTER_RESULT_FILE`), ok, 0, false, 0, "", ""},
		{"result not JSON", sh(`echo done >$MUSTER_RESULT_FILE`), failed, job.InvalidResult, true, 0, "", "MUSTER_RESULT_FILE"},
		{"result with a NUL", sh(`printf '"a\\u0000"' >$MUSTER_RESULT_FILE`), failed, job.InvalidResult, true, 0, "", "result"},
		{"result with a raw NUL", sh(`printf '"a\000"' >$MUSTER_RESULT_FILE`), failed, job.InvalidResult, true, 0, "", "result"},
		{"result not UTF-8", sh(`printf '"\377"' >$MUSTER_RESULT_FILE`), failed, job.InvalidResult, true, 0, "", "UTF-8"},
		{"result too big", sh(big), failed, job.InvalidResult, true, 0, "", "result"},
		{"endless result", sh(`head -c 10000000 /dev/zero >$MUSTER_RESULT_FILE`), failed, job.InvalidResult, true, 0, "", "64 KiB"},
		{"bad result of a failure", sh(`echo x >$MUSTER_RESULT_FILE; exit 4`), failed, job.ExitCode, false, 4, "", "code 4"},
		{"result is a link", sh(`ln -s /etc/hostname $MUSTER_RESULT_FILE`), failed, job.InvalidResult, true, 0, "", "result file"},
		{"result is a pipe", sh(`mkfifo $MUSTER_RESULT_FILE`), failed, job.InvalidResult, true, 0, "", "regular file"},
		{"result is a directory", sh(`mkdir $MUSTER_RESULT_FILE`), failed, job.InvalidResult, true, 0, "", "regular file"},

		{"not found", argv("/no/such/command"), failed, job.CannotStart, false, 0, "", `"/no/such/command" was not found`},
		{"no such name", argv("no-such-command"), failed, job.CannotStart, false, 0, "", "not found"},
		{"not executable", argv(locked), failed, job.CannotStart, false, 0, "", "is not executable"},
		{"a directory", argv("/tmp"), failed, job.CannotStart, false, 0, "", "not found"},
		{"a device", argv("/dev/null"), failed, job.CannotStart, false, 0, "", "is not executable"},
		{"not a program", argv(plain), failed, job.CannotStart, false, 0, "", "#! line"},
		{"no interpreter", argv(lost), failed, job.CannotStart, false, 0, "", "interpreter"},
		{"bad dir", with(sh("true"), func(e *job.Exec) { e.Dir = "/no/such/dir" }), failed, job.CannotStart, false, 0, "", `"/no/such/dir" does not exist`},
		{"dir is a file", with(sh("true"), func(e *job.Exec) { e.Dir = "/etc/passwd" }), failed, job.CannotStart, false, 0, "", "not a directory"},
		{"relative dir", with(sh("true"), func(e *job.Exec) { e.Dir = "x" }), failed, job.CannotStart, true, 0, "", "absolute"},
		{"relative command", with(argv("./sh", "-c", "true"), func(e *job.Exec) { e.Dir = "/bin" }), ok, 0, false, 0, "", ""},
		{"too long", argv("true", strings.Repeat("x", 200<<10)), failed, job.CannotStart, true, 0, "", "larger than this system accepts"},

		{"empty argv", argv(), failed, job.CannotStart, true, 0, "", "empty"},
		{"empty name", argv(""), failed, job.CannotStart, true, 0, "", "empty"},
		{"NUL in the name", argv("tr\x00ue"), failed, job.CannotStart, true, 0, "", "NUL"},
		{"NUL in an argument", argv("true", "a\x00b"), failed, job.CannotStart, true, 0, "", "exec.command[1] holds a NUL"},
		{"NUL in dir", with(sh("true"), func(e *job.Exec) { e.Dir = "/t\x00mp" }), failed, job.CannotStart, true, 0, "", "NUL"},
		{"NUL in env", with(sh("true"), func(e *job.Exec) { e.Env = map[string]string{"A": "\x00"} }), failed, job.CannotStart, true, 0, "", "NUL"},
		{"NUL in an env name", with(sh("true"), func(e *job.Exec) { e.Env = map[string]string{"A\x00": "b"} }), failed, job.CannotStart, true, 0, "", "NUL"},
		{"= in an env name", with(sh("true"), func(e *job.Exec) { e.Env = map[string]string{"A=B": "b"} }), failed, job.CannotStart, true, 0, "", "'='"},
		{"NUL in env_from", with(sh("true"), func(e *job.Exec) { e.EnvFrom = []string{"a\x00"} }), failed, job.CannotStart, true, 0, "", "env_from"},
		{"shell words as a name", argv("true; touch /tmp/x"), failed, job.CannotStart, false, 0, "", "not found"},
		{"substitution as a name", argv("$(true)"), failed, job.CannotStart, false, 0, "", "not found"},
		{"line break as a name", argv("true\nfalse"), failed, job.CannotStart, false, 0, "", "not found"},
		{"option as a name", argv("-c", "true"), failed, job.CannotStart, false, 0, "", "not found"},
		{"NUL in the user", with(sh("true"), func(e *job.Exec) { e.User = "ro\x00ot" }), failed, job.NotPermitted, true, 0, "", "user"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			e := newExec(t)
			o := e.Execute(t.Context(), assignmentOf(tc.spec), io.Discard)
			wantOutcome(t, o, tc.kind, tc.reason, tc.permanent)
			if o.ExitCode != tc.exit || string(o.Result) != tc.result || !strings.Contains(o.Error, tc.text) || (tc.text == "") != (o.Error == "") {
				t.Errorf("exit %d, result %s, error %q", o.ExitCode, o.Result, o.Error)
			}
			if left, _ := os.ReadDir(e.resultsDir()); len(left) > 0 && tc.name != "result moved into place" {
				t.Errorf("it left %v", left)
			}
		})
	}
}

func TestExecArgumentsAreNeverInterpreted(t *testing.T) {
	t.Parallel()
	hostile := []string{"; id", "$(id)", "`id`", "a\nb", "-rf", "--", "| cat", "&& true", "'\"", "*", "~", "%s%n", "\x1b]8;;javascript:alert(1)\a", "\xff\xfe"}
	var out bytes.Buffer
	spec := &job.Document{Exec: &job.Exec{Command: append([]string{"printf", `%s\036`, "first"}, hostile...)}}
	o := newExec(t).Execute(t.Context(), assignmentOf(spec), &out)
	wantOutcome(t, o, job.AttemptSucceeded, 0, false)
	if want := "first\x1e" + strings.Join(hostile, "\x1e") + "\x1e"; out.String() != want {
		t.Errorf("printed %q, want %q", out.String(), want)
	}
}

func TestExecEnvironment(t *testing.T) {
	t.Setenv("MUSTER_TOKEN", "secret")
	t.Setenv("LD_PRELOAD", "")
	t.Setenv("SECRET_OF_THE_WORKER", "secret")
	data := t.TempDir()
	if err := os.MkdirAll(filepath.Join(data, "env"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := "# comment\nA=file\nB='file'\nexport C=\"x\\ty\" # comment\nMUSTER_FENCE=0\nMUSTER_PAYLOAD=forged\n"
	if err := os.WriteFile(filepath.Join(data, "env", "report.env"), []byte(file), 0o644); err != nil {
		t.Fatal(err)
	}
	e := newExec(t, func(c *ExecConfig) {
		c.DataDir = data
		c.BaseEnv = []string{"PATH=/usr/bin:/bin:relative:.", "LANG=de_DE.UTF-8", "MUSTER_JOIN_TOKEN=secret"}
	})
	a := assignmentOf(&job.Document{Exec: &job.Exec{
		Command: []string{"env"}, EnvFrom: []string{"report.env"},
		Env: map[string]string{"A": "document", "LD_BIND_NOW": "1", "MUSTER_RUN_ID": "forged", "MULTI": "a\nb"},
	}})
	a.Payload = []byte(`{"n":1}`)
	var out bytes.Buffer
	wantOutcome(t, e.Execute(t.Context(), a, &out), job.AttemptSucceeded, 0, false)
	got := out.String()
	for _, want := range []string{
		"PATH=/usr/bin:/bin:relative:.\n", "LANG=de_DE.UTF-8\n", "HOME=/", "A=document\n", "B=file\n", "C=x\ty\n", "LD_BIND_NOW=1\n", "MULTI=a\nb\n",
		"MUSTER_RUN_ID=0192f3a4-7c1e-7abc-8def-0123456789ab\n", "MUSTER_ROOT_ID=0192f3a4-7c1e-7abc-8def-0123456789ab\n",
		"MUSTER_ATTEMPT=2\n", "MUSTER_FENCE=30064771081\n", "MUSTER_NAMESPACE=default\n", "MUSTER_JOB=report\n", "MUSTER_TASK=load\n",
		"MUSTER_SCHEDULED_AT=2026-01-31T09:00:00Z\n", "MUSTER_PAYLOAD={\"n\":1}\n", "MUSTER_RESULT_FILE=" + data,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	for _, not := range []string{"secret", "forged", "LD_PRELOAD", "MUSTER_JOIN_TOKEN"} {
		if strings.Contains(got, not) {
			t.Errorf("%q leaked into\n%s", not, got)
		}
	}
}

func TestExecEnvFiles(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	dir := filepath.Join(data, "env")
	os.MkdirAll(dir, 0o755)
	secret := filepath.Join(data, "worker.key")
	os.WriteFile(secret, []byte("KEY=secret\n"), 0o600)
	os.WriteFile(filepath.Join(dir, "bad.env"), []byte("A=1\nthis is secret\n"), 0o600)
	os.WriteFile(filepath.Join(dir, "open.env"), []byte("A=\"1\n"), 0o600)
	os.WriteFile(filepath.Join(dir, "nul.env"), []byte("A=1\x002\n"), 0o600)
	os.WriteFile(filepath.Join(dir, "big.env"), bytes.Repeat([]byte("A=1\n"), 100_000), 0o600)
	os.Symlink(secret, filepath.Join(dir, "link.env"))
	syscall.Mkfifo(filepath.Join(dir, "fifo.env"), 0o600)
	e := newExec(t, func(c *ExecConfig) { c.DataDir = data; c.AllowEnvFiles = []string{"/etc/muster/env.d/**"} })
	for _, tc := range []struct {
		file   string
		reason job.Reason
		text   string
	}{
		{"missing.env", job.CannotStart, `the environment file "missing.env" does not exist`},
		{"/etc/muster/env.d/missing.env", job.CannotStart, "does not exist"},
		{"bad.env", job.CannotStart, "line 2 is not KEY=VALUE"},
		{"open.env", job.CannotStart, "line 1"},
		{"nul.env", job.CannotStart, "NUL"},
		{"big.env", job.CannotStart, "256 KiB"},
		{"fifo.env", job.CannotStart, "regular file"},
		{".", job.CannotStart, "regular file"},
		{"link.env", job.CannotStart, "cannot be read"},
		{"../worker.key", job.CannotStart, "cannot be read"},
		{secret, job.NotPermitted, "--allow-env-file"},
		{"/etc/muster/env.d/../../passwd", job.NotPermitted, "--allow-env-file"},
		{"", job.CannotStart, "env_from"},
	} {
		spec := sh("env")
		spec.Exec.EnvFrom = []string{tc.file}
		var out bytes.Buffer
		o := e.Execute(t.Context(), assignmentOf(spec), &out)
		if o.Kind != job.AttemptFailed || o.Reason != tc.reason || !strings.Contains(o.Error, tc.text) {
			t.Errorf("%q: %v %q", tc.file, o.Reason, o.Error)
		}
		if strings.Contains(o.Error+out.String(), "secret") {
			t.Errorf("%q: the content leaked: %q %q", tc.file, o.Error, out.String())
		}
	}
}

func TestParseEnvFile(t *testing.T) {
	t.Parallel()
	good := map[string]string{
		"A=b": "b", "A=": "", "A=b c ": "b c", "A=b # c": "b", "A=b#c": "b#c", "A=#c": "", "A= 'b # c' # d": "b # c", `A="b\"c\\\n\$x\q"`: "b\"c\\\n$x\\q",
		`A='b\n'`: `b\n`, "export A=b": "b", "\xef\xbb\xbfA=b\r": "b", "A=b=c": "b=c", "A=$HOME": "$HOME", "A='it''s'": "!",
		"A='b": "!", `A="b\"`: "!", "1A=b": "!", "A B=c": "!", "=b": "!", "A": "!", "export": "!", "A-B=c": "!",
	}
	for in, want := range good {
		vars, err := parseEnvFile([]byte(in))
		switch {
		case want == "!" && err == nil:
			t.Errorf("%q was accepted as %q", in, vars)
		case want != "!" && (err != nil || len(vars) != 1 || vars[0] != [2]string{"A", want}):
			t.Errorf("%q: %q, %v", in, vars, err)
		}
	}
}

func FuzzParseEnvFile(f *testing.F) {
	f.Add([]byte("export A=\"b\\\n# c\nD='"))
	f.Fuzz(func(t *testing.T, b []byte) {
		vars, _ := parseEnvFile(b)
		for _, kv := range vars {
			if !isVariableName(kv[0]) {
				t.Errorf("%q is a name", kv[0])
			}
		}
	})
}

func TestExecPayloadAndOutput(t *testing.T) {
	t.Parallel()
	e := newExec(t)
	run := func(spec *job.Document, payload []byte) string {
		var out bytes.Buffer
		a := assignmentOf(spec)
		a.Payload = payload
		wantOutcome(t, e.Execute(t.Context(), a, &out), job.AttemptSucceeded, 0, false)
		return out.String()
	}
	if got := run(sh("cat; echo x >&2; echo y; echo z >&2"), []byte("[1]")); got != "[1]x\ny\nz\n" {
		t.Errorf("stdin, stdout and stderr: %q", got)
	}
	if got := run(sh("cat"), nil); got != "" {
		t.Errorf("without a payload stdin holds %q", got)
	}
	big := []byte(`"` + strings.Repeat("x", MaxResult-2) + `"`)
	if got := run(sh(`cat; printf %s "$MUSTER_PAYLOAD"`), big); got != string(big) {
		t.Errorf("a payload of %d bytes came as %d", len(big), len(got))
	}
	run(sh("true"), big) // nobody reads it
	if got := run(sh("pwd"), nil); strings.TrimSpace(got) == "" {
		t.Error("no directory")
	}
	spec := sh("pwd")
	spec.Exec.Dir = "/usr/bin/.."
	if got := run(spec, nil); got != "/usr\n" {
		t.Errorf("dir: %q", got)
	}
	if got := run(sh("head -c 3000000 /dev/zero"), nil); len(got) != MaxOutput+len("\n[output truncated at 1 MiB]\n") {
		t.Errorf("output of 3 MB came as %d bytes", len(got))
	}
	o := e.Execute(t.Context(), assignmentOf(sh("head -c 3000000 /dev/zero")), brokenWriter{})
	wantOutcome(t, o, job.AttemptSucceeded, 0, false)
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestExecAllow(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	script := filepath.Join(dir, "report")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho ran\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, allow, command string
		want                 bool
	}{
		{"nothing is allowed", "", script, false},
		{"nothing, by name", "", "true", false},
		{"all", "*", script, true},
		{"exact", script, script, true},
		{"glob", dir + "/rep*", script, true},
		{"glob of a directory", dir + "/*", script, true},
		{"glob stops at a slash", filepath.Dir(dir) + "/*", script, false},
		{"all below", filepath.Dir(dir) + "/**", script, true},
		{"all below the root", "/**", script, true},
		{"below another", "/opt/**", script, false},
		{"a prefix is not enough", dir[:len(dir)-1] + "/**", script, false},
		{"another", "/bin/true", script, false},
		{"dots lead out", dir + "/**", dir + "/../../../../bin/sh", false},
		{"dots lead in", script, dir + "/x/../report", true},
		{"relative to dir", dir + "/*", "./report", true},
		{"relative and out of dir", dir + "/*", "../../../../../bin/sh", false},
		{"not there and not allowed", dir + "/*", "/no/such", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			e := newExec(t, func(c *ExecConfig) {
				if c.Allow = nil; tc.allow != "" {
					c.Allow = []string{"/never/this", tc.allow}
				}
			})
			spec := &job.Document{Exec: &job.Exec{Command: []string{tc.command}, Dir: dir}}
			o := e.Execute(t.Context(), assignmentOf(spec), io.Discard)
			if tc.want {
				wantOutcome(t, o, job.AttemptSucceeded, 0, false)
			} else {
				wantOutcome(t, o, job.AttemptFailed, job.NotPermitted, true)
			}
		})
	}
	for _, bad := range []ExecConfig{
		{DataDir: "/x", Allow: []string{"/a/[b"}}, {DataDir: "/x", Allow: []string{"report"}}, {}, {DataDir: "/x", KillGrace: -1},
	} {
		if _, err := NewExec(bad); job.CodeOf(err) != job.Invalid {
			t.Errorf("%+v was accepted: %v", bad, err)
		}
	}
}

// An allow-list would be worth nothing if the environment could make an allowed command run something else.
func TestExecEnvironmentCannotUndoTheAllowList(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		key   string
		allow []string
		want  bool
	}{
		{"BASH_ENV", nil, false}, {"LD_PRELOAD", nil, false}, {"PATH", nil, false}, {"PYTHONPATH", nil, false}, {"BASH_FUNC_ls%%", nil, false},
		{"ENV", nil, false}, {"TZ", nil, true}, {"LD_LIBRARY_PATH", []string{"LD_LIBRARY_PATH"}, true}, {"LD_PRELOAD", []string{"LD_LIBRARY_*"}, false},
	} {
		e := newExec(t, func(c *ExecConfig) { c.Allow = []string{"/**"}; c.AllowEnv = tc.allow })
		spec := sh("true")
		spec.Exec.Env = map[string]string{tc.key: ""}
		o := e.Execute(t.Context(), assignmentOf(spec), io.Discard)
		if tc.want {
			wantOutcome(t, o, job.AttemptSucceeded, 0, false)
		} else {
			wantOutcome(t, o, job.AttemptFailed, job.NotPermitted, true)
		}
	}
}

func TestExecUser(t *testing.T) {
	t.Parallel()
	as := func(name string, allow ...string) (job.Outcome, string) {
		e := newExec(t, func(c *ExecConfig) { c.AllowUsers = allow })
		spec := sh("id -u; echo $HOME $USER; echo \"[$(id -u)]\" >$MUSTER_RESULT_FILE")
		spec.Exec.User, spec.Exec.Dir = name, "/"
		var out bytes.Buffer
		return e.Execute(t.Context(), assignmentOf(spec), &out), out.String()
	}
	o, _ := as("nobody")
	wantOutcome(t, o, job.AttemptFailed, job.NotPermitted, true)
	o, _ = as("no-such-user", "*")
	wantOutcome(t, o, job.AttemptFailed, job.CannotStart, false)
	if os.Geteuid() != 0 {
		o, _ = as("nobody", "nobody")
		wantOutcome(t, o, job.AttemptFailed, job.CannotStart, false)
		if !strings.Contains(o.Error, "only a worker that runs as root") {
			t.Errorf("error: %q", o.Error)
		}
		return
	}
	o, out := as("nobody", "nobody")
	wantOutcome(t, o, job.AttemptSucceeded, 0, false)
	if out != "65534\n/nonexistent nobody\n" || string(o.Result) != "[65534]" {
		t.Errorf("output %q, result %s", out, o.Result)
	}
	o, _ = as("nobody", "*")
	wantOutcome(t, o, job.AttemptSucceeded, 0, false)
	o, _ = as("root", "*") // the worker is root itself
	wantOutcome(t, o, job.AttemptSucceeded, 0, false)
}

// A command under another user must not have the worker read for it what it may not read itself.
func TestExecResultOfAnotherUserIsItsOwn(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can switch users")
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(`"secret"`), 0o600); err != nil {
		t.Fatal(err)
	}
	e := newExec(t, func(c *ExecConfig) { c.User = "nobody" })
	dir := fmt.Sprintf("d=$(dirname $MUSTER_RESULT_FILE); mv $d $d.x; ln -s %s $d; true", filepath.Dir(secret))
	for _, script := range []string{"ln -s " + secret + " $MUSTER_RESULT_FILE", dir} {
		o := e.Execute(t.Context(), assignmentOf(sh(script)), io.Discard)
		if strings.Contains(string(o.Result), "secret") {
			t.Errorf("%s: the result is %s", script, o.Result)
		}
	}
	left, _ := filepath.Glob(filepath.Join(os.TempDir(), "muster-result-*.x"))
	for _, d := range left {
		os.RemoveAll(d)
	}
	if _, err := os.Stat(secret); err != nil {
		t.Errorf("the cleaning up followed a link: %v", err)
	}
}

func stopAfter(t *testing.T, out *transcript, text string, s *Stop) context.Context {
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		out.waitFor(t, text)
		cancel(s)
	}()
	t.Cleanup(func() { <-done })
	return ctx
}

func TestExecStopReasons(t *testing.T) {
	t.Parallel()
	for _, tc := range stops {
		t.Run(tc.reason.String(), func(t *testing.T) {
			t.Parallel()
			out := newTranscript()
			ctx := stopAfter(t, out, "ready", &Stop{tc.reason, time.Minute})
			o := newExec(t).Execute(ctx, assignmentOf(sh("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done")), out)
			wantOutcome(t, o, tc.kind, tc.reason, tc.permanent)
			if !strings.HasSuffix(out.String(), "bye\n") || o.Error == "" {
				t.Errorf("output %q, error %q", out.String(), o.Error)
			}
			o = newExec(t).Execute(ctx, assignmentOf(sh("echo never")), out)
			wantOutcome(t, o, tc.kind, tc.reason, tc.permanent)
			if strings.Contains(out.String(), "never") {
				t.Error("it was started although it was stopped before")
			}
		})
	}
}

func TestExecStopHard(t *testing.T) {
	t.Parallel()
	for name, grace := range map[string]time.Duration{"at once": 0, "after the grace": 50 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out := newTranscript()
			ctx := stopAfter(t, out, "pid ", &Stop{job.TimedOut, grace})
			// The shell, its child and its grandchild all ignore SIGTERM.
			o := newExec(t).Execute(ctx, assignmentOf(sh(`trap '' TERM; (sh -c 'echo pid $$; sleep 1000' & sleep 1000) & wait`)), out)
			wantOutcome(t, o, job.AttemptFailed, job.TimedOut, false)
			if o.ExitCode != 137 {
				t.Errorf("exit code %d", o.ExitCode)
			}
			wantGone(t, out)
		})
	}
}

// wantGone checks that the processes which wrote "pid N" are gone.
func wantGone(t *testing.T, out *transcript) {
	t.Helper()
	n := 0
	for line := range strings.Lines(out.String()) {
		if rest, ok := strings.CutPrefix(line, "pid "); ok {
			pid, err := strconv.Atoi(strings.TrimSpace(rest))
			if err != nil {
				t.Fatalf("line %q", line)
			}
			n++
			eventually(t, "the end of process "+rest, func() bool { return !alive(pid) })
		}
	}
	if n == 0 {
		t.Errorf("no process wrote its number: %q", out.String())
	}
}

func alive(pid int) bool {
	_, group, err := processStart(pid)
	return err == nil && group != 0
}

// A shell dies of SIGTERM at once; the program that it waits for must still have its grace.
func TestExecGraceIsForTheWholeGroup(t *testing.T) {
	t.Parallel()
	out := newTranscript()
	ctx := stopAfter(t, out, "ready", &Stop{job.CancelRequested, time.Minute})
	o := newExec(t).Execute(ctx, assignmentOf(sh(`sh -c 'trap "sleep 0.1; echo cleaned up; exit" TERM; echo ready; while :; do sleep 0.01; done'; true`)), out)
	wantOutcome(t, o, job.AttemptCancelled, job.CancelRequested, false)
	if !strings.HasSuffix(out.String(), "cleaned up\n") {
		t.Errorf("output %q", out.String())
	}
}

func TestExecEndsWhatTheCommandLeft(t *testing.T) {
	t.Parallel()
	out := newTranscript()
	start := time.Now()
	o := newExec(t, func(c *ExecConfig) { c.WaitDelay = time.Minute }).Execute(t.Context(),
		assignmentOf(sh(`sh -c 'echo pid $$; exec sleep 1000' & sleep 0.1; echo done`)), out)
	wantOutcome(t, o, job.AttemptSucceeded, 0, false)
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("a grandchild with the output open held it up for %v", d)
	}
	wantGone(t, out)
}

func TestExecDoesNotWaitForWhoLeftTheGroup(t *testing.T) {
	t.Parallel()
	out := newTranscript()
	o := newExec(t).Execute(t.Context(), assignmentOf(sh(`setsid sh -c 'echo pid $$; exec sleep 1000' & while :; do sleep 0.2; exit; done`)), out)
	wantOutcome(t, o, job.AttemptSucceeded, 0, false)
	out.waitFor(t, "output closed")
	var pid int
	if _, err := fmt.Sscanf(out.String(), "pid %d", &pid); err != nil || !alive(pid) {
		t.Fatalf("the daemon did not survive: %q", out.String())
	}
	syscall.Kill(pid, syscall.SIGKILL)
}

func TestExecAfterClose(t *testing.T) {
	t.Parallel()
	e := newExec(t)
	wantOutcome(t, e.Execute(t.Context(), assignmentOf(sh("true")), io.Discard), job.AttemptSucceeded, 0, false)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	wantOutcome(t, e.Execute(t.Context(), assignmentOf(sh("true")), io.Discard), job.AttemptFailed, job.CannotStart, false)
}
