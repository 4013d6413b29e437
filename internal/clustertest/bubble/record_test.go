package bubble

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

// recorder gathers a trial's history.
type recorder struct {
	mu    sync.Mutex
	lines []checker.Line
}

// add copies what the line points to as it is now.
func (r *recorder) add(l checker.Line) {
	if l.Work != nil {
		c := *l.Work
		l.Work = &c
	}
	if l.Life != nil {
		c := *l.Life
		l.Life = &c
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, l)
}

func (r *recorder) op(o checker.Op) { r.add(checker.Line{Op: &o}) }

// note tells the reader of the logs what was done.
func (w *world) note(what string) { w.logs.logger("test").Warn("----- " + what) }

func (r *recorder) all() []checker.Line {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lines)
}

var leadsLine = regexp.MustCompile(`^time=(\S+) level=INFO msg="this node leads" host=(\S+) .*\bepoch=(\d+)`)

// leads records, from the logs, who began to lead in which epoch.
func (w *world) recordLeads() {
	for line := range strings.Lines(w.logs.String()) {
		m := leadsLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		at, _ := time.Parse(time.RFC3339Nano, m[1])
		epoch, _ := strconv.ParseUint(m[3], 10, 32)
		w.rec.add(checker.Line{Lead: &checker.Lead{Name: m[2], Epoch: job.Epoch(epoch), Wall: at.UnixNano()}})
	}
}

// save keeps what a failed trial left behind.
func (w *world) save(seed uint64) {
	dir := *keep
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "muster-bubble-"); err != nil {
			w.t.Error(err)
			return
		}
	}
	dir = filepath.Join(dir, fmt.Sprintf("%s-%d", strings.ReplaceAll(w.t.Name(), "/", "-"), seed))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		w.t.Error(err)
		return
	}
	f, err := os.Create(filepath.Join(dir, "history.jsonl"))
	if err != nil {
		w.t.Error(err)
		return
	}
	defer f.Close()
	out := bufio.NewWriter(f)
	encode := json.NewEncoder(out)
	for _, l := range w.rec.all() {
		if err := encode.Encode(l); err != nil {
			w.t.Error(err)
		}
	}
	if err := out.Flush(); err != nil {
		w.t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "log"), []byte(w.logs.String()), 0o600); err != nil {
		w.t.Error(err)
	}
	w.t.Logf("seed %d; the history is in %s", seed, dir)
}
