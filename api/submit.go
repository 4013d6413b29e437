package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/job/dag"
)

type inSubmit struct {
	InNamespace
	Key           string `header:"Idempotency-Key" doc:"the caller's own name for this piece of business: the same key with the same body is the same run for 24 hours, with another body 409"`
	MinDurability string `query:"min_durability" enum:"local,quorum,postgres" doc:"refuse with 503 instead of accepting on a lower rung"`
}

type inBatch struct {
	InNamespace
	MinDurability string `query:"min_durability" enum:"local,quorum,postgres" doc:"refuse with 503 instead of accepting on a lower rung"`
}

// Submission is the body of POST /v1/runs, and an item of a batch.
type Submission struct {
	Job      string            `json:"job,omitempty" doc:"the name of a job; or give spec"`
	Spec     json.RawMessage   `json:"spec,omitempty" doc:"a job document without name, schedule and depends_on; or give job"`
	Payload  json.RawMessage   `json:"payload,omitempty" doc:"any JSON, at most 64 KiB"`
	ID       *string           `json:"id,omitempty" format:"uuid" doc:"a UUIDv7 not older than 24 hours and not more than an hour ahead; repeating it is the same run"`
	Delay    *job.Duration     `json:"delay,omitempty" doc:"start this much later; or give run_at"`
	RunAt    *job.Instant      `json:"run_at,omitempty" doc:"do not start before; or give delay"`
	Priority *int              `json:"priority,omitempty" minimum:"0" maximum:"9" doc:"9 is first; without it, what the job says"`
	Labels   map[string]string `json:"labels,omitempty" doc:"added to the job's"`
	Key      string            `json:"idempotency_key,omitempty" maxLength:"255" doc:"as the header Idempotency-Key; in a batch the only way to give one"`
}

// Batch is the body of POST /v1/runs/batch.
type Batch struct {
	Runs []Submission `json:"runs" minItems:"1" maxItems:"1000"`
}

// BatchItem is the fate of one run of a batch: the run, or the problem.
type BatchItem struct {
	Run      *job.Run `json:"run,omitempty"`
	Existing bool     `json:"existing,omitempty" doc:"the id or the key was seen before; nothing new was created"`
	Problem  *Problem `json:"problem,omitempty"`
}

// BatchAnswer answers a batch, item for item.
type BatchAnswer struct {
	Items []BatchItem `json:"items"`
}

// rawBatch keeps the items apart, so that each wrong one gets a problem of its own.
type rawBatch struct {
	Runs []json.RawMessage `json:"runs"`
}

// submitRun is POST /v1/runs.
func (a *API) submitRun(rq *request, in *inSubmit) error {
	var s Submission
	if err := rq.decode(a, &s); err != nil {
		return err
	}
	if in.Key != "" {
		if s.Key != "" && s.Key != in.Key {
			return job.InvalidField("idempotency_key", "it differs from the header Idempotency-Key")
		}
		s.Key = in.Key
	}
	if err := a.enough(in.MinDurability); err != nil {
		return err
	}
	r, err := a.newBirths(rq).birth(&s, "")
	if err != nil {
		return err
	}
	receipts, err := a.Store.Submit(rq.ctx, []*job.Run{r})
	if err == nil {
		err = refusal(r, &receipts[0])
	}
	if err != nil {
		return a.unborn(rq, r, err)
	}
	if !receipts[0].Existing {
		a.Hints.Born([]*job.Run{receipts[0].Run})
	}
	return a.answerBirth(rq, receipts[0])
}

// refusal is why r was not accepted, if it was not. An id that is there already is the same run (S10), but not across
// namespaces: the run of another one is nobody's business here.
func refusal(r *job.Run, rc *job.Receipt) error {
	if rc.Err == nil && rc.Existing && rc.Run.Namespace != r.Namespace {
		return &job.Error{Code: job.Conflict, Reason: "id_taken", Field: "id", Message: "the id belongs to another run; make a new one"}
	}
	return rc.Err
}

