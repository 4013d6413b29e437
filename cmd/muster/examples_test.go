package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

// The examples are tried as their readers try them.

func TestExamplesAreValid(t *testing.T) {
	t.Parallel()
	w := world{now: noon}
	golden(t, "examples.txt", w.must(t, "validate", "-f", "../../examples"))
	readme, err := os.ReadFile("../../examples/README.md")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir("../../examples")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "README.md" && !bytes.Contains(readme, []byte("["+e.Name())) {
			t.Errorf("examples/README.md says nothing of %s", e.Name())
		}
	}
}

func TestExamples(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	t.Run("heartbeat", func(t *testing.T) {
		t.Parallel()
		n.must(t, "apply", "-f", "../../examples/heartbeat.yaml")
		look, late := time.NewTicker(50*time.Millisecond), time.After(30*time.Second)
		defer look.Stop()
		var ids []string
		for len(ids) == 0 { // until it ticks by itself
			select {
			case <-look.C:
			case <-late:
				t.Fatal("no tick in 30 s")
			}
			ids = strings.Fields(n.must(t, "run", "list", "--job", "heartbeat", "-o", "name"))
		}
		r := n.muster(t, "run", "logs", "-f", ids[len(ids)-1])
		if r.code != exitOK || r.out != "still alive\n" {
			t.Errorf("%+v", r)
		}
		n.must(t, "job", "verify", "heartbeat")
	})
	t.Run("nightly-report", func(t *testing.T) {
		t.Parallel()
		n.must(t, "apply", "-f", "../../examples/nightly-report.yaml")
		if r := n.muster(t, "job", "run", "nightly-report", "--follow"); r.code != exitOK || !strings.HasPrefix(r.out, "report for the run planned at ") {
			t.Errorf("%+v", r)
		}
	})
	t.Run("http-check", func(t *testing.T) {
		t.Parallel()
		text, err := os.ReadFile("../../examples/http-check.yaml")
		if err != nil {
			t.Fatal(err)
		}
		here := strings.Replace(string(text), "http://127.0.0.1:8080", n.url, 1) // this node has another port
		n.must(t, "apply", "-f", fileWith(t, "http-check.yaml", here))
		if out := n.must(t, "job", "run", "http-check", "--wait"); out != `{"status":"ok"}`+"\n" {
			t.Errorf("%q", out)
		}
	})
	t.Run("retrying", func(t *testing.T) {
		t.Parallel()
		n.must(t, "apply", "-f", "../../examples/retrying.yaml")
		r := n.muster(t, "job", "run", "retrying", "--follow")
		if r.code != exitOK || !strings.Contains(r.out, "this is attempt 3\n") || !strings.Contains(r.err, "succeeded") {
			t.Errorf("%+v", r)
		}
	})
	t.Run("one-off runs", func(t *testing.T) {
		t.Parallel()
		if out := n.must(t, "run", "submit", "--wait", "--", "sh", "-c", `echo "{\"n\": 42}" > $MUSTER_RESULT_FILE`); out != `{"n":42}`+"\n" {
			t.Errorf("%q", out)
		}
		w := n.world
		w.stdin = `{"a": 1}`
		if out := w.must(t, "run", "submit", "--follow", "--payload", "-", "--", "cat"); out != `{"a":1}` {
			t.Errorf("%q", out)
		}
		if out := n.must(t, "run", "submit", "--http", n.url+"/healthz", "--method", "GET", "--wait"); out != `{"status":"ok"}`+"\n" {
			t.Errorf("%q", out)
		}
	})
	t.Run("handlers", func(t *testing.T) {
		t.Parallel()
		startHandlers(t, n)
		n.must(t, "apply", "-f", "../../examples/resize.yaml")
		if out := n.must(t, "job", "run", "resize", "--payload", `{"width": 4000, "height": 3000, "longest": 1200}`, "--wait"); out != `{"width":1200,"height":900}`+"\n" {
			t.Errorf("%q", out)
		}
		r := n.muster(t, "run", "submit", "--handler", "resize", "--payload", `{"width": 40, "height": 30, "longest": 100}`, "--follow")
		if r.code != exitOK || !strings.Contains(r.out, "attempt 1: 40 x 30") {
			t.Errorf("%+v", r)
		}
		r = n.muster(t, "run", "submit", "--handler", "resize", "--payload", `{"width": -1}`, "--retries", "3", "--wait", "-o", "json")
		var run job.Run
		if err := json.Unmarshal([]byte(r.out), &run); err != nil || r.code != exitRunFailed || run.Attempt != 1 {
			t.Errorf("what no retry can mend: %v, %+v", err, r)
		}
		id := submitted(t, n.world, "--handler", "wait", "--payload", `{"seconds": 600}`)
		n.must(t, "run", "cancel", id)
		if r := n.muster(t, "run", "wait", id); r.code != exitRunFailed || !strings.Contains(r.err, "cancelled") {
			t.Errorf("cancelled: %+v", r)
		}
	})
}

// startHandlers builds the example worker and runs it as its reader would.
func startHandlers(t *testing.T, n *node) {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "handlers")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "../../examples/handlers").CombinedOutput(); err != nil {
		t.Fatalf("build examples/handlers: %v\n%s", err, out)
	}
	var logs lockedBuffer
	cmd := exec.Command(binary, "--join", n.url, "--data", t.TempDir())
	cmd.Stdout, cmd.Stderr = &logs, &logs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("examples/handlers: %v\n%s", err, logs.String())
		}
	})
}
