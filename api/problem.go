package api

import (
	"net/http"

	"github.com/musterhq/muster/job"
)

// Problem is the body of every refusal: a problem document of RFC 9457. Its members beside title, status and detail are
// those of job.Error, so that package client answers the very same error.
type Problem struct {
	Title     string    `json:"title" doc:"the status in words"`
	Status    int       `json:"status"`
	Code      job.Code  `json:"code" doc:"what the caller can do about it" enum:"invalid,not_found,conflict,fenced,exhausted,unavailable,unknown,unauthenticated,forbidden,internal"`
	Reason    string    `json:"reason,omitempty" doc:"finer than code, stable"`
	Field     string    `json:"field,omitempty" doc:"the part of the input that is wrong, as it was written"`
	Detail    string    `json:"detail,omitempty" doc:"one sentence for people"`
	RequestID string    `json:"request_id,omitempty" doc:"under which the node logged it"`
	RunID     job.RunID `json:"run_id,omitzero" doc:"with code unknown: the id of the run that may exist; repeat with it"`
}

const problemType = "application/problem+json"

// Reasons for which HTTP has a status that says more than the code's own.
const (
	reasonTooLarge     = "body_too_large"
	reasonMediaType    = "unsupported_media_type"
	reasonMethod       = "method_not_allowed"
	reasonPrecondition = "version_mismatch"
	reasonBodyTimeout  = "body_timeout"
)

var exactStatuses = map[string]int{
	reasonTooLarge:     http.StatusRequestEntityTooLarge,
	reasonMediaType:    http.StatusUnsupportedMediaType,
	reasonMethod:       http.StatusMethodNotAllowed,
	reasonPrecondition: http.StatusPreconditionFailed,
	reasonBodyTimeout:  http.StatusRequestTimeout,
}

// problemOf is the one mapping of errors to problem documents. The cause stays behind.
func problemOf(e *job.Error) *Problem {
	status := e.Code.HTTPStatus()
	// Only what a request may be guilty of travels under a finer status; a store's reasons cannot reach in here.
	if s, ok := exactStatuses[e.Reason]; ok && (e.Code == job.Invalid || e.Code == job.Conflict) {
		status = s
	}
	return &Problem{
		Title: http.StatusText(status), Status: status,
		Code: e.Code, Reason: e.Reason, Field: e.Field, Detail: e.Message,
	}
}

// retryAfter is how many seconds a caller should wait before trying again; "" when that is not for us to say.
func retryAfter(c job.Code) string {
	switch c {
	case job.Exhausted, job.Unavailable:
		return "1"
	}
	return ""
}
