package fsm

import (
	"iter"

	"github.com/musterhq/muster/job"
)

// The reads of control state, as the leader asks them. They are as new as this node's log.

// Epoch answers the highest epoch raised in Raft (L1).
func (s *State) Epoch() job.Epoch { return s.View().g.Epoch }

// At is the state's time, which never goes back (L8).
func (s *State) At() job.Instant { return s.View().g.At }

// Index is the place in the log of the last entry applied.
func (s *State) Index() uint64 { return s.View().g.Index }

// Limits answers the bounds of the embedded store.
func (s *State) Limits() Limits { return s.View().g.Limits.filled() }

// Grants answers the live leases in the order of their runs.
func (s *State) Grants() []job.Grant { return s.View().Grants() }

// Lease answers the live lease of a run.
func (s *State) Lease(id job.RunID) (job.Grant, bool) { return s.View().Lease(id) }

// Marks answers how far every schedule has ticked.
func (s *State) Marks() []job.Mark { return s.View().Marks() }

// Mark answers how far one job's schedule has ticked.
func (s *State) Mark(id job.JobID) (job.Mark, bool) { return s.View().Mark(id) }

// Unstored answers the decided ticks that no store has acknowledged.
func (s *State) Unstored() []job.Tick { return values(s.View().unstored.all()) }

// Paused answers why a job may not start anything now: Maintenance, NamespacePaused, JobPaused, or NoReason.
func (s *State) Paused(id job.JobID, namespace string) job.Reason {
	return s.View().Paused(id, namespace)
}

// WorkerFlag answers how a person flagged a worker; ready if nobody did.
func (s *State) WorkerFlag(name string) job.WorkerState { return s.View().WorkerFlag(name) }

// StoreEpoch is the epoch that the store in this state was raised to.
func (v *View) StoreEpoch() job.Epoch { return v.g.StoreEpoch }

// Epoch answers the highest epoch raised, in Raft or in the store.
func (v *View) Epoch() job.Epoch { return max(v.g.Epoch, v.g.StoreEpoch) }

// Grants is State.Grants at the view's moment.
func (v *View) Grants() []job.Grant { return values(v.leases.all()) }

// Lease is State.Lease at the view's moment.
func (v *View) Lease(id job.RunID) (job.Grant, bool) {
	return value(v.leases.get(id))
}

// Marks is State.Marks at the view's moment.
func (v *View) Marks() []job.Mark { return values(v.marks.all()) }

// Mark is State.Mark at the view's moment.
func (v *View) Mark(id job.JobID) (job.Mark, bool) {
	return value(v.marks.get(id))
}

// Paused is State.Paused at the view's moment.
func (v *View) Paused(id job.JobID, namespace string) job.Reason {
	switch {
	case v.g.Maintenance:
		return job.Maintenance
	case v.flags.get(namespaceFlag(namespace)) != nil:
		return job.NamespacePaused
	case !id.IsZero() && v.flags.get(jobFlag(id)) != nil:
		return job.JobPaused
	}
	return job.NoReason
}

// Maintenance tells whether the cluster is in maintenance.
func (v *View) Maintenance() bool { return v.g.Maintenance }

// PausedNamespaces answers the names of the paused namespaces in order.
func (v *View) PausedNamespaces() []string {
	var names []string
	for f := range v.flags.ascend(namespaceFlag("")) {
		if f.Key[0] != namespaceFlag("")[0] {
			break
		}
		names = append(names, f.Key[1:])
	}
	return names
}

// WorkerFlag is State.WorkerFlag at the view's moment.
func (v *View) WorkerFlag(name string) job.WorkerState {
	if f := v.flags.get(workerFlag(name)); f != nil {
		return job.WorkerState(f.Value)
	}
	return job.WorkerReady
}

// values copies rows out.
func values[R any](rows iter.Seq[*R]) []R {
	var list []R
	for r := range rows {
		list = append(list, *r)
	}
	return list
}

// value copies a row out, so that nobody outside can change it.
func value[R any](row *R) (R, bool) {
	if row == nil {
		var zero R
		return zero, false
	}
	return *row, true
}
