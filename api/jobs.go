package api

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/job/dag"
	"github.com/musterhq/muster/job/timetable"
)

type inJobs struct {
	InNamespace
	Label  []string   `query:"label,explode" doc:"key=value; repeated, all must match"`
	Limit  limitParam `query:"limit"`
	Cursor string     `query:"cursor" doc:"next_cursor of the page before"`
}

// InJob is the parameters of one job.
type InJob struct {
	InNamespace
	Name nameParam `path:"name"`
}

// InJobChange is the parameters of a change of one job.
type InJobChange struct {
	InJob
	IfMatch     string `header:"If-Match" doc:"the ETag of the version that is to be changed; another current version is 412"`
	IfNoneMatch string `header:"If-None-Match" doc:"* creates only: a job that is there is 412"`
}

type inDelete struct {
	InJobChange
	Detach flagParam `query:"detach" doc:"true: the jobs that depend on it get a new version without that dependency first; else such a job is 409, has_dependents"`
}

type inPost struct{ InNamespace }

type page[T any] struct {
	Items      []T    `json:"items" nullable:"false"`
	NextCursor string `json:"next_cursor,omitempty" doc:"where the next page begins; absent at the end"`
}

func (in *InJob) name() (string, error) {
	return string(in.Name), checkName("name", string(in.Name))
}

// findJob reads the job that a request names.
func (a *API) findJob(rq *request, in *InJob) (*job.Job, error) {
	name, err := in.name()
	if err != nil {
		return nil, err
	}
	return a.Store.Job(rq.ctx, rq.namespace, name)
}

// present joins in what Raft knows of a job. Stored jobs are shared, so it works on a copy.
func (a *API) present(j *job.Job) *job.Job {
	c := *j
	why := a.Schedules.Paused(c.ID, c.Namespace)
	c.Paused = why == job.JobPaused
	mark, ticking := a.Schedules.Mark(c.ID)
	var schedule *job.Schedule
	if c.Spec != nil {
		schedule = c.Spec.Schedule
	}
	c.Effective = ticking == (schedule != nil) && (!ticking || mark.Version == c.Version)
	c.NextTickAt = 0
	if schedule == nil || !c.Effective || why != job.NoReason {
		return &c
	}
	if t, err := timetable.Parse(*schedule); err == nil {
		if next, ok := t.Next(max(a.now(), mark.At).Time()); ok {
			c.NextTickAt = job.At(next)
		}
	}
	return &c
}

func (a *API) listJobs(rq *request, in *inJobs) error {
	limit, err := in.Limit.read("limit", MaxPage)
	if err != nil {
		return err
	}
	q := job.JobQuery{Namespace: rq.namespace, Limit: limit}
	if q.Labels, err = readLabels("label", in.Label); err != nil {
		return err
	}
	filters := filterText(rq.namespace, q.Labels)
	if in.Cursor != "" {
		after, err := readCursor(jobCursor, filters, in.Cursor)
		if err != nil {
			return err
		}
		q.After = string(after)
	}
	jobs, err := a.Store.Jobs(rq.ctx, q)
	if err != nil {
		return err
	}
	p := page[*job.Job]{Items: []*job.Job{}}
	for _, j := range jobs.Jobs {
		p.Items = append(p.Items, a.present(j))
	}
	if jobs.Next != "" {
		p.NextCursor = makeCursor(jobCursor, filters, []byte(jobs.Next))
	}
	return rq.json(http.StatusOK, p)
}

func (a *API) readJob(rq *request, in *InJob) error {
	j, err := a.findJob(rq, in)
	if err != nil {
		return err
	}
	return a.answerJob(rq, http.StatusOK, a.present(j))
}

func (a *API) answerJob(rq *request, status int, j *job.Job) error {
	rq.w.Header().Set("ETag", entityTag(j.Version))
	return rq.json(status, j)
}

// document reads a job document from the body and judges it wholly, its schedule too.
func (a *API) document(rq *request) (*job.Document, error) {
	data, _, release, err := rq.body(a, jsonType, yamlType)
	if err != nil {
		return nil, err
	}
	defer release()
	doc, err := job.ParseDocumentIn(rq.namespace, data)
	if err != nil {
		return nil, err
	}
	if doc.Schedule != nil {
		if _, err := timetable.Parse(*doc.Schedule); err != nil {
			return nil, err
		}
	}
	return doc, dag.Validate(doc)
}

