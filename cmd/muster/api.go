package main

import (
	"context"
	"crypto/tls"
	"iter"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

// retryFor is how long a call is repeated while the cluster answers that it cannot now: longer than a leader's election.
const retryFor = 10 * time.Second

// client makes the client of this invocation, and the context for its calls.
//
// The SDK repeats what fails for want of a connection, because a program outlives its cluster's bad moments. A person whose
// node is simply not running should not be kept waiting for that: until some node has answered once, the context ends as
// soon as every address has failed.
func (c *cli) client(ctx context.Context) (context.Context, *client.Client, error) {
	if err := c.checkAddresses(); err != nil {
		return nil, nil, err
	}
	token, err := c.bearer()
	if err != nil {
		return nil, nil, err
	}
	var trust *tls.Config
	if c.ca != "" {
		if trust, err = client.TrustCA(c.ca); err != nil {
			return nil, nil, caError(c.ca, err)
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	transport := client.Transport(trust)
	c.atEnd = append(c.atEnd, func() {
		cancel(nil)
		transport.CloseIdleConnections()
	})
	k, err := client.New(client.Config{
		Addresses: c.addresses, Token: token, Namespace: c.namespace, RetryFor: retryFor,
		HTTPClient: &http.Client{
			Transport:     &firstContact{next: transport, left: len(c.addresses), giveUp: cancel},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	})
	return ctx, k, err
}

// firstContact gives up when the first try at every address has failed.
type firstContact struct {
	next   http.RoundTripper
	giveUp context.CancelCauseFunc

	mu   sync.Mutex
	left int // addresses that have not failed yet; below 0 once one has answered
}

func (f *firstContact) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := f.next.RoundTrip(r)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err == nil:
		f.left = -1
	case f.left > 0:
		if f.left--; f.left == 0 {
			f.giveUp(&job.Error{Code: job.Unavailable, Reason: "no_connection", Message: "no node could be reached", Cause: err})
		}
	}
	return resp, err
}

// collect reads a sequence, up to a limit; more tells that there is more. A limit of 0 reads all.
func collect[T any](seq iter.Seq2[T, error], limit int) (items []T, more bool, err error) {
	for item, err := range seq {
		if err != nil {
			return nil, false, err
		}
		if limit > 0 && len(items) == limit {
			return items, true, nil
		}
		items = append(items, item)
	}
	return items, false, nil
}

// hintMore says, to people, that a list was cut.
func (c *cli) hintMore(more bool, limit int) {
	switch {
	case !more || !c.human():
	case limit == 1:
		c.say("only the first is shown; --limit shows more")
	default:
		c.say("only the first %d are shown; --limit shows more", limit)
	}
}

func checkLimit(n int) error {
	if n < 0 {
		return usageErrorf("--limit: %d is out of range; use 1 or more, or 0 for all", n)
	}
	return nil
}

// parseLabels reads key=value pairs.
func parseLabels(flag string, pairs []string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	m := map[string]string{}
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, usageErrorf("--%s: %q is not a label; write key=value", flag, clip(p, 64))
		}
		if old, twice := m[k]; twice && old != v {
			return nil, usageErrorf("--%s: %q is given with two values", flag, clip(k, 64))
		}
		m[k] = v
	}
	if err := job.CheckLabels("--"+flag, m); err != nil {
		return nil, err
	}
	return m, nil
}

func labelWords(m map[string]string) string {
	var b strings.Builder
	for _, k := range sortedKeys(m) {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(k + "=" + m[k])
	}
	return b.String()
}

// checkJobName refuses what could not be a name before it becomes a part of an address.
func checkJobName(name string) error { return job.CheckName("NAME", name) }

// each does the same to several things. It goes on after an error, reports it, and fails in the end.
func (c *cli) each(ctx context.Context, names []string, do func(name string) error) error {
	var errs []error
	for _, name := range names {
		if err := do(name); err != nil {
			if len(names) == 1 || ctx.Err() != nil { // nobody is there, or somebody interrupts: it would be the same for all
				return err
			}
			c.report(prefixed(name, c.sentence(err)))
			errs = append(errs, err)
		}
	}
	return failure(errs)
}

func prefixed(name, text string) error { return &exitError{exitFailed, clip(name, 64) + ": " + text} }