// unborn answers a submission that failed. When nobody knows whether it did, the caller learns the id to repeat it with.
func (a *API) unborn(rq *request, r *job.Run, err error) error {
	e := classify(rq.ctx, err, true)
	if e.Code != job.Unknown {
		return err
	}
	a.Logger.Warn("a submission's outcome is unknown", "request_id", rq.id, "run_id", r.ID, "err", err)
	p := problemOf(e)
	p.RequestID, p.RunID = rq.id, r.ID
	rq.writeJSON(p.Status, problemType, p)
	return nil
}

// answerBirth: 200 for a run that was there, 201 on the cluster's own store, 202 on a lower rung (S3).
func (a *API) answerBirth(rq *request, rc job.Receipt) error {
	status := http.StatusCreated
	switch {
	case rc.Existing:
		status = http.StatusOK
	case rung(rc.Run.Home) < rung(a.Cluster.Home()):
		status = http.StatusAccepted
	}
	rq.w.Header().Set("Location", "/v1/runs/"+rc.Run.ID.String()+"?namespace="+rc.Run.Namespace)
	return rq.writeRun(status, a.asItIs(rc.Run))
}

// submitBatch is POST /v1/runs/batch.
func (a *API) submitBatch(rq *request, in *inBatch) error {
	if rq.r.Header.Get("Idempotency-Key") != "" {
		return job.InvalidField("Idempotency-Key", "a batch has one key per run; give it as idempotency_key of the item")
	}
	data, _, release, err := rq.body(a, jsonType)
	if err != nil {
		return err
	}
	defer release()
	items, err := readBatch(data)
	if err != nil {
		return err
	}
	if err := a.enough(in.MinDurability); err != nil {
		return err
	}
	answer := BatchAnswer{Items: make([]BatchItem, len(items))}
	births := a.newBirths(rq)
	runs := make([]*job.Run, 0, len(items))
	place := make([]int, 0, len(items))
	for i := range items {
		err := items[i].err
		if err == nil {
			var r *job.Run
			if r, err = births.birth(&items[i].Submission, "runs["+strconv.Itoa(i)+"]"); err == nil {
				runs, place = append(runs, r), append(place, i)
				continue
			}
		}
		answer.Items[i].Problem = a.itemProblem(rq, err)
	}
	if len(runs) > 0 {
		if err := a.submitAll(rq, runs, place, answer.Items); err != nil {
			if !births.made || classify(rq.ctx, err, true).Code != job.Unknown {
				return err
			}
			// Some may exist under ids that only we know: the caller learns them, to repeat with.
			for i, r := range runs {
				p := a.itemProblem(rq, err)
				p.RunID = r.ID
				answer.Items[place[i]].Problem = p
			}
		}
	}
	return rq.writeBatch(&answer)
}

// submitAll submits the good items of a batch and puts each receipt into its place.
func (a *API) submitAll(rq *request, runs []*job.Run, place []int, items []BatchItem) error {
	receipts, err := a.Store.Submit(rq.ctx, runs)
	if err != nil {
		return err
	}
	born := make([]*job.Run, 0, len(receipts))
	for i, rc := range receipts {
		item := &items[place[i]]
		if err := refusal(runs[i], &rc); err != nil {
			item.Problem = a.itemProblem(rq, err)
			if item.Problem.Code == job.Unknown {
				item.Problem.RunID = runs[i].ID
			}
			continue
		}
		item.Run, item.Existing = a.asItIs(rc.Run), rc.Existing
		if !rc.Existing {
			born = append(born, rc.Run)
		}
	}
	if len(born) > 0 {
		a.Hints.Born(born)
	}
	return nil
}

// itemProblem is the problem of one item. A defect is logged like any other.
func (a *API) itemProblem(rq *request, err error) *Problem {
	e := classify(rq.ctx, err, true)
	if e.Code == job.Internal {
		a.Logger.Error("item failed", "request_id", rq.id, "operation", rq.name(), "err", e)
	}
	p := problemOf(e)
	p.RequestID = rq.id
	return p
}

type batchItem struct {
	Submission
	err error
}

