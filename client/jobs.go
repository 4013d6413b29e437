package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/musterhq/muster/job"
)

// CreateJob creates a job; Conflict if there is one of that name.
func (c *Client) CreateJob(ctx context.Context, doc *job.Document) (*job.Job, error) {
	// Twice would be a Conflict with ourselves.
	return ask[job.Job](ctx, c, &call{method: http.MethodPost, path: "/v1/jobs", query: ofDocument(doc), body: doc, once: true})
}

// PutJob creates a job or makes a new version of it. The same document again changes nothing. With Effective false in the
// answer the version is stored, and ticks once the cluster has a leader again.
func (c *Client) PutJob(ctx context.Context, doc *job.Document) (*job.Job, error) {
	return ask[job.Job](ctx, c, &call{method: http.MethodPut, path: jobPath(doc.Name), query: ofDocument(doc), body: doc})
}

// ChangeJob is PutJob on condition that the current version is still ifVersion; Conflict otherwise. It is not repeated
// when it may have happened, because it could not tell its own change from somebody else's: read the job then.
func (c *Client) ChangeJob(ctx context.Context, doc *job.Document, ifVersion uint64) (*job.Job, error) {
	return ask[job.Job](ctx, c, &call{method: http.MethodPut, path: jobPath(doc.Name), query: ofDocument(doc), body: doc, once: true,
		header: ifMatch(ifVersion)})
}

// ofDocument names the document's own namespace, which goes before the Client's.
func ofDocument(doc *job.Document) url.Values {
	if doc.Namespace == "" {
		return nil
	}
	return url.Values{"namespace": {doc.Namespace}}
}

func ifMatch(version uint64) http.Header {
	if version == 0 {
		return nil
	}
	return http.Header{"If-Match": {strconv.Quote(strconv.FormatUint(version, 10))}}
}

func jobPath(name string) string { return "/v1/jobs/" + url.PathEscape(name) }

// DeleteJob deletes a job; its runs stay. ifVersion 0 means whichever version. A job that others depend on is a Conflict,
// reason has_dependents.
func (c *Client) DeleteJob(ctx context.Context, name string, ifVersion uint64) error {
	return c.deleteJob(ctx, name, ifVersion, nil)
}

func (c *Client) deleteJob(ctx context.Context, name string, ifVersion uint64, q url.Values) error {
	maybe, err := c.do(ctx, &call{method: http.MethodDelete, path: jobPath(name), query: q, header: ifMatch(ifVersion)}, nil)
	if maybe && job.CodeOf(err) == job.NotFound {
		return nil // an attempt that nobody answered did it
	}
	return err
}

// Job reads a job.
func (c *Client) Job(ctx context.Context, name string) (*job.Job, error) {
	return ask[job.Job](ctx, c, &call{method: http.MethodGet, path: jobPath(name)})
}

// JobFilter selects jobs; the zero value selects all of the namespace.
type JobFilter struct {
	Labels map[string]string
}

// Jobs lists jobs by name. The sequence ends after its first error.
func (c *Client) Jobs(ctx context.Context, f JobFilter) iter.Seq2[*job.Job, error] {
	return list[*job.Job](ctx, c, "/v1/jobs", withLabels(url.Values{}, f.Labels), false)
}

// PauseJob stops a job's ticks and holds its queued runs.
func (c *Client) PauseJob(ctx context.Context, name string) (*job.Job, error) {
	return c.act(ctx, jobPath(name)+"/pause")
}

// ResumeJob undoes PauseJob.
func (c *Client) ResumeJob(ctx context.Context, name string) (*job.Job, error) {
	return c.act(ctx, jobPath(name)+"/resume")
}

func (c *Client) act(ctx context.Context, path string) (*job.Job, error) {
	return ask[job.Job](ctx, c, &call{method: http.MethodPost, path: path})
}

// NextTicks are the times at which a job ticks next.
type NextTicks struct {
	Items    []job.Instant `json:"items"`
	Cron     string        `json:"cron"`
	TimeZone string        `json:"time_zone"`
	Paused   bool          `json:"paused"`
}

// NextTicks answers the next count ticks; 0 means 10, at most 1,000.
func (c *Client) NextTicks(ctx context.Context, name string, count int) (*NextTicks, error) {
	q := url.Values{}
	if count != 0 {
		q.Set("count", strconv.Itoa(count))
	}
	return ask[NextTicks](ctx, c, &call{method: http.MethodGet, path: jobPath(name) + "/next", query: q})
}

// Versions answers the versions of a job, newest first, at most 1,000.
func (c *Client) Versions(ctx context.Context, name string) ([]job.Version, error) {
	var p page[job.Version]
	_, err := c.do(ctx, &call{method: http.MethodGet, path: jobPath(name) + "/versions", query: url.Values{"limit": {"1000"}}}, &p)
	return p.Items, err
}

// Tick is a row of the ledger, and the run that was born of it, if one was.
type Tick struct {
	job.Tick
	RunID job.RunID `json:"run_id"`
}

// Ticks lists a job's ledger in [since, until), newest first; zero times mean no bound.
func (c *Client) Ticks(ctx context.Context, name string, since, until time.Time) iter.Seq2[Tick, error] {
	return list[Tick](ctx, c, jobPath(name)+"/ticks", between(since, until), false)
}

func between(since, until time.Time) url.Values {
	q := url.Values{}
	if !since.IsZero() {
		q.Set("since", since.UTC().Format(time.RFC3339Nano))
	}
	if !until.IsZero() {
		q.Set("until", until.UTC().Format(time.RFC3339Nano))
	}
	return q
}

// Verification compares the ticks that the timetable expected with those that the ledger has.
type Verification struct {
	Since    job.Instant   `json:"since"`
	Until    job.Instant   `json:"until"`
	Expected int           `json:"expected"`
	Decided  int           `json:"decided"`
	Gaps     []job.Instant `json:"gaps"`
	Doubles  []job.Instant `json:"doubles"`
	Strays   []job.Instant `json:"strays"`
	OK       bool          `json:"ok"`
}

// Verify verifies a job's ledger in [since, until); zero times mean the last 24 hours.
func (c *Client) Verify(ctx context.Context, name string, since, until time.Time) (*Verification, error) {
	return ask[Verification](ctx, c, &call{method: http.MethodGet, path: jobPath(name) + "/verify", query: between(since, until)})
}

// Backfill submits a run for each tick of a job's schedule in [since, until), at most 1,000, and answers the backfill's id
// with the fate of each. The same id and time is the same run; "" derives one from since and until.
func (c *Client) Backfill(ctx context.Context, name string, since, until time.Time, id string) (string, []BatchItem, error) {
	body := map[string]any{"since": job.At(since), "until": job.At(until)}
	if id != "" {
		body["id"] = id
	}
	var a batchAnswer
	_, err := c.do(ctx, &call{method: http.MethodPost, path: jobPath(name) + "/backfill", body: body}, &a)
	return a.ID, a.items(), err
}
