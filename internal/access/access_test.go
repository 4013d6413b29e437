package access

import (
	"context"
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/musterhq/muster/api"
	"github.com/musterhq/muster/internal/pki"
	"github.com/musterhq/muster/job"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// allowed is the table as a person would write it, beside the one that decides: a row for each caller, a column for each verb.
var allowed = map[string]string{ // public read submit define inspect operate admin join peer
	"admin":               "public read submit define inspect operate admin join",
	"operator":            "public read inspect operate",
	"developer":           "public read submit define inspect",
	"submitter":           "public read submit",
	"viewer":              "public read inspect",
	"join":                "public join",
	"admin of a":          "public read submit define inspect join",
	"operator of a":       "public read inspect",
	"developer of a":      "public read submit define inspect",
	"submitter of a":      "public read submit",
	"viewer of a":         "public read inspect",
	"a node":              "public peer",
	"a worker":            "public join",
	"a stranger":          "public",
	"a role we know not":  "public",
	"a certificate alike": "public",
}

func callers() map[string]Caller {
	all := map[string]Caller{
		"a node":              {Certificate: &pki.Identity{Role: pki.RoleNode, Name: "n1"}},
		"a worker":            {Certificate: &pki.Identity{Role: pki.RoleWorker, Name: "w1"}},
		"a certificate alike": {Certificate: &pki.Identity{Role: "admin", Name: "n1"}},
		"a role we know not":  {Credential: &job.Credential{Role: "root"}},
		"a stranger":          {},
	}
	for _, r := range job.Roles {
		all[string(r)] = Caller{Credential: &job.Credential{Role: r}}
		if r != job.RoleJoin {
			all[string(r)+" of a"] = Caller{Credential: &job.Credential{Role: r, Namespaces: []string{"a", "b"}}}
		}
	}
	return all
}

func TestEveryRoleAndVerb(t *testing.T) {
	t.Parallel()
	if all := callers(); len(all) != len(allowed) {
		t.Errorf("%d callers, %d rows", len(all), len(allowed))
	}
	for name, who := range callers() {
		row, ok := allowed[name]
		if !ok {
			t.Errorf("%s is not in the table", name)
		}
		for _, verb := range api.Verbs {
			for _, namespace := range []string{"", "a", "b", "c", "*"} {
				want := slices.Contains(strings.Fields(row), string(verb))
				if strings.HasSuffix(name, " of a") && verb != api.Public {
					want = want && (namespace == "" || namespace == "a" || namespace == "b")
				}
				err := Decide(who, api.Operation{ID: "x", Verb: verb, Namespace: namespace})
				if (err == nil) != want {
					t.Errorf("%s, %s, namespace %q: %v", name, verb, namespace, err)
				}
				if err == nil {
					continue
				}
				code := job.Forbidden
				if name == "a stranger" {
					code = job.Unauthenticated
				}
				if e := job.AsError(err); e.Code != code || e.Reason == "" || e.Message == "" || strings.Contains(e.Message, "%!") || strings.HasSuffix(e.Message, " ") {
					t.Errorf("%s, %s, namespace %q: %+v", name, verb, namespace, e)
				}
			}
		}
	}
	for _, verb := range api.Verbs {
		if verb != api.Public && verb != api.Peer && words[verb] == "" {
			t.Errorf("there are no words for %s", verb)
		}
	}
	for _, r := range job.Roles {
		if len(may[r]) == 0 {
			t.Errorf("%s may do nothing", r)
		}
	}
	if err := Decide(Caller{Credential: &job.Credential{Role: job.RoleAdmin}}, api.Operation{Verb: "new"}); job.CodeOf(err) != job.Forbidden {
		t.Errorf("a verb that nobody thought of: %v", err)
	}
}

// people are credentials, with their tokens.
type people map[string]job.Credential

func (p people) Credential(id string) (job.Credential, bool) { c, ok := p[id]; return c, ok }

func (p people) add(id string, secret byte, c job.Credential) (token string) {
	s := slices.Repeat([]byte{secret}, 32)
	c.ID, c.Name, c.Digest = id, "the "+id, job.SecretDigest(s)
	p[id] = c
	return job.Token(id, s)
}

func TestWhoCalls(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	p := people{}
	viewer := p.add("v", 1, job.Credential{Role: job.RoleViewer})
	ended := p.add("e", 2, job.Credential{Role: job.RoleAdmin, ExpiresAt: job.At(now)})
	running := p.add("r", 3, job.Credential{Role: job.RoleViewer, ExpiresAt: job.At(now) + 1})
	revoked := p.add("gone", 4, job.Credential{Role: job.RoleAdmin})
	delete(p, "gone")
	p["empty"] = job.Credential{ID: "empty", Role: job.RoleAdmin} // no digest: matches nothing
	secretOf := func(token string) string { return token[strings.LastIndex(token, "_")+1:] }
	node := &tls.ConnectionState{ServerName: "node"}
	g := New(Config{Credentials: p, Now: func() time.Time { return now }, Identify: func(s *tls.ConnectionState) (pki.Identity, bool) {
		return pki.Identity{Role: pki.RoleNode, Name: "n1"}, s.ServerName == "node"
	}})
	read, peer := api.Operation{Verb: api.Read, Namespace: "a"}, api.Operation{Verb: api.Peer}
	for _, x := range []struct {
		about  string
		header []string
		tls    *tls.ConnectionState
		op     api.Operation
		code   job.Code
		reason string
	}{
		{"nobody", nil, nil, read, job.Unauthenticated, "no_credential"},
		{"nobody, over TLS", nil, &tls.ConnectionState{}, read, job.Unauthenticated, "no_credential"},
		{"an empty header", []string{""}, nil, read, job.Unauthenticated, "no_credential"},
		{"a good token", []string{"Bearer " + viewer}, nil, read, "", ""},
		{"in other letters", []string{"bEARER " + viewer}, nil, read, "", ""},
		{"with a space more", []string{"Bearer  " + viewer + " "}, nil, read, "", ""},
		{"that runs still", []string{"Bearer " + running}, nil, read, "", ""},
		{"that has ended", []string{"Bearer " + ended}, nil, read, job.Unauthenticated, "credential_expired"},
		{"that has ended, with another's secret", []string{"Bearer muster_e_" + secretOf(viewer)}, nil, read, job.Unauthenticated, "invalid_credential"},
		{"that was revoked", []string{"Bearer " + revoked}, nil, read, job.Unauthenticated, "invalid_credential"},
		{"with another's secret", []string{"Bearer muster_v_" + secretOf(ended)}, nil, read, job.Unauthenticated, "invalid_credential"},
		{"of a credential without digest", []string{"Bearer muster_empty_" + secretOf(viewer)}, nil, read, job.Unauthenticated, "invalid_credential"},
		{"cut off", []string{"Bearer " + viewer[:len(viewer)-1]}, nil, read, job.Unauthenticated, "invalid_credential"},
		{"without its secret", []string{"Bearer muster_v_"}, nil, read, job.Unauthenticated, "invalid_credential"},
		{"another kind of token", []string{"Bearer eyJhbGciOi"}, nil, read, job.Unauthenticated, "invalid_credential"},
		{"no token", []string{"Bearer"}, nil, read, job.Unauthenticated, "invalid_credential"},
		{"another scheme", []string{"Basic " + viewer}, nil, read, job.Unauthenticated, "invalid_credential"},
		{"two headers", []string{"Bearer " + viewer, "Bearer " + viewer}, nil, read, job.Unauthenticated, "invalid_credential"},
		{"a huge header", []string{"Bearer " + strings.Repeat(" ", 1<<16) + viewer}, nil, read, job.Unauthenticated, "invalid_credential"},
		{"a viewer who writes", []string{"Bearer " + viewer}, nil, api.Operation{Verb: api.Submit}, job.Forbidden, "role"},
		{"a node", nil, node, peer, "", ""},
		{"a node that reads", nil, node, read, job.Forbidden, "certificate"},
		{"a node with a token", []string{"Bearer " + viewer}, node, read, "", ""},
		{"which then speaks for it", []string{"Bearer " + viewer}, node, peer, job.Forbidden, "no_certificate"},
		{"a node with a token that is not good", []string{"Bearer " + revoked}, node, peer, job.Unauthenticated, "invalid_credential"},
		{"no node", nil, &tls.ConnectionState{}, peer, job.Unauthenticated, "no_certificate"},
		{"nobody who joins", nil, nil, api.Operation{Verb: api.Join}, job.Unauthenticated, "no_credential"},
		{"a bad token where none is needed", []string{"Bearer x"}, nil, api.Operation{Verb: api.Public}, "", ""},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.TLS = x.tls
		for _, h := range x.header {
			r.Header.Add("Authorization", h)
		}
		err := g.Authorize(r, x.op)
		if job.CodeOf(err) != x.code || err != nil && job.AsError(err).Reason != x.reason {
			t.Errorf("%s: %v", x.about, err)
		}
		if err != nil && (strings.Contains(err.Error(), secretOf(viewer)) || strings.Contains(err.Error(), secretOf(ended))) {
			t.Errorf("%s: the answer holds a secret: %v", x.about, err)
		}
	}
	// Without TLS certificates count for nothing, whatever the request says.
	g = New(Config{Credentials: p})
	r := httptest.NewRequest("GET", "/", nil)
	r.TLS = node
	if err := g.Authorize(r, peer); job.CodeOf(err) != job.Unauthenticated {
		t.Error(err)
	}
}

// A credential that is revoked has ended with the next question, as has one that is changed.
func TestRevoked(t *testing.T) {
	t.Parallel()
	p := people{}
	token := p.add("v", 1, job.Credential{Role: job.RoleViewer})
	g := New(Config{Credentials: p})
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	if err := g.Authorize(r, api.Operation{Verb: api.Read}); err != nil {
		t.Error(err)
	}
	delete(p, "v")
	if err := g.Authorize(r, api.Operation{Verb: api.Read}); job.CodeOf(err) != job.Unauthenticated {
		t.Error(err)
	}
}

// A node that does not know all credentials denies none before it has looked again, and believes none.
func TestNotAllAreKnownYet(t *testing.T) {
	t.Parallel()
	p, other := people{}, people{}
	known := p.add("v", 1, job.Credential{Role: job.RoleViewer})
	fresh := other.add("w", 2, job.Credential{Role: job.RoleViewer})
	var cut error
	calls := 0
	g := New(Config{Credentials: p, Renew: func(context.Context) error {
		if calls++; cut == nil {
			p["w"] = other["w"]
		}
		return cut
	}})
	as := func(token string) error {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		return g.Authorize(r, api.Operation{Verb: api.Read})
	}
	cut = job.Errorf(job.Unavailable, "no_leader", "no leader")
	if err := as(known); err != nil || calls != 0 {
		t.Errorf("one that is known: %v, %d calls", err, calls)
	}
	if err := as(fresh); job.CodeOf(err) != job.Unavailable || job.AsError(err).Reason != "behind" {
		t.Errorf("a node that is cut off: %v", err)
	}
	if err := as("hello"); job.CodeOf(err) != job.Unauthenticated || calls != 1 {
		t.Errorf("garbage: %v, %d calls", err, calls)
	}
	cut = nil
	if err := as(strings.Replace(fresh, "_w_", "_x_", 1)); job.CodeOf(err) != job.Unauthenticated {
		t.Errorf("one that nobody made: %v", err)
	}
	delete(p, "w")
	if err := as(fresh); err != nil {
		t.Errorf("one that another node made: %v", err)
	}
}

func TestWorkers(t *testing.T) {
	t.Parallel()
	p := people{}
	join := p.add("j", 1, job.Credential{Role: job.RoleJoin})
	viewer := p.add("v", 2, job.Credential{Role: job.RoleViewer})
	admin := p.add("a", 3, job.Credential{Role: job.RoleAdmin})
	g := New(Config{Credentials: p, Identify: func(s *tls.ConnectionState) (pki.Identity, bool) {
		role, name, ok := strings.Cut(s.ServerName, "/")
		return pki.Identity{Role: pki.Role(role), Name: name}, ok
	}})
	for _, x := range []struct {
		certificate, token string
		attach, join       job.Code // as w1
	}{
		{"worker/w1", "", "", ""},
		{"worker/w2", "", job.Forbidden, job.Forbidden},
		{"worker/W1", "", job.Forbidden, job.Forbidden},
		{"node/w1", "", job.Unauthenticated, job.Forbidden},
		{"none", "", job.Unauthenticated, job.Unauthenticated},
		{"", "", job.Unauthenticated, job.Unauthenticated},
		{"", join, job.Unauthenticated, ""}, // a token is exchanged for a certificate, and attaches nobody
		{"", admin, job.Unauthenticated, ""},
		{"", viewer, job.Unauthenticated, job.Forbidden},
		{"", "muster_x", job.Unauthenticated, job.Unauthenticated},
		{"worker/w2", join, job.Forbidden, ""}, // another name takes a join token
		{"worker/w1", viewer, "", job.Forbidden},
		{"worker/w1", "muster_x", "", job.Unauthenticated},
	} {
		r := httptest.NewRequest("POST", "/", nil)
		if x.certificate != "" {
			r.TLS = &tls.ConnectionState{ServerName: x.certificate}
		}
		if x.token != "" {
			r.Header.Set("Authorization", "Bearer "+x.token)
		}
		if err := g.Worker(r, job.WorkerHello{Name: "w1"}); job.CodeOf(err) != x.attach {
			t.Errorf("%+v attaches: %v", x, err)
		}
		// Before it has said as whom it is let in as far as that, by a worker's certificate of any name.
		leave, err := g.Admit(r)
		if want := x.attach == "" || x.attach == job.Forbidden; (err == nil) != want || !want && job.CodeOf(err) != x.attach {
			t.Errorf("%+v is let in: %v", x, err)
		}
		if leave != nil {
			leave()
		}
		err = nil
		g.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { err = g.MayJoin(r.Context(), "w1") })).ServeHTTP(nil, r)
		if job.CodeOf(err) != x.join {
			t.Errorf("%+v joins: %v", x, err)
		}
	}
	if err := g.MayJoin(t.Context(), "w1"); job.CodeOf(err) != job.Internal {
		t.Errorf("a join that came past the guard: %v", err)
	}
}

