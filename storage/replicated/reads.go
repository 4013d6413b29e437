package replicated

import (
	"bytes"
	"cmp"
	"context"
	"iter"
	"slices"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage"
)

// MaxScan bounds how many rows one call looks at: a page whose filters match little may be short.
const MaxScan = 50_000

// Job implements storage.Definitions.
func (s *Store) Job(_ context.Context, namespace, name string) (*job.Job, error) {
	if j := s.state.View().Job(namespace, name); j != nil {
		return j, nil
	}
	return nil, job.Errorf(job.NotFound, "job", "there is no job %q in namespace %q", name, namespace)
}

// Jobs implements storage.Definitions.
func (s *Store) Jobs(_ context.Context, q storage.JobQuery) (page storage.JobPage, _ error) {
	limit := bound(q.Limit, 1000)
	looks, last := 0, ""
	for j := range s.state.View().Jobs(q.Namespace, q.After) {
		if looks == MaxScan || len(page.Jobs) == limit {
			page.Next = last
			break
		}
		looks, last = looks+1, j.Name
		if j.Spec == nil || carries(j.Spec.Labels, q.Labels) {
			page.Jobs = append(page.Jobs, j)
		}
	}
	return page, nil
}

// Heads implements storage.Moves.
func (s *Store) Heads(_ context.Context, afterNamespace, afterName string, limit int) ([]job.JobHead, error) {
	var page []job.JobHead
	for h := range s.state.View().Heads(afterNamespace, afterName) {
		if page = append(page, h); len(page) >= limit {
			break
		}
	}
	return page, nil
}

// Version implements storage.Definitions.
func (s *Store) Version(_ context.Context, id job.JobID, version uint64) (*job.Version, error) {
	if v := s.state.View().Version(id, version); v != nil {
		return v, nil
	}
	return nil, job.Errorf(job.NotFound, "version", "there is no version %d of job %s", version, id)
}

// Versions implements storage.Definitions.
func (s *Store) Versions(_ context.Context, namespace, name string, limit int) ([]*job.Version, error) {
	v := s.state.View()
	j := v.Job(namespace, name)
	if j == nil {
		return nil, job.Errorf(job.NotFound, "job", "there is no job %q in namespace %q", name, namespace)
	}
	return take(v.Versions(j.ID), bound(limit, 1000)), nil
}

// Load implements storage.Moves.
func (s *Store) Load(_ context.Context, ids []job.RunID) ([]*job.Run, error) {
	v := s.state.View()
	runs := make([]*job.Run, len(ids))
	for i, id := range ids {
		runs[i] = v.Run(id)
	}
	return runs, nil
}

// Live implements storage.Moves.
func (s *Store) Live(_ context.Context, after job.RunID, limit int) ([]*job.Run, error) {
	return take(s.state.View().Live(after), limit), nil
}

// LiveOfJob implements storage.Moves.
func (s *Store) LiveOfJob(_ context.Context, id job.JobID, limit int) ([]*job.Run, error) {
	return take(s.state.View().LiveOfJob(id), limit), nil
}

// Backlog implements storage.Moves. It looks at every live run: with the embedded store a queue holds all there can be, so
// it is asked for next to never.
func (s *Store) Backlog(_ context.Context, wants []job.LaneAfter, until job.Instant) ([]job.QueueEntry, error) {
	lanes := make(map[job.LaneKey][]job.QueueEntry, len(wants))
	for _, w := range wants {
		lanes[w.Lane] = nil
	}
	for r := range s.state.View().Live(job.RunID{}) {
		list, wanted := lanes[r.LaneKey()]
		if wanted && r.Startable(until) {
			lanes[r.LaneKey()] = append(list, r.Entry())
		}
	}
	var all []job.QueueEntry
	for _, w := range wants {
		list := lanes[w.Lane]
		slices.SortFunc(list, job.QueueEntry.Compare)
		from, _ := slices.BinarySearchFunc(list, w, func(e job.QueueEntry, w job.LaneAfter) int {
			if c := cmp.Or(cmp.Compare(e.Order(), w.Order), bytes.Compare(e.RunID[:], w.After[:])); c != 0 {
				return c
			}
			return -1 // the place itself is not wanted again
		})
		all = append(all, list[from:min(len(list), from+max(w.Max, 0))]...)
	}
	return all, nil
}

// Run implements storage.Reads.
func (s *Store) Run(_ context.Context, id job.RunID) (*job.Run, error) {
	v := s.state.View()
	if r := v.Run(id); r != nil {
		return leased(v, r), nil
	}
	return nil, job.Errorf(job.NotFound, "run", "there is no run %s", id)
}

// Attempts implements storage.Reads.
func (s *Store) Attempts(_ context.Context, id job.RunID) ([]job.Attempt, error) {
	v := s.state.View()
	if v.Run(id) == nil {
		return nil, job.Errorf(job.NotFound, "run", "there is no run %s", id)
	}
	return v.Attempts(id), nil
}

// Ticks implements storage.Reads.
func (s *Store) Ticks(_ context.Context, q storage.TickQuery) ([]job.Tick, error) {
	limit := bound(q.Limit, 10_000)
	from := job.Instant(0)
	if q.Until != 0 {
		from = q.Until - 1
	}
	if q.Before != 0 && (from == 0 || q.Before-1 < from) {
		from = q.Before - 1
	}
	var page []job.Tick
	for t := range s.state.View().Ticks(q.JobID, from) {
		if t.ScheduledAt < q.Since || len(page) == limit {
			break
		}
		page = append(page, *t)
	}
	return page, nil
}

