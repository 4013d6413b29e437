package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"time"

	"github.com/musterhq/muster/job"
)

// CredentialRequest says what a new credential may do.
type CredentialRequest struct {
	Name       string // unique
	Role       job.Role
	Namespaces []string      // all it is good for; none: every namespace
	ExpiresIn  time.Duration // 0: never
}

// NewCredential is a credential with its token, which nobody can read again.
type NewCredential struct {
	job.Credential
	Token string `json:"token"`
}

// CreateCredential makes a credential. After an error with the code unknown it may exist, and its token be lost: revoke it by
// its name, and make another.
func (c *Client) CreateCredential(ctx context.Context, q CredentialRequest) (*NewCredential, error) {
	body := struct {
		Name       string        `json:"name"`
		Role       job.Role      `json:"role"`
		Namespaces []string      `json:"namespaces,omitempty"`
		ExpiresIn  *job.Duration `json:"expires_in,omitempty"`
	}{Name: q.Name, Role: q.Role, Namespaces: q.Namespaces}
	if q.ExpiresIn != 0 {
		d := job.Duration(q.ExpiresIn)
		body.ExpiresIn = &d
	}
	return ask[NewCredential](ctx, c, &call{method: http.MethodPost, path: "/v1/credentials", body: body, cluster: true, once: true})
}

// Credentials lists credentials by name, without their secrets. The sequence ends after its first error.
func (c *Client) Credentials(ctx context.Context) iter.Seq2[job.Credential, error] {
	return list[job.Credential](ctx, c, "/v1/credentials", nil, true)
}

// RevokeCredential ends a credential, by its id.
func (c *Client) RevokeCredential(ctx context.Context, id string) error {
	maybe, err := c.do(ctx, &call{method: http.MethodDelete, path: "/v1/credentials/" + url.PathEscape(id), cluster: true}, nil)
	if maybe && job.CodeOf(err) == job.NotFound {
		return nil // an attempt that nobody answered did it
	}
	return err
}
