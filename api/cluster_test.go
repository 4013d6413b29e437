package api

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

func TestNodesAreTransferredRemovedAndCompared(t *testing.T) {
	b := newBench(t)
	want[struct{}](t, b, 204, "POST", "/v1/cluster/transfer", `{}`)
	want[struct{}](t, b, 204, "POST", "/v1/cluster/transfer", `{"to":"n2"}`)
	refused(t, b, 404, job.NotFound, "", "POST", "/v1/cluster/transfer", `{"to":"n9"}`)
	want[struct{}](t, b, 204, "DELETE", "/v1/cluster/nodes/n2", "")
	refused(t, b, 404, job.NotFound, "", "DELETE", "/v1/cluster/nodes/n9", "")
	if p := refused(t, b, 409, job.Conflict, "", "DELETE", "/v1/cluster/nodes/n3?force=false", ""); p.Reason != "quorum" {
		t.Errorf("%+v", p)
	}
	want[struct{}](t, b, 204, "DELETE", "/v1/cluster/nodes/n3?force=true", "")
	if b.writes != 4 {
		t.Errorf("%d writes", b.writes)
	}
	if v := want[ReplicaCheck](t, b, 200, "POST", "/v1/cluster/verify", ""); !v.Equal || v.Index != 7 || len(v.Replicas) != 1 {
		t.Errorf("%+v", v)
	}
	if g := want[Greeting](t, b, 200, "GET", "/v1/cluster/greeting", ""); g.NodeID != "1" || !g.HasState || len(g.Knows) != 2 {
		t.Errorf("%+v", g)
	}
	b.leaderErr = job.Errorf(job.Unavailable, "no_leader", "no leader")
	refused(t, b, 503, job.Unavailable, "", "POST", "/v1/cluster/transfer", `{}`)
}

func TestANodeThatIsAloneHasNoOthers(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Admin, c.Credentials, c.Snapshots = nil, nil, nil })
	for _, c := range [][3]string{
		{"POST", "/v1/cluster/transfer", `{}`}, {"DELETE", "/v1/cluster/nodes/n2", ""}, {"POST", "/v1/cluster/verify", ""},
		{"GET", "/v1/cluster/greeting", ""}, {"GET", "/v1/credentials", ""}, {"POST", "/v1/credentials", `{"name":"a","role":"viewer"}`},
		{"DELETE", "/v1/credentials/x", ""}, {"GET", "/v1/cluster/snapshot", ""}, {"POST", "/v1/cluster/snapshot", ""},
	} {
		if p := refused(t, b, 404, job.NotFound, "", c[0], c[1], c[2]); p.Reason != "no_route" {
			t.Errorf("%v: %+v", c, p)
		}
	}
}

func TestCredentialsAreCreatedListedAndRevoked(t *testing.T) {
	b := newBench(t)
	const body = `{"name":"ci","role":"submitter","namespaces":["b","a","b"],"expires_in":"720h"}`
	c := want[NewCredential](t, b, 201, "POST", "/v1/credentials", body)
	id, secret, ok := job.ParseToken(c.Token)
	kept := b.credentials[0]
	if !ok || id != c.ID || id != kept.ID || !kept.Matches(secret, job.At(testNow)) {
		t.Fatalf("the token %q does not fit %+v", c.Token, kept)
	}
	if !slices.Equal(c.Namespaces, []string{"a", "b"}) || c.ExpiresAt != job.At(testNow.Add(720*time.Hour)) || c.CreatedAt != job.At(testNow) {
		t.Fatalf("%+v", c)
	}
	refused(t, b, 409, job.Conflict, "", "POST", "/v1/credentials", body)
	other := want[NewCredential](t, b, 201, "POST", "/v1/credentials", `{"name":"boss","role":"admin"}`)
	if other.Token == c.Token || other.ExpiresAt != 0 {
		t.Fatalf("%+v", other)
	}
	w := b.call("GET", "/v1/credentials", "")
	for _, secret := range []string{"token", "digest", c.Token, fmt.Sprintf("%x", kept.Digest)} {
		if strings.Contains(strings.ToLower(w.Body.String()), strings.ToLower(secret)) {
			t.Errorf("the list shows %q: %s", secret, w.Body)
		}
	}
	p := want[page[job.Credential]](t, b, 200, "GET", "/v1/credentials?limit=1", "")
	if len(p.Items) != 1 || p.Items[0].Name != "boss" || p.NextCursor == "" {
		t.Fatalf("%+v", p)
	}
	if p = want[page[job.Credential]](t, b, 200, "GET", "/v1/credentials?limit=1&cursor="+p.NextCursor, ""); len(p.Items) != 1 || p.Items[0].ID != c.ID || p.NextCursor != "" {
		t.Fatalf("%+v", p)
	}
	want[struct{}](t, b, 204, "DELETE", "/v1/credentials/"+c.ID, "")
	refused(t, b, 404, job.NotFound, "", "DELETE", "/v1/credentials/"+c.ID, "")
	if strings.Contains(b.log.String(), c.Token) || !strings.Contains(b.log.String(), "a credential was created") || !strings.Contains(b.log.String(), "a credential was revoked") {
		t.Errorf("the log: %s", b.log)
	}
}