// createJob is POST /v1/jobs: it creates, and never changes.
func (a *API) createJob(rq *request, _ *inPost) error {
	doc, err := a.document(rq)
	if err != nil {
		return err
	}
	p := job.PutJob{ID: a.newJobID(), Spec: doc, NewOnly: true, At: a.now()}
	j, err := a.Store.PutJob(rq.ctx, p)
	if job.CodeOf(err) == job.Conflict {
		return &job.Error{Code: job.Conflict, Reason: "exists", Field: "name", Cause: err,
			Message: "the job " + quote(doc.Name) + " exists; PUT /v1/jobs/" + doc.Name + " changes it"}
	}
	if err != nil {
		return err
	}
	rq.w.Header().Set("Location", "/v1/jobs/"+j.Name+"?namespace="+j.Namespace)
	return a.takeEffect(rq, j, http.StatusCreated)
}

// putJob is PUT /v1/jobs/{name}: it creates or changes. The same document again changes nothing, and repeats the second
// half of L7 in case that was what failed.
func (a *API) putJob(rq *request, in *InJobChange) error {
	name, err := in.name()
	if err != nil {
		return err
	}
	p := job.PutJob{ID: a.newJobID(), At: a.now()}
	if p.IfVersion, p.NewOnly, err = a.guards(rq, in); err != nil {
		return err
	}
	if p.Spec, err = a.document(rq); err != nil {
		return err
	}
	if p.Spec.Name != name {
		return job.InvalidField("name", "the document is of %s, the path of %s", quote(p.Spec.Name), quote(name))
	}
	j, err := a.Store.PutJob(rq.ctx, p)
	if err != nil {
		return in.mismatch(err)
	}
	status := http.StatusOK
	if j.ID == p.ID {
		status = http.StatusCreated
	}
	return a.takeEffect(rq, j, status)
}

// guards reads the conditional headers.
func (a *API) guards(rq *request, in *InJobChange) (ifVersion uint64, newOnly bool, err error) {
	ifVersion, must, err := readEntityTag(in.IfMatch)
	if err != nil {
		return 0, false, err
	}
	switch in.IfNoneMatch {
	case "":
	case "*":
		if in.IfMatch != "" {
			return 0, false, job.InvalidField("If-None-Match", "it contradicts If-Match; send one of them")
		}
		newOnly = true
	default:
		return 0, false, job.InvalidField("If-None-Match", "%s has no meaning here; * creates only", quote(in.IfNoneMatch))
	}
	if must { // If-Match: * means whichever version, but one
		j, err := a.Store.Job(rq.ctx, rq.namespace, string(in.Name))
		if err != nil {
			return 0, false, err
		}
		ifVersion = j.Version
	}
	return ifVersion, newOnly, nil
}

// mismatch gives a conflict the status that a failed condition has.
func (in *InJobChange) mismatch(err error) error {
	e := job.AsError(err)
	if e.Code != job.Conflict || in.IfMatch == "" && in.IfNoneMatch == "" {
		return err
	}
	c := *e
	c.Reason = reasonPrecondition
	return &c
}

// takeEffect is the second half of L7: the store has the version, now Raft is to tick it.
func (a *API) takeEffect(rq *request, j *job.Job, status int) error {
	err := a.Schedules.PutSchedule(rq.ctx, j)
	effective := err == nil
	if err != nil && !outOfReach(err) {
		return err
	}
	j = a.present(j)
	if !effective {
		status = http.StatusAccepted
	}
	// The mark that present reads is this node's and may lag behind what Raft has just taken.
	j.Effective = effective
	if effective && j.NextTickAt == 0 && !j.Paused && j.Spec.Schedule != nil {
		if t, err := timetable.Parse(*j.Spec.Schedule); err == nil {
			if next, ok := t.Next(a.Now()); ok {
				j.NextTickAt = job.At(next)
			}
		}
	}
	return a.answerJob(rq, status, j)
}

// outOfReach tells whether Raft could not be asked, or may yet do what it was asked: the leader then brings the schedule
// into effect when it next compares versions (L7).
func outOfReach(err error) bool {
	var e *job.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code {
	case job.Unavailable, job.Unknown, job.Exhausted, job.Fenced:
		return true
	}
	return false
}

