package worker

import (
	"bytes"
	"encoding/json"

	"github.com/musterhq/muster/job"
)

// MaxResult is how large a run's result may be, in bytes (D6).
const MaxResult = job.MaxPayloadBytes

// checkResult tells whether b may become a run's result: JSON that every store can keep, since one result that Postgres
// refuses would fail the whole batch it settles in (S12). Nothing, or only white space, means that there is no result.
func checkResult(b []byte) (json.RawMessage, error) {
	if b = bytes.TrimSpace(b); len(b) == 0 {
		return nil, nil
	}
	return job.ValidatePayload("result", b, MaxResult)
}
