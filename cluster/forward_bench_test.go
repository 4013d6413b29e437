package cluster_test

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musterhq/muster/cluster"
)

// BenchmarkForward measures one proposal of a follower over loopback TLS, alone and in a crowd.
func BenchmarkForward(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprint(callers, "-callers"), func(b *testing.B) {
			nodes := trioOverTLS(b)
			leader, _ := awaitAll(b, nodes)
			follower := nodes[(slices.Index(nodes, leader)+1)%3]
			for _, n := range []struct {
				name string
				node *cluster.Node
			}{{"leader", leader}, {"follower", follower}} {
				b.Run(n.name, func(b *testing.B) {
					var next atomic.Int64
					took := make([]time.Duration, b.N)
					done := make(chan struct{})
					for range callers {
						go func() {
							defer func() { done <- struct{}{} }()
							for {
								i := int(next.Add(1)) - 1
								if i >= b.N {
									return
								}
								start := time.Now()
								if err := put(b.Context(), n.node, i%1000); err != nil && i < 1000 {
									b.Error(err)
								}
								took[i] = time.Since(start)
							}
						}()
					}
					for range callers {
						<-done
					}
					slices.Sort(took)
					b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
					b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
				})
			}
		})
	}
}
