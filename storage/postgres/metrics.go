package postgres

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/musterhq/muster/job"
)

// metrics are what operators see of the connection.
type metrics struct {
	errors *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, s *Store) *metrics {
	m := &metrics{errors: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "muster_postgres_errors_total",
		Help: "Calls to Postgres that failed, by what the connection is for and the error's code."}, []string{"pool", "code"})}
	if reg == nil {
		return m
	}
	reg.MustRegister(m.errors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "muster_postgres_up",
		Help: "Whether Postgres answers: 1 or 0."}, func() float64 {
		if ok, _ := s.Ready(); ok {
			return 1
		}
		return 0
	}))
	for p := range purposes {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "muster_postgres_connections",
			Help: "Connections to Postgres in use.", ConstLabels: prometheus.Labels{"pool": p.String()}}, func() float64 {
			if l := s.life.Load(); l != nil {
				return float64(l.pools[p].Stat().AcquiredConns())
			}
			return 0
		}))
	}
	return m
}

func (m *metrics) failed(p purpose, err error) {
	m.errors.WithLabelValues(p.String(), string(job.CodeOf(err))).Inc()
}
