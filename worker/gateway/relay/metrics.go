package relay

import "github.com/prometheus/client_golang/prometheus"

// hubMetrics are the leader's counters; none carries an id.
type hubMetrics struct {
	links    prometheus.Gauge
	unknown  prometheus.Counter
	stuck    prometheus.Counter
	late     prometheus.Counter
	results  prometheus.Counter
	moves    prometheus.Counter
	mistakes prometheus.Counter
}

func newHubMetrics(r prometheus.Registerer) *hubMetrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "muster", Subsystem: "relay", Name: name, Help: help})
	}
	m := &hubMetrics{
		links: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "muster", Subsystem: "relay", Name: "links",
			Help: "Nodes whose worker streams this leader reaches."}),
		unknown:  counter("assign_unknown_total", "Assignments sent to a node that did not answer in time; they count as perhaps written."),
		stuck:    counter("assign_stuck_total", "Assignments refused because their node has not answered an earlier batch."),
		late:     counter("assign_late_refusals_total", "Assignments that their node said too late it had not written."),
		results:  counter("results_total", "Results that came from other nodes."),
		moves:    counter("moves_total", "Workers that nodes with more than their share were asked to send elsewhere."),
		mistakes: counter("malformed_total", "Links ended because of a message that breaks the protocol."),
	}
	if r != nil {
		r.MustRegister(m.links, m.unknown, m.stuck, m.late, m.results, m.moves, m.mistakes)
	}
	return m
}

// followMetrics are a follower's.
type followMetrics struct {
	linked  prometheus.Gauge
	ended   prometheus.Counter
	deposed prometheus.Counter
}

func newFollowMetrics(r prometheus.Registerer) *followMetrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "muster", Subsystem: "relay", Name: name, Help: help})
	}
	m := &followMetrics{
		linked: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "muster", Subsystem: "relay", Name: "linked",
			Help: "1 while this node's worker streams reach a leader on another node."}),
		ended:   counter("links_ended_total", "Links to a leader that ended, or could not be made."),
		deposed: counter("links_deposed_total", "Links that were ended because their leader's epoch is over."),
	}
	if r != nil {
		r.MustRegister(m.linked, m.ended, m.deposed)
	}
	return m
}
