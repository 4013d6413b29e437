package cluster

import (
	"errors"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are a node's own collectors. Those that read Raft's state at scrape time are in register.
type metrics struct {
	terms         prometheus.Counter
	proposals     *prometheus.CounterVec // by outcome: ok, not_leader, or a code of job
	commit        prometheus.Histogram
	entryBytes    prometheus.Histogram
	entryCommands prometheus.Histogram
	writes        prometheus.Histogram
	writeErrors   *prometheus.CounterVec // by reason: deadline, other
	snapshots     prometheus.Histogram
	snapshotBytes prometheus.Gauge
	forwards      *prometheus.CounterVec // by outcome: ok, again, not_leader, or a code of job
	notices       *prometheus.CounterVec // by outcome: ok, missed
	hintsLost     prometheus.Counter
}

func newMetrics() *metrics {
	latency := []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10}
	return &metrics{
		terms: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_raft_terms_led_total", Help: "Times that this node began to lead."}),
		proposals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_raft_proposals_total", Help: "Calls of Propose by outcome."}, []string{"outcome"}),
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "muster_raft_commit_seconds", Help: "From handing an entry to Raft until it is applied.", Buckets: latency}),
		entryBytes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "muster_raft_entry_bytes", Help: "Size of proposed entries.", Buckets: prometheus.ExponentialBuckets(128, 4, 8)}),
		entryCommands: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "muster_raft_entry_commands", Help: "Commands in one proposed entry.", Buckets: prometheus.ExponentialBuckets(1, 4, 7)}),
		writes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "muster_raft_log_write_seconds", Help: "One write to the log with its sync.", Buckets: latency}),
		writeErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_raft_log_write_errors_total", Help: "Failed writes to the log by reason."}, []string{"reason"}),
		snapshots: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "muster_raft_snapshot_seconds", Help: "Time to take a snapshot.", Buckets: []float64{.01, .05, .1, .5, 1, 5, 10, 30, 60, 300}}),
		snapshotBytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "muster_raft_snapshot_bytes", Help: "Size of the last snapshot."}),
		forwards: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_raft_forwards_total", Help: "Batches of proposals that were taken to the leader, by outcome."}, []string{"outcome"}),
		notices: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_raft_commit_notices_total", Help: "Commits that a follower was told of at once, by outcome."}, []string{"outcome"}),
		hintsLost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_hints_lost_total", Help: "Births and cancels of which the leader was not told; it finds them by itself."}),
	}
}

func (m *metrics) wrote(took time.Duration, _, _ int, err error) {
	m.writes.Observe(took.Seconds())
	switch {
	case errors.Is(err, errWriteDeadline):
		m.writeErrors.WithLabelValues("deadline").Inc()
	case err != nil:
		m.writeErrors.WithLabelValues("other").Inc()
	}
}

// register adds all collectors of a node to r and answers how to take them out again.
func (n *Node) register(r prometheus.Registerer) (unregister func(), err error) {
	if r == nil {
		return func() {}, nil
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "muster_raft_" + name, Help: help}, value)
	}
	m := n.metrics
	all := []prometheus.Collector{
		m.terms, m.proposals, m.commit, m.entryBytes, m.entryCommands, m.writes, m.writeErrors, m.snapshots, m.snapshotBytes,
		m.forwards, m.notices, m.hintsLost,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "muster_clock_offset_seconds", Help: "How far this machine's clock is ahead of the cluster's time."},
			func() float64 { return n.cfg.Clock.Offset().Seconds() }),
		gauge("state", "0 follower, 1 candidate, 2 leader, 3 stopped.", func() float64 { return float64(n.raft.State()) }),
		gauge("term", "Current term.", func() float64 { return float64(n.raft.CurrentTerm()) }),
		gauge("last_index", "Index of the last entry in the log.", func() float64 { return float64(n.raft.LastIndex()) }),
		gauge("commit_index", "Index of the last committed entry.", func() float64 { return float64(n.raft.CommitIndex()) }),
		gauge("applied_index", "Index of the last applied entry.", func() float64 { return float64(n.raft.AppliedIndex()) }),
		gauge("last_contact_seconds", "Time since the leader was heard; 0 on the leader.", func() float64 { return n.lastContact().Seconds() }),
		gauge("log_bytes", "Log since the last snapshot.", func() float64 { return float64(n.guard.bytes.Load()) }),
		gauge("oldest_entry_seconds", "Age of the oldest entry in the log. A follower that was away for longer is sent a snapshot; "+
			"while it is restored, this must not run out.", func() float64 { return n.oldestEntry().Seconds() }),
		gauge("voters", "Servers with a vote, as this node knows.", func() float64 {
			voters := 0
			for _, s := range n.servers() {
				if s.Suffrage == raft.Voter {
					voters++
				}
			}
			return float64(voters)
		}),
		gauge("queued_commands", "Commands that wait for a place in an entry.", func() float64 {
			n.proposer.mu.Lock()
			defer n.proposer.mu.Unlock()
			return float64(n.proposer.commands)
		}),
	}
	return registerAll(r, all)
}

// oldestEntry is the age of the oldest entry in the log; 0 if nobody knows.
func (n *Node) oldestEntry() time.Duration {
	first, err := n.guard.FirstIndex()
	if err != nil || first == 0 {
		return 0
	}
	var e raft.Log
	if err := n.guard.GetLog(first, &e); err != nil || e.AppendedAt.IsZero() {
		return 0
	}
	return max(0, time.Since(e.AppendedAt))
}

func registerAll(r prometheus.Registerer, all []prometheus.Collector) (unregister func(), err error) {
	done := 0
	unregister = func() {
		for _, c := range all[:done] {
			r.Unregister(c)
		}
	}
	for _, c := range all {
		if err := r.Register(c); err != nil {
			unregister()
			return nil, err
		}
		done++
	}
	return unregister, nil
}
