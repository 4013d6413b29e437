package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"github.com/musterhq/muster/job"
)

// Exit codes are part of the contract: scripts branch on them. `muster help exit-codes` explains them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitConflict    = 4
	exitUnavailable = 5
	exitRunFailed   = 10
	exitInterrupted = 130 // as shells count SIGINT
)

const exitCodesHelp = `What the exit code of muster means:

    0  it is done
    1  it failed, or only a part of it was done
    2  the command line or the input is wrong; nothing was changed
    3  what was named does not exist
    4  it contradicts what is there; read, then decide
    5  no node answers, or the cluster cannot do it now; try again
   10  the run that was waited for (--wait, --follow, run wait) did not succeed
  130  interrupted by a signal; a run that was waited for goes on

A command over several things (apply, cancel, delete) goes on after an error. It
exits with the code of its errors if all of them have the same, otherwise with 1.
`

// exitError is an error that knows its exit code. An empty text is not printed: all was said before.
type exitError struct {
	code int
	text string
}

func (e *exitError) Error() string { return e.text }

// usageErrorf says what is wrong with the command line.
func usageErrorf(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Sprintf(format, args...)}
}

// failure makes a quiet error after a command has reported each of several errors itself.
func failure(errs []error) error {
	if len(errs) == 0 {
		return nil
	}
	code := exitCode(errs[0])
	for _, err := range errs[1:] {
		if exitCode(err) != code {
			code = exitFailed
		}
	}
	return &exitError{code: code}
}

// exitCode is what an error means for a script.
func exitCode(err error) int {
	var own *exitError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &own):
		return own.code
	case errors.As(err, new(interrupted)):
		return exitInterrupted
	}
	switch job.CodeOf(err) {
	case job.Invalid:
		return exitUsage
	case job.NotFound:
		return exitNotFound
	case job.Conflict, job.Fenced:
		return exitConflict
	case job.Unavailable, job.Exhausted, job.Unknown:
		return exitUnavailable
	}
	return exitFailed
}

// report prints an error as one sentence.
func (c *cli) report(err error) {
	if text := c.sentence(err); text != "" {
		fmt.Fprintf(c.stderr, "muster: %s\n", clean(text))
	}
}

// sentence says what is wrong and, where we know, what to do about it.
func (c *cli) sentence(err error) string {
	var own *exitError
	if errors.As(err, &own) {
		return own.text
	}
	if errors.As(err, new(interrupted)) {
		return "interrupted"
	}
	var e *job.Error
	if !errors.As(err, &e) {
		return err.Error() // of the machine: a file that is not there, a disk that is full
	}
	if e.Code == job.Unavailable && (unreachable(e) || e.Reason == "no_connection" || e.Reason == "untrusted") {
		return c.nobodyAnswers(e)
	}
	text := e.Message
	if e.Field != "" {
		text = e.Field + ": " + text
	}
	if text == "" {
		text = "the node answered with the error " + string(e.Code)
	}
	if e.Reason == "wants_tls" {
		return "the node speaks TLS; name the cluster's ca.crt with --ca or MUSTER_CA, and write addresses with https:// or without a scheme"
	}
	switch e.Code {
	case job.Unauthenticated:
		if e.Reason == "no_credential" {
			text = "a credential is needed"
		}
		text += "; name a valid credential with --token, --token-file or MUSTER_TOKEN"
	case job.Unknown:
		text += "; look before you repeat it"
	}
	return text
}

func (c *cli) nobodyAnswers(err error) string {
	at := strings.Join(c.addresses, ", ")
	var (
		dns   *net.DNSError
		bad   *tls.CertificateVerificationError
		other x509.HostnameError
	)
	switch {
	case errors.As(err, &other):
		return fmt.Sprintf("the node at %s has a certificate for other addresses (%v); use one of those, or make it another with `muster cluster certify --renew --node NAME=HOST`", at, other)
	case errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Sprintf("the node at %s speaks no TLS; write its address with http://, and leave --ca out", at)
	case errors.As(err, &bad) && c.ca == "":
		return fmt.Sprintf("the node at %s cannot be known without the cluster's certificate authority (%v); name the file ca.crt with --ca or MUSTER_CA", at, bad.Err)
	case errors.As(err, &bad):
		return fmt.Sprintf("the node at %s is not one of the cluster of %s: %v; check --ca and --address", at, c.ca, bad.Err)
	case errors.As(err, &dns):
		return fmt.Sprintf("no node answers at %s: the name %s is not known; check --address", at, dns.Name)
	case errors.Is(err, syscall.ECONNREFUSED):
		if len(c.addresses) > 1 || c.ca != "" {
			return fmt.Sprintf("no node answers at %s; check that they run, or set --address", at)
		}
		return fmt.Sprintf("no node answers at %s; start one with `muster dev`, or set --address", at)
	case timedOut(err):
		return fmt.Sprintf("no node answers at %s within the time limit; check that it runs and can be reached, or set --address", at)
	}
	cause := err
	var e *job.Error
	if errors.As(err, &e) && e.Cause != nil {
		cause = e.Cause
	}
	var u *url.Error
	if errors.As(err, &u) {
		cause = u.Err
	}
	return fmt.Sprintf("no node answers at %s (%v); check --address", at, cause)
}

func timedOut(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}

// unreachable tells whether an error is about the way to the node rather than an answer of it, or the way to Postgres.
func unreachable(err error) bool {
	var (
		op  *net.OpError
		dns *net.DNSError
		u   *url.Error
		e   *job.Error
	)
	if errors.As(err, &e) && e.Reason == "store_unavailable" {
		return false
	}
	return errors.As(err, &op) || errors.As(err, &dns) || errors.As(err, &u) && (timedOut(u) || errors.Is(u, io.EOF))
}

// fileError says in a few words why a file of the user's cannot be had.
func fileError(what, path string, err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return usageErrorf("%s %s does not exist", what, path)
	case errors.Is(err, syscall.EISDIR):
		return usageErrorf("%s %s is a directory", what, path)
	case errors.Is(err, fs.ErrPermission):
		return usageErrorf("%s %s cannot be opened: permission denied", what, path)
	}
	return &exitError{exitFailed, fmt.Sprintf("%s %s: %v", what, path, err)}
}
