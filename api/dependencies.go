package api

import (
	"net/http"

	"github.com/musterhq/muster/job"
)

// Dependencies is GET /v1/jobs/{name}/dependencies.
type Dependencies struct {
	Upstreams  []job.Dependency `json:"upstreams" nullable:"false" doc:"on the jobs that it depends on, by name"`
	Dependents []job.Dependency `json:"dependents" nullable:"false" doc:"of the jobs that depend on it, by name"`
}

func (a *API) listDependencies(rq *request, in *InJob) error {
	j, err := a.findJob(rq, in)
	if err != nil {
		return err
	}
	edges, err := a.edges(rq, j.Name)
	if err != nil {
		return err
	}
	d := Dependencies{Upstreams: []job.Dependency{}, Dependents: []job.Dependency{}}
	for _, e := range edges {
		if e.Job == j.Name {
			d.Upstreams = append(d.Upstreams, e)
		} else {
			d.Dependents = append(d.Dependents, e)
		}
	}
	return rq.json(http.StatusOK, d)
}

func (a *API) edges(rq *request, name string) ([]job.Dependency, error) {
	if a.Graphs == nil {
		return nil, job.Errorf(job.NotFound, "no_graphs", "this node's store does not keep dependencies between jobs")
	}
	return a.Graphs.Dependencies(rq.ctx, rq.namespace, name)
}

// maxDetach is how often a deletion looks for dependents that have come since it last did.
const maxDetach = 5

// detachAndDelete takes a job out of the depends_on of all others and then deletes it. Whatever ends it in between, what it
// has done is complete in itself, and repeating the request does the rest.
func (a *API) detachAndDelete(rq *request, name string, ifVersion uint64) (j *job.Job, err error) {
	if j, err = a.Store.Job(rq.ctx, rq.namespace, name); err != nil {
		return nil, err
	}
	if ifVersion != 0 && j.Version != ifVersion { // before anything is changed
		return nil, job.Errorf(job.Conflict, "version_mismatch", "the job %s is at version %d, not %d; read it and decide again", name, j.Version, ifVersion)
	}
	for range maxDetach {
		edges, err := a.edges(rq, name)
		if err != nil {
			return nil, err
		}
		for _, e := range edges {
			if e.Upstream != name {
				continue
			}
			if err := a.detach(rq, e.Job, name); err != nil {
				return nil, err
			}
		}
		j, err = a.Store.DeleteJob(rq.ctx, rq.namespace, name, ifVersion)
		if e := job.AsError(err); err == nil || e.Reason != "has_dependents" {
			return j, err
		}
	}
	return nil, job.Errorf(job.Unavailable, "busy", "jobs that depend on the job %s keep coming while it is being deleted; try again", name)
}

// detach makes a version of a job that does not depend on another one.
func (a *API) detach(rq *request, dependent, upstream string) error {
	for {
		d, err := a.Store.Job(rq.ctx, rq.namespace, dependent)
		if job.CodeOf(err) == job.NotFound {
			return nil // deleted meanwhile
		}
		if err != nil {
			return err
		}
		spec := *d.Spec
		spec.DependsOn = nil
		for _, e := range d.Spec.DependsOn {
			if e.Job != upstream {
				spec.DependsOn = append(spec.DependsOn, e)
			}
		}
		if len(spec.DependsOn) == len(d.Spec.DependsOn) {
			return nil // somebody else has done it
		}
		d, err = a.Store.PutJob(rq.ctx, job.PutJob{ID: a.newJobID(), Spec: &spec, IfVersion: d.Version, At: a.now()})
		switch job.CodeOf(err) {
		case "":
			// It has no schedule, as before. If Raft cannot be told of the version now, the leader compares later (L7).
			if err := a.Schedules.PutSchedule(rq.ctx, d); err != nil && !outOfReach(err) {
				return err
			}
			return nil
		case job.Conflict, job.NotFound: // it was changed or deleted meanwhile: look again
			if rq.ctx.Err() != nil {
				return rq.ctx.Err()
			}
		default:
			return err
		}
	}
}
