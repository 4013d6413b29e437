package dag

import (
	"fmt"
	"strings"
	"testing"

	"github.com/musterhq/muster/job"
)

// shapes are jobs of n tasks. When each task has a condition, expressions are part of the cost.
var shapes = []struct {
	name string
	ups  func(i, n int) []int
	each bool
}{
	{"chain", func(i, n int) []int {
		if i == 0 {
			return nil
		}
		return []int{i - 1}
	}, false},
	{"fan", func(i, n int) []int {
		switch i {
		case 0:
			return nil
		case n - 1:
			all := make([]int, n-2)
			for j := range all {
				all[j] = j + 1
			}
			return all
		}
		return []int{0}
	}, false},
	{"diamonds", func(i, n int) []int { // 0 → 1, 2 → 3 → 4, 5 → 6
		switch {
		case i == 0:
			return nil
		case i%3 == 0:
			return []int{i - 2, i - 1}
		}
		return []int{i - i%3}
	}, false},
	{"items", nil, true},
}

func shaped(n int, ups func(i, n int) []int, when bool) string {
	var b strings.Builder
	b.WriteString("name: j\ntasks:\n")
	for i := range n {
		fmt.Fprintf(&b, "- {name: t%d, %s", i, h)
		var names []string
		for _, u := range ups(i, n) {
			names = append(names, fmt.Sprintf("t%d", u))
		}
		if names != nil {
			fmt.Fprintf(&b, ", depends_on: [%s]", strings.Join(names, ", "))
			if when {
				fmt.Fprintf(&b, ", when: tasks.%s.result.n > 0", names[0])
			}
		}
		b.WriteString("}\n")
	}
	return b.String()
}

// BenchmarkProgress is the cost of a task from its birth to its end: it must not grow with the size of the job.
func BenchmarkProgress(b *testing.B) {
	for _, shape := range shapes {
		for _, n := range []int{100, 1000} {
			for _, when := range []bool{false, true} {
				if when && shape.each {
					continue
				}
				doc := fmt.Sprintf("- {name: t0, %s}\n- {name: t1, %s, depends_on: [t0], for_each: tasks.t0.result, max_parallel: 10}\n", h, h)
				result := []byte(`{"n": 1, "text": "something that a task might say"}`)
				if shape.each {
					result = []byte("[" + strings.Repeat("1,", n-1) + "1]")
				} else {
					doc = shaped(n, shape.ups, when)
				}
				b.Run(fmt.Sprintf("%s/tasks=%d/when=%v", shape.name, n, when), func(b *testing.B) {
					p, err := Compile(parse(b, doc))
					if err != nil {
						b.Fatal(err)
					}
					b.ReportAllocs()
					b.ResetTimer()
					for range b.N {
						playFast(b, p, result)
					}
					b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/task")
				})
			}
		}
	}
}

// playFast runs a job in which all succeeds, asking what follows after each single end.
func playFast(b *testing.B, p *Plan, result []byte) {
	g := NewProgress(p, rootOf(p))
	var queue []*job.Run
	for now := start; ; now++ {
		s := g.Next(now)
		for _, r := range s.Births {
			g.Note(r)
			if r.State == job.Queued {
				queue = append(queue, r)
			}
		}
		if s.End != nil {
			if s.End.State != job.Succeeded {
				b.Fatal(s.End.Error)
			}
			return
		}
		if len(queue) == 0 {
			b.Fatal("it does not end")
		}
		r := *queue[0]
		queue = queue[1:]
		r.State, r.Result, r.FinishedAt = job.Succeeded, result, now
		g.Note(&r)
	}
}

func BenchmarkCompile(b *testing.B) {
	for _, when := range []bool{false, true} {
		d := parse(b, shaped(1000, shapes[0].ups, when))
		b.Run(fmt.Sprintf("chain/tasks=1000/when=%v", when), func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				if _, err := Compile(d); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
