package job

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"slices"
	"strings"
)

// Credential is the right to call the API. The secret itself is kept nowhere: it is random and long, so its plain digest
// is enough.
type Credential struct {
	ID         string   `json:"id" cbor:"1,keyasint"` // part of the token
	Name       string   `json:"name" cbor:"2,keyasint"`
	Role       Role     `json:"role" cbor:"3,keyasint"`
	Namespaces []string `json:"namespaces,omitempty" cbor:"4,keyasint,omitempty"` // none: all of them
	Digest     []byte   `json:"-" cbor:"5,keyasint"`                              // SHA-256 of the secret
	CreatedAt  Instant  `json:"created_at" cbor:"6,keyasint"`
	ExpiresAt  Instant  `json:"expires_at,omitempty" cbor:"7,keyasint,omitempty"` // 0: never
}

// Role says what a credential may do. The list is closed; each role may do what is said and no more.
type Role string

const (
	RoleAdmin     Role = "admin"     // everything
	RoleOperator  Role = "operator"  // read; inspect and operate workers and cluster; not credentials
	RoleDeveloper Role = "developer" // read; submit and define in its namespaces; inspect
	RoleSubmitter Role = "submitter" // read and submit in its namespaces
	RoleViewer    Role = "viewer"    // read in its namespaces; inspect
	RoleJoin      Role = "join"      // let workers join: the join token
)

// Roles are all of them.
var Roles = []Role{RoleAdmin, RoleOperator, RoleDeveloper, RoleSubmitter, RoleViewer, RoleJoin}

// Valid tells whether the role is in the list.
func (r Role) Valid() bool { return slices.Contains(Roles, r) }

const tokenPrefix = "muster_"

// Token is what a caller sends: it names the credential, so that finding it takes no search. The secret has 32 bytes.
func Token(id string, secret []byte) string {
	return tokenPrefix + id + "_" + base64.RawURLEncoding.EncodeToString(secret)
}

// ParseToken takes a token apart. An id has no underscore.
func ParseToken(token string) (id string, secret []byte, ok bool) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(token), tokenPrefix)
	if !ok {
		return "", nil, false
	}
	id, text, ok := strings.Cut(rest, "_")
	if !ok || id == "" {
		return "", nil, false
	}
	secret, err := base64.RawURLEncoding.DecodeString(text)
	return id, secret, err == nil && len(secret) == 32
}

// SecretDigest is what is kept of a secret.
func SecretDigest(secret []byte) []byte {
	d := sha256.Sum256(secret)
	return d[:]
}

// Matches tells whether the secret is this credential's, in constant time, and the credential still good at now.
func (c *Credential) Matches(secret []byte, now Instant) bool {
	return subtle.ConstantTimeCompare(c.Digest, SecretDigest(secret)) == 1 && (c.ExpiresAt == 0 || now < c.ExpiresAt)
}

// MayUse tells whether the credential is good for a namespace; "*" is all of them.
func (c *Credential) MayUse(namespace string) bool {
	return len(c.Namespaces) == 0 || namespace == "" || slices.Contains(c.Namespaces, namespace)
}