// Usage implements storage.Reads.
func (s *Store) Usage(context.Context) (storage.Usage, error) {
	f := s.state.View().Fill()
	return storage.Usage{Runs: f.LiveRuns + f.HistoryRuns, LiveRuns: f.LiveRuns, Ticks: f.LedgerRows,
		Bytes: f.LiveBytes + f.HistoryBytes, MaxBytes: f.Limits.MaxLiveBytes + f.Limits.MaxHistoryBytes, HistoryBytes: f.HistoryBytes}, nil
}

// Runs implements storage.Reads.
func (s *Store) Runs(_ context.Context, q storage.RunQuery) (page storage.RunPage, err error) {
	if q.Job != "" && q.Namespace == "" {
		return page, job.InvalidField("namespace", "a job is named within a namespace")
	}
	if q.Task != "" && q.RootID.IsZero() {
		return page, job.InvalidField("root_id", "a task is named within a run")
	}
	v := s.state.View()
	limit := bound(q.Limit, 1000)
	looks, last := 0, job.RunID{}
	for r := range candidates(v, &q) {
		if q.Since != 0 && job.At(r.ID.Time()) < q.Since {
			break // ids go down, and the time in them with it
		}
		if looks == MaxScan || len(page.Runs) == limit {
			page.Next = last
			break
		}
		looks, last = looks+1, r.ID
		if r = leased(v, r); matches(r, &q) {
			page.Runs = append(page.Runs, r)
		}
	}
	return page, nil
}

// candidates walks, newest first, the rows that may match: running ones from the leases, other live ones and history from
// their own tables.
func candidates(v *fsm.View, q *storage.RunQuery) iter.Seq[*job.Run] {
	w := fsm.Which{Namespace: q.Namespace, Job: q.Job, RootID: q.RootID, Task: q.Task, Before: q.Before}
	if until := firstFrom(q.Until); q.Until != 0 && (w.Before.IsZero() || bytes.Compare(until[:], w.Before[:]) < 0) {
		w.Before = until
	}
	if len(q.States) > 0 {
		onlyRunning := true
		for _, st := range q.States {
			w.Live = w.Live || !st.Terminal()
			w.History = w.History || st.Terminal()
			onlyRunning = onlyRunning && st == job.Running
		}
		if onlyRunning {
			return running(v, w)
		}
	} else {
		w.Live, w.History = true, true
	}
	return v.Runs(w)
}

// firstFrom is the smallest id of a time; ids before it are older.
func firstFrom(at job.Instant) job.RunID {
	var id job.RunID
	// Ids hold milliseconds: one within the millisecond of `at` is older than it unless that millisecond begins there.
	ms := uint64((at + 999) / 1000)
	for i := 5; i >= 0; i-- {
		id[i] = byte(ms)
		ms >>= 8
	}
	return id
}

// running walks, newest first, the runs under a lease, and those whose rows say that they run: what the leader carries out
// has no lease.
func running(v *fsm.View, w fsm.Which) iter.Seq[*job.Run] {
	return func(yield func(*job.Run) bool) {
		grants := v.Grants()
		next, stop := iter.Pull(v.Running())
		defer stop()
		row, more := next()
		for more || len(grants) > 0 {
			var r *job.Run
			if n := len(grants); n > 0 && (!more || bytes.Compare(grants[n-1].RunID[:], row.ID[:]) >= 0) {
				r = v.Run(grants[n-1].RunID)
				if more && row.ID == grants[n-1].RunID {
					row, more = next()
				}
				grants = grants[:n-1]
			} else {
				r = row
				row, more = next()
			}
			if r != nil && selects(&w, r) && !yield(r) {
				return
			}
		}
	}
}

// selects tells whether a walk is to answer the run.
func selects(w *fsm.Which, r *job.Run) bool {
	return (w.Before.IsZero() || bytes.Compare(r.ID[:], w.Before[:]) < 0) &&
		(w.Namespace == "" || r.Namespace == w.Namespace) && (w.Job == "" || r.Job == w.Job) && (w.Task == "" || r.Task == w.Task) &&
		w.RootID.IsZero() == r.IsRoot() && (w.RootID.IsZero() || r.RootID == w.RootID)
}

// leased answers the run as people see it: running, while a lease of it lives that its row does not know the end of.
func leased(v *fsm.View, r *job.Run) *job.Run {
	if r.State.Terminal() {
		return r
	}
	g, ok := v.Lease(r.ID)
	if !ok || g.Fence <= r.Fence {
		return r
	}
	n := *r
	if n.State != job.Running || n.Attempt != g.Attempt {
		n.StartedAt = g.GrantedAt // about when it started; the worker's own time comes with the result
	}
	n.State, n.Reason, n.Worker, n.Attempt = job.Running, job.NoReason, g.Worker, g.Attempt
	return &n
}

func matches(r *job.Run, q *storage.RunQuery) bool {
	return (len(q.States) == 0 || slices.Contains(q.States, r.State)) &&
		(q.Worker == "" || r.Worker == q.Worker) &&
		(q.Namespace == "" || r.Namespace == q.Namespace) &&
		(q.Job == "" || r.Job == q.Job) &&
		carries(r.Labels, q.Labels)
}

// carries tells whether labels has all that is wanted.
func carries(labels, wanted map[string]string) bool {
	for k, v := range wanted {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

func bound(limit, most int) int {
	if limit <= 0 {
		limit = 100
	}
	return min(limit, most)
}

func take[T any](from iter.Seq[T], limit int) []T {
	var list []T
	if limit <= 0 {
		return nil
	}
	for v := range from {
		if list = append(list, v); len(list) == limit {
			break
		}
	}
	return list
}
