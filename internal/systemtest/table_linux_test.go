package systemtest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

// table is what `make chaos` prints in the end: a line for each trial.
var table struct {
	sync.Mutex
	rows [][2]string
}

// row says what a trial did and what came of it; r is nil where nothing was judged.
func row(t *testing.T, r *checker.Report, format string, args ...any) {
	t.Helper()
	text := fmt.Sprintf(format, args...)
	if r != nil {
		text += fmt.Sprintf("\n%d accepted, %d unknown, %d refused, %d bad; ticks due %d: %d run, %d skipped, %d coalesced, %d missed", r.Accepted, r.Unknown, r.Refused, r.Bad,
			r.Due, r.Decided[job.TickRun], r.Decided[job.TickSkipped], r.Decided[job.TickCoalesced], r.Decided[job.TickMissed])
		text += fmt.Sprintf("\nstarts %d, again after a loss %d, after a failure %d, beside a paused one %d; late words refused: workers %d, leaders %d", r.Starts, r.AfterLoss,
			r.AfterFailure, r.Overlaps, r.LateWorkers, r.LateLeaders)
		text += fmt.Sprintf("\nleaders %d, replicas compared %d; violations %d", r.Leads, r.Replicas, len(r.Violations))
	}
	if t.Failed() {
		text += "\nFAILED"
	}
	t.Log(text)
	table.Lock()
	defer table.Unlock()
	table.rows = append(table.rows, [2]string{t.Name(), text})
}

// printTable prints what was asked for.
func printTable() {
	table.Lock()
	defer table.Unlock()
	if file := os.Getenv(ownNetwork); file != "" { // whoever waits for this process prints them
		if b, err := json.Marshal(table.rows); err == nil {
			_ = os.WriteFile(file, b, 0o600) // then the table has a gap
		}
		return
	}
	if !*chaos || len(table.rows) == 0 {
		return
	}
	fmt.Println()
	for _, r := range table.rows {
		name := r[0]
		for line := range strings.SplitSeq(r[1], "\n") {
			fmt.Fprintf(os.Stdout, "%-30s %s\n", name, line)
			name = ""
		}
	}
}

// firstTick is how long after a moment no tick that fell due after it was started.
func firstTick(h *checker.History, after checker.Moment) (gap, late time.Duration, ok bool) {
	for _, w := range h.Work {
		if at, lag := due(&w); lag >= 0 && at > after && (!ok || time.Duration(w.At-after) < gap) {
			gap, late, ok = time.Duration(w.At-after), lag, true
		}
	}
	return gap, late, ok
}

// nextLeader is how long after a moment a node said that it leads.
func nextLeader(h *checker.History, after checker.Moment) (gap time.Duration, ok bool) {
	if len(h.Work) == 0 {
		return 0, false
	}
	boot := h.Work[0].Wall - int64(h.Work[0].At) // on the wall clock
	for _, l := range h.Leads {
		if d := time.Duration(l.Wall - boot - int64(after)); d > 0 && (!ok || d < gap) {
			gap, ok = d, true
		}
	}
	return gap, ok
}

// lateness is, of each tick that fell due between two moments and ran, how late its command started.
func lateness(h *checker.History, from, to checker.Moment) (all []time.Duration) {
	for _, w := range h.Work {
		if at, lag := due(&w); lag >= 0 && at > from && at < to {
			all = append(all, lag)
		}
	}
	return all
}

// due is when the tick of a first start fell due, and how late the start was; -1 if it is not one.
func due(w *checker.Work) (checker.Moment, time.Duration) {
	if w.Event != checker.Start || w.Attempt != 1 || !strings.HasPrefix(w.Job, "quick") { // others wait for each other
		return 0, -1
	}
	at, err := time.Parse(time.RFC3339Nano, w.ScheduledAt)
	if err != nil {
		return 0, -1
	}
	lag := max(0, time.Duration(w.Wall-at.UnixNano()))
	return w.At - checker.Moment(lag), lag
}

// spread is the middle, the 99th of a hundred, and the last.
func spread(all []time.Duration) string {
	if len(all) == 0 {
		return "none"
	}
	all = slices.SortedFunc(slices.Values(all), cmp.Compare[time.Duration])
	r := func(i int) time.Duration { return all[i].Round(time.Millisecond) }
	return fmt.Sprintf("p50 %s, p99 %s, max %s", r(len(all)/2), r(len(all)*99/100), r(len(all)-1))
}
