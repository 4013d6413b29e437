package sim

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"
)

var (
	seeds   = flag.Int("sim.seeds", 150, "how many seeds TestSim tries")
	oneSeed = flag.Uint64("sim.seed", 0, "try only this seed, and tell all")
	minutes = flag.Float64("sim.minutes", 0, "go on with new seeds for so long")
)

func check(t *testing.T, r *Result) bool {
	t.Helper()
	for _, v := range r.Violations {
		t.Errorf("seed %d: %s", r.Seed, v)
	}
	if len(r.Violations) > 0 {
		t.Errorf("seed %d, trace %016x: replay it with: make sim SEED=%d", r.Seed, r.Trace, r.Seed)
	}
	return len(r.Violations) == 0
}

// TestSim tries seeds.
func TestSim(t *testing.T) {
	if *oneSeed != 0 {
		o := Options{}
		if testing.Verbose() {
			o.Log = func(at time.Duration, what string, about []any) { fmt.Fprintln(os.Stderr, at, what, about) }
		}
		r := Run(*oneSeed, o)
		check(t, r)
		t.Logf("seed %d, trace %016x, %s simulated in %d steps", r.Seed, r.Trace, r.Virtual, r.Steps)
		return
	}
	if *seeds <= 0 {
		*seeds = 150
	}
	begin, total, virtual, failed, tried := time.Now(), map[string]int{}, time.Duration(0), 0, 0
	first := uint64(1)
	if *minutes > 0 {
		first = uint64(begin.UnixNano()) / 1e6 % 1e9 * 1000
	}
	for n := 0; failed < 10; n++ {
		if *minutes > 0 && time.Since(begin).Minutes() >= *minutes || *minutes == 0 && n >= *seeds {
			break
		}
		r := Run(first+uint64(n), Options{})
		tried++
		virtual += r.Virtual
		for k, v := range r.Counts {
			total[k] += v
		}
		if !check(t, r) {
			failed++
		}
	}
	t.Logf("%d seeds, %.1f hours simulated in %s (%.0f seeds a minute), %d failed", tried, virtual.Hours(), time.Since(begin).Round(time.Millisecond), float64(tried)/time.Since(begin).Minutes(), failed)
	for _, k := range slices.Sorted(maps.Keys(total)) {
		t.Logf("%9d  %s", total[k], k)
	}
	if tried >= 100 {
		for _, k := range []string{"results refused", "commands fenced", "graphs judged", "starts of tasks judged", "items", "tasks skipped",
			"edges consumed", "edges coalesced"} {
			if total[k] == 0 {
				t.Errorf("%s: never in %d seeds; what is not exercised is not tested", k, tried)
			}
		}
	}
}

// TestTheSameSeedIsTheSameRun, whatever the machine.
func TestTheSameSeedIsTheSameRun(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	traces := map[uint64]bool{}
	for seed := uint64(1); seed <= 6; seed++ {
		runtime.GOMAXPROCS(1)
		a := Run(seed, Options{})
		runtime.GOMAXPROCS(4)
		b := Run(seed, Options{})
		if a.Trace != b.Trace || a.Steps != b.Steps || a.Virtual != b.Virtual {
			t.Errorf("seed %d: trace %016x of %d steps, and then %016x of %d", seed, a.Trace, a.Steps, b.Trace, b.Steps)
		}
		traces[a.Trace] = true
	}
	if len(traces) != 6 {
		t.Errorf("6 seeds have %d traces", len(traces))
	}
}
