package access

import (
	"context"
	"crypto/tls"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/musterhq/muster/api"
	"github.com/musterhq/muster/internal/pki"
	"github.com/musterhq/muster/job"
)

// Credentials finds a credential by its id.
type Credentials interface {
	Credential(id string) (job.Credential, bool)
}

// Config is what a guard works with.
type Config struct {
	Credentials Credentials
	// Identify tells who is on the other side of a connection, now: pki.Node.Identify. Nil: certificates count for nothing.
	Identify func(*tls.ConnectionState) (pki.Identity, bool)
	Now      func() time.Time // nil: time.Now
	// Renew is called when Credentials does not know one. It returns when they are as new as the cluster was at the call, or
	// says why they are not: whoever was just given his credential by another node, or asks one that starts, must not hear
	// that it was revoked. Strangers can call it as often as they like. Nil: they always are.
	Renew func(context.Context) error
}

// Guard finds out who calls and asks Decide. It remembers nothing: a credential that is revoked has ended with the next
// request, and with the next question that a stream asks.
type Guard struct {
	Config
	mu      sync.Mutex
	streams map[string]int // by worker
}

// New makes a guard.
func New(c Config) *Guard {
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Guard{Config: c, streams: map[string]int{}}
}

// Authorize is for api.Config.
func (g *Guard) Authorize(r *http.Request, op api.Operation) error {
	if op.Verb == api.Public {
		return nil
	}
	who, err := g.caller(r)
	if err != nil {
		return err
	}
	return Decide(who, op)
}

// maxStreams is how many streams one worker may have on a node. It needs one; the others are those that it lost without the
// node knowing yet.
const maxStreams = 16

// Admit is for gateway.Config: who has no worker's certificate gets no stream, and who has one gets few.
func (g *Guard) Admit(r *http.Request) (leave func(), err error) {
	who, err := g.worker(r)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.streams[who.Name] >= maxStreams {
		return nil, job.Errorf(job.Exhausted, "streams", "the worker %s has %d streams to this node already", who.Name, maxStreams)
	}
	g.streams[who.Name]++
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.streams[who.Name]--; g.streams[who.Name] == 0 {
			delete(g.streams, who.Name)
		}
	}, nil
}

func (g *Guard) worker(r *http.Request) (pki.Identity, error) {
	who, ok := g.certificate(r)
	if !ok || who.Role != pki.RoleWorker {
		return who, job.Errorf(job.Unauthenticated, "no_certificate", "a worker attaches with its certificate, and this connection has none that is good; join first")
	}
	return who, nil
}

// Worker is for gateway.Config: a stream belongs to the worker whose certificate its connection has.
func (g *Guard) Worker(r *http.Request, h job.WorkerHello) error {
	who, err := g.worker(r)
	switch {
	case err != nil:
		return err
	case who.Name != h.Name:
		return job.Errorf(job.Forbidden, "worker_name", "the certificate is for the worker %s, not for %s", who.Name, h.Name)
	}
	return nil
}

type callerKey struct{}

// Handler puts who calls where MayJoin finds it. It refuses nobody.
func (g *Guard) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, r)))
	})
}

// MayJoin decides, within a request that came through Handler, whether its caller may have a certificate as the worker of that
// name: with a join token any name, with a worker's certificate its own. Authorize knows the caller only, as the name is in
// the body.
func (g *Guard) MayJoin(ctx context.Context, name string) error {
	r, ok := ctx.Value(callerKey{}).(*http.Request)
	if !ok {
		return job.Errorf(job.Internal, "no_caller", "an internal error occurred")
	}
	who, err := g.caller(r)
	if err != nil {
		return err
	}
	if err := Decide(who, api.Operation{ID: "join-worker", Verb: api.Join}); err != nil {
		return err
	}
	if c := who.Certificate; c != nil && c.Name != name {
		return job.Errorf(job.Forbidden, "worker_name", "the certificate is for the worker %s, not for %s; another name takes a join token", c.Name, name)
	}
	return nil
}

// caller finds out who calls. A token says so whatever certificate the connection has; one that is not good is refused rather
// than passed over, so that a slip is seen.
func (g *Guard) caller(r *http.Request) (Caller, error) {
	switch values := r.Header.Values("Authorization"); {
	case len(values) > 1:
		return Caller{}, job.Errorf(job.Unauthenticated, "invalid_credential", "there is more than one Authorization header")
	case len(values) == 1 && values[0] != "":
		c, err := g.credential(r.Context(), values[0])
		return Caller{Credential: c}, err
	}
	if who, ok := g.certificate(r); ok {
		return Caller{Certificate: &who}, nil
	}
	return Caller{}, nil
}

const maxAuthorization = 512 // bytes; ours have about 70

func (g *Guard) credential(ctx context.Context, header string) (*job.Credential, error) {
	scheme, token, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "bearer") {
		return nil, job.Errorf(job.Unauthenticated, "invalid_credential", "the Authorization header does not read Bearer TOKEN")
	}
	id, secret, ok := job.ParseToken(token)
	if !ok || len(header) > maxAuthorization {
		return nil, job.Errorf(job.Unauthenticated, "invalid_credential", "this is not a credential of Muster; it looks like muster_ID_SECRET, whole")
	}
	c, found := g.Credentials.Credential(id)
	if !found && g.Renew != nil {
		if err := g.Renew(ctx); err != nil {
			return nil, &job.Error{Code: job.Unavailable, Reason: "behind", Cause: err,
				Message: "this node does not know the credential and cannot tell whether the cluster does; try again in a few seconds, or ask another node"}
		}
		c, found = g.Credentials.Credential(id)
	}
	// The secret is compared first and the end looked at second: who does not hold it is not told that it ended.
	if now := job.At(g.Now()); !c.Matches(secret, 0) || !found {
		return nil, job.Errorf(job.Unauthenticated, "invalid_credential", "there is no such credential; it was revoked, or is of another cluster")
	} else if !c.Matches(secret, now) {
		return nil, job.Errorf(job.Unauthenticated, "credential_expired", "the credential %s has expired", c.Name)
	}
	return &c, nil
}

func (g *Guard) certificate(r *http.Request) (pki.Identity, bool) {
	if g.Identify == nil || r.TLS == nil {
		return pki.Identity{}, false
	}
	return g.Identify(r.TLS)
}
