package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

// These tests run commands against `muster dev` in this process: real sockets, a real disk, real commands.

// watched is a stream that tells when something was written to it.
type watched struct {
	mu   sync.Mutex
	text strings.Builder
	want string
	seen chan struct{}
}

func watch(want string) *watched { return &watched{want: want, seen: make(chan struct{})} }

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := strings.Contains(w.text.String(), w.want)
	w.text.Write(p)
	if !before && strings.Contains(w.text.String(), w.want) {
		close(w.seen)
	}
	return len(p), nil
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// submitted reads the id that a submission prints with -o name.
func submitted(t *testing.T, w world, args ...string) string {
	t.Helper()
	return strings.TrimSpace(w.must(t, append([]string{"-o", "name", "run", "submit"}, args...)...))
}

func TestRuns(t *testing.T) {
	t.Parallel()
	n := startNode(t, "--worker-slots", "4")

	t.Run("follow", func(t *testing.T) {
		t.Parallel()
		r := n.muster(t, "run", "submit", "--follow", "--", "echo", "hello")
		if r.code != exitOK || r.out != "hello\n" || !strings.Contains(r.err, " succeeded after ") {
			t.Errorf("%+v", r)
		}
	})
	t.Run("the dashes may be left out", func(t *testing.T) {
		t.Parallel()
		if out := n.must(t, "run", "submit", "-f", "echo", "-n", "hello", "--follow"); out != "hello --follow" {
			t.Errorf("%q", out)
		}
	})
	t.Run("wait", func(t *testing.T) {
		t.Parallel()
		out := n.must(t, "run", "submit", "--wait", "--", "sh", "-c", `echo '{"n":42}' > "$MUSTER_RESULT_FILE"`)
		if out != `{"n":42}`+"\n" {
			t.Errorf("%q", out)
		}
		var r job.Run
		out = n.must(t, "-o", "json", "run", "submit", "--wait", "-l", "a=b", "--priority", "9", "--", "true")
		if err := json.Unmarshal([]byte(out), &r); err != nil || r.State != job.Succeeded || r.Labels["a"] != "b" || r.Priority != 9 {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("the output of a run in another form goes to stderr", func(t *testing.T) {
		t.Parallel()
		var run job.Run
		r := n.muster(t, "-o", "json", "run", "submit", "--follow", "--", "echo", "hello")
		if err := json.Unmarshal([]byte(r.out), &run); err != nil || r.err != "hello\n" || run.State != job.Succeeded {
			t.Errorf("%v: %+v", err, r)
		}
	})
	t.Run("failure", func(t *testing.T) {
		t.Parallel()
		r := n.muster(t, "run", "submit", "--wait", "--", "sh", "-c", "exit 3")
		if r.code != exitRunFailed || !strings.Contains(r.err, "failed (exit_code)") || !strings.Contains(r.err, "code 3") {
			t.Errorf("%+v", r)
		}
		id := submitted(t, n.world, "--", "no-such-command")
		if r := n.muster(t, "run", "wait", id); r.code != exitRunFailed || !strings.Contains(r.err, "cannot_start") {
			t.Errorf("%+v", r)
		}
		if out := n.must(t, "run", "explain", id); !strings.Contains(out, "could not start it") {
			t.Errorf("%s", out)
		}
		retried := strings.TrimSpace(n.must(t, "run", "retry", id, "-o", "name"))
		if out, want := n.must(t, "run", "retry", id), "run "+retried+" is the retry of "+id+"; it is "; !strings.HasPrefix(out, want) {
			t.Errorf("retried: %q, want %q", out, want)
		}
		if again := strings.TrimSpace(n.must(t, "run", "retry", id, "-o", "name")); retried == id || again != retried {
			t.Errorf("retries of %s: %s and %s", id, retried, again)
		}
	})
	t.Run("retries", func(t *testing.T) {
		t.Parallel()
		r := n.muster(t, "run", "submit", "--follow", "--retries", "1", "--", "sh", "-c", "echo $MUSTER_ATTEMPT; exit 1")
		if r.code != exitRunFailed || r.out != "1\n2\n" || !strings.Contains(r.err, "--- attempt 2\n") {
			t.Errorf("%+v", r)
		}
	})
	t.Run("payload", func(t *testing.T) {
		t.Parallel()
		w := n.world
		w.stdin = ` {"a": 1} `
		for _, args := range [][]string{{"--payload", `{"a":1}`}, {"--payload", "-"}, {"--payload", "@" + fileWith(t, "p.json", `{"a":1}`)}} {
			if out := w.must(t, append(append([]string{"run", "submit", "--follow"}, args...), "--", "cat")...); out != `{"a":1}` {
				t.Errorf("%v: %q", args, out)
			}
		}
	})
	t.Run("environment and directory", func(t *testing.T) {
		t.Parallel()
		out := n.must(t, "run", "submit", "--follow", "--dir", "/usr", "-e", "GREETING=a=b", "--", "sh", "-c", "pwd; echo $GREETING")
		if out != "/usr\na=b\n" {
			t.Errorf("%q", out)
		}
	})
	t.Run("repeating a submission", func(t *testing.T) {
		t.Parallel()
		id := submitted(t, n.world, "--key", "order-17", "--", "true")
		if again := submitted(t, n.world, "--key", "order-17", "--", "true"); again != id {
			t.Errorf("one key, two runs: %s, %s", id, again)
		}
		if r := n.muster(t, "run", "submit", "--key", "order-17", "--", "false"); r.code != exitConflict {
			t.Errorf("the key with another body: %+v", r)
		}
		if again := submitted(t, n.world, "--id", id, "--", "true"); again != id {
			t.Errorf("one id, two runs: %s, %s", id, again)
		}
	})
	t.Run("later and cancelled", func(t *testing.T) {
		t.Parallel()
		out := n.must(t, "run", "submit", "--delay", "1h", "--", "true")
		id := strings.Fields(out)[1]
		if !strings.Contains(out, " scheduled for ") {
			t.Errorf("%q", out)
		}
		if r := n.muster(t, "run", "wait", id, "--timeout", "50ms"); r.code != exitUnavailable || !strings.Contains(r.err, "has not ended within 50ms") {
			t.Errorf("%+v", r)
		}
		n.must(t, "run", "cancel", id)
		if r := n.muster(t, "run", "wait", id); r.code != exitRunFailed || !strings.Contains(r.err, "cancelled (cancel_requested)") {
			t.Errorf("%+v", r)
		}
		r := n.muster(t, "run", "cancel", id, "0192f3a4-7c1e-7abc-8def-0123456789ab", "nonsense")
		if r.code != exitFailed || !strings.Contains(r.out, "cancelled") || strings.Count(r.err, "\n") != 2 {
			t.Errorf("several: %+v", r)
		}
	})
	t.Run("lists", func(t *testing.T) {
		t.Parallel()
		id := submitted(t, n.world, "-l", "list=yes", "--", "sh", "-c", "exit 9")
		_ = n.muster(t, "run", "wait", id)
		for args, want := range map[string]bool{
			"--label list=yes": true, "--label list=no": false, "--label list=yes --state failed": true, "--label list=yes --state succeeded,running": false,
			"--label list=yes --since 1h": true, "--label list=yes --until 1h": false, "--label list=yes -A": true, "--label list=yes --namespace other": false,
		} {
			out := n.must(t, append([]string{"run", "list", "-o", "name"}, strings.Fields(args)...)...)
			if (out == id+"\n") != want || !want && out != "" {
				t.Errorf("run list %s: %q", args, out)
			}
		}
		if out := n.must(t, "run", "attempts", id); !strings.Contains(out, "exit_code") || !strings.Contains(out, " 9 ") {
			t.Errorf("attempts: %s", out)
		}
	})
	t.Run("output", func(t *testing.T) {
		t.Parallel()
		// Into a pipe the bytes go as they are, whatever they are.
		id := submitted(t, n.world, "--wait", "--", "printf", `\033]0;title\007\377raw\n`)
		if out := n.must(t, "run", "logs", id); out != "\x1b]0;title\x07\xffraw\n" {
			t.Errorf("%q", out)
		}
		if out := n.must(t, "run", "logs", "-f", id); out != "\x1b]0;title\x07\xffraw\n" {
			t.Errorf("followed: %q", out)
		}
		var p piece
		if out := n.must(t, "run", "logs", "-f", "-o", "json", id); json.Unmarshal([]byte(out), &p) != nil || string(p.Bytes) != "\x1b]0;title\x07\xffraw\n" {
			t.Errorf("as JSON: %q", out)
		}
		if out := n.must(t, "run", "logs", "--attempt", "1", id); out == "" {
			t.Error("no output of attempt 1")
		}
	})
}

// Whoever stops watching does not stop the run, and is told so.
func TestInterruptedFollowing(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	gate := filepath.Join(t.TempDir(), "gate")
	for name, args := range map[string][]string{
		"follow": {"run", "submit", "--follow", "--", "sh", "-c", `echo begun; until [ -e "$0" ]; do sleep 0.05; done`, gate},
		"wait":   nil,
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		out, errs := watch("begun"), watch("goes on")
		if args == nil {
			id := submitted(t, n.world, "--", "sh", "-c", `until [ -e "$0" ]; do sleep 0.05; done`, gate)
			args = []string{"run", "wait", id}
			time.AfterFunc(100*time.Millisecond, func() { cancel(interrupted{os.Interrupt}) }) // whenever: waiting looks the same at all times
		}
		code := make(chan int, 1)
		go func() { code <- run(ctx, args, strings.NewReader(""), out, errs, n.env) }()
		if name == "follow" {
			<-out.seen
			cancel(interrupted{os.Interrupt})
		}
		if c := <-code; c != exitInterrupted || !strings.Contains(errs.String(), "interrupted; the run goes on") {
			t.Errorf("%s: exit code %d, %s", name, c, errs)
		}
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, id := range strings.Fields(n.must(t, "run", "list", "-o", "name")) {
		n.must(t, "run", "wait", id)
	}
}

// A followed output that breaks in the middle goes on where it was, and nothing comes twice.
func TestFollowingSurvivesReconnect(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	p := startProxy(t, strings.TrimPrefix(n.url, "http://"))
	gate := filepath.Join(t.TempDir(), "gate")
	id := submitted(t, n.world, "--", "sh", "-c", `echo one; echo two; until [ -e "$0" ]; do sleep 0.05; done; echo three`, gate)
	out := watch("two\n")
	var errs lockedBuffer
	code := make(chan int, 1)
	go func() {
		code <- run(t.Context(), []string{"run", "logs", "-f", id}, strings.NewReader(""), out, &errs, []string{"MUSTER_ADDRESS=http://" + p.address})
	}()
	<-out.seen
	p.cut()
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if c := <-code; c != exitOK || out.String() != "one\ntwo\nthree\n" {
		t.Errorf("exit code %d, %q, %s", c, out, &errs)
	}
	if p.connections() < 2 {
		t.Error("nothing was cut")
	}
}

// proxy passes connections on, until it cuts them.
type proxy struct {
	address string
	mu      sync.Mutex
	open    []net.Conn
	made    int
}

func startProxy(t *testing.T, target string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: l.Addr().String()}
	var parts sync.WaitGroup
	parts.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				in.Close()
				continue
			}
			p.mu.Lock()
			p.open, p.made = append(p.open, in, out), p.made+1
			p.mu.Unlock()
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				parts.Go(func() {
					_, _ = io.Copy(pair[0], pair[1])
					pair[0].Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.cut()
		parts.Wait()
	})
	return p
}

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.open {
		c.Close()
	}
	p.open = nil
}

func (p *proxy) connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.made
}

