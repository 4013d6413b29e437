package checker

import (
	"cmp"
	"slices"

	"github.com/musterhq/muster/job"
)

// edges judges the dependencies of one job on others: each end of an upstream that satisfies its edge is consumed by one
// run, or coalesced with one that is, or still pending.
func (j *judge) edges(jb *Job) {
	edges, since := edgesOf(jb)
	named := map[job.RunID]job.RunID{} // ends, by who consumed them
	counted := map[string]int{}
	live := false
	for _, id := range j.of(jb.Name) {
		r := &j.runs[id].Run
		live = live || !r.State.Terminal()
		if r.Trigger != job.ByDependency {
			continue
		}
		j.report.Fired++
		if len(r.Upstreams) != len(edges) {
			j.broken(WrongUpstream, id, "it was born of %d runs; %s has %d edges", len(r.Upstreams), jb.Name, len(edges))
		}
		for _, u := range r.Upstreams {
			counted[u.Job] += 1 + int(u.Coalesced)
			j.report.Consumed++
			j.report.Coalesced += int(u.Coalesced)
			if other, twice := named[u.RunID]; twice {
				j.broken(ConsumedTwice, id, "it was born of %s of %s, and so was %s", u.RunID, u.Job, other)
			}
			named[u.RunID] = id
			j.upstream(r, u, edges)
		}
		j.beside(r)
	}
	all := len(jb.Edges) > 0
	for _, e := range jb.Edges {
		if e.SatisfiedBy.IsZero() {
			all = false
			continue
		}
		counted[e.Upstream] += 1 + int(e.Coalesced)
		j.report.Pending += 1 + int(e.Coalesced)
		if by, twice := named[e.SatisfiedBy]; twice {
			j.broken(ConsumedTwice, jb.Name, "its edge to %s is satisfied by %s, which %s has consumed", e.Upstream, e.SatisfiedBy, by)
		}
	}
	if all && !live {
		j.broken(NotFired, jb.Name, "its edges are all satisfied, and it has no run")
	}
	for i, e := range edges {
		// An end before the edge was there counts at most once, as the last one. Of one about then it is not known.
		must, may, before := 0, 0, 0
		for _, id := range j.of(e.Job) {
			switch r := &j.runs[id].Run; {
			case !e.On.SatisfiedBy(r.State):
			case r.FinishedAt < since[i].Add(-j.skew()):
				before = 1
			case r.FinishedAt < since[i].Add(j.skew()):
				may++
			default:
				must++
			}
		}
		may += before
		switch n := counted[e.Job]; {
		case n < must:
			j.broken(EndLost, jb.Name, "%d runs of %s satisfied it (%s), of which %d are consumed, coalesced or pending", must, e.Job, cmp.Or(e.On, job.OnSuccess), n)
		case n > must+may:
			j.broken(EndInvented, jb.Name, "%d runs of %s satisfied it (%s), and %d are consumed, coalesced or pending", must, e.Job, cmp.Or(e.On, job.OnSuccess), n)
		}
	}
}

// edgesOf are a job's edges, and since when it has had each of them without a break.
func edgesOf(jb *Job) (edges []job.Edge, since []job.Instant) {
	versions := slices.Clone(jb.Versions)
	slices.SortFunc(versions, func(a, b job.Version) int { return cmp.Compare(b.Version, a.Version) })
	if len(versions) == 0 || versions[0].Spec == nil {
		return nil, nil
	}
	edges = versions[0].Spec.DependsOn
	for _, e := range edges {
		at := versions[0].CreatedAt
		for _, v := range versions {
			if v.Spec == nil || !slices.Contains(v.Spec.DependsOn, e) {
				break
			}
			at = v.CreatedAt
		}
		since = append(since, at)
	}
	return edges, since
}

// of are the root runs of a job.
func (j *judge) of(name string) []job.RunID {
	if j.byJob == nil {
		j.byJob = map[string][]job.RunID{}
		for id, r := range j.runs {
			if r.Run.Task == "" && r.Run.Job != "" {
				j.byJob[r.Run.Job] = append(j.byJob[r.Run.Job], id)
			}
		}
		for _, ids := range j.byJob {
			slices.SortFunc(ids, compareIDs)
		}
	}
	return j.byJob[name]
}

// upstream judges one of the runs of which a run was born.
func (j *judge) upstream(r *job.Run, u job.UpstreamRun, edges []job.Edge) {
	i := slices.IndexFunc(edges, func(e job.Edge) bool { return e.Job == u.Job })
	by := j.runs[u.RunID]
	switch {
	case i < 0:
		j.broken(WrongUpstream, r.ID, "it was born of a run of %s, on which %s does not depend", u.Job, r.Job)
	case by == nil || by.Run.Task != "" || by.Run.Job != u.Job:
		j.broken(WrongUpstream, r.ID, "it was born of %s of %s, which is not there", u.RunID, u.Job)
	case !edges[i].On.SatisfiedBy(by.Run.State):
		j.broken(WrongUpstream, r.ID, "it was born of %s of %s, which is %s; its edge is for %s", u.RunID, u.Job, by.Run.State, cmp.Or(edges[i].On, job.OnSuccess))
	case r.CreatedAt < by.Run.FinishedAt.Add(-j.skew()):
		j.broken(WrongUpstream, r.ID, "it was born at %s of %s of %s, which ended at %s", r.CreatedAt, u.RunID, u.Job, by.Run.FinishedAt)
	}
}

// beside judges that a run of dependencies is born when no run of its job is live.
func (j *judge) beside(r *job.Run) {
	for _, id := range j.of(r.Job) {
		o := &j.runs[id].Run
		if o.ID != r.ID && o.CreatedAt < r.CreatedAt.Add(-j.skew()) && (o.FinishedAt > r.CreatedAt.Add(j.skew()) || !o.State.Terminal()) {
			j.broken(FiredBeside, r.ID, "it was born at %s, when %s of %s was there, which ended at %s", r.CreatedAt, id, o.CreatedAt, o.FinishedAt)
			return
		}
	}
}
