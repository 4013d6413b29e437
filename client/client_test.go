package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
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
