package job

// What callers ask of a store. It is here, and not beside the store's contract, because the API asks too and knows no store.

// PutJob is one change of a definition.
type PutJob struct {
	ID   JobID     `cbor:"1,keyasint"` // of the job, if it is created
	Spec *Document `cbor:"2,keyasint"` // parsed and normalised; names namespace and job
	// IfVersion: 0 puts in any case; a version must be the current one; NewOnly creates and never changes. Else Conflict.
	IfVersion uint64  `cbor:"3,keyasint,omitempty"`
	NewOnly   bool    `cbor:"4,keyasint,omitempty"`
	At        Instant `cbor:"5,keyasint"`
}

// JobQuery selects jobs.
type JobQuery struct {
	Namespace string
	After     string            // name of the last job of the page before
	Labels    map[string]string // all must match
	Limit     int               // at most 1,000; 0 means 100
}

// JobPage is a part of what a query selects.
type JobPage struct {
	Jobs []*Job // by name
	Next string // After of the page after this one; "": this is the last. A page may be short, or empty, and not the last
}

// RunQuery selects runs. Filters combine with and; the zero value selects every root run.
type RunQuery struct {
	Namespace string // "" means all
	Job       string // name; needs Namespace
	RootID    RunID  // the task runs of this root, instead of roots
	Task      string // name; needs RootID
	States    []State
	Worker    string
	Labels    map[string]string
	Since     Instant // by the time in the id, inclusive
	Until     Instant // exclusive
	Before    RunID   // the last id of the page before
	Limit     int     // at most 1,000; 0 means 100
}

// RunPage is a part of what a query selects.
type RunPage struct {
	Runs []*Run // newest id first
	Next RunID  // Before of the page after this one; zero: this is the last. A page may be short, or empty, and not the last
}

// TickQuery selects ledger rows.
type TickQuery struct {
	JobID  JobID
	Since  Instant // inclusive
	Until  Instant // exclusive; 0 means no bound
	Before Instant // scheduled time of the last row of the page before; 0: from the newest
	Limit  int     // at most 10,000; 0 means 100
}

// Usage is how full a store is.
type Usage struct {
	Runs         int   `json:"runs"`
	LiveRuns     int   `json:"live_runs"`
	Ticks        int   `json:"ticks"`
	Bytes        int64 `json:"bytes"`         // 0 where the store does not count
	MaxBytes     int64 `json:"max_bytes"`     // 0: no bound of its own
	HistoryBytes int64 `json:"history_bytes"` // of terminal runs, attempts and ledger rows
}

// JobHead is a job's identity and current version, without its document: what the leader compares with the marks (L7).
type JobHead struct {
	ID        JobID
	Namespace string
	Name      string
	Version   uint64
	From      Instant // Version.From of the current version
}
