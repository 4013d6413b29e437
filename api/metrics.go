package api

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/musterhq/muster/job"
)

// metrics counts requests by operation, which is a closed set; never by path or id.
type metrics struct {
	duration *prometheus.HistogramVec
	refusals *prometheus.CounterVec
	panics   prometheus.Counter
}

// newMetrics makes the collectors; none without a registerer.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	if reg == nil {
		return nil, nil
	}
	m := &metrics{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "muster_http_request_seconds", Help: "Time from the first byte of a request to the last of its answer, streams apart.",
			Buckets: []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30},
		}, []string{"operation", "status"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_http_refusals_total", Help: "Requests answered with a problem document.",
		}, []string{"operation", "code"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_http_panics_total", Help: "Requests that ended in a defect of ours.",
		}),
	}
	for _, c := range []prometheus.Collector{m.duration, m.refusals, m.panics} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) observe(rq *request, status int, took time.Duration) {
	if m != nil {
		m.duration.WithLabelValues(rq.name(), statusLabel(status)).Observe(took.Seconds())
	}
}

// statusLabel keeps the label's values few.
func statusLabel(status int) string {
	if status == 0 {
		return "none"
	}
	return strconv.Itoa(status/100) + "xx"
}

func (m *metrics) refused(rq *request, e *job.Error) {
	if m != nil {
		m.refusals.WithLabelValues(rq.name(), string(e.Code)).Inc()
	}
}

func (m *metrics) panicked() {
	if m != nil {
		m.panics.Inc()
	}
}
