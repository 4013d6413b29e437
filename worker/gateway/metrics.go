package gateway

import "github.com/prometheus/client_golang/prometheus"

// metrics are the gateway's counters; none carries an id.
type metrics struct {
	streams       prometheus.Gauge
	refused       prometheus.Counter
	turnedAway    prometheus.Counter
	assigned      prometheus.Counter
	undeliverable prometheus.Counter
	results       prometheus.Counter
	dropped       prometheus.Counter
	malformed     prometheus.Counter
	outputBytes   prometheus.Counter
	outputErrors  prometheus.Counter
	outputForeign prometheus.Counter
	moved         prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "muster", Subsystem: "gateway", Name: name, Help: help})
	}
	m := &metrics{
		streams: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "muster", Subsystem: "gateway", Name: "streams",
			Help: "Worker streams that end on this node."}),
		refused:       counter("streams_refused_total", "Worker streams refused because the node has its maximum."),
		turnedAway:    counter("streams_turned_away_total", "Worker streams refused before anything was read: their callers may have none, or no more."),
		assigned:      counter("assigned_total", "Assignments handed to a worker's stream."),
		undeliverable: counter("undeliverable_total", "Assignments that were not written: the session was gone, or busy for too long."),
		results:       counter("results_total", "Results handed to the leader."),
		dropped:       counter("results_dropped_total", "Results dropped because there was no leader; workers send them again."),
		malformed:     counter("malformed_total", "Worker streams ended because of a message that breaks the protocol."),
		outputBytes:   counter("output_bytes_total", "Bytes of run output received."),
		outputErrors:  counter("output_errors_total", "Batches of run output that could not be kept."),
		outputForeign: counter("output_foreign_total", "Pieces of output dropped because the worker does not hold their run."),
		moved:         counter("moved_total", "Workers sent to other nodes because this one has more than its share."),
	}
	if r != nil {
		r.MustRegister(m.streams, m.refused, m.turnedAway, m.assigned, m.undeliverable, m.results, m.dropped, m.malformed, m.outputBytes, m.outputErrors, m.outputForeign, m.moved)
	}
	return m
}