// readBatch decodes the whole at once, which is what nearly every batch allows, and item by item only if that fails.
func readBatch(data []byte) ([]batchItem, error) {
	var b Batch
	if err := job.DecodeStrict(data, &b, ""); err == nil {
		if err := countBatch(len(b.Runs)); err != nil {
			return nil, err
		}
		items := make([]batchItem, len(b.Runs))
		for i := range b.Runs {
			items[i].Submission = b.Runs[i]
		}
		return items, nil
	}
	var raw rawBatch
	if err := job.DecodeStrict(data, &raw, ""); err != nil {
		return nil, err
	}
	if err := countBatch(len(raw.Runs)); err != nil {
		return nil, err
	}
	items := make([]batchItem, len(raw.Runs))
	for i, r := range raw.Runs {
		items[i].err = job.DecodeStrict(r, &items[i].Submission, "runs["+strconv.Itoa(i)+"]")
	}
	return items, nil
}

func countBatch(n int) error {
	if n < 1 || n > MaxBatch {
		return job.InvalidField("runs", "a batch has 1 to %d runs, not %d", MaxBatch, n)
	}
	return nil
}

// births turns submissions into runs. A batch reads each job once.
type births struct {
	*API
	ctx       context.Context
	namespace string
	now       job.Instant
	jobs      map[string]foundJob
	made      bool // an id was made here, which the caller does not know
}

type foundJob struct {
	job *job.Job
	err error
}

func (a *API) newBirths(rq *request) *births {
	return &births{API: a, ctx: rq.ctx, namespace: rq.namespace, now: a.now()}
}

// birth judges one submission and makes its run. at is the submission's place in the body, "" for the whole.
func (b *births) birth(s *Submission, at string) (*job.Run, error) {
	r, err := b.make(s)
	if err != nil && at != "" {
		return nil, job.Within(at, err)
	}
	return r, err
}

func (b *births) make(s *Submission) (*job.Run, error) {
	sub := job.Submission{Namespace: b.namespace, Labels: s.Labels, Priority: s.Priority, Key: s.Key}
	var of *job.Job
	var err error
	switch {
	case s.Job != "" && s.Spec != nil:
		return nil, job.InvalidField("spec", "either job or spec is given, not both")
	case s.Job != "":
		if of, err = b.find(s.Job); err != nil {
			return nil, err
		}
		sub.Job = s.Job
	case s.Spec != nil:
		if sub.Spec, err = b.inline(s.Spec); err != nil {
			return nil, job.Within("spec", err)
		}
	default:
		return nil, job.InvalidField("job", "a run needs the name of a job, or a spec")
	}
	if sub.ID, err = b.id(s.ID); err != nil {
		return nil, err
	}
	if sub.RunAt, err = b.runAt(s); err != nil {
		return nil, err
	}
	if p := s.Priority; p != nil && (*p < 0 || *p > 9) {
		return nil, job.InvalidField("priority", "%d is not between 0 and 9", *p)
	}
	if len(s.Labels) > 0 {
		if err := job.CheckLabels("labels", s.Labels); err != nil {
			return nil, err
		}
	}
	if sub.Payload, err = readPayload(s.Payload); err != nil {
		return nil, err
	}
	if s.Key != "" {
		if err := checkKey(s.Key); err != nil {
			return nil, err
		}
	}
	r, err := job.Birth(&sub, of, b.now)
	if err != nil {
		return nil, err
	}
	if s.Key != "" {
		r.BodyHash = bodyHash(s)
	}
	return r, nil
}

func (b *births) find(name string) (*job.Job, error) {
	if f, ok := b.jobs[name]; ok {
		return f.job, f.err
	}
	var f foundJob
	if f.err = checkName("job", name); f.err == nil {
		f.job, f.err = b.Store.Job(b.ctx, b.namespace, name)
		if job.CodeOf(f.err) == job.NotFound {
			f.err = job.Within("job", f.err)
		}
	}
	if b.jobs == nil {
		b.jobs = map[string]foundJob{}
	}
	b.jobs[name] = f
	return f.job, f.err
}

