// Package access decides who may do what. The decision is a pure function of a caller and an operation; the Guard around it
// finds out who calls: from the bearer token of a request, else from the certificate of its connection.
//
// A credential may do what its role says, in its namespaces. A certificate may do one thing: a worker's, attach as that
// worker and join again to have itself renewed; a node's, greet another node. Neither reads or changes what users own.
//
// There are no cookies, and a browser sends neither a token nor an answer to another site by itself: so there is nothing for
// a foreign page to borrow, and no origin is ever allowed across.
package access

import (
	"slices"
	"strings"

	"github.com/musterhq/muster/api"
	"github.com/musterhq/muster/internal/pki"
	"github.com/musterhq/muster/job"
)

// Caller is who calls. At most one of the two is set; neither is a stranger.
type Caller struct {
	Credential  *job.Credential // one that was found good
	Certificate *pki.Identity   // of this cluster, and good now
}

// may says which verbs each role has. job.Role says it in words.
var may = map[job.Role][]api.Verb{
	job.RoleAdmin:     {api.Read, api.Submit, api.Define, api.Inspect, api.Operate, api.Admin, api.Join},
	job.RoleOperator:  {api.Read, api.Inspect, api.Operate},
	job.RoleDeveloper: {api.Read, api.Submit, api.Define, api.Inspect},
	job.RoleSubmitter: {api.Read, api.Submit},
	job.RoleViewer:    {api.Read, api.Inspect},
	job.RoleJoin:      {api.Join},
}

// certified says the same of certificates.
var certified = map[pki.Role][]api.Verb{
	pki.RoleNode:   {api.Peer},
	pki.RoleWorker: {api.Join},
}

// clusterWide are the verbs that concern all namespaces at once, so that a credential for some of them has none of these: a
// snapshot holds everything, and whoever makes credentials could make one for all.
var clusterWide = []api.Verb{api.Operate, api.Admin}

// Decide says whether the caller may do the operation: nil, Unauthenticated for a stranger, or Forbidden.
func Decide(who Caller, op api.Operation) error {
	switch {
	case op.Verb == api.Public:
		return nil
	case who.Credential != nil:
		return decideCredential(who.Credential, op)
	case who.Certificate != nil:
		if slices.Contains(certified[who.Certificate.Role], op.Verb) {
			return nil
		}
		return job.Errorf(job.Forbidden, "certificate", "a certificate of a %s does not allow this; it takes a credential", who.Certificate.Role)
	case op.Verb == api.Peer:
		return job.Errorf(job.Unauthenticated, "no_certificate", "this is between nodes; it takes the certificate of a node of this cluster")
	case op.Verb == api.Join:
		return job.Errorf(job.Unauthenticated, "no_credential", "a join token is needed, or the certificate of a worker of this cluster")
	}
	return job.Errorf(job.Unauthenticated, "no_credential", "a credential is needed")
}

func decideCredential(c *job.Credential, op api.Operation) error {
	switch {
	case op.Verb == api.Peer:
		return job.Errorf(job.Forbidden, "no_certificate", "this is between nodes; it takes the certificate of a node of this cluster, and no credential")
	case !slices.Contains(may[c.Role], op.Verb):
		return job.Errorf(job.Forbidden, "role", "a credential of the role %s may not %s", c.Role, words[op.Verb])
	case len(c.Namespaces) > 0 && slices.Contains(clusterWide, op.Verb):
		return job.Errorf(job.Forbidden, "namespace", "this concerns the whole cluster; the credential is for %s only", list(c.Namespaces))
	case c.MayUse(op.Namespace):
		return nil
	case op.Namespace == "*":
		return job.Errorf(job.Forbidden, "namespace", "the credential is for %s only; name one namespace", list(c.Namespaces))
	}
	return job.Errorf(job.Forbidden, "namespace", "the credential is for %s, not for the namespace %s", list(c.Namespaces), op.Namespace)
}

// words are the verbs as a sentence goes on with them.
var words = map[api.Verb]string{
	api.Read: "read jobs and runs", api.Submit: "start, cancel or retry runs", api.Define: "change jobs",
	api.Inspect: "look at workers and the cluster", api.Operate: "operate workers and the cluster",
	api.Admin: "administer the cluster", api.Join: "let workers join",
}

func list(namespaces []string) string {
	if len(namespaces) == 1 {
		return "the namespace " + namespaces[0]
	}
	return "the namespaces " + strings.Join(namespaces, ", ")
}
