package systemtest

import (
	"bytes"
	"context"
	"flag"
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
	"github.com/musterhq/muster/job/timetable"
)

var (
	kills = flag.Int("kills", 3, "how often TestKill kills the process")
	jobs  = flag.Int("jobs", 100, "how many jobs tick every second")
	seed  = flag.Uint64("seed", 0, "of when is killed and what is asked; 0: by the clock")
	keep  = flag.String("keep", "", "keep history, logs and data in this directory")
	built = flag.String("muster", "", "test this binary instead of building one")
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == historyWriter {
		os.Exit(writeHistory(os.Args[2:]))
	}
	if file := os.Getenv(wrongClock); file != "" {
		os.Exit(serveWithWrongClock(file, os.Args[1:]))
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		printTable()
		if buildDir != "" {
			os.RemoveAll(buildDir)
		}
		os.Exit(code)
	}))
}

// TestKill kills the process with SIGKILL again and again while jobs tick every second and clients submit, restarts it at
// once, and judges D1 to D4 over what clients were told, what the commands noted, and what the system says in the end.
func TestKill(t *testing.T) {
	if !*chaos {
		t.Parallel() // it mostly waits
	}
	seed := chosenSeed(t)
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
	s := newDev(t, buildMuster(t), dir, rec)
	s.start()

	k := &killing{t: t, dir: dir, server: s, rec: rec, rand: rand.New(rand.NewPCG(seed, 99)), docs: documents(dir, *jobs)}
	l := newLoad(t, dir, []endpoint{{"", s.url}}, nil, "", rec, k.docs)
	k.ready(time.Minute)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	put(ctx, t, l.sdk, rec, manual(dir))
	for _, d := range k.docs {
		put(ctx, t, l.sdk, rec, d)
	}

	clients, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { l.run(clients, seed) })
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
	s.start()
	k.ready(time.Minute)
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

// chosenSeed is the same for all trials, which say it.
func chosenSeed(t *testing.T) uint64 {
	t.Helper()
	s := makeSeed()
	t.Logf("-seed %d", s)
	return s
}

var makeSeed = sync.OnceValue(func() uint64 {
	if *seed == 0 {
		return uint64(time.Now().UnixNano())
	}
	return *seed
})

// killing is who kills.
type killing struct {
	t      *testing.T
	dir    string
	server *process
	rec    *recorder
	rand   *rand.Rand
	docs   []*job.Document

	kills    int
	early    int // of them before the process was ready
	orphans  int // processes that outlived a kill, until the next life removed them
	restarts []time.Duration
}

// run kills n times: some seconds after a restart, within the first second, or before it is ready; and a few times it
// stays away for longer than a tick may be late, so that catch-up decides.
func (k *killing) run(n int) {
	for i := range n {
		mode := k.rand.IntN(10)
		switch {
		case i == 0 || mode >= 4:
			k.ready(time.Minute)
			wait(2*time.Second + time.Duration(k.rand.IntN(5000))*time.Millisecond)
		case mode >= 2:
			k.ready(time.Minute)
			wait(time.Duration(k.rand.IntN(1000)) * time.Millisecond)
		default:
			if !k.ready(time.Duration(10+k.rand.IntN(400)) * time.Millisecond) {
				k.early++
			}
		}
		k.kill()
		if i%10 == 5 {
			wait(timetable.Grace + 3*time.Second)
		}
		k.server.start()
	}
	k.ready(time.Minute)
	wait(3 * time.Second) // what the last restart made must be seen to work
}

// wait lets the system run: the passing of time is what is tested here, nothing is waited for.
func wait(d time.Duration) { <-time.After(d) }

// ready waits until the process is ready, and measures how long it took to be.
func (k *killing) ready(limit time.Duration) bool {
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
