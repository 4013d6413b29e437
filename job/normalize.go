package job

import (
	"bytes"
	"encoding/json"
	"time"
)

// The defaults that Normalize fills in. A stored document has them spelt out, so changing one here changes no job that
// exists.
const (
	DefaultNamespace  = "default"
	DefaultTimeZone   = "UTC"
	DefaultRetryFirst = time.Second
	DefaultRetryMax   = 5 * time.Minute
)

// Normalize fills the defaults in. Doing it twice is doing it once. A document without a name is an inline spec; its
// namespace is left for the request to decide. Tasks keep unset what they inherit, except that a retry policy of their
// own is completed from the document's.
func (d *Document) Normalize() {
	if d.Name != "" {
		d.Namespace = cmpOr(d.Namespace, DefaultNamespace)
	}
	if s := d.Schedule; s != nil {
		s.TimeZone = cmpOr(s.TimeZone, DefaultTimeZone)
		s.CatchUp.Policy = cmpOr(s.CatchUp.Policy, CatchUpLatest)
		d.Overlap = cmpOr(d.Overlap, OverlapSkipTick)
	}
	for i := range d.DependsOn {
		d.DependsOn[i].On = cmpOr(d.DependsOn[i].On, OnSuccess)
	}
	if d.Priority == nil {
		d.Priority = new(int)
		*d.Priority = DefaultPriority
	}
	if d.Concurrency != nil {
		d.Concurrency.Limit = cmpOr(d.Concurrency.Limit, 1)
	}
	d.Retry.fill(Retry{MaxAttempts: 1, Backoff: ExponentialBackoff})
	d.Slots = cmpOr(d.Slots, 1)
	d.OnWorkerLost = cmpOr(d.OnWorkerLost, RequeueOnLoss)
	d.OnLeaseLost = cmpOr(d.OnLeaseLost, KillOnLeaseLost)
	normalizeExecutor(d.Exec, d.HTTP)
	for i := range d.Tasks {
		t := &d.Tasks[i]
		t.RunIf = cmpOr(t.RunIf, AllSucceeded)
		if t.Retry != nil {
			t.Retry.fill(d.Retry)
		}
		normalizeExecutor(t.Exec, t.HTTP)
	}
}

// fill sets what is unset. The pauses are taken over as a pair and never made to contradict the one that was written.
func (p *Retry) fill(from Retry) {
	p.MaxAttempts = cmpOr(p.MaxAttempts, from.MaxAttempts)
	p.Backoff = cmpOr(p.Backoff, from.Backoff)
	initial := cmpOr(from.Initial, Duration(DefaultRetryFirst))
	limit := cmpOr(from.Max, Duration(DefaultRetryMax))
	if p.Initial == 0 {
		p.Initial = initial
		if p.Max > 0 {
			p.Initial = min(initial, p.Max)
		}
	}
	if p.Max == 0 {
		p.Max = max(limit, p.Initial)
	}
}

func normalizeExecutor(e *Exec, h *HTTP) {
	if e != nil && len(e.SuccessExitCodes) == 0 {
		e.SuccessExitCodes = []int{0}
	}
	if h != nil {
		h.Method = cmpOr(h.Method, "POST")
	}
}

// EqualDocuments tells whether two documents mean the same once their defaults are filled in, so that applying an
// unchanged file makes no new version. Neither is changed.
func EqualDocuments(a, b *Document) bool {
	if a == nil || b == nil {
		return a == b
	}
	x, errX := a.canonical()
	y, errY := b.canonical()
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

func (d *Document) canonical() ([]byte, error) {
	c, err := d.clone()
	if err != nil {
		return nil, err
	}
	c.Normalize()
	if c.Schedule != nil {
		c.Schedule.StartAt, c.Schedule.EndAt = c.Schedule.StartAt.UTC(), c.Schedule.EndAt.UTC()
	}
	if c.Payload, err = canonicalJSON(c.Payload); err != nil {
		return nil, err
	}
	for i := range c.Tasks {
		if c.Tasks[i].Payload, err = canonicalJSON(c.Tasks[i].Payload); err != nil {
			return nil, err
		}
	}
	return json.Marshal(c)
}

// canonicalJSON is the same for values that differ in the order of fields and the ways to escape a letter only.
func canonicalJSON(b json.RawMessage) (json.RawMessage, error) {
	if b == nil {
		return nil, nil
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

// clone is a deep copy by way of JSON, in which nothing is lost.
func (d *Document) clone() (*Document, error) {
	b, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	c := new(Document)
	return c, json.Unmarshal(b, c)
}