func TestASnapshotIsRestored(t *testing.T) {
	b := newBench(t)
	want[struct{}](t, b, 204, "POST", "/v1/cluster/snapshot", "snapshot", "Content-Type", bytesType)
	if b.writes != 1 {
		t.Fatalf("%d writes", b.writes)
	}
	b.api.restoring.Store(true)
	if p := refused(t, b, 409, job.Conflict, "", "POST", "/v1/cluster/snapshot", "snapshot", "Content-Type", bytesType); p.Reason != "restoring" {
		t.Fatalf("%+v", p)
	}
}

// restorer counts what arrives, and lets a test refuse in the middle.
type restorer struct {
	*node
	refuseAt int64
	got      int64
}

func (r *restorer) Restore(_ context.Context, body io.Reader) error {
	if r.refuseAt > 0 {
		body = io.LimitReader(body, r.refuseAt)
	}
	n, err := io.Copy(io.Discard, body)
	r.got = n
	if err == nil && r.refuseAt > 0 {
		return job.Errorf(job.Conflict, "other_cluster", "this snapshot is another cluster's")
	}
	if err != nil {
		return &job.Error{Code: job.Internal, Message: "copy", Cause: err}
	}
	return nil
}

// A snapshot is larger than any other body, and may take longer to arrive than any other, as long as it does arrive.
func TestASnapshotMayBeLarge(t *testing.T) {
	port := &restorer{node: newNode()}
	c := port.config()
	c.Snapshots, c.BodyTimeout, c.RequestTimeout = port, 2*time.Second, time.Millisecond
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	addr := serveOn(t, a)
	defer http.DefaultClient.CloseIdleConnections()
	send := func(body io.Reader) (int, string) {
		t.Helper()
		resp, err := http.Post("http://"+addr+"/v1/cluster/snapshot", bytesType, body)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(text)
	}
	const size = 8 << 20
	if status, text := send(io.LimitReader(neverEnding('x'), size)); status != 204 || port.got != size {
		t.Errorf("%d after %d bytes: %s", status, port.got, text)
	}
	port.refuseAt = 100 << 10
	if status, text := send(bytes.NewReader(make([]byte, 200<<10))); status != 409 || !strings.Contains(text, "other_cluster") {
		t.Errorf("%d: %s", status, text)
	}
	port.refuseAt = 0
	for head, want := range map[string]string{
		fmt.Sprintf("Content-Length: %d\r\n", int64(MaxSnapshot)+1): "HTTP/1.1 413 ",
		"Content-Length: 100\r\n":                                   "HTTP/1.1 408 ",
	} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "POST /v1/cluster/snapshot HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nConnection: close\r\n%s\r\n", bytesType, head)
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		answer, err := io.ReadAll(c)
		if !strings.HasPrefix(string(answer), want) {
			t.Errorf("%s answered %q, %v", head, answer, err)
		}
		c.Close()
	}
}

