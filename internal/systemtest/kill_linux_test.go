package systemtest

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

var (
	kills  = flag.Int("kills", 3, "how often TestKill kills the process")
	jobs   = flag.Int("jobs", 100, "how many jobs tick every second")
	seed   = flag.Uint64("seed", 0, "of when is killed and what is asked; 0: by the clock")
	keep   = flag.String("keep", "", "keep history, logs and data in this directory")
	binary = flag.String("muster", "", "test this binary instead of building one")
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == historyWriter {
		os.Exit(writeHistory(os.Args[2:]))
	}
	goleak.VerifyTestMain(m)
}

// TestKill kills the process with SIGKILL again and again while jobs tick every second and clients submit, restarts it at
// once, and judges D1 to D4 over what clients were told, what the commands noted, and what the system says in the end.
func TestKill(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed %d", *seed)
	dir := t.TempDir()
	if *keep != "" {
		var err error
		if dir, err = filepath.Abs(*keep); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	rec := newRecorder(t, dir)
	s := newServer(t, buildMuster(t, t.TempDir()), dir, rec)
	s.start()
	s.ready(time.Minute)

	k := &killing{t: t, dir: dir, server: s, rec: rec, rand: rand.New(rand.NewPCG(*seed, 99)), docs: documents(dir, *jobs)}
	l := newLoad(t, dir, s.url(), rec, k.docs)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	put(ctx, t, l.sdk, rec, manual(dir))
	for _, d := range k.docs {
		put(ctx, t, l.sdk, rec, d)
	}

	clients, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { l.run(clients, *seed) })
	k.run(*kills)
	stop()
	wg.Wait()
	if t.Failed() {
		return
	}

	d := &drain{t: t, dir: dir, rec: rec, api: l.sdk, docs: k.docs}
	d.end()
	// What all clients saw in the end must be there after one more kill, too.
	d.observe()
	k.kill()
	k.restart(time.Minute)
	d.read()
	s.stop()

	h := rec.history(t, dir)
	report := checker.Judge(h)
	print(t, k, h, report)
	for i, v := range report.Violations {
		if i == 50 {
			t.Errorf("and %d more", len(report.Violations)-i)
			break
		}
		t.Error(v)
	}
}

// killing is who kills.
type killing struct {
	t      *testing.T
	dir    string
	server *server
	rec    *recorder
	rand   *rand.Rand
	docs   []*job.Document

	kills       int
	beforeReady int
	orphans     int // processes that outlived a kill, until the next life removed them
	restarts    []time.Duration
}

// run kills n times: some seconds after a restart, right after it was ready, or before, and sometimes waits for longer
// than a tick may be late, so that catch-up decides.
func (k *killing) run(n int) {
	for i := range n {
		switch c := k.rand.IntN(10); {
		case i > 0 && c < 2: // within the first second
			wait(time.Duration(k.rand.IntN(1000)) * time.Millisecond)
		case i > 0 && c < 4: // while it starts
			if !k.restartedWithin(time.Duration(20+k.rand.IntN(300)) * time.Millisecond) {
				k.beforeReady++
			}
		default:
			k.restartedWithin(time.Minute)
			wait(2*time.Second + time.Duration(k.rand.IntN(5000))*time.Millisecond)
		}
		k.kill()
		if i%10 == 5 {
			wait(13 * time.Second) // timetable.Grace is 10 s
		}
		k.server.start()
		if i+1 < n && k.rand.IntN(5) == 0 {
			continue // the next kill may come before it is ready
		}
		k.restart(time.Minute)
	}
	if k.server.life.Ready == 0 {
		k.restart(time.Minute)
	}
	wait(3 * time.Second) // what the last restart made must be seen to work
}

// wait lets the system run: the passing of time is what is tested here, nothing is waited for.
func wait(d time.Duration) { <-time.After(d) }

func (k *killing) restartedWithin(d time.Duration) bool {
	return k.server.life.Ready != 0 || k.restart(d)
}

// restart waits until the process is ready, starting it if none runs, and measures.
func (k *killing) restart(limit time.Duration) bool {
	if k.server.cmd == nil {
		k.server.start()
	}
	if !k.server.ready(limit) {
		return false
	}
	k.restarts = append(k.restarts, time.Duration(k.server.life.Ready-k.server.life.Start))
	return true
}

// kill kills, and counts the processes that were left beside: the next life has to remove them.
func (k *killing) kill() {
	beside := []byte("-beside\x00" + strconv.Itoa(k.server.life.Pid) + "\x00")
	k.server.kill()
	k.kills++
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		k.t.Fatal(err)
	}
	for _, name := range all {
		if b, err := os.ReadFile(name); err == nil && bytes.Contains(b, beside) { // else it is gone
			k.orphans++
		}
	}
}

// print says in a few lines what happened.
func print(t *testing.T, k *killing, h *checker.History, r *checker.Report) {
	gap50, gapMax := quantiles(gaps(h))
	ready50, readyMax := quantiles(k.restarts)
	for _, row := range [][2]string{
		{"kills", fmt.Sprintf("%d, %d of them before the process was ready", k.kills, k.beforeReady)},
		{"submissions", fmt.Sprintf("%d accepted, %d unknown, %d refused; %d keys used again; %d cancels", r.Accepted, r.Unknown, r.Refused, r.Keys, r.Cancels)},
		{"ticks", fmt.Sprintf("%d due: %d run, %d skipped, %d coalesced, %d missed", r.Due, r.Decided[job.TickRun], r.Decided[job.TickSkipped], r.Decided[job.TickCoalesced], r.Decided[job.TickMissed])},
		{"runs", strconv.Itoa(r.Runs)},
		{"starts", fmt.Sprintf("%d; cut off by a kill %d; again after a recorded loss %d, after a failure %d", r.Starts, r.Cut, r.AfterLoss, r.AfterFailure)},
		{"orphans", fmt.Sprintf("%d alive after a kill", k.orphans)},
		{"restart to ready", fmt.Sprintf("p50 %s, max %s", ready50, readyMax)},
		{"kill to first start", fmt.Sprintf("p50 %s, max %s", gap50, gapMax)},
		{"violations", fmt.Sprintf("%d", len(r.Violations))},
	} {
		t.Logf("%-20s %s", row[0]+":", row[1])
	}
}
