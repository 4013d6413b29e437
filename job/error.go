package job

import (
	"errors"
	"fmt"
	"net/http"
)

// Code says what a caller can do about an error. The list is closed: the API, the client and the stores use no other.
type Code string

const (
	Invalid         Code = "invalid"         // the request is wrong; repeating it unchanged is useless
	NotFound        Code = "not_found"       // the thing named does not exist
	Conflict        Code = "conflict"        // it contradicts what is there; read, then decide
	Fenced          Code = "fenced"          // a newer epoch or fence exists; stop
	Exhausted       Code = "exhausted"       // a limit is full; retry later
	Unavailable     Code = "unavailable"     // nothing happened; retry, here or on another node
	Unknown         Code = "unknown"         // it may have happened; repeat with the same id
	Unauthenticated Code = "unauthenticated" // no valid credential
	Forbidden       Code = "forbidden"       // the credential does not allow it
	Internal        Code = "internal"        // a defect of ours; whatever nobody classified
)

// Error is the one error type that crosses packages.
type Error struct {
	Code    Code
	Reason  string // finer than Code, snake_case, stable: clients may branch on it; may be empty
	Field   string // which part of the input is wrong, as the user wrote it ("tasks[2].exec.command"); may be empty
	Message string // one clear sentence that may be shown to anybody
	Cause   error  // for logs only, never shown
}

func (e *Error) Error() string {
	s := e.Message
	if e.Field != "" {
		s = e.Field + ": " + s
	}
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Cause }

// Errorf makes an Error with a message and no field.
func Errorf(code Code, reason, format string, args ...any) *Error {
	return &Error{Code: code, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// InvalidField makes the error for one wrong field of an input.
func InvalidField(field, format string, args ...any) *Error {
	return &Error{Code: Invalid, Reason: "invalid_field", Field: field, Message: fmt.Sprintf(format, args...)}
}

// AsError finds the Error in err's chain. An error that nobody classified becomes Internal, its text kept for logs.
// It returns nil for nil.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Code: Internal, Message: "an internal error occurred", Cause: err}
}

// CodeOf is AsError(err).Code, and "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	return AsError(err).Code
}

// statuses maps codes to HTTP statuses, both ways; it is the only such table.
var statuses = map[Code]int{
	Invalid:         http.StatusBadRequest,
	NotFound:        http.StatusNotFound,
	Conflict:        http.StatusConflict,
	Fenced:          http.StatusPreconditionFailed,
	Exhausted:       http.StatusTooManyRequests,
	Unavailable:     http.StatusServiceUnavailable,
	Unknown:         http.StatusGatewayTimeout,
	Unauthenticated: http.StatusUnauthorized,
	Forbidden:       http.StatusForbidden,
	Internal:        http.StatusInternalServerError,
}

// HTTPStatus is the status that carries a code. An error may travel under a more exact 4xx (413 and 415 for Invalid,
// 412 for Conflict): the code in the body decides.
func (c Code) HTTPStatus() int {
	if s, ok := statuses[c]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// CodeForStatus is the code of a response that carries none, such as one made by a proxy on the way.
func CodeForStatus(status int) Code {
	for c, s := range statuses {
		if s == status {
			return c
		}
	}
	switch {
	case status == http.StatusBadGateway:
		return Unknown
	case status >= 400 && status < 500:
		return Invalid
	default:
		return Internal
	}
}