func TestAWorkerBringsACertificateRequest(t *testing.T) {
	b := newBench(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr := func(der []byte) string {
		q, _ := json.Marshal(JoinRequest{Name: "w1", CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))})
		return string(q)
	}
	want[JoinAnswer](t, b, 200, "POST", "/v1/workers/join", csr(der))
	forged := bytes.Clone(der)
	forged[len(forged)-1] ^= 1
	refused(t, b, 400, job.Invalid, "csr", "POST", "/v1/workers/join", csr(forged))
}

func TestTheQuorumIsCounted(t *testing.T) {
	node := func(name, role string, healthy bool) NodeStatus {
		return NodeStatus{Name: name, Role: role, Healthy: healthy}
	}
	three := func(second, third bool) []NodeStatus {
		return []NodeStatus{node("a", RoleLeader, true), node("b", RoleVoter, second), node("c", RoleVoter, third)}
	}
	behind, late := three(true, true), three(true, true)
	behind[2].Behind = 20_000
	late[1].ClockOffsetMS = -1500
	unheard := three(true, false)
	unheard[2].ClockOffsetMS = -1 << 40 // of a node that does not answer nothing is known
	for _, c := range []struct {
		name              string
		leader            string
		nodes             []NodeStatus
		healthy           bool
		tolerates         int
		summary, adviceIn string // of the advice a piece, or "" for none
	}{
		{"alone", "a", three(true, true)[:1], true, 0, "healthy: the only voter answers; tolerates no failure", ""},
		{"two", "a", three(true, true)[:2], true, 0, "healthy: 2 of 2 voters answer; tolerates no failure", "add a third node"},
		{"three", "a", three(true, true), true, 1, "healthy: 3 of 3 voters answer; tolerates 1 failure", ""},
		{"one of three is down", "a", three(true, false), true, 0, "healthy: 2 of 3 voters answer; tolerates no further failure", "start c again"},
		{"one was never heard of", "a", unheard, true, 0, "healthy: 2 of 3 voters answer; tolerates no further failure", "start c again"},
		{"two of three are down", "a", three(false, false), false, 0, "only 1 of 3 voters answer, 2 are needed: nothing is decided", "start b and c again"},
		{"no leader", "", three(true, true), false, 1, "no node leads: nothing is decided until 2 of 3 voters answer each other", "recover"},
		{"alone without a leader", "", three(true, true)[:1], false, 0, "no node leads at the moment", ""},
		{"five, one down", "a", append(three(true, false), node("d", RoleVoter, true), node("e", RoleVoter, true)), true, 1, "healthy: 4 of 5 voters answer; tolerates 1 more failure", "start c again"},
		{"one joins", "a", append(three(true, true), node("d", RoleNonvoter, true)), true, 1, "healthy: 3 of 3 voters answer; tolerates 1 failure", "wait for d"},
		{"one is behind", "a", behind, true, 1, "healthy: 3 of 3 voters answer; tolerates 1 failure", "the disk and the network of c"},
		{"a clock is off", "a", late, true, 1, "healthy: 3 of 3 voters answer; tolerates 1 failure", "the clock of b: it is -1.5 s off"},
	} {
		q := quorumOf(&ClusterStatus{Leader: c.leader, Nodes: c.nodes})
		advice := strings.Join(q.Advice, "\n")
		if strings.Contains(advice, "clock of c") {
			t.Errorf("%s: %s", c.name, advice)
		}
		if q.Healthy != c.healthy || q.Tolerates != c.tolerates || q.Summary != c.summary || !strings.Contains(advice, c.adviceIn) || c.adviceIn == "" && advice != "" {
			t.Errorf("%s: %+v", c.name, q)
		}
	}
}

func TestOperationsAreTheRoutes(t *testing.T) {
	all := Operations()
	if !slices.Equal(all, newBench(t).api.operations()) {
		t.Error("they differ from those that are served")
	}
	verbs := map[Verb]bool{}
	ids := map[string]bool{}
	for _, op := range all {
		if !slices.Contains(Verbs, op.Verb) || ids[op.ID] {
			t.Errorf("%+v", op)
		}
		verbs[op.Verb], ids[op.ID] = true, true
	}
	if len(verbs) != len(Verbs) {
		t.Errorf("verbs in use: %v", verbs)
	}
}