func TestJobs(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	doc := fileWith(t, "jobs.yaml", "name: report\nschedule: {cron: '0 2 * * *', time_zone: Europe/Berlin}\nexec: {command: [echo, one]}\n---\nname: plain\nlabels: {kind: plain}\nexec: {command: [echo, plain]}\n")
	if out := n.must(t, "apply", "-f", doc, "--dry-run"); !strings.Contains(out, "default/report would be created\n") {
		t.Errorf("dry run: %s", out)
	}
	if r := n.muster(t, "job", "show", "report"); r.code != exitNotFound {
		t.Errorf("a dry run created a job: %+v", r)
	}
	out := n.must(t, "apply", "-f", doc)
	if !strings.Contains(out, "default/report created (version 1)") || strings.Count(out, " 02:00:00 CE") != shownTicks {
		t.Errorf("apply: %s", out)
	}
	if out := n.must(t, "apply", "-f", doc); strings.Count(out, " unchanged (version 1)") != 2 {
		t.Errorf("apply again: %s", out)
	}
	// What is exported can be applied, and is the same.
	exported := fileWith(t, "exported.yaml", n.must(t, "job", "show", "report", "--document"))
	if out := n.must(t, "apply", "-f", exported); !strings.Contains(out, "unchanged") {
		t.Errorf("what was exported differs: %s", out)
	}
	// A wrong file does not keep the others from being applied.
	changed := fileWith(t, "changed.yaml", "name: report\nschedule: {cron: '0 3 * * *', time_zone: Europe/Berlin}\nexec: {command: [echo, two]}\n")
	wrong := fileWith(t, "wrong.yaml", "name: x\nexec: {comand: [x]}\n")
	r := n.muster(t, "apply", "-f", wrong, "-f", changed)
	if r.code != exitUsage || !strings.Contains(r.out, "default/report changed (version 2)") || !strings.Contains(r.out, "did you mean \"command\"") || !strings.Contains(r.err, "1 changed, 0 unchanged, 1 failed") {
		t.Errorf("with a wrong file: %+v", r)
	}
	if out := n.must(t, "job", "versions", "report", "-o", "name"); out != "2\n1\n" {
		t.Errorf("versions: %q", out)
	}
	if out := n.must(t, "job", "show", "report", "--document", "--version", "1"); !strings.Contains(out, "one") {
		t.Errorf("version 1: %s", out)
	}
	if out := n.must(t, "job", "list", "-o", "name", "-l", "kind=plain"); out != "plain\n" {
		t.Errorf("by label: %q", out)
	}
	if out := n.must(t, "job", "next", "report", "--count", "2"); strings.Count(out, " 03:00:00 CE") != 2 {
		t.Errorf("next: %s", out)
	}
	if r := n.muster(t, "job", "run", "plain", "--follow"); r.code != exitOK || r.out != "plain\n" {
		t.Errorf("run: %+v", r)
	}
	n.must(t, "job", "pause", "report", "plain")
	if out := n.must(t, "job", "list"); strings.Count(out, "paused") != 2 {
		t.Errorf("paused: %s", out)
	}
	n.must(t, "job", "resume", "report", "plain")
	if out := n.must(t, "job", "backfill", "report", "--since", "3d", "--dry-run", "-o", "name"); strings.Count(out, "\n") != 3 {
		t.Errorf("a backfill of three days: %q", out)
	}
	runs := strings.Fields(n.must(t, "job", "backfill", "report", "--since", "3d", "--id", "again", "-o", "name"))
	if len(runs) != 3 {
		t.Errorf("backfilled: %v", runs)
	}
	for _, id := range runs {
		if out := n.must(t, "run", "logs", "-f", id); out != "two\n" {
			t.Errorf("a backfilled run wrote %q", out)
		}
	}
	if r := n.muster(t, "job", "backfill", "report", "--since", "3d", "--id", "again"); !strings.Contains(r.err, "0 runs created, 3 were there already, 0 failed") {
		t.Errorf("backfilled again: %+v", r)
	}
	n.must(t, "job", "verify", "report")
	r = n.muster(t, "job", "delete", "plain", "nobody")
	if r.code != exitNotFound || !strings.Contains(r.out, "job plain deleted") || !strings.Contains(r.err, "nobody: ") {
		t.Errorf("delete: %+v", r)
	}
	// Completion knows what is there.
	if out := n.must(t, "__complete", "job", "show", ""); !strings.HasPrefix(out, "report\n") {
		t.Errorf("completion: %q", out)
	}
	if out := n.must(t, "--namespace", "elsewhere", "job", "list", "-o", "name"); out != "" {
		t.Errorf("another namespace: %q", out)
	}
	imported := n.muster(t, "import", "crontab", "../../examples/crontab", "--system", "--time-zone", "UTC", "--namespace", "web", "--apply")
	if imported.code != exitOK || !strings.Contains(imported.err, "web/offsite created") || !strings.Contains(imported.out, "name: offsite") {
		t.Errorf("imported: %+v", imported)
	}
	if out := n.must(t, "--namespace", "web", "job", "list", "-o", "name"); strings.Count(out, "\n") != 10 {
		t.Errorf("imported: %s", out)
	}
}

