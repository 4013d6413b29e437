package load

import (
	"bytes"
	"os"
	"runtime"
	"testing"
	"testing/iotest"
	"time"

	"github.com/musterhq/muster/job"
)

func TestQuantile(t *testing.T) {
	var d []time.Duration
	for i := range 100 {
		d = append(d, time.Duration(i+1))
	}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 50, 0.99: 99, 1: 100} {
		if got := quantile(d, q); got != want {
			t.Errorf("quantile %v is %d, want %d", q, got, want)
		}
	}
	if got := quantile(d[:1], 0.5); got != 1 {
		t.Errorf("the median of one value is %d", got)
	}
}

func TestFigures(t *testing.T) {
	var r Report
	for _, v := range []float64{3, 1, 2} {
		r.add(Figure{Benchmark: "b", Name: "odd", Unit: "s"}, v)
	}
	r.add(Figure{Benchmark: "b", Name: "even", Unit: "s"}, 1234.5)
	r.add(Figure{Benchmark: "b", Name: "even", Unit: "s"}, 0.5)
	r.add(Figure{Benchmark: "b", Name: "one", Unit: "s"}, 0.1234)
	for i, want := range []string{"2 (1..3)", "618 (0.500..1234)", "0.123"} {
		if got := r.Figures[i].Text(); got != want {
			t.Errorf("%s reads %q, want %q", r.Figures[i].Name, got, want)
		}
	}
}

// What a worker writes is read whole, in whatever pieces it comes.
func TestRecords(t *testing.T) {
	x := newIDs()
	rec := newRecorder()
	var want []start
	for i := range 1000 {
		s := start{run: x.make(time.Now(), i), scheduledAt: job.Instant(i), at: int64(i) << 40, attempt: uint32(i)}
		want = append(want, s)
		rec.add(s)
	}
	var pipe bytes.Buffer
	stop := make(chan struct{})
	close(stop)
	if err := rec.run(&pipe, stop); err != nil {
		t.Fatal(err)
	}
	var c collector
	c.read(iotest.OneByteReader(&pipe))
	got := c.since(0)
	if len(got) != len(want) {
		t.Fatalf("%d of %d records came", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("record %d is %+v, want %+v", i, got[i], want[i])
		}
		if n, ok := x.number(got[i].run); !ok || n != i {
			t.Fatalf("run %d has the number %d, %v", i, n, ok)
		}
	}
	if _, ok := newIDs().number(got[0].run); ok {
		t.Error("another one's run is taken for one's own")
	}
}

func TestYearlyIsDueAtDifferentMinutes(t *testing.T) {
	seen := map[string]bool{}
	for i := range 100_000 {
		seen[yearly(i)] = true
	}
	if len(seen) != 100_000 {
		t.Errorf("%d different schedules of 100000", len(seen))
	}
}

func TestChoose(t *testing.T) {
	names := func(o Options) (got []string) {
		chosen, err := choose(&o)
		if err != nil {
			return []string{string(job.CodeOf(err))}
		}
		for _, b := range chosen {
			got = append(got, b.Name)
		}
		return got
	}
	one := Sizes{Repeat: 1}
	self := []string{"muster"}
	for _, c := range []struct {
		what string
		o    Options
		want int
	}{
		{"all", Options{Sizes: one, Command: self}, len(Benchmarks())},
		{"some", Options{Sizes: one, Command: self, Names: []string{"cron", "batch"}}, 2},
		{"those for nodes that run", Options{Sizes: one, Command: self, Cluster: &Cluster{}}, 5},
	} {
		if got := names(c.o); len(got) != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
	for what, o := range map[string]Options{
		"unknown name":   {Sizes: one, Command: self, Names: []string{"fast"}},
		"needs own node": {Sizes: one, Command: self, Names: []string{"idle"}, Cluster: &Cluster{}},
		"no repetition":  {Command: self},
		"no command":     {Sizes: one},
	} {
		if got := names(o); len(got) != 1 || got[0] != string(job.Invalid) {
			t.Errorf("%s: %v", what, got)
		}
	}
}

func TestOwnUsageIsKnown(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("usage is read from /proc")
	}
	u := processUsage(os.Getpid())
	if !(u.cpu >= 0 && u.rss > 1e6 && u.peak >= u.rss) || !(machineCPU() > 0) {
		t.Errorf("this process has used %+v, the machine %v s", u, machineCPU())
	}
}
