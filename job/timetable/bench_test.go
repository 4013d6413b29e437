package timetable

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

var benchmarks = []job.Schedule{
	{Cron: "*/5 * * * *"},
	{Cron: "30 2 * * *", TimeZone: "America/New_York"},
	{Cron: "15 */3 * * 1-5", TimeZone: "Europe/Berlin"},
	{Cron: "0 0 29 2 *", TimeZone: "Europe/Berlin"},
	{Cron: "@every 10m"},
}

func BenchmarkParse(b *testing.B) {
	for _, s := range benchmarks {
		b.Run(s.Cron, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Parse(s); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkNext(b *testing.B) {
	for _, s := range benchmarks {
		b.Run(s.Cron, func(b *testing.B) {
			tt := mustParse(b, s)
			u := at(b, "2026-01-01T00:00:00Z")
			b.ReportAllocs()
			for b.Loop() {
				var ok bool
				if u, ok = tt.Next(u); !ok || u.Year() > 2090 {
					u = at(b, "2026-01-01T00:00:00Z")
				}
			}
		})
	}
}

func BenchmarkDue(b *testing.B) {
	now := at(b, "2026-06-01T12:00:00Z")
	for _, away := range []time.Duration{time.Minute, 365 * 24 * time.Hour} {
		for _, policy := range []job.CatchUpPolicy{job.CatchUpLatest, job.CatchUpAll} {
			b.Run(fmt.Sprintf("%s after %s", policy, away), func(b *testing.B) {
				tt := mustParse(b, job.Schedule{Cron: "* * * * *", TimeZone: "Europe/Berlin", CatchUp: job.CatchUp{Policy: policy}})
				b.ReportAllocs()
				for b.Loop() {
					tt.Due(now.Add(-away), now, time.Hour)
				}
			})
		}
	}
}

// BenchmarkMemory reports what a timetable keeps in memory, with a hundred thousand of them.
func BenchmarkMemory(b *testing.B) {
	for b.Loop() {
		const n = 100_000
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		all := make([]*Timetable, n)
		for i := range all {
			all[i] = mustParse(b, job.Schedule{Cron: "30 2 * * *", TimeZone: livelyZones[i%len(livelyZones)]})
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "bytes/timetable")
		runtime.KeepAlive(all)
	}
}
