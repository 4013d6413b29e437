package systemtest

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

// print says in a few lines what happened.
func print(t *testing.T, k *killing, h *checker.History, r *checker.Report) {
	ready50, readyMax := quantiles(k.restarts)
	first50, firstMax := quantiles(firstStarts(h))
	gap50, gapMax := quantiles(tickGaps(h))
	for _, row := range [][2]string{
		{"kills", fmt.Sprintf("%d, %d of them before the process was ready", k.kills, k.early)},
		{"submissions", fmt.Sprintf("%d accepted, %d unknown, %d refused, %d of them bad; %d keys used again; %d cancels", r.Accepted, r.Unknown, r.Refused, r.Bad, r.Keys, r.Cancels)},
		{"ticks", fmt.Sprintf("%d due: %d run, %d skipped, %d coalesced, %d missed", r.Due, r.Decided[job.TickRun], r.Decided[job.TickSkipped], r.Decided[job.TickCoalesced], r.Decided[job.TickMissed])},
		{"runs", strconv.Itoa(r.Runs)},
		{"starts", fmt.Sprintf("%d; cut off by a kill %d; again after a recorded loss %d, after a failure %d", r.Starts, r.Cut, r.AfterLoss, r.AfterFailure)},
		{"orphans", fmt.Sprintf("%d alive after a kill", k.orphans)},
		{"restart to ready", fmt.Sprintf("p50 %s, max %s", ready50, readyMax)},
		{"restart to first work", fmt.Sprintf("p50 %s, max %s", first50, firstMax)},
		{"kill to new tick", fmt.Sprintf("p50 %s, max %s; ticks are 1 s apart", gap50, gapMax)},
		{"violations", fmt.Sprintf("%d", len(r.Violations))},
	} {
		t.Logf("%-22s %s", row[0]+":", row[1])
	}
}

// firstStarts is, of each life, how long it took from the start of the process until a command started.
func firstStarts(h *checker.History) (all []time.Duration) {
	for _, l := range h.Lives {
		first := checker.Moment(0)
		for _, w := range h.Work {
			if w.Event == checker.Start && w.Life == l.Pid && w.At > l.Start && (first == 0 || w.At < first) {
				first = w.At
			}
		}
		if first != 0 {
			all = append(all, time.Duration(first-l.Start))
		}
	}
	return all
}

// tickGaps is, of each kill with a restart at once, how long no tick that fell due after it was started. The lives are in
// order: they were recorded as they ended.
func tickGaps(h *checker.History) (all []time.Duration) {
	for i, l := range h.Lives {
		first := checker.Moment(0)
		for _, w := range h.Work {
			if w.Event != checker.Start || w.At < l.Dead || w.ScheduledAt == "" || first != 0 && w.At > first {
				continue
			}
			due, err := time.Parse(time.RFC3339Nano, w.ScheduledAt)
			if age := w.Wall - due.UnixNano(); err == nil && w.At-checker.Moment(age) > l.Kill {
				first = w.At
			}
		}
		away := false // nothing was meant to run for a while
		for k := i; k+1 < len(h.Lives) && h.Lives[k].Dead < first; k++ {
			away = away || h.Lives[k+1].Start-h.Lives[k].Dead > checker.Moment(time.Second)
		}
		if l.Kill != 0 && first != 0 && !away {
			all = append(all, time.Duration(first-l.Kill))
		}
	}
	return all
}

// quantiles are the middle and the last.
func quantiles(all []time.Duration) (middle, last time.Duration) {
	if len(all) == 0 {
		return 0, 0
	}
	all = slices.SortedFunc(slices.Values(all), cmp.Compare[time.Duration])
	return all[len(all)/2].Round(time.Millisecond), all[len(all)-1].Round(time.Millisecond)
}
