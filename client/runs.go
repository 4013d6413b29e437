package client

import (
	"context"
	"crypto/rand"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/musterhq/muster/job"
)

// Submission asks for one run: of a job, or of an inline Spec.
type Submission struct {
	Job      string
	Spec     *job.Document // a document without name, schedule and depends_on
	Payload  any           // anything that can be JSON, at most 64 KiB; json.RawMessage goes as it is
	ID       job.RunID     // made by Submit if zero; bring one to repeat a submission across processes, within 24 hours
	Delay    time.Duration
	RunAt    time.Time
	Priority *int // 0..9; nil: what the job says
	Labels   map[string]string
	Key      string // Idempotency-Key: the caller's own name for this piece of business
}

type wireSubmission struct {
	Job      string            `json:"job,omitempty"`
	Spec     *job.Document     `json:"spec,omitempty"`
	Payload  any               `json:"payload,omitempty"`
	ID       job.RunID         `json:"id"`
	Delay    job.Duration      `json:"delay,omitempty"`
	RunAt    *time.Time        `json:"run_at,omitempty"`
	Priority *int              `json:"priority,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Key      string            `json:"idempotency_key,omitempty"`
}

// wire makes the id, before the first attempt, so that every later one is the same run.
func (s *Submission) wire() wireSubmission {
	w := wireSubmission{Job: s.Job, Spec: s.Spec, Payload: s.Payload, ID: s.ID, Delay: job.Duration(s.Delay),
		Priority: s.Priority, Labels: s.Labels, Key: s.Key}
	if w.ID.IsZero() {
		w.ID = NewRunID()
	}
	if !s.RunAt.IsZero() {
		at := s.RunAt.UTC()
		w.RunAt = &at
	}
	return w
}

// NewRunID makes an id for a run that is about to be submitted.
func NewRunID() job.RunID {
	var entropy [10]byte
	_, _ = rand.Read(entropy[:]) // never fails
	return job.MakeRunID(time.Now(), entropy)
}

// Submit submits a run and answers it as it is stored; Home says on which rung. A run that was submitted before, by its ID
// or its Key, is answered as it is now.
func (c *Client) Submit(ctx context.Context, s Submission) (*job.Run, error) {
	return ask[job.Run](ctx, c, &call{method: http.MethodPost, path: "/v1/runs", body: s.wire()})
}

// BatchItem is the fate of one run of a batch.
type BatchItem struct {
	Run      *job.Run
	Existing bool  // it had been submitted before
	Err      error // *job.Error; then there is no Run
}

type batchAnswer struct {
	ID    string `json:"id"`
	Items []struct {
		Run      *job.Run         `json:"run"`
		Existing bool             `json:"existing"`
		Problem  *problemDocument `json:"problem"`
	} `json:"items"`
}

func (a *batchAnswer) items() []BatchItem {
	items := make([]BatchItem, len(a.Items))
	for i, it := range a.Items {
		items[i] = BatchItem{Run: it.Run, Existing: it.Existing}
		if it.Problem != nil {
			items[i].Err = it.Problem.err()
		}
	}
	return items
}

// SubmitBatch submits up to 1,000 runs at once and answers the fate of each, in order.
func (c *Client) SubmitBatch(ctx context.Context, batch []Submission) ([]BatchItem, error) {
	body := struct {
		Runs []wireSubmission `json:"runs"`
	}{make([]wireSubmission, len(batch))}
	for i := range batch {
		body.Runs[i] = batch[i].wire()
	}
	var a batchAnswer
	if _, err := c.do(ctx, &call{method: http.MethodPost, path: "/v1/runs/batch", body: body}, &a); err != nil {
		return nil, err
	}
	return a.items(), nil
}

func runPath(id job.RunID) string { return "/v1/runs/" + id.String() }

// Run reads a run.
func (c *Client) Run(ctx context.Context, id job.RunID) (*job.Run, error) {
	return ask[job.Run](ctx, c, &call{method: http.MethodGet, path: runPath(id)})
}

// Wait reads a run until it has ended, or the context has.
func (c *Client) Wait(ctx context.Context, id job.RunID) (*job.Run, error) {
	for pause := 20 * time.Millisecond; ; pause = min(pause*3/2, time.Second) {
		r, err := c.Run(ctx, id)
		if err != nil || r.State.Terminal() {
			return r, err
		}
		if !sleep(ctx, pause) {
			return r, ctx.Err()
		}
	}
}

// RunFilter selects runs; the zero value selects every root run of the namespace.
type RunFilter struct {
	Job           string
	States        []job.State
	Worker        string
	Labels        map[string]string
	Since, Until  time.Time // by the time in the id
	RootID        job.RunID // the task runs of this run, instead of root runs
	Task          string    // of one task only, with RootID; of a task with for_each also its items
	AllNamespaces bool
}

// Runs lists runs, newest first. The sequence ends after its first error.
func (c *Client) Runs(ctx context.Context, f RunFilter) iter.Seq2[*job.Run, error] {
	q := withLabels(between(f.Since, f.Until), f.Labels)
	setIf(q, "job", f.Job)
	setIf(q, "worker", f.Worker)
	if len(f.States) > 0 {
		words := make([]string, len(f.States))
		for i, s := range f.States {
			words[i] = s.String()
		}
		q.Set("state", strings.Join(words, ","))
	}
	if !f.RootID.IsZero() {
		q.Set("root_id", f.RootID.String())
	}
	setIf(q, "task", f.Task)
	if f.AllNamespaces {
		q.Set("namespace", "*")
	}
	return list[*job.Run](ctx, c, "/v1/runs", q, false)
}

// Cancel asks for a run to be cancelled. It is an intent: the run's state says when it has happened.
func (c *Client) Cancel(ctx context.Context, id job.RunID) (*job.Run, error) {
	return ask[job.Run](ctx, c, &call{method: http.MethodPost, path: runPath(id) + "/cancel"})
}

// Retry makes a new run of one that has ended, in the same version and with the same payload. Of a run with tasks only those
// run again that did not succeed, and those that come after them. Asking twice retries once.
func (c *Client) Retry(ctx context.Context, id job.RunID) (*job.Run, error) {
	return ask[job.Run](ctx, c, &call{method: http.MethodPost, path: runPath(id) + "/retry"})
}

// Attempts answers the attempts of a run, oldest first.
func (c *Client) Attempts(ctx context.Context, id job.RunID) ([]job.Attempt, error) {
	var p page[job.Attempt]
	_, err := c.do(ctx, &call{method: http.MethodGet, path: runPath(id) + "/attempts"}, &p)
	return p.Items, err
}

// Explanation says in plain sentences why a run is where it is.
type Explanation struct {
	RunID       job.RunID  `json:"run_id"`
	State       job.State  `json:"state"`
	Reason      job.Reason `json:"reason"`
	Explanation []string   `json:"explanation"`
}

// Explain explains a run.
func (c *Client) Explain(ctx context.Context, id job.RunID) (*Explanation, error) {
	return ask[Explanation](ctx, c, &call{method: http.MethodGet, path: runPath(id) + "/explain"})
}

// Output reads what one attempt of a run has written so far; attempt 0 means the last.
func (c *Client) Output(ctx context.Context, id job.RunID, attempt uint32) (io.ReadCloser, error) {
	q := url.Values{}
	if attempt != 0 {
		q.Set("attempt", strconv.FormatUint(uint64(attempt), 10))
	}
	return c.stream(ctx, &call{method: http.MethodGet, path: runPath(id) + "/logs", query: q, header: http.Header{"Accept": {"text/plain"}}})
}

// stream opens an answer of any length, at the first node that gives one.
func (c *Client) stream(ctx context.Context, q *call) (io.ReadCloser, error) {
	var said failures
	for range c.Addresses {
		at := c.next.Load()
		resp, err := c.send(ctx, c.Addresses[int(at)%len(c.Addresses)], q, nil)
		if err == nil {
			if resp.StatusCode < 300 {
				return resp.Body, nil
			}
			data, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
			resp.Body.Close()
			err = problem(resp, data)
		}
		code := job.CodeOf(err)
		if code != job.Unavailable && code != job.Unknown {
			return nil, err
		}
		if said.add(err); ctx.Err() != nil || code == job.Unknown && q.once {
			break
		}
		c.next.CompareAndSwap(at, at+1)
	}
	return nil, said.worst()
}

type page[T any] struct {
	Items      []T    `json:"items"`
	NextCursor string `json:"next_cursor"`
}

// list yields the items of page after page.
func list[T any](ctx context.Context, c *Client, path string, q url.Values, cluster bool) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		query := url.Values{}
		for k, v := range q {
			query[k] = v
		}
		for {
			var p page[T]
			if _, err := c.do(ctx, &call{method: http.MethodGet, path: path, query: query, cluster: cluster}, &p); err != nil {
				var zero T
				yield(zero, err)
				return
			}
			for _, it := range p.Items {
				if !yield(it, nil) {
					return
				}
			}
			if p.NextCursor == "" {
				return
			}
			query.Set("cursor", p.NextCursor)
		}
	}
}

func withLabels(q url.Values, labels map[string]string) url.Values {
	for k, v := range labels {
		q.Add("label", k+"="+v)
	}
	return q
}

func setIf(q url.Values, name, v string) {
	if v != "" {
		q.Set(name, v)
	}
}
