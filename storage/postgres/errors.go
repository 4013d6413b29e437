package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/musterhq/muster/job"
)

// storeUnavailable is the reason of every Unavailable that Postgres causes.
const storeUnavailable = "store_unavailable"

// What muster.fence raises.
const (
	codeFenced  = "MU001" // a newer epoch was raised
	codeForeign = "MU002" // the database belongs to another cluster by now
)

// unsure marks an error of a step that may have committed: a COMMIT, or a pipeline that holds one, once it was sent.
func unsure(err error) error {
	if err == nil {
		return nil
	}
	return &unsureError{err}
}

type unsureError struct{ error }

func (e *unsureError) Unwrap() error { return e.error }

// mapError says what a caller can do about an error of the driver. An ERROR from the server undid the transaction that it
// belongs to, so nothing happened; after anything else a commit that was sent may have happened.
func mapError(err error) error {
	if err == nil {
		return nil
	}
	var ours *job.Error
	if errors.As(err, &ours) {
		return ours
	}
	var mark *unsureError
	maybe := errors.As(err, &mark) && !pgconn.SafeToRetry(err)
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && fatal(pg):
		if maybe {
			return unknown(err)
		}
		return away(err, sentence(err))
	case pg != nil:
		return mapServerError(pg, err)
	case maybe:
		return unknown(err)
	case isConnection(err):
		return away(err, sentence(err))
	}
	return &job.Error{Code: job.Internal, Message: "the store failed in a way that nobody foresaw", Cause: err}
}

// mapServerError is for a statement that the server refused, with nothing done.
func mapServerError(pg *pgconn.PgError, err error) error {
	switch {
	case pg.Code == codeFenced:
		return &job.Error{Code: job.Fenced, Reason: "epoch", Message: "a newer leader raised the store's epoch: " + pg.Message, Cause: err}
	case pg.Code == codeForeign:
		return &job.Error{Code: job.Fenced, Reason: "store_of_another_cluster", Message: "another cluster took the store over: " + pg.Message, Cause: err}
	case strings.HasPrefix(pg.Code, "22"), strings.HasPrefix(pg.Code, "23"), strings.HasPrefix(pg.Code, "54"):
		return &job.Error{Code: job.Invalid, Reason: "invalid_data", Message: "the store cannot hold this: " + pg.Message, Cause: err}
	case serverAway(pg.Code):
		return away(err, sentence(err))
	}
	return &job.Error{Code: job.Internal, Message: "the store refused a statement", Cause: err}
}

// serverAway tells whether a code says that the server cannot do its work now, whatever the statement.
func serverAway(code string) bool {
	switch code[:min(2, len(code))] {
	case "08", "53", "57", "58", "40", "55":
		return true // connection, resources, operator, system, a rollback that was repeated in vain, a lock not had in time
	}
	switch code {
	case "25006": // read only: a standby, or a full disk's emergency brake
		return true
	case "42501", "42P01", "42703", "42883", "3F000": // no right, or no such table, column, function, schema: somebody changed them
		return true
	}
	return strings.HasPrefix(code, "XX") // a defect, as of an index or a disk: it is no fault of the run's that is asked for
}

func fatal(pg *pgconn.PgError) bool {
	severity := or(pg.SeverityUnlocalized, pg.Severity)
	return severity == "FATAL" || severity == "PANIC"
}

func away(err error, why string) *job.Error {
	return &job.Error{Code: job.Unavailable, Reason: storeUnavailable, Message: "the store is not available: " + why, Cause: err}
}

func unknown(err error) *job.Error {
	return &job.Error{Code: job.Unknown, Reason: "store_unknown",
		Message: "the store did not say whether it stored this; repeat it with the same id", Cause: err}
}

// unavailable is what calls answer while Postgres is away.
func (s *Store) unavailable() *job.Error {
	return job.Errorf(job.Unavailable, storeUnavailable, "the store is not available: %s", *s.why.Load())
}

// repeatable tells whether Postgres asks for the whole transaction again.
func repeatable(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || fatal(pg) {
		return false
	}
	return pg.Code == "40001" || pg.Code == "40P01" || pg.Code == "0A000" && strings.Contains(pg.Message, "cached plan")
}

// doubtful tells whether an error makes it worth asking at once whether Postgres is still there, and still ours.
func doubtful(err error) bool {
	var ours *job.Error
	if errors.As(err, &ours) {
		return ours.Code == job.Unavailable
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return isConnection(err)
	}
	switch pg.Code {
	case codeForeign, "25006", "42P01", "3F000", "42883": // the tables are gone
		return true
	}
	return fatal(pg) || strings.HasPrefix(pg.Code, "08") || strings.HasPrefix(pg.Code, "58")
}

// isConnection tells errors of the way to the server from those of our own making.
func isConnection(err error) bool {
	var connect *pgconn.ConnectError
	var network net.Error
	var system syscall.Errno
	return errors.As(err, &connect) || errors.As(err, &network) || errors.As(err, &system) || pgconn.SafeToRetry(err) ||
		pgconn.Timeout(err) || errors.Is(err, pgconn.ErrConnClosed) || errors.Is(err, context.Canceled) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

// sentence says in one line what is the matter, in words of the operator's and without a password: the driver's texts
// about a connection name user, database and address only.
func sentence(err error) string {
	var pg *pgconn.PgError
	var connect *pgconn.ConnectError
	switch {
	case errors.As(err, &pg):
		return "Postgres says: " + oneLine(pg.Message) + " (" + pg.Code + ")"
	case errors.Is(err, context.DeadlineExceeded) || pgconn.Timeout(err):
		return "Postgres did not answer in time"
	case errors.Is(err, context.Canceled):
		return "the call was given up before Postgres answered"
	case errors.As(err, &connect):
		return triesOf(connect)
	}
	return "the connection to Postgres broke: " + oneLine(err.Error())
}

// triesOf says what became of the tries to connect. There are several for a host with several addresses, and for one that
// is tried with TLS and without; most fail alike.
func triesOf(err *pgconn.ConnectError) string {
	var tries []string
	for line := range strings.Lines(err.Unwrap().Error()) {
		if line = oneLine(line); line != "" && !slices.Contains(tries, line) {
			tries = append(tries, line)
		}
	}
	return fmt.Sprintf("Postgres cannot be reached as the user %s with the database %s: %s", err.Config.User, err.Config.Database, strings.Join(tries, "; "))
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
