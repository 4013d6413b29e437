//go:build unix

package worker

import (
	"io"
	"testing"

	"github.com/musterhq/muster/job"
)

func BenchmarkExec(b *testing.B) {
	for _, bench := range []struct {
		name    string
		payload string
	}{{"plain", ""}, {"payload", `{"rows":3}`}} {
		b.Run(bench.name, func(b *testing.B) {
			dir := b.TempDir()
			p, err := OpenProcesses(dir)
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close()
			e := newExec(b, func(c *ExecConfig) { c.DataDir, c.Processes = dir, p })
			a := assignmentOf(&job.Document{Exec: &job.Exec{Command: []string{"/bin/true"}}})
			a.Payload = []byte(bench.payload)
			b.ReportAllocs()
			b.SetParallelism(4)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if o := e.Execute(b.Context(), a, io.Discard); o.Kind != job.AttemptSucceeded {
						b.Error(o.Error)
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "starts/s")
		})
	}
}