// One worker cannot take the streams of all the others.
func TestAWorkerHasFewStreams(t *testing.T) {
	t.Parallel()
	g := New(Config{Credentials: people{}, Identify: func(s *tls.ConnectionState) (pki.Identity, bool) {
		return pki.Identity{Role: pki.RoleWorker, Name: s.ServerName}, true
	}})
	admit := func(name string) (func(), error) {
		r := httptest.NewRequest("POST", "/", nil)
		r.TLS = &tls.ConnectionState{ServerName: name}
		return g.Admit(r)
	}
	var leave []func()
	for range maxStreams {
		l, err := admit("w1")
		if err != nil {
			t.Fatal(err)
		}
		leave = append(leave, l)
	}
	if _, err := admit("w1"); job.CodeOf(err) != job.Exhausted {
		t.Errorf("one more: %v", err)
	}
	if l, err := admit("w2"); err != nil {
		t.Errorf("another worker: %v", err)
	} else {
		l()
	}
	leave[0]()
	l, err := admit("w1")
	if err != nil {
		t.Fatalf("after one has ended: %v", err)
	}
	for _, l := range append(leave[1:], l) {
		l()
	}
	if len(g.streams) != 0 {
		t.Errorf("it still counts %v", g.streams)
	}
}

func BenchmarkAuthorize(b *testing.B) {
	p := people{}
	token := p.add("v", 1, job.Credential{Role: job.RoleSubmitter, Namespaces: []string{"a"}})
	g := New(Config{Credentials: p})
	r := httptest.NewRequest("POST", "/v1/runs", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	b.ReportAllocs()
	for b.Loop() {
		if err := g.Authorize(r, api.Operation{Verb: api.Submit, Namespace: "a"}); err != nil {
			b.Fatal(err)
		}
	}
}
