package fsm

import (
	"bytes"
	"crypto/sha256"
	"slices"
	"strings"

	"github.com/musterhq/muster/job"
)

// MaxCredentials is how many credentials there may be, expired ones included.
const MaxCredentials = 10_000

// PutCredential adds a credential. One that is there already, equal in all, is answered like the first time; another one
// of its id (reason credential_exists) or name (reason name_taken) is Conflict. It answers nothing.
//
// Which roles exist is the API's to check: a list that grows would make replicas of two versions answer differently.
type PutCredential struct {
	Credential job.Credential `cbor:"1,keyasint"`
}

// Kind implements Command.
func (*PutCredential) Kind() Kind { return KindPutCredential }

// Size implements Command.
func (c *PutCredential) Size() int { return 8 + credentialSize(&c.Credential) }

func credentialSize(c *job.Credential) int {
	n := 64 + len(c.ID) + len(c.Name) + len(c.Role) + len(c.Digest)
	for _, name := range c.Namespaces {
		n += 5 + len(name)
	}
	return n
}

func (c *PutCredential) apply(t *tx, _ Meta) Result {
	k := &c.Credential
	if e := checkCredential(k); e != nil {
		return refuse(e)
	}
	if old := t.credentials.get(k.ID); old != nil {
		if sameCredential(old, k) {
			return Result{}
		}
		return refuse(job.Errorf(job.Conflict, "credential_exists", "there is another credential with the id %q", k.ID))
	}
	for old := range t.credentials.all() {
		if old.Name == k.Name {
			return refuse(job.Errorf(job.Conflict, "name_taken", "there is a credential named %q already", k.Name))
		}
	}
	if t.credentials.tree.Len() >= MaxCredentials {
		return refuse(job.Errorf(job.Exhausted, "credentials_full", "there are %d credentials; no more fit", MaxCredentials))
	}
	own := *k
	t.credentials.put(&own)
	t.directoryChanged = true
	return Result{}
}

// checkCredential refuses one that a token could not name or prove.
func checkCredential(k *job.Credential) *job.Error {
	switch {
	case k.ID == "" || strings.Contains(k.ID, "_"):
		return job.Errorf(job.Invalid, "credential", "a credential needs an id without an underscore")
	case k.Name == "" || k.Role == "":
		return job.Errorf(job.Invalid, "credential", "a credential needs a name and a role")
	case len(k.Digest) != sha256.Size:
		return job.Errorf(job.Invalid, "credential", "a credential needs the SHA-256 of its secret")
	}
	return nil
}

func sameCredential(a, b *job.Credential) bool {
	return a.ID == b.ID && a.Name == b.Name && a.Role == b.Role && slices.Equal(a.Namespaces, b.Namespaces) &&
		bytes.Equal(a.Digest, b.Digest) && a.CreatedAt == b.CreatedAt && a.ExpiresAt == b.ExpiresAt
}

// DropCredential revokes a credential. One that is not there is NotFound. The last admin that has not expired stays
// (Conflict, reason last_admin): without one nobody could ever make a credential again. It answers the job.Credential.
type DropCredential struct {
	ID string `cbor:"1,keyasint"`
}

// Kind implements Command.
func (*DropCredential) Kind() Kind { return KindDropCredential }

// Size implements Command.
func (c *DropCredential) Size() int { return 16 + len(c.ID) }

func (c *DropCredential) apply(t *tx, m Meta) Result {
	old := t.credentials.get(c.ID)
	if old == nil {
		return refuse(job.Errorf(job.NotFound, "credential", "there is no credential %q", c.ID))
	}
	admin := func(k *job.Credential) bool {
		return k.Role == job.RoleAdmin && (k.ExpiresAt == 0 || m.At < k.ExpiresAt)
	}
	if admin(old) {
		others := false
		for k := range t.credentials.all() {
			others = others || k.ID != c.ID && admin(k)
		}
		if !others {
			return refuse(job.Errorf(job.Conflict, "last_admin", "%q is the last admin credential; make another one first", old.Name))
		}
	}
	t.credentials.del(old)
	t.directoryChanged = true
	return Result{Value: *old}
}

// Credential answers a credential by its id, at the cost of a look-up: no lock, and nothing is frozen. Nobody may change
// what it refers to.
func (s *State) Credential(id string) (job.Credential, bool) {
	return value(s.directory.Load().credentials.get(id))
}

// Credentials answers all credentials by name.
func (s *State) Credentials() []job.Credential {
	list := values(s.directory.Load().credentials.all())
	slices.SortFunc(list, func(a, b job.Credential) int { return strings.Compare(a.Name, b.Name) })
	return list
}