func (b *births) inline(raw json.RawMessage) (*job.Document, error) {
	doc, err := job.ParseSpec(raw)
	if err != nil {
		return nil, err
	}
	if doc.Namespace != "" && doc.Namespace != b.namespace {
		return nil, job.InvalidField("namespace", "the spec says %s, the request %s", quote(doc.Namespace), quote(b.namespace))
	}
	doc.Namespace = b.namespace
	return doc, dag.Validate(doc)
}

// id takes the caller's id or makes one. The time in an id decides where its run is stored and listed, so it has to be
// about now.
func (b *births) id(given *string) (job.RunID, error) {
	if given == nil {
		b.made = true
		return b.newRunID(), nil
	}
	id, err := job.ParseRunID(*given)
	if err != nil {
		return id, job.Within("id", err)
	}
	if age := b.now.Sub(job.At(id.Time())); age > MaxIDAge || age < -MaxIDLead {
		return id, &job.Error{Code: job.Invalid, Reason: "id_age", Field: "id",
			Message: fmt.Sprintf("the time in the id is %s; it has to be within the last %s, or at most %s ahead, by this node's clock",
				job.At(id.Time()), MaxIDAge, MaxIDLead)}
	}
	return id, nil
}

func (b *births) runAt(s *Submission) (job.Instant, error) {
	latest := b.now.Add(MaxDelay)
	switch {
	case s.Delay != nil && s.RunAt != nil:
		return 0, job.InvalidField("run_at", "either delay or run_at is given, not both")
	case s.Delay != nil:
		if d := s.Delay.Std(); d < 0 || d > MaxDelay {
			return 0, job.InvalidField("delay", "%s is not between 0s and %s", d, MaxDelay)
		} else if d == 0 {
			return 0, nil
		}
		return b.now.Add(s.Delay.Std()), nil
	case s.RunAt != nil:
		if *s.RunAt > latest || *s.RunAt < 0 {
			return 0, job.InvalidField("run_at", "it lies more than %s ahead, or before 1970", MaxDelay)
		}
		return *s.RunAt, nil
	}
	return 0, nil
}

// readPayload answers a compact copy; null is none.
func readPayload(raw json.RawMessage) (json.RawMessage, error) {
	if len(raw) == 0 || bytes.Equal(raw, []byte("null")) {
		return nil, nil
	}
	return job.ValidatePayload("payload", raw, job.MaxPayloadBytes)
}

func checkKey(key string) error {
	if len(key) > MaxKey {
		return job.InvalidField("idempotency_key", "it has %d bytes; %d are allowed", len(key), MaxKey)
	}
	for i := range len(key) {
		if key[i] <= ' ' || key[i] > '~' {
			return job.InvalidField("idempotency_key", "it contains the byte %#02x; printable ASCII without blanks is allowed", key[i])
		}
	}
	return nil
}

// bodyHash tells whether a key comes back with the same body (S9). The id and the key are not part of what was asked for,
// and white space says nothing.
func bodyHash(s *Submission) []byte {
	c := *s
	c.ID, c.Key = nil, ""
	b, err := json.Marshal(&c)
	if err != nil { // it was decoded from JSON, so it can be encoded
		panic(err)
	}
	sum := sha256.Sum256(b)
	return sum[:]
}

// enough refuses before anything is written what could only be accepted on a lower rung than the caller wants (S3).
func (a *API) enough(wanted string) error {
	if wanted == "" {
		return nil
	}
	var h job.Home
	if err := h.UnmarshalText([]byte(wanted)); err != nil {
		return job.Within("min_durability", err)
	}
	if rung(h) > rung(a.Cluster.Rung()) {
		return job.Errorf(job.Unavailable, "durability", "this node cannot reach the rung %s now; the highest it reaches is %s", h, a.Cluster.Rung())
	}
	return nil
}

// rung orders the homes: the higher, the stronger.
func rung(h job.Home) int {
	switch h {
	case job.HomePostgres:
		return 3
	case job.HomeQuorum:
		return 2
	case job.HomeLocal:
		return 1
	}
	return 0
}