func (a *API) deleteJob(rq *request, in *inDelete) error {
	name, err := in.name()
	if err != nil {
		return err
	}
	if in.IfNoneMatch != "" {
		return job.InvalidField("If-None-Match", "it has no meaning for a deletion")
	}
	detach, err := in.Detach.read("detach")
	if err != nil {
		return err
	}
	ifVersion, _, err := a.guards(rq, &in.InJobChange)
	if err != nil {
		return err
	}
	var j *job.Job
	if detach {
		j, err = a.detachAndDelete(rq, name, ifVersion)
	} else {
		j, err = a.Store.DeleteJob(rq.ctx, rq.namespace, name, ifVersion)
	}
	if err != nil {
		if e := job.AsError(err); e.Reason == "has_dependents" { // whichever version it is
			c := *e
			c.Message += "; or delete it with detach=true, which gives each of them a version without it"
			return &c
		}
		return in.mismatch(err)
	}
	err = a.Schedules.DropSchedule(rq.ctx, j)
	switch {
	case err == nil:
		return rq.nothing()
	case outOfReach(err):
		c := *j
		c.Effective = false
		return rq.json(http.StatusAccepted, &c)
	}
	return err
}

func (a *API) pauseJob(rq *request, in *InJob) error  { return a.setPaused(rq, in, true) }
func (a *API) resumeJob(rq *request, in *InJob) error { return a.setPaused(rq, in, false) }

func (a *API) setPaused(rq *request, in *InJob, paused bool) error {
	j, err := a.findJob(rq, in)
	if err != nil {
		return err
	}
	if err := a.Schedules.PauseJob(rq.ctx, j, paused); err != nil {
		return err
	}
	j = a.present(j)
	if j.Paused = paused; paused {
		j.NextTickAt = 0
	}
	return a.answerJob(rq, http.StatusOK, j)
}

type inVersions struct {
	InJob
	Limit limitParam `query:"limit"`
}

func (a *API) listVersions(rq *request, in *inVersions) error {
	name, err := in.name()
	if err != nil {
		return err
	}
	limit, err := in.Limit.read("limit", MaxPage)
	if err != nil {
		return err
	}
	versions, err := a.Store.Versions(rq.ctx, rq.namespace, name, limit)
	if err != nil {
		return err
	}
	return rq.json(http.StatusOK, page[*job.Version]{Items: emptyIfNil(versions)})
}

func emptyIfNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

type inNext struct {
	InJob
	Count numberParam `query:"count" doc:"how many; 1 to 1000, without it 10"`
}

// NextTicks is GET /v1/jobs/{name}/next: what the schedule will do, were it not paused or changed.
type NextTicks struct {
	Items    []job.Instant `json:"items"`
	Cron     string        `json:"cron,omitempty"`
	TimeZone string        `json:"time_zone,omitempty"`
	Paused   bool          `json:"paused"`
}

func (a *API) nextTicks(rq *request, in *inNext) error {
	count, err := in.Count.read("count")
	if err != nil {
		return err
	}
	if in.Count == "" {
		count = 10
	}
	if count < 1 || count > MaxPage {
		return job.InvalidField("count", "%s is not between 1 and %s", quote(string(in.Count)), strconv.Itoa(MaxPage))
	}
	j, err := a.findJob(rq, &in.InJob)
	if err != nil {
		return err
	}
	next := NextTicks{Items: []job.Instant{}, Paused: a.Schedules.Paused(j.ID, j.Namespace) != job.NoReason}
	if s := j.Spec.Schedule; s != nil {
		next.Cron, next.TimeZone = s.Cron, s.TimeZone
		t, err := timetable.Parse(*s)
		if err != nil {
			return err
		}
		from := a.now()
		if m, ok := a.Schedules.Mark(j.ID); ok {
			from = max(from, m.At)
		}
		for at := from.Time(); uint32(len(next.Items)) < count; {
			tick, ok := t.Next(at)
			if !ok {
				break
			}
			next.Items = append(next.Items, job.At(tick))
			at = tick
		}
	}
	return rq.json(http.StatusOK, next)
}