// Whoever waits for a run that cannot start is told why, and whoever loses the node that the run is not lost.
func TestWaitingSaysWhy(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	w := n.world
	w.patience = time.Millisecond
	n.must(t, "run", "submit", "--wait", "--", "true") // and so the worker is attached
	id := strings.TrimSpace(n.must(t, "-o", "name", "run", "submit", "--selector", "zone=nowhere", "--", "true"))
	const why = "the run is queued. "
	if r := w.muster(t, "run", "wait", id, "--timeout", "1s"); r.code != exitUnavailable || strings.Count(r.err, why) != 1 || !strings.Contains(r.err, "zone=nowhere") {
		t.Errorf("wait: %+v", r)
	}
	if r := w.muster(t, "-o", "json", "run", "wait", id, "--timeout", "1s"); strings.Contains(r.err, why) {
		t.Errorf("a program is told what is for people: %+v", r)
	}
	followed := make(chan result, 1)
	var said lockedBuffer
	w.watch = &said
	go func() { followed <- w.muster(t, "run", "logs", "-f", id) }()
	for deadline := time.Now().Add(time.Minute); !strings.Contains(said.String(), why); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the follower was not told why the run waits: %q", said.String())
		}
	}
	n.stop()
	if r := <-followed; r.code != exitUnavailable || strings.Count(r.err, why) != 1 || !strings.Contains(r.err, "the run was accepted and is not lost: `muster run logs -f "+id+"`") {
		t.Errorf("follow: %+v", r)
	}
}

