package api

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"

	"github.com/musterhq/muster/job"
)

// CredentialRequest is the body of POST /v1/credentials.
type CredentialRequest struct {
	Name       string        `json:"name" doc:"what people call it; unique"`
	Role       job.Role      `json:"role"`
	Namespaces []string      `json:"namespaces,omitempty" doc:"all it is good for; without them: every namespace"`
	ExpiresIn  *job.Duration `json:"expires_in,omitempty" doc:"without it: never"`
}

// NewCredential is a credential with its token, which is shown this once.
type NewCredential struct {
	job.Credential
	Token string `json:"token" doc:"the secret; it is kept nowhere and cannot be shown again"`
}

// perNamespace are the roles that can be limited to namespaces; the others are about the cluster.
var perNamespace = []job.Role{job.RoleDeveloper, job.RoleSubmitter, job.RoleViewer}

func (a *API) createCredential(rq *request, _ *inNothing) error {
	var q CredentialRequest
	if err := rq.decode(a, &q); err != nil {
		return err
	}
	if err := q.check(); err != nil {
		return err
	}
	if a.Credentials == nil {
		return errAlone()
	}
	secret, id := make([]byte, 32), make([]byte, 8)
	_, _ = rand.Read(secret) // never fails
	_, _ = rand.Read(id)
	c := job.Credential{
		ID: hex.EncodeToString(id), Name: q.Name, Role: q.Role, Namespaces: q.Namespaces,
		Digest: job.SecretDigest(secret), CreatedAt: a.now(),
	}
	if q.ExpiresIn != nil {
		c.ExpiresAt = job.At(a.Now().Add(q.ExpiresIn.Std()))
	}
	if err := a.Credentials.PutCredential(rq.ctx, c); err != nil {
		return err
	}
	a.Logger.Info("a credential was created", "id", c.ID, "name", c.Name, "role", string(c.Role), "request_id", rq.id)
	return rq.json(http.StatusCreated, NewCredential{c, job.Token(c.ID, secret)})
}

func (q *CredentialRequest) check() error {
	if err := checkName("name", q.Name); err != nil {
		return err
	}
	if !q.Role.Valid() {
		words := make([]string, len(job.Roles))
		for i, r := range job.Roles {
			words[i] = string(r)
		}
		return job.InvalidField("role", "%s is not a role; use one of %s", quote(string(q.Role)), strings.Join(words, ", "))
	}
	if q.Namespaces != nil && len(q.Namespaces) == 0 { // a list that came out empty must not open everything
		return job.InvalidField("namespaces", "the list is empty; leave it out for every namespace")
	}
	if len(q.Namespaces) > MaxNamespaces {
		return job.InvalidField("namespaces", "%d are given; %d are allowed", len(q.Namespaces), MaxNamespaces)
	}
	if len(q.Namespaces) > 0 && !slices.Contains(perNamespace, q.Role) {
		return job.InvalidField("namespaces", "the role %s is one of the whole cluster; leave the namespaces out, or give the role developer, submitter or viewer", q.Role)
	}
	for _, ns := range q.Namespaces {
		if err := checkName("namespaces", ns); err != nil {
			return err
		}
	}
	slices.Sort(q.Namespaces)
	q.Namespaces = slices.Compact(q.Namespaces)
	if d := q.ExpiresIn; d != nil && (d.Std() < MinCredentialLife || d.Std() > MaxCredentialLife) {
		return job.InvalidField("expires_in", "%s is out of range; a credential lives at least %s and at most 10 years, or for ever if this is left out", d, MinCredentialLife)
	}
	return nil
}

type inCredentials struct {
	Limit  limitParam `query:"limit"`
	Cursor string     `query:"cursor" doc:"next_cursor of the page before"`
}

const credentialCursor cursorKind = 'c' // position: the last name

func (a *API) listCredentials(rq *request, in *inCredentials) error {
	limit, err := in.Limit.read("limit", MaxPage)
	if err != nil {
		return err
	}
	after := ""
	if in.Cursor != "" {
		b, err := readCursor(credentialCursor, "", in.Cursor)
		if err != nil {
			return err
		}
		after = string(b)
	}
	if a.Credentials == nil {
		return errAlone()
	}
	all := slices.DeleteFunc(slices.Clone(a.Credentials.Credentials()), func(c job.Credential) bool { return after != "" && c.Name <= after })
	slices.SortFunc(all, func(x, y job.Credential) int { return strings.Compare(x.Name, y.Name) })
	p := page[job.Credential]{Items: all[:min(len(all), limit)]}
	if len(all) > limit {
		p.NextCursor = makeCursor(credentialCursor, "", []byte(all[limit-1].Name))
	}
	return rq.json(http.StatusOK, p)
}

type inCredential struct {
	ID nameParam `path:"id"`
}

func (a *API) dropCredential(rq *request, in *inCredential) error {
	if err := checkName("id", string(in.ID)); err != nil {
		return err
	}
	if a.Credentials == nil {
		return errAlone()
	}
	if err := a.Credentials.DropCredential(rq.ctx, string(in.ID)); err != nil {
		return err
	}
	a.Logger.Info("a credential was revoked", "id", string(in.ID), "request_id", rq.id)
	return rq.nothing()
}
