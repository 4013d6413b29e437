package job

import (
	"encoding/json"
	"time"
)

// Schedule says when a job ticks. job/timetable gives it its meaning.
type Schedule struct {
	// Cron is a five-field expression, six fields with seconds first, a descriptor (@hourly, @daily, @weekly, @monthly,
	// @yearly), "@every DURATION" (at least 1s, anchored to StartAt or the Unix epoch) or "@at TIME" (once).
	Cron string `json:"cron"`
	// TimeZone is an IANA name; "" means UTC.
	TimeZone string `json:"time_zone,omitempty"`
	// CatchUp says what happens to ticks that nobody could start in time.
	CatchUp CatchUp `json:"catch_up,omitzero"`
	// StartAt is the first instant, inclusive, and EndAt the first instant no longer, at which the job may tick. Zero means no bound.
	StartAt time.Time `json:"start_at,omitzero"`
	EndAt   time.Time `json:"end_at,omitzero"`
}

// CatchUpPolicy chooses among the ticks that fell due while no leader could decide them.
type CatchUpPolicy string

const (
	CatchUpNone   CatchUpPolicy = "none"   // they are recorded as missed
	CatchUpLatest CatchUpPolicy = "latest" // the newest one runs, the others are recorded as coalesced; the default
	CatchUpAll    CatchUpPolicy = "all"    // each one runs, up to Max; older ones are recorded as missed
)

// CatchUp is the policy for overdue ticks. In a document `catch_up: latest` is short for `catch_up: {policy: latest}`.
type CatchUp struct {
	Policy CatchUpPolicy `json:"policy,omitempty"`
	// Max bounds how many overdue ticks run under CatchUpAll; 0 means 100, at most 10,000.
	Max int `json:"max,omitempty"`
}

// UnmarshalJSON accepts the short form. An unknown field is left to the strict decoder of documents.
func (c *CatchUp) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		*c = CatchUp{}
		return json.Unmarshal(b, &c.Policy)
	}
	type plain CatchUp
	return json.Unmarshal(b, (*plain)(c))
}
