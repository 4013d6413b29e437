// Package pki makes and checks the certificates by which the processes of a cluster know each other.
//
// A cluster has one root, whose key stays with the people who run it. The root issues the certificates of nodes, and one
// certificate authority for workers, whose key is on every node so that a worker can exchange a join token for a certificate
// of its own. Who somebody is stands in the certificate as a URI, muster://CLUSTER/node/NAME or muster://CLUSTER/worker/NAME;
// and what a URI says counts only from the issuer that may say it: a node is issued by the root itself, a worker by the
// workers' authority. So what is stolen from a node makes workers, and never a node.
//
// Between nodes the address is not checked against the certificate, because nodes move: whoever holds a node certificate of
// this cluster is a node of it, and all of them are trusted alike. Whoever calls the API checks the address as usual.
package pki

import (
	"bytes"
	"crypto/x509"
	"net/url"
	"strings"
	"time"

	"github.com/musterhq/muster/job"
)

// Role says what kind of process a certificate is for.
type Role string

const (
	RoleNode   Role = "node"
	RoleWorker Role = "worker"
)

// Identity is who a certificate says its holder is.
type Identity struct {
	Cluster   string // the cluster's id
	Role      Role
	Name      string
	ExpiresAt time.Time
}

const (
	caLife     = 10 * 365 * 24 * time.Hour
	nodeLife   = 365 * 24 * time.Hour
	workerLife = 7 * 24 * time.Hour

	// backdated is how far a certificate reaches back, for machines whose clocks are behind.
	backdated = time.Hour
	// MaxDays is the longest life of a node certificate.
	MaxDays = 3650
	// minWorkerLife and maxWorkerLife bound what SignWorker is asked for.
	minWorkerLife, maxWorkerLife = time.Minute, 90 * 24 * time.Hour
)

const scheme = "muster"

func identityURI(cluster string, role Role, name string) *url.URL {
	return &url.URL{Scheme: scheme, Host: cluster, Path: "/" + string(role) + "/" + name}
}

// parseIdentity reads the URI of a certificate. What is written in any other way than ours is nobody.
func parseIdentity(u *url.URL) (who Identity, ok bool) {
	role, name, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	who = Identity{Cluster: u.Host, Role: Role(role), Name: name}
	if !ok || who.Cluster == "" || who.Role != RoleNode && who.Role != RoleWorker || job.CheckName("name", name) != nil {
		return Identity{}, false
	}
	return who, u.String() == identityURI(who.Cluster, who.Role, name).String()
}

// identify tells who presented a chain that was verified to end in a trusted certificate. It decides the role: a node's
// certificate lies directly under the root, a worker's under the one authority between.
func identify(chain []*x509.Certificate, root *x509.Certificate, cluster string, now time.Time) (who Identity, ok bool) {
	if len(chain) < 2 || chain[0].IsCA || len(chain[0].URIs) != 1 || !bytes.Equal(chain[len(chain)-1].Raw, root.Raw) {
		return Identity{}, false
	}
	if who, ok = parseIdentity(chain[0].URIs[0]); !ok || who.Cluster != cluster {
		return Identity{}, false
	}
	if depth := map[Role]int{RoleNode: 2, RoleWorker: 3}[who.Role]; len(chain) != depth {
		return Identity{}, false
	}
	who.ExpiresAt = chain[0].NotAfter
	for _, c := range chain { // a connection may outlive what it was opened with
		if now.After(c.NotAfter) {
			return Identity{}, false
		}
	}
	return who, true
}
