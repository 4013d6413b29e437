package fsm

import "github.com/musterhq/muster/job"

// What a row costs in memory, in bytes: the struct, its places in the trees, and whatever varies. Replicas must agree on
// these figures, so they are constants, measured once with BenchmarkMemory, and a change of one is a new format.
const (
	runOverhead     = 704
	attemptOverhead = 256
	tickOverhead    = 256
	keyOverhead     = 384
	versionOverhead = 768
	labelOverhead   = 48
)

// Limits bounds what the embedded store holds (S2: in bytes). Zero fields mean the defaults.
type Limits struct {
	MaxLiveBytes       int64 `cbor:"1,keyasint,omitempty"` // of runs that are not terminal; births are refused above it
	MaxHistoryBytes    int64 `cbor:"2,keyasint,omitempty"` // of terminal runs, attempts and ledger rows; pruned above it
	MaxKeyBytes        int64 `cbor:"3,keyasint,omitempty"` // of idempotency keys; births with a new key are refused above it
	MaxDefinitionBytes int64 `cbor:"4,keyasint,omitempty"` // of job documents; definitions are refused above it
}

// The defaults of Limits, and the limits that are not settings.
const (
	DefaultMaxLiveBytes       = 256 << 20
	DefaultMaxHistoryBytes    = 256 << 20
	DefaultMaxKeyBytes        = 64 << 20
	DefaultMaxDefinitionBytes = 256 << 20 // about 150,000 jobs with short documents

	MaxUnstoredTicks = 100_000 // decided ticks that no store has acknowledged; above it ticks stay due
	MaxFlags         = 100_000 // pauses and cordons
	MaxMarks         = 200_000 // schedules
	KeptVersions     = 20      // of a job, the current one included; older ones stay while live runs need them
	KeptAttempts     = 100     // of a run, besides its last one
)

func (l Limits) filled() Limits {
	fill := func(v *int64, otherwise int64) {
		if *v <= 0 {
			*v = otherwise
		}
	}
	fill(&l.MaxLiveBytes, DefaultMaxLiveBytes)
	fill(&l.MaxHistoryBytes, DefaultMaxHistoryBytes)
	fill(&l.MaxKeyBytes, DefaultMaxKeyBytes)
	fill(&l.MaxDefinitionBytes, DefaultMaxDefinitionBytes)
	return l
}

func runSize(r *job.Run) int64 {
	n := runOverhead + len(r.Namespace) + len(r.Job) + len(r.Task) + len(r.Worker) + len(r.Payload) + len(r.Result) +
		len(r.Error) + len(r.Lane) + len(r.Spec) + len(r.Key) + len(r.BackfillID) + len(r.BodyHash)
	for k, v := range r.Labels { // a sum does not depend on the order
		n += labelOverhead + len(k) + len(v)
	}
	for i := range r.Upstreams {
		n += labelOverhead + len(r.Upstreams[i].Job)
	}
	return int64(n)
}

func attemptSize(a *job.Attempt) int64 {
	return int64(attemptOverhead + len(a.Worker) + len(a.Error))
}

func tickSize(*job.Tick) int64 { return tickOverhead }

func keySize(k *keyRow) int64 {
	n := int64(keyOverhead + 2*(len(k.Namespace)+len(k.Key)) + len(k.BodyHash))
	if k.Pruned != nil {
		n += runSize(k.Pruned)
	}
	return n
}

// versionSize counts the document three times: as JSON, and decoded in about twice as much.
func versionSize(v *versionRow) int64 { return int64(versionOverhead + 3*len(v.Document)) }

// wireSize estimates a run's encoded size.
func wireSize(r *job.Run) int {
	n := 192 + len(r.Namespace) + len(r.Job) + len(r.Task) + len(r.Worker) + len(r.Payload) + len(r.Result) +
		len(r.Error) + len(r.Lane) + len(r.Spec) + len(r.Key) + len(r.BackfillID) + len(r.BodyHash)
	if !r.IsRoot() || !r.RetryOf.IsZero() || !r.CanonicalID.IsZero() {
		n += 3 * 20
	}
	if r.Attempt != 0 {
		n += 64
	}
	if r.Item|r.Items != 0 || r.Depth != 0 || !r.ParentID.IsZero() || !r.ReusedFrom.IsZero() {
		n += 64
	}
	for i := range r.Upstreams {
		n += 40 + len(r.Upstreams[i].Job)
	}
	for k, v := range r.Labels {
		n += 8 + len(k) + len(v)
	}
	return n
}
