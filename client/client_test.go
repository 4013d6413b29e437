package client_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

func TestMain(m *testing.M) {
	code := m.Run()
	exampleServer.close()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func serve(t *testing.T, h http.HandlerFunc) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func newClient(t *testing.T, c client.Config) *client.Client {
	cl, err := client.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// deadAddress is one at which nobody listens.
func deadAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

const aRun = `{"id":"0192f3a4-7c1e-7abc-8def-0123456789ab","namespace":"default","trigger":"api","state":"queued","durability":"quorum"}`

func refuse(w http.ResponseWriter, status int, code job.Code) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"code":%q,"reason":"r","field":"f","detail":"d"}`, code)
}

func TestASubmissionIsRepeatedElsewhereWithTheSameID(t *testing.T) {
	var mu sync.Mutex
	var ids []string
	note := func(r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		var b struct{ ID string }
		if err := json.NewDecoder(r.Body).Decode(&b); err != nil {
			t.Error(err)
		}
		ids = append(ids, b.ID)
	}
	unavailable := serve(t, func(w http.ResponseWriter, r *http.Request) { note(r); refuse(w, 503, job.Unavailable) })
	unknown := serve(t, func(w http.ResponseWriter, r *http.Request) { note(r); refuse(w, 504, job.Unknown) })
	hangsUp := serve(t, func(w http.ResponseWriter, r *http.Request) { note(r); panic(http.ErrAbortHandler) })
	hangs := serve(t, func(w http.ResponseWriter, r *http.Request) { note(r); <-r.Context().Done() })
	good := serve(t, func(w http.ResponseWriter, r *http.Request) { note(r); w.WriteHeader(201); io.WriteString(w, aRun) })
	c := newClient(t, client.Config{Addresses: []string{deadAddress(t), unavailable, unknown, hangsUp, hangs, good}, AttemptTimeout: 100 * time.Millisecond})
	if _, err := c.Submit(context.Background(), client.Submission{Job: "x"}); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	first := slices.Clone(ids)
	mu.Unlock()
	if len(first) != 5 {
		t.Fatalf("asked %d times", len(first))
	}
	for _, id := range first {
		if id != first[0] || id == "" {
			t.Fatalf("the ids are %v", first)
		}
	}
	// It stays with the node that answered.
	if _, err := c.Submit(context.Background(), client.Submission{Job: "x"}); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ids) != 6 {
		t.Fatalf("asked %d times", len(ids))
	}
}

func TestAClusterThatComesBackIsAskedAgain(t *testing.T) {
	var n atomic.Int32
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) < 4 {
			refuse(w, 503, job.Unavailable)
			return
		}
		io.WriteString(w, aRun)
	})
	c := newClient(t, client.Config{Addresses: []string{addr}})
	if _, err := c.Run(context.Background(), client.NewRunID()); err != nil || n.Load() != 4 {
		t.Fatalf("%v after %d attempts", err, n.Load())
	}
}

func TestTheErrorIsTheNodes(t *testing.T) {
	for _, code := range []job.Code{job.Invalid, job.NotFound, job.Conflict, job.Fenced, job.Exhausted, job.Unavailable, job.Unknown, job.Unauthenticated, job.Forbidden, job.Internal} {
		addr := serve(t, func(w http.ResponseWriter, r *http.Request) { refuse(w, code.HTTPStatus(), code) })
		c := newClient(t, client.Config{Addresses: []string{addr}, RetryFor: -1})
		_, err := c.Run(context.Background(), client.NewRunID())
		want := job.Error{Code: code, Reason: "r", Field: "f", Message: "d"}
		if e := new(job.Error); !errors.As(err, &e) || *e != want {
			t.Errorf("%s came back as %+v", code, err)
		}
	}
}

func TestAProxysErrorHasACodeToo(t *testing.T) {
	for status, code := range map[int]job.Code{502: job.Unknown, 503: job.Unavailable, 404: job.NotFound, 418: job.Invalid, 500: job.Internal, 302: job.Internal} {
		addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "http://elsewhere.invalid/")
			w.WriteHeader(status)
			io.WriteString(w, "<html>")
		})
		c := newClient(t, client.Config{Addresses: []string{addr}, RetryFor: -1, Token: "secret"})
		if _, err := c.Run(context.Background(), client.NewRunID()); job.CodeOf(err) != code {
			t.Errorf("%d became %v", status, err)
		}
	}
}

func TestWhatIsNotSafeToRepeatIsNot(t *testing.T) {
	var n atomic.Int32
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) { n.Add(1); refuse(w, 504, job.Unknown) })
	c := newClient(t, client.Config{Addresses: []string{addr, addr}})
	if _, err := c.CreateJob(context.Background(), &job.Document{Name: "x"}); job.CodeOf(err) != job.Unknown || n.Load() != 1 {
		t.Fatalf("%v after %d attempts", err, n.Load())
	}
}

func TestADeletionThatWasDoneUnanswered(t *testing.T) {
	var n atomic.Int32
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) == 1 {
			panic(http.ErrAbortHandler)
		}
		refuse(w, 404, job.NotFound)
	})
	c := newClient(t, client.Config{Addresses: []string{addr}})
	if err := c.DeleteJob(context.Background(), "x", 0); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteJob(context.Background(), "x", 0); job.CodeOf(err) != job.NotFound {
		t.Fatalf("a job that was not there: %v", err)
	}
}

func TestTheContextEndsThePatience(t *testing.T) {
	c := newClient(t, client.Config{Addresses: []string{deadAddress(t)}})
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := c.Run(ctx, client.NewRunID()); job.CodeOf(err) != job.Unavailable || time.Since(start) > 5*time.Second {
		t.Fatalf("%v after %s", err, time.Since(start))
	}
}

func TestAFollowedOutputIsResumedWhereItBroke(t *testing.T) {
	var n atomic.Int32
	text := func(w io.Writer, from int, s string) {
		fmt.Fprintf(w, "event: output\nid: 1:%d\ndata: {\"attempt\":1,\"offset\":%d,\"text\":%q}\n\n", from+len(s), from, s)
	}
	h := func(w http.ResponseWriter, r *http.Request) {
		switch n.Add(1) {
		case 1:
			text(w, 0, "a")
			text(w, 1, "b")
			io.WriteString(w, ": still here\n\nevent: novelty\ndata: 1\n\nevent: output\nid: 1:9\ndata: {\"attem")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case 2:
			refuse(w, 503, job.Unavailable)
		case 3:
			if got := r.Header.Get("Last-Event-ID"); got != "1:2" {
				t.Errorf("resumed at %q", got)
			}
			io.WriteString(w, "event: gap\ndata: {\"attempt\":1,\"offset\":2,\"missing\":3}\n\n")
			io.WriteString(w, "event: output\nid: 1:7\ndata: {\"attempt\":1,\"offset\":5,\"bytes\":\"//4=\"}\n\n")
			io.WriteString(w, "event: end\ndata: "+aRun+"\n\n")
		}
	}
	addr := serve(t, h)
	c := newClient(t, client.Config{Addresses: []string{deadAddress(t), addr}})
	var got strings.Builder
	for e, err := range c.Follow(context.Background(), client.NewRunID(), 1) {
		switch {
		case err != nil:
			t.Fatal(err)
		case e.Run != nil:
			got.WriteString("end")
		case e.Missing > 0:
			fmt.Fprintf(&got, "(%d)", e.Missing)
		default:
			got.Write(e.Data)
		}
	}
	if got.String() != "ab(3)\xff\xfeend" {
		t.Fatalf("%q", got.String())
	}
}

func TestFollowingEndsWithAProblem(t *testing.T) {
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) { refuse(w, 404, job.NotFound) })
	c := newClient(t, client.Config{Addresses: []string{addr}})
	n := 0
	for _, err := range c.Follow(context.Background(), client.NewRunID(), 0) {
		if n++; job.CodeOf(err) != job.NotFound || n > 1 {
			t.Fatalf("%v, %d", err, n)
		}
	}
}

func TestAddressesAreChecked(t *testing.T) {
	for _, bad := range []string{"", "ftp://x", "http://", "http://x?y=1", "http://a b"} {
		if _, err := client.New(client.Config{Addresses: []string{bad}}); job.CodeOf(err) != job.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := client.New(client.Config{}); job.CodeOf(err) != job.Invalid {
		t.Errorf("none: %v", err)
	}
	if c, err := client.New(client.Config{Addresses: []string{"localhost:8080", "https://x/"}}); err != nil || c.Addresses[0] != "http://localhost:8080" || c.Addresses[1] != "https://x" {
		t.Errorf("%v %v", c, err)
	}
}

func TestTheTokenAndNamespaceAreSent(t *testing.T) {
	var got []string
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Header.Get("Authorization")+" "+r.URL.RawQuery)
		io.WriteString(w, "{}")
	})
	c := newClient(t, client.Config{Addresses: []string{addr}, Token: "t", Namespace: "ns"})
	_, _ = c.Job(context.Background(), "x")
	_, _ = c.PutJob(context.Background(), &job.Document{Name: "x", Namespace: "other"})
	_, _ = c.Worker(context.Background(), "w")
	if want := []string{"Bearer t namespace=ns", "Bearer t namespace=other", "Bearer t "}; strings.Join(got, "|") != strings.Join(want, "|") {
		t.Fatalf("%q", got)
	}
}

func serveTLS(t *testing.T, h http.HandlerFunc) (url, caFile string) {
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of strangers that hang up
	s.StartTLS()
	t.Cleanup(s.Close)
	caFile = filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return s.URL, caFile
}

func TestNodesAreTrustedByTheirCA(t *testing.T) {
	var asked atomic.Int32
	addr, ca := serveTLS(t, func(w http.ResponseWriter, r *http.Request) { asked.Add(1); io.WriteString(w, "{}") })
	trust, err := client.TrustCA(ca)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	c := newClient(t, client.Config{Addresses: []string{strings.TrimPrefix(addr, "https://")}, TLS: trust}) // bare: https
	if _, err := c.Job(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	// Whoever does not trust it sends it nothing, not even once, whatever the method: so it is safe to ask elsewhere.
	asked.Store(0)
	stranger := newClient(t, client.Config{Addresses: []string{addr}, Token: "secret", RetryFor: -1})
	for _, ask := range []func() error{
		func() error { _, err := stranger.Job(ctx, "x"); return err },
		func() error { _, err := stranger.PauseJob(ctx, "x"); return err },
	} {
		if e := job.AsError(ask()); e == nil || e.Code != job.Unavailable || e.Reason != "untrusted" {
			t.Errorf("%v", e)
		}
	}
	if asked.Load() != 0 {
		t.Error("a node that is not trusted was sent a request")
	}
	// The scheme that is wrong.
	plain := newClient(t, client.Config{Addresses: []string{strings.Replace(addr, "https", "http", 1)}, RetryFor: -1})
	if _, err := plain.PauseJob(ctx, "x"); job.AsError(err).Reason != "wants_tls" {
		t.Errorf("%v", err)
	}
	other := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("it was asked without TLS") })
	c = newClient(t, client.Config{Addresses: []string{strings.Replace(other, "http", "https", 1)}, TLS: trust, RetryFor: -1})
	if _, err := c.PauseJob(ctx, "x"); job.CodeOf(err) != job.Unavailable {
		t.Errorf("%v", err)
	}
}

func TestWhatIsNoCAIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ca.crt")
	if _, err := client.TrustCA(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(file, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := client.TrustCA(file); job.CodeOf(err) != job.Invalid {
		t.Errorf("%v", err)
	}
}

func TestWhatOneNodeDoesNotFindIsNotLookedForElsewhere(t *testing.T) {
	missing := serve(t, func(w http.ResponseWriter, _ *http.Request) { refuse(w, 404, job.NotFound) })
	other := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("another node was asked") })
	c := newClient(t, client.Config{Addresses: []string{missing, other}})
	if _, err := c.Job(context.Background(), "x"); job.CodeOf(err) != job.NotFound {
		t.Errorf("%v", err)
	}
}

// A snapshot goes to the next node whole if one refuses it, and to no other once it may have been restored.
func TestASnapshotIsSentWholeAndOnce(t *testing.T) {
	const text = "a snapshot, which is read from its start each time"
	var got atomic.Value
	busy := serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.CopyN(io.Discard, r.Body, 3)
		refuse(w, 503, job.Unavailable)
	})
	good := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got.Store(fmt.Sprintf("%s %d %s", r.Header.Get("Content-Type"), r.ContentLength, b))
		w.WriteHeader(204)
	})
	ctx := context.Background()
	c := newClient(t, client.Config{Addresses: []string{deadAddress(t), busy, good}})
	if err := c.Restore(ctx, strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("application/octet-stream %d %s", len(text), text); got.Load() != want {
		t.Errorf("%q", got.Load())
	}
	hangsUp := serve(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body); panic(http.ErrAbortHandler) })
	never := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("it was sent to another node") })
	c = newClient(t, client.Config{Addresses: []string{hangsUp, never}})
	if err := c.Restore(ctx, strings.NewReader(text)); job.CodeOf(err) != job.Unknown {
		t.Errorf("%v", err)
	}
}

// The token of a credential is in one answer only: making it again would hide that the first one exists.
func TestACredentialIsNotMadeTwice(t *testing.T) {
	var asked atomic.Int32
	h := func(w http.ResponseWriter, r *http.Request) { asked.Add(1); panic(http.ErrAbortHandler) }
	c := newClient(t, client.Config{Addresses: []string{serve(t, h), serve(t, h)}})
	_, err := c.CreateCredential(context.Background(), client.CredentialRequest{Name: "a", Role: job.RoleViewer})
	if job.CodeOf(err) != job.Unknown || asked.Load() != 1 {
		t.Errorf("%v after %d requests", err, asked.Load())
	}
}

// Of the failures of several nodes the caller hears the one that matters: that it may have happened, or what a node said,
// rather than that the last one is not there.
func TestTheFailureThatMattersIsTold(t *testing.T) {
	unavailable := serve(t, func(w http.ResponseWriter, _ *http.Request) { refuse(w, 503, job.Unavailable) })
	hangsUp := serve(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	dead := deadAddress(t)
	for _, c := range []struct {
		addresses []string
		code      job.Code
		reason    string
	}{
		{[]string{dead}, job.Unavailable, "no_connection"},
		{[]string{unavailable, dead}, job.Unavailable, "r"},
		{[]string{dead, unavailable}, job.Unavailable, "r"},
		{[]string{hangsUp, unavailable, dead}, job.Unknown, "no_answer"},
	} {
		cl := newClient(t, client.Config{Addresses: c.addresses, RetryFor: -1})
		_, err := cl.PauseJob(context.Background(), "x")
		if e := job.AsError(err); e == nil || e.Code != c.code || e.Reason != c.reason {
			t.Errorf("%v: %v", c.addresses, err)
		}
	}
}
