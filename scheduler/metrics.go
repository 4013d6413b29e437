package scheduler

import "github.com/musterhq/muster/job"

// Metrics count what a term does; any of the functions may be nil. internal/app makes collectors of them.
type Metrics struct {
	Settled func(job.State, job.Reason)                  // runs that became terminal
	Refused func()                                       // results under an old fence (L3)
	Decided func(d job.Disposition, r job.Reason, n int) // ticks
	Granted func(n int)
	Mended  func(what string, n int) // by the reconciler
	// StatusLost counts runs of which the status cache could not be told.
	StatusLost func(n int)
}

func (m *Metrics) settled(s job.State, r job.Reason) {
	if m.Settled != nil {
		m.Settled(s, r)
	}
}

func (m *Metrics) refused() {
	if m.Refused != nil {
		m.Refused()
	}
}

func (m *Metrics) decided(d job.Disposition, r job.Reason, n int) {
	if m.Decided != nil {
		m.Decided(d, r, n)
	}
}

func (m *Metrics) granted(n int) {
	if m.Granted != nil {
		m.Granted(n)
	}
}

func (m *Metrics) mended(what string, n int) {
	if m.Mended != nil {
		m.Mended(what, n)
	}
}

func (m *Metrics) statusLost(n int) {
	if m.StatusLost != nil {
		m.StatusLost(n)
	}
}
