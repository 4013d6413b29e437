package job

import "encoding/json"

// Submission is a request for one run, decoded and authorised.
type Submission struct {
	ID        RunID // made by the client or, before the first write attempt, by the node
	Namespace string
	Job       string    // the name of a stored job; or
	Spec      *Document // an inline document, parsed by ParseSpec
	Payload   json.RawMessage
	RunAt     Instant // zero: now
	Priority  *int
	Labels    map[string]string
	Key       string // Idempotency-Key
}

// Birth makes the row of a submitted run. of is the stored job that s.Job names; nil with an inline spec.
func Birth(s *Submission, of *Job, now Instant) (*Run, error) {
	r := &Run{
		ID: s.ID, Namespace: s.Namespace, Trigger: ByAPI, CreatedAt: now, ScheduledAt: s.RunAt,
		Payload: s.Payload, Labels: s.Labels, Key: s.Key, State: Queued, QueuedAt: now,
	}
	if s.RunAt > now {
		r.State, r.Reason, r.ReadyAt, r.QueuedAt = Scheduled, Delayed, s.RunAt, 0
	}
	spec := s.Spec
	if of != nil {
		r.JobID, r.Job, r.JobVersion = of.ID, of.Name, of.Version
		spec = of.Spec
	} else {
		b, err := json.Marshal(spec)
		if err != nil {
			return nil, err
		}
		r.Spec = b
	}
	r.FromSpec(spec)
	if s.Priority != nil {
		r.Priority = uint8(*s.Priority)
	}
	return r, nil
}
