package job

import (
	"bytes"
	"encoding/json"
)

// MaxPayloadBytes bounds payloads and results (D6).
const MaxPayloadBytes = 64 << 10

// ValidatePayload checks free JSON that stores and other languages must be able to keep: a payload, or a result. It must
// be one value, valid UTF-8 without NUL (written \u0000 too) or halves of surrogate pairs, every number within a double,
// no field twice in an object, nested at most MaxDepth deep, and at most limit bytes without white space (0 means
// MaxPayloadBytes). field names it in errors. It answers a compact copy; nothing for nothing.
func ValidatePayload(field string, raw []byte, limit int) (json.RawMessage, error) {
	if limit <= 0 {
		limit = MaxPayloadBytes
	}
	if len(raw) == 0 {
		return nil, nil
	}
	s := scanner{data: raw, root: field}
	if err := s.whole(&freeShape); err != nil {
		return nil, err
	}
	compact := raw
	if s.spaced {
		var b bytes.Buffer
		if err := json.Compact(&b, raw); err != nil {
			return nil, &Error{Code: Invalid, Reason: "invalid_syntax", Field: field, Message: "this is not valid JSON", Cause: err}
		}
		compact = b.Bytes()
	}
	if len(compact) > limit {
		e := InvalidField(field, "the JSON has %d bytes; the limit is %d, so keep large data elsewhere and pass a reference", len(compact), limit)
		e.Reason = "too_large"
		return nil, e
	}
	return bytes.Clone(compact), nil
}
