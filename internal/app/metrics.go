package app

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
)

// schedulerMetrics makes the collectors of the leader's work, once for all terms of this process.
func (n *node) schedulerMetrics() *scheduler.Metrics {
	n.metricsOnce.Do(func() {
		f := promauto.With(n.registry)
		runs := f.NewCounterVec(prometheus.CounterOpts{Name: "muster_runs_settled_total", Help: "Runs that became terminal, by state and reason."}, []string{"state", "reason"})
		ticks := f.NewCounterVec(prometheus.CounterOpts{Name: "muster_ticks_total", Help: "Decided ticks, by disposition and reason."}, []string{"disposition", "reason"})
		mended := f.NewCounterVec(prometheus.CounterOpts{Name: "muster_reconciled_total", Help: "What the reconciler mended, by kind."}, []string{"what"})
		refused := f.NewCounter(prometheus.CounterOpts{Name: "muster_results_refused_total", Help: "Results refused because a higher fence was issued."})
		granted := f.NewCounter(prometheus.CounterOpts{Name: "muster_grants_total", Help: "Attempts given to workers."})
		status := f.NewCounter(prometheus.CounterOpts{Name: "muster_status_lost_total", Help: "Running runs that Redis could not be told of; they are read from the store."})
		f.NewGaugeFunc(prometheus.GaugeOpts{Name: "muster_leading", Help: "1 while this node leads."}, func() float64 {
			if n.term.Load() != nil {
				return 1
			}
			return 0
		})
		open := func(which func(roots, tasks int) int) func() float64 {
			return func() float64 {
				if t := n.term.Load(); t != nil {
					return float64(which(t.OpenRoots()))
				}
				return 0
			}
		}
		f.NewGaugeFunc(prometheus.GaugeOpts{Name: "muster_open_roots", Help: "Runs with tasks that are open, on the node that leads; 20000 at most, but for runs of a task."},
			open(func(roots, _ int) int { return roots }))
		f.NewGaugeFunc(prometheus.GaugeOpts{Name: "muster_open_tasks", Help: "Tasks of the runs that are open, on the node that leads; from 2000000 on no more are opened."},
			open(func(_, tasks int) int { return tasks }))
		n.metrics = &scheduler.Metrics{
			Settled: func(s job.State, r job.Reason) { runs.WithLabelValues(s.String(), r.String()).Inc() },
			Decided: func(d job.Disposition, r job.Reason, c int) {
				ticks.WithLabelValues(d.String(), r.String()).Add(float64(c))
			},
			Mended:  func(what string, c int) { mended.WithLabelValues(what).Add(float64(c)) },
			Refused: refused.Inc,
			Granted: func(c int) { granted.Add(float64(c)) },

			StatusLost: func(c int) { status.Add(float64(c)) },
		}
	})
	return n.metrics
}
