//go:build failpoints && linux

package failpoint

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

func TestMain(m *testing.M) {
	if os.Getenv("MUSTER_FAILPOINT") != "" { // the child of TestHit
		for range 4 {
			Hit("births/stored")
			Hit("settle/moved")
			os.Stdout.WriteString("x")
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestHit(t *testing.T) {
	for _, c := range []struct {
		order, said string
		signal      syscall.Signal
	}{
		{"births/stored=kill@1", "", syscall.SIGKILL},
		{"births/stored=kill@3", "xx", syscall.SIGKILL},
		{"settle/moved=kill@2/7", "x", syscall.SIGKILL},
		{"settle/ended=kill@1", "xxxx", 0},
	} {
		x := exec.Command(os.Args[0])
		x.Env = append(os.Environ(), "MUSTER_FAILPOINT="+c.order)
		out, _ := x.Output()
		status := x.ProcessState.Sys().(syscall.WaitStatus)
		if got := strings.TrimSpace(string(out)); got != c.said || (c.signal != 0) != status.Signaled() || status.Signaled() && status.Signal() != c.signal {
			t.Errorf("%s: it said %q and ended with %v", c.order, got, x.ProcessState)
		}
	}
}

func TestParse(t *testing.T) {
	for _, bad := range []string{"births/stored", "births/stored=kill", "births/stored=kill@0", "births/stored=stop@1/0", "births/stored=halt@1", "nowhere=kill@1"} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%s is read", bad)
		}
	}
	o, err := parse("births/stored=stop@2/3")
	if err != nil {
		t.Fatal(err)
	}
	var due []int64
	for n := range int64(10) {
		if o.due(n) {
			due = append(due, n)
		}
	}
	if len(due) != 3 || due[0] != 2 || due[1] != 5 || due[2] != 8 {
		t.Errorf("it acts at %v", due)
	}
}
