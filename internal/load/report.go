package load

import (
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/musterhq/muster/job"
)

// Report is what was measured.
type Report struct {
	StartedAt job.Instant `json:"started_at"`
	Machine   Machine     `json:"machine"`
	Stores    string      `json:"stores,omitempty"` // what they say of themselves
	Figures   []*Figure   `json:"figures"`
	Warnings  []string    `json:"warnings,omitempty"`
}

// Machine is where.
type Machine struct {
	OS   string `json:"os"`
	Arch string `json:"arch"`
	CPUs int    `json:"cpus"`
	Go   string `json:"go"`
}

// Figure is one quantity, with a value for each repetition.
type Figure struct {
	Benchmark string    `json:"benchmark"`
	Store     string    `json:"store"` // embedded, postgres, cluster; or postgres/embedded, a ratio
	Name      string    `json:"name"`
	Unit      string    `json:"unit"`
	Values    []float64 `json:"values"`
	Median    float64   `json:"median"`
	Min       float64   `json:"min"`
	Max       float64   `json:"max"`
	headline  bool
}

// add adds a value to the figure that is what f says.
func (r *Report) add(what Figure, v float64) {
	if math.IsNaN(v) || math.IsInf(v, 0) { // not to be had on this system
		return
	}
	f := r.find(what.Benchmark, what.Store, what.Name)
	if f == nil {
		f = &what
		r.Figures = append(r.Figures, f)
	}
	f.Values = append(f.Values, v)
	sorted := slices.Sorted(slices.Values(f.Values))
	f.Min, f.Max, f.Median = sorted[0], sorted[len(sorted)-1], sorted[len(sorted)/2]
	if n := len(sorted); n%2 == 0 {
		f.Median = (sorted[n/2-1] + sorted[n/2]) / 2
	}
}

func (r *Report) find(benchmark, store, name string) *Figure {
	i := slices.IndexFunc(r.Figures, func(f *Figure) bool { return f.Benchmark == benchmark && f.Store == store && f.Name == name })
	if i < 0 {
		return nil
	}
	return r.Figures[i]
}

// compare adds the ratio of each repetition's pair, of the figures that are there for both ways to keep state.
func (r *Report) compare(benchmark string) {
	for _, f := range slices.Clone(r.Figures) {
		if f.Benchmark != benchmark || f.Store != kindStores || !f.headline {
			continue
		}
		base := r.find(benchmark, kindEmbedded, f.Name)
		if base == nil || len(base.Values) != len(f.Values) {
			continue
		}
		for i, v := range f.Values {
			r.add(Figure{Benchmark: benchmark, Store: kindStores + "/" + kindEmbedded, Name: f.Name, Unit: "x"}, v/base.Values[i])
		}
	}
}

// Text is the figure for people: median, and the span if there is one.
func (f *Figure) Text() string {
	if f.Min == f.Max {
		return short(f.Median)
	}
	return short(f.Median) + " (" + short(f.Min) + ".." + short(f.Max) + ")"
}

// short keeps three digits, or all of the whole part: more would pretend a precision that no benchmark has.
func short(v float64) string {
	digits := 0
	switch a := math.Abs(v); {
	case a == math.Trunc(a) || a >= 100:
	case a >= 10:
		digits = 1
	case a >= 1:
		digits = 2
	default:
		digits = 3
	}
	return strconv.FormatFloat(v, 'f', digits, 64)
}

// spread adds the quantiles of a latency, in milliseconds.
func (b *bench) spread(what string, d []time.Duration) { b.spreadBy(b.set, what, d) }

func (b *bench) spreadBy(set func(figure, unit string, value float64), what string, d []time.Duration) {
	if len(d) == 0 {
		return
	}
	slices.Sort(d)
	set(what+" p50", "ms", millis(quantile(d, 0.50)))
	set(what+" p99", "ms", millis(quantile(d, 0.99)))
	b.set(what+" max", "ms", millis(d[len(d)-1]))
}

// quantile of sorted values: the smallest that at least a share q of them do not exceed.
func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
