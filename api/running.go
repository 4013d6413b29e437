package api

import (
	"bytes"
	"context"
	"maps"
	"slices"

	"github.com/musterhq/muster/job"
)

// What runs now is known from the leases; the store learns of it late or never (design section 1). So every run that is
// read here is laid over with its lease, and lists are merged from both.

// asItIs lays a live lease over a stored run. A row that has seen an attempt end since is newer than the lease.
func (a *API) asItIs(r *job.Run) *job.Run {
	if r.State.Terminal() {
		return r
	}
	g, ok := a.Leases.Grant(r.ID)
	if !ok {
		return r
	}
	return underLease(r, &g)
}

func underLease(r *job.Run, g *job.Grant) *job.Run {
	if r.State.Terminal() || g.Fence <= r.Fence {
		return r
	}
	c := *r
	if c.State != job.Running || c.StartedAt == 0 {
		c.StartedAt = g.GrantedAt
	}
	c.State, c.Reason, c.Attempt, c.Worker = job.Running, job.NoReason, g.Attempt, g.Worker
	c.FinishedAt, c.Error, c.ExitCode, c.Result = 0, "", 0, nil // an earlier attempt's
	return &c
}

// runsAsTheyAre answers a page, and the id after which the next one begins; zero at the end.
//
// A leased run is stored as queued or scheduled, so a filter by state or worker means something else to the store than to
// the reader. The page is therefore merged from two streams in the order of ids: what the store answers, and, where the
// filter lets running ones through, the runs of the leases. Where one of them was cut off, the page ends there too.
func (a *API) runsAsTheyAre(ctx context.Context, q job.RunQuery) (runs []*job.Run, more job.RunID, err error) {
	limit := q.Limit
	ask := q
	ask.Limit = min(limit+1, MaxPage)
	stored, err := a.Store.Runs(ctx, ask)
	if err != nil {
		return nil, more, err
	}
	horizon := stored.Next // below it this page knows nothing
	byID := make(map[job.RunID]*job.Run, len(stored.Runs))
	for _, r := range stored.Runs {
		byID[r.ID] = a.asItIs(r)
	}
	if (len(q.States) > 0 || q.Worker != "") && (len(q.States) == 0 || slices.Contains(q.States, job.Running)) {
		leased, cut, err := a.leasedRuns(ctx, q, horizon, limit+1)
		if err != nil {
			return nil, more, err
		}
		if bytes.Compare(cut[:], horizon[:]) > 0 {
			horizon = cut
		}
		for _, r := range leased {
			byID[r.ID] = r
		}
	}
	ids := slices.SortedFunc(maps.Keys(byID), func(x, y job.RunID) int { return bytes.Compare(y[:], x[:]) })
	for _, id := range ids {
		if bytes.Compare(id[:], horizon[:]) < 0 {
			break
		}
		r := byID[id]
		if !matches(r, &q) {
			continue
		}
		if len(runs) == limit {
			return runs, runs[limit-1].ID, nil
		}
		runs = append(runs, r)
	}
	return runs, horizon, nil
}

// leasedRuns reads the runs of the leases that a query may select, newest id first, at most limit of them and not below
// the horizon. cut is the last id that was looked at if it gave up there.
func (a *API) leasedRuns(ctx context.Context, q job.RunQuery, horizon job.RunID, limit int) (runs []*job.Run, cut job.RunID, err error) {
	var grants []job.Grant
	for _, g := range a.Leases.Grants() {
		switch {
		case q.Namespace != "" && g.Lane != "" && g.Lane.Namespace() != q.Namespace:
		case q.Worker != "" && g.Worker != q.Worker:
		case !q.RootID.IsZero() && g.RunID.Time() != q.RootID.Time(): // ids of task runs carry their root's time
		case !q.Before.IsZero() && bytes.Compare(g.RunID[:], q.Before[:]) >= 0:
		case bytes.Compare(g.RunID[:], horizon[:]) < 0:
		default:
			grants = append(grants, g)
		}
	}
	slices.SortFunc(grants, func(x, y job.Grant) int { return bytes.Compare(y.RunID[:], x.RunID[:]) })
	// Filters beyond the grant's own fields need the row; one page looks at so many, and the next goes on from there.
	const mostRead = 2 * MaxPage
	read := 0
	for part := range slices.Chunk(grants, min(limit, MaxPage)) {
		ids := make([]job.RunID, len(part))
		for i := range part {
			ids[i] = part[i].RunID
		}
		rows, err := a.Store.Load(ctx, ids)
		if err != nil {
			return nil, cut, err
		}
		for i, r := range rows {
			read++
			if r == nil { // its home does not know it yet
				continue
			}
			if r = underLease(r, &part[i]); matches(r, &q) {
				runs = append(runs, r)
			}
			if len(runs) == limit || read == mostRead {
				return runs, part[i].RunID, nil
			}
		}
	}
	return runs, cut, nil
}

// matches applies a query to a run as it is.
func matches(r *job.Run, q *job.RunQuery) bool {
	switch {
	case q.Namespace != "" && r.Namespace != q.Namespace,
		q.Job != "" && r.Job != q.Job,
		len(q.States) > 0 && !slices.Contains(q.States, r.State),
		q.Worker != "" && r.Worker != q.Worker,
		q.RootID.IsZero() && !r.IsRoot(),
		!q.RootID.IsZero() && (r.RootID != q.RootID || r.IsRoot()),
		q.Task != "" && r.Task != q.Task:
		return false
	}
	if at := job.At(r.ID.Time()); at < q.Since || q.Until != 0 && at >= q.Until {
		return false
	}
	for k, v := range q.Labels {
		if have, ok := r.Labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}