func TestWorkersAndCluster(t *testing.T) {
	t.Parallel()
	n := startNode(t, "--no-worker")
	// A worker of its own, with what it may run.
	ctx, cancel := context.WithCancelCause(context.Background())
	logs := watch("worker joined")
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"worker", "--name", "w1", "--data", t.TempDir(), "--join", strings.TrimPrefix(n.url, "http://"), "--slots", "2", "--label", "zone=a",
			"--allow-exec", "/bin/echo", "--allow-exec", "/usr/bin/echo"}, strings.NewReader(""), io.Discard, logs, nil)
	}()
	select {
	case <-logs.seen:
	case c := <-code:
		t.Fatalf("the worker ended with %d: %s", c, logs)
	}
	if r := n.muster(t, "run", "submit", "--follow", "--selector", "zone=a", "--", "echo", "hello"); r.code != exitOK || r.out != "hello\n" {
		t.Errorf("%+v", r)
	}
	if r := n.muster(t, "run", "submit", "--wait", "--", "/bin/sh", "-c", "id"); r.code != exitRunFailed || !strings.Contains(r.err, "not_permitted") {
		t.Errorf("what is not allowed: %+v", r)
	}
	if out := n.must(t, "worker", "list"); !strings.Contains(out, "w1") || !strings.Contains(out, "zone=a") || !strings.Contains(out, "0 of 2 used") {
		t.Errorf("list: %s", out)
	}
	n.must(t, "worker", "cordon", "w1")
	if out := n.must(t, "worker", "show", "w1"); !strings.Contains(out, "cordoned") {
		t.Errorf("cordoned: %s", out)
	}
	n.must(t, "worker", "uncordon", "w1")
	if r := n.muster(t, "worker", "cordon", "w9"); r.code != exitNotFound {
		t.Errorf("a worker that is not there: %+v", r)
	}
	n.must(t, "cluster", "maintenance", "on")
	if out := n.must(t, "cluster", "status"); !strings.Contains(out, "Maintenance:  on") || !strings.Contains(out, n.url) {
		t.Errorf("status: %s", out)
	}
	n.must(t, "cluster", "maintenance", "off")
	cancel(interrupted{os.Interrupt})
	if c := <-code; c != exitOK {
		t.Errorf("the worker's exit code is %d: %s", c, logs)
	}
	if r := n.stop(); r.code != exitOK || !strings.Contains(r.out, "with no worker, keeping its data in "+n.data) || !strings.Contains(r.err, "stopping once what runs has ended") {
		t.Errorf("muster dev: %+v", r)
	}
}
