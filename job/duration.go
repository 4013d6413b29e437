package job

import (
	"encoding/json"
	"time"
)

// Duration is a time.Duration that documents write as text: "90s", "10m", "1h30m".
type Duration time.Duration

// Std is d as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes the form that UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalJSON accepts only text: a bare number would leave its unit to be guessed.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return Errorf(Invalid, "invalid_field", `a duration is text with a unit, such as "90s" or "10m"`)
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return Errorf(Invalid, "invalid_field", `%q is not a duration; write one such as "90s", "10m" or "1h30m"`, s)
	}
	*d = Duration(v)
	return nil
}
