package job

import (
	"encoding/json"
	"time"
)

// Instant is a point in time in microseconds since the Unix epoch, the precision that every store keeps. Zero means "not
// set". Unlike time.Time it has no location and no monotonic part, so replicas and encodings cannot disagree about it.
type Instant int64

// At is t as an Instant; the zero time is the zero Instant.
func At(t time.Time) Instant {
	if t.IsZero() {
		return 0
	}
	return Instant(t.UnixMicro())
}

// Time is i in UTC; the zero Instant is the zero time.
func (i Instant) Time() time.Time {
	if i == 0 {
		return time.Time{}
	}
	return time.UnixMicro(int64(i)).UTC()
}

// Add is the instant d later, rounded to microseconds.
func (i Instant) Add(d time.Duration) Instant { return i + Instant(d.Microseconds()) }

// Sub is the span from o to i.
func (i Instant) Sub(o Instant) time.Duration { return time.Duration(i-o) * time.Microsecond }

func (i Instant) String() string {
	if i == 0 {
		return ""
	}
	return i.Time().Format(time.RFC3339Nano)
}

// MarshalJSON writes RFC 3339 in UTC, and null for zero.
func (i Instant) MarshalJSON() ([]byte, error) {
	if i == 0 {
		return []byte("null"), nil
	}
	b := make([]byte, 0, len(time.RFC3339Nano)+2)
	b = append(b, '"')
	b = i.Time().AppendFormat(b, time.RFC3339Nano)
	return append(b, '"'), nil
}

// UnmarshalJSON reads RFC 3339 with any offset, and null.
func (i *Instant) UnmarshalJSON(b []byte) error {
	var t *time.Time
	if err := json.Unmarshal(b, &t); err != nil {
		return Errorf(Invalid, "invalid_field", "a time is written as RFC 3339, such as 2026-01-31T09:00:00Z")
	}
	*i = 0
	if t != nil {
		*i = At(*t)
	}
	return nil
}
